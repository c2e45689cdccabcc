//! Tables of requests, and golden bytes of requests and replies.

use sheepdog_nbd::reply::{self, Descriptor, descriptors};
use sheepdog_nbd::wire::{MAX_DRAIN, MAX_REQUEST, cflag, cmd, state};
use sheepdog_nbd::{Command, Errno, RequestHeader, Terms, validate};

const SIZE: u64 = 1 << 40;

fn header(kind: u16, flags: u16, offset: u64, len: u32) -> RequestHeader {
    RequestHeader { flags, kind, cookie: 7, offset, len }
}

fn terms() -> Terms {
    Terms { size: SIZE, read_only: false, structured: true, base_allocation: true }
}

#[test]
fn header_golden() {
    let h = RequestHeader {
        flags: cflag::FUA,
        kind: cmd::WRITE,
        cookie: 0x0102_0304_0506_0708,
        offset: 0x1122_3344_5566_7788,
        len: 0x99,
    };
    let raw = *b"\x25\x60\x95\x13\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\x11\x22\x33\x44\x55\x66\x77\x88\0\0\0\x99";
    assert_eq!(h.encode(), raw);
    assert_eq!(RequestHeader::parse(&raw), Ok(h));
    let mut bad = raw;
    bad[0] ^= 1;
    assert!(RequestHeader::parse(&bad).is_err());
}

#[test]
fn replies_golden() {
    assert_eq!(&*reply::simple(7, None), b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x07");
    assert_eq!(&*reply::simple(7, Some(Errno::NoSpace)), b"\x67\x44\x66\x98\0\0\0\x1c\0\0\0\0\0\0\0\x07");
    assert_eq!(&*reply::done(7), b"\x66\x8e\x33\xef\0\x01\0\0\0\0\0\0\0\0\0\x07\0\0\0\0");
    assert_eq!(
        &*reply::data(7, 4096, 512, true),
        b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x07\0\0\x02\x08\0\0\0\0\0\0\x10\0"
    );
    assert_eq!(
        &*reply::hole(7, 4096, 512, false),
        b"\x66\x8e\x33\xef\0\0\0\x02\0\0\0\0\0\0\0\x07\0\0\0\x0c\0\0\0\0\0\0\x10\0\0\0\x02\0"
    );
    assert_eq!(
        &reply::error(7, Errno::Io, "bad")[..],
        b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\0\x07\0\0\0\x09\0\0\0\x05\0\x03bad"
    );
    assert_eq!(
        &reply::block_status(7, &[Descriptor { len: 512, flags: 3 }])[..],
        b"\x66\x8e\x33\xef\0\x01\0\x05\0\0\0\0\0\0\0\x07\0\0\0\x0c\0\0\0\x01\0\0\x02\0\0\0\0\x03"
    );
}

#[test]
fn error_text_is_cut_at_a_character() {
    let long = "ä".repeat(5000);
    let b = reply::error(1, Errno::Io, &long);
    assert_eq!(b.len(), 26 + 4096);
    assert!(std::str::from_utf8(&b[26..]).is_ok());
}

#[test]
fn what_may_go_ahead() {
    let ok = |h| validate(&h, &terms());
    use cmd::*;
    assert_eq!(ok(header(READ, 0, 0, 4096)), Ok(Command::Read { offset: 0, len: 4096, whole: false }));
    assert_eq!(ok(header(READ, cflag::DF, 1, 3)), Ok(Command::Read { offset: 1, len: 3, whole: true }));
    assert_eq!(
        ok(header(READ, 0, SIZE - 512, 512)),
        Ok(Command::Read { offset: SIZE - 512, len: 512, whole: false })
    );
    assert_eq!(
        ok(header(WRITE, cflag::FUA, 0, MAX_REQUEST)),
        Ok(Command::Write { offset: 0, len: MAX_REQUEST })
    );
    assert_eq!(ok(header(FLUSH, 0, 0, 0)), Ok(Command::Flush));
    assert_eq!(ok(header(FLUSH, cflag::FUA, 0, 0)), Ok(Command::Flush));
    assert_eq!(ok(header(TRIM, cflag::FUA, 0, u32::MAX)), Ok(Command::Trim { offset: 0, len: u32::MAX }));
    assert_eq!(ok(header(CACHE, 0, 0, u32::MAX)), Ok(Command::Cache { offset: 0, len: u32::MAX }));
    let flags = cflag::FUA | cflag::NO_HOLE | cflag::FAST_ZERO;
    let want = Command::WriteZeroes { offset: 4096, len: u32::MAX, no_hole: true, fast: true };
    assert_eq!(ok(header(WRITE_ZEROES, flags, 4096, u32::MAX)), Ok(want));
    let want = Command::BlockStatus { offset: 0, len: 1, one: true };
    assert_eq!(ok(header(BLOCK_STATUS, cflag::REQ_ONE, 0, 1)), Ok(want));
    assert_eq!(ok(header(DISC, 0xffff, u64::MAX, 9)), Ok(Command::Disconnect), "goodbye is always heard");
}

#[test]
fn what_may_not() {
    use Errno::*;
    use cmd::*;
    let all = terms();
    let simple = Terms { structured: false, base_allocation: false, ..all };
    let ro = Terms { read_only: true, ..all };
    let cases: &[(&str, Terms, RequestHeader, Errno)] = &[
        ("read beyond the end", all, header(READ, 0, SIZE, 1), Inval),
        ("read across the end", all, header(READ, 0, SIZE - 1, 2), Inval),
        ("read, offset overflow", all, header(READ, 0, u64::MAX, 2), Inval),
        ("read too large", all, header(READ, 0, 0, MAX_REQUEST + 1), Inval),
        ("write beyond the end", all, header(WRITE, 0, SIZE, 512), NoSpace),
        ("write, offset overflow", all, header(WRITE, 0, u64::MAX - 1, 512), NoSpace),
        ("write too large", all, header(WRITE, 0, 0, MAX_REQUEST + 1), Inval),
        ("zeroes beyond the end", all, header(WRITE_ZEROES, 0, SIZE, 512), NoSpace),
        ("trim beyond the end", all, header(TRIM, 0, SIZE, 512), Inval),
        ("cache beyond the end", all, header(CACHE, 0, SIZE, 512), Inval),
        ("status beyond the end", all, header(BLOCK_STATUS, 0, SIZE, 512), Inval),
        ("write read-only", ro, header(WRITE, 0, 0, 512), Perm),
        ("trim read-only", ro, header(TRIM, 0, 0, 512), Perm),
        ("zeroes read-only", ro, header(WRITE_ZEROES, 0, 0, 512), Perm),
        ("unknown command", all, header(8, 0, 0, 0), Inval),
        ("unknown command", all, header(u16::MAX, 0, 0, 0), Inval),
        ("unknown flag", all, header(READ, 1 << 9, 0, 512), Inval),
        ("no-hole on a write", all, header(WRITE, cflag::NO_HOLE, 0, 512), Inval),
        ("no-hole on a trim", all, header(TRIM, cflag::NO_HOLE, 0, 512), Inval),
        ("fast zero on a read", all, header(READ, cflag::FAST_ZERO, 0, 512), Inval),
        ("req-one on a read", all, header(READ, cflag::REQ_ONE, 0, 512), Inval),
        ("DF without structured replies", simple, header(READ, cflag::DF, 0, 512), Inval),
        ("flush with a range", all, header(FLUSH, 0, 0, 512), Inval),
        ("flush with an offset", all, header(FLUSH, 0, 512, 0), Inval),
        ("status not negotiated", simple, header(BLOCK_STATUS, 0, 0, 512), Inval),
        ("status of nothing", all, header(BLOCK_STATUS, 0, 0, 0), Inval),
    ];
    for (what, terms, h, want) in cases {
        match validate(h, terms) {
            Err(r) => assert_eq!(r.errno, *want, "{what}"),
            Ok(c) => panic!("{what} was let through as {c:?}"),
        }
    }
}

#[test]
fn a_grown_volume_is_usable_at_once() {
    let h = header(cmd::WRITE, 0, SIZE, 512);
    assert!(validate(&h, &terms()).is_err());
    assert!(validate(&h, &Terms { size: SIZE + 512, ..terms() }).is_ok());
}

#[test]
fn only_writes_have_payload_and_absurd_ones_end_the_session() {
    assert_eq!(header(cmd::READ, 0, 0, u32::MAX).payload(), Ok(0));
    assert_eq!(header(99, 0, 0, u32::MAX).payload(), Ok(0));
    assert_eq!(header(cmd::WRITE, 0, 0, MAX_DRAIN).payload(), Ok(MAX_DRAIN));
    assert!(header(cmd::WRITE, 0, 0, MAX_DRAIN + 1).payload().is_err());
}

#[test]
fn extents_become_blocks() {
    const H: u32 = state::HOLE | state::ZERO;
    const Z: u32 = state::ZERO;
    /// What, runs, block, length of the request, descriptors before neighbours merge.
    type Case = (&'static str, &'static [(u64, u32)], u32, u32, &'static [(u32, u32)]);
    let cases: &[Case] = &[
        ("nothing", &[], 512, 4096, &[]),
        ("one", &[(4096, H)], 512, 4096, &[(4096, H)]),
        ("neighbours merge", &[(512, 0), (512, 0), (1024, H)], 512, 2048, &[(1024, 0), (1024, H)]),
        ("empty runs vanish", &[(0, H), (512, 0), (0, H), (512, 0)], 512, 1024, &[(1024, 0)]),
        ("cut to the request", &[(1 << 40, H)], 512, 4096, &[(4096, H)]),
        ("4 GiB less one", &[(1 << 40, H)], 512, u32::MAX, &[(u32::MAX - 511, H), (511, H)]),
        ("a shared block is data", &[(100, H), (412, 0), (512, H)], 512, 1024, &[(512, 0), (512, H)]),
        ("a shared block keeps what all have", &[(100, H), (412, Z)], 512, 512, &[(512, Z)]),
        ("three in a block", &[(1, H), (1, 0), (510, H), (512, H)], 512, 1024, &[(512, 0), (512, H)]),
        ("unaligned tail of the request", &[(512, 0), (100, H)], 512, 612, &[(512, 0), (100, H)]),
        ("volume stops early inside a block", &[(612, H)], 512, 4096, &[(512, H)]),
        ("volume stops early in the first block", &[(100, H)], 512, 4096, &[(100, H)]),
        ("bytes", &[(1, H), (2, 0)], 1, 3, &[(1, H), (2, 0)]),
    ];
    for (what, runs, block, len, want) in cases {
        let got: Vec<_> =
            descriptors(runs.iter().copied(), *block, *len).iter().map(|d| (d.len, d.flags)).collect();
        let merged: Vec<(u32, u32)> = want.iter().fold(Vec::new(), |mut out: Vec<(u32, u32)>, w| {
            match out.last_mut() {
                Some(l) if l.1 == w.1 => l.0 += w.0,
                _ => out.push(*w),
            }
            out
        });
        assert_eq!(got, merged, "{what}");
    }
}

#[test]
fn errno_numbers_are_frozen() {
    let all: Vec<_> = Errno::ALL.iter().map(|e| (e.name(), e.code())).collect();
    assert_eq!(
        all,
        [
            ("EPERM", 1),
            ("EIO", 5),
            ("ENOMEM", 12),
            ("EINVAL", 22),
            ("ENOSPC", 28),
            ("EOVERFLOW", 75),
            ("ENOTSUP", 95),
            ("ESHUTDOWN", 108)
        ]
    );
    assert_eq!(Errno::from_code(4242), Errno::Inval);
}
