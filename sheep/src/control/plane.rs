//! The control plane of one sheep: starts raft and the tasks around it, formats, stops.
//!
//! Directory: `node.json` (identity), `raft/log.redb` (log, vote), `raft/snapshot` (state), `raft/peers.json` (last known addresses; may be lost).
//! Tasks: the peer port's acceptor, one per control link, `join::membership`, `join::leases`, `lead::lead`, `lead::keep_answered`, `lead::suspicions`,
//! `watching::follow`, `keep_book`, and raft's own. All end with one token; `stop` waits for them. Killing the process at any
//! point is safe.

use super::core::{Core, wall_millis};
use super::detector::Detector;
use super::identity::{Identity, IdentityError};
use super::link::{Known, LinkPool};
use super::log_store::{LogError, LogStore};
use super::raft_net::{NetFactory, Peers};
use super::raft_types::{RaftId, SheepRaft};
use super::rpc::{PeerInfo, Request, Response};
use super::state_machine::{StateMachine, write_atomically};
use super::{
    Control, ControlError, Driver, Publisher, SendFut, boottime_millis, join, lead, relay, server, watching,
};
use crate::transport::{DataLink, PeerListener, PeerTls, Routes};
use openraft::{Config, EmptyNode, SnapshotPolicy};
use serde::{Deserialize, Serialize};
use sheepdog_cluster::{ClusterState, Command, Entry, Format, Node, NodeAddr, NodeHello, NodeState, Reply};
use sheepdog_proto::{ClusterId, ControlIndex, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Between two raft heartbeats, milliseconds; one that is answered later counts as unanswered.
pub(super) const HEARTBEAT: u64 = 150;
/// Shortest election timeout, milliseconds.
const ELECTION_MIN: u64 = 400;
/// Longest election timeout, milliseconds; also how long voters stay with a leader they heard.
pub(super) const ELECTION_MAX: u64 = 600;
/// A leader that no majority answers any more sends no heartbeats for this long, so that those who still hear it, and that it does not hear in time, elect another one;
/// then it sends for as long, and so on. Raft asks for twice the longest election at least.
const STEP_ASIDE: u64 = 1_500;
/// Entries between two snapshots.
const SNAPSHOT_EVERY: u64 = 5_000;
/// Entries kept below a snapshot for followers and watchers that are a little behind.
const KEEP: u64 = 2_000;
/// How long a proposal looks for a leader.
pub const PROPOSE_DEADLINE: Duration = Duration::from_secs(30);

/// How long a leader waits, at a shutdown of the cluster, for the others to hear of it.
const FAREWELL: Duration = Duration::from_secs(10);
/// How much of it is for those that are out: they may run, or be gone for good.
const FAREWELL_OUT: Duration = Duration::from_secs(6);

/// The network side of `sdcluster`; `local` has none.
pub struct Network {
    /// Peer port.
    pub listener: PeerListener,
    /// Where accepted data links go.
    pub data_links: mpsc::Sender<DataLink>,
    /// Credentials.
    pub tls: PeerTls,
    /// `host:port` of peer ports to look for a cluster at.
    pub seeds: Vec<String>,
}

/// How to start.
pub struct ControlConfig {
    /// Directory of this sheep.
    pub dir: PathBuf,
    /// How this node introduces itself. `id` is overwritten by the identity in `dir`; `incarnation` 0 means: make one up.
    pub hello: NodeHello,
    /// `None`: driver `local`.
    pub network: Option<Network>,
    /// Cluster whose data is on the disks.
    pub remembers: Option<ClusterId>,
}

/// The control plane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `node.json`.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// `raft/log.redb`.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Part of the directory was lost.
    #[error(
        "{0} is missing or empty, but this node may have voted in its cluster: restore it; or, if it is lost, empty the directory so that \
         the node joins as a new one"
    )]
    LogMissing(PathBuf),
    /// Disk.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// openraft.
    #[error("raft does not start: {0}")]
    Raft(String),
}

/// Why a cluster cannot be formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Once only.
    #[error("this sheep already belongs to cluster {0}")]
    Member(ClusterId),
    /// Disks that are not empty.
    #[error(
        "the disks of {} hold data of cluster {cluster}: `dog cluster rebuild --from-disks` brings it back; if it is not needed any more, empty \
         the directories of these sheep first",
        sheep.join(", ")
    )]
    Remembered {
        /// Where.
        sheep: Vec<String>,
        /// Whose; of the first one when there are several.
        cluster: ClusterId,
    },
    /// The state machine says no.
    #[error("{0}")]
    Refused(sheepdog_cluster::CommandError),
    /// Disk.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Raft or time.
    #[error("{0}")]
    Control(#[from] ControlError),
}

/// For people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlStatus {
    /// This node.
    pub node: NodeId,
    /// This process.
    pub incarnation: u64,
    /// Cluster it belongs to or is joining.
    pub cluster: Option<ClusterId>,
    /// The state of a formatted cluster is known here.
    pub formatted: bool,
    /// Cluster whose data was on the disks at the start.
    pub remembers: Option<ClusterId>,
    /// Leader as known here.
    pub leader: Option<NodeId>,
    /// Leading, and sure of it.
    pub leading: bool,
    /// Raft's term.
    pub term: u64,
    /// Voters as known here.
    pub voters: Vec<NodeId>,
    /// Who votes is being changed: the voters before have a say still.
    pub changing: bool,
    /// This node votes.
    pub voter: bool,
    /// Milliseconds that the lease is still good for.
    pub lease: u64,
    /// Newest entry of this node's raft log.
    pub last_log: Option<u64>,
    /// Newest entry that raft has applied here; a node that only watches has none, or an old one.
    pub last_applied: Option<u64>,
    /// Position of the applier.
    pub applied: ControlIndex,
    /// Control links from here that go through a third sheep.
    pub relayed: usize,
}

/// See the module. Dropping it without `stop` leaves the tasks running until the runtime ends.
pub struct ControlPlane {
    core: Arc<Core>,
    control: Control,
}

struct CoreDriver(Arc<Core>);

impl Driver for CoreDriver {
    fn propose(&self, entry: Entry) -> SendFut<'_, Result<(Reply, ControlIndex), ControlError>> {
        Box::pin(self.0.propose(entry, PROPOSE_DEADLINE))
    }
    fn suspect(&self, node: NodeId) {
        // A full queue means that many suspicions are being looked at already.
        let _ = self.0.suspects.try_send(node);
    }
    fn now_millis(&self) -> u64 {
        wall_millis()
    }
}

fn raft_config(local: bool) -> Result<Arc<Config>, StartError> {
    let slow = if local { 4 } else { 1 };
    let config = Config {
        cluster_name: "sheepdog".into(),
        heartbeat_interval: HEARTBEAT * slow,
        election_timeout_min: ELECTION_MIN * slow,
        election_timeout_max: ELECTION_MAX * slow,
        quorum_loss_probe_interval: Some(STEP_ASIDE * slow),
        install_snapshot_timeout: 120_000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: KEEP,
        purge_batch_size: 256,
        enable_pre_vote: Some(true),
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|e| StartError::Raft(e.to_string()))
}

fn open_log(dir: &Path, identity: &Identity) -> Result<LogStore, StartError> {
    let raft_dir = dir.join("raft");
    let log_path = raft_dir.join("log.redb");
    // Cut to nothing is as good as missing: a new log would be made in it.
    let there = std::fs::metadata(&log_path).is_ok_and(|m| m.len() > 0);
    if identity.cluster.is_some() && !there {
        return Err(StartError::LogMissing(log_path));
    }
    let io = |source| StartError::Io { path: raft_dir.clone(), source };
    crate::dirs::make(&raft_dir).map_err(io)?;
    let log = LogStore::open(&log_path)?;
    // A vote in a file that a power cut takes away is a vote given twice.
    crate::dirs::sync(&raft_dir).map_err(io)?;
    Ok(log)
}

impl ControlPlane {
    /// Start. Raft takes part at once; a member introduces itself (`NodeUp`) as soon as it finds a leader.
    pub async fn start(cfg: ControlConfig) -> Result<(Control, Self), StartError> {
        let identity = Identity::load_or_create(&cfg.dir)?;
        let log = open_log(&cfg.dir, &identity)?;
        let mut hello = cfg.hello;
        hello.id = identity.node;
        while hello.incarnation == 0 {
            hello.incarnation = rand::random();
        }
        let (me, incarnation) = (identity.node, hello.incarnation);
        let publisher = Publisher::new(me, incarnation, ClusterState::default(), boottime_millis);
        let raft_applied = watch::Sender::new(None);
        let sm = StateMachine::new(publisher.clone(), cfg.dir.join("raft/snapshot"), raft_applied.clone());
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let (suspects, suspected) = mpsc::channel(256);
        let local = cfg.network.is_none();
        let (tls, seeds) = match &cfg.network {
            Some(n) => (n.tls.clone(), n.seeds.clone()),
            None => (PeerTls::default(), Vec::new()),
        };
        let peers = Arc::new(Peers {
            pool: LinkPool::new(tls, suspects.clone(), tracker.clone(), stop.clone()),
            identity: Mutex::new(identity),
            me: PeerInfo { node: me, incarnation, addr: hello.addr.clone() },
            version: hello.version.clone(),
            remembers: cfg.remembers,
            takeover_until: AtomicU64::new(0),
        });
        load_book(&cfg.dir, &peers);
        let raft =
            SheepRaft::new(RaftId(me), raft_config(local)?, NetFactory(peers.clone()), log.clone(), sm)
                .await
                .map_err(|e| StartError::Raft(e.to_string()))?;
        let started = Instant::now();
        let core = Arc::new(Core {
            dir: cfg.dir,
            me,
            incarnation,
            local,
            seeds,
            hello: Mutex::new(hello),
            publisher: publisher.clone(),
            log,
            raft,
            raft_applied,
            peers,
            detector: Mutex::new(Detector::default()),
            suspects,
            waiting: Mutex::default(),
            hint: Mutex::default(),
            voters_hint: Mutex::default(),
            incoming: Mutex::default(),
            outgoing: Mutex::default(),
            strange: AtomicBool::new(false),
            nudge: Notify::new(),
            demoted: Mutex::default(),
            slept: Mutex::new((boottime_millis(), started)),
            started,
            stop,
            tracker,
        });
        spawn_tasks(&core, cfg.network, suspected);
        let control = publisher.control(Arc::new(CoreDriver(core.clone())));
        Ok((control.clone(), Self { core, control }))
    }
    /// The handle that `start` gave.
    pub fn control(&self) -> Control {
        self.control.clone()
    }
    /// Make a cluster of this sheep, then take in those that wait. Idempotent after a crash in the middle.
    pub async fn format(&self, format: Format) -> Result<ClusterId, FormatError> {
        let cluster = format.cluster;
        self.nothing_is_remembered()?;
        self.found(cluster, Command::Format(format)).await?;
        Ok(cluster)
    }
    /// Start a new log from a state read back from disks. `state.format` names the cluster.
    pub async fn rebuild(&self, state: ClusterState) -> Result<ClusterId, FormatError> {
        let cluster = state.format.as_ref().map(|f| f.cluster).unwrap_or_default();
        self.found(cluster, Command::Restore(Box::new(state))).await?;
        // So that joining nodes get a snapshot and not one huge entry.
        if self.core.raft.trigger().snapshot().await.is_ok() {
            let upto = self.core.publisher.read(|s| s.index.0);
            let _ = self.core.raft.trigger().purge_log(upto).await;
        }
        Ok(cluster)
    }
    /// Neither the disks here nor those of the sheep that wait hold the data of a cluster. Those that are not heard of now do not join either: see
    /// `Core::adopt`.
    fn nothing_is_remembered(&self) -> Result<(), FormatError> {
        let core = &self.core;
        let place = |a: &NodeAddr| format!("{}:{}", a.host, a.peer_port);
        let own = core.peers.remembers.map(|c| (place(&core.peers.me.addr), c));
        let others = core.waiting().into_iter().filter_map(|w| Some((place(&w.peer.addr), w.remembers?)));
        let (sheep, clusters): (Vec<_>, Vec<_>) = own.into_iter().chain(others).unzip();
        match clusters.first() {
            Some(cluster) => Err(FormatError::Remembered { sheep, cluster: *cluster }),
            None => Ok(()),
        }
    }
    async fn found(&self, cluster: ClusterId, command: Command) -> Result<(), FormatError> {
        let core = &self.core;
        {
            let mut id = core.peers.identity.lock().expect("no panic under this lock");
            if let Some(c) = id.cluster
                && (id.member || core.publisher.read(|s| s.format.is_some()) || c != cluster)
                && (id.member || !self.alone())
            {
                return Err(FormatError::Member(c));
            }
            let new = Identity { cluster: Some(cluster), ..id.clone() };
            new.save(&core.dir)?;
            *id = new;
        }
        let unavailable = |e: &dyn std::fmt::Display| ControlError::Unavailable(e.to_string());
        let fresh = !core.raft.is_initialized().await.map_err(|e| unavailable(&e))?;
        if fresh {
            let alone = BTreeMap::from([(RaftId(core.me), EmptyNode::new())]);
            core.raft.initialize(alone).await.map_err(|e| unavailable(&e))?;
        }
        let entry = Entry { now: wall_millis(), request: uuid::Uuid::new_v4().as_u128(), command };
        let (reply, _) = core.propose(entry, PROPOSE_DEADLINE).await?;
        if let Reply::Error(e) = reply {
            let mut id = core.peers.identity.lock().expect("no panic under this lock");
            id.cluster = None;
            id.save(&core.dir)?;
            return Err(FormatError::Refused(e));
        }
        core.nudge.notify_waiters();
        core.say_hello(PROPOSE_DEADLINE).await;
        Ok(())
    }
    /// No other node ever had a part in this raft log.
    fn alone(&self) -> bool {
        let v = self.core.raft_view();
        v.voters.is_empty() || v.voters == [self.core.me]
    }
    /// For people.
    pub fn status(&self) -> ControlStatus {
        let core = &self.core;
        let v = core.raft_view();
        let voter = v.member && v.voters.contains(&core.me);
        let voters = match v.member {
            true => v.voters,
            false => core.voters_hint.lock().expect("no panic under this lock").clone(),
        };
        ControlStatus {
            node: core.me,
            incarnation: core.incarnation,
            cluster: core.cluster(),
            formatted: core.publisher.read(|s| s.format.is_some()),
            remembers: core.peers.remembers,
            leader: core.leader(),
            leading: v.established,
            term: v.term,
            changing: v.member && v.changing,
            voters,
            voter,
            last_log: v.last_log,
            last_applied: v.last_applied,
            lease: core.publisher.lease().until().saturating_sub(boottime_millis()),
            applied: core.publisher.read(|s| s.index),
            relayed: core.peers.pool.relayed(),
        }
    }
    /// Sheep that wait for format and know this one, or that this one knows.
    pub fn peers_waiting(&self) -> Vec<PeerInfo> {
        self.core.waiting_peers()
    }
    /// Change how this node introduces itself, and do it (disks, weight, address).
    pub async fn update_hello(&self, change: impl FnOnce(&mut NodeHello)) -> bool {
        {
            let mut h = self.core.hello.lock().expect("no panic under this lock");
            change(&mut h);
            (h.id, h.incarnation) = (self.core.me, self.core.incarnation);
        }
        self.core.say_hello(PROPOSE_DEADLINE).await
    }
    /// Cut this sheep's control plane off from the network, or join it again: for tests of partitions.
    pub fn set_partitioned(&self, cut: bool) {
        self.core.peers.pool.set_cut(cut);
    }
    /// Let this sheep's control links reach these nodes through others only: for tests of partitions. Both ends have to be told.
    pub fn set_apart(&self, from: impl IntoIterator<Item = NodeId>) {
        self.core.peers.pool.set_apart(from.into_iter().collect());
    }
    /// Stop: tasks end, the log is durable. The others notice by the closed port.
    pub async fn stop(self) {
        self.shut_down().await;
    }
    /// See `LogStore::writing`.
    pub fn writing(&self) -> Option<u64> {
        self.core.log.writing()
    }
    /// The same for a plane that others still hold.
    pub async fn shut_down(&self) {
        let core = &self.core;
        self.farewell().await;
        core.stop.cancel();
        if let Err(error) = core.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop in order");
        }
        core.tracker.close();
        core.tracker.wait().await;
        if let Err(error) = core.log.sync().await {
            tracing::warn!(%error, "the control log was not synced");
        }
        core.log.close().await;
    }
    /// A leader that ends because the whole cluster was shut down stays until the others have heard of it: without a leader
    /// nobody would tell them. Bounded by `FAREWELL`.
    async fn farewell(&self) {
        let core = &self.core;
        if core.local || !core.quiet() || !core.raft_view().established {
            return;
        }
        let index = core.publisher.read(|s| s.index);
        let others: Vec<(PeerInfo, bool)> = core.publisher.read(|s| {
            let others = s.nodes.values().filter(|n| n.id != core.me && n.state != NodeState::Down);
            let info = |n: &Node| PeerInfo { node: n.id, incarnation: n.incarnation, addr: n.addr.clone() };
            others.map(|n| (info(n), n.state == NodeState::Out)).collect()
        });
        others.iter().for_each(|(info, _)| core.learn_address(info));
        let out: BTreeSet<NodeId> = others.iter().filter(|(_, out)| *out).map(|(i, _)| i.node).collect();
        let mut left: Vec<NodeId> = others.iter().map(|(i, _)| i.node).collect();
        let out = &out;
        let began = Instant::now();
        while !left.is_empty() && began.elapsed() < FAREWELL {
            let asks = left.iter().map(|n| async move {
                match core.peers.call(*n, &Request::Status, Duration::from_secs(1)).await {
                    Ok(Response::Status(s)) => s.applied >= index,
                    Ok(_) => false,
                    Err(e) => e.is_refused() || (out.contains(n) && began.elapsed() >= FAREWELL_OUT),
                }
            });
            let mut heard = futures::future::join_all(asks).await.into_iter();
            left.retain(|_| !heard.next().unwrap_or(true));
            if !left.is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        if !left.is_empty() {
            tracing::warn!(
                nodes = left.len(),
                "ending, though some sheep may not know yet that the cluster is shut down"
            );
        }
    }
    /// Stop without any order, as a crash would: for tests.
    pub async fn kill(self) {
        self.core.stop.cancel();
        self.core.tracker.close();
        self.core.tracker.wait().await;
        let _ = self.core.raft.shutdown().await;
        self.core.log.close().await;
    }
}

fn spawn_tasks(core: &Arc<Core>, network: Option<Network>, suspected: mpsc::Receiver<NodeId>) {
    let t = &core.tracker;
    if let Some(n) = network {
        let (control, rx) = mpsc::channel(256);
        let (relay, relayed) = mpsc::channel(relay::WAITING);
        t.spawn(n.listener.run(Routes { control, data: n.data_links, relay }, core.stop.clone()));
        t.spawn(server::accept(core.clone(), rx));
        t.spawn(relay::serve(core.clone(), relayed));
        t.spawn(watching::follow(core.clone()));
        t.spawn(keep_book(core.clone()));
    }
    t.spawn(lead::suspicions(core.clone(), suspected));
    t.spawn(lead::lead(core.clone()));
    t.spawn(lead::keep_answered(core.clone()));
    t.spawn(join::membership(core.clone()));
    if !core.local && !core.seeds.is_empty() {
        t.spawn(join::greet_seeds(core.clone()));
    }
    t.spawn(join::leases(core.clone()));
}

#[derive(Serialize, Deserialize)]
struct KnownPeer {
    node: String,
    host: String,
    client_port: u16,
    peer_port: u16,
}

fn load_book(dir: &Path, peers: &Peers) {
    let known: Vec<KnownPeer> = std::fs::read(dir.join("raft/peers.json"))
        .ok()
        .and_then(|b| serde_json::from_slice(&b).ok())
        .unwrap_or_default();
    let nodes = known.into_iter().filter_map(|k| {
        let addr = NodeAddr { host: k.host, client_port: k.client_port, peer_port: k.peer_port };
        NodeId::parse(&k.node).map(|n| (n, Known { addr, incarnation: 0, up: false }))
    });
    peers.pool.book.commit(nodes);
}

/// Follows the addresses in the state, and keeps a copy on disk for a start without a state.
async fn keep_book(core: Arc<Core>) {
    let mut applied = core.publisher.shared.applied.subscribe();
    let mut saved: Vec<(NodeId, Known)> = Vec::new();
    let mut epoch = None;
    loop {
        let now = applied.borrow_and_update().epoch;
        let formatted = core.publisher.read(|s| s.format.is_some());
        if formatted && epoch != Some(now) {
            epoch = Some(now);
            let nodes: Vec<_> = core.publisher.read(|s| {
                let here = s.nodes.values().filter(|n| n.state != NodeState::Out);
                here.map(|n| {
                    (n.id, Known { addr: n.addr.clone(), incarnation: n.incarnation, up: n.is_up() })
                })
                .collect()
            });
            if nodes != saved {
                core.peers.pool.book.commit(nodes.iter().cloned());
                save_book(&core, &nodes);
                saved = nodes;
            }
        }
        tokio::select! {
            () = core.stop.cancelled() => return,
            r = applied.changed() => if r.is_err() { return },
        }
    }
}

fn save_book(core: &Core, nodes: &[(NodeId, Known)]) {
    let known: Vec<KnownPeer> = nodes
        .iter()
        .map(|(n, k)| KnownPeer {
            node: n.to_string(),
            host: k.addr.host.clone(),
            client_port: k.addr.client_port,
            peer_port: k.addr.peer_port,
        })
        .collect();
    let saved = serde_json::to_vec(&known)
        .map_err(io::Error::other)
        .and_then(|json| write_atomically(&core.dir.join("raft/peers.json"), &[&json]));
    if let Err(error) = saved {
        tracing::warn!(%error, "known peers not saved");
    }
}
