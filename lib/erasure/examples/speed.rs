//! How fast strips are made, on one core: `cargo run --release -p sheepdog-erasure --example speed`.
//!
//! For each code the best of several rounds (others use the machine, too), in gigabytes of data a second, in units of 64 KiB: parity from data, and P lost data strips from what is left.

// Measuring takes a clock; the library has none.
#![allow(clippy::disallowed_types)]

use sheepdog_erasure::Codec;
use std::hint::black_box;
use std::time::{Duration, Instant};

const UNIT: usize = 64 << 10;
const ROUND: Duration = Duration::from_millis(200);
const ROUNDS: usize = 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("{:>6} {:>12} {:>12}", "code", "encode GB/s", "rebuild GB/s");
    for (data, parity) in [(2u8, 1u8), (4, 2), (8, 3), (16, 4)] {
        let codec = Codec::new(data, parity)?;
        let strips: Vec<Vec<u8>> =
            (0..data).map(|s| (0..UNIT).map(|i| (i * 31) as u8 ^ s).collect()).collect();
        let strips: Vec<&[u8]> = strips.iter().map(Vec::as_slice).collect();
        let encode = best(UNIT * strips.len(), || codec.encode(black_box(&strips)).map(drop))?;
        let made = codec.encode(&strips)?;
        let lost: Vec<usize> = (0..usize::from(parity).min(strips.len())).collect();
        let left: Vec<Option<&[u8]>> = strips
            .iter()
            .copied()
            .chain(made.iter().map(Vec::as_slice))
            .enumerate()
            .map(|(i, s)| (!lost.contains(&i)).then_some(s))
            .collect();
        let rebuild = best(UNIT * strips.len(), || codec.rebuild(black_box(&left), &lost).map(drop))?;
        println!("{:>6} {encode:>12.1} {rebuild:>12.1}", format!("{data}:{parity}"));
    }
    Ok(())
}

/// Gigabytes a second.
fn best<E>(bytes: usize, mut once: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let mut best = 0f64;
    for _ in 0..ROUNDS {
        let (began, mut done) = (Instant::now(), 0usize);
        while began.elapsed() < ROUND {
            for _ in 0..64 {
                once()?;
            }
            done += 64 * bytes;
        }
        best = best.max(done as f64 / began.elapsed().as_secs_f64() / 1e9);
    }
    Ok(best)
}
