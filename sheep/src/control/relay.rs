//! Passing data links on, for two sheep that reach this one and not each other.
//!
//! The one that connects says which node it wants; from then on bytes go both ways as they come. With credentials both ends of the pipe speak TLS to each other inside
//! it, and only sheep get as far as asking. Every pipe is a task of the plane's tracker that ends when either end closes or the plane stops; there are at most `RELAYED`
//! of them. Why there are relays: `docs/design/relay.md`.

use super::core::Core;
use super::link::host_port;
use crate::transport::{self, Stream};
use sheepdog_proto::NodeId;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

/// Accepted links that wait for their task.
pub(super) const WAITING: usize = 16;
/// Pipes at a time. Two sheep that do not reach each other need two; beyond this the network is broken in a way that relays do not mend.
const RELAYED: usize = 64;
/// Bytes that are on their way in a pipe, each way.
const BUFFER: usize = 128 << 10;

/// Take links until the plane stops.
pub(super) async fn serve(core: Arc<Core>, mut links: mpsc::Receiver<Stream>) {
    let slots = Arc::new(Semaphore::new(RELAYED));
    loop {
        let mut stream = tokio::select! {
            () = core.stop.cancelled() => return,
            s = links.recv() => match s { Some(s) => s, None => return },
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::warn!("{RELAYED} links are being passed on already: one more refused");
            let _ = stream.write_u8(transport::NOT_RELAYED).await;
            continue;
        };
        let c = core.clone();
        core.tracker.spawn(async move {
            tokio::select! {
                () = c.stop.cancelled() => {}
                r = relay(&c, stream) => if let Err(error) = r {
                    tracing::debug!(%error, "a link that was passed on ended");
                }
            }
            drop(slot);
        });
    }
}

async fn relay(core: &Core, mut from: Stream) -> io::Result<()> {
    let mut id = [0; 16];
    within("the wanted node", from.read_exact(&mut id)).await?;
    let node = NodeId(u128::from_le_bytes(id));
    let mut to = match dial(core, node).await {
        Ok(to) => to,
        Err(e) => {
            from.write_u8(transport::NOT_RELAYED).await?;
            from.flush().await?;
            return Err(e);
        }
    };
    from.write_u8(transport::RELAYED).await?;
    from.flush().await?;
    tracing::info!(to = %node.short(), "passing a link on between two sheep that do not reach each other");
    tokio::io::copy_bidirectional_with_sizes(&mut from, &mut to, BUFFER, BUFFER).await.map(|_| ())
}

async fn dial(core: &Core, node: NodeId) -> io::Result<TcpStream> {
    let known = core.publisher.read(|s| s.nodes.get(&node).is_some_and(|n| n.is_up()));
    let addr =
        core.peers.pool.book.get(node).filter(|_| known && node != core.me && !core.peers.pool.is_cut());
    let addr = addr.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no other node that is up"))?;
    let to = within("connecting", TcpStream::connect(host_port(&addr))).await?;
    transport::tune(&to)?;
    Ok(to)
}

async fn within<T>(what: &str, f: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    const LIMIT: Duration = Duration::from_secs(2);
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("{what} took longer than {LIMIT:?}"));
    tokio::time::timeout(LIMIT, f).await.map_err(|_| late())?
}
