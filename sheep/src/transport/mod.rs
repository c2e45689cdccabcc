//! Byte streams between sheep: TCP, and TLS 1.3 on top when the cluster has credentials.
//!
//! Every connection to the peer port opens with an eight-byte preface in clear (`Preface`): magic, version, kind of link. It is followed
//! by a mutual TLS handshake when credentials are configured, then by whatever the kind of link says (`control::rpc` or the data
//! protocol). A preface carries no secret and nothing is believed because of it: it only picks the reader.
//!
//! A `Stream` is `Send` and works on any tokio runtime. What holds: no read or write here is unbounded in memory; the preface and the
//! handshake have deadlines. Who owns: `PeerListener` owns the listening socket and its accept task ends with its token.

pub mod around;
mod listener;

pub use listener::{DataLink, ListenError, PeerListener, Routes};

use rustls_pki_types::ServerName;
use sheepdog_proto::NodeId;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// First four bytes of every peer connection.
pub const MAGIC: [u8; 4] = *b"SHPD";
/// Version of the preface. The kinds of link have versions of their own.
pub const VERSION: u16 = 1;
/// Name that sheep prove to each other under TLS. Identities are checked against the cluster's CA, not against DNS.
pub const TLS_NAME: &str = "sheep";
/// Answer of a relay that has the other end.
pub const RELAYED: u8 = 0;
/// Answer of a relay that has not.
pub const NOT_RELAYED: u8 = 1;
/// Time for connect, and for each of preface and handshake.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the other host may leave data unacknowledged. Four packets lost in a row fit in: losses of 5 % end one connection in 100,000 packets.
pub const SILENCE: Duration = Duration::from_secs(3);
const PREFACE_LEN: usize = 8;

/// What a connection carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkKind {
    /// Object reads and writes: handed to the data thread.
    Data,
    /// Raft, leases, proposals.
    Control,
    /// To be passed on to another sheep: see `control::relay`.
    Relay,
}

impl LinkKind {
    fn byte(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Control => 2,
            Self::Relay => 3,
        }
    }
}

/// Why a preface was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefaceError {
    /// Not ours.
    #[error("not a sheep peer connection (is a client using the peer port?)")]
    Magic,
    /// Newer or older.
    #[error(
        "peer speaks version {0} of the link preface, this sheep speaks {VERSION}: upgrade the older one"
    )]
    Version(u16),
    /// Unknown kind of link.
    #[error("unknown kind of link {0}")]
    Kind(u8),
}

/// The bytes that open a connection.
pub fn encode_preface(kind: LinkKind) -> [u8; PREFACE_LEN] {
    let v = VERSION.to_le_bytes();
    [MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], v[0], v[1], kind.byte(), 0]
}

/// Check the bytes that open a connection.
pub fn decode_preface(b: [u8; PREFACE_LEN]) -> Result<LinkKind, PrefaceError> {
    if b[..4] != MAGIC {
        return Err(PrefaceError::Magic);
    }
    let version = u16::from_le_bytes([b[4], b[5]]);
    if version != VERSION {
        return Err(PrefaceError::Version(version));
    }
    match b[6] {
        1 => Ok(LinkKind::Data),
        2 => Ok(LinkKind::Control),
        3 => Ok(LinkKind::Relay),
        k => Err(PrefaceError::Kind(k)),
    }
}

/// Credentials of both directions. Empty = plaintext.
#[derive(Clone, Default)]
pub struct PeerTls {
    /// For connections we make.
    pub client: Option<Arc<rustls::ClientConfig>>,
    /// For connections we take.
    pub server: Option<Arc<rustls::ServerConfig>>,
}

impl std::fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let on = |b| if b { "tls" } else { "plain" };
        write!(f, "PeerTls(client {}, server {})", on(self.client.is_some()), on(self.server.is_some()))
    }
}

/// A connection to another sheep.
pub enum Stream {
    /// TCP in clear.
    Plain(TcpStream),
    /// We connected.
    Client(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// We accepted.
    Server(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

impl Stream {
    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(s) => s,
            Self::Client(s) => s.get_ref().0,
            Self::Server(s) => s.get_ref().0,
        }
    }
    /// Address of the other end.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().peer_addr()
    }
    /// Encrypted and authenticated?
    pub fn is_tls(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }
}

macro_rules! delegate {
    ($self:ident, $s:ident => $e:expr) => {
        match $self.get_mut() {
            Stream::Plain($s) => {
                let $s = Pin::new($s);
                $e
            }
            Stream::Client($s) => {
                let $s = Pin::new($s.as_mut());
                $e
            }
            Stream::Server($s) => {
                let $s = Pin::new($s.as_mut());
                $e
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self, s => s.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, s => s.poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, s => s.poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, s => s.poll_shutdown(cx))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, s => s.poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(s) => s.is_write_vectored(),
            Self::Client(s) => s.is_write_vectored(),
            Self::Server(s) => s.is_write_vectored(),
        }
    }
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} took longer than {SETUP_TIMEOUT:?}"))
}

/// No delay; what was sent and is not acknowledged by the other host for `SILENCE` ends the connection (the kernel alone would try for a quarter of an hour, and
/// ever more rarely); and keepalive, so that a vanished host is noticed even on a link nobody writes to.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(2))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    sockopt::set_tcp_user_timeout(stream, SILENCE.as_millis() as u32)?;
    Ok(())
}

/// Connect to one address, send the preface, and shake hands when `client` is given.
pub async fn connect_addr(
    addr: SocketAddr,
    kind: LinkKind,
    client: Option<&Arc<rustls::ClientConfig>>,
) -> io::Result<Stream> {
    let tcp = tokio::time::timeout(SETUP_TIMEOUT, TcpStream::connect(addr))
        .await
        .map_err(|_| timed_out("connect"))??;
    tune(&tcp)?;
    let setup = async {
        let mut tcp = tcp;
        tcp.write_all(&encode_preface(kind)).await?;
        match client {
            None => Ok(Stream::Plain(tcp)),
            Some(cfg) => Ok(Stream::Client(Box::new(client_tls(tcp, cfg).await?))),
        }
    };
    tokio::time::timeout(SETUP_TIMEOUT, setup).await.map_err(|_| timed_out("handshake"))?
}

/// Connect to `host:port` (a name is resolved, its addresses are tried in order).
pub async fn connect(
    addr: &str,
    kind: LinkKind,
    client: Option<&Arc<rustls::ClientConfig>>,
) -> io::Result<Stream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{addr} has no address"));
    for a in tokio::net::lookup_host(addr).await? {
        match connect_addr(a, kind, client).await {
            Ok(s) => return Ok(s),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Anything that bytes go through both ways.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> ByteStream for T {}

/// Connect to `target` by way of the sheep at `addr`, which passes the bytes on. With credentials the handshake inside is with `target` itself: the one in between sees
/// nothing and can change nothing.
pub async fn connect_through(
    addr: &str,
    target: NodeId,
    kind: LinkKind,
    client: Option<&Arc<rustls::ClientConfig>>,
) -> io::Result<Box<dyn ByteStream>> {
    let mut outer = connect(addr, LinkKind::Relay, client).await?;
    let setup = async {
        outer.write_all(&target.0.to_le_bytes()).await?;
        outer.flush().await?;
        let answer = outer.read_u8().await?;
        if answer != RELAYED {
            let why = format!("{addr} does not reach node {} either", target.short());
            return Err(io::Error::new(io::ErrorKind::HostUnreachable, why));
        }
        outer.write_all(&encode_preface(kind)).await?;
        outer.flush().await?;
        match client {
            None => Ok(Box::new(outer) as Box<dyn ByteStream>),
            Some(cfg) => Ok(Box::new(client_tls(outer, cfg).await?) as Box<dyn ByteStream>),
        }
    };
    tokio::time::timeout(SETUP_TIMEOUT * 2, setup).await.map_err(|_| timed_out("relay"))?
}

/// The connecting side's handshake.
async fn client_tls<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    client: &Arc<rustls::ClientConfig>,
) -> io::Result<tokio_rustls::client::TlsStream<S>> {
    let name = ServerName::try_from(TLS_NAME).map_err(io::Error::other)?;
    tokio_rustls::TlsConnector::from(client.clone()).connect(name, stream).await
}

/// The accepting side's handshake, after the preface. Plaintext when `server` is `None`.
pub async fn server_tls(tcp: TcpStream, server: Option<&Arc<rustls::ServerConfig>>) -> io::Result<Stream> {
    match server {
        None => Ok(Stream::Plain(tcp)),
        Some(cfg) => {
            let accept = tokio_rustls::TlsAcceptor::from(cfg.clone()).accept(tcp);
            let tls =
                tokio::time::timeout(SETUP_TIMEOUT, accept).await.map_err(|_| timed_out("handshake"))??;
            Ok(Stream::Server(Box::new(tls)))
        }
    }
}

pub(crate) async fn read_preface(tcp: &mut TcpStream) -> io::Result<LinkKind> {
    let mut b = [0u8; PREFACE_LEN];
    tokio::time::timeout(SETUP_TIMEOUT, tcp.read_exact(&mut b)).await.map_err(|_| timed_out("preface"))??;
    decode_preface(b).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preface_bytes_are_frozen() {
        assert_eq!(&encode_preface(LinkKind::Data), b"SHPD\x01\x00\x01\x00");
        assert_eq!(&encode_preface(LinkKind::Control), b"SHPD\x01\x00\x02\x00");
        assert_eq!(&encode_preface(LinkKind::Relay), b"SHPD\x01\x00\x03\x00");
    }

    #[test]
    fn bad_prefaces_say_why() {
        for kind in [LinkKind::Data, LinkKind::Control, LinkKind::Relay] {
            assert_eq!(decode_preface(encode_preface(kind)), Ok(kind));
        }
        assert_eq!(decode_preface(*b"GET / HT"), Err(PrefaceError::Magic));
        assert_eq!(decode_preface(*b"SHPD\x02\x00\x01\x00"), Err(PrefaceError::Version(2)));
        assert_eq!(decode_preface(*b"SHPD\x01\x00\x09\x00"), Err(PrefaceError::Kind(9)));
    }
}
