//! How one disk fares, from looks at its counters. Pure: times and counters come in, opinions go out.
//!
//! A disk that fails tells so with an error. One that has become slow does not, and holds back every write of the node's volumes: it is compared with what the node's other disks did in
//! the same minute, so that load, which all of them have, is not taken for it; alone, with a bound that no sound disk passes.

use std::collections::VecDeque;
use std::time::Duration;

/// A window in which latencies are taken together. The worker looks once in this time.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Operations in a window that say something.
const ENOUGH: u64 = 10;
/// So many times slower than the median of the others is slow.
const TIMES: u32 = 8;
/// Below this nothing is.
const FAST: Duration = Duration::from_millis(50);
/// Above this a disk without others is.
const SLOW: Duration = Duration::from_secs(1);
/// Windows one after the other that make, or end, a suspicion.
const WINDOWS: u32 = 5;
/// Windows of suspicion after which the disk should be emptied.
const LONG: u32 = 15;

/// Looks at space that are kept, and how often one is.
const KEPT: usize = 7 * 24 * 6;
const EVERY: Duration = Duration::from_secs(600);
/// Less than this says nothing of tomorrow.
const LEAST: Duration = Duration::from_secs(2 * 3600);
/// Nobody believes in more.
const MOST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Counters of a disk's journal at one moment, since its process began.
#[derive(Debug, Clone, Copy, Default)]
pub struct Look {
    /// Journal batches written.
    pub count: u64,
    /// What they took.
    pub nanos: u64,
    /// Something waits for the journal.
    pub waiting: bool,
}

/// What a disk did in one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Did {
    /// Too little to say.
    Little,
    /// Mean time of a journal batch.
    Mean(Duration),
    /// Nothing, although something waited at both ends.
    Nothing,
}

/// Between two looks.
pub fn did(before: Look, now: Look) -> Did {
    let count = now.count.saturating_sub(before.count);
    match count {
        0 if before.waiting && now.waiting => Did::Nothing,
        n if n < ENOUGH => Did::Little,
        n => Did::Mean(Duration::from_nanos(now.nanos.saturating_sub(before.nanos) / n)),
    }
}

/// Was the disk slow in this window, seen beside the others?
fn was_slow(mine: Did, others: &[Did]) -> Option<bool> {
    let mean = match mine {
        Did::Little => return None,
        Did::Nothing => return Some(true),
        Did::Mean(mean) => mean,
    };
    let mut beside: Vec<Duration> =
        others.iter().filter_map(|d| if let Did::Mean(m) = d { Some(*m) } else { None }).collect();
    beside.sort_unstable();
    let bound = match beside.get(beside.len() / 2) {
        Some(median) => (*median * TIMES).max(FAST),
        None => SLOW,
    };
    Some(mean > bound)
}

/// What is thought of a disk.
#[derive(Debug, Default)]
pub struct Suspicion {
    slow: u32,
    good: u32,
    since: u32,
    suspect: bool,
}

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is suspect now.
    Suspect,
    /// It has been for long: it should be emptied.
    Long,
    /// It is as it should be again.
    Sound,
}

impl Suspicion {
    /// One more window.
    pub fn window(&mut self, mine: Did, others: &[Did]) -> Option<Change> {
        if self.suspect {
            self.since += 1;
        }
        match was_slow(mine, others) {
            Some(true) => (self.slow, self.good) = (self.slow + 1, 0),
            Some(false) => (self.slow, self.good) = (0, self.good + 1),
            None => {}
        }
        if !self.suspect && self.slow >= WINDOWS {
            (self.suspect, self.since) = (true, 0);
            return Some(Change::Suspect);
        }
        if self.suspect && self.good >= WINDOWS {
            self.suspect = false;
            return Some(Change::Sound);
        }
        (self.suspect && self.since == LONG && self.slow > 0).then_some(Change::Long)
    }
}

/// How full a disk is, in steps that people should hear of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fill {
    /// Nothing to say.
    #[default]
    Room,
    /// 85 % or more.
    Near,
    /// 95 % or more.
    Nearer,
}

/// Space over time.
#[derive(Debug, Default)]
pub struct Space {
    looks: VecDeque<(Duration, u64)>,
    fill: Fill,
}

impl Space {
    /// Of `room` bytes that may be used, so many are, at this time: another step than before, if it is. One that is passed is left only two parts in a hundred below.
    pub fn look(&mut self, at: Duration, used: u64, room: u64) -> Option<Fill> {
        if self.looks.back().is_none_or(|(last, _)| at.saturating_sub(*last) >= EVERY) {
            if self.looks.len() == KEPT {
                self.looks.pop_front();
            }
            self.looks.push_back((at, used));
        }
        let of = |percent: u64| u128::from(used) * 100 >= u128::from(room) * u128::from(percent);
        let fill = |less: u64| match () {
            () if of(95 - less) => Fill::Nearer,
            () if of(85 - less) => Fill::Near,
            () => Fill::Room,
        };
        let now = if fill(0) > self.fill { fill(0) } else { fill(2).min(self.fill) };
        (std::mem::replace(&mut self.fill, now) != now).then_some(now)
    }

    /// When `room` bytes will be used, if it goes on as it has gone: from the last look, by the straight line that fits best (least squares). `None`: never, or too little is known.
    pub fn full_in(&self, room: u64) -> Option<Duration> {
        let (first, last) = (self.looks.front()?, self.looks.back()?);
        if last.0.saturating_sub(first.0) < LEAST {
            return None;
        }
        let n = self.looks.len() as f64;
        let points = || self.looks.iter().map(|(at, used)| (at.as_secs_f64(), *used as f64));
        let (mx, my) = (points().map(|p| p.0).sum::<f64>() / n, points().map(|p| p.1).sum::<f64>() / n);
        let along: f64 = points().map(|(x, y)| (x - mx) * (y - my)).sum();
        let slope = along / points().map(|(x, _)| (x - mx) * (x - mx)).sum::<f64>();
        let left = (room as f64 - last.1 as f64).max(0.0) / slope;
        (slope > 0.0 && left.is_finite() && left < MOST.as_secs_f64()).then(|| Duration::from_secs_f64(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(ms: u64) -> Did {
        Did::Mean(Duration::from_millis(ms))
    }

    #[test]
    fn what_a_disk_did() {
        let look = |count, ms: u64, waiting| Look { count, nanos: ms * 1_000_000, waiting };
        assert_eq!(did(look(5, 5, false), look(9, 20, false)), Did::Little);
        assert_eq!(did(look(5, 5, false), look(105, 505, true)), mean(5));
        assert_eq!(did(look(5, 5, true), look(5, 5, true)), Did::Nothing);
        assert_eq!(did(look(5, 5, false), look(5, 5, true)), Did::Little, "it has only just begun to wait");
    }

    #[test]
    fn slow_beside_others_and_slow_alone() {
        assert_eq!(was_slow(mean(300), &[mean(5), mean(6), mean(290)]), Some(true));
        assert_eq!(
            was_slow(mean(300), &[mean(100), mean(200), Did::Little]),
            Some(false),
            "all have much to do"
        );
        assert_eq!(was_slow(mean(40), &[mean(1)]), Some(false));
        assert_eq!(was_slow(mean(900), &[]), Some(false));
        assert_eq!(was_slow(mean(1100), &[Did::Little]), Some(true));
        assert_eq!(was_slow(Did::Nothing, &[mean(1)]), Some(true));
        assert_eq!(was_slow(Did::Little, &[mean(1)]), None);
    }

    #[test]
    fn a_suspicion_comes_and_goes_slowly() {
        let mut s = Suspicion::default();
        let (bad, good, idle) = (mean(2000), mean(2), Did::Little);
        for w in [bad, bad, bad, bad, good, bad, bad, idle, bad, bad] {
            assert_eq!(s.window(w, &[]), None);
        }
        assert_eq!(s.window(bad, &[]), Some(Change::Suspect));
        for _ in 1..LONG {
            assert_eq!(s.window(bad, &[]), None);
        }
        assert_eq!(s.window(bad, &[]), Some(Change::Long));
        for _ in 1..WINDOWS {
            assert_eq!(s.window(good, &[]), None);
        }
        assert_eq!(s.window(good, &[]), Some(Change::Sound));
        assert_eq!(s.window(good, &[]), None);
    }

    #[test]
    fn steps_are_told_once_and_left_late() {
        let mut s = Space::default();
        let at = |n: u64| Duration::from_secs(60 * n);
        let told: Vec<_> = [50, 84, 85, 86, 84, 85, 95, 94, 92, 84, 83, 82, 99]
            .into_iter()
            .enumerate()
            .map(|(i, used)| s.look(at(i as u64), used, 100))
            .collect();
        let (near, nearer, room) = (Some(Fill::Near), Some(Fill::Nearer), Some(Fill::Room));
        assert_eq!(told, [None, None, near, None, None, None, nearer, None, near, None, None, room, nearer]);
    }

    #[test]
    fn when_it_will_be_full() {
        let hour = |n: u64| Duration::from_secs(3600 * n);
        let mut s = Space::default();
        for h in 0..=10 {
            if h < 2 {
                assert_eq!(s.full_in(1000), None, "too early to say");
            }
            s.look(hour(h), 100 + 10 * h + h % 2, 1000);
        }
        let left = s.full_in(1000).expect("it grows").as_secs_f64() / 3600.0;
        assert!((75.0..85.0).contains(&left), "{left} h for 800 at 10 an hour");
        let mut shrinks = Space::default();
        for h in 0..10 {
            shrinks.look(hour(h), 500 - h, 1000);
        }
        assert_eq!(shrinks.full_in(1000), None);
    }
}
