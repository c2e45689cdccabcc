//! Layers: snapshots, clones, rollback, deletion, merging.
//!
//! A layer can go at once when nothing stands on it. With exactly one child (and no clone) it is merged into that child by every node on its own; with several,
//! or with a clone on it, it stays hidden until that changes.

use super::Outcome;
use super::vdi::check_size;
use crate::{
    ClusterState, CommandError, Layer, LayerState, Millis, NodeState, Redundancy, Reply, Session, Snapshot,
    SnapshotRef, Vdi, VdiState,
};
use sheepdog_proto::{Epoch, Generation, LayerId, NodeId, VdiId};
use std::collections::BTreeSet;

/// Snapshots of one VDI.
const MAX_SNAPSHOTS: usize = 65_536;

/// One that is not in the trash.
pub(super) fn find<'a>(v: &'a Vdi, which: &SnapshotRef) -> Result<&'a Snapshot, CommandError> {
    let found = match which {
        SnapshotRef::Id(id) => v.shown().find(|s| s.id == *id),
        SnapshotRef::Tag(tag) => {
            v.shown().find(|s| s.tag == *tag).or_else(|| v.shown().find(|s| tag.parse() == Ok(s.id)))
        }
    };
    found.ok_or_else(|| {
        let name = match which {
            SnapshotRef::Id(id) => id.to_string(),
            SnapshotRef::Tag(tag) => tag.clone(),
        };
        CommandError::NotFound(format!("VDI {} has no snapshot {name}", v.name))
    })
}

/// A tag that can stand behind `@` in a name.
pub(super) fn check_tag(tag: &str) -> Result<(), CommandError> {
    if tag.len() > 255 || tag.chars().any(|c| c.is_control() || c == '/' || c == '@') {
        return Err(CommandError::Invalid(
            "a tag has at most 255 bytes, without \"@\", \"/\" and control characters".into(),
        ));
    }
    Ok(())
}

impl ClusterState {
    /// A new live layer.
    pub(super) fn add_layer(
        &mut self,
        id: LayerId,
        family: LayerId,
        parent: Option<LayerId>,
        base: Option<LayerId>,
        vdi: VdiId,
    ) {
        let layer = Layer {
            id,
            family,
            parent,
            base,
            vdi,
            state: LayerState::Live,
            children: BTreeSet::new(),
            clones: BTreeSet::new(),
        };
        self.layers.insert(id, layer);
        if let Some(f) = self.families.get_mut(&family) {
            f.layers += 1;
        }
        if let Some(p) = parent.and_then(|p| self.layers.get_mut(&p)) {
            p.children.insert(id);
        }
        if let Some(b) = base.and_then(|b| self.layers.get_mut(&b)) {
            b.clones.insert(id);
        }
        self.layers_revision += 1;
    }

    fn is_base(&self, layer: LayerId) -> bool {
        self.layers.get(&layer).is_some_and(|l| !l.clones.is_empty())
    }

    pub(super) fn snapshot(
        &mut self,
        now: Millis,
        vdis: &[(VdiId, Option<Generation>)],
        tag: &str,
    ) -> Outcome {
        check_tag(tag)?;
        // All or none: everything is checked before anything is changed.
        let mut seen = BTreeSet::new();
        for (id, generation) in vdis {
            self.check_generation(*id, *generation)?;
            let v = self.vdi_mut(*id)?;
            v.check_working()?;
            if !tag.is_empty() && v.shown().any(|s| s.tag == tag) {
                return Err(CommandError::Exists(format!("VDI {} has a snapshot {tag}", v.name)));
            }
            if v.snapshots.len() >= MAX_SNAPSHOTS || v.flattening {
                return Err(CommandError::Busy(format!(
                    "VDI {} is being flattened or has {MAX_SNAPSHOTS} snapshots",
                    v.name
                )));
            }
            if matches!(v.session, Session::Unclean { .. }) {
                return Err(CommandError::Busy(format!(
                    "the last session of VDI {} did not end cleanly: open it once, then snapshot",
                    v.name
                )));
            }
            if !seen.insert(*id) {
                return Err(CommandError::Invalid(format!("VDI {} is named twice", v.name)));
            }
        }
        if self.last_id as usize + vdis.len() > sheepdog_proto::MAX_LAYER_ID as usize {
            return self.take_id().map(|_| Reply::Done);
        }
        let mut made = Vec::with_capacity(vdis.len());
        for (id, _) in vdis {
            let new = self.take_id()?;
            let v = self.vdi_mut(*id)?;
            let Some(old) = v.top.replace(new) else { continue };
            let number = v.next_snapshot;
            v.next_snapshot += 1;
            let size = v.size;
            v.snapshots.push(Snapshot {
                id: number,
                tag: tag.to_owned(),
                layer: old,
                size,
                created: now,
                locked_until: 0,
                trashed: None,
            });
            let family = v.family;
            if let Some(l) = self.layers.get_mut(&old) {
                l.state = LayerState::Frozen;
            }
            self.add_layer(new, family, Some(old), None, *id);
            made.push((*id, number, new));
        }
        self.layers_revision += 1;
        Ok(Reply::Snapshots(made))
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn clone_vdi(
        &mut self,
        now: Millis,
        source: VdiId,
        snapshot: &SnapshotRef,
        name: &str,
        uuid: u128,
        redundancy: Option<Redundancy>,
        flatten: bool,
    ) -> Outcome {
        if let Some(v) = self.names.get(name).and_then(|id| self.vdis.get(id))
            && v.uuid == uuid
        {
            return Ok(Reply::Vdi(v.id));
        }
        self.check_free_name(name)?;
        let v = self.listed_mut(source)?;
        let s = find(v, snapshot)?.clone();
        let layer =
            self.layers.get(&s.layer).ok_or_else(|| CommandError::NotFound("no such layer".into()))?;
        let family = self
            .families
            .get(&layer.family)
            .cloned()
            .ok_or_else(|| CommandError::NotFound("no such family".into()))?;
        let redundancy = redundancy.or(self.redundancy(layer.family)).unwrap_or(family.redundancy);
        self.check_width(redundancy)?;
        super::vdi::check_strips(redundancy, family.object_size)?;
        check_size(s.size, family.object_size)?;
        let id = self.insert_vdi(now, name, uuid, s.size, redundancy, family.object_size, Some(s.layer))?;
        if let Ok(v) = self.vdi_mut(id) {
            v.flattening = flatten;
        }
        Ok(Reply::Vdi(id))
    }

    pub(super) fn flatten_start(&mut self, vdi: VdiId) -> Outcome {
        let top = self.vdi_mut(vdi)?.check_working()?;
        let Some(root) = self.bottom(top).filter(|l| l.base.is_some()) else { return Ok(Reply::Done) };
        if top != root.id {
            return Err(CommandError::Busy(
                "the clone has snapshots of its own that need its base: delete them first".into(),
            ));
        }
        self.vdi_mut(vdi)?.flattening = true;
        Ok(Reply::Done)
    }

    pub(super) fn flatten_done(&mut self, vdi: VdiId, generation: Generation) -> Outcome {
        self.check_generation(vdi, Some(generation))?;
        let v = self.vdi_mut(vdi)?;
        let Some(top) = v.top.filter(|_| v.flattening) else {
            return Err(CommandError::Busy("the VDI is not being flattened".into()));
        };
        v.flattening = false;
        let base = self.layers.get_mut(&top).and_then(|l| l.base.take());
        self.layers_revision += 1;
        if let Some(base) = base {
            if let Some(b) = self.layers.get_mut(&base) {
                b.clones.remove(&top);
            }
            self.reconsider(base);
        }
        Ok(Reply::Done)
    }

    pub(super) fn rollback(
        &mut self,
        _now: Millis,
        vdi: VdiId,
        snapshot: &SnapshotRef,
        generation: Option<Generation>,
    ) -> Outcome {
        self.check_generation(vdi, generation)?;
        let v = self.listed_mut(vdi)?;
        if v.state != VdiState::Here {
            return Err(CommandError::Busy(format!(
                "the working image of VDI {0} is in the trash: bring it back (`dog trash restore {0}`) or give it up (`dog trash purge {0}`), then roll back",
                v.name
            )));
        }
        let s = find(v, snapshot)?.clone();
        let new = self.take_id()?;
        let v = self.vdi_mut(vdi)?;
        let family = v.family;
        let old = v.top.replace(new);
        v.size = s.size;
        self.add_layer(new, family, Some(s.layer), None, vdi);
        if let Some(old) = old {
            self.drop_layer(old);
        }
        self.layers_revision += 1;
        Ok(Reply::Done)
    }

    /// A working layer or a snapshot goes; whatever it stood on is looked at again.
    pub(super) fn drop_layer(&mut self, layer: LayerId) {
        if let Some(l) = self.layers.get_mut(&layer) {
            l.state = LayerState::Hidden;
        }
        self.reconsider(layer);
    }

    fn remove_layer(&mut self, layer: LayerId) -> Vec<LayerId> {
        let Some(l) = self.layers.remove(&layer) else { return Vec::new() };
        if let Some(p) = l.parent.and_then(|p| self.layers.get_mut(&p)) {
            p.children.remove(&layer);
        }
        if let Some(b) = l.base.and_then(|b| self.layers.get_mut(&b)) {
            b.clones.remove(&layer);
        }
        if let Some(f) = self.families.get_mut(&l.family) {
            f.layers = f.layers.saturating_sub(1);
            if f.layers == 0 {
                self.families.remove(&l.family);
                self.altered.remove(&l.family);
                self.lost.retain(|_, lost| {
                    lost.families.remove(&l.family);
                    !lost.families.is_empty()
                });
            }
        }
        self.layers_revision += 1;
        l.parent.into_iter().chain(l.base).collect()
    }

    /// Let hidden layers go as far as they can.
    fn reconsider(&mut self, layer: LayerId) {
        let mut todo = vec![layer];
        while let Some(layer) = todo.pop() {
            let Some(l) = self.layers.get(&layer) else { continue };
            let (parent, children) = (l.parent, l.children.clone());
            let hidden = l.state == LayerState::Hidden;
            let unused = hidden || matches!(l.state, LayerState::Merging { .. });
            if !unused || self.is_base(layer) {
                continue;
            }
            match (children.first(), children.len()) {
                // Also when it is being merged: what it was merged into was deleted.
                (None, _) => todo.extend(self.remove_layer(layer)),
                _ if !hidden => {}
                (Some(child), 1) => {
                    // One merge at a time along a chain: neither neighbour may be changing.
                    let merging = |id: LayerId| {
                        matches!(self.layers.get(&id).map(|l| &l.state), Some(LayerState::Merging { .. }))
                    };
                    if !merging(*child) && !parent.is_some_and(merging) {
                        let state = LayerState::Merging { into: *child, done: BTreeSet::new() };
                        if let Some(l) = self.layers.get_mut(&layer) {
                            l.state = state;
                        }
                        self.layers_revision += 1;
                    }
                }
                _ => {}
            }
        }
    }

    pub(super) fn layer_merged(&mut self, layer: LayerId, node: NodeId, epoch: Epoch) -> Outcome {
        // What it has been given since another map asked for it, it may not have merged.
        let complete =
            epoch == self.epoch && self.nodes.get(&node).is_some_and(|n| !n.gateway && n.synced >= epoch);
        let Some(LayerState::Merging { done, .. }) = self.layers.get_mut(&layer).map(|l| &mut l.state) else {
            return Ok(Reply::Done);
        };
        if !complete {
            return Err(CommandError::Busy(format!("node {} is not complete any more", node.short())));
        }
        done.insert(node);
        // Cheap when most are still missing: every node reports every merge.
        let reported = done.len();
        let holders = self.merge_holders();
        if reported >= holders.len() {
            self.finish_merge(layer, &holders);
        }
        Ok(Reply::Done)
    }

    fn merge_holders(&self) -> Vec<NodeId> {
        self.nodes.values().filter(|n| !n.gateway && n.state != NodeState::Out).map(|n| n.id).collect()
    }

    /// A node's report counts for as long as it is complete. What it gets when it is not any more, after it was away, has lost data or has other objects to keep, comes from
    /// nodes that may not have merged yet, upper and lower layer one after the other: then it has to merge again.
    pub(super) fn forget_merges(&mut self) {
        let (nodes, epoch) = (&self.nodes, self.epoch);
        for l in self.layers.values_mut() {
            if let LayerState::Merging { done, .. } = &mut l.state {
                done.retain(|n| nodes.get(n).is_some_and(|n| !n.gateway && n.synced >= epoch));
            }
        }
    }

    /// After the holders have become fewer.
    pub(crate) fn finish_merges(&mut self) {
        let holders = self.merge_holders();
        let merging = |l: &&Layer| matches!(l.state, LayerState::Merging { .. });
        let all: Vec<LayerId> = self.layers.values().filter(merging).map(|l| l.id).collect();
        for layer in all {
            self.finish_merge(layer, &holders);
        }
    }

    /// A layer that every holder has merged leaves the chain: its child stands where it stood.
    fn finish_merge(&mut self, layer: LayerId, holders: &[NodeId]) {
        let Some(l) = self.layers.get(&layer) else { return };
        let (parent, base) = (l.parent, l.base);
        let into = match &l.state {
            LayerState::Merging { into, done } if holders.iter().all(|h| done.contains(h)) => *into,
            _ => return,
        };
        self.remove_layer(layer);
        if let Some(child) = self.layers.get_mut(&into) {
            child.parent = parent;
            child.base = base;
        }
        if let Some(p) = parent.and_then(|p| self.layers.get_mut(&p)) {
            p.children.insert(into);
        }
        if let Some(b) = base.and_then(|b| self.layers.get_mut(&b)) {
            b.clones.insert(into);
        }
        self.reconsider(into);
        if let Some(p) = parent {
            self.reconsider(p);
        }
    }
}
