//! Which chunk is where in a volume.
//!
//! In memory one entry per chunk; stored in pages of `PAGE` entries, each a chunk of its own (postcard), so that what has not changed is stored once.

use crate::seal::Id;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Entries of a page: with chunks of 1 MiB a page is 1 GiB of the volume, and 32 KiB.
pub const PAGE: usize = 1024;

/// One chunk of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// Zeros, or never written.
    Hole,
    /// These contents. The last chunk of a volume may be shorter than others.
    Data(Id),
}

/// All of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    chunk: u32,
    entries: Vec<Entry>,
}

impl Index {
    /// Of a volume of so many bytes, without contents.
    pub fn empty(size: u64, chunk: u32) -> Self {
        Self { chunk, entries: vec![Entry::Hole; size.div_ceil(u64::from(chunk)) as usize] }
    }
    /// The same for a volume that has another size now.
    pub fn resized(mut self, size: u64) -> Self {
        self.entries.resize(size.div_ceil(u64::from(self.chunk)) as usize, Entry::Hole);
        self
    }
    /// From pages; `None`: they are not those of a volume of this size.
    pub fn from_pages(size: u64, chunk: u32, pages: Vec<Vec<Entry>>) -> Option<Self> {
        let entries: Vec<Entry> = pages.into_iter().flatten().collect();
        (entries.len() as u64 == size.div_ceil(u64::from(chunk))).then_some(Self { chunk, entries })
    }
    /// Pages with contents; `None` for one that has none.
    pub fn pages(&self) -> impl Iterator<Item = Option<&[Entry]>> {
        self.entries.chunks(PAGE).map(|p| p.iter().any(|e| *e != Entry::Hole).then_some(p))
    }
    /// Bytes of a chunk.
    pub fn chunk(&self) -> u32 {
        self.chunk
    }
    /// How many chunks.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    /// No chunks at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    /// One entry; a hole beyond the end.
    pub fn get(&self, number: usize) -> Entry {
        self.entries.get(number).copied().unwrap_or(Entry::Hole)
    }
    /// Change one. Nothing happens beyond the end.
    pub fn set(&mut self, number: usize, entry: Entry) {
        if let Some(e) = self.entries.get_mut(number) {
            *e = entry;
        }
    }
    /// Numbers of chunks that a range of bytes touches.
    pub fn touched(&self, offset: u64, len: u64) -> std::ops::Range<usize> {
        if len == 0 {
            return 0..0;
        }
        let chunk = u64::from(self.chunk);
        let end = offset.saturating_add(len).div_ceil(chunk).min(self.entries.len() as u64);
        ((offset / chunk).min(end)) as usize..end as usize
    }
    /// Where this one differs from another: numbers, and what is there now.
    pub fn changes<'a>(&'a self, from: &'a Self) -> impl Iterator<Item = (usize, Entry)> + 'a {
        self.entries.iter().copied().enumerate().filter(|(i, e)| from.get(*i) != *e)
    }
    /// Every chunk that is needed.
    pub fn ids(&self) -> BTreeSet<Id> {
        let data = |e: &Entry| match e {
            Entry::Data(id) => Some(*id),
            Entry::Hole => None,
        };
        self.entries.iter().filter_map(data).collect()
    }
    /// Chunks with contents.
    pub fn data(&self) -> u64 {
        self.entries.iter().filter(|e| **e != Entry::Hole).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: u64 = 1 << 20;

    #[test]
    fn ranges_touch_whole_chunks() {
        let i = Index::empty(10 * C + 5, 1 << 20);
        assert_eq!(i.len(), 11);
        for (offset, len, touched) in [
            (0, 1, 0..1),
            (C - 1, 2, 0..2),
            (C, C, 1..2),
            (5, 0, 0..0),
            (10 * C, 5, 10..11),
            (3 * C, u64::MAX, 3..11),
            (50 * C, C, 11..11),
        ] {
            assert_eq!(i.touched(offset, len), touched, "{offset} {len}");
        }
    }

    #[test]
    fn pages_are_what_the_index_is() {
        let size = 2500 * C;
        let mut i = Index::empty(size, 1 << 20);
        i.set(1024, Entry::Data(Id([1; 32])));
        i.set(2499, Entry::Data(Id([2; 32])));
        i.set(9999, Entry::Data(Id([3; 32])));
        let pages: Vec<_> = i.pages().map(|p| p.map(<[Entry]>::to_vec)).collect();
        assert_eq!(
            pages.iter().map(|p| p.as_ref().map(Vec::len)).collect::<Vec<_>>(),
            [None, Some(1024), Some(452)]
        );
        let full = |(n, p): (usize, &Option<Vec<Entry>>)| {
            p.clone().unwrap_or_else(|| vec![Entry::Hole; (2500 - n * PAGE).min(PAGE)])
        };
        let back: Vec<Vec<Entry>> = pages.iter().enumerate().map(full).collect();
        assert_eq!(Index::from_pages(size, 1 << 20, back.clone()), Some(i.clone()));
        assert_eq!(Index::from_pages(size + C, 1 << 20, back), None);
        assert_eq!(i.ids().len(), 2);
        let before = Index::empty(size, 1 << 20);
        assert_eq!(i.changes(&before).map(|(n, _)| n).collect::<Vec<_>>(), [1024, 2499]);
        assert_eq!(before.changes(&i).count(), 2, "also what is gone");
        assert_eq!(i.resized(1500 * C).data(), 1);
    }
}
