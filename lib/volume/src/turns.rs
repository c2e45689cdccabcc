//! Changes of one gateway that overlap go one after the other, in the order in which they came.
//!
//! The owner of a session orders writes by itself; this is for what happens when the owner changes: a request that was carried out but not answered is carried out
//! again, and must not come after one that was sent later and has been answered. Pure bookkeeping: the shell parks who may not go yet.

use std::ops::Range;

/// Place in the queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Turn(u64);

/// Byte ranges being changed or waiting to be.
#[derive(Debug, Default)]
pub struct Turns {
    next: u64,
    held: Vec<(Turn, Range<u64>)>,
}

impl Turns {
    /// Queue up.
    pub fn enter(&mut self, bytes: Range<u64>) -> Turn {
        let turn = Turn(self.next);
        self.next += 1;
        self.held.push((turn, bytes));
        turn
    }
    /// Nothing that came earlier overlaps.
    pub fn may_go(&self, turn: Turn) -> bool {
        let Some((_, mine)) = self.held.iter().find(|(t, _)| *t == turn) else { return true };
        self.is_clear(turn, mine)
    }
    /// Whoever comes from now on has this turn or a later one.
    pub fn now(&self) -> Turn {
        Turn(self.next)
    }
    /// Nothing that came before this turn overlaps.
    pub fn is_clear(&self, before: Turn, bytes: &Range<u64>) -> bool {
        !self.held.iter().any(|(t, r)| *t < before && r.start < bytes.end && bytes.start < r.end)
    }
    /// Done.
    pub fn leave(&mut self, turn: Turn) {
        if let Some(at) = self.held.iter().position(|(t, _)| *t == turn) {
            self.held.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_waits_for_what_had_begun() {
        let mut t = Turns::default();
        let a = t.enter(0..8);
        let now = t.now();
        t.enter(0..8);
        assert!(!t.is_clear(now, &(7..9)) && t.is_clear(now, &(8..9)));
        t.leave(a);
        assert!(t.is_clear(now, &(7..9)), "what came later is not waited for");
        assert!(!t.is_clear(t.now(), &(7..9)));
    }

    #[test]
    fn overlapping_changes_keep_their_order() {
        let mut t = Turns::default();
        let (a, b, c) = (t.enter(0..8), t.enter(8..16), t.enter(4..12));
        assert!(t.may_go(a) && t.may_go(b) && !t.may_go(c));
        t.leave(a);
        assert!(!t.may_go(c));
        t.leave(b);
        assert!(t.may_go(c));
    }
}
