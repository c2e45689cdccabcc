//! The daemon's handle on the control plane.
//!
//! `Control` is what everything else holds: the shared cluster state (one read-write lock, written only by the applier), the
//! current `NodeMap`, a watch that ticks on every applied entry, the lease, and a way to propose. Behind it stands a `Driver`: `local` (one node),
//! `sdcluster` (raft) or the simulator's.

mod core;
pub mod detector;
pub mod identity;
mod join;
mod lead;
pub mod link;
pub mod log_store;
pub mod plane;
pub mod raft_net;
pub mod raft_types;
mod relay;
pub mod rpc;
mod server;
pub mod state_machine;
pub mod voters;
mod watching;
mod way;

use sheepdog_cluster::{ClusterState, Command, Entry, NodeMap, Reply};
use sheepdog_proto::{ControlIndex, Epoch, LayerId, NodeId};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often `Control::barrier` looks.
const BARRIER_LOOK: Duration = Duration::from_millis(10);

/// A boxed future that may cross threads.
pub type SendFut<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where the applier is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// Log position.
    pub index: ControlIndex,
    /// Epoch at that position.
    pub epoch: Epoch,
    /// `ClusterState::layers_revision` at that position.
    pub layers_revision: u64,
    /// `ClusterState::shutdowns` at that position.
    pub shutdowns: u64,
}

/// Why a proposal has no answer. Refusals by the state machine are `Reply::Error`.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ControlError {
    /// No leader could be reached before the deadline. The entry may still be applied later.
    #[error("no majority of voters can be reached: {0}")]
    Unavailable(String),
    /// Not part of a cluster.
    #[error("this sheep is waiting for format: run `dog cluster format` on one of the nodes")]
    NotFormatted,
    /// Stopping.
    #[error("shutting down")]
    ShuttingDown,
}

/// How entries get into the log.
pub trait Driver: Send + Sync {
    /// Commit an entry and return the state machine's answer with its position. Forwards to the leader and retries
    /// (same `Entry::request`) until `deadline` runs out.
    fn propose(&self, entry: Entry) -> SendFut<'_, Result<(Reply, ControlIndex), ControlError>>;
    /// A link to this node broke or refused: probe it now. Never blocks.
    fn suspect(&self, node: NodeId);
    /// Milliseconds since the Unix epoch.
    fn now_millis(&self) -> u64;
}

/// Until when this node may serve, in milliseconds of a clock that counts suspended time (CLOCK_BOOTTIME), 0 = not at all.
#[derive(Default, Debug)]
pub struct Lease {
    until: AtomicU64,
}

impl Lease {
    /// Extend (never shortens).
    pub fn extend(&self, until: u64) {
        self.until.fetch_max(until, Ordering::AcqRel);
    }
    /// Give it up.
    pub fn revoke(&self) {
        self.until.store(0, Ordering::Release);
    }
    /// Valid at `now`?
    pub fn valid(&self, now: u64) -> bool {
        now < self.until.load(Ordering::Acquire)
    }
    /// End, in boot-time milliseconds.
    pub fn until(&self) -> u64 {
        self.until.load(Ordering::Acquire)
    }
}

/// A layer's chain as last computed: `None` for a layer that is unknown.
type Chains = HashMap<LayerId, Option<Arc<[LayerId]>>>;

struct Shared {
    me: NodeId,
    incarnation: u64,
    state: RwLock<ClusterState>,
    map: RwLock<Arc<NodeMap>>,
    chains: Mutex<(u64, Chains)>,
    applied: watch::Sender<Applied>,
    lease: Lease,
    boottime: fn() -> u64,
    /// `ClusterState::shutdowns` when this process was taken in: an order given before that was for its predecessor.
    shutdowns_at_start: Mutex<Option<u64>>,
    shutdown: CancellationToken,
}

/// Cheap to clone, `Send`.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
    driver: Arc<dyn Driver>,
}

/// The writing half: held by whoever applies committed entries.
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
}

/// Boot-time clock in milliseconds: also counts while the host is suspended, so a paused host notices that its lease ran out.
pub fn boottime_millis() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    t.tv_sec as u64 * 1000 + t.tv_nsec as u64 / 1_000_000
}

impl Publisher {
    /// Make the shared part. `boottime` is `boottime_millis` outside the simulator.
    pub fn new(me: NodeId, incarnation: u64, state: ClusterState, boottime: fn() -> u64) -> Self {
        let applied = Applied {
            index: state.index,
            epoch: state.epoch,
            layers_revision: state.layers_revision,
            shutdowns: state.shutdowns,
        };
        let map = Arc::new(state.node_map());
        Self {
            shared: Arc::new(Shared {
                me,
                incarnation,
                state: RwLock::new(state),
                map: RwLock::new(map),
                chains: Mutex::default(),
                applied: watch::Sender::new(applied),
                lease: Lease::default(),
                boottime,
                shutdowns_at_start: Mutex::default(),
                shutdown: CancellationToken::new(),
            }),
        }
    }
    /// The reading half.
    pub fn control(&self, driver: Arc<dyn Driver>) -> Control {
        Control { shared: self.shared.clone(), driver }
    }
    /// Apply one committed entry at its position.
    pub fn apply(&self, index: ControlIndex, entry: &Entry) -> Reply {
        self.update(|state| state.apply(index, entry))
    }
    /// Replace everything (snapshot install).
    pub fn install(&self, new: ClusterState) {
        self.update(|state| *state = new);
    }
    /// A no-op entry (raft's own) moved the position.
    pub fn skip(&self, index: ControlIndex) {
        self.update(|state| state.index = index);
    }
    /// Apply an entry (`None`: one of raft's own) unless the state has that position already; then `None`.
    pub fn apply_once(&self, index: ControlIndex, entry: Option<&Entry>) -> Option<Reply> {
        self.update(|state| match entry {
            _ if state.index >= index => None,
            Some(e) => Some(state.apply(index, e)),
            None => {
                state.index = index;
                Some(Reply::Done)
            }
        })
    }
    /// Replace everything by a later state; an older one is ignored.
    pub fn install_newer(&self, new: ClusterState) {
        self.update(|state| {
            if state.index < new.index || state.format.is_none() {
                *state = new;
            }
        });
    }
    /// The lease, for the driver.
    pub fn lease(&self) -> &Lease {
        &self.shared.lease
    }
    /// Look at the state.
    pub fn read<R>(&self, f: impl FnOnce(&ClusterState) -> R) -> R {
        f(&self.shared.state.read().expect("the applier does not panic"))
    }
    fn update<R>(&self, f: impl FnOnce(&mut ClusterState) -> R) -> R {
        let (r, applied, map) = {
            let mut state = self.shared.state.write().expect("the applier does not panic");
            let r = f(&mut state);
            self.shared.see_shutdown(&state);
            let last = self.shared.map.read().expect("no panic under this lock").clone();
            let map = (!last.is_of(&state)).then(|| Arc::new(state.node_map_after(Some(&last))));
            let applied = Applied {
                index: state.index,
                epoch: state.epoch,
                layers_revision: state.layers_revision,
                shutdowns: state.shutdowns,
            };
            (r, applied, map)
        };
        if let Some(map) = map {
            *self.shared.map.write().expect("no panic under this lock") = map;
        }
        self.shared.applied.send_replace(applied);
        r
    }
}

impl Shared {
    fn see_shutdown(&self, state: &ClusterState) {
        if state.nodes.get(&self.me).is_none_or(|n| n.incarnation != self.incarnation) {
            return;
        }
        let mut base = self.shutdowns_at_start.lock().expect("no panic under this lock");
        if state.shutdowns > *base.get_or_insert(state.shutdowns) {
            self.shutdown.cancel();
        }
    }
}

impl Control {
    /// Completes when a clean shutdown of the cluster was ordered after this process was taken in. (`Applied::shutdowns` also grows while an
    /// old log is read back; this does not.)
    pub async fn shutdown_ordered(&self) {
        self.shared.shutdown.cancelled().await;
    }
    /// Was it?
    pub fn is_shutdown_ordered(&self) -> bool {
        self.shared.shutdown.is_cancelled()
    }
    /// This node.
    pub fn me(&self) -> NodeId {
        self.shared.me
    }
    /// This process.
    pub fn incarnation(&self) -> u64 {
        self.shared.incarnation
    }
    /// Look at the state. Keep it short: the applier waits.
    pub fn read<R>(&self, f: impl FnOnce(&ClusterState) -> R) -> R {
        f(&self.shared.state.read().expect("the applier does not panic"))
    }
    /// Membership of the current epoch.
    pub fn map(&self) -> Arc<NodeMap> {
        self.shared.map.read().expect("no panic under this lock").clone()
    }
    /// Layers that a read of `top` looks through within its family, newest first; `None` when there is no such layer.
    pub fn chain(&self, top: LayerId) -> Option<Arc<[LayerId]>> {
        let mut chains = self.shared.chains.lock().expect("no panic under this lock");
        let state = self.shared.state.read().expect("the applier does not panic");
        if chains.0 != state.layers_revision || chains.1.len() > 4096 {
            *chains = (state.layers_revision, HashMap::new());
        }
        chains.1.entry(top).or_insert_with(|| state.chain(top).map(Into::into)).clone()
    }
    /// Ticks on every applied entry.
    pub fn watch(&self) -> watch::Receiver<Applied> {
        self.shared.applied.subscribe()
    }
    /// Where the applier is.
    pub fn applied(&self) -> Applied {
        *self.shared.applied.borrow()
    }
    /// Wait until everything up to `index` is applied here.
    pub async fn wait_index(&self, index: ControlIndex) {
        let mut rx = self.watch();
        // The sender lives as long as `shared`, which we hold.
        let _ = rx.wait_for(|a| a.index >= index).await;
    }
    /// May this node serve right now?
    pub fn lease_valid(&self) -> bool {
        self.shared.lease.valid((self.shared.boottime)())
    }
    /// Wait until this node knows everything that was committed before the call: a heartbeat sent after it has been answered, and its answer
    /// names a position that is applied before the lease counts. Up to one heartbeat; as long as it takes without a majority.
    pub async fn barrier(&self) {
        let asked = (self.shared.boottime)();
        loop {
            let until = self.shared.lease.until();
            let lease = self.read(|s| s.format.as_ref().map_or(0, |f| f.timing.lease));
            if self.lease_valid() && (until == u64::MAX || until > asked + lease) {
                return;
            }
            tokio::time::sleep(BARRIER_LOOK).await;
        }
    }
    /// The lease.
    pub fn lease(&self) -> &Lease {
        &self.shared.lease
    }
    /// Propose and wait until the answer's entry is applied here too.
    pub async fn propose(&self, command: Command) -> Result<Reply, ControlError> {
        let request = uuid::Uuid::new_v4().as_u128();
        let (reply, index) =
            self.driver.propose(Entry { now: self.driver.now_millis(), request, command }).await?;
        self.wait_index(index).await;
        Ok(reply)
    }
    /// Milliseconds since the Unix epoch.
    pub fn now_millis(&self) -> u64 {
        self.driver.now_millis()
    }
    /// A link to this node broke: ask for a probe.
    pub fn suspect(&self, node: NodeId) {
        self.driver.suspect(node);
    }
}
