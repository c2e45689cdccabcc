//! An NBD server over memory: `nbd_memory [SIZE_MIB] [PORT] [UNIX_SOCKET]`, export `vol`. The ceiling of the front-end.

#[allow(dead_code)] // what only tests use
mod memory;

use memory::MemorySource;
use sheep::front::nbd::{Limits, Listen, ListenAt, NbdConfig, NbdServer, TlsPolicy};
use std::rc::Rc;
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let size = args.next().map_or(Ok(1024), |a| a.parse::<u64>())? << 20;
    let port = args.next().map_or(Ok(10809), |a| a.parse::<u16>())?;
    let mut listen = vec![Listen { at: ListenAt::Tcp(([127, 0, 0, 1], port).into()), tls: TlsPolicy::Off }];
    if let Some(path) = args.next() {
        listen.push(Listen { at: ListenAt::Unix(path.into()), tls: TlsPolicy::Off });
    }
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&rt, async move {
        let source = Rc::new(MemorySource::default());
        source.create("vol", size);
        let cfg = NbdConfig { listen, tls: None, insecure: false, limits: Limits::default() };
        let server = NbdServer::start(cfg, source)?;
        println!("nbd://{}/vol", server.local_addrs()[0]);
        tokio::signal::ctrl_c().await?;
        server.shutdown(Duration::from_secs(5)).await;
        Ok(())
    })
}
