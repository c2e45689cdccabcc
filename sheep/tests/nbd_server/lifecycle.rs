//! How connections and servers end, and what may be listened on.

use super::client::{Client, attach};
use super::{bench, on_data_thread, until};
use sheep::front::nbd::{Limits, Listen, ListenAt, NbdConfig, NbdServer, TlsPolicy};
use sheepdog_nbd::client::Wishes;
use sheepdog_nbd::wire::{Broken, cmd};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

#[test]
fn requests_of_a_dead_client_finish_before_its_volume_is_closed() {
    on_data_thread(async {
        for requests in [2, 256] {
            // 2: the connection is at its limit and reads no more requests when the client goes.
            let b = bench(Limits { requests, ..Limits::default() });
            let mut c = Client::vol(&b.path).await;
            b.vol.park(true);
            for _ in 0..2 {
                c.send(cmd::WRITE, 0, 4096, 4, b"late").await;
            }
            until("they are under way", || b.server.connections()[0].in_flight == 2).await;
            drop(c);
            // A newcomer is served while the old connection waits for its requests.
            let d = Client::vol(&b.path).await;
            assert_eq!((b.vol.open.get(), b.vol.finished.get()), (2, 0), "still open, still under way");
            b.vol.park(false);
            until("the old one is closed", || b.vol.open.get() == 1).await;
            assert_eq!(b.vol.finished.get(), 2);
            drop(d);
            until("all are", || b.server.connections().is_empty() && b.vol.open.get() == 0).await;
        }
    });
}

#[test]
fn replies_reach_a_client_that_has_closed_its_sending_side() {
    on_data_thread(async {
        let b = bench(Limits::default());
        let mut c = Client::vol(&b.path).await;
        b.vol.park(true);
        c.send(cmd::WRITE, 0, 0, 4, b"last").await;
        c.send(cmd::READ, 0, 0, 4, &[]).await;
        c.stream.shutdown().await.unwrap();
        b.vol.park(false);
        assert!(c.receive().await.unwrap().result.is_ok());
        assert!(c.receive().await.unwrap().result.is_ok());
        assert_eq!(c.receive().await, None);
    });
}

#[test]
fn disconnect_request_lets_the_earlier_ones_finish() {
    on_data_thread(async {
        let b = bench(Limits::default());
        let mut c = Client::vol(&b.path).await;
        c.send(cmd::WRITE, 0, 0, 4, b"kept").await;
        c.send(cmd::DISC, 0, 0, 0, &[]).await;
        assert!(c.receive().await.unwrap().result.is_ok());
        assert_eq!(c.receive().await, None);
        let mut c = Client::vol(&b.path).await;
        assert_eq!(c.read(0, 4).await.unwrap(), "kept");
    });
}

#[test]
fn shutdown_answers_what_is_under_way_and_takes_no_more() {
    on_data_thread(async {
        let b = bench(Limits::default());
        let mut c = Client::vol(&b.path).await;
        let idle = Client::vol(&b.path).await;
        let mut greeting = UnixStream::connect(&b.path).await.unwrap();
        b.vol.park(true);
        c.send(cmd::WRITE, 0, 0, 4, b"kept").await;
        until("it is under way", || b.server.connections().iter().any(|r| r.in_flight == 1)).await;
        let (server, path, vol) = (b.server, b.path, b.vol);
        let stop = tokio::task::spawn_local(server.shutdown(Duration::from_secs(30)));
        let gone = async {
            while UnixStream::connect(&path).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        gone.await;
        drop(idle);
        vol.park(false);
        assert!(c.receive().await.unwrap().result.is_ok(), "answered");
        assert_eq!(c.receive().await, None, "then closed");
        assert_eq!(stop.await.unwrap(), 0, "nothing had to be aborted");
        assert_eq!(vol.open.get(), 0);
        assert!(!path.exists(), "the socket file is gone");
        let _ = greeting.shutdown().await;
    });
}

#[test]
fn a_client_that_has_lost_its_right_is_cut_off_also_while_requests_are_under_way() {
    on_data_thread(async {
        let b = bench(Limits::default());
        let mut idle = Client::vol(&b.path).await;
        let mut busy = Client::vol(&b.path).await;
        b.vol.park(true);
        busy.send(cmd::WRITE, 0, 0, 4, b"late").await;
        until("it is under way", || b.server.connections().iter().any(|r| r.in_flight == 1)).await;
        b.vol.taken_away.send_replace(true);
        assert_eq!(idle.receive().await, None);
        assert_eq!(busy.receive().await, None, "no answer, and it does not wait for what is under way");
        until("the idle one is closed", || b.vol.open.get() == 1).await;
        assert_eq!(b.vol.finished.get(), 0, "the volume is closed after its requests, as always");
        b.vol.park(false);
        until("all are", || b.server.connections().is_empty() && b.vol.open.get() == 0).await;
    });
}

#[test]
fn shutdown_aborts_what_does_not_end() {
    on_data_thread(async {
        let b = bench(Limits::default());
        let mut c = Client::vol(&b.path).await;
        b.vol.park(true);
        c.send(cmd::WRITE, 0, 0, 4, b"lost").await;
        until("it is under way", || b.server.connections()[0].in_flight == 1).await;
        assert_eq!(b.server.shutdown(Duration::ZERO).await, 1);
        assert_eq!(c.receive().await, None);
    });
}

#[test]
fn unknown_exports_are_refused_with_their_name() {
    on_data_thread(async {
        let b = bench(Limits::default());
        let end = attach(&b.path, Wishes::attach("nope")).await.err();
        // The client hears it at its first question about the export, and again when it insists.
        assert_eq!(end, Some(Broken::Refused("no volume named 'nope'".into())));
    });
}

fn start(at: ListenAt, tls: TlsPolicy, insecure: bool) -> io::Result<sheep::front::nbd::NbdHandle> {
    let source = Rc::new(super::memory::MemorySource::default());
    let cfg = NbdConfig { listen: vec![Listen { at, tls }], tls: None, insecure, limits: Limits::default() };
    NbdServer::start(cfg, source)
}

#[test]
fn plain_text_stays_on_this_host() {
    on_data_thread(async {
        let tcp = |a: &str| ListenAt::Tcp(a.parse().unwrap());
        for open in ["0.0.0.0:0", "[::]:0"] {
            let e = start(tcp(open), TlsPolicy::Off, false).err().unwrap();
            assert_eq!(e.kind(), io::ErrorKind::InvalidInput);
            assert!(e.to_string().contains("--insecure"), "{e}");
        }
        let server = start(tcp("127.0.0.1:0"), TlsPolicy::Off, false).unwrap();
        assert_ne!(server.local_addrs()[0].port(), 0);
        start(tcp("0.0.0.0:0"), TlsPolicy::Off, true).unwrap();
        let e = start(tcp("127.0.0.1:0"), TlsPolicy::Required, false).err().unwrap();
        assert!(e.to_string().contains("needs a certificate"), "{e}");
        let again = start(ListenAt::Tcp(server.local_addrs()[0]), TlsPolicy::Off, false).err().unwrap();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
        assert!(again.to_string().contains("127.0.0.1"), "{again}");
    });
}

#[test]
fn socket_files_stale_live_and_foreign() {
    on_data_thread(async {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| ListenAt::Unix(dir.path().join(name));
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("stale")).unwrap());
        start(at("stale"), TlsPolicy::Off, false).unwrap();
        let _live = start(at("live"), TlsPolicy::Off, false).unwrap();
        assert_eq!(start(at("live"), TlsPolicy::Off, false).err().unwrap().kind(), io::ErrorKind::AddrInUse);
        std::fs::write(dir.path().join("file"), "mine").unwrap();
        assert!(start(at("file"), TlsPolicy::Off, false).is_err());
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"mine");
    });
}
