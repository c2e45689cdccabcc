//! The control plane as the data plane sees it: one log, a failure detector (the real one), leases. A node can be cut off from it, and it can
//! be without a leader for a while.

use super::clock;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sheep::control::detector::{Decision, Detector, Probe, Watched};
use sheep::control::{ControlError, Driver, Publisher, SendFut};
use sheepdog_cluster::{ClusterState, Command, Entry, NodeState, Reply, Timing};
use sheepdog_proto::{ControlIndex, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// How often the leader looks round.
const LOOK: Duration = Duration::from_millis(50);
/// How long a proposal looks for a leader.
const PATIENCE: Duration = Duration::from_secs(30);

struct Inner {
    state: ClusterState,
    log: Vec<Entry>,
    detector: Detector,
    cut: BTreeSet<NodeId>,
    /// Processes that run, and whether a dead one's port refuses (else its host is gone).
    running: BTreeMap<NodeId, u64>,
    refuses: BTreeSet<NodeId>,
    suspects: BTreeSet<NodeId>,
    leaderless_until: u64,
    request: u128,
    rng: SmallRng,
}

/// The log and who may reach it.
pub struct Authority {
    inner: Mutex<Inner>,
    committed: tokio::sync::watch::Sender<u64>,
}

impl Authority {
    /// An empty log.
    pub fn new(seed: u64) -> Arc<Self> {
        let inner = Inner {
            state: ClusterState::default(),
            log: Vec::new(),
            detector: Detector::default(),
            cut: BTreeSet::new(),
            running: BTreeMap::new(),
            refuses: BTreeSet::new(),
            suspects: BTreeSet::new(),
            leaderless_until: 0,
            request: 0,
            rng: SmallRng::seed_from_u64(seed),
        };
        Arc::new(Self { inner: Mutex::new(inner), committed: tokio::sync::watch::Sender::new(0) })
    }
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("one thread, no panic under this lock")
    }
    /// Look at the state.
    pub fn read<R>(&self, f: impl FnOnce(&ClusterState) -> R) -> R {
        f(&self.lock().state)
    }
    /// Ticks at every commit.
    pub fn commits(&self) -> tokio::sync::watch::Receiver<u64> {
        self.committed.subscribe()
    }
    /// Commit at once.
    pub fn commit(&self, command: Command) -> Reply {
        let entry = {
            let mut i = self.lock();
            i.request += 1;
            Entry { now: clock::millis(), request: i.request, command }
        };
        self.append(entry).0
    }
    fn append(&self, entry: Entry) -> (Reply, ControlIndex) {
        let mut i = self.lock();
        i.log.push(entry);
        let index = ControlIndex(i.log.len() as u64);
        let Inner { state, log, .. } = &mut *i;
        let reply = state.apply(index, &log[log.len() - 1]);
        tracing::trace!(index = index.0, epoch = %state.epoch, command = ?log[log.len() - 1].command, synced = ?state.nodes.values().map(|n| (n.id.short(), n.synced.0, n.up_since.0, n.down_at.0, n.lost_at.0, n.is_up())).collect::<Vec<_>>(), "committed");
        drop(i);
        self.committed.send_replace(index.0);
        (reply, index)
    }
    fn timing(i: &Inner) -> Timing {
        i.state.format.as_ref().map_or_else(Timing::default, |f| f.timing)
    }
    /// Cut a node off, or not.
    pub fn cut(&self, node: NodeId, cut: bool) {
        let mut i = self.lock();
        if cut {
            i.cut.insert(node);
        } else {
            i.cut.remove(&node);
        }
    }
    /// Are the processes that run those that the state speaks of?
    pub fn knows_all(&self) -> bool {
        let i = self.lock();
        i.running.iter().all(|(id, now)| i.state.nodes.get(id).is_some_and(|n| n.incarnation == *now))
    }
    /// Is nobody cut off?
    pub fn reaches_all(&self) -> bool {
        let i = self.lock();
        i.cut.is_empty() && clock::millis() >= i.leaderless_until
    }
    /// No leader for a while.
    pub fn leaderless(&self, millis: u64) {
        let mut i = self.lock();
        i.leaderless_until = clock::millis() + millis;
        i.detector.follow();
    }
    /// Reachable for all, with a leader.
    pub fn heal(&self) {
        let mut i = self.lock();
        i.cut.clear();
        i.leaderless_until = 0;
    }
    /// A process began.
    pub fn began(&self, node: NodeId, incarnation: u64) {
        let mut i = self.lock();
        i.running.insert(node, incarnation);
        i.refuses.remove(&node);
    }
    /// It ended. `refuses`: its host is still there and says so.
    pub fn ended(&self, node: NodeId, refuses: bool) {
        let mut i = self.lock();
        i.running.remove(&node);
        if refuses {
            i.refuses.insert(node);
        } else {
            i.refuses.remove(&node);
        }
    }
    fn reaches(&self, node: NodeId) -> bool {
        let i = self.lock();
        !i.cut.contains(&node) && clock::millis() >= i.leaderless_until
    }
    fn pause(&self, micros: std::ops::Range<u64>) -> Duration {
        Duration::from_micros(self.lock().rng.random_range(micros))
    }
    /// The leader's work. Never ends.
    pub async fn lead(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            for command in self.decide() {
                self.commit(command);
            }
        }
    }
    fn decide(&self) -> Vec<Command> {
        let now = clock::millis();
        let mut i = self.lock();
        if now < i.leaderless_until {
            return Vec::new();
        }
        let timing = Self::timing(&i);
        if !i.detector.leads() {
            i.detector.lead(now, 0, &timing);
        }
        let watched: Vec<Watched> = i
            .state
            .nodes
            .values()
            .map(|n| Watched {
                node: n.id,
                incarnation: n.incarnation,
                state: n.state,
                since: n.since,
                settled: i.state.is_emptied(n),
            })
            .collect();
        let mut all = Vec::new();
        for node in std::mem::take(&mut i.suspects) {
            let probe = match i.running.get(&node) {
                Some(incarnation) => Probe::Answered { incarnation: *incarnation },
                None if i.refuses.contains(&node) => Probe::Refused,
                None => Probe::Unclear,
            };
            let subject = watched.iter().find(|w| w.node == node);
            all.extend(subject.and_then(|w| Detector::judge(w, probe, false)));
        }
        all.extend(i.detector.tick(now, now, &timing, &watched, false).0);
        let declared = all.into_iter().map(|d| match d {
            Decision::Down { node, incarnation } => Command::NodeDown { node, incarnation },
            Decision::Out { node } => Command::NodeOut { node },
        });
        declared.chain(i.state.trash_is_due(now).then_some(Command::TrashExpire)).collect()
    }
    /// One heartbeat's answer: the lease in milliseconds and how far the node must have applied.
    fn heartbeat(&self, node: NodeId, incarnation: u64) -> Option<(u64, ControlIndex)> {
        let mut i = self.lock();
        let timing = Self::timing(&i);
        let up = i.state.nodes.get(&node).is_some_and(|n| {
            n.incarnation == incarnation && matches!(n.state, NodeState::Up | NodeState::Draining)
        });
        if !up || !i.detector.leads() || i.state.nodes.get(&node).is_some_and(|n| i.state.is_emptied(n)) {
            return None;
        }
        i.detector.grant(node, clock::millis() + timing.lease);
        Some((timing.lease, i.state.index))
    }
    fn entries(&self, after: u64, upto: u64) -> Vec<(ControlIndex, Entry)> {
        let i = self.lock();
        (after..upto.min(i.log.len() as u64))
            .map(|n| (ControlIndex(n + 1), i.log[n as usize].clone()))
            .collect()
    }
    /// Keeps a node's copy of the state. Part of its process.
    pub async fn pump(self: Arc<Self>, me: NodeId, publisher: Publisher) {
        let mut committed = self.committed.subscribe();
        loop {
            let upto = *committed.borrow_and_update();
            let at = publisher.read(|s| s.index.0);
            if at >= upto {
                if committed.changed().await.is_err() {
                    return;
                }
                // Some hear of it when others act on it already.
                let late = self.lock().rng.random_bool(0.05);
                let pause = self.pause(if late { 5_000..800_000 } else { 100..5_000 });
                tokio::time::sleep(pause).await;
                continue;
            }
            if !self.reaches(me) {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            for (index, entry) in self.entries(at, upto) {
                publisher.apply_once(index, Some(&entry));
            }
        }
    }
    /// Keeps a node's lease. Part of its process.
    pub async fn leases(self: Arc<Self>, me: NodeId, incarnation: u64, publisher: Publisher) {
        loop {
            let sent = clock::millis();
            let go = self.pause(100..3_000);
            tokio::time::sleep(go).await;
            let mut pause = Duration::from_millis(100);
            if self.reaches(me)
                && let Some((lease, index)) = self.heartbeat(me, incarnation)
            {
                let back = self.pause(100..3_000);
                tokio::time::sleep(back).await;
                let here = publisher.read(|s| s.index) >= index;
                if self.reaches(me) && here {
                    publisher.lease().extend(sent + lease);
                    pause = Duration::from_secs(1);
                }
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// One process's way to the log.
pub struct SimDriver {
    /// Log.
    pub authority: Arc<Authority>,
    /// Node.
    pub me: NodeId,
}

impl Driver for SimDriver {
    fn propose(&self, entry: Entry) -> SendFut<'_, Result<(Reply, ControlIndex), ControlError>> {
        Box::pin(async move {
            let began = tokio::time::Instant::now();
            while began.elapsed() < PATIENCE {
                let go = self.authority.pause(200..4_000);
                tokio::time::sleep(go).await;
                if self.authority.reaches(self.me) {
                    let done = self.authority.append(entry.clone());
                    let back = self.authority.pause(200..4_000);
                    tokio::time::sleep(back).await;
                    if self.authority.reaches(self.me) {
                        return Ok(done);
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(ControlError::Unavailable("cut off".into()))
        })
    }
    fn suspect(&self, node: NodeId) {
        self.authority.lock().suspects.insert(node);
    }
    fn now_millis(&self) -> u64 {
        clock::millis()
    }
}
