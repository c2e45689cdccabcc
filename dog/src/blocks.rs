//! A set of blocks of 4 KiB: where a volume has something. Takes memory only where it is neither all nor nothing: 32 MiB for each TiB at most.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of a block: what a volume has or has not.
pub const BLOCK: u64 = 4096;
/// Blocks of a region, for which there is one bit map: 128 MiB.
const REGION: u64 = 1 << 15;

#[derive(Debug, Clone)]
enum Region {
    All,
    Some(Box<[u64]>),
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Blocks(BTreeMap<u64, Region>);

impl Blocks {
    /// Add every block that a range of bytes touches.
    pub fn add_touched(&mut self, bytes: Range<u64>) {
        self.add(bytes.start / BLOCK..bytes.end.div_ceil(BLOCK));
    }

    /// Add blocks that a range of bytes covers. One at `end`, the end of the volume, need not be whole.
    pub fn add_covered(&mut self, bytes: Range<u64>, end: u64) {
        let last = if bytes.end >= end { bytes.end.div_ceil(BLOCK) } else { bytes.end / BLOCK };
        let first = bytes.start.div_ceil(BLOCK);
        if first < last {
            self.add(first..last);
        }
    }

    fn add(&mut self, blocks: Range<u64>) {
        let mut at = blocks.start;
        while at < blocks.end {
            let (region, first) = (at / REGION, at % REGION);
            let last = (first + (blocks.end - at)).min(REGION);
            if (first, last) == (0, REGION) {
                self.0.insert(region, Region::All);
            } else {
                let empty = || Region::Some(vec![0; (REGION / 64) as usize].into());
                let entry = self.0.entry(region).or_insert_with(empty);
                if let Region::Some(words) = entry {
                    (first..last).for_each(|b| words[(b / 64) as usize] |= 1 << (b % 64));
                    if words.iter().all(|w| *w == u64::MAX) {
                        *entry = Region::All;
                    }
                }
            }
            at += last - first;
        }
    }

    /// Is this block in it?
    pub fn has(&self, block: u64) -> bool {
        match self.0.get(&(block / REGION)) {
            None => false,
            Some(Region::All) => true,
            Some(Region::Some(words)) => {
                let b = block % REGION;
                words[(b / 64) as usize] >> (b % 64) & 1 == 1
            }
        }
    }

    /// Where `block` is the first of several of its kind: the one behind the last of those in its region.
    fn end_of_run(&self, block: u64) -> u64 {
        let next_region = (block / REGION + 1) * REGION;
        match self.0.get(&(block / REGION)) {
            None | Some(Region::All) => next_region,
            Some(Region::Some(_)) => {
                let there = self.has(block);
                (block + 1..next_region).find(|b| self.has(*b) != there).unwrap_or(next_region)
            }
        }
    }

    /// A range of bytes as runs that are in it or not; they follow each other and neighbours differ.
    pub fn runs(&self, bytes: Range<u64>) -> impl Iterator<Item = (Range<u64>, bool)> + '_ {
        let mut at = bytes.start;
        std::iter::from_fn(move || {
            if at >= bytes.end {
                return None;
            }
            let start = at;
            let there = self.has(at / BLOCK);
            while at < bytes.end && self.has(at / BLOCK) == there {
                at = self.end_of_run(at / BLOCK) * BLOCK;
            }
            at = at.min(bytes.end);
            Some((start..at, there))
        })
    }

    /// Is every block that a range of bytes touches in it?
    pub fn has_all(&self, bytes: Range<u64>) -> bool {
        self.runs(bytes).all(|(_, there)| there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_what_was_added() {
        let mut set = Blocks::default();
        let far = 5 * REGION * BLOCK;
        set.add_touched(BLOCK + 1..3 * BLOCK);
        set.add_touched(far - 1..far + REGION * BLOCK + 1);
        let runs: Vec<_> = set.runs(0..far + 3 * REGION * BLOCK).collect();
        assert_eq!(
            runs,
            [
                (0..BLOCK, false),
                (BLOCK..3 * BLOCK, true),
                (3 * BLOCK..far - BLOCK, false),
                (far - BLOCK..far + REGION * BLOCK + BLOCK, true),
                (far + REGION * BLOCK + BLOCK..far + 3 * REGION * BLOCK, false),
            ]
        );
        assert_eq!(
            set.runs(100..BLOCK + 5).collect::<Vec<_>>(),
            [(100..BLOCK, false), (BLOCK..BLOCK + 5, true)]
        );
        assert!(set.has_all(BLOCK + 77..3 * BLOCK) && !set.has_all(77..3 * BLOCK));
    }

    #[test]
    fn only_whole_blocks_are_covered_but_for_the_last() {
        let end = 3 * BLOCK + 512;
        for (bytes, covered) in [
            (0..BLOCK, vec![0]),
            (1..BLOCK, vec![]),
            (1..2 * BLOCK + 5, vec![1]),
            (BLOCK..end, vec![1, 2, 3]),
            (BLOCK..end - 1, vec![1, 2]),
            (3 * BLOCK + 1..end, vec![]),
        ] {
            let mut set = Blocks::default();
            set.add_covered(bytes.clone(), end);
            let has: Vec<u64> = (0..5).filter(|b| set.has(*b)).collect();
            assert_eq!(has, covered, "{bytes:?}");
        }
    }

    #[test]
    fn a_region_that_fills_up_block_by_block_is_all_there() {
        let mut set = Blocks::default();
        for b in (0..REGION).rev() {
            set.add_covered(b * BLOCK..(b + 1) * BLOCK, u64::MAX);
        }
        assert!(matches!(set.0.get(&0), Some(Region::All)));
    }
}
