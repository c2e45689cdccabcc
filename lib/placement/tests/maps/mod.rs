//! Maps for tests and examples: the same every time.
#![allow(dead_code)]

use sheepdog_placement::Member;
use sheepdog_proto::{LayerId, NodeId, PlacementKey};

/// A node id that looks like a random UUID.
pub fn node(n: u64) -> NodeId {
    let half = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let a = half(n.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1));
    NodeId((u128::from(a) << 64) | u128::from(half(a)))
}

/// A member.
pub fn member(n: u64, zone: &str, weight: u32) -> Member {
    Member { node: node(n), zone: zone.into(), weight }
}

/// `n` members with the given weights in turn, in `zones` zones in turn (0: each its own).
pub fn members(n: u64, zones: u64, weights: &[u32]) -> Vec<Member> {
    (0..n)
        .map(|i| {
            let zone = if zones == 0 { format!("n{i}") } else { format!("z{}", i % zones) };
            member(i, &zone, weights[(i / zones.max(1)) as usize % weights.len()])
        })
        .collect()
}

/// The largest cluster: 6,144 nodes of 1 to 16 TiB in 48 zones.
pub fn largest() -> Vec<Member> {
    members(6144, 48, &[1_000, 16_000, 3_638, 7_277, 1_819, 14_552, 2_000, 8_000])
}

/// The `i`-th key of a sample.
pub fn key(i: u64) -> PlacementKey {
    PlacementKey { family: LayerId((i >> 12) as u32 + 1), index: (i & 0xfff) as u32 }
}
