//! Sizes of volumes. Pure.

use crate::csi::CapacityRange;
use crate::fault::{Fault, Kind, Outcome};

/// Sizes are multiples of this, bytes: the block of every file system we make.
pub const GRAIN: u64 = 4096;
/// Without any wish.
pub const DEFAULT: u64 = 1 << 30;
/// Smallest volume, bytes.
pub const SMALLEST: u64 = 4 << 20;
/// Largest volume, bytes: what CSI can say, less than what a VDI can have with the usual object size.
pub const LARGEST: u64 = 1 << 53;

fn out_of_range(text: String) -> Fault {
    Fault::new(Kind::OutOfRange, text)
}

/// A range as it is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// At least, bytes.
    pub required: u64,
    /// At most, bytes.
    pub limit: u64,
}

impl Range {
    /// Check what was asked for. Absent: anything.
    pub fn new(range: Option<&CapacityRange>) -> Outcome<Self> {
        let (required, limit) = range.map_or((0, 0), |r| (r.required_bytes, r.limit_bytes));
        let (Ok(required), Ok(limit)) = (u64::try_from(required), u64::try_from(limit)) else {
            return Err(Fault::invalid("sizes are not negative"));
        };
        let limit = if limit == 0 { u64::MAX } else { limit };
        if required > limit {
            return Err(Fault::invalid(format!(
                "{required} bytes are required, which is more than the limit of {limit}"
            )));
        }
        Ok(Self { required, limit })
    }

    /// The size of a new volume that needs at least `floor` bytes (what its source has, or its file system needs).
    pub fn choose(self, floor: u64) -> Outcome<u64> {
        let wish = if self.required == 0 && floor == 0 { DEFAULT.min(self.limit) } else { self.required };
        let size = wish.max(floor).max(SMALLEST).next_multiple_of(GRAIN);
        if size > LARGEST {
            return Err(out_of_range(format!("{size} bytes are more than a volume can have, {LARGEST}")));
        }
        if size <= self.limit {
            return Ok(size);
        }
        // Where less was meant than the next multiple.
        let less = self.limit / GRAIN * GRAIN;
        if less >= self.required.max(floor).max(SMALLEST) {
            return Ok(less);
        }
        Err(out_of_range(format!(
            "no size from {} to {} bytes will do: volumes are multiples of {GRAIN} bytes, and this one needs at least {}",
            self.required,
            self.limit,
            floor.max(SMALLEST)
        )))
    }

    /// Would a volume of this size do?
    pub fn holds(self, size: u64) -> bool {
        (self.required..=self.limit).contains(&size)
    }
}

/// Bytes as CSI says them.
pub fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(required: i64, limit: i64) -> Outcome<Range> {
        Range::new(Some(&CapacityRange { required_bytes: required, limit_bytes: limit }))
    }

    #[test]
    fn sizes_are_chosen_within_the_range() {
        let choose = |r, l, floor| range(r, l).and_then(|r| r.choose(floor)).map_err(|f| f.kind);
        assert_eq!(Range::new(None).unwrap().choose(0), Ok(DEFAULT));
        assert_eq!(choose(10 << 30, 0, 0), Ok(10 << 30));
        assert_eq!(choose((10 << 30) + 1, 0, 0), Ok((10 << 30) + 4096));
        assert_eq!(choose(0, 10 << 20, 0), Ok(10 << 20));
        assert_eq!(choose(0, (10 << 20) + 1, 0), Ok(10 << 20));
        assert_eq!(choose((10 << 20) + 1, (10 << 20) + 1, 0), Err(Kind::OutOfRange));
        assert_eq!(choose(1, 0, 0), Ok(SMALLEST));
        assert_eq!(choose(1, 5, 0), Err(Kind::OutOfRange));
        assert_eq!(choose(0, 0, 300 << 20), Ok(300 << 20));
        assert_eq!(choose(5 << 20, 6 << 20, 300 << 20), Err(Kind::OutOfRange));
        assert_eq!(choose(-1, 0, 0), Err(Kind::Invalid));
        assert_eq!(choose(2, 1, 0), Err(Kind::Invalid));
        assert_eq!(choose(i64::MAX, 0, 0), Err(Kind::OutOfRange));
    }
}
