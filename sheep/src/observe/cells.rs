//! Counters of the data thread: plain cells, no atomics. Counting costs a few additions; nobody reads them unless asked.

use std::cell::Cell;
use std::time::Duration;

/// Latency buckets: bucket `i` counts operations that took less than `2^i` microseconds; the last one takes the rest (about half a minute and more).
pub const LATENCY_BUCKETS: usize = 26;

/// Counters of one kind of operation.
#[derive(Debug, Default)]
pub struct OpStats {
    /// Finished, also with an error.
    pub count: Cell<u64>,
    /// Bytes asked for.
    pub bytes: Cell<u64>,
    /// Finished with an error.
    pub errors: Cell<u64>,
    /// Sum of latencies.
    pub nanos: Cell<u64>,
    /// Histogram, see `LATENCY_BUCKETS`.
    pub latency: [Cell<u64>; LATENCY_BUCKETS],
}

/// The counters as they were at one moment; may leave the data thread.
#[derive(Debug, Default, Clone, Copy)]
pub struct OpCounts {
    /// Finished.
    pub count: u64,
    /// Bytes asked for.
    pub bytes: u64,
    /// Finished with an error.
    pub errors: u64,
    /// Sum of latencies.
    pub nanos: u64,
    /// Not cumulative.
    pub latency: [u64; LATENCY_BUCKETS],
}

/// Add to a counter.
pub fn add(cell: &Cell<u64>, n: u64) {
    cell.set(cell.get().wrapping_add(n));
}

impl OpStats {
    /// One operation has ended.
    pub fn finished(&self, bytes: u64, took: Duration, ok: bool) {
        add(&self.count, 1);
        add(&self.bytes, bytes);
        add(&self.errors, u64::from(!ok));
        add(&self.nanos, took.as_nanos() as u64);
        let micros = took.as_micros() as u64;
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        add(&self.latency[bucket.min(LATENCY_BUCKETS - 1)], 1);
    }

    /// Copy them.
    pub fn counts(&self) -> OpCounts {
        OpCounts {
            count: self.count.get(),
            bytes: self.bytes.get(),
            errors: self.errors.get(),
            nanos: self.nanos.get(),
            latency: std::array::from_fn(|i| self.latency[i].get()),
        }
    }
}

impl OpCounts {
    /// Put another one's on top.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.nanos += other.nanos;
        for (mine, theirs) in self.latency.iter_mut().zip(other.latency) {
            *mine += theirs;
        }
    }
}
