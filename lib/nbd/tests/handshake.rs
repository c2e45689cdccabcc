//! Scripts of whole handshakes: what the client sends, what the caller is asked to do, and the exact bytes that answer.

#![allow(clippy::unwrap_used)] // in a test, that is how it fails

use bytes::{BufMut, BytesMut};
use sheepdog_nbd::Export;
use sheepdog_nbd::server::{Agreed, Handshake, Refusal, Step, TlsPolicy};
use sheepdog_nbd::wire::{self, Broken, info, opt, rep};

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
    let mut b = (s.len() as u32).to_be_bytes().to_vec();
    b.put_slice(s.as_bytes());
    b
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

/// Option replies in `out`: option, code, payload.
fn replies(out: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut r = wire::Reader(out);
    let mut all = Vec::new();
    while !r.is_empty() {
        assert_eq!(r.u64(), Some(wire::OPTION_REPLY));
        let (option, code, len) = (r.u32().unwrap(), r.u32().unwrap(), r.u32().unwrap());
        all.push((option, code, r.bytes(len as usize).unwrap().to_vec()));
    }
    all
}

struct Session {
    machine: Handshake,
    input: BytesMut,
}

impl Session {
    /// Greeting and client flags are behind us.
    fn new(policy: TlsPolicy) -> Self {
        let mut s = Self { machine: Handshake::new(policy), input: BytesMut::new() };
        assert_eq!(&s.machine.take_output()[..], b"NBDMAGICIHAVEOPT\0\x03");
        assert_eq!(s.send(&[0, 0, 0, 3]), Ok(Step::Progress));
        s
    }
    fn send(&mut self, bytes: &[u8]) -> Result<Step, Broken> {
        self.input.put_slice(bytes);
        self.machine.step(&mut self.input)
    }
    fn codes(&mut self) -> Vec<u32> {
        replies(&self.machine.take_output()).into_iter().map(|r| r.1).collect()
    }
}

#[test]
fn go_with_everything_golden() {
    let mut s = Session::new(TlsPolicy::Off);
    let all = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 77];
    assert_eq!(s.send(&option(opt::GO, &info_request("vol", &all))), Ok(Step::Open("vol".into())));
    let agreed = Agreed { structured: false, base_allocation: false };
    assert_eq!(s.machine.found(&vol()), Step::Ready(agreed));
    let mut want = Vec::new();
    let head = |code: u32, len: u32| {
        let mut b = b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07".to_vec();
        b.put_u32(code);
        b.put_u32(len);
        b
    };
    want.extend([head(3, 12), b"\0\0\0\0\0\0\x40\0\0\0\x0d\x6d".to_vec()].concat());
    want.extend([head(3, 5), b"\0\x01vol".to_vec()].concat());
    want.extend([head(3, 10), b"\0\x02a volume".to_vec()].concat());
    want.extend([head(3, 14), b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0".to_vec()].concat());
    want.extend(head(1, 0));
    assert_eq!(s.machine.take_output(), want);
}

#[test]
fn a_client_that_does_not_ask_for_block_sizes_may_use_any() {
    let mut s = Session::new(TlsPolicy::Off);
    s.send(&option(opt::GO, &info_request("vol", &[]))).unwrap();
    s.machine.found(&vol());
    let out = replies(&s.machine.take_output());
    assert_eq!(out[1].2, b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0");
}

#[test]
fn export_name_with_and_without_zeroes() {
    for (flags, len) in [(3u32, 10), (1, 134), (0, 134)] {
        let mut s = Session { machine: Handshake::new(TlsPolicy::Off), input: BytesMut::new() };
        s.machine.take_output();
        s.send(&flags.to_be_bytes()).unwrap();
        assert_eq!(s.send(&option(opt::EXPORT_NAME, b"vol")), Ok(Step::Open("vol".into())));
        assert!(matches!(s.machine.found(&vol()), Step::Ready(_)));
        let out = s.machine.take_output();
        assert_eq!(out.len(), len, "client flags {flags}");
        assert_eq!(&out[..10], b"\0\0\0\0\x40\0\0\0\x0d\x6d");
        assert!(out[10..].iter().all(|b| *b == 0));
    }
    let mut s = Session::new(TlsPolicy::Off);
    s.send(&option(opt::EXPORT_NAME, b"nope")).unwrap();
    assert_eq!(s.machine.refused(&Refusal::Unknown("no".into())), Step::Closed, "there is no error reply");
    assert!(s.machine.take_output().is_empty());
}

#[test]
fn structured_replies_and_contexts_belong_to_one_export() {
    let cases: &[(&[&str], &str, bool)] = &[
        (&["base:allocation"], "vol", true),
        (&["base:allocation", "qemu:dirty-bitmap:x"], "vol", true),
        (&["base:allocation"], "other", false), // set for another export
        (&["base:"], "vol", false),             // a wildcard selects nothing
        (&[], "vol", false),
    ];
    for (queries, go, want) in cases {
        let mut s = Session::new(TlsPolicy::Off);
        assert_eq!(s.send(&option(opt::STRUCTURED_REPLY, &[])), Ok(Step::Progress));
        let set = option(opt::SET_META_CONTEXT, &meta_request("vol", queries));
        assert_eq!(s.send(&set), Ok(Step::Describe("vol".into())));
        assert_eq!(s.machine.found(&vol()), Step::Progress);
        s.send(&option(opt::GO, &info_request(go, &[]))).unwrap();
        let agreed = Agreed { structured: true, base_allocation: *want };
        assert_eq!(s.machine.found(&vol()), Step::Ready(agreed), "{queries:?} then GO {go}");
    }
}

#[test]
fn a_failed_set_drops_the_earlier_one() {
    let mut s = Session::new(TlsPolicy::Off);
    s.send(&option(opt::STRUCTURED_REPLY, &[])).unwrap();
    s.send(&option(opt::SET_META_CONTEXT, &meta_request("vol", &["base:allocation"]))).unwrap();
    s.machine.found(&vol());
    s.send(&option(opt::SET_META_CONTEXT, &[1])).unwrap();
    s.send(&option(opt::GO, &info_request("vol", &[]))).unwrap();
    assert_eq!(s.machine.found(&vol()), Step::Ready(Agreed { structured: true, base_allocation: false }));
}

#[test]
fn contexts_are_listed() {
    let name = [&[0; 4], b"base:allocation".as_slice()].concat();
    let none: &[&str] = &[];
    let cases = [(none, true), (&["base:"], true), (&["base:allocation"], true), (&["qemu:"], false)];
    for (queries, shown) in cases {
        let mut s = Session::new(TlsPolicy::Off);
        s.send(&option(opt::STRUCTURED_REPLY, &[])).unwrap();
        s.machine.take_output();
        s.send(&option(opt::LIST_META_CONTEXT, &meta_request("vol", queries))).unwrap();
        s.machine.found(&vol());
        let mut want = vec![(opt::LIST_META_CONTEXT, rep::META_CONTEXT, name.clone())];
        want.truncate(usize::from(shown));
        want.push((opt::LIST_META_CONTEXT, rep::ACK, vec![]));
        assert_eq!(replies(&s.machine.take_output()), want, "{queries:?}");
    }
}

#[test]
fn bad_options_get_an_error_and_the_session_goes_on() {
    let long = vec![b'x'; wire::MAX_NAME + 1];
    let many_infos = [string("vol"), vec![0xff, 0xff, 0, 1]].concat();
    let many_queries = [string("vol"), vec![0xff; 4]].concat();
    let cases: Vec<(&str, u32, Vec<u8>, u32)> = vec![
        ("unknown option", 99, vec![], rep::ERR_UNSUP),
        ("extended headers", 11, vec![], rep::ERR_UNSUP),
        ("peek export", 4, vec![], rep::ERR_UNSUP),
        ("list with data", opt::LIST, vec![1], rep::ERR_INVALID),
        ("structured with data", opt::STRUCTURED_REPLY, vec![1], rep::ERR_INVALID),
        ("starttls with data", opt::STARTTLS, vec![1], rep::ERR_INVALID),
        ("starttls when off", opt::STARTTLS, vec![], rep::ERR_POLICY),
        ("go without anything", opt::GO, vec![], rep::ERR_INVALID),
        ("go, name longer than option", opt::GO, vec![0, 0, 0, 9, b'v'], rep::ERR_INVALID),
        ("go, name of 4 GiB", opt::GO, vec![0xff; 4], rep::ERR_INVALID),
        (
            "go, name too long",
            opt::GO,
            [string(std::str::from_utf8(&long).unwrap()), vec![0, 0]].concat(),
            rep::ERR_INVALID,
        ),
        ("go, name not UTF-8", opt::GO, [&[0, 0, 0, 2, 0xff, 0xfe], &[0, 0][..]].concat(), rep::ERR_INVALID),
        ("go, name with NUL", opt::GO, info_request("a\0b", &[]), rep::ERR_INVALID),
        ("go, more infos announced than sent", opt::GO, many_infos, rep::ERR_INVALID),
        ("go, trailing bytes", opt::GO, [info_request("vol", &[]), vec![0]].concat(), rep::ERR_INVALID),
        ("meta context before structured", opt::SET_META_CONTEXT, meta_request("vol", &[]), rep::ERR_INVALID),
        ("meta context, four billion queries", opt::LIST_META_CONTEXT, many_queries, rep::ERR_INVALID),
        ("longer than we store", opt::GO, vec![0; wire::MAX_OPTION + 1], rep::ERR_TOO_BIG),
        ("as long as we skip", 99, vec![0; wire::MAX_SKIP], rep::ERR_TOO_BIG),
    ];
    let mut s = Session::new(TlsPolicy::Off);
    for (what, code, payload, want) in cases {
        assert_eq!(s.send(&option(code, &payload)), Ok(Step::Progress), "{what}");
        assert_eq!(s.codes(), [want], "{what}");
        assert!(s.input.is_empty(), "{what}");
    }
    assert_eq!(s.send(&option(opt::LIST, &[])), Ok(Step::List));
}

#[test]
fn refusals_carry_a_sentence() {
    for (refusal, code) in [
        (Refusal::Unknown("no volume named 'x'".into()), rep::ERR_UNKNOWN),
        (Refusal::Policy("locked by n1".into()), rep::ERR_POLICY),
        (Refusal::Shutdown("stopping".into()), rep::ERR_SHUTDOWN),
    ] {
        for o in [opt::INFO, opt::GO] {
            let mut s = Session::new(TlsPolicy::Off);
            s.send(&option(o, &info_request("x", &[]))).unwrap();
            assert_eq!(s.machine.refused(&refusal), Step::Progress);
            let out = replies(&s.machine.take_output());
            assert_eq!((out[0].0, out[0].1), (o, code));
            assert!(!out[0].2.is_empty());
        }
    }
}

#[test]
fn streams_that_are_not_nbd_end_at_once() {
    let cases: &[(&str, &[u8])] = &[
        ("http", b"GET / HTTP/1.1\r\n\r\n"),
        ("tls hello", &[22, 3, 1, 2, 0, 1, 0, 1]),
        ("wrong option magic", &[0, 0, 0, 3, b'I', b'H', b'A', b'X']),
        ("huge option", &[&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 7], &[0xff; 4]].concat()),
        ("unknown client flags", &[0, 0, 0, 7]),
    ];
    for (what, bytes) in cases {
        let mut m = Handshake::new(TlsPolicy::Off);
        let mut input = BytesMut::from(*bytes);
        let end = loop {
            match m.step(&mut input) {
                Ok(Step::Progress) => {}
                other => break other,
            }
        };
        assert!(end.is_err(), "{what}: {end:?}");
    }
}

#[test]
fn a_long_option_is_skipped_without_being_stored() {
    let mut s = Session::new(TlsPolicy::Off);
    let whole = option(opt::GO, &vec![7; wire::MAX_SKIP]);
    let mut last = Ok(Step::NeedInput);
    for piece in whole.chunks(1000) {
        last = s.send(piece);
        assert!(s.input.len() < 1100, "what is skipped does not pile up");
    }
    assert_eq!(last, Ok(Step::Progress));
    assert_eq!(s.codes(), [rep::ERR_TOO_BIG]);
}

#[test]
fn tls_required_answers_nothing_else() {
    for o in [opt::LIST, opt::INFO, opt::GO, opt::STRUCTURED_REPLY, opt::LIST_META_CONTEXT, 99] {
        let mut s = Session::new(TlsPolicy::Required);
        assert_eq!(s.send(&option(o, &[])), Ok(Step::Progress));
        assert_eq!(s.codes(), [rep::ERR_TLS_REQD], "option {o}");
    }
    let mut s = Session::new(TlsPolicy::Required);
    assert_eq!(s.send(&option(opt::EXPORT_NAME, b"vol")), Ok(Step::Closed));
    let mut s = Session::new(TlsPolicy::Required);
    assert_eq!(s.send(&option(opt::ABORT, &[])), Ok(Step::Closed));
}

#[test]
fn tls_forgets_what_was_agreed_in_plain_text() {
    let mut s = Session::new(TlsPolicy::Allowed);
    s.send(&option(opt::STRUCTURED_REPLY, &[])).unwrap();
    s.send(&option(opt::SET_META_CONTEXT, &meta_request("vol", &["base:allocation"]))).unwrap();
    s.machine.found(&vol());
    s.machine.take_output();
    assert_eq!(s.send(&option(opt::STARTTLS, &[])), Ok(Step::StartTls));
    assert_eq!(s.codes(), [rep::ACK]);
    s.machine.secured();
    assert_eq!(s.send(&option(opt::STARTTLS, &[])), Ok(Step::Progress));
    assert_eq!(s.codes(), [rep::ERR_INVALID], "not twice");
    s.send(&option(opt::GO, &info_request("vol", &[]))).unwrap();
    assert_eq!(s.machine.found(&vol()), Step::Ready(Agreed { structured: false, base_allocation: false }));
}

#[test]
fn bytes_smuggled_behind_starttls_end_the_session() {
    let mut s = Session::new(TlsPolicy::Required);
    let both = [option(opt::STARTTLS, &[]), option(opt::LIST, &[])].concat();
    assert!(s.send(&both).is_err());
}

#[test]
fn an_endless_client_is_cut_off() {
    let mut s = Session::new(TlsPolicy::Off);
    let one = option(99, &[]);
    let mut n = 0;
    while s.send(&one).is_ok() {
        s.machine.take_output();
        n += 1;
        assert!(n <= wire::MAX_OPTIONS);
    }
    assert_eq!(n, wire::MAX_OPTIONS);
}

#[test]
fn input_may_come_byte_by_byte() {
    let mut s = Session::new(TlsPolicy::Off);
    let bytes = option(opt::GO, &info_request("vol", &[info::BLOCK_SIZE]));
    for b in &bytes[..bytes.len() - 1] {
        assert_eq!(s.send(&[*b]), Ok(Step::NeedInput));
    }
    assert_eq!(s.send(&bytes[bytes.len() - 1..]), Ok(Step::Open("vol".into())));
}
