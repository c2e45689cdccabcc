//! The network: ordered streams with delay, that can be cut in one direction or both, slowed down, and reset.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sheep::peer::{Connector, LinkStream};
use sheep::volume::LocalFut;
use sheepdog_cluster::NodeAddr;
use sheepdog_proto::NodeId;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

const BUFFER: usize = 64 << 10;
/// How long what was sent may stay without an answer of the other host's kernel.
const SILENCE: Duration = Duration::from_secs(3);

/// From one node to another, perhaps through a third.
type Path = Vec<NodeId>;

struct Open {
    path: Path,
    broken: CancellationToken,
}

fn hops(path: &[NodeId]) -> impl Iterator<Item = (NodeId, NodeId)> {
    path.windows(2).map(|w| (w[0], w[1]))
}

/// The network.
pub struct Net {
    rng: RefCell<SmallRng>,
    listening: RefCell<BTreeMap<NodeId, mpsc::UnboundedSender<DuplexStream>>>,
    cut: RefCell<BTreeSet<(NodeId, NodeId)>>,
    slow: RefCell<BTreeMap<(NodeId, NodeId), u64>>,
    open: RefCell<Vec<Open>>,
    changed: Notify,
    /// Pipes belong to the network, not to the process that opened them.
    pipes: mpsc::UnboundedSender<LocalFut<'static, ()>>,
}

impl Net {
    /// Everybody reaches everybody.
    pub fn new(seed: u64) -> Rc<Self> {
        let (pipes, mut rx) = mpsc::unbounded_channel::<LocalFut<'static, ()>>();
        tokio::task::spawn_local(async move {
            while let Some(pipe) = rx.recv().await {
                tokio::task::spawn_local(pipe);
            }
        });
        Rc::new(Self {
            rng: RefCell::new(SmallRng::seed_from_u64(seed)),
            listening: RefCell::default(),
            cut: RefCell::default(),
            slow: RefCell::default(),
            open: RefCell::default(),
            changed: Notify::new(),
            pipes,
        })
    }
    /// A process takes connections.
    pub fn listen(&self, node: NodeId) -> mpsc::UnboundedReceiver<DuplexStream> {
        let (tx, rx) = mpsc::unbounded_channel();
        self.listening.borrow_mut().insert(node, tx);
        rx
    }
    /// It is gone, and what it passed on.
    pub fn unlisten(&self, node: NodeId) {
        self.listening.borrow_mut().remove(&node);
        self.end(|path| path.len() == 3 && path[1] == node);
    }
    /// Nothing is cut.
    pub fn is_whole(&self) -> bool {
        self.cut.borrow().is_empty()
    }
    /// Nothing goes from `a` to `b`.
    pub fn cut(&self, a: NodeId, b: NodeId) {
        self.cut.borrow_mut().insert((a, b));
    }
    /// It goes again.
    pub fn mend(&self, a: NodeId, b: NodeId) {
        self.cut.borrow_mut().remove(&(a, b));
        self.slow.borrow_mut().remove(&(a, b));
        self.changed.notify_waiters();
    }
    /// Everything goes.
    pub fn heal(&self) {
        self.cut.borrow_mut().clear();
        self.slow.borrow_mut().clear();
        self.changed.notify_waiters();
    }
    /// Every packet from `a` to `b` takes this many milliseconds more.
    pub fn slow(&self, a: NodeId, b: NodeId, millis: u64) {
        self.slow.borrow_mut().insert((a, b), millis);
    }
    /// Break the connections between two nodes.
    pub fn reset(&self, a: NodeId, b: NodeId) {
        self.end(|path| hops(path).any(|hop| hop == (a, b) || hop == (b, a)));
    }
    fn end(&self, which: impl Fn(&[NodeId]) -> bool) {
        self.open.borrow_mut().retain(|o| {
            if which(&o.path) {
                o.broken.cancel();
            }
            !o.broken.is_cancelled()
        });
    }
    fn is_cut(&self, path: &[NodeId]) -> bool {
        let cut = self.cut.borrow();
        hops(path).any(|hop| cut.contains(&hop))
    }
    fn delay(&self, path: &[NodeId]) -> Duration {
        let more: u64 = hops(path).filter_map(|hop| self.slow.borrow().get(&hop).copied()).sum();
        let mut rng = self.rng.borrow_mut();
        let usual =
            if rng.random_bool(0.02) { rng.random_range(1_000..30_000) } else { rng.random_range(30..400) };
        Duration::from_micros(usual + more * 1_000)
    }
    /// Whether bytes get through; `false` when they did not for as long as a kernel waits.
    async fn open_for(&self, paths: &[&[NodeId]]) -> bool {
        let mended = async {
            while paths.iter().any(|p| self.is_cut(p)) {
                self.changed.notified().await;
            }
        };
        tokio::time::timeout(SILENCE, mended).await.is_ok()
    }
    async fn connect(self: &Rc<Self>, there: Path) -> io::Result<DuplexStream> {
        let back: Path = there.iter().rev().copied().collect();
        tokio::time::sleep(self.delay(&there)).await;
        if !self.open_for(&[&there, &back]).await {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let all_there =
            || there[1..].iter().map(|n| self.listening.borrow().get(n).cloned()).collect::<Option<Vec<_>>>();
        let Some(listener) = all_there().and_then(|mut l| l.pop()) else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let (near, near_end) = tokio::io::duplex(BUFFER);
        let (far, far_end) = tokio::io::duplex(BUFFER);
        let broken = CancellationToken::new();
        let ((near_r, near_w), (far_r, far_w)) = (tokio::io::split(near_end), tokio::io::split(far_end));
        self.open.borrow_mut().retain(|o| !o.broken.is_cancelled());
        self.open.borrow_mut().push(Open { path: there.clone(), broken: broken.clone() });
        let there = pipe(self.clone(), there, near_r, far_w, broken.clone());
        let back = pipe(self.clone(), back, far_r, near_w, broken);
        let both: LocalFut<'static, ()> = Box::pin(async move {
            tokio::join!(there, back);
        });
        if self.pipes.send(both).is_err() || listener.send(far).is_err() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(near)
    }
}

/// Bytes one way. When the connection breaks, what has been sent already may still arrive, much later: kernels go on with what was written before a socket was closed,
/// and so do relays.
async fn pipe(
    net: Rc<Net>,
    path: Path,
    mut r: ReadHalf<DuplexStream>,
    mut w: WriteHalf<DuplexStream>,
    broken: CancellationToken,
) {
    let mut buf = vec![0u8; 16 << 10];
    let (mut sent, mut arrived) = (0, 0);
    let carry = async {
        loop {
            (sent, arrived) = (0, 0);
            sent = match r.read(&mut buf).await {
                Ok(0) | Err(_) => return,
                Ok(n) => n,
            };
            tokio::time::sleep(net.delay(&path)).await;
            if !net.open_for(&[&path]).await {
                return;
            }
            while arrived < sent {
                match w.write(&buf[arrived..sent]).await {
                    Ok(n) if n > 0 => arrived += n,
                    _ => return,
                }
            }
        }
    };
    tokio::select! { biased; () = broken.cancelled() => {} () = carry => {} }
    broken.cancel();
    let late = net.rng.borrow_mut().random_range(0..8_000);
    if arrived < sent && late < 4_000 {
        tokio::time::sleep(Duration::from_millis(late)).await;
        if net.open_for(&[&path]).await {
            let _ = w.write_all(&buf[arrived..sent]).await;
        }
    }
}

/// One node's way out.
pub struct Dialer {
    /// Network.
    pub net: Rc<Net>,
    /// Node.
    pub me: NodeId,
}

impl Connector for Dialer {
    fn connect<'a>(
        &'a self,
        node: NodeId,
        _: &'a NodeAddr,
        via: Option<(NodeId, &'a NodeAddr)>,
    ) -> LocalFut<'a, io::Result<Box<dyn LinkStream>>> {
        Box::pin(async move {
            let path = [Some(self.me), via.map(|(n, _)| n), Some(node)].into_iter().flatten().collect();
            let stream = self.net.connect(path).await?;
            Ok(Box::new(stream) as Box<dyn LinkStream>)
        })
    }
}
