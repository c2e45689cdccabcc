//! Blocks of attached volumes, kept in memory by the owner of their session (`sheep --cache`).
//!
//! Everything that changes a volume goes through the owner of its session, so nothing here can be stale without its knowing: a write takes the blocks it changes out before it
//! is sent anywhere, and puts them in again when all copies have them. A block that was read is kept only when nothing was written to its object meanwhile. Blocks belong to
//! one *view*, which is one session between two changes of its working layer; those of views that are over are never found again and make room by themselves.
//!
//! What is kept longer is decided by S3-FIFO (Yang et al., SOSP 2023; crate `quick_cache`): a backup that reads everything once does not push out what is read often.

use crate::buf::AlignedBuf;
use bytes::Bytes;
use quick_cache::unsync;
use sheepdog_proto::{BLOCK_SHIFT, BLOCK_SIZE};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

/// One session with one working layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct View(u64);

/// (view, object, block)
type Key = (View, u32, u32);

/// What the cache did, and how full it is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CacheStats {
    /// Bytes it may hold.
    pub size: u64,
    /// Bytes it holds.
    pub used: u64,
    /// Reads answered from it.
    pub hits: u64,
    /// Reads that went to a copy.
    pub misses: u64,
}

/// Blocks of 4 KiB, of all sessions of a data thread.
pub struct Cache {
    blocks: RefCell<unsync::Cache<Key, Bytes>>,
    views: Cell<u64>,
    hits: Cell<u64>,
    misses: Cell<u64>,
}

impl Cache {
    /// A cache of about so many bytes; what it needs to find blocks again, some 3 %, comes on top.
    pub fn new(bytes: u64) -> Rc<Self> {
        let blocks = usize::try_from(bytes >> BLOCK_SHIFT).unwrap_or(usize::MAX).max(1);
        Rc::new(Self {
            blocks: RefCell::new(unsync::Cache::new(blocks)),
            views: Cell::default(),
            hits: Cell::default(),
            misses: Cell::default(),
        })
    }
    /// One that nobody had before.
    pub fn view(&self) -> View {
        let next = self.views.get();
        self.views.set(next + 1);
        View(next)
    }
    /// All these blocks, or nothing.
    pub fn get(&self, view: View, index: u32, range: &Range<u32>) -> Option<Bytes> {
        let found = self.find(view, index, range);
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.set(counter.get() + 1);
        found
    }
    fn find(&self, view: View, index: u32, range: &Range<u32>) -> Option<Bytes> {
        let blocks = self.blocks.borrow();
        if range.len() == 1 {
            return blocks.get(&(view, index, range.start)).cloned();
        }
        let all = range.clone().map(|b| blocks.get(&(view, index, b))).collect::<Option<Vec<&Bytes>>>()?;
        let mut out = AlignedBuf::zeroed(range.len() << BLOCK_SHIFT);
        for (to, from) in out.chunks_exact_mut(BLOCK_SIZE).zip(all) {
            to.copy_from_slice(from);
        }
        Some(out.freeze())
    }
    /// Keep copies of whole blocks.
    pub fn put(&self, view: View, index: u32, range: &Range<u32>, data: &[u8]) {
        let mut blocks = self.blocks.borrow_mut();
        for (b, block) in range.clone().zip(data.chunks_exact(BLOCK_SIZE)) {
            blocks.insert((view, index, b), Bytes::copy_from_slice(block));
        }
    }
    /// These blocks change.
    pub fn forget(&self, view: View, index: u32, range: &Range<u32>) {
        let mut blocks = self.blocks.borrow_mut();
        for b in range.clone() {
            blocks.remove(&(view, index, b));
        }
    }
    /// Numbers for metrics.
    pub fn stats(&self) -> CacheStats {
        let blocks = self.blocks.borrow();
        CacheStats {
            size: blocks.capacity() << BLOCK_SHIFT,
            used: (blocks.len() as u64) << BLOCK_SHIFT,
            hits: self.hits.get(),
            misses: self.misses.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(value: u8) -> Vec<u8> {
        vec![value; BLOCK_SIZE]
    }

    #[test]
    fn a_read_is_answered_when_all_its_blocks_are_there() {
        let c = Cache::new(1 << 20);
        let view = c.view();
        c.put(view, 7, &(2..4), &[block(1), block(2)].concat());
        assert_eq!(c.get(view, 7, &(3..4)).expect("kept"), block(2));
        assert_eq!(c.get(view, 7, &(2..4)).expect("kept"), [block(1), block(2)].concat());
        assert_eq!(c.get(view, 7, &(2..5)), None);
        assert_eq!(c.get(view, 8, &(2..4)), None, "another object");
        assert_eq!(c.get(c.view(), 7, &(2..4)), None, "another view");
        c.forget(view, 7, &(0..3));
        assert_eq!(c.get(view, 7, &(2..4)), None);
        assert!(c.get(view, 7, &(3..4)).is_some());
        let s = c.stats();
        assert_eq!((s.hits, s.misses, s.used), (3, 4, BLOCK_SIZE as u64));
    }

    #[test]
    fn it_stays_within_its_size() {
        let c = Cache::new(64 << 10);
        let view = c.view();
        for i in 0..1000 {
            c.put(view, i, &(0..1), &block(0));
        }
        let s = c.stats();
        assert!(s.used > 0 && s.used <= 64 << 10, "{s:?}");
    }
}
