//! What a front-end sees: `Volume` (one open VDI or snapshot) and `VolumeSource` (the table of them).
//!
//! Front-ends (`front/*`) know these two traits and nothing else of the daemon. All of it lives on the data thread: futures are
//! not `Send`. A future may be dropped; the request then still runs to its end in the daemon.

use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

/// A boxed future of the data thread.
pub type LocalFut<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Why a request on a volume failed. Transient states (membership, recovery, ownership, full disks) never show here: they wait.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// No VDI or snapshot of that name.
    #[error("{0}")]
    NotFound(String),
    /// Offset or length outside the volume.
    #[error("request beyond the end of the volume")]
    OutOfRange,
    /// A write to a snapshot or a volume opened read-only.
    #[error("volume is read-only")]
    ReadOnly,
    /// Someone else holds an exclusive lock, or the VDI was deleted under the client.
    #[error("{0}")]
    Busy(String),
    /// The volume was taken away (deleted, rolled back, fenced): reconnect.
    #[error("{0}")]
    Gone(String),
    /// Zeroing was asked to be fast, and would cost as much as a write.
    #[error("zeroing with the space kept is as slow as writing zeros")]
    NotFast,
    /// Data that no copy can supply.
    #[error("{0}")]
    Io(String),
    /// The volume's attachments do not permit it, or do not any more.
    #[error("{0}")]
    NotAttached(String),
    /// The volume was opened at another gateway while this one was away: reconnect.
    #[error("opened elsewhere while this gateway was away: reconnect")]
    Fenced,
    /// The daemon is stopping.
    #[error("shutting down")]
    ShuttingDown,
}

/// Extent of a volume as `block_status` reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub len: u64,
    /// No space is allocated for it (in this volume or any layer below).
    pub hole: bool,
    /// Reads as zeros.
    pub zero: bool,
}

/// How to zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// The range takes space afterwards: zeros are written as data.
    pub no_hole: bool,
    /// Fail (`VolumeError::NotFast`) rather than be as slow as a write: so it is with `no_hole`, and only then.
    pub fast: bool,
}

/// One open volume. Offsets and lengths are bytes and need no alignment.
pub trait Volume {
    /// Size in bytes, now: it may grow while open.
    fn size(&self) -> u64;
    /// Snapshots and read-only opens.
    fn read_only(&self) -> bool;
    /// Read; the parts follow each other and add up to `len`.
    fn read(&self, offset: u64, len: u32) -> LocalFut<'_, Result<Vec<Bytes>, VolumeError>>;
    /// Write; durable on every clean copy when done.
    fn write(&self, offset: u64, data: Bytes) -> LocalFut<'_, Result<(), VolumeError>>;
    /// Make a range read as zeros.
    fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> LocalFut<'_, Result<(), VolumeError>>;
    /// Give space back; the range reads as zeros afterwards.
    fn trim(&self, offset: u64, len: u64) -> LocalFut<'_, Result<(), VolumeError>>;
    /// What is asked from now on is no client's, but makes way for clients (`work::yielding`).
    fn set_background(&self) {}
    /// Everything acknowledged so far is durable. It always is; kept for the shape.
    fn flush(&self) -> LocalFut<'_, Result<(), VolumeError>>;
    /// Extents from `offset`, at most `max` of them, covering at least 1 byte and at most `len`.
    fn block_status(
        &self,
        offset: u64,
        len: u64,
        max: usize,
    ) -> LocalFut<'_, Result<Vec<Extent>, VolumeError>>;
    /// How to learn that the client has hung up before what it sent has been read up to the end: asked when the volume is opened again.
    fn watch(&self, _hung_up: Rc<dyn Fn() -> bool>) {}
    /// Completes when the client's right to the volume is gone: its connection is cut, and nothing of it takes effect any more.
    fn revoked(&self) -> LocalFut<'_, ()> {
        Box::pin(std::future::pending())
    }
    /// The client is gone but its requests still run: the next open of this volume waits for them (rule 6 of the design).
    fn abandon(&self) {}
    /// Orderly end: completes when nothing of this open is in flight any more.
    fn close(&self) -> LocalFut<'_, ()>;
}

/// Row of an export list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// `name` or `name@tag`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Snapshots are.
    pub read_only: bool,
}

/// The VDI table as a front-end sees it.
pub trait VolumeSource {
    /// Every VDI and snapshot this client may see.
    fn list(&self) -> LocalFut<'_, Result<Vec<ExportInfo>, VolumeError>>;
    /// What is there, without opening a session.
    fn info(&self, name: &str) -> LocalFut<'_, Result<ExportInfo, VolumeError>>;
    /// Open by `name`, `name@tag`, `name#attachment` or `name#ro`. Completes only when every request of dead connections to this VDI has finished or is
    /// fenced (rule 6 of the design).
    fn open(&self, name: &str) -> LocalFut<'_, Result<Rc<dyn Volume>, VolumeError>>;
}
