//! Which requests on one object must wait for which: reads and read-modify-writes wait for overlapping writes in flight; whole-block writes never wait
//! (the object's log orders them). A *gate* keeps every new write out while a copy joins.
//!
//! Pure bookkeeping: the shell parks a refused request and asks again when `release` says that something changed.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ticket of a request that is in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ticket(u64);

#[derive(Debug)]
struct Held {
    blocks: Range<u32>,
    /// Read-modify-write: overlapping writes must wait too.
    exclusive: bool,
    /// Place in the object's log, once it has one.
    step: Option<u64>,
}

/// Requests in flight on one object.
#[derive(Debug, Default)]
pub struct RangeLocks {
    writes: BTreeMap<Ticket, Held>,
    next: u64,
    steps: u64,
    gated: bool,
}

fn overlap(a: &Range<u32>, b: &Range<u32>) -> bool {
    a.start < b.end && b.start < a.end
}

impl RangeLocks {
    /// May a read of these blocks go ahead?
    pub fn may_read(&self, blocks: &Range<u32>) -> bool {
        !self.writes.values().any(|h| overlap(&h.blocks, blocks))
    }
    /// Writes in flight on these blocks.
    pub fn overlapping(&self, blocks: &Range<u32>) -> Vec<Ticket> {
        self.writes.iter().filter(|(_, h)| overlap(&h.blocks, blocks)).map(|(t, _)| *t).collect()
    }
    /// Is any of them still in flight?
    pub fn any_in_flight(&self, tickets: &[Ticket]) -> bool {
        tickets.iter().any(|t| self.writes.contains_key(t))
    }
    /// Enter a write. `exclusive`: it reads first, so nothing overlapping may be in flight.
    /// `None`: not now.
    pub fn write(&mut self, blocks: Range<u32>, exclusive: bool) -> Option<Ticket> {
        if self.gated
            || self.writes.values().any(|h| (exclusive || h.exclusive) && overlap(&h.blocks, &blocks))
        {
            return None;
        }
        let t = Ticket(self.next);
        self.next += 1;
        self.writes.insert(t, Held { blocks, exclusive, step: None });
        Some(t)
    }
    /// A write is finished on every copy.
    pub fn release(&mut self, ticket: Ticket) {
        self.writes.remove(&ticket);
    }
    /// The write takes its place in the object's log. Not when it enters: one that reads first gets its step after others that entered later.
    pub fn begin(&mut self, ticket: Ticket) {
        if let Some(held) = self.writes.get_mut(&ticket) {
            held.step = Some(self.steps);
            self.steps += 1;
        }
    }
    /// Is this the oldest step in flight?
    pub fn is_oldest(&self, ticket: Ticket) -> bool {
        let Some(mine) = self.writes.get(&ticket).and_then(|h| h.step) else { return true };
        self.writes.values().all(|h| h.step.is_none_or(|s| s >= mine))
    }
    /// Keep new writes out. `false`: somebody else holds the gate.
    pub fn close_gate(&mut self) -> bool {
        !std::mem::replace(&mut self.gated, true)
    }
    /// Is somebody joining?
    pub fn is_gated(&self) -> bool {
        self.gated
    }
    /// Let writes in again.
    pub fn open_gate(&mut self) {
        self.gated = false;
    }
    /// Nothing in flight.
    pub fn is_idle(&self) -> bool {
        self.writes.is_empty()
    }
    /// Nothing in flight and nobody at the gate: the entry can be forgotten.
    pub fn is_unused(&self) -> bool {
        self.writes.is_empty() && !self.gated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_wait_for_overlapping_writes_only() {
        let mut l = RangeLocks::default();
        let a = l.write(0..4, false).expect("free");
        assert!(!l.may_read(&(3..5)));
        assert!(l.may_read(&(4..5)));
        let b = l.write(2..6, false).expect("plain writes overlap freely");
        l.begin(a);
        l.begin(b);
        assert!(l.is_oldest(a) && !l.is_oldest(b));
        l.release(a);
        assert!(!l.may_read(&(3..5)) && l.is_oldest(b));
        l.release(b);
        assert!(l.may_read(&(3..5)) && l.is_unused());
    }

    #[test]
    fn the_oldest_is_who_got_its_step_first() {
        let mut l = RangeLocks::default();
        let slow = l.write(0..1, true).expect("free");
        let quick = l.write(4..5, false).expect("free");
        l.begin(quick);
        l.begin(slow);
        assert!(l.is_oldest(quick) && !l.is_oldest(slow));
        l.release(quick);
        assert!(l.is_oldest(slow));
    }

    #[test]
    fn read_modify_write_is_alone_on_its_blocks() {
        let mut l = RangeLocks::default();
        let a = l.write(0..1, true).expect("free");
        assert_eq!(l.write(0..1, false), None);
        assert_eq!(l.write(0..2, true), None);
        assert!(l.write(1..2, false).is_some());
        l.release(a);
        assert!(l.write(0..1, false).is_some());
    }

    #[test]
    fn the_gate_keeps_writes_out() {
        let mut l = RangeLocks::default();
        let a = l.write(0..1, false).expect("free");
        assert!(l.close_gate());
        assert!(!l.close_gate());
        assert_eq!(l.write(8..9, false), None);
        assert!(!l.is_idle());
        l.release(a);
        assert!(l.is_idle());
        l.open_gate();
        assert!(l.write(8..9, false).is_some());
    }
}
