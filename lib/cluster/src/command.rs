//! What can be asked of the state machine, and what it answers.

use crate::state::{DiskEntry, Format, Limits, Millis, NodeAddr, Timing};
use crate::{Access, AttachmentRef, EventLevel, Redundancy};
use serde::{Deserialize, Serialize};
use sheepdog_proto::{
    AttachmentId, ClusterId, ControlIndex, DiskId, Epoch, Generation, LayerId, NodeId, VdiId,
};

/// One entry of the control plane's log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Entry {
    /// The proposer's clock.
    pub now: Millis,
    /// Made by the proposer: an entry that is proposed again after a lost answer is answered from `ClusterState::recent`, not applied
    /// twice. 0 = not remembered.
    pub request: u128,
    /// What to do.
    pub command: Command,
}

/// A snapshot, named by its number or its tag.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum SnapshotRef {
    /// Number.
    Id(u32),
    /// Tag (a tag of digits only is tried as a tag first).
    Tag(String),
}

/// A node as it introduces itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct NodeHello {
    /// Identity.
    pub id: NodeId,
    /// Address.
    pub addr: NodeAddr,
    /// Zone.
    pub zone: Option<String>,
    /// Weight, 1,000 = one unit.
    pub weight: u32,
    /// Fixed virtual nodes.
    pub vnodes: Option<u32>,
    /// Keeps no data.
    pub gateway: bool,
    /// Process.
    pub incarnation: u64,
    /// Disks.
    pub disks: Vec<DiskEntry>,
    /// Software version.
    pub version: String,
    /// The node has data of this cluster (false: virgin disks, whatever the map remembers is gone from it).
    pub has_data: bool,
}

/// Changes of the cluster state. Every one is idempotent or refused when repeated.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Command {
    /// First entry of a cluster.
    Format(Format),
    /// Replace everything by a state read back from disks (`cluster rebuild --from-disks`), under the new cluster's log.
    Restore(Box<crate::ClusterState>),
    /// A node (re)appears: joins, comes up after down or out, or was restarted (new incarnation: its sessions become unclean).
    NodeUp(NodeHello),
    /// Declared dead. `incarnation` guards against declaring a process dead that was already replaced.
    NodeDown {
        /// Node.
        node: NodeId,
        /// Process.
        incarnation: u64,
    },
    /// Leaves the ring; its data is rebuilt elsewhere.
    NodeOut {
        /// Node.
        node: NodeId,
    },
    /// Start (or with `false` cancel) emptying a node.
    NodeDrain {
        /// Node.
        node: NodeId,
        /// On or off.
        on: bool,
    },
    /// The node has everything the map says it should have, up to this epoch.
    NodeSynced {
        /// Node.
        node: NodeId,
        /// Process that says so.
        incarnation: u64,
        /// Epoch.
        epoch: Epoch,
    },
    /// New weight or virtual nodes.
    NodeWeight {
        /// Node.
        node: NodeId,
        /// Weight, 1,000 = one unit.
        weight: Option<u32>,
        /// Fixed virtual nodes (0 = back to weight).
        vnodes: Option<u32>,
    },
    /// A disk failed or was unplugged: what it held is gone; the node must sync again for everything.
    DiskRetired {
        /// Node.
        node: NodeId,
        /// Disk.
        disk: DiskId,
    },
    /// A disk was plugged.
    DiskAdded {
        /// Node.
        node: NodeId,
        /// Disk.
        disk: DiskEntry,
    },
    /// New VDI.
    VdiCreate {
        /// Name.
        name: String,
        /// UUID, made by the proposer.
        uuid: u128,
        /// Bytes.
        size: u64,
        /// `None`: the cluster's.
        redundancy: Option<Redundancy>,
        /// `None`: the cluster's.
        object_size: Option<u32>,
    },
    /// Delete the working layer (snapshots stay unless said otherwise) or one snapshot: into the trash, if the cluster has one.
    VdiDelete {
        /// VDI.
        vdi: VdiId,
        /// Snapshot instead of the working layer.
        snapshot: Option<SnapshotRef>,
        /// Also every snapshot that is listed.
        with_snapshots: bool,
        /// Not into the trash.
        at_once: bool,
    },
    /// New name.
    VdiRename {
        /// VDI.
        vdi: VdiId,
        /// Name.
        name: String,
    },
    /// New size. Shrinking is allowed here; the owner has already removed what lies beyond.
    VdiResize {
        /// VDI.
        vdi: VdiId,
        /// Bytes.
        size: u64,
        /// Generation of the session that asks; `None` only when there is none.
        generation: Option<Generation>,
    },
    /// Freeze the working layers of several VDIs at one point, all or none.
    Snapshot {
        /// VDIs with the generation of their session (`None` only when there is none).
        vdis: Vec<(VdiId, Option<Generation>)>,
        /// Tag.
        tag: String,
    },
    /// New VDI on a snapshot.
    Clone {
        /// Source.
        source: VdiId,
        /// Snapshot.
        snapshot: SnapshotRef,
        /// Name.
        name: String,
        /// UUID.
        uuid: u128,
        /// `None`: as the source.
        redundancy: Option<Redundancy>,
        /// Copy the base in, in the background.
        flatten: bool,
    },
    /// Start flattening a clone.
    FlattenStart {
        /// VDI.
        vdi: VdiId,
    },
    /// The base is copied in completely: let it go.
    FlattenDone {
        /// VDI.
        vdi: VdiId,
        /// Session that did it.
        generation: Generation,
    },
    /// The working layer becomes a new one on top of a snapshot.
    Rollback {
        /// VDI.
        vdi: VdiId,
        /// Snapshot.
        snapshot: SnapshotRef,
        /// As in `VdiResize`.
        generation: Option<Generation>,
    },
    /// Another number of copies.
    AlterCopies {
        /// VDI (all VDIs of the same family follow), or `None` for the cluster's default.
        vdi: Option<VdiId>,
        /// New.
        redundancy: Redundancy,
    },
    /// Set or (with `None`) delete an attribute. `exclusive`: fail if it exists.
    SetAttr {
        /// VDI.
        vdi: VdiId,
        /// Key.
        key: String,
        /// Value.
        value: Option<Vec<u8>>,
        /// Fail if it exists.
        exclusive: bool,
    },
    /// Take a lock.
    Lock {
        /// VDI.
        vdi: VdiId,
        /// Who.
        holder: String,
        /// Alone.
        exclusive: bool,
    },
    /// Give a lock back; `holder` `None` breaks all.
    Unlock {
        /// VDI.
        vdi: VdiId,
        /// Who.
        holder: Option<String>,
    },
    /// Become the owner. Refused with `Owned` while another live process is.
    SessionOpen {
        /// VDI.
        vdi: VdiId,
        /// Node.
        node: NodeId,
        /// Process.
        incarnation: u64,
    },
    /// The owner has reconciled and serves.
    SessionReady {
        /// VDI.
        vdi: VdiId,
        /// Generation.
        generation: Generation,
    },
    /// The owner has drained: all copies are equal.
    SessionClose {
        /// VDI.
        vdi: VdiId,
        /// Generation.
        generation: Generation,
    },
    /// This node has merged everything of a layer into its child.
    LayerMerged {
        /// Layer.
        layer: LayerId,
        /// Node.
        node: NodeId,
        /// It was complete for this epoch before it began. Refused with `Busy` when that is not so any more.
        epoch: Epoch,
    },
    /// Recovery switches; absent = unchanged.
    Recovery {
        /// On or off.
        enabled: Option<bool>,
        /// Bytes a second per node, 0 = no limit.
        max_bytes_per_s: Option<u64>,
        /// Objects at a time.
        concurrency: Option<u32>,
    },
    /// Intervals.
    SetTiming(Timing),
    /// All processes stop cleanly.
    Shutdown,
    /// An operator accepts loss: nodes that are not synced count as synced.
    Force {
        /// Why, in the operator's words.
        reason: String,
    },
    /// Tell people.
    Note {
        /// How bad.
        level: EventLevel,
        /// Text.
        text: String,
    },
    /// Changes nothing: that it is committed shows its leader that a majority follows.
    Nothing,
    /// A gateway opens a VDI for writing. The answer names the registration; the same process gets the same again.
    GatewayOpen {
        /// VDI.
        vdi: VdiId,
        /// Node.
        node: NodeId,
        /// Process.
        incarnation: u64,
    },
    /// A registration ends: the gateway has no open of the VDI any more, or (`fence`) it is not up as the process that has them, and nothing of what it had open
    /// is to happen any more.
    GatewayClose {
        /// VDI.
        vdi: VdiId,
        /// Node.
        node: NodeId,
        /// Registration.
        since: ControlIndex,
        /// Asked for by another node; refused with `Busy` while the gateway is up.
        fence: bool,
    },
    /// Let somebody use a VDI. The answer names the attachment; the same holder and access get the same again.
    Attach {
        /// VDI.
        vdi: VdiId,
        /// Who.
        holder: String,
        /// How.
        access: Access,
    },
    /// Let somebody use a VDI no longer; done when there is nothing to detach.
    Detach {
        /// VDI.
        vdi: VdiId,
        /// Who.
        which: AttachmentRef,
    },
    /// A disk that is being taken away has nothing on it any more, as its sheep says: it is forgotten, and may come back as a new one.
    DiskEmptied {
        /// Node.
        node: NodeId,
        /// Process that says so. Another one may have put something on it.
        incarnation: u64,
        /// Disk.
        disk: DiskId,
    },
    /// How fast a VDI may be used from now on.
    SetLimits {
        /// VDI.
        vdi: VdiId,
        /// New.
        limits: Limits,
    },
    /// Take something out of the trash again.
    TrashRestore {
        /// VDI.
        vdi: VdiId,
        /// This snapshot, else the volume itself.
        snapshot: Option<u32>,
        /// Other name or tag than it had.
        name: Option<String>,
    },
    /// Really delete something in the trash.
    TrashPurge {
        /// VDI.
        vdi: VdiId,
        /// This snapshot, else the volume itself.
        snapshot: Option<u32>,
    },
    /// Really delete what has been in the trash for its time, a bounded number of things. Done when there is nothing.
    TrashExpire,
    /// How long what is deleted from now on waits in the trash.
    SetTrash {
        /// Milliseconds; 0: not at all.
        keep: Millis,
    },
    /// A snapshot cannot be deleted until then. May be repeated to extend it, never to shorten it.
    SnapshotLock {
        /// VDI.
        vdi: VdiId,
        /// Snapshot.
        snapshot: SnapshotRef,
        /// When it can be deleted again.
        until: Millis,
    },
}

/// Answer to a command.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Reply {
    /// Done (or was done before).
    Done,
    /// Cluster made.
    Formatted(ClusterId),
    /// Epoch after the change.
    Epoch(Epoch),
    /// VDI made.
    Vdi(VdiId),
    /// Snapshots made: per VDI (id, snapshot number, new working layer).
    Snapshots(Vec<(VdiId, u32, LayerId)>),
    /// You are the owner. `reconcile`: the previous session ended uncleanly.
    Session {
        /// Generation.
        generation: Generation,
        /// Copies may differ.
        reconcile: bool,
    },
    /// Someone else is.
    Owned {
        /// Owner.
        owner: NodeId,
        /// Generation.
        generation: Generation,
    },
    /// Refused.
    Error(CommandError),
    /// `GatewayOpen`: the registration.
    Registered(ControlIndex),
    /// `Attach`: the attachment.
    Attached(AttachmentId),
}

/// Why a command was refused. The text says what to do.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, thiserror::Error)]
pub enum CommandError {
    /// No such thing.
    #[error("{0}")]
    NotFound(String),
    /// Already there.
    #[error("{0}")]
    Exists(String),
    /// In use, locked, or owned by a session.
    #[error("{0}")]
    Busy(String),
    /// Out of range.
    #[error("{0}")]
    Invalid(String),
    /// Not enough nodes or zones.
    #[error("{0}")]
    NotEnough(String),
    /// The generation is not the session's any more.
    #[error("the session was taken over")]
    Fenced,
    /// Not formatted.
    #[error("the cluster is not formatted yet: run `dog cluster format`")]
    NotFormatted,
}
