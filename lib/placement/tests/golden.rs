//! Frozen answers. They must never change: other answers would move everybody's data. If one of these fails, the code is wrong, not the test.

mod maps;

use maps::{key, largest, member, members, node};
use sheepdog_placement::{Member, Ring};
use sheepdog_proto::{LayerId, PlacementKey};
use xxhash_rust::xxh3::xxh3_64;

fn check(members: Vec<Member>, count: usize, answers: &[(u64, &[u64])]) {
    let ring = Ring::new(members);
    for (k, want) in answers {
        let want: Vec<_> = want.iter().map(|n| node(*n)).collect();
        assert_eq!(ring.targets(key(*k), count), want, "key {k}");
    }
}

fn seven() -> Vec<Member> {
    members(7, 0, &[1_000])
}

fn mixed() -> Vec<Member> {
    vec![
        member(0, "a", 500),
        member(1, "a", 3_638),
        member(2, "b", 1_000),
        member(3, "b", 0),
        member(4, "b", 16_000),
        member(5, "c", 50),
        member(6, "c", 7_277),
        member(7, "d", 1),
        member(8, "d", u32::MAX),
    ]
}

#[test]
fn seven_equal_nodes() {
    check(seven(), 3, SEVEN);
}

#[test]
fn mixed_weights_and_zones() {
    check(mixed(), 3, MIXED);
}

#[test]
fn more_copies_than_zones() {
    check(mixed(), 6, CROWDED);
}

#[test]
fn the_largest_cluster() {
    check(largest(), 3, LARGEST);
}

/// All of many answers at once.
#[test]
fn digests() {
    let digest = |members: Vec<Member>, count| {
        let ring = Ring::new(members);
        let mut bytes = Vec::new();
        for family in [1, 2, 0x12_3456, 0xff_ffff] {
            for index in (0..1_000).chain([u32::MAX - 1, u32::MAX]) {
                for t in ring.targets(PlacementKey { family: LayerId(family), index }, count) {
                    bytes.extend(t.0.to_be_bytes());
                }
            }
        }
        xxh3_64(&bytes)
    };
    let got = [
        digest(seven(), 1),
        digest(seven(), 3),
        digest(mixed(), 3),
        digest(mixed(), 8),
        digest(largest(), 3),
        digest(largest(), 16),
    ];
    assert_eq!(got, DIGESTS, "{got:#x?}");
}

const SEVEN: &[(u64, &[u64])] = &[
    (0, &[2, 3, 5]),
    (1, &[1, 0, 6]),
    (2, &[1, 6, 0]),
    (3, &[6, 2, 5]),
    (4_096, &[4, 0, 5]),
    (1_000_000, &[3, 6, 1]),
];
const MIXED: &[(u64, &[u64])] = &[
    (0, &[8, 2, 6]),
    (1, &[8, 1, 6]),
    (2, &[8, 1, 6]),
    (3, &[8, 6, 4]),
    (4_096, &[8, 4, 6]),
    (1_000_000, &[8, 6, 1]),
];
const CROWDED: &[(u64, &[u64])] =
    &[(0, &[8, 2, 6, 1, 4, 0]), (1, &[8, 1, 6, 4, 0, 2]), (2, &[8, 1, 6, 4, 2, 0]), (3, &[8, 6, 4, 1, 2, 0])];
const LARGEST: &[(u64, &[u64])] = &[
    (0, &[2_675, 2_733, 251]),
    (1, &[444, 319, 1_822]),
    (2, &[5_126, 1_894, 4_384]),
    (3, &[6_101, 3_839, 3_718]),
    (4_096, &[644, 4_088, 75]),
    (1_000_000, &[561, 1_229, 2_359]),
];
const DIGESTS: [u64; 6] = [
    0x532c_986b_5403_85ce,
    0x66a4_5362_913d_563d,
    0x0750_b396_13b3_523f,
    0x74ce_643c_6f92_b45d,
    0xd36f_6458_1489_2b05,
    0x03a8_d93e_97c1_4ae9,
];
