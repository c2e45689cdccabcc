//! Both sides of the NBD protocol on damaged streams: an answer or a named error, never a panic, bounded memory, and the same outcome
//! however the stream is cut.

#[path = "../../proto/tests/mutate/mod.rs"]
mod mutate;

use bytes::{BufMut, BytesMut};
use mutate::{cuts, each, each_of, rounds, within};
use sheepdog_nbd::client::{self, Goal, Replies, Wishes};
use sheepdog_nbd::server::{self, Refusal, TlsPolicy};
use sheepdog_nbd::wire::{self, Broken, REQUEST_LEN, cflag, cmd, info, opt, rep, state};
use sheepdog_nbd::{Command, Errno, Export, RequestHeader, Terms, reply, validate};

/// What a handshake may hold at a time besides its input: one answer, and a name in three places.
const HANDSHAKE: usize = 64 << 10;

fn vol() -> Export {
    Export { name: "vol".into(), description: "a volume".into(), size: 1 << 30, read_only: false }
}

fn option(code: u32, payload: &[u8]) -> Vec<u8> {
    let mut b = Vec::new();
    b.put_u64(wire::IHAVEOPT);
    b.put_u32(code);
    b.put_u32(payload.len() as u32);
    b.put_slice(payload);
    b
}

fn string(s: &str) -> Vec<u8> {
    [&(s.len() as u32).to_be_bytes(), s.as_bytes()].concat()
}

fn info_request(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut b = string(name);
    b.put_u16(infos.len() as u16);
    infos.iter().for_each(|i| b.put_u16(*i));
    b
}

fn meta_request(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut b = string(name);
    b.put_u32(queries.len() as u32);
    queries.iter().for_each(|q| b.put_slice(&string(q)));
    b
}

fn conversations() -> Vec<Vec<u8>> {
    let flags = vec![0, 0, 0, 3];
    let go = option(opt::GO, &info_request("vol", &[info::NAME, info::BLOCK_SIZE, 77]));
    let structured = option(opt::STRUCTURED_REPLY, &[]);
    let meta = option(opt::SET_META_CONTEXT, &meta_request("vol", &["base:allocation", "qemu:x"]));
    let listed = option(opt::LIST_META_CONTEXT, &meta_request("vol", &[]));
    vec![
        [flags.clone(), structured, meta, listed, go].concat(),
        [flags.clone(), option(opt::LIST, &[]), option(opt::ABORT, &[])].concat(),
        [flags.clone(), option(opt::INFO, &info_request("nope", &[])), option(opt::EXPORT_NAME, b"vol")]
            .concat(),
        [flags.clone(), option(opt::STARTTLS, &[])].concat(),
        [flags, option(99, &[7; 40]), option(opt::LIST, &[1; 3])].concat(),
    ]
}

/// How a handshake ended, what it answered, and what it left unread.
type Ended = (Result<server::Step, Broken>, Vec<u8>, usize);

/// Bytes behind `STARTTLS` are only noticed by the machine when they come with it; otherwise TLS gets them.
const EARLY: &str = "data sent ahead of the TLS handshake";

/// That it ended does not depend on how the stream was cut. The words may: a wrong number is told as soon as it cannot become right.
fn same_for_any_cut<T>(end: Result<T, Broken>) -> Option<Result<T, ()>> {
    match end {
        Err(Broken::Unexpected(EARLY)) => None,
        end => Some(end.map_err(|e| assert!(!e.to_string().is_empty()))),
    }
}

/// Talk to the server as a caller does, the stream in pieces.
fn serve(policy: TlsPolicy, stream: &[u8], pieces: &[usize]) -> Ended {
    use server::Step;
    let mut machine = server::Handshake::new(policy);
    let (mut input, mut out) = (BytesMut::new(), Vec::new());
    let (mut rest, mut pieces) = (stream, pieces.iter());
    let mut step = Ok(Step::Progress);
    loop {
        out.extend_from_slice(&machine.take_output());
        step = match step {
            Ok(Step::NeedInput) => match pieces.next() {
                None => return (Ok(Step::NeedInput), out, input.len()),
                Some(n) => {
                    input.extend_from_slice(&rest[..*n]);
                    rest = &rest[*n..];
                    machine.step(&mut input)
                }
            },
            Ok(Step::Progress) => machine.step(&mut input),
            Ok(Step::List) => Ok(machine.listed(["vol", "other"])),
            Ok(Step::Describe(name) | Step::Open(name)) if name == "vol" => Ok(machine.found(&vol())),
            Ok(Step::Describe(name)) => Ok(machine.refused(&Refusal::Unknown(name))),
            Ok(Step::Open(name)) => Ok(machine.refused(&Refusal::Policy(name))),
            Ok(Step::StartTls) if input.is_empty() && rest.is_empty() => {
                machine.secured();
                Ok(Step::Progress)
            }
            end => {
                let left = input.len() + rest.len();
                return (end, out, left);
            }
        };
    }
}

#[test]
fn the_servers_handshake() {
    for policy in [TlsPolicy::Off, TlsPolicy::Allowed, TlsPolicy::Required] {
        each_of(1, &conversations(), rounds() / 3, |bytes| {
            let mut ends = cuts(1, bytes.len()).into_iter().map(|pieces| {
                let cap = HANDSHAKE + 8 * bytes.len();
                let (end, out, left) = within(cap, || serve(policy, bytes, &pieces));
                if end == Ok(server::Step::StartTls) {
                    return None;
                }
                let left = if end.is_ok() { left } else { 0 };
                Some((same_for_any_cut(end)?, out, left))
            });
            let first = ends.next();
            for other in ends {
                assert_eq!(Some(other), first, "the outcome depends on how the stream was cut");
            }
        });
    }
}

#[test]
fn an_option_that_is_too_long_is_skipped_however_it_comes() {
    let long = [vec![0, 0, 0, 3], option(opt::LIST, &vec![1; 70_000]), option(opt::ABORT, &[])].concat();
    let ends: Vec<Ended> =
        cuts(1, long.len()).iter().map(|pieces| serve(TlsPolicy::Off, &long, pieces)).collect();
    assert!(ends.iter().all(|e| e.0 == Ok(server::Step::Closed) && *e == ends[0]));
}

#[test]
fn an_endless_handshake_ends() {
    let many = option(opt::LIST, b"x").repeat(wire::MAX_OPTIONS as usize + 10);
    let mut machine = server::Handshake::new(TlsPolicy::Off);
    let mut input = BytesMut::from(&[0u8, 0, 0, 3][..]);
    input.extend_from_slice(&many);
    let mut most = 0;
    let end = loop {
        match machine.step(&mut input) {
            Ok(server::Step::Progress) => most = most.max(machine.take_output().len()),
            other => break other,
        }
    };
    assert!(matches!(end, Err(Broken::TooLong { .. })), "{end:?}");
    assert!(most < 1000, "answers do not gather");
}

fn headers() -> Vec<Vec<u8>> {
    let h =
        |kind, flags, offset, len| RequestHeader { flags, kind, cookie: 7, offset, len }.encode().to_vec();
    vec![
        h(cmd::READ, cflag::DF, 0, 4096),
        h(cmd::WRITE, cflag::FUA, 1 << 20, 512),
        h(cmd::TRIM, 0, 4096, 4096),
        h(cmd::WRITE_ZEROES, cflag::NO_HOLE, 0, 1 << 20),
        h(cmd::BLOCK_STATUS, cflag::REQ_ONE, 0, 1 << 30),
        h(cmd::FLUSH, 0, 0, 0),
        h(cmd::CACHE, 0, 0, 1),
        h(cmd::DISC, 0, 0, 0),
    ]
}

#[test]
fn requests() {
    let terms: Vec<Terms> =
        [(1 << 30, true, true), (0, false, false), (u64::MAX, false, true), (513, true, false)]
            .into_iter()
            .flat_map(|(size, structured, base_allocation)| {
                [true, false].map(|read_only| Terms { size, read_only, structured, base_allocation })
            })
            .collect();
    each(2, &headers(), |bytes| {
        let Some(raw) = bytes.first_chunk::<REQUEST_LEN>() else { return };
        let parsed = within(0, || RequestHeader::parse(raw));
        let Ok(h) = parsed else { return };
        assert_eq!(h.encode(), *raw);
        if let Ok(n) = h.payload() {
            assert!(n <= wire::MAX_DRAIN && (n == 0 || h.kind == cmd::WRITE));
        }
        for t in &terms {
            let (offset, len, writes) = match within(0, || validate(&h, t)) {
                Err(refused) => {
                    assert!(!refused.why.is_empty());
                    continue;
                }
                Ok(Command::Disconnect | Command::Flush) => continue,
                Ok(Command::Read { offset, len, .. }) => {
                    assert!(len <= wire::MAX_REQUEST);
                    (offset, len, false)
                }
                Ok(Command::Write { offset, len }) => {
                    assert!(len <= wire::MAX_REQUEST);
                    (offset, len, true)
                }
                Ok(Command::Trim { offset, len } | Command::WriteZeroes { offset, len, .. }) => {
                    (offset, len, true)
                }
                Ok(Command::Cache { offset, len } | Command::BlockStatus { offset, len, .. }) => {
                    (offset, len, false)
                }
            };
            assert!(offset.checked_add(len.into()).is_some_and(|end| end <= t.size), "beyond the end");
            assert!(!(writes && t.read_only));
        }
    });
}

fn option_reply(option: u32, code: u32, payload: &[u8]) -> Vec<u8> {
    let mut b = Vec::new();
    b.put_u64(wire::OPTION_REPLY);
    b.put_u32(option);
    b.put_u32(code);
    b.put_u32(payload.len() as u32);
    b.put_slice(payload);
    b
}

fn servers() -> Vec<Vec<u8>> {
    let greeting = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    let structured = option_reply(opt::STRUCTURED_REPLY, rep::ACK, &[]);
    let context = [&[0, 0, 0, 1][..], wire::BASE_ALLOCATION.as_bytes()].concat();
    let context = [
        option_reply(opt::SET_META_CONTEXT, rep::META_CONTEXT, &context),
        option_reply(opt::SET_META_CONTEXT, rep::ACK, &[]),
    ]
    .concat();
    let go = [
        option_reply(opt::GO, rep::INFO, b"\0\0\0\0\0\0\x40\0\0\0\x0d\x6d"),
        option_reply(opt::GO, rep::INFO, b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0"),
        option_reply(opt::GO, rep::ACK, &[]),
    ]
    .concat();
    let list = [
        option_reply(opt::LIST, rep::SERVER, &string("vol")),
        option_reply(opt::LIST, rep::SERVER, &string("other")),
        option_reply(opt::LIST, rep::ACK, &[]),
    ]
    .concat();
    let refused = option_reply(opt::STRUCTURED_REPLY, rep::ERR_UNSUP, b"no");
    let no_go = option_reply(opt::GO, rep::ERR_UNSUP, b"");
    let name = b"\0\0\0\0\x40\0\0\0\x0d\x6d".to_vec();
    vec![
        [greeting.clone(), structured.clone(), context, go.clone()].concat(),
        [greeting.clone(), refused, go].concat(),
        [greeting.clone(), structured, option_reply(opt::SET_META_CONTEXT, rep::ACK, &[]), no_go, name]
            .concat(),
        [greeting.clone(), list].concat(),
        [greeting, option_reply(opt::STARTTLS, rep::ACK, &[])].concat(),
    ]
}

/// Talk to a client as a caller does.
fn attach(wishes: &Wishes, stream: &[u8], pieces: &[usize]) -> (Result<client::Step, Broken>, Vec<u8>) {
    use client::Step;
    let mut machine = client::Handshake::new(wishes.clone());
    let (mut input, mut out) = (BytesMut::new(), Vec::new());
    let (mut rest, mut pieces) = (stream, pieces.iter());
    loop {
        let step = machine.step(&mut input);
        out.extend_from_slice(&machine.take_output());
        match step {
            Ok(Step::Progress) => {}
            Ok(Step::NeedInput) => match pieces.next() {
                None => return (Ok(Step::NeedInput), out),
                Some(n) => {
                    input.extend_from_slice(&rest[..*n]);
                    rest = &rest[*n..];
                }
            },
            end => return (end, out),
        }
    }
}

#[test]
fn the_clients_handshake() {
    let plain = Wishes { structured: true, base_allocation: true, ..Wishes::attach("vol") };
    let all =
        [plain.clone(), Wishes::list(), Wishes { tls: true, goal: Goal::Attach("vol".into()), ..plain }];
    for wishes in all {
        each_of(3, &servers(), rounds() / 3, |bytes| {
            let mut ends = cuts(2, bytes.len()).into_iter().map(|pieces| {
                let (end, out) = within(HANDSHAKE + 8 * bytes.len(), || attach(&wishes, bytes, &pieces));
                if end == Ok(client::Step::StartTls) {
                    return None;
                }
                Some((same_for_any_cut(end)?, out))
            });
            let first = ends.next();
            for other in ends {
                assert_eq!(Some(other), first, "the outcome depends on how the stream was cut");
            }
        });
    }
}

fn replies() -> Vec<Vec<u8>> {
    let data = |cookie, offset, len: u32, last| {
        [reply::data(cookie, offset, len, last).to_vec(), vec![5; len as usize]].concat()
    };
    let status =
        [reply::Descriptor { len: 4096, flags: state::HOLE }, reply::Descriptor { len: 512, flags: 0 }];
    vec![
        [data(1, 4096, 512, false), reply::hole(1, 4608, 512, true).to_vec()].concat(),
        [reply::done(2).to_vec(), reply::block_status(3, &status).to_vec(), data(1, 4096, 1024, true)]
            .concat(),
        [reply::error(1, Errno::Io, "bad").to_vec(), reply::error(2, Errno::NoSpace, "full").to_vec()]
            .concat(),
        [reply::simple(2, None).to_vec(), reply::simple(2, Some(Errno::Perm)).to_vec()].concat(),
        [reply::simple(1, None).to_vec(), vec![9; 1024], reply::simple(2, Some(Errno::Perm)).to_vec()]
            .concat(),
    ]
}

/// Everything a client hears, the stream in pieces.
fn hear(structured: bool, stream: &[u8], pieces: &[usize]) -> (Vec<client::Completion>, Option<Broken>) {
    let (mut machine, mut out) = (Replies::new(structured), BytesMut::new());
    machine.read(4096, 1024, &mut out);
    machine.write(0, &[1; 512], &mut out);
    machine.submit(cmd::BLOCK_STATUS, 0, 0, 1 << 20, &mut out);
    let (mut input, mut done) = (BytesMut::new(), Vec::new());
    let mut rest = stream;
    for n in pieces {
        input.extend_from_slice(&rest[..*n]);
        rest = &rest[*n..];
        loop {
            match machine.receive(&mut input) {
                Ok(None) => break,
                Ok(Some(c)) => done.push(c),
                Err(e) => return (done, Some(e)),
            }
        }
    }
    assert!(machine.in_flight() + done.len() == 3);
    (done, None)
}

#[test]
fn replies_of_a_server() {
    for structured in [true, false] {
        each(4, &replies(), |bytes| {
            let mut ends = cuts(3, bytes.len()).into_iter().map(|pieces| {
                let (done, broken) = within(HANDSHAKE + 8 * bytes.len(), || hear(structured, bytes, &pieces));
                for c in &done {
                    if let Ok(client::Outcome::Data(d)) = &c.result {
                        assert_eq!(d.len(), 1024);
                    }
                }
                (done, broken)
            });
            let first = ends.next();
            for other in ends {
                assert_eq!(Some(other), first, "the outcome depends on how the stream was cut");
            }
        });
    }
}
