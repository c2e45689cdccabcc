//! Where clients come in: a unix socket, or a port of loopback. Nothing is encrypted here, so nothing else is offered.

use crate::failure::Failure;
use std::fmt;
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};

/// Where to listen, as it is written on a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket file, for its owner and group.
    Unix(PathBuf),
    /// Loopback. Port 0 takes a free one.
    Tcp(SocketAddr),
}

impl Address {
    /// A path (with a `/` in it), `ADDR:PORT`, or `PORT`. For clap.
    ///
    /// # Errors
    /// A sentence: it is none of these, or other hosts could connect.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        let addr: SocketAddr = match text.parse::<u16>() {
            Ok(port) => ([127, 0, 0, 1], port).into(),
            Err(_) => {
                text.parse().map_err(|_| "write the path of a socket (./nbd.sock), PORT, or ADDRESS:PORT")?
            }
        };
        if !addr.ip().is_loopback() {
            return Err("it is served without encryption, to this host only: listen on 127.0.0.1, [::1] or a socket, and let ssh carry it further".into());
        }
        Ok(Self::Tcp(addr))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(p) => p.display().fmt(f),
            Self::Tcp(a) => a.fmt(f),
        }
    }
}

/// A connection of either kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// See the module. A socket file goes away with it.
pub struct Listener {
    socket: Socket,
    at: Address,
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.at.fmt(f)
    }
}

impl Listener {
    /// Bind. A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// The address is taken or cannot be had.
    pub async fn bind(at: &Address) -> Result<Self, Failure> {
        let fail = |e: io::Error| {
            let f = Failure::io(format!("cannot listen on {at}"), &e);
            match e.kind() {
                io::ErrorKind::AddrInUse => {
                    f.hint("somebody listens there: end that, or say another --listen")
                }
                _ => f,
            }
        };
        match at {
            Address::Unix(path) => {
                let listener = bind_unix(path).await.map_err(fail)?;
                Ok(Self { socket: Socket::Unix(listener), at: at.clone() })
            }
            Address::Tcp(addr) => {
                let listener = TcpListener::bind(addr).await.map_err(fail)?;
                let bound = listener.local_addr().map_err(fail)?;
                Ok(Self { socket: Socket::Tcp(listener), at: Address::Tcp(bound) })
            }
        }
    }

    /// The next client.
    pub(super) async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match &self.socket {
            Socket::Unix(l) => Ok(Box::new(l.accept().await?.0)),
            Socket::Tcp(l) => {
                let stream = l.accept().await?.0;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
        }
    }

    /// How a client names it, as NBD programs take it.
    pub fn uri(&self, name: &str) -> String {
        let name: String = name.bytes().map(percent).collect();
        match &self.at {
            Address::Unix(path) => {
                let path: String = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
                    .iter()
                    .map(|b| if *b == b'/' { "/".into() } else { percent(*b) })
                    .collect();
                format!("nbd+unix:///{name}?socket={path}")
            }
            Address::Tcp(addr) => format!("nbd://{addr}/{name}"),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.at {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn percent(b: u8) -> String {
    match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).into(),
        b => format!("%{b:02X}"),
    }
}

async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(m) if !m.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there"));
        }
        // One whose process was killed refuses; one that is served does not.
        Ok(_) if UnixStream::connect(path).await.is_err() => std::fs::remove_file(path)?,
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_is_served() {
        let tcp = |a: &str| Ok(Address::Tcp(a.parse().expect("an address")));
        for (text, want) in [
            ("10809", tcp("127.0.0.1:10809")),
            ("127.0.0.1:0", tcp("127.0.0.1:0")),
            ("[::1]:5", tcp("[::1]:5")),
            ("./s", Ok(Address::Unix("./s".into()))),
        ] {
            assert_eq!(Address::parse(text), want);
        }
        for (text, why) in [
            ("0.0.0.0:1", "without encryption"),
            ("10.1.2.3:1", "without encryption"),
            ("[::]:1", "without encryption"),
            ("sock", "ADDRESS:PORT"),
            ("", "ADDRESS:PORT"),
            ("99999", "ADDRESS:PORT"),
        ] {
            let said = Address::parse(text).expect_err(text);
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_was_left_behind_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a b#c");
        let at = Address::Unix(path.clone());
        let first = Listener::bind(&at).await.expect("binds");
        assert!(first.uri("x@y").starts_with("nbd+unix:///x%40y?socket=/"), "{}", first.uri("x@y"));
        assert!(first.uri("").ends_with("/a%20b%23c"));
        assert!(Listener::bind(&at).await.is_err(), "somebody listens there");
        drop(first);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        assert!(path.exists(), "left behind");
        drop(Listener::bind(&at).await.expect("replaces it"));
        std::fs::write(&path, "a file").expect("writes");
        let refused = Listener::bind(&at).await.err().map(|f| f.message).unwrap_or_default();
        assert!(refused.contains("no socket"), "{refused}");
    }
}
