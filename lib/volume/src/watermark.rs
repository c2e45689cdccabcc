//! The commit watermark of a session: the highest sequence such that it and everything before it is on every copy.

use std::collections::BTreeSet;

/// Sequences given out and completed.
#[derive(Debug, Default)]
pub struct Watermark {
    last: u64,
    open: BTreeSet<u64>,
}

impl Watermark {
    /// Next sequence, from 1.
    pub fn assign(&mut self) -> u64 {
        self.last += 1;
        self.open.insert(self.last);
        self.last
    }
    /// This one is on every copy.
    pub fn complete(&mut self, seq: u64) {
        self.open.remove(&seq);
    }
    /// Was it given out, and is not complete?
    pub fn is_open(&self, seq: u64) -> bool {
        self.open.contains(&seq)
    }
    /// Everything up to here is.
    pub fn value(&self) -> u64 {
        self.open.first().map_or(self.last, |s| s - 1)
    }
    /// Last sequence given out.
    pub fn last(&self) -> u64 {
        self.last
    }
    /// Nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_below_the_oldest_open() {
        let mut w = Watermark::default();
        assert_eq!(w.value(), 0);
        let (a, b, c) = (w.assign(), w.assign(), w.assign());
        w.complete(b);
        assert_eq!((w.value(), w.is_open(a), w.is_open(b)), (0, true, false));
        w.complete(a);
        assert_eq!(w.value(), 2);
        w.complete(c);
        assert_eq!((w.value(), w.is_idle()), (3, true));
    }
}
