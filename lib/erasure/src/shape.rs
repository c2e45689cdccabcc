//! Which blocks of an object lie in which strip.
//!
//! Data strips are contiguous parts of the object, as long as each other but for the last ones, which may be short or empty (an object of 64 blocks in 3 strips: 22, 22
//! and 20). Row `q` of a strip is its `q`-th block; a parity strip's row is made of the same row of all data strips, where what is beyond a strip's end counts as zeros.

use std::ops::Range;

/// How an object of `blocks` blocks is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks of the object.
    pub blocks: u32,
    /// Data strips.
    pub data: u8,
    /// Parity strips.
    pub parity: u8,
}

impl Shape {
    /// Rows of a strip.
    pub fn rows(self) -> u32 {
        self.blocks.div_ceil(u32::from(self.data.max(1)))
    }
    /// Strips.
    pub fn strips(self) -> u8 {
        self.data + self.parity
    }
    /// Where a block lies: (data strip, row).
    pub fn place(self, block: u32) -> (u8, u32) {
        let rows = self.rows().max(1);
        ((block / rows) as u8, block % rows)
    }
    /// The object's blocks in a data strip; none for parity.
    pub fn blocks_of(self, strip: u8) -> Range<u32> {
        if strip >= self.data {
            return 0..0;
        }
        let from = (u32::from(strip) * self.rows()).min(self.blocks);
        from..(from + self.rows()).min(self.blocks)
    }
    /// A run of blocks, cut where strips end: (strip, its rows, the blocks).
    pub fn cut(self, run: Range<u32>) -> Vec<(u8, Range<u32>, Range<u32>)> {
        let mut out = Vec::new();
        let mut at = run.start;
        while at < run.end {
            let (strip, row) = self.place(at);
            let end = self.blocks_of(strip).end.min(run.end);
            if end <= at {
                break;
            }
            out.push((strip, row..row + (end - at), at..end));
            at = end;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_in_one_strip() {
        for blocks in [256, 1024, 16384] {
            for data in 1..=16 {
                let s = Shape { blocks, data, parity: 2 };
                let all: Vec<u32> = (0..data).flat_map(|i| s.blocks_of(i)).collect();
                assert_eq!(all, (0..blocks).collect::<Vec<_>>(), "{data}");
                for b in 0..blocks {
                    let (strip, row) = s.place(b);
                    assert!(s.blocks_of(strip).contains(&b) && row < s.rows() && strip < data);
                }
                let cut = s.cut(3..blocks - 5);
                assert_eq!(cut.iter().map(|c| c.2.len()).sum::<usize>(), blocks as usize - 8);
                assert!(cut.iter().all(|(n, rows, run)| s.place(run.start) == (*n, rows.start)
                    && rows.len() == run.len()
                    && s.place(run.end - 1).0 == *n));
            }
        }
        assert!(Shape { blocks: 64, data: 3, parity: 1 }.blocks_of(3).is_empty());
    }
}
