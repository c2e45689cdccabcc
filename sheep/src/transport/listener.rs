//! The one acceptor of the peer port.
//!
//! It reads prefaces (each connection in its own short task, at most `MAX_PENDING` of them), gives control links and links to be passed on to the control plane and data
//! links, still as raw sockets, to the data thread through a bounded channel. A full channel closes the newcomer: the other side retries.

use super::{LinkKind, Stream, read_preface, server_tls, tune};
use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections that have not shown what they are yet; more wait in the kernel's backlog.
const MAX_PENDING: usize = 256;

/// An accepted data link: the preface is read, the TLS handshake is not done. The socket is non-blocking.
pub struct DataLink {
    /// Socket.
    pub stream: std::net::TcpStream,
    /// Other end.
    pub addr: SocketAddr,
}

/// Where accepted links go.
#[derive(Clone)]
pub struct Routes {
    /// Control links.
    pub control: mpsc::Sender<Stream>,
    /// Data links.
    pub data: mpsc::Sender<DataLink>,
    /// Links to be passed on.
    pub relay: mpsc::Sender<Stream>,
}

/// The peer port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen for peers on {addr}: {source}: is another sheep running there? (see --port and --bind)"
)]
pub struct ListenError {
    addr: String,
    source: io::Error,
}

/// The peer port.
pub struct PeerListener {
    listener: TcpListener,
    server: Option<Arc<ServerConfig>>,
}

impl PeerListener {
    /// Open the port. Port 0 picks a free one.
    pub async fn bind(addr: &str, server: Option<Arc<ServerConfig>>) -> Result<Self, ListenError> {
        let listener =
            TcpListener::bind(addr).await.map_err(|source| ListenError { addr: addr.to_string(), source })?;
        Ok(Self { listener, server })
    }
    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
    /// Accept until `stop`. The sockets accepted but not handed over die with it.
    pub async fn run(self, to: Routes, stop: CancellationToken) {
        let tracker = TaskTracker::new();
        let pending = Arc::new(Semaphore::new(MAX_PENDING));
        loop {
            let permit = tokio::select! {
                () = stop.cancelled() => break,
                p = pending.clone().acquire_owned() => p,
            };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                a = self.listener.accept() => a,
            };
            let (stream, addr) = match accepted {
                Ok(a) => a,
                Err(error) => {
                    // Out of descriptors or an aborted connection: neither ends the listener.
                    tracing::warn!(%error, "accepting a peer failed");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (to, server, stop) = (to.clone(), self.server.clone(), stop.clone());
            tracker.spawn(async move {
                let route = route(stream, addr, server, to);
                tokio::select! {
                    () = stop.cancelled() => {}
                    r = route => if let Err(error) = r {
                        tracing::debug!(%addr, %error, "peer connection refused");
                    }
                }
                drop(permit);
            });
        }
        tracker.close();
        tracker.wait().await;
    }
}

async fn route(
    mut stream: TcpStream,
    addr: SocketAddr,
    server: Option<Arc<ServerConfig>>,
    to: Routes,
) -> io::Result<()> {
    tune(&stream)?;
    match read_preface(&mut stream).await? {
        LinkKind::Control => {
            let stream = server_tls(stream, server.as_ref()).await?;
            to.control.try_send(stream).map_err(|_| io::Error::other("too many control links are waiting"))
        }
        LinkKind::Data => {
            let stream = stream.into_std()?;
            to.data
                .try_send(DataLink { stream, addr })
                .map_err(|_| io::Error::other("too many data links are waiting"))
        }
        LinkKind::Relay => {
            let stream = server_tls(stream, server.as_ref()).await?;
            to.relay.try_send(stream).map_err(|_| io::Error::other("too many links to pass on are waiting"))
        }
    }
}
