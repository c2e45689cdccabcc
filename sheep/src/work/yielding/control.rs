//! How fast, decided: an experiment that goes on for as long as there is background work.
//!
//! Time is cut into turns of 250 ms. In the last fifth of each no background work begins, and how clients fare then, and otherwise, is compared: how many requests end in a second, how long they
//! take on average, and the slowest hundredth of them. What makes the difference is this node's own doing; how busy the clients are, and what other nodes do, is the same in both. A difference
//! that is too large lowers the rate by a third, otherwise it grows by 15 % (as congestion control does, but with a factor both ways, because rates of disks differ by three orders of
//! magnitude).
//!
//! Where no clients are there is no limit, and there always is a `FLOOR`: data without all of its copies is in danger for as long as this takes.

/// Nanoseconds.
const MS: u64 = 1_000_000;
/// Length of a turn.
const TURN: u64 = 250 * MS;
/// Of it nothing begins in the last so much.
const REST: u64 = 50 * MS;
/// What was begun before goes on in the first part of that.
const TAIL: u64 = 15 * MS;
/// Compared when so much has been seen...
const SHORTEST: u64 = 500 * MS;
/// ...of so many requests beside background work, and while it rests...
const WITH: u64 = 100;
const WITHOUT: u64 = 30;
/// ...or after so long, with what there is.
const LONGEST: u64 = 4_000 * MS;
/// Fewer requests a second are nobody to make way for...
const FEW: u64 = 20;
/// ...which is known after so long.
const GONE: u64 = 1_000 * MS;
/// Nor are fewer at all: somebody looks at something, or has just left.
const SOME: u64 = 5;
/// Requests are listened to for so long after the last background work.
const LISTEN: u64 = 1_000 * MS;
/// Bytes a second that background work has in any case.
pub const FLOOR: f64 = (8 << 20) as f64;
/// What it begins with.
const START: f64 = (64 << 20) as f64;
/// More is no limit.
const MOST: f64 = (1u64 << 36) as f64;
/// Clients keep so much of their throughput...
const THROUGHPUT: f64 = 0.75;
/// ...and their requests take at most so many times as long on average, and at worst.
const MEAN: f64 = 1.35;
const P99: f64 = 1.7;
/// The slowest hundredth is that of so many requests at least.
const FOR_P99: u64 = 200;
/// Latency buckets: four for each power of two of nanoseconds.
const BUCKETS: usize = 4 * 48;

/// Requests that ended.
#[derive(Debug, Clone)]
struct Sample {
    count: u64,
    nanos: u64,
    buckets: Vec<u32>,
}

impl Default for Sample {
    fn default() -> Self {
        Self { count: 0, nanos: 0, buckets: vec![0; BUCKETS] }
    }
}

impl Sample {
    fn add(&mut self, took: u64) {
        self.count += 1;
        self.nanos = self.nanos.saturating_add(took);
        let took = took.max(4);
        let power = took.ilog2();
        // The two bits behind the first.
        let bucket = (power as usize - 2) * 4 + ((took >> (power - 2)) & 3) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
    }
    fn mean(&self) -> f64 {
        self.nanos as f64 / self.count.max(1) as f64
    }
    /// The bucket's middle, in nanoseconds.
    fn p99(&self) -> f64 {
        let mut left = (self.count / 100).max(1);
        for (i, n) in self.buckets.iter().enumerate().rev() {
            match left.checked_sub(u64::from(*n)) {
                Some(rest) if rest > 0 => left = rest,
                _ => return (1u64 << (i / 4 + 2)) as f64 * (1.0 + (i % 4) as f64 / 4.0 + 0.125),
            }
        }
        0.0
    }
    fn clear(&mut self) {
        (self.count, self.nanos) = (0, 0);
        self.buckets.fill(0);
    }
}

/// See the module. All times in nanoseconds of one clock.
#[derive(Debug)]
pub struct Controller {
    /// Bytes a second; infinite: no limit.
    rate: f64,
    /// Bytes that may go; below zero: of the future.
    tokens: f64,
    filled: u64,
    /// The comparison began.
    since: u64,
    with: Sample,
    without: Sample,
    /// Background work was last asked for.
    asked: Option<u64>,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            rate: f64::INFINITY,
            tokens: 0.0,
            filled: 0,
            since: 0,
            with: Sample::default(),
            without: Sample::default(),
            asked: None,
        }
    }
}

impl Controller {
    /// Background work is going on, as far as is known.
    pub fn is_listening(&self) -> bool {
        self.asked.is_some()
    }

    /// See `Yielding::rate`.
    pub fn rate(&self, now: u64) -> Option<u64> {
        (self.is_going_on(now) && self.rate.is_finite()).then_some(self.rate as u64)
    }

    fn is_going_on(&self, now: u64) -> bool {
        self.asked.is_some_and(|asked| now.saturating_sub(asked) <= LISTEN)
    }

    /// A request ended `now` that took so long.
    pub fn served(&mut self, now: u64, took: u64) {
        if !self.is_going_on(now) {
            // Over: the next begins anew.
            *self = Self::default();
            return;
        }
        match now % TURN {
            at if at < TURN - REST => self.with.add(took),
            at if at >= TURN - REST + TAIL => self.without.add(took),
            _ => {}
        }
        if self.rate.is_infinite() && self.requests() >= SOME {
            self.rate = START;
        }
    }

    fn requests(&self) -> u64 {
        self.with.count + self.without.count
    }

    /// May `bytes` go now? Otherwise: ask again after so many nanoseconds.
    pub fn admit(&mut self, now: u64, bytes: u64) -> Option<u64> {
        if !self.is_going_on(now) {
            *self = Self { since: now, filled: now, ..Self::default() };
        }
        self.asked = Some(now);
        self.judge(now);
        if self.rate.is_infinite() {
            return None;
        }
        let at = now % TURN;
        if at >= TURN - REST {
            return Some(TURN - at);
        }
        let grown = self.rate * now.saturating_sub(self.filled) as f64 / 1e9;
        self.filled = now;
        // What was not used is over: a burst is what hurts.
        self.tokens = (self.tokens + grown).min(0.0);
        if self.tokens < 0.0 {
            let wait = (-self.tokens / self.rate * 1e9) as u64;
            return Some(wait.clamp(MS / 4, TURN));
        }
        self.tokens -= bytes as f64;
        None
    }

    /// `bytes` go now, whatever the rate.
    pub fn charge(&mut self, bytes: u64) {
        if self.rate.is_finite() {
            // No more than a second is owed: what went in a hurry is not made good by standing still.
            self.tokens = (self.tokens - bytes as f64).max(-self.rate);
        }
    }

    fn judge(&mut self, now: u64) {
        let length = now.saturating_sub(self.since);
        let enough = self.with.count >= WITH && self.without.count >= WITHOUT;
        let few = length >= GONE && self.requests() * 1_000 * MS < FEW * length;
        if length < SHORTEST || (!enough && !few && length < LONGEST) {
            return;
        }
        if few {
            (self.rate, self.tokens) = (f64::INFINITY, 0.0);
        } else if self.hurts() {
            self.rate = (self.rate * 0.67).max(FLOOR);
        } else {
            self.rate = (self.rate * 1.15).min(MOST);
        }
        self.since = now;
        self.with.clear();
        self.without.clear();
    }

    fn hurts(&self) -> bool {
        let (with, without) = (&self.with, &self.without);
        if without.count < WITHOUT / 3 || with.count == 0 {
            // All stands still beside it, or there is too little to tell.
            return with.count == 0 && without.count > 0;
        }
        let throughput =
            (with.count as f64 / (TURN - REST) as f64) / (without.count as f64 / (REST - TAIL) as f64);
        let worst = with.count >= FOR_P99 && without.count >= FOR_P99 / 4 && with.p99() > without.p99() * P99;
        throughput < THROUGHPUT || with.mean() > without.mean() * MEAN || worst
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    /// A disk that clients and background work share, and clients of which each waits for its answer. The disk does one thing after another.
    struct Disk {
        now: u64,
        rng: SmallRng,
        control: Controller,
        /// Bytes a second.
        speed: f64,
        /// Nanoseconds of a request beside its bytes.
        each: u64,
    }

    /// What came of it.
    #[derive(Debug)]
    struct Came {
        requests: u64,
        moved: u64,
        p99: f64,
    }

    impl Disk {
        fn new(seed: u64, speed: f64, each: u64) -> Self {
            Self { now: 0, rng: SmallRng::seed_from_u64(seed), control: Controller::default(), speed, each }
        }

        fn run(&mut self, seconds: u64, clients: usize, background: bool, piece: u64) -> Came {
            let end = self.now + seconds * 1_000 * MS;
            // When each client asked. Think time of up to 50 us.
            let mut asked: Vec<u64> =
                (0..clients).map(|_| self.now + self.rng.random_range(0..50_000)).collect();
            let mut may = self.now;
            let (mut sample, mut moved) = (Sample::default(), 0);
            while self.now < end {
                // Whoever asked first; background work asks when it may.
                let first = (0..clients)
                    .min_by_key(|c| asked[*c])
                    .filter(|c| !background || asked[*c] <= may.max(self.now));
                match first {
                    Some(c) => {
                        self.now =
                            self.now.max(asked[c]) + self.each / 2 + self.rng.random_range(0..self.each);
                        let took = self.now - asked[c];
                        sample.add(took);
                        self.control.served(self.now, took);
                        asked[c] = self.now + self.rng.random_range(0..50_000);
                        // What waits goes before who comes back at once.
                        if !(background && may <= self.now) {
                            continue;
                        }
                    }
                    None if !background => self.now += MS,
                    None => self.now = self.now.max(may),
                }
                if background && may <= self.now {
                    match self.control.admit(self.now, piece) {
                        Some(wait) => may = self.now + wait,
                        None => {
                            self.now += (piece as f64 / self.speed * 1e9) as u64;
                            moved += piece;
                            may = self.now;
                        }
                    }
                }
            }
            Came { requests: sample.count, moved, p99: sample.p99() }
        }
    }

    #[test]
    fn clients_keep_most_of_a_disk_and_background_work_gets_on() {
        for seed in 0..20 {
            // 500 MB/s and 100 us a request; pieces of 256 KiB would have 40 % of it.
            let mut disk = Disk::new(seed, 5e8, 100_000);
            let alone = disk.run(10, 8, false, 0);
            disk.run(30, 8, true, 1 << 18);
            let beside = disk.run(20, 8, true, 1 << 18);
            let kept = beside.requests as f64 / 2.0 / alone.requests as f64;
            assert!(kept >= 0.7, "seed {seed}: {kept:.2}");
            assert!(beside.p99 < 2.0 * alone.p99, "seed {seed}: {beside:?} {alone:?}");
            let rate = beside.moved as f64 / 20.0;
            assert!(rate > FLOOR * 0.7, "seed {seed}: {rate}");
            assert!(kept < 0.97, "seed {seed}: {kept:.2}, and there was room");
        }
    }

    #[test]
    fn nobody_there_is_nobody_to_make_way_for() {
        let mut disk = Disk::new(1, 5e8, 100_000);
        let came = disk.run(5, 0, true, 1 << 20);
        assert!(came.moved as f64 > 4.5 * 5e8, "{came:?}");
        assert_eq!(disk.control.rate(disk.now), None);
        // They come, they go.
        disk.run(10, 8, true, 1 << 20);
        assert!(
            disk.control.rate(disk.now).is_some_and(|r| (r as f64) < 4e8),
            "{:?}",
            disk.control.rate(disk.now)
        );
        disk.run(10, 0, true, 1 << 20);
        assert_eq!(disk.control.rate(disk.now), None);
    }

    #[test]
    fn who_has_just_left_is_not_waited_for() {
        let mut disk = Disk::new(4, 1e9, 100_000);
        disk.run(2, 8, true, 1 << 20);
        // The last of what they had asked for.
        let came = disk.run(2, 0, true, 1 << 20);
        assert!(came.moved as f64 > 0.9e9, "{came:?}");
        // One request now and then.
        let mut moved = 0;
        for _ in 0..40 {
            disk.control.served(disk.now, 100_000);
            moved += disk.run(1, 0, true, 1 << 20).moved;
        }
        assert!(moved as f64 > 38e9, "{moved}");
    }

    #[test]
    fn what_disturbs_nobody_is_not_held_back() {
        // Ten GB/s: a piece is over before a request is.
        let mut disk = Disk::new(2, 1e10, 100_000);
        let alone = disk.run(10, 2, false, 0);
        disk.run(40, 2, true, 1 << 16);
        let beside = disk.run(10, 2, true, 1 << 16);
        assert!(
            disk.control.rate(disk.now).is_none_or(|r| r as f64 > 4e8),
            "{:?}",
            disk.control.rate(disk.now)
        );
        assert!(beside.requests as f64 > 0.7 * alone.requests as f64, "{beside:?} {alone:?}");
        assert!(beside.p99 < 2.0 * alone.p99, "{beside:?} {alone:?}");
    }

    #[test]
    fn there_is_always_something_for_background_work() {
        // Every piece stops all for a tenth of a second.
        let mut disk = Disk::new(3, 1e7, 100_000);
        let came = disk.run(60, 8, true, 1 << 20);
        assert!(came.moved as f64 >= 60.0 * 1e7 * 0.3, "{came:?}");
    }

    #[test]
    fn the_slowest_hundredth() {
        let mut s = Sample::default();
        for _ in 0..990 {
            s.add(1_000);
        }
        for _ in 0..10 {
            s.add(1_000_000);
        }
        assert!((900_000.0..1_200_000.0).contains(&s.p99()), "{}", s.p99());
        s.clear();
        for _ in 0..1000 {
            s.add(1_000);
        }
        assert!((900.0..1_200.0).contains(&s.p99()), "{}", s.p99());
        s.add(u64::MAX);
        s.add(0);
        // Of few the slowest.
        s.clear();
        for took in [1_000; 59] {
            s.add(took);
        }
        s.add(1_000_000);
        assert!((900_000.0..1_200_000.0).contains(&s.p99()), "{}", s.p99());
    }
}
