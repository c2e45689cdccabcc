//! The code against a second implementation, against vectors written down, and every loss it promises to bear.

use proptest::prelude::*;
use sheepdog_erasure::{Codec, ErasureError, MAX_DATA, MAX_PARITY};

/// Slow and obvious: shift and add, no tables, nothing shared with the engine.
mod plain {
    pub fn mul(mut a: u8, mut b: u8) -> u8 {
        let mut p = 0;
        while b != 0 {
            if b & 1 == 1 {
                p ^= a;
            }
            let carry = a & 0x80 != 0;
            a <<= 1;
            if carry {
                a ^= 0x1d;
            }
            b >>= 1;
        }
        p
    }
    pub fn inv(a: u8) -> u8 {
        (1..=255).find(|b| mul(a, *b) == 1).expect("every number but zero has one")
    }
    /// Row `r` of the matrix.
    pub fn row(data: usize, r: usize) -> Vec<u8> {
        (0..data).map(|j| if r < data { u8::from(r == j) } else { inv((r ^ j) as u8) }).collect()
    }
    pub fn strip(data: &[Vec<u8>], r: usize) -> Vec<u8> {
        let row = row(data.len(), r);
        let byte = |i| data.iter().zip(&row).fold(0, |sum, (d, c)| sum ^ mul(d[i], *c));
        (0..data[0].len()).map(byte).collect()
    }
    /// All data strips from D strips, by Gauss-Jordan.
    pub fn solve(data: usize, have: &[(usize, Vec<u8>)]) -> Vec<Vec<u8>> {
        let mut m: Vec<(Vec<u8>, Vec<u8>)> =
            have.iter().map(|(r, bytes)| (row(data, *r), bytes.clone())).collect();
        for col in 0..data {
            let pivot = (col..data).find(|r| m[*r].0[col] != 0).expect("invertible");
            m.swap(col, pivot);
            let by = inv(m[col].0[col]);
            let scale = |v: &mut Vec<u8>| v.iter_mut().for_each(|x| *x = mul(*x, by));
            scale(&mut m[col].0);
            scale(&mut m[col].1);
            for r in (0..data).filter(|r| *r != col) {
                let (by, (row, bytes)) = (m[r].0[col], m[col].clone());
                let take = |v: &mut Vec<u8>, o: &[u8]| {
                    v.iter_mut().zip(o).for_each(|(x, y)| *x ^= mul(*y, by));
                };
                take(&mut m[r].0, &row);
                take(&mut m[r].1, &bytes);
            }
        }
        m.into_iter().map(|(_, bytes)| bytes).collect()
    }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..len).map(|_| next()).collect()
}

fn refs(all: &[Vec<u8>]) -> Vec<&[u8]> {
    all.iter().map(Vec::as_slice).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// These bytes are on disks. They never change.
#[test]
fn golden_vectors() {
    for (data, parity, expect) in GOLDEN {
        let strips: Vec<Vec<u8>> = (0..*data)
            .map(|j| (0..8).map(|i| j.wrapping_mul(37).wrapping_add(i * 11 + 1)).collect())
            .collect();
        let codec = Codec::new(*data, *parity).expect("policy");
        let made = codec.encode(&refs(&strips)).expect("encodes");
        let text: Vec<String> = made.iter().map(|s| hex(s)).collect();
        assert_eq!(text.join(" "), *expect, "{data}:{parity}");
        for (r, made) in made.iter().enumerate() {
            assert_eq!(*made, plain::strip(&strips, *data as usize + r), "{data}:{parity}");
        }
    }
}

const GOLDEN: &[(u8, u8, &str)] = &[
    (1, 1, "010c17222d38434e"),
    (2, 1, "67e2912c5ddc7cfd"),
    (4, 2, "693c4efeccf157d0 0853f084b887e5f1"),
    (8, 3, "21ed4227c08203f3 e062fe06f785e475 cc40f7116334c57e"),
    (
        16,
        15,
        "45f5095832257ddd 85cc596998ce11da 1c525bc4a7cef2f7 753a759f30b68b64 04d171f772715ce6 ca3b391e5ab1536c 3a89b787074a2a84 dbc65227a60185e5 2c0a4f58f8dd5172 109091648e3c4d72 f6dedde6c2e4532a 1aaa45a38cfb8d7d 77b88212dc7b2240 0fdc7e29c3923abd 1dc598b232717208",
    ),
];

#[test]
fn every_policy_is_what_the_plain_one_makes() {
    for data in 1..=MAX_DATA {
        for parity in 1..=MAX_PARITY {
            let strips: Vec<Vec<u8>> = (0..data).map(|j| bytes(u64::from(j) + 1, 67)).collect();
            let made = Codec::new(data, parity).expect("policy").encode(&refs(&strips)).expect("encodes");
            for (r, made) in made.iter().enumerate() {
                assert_eq!(*made, plain::strip(&strips, data as usize + r), "{data}:{parity} strip {r}");
            }
        }
    }
}

#[test]
fn any_loss_of_as_many_strips_as_there_is_parity_is_borne() {
    for (data, parity) in [(1, 1), (2, 1), (2, 2), (3, 2), (4, 2), (5, 3), (8, 3)] {
        let codec = Codec::new(data, parity).expect("policy");
        let strips: Vec<Vec<u8>> = (0..data).map(|j| bytes(u64::from(j) + 99, 130)).collect();
        let mut all = strips.clone();
        all.extend(codec.encode(&refs(&strips)).expect("encodes"));
        let n = all.len();
        for lost in 0u32..1 << n {
            let missing: Vec<usize> = (0..n).filter(|i| lost >> i & 1 == 1).collect();
            let left: Vec<Option<&[u8]>> =
                all.iter().enumerate().map(|(i, s)| (lost >> i & 1 == 0).then_some(s.as_slice())).collect();
            let rebuilt = codec.rebuild(&left, &missing);
            if missing.len() > parity as usize {
                let have = n - missing.len();
                assert_eq!(rebuilt, Err(ErasureError::TooFew { have, need: data as usize }));
                continue;
            }
            let rebuilt = rebuilt.expect("enough is left");
            for (i, s) in missing.iter().zip(&rebuilt) {
                assert_eq!(*s, all[*i], "{data}:{parity} without {missing:?}");
            }
            let have = (0..n).filter(|i| lost >> i & 1 == 0).take(data as usize);
            let have: Vec<_> = have.map(|i| (i, all[i].clone())).collect();
            assert_eq!(plain::solve(data as usize, &have), strips, "the plain one, without {missing:?}");
        }
    }
}

#[test]
fn nonsense_is_refused() {
    for (d, p) in [(0, 1), (1, 0), (17, 1), (1, 16), (255, 255)] {
        assert_eq!(Codec::new(d, p).expect_err("no such code"), ErasureError::Policy(d, p));
    }
    let codec = Codec::new(2, 1).expect("policy");
    assert_eq!(codec.encode(&[&[1, 2], &[3]]), Err(ErasureError::Lengths));
    assert_eq!(codec.encode(&[&[1, 2]]), Err(ErasureError::Lengths));
    assert_eq!(codec.rebuild(&[Some(&[1]), Some(&[2])], &[2]), Err(ErasureError::Lengths));
    assert_eq!(codec.rebuild(&[Some(&[1]), Some(&[2]), None], &[3]), Err(ErasureError::Lengths));
}

proptest! {
    #[test]
    fn both_agree(data in 1u8..=16, parity in 1u8..=15, len in 1usize..300, seed: u64, lose: u64) {
        let codec = Codec::new(data, parity).expect("policy");
        let strips: Vec<Vec<u8>> = (0..data).map(|j| bytes(seed ^ u64::from(j), len)).collect();
        let made = codec.encode(&refs(&strips)).expect("encodes");
        for (r, made) in made.iter().enumerate() {
            prop_assert_eq!(made, &plain::strip(&strips, data as usize + r));
        }
        let mut all = strips;
        all.extend(made);
        // Lose as many as there is parity, chosen by the bits.
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by_key(|i| (lose.rotate_left(*i as u32 * 7)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let missing = &order[..parity as usize];
        let left: Vec<Option<&[u8]>> =
            all.iter().enumerate().map(|(i, s)| (!missing.contains(&i)).then_some(s.as_slice())).collect();
        let rebuilt = codec.rebuild(&left, missing).expect("enough is left");
        for (i, s) in missing.iter().zip(&rebuilt) {
            prop_assert_eq!(s, &all[*i]);
        }
    }
}
