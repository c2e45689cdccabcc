//! Values that cross the store's boundary.

use bytes::Bytes;
use sheepdog_proto::peer::Seal;
use sheepdog_proto::{BlockMap, DiskId, Epoch, ObjectId, PlacementKey, VdiId, Version};
use std::ops::Range;

/// What a write does to its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteKind {
    /// New contents, `blocks.len() * 4096` bytes.
    Data(Bytes),
    /// Present, reads as zeros, takes no space: hides what older layers have.
    Zero,
    /// Absent: older layers show through.
    Remove,
}

/// One step of an object's log.
#[derive(Debug, Clone)]
pub struct WriteOp {
    /// Object.
    pub oid: ObjectId,
    /// Its placement key (decides the disk; stored in the header).
    pub key: PlacementKey,
    /// Volume it belongs to: tails and watermarks are kept per VDI.
    pub vdi: VdiId,
    /// Object size in bytes; fixed at the object's creation.
    pub object_size: u32,
    /// This step's place in the log.
    pub version: Version,
    /// The step before it. The store applies only if the object is exactly there.
    pub prev: Version,
    /// Map epoch of the write, becomes the header's epoch of last change.
    pub epoch: Epoch,
    /// Set when some holder of the object misses this write: its blocks are marked in the dirty map, which is
    /// emptied first if everything in it is older than this floor (every holder is known to be complete up to it).
    pub degraded: Option<Epoch>,
    /// Everything of this generation up to here is committed on all replicas.
    pub watermark: u64,
    /// Blocks of the object.
    pub blocks: Range<u32>,
    /// What to do to them.
    pub kind: WriteKind,
}

impl WriteOp {
    /// Payload bytes.
    pub fn bytes(&self) -> usize {
        match &self.kind {
            WriteKind::Data(d) => d.len(),
            WriteKind::Zero | WriteKind::Remove => 0,
        }
    }
}

/// What became of a `WriteOp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Applied and durable.
    Done,
    /// The object already has this version or a later one; it is durable.
    Duplicate,
    /// The object is not at `prev`: it lacks steps (or has others). Nothing was changed.
    Behind {
        /// Where the object is.
        current: Version,
    },
}

/// Header of an object as others need to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Object.
    pub oid: ObjectId,
    /// Placement key.
    pub key: PlacementKey,
    /// VDI that wrote it.
    pub vdi: VdiId,
    /// Bytes.
    pub object_size: u32,
    /// Last step applied.
    pub version: Version,
    /// Map epoch of the last change.
    pub epoch: Epoch,
    /// Blocks this layer has (with data or as zeros).
    pub present: BlockMap,
    /// Subset of `present` that reads as zeros and takes no space.
    pub zero: BlockMap,
    /// Blocks changed while some holder was missing, since `dirty_since`.
    pub dirty: BlockMap,
    /// Epoch at which `dirty` starts; `None` when it is empty.
    pub dirty_since: Option<Epoch>,
    /// Being filled from another copy: not a valid copy yet, whatever the version says.
    pub filling: bool,
    /// Of `present`, blocks whose contents are in strips.
    pub cold: BlockMap,
    /// Checksums of these, in order.
    pub cold_crcs: Vec<u32>,
    /// Which strips; there is one exactly when some block is cold.
    pub seal: Option<Seal>,
    /// It takes no seal of a lower number any more.
    pub promised: u32,
}

/// Blocks of an object whose contents are in strips.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColdRun {
    /// Object.
    pub oid: ObjectId,
    /// Its size, bytes.
    pub object_size: u32,
    /// Which strips.
    pub seal: Seal,
    /// Blocks.
    pub blocks: Range<u32>,
    /// Checksum of each.
    pub crcs: Vec<u32>,
}

/// Row of an inventory: an `ObjectInfo` without its maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectSummary {
    /// Object.
    pub oid: ObjectId,
    /// Placement key.
    pub key: PlacementKey,
    /// VDI that wrote it.
    pub vdi: VdiId,
    /// Bytes.
    pub object_size: u32,
    /// Last step applied.
    pub version: Version,
    /// Map epoch of the last change.
    pub epoch: Epoch,
    /// Being filled.
    pub filling: bool,
    /// Blocks with data here.
    pub data_blocks: u32,
    /// Others have theirs in strips: which.
    pub seal: Option<Seal>,
    /// It takes no seal of a lower number any more.
    pub promised: u32,
}

impl ObjectSummary {
    /// Are some of its contents in strips?
    pub fn sealed(&self) -> bool {
        self.seal.is_some()
    }
}

/// A write above its session's commit watermark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailEntry {
    /// Object.
    pub oid: ObjectId,
    /// The step.
    pub version: Version,
    /// The step before.
    pub prev: Version,
    /// Blocks it touched.
    pub blocks: Range<u32>,
}

impl TailEntry {
    /// Two entries of one object as one: from before the earlier one, all blocks between the outermost.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            oid: self.oid,
            version: self.version.max(other.version),
            prev: self.prev.min(other.prev),
            blocks: self.blocks.start.min(other.blocks.start)..self.blocks.end.max(other.blocks.end),
        }
    }
}

/// What a read of a chain of layers found.
#[derive(Debug, Clone)]
pub struct ReadResult {
    /// The range's bytes; blocks that no layer has are zeros.
    pub data: Bytes,
    /// Runs (absolute block numbers) that no layer of the chain has. Empty when everything was found.
    pub absent: Vec<Range<u32>>,
    /// Runs whose contents have to be fetched from strips: zeros in `data`.
    pub cold: Vec<ColdRun>,
}

/// A piece of a fill: contents for blocks, outside the object's log.
#[derive(Debug, Clone)]
pub struct FillOp {
    /// Blocks.
    pub blocks: Range<u32>,
    /// Contents.
    pub kind: WriteKind,
}

/// State of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskState {
    /// Serving.
    Ok,
    /// No room for new blocks beyond the reserve; reads and recovery clean-up go on.
    Full,
    /// An I/O error that cannot be trusted again, with its text. Serves nothing.
    Failed(String),
}

/// What is thought of a disk that works.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opinion {
    /// Why it is suspect, if it is.
    pub suspect: Option<String>,
    /// It will be full in so long, if it goes on as it has gone.
    pub full_in: Option<std::time::Duration>,
}

/// One disk, for listings and weights.
#[derive(Debug, Clone)]
pub struct DiskInfo {
    /// Identity, written on the disk.
    pub id: DiskId,
    /// Directory.
    pub path: String,
    /// Bytes the file system has.
    pub total: u64,
    /// Bytes free on it.
    pub free: u64,
    /// Bytes in object files.
    pub used: u64,
    /// Object files.
    pub objects: u64,
    /// State.
    pub state: DiskState,
    /// It is being emptied; why it is not empty yet, where that is known.
    pub leaving: Option<String>,
    /// What is thought of it.
    pub opinion: Opinion,
}

/// What the store tells the node without being asked.
#[derive(Debug, Clone)]
pub enum StoreEvent {
    /// A disk cannot be trusted any more; its objects are gone from this node.
    DiskFailed {
        /// Which.
        disk: DiskId,
        /// Why.
        reason: String,
    },
    /// A disk crossed into or out of `Full`.
    DiskFull {
        /// Which.
        disk: DiskId,
        /// In or out.
        full: bool,
    },
    /// A checksum mismatch was seen.
    Corrupt {
        /// Object.
        oid: ObjectId,
        /// Blocks.
        blocks: Range<u32>,
    },
}

/// Why the store refused.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// Blocks whose checksum does not match what was written. Heal them from another copy with `repair`.
    #[error("object {oid}: blocks {}..{} are corrupt", blocks.start, blocks.end)]
    Corrupt {
        /// Object.
        oid: ObjectId,
        /// Blocks.
        blocks: Range<u32>,
    },
    /// The header itself cannot be read.
    #[error("object {oid}: header is corrupt")]
    CorruptHeader {
        /// Object.
        oid: ObjectId,
    },
    /// What is asked for is not here but in strips.
    #[error("contents of object {oid} are in strips")]
    Sealed {
        /// Object.
        oid: ObjectId,
    },
    /// The write waited here while its epoch or its session ended.
    #[error("the write came too late")]
    Late,
    /// No room. The write may be tried again later.
    #[error("disk {disk} is full")]
    Full {
        /// Disk.
        disk: DiskId,
    },
    /// Another whole copy would leave less than is kept for clients.
    #[error(
        "the disk at {path} has {} MiB free, and nothing is rebuilt onto it that would leave less than {} MiB for clients: add disks or nodes, or remove data",
        free >> 20,
        kept >> 20
    )]
    NoRoomToRebuild {
        /// Directory of the disk.
        path: String,
        /// Bytes free.
        free: u64,
        /// Bytes that stay free.
        kept: u64,
    },
    /// The disk that holds (or would hold) the object has failed.
    #[error("disk {disk} has failed: {reason}")]
    DiskFailed {
        /// Disk.
        disk: DiskId,
        /// First error seen.
        reason: String,
    },
    /// This node has no usable disk.
    #[error("no usable disk on this node")]
    NoDisk,
    /// The caller asked for something that cannot be (a bug or a hostile peer).
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The store is closed.
    #[error("store is closed")]
    Closed,
}
