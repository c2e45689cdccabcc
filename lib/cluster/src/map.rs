//! The data plane's view of membership: built for every epoch, and within one when a node is complete or another process has taken its place.

use crate::ClusterState;
use crate::state::{LostDisk, Node, NodeAddr, NodeState, Redundancy, RingVersion};
use sheepdog_placement::{Member, Ring};
use sheepdog_proto::{DiskId, Epoch, LayerId, NodeId, PlacementKey};
use std::collections::{BTreeMap, BTreeSet};

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
    /// Up to here it has what was its own at `synced`; with `synced` at 0, it has been out, and up to here it had everything.
    pub kept: Epoch,
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
    /// Nodes that keep data and are away (down or out) or have lost it, with the last epoch of which they may know something that nobody
    /// else does.
    pub away: BTreeMap<NodeId, Epoch>,
    /// `ClusterState::altered`. A redundancy given to the functions here is the one a family was made with; this says what it is in each ring, so that whoever has
    /// this map knows where things are in it, whatever has been changed since.
    pub altered: BTreeMap<LayerId, Vec<(Epoch, Redundancy)>>,
    /// Disks that took only copies with them.
    pub lost: Vec<((NodeId, DiskId), LostDisk)>,
    /// Smallest number of copies of any family.
    pub min_width: usize,
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
    /// Does it say what the state says? Not only while the epoch is the same: nodes become complete, an operator accepts that what somebody knew is lost, and a process that
    /// is replaced before anybody notices is no new epoch, but what it sends counts only by its number.
    pub fn is_of(&self, state: &ClusterState) -> bool {
        let known = self.nodes.iter().map(|(id, v)| (*id, v.incarnation, v.state, v.synced, v.kept));
        let nodes = state.nodes.values().filter(|n| n.state != NodeState::Out);
        self.epoch == state.epoch
            && (self.rings.len(), self.lost.len()) == (state.rings.len(), state.lost.len())
            && nodes.map(|n| (n.id, n.incarnation, n.state, n.synced, n.kept)).eq(known)
            && state.away().eq(self.away.iter().map(|(id, until)| (*id, *until)))
    }

    /// Holders of an object.
    pub fn acting(&self, key: PlacementKey, redundancy: Redundancy) -> Acting {
        let mut targets = Vec::new();
        let mut extra = Vec::new();
        if let Some((current, older)) = self.rings.split_last() {
            targets = self.targets(current, key, redundancy);
            for ring in older {
                for n in self.targets(ring, key, redundancy) {
                    if !targets.contains(&n) && !extra.contains(&n) && self.nodes.contains_key(&n) {
                        extra.push(n);
                    }
                }
            }
            extra.sort_unstable();
        }
        Acting { targets, extra }
    }

    /// Why a node that was last complete at `synced` cannot know what it lacks: somebody who is away may have taken writes that it has not
    /// seen, or was the only holder of what it is to hold now. `None`: whatever was acknowledged is known to some node that is up.
    ///
    /// Fewer nodes away or incomplete than there are copies: then every object has a holder that is up and complete, whoever they are.
    pub fn unknowable(&self, me: NodeId, synced: Epoch) -> Option<NodeId> {
        let holders: BTreeSet<NodeId> =
            self.rings.iter().flat_map(|(_, r)| r.members()).map(|m| m.node).collect();
        let held = |n: &NodeId| holders.contains(n);
        let incomplete = |v: &NodeView| v.is_up() && (v.up_since > v.synced || v.synced == Epoch(0));
        let lacking = self
            .nodes
            .iter()
            .filter(|(n, v)| held(n) && (incomplete(v) || !v.is_up()) && !self.away.contains_key(*n));
        let count = lacking.count() + self.away.keys().filter(|n| held(n)).count();
        if count < self.min_width {
            return None;
        }
        let regained = self.rings.last().is_some_and(|(e, _)| *e > synced);
        let blocks = |n: &NodeId, until: &Epoch| *n != me && (*until > synced || (regained && held(n)));
        self.away.iter().find(|(n, until)| blocks(n, until)).map(|(n, _)| *n)
    }

    /// The same for one object of which no copy vouches for itself: may the longest of those that are up be taken for the truth? `known` is the
    /// latest epoch as of which one of them is right. `owns`: has the longest; what it may have lost was other objects.
    pub fn unknowable_object(
        &self,
        key: PlacementKey,
        redundancy: Redundancy,
        known: Epoch,
        owns: Option<NodeId>,
    ) -> Option<NodeId> {
        let holds = |n: &NodeId| self.rings.iter().any(|r| self.targets(r, key, redundancy).contains(n));
        let better = |n: &NodeId, until: Epoch| until > known && Some(*n) != owns && holds(n);
        self.away.iter().find(|(n, until)| better(n, **until)).map(|(n, _)| *n)
    }

    /// Of an object that is `here`: may what was written to it be lost? Of one that is nowhere: may it have been on a disk that is lost, and not only never have been
    /// written?
    pub fn may_be_lost(&self, key: PlacementKey, redundancy: Redundancy, here: bool) -> bool {
        self.lost.iter().any(|((node, _), lost)| {
            // Who held it then is known as long as the ring of then is.
            let member = |r: &&Ring| r.members().iter().any(|m| m.node == *node);
            let known = self.ring_at(lost.epoch).map(|(_, r)| r).filter(member).is_some();
            let targets = |r| self.targets(r, key, redundancy).contains(node);
            lost.families.contains(&key.family)
                && (!here || lost.rewound)
                && (!known || self.rings.iter().any(targets))
        })
    }

    /// The latest epoch at which a node had everything at `key`; 0 when it is not known to have had it at all: what a ring gave to it after it was
    /// last complete it has never seen. What was its own then it goes on to have while it is up.
    pub fn complete_at(&self, node: NodeId, key: PlacementKey, redundancy: Redundancy) -> Epoch {
        let Some(view) = self.nodes.get(&node) else { return Epoch(0) };
        let complete = if view.synced == Epoch(0) { view.kept } else { view.synced };
        if self.was_target(node, complete, key, redundancy) { view.kept } else { Epoch(0) }
    }

    /// The latest epoch, after `since`, until which a holder that is out may be believed when it comes back (see `complete_at`). A change that was finished without it must not look
    /// like an earlier one.
    pub fn out_until(&self, key: PlacementKey, redundancy: Redundancy, since: Epoch) -> Option<Epoch> {
        let out = self.away.iter().filter(|(n, until)| **until > since && !self.nodes.contains_key(*n));
        let held = |n: &NodeId| self.rings.iter().any(|r| self.targets(r, key, redundancy).contains(n));
        out.filter(|(n, _)| held(n)).map(|(_, until)| *until).max()
    }

    fn ring_at(&self, epoch: Epoch) -> Option<&(Epoch, Ring)> {
        self.rings.iter().rev().find(|(e, _)| *e <= epoch)
    }

    /// A family's redundancy in this map.
    pub fn redundancy(&self, family: LayerId, made_with: Redundancy) -> Redundancy {
        self.rings.last().map_or(made_with, |(e, _)| redundancy_at(&self.altered, family, made_with, *e))
    }

    /// The smallest number of copies that a family has in any of the map's rings.
    pub fn least_width(&self, family: LayerId, made_with: Redundancy) -> usize {
        let widths =
            self.rings.iter().map(|(e, _)| redundancy_at(&self.altered, family, made_with, *e).width());
        widths.min().unwrap_or(made_with.width())
    }

    /// Holders of an object in one of the map's rings, in ring order.
    pub fn targets(
        &self,
        (epoch, ring): &(Epoch, Ring),
        key: PlacementKey,
        made_with: Redundancy,
    ) -> Vec<NodeId> {
        ring.targets(key, redundancy_at(&self.altered, key.family, made_with, *epoch).width())
    }

    /// Nodes that may have a strip of the object, best first: the one that should, then those that were to by older rings.
    pub fn strip_holders(&self, key: PlacementKey, strips: u8, strip: u8) -> Vec<NodeId> {
        let mut out = Vec::new();
        for (_, ring) in self.rings.iter().rev() {
            let of = ring.strips(key, strips.into());
            let node = of.get(usize::from(strip)).copied().flatten();
            out.extend(node.filter(|n| !out.contains(n) && self.nodes.contains_key(n)));
        }
        out
    }

    /// Who should have which strip of the object; fewer than there are strips when there are fewer nodes.
    pub fn strip_targets(&self, key: PlacementKey, strips: u8) -> Vec<Option<NodeId>> {
        self.rings.last().map_or_else(Vec::new, |(_, ring)| ring.strips(key, strips.into()))
    }

    /// Was it a holder of the object at an epoch, by any ring that was in force then? Whoever is complete has that, and is given every step of it until all rings but the last are
    /// forgotten. What the map believes of a copy (`complete_at`) and what its node takes for its own must be the same: else it is left out of steps and believed all the same (seed
    /// 13802). No, when that is no longer known.
    pub fn was_target(&self, node: NodeId, epoch: Epoch, key: PlacementKey, made_with: Redundancy) -> bool {
        self.rings.iter().any(|r| r.0 <= epoch && self.targets(r, key, made_with).contains(&node))
    }
}

fn redundancy_at(
    altered: &BTreeMap<LayerId, Vec<(Epoch, Redundancy)>>,
    family: LayerId,
    made_with: Redundancy,
    epoch: Epoch,
) -> Redundancy {
    let then = altered.get(&family).and_then(|steps| steps.iter().rev().find(|(e, _)| *e <= epoch));
    then.map_or(made_with, |(_, r)| *r)
}

impl RingVersion {
    fn build(&self) -> Ring {
        let member = |(node, zone, weight): &(NodeId, String, u32)| Member {
            node: *node,
            zone: zone.clone(),
            weight: *weight,
        };
        Ring::new(self.members.iter().map(member).collect())
    }
    fn is_of(&self, ring: &Ring) -> bool {
        let same = |(m, (node, zone, weight)): (&Member, &(NodeId, String, u32))| {
            (m.node, &m.zone, m.weight) == (*node, zone, *weight)
        };
        self.members.len() == ring.members().len() && ring.members().iter().zip(&self.members).all(same)
    }
}

impl ClusterState {
    /// The data plane's view of membership.
    pub fn node_map(&self) -> NodeMap {
        self.node_map_after(None)
    }

    /// Nodes that keep data and are away, or have lost some: up to which epoch they may know something that nobody else does.
    fn away(&self) -> impl Iterator<Item = (NodeId, Epoch)> {
        let keep = self.nodes.values().filter(|n| !n.gateway);
        let until = |n: &Node| if n.is_up() { n.lost_at } else { n.lost_at.max(n.down_at) };
        keep.map(move |n| (n.id, until(n))).filter(|(_, until)| until.0 > 0)
    }

    /// The same; rings that are in an earlier map are taken from there, because building one is most of the work.
    pub fn node_map_after(&self, before: Option<&NodeMap>) -> NodeMap {
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
                    kept: n.kept,
                    up_since: n.up_since,
                };
                (n.id, view)
            })
            .collect();
        let away = self.away().collect();
        // Of a family that was altered the smallest of those that count in some ring.
        let least = |id| self.altered.get(id).and_then(|steps| steps.iter().map(|(_, r)| r.width()).min());
        let copies = self.families.iter().map(|(id, f)| least(id).unwrap_or(f.redundancy.width()));
        let lost = self.lost.iter().map(|(disk, lost)| (*disk, lost.clone())).collect();
        let rings: Vec<(Epoch, Ring)> = self
            .rings
            .iter()
            .map(|r| {
                let same = |(e, ring): &&(Epoch, Ring)| *e == r.epoch && r.is_of(ring);
                match before.and_then(|b| b.rings.iter().find(same)) {
                    Some(known) => known.clone(),
                    None => (r.epoch, r.build()),
                }
            })
            .collect();
        let members = rings.last().map_or(0, |(_, r): &(Epoch, Ring)| r.members().len());
        let min_width = copies.min().unwrap_or(1).min(members.max(1));
        NodeMap { epoch: self.epoch, nodes, away, altered: self.altered.clone(), lost, min_width, rings }
    }

    /// How many copies a family is to have.
    pub fn redundancy(&self, family: LayerId) -> Option<Redundancy> {
        let made_with = self.families.get(&family)?.redundancy;
        Some(redundancy_at(&self.altered, family, made_with, self.epoch))
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

    /// The oldest layer of a chain: the one that may stand on a layer of another family.
    pub fn bottom(&self, mut layer: sheepdog_proto::LayerId) -> Option<&crate::Layer> {
        loop {
            let l = self.layers.get(&layer)?;
            let Some(parent) = l.parent else { return Some(l) };
            layer = parent;
        }
    }
}
