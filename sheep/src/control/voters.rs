//! Which sheep vote: a pure function of the cluster state and of who votes now.
//!
//! One, three or five voters, spread over zones, storage nodes before gateways. A voter is kept while it may come back (up or
//! down); it is replaced when it is out or draining, or when a better number becomes possible.

use sheepdog_cluster::{ClusterState, Node, NodeState};
use sheepdog_proto::NodeId;
use std::collections::BTreeMap;

/// Most voters.
pub const MAX_VOTERS: usize = 5;

fn zone(n: &Node) -> String {
    n.zone.clone().unwrap_or_else(|| n.id.to_string())
}

/// The voters that should be, ascending. Empty only when no node is known.
pub fn choose_voters(state: &ClusterState, current: &[NodeId]) -> Vec<NodeId> {
    let keep = |n: &&Node| matches!(n.state, NodeState::Up | NodeState::Down) && current.contains(&n.id);
    let fresh = |n: &&Node| n.state == NodeState::Up && !current.contains(&n.id);
    let kept: Vec<&Node> = state.nodes.values().filter(keep).collect();
    let mut others: Vec<&Node> = state.nodes.values().filter(fresh).collect();
    let total = kept.len() + others.len();
    let count = match total {
        0 => 0,
        1 | 2 => 1,
        3 | 4 => 3,
        _ => MAX_VOTERS,
    };
    let mut zones: BTreeMap<String, usize> = BTreeMap::new();
    let mut chosen: Vec<&Node> = Vec::new();
    // Those that vote already stay; when there are too many, the ones that are up and add a zone stay first.
    let mut pool = kept;
    while chosen.len() < count && !pool.is_empty() {
        take_best(&mut pool, &mut chosen, &mut zones);
    }
    while chosen.len() < count && !others.is_empty() {
        take_best(&mut others, &mut chosen, &mut zones);
    }
    let mut ids: Vec<NodeId> = chosen.iter().map(|n| n.id).collect();
    ids.sort_unstable();
    ids
}

fn take_best<'a>(pool: &mut Vec<&'a Node>, chosen: &mut Vec<&'a Node>, zones: &mut BTreeMap<String, usize>) {
    let rank = |n: &Node| {
        let crowd = zones.get(&zone(n)).copied().unwrap_or(0);
        (n.state != NodeState::Up, n.gateway, crowd, n.id)
    };
    let best = pool.iter().enumerate().min_by_key(|(_, n)| rank(n)).map(|(i, _)| i);
    if let Some(i) = best {
        let n = pool.swap_remove(i);
        *zones.entry(zone(n)).or_default() += 1;
        chosen.push(n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_cluster::NodeAddr;
    use sheepdog_proto::Epoch;

    fn state(nodes: &[(u128, &str, NodeState, bool)]) -> ClusterState {
        let mut s = ClusterState::default();
        for &(id, z, st, gateway) in nodes {
            let zone = (!z.is_empty()).then(|| z.to_string());
            let node = Node {
                up_since: sheepdog_proto::Epoch(1),
                down_at: sheepdog_proto::Epoch(0),
                lost_at: sheepdog_proto::Epoch(0),
                id: NodeId(id),
                addr: NodeAddr::default(),
                zone,
                weight: 1000,
                vnodes: None,
                gateway,
                state: st,
                dismissed: false,
                incarnation: 1,
                synced: Epoch(0),
                kept: Epoch(0),
                since: 0,
                disks: vec![],
                version: String::new(),
            };
            s.nodes.insert(NodeId(id), node);
        }
        s
    }
    fn ids(v: &[u128]) -> Vec<NodeId> {
        v.iter().map(|&n| NodeId(n)).collect()
    }
    use NodeState::{Down, Draining, Out, Up};

    #[test]
    fn odd_numbers_only() {
        for (nodes, voters) in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (9, 5)] {
            let v: Vec<_> = (1..=nodes).map(|n| (n, "", Up, false)).collect();
            assert_eq!(choose_voters(&state(&v), &[]).len(), voters, "{nodes} nodes");
        }
    }

    #[test]
    fn spread_over_zones() {
        let s = state(&[(1, "a", Up, false), (2, "a", Up, false), (3, "a", Up, false), (4, "b", Up, false)]);
        let v = choose_voters(&s, &[]);
        assert!(v.contains(&NodeId(4)), "{v:?}");
    }

    #[test]
    fn down_keeps_its_vote_and_out_loses_it() {
        let all = [(1, "", Up, false), (2, "", Down, false), (3, "", Up, false), (4, "", Up, false)];
        assert_eq!(choose_voters(&state(&all), &ids(&[1, 2, 3])), ids(&[1, 2, 3]));
        let mut gone = all;
        gone[1].2 = Out;
        assert_eq!(choose_voters(&state(&gone), &ids(&[1, 2, 3])), ids(&[1, 3, 4]));
        gone[1].2 = Draining;
        assert_eq!(choose_voters(&state(&gone), &ids(&[1, 2, 3])), ids(&[1, 3, 4]));
    }

    #[test]
    fn shrinks_when_nobody_can_replace_the_lost() {
        let s = state(&[(1, "", Up, false), (2, "", Out, false), (3, "", Up, false)]);
        assert_eq!(choose_voters(&s, &ids(&[1, 2, 3])), ids(&[1]));
        let s = state(&[(1, "", Down, false), (2, "", Out, false), (3, "", Up, false)]);
        assert_eq!(choose_voters(&s, &ids(&[1, 2, 3])), ids(&[3]));
    }

    #[test]
    fn gateways_vote_only_when_needed() {
        let s = state(&[(1, "", Up, true), (2, "", Up, false), (3, "", Up, false), (4, "", Up, false)]);
        assert_eq!(choose_voters(&s, &[]), ids(&[2, 3, 4]));
        let s = state(&[(1, "", Up, true), (2, "", Up, false), (3, "", Up, false)]);
        assert_eq!(choose_voters(&s, &[]), ids(&[1, 2, 3]));
    }
}
