//! The largest cluster: 6,144 nodes of mixed capacities in 48 zones. Balance and movement as promised.
//!
//! A finite sample of keys shows chance besides placement. Where nodes are judged one by one, five times its standard deviation is allowed for.

mod maps;

use maps::{key, largest, member, members};
use sheepdog_placement::check::{Tally, check_targets, fair_shares, least_movement, moved};
use sheepdog_placement::{Member, Ring};

const KEYS: u64 = 1_500_000;
const COPIES: usize = 3;

fn balanced(members: Vec<Member>) {
    let ring = Ring::new(members.clone());
    let mut tally = Tally::default();
    for i in 0..KEYS {
        let targets = ring.targets(key(i), COPIES);
        if i % 5_000 == 0 {
            assert_eq!(check_targets(&members, COPIES, &targets), Ok(()));
        }
        tally.add(&targets);
    }
    for (node, share) in fair_shares(&members, COPIES) {
        let (fair, held) = (share * KEYS as f64, tally.copies[&node] as f64);
        let room = 0.05 * fair + 5.0 * fair.sqrt();
        assert!((held - fair).abs() < room, "{node:?} holds {held} copies, fair are {fair}");
    }
    // A fifth of 5 %: no node of thousands is beyond four or five times that.
    let bias = tally.balance(&members, COPIES).bias();
    assert!(bias < 0.01, "the deviation of placement itself is {bias}");
}

#[test]
fn mixed_nodes_hold_what_is_fair() {
    balanced(largest());
}

#[test]
fn equal_nodes_hold_what_is_fair() {
    balanced(members(6_144, 0, &[4_000]));
}

/// A node's share must not depend on the unit of weight: a cluster of 50 GiB disks is as even as one of 16 TiB disks.
#[test]
fn small_disks_are_as_even_as_large_ones() {
    let members = members(12, 4, &[50]);
    let ring = Ring::new(members.clone());
    let mut tally = Tally::default();
    for i in 0..500_000 {
        tally.add(&ring.targets(key(i), COPIES));
    }
    let b = tally.balance(&members, COPIES);
    assert!(b.over < 0.05 && b.under < 0.05, "{b:?}");
}

/// Copies that move are those of the node that came, went or changed, and no others, and as many as is fair.
fn moves_little(before: &[Member], after: &[Member], keys: u64) {
    let (old, new) = (Ring::new(before.to_vec()), Ring::new(after.to_vec()));
    let mut copies = 0;
    for i in 0..keys {
        copies += moved(&old.targets(key(i), COPIES), &new.targets(key(i), COPIES));
    }
    let least = least_movement(before, after, COPIES) * keys as f64;
    let (copies, room) = (copies as f64, 5.0 * least.sqrt());
    assert!(copies < 1.1 * least + room, "{copies} copies moved where {least} would do");
    assert!(copies > 0.9 * least - room, "only {copies} copies moved, {least} are fair");
}

#[test]
fn a_join_and_a_leave_move_no_more_than_that_node_holds() {
    let before = largest();
    let new = member(10_000, "z7", 16_000);
    let mut after = before.clone();
    after.push(new.clone());
    moves_little(&before, &after, KEYS / 2);
    moves_little(&after, &before, KEYS / 2);
    // Exactly: it takes one copy of each key it holds, and gives back the same.
    let (old, with) = (Ring::new(before), Ring::new(after));
    for i in 0..KEYS / 10 {
        let (was, is) = (old.targets(key(i), COPIES), with.targets(key(i), COPIES));
        assert_eq!(moved(&was, &is), usize::from(is.contains(&new.node)));
        assert_eq!(moved(&is, &was), usize::from(is.contains(&new.node)));
    }
}

#[test]
fn a_zone_going_out_moves_no_more_than_it_held() {
    let before = largest();
    let after: Vec<Member> = before
        .iter()
        .map(|m| Member { weight: if m.zone == "z7" { 0 } else { m.weight }, ..m.clone() })
        .collect();
    moves_little(&before, &after, KEYS / 10);
}

#[test]
fn a_change_of_weight_moves_the_difference() {
    let before = largest();
    let mut after = before.clone();
    for m in after.iter_mut().filter(|m| m.zone == "z3") {
        m.weight += m.weight / 4;
    }
    moves_little(&before, &after, KEYS / 5);
    moves_little(&after, &before, KEYS / 5);
}
