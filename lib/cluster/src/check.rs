//! The invariants of the state, by name. Used by tests, the simulator and debug builds.
//!
//! `check` judges one state; `Watch` sees states one after the other and also judges the steps between them.

use crate::{
    Access, ClusterState, Layer, LayerState, MAX_ATTACHMENTS, MAX_HOLDER, NodeState, Session, VdiState,
};
use sheepdog_proto::{AttachmentId, Epoch, LayerId, MAX_LAYER_ID, MAX_NODES, NodeId, VdiId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What must always hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Invariant {
    /// Nothing exists before format.
    NothingBeforeFormat,
    /// Keys of tables are the ids of what they hold.
    KeysAreIds,
    /// Every name leads to a VDI of that name, every VDI that is listed is found by its name.
    NamesLeadToVdisAndBack,
    /// A VDI has a working layer or a snapshot, and each is in the table, its own, live or frozen.
    VdisHaveTheirLayers,
    /// Snapshot numbers ascend and are below the next one; tags are unique but for snapshots in the trash.
    SnapshotsAreNumbered,
    /// A layer's parent exists and is of the same family; following parents ends at a root.
    ParentsExist,
    /// A base exists, is of another family and is under a root only.
    BasesExist,
    /// Each layer lists its children and its clones.
    LayersKnowWhatStandsOnThem,
    /// A live layer has no child.
    LiveLayersAreTops,
    /// A layer is live or frozen exactly when some VDI uses it so; others are hidden or merging.
    LayersHaveUsers,
    /// A merging layer has exactly one child, the one it merges into, and no clone; neither neighbour merges.
    MergesAreAlone,
    /// That a node has merged a layer counts only while it is complete.
    ReportsAreOfTheComplete,
    /// A hidden layer that could merge does, or waits for a neighbour that merges.
    MergesAreBegun,
    /// A hidden layer is there for something that stands on it.
    HiddenLayersAreNeeded,
    /// Every layer's family is in the table, and every family has as many layers as it says, at least one.
    FamiliesHaveLayers,
    /// No id is greater than the last one given.
    IdsAreGivenOut,
    /// A session's generation is the highest given for its VDI, unique, and not beyond the counter.
    GenerationsAreTheHighest,
    /// An open session's owner is up, in the process that opened it.
    OwnersAreUp,
    /// What a node had when it was complete it had until then at least.
    KeptIsNotBehind,
    /// Nobody is synced, came up, went down or lost data later than now (losing data may be one epoch ahead of none).
    EpochsAreNotAhead,
    /// A lost disk is remembered for what had no other copy, and nothing else.
    LossesAreOfOnlyCopies,
    /// Of a family whose redundancy was changed it is known what it was in each ring.
    AlteredReachesBack,
    /// Rings are ordered by epoch, the last one is that of the members now.
    RingsAreOrdered,
    /// History ascends, ends now with the nodes that are up, and tells who came and went in each step.
    HistoryIsUnbroken,
    /// Shared locks together, or one exclusive; one per holder.
    LocksAgree,
    /// Attachments ascend, are given out, agree in their access, have different holders, and are of a VDI that can be used.
    AttachmentsAgree,
    /// An attachment that was once there is not given to anybody else.
    AttachmentsAreNeverReused,
    /// The trash lists exactly what was deleted, until its time is over, and nothing that is locked for longer.
    TrashIsListed,
    /// Nobody uses what is in the trash: no session is open, nobody has it attached.
    TrashIsAtRest,
    /// Bounded things are within bounds.
    Bounds,
    /// Counters, epochs and positions never go back.
    CountersGrow,
    /// An id that was once used is not given to anything else.
    IdsAreNeverReused,
    /// A VDI's generation never goes back.
    GenerationsGrow,
    /// Changing chains bumps the revision.
    ChainsAreRevised,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What does not hold.
    pub invariant: Invariant,
    /// Where.
    pub text: String,
}

struct Findings(Vec<Finding>);

impl Findings {
    fn expect(&mut self, holds: bool, invariant: Invariant, at: impl fmt::Debug) {
        if !holds {
            self.0.push(Finding { invariant, text: format!("{at:?}") });
        }
    }
}

/// Judge a state. Nothing found: it is sound.
pub fn check(s: &ClusterState) -> Vec<Finding> {
    let mut f = Findings(Vec::new());
    if s.format.is_none() {
        let empty = s.nodes.is_empty() && s.vdis.is_empty() && s.layers.is_empty() && s.rings.is_empty();
        f.expect(empty && s.epoch == Epoch(0), Invariant::NothingBeforeFormat, s.epoch);
        return f.0;
    }
    keys(s, &mut f);
    names(s, &mut f);
    vdis(s, &mut f);
    layers(s, &mut f);
    families(s, &mut f);
    sessions(s, &mut f);
    membership(s, &mut f);
    bounds(s, &mut f);
    f.0
}

fn keys(s: &ClusterState, f: &mut Findings) {
    use Invariant::KeysAreIds;
    for (k, n) in &s.nodes {
        f.expect(*k == n.id && !k.is_nil(), KeysAreIds, k);
    }
    for (k, v) in &s.vdis {
        f.expect(*k == v.id, KeysAreIds, k);
    }
    for (k, l) in &s.layers {
        f.expect(*k == l.id, KeysAreIds, k);
    }
}

fn names(s: &ClusterState, f: &mut Findings) {
    for (name, id) in &s.names {
        let found = s.vdis.get(id).is_some_and(|v| v.name == *name);
        f.expect(found, Invariant::NamesLeadToVdisAndBack, (name, id));
    }
    let listed = s.vdis.values().filter(|v| v.is_listed());
    f.expect(s.names.len() == listed.count(), Invariant::NamesLeadToVdisAndBack, s.names.len());
}

fn vdis(s: &ClusterState, f: &mut Findings) {
    for (id, v) in &s.vdis {
        let mine = |l: LayerId, state: LayerState| {
            s.layers.get(&l).is_some_and(|x| x.vdi == *id && x.family == v.family && x.state == state)
        };
        f.expect(v.top.is_some() || !v.snapshots.is_empty(), Invariant::VdisHaveTheirLayers, id);
        f.expect(
            v.top.is_none_or(|t| mine(t, LayerState::Live)),
            Invariant::VdisHaveTheirLayers,
            (id, v.top),
        );
        let mut last = 0;
        let mut tags = BTreeSet::new();
        for x in &v.snapshots {
            f.expect(mine(x.layer, LayerState::Frozen), Invariant::VdisHaveTheirLayers, (id, x));
            f.expect(x.id > last && x.id < v.next_snapshot, Invariant::SnapshotsAreNumbered, (id, x));
            let unique = x.tag.is_empty() || x.trashed.is_some() || tags.insert(&x.tag);
            f.expect(unique, Invariant::SnapshotsAreNumbered, (id, x));
            last = x.id;
        }
        let mut holders = BTreeSet::new();
        let alone = v.locks.len() <= 1 || v.locks.iter().all(|l| !l.exclusive);
        f.expect(alone && v.locks.iter().all(|l| holders.insert(&l.holder)), Invariant::LocksAgree, id);
    }
    attachments(s, f);
    trash(s, f);
}

fn trash(s: &ClusterState, f: &mut Findings) {
    let mut listed = BTreeSet::new();
    for v in s.vdis.values() {
        let snapshots = v.snapshots.iter().filter_map(|x| Some((x.trashed?, x)));
        for (t, x) in snapshots {
            listed.insert((t.until, v.id, x.id));
            f.expect(x.locked_until <= t.until, Invariant::TrashIsListed, (v.id, x));
        }
        let Some(t) = v.trashed() else { continue };
        listed.insert((t.until, v.id, 0));
        let rest = !matches!(v.session, Session::Open { .. }) && v.attachments.is_empty();
        f.expect(rest, Invariant::TrashIsAtRest, (v.id, &v.session));
        let sane = match v.state {
            VdiState::WorkingInTrash(_) => v.top.is_some() && v.is_listed(),
            _ => v.locked_until() <= t.until && !v.is_listed(),
        };
        f.expect(sane, Invariant::TrashIsListed, (v.id, v.state));
    }
    f.expect(listed == s.trash, Invariant::TrashIsListed, (listed.len(), s.trash.len()));
}

fn attachments(s: &ClusterState, f: &mut Findings) {
    let mut given = BTreeSet::new();
    for v in s.vdis.values() {
        let all = &v.attachments;
        let mut holders = BTreeSet::new();
        let ascend = all.windows(2).all(|w| w[0].id < w[1].id);
        let own = all.iter().all(|a| (1..=s.last_attachment).contains(&a.id.0) && given.insert(a.id));
        let alike = all.iter().all(|a| a.access == all[0].access);
        let alone = all.len() <= 1 || all[0].access != Access::Single;
        let sane = ascend && own && alike && alone && all.iter().all(|a| holders.insert(&a.holder));
        let bounded = all.len() <= MAX_ATTACHMENTS && all.iter().all(|a| a.holder.len() <= MAX_HOLDER);
        f.expect(sane && (all.is_empty() || v.working().is_some()), Invariant::AttachmentsAgree, (v.id, all));
        f.expect(bounded, Invariant::Bounds, (v.id, all.len()));
    }
}

fn layers(s: &ClusterState, f: &mut Findings) {
    use Invariant as I;
    let mut children: BTreeMap<LayerId, Vec<LayerId>> = BTreeMap::new();
    let mut clones: BTreeMap<LayerId, Vec<LayerId>> = BTreeMap::new();
    let bases: BTreeSet<LayerId> = s.layers.values().filter_map(|l| l.base).collect();
    for l in s.layers.values() {
        if let Some(p) = l.parent {
            children.entry(p).or_default().push(l.id);
        }
        if let Some(b) = l.base {
            clones.entry(b).or_default().push(l.id);
        }
    }
    let users = users(s, f);
    for l in s.layers.values() {
        let parent = l.parent.map(|p| s.layers.get(&p));
        f.expect(parent.is_none_or(|p| p.is_some_and(|p| p.family == l.family)), I::ParentsExist, l);
        let base = l.base.map(|b| s.layers.get(&b));
        let stands =
            base.is_none_or(|b| b.is_some_and(|b| b.family != l.family && b.state != LayerState::Live));
        f.expect(stands && (l.base.is_none() || l.parent.is_none()), I::BasesExist, l);
        let below = children.get(&l.id).map_or(&[][..], Vec::as_slice);
        f.expect(l.children.iter().eq(below), I::LayersKnowWhatStandsOnThem, l);
        let clones = clones.get(&l.id).map_or(&[][..], Vec::as_slice);
        f.expect(l.clones.iter().eq(clones), I::LayersKnowWhatStandsOnThem, l);
        let used = users.contains(&l.id);
        match &l.state {
            LayerState::Live => {
                f.expect(below.is_empty() && !bases.contains(&l.id), I::LiveLayersAreTops, l);
                f.expect(used, I::LayersHaveUsers, l);
            }
            LayerState::Frozen => f.expect(used, I::LayersHaveUsers, l),
            LayerState::Hidden => {
                f.expect(!used, I::LayersHaveUsers, l);
                f.expect(!below.is_empty() || bases.contains(&l.id), I::HiddenLayersAreNeeded, l);
                let mut near = l.parent.iter().chain(below).filter_map(|n| s.layers.get(n));
                let waits = near.any(|n| matches!(n.state, LayerState::Merging { .. }));
                f.expect(below.len() != 1 || bases.contains(&l.id) || waits, I::MergesAreBegun, l);
            }
            LayerState::Merging { into, done } => {
                f.expect(!used, I::LayersHaveUsers, l);
                let near = [Some(*into), l.parent];
                let still = |x: &Layer| !matches!(x.state, LayerState::Merging { .. });
                let quiet = near.iter().flatten().filter_map(|n| s.layers.get(n)).all(still);
                let alone = below == [*into] && !bases.contains(&l.id) && quiet;
                f.expect(alone, I::MergesAreAlone, l);
                let complete = |n: &NodeId| s.nodes.get(n).is_some_and(|n| n.synced >= s.epoch);
                f.expect(done.iter().all(complete), I::ReportsAreOfTheComplete, l);
            }
        }
    }
    // A loop of parents has no root; whatever is reached from the roots is none.
    let mut reached = 0;
    let mut todo: Vec<LayerId> = s.layers.values().filter(|l| l.parent.is_none()).map(|l| l.id).collect();
    while let Some(l) = todo.pop() {
        reached += 1;
        todo.extend(children.get(&l).into_iter().flatten());
    }
    f.expect(reached == s.layers.len(), I::ParentsExist, reached);
}

/// Layers that VDIs work in or show as snapshots; no layer is used twice.
fn users(s: &ClusterState, f: &mut Findings) -> BTreeSet<LayerId> {
    let mut users = BTreeSet::new();
    for v in s.vdis.values() {
        for l in v.top.iter().copied().chain(v.snapshots.iter().map(|x| x.layer)) {
            f.expect(users.insert(l), Invariant::LayersHaveUsers, (v.id, l));
        }
    }
    users
}

fn families(s: &ClusterState, f: &mut Findings) {
    let mut used: BTreeMap<LayerId, u32> = BTreeMap::new();
    for l in s.layers.values() {
        *used.entry(l.family).or_default() += 1;
    }
    let counted = used.iter().eq(s.families.iter().map(|(k, v)| (k, &v.layers)).collect::<BTreeMap<_, _>>());
    f.expect(counted, Invariant::FamiliesHaveLayers, used.len());
    let ids = s.layers.keys().map(|l| l.0).chain(s.vdis.keys().map(|v| v.0));
    let greatest = ids.chain(s.families.keys().map(|l| l.0)).max().unwrap_or(0);
    f.expect(greatest <= s.last_id && s.last_id <= MAX_LAYER_ID, Invariant::IdsAreGivenOut, greatest);
}

fn sessions(s: &ClusterState, f: &mut Findings) {
    let mut given = BTreeSet::new();
    for v in s.vdis.values() {
        let own = match v.session {
            Session::Closed => true,
            Session::Unclean { generation } => generation == v.generation,
            Session::Open { owner, incarnation, generation, .. } => {
                let n = s.nodes.get(&owner);
                let up = n.is_some_and(|n| n.is_up() && n.incarnation == incarnation);
                f.expect(up, Invariant::OwnersAreUp, (v.id, owner));
                f.expect(v.working().is_some(), Invariant::VdisHaveTheirLayers, v.id);
                generation == v.generation
            }
        };
        let unique = v.generation.0 == 0 || given.insert(v.generation);
        let counted = v.generation.0 <= s.last_generation;
        f.expect(own && unique && counted, Invariant::GenerationsAreTheHighest, (v.id, &v.session));
    }
}

fn membership(s: &ClusterState, f: &mut Findings) {
    use Invariant as I;
    for n in s.nodes.values() {
        f.expect(n.synced <= n.kept, I::KeptIsNotBehind, (n.id, n.synced, n.kept));
        let latest = n.kept.max(n.down_at).max(n.lost_at).max(n.up_since);
        f.expect(latest <= s.epoch, I::EpochsAreNotAhead, (n.id, latest));
    }
    for ((node, disk), lost) in &s.lost {
        let single = |f: &LayerId| s.redundancy(*f).is_some_and(|r| r.width() == 1);
        let sane = !lost.families.is_empty() && lost.families.iter().all(single) && lost.epoch <= s.epoch;
        f.expect(sane, I::LossesAreOfOnlyCopies, (node, disk));
    }
    for (family, steps) in &s.altered {
        let ascend = steps.windows(2).all(|w| w[0].0 < w[1].0);
        let known = s.families.contains_key(family) && steps.last().is_some_and(|(e, _)| *e <= s.epoch);
        let oldest = s.rings.first().map_or(Epoch(0), |r| r.epoch);
        let reach = steps.first().is_some_and(|(e, _)| *e <= oldest);
        f.expect(ascend && known && reach, I::AlteredReachesBack, (family, steps));
    }
    let ordered = s.rings.windows(2).all(|w| w[0].epoch < w[1].epoch);
    let last = s.rings.last();
    f.expect(ordered && last.is_some_and(|r| r.epoch <= s.epoch), I::RingsAreOrdered, s.rings.len());
    let members = s.nodes.values().filter(|n| !n.gateway);
    let members = members.filter(|n| matches!(n.state, NodeState::Up | NodeState::Down)).map(|n| n.id);
    f.expect(
        last.is_some_and(|r| r.members.iter().map(|m| m.0).eq(members)),
        I::RingsAreOrdered,
        last.map(|r| r.epoch),
    );
    let epochs = || s.history.iter().map(|r| r.epoch.0);
    let up: BTreeSet<_> = s.nodes.values().filter(|n| n.is_up()).map(|n| n.id).collect();
    f.expect(up == s.up, I::HistoryIsUnbroken, s.up.len());
    let unbroken = epochs().zip(epochs().skip(1)).all(|(a, b)| a < b);
    f.expect(unbroken && epochs().next_back() == Some(s.epoch.0), I::HistoryIsUnbroken, s.epoch);
}

fn bounds(s: &ClusterState, f: &mut Findings) {
    let ok = s.nodes.len() <= MAX_NODES && s.recent.len() <= 4096 && s.events.len() <= 1000;
    f.expect(ok, Invariant::Bounds, (s.nodes.len(), s.recent.len(), s.events.len()));
    let events = s.events.iter().map(|e| e.id);
    let numbered = events.rev().zip((0..s.next_event).rev()).all(|(a, b)| a == b);
    f.expect(numbered, Invariant::Bounds, s.next_event);
}

/// Sees one state after the other.
#[derive(Default)]
pub struct Watch {
    last: Option<Last>,
    /// Ids that were there once and are gone.
    gone: BTreeSet<LayerId>,
}

struct Last {
    counters: [u64; 9],
    attachments: BTreeSet<AttachmentId>,
    generations: BTreeMap<VdiId, u64>,
    layers: BTreeMap<LayerId, (Option<LayerId>, Option<LayerId>)>,
}

impl Last {
    fn of(s: &ClusterState) -> Self {
        Self {
            counters: [
                s.index.0,
                s.epoch.0,
                u64::from(s.last_id),
                s.last_generation,
                s.layers_revision,
                s.next_event,
                s.shutdowns,
                s.forced.len() as u64,
                s.last_attachment,
            ],
            attachments: s.vdis.values().flat_map(|v| &v.attachments).map(|a| a.id).collect(),
            generations: s.vdis.iter().map(|(k, v)| (*k, v.generation.0)).collect(),
            layers: s.layers.iter().map(|(k, l)| (*k, (l.parent, l.base))).collect(),
        }
    }
}

impl Watch {
    /// Judge a state and the step to it.
    pub fn look(&mut self, s: &ClusterState) -> Vec<Finding> {
        let mut f = Findings(check(s));
        let now = Last::of(s);
        if let Some(last) = &self.last {
            use Invariant as I;
            let grow = last.counters.iter().zip(&now.counters).all(|(a, b)| a <= b);
            f.expect(grow, I::CountersGrow, (last.counters, now.counters));
            for (v, g) in &now.generations {
                f.expect(last.generations.get(v).is_none_or(|was| was <= g), I::GenerationsGrow, (v, g));
            }
            let fresh = now.layers.keys().filter(|l| !last.layers.contains_key(l));
            for l in fresh {
                let unused = !self.gone.contains(l) && u64::from(l.0) > last.counters[2];
                f.expect(unused, I::IdsAreNeverReused, l);
            }
            let mut fresh = now.attachments.difference(&last.attachments);
            let unused = fresh.all(|a| a.0 > last.counters[8]);
            f.expect(unused, I::AttachmentsAreNeverReused, s.last_attachment);
            let revised = last.layers == now.layers || last.counters[4] < now.counters[4];
            f.expect(revised, I::ChainsAreRevised, s.layers_revision);
            self.gone.extend(last.layers.keys().filter(|l| !now.layers.contains_key(l)));
        }
        self.last = Some(now);
        f.0
    }
}
