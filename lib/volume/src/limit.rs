//! How fast a volume may be used: requests and bytes a second, with bursts.
//!
//! The generic cell rate algorithm (ITU-T I.371, "virtual scheduling"): for each rate a time at which everything admitted so far would be paid for at that rate; a request may
//! go while that lies no further ahead than the burst. Whoever may not go yet is told how long to wait and has his place already, so the order is that of arrival. Pure: time is
//! an argument, in nanoseconds from anywhere.

use std::time::Duration;

/// Nanoseconds of a second.
const SECOND: u128 = 1_000_000_000;

/// A rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Units a second, not 0.
    pub per_second: u64,
    /// Units that may go at once after a pause.
    pub burst: u64,
}

#[derive(Debug)]
struct Cell {
    rate: Rate,
    paid: u128,
}

impl Cell {
    fn new(rate: Rate) -> Self {
        Self { rate: Rate { per_second: rate.per_second.max(1), ..rate }, paid: 0 }
    }
    fn cost(&self, units: u64) -> u128 {
        u128::from(units) * SECOND / u128::from(self.rate.per_second)
    }
    /// When so many units may go, at the earliest; they count from now on.
    fn take(&mut self, now: u128, units: u64) -> u128 {
        let may = self.paid.max(now).saturating_sub(self.cost(self.rate.burst)).max(now);
        self.paid = self.paid.max(now) + self.cost(units);
        may
    }
}

/// Requests and bytes of one volume.
#[derive(Debug, Default)]
pub struct Limiter {
    requests: Option<Cell>,
    bytes: Option<Cell>,
}

impl Limiter {
    /// `None`: as fast as it can.
    pub fn new(requests: Option<Rate>, bytes: Option<Rate>) -> Self {
        Self { requests: requests.map(Cell::new), bytes: bytes.map(Cell::new) }
    }
    /// Nothing ever waits.
    pub fn is_open(&self) -> bool {
        self.requests.is_none() && self.bytes.is_none()
    }
    /// A request of so many bytes has arrived: how long it has to wait.
    pub fn admit(&mut self, now: u64, bytes: u64) -> Duration {
        let now = u128::from(now);
        let of = |cell: &mut Option<Cell>, units| cell.as_mut().map_or(now, |c| c.take(now, units));
        let may = of(&mut self.requests, 1).max(of(&mut self.bytes, bytes));
        Duration::from_nanos(u64::try_from(may - now).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;

    fn rate(per_second: u64, burst: u64) -> Option<Rate> {
        Some(Rate { per_second, burst })
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let mut l = Limiter::new(rate(10, 3), None);
        let waits: Vec<u128> = (0..8).map(|_| l.admit(5 * S, 4096).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 100, 200, 300, 400]);
        // After a pause there is a burst again, not more.
        let waits: Vec<u128> = (0..6).map(|_| l.admit(60 * S, 0).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 100, 200]);
    }

    #[test]
    fn a_large_request_goes_and_is_paid_for_by_those_behind_it() {
        let mut l = Limiter::new(None, rate(1 << 20, 0));
        assert_eq!(l.admit(0, 8 << 20), Duration::ZERO);
        assert_eq!(l.admit(0, 1), Duration::from_secs(8));
        assert_eq!(l.admit(9 * S, 1), Duration::ZERO);
    }

    #[test]
    fn without_limits_nothing_waits() {
        let mut l = Limiter::default();
        assert!(l.is_open());
        assert_eq!(l.admit(0, u64::MAX), Duration::ZERO);
        assert!(!Limiter::new(rate(1, 0), None).is_open());
        // What makes no sense does no harm.
        let mut l = Limiter::new(rate(0, u64::MAX), rate(u64::MAX, u64::MAX));
        l.admit(u64::MAX, u64::MAX);
        l.admit(0, u64::MAX);
    }

    proptest! {
        /// Whatever arrives when: in any second goes no more than the rate, the burst and one request.
        #[test]
        fn the_rate_is_kept(gaps in proptest::collection::vec((0u64..50_000_000, 1u64..100_000), 1..300)) {
            let (per_second, burst) = (1_000_000, 200_000);
            let mut l = Limiter::new(rate(50, 5), rate(per_second, burst));
            let mut now = 0;
            let mut went: Vec<(u64, u64)> = Vec::new();
            for (gap, bytes) in gaps {
                now += gap;
                let at = now + l.admit(now, bytes).as_nanos() as u64;
                prop_assert!(went.last().is_none_or(|(last, _)| *last <= at), "in the order of arrival");
                went.push((at, bytes));
            }
            for (from, _) in &went {
                let within = went.iter().filter(|(at, _)| (*from..from + S).contains(at));
                let (n, bytes) = within.fold((0, 0), |(n, b), (_, x)| (n + 1, b + x));
                prop_assert!(n <= 50 + 5 + 2, "{n} requests");
                prop_assert!(bytes <= per_second + burst + 200_000, "{bytes} bytes");
            }
        }
    }
}
