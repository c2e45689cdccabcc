//! Simulated time: tokio's paused clock, in the form that the daemon reads.

use std::cell::Cell;
use tokio::time::Instant;

thread_local! {
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Begin to count.
pub fn start() {
    START.set(Some(Instant::now()));
}

/// Milliseconds; never 0. The same on all nodes.
pub fn millis() -> u64 {
    let began = START.get();
    1_000_000 + began.map_or(0, |s| s.elapsed().as_millis() as u64)
}
