//! Membership: every change is a new epoch.
//!
//! `synced = E` of a node means: it has everything that the map of epoch E says it should have. When a later epoch asks nothing of a node (it was up all
//! along and the ring did not change) its `synced` moves on with the epoch. A ring change asks everybody to look; coming back after `Down` asks the one that was
//! away. Old rings stay until every member of the current one is synced past its beginning: only then may the old holders be forgotten.

use super::Outcome;
use crate::{
    ClusterState, CommandError, DiskEntry, EpochRecord, EventLevel, LostDisk, Millis, Node, NodeHello,
    NodeState, Reply, RingVersion, Session,
};
use sheepdog_proto::{DEFAULT_VNODES, DiskId, Epoch, LayerId, MAX_NODES, NodeId};
use std::collections::BTreeSet;

/// A ring's weights count 125ths of a virtual node: then 128 of them for a weight of 1,000 is a whole number.
const RING_UNITS_PER_VNODE: u32 = 125;
const _: () = assert!((RING_UNITS_PER_VNODE * DEFAULT_VNODES).is_multiple_of(1000));
/// Epochs kept for people even when nothing needs them.
const HISTORY: usize = 512;
/// Most virtual nodes of one node.
const MAX_VNODES: u32 = 1 << 16;

impl Node {
    /// Serves requests.
    pub fn is_up(&self) -> bool {
        matches!(self.state, NodeState::Up | NodeState::Draining)
    }
    /// It has been up since it was last complete: what was its own then, it has.
    fn stands(&self) -> bool {
        self.is_up() && self.synced > Epoch(0) && self.up_since <= self.synced
    }
    /// Complete, up to this epoch.
    pub(super) fn complete_to(&mut self, epoch: Epoch) {
        self.synced = epoch;
        self.kept = self.kept.max(epoch);
    }
    /// What it had is gone.
    pub(super) fn complete_to_nothing(&mut self) {
        (self.synced, self.kept) = (Epoch(0), Epoch(0));
    }
    fn ring_member(&self) -> Option<(NodeId, String, u32)> {
        if self.gateway || !matches!(self.state, NodeState::Up | NodeState::Down) {
            return None;
        }
        // Clamped here, because a node tells its own number. A weight is not: rings know proportions only.
        let weight = match self.vnodes {
            Some(v) => u64::from(v.min(MAX_VNODES)) * u64::from(RING_UNITS_PER_VNODE),
            None => u64::from(self.weight) * u64::from(RING_UNITS_PER_VNODE * DEFAULT_VNODES / 1000),
        };
        let weight = weight.clamp(1, u64::from(u32::MAX)) as u32;
        Some((self.id, self.zone.clone().unwrap_or_else(|| self.id.to_string()), weight))
    }
}

impl ClusterState {
    fn record(&mut self, at: Millis, what: String) {
        let up: BTreeSet<NodeId> = self.nodes.values().filter(|n| n.is_up()).map(|n| n.id).collect();
        let before = std::mem::replace(&mut self.up, up);
        let came = self.up.difference(&before).copied().collect();
        let went = before.difference(&self.up).copied().collect();
        self.history.push_back(EpochRecord { epoch: self.epoch, at, what, came, went });
        let oldest = self
            .nodes
            .values()
            .filter(|n| n.state != NodeState::Out)
            .map(|n| n.synced)
            .min()
            .unwrap_or(self.epoch);
        while self.history.len() > HISTORY && self.history.front().is_some_and(|r| r.epoch < oldest) {
            self.history.pop_front();
        }
    }

    /// A change that alters nobody's duties but those of `except`.
    fn membership_changed(&mut self, at: Millis, what: String, except: Option<NodeId>) {
        let before = self.epoch;
        self.epoch = before.next();
        let now = self.epoch;
        for n in self.nodes.values_mut() {
            if n.gateway || (n.is_up() && n.synced == before && Some(n.id) != except) {
                n.complete_to(now);
            } else if n.stands() {
                n.kept = now;
            }
        }
        self.forget_merges();
        self.record(at, what);
        self.settle();
    }

    /// The ring is not what it was.
    pub(crate) fn ring_changed(&mut self, at: Millis, what: String) {
        let same =
            |r: &RingVersion| self.nodes.values().filter_map(Node::ring_member).eq(r.members.iter().cloned());
        match self.rings.last().is_some_and(same) {
            true => self.membership_changed(at, what, None),
            false => self.holders_changed(at, what),
        }
    }

    /// Who holds what is not what it was: everybody looks.
    pub(super) fn holders_changed(&mut self, at: Millis, what: String) {
        let members: Vec<_> = self.nodes.values().filter_map(Node::ring_member).collect();
        let before = self.epoch;
        self.epoch = before.next();
        let now = self.epoch;
        self.rings.push(RingVersion { epoch: now, members });
        let empty = self.layers.is_empty();
        for n in self.nodes.values_mut() {
            if n.gateway || (empty && n.is_up()) {
                n.complete_to(now);
            } else if n.stands() {
                n.kept = now;
            }
        }
        self.forget_merges();
        self.record(at, what);
        self.settle();
    }

    /// Forget rings that nobody needs any more.
    pub(crate) fn settle(&mut self) {
        let Some(current) = self.rings.last() else { return };
        let members = current.members.iter().filter_map(|(n, ..)| self.nodes.get(n));
        // Complete now, and not only once: what was written while a holder by the latest ring was away is perhaps only on holders by an older one.
        let whole =
            members.filter(|n| n.state != NodeState::Out).all(|n| n.is_up() && n.synced >= self.epoch);
        let current = current.epoch;
        if self.layers.is_empty() || whole {
            let last = self.rings.pop();
            self.rings.clear();
            self.rings.extend(last);
            for steps in self.altered.values_mut() {
                let now = steps.iter().rposition(|(e, _)| *e <= current).unwrap_or(0);
                steps.drain(..now);
            }
            // Only now has everybody looked at what came back: a holder by a ring in between does not have it.
            let there = |node: &NodeId, disk: &DiskId| {
                self.nodes.get(node).is_some_and(|n| n.disks.iter().any(|d| d.id == *disk && d.is_there()))
            };
            self.lost.retain(|(node, disk), _| !there(node, disk));
        }
    }

    fn fence_sessions(&mut self, node: NodeId, but: Option<u64>) {
        for v in self.vdis.values_mut() {
            if let Session::Open { owner, incarnation, .. } = v.session
                && owner == node
                && Some(incarnation) != but
            {
                v.session = Session::Unclean { generation: v.generation };
            }
        }
    }

    pub(super) fn node_up(&mut self, now: Millis, hello: &NodeHello) -> Outcome {
        if hello.id.is_nil() {
            return Err(CommandError::Invalid("a node without an id".into()));
        }
        if !self.nodes.contains_key(&hello.id) && self.nodes.len() >= MAX_NODES {
            return Err(CommandError::NotEnough(format!("a cluster has at most {MAX_NODES} nodes")));
        }
        self.fence_sessions(hello.id, Some(hello.incarnation));
        let known = self.nodes.get(&hello.id).cloned();
        let place = hello.addr.host.clone() + ":" + &hello.addr.client_port.to_string();
        let mut node = Node {
            id: hello.id,
            addr: hello.addr.clone(),
            zone: hello.zone.clone(),
            weight: if hello.gateway { 0 } else { hello.weight.max(1) },
            vnodes: hello.vnodes.filter(|v| *v > 0),
            gateway: hello.gateway,
            state: NodeState::Up,
            dismissed: false,
            incarnation: hello.incarnation,
            synced: Epoch(0),
            kept: Epoch(0),
            up_since: self.epoch.next(),
            down_at: Epoch(0),
            lost_at: Epoch(0),
            since: now,
            disks: hello.disks.clone(),
            version: hello.version.clone(),
        };
        let Some(old) = known else {
            let joined = format!("node {} joined ({place})", hello.id.short());
            self.nodes.insert(hello.id, node);
            self.event(now, EventLevel::Info, joined.clone());
            if hello.gateway {
                self.membership_changed(now, joined, None);
            } else {
                self.ring_changed(now, joined);
            }
            return Ok(Reply::Epoch(self.epoch));
        };
        // A retired disk has missed what was written since, so nothing on it may be taken for data; what this very process lost does not come back by itself.
        let retired = |id: DiskId| old.disks.iter().any(|d| d.id == id && d.retired);
        if old.incarnation == hello.incarnation {
            // It tells what it began with; what was plugged, emptied or retired since is known here.
            node.disks = old.disks.iter().filter(|d| !d.missing).cloned().collect();
        } else if let Some(d) = hello.disks.iter().find(|d| retired(d.id)) {
            return Err(CommandError::Invalid(format!(
                "the disk at {} was retired, and the cluster went on without it: empty that directory, or start the sheep without it",
                d.path
            )));
        }
        // Its data is where its disks are: one that is missing took its part with it. A process that was only silent has what it had: what it says of that is of when it began, and
        // for a moment none of its disks may be in the map (one that was emptied, and is to stay after all).
        let mut disks = old.disks.iter().filter(|d| d.is_there()).peekable();
        let keeps = old.gateway
            || old.incarnation == hello.incarnation
            || match disks.peek() {
                None => hello.has_data,
                Some(_) => disks.all(|d| node.disks.iter().any(|h| h.id == d.id && !h.retired)),
            };
        let was_up = old.is_up();
        node.state = if old.state == NodeState::Draining { NodeState::Draining } else { NodeState::Up };
        // A weight that was set by hand, or a capacity that moved a little, does not shuffle data.
        let drift = old.weight.abs_diff(node.weight).saturating_mul(10) > old.weight;
        if !drift && !hello.gateway {
            node.weight = old.weight;
        }
        node.vnodes = node.vnodes.or(old.vnodes);
        node.disks.iter_mut().for_each(|d| d.missing = false);
        let there: BTreeSet<DiskId> = node.disks.iter().map(|d| d.id).collect();
        let told = |d: &DiskEntry| there.contains(&d.id);
        let not_told = old.disks.iter().filter(|d| !told(d));
        node.disks.extend(not_told.clone().map(|d| DiskEntry { missing: !d.retired, ..d.clone() }));
        // It was not mounted, say. Whatever else is on it may be old, and what is nowhere else is needed.
        let as_it_was = keeps && !old.disks.iter().any(|d| d.missing && told(d));
        // Also of a process that was not complete: it was left out of nothing that was its own.
        let as_it_stood = was_up && as_it_was;
        if as_it_was {
            (node.synced, node.kept) = match old.state {
                NodeState::Out => (Epoch(0), self.kept_when_out(&old)),
                _ => (old.synced, old.kept),
            };
        }
        node.up_since = if as_it_stood { old.up_since } else { self.epoch.next() };
        node.down_at = old.down_at;
        node.lost_at = match keeps {
            true => old.lost_at,
            // Whatever it had acknowledged until it went is nowhere else for certain.
            false if was_up => self.epoch.next(),
            false => old.lost_at.max(old.down_at),
        };
        let same = as_it_stood
            && (&old.addr, &old.zone, old.weight, old.vnodes, old.gateway)
                == (&node.addr, &node.zone, node.weight, node.vnodes, node.gateway);
        if self.layers.is_empty() {
            // There was nothing to lose.
            node.lost_at = Epoch(0);
        }
        self.nodes.insert(hello.id, node);
        for d in not_told.filter(|d| d.is_there()) {
            // The same directory as another disk, and not an empty one as far as can be seen.
            let rewound = hello.has_data && hello.disks.iter().any(|h| h.path == d.path);
            self.only_copies_lost(hello.id, d.id, rewound);
            let text = format!("node {} came up without its disk at {}", hello.id.short(), d.path);
            self.event(now, EventLevel::Error, text);
        }
        if same {
            // The process was restarted faster than anybody noticed: its copies are what they were.
            return Ok(Reply::Epoch(self.epoch));
        }
        let text = format!("node {} is up ({place})", hello.id.short());
        self.event(now, EventLevel::Info, text.clone());
        if was_up
            && keeps
            && self.rings.last().map(|r| &r.members)
                == Some(&self.nodes.values().filter_map(Node::ring_member).collect::<Vec<_>>())
        {
            self.membership_changed(now, text, None);
        } else if self.rings.last().is_some_and(|r| {
            r.members == self.nodes.values().filter_map(Node::ring_member).collect::<Vec<_>>()
        }) {
            self.membership_changed(now, text, Some(hello.id));
        } else {
            self.ring_changed(now, text);
        }
        Ok(Reply::Epoch(self.epoch))
    }

    /// As of when is right what a node has that was out? Everything has to be looked at again: layers may have been merged without it. But where all others who had something
    /// have lost it since, nothing else tells that its copy is as good as theirs was. What a ring gave to it after it was last complete it may not have had.
    fn kept_when_out(&self, old: &Node) -> Epoch {
        let given = |r: &RingVersion| r.epoch > old.synced && r.epoch <= old.kept;
        let had_all = old.synced == Epoch(0) || !self.rings.iter().any(given);
        if had_all { old.kept } else { old.synced }
    }

    fn node_mut(&mut self, id: NodeId) -> Result<&mut Node, CommandError> {
        self.nodes
            .get_mut(&id)
            .ok_or_else(|| CommandError::NotFound(format!("there is no node {id}: see `dog node list`")))
    }

    pub(super) fn node_down(&mut self, now: Millis, id: NodeId, incarnation: u64) -> Outcome {
        let down_at = self.epoch.next();
        let n = self.node_mut(id)?;
        if n.incarnation != incarnation || !n.is_up() {
            return Ok(Reply::Epoch(self.epoch));
        }
        // A draining node that dies is in the ring no more, but may still hold what nobody else has yet.
        n.state = NodeState::Down;
        n.since = now;
        n.down_at = down_at;
        self.fence_sessions(id, None);
        let text = format!("node {} is down", id.short());
        self.event(now, EventLevel::Warning, text.clone());
        let in_ring = self.rings.last().is_some_and(|r| r.members.iter().any(|(n, ..)| *n == id));
        let gateway = self.nodes.get(&id).is_some_and(|n| n.gateway);
        if in_ring || gateway {
            self.membership_changed(now, text, Some(id));
        } else {
            // It was draining: being down again makes it a member of the ring.
            self.ring_changed(now, text);
        }
        Ok(Reply::Epoch(self.epoch))
    }

    pub(super) fn node_out(&mut self, now: Millis, id: NodeId) -> Outcome {
        // A drained node has handed everything on: nobody needs to wait for it.
        let (down_at, settled) = (self.epoch.next(), self.rings.len() <= 1);
        let n = self.node_mut(id)?;
        if n.state == NodeState::Out {
            return Ok(Reply::Epoch(self.epoch));
        }
        if n.is_up() && !(n.state == NodeState::Draining && settled) {
            n.down_at = down_at;
        }
        n.dismissed = n.is_up();
        n.state = NodeState::Out;
        n.since = now;
        self.fence_sessions(id, None);
        let text = format!("node {} is out", id.short());
        self.event(now, EventLevel::Warning, format!("{text}: its data is rebuilt elsewhere"));
        self.ring_changed(now, text);
        self.finish_merges();
        Ok(Reply::Epoch(self.epoch))
    }

    /// From the next epoch on these disks are gone.
    fn only_copies_lost(&mut self, node: NodeId, disk: DiskId, rewound: bool) {
        let single = |id: &LayerId| self.redundancy(*id).is_some_and(|r| r.width() == 1);
        let families: BTreeSet<LayerId> = self.families.keys().copied().filter(single).collect();
        if !families.is_empty() {
            // One that was missing already had nothing newer.
            let lost = LostDisk { epoch: self.epoch, families, outdated: false, rewound };
            self.lost.entry((node, disk)).or_insert(lost);
        }
    }

    /// The node is complete: of what is missing it needs nothing any more but only copies.
    pub(super) fn disks_settled(&mut self, id: NodeId) {
        let Some(n) = self.nodes.get_mut(&id) else { return };
        for d in n.disks.iter_mut().filter(|d| d.missing) {
            match self.lost.get_mut(&(id, d.id)) {
                Some(lost) => lost.outdated = true,
                None => (d.missing, d.retired) = (false, true),
            }
        }
    }

    pub(super) fn node_drain(&mut self, now: Millis, id: NodeId, on: bool) -> Outcome {
        let n = self.node_mut(id)?;
        match (n.state, on) {
            (NodeState::Up, true) => n.state = NodeState::Draining,
            (NodeState::Draining, false) => n.state = NodeState::Up,
            (NodeState::Draining, true) | (NodeState::Up, false) => return Ok(Reply::Epoch(self.epoch)),
            (NodeState::Down | NodeState::Out, _) => {
                return Err(CommandError::Invalid(format!("node {} is not up", id.short())));
            }
        }
        let text =
            format!("node {} {}", id.short(), if on { "is being drained" } else { "takes data again" });
        self.event(now, EventLevel::Info, text.clone());
        self.ring_changed(now, text);
        Ok(Reply::Epoch(self.epoch))
    }

    pub(super) fn node_synced(&mut self, now: Millis, id: NodeId, incarnation: u64, epoch: Epoch) -> Outcome {
        let (current, ring) = (self.epoch, self.rings.last().map_or(Epoch(0), |r| r.epoch));
        let n = self.node_mut(id)?;
        if n.incarnation != incarnation || !n.is_up() || epoch <= n.synced || epoch > current {
            return Ok(Reply::Epoch(current));
        }
        // What came after asks nothing of it: it has been up since, and the ring has not changed since.
        n.complete_to(if epoch >= ring && n.up_since <= epoch { current } else { epoch });
        if n.stands() {
            n.kept = current;
        }
        let complete = n.synced == current;
        if complete {
            // What it lost is found again, or known to be nowhere.
            n.lost_at = Epoch(0);
            self.disks_settled(id);
        }
        self.settle();
        if complete {
            self.event(now, EventLevel::Info, format!("node {} has all its data", id.short()));
        }
        Ok(Reply::Epoch(self.epoch))
    }

    pub(super) fn node_weight(
        &mut self,
        now: Millis,
        id: NodeId,
        weight: Option<u32>,
        vnodes: Option<u32>,
    ) -> Outcome {
        let n = self.node_mut(id)?;
        if n.gateway {
            return Err(CommandError::Invalid(format!("node {} is a gateway: it holds no data", id.short())));
        }
        if vnodes.is_some_and(|v| v > MAX_VNODES) {
            return Err(CommandError::Invalid("virtual nodes: at most 65536".into()));
        }
        if let Some(w) = weight {
            n.weight = w.max(1);
        }
        if let Some(v) = vnodes {
            n.vnodes = (v > 0).then_some(v);
        }
        let text = format!("the weight of node {} was changed", id.short());
        self.event(now, EventLevel::Info, text.clone());
        self.ring_changed(now, text);
        Ok(Reply::Epoch(self.epoch))
    }

    pub(super) fn disk_retired(&mut self, now: Millis, id: NodeId, disk: DiskId) -> Outcome {
        let (next, empty) = (self.epoch.next(), self.layers.is_empty());
        let n = self.node_mut(id)?;
        let Some(d) = n.disks.iter_mut().find(|d| d.id == disk) else {
            return Err(CommandError::NotFound(format!("node {} has no disk {disk}", id.short())));
        };
        if d.retired {
            return Ok(Reply::Epoch(self.epoch));
        }
        (d.retired, d.missing) = (true, false);
        // What was on it is gone: the node looks at everything again.
        n.complete_to_nothing();
        n.up_since = next;
        n.lost_at = if empty { Epoch(0) } else { next };
        self.only_copies_lost(id, disk, false);
        let text = format!("disk {} of node {} was retired", disk.short(), id.short());
        self.event(now, EventLevel::Error, text.clone());
        self.membership_changed(now, text, Some(id));
        Ok(Reply::Epoch(self.epoch))
    }

    /// Nothing was on it when its sheep, in this process, stopped using it: nobody lacks anything.
    pub(super) fn disk_emptied(
        &mut self,
        now: Millis,
        id: NodeId,
        incarnation: u64,
        disk: DiskId,
    ) -> Outcome {
        let n = self.node_mut(id)?;
        if n.incarnation != incarnation {
            return Err(CommandError::Invalid("the sheep was started again since".into()));
        }
        let before = n.disks.len();
        n.disks.retain(|d| d.id != disk || !d.is_there());
        if n.disks.len() < before {
            let text = format!("disk {} of node {} was emptied and is out of use", disk.short(), id.short());
            self.event(now, EventLevel::Info, text);
        }
        Ok(Reply::Epoch(self.epoch))
    }

    pub(super) fn disk_added(&mut self, now: Millis, id: NodeId, disk: &DiskEntry) -> Outcome {
        let n = self.node_mut(id)?;
        if n.disks.iter().any(|d| d.id == disk.id && d.retired) {
            return Err(CommandError::Invalid(format!(
                "the disk at {} was retired, and the cluster went on without it: empty that directory first",
                disk.path
            )));
        }
        if n.disks.iter().any(|d| d.id == disk.id && d.missing) {
            return Err(CommandError::Invalid(format!(
                "the sheep was started without the disk at {}, and what is on it may be old: stop it and start it with that disk",
                disk.path
            )));
        }
        n.disks.retain(|d| d.id != disk.id);
        n.disks.push(disk.clone());
        self.event(
            now,
            EventLevel::Info,
            format!("disk {} was added to node {}", disk.id.short(), id.short()),
        );
        Ok(Reply::Epoch(self.epoch))
    }
}
