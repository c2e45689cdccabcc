//! At most once: which numbered requests of one sender were begun, however often and on however many connections they arrive.
//!
//! The sender numbers its requests from 1 and says with each how far it has all answers (`floor`: everything below needs no answer any more). What is remembered
//! here is a set of runs, which grows together as requests end: its size is bounded by what the sender has open, not by what it ever sent.

use std::collections::{BTreeMap, BTreeSet};

/// What to do with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Carry it out, then call `ended`.
    New,
    /// It is being carried out: answer when that ends.
    Running,
    /// It was carried out.
    Done,
    /// It was begun and failed, or its sender does not wait for it any more: it must not be begun again.
    Over,
}

/// Requests of one sender.
#[derive(Debug, Default)]
pub struct Once {
    floor: u64,
    running: BTreeSet<u64>,
    failed: BTreeSet<u64>,
    /// First to last + 1 of those that succeeded.
    done: BTreeMap<u64, u64>,
}

impl Once {
    /// A request has arrived; its sender has all answers below `floor`.
    pub fn see(&mut self, seq: u64, floor: u64) -> Seen {
        if floor > self.floor {
            self.floor = floor;
            self.failed = self.failed.split_off(&floor);
            let mut kept = self.done.split_off(&floor);
            if let Some((_, end)) = self.done.pop_last().filter(|(_, end)| *end > floor) {
                kept.insert(floor, end);
            }
            self.done = kept;
        }
        if seq < self.floor || self.failed.contains(&seq) {
            return Seen::Over;
        }
        if self.done.range(..=seq).next_back().is_some_and(|(_, end)| seq < *end) {
            return Seen::Done;
        }
        if self.running.insert(seq) { Seen::New } else { Seen::Running }
    }

    /// A request that was `New` has ended.
    pub fn ended(&mut self, seq: u64, ok: bool) {
        self.running.remove(&seq);
        if seq < self.floor {
            return;
        }
        if !ok {
            self.failed.insert(seq);
            return;
        }
        let (mut start, mut end) = (seq, seq + 1);
        if let Some((s, e)) = self.done.range(..seq).next_back().map(|(s, e)| (*s, *e))
            && e == seq
        {
            start = s;
        }
        if let Some(e) = self.done.remove(&end) {
            end = e;
        }
        self.done.insert(start, end);
    }

    /// Entries kept.
    pub fn size(&self) -> usize {
        self.running.len() + self.failed.len() + self.done.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_begun_once() {
        let mut o = Once::default();
        assert_eq!(o.see(1, 1), Seen::New);
        assert_eq!(o.see(1, 1), Seen::Running);
        o.ended(1, true);
        assert_eq!(o.see(1, 1), Seen::Done);
        assert_eq!(o.see(2, 1), Seen::New);
        o.ended(2, false);
        assert_eq!(o.see(2, 1), Seen::Over);
        assert_eq!(o.see(3, 3), Seen::New);
        assert_eq!(o.see(1, 1), Seen::Over, "its answer has arrived");
        assert_eq!(o.see(2, 1), Seen::Over);
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(steps in proptest::collection::vec((1u64..40, any::<bool>(), 0u64..4), 1..200)) {
            let mut o = Once::default();
            let (mut begun, mut floor) = (BTreeSet::new(), 0);
            for (seq, ok, up) in steps {
                floor = (floor + up / 3).min(38);
                let seen = o.see(seq, floor);
                let expect_new = seq >= floor && !begun.contains(&seq);
                prop_assert_eq!(seen == Seen::New, expect_new);
                if expect_new {
                    begun.insert(seq);
                    o.ended(seq, ok);
                }
            }
            prop_assert!(o.size() <= 40);
        }
    }
}
