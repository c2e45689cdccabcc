//! Damaged inputs made from valid ones, the same on every run, and a meter for what a call allocates.
//!
//! [`each`] cuts a valid input at every length, flips its bits, puts extreme numbers over every offset, splices inputs, and then goes on
//! at random for `SHEEPDOG_FUZZ_ROUNDS` rounds. Other crates' tests include this file by its path.

#![allow(dead_code, unsafe_code)] // every test binary uses a part of it

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Random rounds per parser unless `SHEEPDOG_FUZZ_ROUNDS` says otherwise.
const ROUNDS: usize = 3000;
/// Inputs up to this length are damaged at every byte; longer ones at their beginning, their end, and at random.
const EVERY: usize = 400;

/// The system's allocator, counting per thread what is alive and how much that ever was.
pub struct Meter;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that is ending has no counters any more.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: everything is done by `System`; counting does not allocate.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be alive while it is moved.
        count(size as isize);
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static METER: Meter = Meter;

/// What `f` gives, and the most bytes that this thread had allocated at a time meanwhile.
pub fn peak<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let out = f();
    (out, (PEAK.get() - before).max(0) as usize)
}

/// Run `f` and see to it that it allocates at most `cap` bytes at a time.
#[track_caller]
pub fn within<T>(cap: usize, f: impl FnOnce() -> T) -> T {
    let (out, peak) = peak(f);
    assert!(peak <= cap, "{peak} bytes were allocated, more than {cap}");
    out
}

pub fn rounds() -> usize {
    std::env::var("SHEEPDOG_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS)
}

/// Says which input it was when a test fails.
struct Culprit<'a>(&'a [u8]);

impl Drop for Culprit<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.0.iter().take(2000).map(|b| format!("{b:02x}")).collect();
            eprintln!("input of {} bytes: {hex}", self.0.len());
        }
    }
}

fn give(bytes: &[u8], f: &mut impl FnMut(&[u8])) {
    let culprit = Culprit(bytes);
    f(culprit.0);
}

/// Numbers that lengths, counts and offsets are not expected to be, in every width and order that our formats use.
fn extremes() -> Vec<Vec<u8>> {
    let mut all = vec![vec![0xff; 4].into_iter().chain([0x0f]).collect(), [vec![0xff; 9], vec![1]].concat()];
    for n in [0, 1, 0x7f, 0xff] {
        all.push(vec![n]);
    }
    for n in [0, 1, u16::MAX, u16::MAX - 1] {
        all.extend([n.to_le_bytes().to_vec(), n.to_be_bytes().to_vec()]);
    }
    for n in [0, 1, u32::MAX, u32::MAX - 1, i32::MAX as u32, 1 << 28] {
        all.extend([n.to_le_bytes().to_vec(), n.to_be_bytes().to_vec()]);
    }
    for n in [0, 1, u64::MAX, u64::MAX - 1, i64::MAX as u64, 1 << 40] {
        all.extend([n.to_le_bytes().to_vec(), n.to_be_bytes().to_vec()]);
    }
    all
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    let end = bytes.len().min(at + what.len());
    bytes[at..end].copy_from_slice(&what[..end - at]);
}

/// One random change.
fn change(rng: &mut SmallRng, bytes: &mut Vec<u8>, others: &[Vec<u8>], extremes: &[Vec<u8>]) {
    let len = bytes.len();
    let at = if len == 0 { 0 } else { rng.random_range(0..len) };
    match rng.random_range(0..9) {
        0 | 1 if len > 0 => bytes[at] ^= 1 << rng.random_range(0..8),
        2 if len > 0 => bytes[at] = rng.random(),
        3 => put(bytes, at, &extremes[rng.random_range(0..extremes.len())]),
        4 => bytes.truncate(at),
        5 => {
            let more: Vec<u8> = (0..rng.random_range(1..20)).map(|_| rng.random()).collect();
            bytes.splice(at..at, more);
        }
        6 if len > 0 => {
            let end = (at + rng.random_range(1..20)).min(len);
            bytes.drain(at..end);
        }
        7 => {
            // The head of this, the tail of another.
            let other = &others[rng.random_range(0..others.len())];
            bytes.truncate(at);
            bytes.extend_from_slice(&other[rng.random_range(0..=other.len())..]);
        }
        _ => {
            let end = (at + rng.random_range(0..40)).min(len);
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
    }
}

/// Give `f` every valid input, and everything that comes of damaging them.
pub fn each(seed: u64, valid: &[Vec<u8>], f: impl FnMut(&[u8])) {
    each_of(seed, valid, rounds(), f);
}

/// As `each`, with a number of random rounds: for parsers that are slow.
pub fn each_of(seed: u64, valid: &[Vec<u8>], rounds: usize, mut f: impl FnMut(&[u8])) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let extremes = extremes();
    for whole in valid {
        give(whole, &mut f);
        let len = whole.len();
        let mut places: Vec<usize> =
            (0..len.min(EVERY)).chain(len.saturating_sub(16).max(EVERY)..len).collect();
        if len > EVERY {
            places.extend((0..100).map(|_| rng.random_range(0..len)));
        }
        for at in places {
            give(&whole[..at], &mut f);
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                give(&bytes, &mut f);
            }
            for what in &extremes {
                let mut bytes = whole.clone();
                put(&mut bytes, at, what);
                give(&bytes, &mut f);
            }
            // In place of one byte: a variable-length number that grew.
            for what in &extremes[..2] {
                let mut bytes = whole.clone();
                bytes.splice(at..=at, what.iter().copied());
                give(&bytes, &mut f);
            }
        }
    }
    for round in 0..rounds {
        let mut bytes = match round % 8 {
            0 => (0..rng.random_range(0..300)).map(|_| rng.random()).collect(),
            _ => valid[rng.random_range(0..valid.len())].clone(),
        };
        for _ in 0..rng.random_range(1..6) {
            change(&mut rng, &mut bytes, valid, &extremes);
        }
        give(&bytes, &mut f);
    }
}

/// Ways to cut a stream of so many bytes: at once, byte by byte, and at random.
pub fn cuts(seed: u64, len: usize) -> Vec<Vec<usize>> {
    let mut rng = SmallRng::seed_from_u64(seed ^ len as u64);
    let mut random = Vec::new();
    let mut left = len;
    while left > 0 {
        let n = rng.random_range(1..=left.min(40));
        random.push(n);
        left -= n;
    }
    vec![vec![len], vec![1; len], random]
}
