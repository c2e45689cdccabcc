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

struct Open {
    a: NodeId,
    b: NodeId,
    broken: CancellationToken,
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
    /// It is gone.
    pub fn unlisten(&self, node: NodeId) {
        self.listening.borrow_mut().remove(&node);
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
        self.open.borrow_mut().retain(|o| {
            if (o.a, o.b) == (a, b) || (o.a, o.b) == (b, a) {
                o.broken.cancel();
            }
            !o.broken.is_cancelled()
        });
    }
    fn is_cut(&self, a: NodeId, b: NodeId) -> bool {
        self.cut.borrow().contains(&(a, b))
    }
    fn delay(&self, a: NodeId, b: NodeId) -> Duration {
        let more = self.slow.borrow().get(&(a, b)).copied().unwrap_or(0);
        let mut rng = self.rng.borrow_mut();
        let usual =
            if rng.random_bool(0.02) { rng.random_range(1_000..30_000) } else { rng.random_range(30..400) };
        Duration::from_micros(usual + more * 1_000)
    }
    async fn connect(self: &Rc<Self>, from: NodeId, to: NodeId) -> io::Result<DuplexStream> {
        tokio::time::sleep(self.delay(from, to)).await;
        while self.is_cut(from, to) || self.is_cut(to, from) {
            self.changed.notified().await;
        }
        let listener = self.listening.borrow().get(&to).cloned();
        let Some(listener) = listener else { return Err(io::ErrorKind::ConnectionRefused.into()) };
        let (near, near_end) = tokio::io::duplex(BUFFER);
        let (far, far_end) = tokio::io::duplex(BUFFER);
        let broken = CancellationToken::new();
        let ((near_r, near_w), (far_r, far_w)) = (tokio::io::split(near_end), tokio::io::split(far_end));
        self.open.borrow_mut().retain(|o| !o.broken.is_cancelled());
        self.open.borrow_mut().push(Open { a: from, b: to, broken: broken.clone() });
        let there = pipe(self.clone(), (from, to), near_r, far_w, broken.clone());
        let back = pipe(self.clone(), (to, from), far_r, near_w, broken);
        let both: LocalFut<'static, ()> = Box::pin(async move {
            tokio::join!(there, back);
        });
        if self.pipes.send(both).is_err() || listener.send(far).is_err() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(near)
    }
}

async fn pipe(
    net: Rc<Net>,
    (from, to): (NodeId, NodeId),
    mut r: ReadHalf<DuplexStream>,
    mut w: WriteHalf<DuplexStream>,
    broken: CancellationToken,
) {
    let mut buf = vec![0u8; 16 << 10];
    let carry = async {
        loop {
            let n = match r.read(&mut buf).await {
                Ok(0) | Err(_) => return,
                Ok(n) => n,
            };
            tokio::time::sleep(net.delay(from, to)).await;
            while net.is_cut(from, to) {
                net.changed.notified().await;
            }
            if w.write_all(&buf[..n]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { biased; () = broken.cancelled() => {} () = carry => {} }
    broken.cancel();
}

/// One node's way out.
pub struct Dialer {
    /// Network.
    pub net: Rc<Net>,
    /// Node.
    pub me: NodeId,
}

impl Connector for Dialer {
    fn connect<'a>(&'a self, node: NodeId, _: &'a NodeAddr) -> LocalFut<'a, io::Result<Box<dyn LinkStream>>> {
        Box::pin(async move {
            let stream = self.net.connect(self.me, node).await?;
            Ok(Box::new(stream) as Box<dyn LinkStream>)
        })
    }
}
