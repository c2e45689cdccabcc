//! Every request, as a client sees it.

use super::client::{Client, attach};
use super::{bench, on_data_thread};
use sheep::front::nbd::Limits;
use sheep::front::nbd::stats::Op;
use sheep::volume::VolumeError;
use sheepdog_nbd::Errno;
use sheepdog_nbd::client::{Extent, Outcome, Wishes};
use sheepdog_nbd::wire::{cflag, cmd, state};

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8).wrapping_add(seed)).collect()
}

#[test]
fn what_is_written_is_read_and_payloads_are_aligned() {
    on_data_thread(async {
        let b = bench(Limits::default());
        for structured in [true, false] {
            let wishes = Wishes { structured, ..Wishes::attach("vol") };
            let mut c = attach(&b.path, wishes).await.unwrap();
            let sizes = [1, 511, 512, 4096, 4097, 16 << 10, (16 << 10) + 1, 100_000, 1 << 20, 32 << 20];
            for (i, len) in sizes.into_iter().enumerate() {
                let data = pattern(len, i as u8);
                for offset in [0, 4096, 12_345] {
                    assert_eq!(c.write(offset, &data).await, Ok(Outcome::Ok), "{len} at {offset}");
                    assert_eq!(c.read(offset, len as u32).await.unwrap(), data, "{len} at {offset}");
                }
            }
        }
        assert!(b.vol.aligned.get(), "payloads go to disk without a copy");
    });
}

#[test]
fn many_requests_in_one_packet() {
    on_data_thread(async {
        let b = bench(Limits::default());
        let mut c = Client::vol(&b.path).await;
        let mut out = bytes::BytesMut::new();
        for i in 0..100u64 {
            c.replies.write(i * 8192, &pattern(5000, i as u8), &mut out);
            c.replies.read(i * 8192, 16, &mut out);
        }
        tokio::io::AsyncWriteExt::write_all(&mut c.stream, &out).await.unwrap();
        for _ in 0..200 {
            assert!(c.receive().await.unwrap().result.is_ok());
        }
        for i in 0..100u64 {
            assert_eq!(c.read(i * 8192, 5000).await.unwrap(), pattern(5000, i as u8));
        }
    });
}

#[test]
fn empty_requests_are_fine() {
    on_data_thread(async {
        let b = bench(Limits::default());
        for structured in [true, false] {
            let mut c = attach(&b.path, Wishes { structured, ..Wishes::attach("vol") }).await.unwrap();
            assert_eq!(c.read(0, 0).await.unwrap().len(), 0);
            assert_eq!(c.read(64 << 20, 0).await.unwrap().len(), 0, "at the very end");
            for kind in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES, cmd::CACHE, cmd::FLUSH] {
                assert_eq!(c.call(kind, 0, 0, 0, &[]).await, Ok(Outcome::Ok), "command {kind}");
            }
        }
    });
}

#[test]
fn zeroes_trim_cache_flush_and_status() {
    on_data_thread(async {
        let b = bench(Limits::default());
        let mut c = Client::vol(&b.path).await;
        const K64: u32 = 64 << 10;
        let extents = |v: &[(u32, u32)]| {
            Ok(Outcome::Extents(v.iter().map(|(len, flags)| Extent { len: *len, flags: *flags }).collect()))
        };
        let hole = state::HOLE | state::ZERO;
        c.write(0, &pattern(3 * K64 as usize, 1)).await.unwrap();
        c.call(cmd::TRIM, 0, u64::from(K64), K64, &[]).await.unwrap();
        assert!(c.read(u64::from(K64), K64).await.unwrap().iter().all(|b| *b == 0));
        let status = c.call(cmd::BLOCK_STATUS, 0, 0, 5 * K64, &[]).await;
        assert_eq!(status, extents(&[(K64, 0), (K64, hole), (K64, 0), (2 * K64, hole)]));
        let one = c.call(cmd::BLOCK_STATUS, cflag::REQ_ONE, 0, 5 * K64, &[]).await;
        assert_eq!(one, extents(&[(K64, 0)]));
        c.call(cmd::WRITE_ZEROES, cflag::FAST_ZERO | cflag::FUA, 0, K64, &[]).await.unwrap();
        c.call(cmd::WRITE_ZEROES, cflag::NO_HOLE, u64::from(K64), K64, &[]).await.unwrap();
        let status = c.call(cmd::BLOCK_STATUS, 0, 0, 3 * K64, &[]).await;
        assert_eq!(status, extents(&[(K64, hole), (2 * K64, 0)]), "no-hole keeps space");
        c.call(cmd::CACHE, 0, 0, 64 << 20, &[]).await.unwrap();
        c.call(cmd::FLUSH, 0, 0, 0, &[]).await.unwrap();
        c.call(cmd::WRITE_ZEROES, 0, 0, 64 << 20, &[]).await.unwrap();
        assert_eq!(c.call(cmd::BLOCK_STATUS, 0, 0, 64 << 20, &[]).await, extents(&[(64 << 20, hole)]));
    });
}

#[test]
fn snapshots_are_read_only_and_stay_as_they_were() {
    on_data_thread(async {
        let b = bench(Limits::default());
        let mut c = Client::vol(&b.path).await;
        c.write(0, b"before").await.unwrap();
        b.source.snapshot("vol", "s1");
        c.write(0, b"after!").await.unwrap();
        let mut s = attach(&b.path, Wishes::attach("vol@s1")).await.unwrap();
        assert!(s.export.read_only());
        assert_eq!(s.read(0, 6).await.unwrap(), "before");
        let refused = s.write(0, b"x").await.unwrap_err();
        assert_eq!((refused.errno, refused.why.as_str()), (Errno::Perm, "export is read-only"));
        for kind in [cmd::TRIM, cmd::WRITE_ZEROES] {
            assert_eq!(s.call(kind, 0, 0, 512, &[]).await.unwrap_err().errno, Errno::Perm);
        }
        assert_eq!(s.read(0, 6).await.unwrap(), "before", "the refused payload was not read as a request");
        assert_eq!(c.read(0, 6).await.unwrap(), "after!");
    });
}

#[test]
fn growth_is_seen_by_open_connections() {
    on_data_thread(async {
        let b = bench(Limits::default());
        let mut c = Client::vol(&b.path).await;
        let end = 64 << 20;
        assert_eq!(c.write(end, &[1; 512]).await.unwrap_err().errno, Errno::NoSpace);
        assert_eq!(c.read(end, 512).await.unwrap_err().errno, Errno::Inval);
        b.vol.resize(end + 4096);
        assert_eq!(c.write(end, &[1; 4096]).await, Ok(Outcome::Ok));
        assert_eq!(c.read(end, 512).await.unwrap(), vec![1; 512]);
    });
}

#[test]
fn volume_errors_have_their_numbers_and_sentences() {
    on_data_thread(async {
        let b = bench(Limits::default());
        let mut c = Client::vol(&b.path).await;
        for (fault, errno) in [
            (VolumeError::Io("no copy of object 7 is readable".into()), Errno::Io),
            (VolumeError::NotFast, Errno::NotSup),
            (VolumeError::ReadOnly, Errno::Perm),
            (VolumeError::Busy("locked".into()), Errno::Perm),
            (VolumeError::OutOfRange, Errno::Inval),
        ] {
            b.vol.fault.replace(Some(fault.clone()));
            let failed = c.read(0, 512).await.unwrap_err();
            assert_eq!((failed.errno, failed.why), (errno, fault.to_string()));
            let failed = c.write(0, &[0; 512]).await.unwrap_err();
            assert_eq!(failed.errno, errno);
        }
        b.vol.fault.replace(None);
        assert!(c.read(0, 512).await.is_ok(), "the connection is as good as before");
    });
}

#[test]
fn a_volume_taken_away_ends_the_connection_without_an_error_reply() {
    on_data_thread(async {
        for fault in [VolumeError::Gone("rolled back".into()), VolumeError::ShuttingDown] {
            let b = bench(Limits::default());
            let mut c = Client::vol(&b.path).await;
            b.vol.fault.replace(Some(fault));
            c.send(cmd::WRITE, 0, 0, 4, b"data").await;
            assert_eq!(c.receive().await, None, "so that the client reconnects and repeats it");
            b.vol.fault.replace(None);
            let mut c = Client::vol(&b.path).await;
            assert!(c.write(0, b"data").await.is_ok());
        }
    });
}

#[test]
fn counters_and_listing() {
    on_data_thread(async {
        let b = bench(Limits::default());
        let mut c = Client::vol(&b.path).await;
        let mut d = Client::vol(&b.path).await;
        c.write(0, &[1; 4096]).await.unwrap();
        d.read(0, 4096).await.unwrap();
        d.read(0, 512).await.unwrap();
        d.read(1 << 40, 512).await.unwrap_err();
        let (name, stats) = b.server.stats().pop().unwrap();
        assert_eq!(name, "vol");
        assert_eq!((stats.connections.get(), stats.refused.get()), (2, 1));
        assert_eq!((stats.op(Op::Read).count.get(), stats.op(Op::Read).bytes.get()), (2, 4608));
        assert_eq!((stats.op(Op::Write).count.get(), stats.op(Op::Write).bytes.get()), (1, 4096));
        let seen: u64 = stats.op(Op::Read).latency.iter().map(|b| b.get()).sum();
        assert_eq!(seen, 2);
        let rows = b.server.connections();
        let rows: Vec<_> =
            rows.iter().map(|r| (r.id, r.export.as_str(), r.tls, r.in_flight, r.requests)).collect();
        assert_eq!(rows, [(1, "vol", false, 0, 1), (2, "vol", false, 0, 2)]);
    });
}
