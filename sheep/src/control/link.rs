//! Control links that we open: one per peer, multiplexed, re-opened on demand.
//!
//! A `Link` owns one task that writes queued requests and hands answers to their askers. It ends when the connection does (its askers get
//! an error at once), when it is dropped from the pool, or with the pool's token. Bounded: `QUEUE` requests waiting to be written,
//! `IN_FLIGHT` unanswered.

use super::rpc::{self, Hello, Kind, PeerInfo, Request, Response, Welcome};
use crate::transport::{self, LinkKind, PeerTls, Stream};
use sheepdog_cluster::NodeAddr;
use sheepdog_proto::{ClusterId, NodeId};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const QUEUE: usize = 64;
const IN_FLIGHT: usize = 256;
/// Small requests are gathered into one write up to this many bytes.
const GATHER: usize = 64 << 10;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection, or it broke. The request may or may not have been carried out.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The deadline passed.
    #[error("no answer in {0:?}")]
    Timeout(Duration),
    /// The peer does not want this link.
    #[error("{0}")]
    Refused(String),
    /// Nobody knows where that node is.
    #[error("the address of node {} is not known", .0.short())]
    NoAddress(NodeId),
}

impl CallError {
    /// Nobody listens at the address.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused)
    }
}

type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Response>>>>;

/// An open link.
pub struct Link {
    /// Who answered the hello.
    pub peer: PeerInfo,
    /// Its cluster.
    pub cluster: Option<ClusterId>,
    tx: mpsc::Sender<Vec<u8>>,
    pending: Pending,
    next: AtomicU64,
    slots: Semaphore,
    closed: CancellationToken,
}

impl Link {
    /// Connect and say hello.
    pub async fn open(
        addr: &str,
        tls: &PeerTls,
        hello: Hello,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Arc<Self>, CallError> {
        let stream = transport::connect(addr, LinkKind::Control, tls.client.as_ref()).await?;
        let (tx, rx) = mpsc::channel(QUEUE);
        let pending = Pending::default();
        let closed = stop.child_token();
        tracker.spawn(run(stream, rx, pending.clone(), closed.clone()));
        let me = hello.me.clone();
        let mut link = Self {
            peer: me,
            cluster: None,
            tx,
            pending,
            next: AtomicU64::new(1),
            slots: Semaphore::new(IN_FLIGHT),
            closed,
        };
        match link.call(&Request::Hello(hello), transport::SETUP_TIMEOUT).await {
            Ok(Response::Welcome(Welcome::Ok { me, cluster })) => {
                link.peer = me;
                link.cluster = cluster;
                Ok(Arc::new(link))
            }
            Ok(Response::Welcome(Welcome::Refused(why)) | Response::Error(why)) => {
                Err(CallError::Refused(why))
            }
            Ok(Response::Welcome(Welcome::WrongNode(p))) => {
                Err(CallError::Refused(format!("{addr} is node {} now", p.node.short())))
            }
            Ok(_) => Err(CallError::Refused(format!("{addr} does not answer a hello as a sheep does"))),
            Err(e) => Err(e),
        }
    }
    /// One request, one answer.
    pub async fn call(&self, request: &Request, timeout: Duration) -> Result<Response, CallError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let frame = rpc::encode(Kind::Request, id, request)?;
        let (tx, rx) = oneshot::channel();
        let guard = Forget { pending: &self.pending, id };
        let work = async {
            let _slot = self.slots.acquire().await.map_err(|_| broken())?;
            self.pending.lock().expect("no panic under this lock").insert(id, tx);
            // After the insert: a link that closes in between clears what it finds.
            if self.closed.is_cancelled() || self.tx.send(frame).await.is_err() {
                return Err(broken());
            }
            rx.await.map_err(|_| broken())
        };
        let r = tokio::time::timeout(timeout, work).await;
        drop(guard);
        Ok(r.map_err(|_| CallError::Timeout(timeout))??)
    }
    /// The connection is gone?
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }
    /// Completes when the connection is gone.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the control link broke")
}

struct Forget<'a> {
    pending: &'a Pending,
    id: u64,
}
impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.pending.lock().expect("no panic under this lock").remove(&self.id);
    }
}

/// Write what is queued, gathering small frames. Shared by both sides of a link.
pub(crate) async fn write_frames(
    w: &mut (impl tokio::io::AsyncWrite + Unpin),
    rx: &mut mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    while let Some(mut frame) = rx.recv().await {
        while frame.len() < GATHER {
            match rx.try_recv() {
                Ok(more) => frame.extend_from_slice(&more),
                Err(_) => break,
            }
        }
        w.write_all(&frame).await?;
        w.flush().await?;
    }
    Ok(())
}

async fn run(stream: Stream, mut rx: mpsc::Receiver<Vec<u8>>, pending: Pending, closed: CancellationToken) {
    let (r, mut w) = tokio::io::split(stream);
    let mut r = BufReader::new(r);
    let read = async {
        while let Some((kind, id, body)) = rpc::read_frame(&mut r).await? {
            if kind != Kind::Response {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a request on a link that we opened"));
            }
            let asker = pending.lock().expect("no panic under this lock").remove(&id);
            if let Some(tx) = asker {
                // An asker that gave up is not an error.
                let _ = tx.send(rpc::parse(&body)?);
            }
        }
        Ok(())
    };
    let r = tokio::select! {
        () = closed.cancelled() => Ok(()),
        r = read => r,
        r = write_frames(&mut w, &mut rx) => r,
    };
    if let Err(error) = r {
        tracing::debug!(%error, "control link ended");
    }
    closed.cancel();
    pending.lock().expect("no panic under this lock").clear();
}

struct Heard {
    addr: NodeAddr,
    incarnation: u64,
}

/// Where nodes are: what the state says, unless the node itself said something newer.
#[derive(Default)]
pub struct AddressBook {
    heard: Mutex<BTreeMap<NodeId, Heard>>,
    committed: Mutex<BTreeMap<NodeId, (NodeAddr, u64)>>,
}

/// Most addresses that are remembered from hellos alone.
const MAX_HEARD: usize = 8192;

impl AddressBook {
    /// A node introduced itself on a link.
    pub fn hear(&self, p: &PeerInfo) {
        let mut heard = self.heard.lock().expect("no panic under this lock");
        if heard.len() < MAX_HEARD || heard.contains_key(&p.node) {
            heard.insert(p.node, Heard { addr: p.addr.clone(), incarnation: p.incarnation });
        }
    }
    /// The state has this now.
    pub fn commit(&self, nodes: impl Iterator<Item = (NodeId, NodeAddr, u64)>) {
        let new: BTreeMap<_, _> = nodes.map(|(n, a, i)| (n, (a, i))).collect();
        let mut heard = self.heard.lock().expect("no panic under this lock");
        let mut committed = self.committed.lock().expect("no panic under this lock");
        // What was heard from a process is outdated when the state gets to know another process than before. Process 0 is what a
        // book read from disk says: then nothing was known before.
        heard.retain(|n, h| match (committed.get(n), new.get(n)) {
            (Some((_, before)), Some((_, now))) => *before == 0 || before == now || h.incarnation == *now,
            _ => true,
        });
        *committed = new;
    }
    /// Address of a node.
    pub fn get(&self, node: NodeId) -> Option<NodeAddr> {
        let heard = self.heard.lock().expect("no panic under this lock").get(&node).map(|h| h.addr.clone());
        heard.or_else(|| {
            let c = self.committed.lock().expect("no panic under this lock");
            c.get(&node).map(|(a, _)| a.clone())
        })
    }
}

/// Host and peer port as one string.
pub fn host_port(a: &NodeAddr) -> String {
    match a.host.contains(':') && !a.host.starts_with('[') {
        true => format!("[{}]:{}", a.host, a.peer_port),
        false => format!("{}:{}", a.host, a.peer_port),
    }
}

type Slot = Arc<tokio::sync::Mutex<Option<Arc<Link>>>>;

/// The links of one sheep.
pub struct LinkPool {
    slots: Mutex<BTreeMap<NodeId, Slot>>,
    /// Processes met at their address: (incarnation, address).
    met: Arc<Mutex<BTreeMap<NodeId, (u64, NodeAddr)>>>,
    /// Test switch: no packet leaves or enters.
    cut: watch::Sender<bool>,
    pub(crate) book: AddressBook,
    tls: PeerTls,
    broken: mpsc::Sender<NodeId>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl LinkPool {
    /// `broken` hears of every link that ended.
    pub fn new(
        tls: PeerTls,
        broken: mpsc::Sender<NodeId>,
        tracker: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self {
            slots: Mutex::default(),
            met: Arc::default(),
            cut: watch::Sender::new(false),
            book: AddressBook::default(),
            tls,
            broken,
            tracker,
            stop,
        }
    }
    /// Open a link to an address that is not kept.
    pub async fn open(&self, addr: &str, hello: Hello) -> Result<Arc<Link>, CallError> {
        if self.is_cut() {
            return Err(CallError::Timeout(Duration::ZERO));
        }
        Link::open(addr, &self.tls, hello, &self.tracker, &self.stop).await
    }
    /// Ask a node.
    pub async fn call(
        &self,
        node: NodeId,
        hello: impl FnOnce() -> Hello,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, CallError> {
        let work = async {
            let link = self.link(node, hello).await?;
            link.call(request, timeout).await
        };
        tokio::time::timeout(timeout, work).await.map_err(|_| CallError::Timeout(timeout))?
    }
    /// The open link, or a new one. Opening takes several round trips and goes on when the caller's deadline passes: otherwise a peer that
    /// is slower than the shortest deadlines could never be reached again.
    async fn link(&self, node: NodeId, hello: impl FnOnce() -> Hello) -> Result<Arc<Link>, CallError> {
        let slot = self.slots.lock().expect("no panic under this lock").entry(node).or_default().clone();
        let mut slot = slot.lock_owned().await;
        if self.is_cut() {
            *slot = None;
            return Err(CallError::Timeout(Duration::ZERO));
        }
        if let Some(link) = slot.as_ref().filter(|l| !l.is_closed()) {
            return Ok(link.clone());
        }
        *slot = None;
        let addr = self.book.get(node).ok_or(CallError::NoAddress(node))?;
        let (tls, hello, met, cut) = (self.tls.clone(), hello(), self.met.clone(), self.cut.subscribe());
        let (tracker, stop, suspects) = (self.tracker.clone(), self.stop.clone(), self.broken.clone());
        let opening = self.tracker.spawn(async move {
            let link = Link::open(&host_port(&addr), &tls, hello, &tracker, &stop).await?;
            if *cut.borrow() {
                return Err(CallError::Timeout(Duration::ZERO));
            }
            met.lock()
                .expect("no panic under this lock")
                .insert(link.peer.node, (link.peer.incarnation, addr));
            let closed = link.closed.clone();
            tracker.spawn(async move {
                closed.cancelled().await;
                if !stop.is_cancelled() {
                    // A full queue means that many suspicions are being looked at already.
                    let _ = suspects.try_send(node);
                }
            });
            *slot = Some(link.clone());
            Ok(link)
        });
        opening.await.map_err(|_| broken())?
    }
    /// This process answered at this address.
    pub fn meet(&self, peer: &PeerInfo, at: NodeAddr) {
        self.met.lock().expect("no panic under this lock").insert(peer.node, (peer.incarnation, at));
    }
    /// Was this very process met at the address that the book has?
    pub fn has_met(&self, node: NodeId, incarnation: u64) -> bool {
        let met = self.met.lock().expect("no panic under this lock").get(&node).cloned();
        met.is_some_and(|(i, a)| i == incarnation && self.book.get(node) == Some(a))
    }
    /// Close the link to a node (it moved).
    pub fn forget(&self, node: NodeId) {
        self.slots.lock().expect("no panic under this lock").remove(&node);
    }
    /// Cut off from, or joined to, the network: for tests of partitions.
    pub fn set_cut(&self, cut: bool) {
        self.cut.send_replace(cut);
        if cut {
            self.slots.lock().expect("no panic under this lock").clear();
        }
    }
    /// Cut off?
    pub fn is_cut(&self) -> bool {
        *self.cut.borrow()
    }
    /// Completes when cut off.
    pub async fn cut(&self) {
        // The sender lives as long as the pool.
        let _ = self.cut.subscribe().wait_for(|c| *c).await;
    }
}
