//! The NBD server over memory volumes, through real sockets and our own client machines: what clients see when things are
//! parked, cut off, too much, or wrong.

#![allow(clippy::unwrap_used)] // in a test, that is how it fails

#[path = "../../examples/nbd_memory/memory.rs"]
#[allow(dead_code)]
mod memory;

mod bad_packets;
mod client;
mod lifecycle;
mod limits;
mod requests;

use memory::{MemorySource, Store};
use sheep::front::nbd::{Limits, Listen, ListenAt, NbdConfig, NbdHandle, NbdServer, TlsPolicy};
use std::path::PathBuf;
use std::rc::Rc;

/// A server on a unix socket with one volume `vol` of 64 MiB.
struct Bench {
    source: Rc<MemorySource>,
    vol: Rc<Store>,
    server: NbdHandle,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn bench(limits: Limits) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let source = Rc::new(MemorySource::default());
    let vol = source.create("vol", 64 << 20);
    let listen = vec![Listen { at: ListenAt::Unix(path.clone()), tls: TlsPolicy::Off }];
    let cfg = NbdConfig { listen, tls: None, insecure: false, limits };
    let server = NbdServer::start(cfg, source.clone()).unwrap();
    Bench { source, vol, server, path, _dir: dir }
}

/// Run on a data thread of its own: one thread, tasks that need not be `Send`.
fn on_data_thread(test: impl Future<Output = ()>) {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let guarded = async {
        tokio::time::timeout(std::time::Duration::from_secs(60), test).await.expect("the test hangs");
    };
    tokio::task::LocalSet::new().block_on(&rt, guarded);
}

/// Let the server run until `done`. Every turn of the loop gives it the chance to handle what its sockets hold.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if done() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("never: {what}");
}
