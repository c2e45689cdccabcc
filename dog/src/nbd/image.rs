//! What is served.

use crate::blocks::Blocks;
use crate::contents::Contents;
use crate::failure::Failure;
use bytes::Bytes;
use futures::future::BoxFuture;
use sheepdog_nbd::{Errno, wire::state};
use std::ops::Range;

/// Why a request failed: a number for the client's program, a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// For the wire.
    pub errno: Errno,
    /// For people; clients with structured replies get it.
    pub why: String,
}

impl Fault {
    /// Of both.
    pub fn new(errno: Errno, why: impl Into<String>) -> Self {
        Self { errno, why: why.into() }
    }
}

impl From<Failure> for Fault {
    fn from(f: Failure) -> Self {
        Self::new(Errno::Io, f.message)
    }
}

/// Of a request.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Fault>>;

/// Something with contents. Ranges lie inside of it and are not empty, in bytes, of any alignment; requests run side by side.
pub trait Image: Send + Sync {
    /// Bytes. Does not change.
    fn size(&self) -> u64;
    /// Changes are refused before they come here.
    fn read_only(&self) -> bool;
    /// All of the range.
    fn read(&self, offset: u64, len: u32) -> Answer<'_, Bytes>;
    /// Durable when it is answered.
    fn write(&self, offset: u64, data: Bytes) -> Answer<'_, ()>;
    /// Zeros, durable when answered; with `allocate` the range takes space afterwards.
    fn zero(&self, offset: u64, len: u64, allocate: bool) -> Answer<'_, ()>;
    /// Is zeroing this range cheaper than writing zeros?
    fn zeroes_fast(&self, _offset: u64, _len: u64) -> bool {
        true
    }
    /// Runs of bytes and their `wire::state` flags, from `offset` on: at least one, at most `len` bytes.
    fn status(&self, offset: u64, len: u64) -> Answer<'_, Vec<(u64, u32)>>;
}

/// Descriptors of a block status that are made at most: the rest is asked for again.
const RUNS: usize = 1024;

/// Runs of a range in which some blocks have data, and the others are holes.
pub fn runs_of(data: &Blocks, range: Range<u64>) -> Vec<(u64, u32)> {
    let flags = |there| if there { 0 } else { state::HOLE | state::ZERO };
    data.runs(range).take(RUNS).map(|(run, there)| (run.end - run.start, flags(there))).collect()
}

/// A VDI or a snapshot of the cluster.
pub struct ClusterImage {
    contents: Contents,
    /// Where it has data; `None`: not known, it is to be written.
    data: Option<Blocks>,
}

impl ClusterImage {
    /// To be read: `data` says where something is.
    pub fn reader(contents: Contents, data: Blocks) -> Self {
        Self { contents, data: Some(data) }
    }
    /// To be filled.
    pub fn writer(contents: Contents) -> Self {
        Self { contents, data: None }
    }
}

impl Image for ClusterImage {
    fn size(&self) -> u64 {
        self.contents.size()
    }
    fn read_only(&self) -> bool {
        self.data.is_some()
    }
    fn read(&self, offset: u64, len: u32) -> Answer<'_, Bytes> {
        Box::pin(async move { Ok(self.contents.read(offset, len.into()).await?) })
    }
    fn write(&self, offset: u64, data: Bytes) -> Answer<'_, ()> {
        Box::pin(async move { Ok(self.contents.write(offset, data).await?) })
    }
    fn zero(&self, offset: u64, len: u64, _allocate: bool) -> Answer<'_, ()> {
        // qemu-img asks for space of which nobody has said that it shall be taken.
        Box::pin(async move { Ok(self.contents.discard(offset, len).await?) })
    }
    fn status(&self, offset: u64, len: u64) -> Answer<'_, Vec<(u64, u32)>> {
        let runs = match &self.data {
            None => vec![(len, 0)],
            Some(data) => runs_of(data, offset..offset + len),
        };
        Box::pin(std::future::ready(Ok(runs)))
    }
}
