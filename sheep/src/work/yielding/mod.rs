//! Background work makes way for clients: how fast recovery, scrubbing and what else moves data by itself may go on this node.
//!
//! Every node decides for itself, from what it does to the requests that it serves (`control`, which is pure): nobody has to say how fast disks, networks and CPUs are. What an operator set
//! (`dog node recovery throttle`) counts as well.

mod control;

use control::Controller;
use std::cell::{Cell, RefCell};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes that may go at once when an operator has set a limit, in seconds of it.
const BURST: f64 = 1.0;

/// Bytes that go at once beside clients: their requests wait behind each piece.
const PIECE: u64 = 256 << 10;

/// See the module. One per node, on its data thread.
#[derive(Debug)]
pub struct Yielding {
    began: Instant,
    control: RefCell<Controller>,
    /// Of the operator's limit: tokens, and when.
    tokens: Cell<(f64, Option<Instant>)>,
}

impl Default for Yielding {
    fn default() -> Self {
        Self { began: Instant::now(), control: RefCell::default(), tokens: Cell::default() }
    }
}

impl Yielding {
    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// A client's request was served, here or for another node's client.
    pub fn served(&self, took: Duration) {
        // Asking for the time costs more than all the rest when nothing goes on in the background.
        if self.control.borrow().is_listening() {
            self.control.borrow_mut().served(self.now(), took.as_nanos() as u64);
        }
    }

    /// Wait until `bytes` more may be read, sent or written. `limit`: the operator's, bytes a second, 0 = none.
    pub async fn admit(&self, limit: u64, bytes: u64) {
        loop {
            let wait = self.control.borrow_mut().admit(self.now(), bytes);
            match wait {
                None => break,
                Some(nanos) => tokio::time::sleep(Duration::from_nanos(nanos)).await,
            }
        }
        if limit == 0 {
            return;
        }
        let rate = limit as f64;
        loop {
            let now = Instant::now();
            let (tokens, last) = self.tokens.get();
            let full = rate * BURST;
            let grown = last.map_or(full, |l| (tokens + rate * (now - l).as_secs_f64()).min(full));
            // A request larger than the bucket passes when that is full.
            let needed = (bytes as f64).min(full);
            if grown >= needed {
                self.tokens.set((grown - bytes as f64, Some(now)));
                return;
            }
            self.tokens.set((grown, Some(now)));
            tokio::time::sleep(Duration::from_secs_f64(((needed - grown) / rate).clamp(0.001, 1.0))).await;
        }
    }

    /// `bytes` that cannot wait: what comes after them does, for a second at most. `limit` as for `admit`.
    pub fn charge(&self, limit: u64, bytes: u64) {
        self.control.borrow_mut().charge(bytes);
        if limit > 0 {
            let (tokens, last) = self.tokens.get();
            let last = last.or_else(|| Some(Instant::now()));
            self.tokens.set(((tokens - bytes as f64).max(-(limit as f64)), last));
        }
    }

    /// How much to read or send at once, of `most` bytes.
    pub fn piece(&self, most: u64) -> u64 {
        if self.rate().is_some() { most.min(PIECE) } else { most }
    }

    /// Bytes a second that background work may move now; `None`: nobody has to be made way for.
    pub fn rate(&self) -> Option<u64> {
        self.control.borrow().rate(self.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn an_operators_limit_holds_and_what_could_not_wait_is_paid_for() {
        let y = Yielding::default();
        // Without a limit nothing is owed later.
        y.charge(0, 1 << 50);
        y.admit(0, 1 << 40).await;
        let began = Instant::now();
        for _ in 0..40 {
            y.admit(MIB * 4, MIB).await;
        }
        let took = began.elapsed().as_secs_f64();
        assert!((8.5..9.5).contains(&took), "a second's worth at once, then 36 at four a second: {took}");
        y.charge(MIB * 4, 1 << 50);
        let began = Instant::now();
        y.admit(MIB * 4, MIB).await;
        let took = began.elapsed().as_secs_f64();
        assert!((1.0..1.5).contains(&took), "no more than a second is owed: {took}");
    }
}
