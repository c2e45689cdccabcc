//! One bit per 4 KiB block of an object.

use crate::MAX_OBJECT_BLOCKS;
use serde::{Deserialize, Deserializer, Serialize};
use std::ops::Range;

/// Fixed-length set of block numbers. Length is `object size / 4 KiB` (256 to 16,384 bits), kept in 64-bit words.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct BlockMap {
    #[serde(deserialize_with = "words_in")]
    words: Vec<u64>,
}

/// No map is longer than the largest object.
fn words_in<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u64>, D::Error> {
    let words = Vec::<u64>::deserialize(from)?;
    match words.len() * 64 <= MAX_OBJECT_BLOCKS as usize {
        true => Ok(words),
        false => Err(serde::de::Error::custom("block map longer than any object")),
    }
}

impl BlockMap {
    /// All clear, for an object of `blocks` blocks.
    pub fn new(blocks: u32) -> Self {
        Self { words: vec![0; (blocks as usize).div_ceil(64)] }
    }
    /// From words, as stored.
    pub fn from_words(words: Vec<u64>) -> Self {
        Self { words }
    }
    /// The words, as stored: bit i of word w is block 64 w + i.
    pub fn words(&self) -> &[u64] {
        &self.words
    }
    /// Capacity in blocks.
    pub fn capacity(&self) -> u32 {
        (self.words.len() * 64) as u32
    }
    /// Is the block in the set? Blocks beyond the end are not.
    pub fn get(&self, block: u32) -> bool {
        self.words.get(block as usize / 64).is_some_and(|w| w >> (block % 64) & 1 == 1)
    }
    fn update(&mut self, range: Range<u32>, f: impl Fn(&mut u64, u64)) {
        let (mut b, end) = (range.start, range.end.min(self.capacity()));
        while b < end {
            let n = (64 - b % 64).min(end - b);
            let mask = if n == 64 { u64::MAX } else { ((1u64 << n) - 1) << (b % 64) };
            f(&mut self.words[b as usize / 64], mask);
            b += n;
        }
    }
    /// Add blocks.
    pub fn set(&mut self, range: Range<u32>) {
        self.update(range, |w, m| *w |= m);
    }
    /// Take blocks out.
    pub fn clear(&mut self, range: Range<u32>) {
        self.update(range, |w, m| *w &= !m);
    }
    /// Number of blocks in the set.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|w| w.count_ones()).sum()
    }
    /// No block at all?
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }
    /// Every block of `range` in the set?
    pub fn all(&self, range: Range<u32>) -> bool {
        self.runs(range.clone()).next().is_some_and(|(r, set)| set && r == range) || range.is_empty()
    }
    /// Any block of `range` in the set?
    pub fn any(&self, range: Range<u32>) -> bool {
        self.runs(range).any(|(_, set)| set)
    }
    /// Add every block of `other`.
    pub fn union(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (a, b) in self.words.iter_mut().zip(&other.words) {
            *a |= b;
        }
    }
    /// Take out every block of `other`.
    pub fn subtract(&mut self, other: &Self) {
        for (a, b) in self.words.iter_mut().zip(&other.words) {
            *a &= !b;
        }
    }
    /// Keep only blocks that are also in `other`.
    pub fn intersect(&mut self, other: &Self) {
        for (i, a) in self.words.iter_mut().enumerate() {
            *a &= other.words.get(i).copied().unwrap_or(0);
        }
    }
    /// `range` cut into maximal runs of equal membership, in order: (blocks, in the set?).
    pub fn runs(&self, range: Range<u32>) -> impl Iterator<Item = (Range<u32>, bool)> + '_ {
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let (start, set) = (at, self.get(at));
            while at < range.end && self.get(at) == set {
                let word = self.words.get(at as usize / 64).copied().unwrap_or(0);
                let rest = (if set { !word } else { word }) >> (at % 64);
                let step = if rest == 0 { 64 - at % 64 } else { rest.trailing_zeros() };
                at = at.saturating_add(step.max(1)).min(range.end);
            }
            Some((start..at, set))
        })
    }
    /// Runs of blocks in the set, over the whole map.
    pub fn set_runs(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        self.runs(0..self.capacity()).filter(|(_, s)| *s).map(|(r, _)| r)
    }
}

impl std::fmt::Debug for BlockMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.set_runs()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set(ops in prop::collection::vec((any::<bool>(), 0u32..300, 0u32..300), 0..40), from in 0u32..256, to in 0u32..320) {
            let mut map = BlockMap::new(256);
            let mut model = BTreeSet::new();
            for (add, a, b) in ops {
                let r = a.min(b)..a.max(b);
                if add { map.set(r.clone()); model.extend(r.filter(|x| *x < 256)); }
                else { map.clear(r.clone()); model.retain(|x| !r.contains(x)); }
            }
            prop_assert_eq!(map.count() as usize, model.len());
            let r = from.min(to)..to.max(from);
            let mut rebuilt = BTreeSet::new();
            let mut last = r.start;
            let mut prev: Option<bool> = None;
            for (run, set) in map.runs(r.clone()) {
                prop_assert_eq!(run.start, last);
                prop_assert_ne!(prev, Some(set));
                prev = Some(set);
                last = run.end;
                if set { rebuilt.extend(run); }
            }
            prop_assert_eq!(last, r.end);
            prop_assert_eq!(rebuilt, model.range(r.clone()).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(map.all(r.clone()), r.clone().all(|b| model.contains(&b)));
            prop_assert_eq!(map.any(r.clone()), r.clone().any(|b| model.contains(&b)));
        }
    }
}
