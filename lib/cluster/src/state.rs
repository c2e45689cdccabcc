//! What the cluster agrees on.

use crate::{TrashKey, Trashed, VdiState};
use serde::{Deserialize, Serialize};
use sheepdog_proto::{ClusterId, ControlIndex, DiskId, Epoch, Generation, LayerId, NodeId, VdiId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Milliseconds since the Unix epoch, as told by the proposer of an entry. For people and long intervals only.
pub type Millis = u64;

/// In words: "3 copies", "4:2 (4 data and 2 parity strips)".
impl std::fmt::Display for Redundancy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Copies(1) => f.write_str("1 copy"),
            Self::Copies(n) => write!(f, "{n} copies"),
            Self::Erasure { data, parity } => {
                write!(f, "{data}:{parity} ({data} data and {parity} parity strips)")
            }
        }
    }
}

/// How many times, or how, an object is kept.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Redundancy {
    /// Full copies, 1 to 16.
    Copies(u8),
    /// Data and parity strips, for what has not been written for a while. What has is kept as copies, one more than there are parity strips: both bear the loss of as
    /// many nodes.
    Erasure {
        /// Data strips.
        data: u8,
        /// Parity strips.
        parity: u8,
    },
}

impl ClusterState {
    /// Is any family erasure coded, or was, while that is not settled?
    pub fn has_strips(&self) -> bool {
        self.families.values().any(|f| f.redundancy.strips().is_some())
            || self.altered.values().flatten().any(|(_, r)| r.strips().is_some())
    }
}

impl Redundancy {
    /// Copies of what was written lately, and of every object's header.
    pub fn width(self) -> usize {
        match self {
            Self::Copies(n) => n as usize,
            Self::Erasure { parity, .. } => parity as usize + 1,
        }
    }
    /// Number of nodes an object is spread over.
    pub fn spread(self) -> usize {
        match self {
            Self::Copies(n) => n as usize,
            Self::Erasure { data, parity } => data as usize + parity as usize,
        }
    }
    /// Data and parity strips.
    pub fn strips(self) -> Option<(u8, u8)> {
        match self {
            Self::Copies(_) => None,
            Self::Erasure { data, parity } => Some((data, parity)),
        }
    }
}

/// Decided at format.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Format {
    /// Identity.
    pub cluster: ClusterId,
    /// When.
    pub created: Millis,
    /// What a VDI gets when its creator does not say.
    pub redundancy: Redundancy,
    /// Copies that must have a write before it is acknowledged; `None` is copies - 1, at least 1.
    pub min_copies: Option<u8>,
    /// Refuse VDIs that ask for more copies than there are zones.
    pub strict: bool,
    /// Default object size, bytes.
    pub object_size: u32,
    /// Heartbeats and leases.
    pub timing: Timing,
    /// How objects lie on disks that have none yet; `None`: as each sheep was told.
    pub layout: Option<Layout>,
    /// How long what is deleted waits in the trash; 0: it does not. May be changed later, for what is deleted from then on.
    pub trash_keep: Millis,
}

/// How objects lie on a disk.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Layout {
    /// In a tree of directories.
    Tree,
    /// All in one directory.
    Plain,
}

/// Intervals in milliseconds, the same on all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Timing {
    /// Between two heartbeats of a node.
    pub heartbeat: u64,
    /// How long a heartbeat's answer lets a node serve.
    pub lease: u64,
    /// How long a node may be down before its data is rebuilt elsewhere.
    pub down_out: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat: 1_000, lease: 4_000, down_out: 600_000 }
    }
}

/// Where a node answers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct NodeAddr {
    /// Address or name the others reach it by.
    pub host: String,
    /// Clients and admin.
    pub client_port: u16,
    /// Peers and raft.
    pub peer_port: u16,
}

/// Life of a node.
///
/// ```text
/// (join) -> Up <-> Down -> Out -> (join again) Up
///            \-> Draining -> Out
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum NodeState {
    /// Serving.
    Up,
    /// Serving, but new placement leaves it out so that it empties.
    Draining,
    /// Silent or dead; still in the ring, its slots are empty, nothing moves.
    Down,
    /// Not in the ring.
    Out,
}

/// One disk as its node reports it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct DiskEntry {
    /// Identity.
    pub id: DiskId,
    /// Directory on its node.
    pub path: String,
    /// Bytes.
    pub capacity: u64,
    /// Failed or unplugged: what it held is gone from that node (committed, so that writes may go on without it). It is not taken back.
    pub retired: bool,
    /// The node came up without it. It may come back until the node is complete without it; with the only copy of something, also later.
    pub missing: bool,
}

impl DiskEntry {
    /// In use.
    pub fn is_there(&self) -> bool {
        !self.retired && !self.missing
    }
}

/// One sheep.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Node {
    /// Identity.
    pub id: NodeId,
    /// Address.
    pub addr: NodeAddr,
    /// Failure zone; a node without one is its own.
    pub zone: Option<String>,
    /// Relative weight, 1,000 = one unit (capacity in TiB, at least a little, unless set). Gateways have 0.
    pub weight: u32,
    /// Fixed number of virtual nodes instead of weight x 128. A node's part of the data is in proportion to them.
    pub vnodes: Option<u32>,
    /// Keeps no data.
    pub gateway: bool,
    /// State.
    pub state: NodeState,
    /// It was serving when it was taken out, by hand or because it was drained: this process stays away, its next one may join again.
    pub dismissed: bool,
    /// Random number of the running process; a new one means the process was restarted.
    pub incarnation: u64,
    /// Complete for everything up to this epoch: see `NodeMap`.
    pub synced: Epoch,
    /// Up to here it has everything that was its own at `synced`: it moves on while the node is up, also when a ring change asks for more. With `synced` at 0 it has been out, and up to
    /// here it had everything that was its own.
    pub kept: Epoch,
    /// Epoch in which it last came up.
    pub up_since: Epoch,
    /// Epoch that ended its last life as a holder: it may have acknowledged writes up to there. 0: never, or given up by force.
    pub down_at: Epoch,
    /// Epoch in which it lost data that it had (an emptied directory, a retired disk). 0: never, or given up by force.
    pub lost_at: Epoch,
    /// When it went down or out.
    pub since: Millis,
    /// Disks.
    pub disks: Vec<DiskEntry>,
    /// Software version.
    pub version: String,
}

/// Weights of one membership: the input of a placement ring.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct RingVersion {
    /// Epoch from which it was current.
    pub epoch: Epoch,
    /// Members in id order: (node, zone label, weight in 125ths of a virtual node).
    pub members: Vec<(NodeId, String, u32)>,
}

/// One line of the membership's history, for people and for returning nodes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct EpochRecord {
    /// Epoch.
    pub epoch: Epoch,
    /// When.
    pub at: Millis,
    /// What changed, in words.
    pub what: String,
    /// Nodes that came up with it.
    pub came: Vec<NodeId>,
    /// Nodes that are no longer up.
    pub went: Vec<NodeId>,
}

/// Objects of one chain share this.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Family {
    /// Redundancy it was made with: what it is now `ClusterState::redundancy` tells, or `NodeMap::redundancy` as of one map.
    pub redundancy: Redundancy,
    /// Bytes.
    pub object_size: u32,
    /// How many layers it has: it goes with the last.
    pub layers: u32,
}

/// A disk that is gone, and with it the only copy of something.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct LostDisk {
    /// Last epoch in which it was there.
    pub epoch: Epoch,
    /// Families of one copy that there were then, by root layer. Never empty.
    pub families: BTreeSet<LayerId>,
    /// Its node has become complete without it: should it come back, all else that is on it is old.
    pub outdated: bool,
    /// Its objects are there, but not all that was written to them: it is another disk since because its journal was damaged.
    pub rewound: bool,
}

/// Where a layer is in its life.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum LayerState {
    /// Top of a VDI: takes writes.
    Live,
    /// Under a snapshot: never changes.
    Frozen,
    /// Its snapshot was deleted but several layers stand on it: kept, not listed.
    Hidden,
    /// Being merged into its only child by every node on its own; leaves when all have reported.
    Merging {
        /// The child.
        into: LayerId,
        /// Nodes that are done, and have been complete since.
        done: BTreeSet<NodeId>,
    },
}

/// One layer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Layer {
    /// Id.
    pub id: LayerId,
    /// Root of its chain.
    pub family: LayerId,
    /// Next older layer, same family.
    pub parent: Option<LayerId>,
    /// Only at the bottom of a chain: the layer of another family that a clone stands on.
    pub base: Option<LayerId>,
    /// VDI it was made for.
    pub vdi: VdiId,
    /// State.
    pub state: LayerState,
    /// Layers whose parent this is.
    pub children: BTreeSet<LayerId>,
    /// Roots of other families whose base this is.
    pub clones: BTreeSet<LayerId>,
}

/// A snapshot of a VDI.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Snapshot {
    /// Number within the VDI, from 1.
    pub id: u32,
    /// Name; unique within the VDI when not empty.
    pub tag: String,
    /// Frozen layer.
    pub layer: LayerId,
    /// Size at that time, bytes.
    pub size: u64,
    /// When.
    pub created: Millis,
    /// It cannot be deleted before. 0: it can.
    pub locked_until: Millis,
    /// It was deleted, its volume was not.
    pub trashed: Option<Trashed>,
}

/// A lock that users take on a VDI.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Lock {
    /// Who, in words.
    pub holder: String,
    /// One holder only.
    pub exclusive: bool,
    /// When.
    pub since: Millis,
}

/// Who orders the writes of a VDI.
///
/// ```text
/// Closed --open--> Open{ready:false} --ready--> Open{ready:true} --close--> Closed
///    ^                   |  owner dies / restarts       |
///    |                   v                              v
///    '---------------- Unclean --open (by anyone, new generation, must reconcile)--> Open{ready:false}
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Session {
    /// Nobody; all copies are equal.
    Closed,
    /// An owner.
    Open {
        /// Node.
        owner: NodeId,
        /// Process of that node.
        incarnation: u64,
        /// Generation.
        generation: Generation,
        /// It has reconciled what its predecessor left and serves.
        ready: bool,
    },
    /// The owner died: copies may differ in the tail.
    Unclean {
        /// Last generation.
        generation: Generation,
    },
}

/// A node at which a VDI is open.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct GatewayOpen {
    /// Process.
    pub incarnation: u64,
    /// Names this registration: what was opened under an earlier one is void.
    pub since: ControlIndex,
}

/// A VDI.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Vdi {
    /// Id.
    pub id: VdiId,
    /// UUID, for CSI and tools.
    pub uuid: u128,
    /// Name; unique among those that are listed.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Working layer; `None` when only snapshots are left.
    pub top: Option<LayerId>,
    /// Root of the working chain.
    pub family: LayerId,
    /// Snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// Number the next snapshot gets.
    pub next_snapshot: u32,
    /// When.
    pub created: Millis,
    /// Attributes: key up to 256 bytes, value up to 64 KiB.
    pub attrs: BTreeMap<String, Vec<u8>>,
    /// Locks by holder.
    pub locks: Vec<Lock>,
    /// Session.
    pub session: Session,
    /// Highest generation ever given for it.
    pub generation: Generation,
    /// The base of a clone is being copied in.
    pub flattening: bool,
    /// Where it is open for writing: whose requests an owner takes, and who is asked before another open completes.
    pub gateways: BTreeMap<NodeId, GatewayOpen>,
    /// Who may use it, in order of their ids, bounded; empty: anybody.
    pub attachments: Vec<crate::Attachment>,
    /// How fast it may be used.
    pub limits: Limits,
    /// Can it be used, or was it deleted?
    pub state: VdiState,
}

/// How fast a volume may be used, at each of its gateways. 0: as fast as it can.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct Limits {
    /// Requests a second, of any kind.
    pub iops: u64,
    /// Requests that may go at once after a pause.
    pub iops_burst: u64,
    /// Bytes a second, read and written.
    pub bandwidth: u64,
    /// Bytes that may go at once after a pause.
    pub bandwidth_burst: u64,
}

/// Something worth telling people.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Event {
    /// Running number.
    pub id: u64,
    /// When.
    pub at: Millis,
    /// `info`, `warning` or `error`.
    pub level: EventLevel,
    /// Text.
    pub text: String,
}

/// How bad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Debug)]
pub enum EventLevel {
    /// Normal life.
    Info,
    /// Redundancy or space is reduced, or a person should look.
    Warning,
    /// Data or service is affected.
    Error,
}

/// Switches for background work.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct RecoveryConfig {
    /// May data move?
    pub enabled: bool,
    /// Bytes a second per node, 0 = no limit.
    pub max_bytes_per_s: u64,
    /// Objects at a time per node.
    pub concurrency: u32,
}

/// Everything.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct ClusterState {
    /// `None` before format.
    pub format: Option<Format>,
    /// Last applied entry.
    pub index: ControlIndex,
    /// Current epoch.
    pub epoch: Epoch,
    /// Members, past and present.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Rings that may still matter, oldest first; the last is current.
    pub rings: Vec<RingVersion>,
    /// History, bounded, always reaching back to the oldest epoch a member is synced to.
    pub history: VecDeque<EpochRecord>,
    /// Nodes up (or draining) at the end of it.
    pub up: BTreeSet<NodeId>,
    /// Volumes.
    pub vdis: BTreeMap<VdiId, Vdi>,
    /// By name: those that are listed.
    pub names: BTreeMap<String, VdiId>,
    /// Layers.
    pub layers: BTreeMap<LayerId, Layer>,
    /// Families, by root layer.
    pub families: BTreeMap<LayerId, Family>,
    /// Families whose redundancy was changed: (from the ring of this epoch on, so), ascending, what it was before first, as far back as there are rings.
    pub altered: BTreeMap<LayerId, Vec<(Epoch, Redundancy)>>,
    /// Disks that took only copies with them. Until they are back and their node is complete, or an operator accepts the loss, objects of these families that are nowhere count as lost, not as
    /// never written.
    pub lost: BTreeMap<(NodeId, DiskId), LostDisk>,
    /// Bumped whenever a chain changes shape (snapshot, rollback, merge, delete): caches of chains key on it. Also when something goes into the trash, comes back or is
    /// locked: the copy of the state on data disks is written again.
    pub layers_revision: u64,
    /// Last id given.
    pub last_id: u32,
    /// Last generation given.
    pub last_generation: u64,
    /// Last attachment given.
    pub last_attachment: u64,
    /// Background work.
    pub recovery: RecoveryConfig,
    /// Times a clean shutdown was ordered: a process stops when it sees it grow.
    pub shutdowns: u64,
    /// Losses an operator accepted, in words; shown for ever.
    pub forced: Vec<String>,
    /// Answers to the latest requests, bounded (4,096): see `Entry::request`.
    pub recent: VecDeque<(u128, crate::Reply)>,
    /// Latest events, bounded.
    pub events: VecDeque<Event>,
    /// Number the next event gets.
    pub next_event: u64,
    /// What is in the trash, by the end of its time: (until, VDI, snapshot or 0 for the volume itself).
    pub trash: BTreeSet<TrashKey>,
}

impl Default for RecoveryConfig {
    fn default() -> Self {
        Self { enabled: true, max_bytes_per_s: 0, concurrency: 4 }
    }
}

impl Session {
    /// This session is the VDI's, or is about to be. One whose owner was declared dead is not, also when the owner comes back before anybody else has asked for the
    /// VDI: fills did not wait for it meanwhile.
    pub fn is_of(&self, mine: Generation) -> bool {
        matches!(self, Self::Open { generation, .. } if *generation == mine)
    }
}

impl Vdi {
    /// Is this registration of a gateway in force?
    pub fn is_open_at(&self, node: NodeId, since: ControlIndex) -> bool {
        self.gateways.get(&node).is_some_and(|g| g.since == since)
    }
}

impl ClusterState {
    /// Drained: no ring that is in force needs this node any more.
    pub fn is_emptied(&self, node: &Node) -> bool {
        node.state == NodeState::Draining && self.rings.len() <= 1
    }

    /// The latest epochs, latest first, each with the nodes that were up (or draining) in it.
    pub fn latest_epochs(&self, count: usize) -> Vec<(&EpochRecord, Vec<NodeId>)> {
        let mut up = self.up.clone();
        let mut latest = Vec::new();
        for r in self.history.iter().rev().take(count) {
            latest.push((r, up.iter().copied().collect()));
            up.extend(&r.went);
            for n in &r.came {
                up.remove(n);
            }
        }
        latest
    }
}
