//! A byte range of a volume, cut at object borders and widened to whole blocks.

use sheepdog_proto::{BLOCK_SHIFT, BLOCK_SIZE};
use std::ops::Range;

/// The part of a request that lies in one object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Object index.
    pub index: u32,
    /// Smallest run of blocks of that object that covers the bytes.
    pub blocks: Range<u32>,
    /// The bytes, relative to the first block of `blocks`.
    pub bytes: Range<usize>,
    /// Where the piece starts in the request.
    pub at: usize,
}

impl Piece {
    /// Nothing but whole blocks.
    pub fn is_aligned(&self) -> bool {
        self.bytes.start == 0 && self.bytes.end == self.blocks.len() * BLOCK_SIZE
    }
}

/// Cut `len` bytes at `offset` of a volume with objects of `object_size` bytes (a multiple of 4 KiB, at most 64 MiB).
pub fn pieces(offset: u64, len: u64, object_size: u32) -> impl Iterator<Item = Piece> {
    let size = object_size as u64;
    let end = offset + len;
    let mut pos = offset;
    std::iter::from_fn(move || {
        if pos >= end {
            return None;
        }
        let index = pos / size;
        let start = pos % size;
        let stop = (end - index * size).min(size);
        let first = start >> BLOCK_SHIFT;
        let last = stop.div_ceil(BLOCK_SIZE as u64);
        let piece = Piece {
            index: index as u32,
            blocks: first as u32..last as u32,
            bytes: (start - (first << BLOCK_SHIFT)) as usize..(stop - (first << BLOCK_SHIFT)) as usize,
            at: (pos - offset) as usize,
        };
        pos = index * size + stop;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unaligned_across_a_border() {
        let v: Vec<_> = pieces((4 << 20) - 100, 200, 4 << 20).collect();
        assert_eq!(v[0], Piece { index: 0, blocks: 1023..1024, bytes: 3996..4096, at: 0 });
        assert_eq!(v[1], Piece { index: 1, blocks: 0..1, bytes: 0..100, at: 100 });
    }

    proptest! {
        #[test]
        fn covers_every_byte_once(offset in 0u64..1 << 34, len in 0u64..20 << 20, shift in 20u32..27) {
            let size = 1u32 << shift;
            let mut pos = offset;
            for p in pieces(offset, len, size) {
                prop_assert_eq!(p.at as u64, pos - offset);
                let start = p.index as u64 * size as u64 + p.blocks.start as u64 * 4096 + p.bytes.start as u64;
                prop_assert_eq!(start, pos);
                prop_assert!(p.bytes.start < 4096 && !p.bytes.is_empty());
                prop_assert!(p.blocks.len() * 4096 - p.bytes.end < 4096);
                prop_assert!(p.blocks.end <= size >> 12);
                pos += p.bytes.len() as u64;
            }
            prop_assert_eq!(pos, offset + len);
        }
    }
}
