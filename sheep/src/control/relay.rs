//! Passing links on, for two sheep that reach this one and not each other.
//!
//! The one that connects says which node it wants; from then on bytes go both ways as they come. With credentials both ends of the pipe speak TLS to each other inside
//! it, and only sheep get as far as asking. Every pipe is a task of the plane's tracker that ends when either end closes or the plane stops; there are at most `RELAYED`
//! of them. Nothing is passed on late: what a sheep that stood still finds in its sockets when it goes on was given up by its sender, perhaps long ago.
//! Why there are relays: `docs/design/relay.md`.

use super::boottime_millis;
use super::core::Core;
use super::link::host_port;
use crate::transport::{self, Stream};
use sheepdog_proto::NodeId;
use std::io;
use std::sync::Arc;
use std::task::Poll;
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
/// A pipe is looked at this often, also when nothing comes.
const TICK: Duration = Duration::from_millis(250);
/// When it was not for so many milliseconds, this process stood still.
const STOOD: u64 = 2_000;

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
    awake(boottime_millis, tokio::io::copy_bidirectional_with_sizes(&mut from, &mut to, BUFFER, BUFFER))
        .await
        .map(drop)
}

/// Goes on with `work` only while this process runs: after a standstill by the `clock`, in milliseconds, not one step more of it is done.
async fn awake<T>(clock: impl Fn() -> u64, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let mut last = clock();
    // Asked before each step of the work.
    let stood = std::future::poll_fn(|_| {
        let before = std::mem::replace(&mut last, clock());
        if last.saturating_sub(before) > STOOD { Poll::Ready(()) } else { Poll::Pending }
    });
    let ticks = async {
        loop {
            tokio::time::sleep(TICK).await;
        }
    };
    tokio::select! {
        biased;
        () = stood => Err(io::Error::new(io::ErrorKind::TimedOut, "this sheep stood still: what it has is too old to be passed on")),
        r = work => r,
        () = ticks => unreachable!("it has no end"),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::io::duplex;

    /// What comes out after so long, when it was written before.
    async fn passed_on(standstill: u64) -> io::Result<String> {
        let now = AtomicU64::new(5);
        let clock = || now.load(Ordering::Relaxed);
        let (mut sender, mut from) = duplex(64);
        let (mut to, mut receiver) = duplex(64);
        let pipe = awake(clock, tokio::io::copy(&mut from, &mut to));
        let story = async {
            // Long, but awake.
            for _ in 0..40 {
                tokio::time::sleep(TICK).await;
                now.fetch_add(TICK.as_millis() as u64, Ordering::Relaxed);
            }
            now.fetch_add(standstill, Ordering::Relaxed);
            sender.write_all(b"late").await?;
            drop(sender);
            io::Result::Ok(())
        };
        let (piped, told) = tokio::join!(pipe, story);
        told?;
        drop(to);
        let mut out = String::new();
        receiver.read_to_string(&mut out).await?;
        assert_eq!(piped.is_err(), out.is_empty(), "{piped:?} {out}");
        piped.map(|_| out)
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_passed_on_after_a_standstill() {
        assert_eq!(passed_on(0).await.unwrap(), "late");
        assert_eq!(passed_on(1_500).await.unwrap(), "late");
        assert_eq!(passed_on(60_000).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
