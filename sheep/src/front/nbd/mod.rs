//! NBD server on sockets, over whatever [`VolumeSource`] it is given.
//!
//! ```text
//!   Listener task ─accept─► connection task: greet (handshake, TLS) ─► session (requests) ─► Volume::close ─► end
//! ```
//!
//! What holds:
//! * One task per connection and none per request: requests of a connection run concurrently inside its task.
//! * Bounded: connections, requests and bytes in flight per connection, bytes in flight of all of them ([`Limits`]).
//!   At a limit the server stops taking requests; TCP does the rest.
//! * A volume is closed only when every request of the connection has ended, however the connection ended.
//! * Nothing beyond loopback and unix sockets is served in plain text, unless `insecure` was asked for.
//!
//! Owner: [`NbdHandle`]. `shutdown` drains (requests under way are answered, new ones are not taken), then aborts what is left.

mod error;
mod greet;
mod inbound;
mod listen;
mod outbound;
mod session;
pub mod stats;

use crate::volume::VolumeSource;
pub use listen::{Listen, ListenAt};
pub use sheepdog_nbd::server::TlsPolicy;
use stats::{ConnectionRow, Registry};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Caps of one server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections, all listeners together. Beyond it new ones are closed at once.
    pub connections: usize,
    /// Requests in flight per connection. qemu and the kernel keep 16 to 128.
    pub requests: usize,
    /// Bytes in flight per connection: payloads received and data not yet sent. One request is always allowed.
    pub connection_bytes: usize,
    /// Bytes in flight of all connections. One request per connection is always allowed.
    pub total_bytes: usize,
    /// A client that has not completed its next option after so long, before it has attached an export, is disconnected.
    pub handshake_idle: Duration,
    /// For the whole handshake, the time it takes to open the export not counted.
    pub handshake: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            requests: 256,
            connection_bytes: 64 << 20,
            total_bytes: 512 << 20,
            handshake_idle: Duration::from_secs(60),
            handshake: Duration::from_secs(600),
        }
    }
}

/// What to serve on and how.
pub struct NbdConfig {
    /// Sockets.
    pub listen: Vec<Listen>,
    /// Certificate and client verification, for listeners that allow or require TLS.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Serve plain text beyond loopback all the same.
    pub insecure: bool,
    /// Caps.
    pub limits: Limits,
}

/// The parts every connection shares.
struct Server {
    source: Rc<dyn VolumeSource>,
    tls: Option<tokio_rustls::TlsAcceptor>,
    limits: Limits,
    registry: Registry,
    budget: Budget,
    /// Stop taking requests.
    drain: CancellationToken,
}

/// Starts servers.
pub struct NbdServer;

impl NbdServer {
    /// Bind every listener and serve. Must run inside a `LocalSet`; tasks live on this thread.
    ///
    /// # Errors
    /// Binding failed, or the configuration would serve plain text to the network.
    pub fn start(cfg: NbdConfig, source: Rc<dyn VolumeSource>) -> io::Result<NbdHandle> {
        for l in &cfg.listen {
            l.check(cfg.tls.is_some(), cfg.insecure)?;
        }
        let bound = cfg.listen.iter().map(listen::Bound::bind).collect::<io::Result<Vec<_>>>()?;
        let server = Rc::new(Server {
            source,
            tls: cfg.tls.map(Into::into),
            limits: cfg.limits,
            registry: Registry::default(),
            budget: Budget { limit: cfg.limits.total_bytes, used: Cell::new(0), waiting: RefCell::default() },
            drain: CancellationToken::new(),
        });
        let tcp = bound.iter().filter_map(listen::Bound::tcp_addr).collect();
        let unix = bound.iter().filter_map(listen::Bound::unix_path).collect();
        let acceptors =
            bound.into_iter().map(|b| tokio::task::spawn_local(listen::accept(server.clone(), b))).collect();
        Ok(NbdHandle { server, acceptors, tcp, unix })
    }
}

/// A running server. Dropping it aborts everything.
pub struct NbdHandle {
    server: Rc<Server>,
    acceptors: Vec<JoinHandle<()>>,
    tcp: Vec<SocketAddr>,
    unix: Vec<PathBuf>,
}

impl NbdHandle {
    /// TCP addresses bound, in the order of the configuration; port 0 is resolved.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.tcp
    }

    /// Unix sockets bound.
    pub fn unix_paths(&self) -> &[PathBuf] {
        &self.unix
    }

    /// Who is connected, in order of arrival.
    pub fn connections(&self) -> Vec<ConnectionRow> {
        self.server.registry.connections()
    }

    /// Counters per export since start, by name.
    pub fn stats(&self) -> Vec<(String, Rc<stats::ExportStats>)> {
        self.server.registry.exports()
    }

    /// Stop: accept nobody, take no requests, answer those under way and close their volumes. What is not done after
    /// `grace` is aborted. Returns how many connections were aborted.
    pub async fn shutdown(mut self, grace: Duration) -> usize {
        for a in self.acceptors.drain(..) {
            a.abort();
            // Joined, so that its listener is closed when we return.
            let _ = a.await;
        }
        // At once, so that a successor may bind the same path while we drain.
        self.remove_socket_files();
        self.server.drain.cancel();
        let _ = tokio::time::timeout(grace, self.server.registry.empty()).await;
        self.server.registry.abort_all()
    }

    fn remove_socket_files(&mut self) {
        for path in self.unix.drain(..) {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for NbdHandle {
    fn drop(&mut self) {
        self.acceptors.iter().for_each(JoinHandle::abort);
        self.server.registry.abort_all();
        self.remove_socket_files();
    }
}

/// Bytes in flight of all connections.
struct Budget {
    limit: usize,
    used: Cell<usize>,
    /// Connections, by number, that wait for room.
    waiting: RefCell<BTreeMap<u64, Waker>>,
}

impl Budget {
    /// A connection's share went from `before` to `now` bytes.
    fn adjust(&self, before: usize, now: usize) {
        self.used.set(self.used.get() + now - before);
        if now < before && self.has_room() {
            self.waiting.take().into_values().for_each(Waker::wake);
        }
    }

    fn has_room(&self) -> bool {
        self.used.get() < self.limit
    }

    /// Wake this connection when there is room again.
    fn wait(&self, id: u64, waker: &Waker) {
        self.waiting.borrow_mut().insert(id, waker.clone());
    }

    /// A connection has ended.
    fn leave(&self, id: u64, share: usize) {
        self.waiting.borrow_mut().remove(&id);
        self.adjust(share, 0);
    }
}
