//! Sockets: what may be bound, how, and the accept loop.

use super::{Server, TlsPolicy, greet};
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener};

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAt {
    /// Port 0 takes any free one.
    Tcp(SocketAddr),
    /// A socket file, readable and writable by owner and group. A stale one is replaced, a live one is not.
    Unix(PathBuf),
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Where.
    pub at: ListenAt,
    /// Encryption on it.
    pub tls: TlsPolicy,
}

fn invalid<T>(why: String) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

impl Listen {
    /// Would this break the rule that plain text stays on this host?
    pub(super) fn check(&self, have_tls: bool, insecure: bool) -> io::Result<()> {
        if self.tls != TlsPolicy::Off && !have_tls {
            return invalid(format!("NBD on {}: TLS needs a certificate, and none is configured", self.at));
        }
        match &self.at {
            ListenAt::Tcp(a) if !a.ip().is_loopback() && self.tls != TlsPolicy::Required && !insecure => {
                invalid(format!(
                    "NBD on {a} would let anyone on the network read and write every volume: \
                     configure credentials (TLS), listen on loopback or a unix socket, or ask for --insecure by name"
                ))
            }
            _ => Ok(()),
        }
    }
}

impl std::fmt::Display for ListenAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(a) => a.fmt(f),
            Self::Unix(p) => p.display().fmt(f),
        }
    }
}

/// A bound listener.
pub(super) struct Bound {
    socket: Socket,
    tls: TlsPolicy,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Bound {
    pub(super) fn bind(l: &Listen) -> io::Result<Self> {
        let in_words = |e: io::Error| io::Error::new(e.kind(), format!("NBD cannot listen on {}: {e}", l.at));
        let socket = match &l.at {
            ListenAt::Tcp(addr) => Socket::Tcp(bind_tcp(*addr).map_err(in_words)?),
            ListenAt::Unix(path) => Socket::Unix(bind_unix(path).map_err(in_words)?, path.clone()),
        };
        Ok(Self { socket, tls: l.tls })
    }

    pub(super) fn tcp_addr(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(l) => l.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }

    pub(super) fn unix_path(&self) -> Option<PathBuf> {
        match &self.socket {
            Socket::Tcp(_) => None,
            Socket::Unix(_, p) => Some(p.clone()),
        }
    }
}

fn bind_tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    // The standard library sets SO_REUSEADDR, so a restart does not wait for old connections to expire.
    let l = std::net::TcpListener::bind(addr)?;
    l.set_nonblocking(true)?;
    TcpListener::from_std(l)
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let stale = match std::fs::symlink_metadata(path) {
        Ok(m) if !m.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is not a socket is there"));
        }
        Ok(_) => std::os::unix::net::UnixStream::connect(path).is_err(),
        Err(_) => false,
    };
    if stale {
        std::fs::remove_file(path)?;
    }
    let l = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
    l.set_nonblocking(true)?;
    UnixListener::from_std(l)
}

/// Accept for ever; ends by being aborted.
pub(super) async fn accept(server: Rc<Server>, bound: Bound) {
    loop {
        let accepted = match &bound.socket {
            Socket::Tcp(l) => l.accept().await.map(|(s, peer)| {
                tune(&s);
                admit(&server, s, bound.tls, peer.to_string());
            }),
            Socket::Unix(l, _) => l.accept().await.map(|(s, _)| admit(&server, s, bound.tls, "unix".into())),
        };
        if let Err(e) = accepted {
            // Out of descriptors, most likely: other connections have to end first.
            tracing::warn!(error = %e, "NBD accept failed, next try in 100 ms");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Small replies at once, and a peer that vanished is noticed within a minute or so.
fn tune(s: &TcpStream) {
    use rustix::net::sockopt;
    let _ = s.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(s, true);
    let _ = sockopt::set_tcp_keepidle(s, Duration::from_secs(30));
    let _ = sockopt::set_tcp_keepintvl(s, Duration::from_secs(10));
    let _ = sockopt::set_tcp_keepcnt(s, 3);
}

/// The client has closed its side, also when nobody has read that far: the kernel knows.
fn hung_up(socket: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&at_once)).is_ok() && !fds[0].revents().is_empty()
}

fn admit<S: greet::Stream + AsFd>(server: &Rc<Server>, stream: S, tls: TlsPolicy, peer: String) {
    if server.registry.len() >= server.limits.connections {
        tracing::warn!(peer, limit = server.limits.connections, "NBD connection refused: too many");
        return;
    }
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else {
        tracing::warn!(peer, "NBD connection refused: no file descriptor is left");
        return;
    };
    let conn = server.registry.add(peer);
    let ear: Rc<dyn Fn() -> bool> = Rc::new(move || hung_up(&socket));
    let task = tokio::task::spawn_local(greet::connection(server.clone(), stream, tls, conn.clone(), ear));
    server.registry.set_abort(conn.id, task.abort_handle());
}
