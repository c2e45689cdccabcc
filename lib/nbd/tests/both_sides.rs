//! Our client against our server, and both against noise: no panic, no growth, and what was agreed is agreed by both.

use bytes::{BufMut, BytesMut};
use proptest::prelude::*;
use sheepdog_nbd::client::{self, Completion, Extent, Goal, Outcome, Replies, Wishes};
use sheepdog_nbd::server::{self, Refusal, TlsPolicy};
use sheepdog_nbd::wire::{self, Broken, cmd};
use sheepdog_nbd::{Errno, Export, RequestHeader, Terms, reply, validate};

fn export(name: &str) -> Result<Export, Refusal> {
    match name {
        "vol" => {
            Ok(Export { name: "vol".into(), description: String::new(), size: 1 << 20, read_only: false })
        }
        "vol@s" => {
            Ok(Export { name: "vol@s".into(), description: "old".into(), size: 1000, read_only: true })
        }
        _ => Err(Refusal::Unknown(format!("no volume named '{name}'"))),
    }
}

/// What a caller does with a server's step, against a table of two exports.
fn serve(m: &mut server::Handshake, step: server::Step) -> server::Step {
    use server::Step::*;
    match step {
        List => m.listed(["vol", "vol@s"]),
        Describe(name) | Open(name) => match export(&name) {
            Ok(e) => m.found(&e),
            Err(r) => m.refused(&r),
        },
        StartTls => {
            m.secured();
            Progress
        }
        other => other,
    }
}

/// Run both machines against each other until the client is done.
fn meet(wishes: Wishes, policy: TlsPolicy) -> (Result<client::Step, Broken>, Option<server::Agreed>) {
    let (mut s, mut c) = (server::Handshake::new(policy), client::Handshake::new(wishes));
    let (mut to_server, mut to_client) = (BytesMut::new(), BytesMut::new());
    let mut agreed = None;
    for _ in 0..100 {
        to_client.put(s.take_output());
        match c.step(&mut to_client) {
            Ok(client::Step::NeedInput | client::Step::Progress) => {}
            Ok(client::Step::StartTls) => c.secured(),
            end => return (end, agreed),
        }
        to_server.put(c.take_output());
        let step = s.step(&mut to_server).expect("our client is a good client");
        if let server::Step::Ready(a) = serve(&mut s, step) {
            agreed = Some(a);
            to_client.put(s.take_output());
            return (
                c.step(&mut to_client).and_then(|st| match st {
                    client::Step::Progress => finish(&mut c, &mut to_client),
                    other => Ok(other),
                }),
                agreed,
            );
        }
    }
    panic!("the handshake does not end");
}

fn finish(c: &mut client::Handshake, input: &mut BytesMut) -> Result<client::Step, Broken> {
    loop {
        match c.step(input)? {
            client::Step::Progress => {}
            other => return Ok(other),
        }
    }
}

#[test]
fn attach() {
    let (end, agreed) = meet(Wishes::attach("vol"), TlsPolicy::Off);
    let Ok(client::Step::Ready(c)) = end else { panic!("{end:?}") };
    assert_eq!((c.size, c.read_only(), c.structured), (1 << 20, false, true));
    assert_eq!((c.base_allocation, c.blocks), (Some(wire::BASE_ALLOCATION_ID), (512, 4096, 32 << 20)));
    assert_eq!(agreed, Some(server::Agreed { structured: true, base_allocation: true }));
}

#[test]
fn attach_plainly() {
    let wishes = Wishes { structured: false, base_allocation: false, ..Wishes::attach("vol@s") };
    let (end, agreed) = meet(wishes, TlsPolicy::Allowed);
    let Ok(client::Step::Ready(c)) = end else { panic!("{end:?}") };
    assert!(c.read_only() && !c.structured && c.base_allocation.is_none());
    assert_eq!(c.blocks.0, 1, "1000 bytes are not made of sectors");
    assert_eq!(agreed, Some(server::Agreed { structured: false, base_allocation: false }));
}

#[test]
fn attach_over_tls_only_where_it_is() {
    let wishes = Wishes { tls: true, ..Wishes::attach("vol") };
    assert!(matches!(meet(wishes.clone(), TlsPolicy::Required).0, Ok(client::Step::Ready(_))));
    let off = meet(wishes, TlsPolicy::Off).0;
    assert_eq!(off, Err(Broken::Refused("TLS is not configured on this server".into())));
    let plain = meet(Wishes::attach("vol"), TlsPolicy::Required).0;
    assert_eq!(plain, Err(Broken::Refused("this server requires TLS".into())));
}

#[test]
fn unknown_export_says_which() {
    let end = meet(Wishes { base_allocation: false, ..Wishes::attach("gone") }, TlsPolicy::Off).0;
    assert_eq!(end, Err(Broken::Refused("no volume named 'gone'".into())));
}

#[test]
fn list() {
    let end = meet(Wishes::list(), TlsPolicy::Off).0;
    assert_eq!(end, Ok(client::Step::Listed(vec!["vol".into(), "vol@s".into()])));
}

#[test]
fn a_server_that_only_knows_export_name() {
    let mut c = client::Handshake::new(Wishes::attach("vol"));
    let mut input = BytesMut::from(&b"NBDMAGICIHAVEOPT\0\x01"[..]);
    c.step(&mut input).unwrap();
    let mut sent = Vec::new();
    for option in [wire::opt::STRUCTURED_REPLY, wire::opt::GO] {
        sent.extend_from_slice(&c.take_output());
        input.put_u64(wire::OPTION_REPLY);
        input.put_u32(option);
        input.put_u32(wire::rep::ERR_UNSUP);
        input.put_u32(0);
        assert_eq!(c.step(&mut input), Ok(client::Step::Progress));
    }
    assert!(c.take_output().ends_with(b"IHAVEOPT\0\0\0\x01\0\0\0\x03vol"));
    input.put_u64(4096);
    input.put_u16(1);
    input.put_bytes(0, 124);
    let Ok(client::Step::Ready(got)) = c.step(&mut input) else { panic!() };
    assert_eq!((got.size, got.structured), (4096, false));
    assert!(input.is_empty());
}

/// A client with these requests out, and their cookies.
fn out(structured: bool, requests: &[(u16, u64, u32)]) -> (Replies, Vec<u64>) {
    let mut r = Replies::new(structured);
    let mut bytes = BytesMut::new();
    let cookies = requests.iter().map(|(k, o, l)| r.submit(*k, 0, *o, *l, &mut bytes)).collect();
    (r, cookies)
}

#[test]
fn replies_in_any_order_and_in_pieces() {
    let (mut r, c) = out(
        true,
        &[(cmd::READ, 4096, 12), (cmd::WRITE, 0, 3), (cmd::BLOCK_STATUS, 0, 1024), (cmd::FLUSH, 0, 0)],
    );
    let mut input = BytesMut::new();
    input.put_slice(&reply::data(c[0], 4104, 4, false));
    input.put_slice(b"tail");
    input.put_slice(&reply::error(c[1], Errno::NoSpace, "full"));
    input.put_slice(&reply::done(c[3]));
    input.put_slice(&reply::hole(c[0], 4100, 4, false));
    input.put_slice(&reply::data(c[0], 4096, 4, true));
    input.put_slice(b"head");
    input.put_slice(&reply::block_status(c[2], &[reply::Descriptor { len: 1024, flags: 3 }]));
    let whole = input.split();
    let mut got = Vec::new();
    for b in &whole[..] {
        input.put_u8(*b);
        got.extend(r.receive(&mut input).unwrap());
    }
    let failed = client::Failed { errno: Errno::NoSpace, why: "full".into() };
    assert_eq!(failed.to_string(), "ENOSPC: full");
    assert_eq!(
        got,
        [
            Completion { cookie: c[1], result: Err(failed) },
            Completion { cookie: c[3], result: Ok(Outcome::Ok) },
            Completion { cookie: c[0], result: Ok(Outcome::Data("head\0\0\0\0tail".into())) },
            Completion { cookie: c[2], result: Ok(Outcome::Extents(vec![Extent { len: 1024, flags: 3 }])) },
        ]
    );
    assert_eq!(r.in_flight(), 0);
}

#[test]
fn lying_servers_are_found_out() {
    type Make = fn(u64) -> Vec<u8>;
    let read = (cmd::READ, 4096, 8);
    let cases: &[(&str, (u16, u64, u32), Make)] = &[
        ("stray cookie", read, |c| reply::simple(c + 1, None).to_vec()),
        ("simple reply to a structured read", read, |c| reply::simple(c, None).to_vec()),
        ("data before the request", read, |c| [&*reply::data(c, 4095, 8, true), &[0; 8]].concat()),
        ("data behind the request", read, |c| [&*reply::data(c, 4097, 8, true), &[0; 8]].concat()),
        ("data far behind", read, |c| [&*reply::data(c, u64::MAX, 8, true), &[0; 8]].concat()),
        ("a part is missing", read, |c| [&*reply::data(c, 4096, 4, true), &[0; 4]].concat()),
        ("nothing at all", read, |c| reply::done(c).to_vec()),
        ("twice the same", read, |c| {
            [&*reply::data(c, 4096, 8, false), &[0; 8], &*reply::hole(c, 4100, 1, true)].concat()
        }),
        ("hole of 4 GiB", read, |c| reply::hole(c, 4096, u32::MAX, true).to_vec()),
        ("data for a flush", (cmd::FLUSH, 0, 0), |c| [&*reply::data(c, 0, 1, true), &[0]].concat()),
        ("status without status", (cmd::BLOCK_STATUS, 0, 512), |c| reply::done(c).to_vec()),
        ("status, simple", (cmd::BLOCK_STATUS, 0, 512), |c| reply::simple(c, None).to_vec()),
        ("noise", read, |_| vec![0x55; 32]),
        ("endless chunk", read, |c| {
            let mut b = reply::data(c, 4096, 8, true).to_vec();
            b[16..20].fill(0xff);
            b
        }),
    ];
    for (what, request, make) in cases {
        let (mut r, c) = out(true, &[*request]);
        let mut input = BytesMut::from(&make(c[0])[..]);
        assert!(r.receive(&mut input).is_err(), "{what}");
    }
    let (mut r, c) = out(false, &[read]);
    let chunk = [&*reply::data(c[0], 4096, 8, true), &[0; 8]].concat();
    assert!(r.receive(&mut BytesMut::from(&chunk[..])).is_err(), "structured reply that was not agreed");
}

/// A plausible stream of a client: options with random content, some of them right.
fn client_stream() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("vol".to_owned()), Just("vol@s".to_owned()), ".{0,20}"];
    let good = (name, 0u32..12, any::<Vec<u16>>()).prop_map(|(name, code, infos)| {
        let mut p = Vec::new();
        if matches!(code, 6 | 7 | 9 | 10) {
            p.put_u32(name.len() as u32);
            p.put_slice(name.as_bytes());
        }
        if matches!(code, 6 | 7) {
            p.put_u16(infos.len() as u16);
            infos.iter().for_each(|i| p.put_u16(*i));
        } else if matches!(code, 9 | 10) {
            p.put_u32(1);
            p.put_u32(15);
            p.put_slice(b"base:allocation");
        } else if code == 1 {
            p.put_slice(name.as_bytes());
        }
        (code, p)
    });
    let bad = (any::<u32>(), any::<Vec<u8>>());
    let option = prop_oneof![4 => good, 1 => bad].prop_map(|(code, p)| {
        let mut b = Vec::new();
        b.put_u64(wire::IHAVEOPT);
        b.put_u32(code);
        b.put_u32(p.len() as u32);
        b.put_slice(&p);
        b
    });
    proptest::collection::vec(option, 0..12).prop_map(|o| [vec![0, 0, 0, 3], o.concat()].concat())
}

/// Feed in pieces; returns when the session is over or the input is used up.
fn drive_server(bytes: &[u8], pieces: usize, policy: TlsPolicy) -> Option<server::Agreed> {
    let mut m = server::Handshake::new(policy);
    let mut input = BytesMut::new();
    for piece in bytes.chunks(pieces.max(1)) {
        input.put_slice(piece);
        loop {
            let step = match m.step(&mut input) {
                Ok(step) => serve(&mut m, step),
                Err(_) => return None,
            };
            assert!(m.take_output().len() < 64 << 10, "one option has one answer");
            match step {
                server::Step::Progress => {}
                server::Step::NeedInput => break,
                server::Step::Ready(a) => return Some(a),
                _ => return None,
            }
        }
        assert!(input.len() <= wire::MAX_OPTION + 16 + pieces, "input does not pile up");
    }
    None
}

proptest! {
    #[test]
    fn server_survives_noise(bytes in any::<Vec<u8>>(), pieces in 1usize..64) {
        for policy in [TlsPolicy::Off, TlsPolicy::Allowed, TlsPolicy::Required] {
            drive_server(&bytes, pieces, policy);
        }
    }

    #[test]
    fn server_survives_mutated_sessions(
        bytes in client_stream(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        pieces in 1usize..64,
    ) {
        let mut bytes = bytes;
        for (at, with) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= with;
        }
        drive_server(&bytes, pieces, TlsPolicy::Allowed);
    }

    #[test]
    fn how_the_stream_is_cut_does_not_matter(bytes in client_stream(), pieces in 1usize..64) {
        // Smuggled bytes behind STARTTLS are judged by what has arrived, so TLS is off here.
        let whole = drive_server(&bytes, bytes.len(), TlsPolicy::Off);
        prop_assert_eq!(drive_server(&bytes, pieces, TlsPolicy::Off), whole);
    }

    #[test]
    fn nothing_reaches_a_volume_outside_its_range(
        flags in 0u16..64, kind in 0u16..10, offset in prop_oneof![0u64..4096, any::<u64>()], len: u32,
        size in prop_oneof![0u64..8192, any::<u64>()], read_only: bool, structured: bool, base_allocation: bool,
    ) {
        use sheepdog_nbd::Command::*;
        let h = RequestHeader { flags, kind, cookie: 1, offset, len };
        prop_assert_eq!(RequestHeader::parse(&h.encode()), Ok(h));
        let terms = Terms { size, read_only, structured, base_allocation };
        let writes = match validate(&h, &terms) {
            Err(_) | Ok(Disconnect | Flush) => return Ok(()),
            Ok(Read { .. }) => { prop_assert!(len <= wire::MAX_REQUEST); false }
            Ok(Write { .. }) => { prop_assert!(len <= wire::MAX_REQUEST); true }
            Ok(Trim { .. } | WriteZeroes { .. }) => true,
            Ok(Cache { .. }) => false,
            Ok(BlockStatus { .. }) => { prop_assert!(base_allocation && len > 0); false }
        };
        prop_assert!(u128::from(offset) + u128::from(len) <= u128::from(size));
        prop_assert!(!(writes && read_only));
    }

    #[test]
    fn descriptors_cover_what_they_should(
        runs in proptest::collection::vec((0u64..3000, 0u32..4), 0..20), len in 1u32..20_000,
    ) {
        let d = reply::descriptors(runs.iter().copied(), 512, len);
        let have: u64 = runs.iter().map(|r| r.0).sum::<u64>().min(u64::from(len));
        let sum: u64 = d.iter().map(|d| u64::from(d.len)).sum();
        prop_assert!(sum <= have && (sum > 0) == (have > 0));
        prop_assert!(d.iter().all(|d| d.len > 0));
        prop_assert!(d.windows(2).all(|w| w[0].flags != w[1].flags));
        if let Some((_, rest)) = d.split_last() {
            prop_assert!(rest.iter().all(|d| d.len % 512 == 0));
        }
        // No byte is called zero that is not.
        let truth: Vec<u32> = runs.iter().flat_map(|r| std::iter::repeat_n(r.1, r.0 as usize)).collect();
        let told: Vec<u32> = d.iter().flat_map(|d| std::iter::repeat_n(d.flags, d.len as usize)).collect();
        prop_assert!(told.iter().zip(&truth).all(|(told, truth)| told & !truth == 0));
    }

    #[test]
    fn client_survives_noise(bytes in any::<Vec<u8>>(), tls: bool, list: bool) {
        let goal = if list { Goal::List } else { Goal::Attach("vol".into()) };
        let mut c = client::Handshake::new(Wishes { goal, tls, structured: true, base_allocation: true });
        let mut input = BytesMut::from(&[b"NBDMAGICIHAVEOPT\0\x03", &bytes[..]].concat()[..]);
        for _ in 0..100 {
            match c.step(&mut input) {
                Ok(client::Step::Progress) => {}
                Ok(client::Step::StartTls) => c.secured(),
                _ => break,
            }
        }
    }

    #[test]
    fn replies_survive_mutation(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), structured: bool,
    ) {
        let (mut r, c) = out(structured, &[(cmd::READ, 0, 8), (cmd::BLOCK_STATUS, 0, 512), (cmd::WRITE, 0, 1)]);
        let status = [reply::Descriptor { len: 512, flags: 0 }];
        let mut bytes = [
            &*reply::data(c[0], 0, 8, true), &[0; 8], &reply::block_status(c[1], &status),
            &reply::error(c[2], Errno::Io, "x"), &*reply::simple(c[2], None),
        ].concat();
        for (at, with) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= with;
        }
        let mut input = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = r.receive(&mut input) {}
    }
}
