//! Which nodes hold an object: a ring of weighted virtual nodes, distinct zones first.
//!
//! Frozen for ever: hash (xxh3-64), seed and tie-breaking. Another result would move everybody's data.

use sheepdog_proto::{NodeId, PlacementKey};
use std::collections::BTreeSet;
use std::sync::Arc;

/// One member of a ring.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Node.
    pub node: NodeId,
    /// Failure zone.
    pub zone: String,
    /// Virtual nodes (0 = holds nothing).
    pub vnodes: u32,
}

/// An immutable ring. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ring {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    members: Vec<Member>,
    /// (point, member), sorted.
    points: Vec<(u64, u32)>,
    /// Distinct zones with at least one virtual node.
    zones: usize,
    /// Members with at least one virtual node.
    holders: usize,
}

impl Ring {
    /// Build; O(total virtual nodes).
    pub fn new(members: Vec<Member>) -> Self {
        let mut points = Vec::new();
        for (m, member) in members.iter().enumerate() {
            for v in 0..member.vnodes {
                let mut bytes = [0u8; 20];
                bytes[..16].copy_from_slice(&member.node.0.to_be_bytes());
                bytes[16..].copy_from_slice(&v.to_be_bytes());
                points.push((xxhash_rust::xxh3::xxh3_64(&bytes), m as u32));
            }
        }
        points.sort_unstable_by_key(|(p, m)| (*p, members[*m as usize].node));
        let holders = members.iter().filter(|m| m.vnodes > 0);
        let zones = holders.clone().map(|m| m.zone.as_str()).collect::<BTreeSet<_>>().len();
        let holders = holders.count();
        Self { inner: Arc::new(Inner { members, points, zones, holders }) }
    }

    /// Members, as given.
    pub fn members(&self) -> &[Member] {
        &self.inner.members
    }

    /// The first `count` nodes clockwise of the key, in distinct zones as far as there are zones, then in distinct nodes. Fewer when there are
    /// fewer nodes.
    pub fn targets(&self, key: PlacementKey, count: usize) -> Vec<NodeId> {
        let points = &self.inner.points;
        let mut nodes = Vec::with_capacity(count);
        if points.is_empty() || count == 0 {
            return nodes;
        }
        let mut bytes = [0u8; 8];
        bytes[..4].copy_from_slice(&key.family.0.to_be_bytes());
        bytes[4..].copy_from_slice(&key.index.to_be_bytes());
        let hash = xxhash_rust::xxh3::xxh3_64(&bytes);
        let start = points.partition_point(|(p, _)| *p < hash);
        let walk =
            || points[start..].iter().chain(&points[..start]).map(|(_, m)| &self.inner.members[*m as usize]);
        let mut zones: Vec<&str> = Vec::with_capacity(count);
        for member in walk() {
            if nodes.len() == count.min(self.inner.zones) {
                break;
            }
            if !zones.contains(&member.zone.as_str()) {
                zones.push(&member.zone);
                nodes.push(member.node);
            }
        }
        // Fewer zones than asked for: distinct nodes.
        let want = count.min(self.inner.holders);
        if nodes.len() < want {
            for member in walk() {
                if nodes.len() == want {
                    break;
                }
                if !nodes.contains(&member.node) {
                    nodes.push(member.node);
                }
            }
        }
        nodes
    }
}
