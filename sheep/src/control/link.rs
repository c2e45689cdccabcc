//! Control links that we open: one per peer, multiplexed, re-opened on demand.
//!
//! A `Link` owns one task that writes queued requests and hands answers to their askers. It ends when the connection does (its askers get
//! an error at once), when it is dropped from the pool, or with the pool's token. Bounded: `QUEUE` requests waiting to be written,
//! `IN_FLIGHT` unanswered.
//!
//! A link that falls silent, or that goes through a third sheep, is used while a better one is looked for (`way`).

use super::rpc::{self, Hello, Kind, PeerInfo, Request, Response, Welcome};
use super::way::{Apart, Way};
use crate::transport::{self, ByteStream, LinkKind, PeerTls, around};
use rand::seq::IteratorRandom as _;
use sheepdog_cluster::NodeAddr;
use sheepdog_proto::{ClusterId, NodeId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
/// A request that was not answered for so long, while nothing else came either, makes its link doubtful. Losses and the slowness of one request do not.
const DOUBT: Duration = Duration::from_secs(1);

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
    /// Answers that have come.
    heard: Arc<AtomicU64>,
    /// As many had come when it was last found silent; `u64::MAX`: never.
    doubted: AtomicU64,
    /// Another link is being looked for.
    searched: AtomicBool,
    /// The sheep in between.
    through: Option<NodeId>,
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
        Self::greet(Box::new(stream), addr, None, hello, tracker, stop).await
    }
    /// Say hello on a connection to `addr`, which goes `through` another sheep or not.
    pub(super) async fn greet(
        stream: Box<dyn ByteStream>,
        addr: &str,
        through: Option<NodeId>,
        hello: Hello,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Arc<Self>, CallError> {
        let (tx, rx) = mpsc::channel(QUEUE);
        let (pending, heard) = (Pending::default(), Arc::<AtomicU64>::default());
        let closed = stop.child_token();
        tracker.spawn(run(stream, rx, pending.clone(), heard.clone(), closed.clone()));
        let me = hello.me.clone();
        let mut link = Self {
            peer: me,
            cluster: None,
            tx,
            pending,
            next: AtomicU64::new(1),
            slots: Semaphore::new(IN_FLIGHT),
            heard,
            doubted: AtomicU64::new(u64::MAX),
            searched: AtomicBool::new(false),
            through,
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
        let heard = self.heard.load(Ordering::Relaxed);
        let r = tokio::time::timeout(timeout, work).await;
        drop(guard);
        if r.is_err() && timeout >= DOUBT {
            self.doubted.store(heard, Ordering::Relaxed);
        }
        Ok(r.map_err(|_| CallError::Timeout(timeout))??)
    }
    /// Silent since a request was sent that should have been answered.
    pub fn is_doubtful(&self) -> bool {
        self.doubted.load(Ordering::Relaxed) == self.heard.load(Ordering::Relaxed)
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

pub(super) fn broken() -> io::Error {
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

async fn run(
    stream: Box<dyn ByteStream>,
    mut rx: mpsc::Receiver<Vec<u8>>,
    pending: Pending,
    heard: Arc<AtomicU64>,
    closed: CancellationToken,
) {
    let (r, mut w) = tokio::io::split(stream);
    let mut r = BufReader::new(r);
    let read = async {
        while let Some((kind, id, body)) = rpc::read_frame(&mut r).await? {
            if kind != Kind::Response {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a request on a link that we opened"));
            }
            heard.fetch_add(1, Ordering::Relaxed);
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

/// What the state says of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    /// Address.
    pub addr: NodeAddr,
    /// Process; 0: not known.
    pub incarnation: u64,
    /// It is up.
    pub up: bool,
}

/// Where nodes are: what the state says, unless the node itself said something newer.
#[derive(Default)]
pub struct AddressBook {
    heard: Mutex<BTreeMap<NodeId, Heard>>,
    committed: Mutex<BTreeMap<NodeId, Known>>,
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
    pub fn commit(&self, nodes: impl Iterator<Item = (NodeId, Known)>) {
        let new: BTreeMap<NodeId, Known> = nodes.collect();
        let mut heard = self.heard.lock().expect("no panic under this lock");
        let mut committed = self.committed.lock().expect("no panic under this lock");
        // What was heard from a process is outdated when the state gets to know another process than before. Process 0 is what a
        // book read from disk says: then nothing was known before.
        heard.retain(|n, h| match (committed.get(n), new.get(n)) {
            (Some(Known { incarnation: before, .. }), Some(Known { incarnation: now, .. })) => {
                *before == 0 || before == now || h.incarnation == *now
            }
            _ => true,
        });
        *committed = new;
    }
    /// Address of a node.
    pub fn get(&self, node: NodeId) -> Option<NodeAddr> {
        let heard = self.heard.lock().expect("no panic under this lock").get(&node).map(|h| h.addr.clone());
        heard.or_else(|| {
            let c = self.committed.lock().expect("no panic under this lock");
            c.get(&node).map(|k| k.addr.clone())
        })
    }
    /// Who may know a way to a node that does not answer: a few of the others that are up, chosen by lot. Nobody for one that is not up.
    pub(super) fn thirds(&self, node: NodeId, me: NodeId) -> Vec<(NodeId, NodeAddr)> {
        let committed = self.committed.lock().expect("no panic under this lock");
        if !committed.get(&node).is_some_and(|k| k.up) {
            return Vec::new();
        }
        let others = committed.iter().filter(|(id, k)| **id != node && **id != me && k.up);
        others.map(|(id, k)| (*id, k.addr.clone())).choose_multiple(&mut rand::rng(), around::MOST)
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
type Met = Arc<Mutex<BTreeMap<NodeId, (u64, NodeAddr)>>>;

/// What a new link to a node needs, before and after.
#[derive(Clone)]
struct Keeper {
    way: Arc<Way>,
    met: Met,
    cut: watch::Receiver<bool>,
    suspects: mpsc::Sender<NodeId>,
}

impl Keeper {
    /// A link was opened, and is going to be the one of this slot.
    fn keep(&self, slot: &Slot, link: &Arc<Link>) -> Result<(), CallError> {
        if *self.cut.borrow() {
            return Err(CallError::Timeout(Duration::ZERO));
        }
        let way = &self.way;
        match link.through {
            // What others find at that address proves nothing here.
            Some(_) => self.straighten(slot, link),
            None => {
                let met = (link.peer.incarnation, way.addr.clone());
                self.met.lock().expect("no panic under this lock").insert(link.peer.node, met);
            }
        }
        let (closed, stop) = (link.closed.clone(), way.stop.clone());
        let (suspects, node) = (self.suspects.clone(), way.node);
        way.tracker.spawn(async move {
            closed.cancelled().await;
            if !stop.is_cancelled() {
                // A full queue means that many suspicions are being looked at already.
                let _ = suspects.try_send(node);
            }
        });
        Ok(())
    }
    /// Look for the direct way for as long as this link goes through another sheep.
    fn straighten(&self, slot: &Slot, link: &Arc<Link>) {
        let keeper = self.clone();
        let (slot, link, closed) = (Arc::downgrade(slot), Arc::downgrade(link), link.closed.clone());
        self.way.tracker.spawn(async move {
            let direct = async || {
                loop {
                    tokio::time::sleep(around::LOOK_AGAIN).await;
                    if let Ok(new) = keeper.way.direct().await {
                        return new;
                    }
                }
            };
            tokio::select! {
                () = closed.cancelled() => {}
                new = direct() => if let (Some(slot), Some(old)) = (slot.upgrade(), link.upgrade()) {
                    keeper.replace(&slot, &old, new, |_| true).await;
                }
            }
        });
    }
    /// Put a link in the place of one that is the slot's still, and for which that is so. Who waits for an answer on the old one gets it, if it comes.
    async fn replace(&self, slot: &Slot, old: &Arc<Link>, new: Arc<Link>, is: impl Fn(&Link) -> bool) {
        let mut now = slot.lock().await;
        if now.as_ref().is_some_and(|l| Arc::ptr_eq(l, old)) && is(old) && self.keep(slot, &new).is_ok() {
            tracing::info!(to = %self.way.node.short(), through = ?new.through.map(|n| n.short()), "another control link");
            *now = Some(new);
        }
    }
}

/// The links of one sheep.
pub struct LinkPool {
    slots: Mutex<BTreeMap<NodeId, Slot>>,
    /// Processes met at their address: (incarnation, address).
    met: Met,
    /// Test switch: no packet leaves or enters.
    cut: watch::Sender<bool>,
    /// Test switch: no way to these but through others.
    apart: Apart,
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
            apart: Apart::default(),
            book: AddressBook::default(),
            tls,
            broken,
            tracker,
            stop,
        }
    }
    /// Open a link to an address that is not kept.
    pub async fn open(&self, addr: &str, hello: Hello) -> Result<Arc<Link>, CallError> {
        let apart =
            hello.to.is_some_and(|n| self.apart.lock().expect("no panic under this lock").contains(&n));
        if self.is_cut() || apart {
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
        let all = self.slots.lock().expect("no panic under this lock").entry(node).or_default().clone();
        let mut slot = all.clone().lock_owned().await;
        if self.is_cut() {
            *slot = None;
            return Err(CallError::Timeout(Duration::ZERO));
        }
        if let Some(link) = slot.as_ref().filter(|l| !l.is_closed()) {
            if link.is_doubtful() && !link.searched.swap(true, Ordering::Relaxed) {
                let (keeper, old) = (self.keeper(node, hello())?, link.clone());
                self.tracker.spawn(async move {
                    let found = keeper.way.any().await;
                    old.searched.store(false, Ordering::Relaxed);
                    if let Ok(new) = found {
                        keeper.replace(&all, &old, new, Link::is_doubtful).await;
                    }
                });
            }
            return Ok(link.clone());
        }
        *slot = None;
        let keeper = self.keeper(node, hello())?;
        let opening = self.tracker.spawn(async move {
            let link = keeper.way.any().await?;
            keeper.keep(&all, &link)?;
            *slot = Some(link.clone());
            Ok(link)
        });
        opening.await.map_err(|_| broken())?
    }
    fn keeper(&self, node: NodeId, hello: Hello) -> Result<Keeper, CallError> {
        let addr = self.book.get(node).ok_or(CallError::NoAddress(node))?;
        let thirds = self.book.thirds(node, hello.me.node);
        let (tls, tracker, stop) = (self.tls.clone(), self.tracker.clone(), self.stop.clone());
        let way = Way { node, addr, thirds, tls, hello, apart: self.apart.clone(), tracker, stop };
        let (met, cut, suspects) = (self.met.clone(), self.cut.subscribe(), self.broken.clone());
        Ok(Keeper { way: Arc::new(way), met, cut, suspects })
    }
    /// Links that go through a third sheep now.
    pub fn relayed(&self) -> usize {
        let slots = self.slots.lock().expect("no panic under this lock");
        let relayed = |l: &Arc<Link>| l.through.is_some() && !l.is_closed();
        // One that is being opened is none yet.
        slots.values().filter(|s| s.try_lock().is_ok_and(|s| s.as_ref().is_some_and(relayed))).count()
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
    /// No direct connection to these nodes any more, while others may reach both: for tests of partitions.
    pub fn set_apart(&self, from: BTreeSet<NodeId>) {
        from.iter().for_each(|n| self.forget(*n));
        *self.apart.lock().expect("no panic under this lock") = from;
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
