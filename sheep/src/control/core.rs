//! What the tasks of one control plane share: raft, links, applier, and the answers they are made of.

use super::detector::Detector;
use super::link::CallError;
use super::log_store::LogStore;
use super::raft_net::Peers;
use super::raft_types::{Proposal, RaftId, SheepRaft};
use super::rpc::{Heartbeat, LeaseReply, PeerInfo, Request, Response, StatusReply};
use super::{ControlError, Publisher, boottime_millis};
use bytes::Bytes;
use openraft::Instant as _;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use sheepdog_cluster::{Command, CommandError, Entry, NodeHello, NodeState, Reply, Timing};
use sheepdog_proto::{ClusterId, ControlIndex, NodeId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A waiting sheep that was not heard for this long is forgotten.
const WAITING_FOR: Duration = Duration::from_secs(10);
/// Largest entry of the log, bytes: an attribute has up to 64 KiB.
const MAX_ENTRY: usize = 128 << 10;
/// Most waiting sheep that are remembered.
const MAX_WAITING: usize = 4096;
/// Longest that one try of a proposal may take before another leader is looked for.
const TRY: Duration = Duration::from_secs(5);

/// Parts of a raft snapshot that have arrived from one node.
pub(super) struct Incoming {
    pub crc: u32,
    pub total: u64,
    pub data: Vec<u8>,
}

/// A state that watchers are fetching.
pub(super) struct Outgoing {
    pub index: ControlIndex,
    pub data: Bytes,
    pub made: Instant,
}

/// A sheep that waits for format.
#[derive(Clone)]
pub(super) struct Waiting {
    pub peer: PeerInfo,
    /// Cluster whose data is on its disks.
    pub remembers: Option<ClusterId>,
    heard: Instant,
}

pub(super) struct Core {
    pub dir: PathBuf,
    pub me: NodeId,
    pub incarnation: u64,
    pub local: bool,
    pub seeds: Vec<String>,
    pub hello: Mutex<NodeHello>,
    pub publisher: Publisher,
    pub log: LogStore,
    pub raft: SheepRaft,
    /// How far raft itself has applied; the state may be further, by a watch stream.
    pub raft_applied: tokio::sync::watch::Sender<Option<u64>>,
    pub peers: Arc<Peers>,
    pub detector: Mutex<Detector>,
    pub suspects: mpsc::Sender<NodeId>,
    /// Sheep that wait for format.
    pub waiting: Mutex<BTreeMap<NodeId, Waiting>>,
    /// Leader as others told us; raft knows better where we are part of it.
    pub hint: Mutex<Option<PeerInfo>>,
    /// Voters as others told us.
    pub voters_hint: Mutex<Vec<NodeId>>,
    pub incoming: Mutex<BTreeMap<NodeId, Incoming>>,
    pub outgoing: Mutex<Option<Outgoing>>,
    /// It was told that this node's disks are of another cluster than the one that asks it in.
    pub strange: AtomicBool,
    /// Wakes whoever waits for a cluster to join, or for the need to say hello again.
    pub nudge: Notify,
    /// Set while this node has been voted out of raft without having been told: the newest entry of its raft log then. Over as soon as raft goes on here.
    pub demoted: Mutex<Option<u64>>,
    /// When the clocks last disagreed about how much time passed: the host slept.
    pub slept: Mutex<(u64, Instant)>,
    pub started: Instant,
    pub stop: CancellationToken,
    pub tracker: TaskTracker,
}

/// Milliseconds since the Unix epoch.
pub(super) fn wall_millis() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| d.as_millis() as u64)
}

/// Where this node stands in raft.
#[derive(Clone, Debug)]
pub(super) struct RaftView {
    pub leader: Option<NodeId>,
    pub am_leader: bool,
    /// Leading, and everything of former terms is applied.
    pub established: bool,
    pub term: u64,
    pub voters: Vec<NodeId>,
    /// Who votes is being changed: the voters before have a say still.
    pub changing: bool,
    /// Voter or learner, and fed by raft.
    pub member: bool,
    pub quorum_acked: Option<Instant>,
    /// Newest entry of the log.
    pub last_log: Option<u64>,
    /// Newest entry that raft has applied.
    pub last_applied: Option<u64>,
}

impl Core {
    pub fn raft_view(&self) -> RaftView {
        let rx = self.raft.metrics();
        let m = rx.borrow_watched();
        let id = RaftId(self.me);
        let am_leader = m.state == ServerState::Leader;
        let membership = m.membership_config.membership();
        let voters: Vec<NodeId> = membership.voter_ids().map(|v| v.0).collect();
        let alone = voters == [self.me];
        RaftView {
            leader: m.current_leader.map(|l| l.0),
            am_leader,
            established: am_leader
                && m.last_applied.is_some_and(|l| l.committed_leader_id().term == m.current_term),
            term: m.current_term,
            changing: membership.get_joint_config().len() > 1
                || m.membership_config.log_id() != m.committed_membership_config.log_id(),
            voters,
            last_log: m.last_log_index,
            last_applied: m.last_applied.as_ref().map(|l| l.index),
            member: membership.get_node(&id).is_some() && !self.is_demoted(m.last_log_index),
            quorum_acked: match alone {
                true => Some(Instant::now()),
                false => m.last_quorum_acked.and_then(|t| Instant::now().checked_sub(t.elapsed())),
            },
        }
    }
    fn is_demoted(&self, last_log: Option<u64>) -> bool {
        let mut demoted = self.demoted.lock().expect("no panic under this lock");
        *demoted = demoted.filter(|at| last_log.is_none_or(|last| last <= *at));
        demoted.is_some()
    }
    /// The others have voted without this node, and raft does not go on here: from now on it watches. (Those that are voted out are not told: the
    /// leader stops sending before the entry that says so is committed.)
    pub fn demote(&self, last_log: u64) {
        *self.demoted.lock().expect("no panic under this lock") = Some(last_log);
    }
    pub fn cluster(&self) -> Option<ClusterId> {
        self.peers.identity.lock().expect("no panic under this lock").cluster
    }
    pub fn timing(&self) -> Timing {
        self.publisher.read(|s| s.format.as_ref().map_or_else(Timing::default, |f| f.timing))
    }
    /// This process is up in the state as it is known here.
    pub fn am_up(&self) -> bool {
        self.publisher.read(|s| {
            let n = s.nodes.get(&self.me);
            n.is_some_and(|n| {
                n.incarnation == self.incarnation && matches!(n.state, NodeState::Up | NodeState::Draining)
            })
        })
    }
    /// A clean shutdown is under way: nobody is declared anything.
    pub fn quiet(&self) -> bool {
        self.publisher.shared.shutdown.is_cancelled()
    }
    pub fn peer_info(&self, node: NodeId) -> Option<PeerInfo> {
        if node == self.me {
            return Some(self.peers.me.clone());
        }
        let incarnation = self.publisher.read(|s| s.nodes.get(&node).map_or(0, |n| n.incarnation));
        let addr = self.peers.pool.book.get(node)?;
        Some(PeerInfo { node, incarnation, addr })
    }
    /// The leader as far as this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        let v = self.raft_view();
        match v.member && v.leader.is_some() {
            true => v.leader,
            false => self.hint.lock().expect("no panic under this lock").as_ref().map(|p| p.node),
        }
    }
    pub fn set_hint(&self, leader: Option<PeerInfo>) {
        if let Some(p) = &leader
            && p.node != self.me
        {
            self.learn_address(p);
        }
        *self.hint.lock().expect("no panic under this lock") = leader.filter(|p| p.node != self.me);
    }
    /// Hearsay: only for nodes whose address is not known at all.
    pub fn learn_address(&self, p: &PeerInfo) {
        if p.node != self.me && self.peers.pool.book.get(p.node).is_none() {
            self.peers.pool.book.hear(p);
        }
    }
    pub fn note_waiting(&self, p: &PeerInfo, remembers: Option<ClusterId>) {
        let mut w = self.waiting.lock().expect("no panic under this lock");
        w.retain(|_, w| w.heard.elapsed() < WAITING_FOR);
        if w.len() < MAX_WAITING && p.node != self.me {
            w.insert(p.node, Waiting { peer: p.clone(), remembers, heard: Instant::now() });
        }
    }
    pub fn waiting(&self) -> Vec<Waiting> {
        let mut w = self.waiting.lock().expect("no panic under this lock");
        w.retain(|_, w| w.heard.elapsed() < WAITING_FOR);
        w.values().cloned().collect()
    }
    pub fn waiting_peers(&self) -> Vec<PeerInfo> {
        self.waiting().into_iter().map(|w| w.peer).collect()
    }
    pub fn status(&self) -> StatusReply {
        let v = self.raft_view();
        let member = self.publisher.read(|s| s.format.is_some());
        let mut peers: Vec<PeerInfo> = self
            .publisher
            .read(|s| {
                s.nodes.values().filter(|n| n.state != NodeState::Out).map(|n| n.id).collect::<Vec<_>>()
            })
            .into_iter()
            .filter_map(|n| self.peer_info(n))
            .collect();
        peers.extend(self.waiting_peers());
        peers.truncate(64);
        StatusReply {
            me: self.peers.me.clone(),
            cluster: self.cluster().filter(|_| member),
            remembers: self.peers.remembers,
            leader: self.leader().and_then(|n| self.peer_info(n)),
            peers,
            applied: self.publisher.read(|s| s.index),
            voters: match v.member {
                true => v.voters,
                false => self.voters_hint.lock().expect("no panic under this lock").clone(),
            },
        }
    }
    /// Commit here, as leader.
    pub async fn propose_here(&self, entry: Entry) -> Response {
        // A state read back from disks is as large as it is; nothing else is long.
        let short = matches!(entry.command, Command::Restore(_))
            || postcard::serialize_with_flavor(&entry, postcard::ser_flavors::Size::default())
                .is_ok_and(|n| n <= MAX_ENTRY);
        if !short {
            let text =
                format!("a change of more than {} KiB is not taken: shorten its texts", MAX_ENTRY >> 10);
            return Response::Proposed(Reply::Error(CommandError::Invalid(text)), ControlIndex(0));
        }
        match self.raft.client_write(Proposal(entry)).await {
            Ok(r) => Response::Proposed(r.data.0, ControlIndex(r.log_id.index)),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(f))) => {
                Response::NotLeader(f.leader_id.and_then(|l| self.peer_info(l.0)))
            }
            Err(e) => Response::Error(e.to_string()),
        }
    }
    /// One try, wherever the leader is.
    async fn propose_once(&self, entry: &Entry) -> Result<Response, CallError> {
        match self.leader() {
            Some(n) if n == self.me => Ok(self.propose_here(entry.clone()).await),
            Some(n) => self.peers.call(n, &Request::Propose(entry.clone()), TRY).await,
            None => Ok(Response::NotLeader(None)),
        }
    }
    /// Commit, wherever the leader is, trying until `deadline`.
    pub async fn propose(
        &self,
        entry: Entry,
        deadline: Duration,
    ) -> Result<(Reply, ControlIndex), ControlError> {
        let end = Instant::now() + deadline;
        let mut why = "no leader is known".to_string();
        let mut pause = Duration::from_millis(20);
        loop {
            if self.stop.is_cancelled() {
                return Err(ControlError::ShuttingDown);
            }
            if self.cluster().is_none() {
                return Err(ControlError::NotFormatted);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ControlError::Unavailable(why));
            }
            match tokio::time::timeout(left.min(TRY), self.propose_once(&entry)).await {
                Ok(Ok(Response::Proposed(reply, index))) => return Ok((reply, index)),
                Ok(Ok(Response::NotLeader(hint))) => {
                    why = "no leader is elected".into();
                    match hint {
                        Some(h) => self.set_hint(Some(h)),
                        None => self.ask_around().await,
                    }
                }
                Ok(Ok(Response::Error(e))) => why = e,
                Ok(Ok(_)) => why = "the leader gave an answer to another question".into(),
                Ok(Err(e)) => {
                    why = e.to_string();
                    self.ask_around().await;
                }
                Err(_) => why = "the leader did not answer in time".into(),
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(pause.min(left)) => {}
            }
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }
    /// Ask nodes we know who leads. Raft knows by itself where we are part of it.
    pub async fn ask_around(&self) {
        let v = self.raft_view();
        if v.member && v.leader.is_some() {
            return;
        }
        let mut nodes: Vec<NodeId> = self.publisher.read(|s| {
            let up = s.nodes.values().filter(|n| n.id != self.me && n.state != NodeState::Out);
            up.map(|n| n.id).collect()
        });
        let hinted = self.voters_hint.lock().expect("no panic under this lock").clone();
        nodes.extend(hinted.into_iter().chain(self.leader()).filter(|n| *n != self.me));
        nodes.sort_unstable();
        nodes.dedup();
        // A few at random: everyone knows, and in a big cluster not everyone is to be asked.
        for i in 0..nodes.len().min(5) {
            let j = rand::random_range(i..nodes.len());
            nodes.swap(i, j);
        }
        nodes.truncate(5);
        let asks = nodes.iter().map(|n| self.peers.call(*n, &Request::Status, Duration::from_secs(1)));
        let mut found = false;
        for r in futures::future::join_all(asks).await {
            if let Ok(Response::Status(s)) = r {
                found |= s.leader.is_some();
                self.heed_status(&s);
            }
        }
        if !found {
            self.ask_seeds().await;
        }
    }
    /// Use what someone told us about the cluster.
    pub fn heed_status(&self, s: &StatusReply) {
        if s.cluster.is_none() || s.cluster != self.cluster() {
            return;
        }
        for p in &s.peers {
            self.learn_address(p);
        }
        if s.leader.is_some() {
            self.set_hint(s.leader.clone());
        }
        if !s.voters.is_empty() {
            *self.voters_hint.lock().expect("no panic under this lock") = s.voters.clone();
        }
    }
    /// Grant a lease, as leader.
    pub fn heartbeat(&self, hb: Heartbeat) -> Result<LeaseReply, Option<PeerInfo>> {
        let v = self.raft_view();
        if !v.am_leader {
            return Err(self.leader().and_then(|l| self.peer_info(l)));
        }
        let timing = self.timing();
        let (known, emptied, min_index) = self.publisher.read(|s| {
            let node = s.nodes.get(&hb.node).filter(|n| n.incarnation == hb.incarnation && n.is_up());
            (node.is_some(), node.is_some_and(|n| s.is_emptied(n)), s.index)
        });
        let now = boottime_millis();
        let mono = Instant::now();
        let acked = v.quorum_acked.filter(|t| v.established && self.awake_since(now, mono) <= *t);
        let Some(acked) = acked else { return Ok(LeaseReply::NotNow) };
        let lease = timing.lease.saturating_sub(mono.saturating_duration_since(acked).as_millis() as u64);
        if lease == 0 {
            return Ok(LeaseReply::NotNow);
        }
        if !known {
            return Ok(LeaseReply::NotUp);
        }
        if emptied {
            // Drained: it is taken out as soon as the lease it has is over.
            return Ok(LeaseReply::NotNow);
        }
        let mut d = self.detector.lock().expect("no panic under this lock");
        if !d.leads() {
            return Ok(LeaseReply::NotNow);
        }
        d.grant(hb.node, now + lease);
        Ok(LeaseReply::Granted { lease, min_index })
    }
    /// Since when the monotonic clock, in which raft counts, has kept up with the boot-time clock, in which leases count. After the host
    /// slept, what a majority said before is worth nothing.
    fn awake_since(&self, boot: u64, mono: Instant) -> Instant {
        let offset = boot.saturating_sub(mono.duration_since(self.started).as_millis() as u64);
        let mut slept = self.slept.lock().expect("no panic under this lock");
        if offset > slept.0 + 20 {
            *slept = (offset, mono);
        }
        slept.1
    }
}
