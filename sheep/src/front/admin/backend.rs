//! What the admin front-end needs from the daemon: `AdminBackend` (the process) and `DataPlane` (the data thread).
//!
//! Everything that is only a proposal to, or a listing of, the control plane is done by the front-end itself through `AdminBackend::control`.
//! Both traits speak of *this* node only: asking others is the front-end's work.
//!
//! A change that must lie between two writes (snapshot, resize, rollback) is done in three steps, which also work for many VDIs on many owners:
//! `hold` at each owner, one proposal, `let_go`. A hold that is not let go ends by itself after its timeout.

use crate::control::{Control, SendFut};
use crate::store::{DiskInfo, DiskState};
use crate::volume::VolumeError;
use crate::work::scrub::report::Report;
use bytes::Bytes;
use sheepdog_client::{Error, ErrorKind};
use sheepdog_cluster::Format;
use sheepdog_proto::{
    AttachmentId, ClusterId, ControlIndex, Generation, LayerId, NodeId, ObjectId, PlacementKey, VdiId,
    Version,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Answer of a data plane operation.
pub type DataResult<T> = Result<T, DataError>;

/// Why a data plane operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DataError {
    /// As on a volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Another node owns the session: ask there. `None`: ask again in a moment.
    #[error("the session moved to another node")]
    NotOwner(Option<NodeId>),
    /// In use.
    #[error("{0}")]
    Busy(String),
    /// No such disk, object.
    #[error("{0}")]
    NotFound(String),
    /// An argument makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Not part of this release.
    #[error("{0}")]
    Unsupported(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl From<DataError> for Error {
    fn from(e: DataError) -> Self {
        use ErrorKind as K;
        let kind = match &e {
            DataError::Volume(v) => match v {
                VolumeError::NotFound(_) => K::Missing,
                VolumeError::OutOfRange => K::Usage,
                VolumeError::ReadOnly
                | VolumeError::Busy(_)
                | VolumeError::Gone(_)
                | VolumeError::NotAttached(_)
                | VolumeError::Fenced => K::Busy,
                VolumeError::NotFast => K::Unsupported,
                VolumeError::Io(_) => K::Internal,
                VolumeError::ShuttingDown => K::Cluster,
            },
            DataError::NotOwner(_) => K::Moved,
            DataError::Busy(_) => K::Busy,
            DataError::NotFound(_) => K::Missing,
            DataError::Invalid(_) => K::Usage,
            DataError::Unsupported(_) => K::Unsupported,
            DataError::Failed(_) => K::Internal,
        };
        Error::new(kind, e.to_string())
    }
}

/// An image to read: a VDI as it is now, or one of its snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// VDI.
    pub vdi: VdiId,
    /// Frozen layer of the snapshot; `None`: the working image.
    pub layer: Option<LayerId>,
}

/// A piece of contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes, at most 1 MiB.
    Data(Bytes),
    /// So many bytes that read as zeros.
    Zeros(u64),
}

/// A volume opened by the admin interface, for `dog vdi read` and `write`. Dropping it closes it in order.
pub trait AdminVolume: Send + Sync {
    /// Bytes, now.
    fn size(&self) -> u64;
    /// What is read from now on makes way for clients.
    fn set_background(&self);
    /// The next piece at `offset`, at least 1 byte and at most `len`.
    fn read(&self, offset: u64, len: u64) -> SendFut<'_, DataResult<Piece>>;
    /// Write; durable when done. `Zeros` may be done without allocating.
    fn write(&self, offset: u64, piece: Piece) -> SendFut<'_, DataResult<()>>;
    /// Make sure that a range has space, keeping its contents.
    fn allocate(&self, offset: u64, len: u64) -> SendFut<'_, DataResult<()>>;
    /// Close; completes when nothing is in flight any more.
    fn close(&self) -> SendFut<'_, ()>;
}

/// One step of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckStep {
    /// Objects looked at.
    pub done: u64,
    /// Objects in all.
    pub total: u64,
    /// Something wrong, if anything.
    pub finding: Option<CheckFinding>,
}

/// A copy that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckFinding {
    /// Object.
    pub oid: ObjectId,
    /// Whose copy.
    pub node: NodeId,
    /// What is wrong, in words.
    pub text: String,
    /// Put right.
    pub repaired: bool,
}

/// Steps of long work: done and total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Step {
    /// Done.
    pub done: u64,
    /// In all.
    pub total: u64,
}

/// State of this node's copy of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalCopy {
    /// Last step applied.
    pub version: Version,
    /// Bytes with data.
    pub bytes: u64,
    /// Being filled.
    pub filling: bool,
    /// Some blocks do not match their checksums.
    pub corrupt: bool,
    /// Disk path.
    pub disk: String,
}

/// An object that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapRow {
    /// Index.
    pub index: u32,
    /// Newest layer that has some of it.
    pub layer: LayerId,
    /// Bytes with data, as far as one copy tells.
    pub bytes: u64,
}

/// A changed range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiffRow {
    /// Offset in the volume.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Reads as zeros now.
    pub zero: bool,
}

/// Counters since the process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Requests.
    pub reads: u64,
    /// Requests.
    pub writes: u64,
    /// Trim and zero requests.
    pub discards: u64,
    /// Requests.
    pub flushes: u64,
    /// Bytes.
    pub read_bytes: u64,
    /// Bytes.
    pub write_bytes: u64,
    /// Sum of latencies, microseconds.
    pub read_us: u64,
    /// Sum of latencies, microseconds.
    pub write_us: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// One VDI open on this node.
#[derive(Debug, Clone, Default)]
pub struct VdiCounters {
    /// VDI.
    pub vdi: VdiId,
    /// Counters.
    pub io: IoCounters,
    /// Requests in flight.
    pub in_flight: u64,
    /// Connections of clients here.
    pub connections: u64,
}

/// This node.
#[derive(Debug, Clone, Default)]
pub struct NodeCounters {
    /// Requests of clients of this gateway.
    pub client: IoCounters,
    /// Requests of other sheep.
    pub peer: IoCounters,
    /// In flight.
    pub client_active: u64,
    /// In flight.
    pub peer_active: u64,
    /// Connections of clients.
    pub connections: u64,
    /// Sessions owned.
    pub sessions: u64,
    /// Journal bytes not yet applied.
    pub journal_bytes: u64,
    /// Resident memory.
    pub resident_bytes: u64,
    /// Age of the process.
    pub uptime: Duration,
}

/// Recovery of this node.
#[derive(Debug, Clone, Default)]
pub struct RecoveryState {
    /// Objects.
    pub objects: Step,
    /// Bytes fetched since the process started.
    pub bytes_moved: u64,
    /// Waits for something, in words.
    pub waiting: Option<String>,
}

/// The data thread, seen from the control runtime. Implementations send a message there and wait for its answer; a future that is dropped gives up
/// the answer, not necessarily the work.
pub trait DataPlane: Send + Sync {
    /// Keep back new writes of a VDI and let those in flight finish, for at most `timeout`. Opens the session here first when the last one ended
    /// uncleanly. The session's generation, or `None` when no session is open (and none will be opened here before `let_go`).
    fn hold(&self, vdi: VdiId, timeout: Duration) -> SendFut<'_, DataResult<Option<Generation>>>;
    /// Look at the committed state (top layer, size) and let writes go on.
    fn let_go(&self, vdi: VdiId, known: Option<ControlIndex>) -> SendFut<'_, ()>;
    /// Close the session that this node owns if no client uses it; `Busy` when one does. Nothing to do without a session.
    fn release(&self, vdi: VdiId) -> SendFut<'_, DataResult<()>>;
    /// Nothing that the VDI's attachments, as this node knows them, do not permit can take effect any more, at whichever node. `false`: not within `patience`.
    fn enforced(&self, vdi: VdiId, patience: Duration) -> SendFut<'_, DataResult<bool>>;
    /// Remove everything from `from` on, before a VDI shrinks. The VDI is held.
    fn cut(&self, vdi: VdiId, from: u64) -> SendFut<'_, DataResult<()>>;
    /// Open an image; this node's gateway passes I/O on to the owner.
    fn open(&self, image: Image) -> SendFut<'_, DataResult<Box<dyn AdminVolume>>>;
    /// Open the working image as somebody who has it attached: refused, and its writes later, once that attachment is over.
    fn open_attached(&self, vdi: VdiId, by: AttachmentId) -> SendFut<'_, DataResult<Box<dyn AdminVolume>>>;
    /// Copy in what a clone lacks (`FlattenStart` is committed); proposes `FlattenDone` itself. Steps count objects. Completes when done.
    fn flatten(&self, vdi: VdiId, steps: mpsc::Sender<Step>) -> SendFut<'_, DataResult<()>>;
    /// Compare all copies of all objects of an image. Completes when done.
    fn check(
        &self,
        image: Image,
        repair: bool,
        steps: mpsc::Sender<CheckStep>,
    ) -> SendFut<'_, DataResult<()>>;
    /// This node's copies of an object, in the given layers (newest first).
    fn copy_of(
        &self,
        key: PlacementKey,
        layers: Vec<LayerId>,
    ) -> SendFut<'_, DataResult<BTreeMap<LayerId, LocalCopy>>>;
    /// Objects that exist in an image, in order of index.
    fn map(&self, image: Image, rows: mpsc::Sender<MapRow>) -> SendFut<'_, DataResult<()>>;
    /// Ranges of `to` that differ from `from` (`None`: everything allocated), in order.
    fn diff(
        &self,
        to: Image,
        from: Option<LayerId>,
        rows: mpsc::Sender<DiffRow>,
    ) -> SendFut<'_, DataResult<()>>;
    /// Bytes that this node's disks spend on each layer.
    fn usage(&self) -> SendFut<'_, DataResult<BTreeMap<LayerId, u64>>>;
    /// This node's disks.
    fn disks(&self) -> SendFut<'_, Vec<DiskInfo>>;
    /// Take a directory into use, or let a disk stay that is being emptied. Proposes `DiskAdded` itself.
    fn plug(&self, path: String) -> SendFut<'_, DataResult<DiskInfo>>;
    /// Begin to empty a disk that is to be taken out of use, or (`force`) give up at once what is on it. Tells the cluster itself.
    fn unplug(&self, disk: sheepdog_proto::DiskId, force: bool) -> SendFut<'_, DataResult<()>>;
    /// Counters of VDIs whose session this node owns.
    fn vdi_counters(&self) -> SendFut<'_, Vec<VdiCounters>>;
    /// Counters of this node.
    fn node_counters(&self) -> SendFut<'_, NodeCounters>;
    /// What this node still has to fetch.
    fn recovery(&self) -> SendFut<'_, RecoveryState>;
    /// What scrubbing has found on this node; `start`: it is to look at everything now. `None`: a gateway, which has nothing.
    fn scrub(&self, start: bool) -> SendFut<'_, Option<Report>>;
}

/// Standing in the control plane.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// Leader as known here.
    pub leader: Option<NodeId>,
    /// Voters as known here.
    pub voters: Vec<NodeId>,
    /// `host:port` of sheep that wait for format.
    pub waiting: Vec<String>,
}

/// The process.
pub trait AdminBackend: Send + Sync {
    /// The control plane.
    fn control(&self) -> &Control;
    /// The data thread.
    fn data(&self) -> &Arc<dyn DataPlane>;
    /// Standing in the control plane.
    fn standing(&self) -> Standing;
    /// What is wrong with this process, in words; empty: it serves.
    fn complaints(&self) -> SendFut<'_, Vec<String>>;
    /// Values of `Format` that come from this sheep's options (timing, copies), with a new cluster id.
    fn format_template(&self) -> Format;
    /// Make a cluster of this sheep, and take in those that wait.
    fn format(&self, format: Format) -> SendFut<'_, Result<ClusterId, Error>>;
    /// Read the control plane's state back from data disks and start a new log with it.
    fn rebuild(&self, force: bool) -> SendFut<'_, Result<ClusterId, Error>>;
    /// Stop this process in order, soon: the answer goes out first.
    fn stop(&self, reason: &str);
    /// Log filter in force.
    fn log_level(&self) -> String;
    /// New log filter; the error says what is wrong with it.
    fn set_log_level(&self, filter: &str) -> Result<(), String>;
    /// TLS towards other sheep's client ports (`Credentials::client_config`); `None`: plaintext.
    fn client_tls(&self) -> Option<Arc<rustls::ClientConfig>>;
}

/// A listing's words for a disk.
pub(super) fn disk_state(d: &DiskInfo) -> (sheepdog_client::pb::node_disk::State, String) {
    use sheepdog_client::pb::node_disk::State;
    match (&d.state, &d.leaving) {
        (DiskState::Failed(why), _) => (State::Failed, why.clone()),
        (_, Some(why)) => (State::Leaving, why.clone()),
        (DiskState::Ok, None) => match &d.opinion.suspect {
            Some(why) => (State::Suspect, why.clone()),
            None => (State::Ok, String::new()),
        },
        (DiskState::Full, None) => (State::Full, String::new()),
    }
}
