//! The checker: judges placements by what was promised, without knowing how they were found.
//!
//! It works on the members and on answers, never on a ring. Used by tests, the simulator and examples.

use crate::Member;
use sheepdog_proto::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// What is wrong with one answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// Too few or too many.
    #[error("{got} targets instead of {want}")]
    Count {
        /// What there should be: as many as asked for, or as there are nodes that hold data.
        want: usize,
        /// What there is.
        got: usize,
    },
    /// Not a member.
    #[error("{0:?} is not a member")]
    Stranger(NodeId),
    /// The same node twice.
    #[error("{0:?} is a target twice")]
    Twice(NodeId),
    /// A node that holds nothing.
    #[error("{0:?} has no weight")]
    Weightless(NodeId),
    /// Copies share a zone although there are zones without one.
    #[error("the copies are in {got} zones instead of {want}")]
    Zones {
        /// As many zones as copies, or all there are.
        want: usize,
        /// What there is.
        got: usize,
    },
}

/// Judge one answer to "`count` copies, please".
pub fn check_targets(members: &[Member], count: usize, targets: &[NodeId]) -> Result<(), Violation> {
    let holders: Vec<&Member> = members.iter().filter(|m| m.weight > 0).collect();
    let want = count.min(holders.len());
    if targets.len() != want {
        return Err(Violation::Count { want, got: targets.len() });
    }
    let mut seen = BTreeSet::new();
    let mut zones = BTreeSet::new();
    for t in targets {
        let member = members.iter().find(|m| m.node == *t).ok_or(Violation::Stranger(*t))?;
        if member.weight == 0 {
            return Err(Violation::Weightless(*t));
        }
        if !seen.insert(*t) {
            return Err(Violation::Twice(*t));
        }
        zones.insert(member.zone.as_str());
    }
    let all: BTreeSet<&str> = holders.iter().map(|m| m.zone.as_str()).collect();
    let want = count.min(all.len());
    if zones.len() < want {
        return Err(Violation::Zones { want, got: zones.len() });
    }
    Ok(())
}

/// Copies per key that each node should hold: in proportion to its weight, but never more than one, and in a zone together never more than one
/// as long as there are enough zones. What is too much for one goes to the others in proportion.
pub fn fair_shares(members: &[Member], count: usize) -> BTreeMap<NodeId, f64> {
    let mut zones: BTreeMap<&str, Vec<&Member>> = BTreeMap::new();
    for m in members.iter().filter(|m| m.weight > 0) {
        zones.entry(&m.zone).or_default().push(m);
    }
    let strict = zones.len() >= count;
    let weights: Vec<f64> = zones.values().map(|ms| ms.iter().map(|m| f64::from(m.weight)).sum()).collect();
    let caps: Vec<f64> = zones.values().map(|ms| if strict { 1.0 } else { ms.len() as f64 }).collect();
    let mut shares = BTreeMap::new();
    for (members, copies) in zones.values().zip(pour(count as f64, &weights, &caps)) {
        let weights: Vec<f64> = members.iter().map(|m| f64::from(m.weight)).collect();
        let parts = pour(copies, &weights, &vec![1.0; members.len()]);
        shares.extend(members.iter().map(|m| m.node).zip(parts));
    }
    shares
}

/// Divide `amount` in proportion to `weights`, none above its cap.
fn pour(amount: f64, weights: &[f64], caps: &[f64]) -> Vec<f64> {
    let mut full = vec![false; weights.len()];
    loop {
        let rest = amount - (0..weights.len()).filter(|i| full[*i]).map(|i| caps[i]).sum::<f64>();
        let weight: f64 = (0..weights.len()).filter(|i| !full[*i]).map(|i| weights[i]).sum();
        let part = |i: usize| if full[i] { caps[i] } else { (rest.max(0.0) / weight) * weights[i] };
        let over: Vec<usize> = (0..weights.len()).filter(|i| !full[*i] && part(*i) > caps[*i]).collect();
        if over.is_empty() {
            return (0..weights.len()).map(part).collect();
        }
        for i in over {
            full[i] = true;
        }
    }
}

/// How many copies of a sample of keys each node holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Keys asked for.
    pub keys: u64,
    /// Copies by node.
    pub copies: BTreeMap<NodeId, u64>,
}

/// How far the shares are from fair.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Balance {
    /// Furthest above its fair share: 0.03 is 3 % more.
    pub over: f64,
    /// Furthest below, as a positive number.
    pub under: f64,
    /// Root of the mean square.
    pub deviation: f64,
    /// What `deviation` would be with perfect placement, because the sample is finite.
    pub chance: f64,
}

impl Balance {
    /// What is left of the deviation without chance: that of placement itself.
    pub fn bias(&self) -> f64 {
        (self.deviation.powi(2) - self.chance.powi(2)).max(0.0).sqrt()
    }
}

impl Tally {
    /// Count one answer.
    pub fn add(&mut self, targets: &[NodeId]) {
        self.keys += 1;
        for t in targets {
            *self.copies.entry(*t).or_default() += 1;
        }
    }

    /// Compare with what is fair. With few keys this shows chance more than placement: see `Balance::bias`.
    pub fn balance(&self, members: &[Member], count: usize) -> Balance {
        let fair = fair_shares(members, count);
        let (mut over, mut under, mut squares, mut noise) = (0f64, 0f64, 0f64, 0f64);
        for (node, share) in &fair {
            let held = self.copies.get(node).copied().unwrap_or_default() as f64;
            let off = held / (share * self.keys as f64) - 1.0;
            over = over.max(off);
            under = under.max(-off);
            squares += off * off;
            noise += (1.0 - share).max(0.0) / (share * self.keys as f64);
        }
        let mean = |sum: f64| (sum / fair.len().max(1) as f64).sqrt();
        Balance { over, under, deviation: mean(squares), chance: mean(noise) }
    }
}

/// Copies of one key that have to be made when its targets change: nodes that hold it now and did not before.
pub fn moved(before: &[NodeId], after: &[NodeId]) -> usize {
    after.iter().filter(|n| !before.contains(n)).count()
}

/// Copies per key that must move in any case, for every node to get what is fair: what the nodes gain together.
pub fn least_movement(before: &[Member], after: &[Member], count: usize) -> f64 {
    let had = fair_shares(before, count);
    fair_shares(after, count).iter().map(|(n, s)| (s - had.get(n).copied().unwrap_or(0.0)).max(0.0)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Vec<Member> {
        let m = |n, zone: &str, weight| Member { node: NodeId(n), zone: zone.into(), weight };
        vec![m(1, "a", 10), m(2, "a", 30), m(3, "b", 40), m(4, "c", 20), m(5, "d", 0)]
    }
    fn judge(count: usize, targets: &[u128]) -> Result<(), Violation> {
        let targets: Vec<NodeId> = targets.iter().map(|n| NodeId(*n)).collect();
        check_targets(&members(), count, &targets)
    }

    #[test]
    fn wrong_answers_are_named() {
        assert_eq!(judge(3, &[1, 3, 4]), Ok(()));
        assert_eq!(judge(3, &[1, 3]), Err(Violation::Count { want: 3, got: 2 }));
        assert_eq!(judge(9, &[1, 2, 3, 4]), Ok(()));
        assert_eq!(judge(2, &[1, 9]), Err(Violation::Stranger(NodeId(9))));
        assert_eq!(judge(2, &[1, 1]), Err(Violation::Twice(NodeId(1))));
        assert_eq!(judge(2, &[1, 5]), Err(Violation::Weightless(NodeId(5))));
        assert_eq!(judge(2, &[1, 2]), Err(Violation::Zones { want: 2, got: 1 }));
        assert_eq!(judge(4, &[1, 2, 3, 4]), Ok(()));
    }

    #[test]
    fn fair_is_by_weight_up_to_one_copy_a_zone() {
        let shares = |count| fair_shares(&members(), count).into_values().collect::<Vec<f64>>();
        assert_eq!(shares(1), [0.1, 0.3, 0.4, 0.2]);
        assert_eq!(shares(2), [0.2, 0.6, 0.8, 0.4]);
        // Three zones for three copies: one each.
        assert_eq!(shares(3), [0.25, 0.75, 1.0, 1.0]);
        assert_eq!(shares(4), [1.0; 4]);
    }

    #[test]
    fn what_must_move() {
        let (mut grown, before) = (members(), members());
        grown[3].weight = 40;
        let least = least_movement(&before, &grown, 1);
        assert!((least - (40.0 / 120.0 - 0.2)).abs() < 1e-9);
        assert_eq!(least_movement(&before, &before, 2), 0.0);
        assert_eq!(moved(&[NodeId(1), NodeId(2)], &[NodeId(2), NodeId(3)]), 1);
    }
}
