//! The client port: sockets, TLS, limits, stop.

use super::backend::AdminBackend;
use super::cluster::Clusters;
use super::node::Nodes;
use super::service::Admin;
use super::vdi::Vdis;
use crate::transport::tune;
use rustls::ServerConfig;
use sheepdog_client::client::{MAX_FRAME, MAX_MESSAGE};
use sheepdog_client::pb::cluster_service_server::ClusterServiceServer;
use sheepdog_client::pb::node_service_server::NodeServiceServer;
use sheepdog_client::pb::vdi_service_server::VdiServiceServer;
use sheepdog_proto::MAX_NODES;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::Connected;

/// TLS handshakes going on at a time; more wait in the kernel's backlog.
const MAX_HANDSHAKES: usize = 1024;
/// For one handshake, up to the words that open HTTP/2.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Clients at a time; more are closed at once. Every sheep keeps one connection to each of the others at most.
const MAX_CLIENTS: usize = MAX_NODES + 2048;
/// How every HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Requests of one connection at a time, streams included.
const MAX_REQUESTS: usize = 256;
/// Requests that run when the server is told to stop get this long.
const GRACE: Duration = Duration::from_secs(5);

/// The client port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen for clients on {addr}: {source}: is another sheep running there? (see --port and --bind-addr)"
)]
pub struct AdminListenError {
    addr: String,
    source: io::Error,
}

/// A running admin server. Dropping it leaves it running until its runtime ends; `stop` ends it.
pub struct AdminServer {
    addr: SocketAddr,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl AdminServer {
    /// Listen on `addr` (port 0 picks one) and serve until `stop`. Without `tls` everything is in clear: loopback only.
    pub async fn start(
        addr: &str,
        tls: Option<Arc<ServerConfig>>,
        backend: Arc<dyn AdminBackend>,
    ) -> Result<Self, AdminListenError> {
        let listener = TcpListener::bind(addr)
            .await
            .map_err(|source| AdminListenError { addr: addr.to_owned(), source })?;
        Self::start_on(listener, tls, backend)
            .map_err(|source| AdminListenError { addr: addr.to_owned(), source })
    }

    /// Serve on a socket that listens already.
    pub fn start_on(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        backend: Arc<dyn AdminBackend>,
    ) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let admin = Arc::new(Admin::new(backend, stop.clone(), tracker.clone()));
        let (tx, rx) = mpsc::channel(16);
        tracker.spawn(accept(listener, tls, tx, stop.clone()));
        let vdis = VdiServiceServer::new(Vdis(admin.clone()));
        let nodes = NodeServiceServer::new(Nodes(admin.clone()));
        let clusters = ClusterServiceServer::new(Clusters(admin));
        let router = tonic::transport::Server::builder()
            .concurrency_limit_per_connection(MAX_REQUESTS)
            .max_concurrent_streams(MAX_REQUESTS as u32)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(MAX_FRAME)
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .add_service(vdis.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
            .add_service(nodes.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
            .add_service(
                clusters.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE),
            );
        let end = stop.clone();
        tracker.spawn(async move {
            let incoming = tokio_stream::wrappers::ReceiverStream::new(rx);
            let serve = router.serve_with_incoming_shutdown(incoming, end.clone().cancelled_owned());
            tokio::pin!(serve);
            let late = async {
                end.cancelled().await;
                tokio::time::sleep(GRACE).await;
            };
            let result = tokio::select! {
                r = &mut serve => r,
                () = late => return,
            };
            if let Err(error) = result {
                tracing::error!(%error, "the admin server ended");
            }
        });
        Ok(Self { addr, stop, tracker })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// No new requests; those running get a moment, then they are dropped.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// One client that has begun to speak HTTP/2.
pub(super) struct Conn {
    pipe: Pipe,
    /// Of `PREFACE`: taken off the stream already, still to be given to HTTP/2.
    preface: &'static [u8],
    _slot: OwnedSemaphorePermit,
}

enum Pipe {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

impl Connected for Conn {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Conn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.preface.is_empty() {
            let (now, later) = this.preface.split_at(this.preface.len().min(buf.remaining()));
            buf.put_slice(now);
            this.preface = later;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.pipe).poll_read(cx, buf)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().pipe).poll_write(cx, buf)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().pipe).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().pipe).poll_shutdown(cx)
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
        }
    }
}

/// Accepts; handshakes run beside each other so that a silent client delays nobody, and one that does not speak HTTP/2 is soon gone.
async fn accept(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    out: mpsc::Sender<io::Result<Conn>>,
    stop: CancellationToken,
) {
    let tracker = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let slot = tokio::select! {
            () = stop.cancelled() => break,
            s = slots.clone().acquire_owned() => s,
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            a = listener.accept() => a,
        };
        let (tcp, addr) = match accepted {
            Ok(a) => a,
            Err(error) => {
                // Out of descriptors or an aborted connection: neither ends the listener.
                tracing::warn!(%error, "accepting a client failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(client) = clients.clone().try_acquire_owned() else {
            tracing::warn!(%addr, limit = MAX_CLIENTS, "client refused: too many");
            continue;
        };
        let (tls, out, stop) = (tls.clone(), out.clone(), stop.clone());
        tracker.spawn(async move {
            let _slot = slot;
            tokio::select! {
                () = stop.cancelled() => {}
                r = tokio::time::timeout(HANDSHAKE, greet(tcp, tls, client)) => match r {
                    Ok(Ok(conn)) => { let _ = out.send(Ok(conn)).await; }
                    Ok(Err(error)) => tracing::debug!(%addr, %error, "client refused"),
                    Err(_) => tracing::debug!(%addr, "client refused: it did not begin in {HANDSHAKE:?}"),
                }
            }
        });
    }
    tracker.close();
    tracker.wait().await;
}

/// Say so in a way that whoever it is can make sense of (HTTP/1, or TLS where we have none), and let it read that: closing with unread bytes would be a reset.
async fn turn_away(pipe: &mut Pipe) {
    const ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    const MOST: usize = 64 << 10;
    if pipe.write_all(ANSWER).await.is_err() || pipe.shutdown().await.is_err() {
        return;
    }
    let (mut rest, mut read) = ([0; 4096], 0);
    while let Ok(n) = pipe.read(&mut rest).await {
        read += n;
        if n == 0 || read > MOST {
            return;
        }
    }
}

async fn greet(
    tcp: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    slot: OwnedSemaphorePermit,
) -> io::Result<Conn> {
    tune(&tcp)?;
    let mut pipe = match tls {
        None => Pipe::Plain(tcp),
        Some(config) => Pipe::Tls(Box::new(tokio_rustls::TlsAcceptor::from(config).accept(tcp).await?)),
    };
    let mut seen = 0;
    while seen < PREFACE.len() {
        let mut buf = [0; PREFACE.len()];
        let n = pipe.read(&mut buf[seen..]).await?;
        if n == 0 || buf[seen..seen + n] != PREFACE[seen..seen + n] {
            turn_away(&mut pipe).await;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a client of the admin interface"));
        }
        seen += n;
    }
    Ok(Conn { pipe, preface: PREFACE, _slot: slot })
}
