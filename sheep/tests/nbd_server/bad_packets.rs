//! Whatever comes over the wire: a clear error or a closed connection, and the server is as good as before.

use super::client::{Client, attach};
use super::{Bench, bench, on_data_thread, until};
use bytes::BufMut;
use sheep::front::nbd::Limits;
use sheepdog_nbd::client::Wishes;
use sheepdog_nbd::wire::{IHAVEOPT, MAX_DRAIN, cmd};
use sheepdog_nbd::{Errno, RequestHeader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The server still serves, and holds nothing of the others.
async fn is_well(b: &Bench) {
    until("old connections are gone", || b.server.connections().is_empty()).await;
    assert_eq!(b.vol.open.get(), 0);
    let mut c = Client::vol(&b.path).await;
    c.write(0, b"alive").await.unwrap();
    assert_eq!(c.read(0, 5).await.unwrap(), "alive");
    drop(c);
    until("we are gone too", || b.server.connections().is_empty()).await;
}

fn option(code: u32, len: u32, payload: &[u8]) -> Vec<u8> {
    let mut b = vec![0, 0, 0, 3];
    b.put_u64(IHAVEOPT);
    b.put_u32(code);
    b.put_u32(len);
    b.put_slice(payload);
    b
}

#[test]
fn handshake_noise_ends_in_a_closed_connection() {
    on_data_thread(async {
        let b = bench(Limits::default());
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("http", b"GET / HTTP/1.0\r\n\r\n".to_vec()),
            ("zeros", vec![0; 100_000]),
            ("ones", vec![0xff; 100_000]),
            ("option of 4 GiB", option(7, u32::MAX, &[])),
            ("unknown flags", vec![0xff, 0xff, 0xff, 0xff]),
            ("export name unknown", option(1, 4, b"nope")),
            ("export name not text", option(1, 2, &[0xff, 0xfe])),
            ("abort", option(2, 0, &[])),
        ];
        for (what, bytes) in cases {
            let mut s = UnixStream::connect(&b.path).await.unwrap();
            let _ = s.write_all(&bytes).await; // it may hang up in the middle of it
            let mut rest = Vec::new();
            let _ = s.read_to_end(&mut rest).await; // returns: it did
            assert!(rest.len() < 1000, "{what}");
            is_well(&b).await;
        }
    });
}

#[test]
fn cut_off_anywhere_in_the_handshake() {
    on_data_thread(async {
        let b = bench(Limits::default());
        let mut whole = option(8, 0, &[]);
        whole.extend_from_slice(&option(7, 9, b"\0\0\0\x03vol\0\0")[4..]);
        whole
            .extend_from_slice(&RequestHeader { flags: 0, kind: 0, cookie: 1, offset: 0, len: 512 }.encode());
        for n in 0..=whole.len() {
            let mut s = UnixStream::connect(&b.path).await.unwrap();
            s.write_all(&whole[..n]).await.unwrap();
            drop(s);
        }
        is_well(&b).await;
    });
}

#[test]
fn requests_that_cannot_be_answered_end_the_connection() {
    on_data_thread(async {
        let b = bench(Limits::default());
        let huge = RequestHeader { flags: 0, kind: cmd::WRITE, cookie: 1, offset: 0, len: MAX_DRAIN + 1 };
        for (what, bytes) in [
            ("bad magic", vec![0u8; 28]),
            ("noise", (0..=255).collect()),
            ("absurd payload", huge.encode().to_vec()),
        ] {
            let mut c = Client::vol(&b.path).await;
            c.stream.write_all(&bytes).await.unwrap();
            assert_eq!(c.receive().await, None, "{what}");
            drop(c);
            is_well(&b).await;
        }
    });
}

#[test]
fn requests_that_are_wrong_get_an_error_and_the_connection_lives() {
    on_data_thread(async {
        let b = bench(Limits::default());
        for structured in [true, false] {
            let mut c = attach(&b.path, Wishes { structured, ..Wishes::attach("vol") }).await.unwrap();
            let forty = vec![1; 40 << 20];
            /// Command, flags, offset, length, payload, answer.
            type Case<'a> = (u16, u16, u64, u32, &'a [u8], Errno);
            let cases: &[Case<'_>] = &[
                (cmd::READ, 0, 64 << 20, 1, &[], Errno::Inval),
                (cmd::READ, 0, u64::MAX, u32::MAX, &[], Errno::Inval),
                (cmd::READ, 0, 0, 33 << 20, &[], Errno::Inval),
                (cmd::WRITE, 0, 64 << 20, 4, b"ends", Errno::NoSpace),
                (cmd::WRITE, 0xffff, 0, 4, b"flag", Errno::Inval),
                (cmd::WRITE, 0, 0, 40 << 20, &forty, Errno::Inval),
                (cmd::TRIM, 0, 1, u32::MAX, &[], Errno::Inval),
                (cmd::WRITE_ZEROES, 0, 1, u32::MAX, &[], Errno::NoSpace),
                (cmd::FLUSH, 0, 1, 1, &[], Errno::Inval),
                (cmd::BLOCK_STATUS, 0, 0, 0, &[], Errno::Inval),
                (777, 0, 0, 0, &[], Errno::Inval),
            ];
            for (kind, flags, offset, len, payload, errno) in cases {
                let failed = c.call(*kind, *flags, *offset, *len, payload).await.unwrap_err();
                assert_eq!(failed.errno, *errno, "command {kind} {offset} {len}");
                assert_eq!(structured, !failed.why.is_empty(), "structured errors carry a sentence");
                c.write(0, b"still").await.unwrap();
            }
        }
        is_well(&b).await;
    });
}

#[test]
fn cut_off_in_the_middle_of_a_payload() {
    on_data_thread(async {
        let b = bench(Limits::default());
        for (len, sent) in
            [(4096u32, 0usize), (4096, 4095), (1 << 20, 1), (1 << 20, 500_000), (32 << 20, 100)]
        {
            let mut c = Client::vol(&b.path).await;
            let payload = vec![9; sent];
            c.send(cmd::WRITE, 0, 0, len, &payload).await;
            drop(c);
            is_well(&b).await;
        }
        let mut c = Client::vol(&b.path).await;
        assert_eq!(c.read(100, 512).await.unwrap(), vec![0; 512], "half a write is no write");
    });
}

#[test]
fn random_streams_do_no_harm() {
    use rand::{Rng, SeedableRng};
    on_data_thread(async {
        let b = bench(Limits::default());
        let mut rng = rand::rngs::SmallRng::seed_from_u64(2);
        for _ in 0..200 {
            let mut c = Client::vol(&b.path).await;
            for _ in 0..rng.random_range(1..20) {
                let h = RequestHeader {
                    flags: if rng.random() { 0 } else { rng.random() },
                    kind: rng.random_range(0..9),
                    cookie: rng.random(),
                    offset: rng.random_range(0..80 << 20),
                    len: rng.random_range(0..100_000),
                };
                let mut bytes = h.encode().to_vec();
                if h.kind == cmd::WRITE {
                    bytes.resize(28 + h.len as usize, 5);
                }
                if rng.random_range(0..20) == 0 {
                    let at = rng.random_range(0..28);
                    bytes[at] ^= 1 << rng.random_range(0..8);
                }
                if c.stream.write_all(&bytes).await.is_err() {
                    break; // it hung up on us, rightly
                }
            }
        }
        is_well(&b).await;
    });
}
