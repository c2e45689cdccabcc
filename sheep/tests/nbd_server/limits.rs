//! Everything is bounded, and a bound is a wait, not an error.

use super::client::{Client, attach};
use super::{bench, on_data_thread, until};
use sheep::front::nbd::Limits;
use sheepdog_nbd::client::Wishes;
use sheepdog_nbd::wire::cmd;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

#[test]
fn more_requests_than_the_limit_wait_their_turn() {
    on_data_thread(async {
        let b = bench(Limits { requests: 4, ..Limits::default() });
        let mut c = Client::vol(&b.path).await;
        b.vol.park(true);
        for i in 0..50 {
            c.send(cmd::READ, 0, i * 4096, 4096, &[]).await;
        }
        until("four are taken", || b.server.connections()[0].in_flight == 4).await;
        b.vol.park(false);
        for _ in 0..50 {
            assert!(c.receive().await.unwrap().result.is_ok());
        }
    });
}

#[test]
fn a_client_that_does_not_read_its_replies_holds_little() {
    on_data_thread(async {
        let b = bench(Limits { connection_bytes: 1 << 20, ..Limits::default() });
        let mut c = Client::vol(&b.path).await;
        let count = 200;
        for i in 0..count {
            c.send(cmd::READ, 0, i % 16, 256 << 10, &[]).await;
        }
        let mut other = Client::vol(&b.path).await;
        let before = b.vol.finished.get();
        for _ in 0..100 {
            other.write(0, &[0; 512]).await.unwrap();
        }
        let reads = b.vol.finished.get() - 100;
        assert!(before <= reads && reads < 20, "{reads} replies of 256 KiB are held for one client");
        for _ in 0..count {
            assert!(c.receive().await.unwrap().result.is_ok());
        }
    });
}

#[test]
fn one_request_larger_than_every_limit_still_goes() {
    on_data_thread(async {
        let b = bench(Limits { connection_bytes: 4096, total_bytes: 4096, ..Limits::default() });
        let mut c = Client::vol(&b.path).await;
        let mut d = Client::vol(&b.path).await;
        for _ in 0..3 {
            c.write(0, &vec![7; 8 << 20]).await.unwrap();
            assert_eq!(d.read(0, 8 << 20).await.unwrap().len(), 8 << 20);
        }
    });
}

#[test]
fn connections_share_a_budget_and_are_woken_when_it_frees() {
    on_data_thread(async {
        let b = bench(Limits { total_bytes: 1 << 20, ..Limits::default() });
        let slow = b.source.create("slow", 64 << 20);
        let mut hog = attach(&b.path, Wishes::attach("slow")).await.unwrap();
        let mut c = Client::vol(&b.path).await;
        slow.park(true);
        hog.send(cmd::READ, 0, 0, 2 << 20, &[]).await;
        until("the hog has it all", || b.server.connections()[0].in_flight == 1).await;
        b.vol.park(true);
        c.send(cmd::READ, 0, 0, 4096, &[]).await;
        c.send(cmd::READ, 0, 0, 4096, &[]).await;
        until("one request always goes", || b.server.connections()[1].in_flight == 1).await;
        slow.park(false);
        hog.receive().await.unwrap();
        until("there is room for the second", || b.server.connections()[1].in_flight == 2).await;
        b.vol.park(false);
        for _ in 0..2 {
            assert!(c.receive().await.unwrap().result.is_ok());
        }
    });
}

#[test]
fn too_many_connections_are_closed_at_once() {
    on_data_thread(async {
        let b = bench(Limits { connections: 2, ..Limits::default() });
        let c = Client::vol(&b.path).await;
        let _d = Client::vol(&b.path).await;
        let mut e = UnixStream::connect(&b.path).await.unwrap();
        assert_eq!(e.read(&mut [0; 16]).await.unwrap(), 0);
        drop(c);
        until("a place is free", || b.server.connections().len() == 1).await;
        Client::vol(&b.path).await;
    });
}

#[test]
fn a_silent_client_is_disconnected_but_an_attached_one_may_be_idle() {
    on_data_thread(async {
        let b = bench(Limits { handshake_idle: Duration::from_millis(20), ..Limits::default() });
        let mut c = Client::vol(&b.path).await;
        let mut silent = UnixStream::connect(&b.path).await.unwrap();
        let mut greeting = Vec::new();
        silent.read_to_end(&mut greeting).await.unwrap();
        assert_eq!(greeting.len(), 18, "it is greeted, then left");
        assert!(c.read(0, 512).await.is_ok());
    });
}

#[test]
fn one_that_drips_is_disconnected_too() {
    on_data_thread(async {
        for limits in [
            Limits { handshake_idle: Duration::from_millis(100), ..Limits::default() },
            Limits { handshake: Duration::from_millis(100), ..Limits::default() },
        ] {
            let b = bench(limits);
            let mut slow = UnixStream::connect(&b.path).await.unwrap();
            // Flags, then an option that never ends, a byte at a time.
            let bytes = [&b"\0\0\0\x03IHAVEOPT\0\0\0\x03\0\0\x10\0"[..], &[0; 4000]].concat();
            let mut sent = 0;
            while slow.write_all(&bytes[sent..=sent]).await.is_ok() {
                sent += 1;
                assert!(sent < 3000, "it is still listened to");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            until("it is gone", || b.server.connections().is_empty()).await;
        }
    });
}
