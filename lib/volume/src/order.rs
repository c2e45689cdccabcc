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
}

/// Requests in flight on one object.
#[derive(Debug, Default)]
pub struct RangeLocks {
    writes: BTreeMap<Ticket, Held>,
    next: u64,
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
        self.writes.insert(t, Held { blocks, exclusive });
        Some(t)
    }
    /// A write is finished on every copy.
    pub fn release(&mut self, ticket: Ticket) {
        self.writes.remove(&ticket);
    }
    /// Is this the oldest write in flight?
    pub fn is_oldest(&self, ticket: Ticket) -> bool {
        self.writes.first_key_value().is_none_or(|(t, _)| *t >= ticket)
    }
    /// Keep new writes out. `false`: somebody else holds the gate.
    pub fn close_gate(&mut self) -> bool {
        !std::mem::replace(&mut self.gated, true)
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
        assert!(l.is_oldest(a) && !l.is_oldest(b));
        l.release(a);
        assert!(!l.may_read(&(3..5)) && l.is_oldest(b));
        l.release(b);
        assert!(l.may_read(&(3..5)) && l.is_unused());
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
