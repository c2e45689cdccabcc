//! Figures of placement at the largest size: `cargo run --profile ci -p sheepdog-placement --example scale [keys]`.
#![allow(clippy::disallowed_types, reason = "an example may look at the clock")]

#[path = "../tests/maps/mod.rs"]
mod maps;

use maps::{key, largest, member, members};
use sheepdog_placement::check::{Tally, least_movement, moved};
use sheepdog_placement::{Member, Ring};
use std::hint::black_box;
use std::time::Instant;

fn balance(name: &str, members: Vec<Member>, count: usize, keys: u64) {
    let start = Instant::now();
    let ring = Ring::new(members.clone());
    let built = start.elapsed();
    let mut tally = Tally::default();
    for i in 0..keys {
        tally.add(&ring.targets(key(i), count));
    }
    let start = Instant::now();
    for i in 0..200_000 {
        black_box(ring.targets(key(i * 977), count));
    }
    let lookup = start.elapsed() / 200_000;
    let b = tally.balance(&members, count);
    println!(
        "{name:<34} x{count}: over {:5.2} %, under {:5.2} %, deviation {:5.2} % of which chance {:5.2} %, so {:4.2} %; build {built:.1?}, lookup {lookup:?}",
        b.over * 100.0,
        b.under * 100.0,
        b.deviation * 100.0,
        b.chance * 100.0,
        b.bias() * 100.0
    );
}

fn movement(name: &str, before: &[Member], after: &[Member], keys: u64) {
    let (a, b) = (Ring::new(before.to_vec()), Ring::new(after.to_vec()));
    let moves: usize = (0..keys).map(|i| moved(&a.targets(key(i), 3), &b.targets(key(i), 3))).sum();
    let least = least_movement(before, after, 3) * keys as f64;
    println!(
        "{name:<34} moved {moves} copies of {keys} keys, at least {least:.0}: {:.3}",
        moves as f64 / least
    );
}

fn main() {
    let keys = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(20_000_000);
    balance("6144 nodes, 1..16 TiB, 48 zones", largest(), 3, keys);
    balance("6144 nodes, 4 TiB, no zones", members(6144, 0, &[4_000]), 3, keys);
    balance("1000 nodes, 1 TiB, 10 zones", members(1000, 10, &[1_000]), 3, keys / 4);
    balance("100 nodes, 100 GiB, no zones", members(100, 0, &[100]), 3, keys / 10);
    balance("12 nodes, 50 GiB, 4 zones", members(12, 4, &[50]), 3, keys / 20);
    balance("12 nodes, 50/100/200 GiB, 4 zones", members(12, 4, &[50, 100, 200]), 3, keys / 20);
    balance("3 nodes, 1 TiB, no zones", members(3, 0, &[1_000]), 2, keys / 20);
    balance("3 nodes, 1 and 2 TiB, no zones", members(3, 0, &[1_000, 1_000, 2_000]), 1, keys / 20);
    let before = largest();
    let mut after = before.clone();
    after.push(member(10_000, "z7", 16_000));
    movement("a node of 16 TiB joins", &before, &after, keys / 4);
    movement("it leaves", &after, &before, keys / 4);
    let mut after = before.clone();
    after[100].weight *= 2;
    movement("a node grows to twice its size", &before, &after, keys / 4);
    let after: Vec<Member> = before.iter().filter(|m| m.zone != "z7").cloned().collect();
    movement("a zone goes out", &before, &after, keys / 20);
    let small = members(12, 4, &[50, 100, 200]);
    let mut after = small.clone();
    after.push(member(20, "z1", 100));
    movement("12 nodes, a 13th joins", &small, &after, keys / 20);
    movement("the 13th leaves", &after, &small, keys / 20);
}
