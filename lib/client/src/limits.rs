//! Limits of a VDI as people ask for them, with `dog` and through Kubernetes alike. Pure.

use crate::pb::Limits;
pub use sheepdog_proto::MIN_BANDWIDTH;

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// A second; 0 takes the limit away.
    pub per_second: u64,
    /// What may go at once after a pause; absent: a second's worth.
    pub burst: Option<u64>,
}

/// What is asked for. What it does not name stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wish {
    /// Requests.
    pub iops: Option<Rate>,
    /// Bytes.
    pub bandwidth: Option<Rate>,
}

impl Wish {
    /// What a VDI with these limits has once it is granted.
    pub fn on(self, mut limits: Limits) -> Limits {
        if let Some(Rate { per_second, burst }) = self.iops {
            (limits.iops, limits.iops_burst) = (per_second, burst.unwrap_or(per_second));
        }
        if let Some(Rate { per_second, burst }) = self.bandwidth {
            (limits.bandwidth, limits.bandwidth_burst) = (per_second, burst.unwrap_or(per_second));
        }
        limits
    }
    /// This one, and what it does not name from another. A burst goes with its limit.
    pub fn or(self, other: Self) -> Self {
        Self { iops: self.iops.or(other.iops), bandwidth: self.bandwidth.or(other.bandwidth) }
    }
    /// Nothing would change.
    pub fn holds(self, limits: Limits) -> bool {
        self.on(limits) == limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_second: u64, burst: Option<u64>) -> Option<Rate> {
        Some(Rate { per_second, burst })
    }

    #[test]
    fn what_is_not_named_stays() {
        let was = Limits { iops: 10, iops_burst: 20, bandwidth: 30, bandwidth_burst: 40 };
        assert_eq!(Wish::default().on(was), was);
        let iops = Wish { iops: rate(5, None), ..Default::default() };
        assert_eq!(iops.on(was), Limits { iops: 5, iops_burst: 5, ..was });
        assert!(!iops.holds(was) && iops.holds(iops.on(was)));
        let bandwidth = Wish { bandwidth: rate(6, None), ..Default::default() };
        assert_eq!(bandwidth.on(was), Limits { bandwidth: 6, bandwidth_burst: 6, ..was });
        let none = Wish { bandwidth: rate(0, None), ..Default::default() };
        assert_eq!(none.on(was), Limits { bandwidth: 0, bandwidth_burst: 0, ..was });
        let burst = Wish { bandwidth: rate(7, Some(0)), ..Default::default() };
        assert_eq!(burst.on(was), Limits { bandwidth: 7, bandwidth_burst: 0, ..was });
    }

    #[test]
    fn the_first_of_two_goes_before_the_second() {
        let class = Wish { iops: rate(1, Some(2)), bandwidth: rate(3, Some(4)) };
        let own = Wish { iops: rate(5, None), bandwidth: None };
        assert_eq!(own.or(class), Wish { iops: rate(5, None), bandwidth: rate(3, Some(4)) });
    }
}
