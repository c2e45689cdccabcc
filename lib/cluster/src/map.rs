//! The data plane's view of membership, built once per epoch.

use crate::state::{NodeAddr, NodeState, Redundancy};
use sheepdog_placement::Ring;
use sheepdog_proto::{Epoch, NodeId, PlacementKey};
use std::collections::BTreeMap;

/// A node as the data plane sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeView {
    /// Address.
    pub addr: NodeAddr,
    /// State.
    pub state: NodeState,
    /// Process.
    pub incarnation: u64,
    /// Complete up to here.
    pub synced: Epoch,
    /// Epoch in which it last came up: later than `synced` means that it was away since it was last complete.
    pub up_since: Epoch,
}

impl NodeView {
    /// Serves requests.
    pub fn is_up(&self) -> bool {
        matches!(self.state, NodeState::Up | NodeState::Draining)
    }
}

/// Who holds what in one epoch.
///
/// The *targets* of an object are its nodes in the current ring. Its *acting set* is the union of its targets over every ring
/// that is not settled yet (plus the targets themselves): old holders keep taking writes until the new ones are complete, so redundancy is
/// never reduced by a rebalance. A write goes to every acting node that is up. It is *degraded* when some acting node is down or not
/// synced to this epoch.
#[derive(Debug)]
pub struct NodeMap {
    /// Epoch.
    pub epoch: Epoch,
    /// Every known node that is not out.
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// (epoch, ring), oldest first; the last is current. Never empty after format.
    pub rings: Vec<(Epoch, Ring)>,
}

/// Holders of one object in one epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acting {
    /// Nodes of the current ring, in ring order.
    pub targets: Vec<NodeId>,
    /// Holders by older rings that are not out, ascending, without the targets.
    pub extra: Vec<NodeId>,
}

impl Acting {
    /// Targets, then extras.
    pub fn all(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.targets.iter().chain(&self.extra).copied()
    }
}

impl NodeMap {
    /// Holders of an object.
    pub fn acting(&self, key: PlacementKey, redundancy: Redundancy) -> Acting {
        let width = redundancy.width();
        let mut targets = Vec::new();
        let mut extra = Vec::new();
        if let Some(((_, current), older)) = self.rings.split_last() {
            targets = current.targets(key, width);
            for (_, ring) in older {
                for n in ring.targets(key, width) {
                    if !targets.contains(&n) && !extra.contains(&n) && self.nodes.contains_key(&n) {
                        extra.push(n);
                    }
                }
            }
            extra.sort_unstable();
        }
        Acting { targets, extra }
    }

    /// The ring that was current at an epoch; `None` when that is no longer known.
    pub fn ring_at(&self, epoch: Epoch) -> Option<&Ring> {
        self.rings.iter().rev().find(|(e, _)| *e <= epoch).map(|(_, r)| r)
    }
}

impl crate::ClusterState {
    /// The data plane's view of membership.
    pub fn node_map(&self) -> NodeMap {
        let nodes = self
            .nodes
            .values()
            .filter(|n| n.state != NodeState::Out)
            .map(|n| {
                let view = NodeView {
                    addr: n.addr.clone(),
                    state: n.state,
                    incarnation: n.incarnation,
                    synced: n.synced,
                    up_since: n.up_since,
                };
                (n.id, view)
            })
            .collect();
        let rings = self
            .rings
            .iter()
            .map(|r| {
                let member = |(node, zone, vnodes): &(NodeId, String, u32)| sheepdog_placement::Member {
                    node: *node,
                    zone: zone.clone(),
                    vnodes: *vnodes,
                };
                (r.epoch, Ring::new(r.members.iter().map(member).collect()))
            })
            .collect();
        NodeMap { epoch: self.epoch, nodes, rings }
    }

    /// Layers from `top` down to the root of its family, newest first.
    pub fn chain(&self, top: sheepdog_proto::LayerId) -> Option<Vec<sheepdog_proto::LayerId>> {
        let mut chain = vec![self.layers.get(&top)?.id];
        let mut at = top;
        while let Some(parent) = self.layers.get(&at)?.parent {
            chain.push(parent);
            at = parent;
        }
        Some(chain)
    }
}
