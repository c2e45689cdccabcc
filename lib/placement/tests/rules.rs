//! What holds for every map and key: the checker's rules, the definition itself, and that nothing moves but what must.

mod maps;

use maps::{key, member, node};
use proptest::prelude::*;
use sheepdog_placement::check::{check_targets, moved};
use sheepdog_placement::{Member, Ring};
use sheepdog_proto::{NodeId, PlacementKey};
use std::collections::BTreeSet;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// The definition, word by word, without an index: how far a node is from a key.
fn distance(of: &Member, key: PlacementKey) -> f64 {
    let mut bytes = key.family.0.to_be_bytes().to_vec();
    bytes.extend(key.index.to_be_bytes());
    let hash = xxh3_128(&bytes);
    let (start, eye) = (hash as u32, (hash >> 64) as u64);
    let points: Vec<u32> = (0..128u32)
        .map(|n| xxh3_64(&[&of.node.0.to_be_bytes()[..], &n.to_be_bytes()].concat()) as u32)
        .collect();
    for lap in 0..64u64 {
        let seen = |p: &&u32| {
            let mut x = eye.wrapping_add(lap.wrapping_mul(0x9e37_79b9_7f4a_7c15)) ^ u64::from(**p);
            x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
            x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
            x >> 58 == 0 || lap == 63
        };
        if let Some(way) = points.iter().filter(seen).map(|p| p.wrapping_sub(start)).min() {
            return (lap as f64 * 4_294_967_296.0 + f64::from(way)) * (1.0 / f64::from(of.weight));
        }
    }
    unreachable!("the last lap sees everything")
}

/// The nearest of each zone, nearest first; then the nearest of the others.
fn by_definition(members: &[Member], key: PlacementKey, count: usize) -> Vec<NodeId> {
    let mut order: Vec<(f64, &Member)> =
        members.iter().filter(|m| m.weight > 0).map(|m| (distance(m, key), m)).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.node.cmp(&b.1.node)));
    let mut zones = BTreeSet::new();
    let (first, second): (Vec<_>, Vec<_>) = order.iter().partition(|(_, m)| zones.insert(&m.zone));
    first.iter().take(count).chain(&second).take(count).map(|(_, m)| m.node).collect()
}

fn any_members() -> impl Strategy<Value = Vec<Member>> {
    let weight = prop_oneof![1 => Just(0u32), 4 => 1..2_000u32, 4 => 1_000..20_000u32, 1 => any::<u32>()];
    prop::collection::vec((0..6u32, weight), 0..24).prop_map(|all| {
        let of = |(i, (zone, weight)): (usize, (u32, u32))| member(i as u64, &format!("z{zone}"), weight);
        all.into_iter().enumerate().map(of).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn answers_follow_the_rules(members in any_members(), count in 0..9usize, first in any::<u32>()) {
        let ring = Ring::new(members.clone());
        for i in 0..8 {
            let targets = ring.targets(key(u64::from(first) + i), count);
            prop_assert_eq!(check_targets(&members, count, &targets), Ok(()));
        }
    }

    #[test]
    fn the_index_finds_what_the_definition_says(members in any_members(), count in 0..6usize, i in any::<u32>()) {
        let ring = Ring::new(members.clone());
        let key = key(u64::from(i));
        prop_assert_eq!(ring.targets(key, count), by_definition(&members, key, count));
    }

    #[test]
    fn the_order_of_members_does_not_matter(members in any_members(), i in any::<u32>()) {
        let mut reversed = members.clone();
        reversed.reverse();
        let key = key(u64::from(i));
        prop_assert_eq!(Ring::new(members).targets(key, 3), Ring::new(reversed).targets(key, 3));
    }

    #[test]
    fn fewer_copies_are_a_prefix_while_zones_last(members in any_members(), count in 1..6usize, i in any::<u32>()) {
        let holders = members.iter().filter(|m| m.weight > 0);
        let zones = holders.map(|m| &m.zone).collect::<BTreeSet<_>>().len();
        prop_assume!(count <= zones);
        let ring = Ring::new(members);
        let key = key(u64::from(i));
        let all = ring.targets(key, count);
        prop_assert_eq!(&ring.targets(key, count - 1)[..], &all[..count - 1]);
    }

    #[test]
    fn a_node_that_joins_takes_and_nothing_else_moves(members in any_members(), count in 1..6usize, zone in 0..7u32, weight in 1..20_000u32, i in any::<u32>()) {
        let new = member(1_000, &format!("z{zone}"), weight);
        let mut joined = members.clone();
        joined.push(new.clone());
        let (before, after) = (Ring::new(members.clone()), Ring::new(joined));
        let holders = members.iter().filter(|m| m.weight > 0);
        let zones = holders.map(|m| &m.zone).collect::<BTreeSet<_>>().len();
        for n in 0..8 {
            let key = key(u64::from(i) + n);
            let (was, is) = (before.targets(key, count), after.targets(key, count));
            // When copies have to share zones, a new zone may also decide which nodes fill up.
            let most = if zones >= count { 1 } else { 2 };
            prop_assert!(moved(&was, &is) <= most, "{was:?} {is:?}");
            if zones >= count {
                prop_assert!(is.iter().all(|t| was.contains(t) || *t == new.node));
            }
        }
    }

    #[test]
    fn only_proportions_matter(members in any_members(), i in any::<u32>()) {
        let small: Vec<Member> = members.iter().map(|m| Member { weight: m.weight >> 12, ..m.clone() }).collect();
        let large: Vec<Member> = small.iter().map(|m| Member { weight: m.weight << 12, ..m.clone() }).collect();
        let key = key(u64::from(i));
        prop_assert_eq!(Ring::new(small).targets(key, 3), Ring::new(large).targets(key, 3));
    }
}

#[test]
fn no_members_no_targets() {
    assert_eq!(Ring::new(Vec::new()).targets(key(1), 3), []);
    assert_eq!(Ring::new(vec![member(1, "a", 0)]).targets(key(1), 3), []);
    assert_eq!(Ring::new(vec![member(1, "a", 1)]).targets(key(1), 0), []);
    assert_eq!(Ring::new(vec![member(1, "a", 1)]).targets(key(1), 3), [node(1)]);
}

/// Sixty-four laps over a crowd to find one small node far away would take for ever: crowds that are found are not looked at again.
#[test]
fn a_small_node_in_a_zone_of_its_own_is_found() {
    let mut members = maps::members(2_000, 2, &[16_000_000]);
    members.push(member(9_999, "small", 1));
    let ring = Ring::new(members);
    for i in 0..2_000 {
        assert!(ring.targets(key(i), 3).contains(&node(9_999)));
    }
}
