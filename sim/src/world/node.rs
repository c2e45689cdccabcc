//! A node: a disk that stays, and processes that come and go.
//!
//! A process is a local set of its own. Killing it drops every task at once, as SIGKILL does; pausing it means that it is not polled, as with SIGSTOP: its
//! timers run out meanwhile and are seen when it goes on.

use super::authority::{Authority, SimDriver};
use super::net::{Dialer, Net};
use super::{CLUSTER, Lost, clock};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sheep::control::Publisher;
use sheep::node::{DataNode, Plane, assemble, disk_entries};
use sheep::store::fs::memory::MemoryFs;
use sheep::store::{Store, StoreConfig};
use sheep::volume::Volume;
use sheepdog_cluster::{ClusterState, Command, NodeAddr, NodeHello, NodeState};
use sheepdog_proto::NodeId;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

type Job = Box<dyn FnOnce(Rc<Ctx>)>;

/// What a job finds inside a process.
pub struct Ctx {
    /// Data plane.
    pub node: Rc<DataNode>,
    /// Volumes that clients have open here.
    pub volumes: RefCell<BTreeMap<u64, Rc<dyn Volume>>>,
}

#[derive(Default)]
struct Pause {
    on: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

struct Process {
    set: LocalSet,
    pause: Rc<Pause>,
}

impl Future for Process {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.pause.on.get() {
            *self.pause.waker.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.set).poll(cx)
    }
}

struct Running {
    incarnation: u64,
    /// Cancelled when it has ended, by itself or not.
    dead: CancellationToken,
    jobs: mpsc::UnboundedSender<Job>,
    task: tokio::task::AbortHandle,
    pause: Rc<Pause>,
}

/// Directories of disks.
pub const DISKS: [&str; 2] = ["/disk", "/disk2"];

/// What a node's host is like.
#[derive(Debug, Clone)]
pub struct Host {
    /// How many of `DISKS` it is started with.
    pub disks: usize,
    /// How long a disk takes, in microseconds.
    pub latency: std::ops::Range<u64>,
    /// Memory for blocks of volumes that are owned there, bytes.
    pub cache: Option<u64>,
}

/// A node.
pub struct Node {
    /// Identity.
    pub id: NodeId,
    /// Its disks.
    pub fs: MemoryFs,
    net: Rc<Net>,
    authority: Arc<Authority>,
    rng: RefCell<SmallRng>,
    host: Host,
    running: RefCell<Option<Running>>,
}

impl Node {
    /// A node with empty disks and no process.
    pub fn new(id: NodeId, seed: u64, host: Host, net: Rc<Net>, authority: Arc<Authority>) -> Rc<Self> {
        let fs = MemoryFs::new(1 << 34);
        fs.seed(seed);
        let rng = SmallRng::seed_from_u64(seed);
        let (rng, running) = (RefCell::new(rng), RefCell::new(None));
        Rc::new(Self { id, fs, net, authority, rng, host, running })
    }
    /// Is there a process?
    pub fn is_running(&self) -> bool {
        self.running.borrow().is_some()
    }
    fn runs(&self, incarnation: u64) -> bool {
        self.running.borrow().as_ref().is_some_and(|r| r.incarnation == incarnation)
    }
    /// Is it stopped?
    pub fn is_paused(&self) -> bool {
        self.running.borrow().as_ref().is_some_and(|r| r.pause.on.get())
    }
    /// Start a process, unless there is one.
    pub fn start(self: &Rc<Self>) {
        if self.is_running() {
            return;
        }
        let incarnation = self.rng.borrow_mut().random_range(1..u64::MAX);
        self.fs.set_latency(Duration::from_micros(
            self.rng.borrow_mut().random_range(self.host.latency.clone()),
        ));
        let (jobs, rx) = mpsc::unbounded_channel();
        let set = LocalSet::new();
        let dead = CancellationToken::new();
        let (node, gone) = (Rc::downgrade(self), dead.clone());
        tokio::task::spawn_local(async move {
            gone.cancelled().await;
            // It ends by itself: its disks do not answer.
            if let Some(node) = node.upgrade().filter(|n| n.runs(incarnation)) {
                node.kill(false).await;
            }
        });
        set.spawn_local(process(self.clone(), incarnation, rx, dead.clone()));
        let pause = Rc::new(Pause::default());
        let task = tokio::task::spawn_local(Process { set, pause: pause.clone() }).abort_handle();
        self.authority.began(self.id, incarnation);
        *self.running.borrow_mut() = Some(Running { incarnation, dead, jobs, task, pause });
    }
    /// SIGKILL; with `power` the disks lose what was not synced, and the host does not answer.
    pub async fn kill(&self, power: bool) {
        let Some(r) = self.running.borrow_mut().take() else { return };
        r.dead.cancel();
        self.net.unlisten(self.id);
        r.task.abort();
        // The abort is carried out when the task is next scheduled.
        while !r.task.is_finished() {
            tokio::task::yield_now().await;
        }
        self.authority.ended(self.id, !power);
        if power {
            let seed = self.rng.borrow_mut().random();
            self.fs.crash(seed);
        }
    }
    /// SIGSTOP.
    pub fn pause(&self) {
        if let Some(r) = &*self.running.borrow() {
            r.pause.on.set(true);
        }
    }
    /// SIGCONT.
    pub fn resume(&self) {
        if let Some(r) = &*self.running.borrow() {
            r.pause.on.set(false);
            if let Some(w) = r.pause.waker.borrow_mut().take() {
                w.wake();
            }
        }
    }
    /// Run something inside the process.
    pub async fn call<T: 'static, F>(&self, job: impl FnOnce(Rc<Ctx>) -> F + 'static) -> Result<T, Lost>
    where
        F: Future<Output = T> + 'static,
    {
        let (tx, rx) = oneshot::channel();
        let boxed: Job = Box::new(move |ctx| {
            let work = job(ctx);
            tokio::task::spawn_local(async move {
                // The caller may have lost patience.
                let _ = tx.send(work.await);
            });
        });
        let jobs = self.running.borrow().as_ref().map(|r| r.jobs.clone());
        jobs.ok_or(Lost)?.send(boxed).map_err(|_| Lost)?;
        rx.await.map_err(|_| Lost)
    }
}

async fn process(
    node: Rc<Node>,
    incarnation: u64,
    mut jobs: mpsc::UnboundedReceiver<Job>,
    dead: CancellationToken,
) {
    let me = node.id;
    let config = StoreConfig {
        node: me,
        cluster: Some(CLUSTER),
        disks: DISKS[..node.host.disks].iter().map(PathBuf::from).collect(),
        journal_dir: None,
        journal_size: Some(8 << 20),
        plain: false,
    };
    let store = match Store::open(config, Rc::new(node.fs.clone())).await {
        Ok(s) => s,
        Err(e) => panic!("node {} cannot open its disk: {e}", me.short()),
    };
    let publisher = Publisher::new(me, incarnation, ClusterState::default(), clock::millis);
    let control = publisher.control(Arc::new(SimDriver { authority: node.authority.clone(), me }));
    tokio::task::spawn_local(node.authority.clone().pump(me, publisher.clone()));
    tokio::task::spawn_local(node.authority.clone().leases(me, incarnation, publisher));
    let hello = NodeHello {
        id: me,
        addr: NodeAddr { host: format!("n{}", me.short()), client_port: 7000, peer_port: 7001 },
        zone: None,
        weight: 1000,
        vnodes: None,
        gateway: false,
        incarnation,
        disks: disk_entries(&store.disks()),
        version: "sim".into(),
        has_data: store.has_objects(),
    };
    let known = control.clone();
    tokio::task::spawn_local(async move {
        let mut watch = known.watch();
        loop {
            watch.borrow_and_update();
            let up = known.read(|s| {
                let n = s.nodes.get(&me);
                n.is_some_and(|n| {
                    n.incarnation == incarnation && matches!(n.state, NodeState::Up | NodeState::Draining)
                })
            });
            if up || known.read(|s| s.format.is_none()) {
                if watch.changed().await.is_err() {
                    return;
                }
            } else {
                // It is tried again as long as it is not so.
                let _ = known.propose(Command::NodeUp(hello.clone())).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    let mut watch = control.watch();
    while control.read(|s| s.nodes.get(&me).is_none_or(|n| n.incarnation != incarnation)) {
        if watch.changed().await.is_err() {
            return;
        }
    }
    let work = CancellationToken::new();
    let connector = Rc::new(Dialer { net: node.net.clone(), me });
    let cache = node.host.cache;
    let plane = assemble(control.clone(), Some(store), CLUSTER, connector, cache, work.clone(), dead);
    let Plane { replica, gateway, table, server } = plane;
    let mut links = node.net.listen(me);
    let data = DataNode {
        server: server.clone(),
        control,
        replica,
        gateway,
        table,
        nbd: RefCell::new(None),
        stop: work,
        started: std::time::Instant::now(),
    };
    let ctx = Rc::new(Ctx { node: Rc::new(data), volumes: RefCell::default() });
    loop {
        tokio::select! {
            biased;
            Some(job) = jobs.recv() => job(ctx.clone()),
            Some(stream) = links.recv() => {
                tokio::task::spawn_local(server.clone().serve(stream));
            }
            else => return,
        }
    }
}
