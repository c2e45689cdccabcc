//! What the store needs of a file system, and who provides it: the kernel by io_uring (`uring`), the kernel by threads (`threads`), and the
//! simulator (`memory`).
//!
//! Data operations are asynchronous; a dropped future never frees a buffer the kernel still owns. Operations on names are rare and synchronous.

pub mod kernel;
pub mod memory;
pub mod threads;
pub mod uring;

use super::index::Index;
use crate::buf::AlignedBuf;
use crate::volume::LocalFut;
use bytes::Bytes;
use sheepdog_proto::DiskId;
use std::io;
use std::path::Path;
use std::rc::Rc;

/// How to open a file.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenHow {
    /// Make it when it does not exist.
    pub create: bool,
    /// Bypass the page cache where the file system can.
    pub direct: bool,
}

/// Space of a file system, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// In all.
    pub total: u64,
    /// Free for us.
    pub free: u64,
}

/// An open file. Offsets, lengths and buffers of direct files are multiples of 4 KiB.
pub trait File {
    /// Read; past the end there are zeros.
    fn read_at(&self, offset: u64, len: usize) -> LocalFut<'static, io::Result<AlignedBuf>>;
    /// Write all parts one after the other. `durable`: on stable storage when done.
    fn write_at(&self, offset: u64, parts: Vec<Bytes>, durable: bool) -> LocalFut<'static, io::Result<()>>;
    /// Everything written is on stable storage, with the metadata needed to read it.
    fn sync(&self) -> LocalFut<'static, io::Result<()>>;
    /// Give space back; reads as zeros.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Nothing in it.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Grow or cut.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Keep others from locking it until it is closed here and nothing that was asked for is under way, also when this process has ended. False: another one has it.
    fn lock(&self) -> io::Result<bool> {
        Ok(true)
    }
}

/// A file system.
pub trait Fs {
    /// For people: how I/O is done.
    fn engine(&self) -> &'static str;
    /// Name of a new disk.
    fn new_disk(&self) -> sheepdog_proto::DiskId {
        sheepdog_proto::DiskId(uuid::Uuid::new_v4().as_u128())
    }
    /// Open or make a file.
    fn open(&self, path: &Path, how: OpenHow) -> io::Result<Rc<dyn File>>;
    /// Remove a file; no error when there is none.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Replace atomically.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Make a directory and its parents. The names of new ones are on stable storage when done.
    fn mkdir(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory; none when there is no such directory.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Names in a directory are on stable storage.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Space.
    fn space(&self, path: &Path) -> io::Result<Space>;
    /// Which file has this name now: changes when it is replaced. An error when there is none.
    fn file_id(&self, path: &Path) -> io::Result<u64>;
    /// Open or make the index of a disk.
    fn index(&self, path: &Path, disk: DiskId) -> LocalFut<'static, io::Result<Rc<dyn Index>>>;
}
