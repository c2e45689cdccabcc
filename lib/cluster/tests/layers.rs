//! Layers: snapshots, clones, rollback, deletion, merging, flattening.

mod common;

use common::{Cluster, node};
use sheepdog_cluster::{Command, CommandError, LayerState, Redundancy, Reply, SnapshotRef};
use sheepdog_proto::{Generation, LayerId, VdiId};
use std::collections::BTreeSet;

fn snap(vdis: &[VdiId], tag: &str) -> Command {
    Command::Snapshot { vdis: vdis.iter().map(|v| (*v, None)).collect(), tag: tag.into() }
}
fn clone(source: VdiId, tag: &str, name: &str, uuid: u128, flatten: bool) -> Command {
    let snapshot = SnapshotRef::Tag(tag.into());
    Command::Clone { source, snapshot, name: name.into(), uuid, redundancy: None, flatten }
}
fn drop_snapshot(vdi: VdiId, n: u32) -> Command {
    Command::VdiDelete { vdi, snapshot: Some(SnapshotRef::Id(n)), with_snapshots: false, at_once: false }
}
fn delete(vdi: VdiId) -> Command {
    Command::VdiDelete { vdi, snapshot: None, with_snapshots: false, at_once: false }
}
fn rollback(vdi: VdiId, n: u32, generation: Option<Generation>) -> Command {
    Command::Rollback { vdi, snapshot: SnapshotRef::Id(n), generation }
}
fn merged(c: &Cluster, layer: u32, by: u64) -> Command {
    Command::LayerMerged { layer: LayerId(layer), node: node(by), epoch: c.s.epoch }
}
fn synced(c: &Cluster, by: u64) -> Command {
    let (incarnation, epoch) = (c.s.nodes[&node(by)].incarnation, c.s.epoch);
    Command::NodeSynced { node: node(by), incarnation, epoch }
}
/// (layer, parent, base, letter of its state).
fn layers(c: &Cluster) -> Vec<(u32, u32, u32, char)> {
    let letter = |s: &LayerState| match s {
        LayerState::Live => 'l',
        LayerState::Frozen => 'f',
        LayerState::Hidden => 'h',
        LayerState::Merging { .. } => 'm',
    };
    let id = |l: Option<LayerId>| l.map_or(0, |l| l.0);
    c.s.layers.values().map(|l| (l.id.0, id(l.parent), id(l.base), letter(&l.state))).collect()
}
/// A volume (layer 1) with `n` snapshots of it: layers 1 to n frozen, n + 1 live.
fn chain(n: u32) -> (Cluster, VdiId) {
    let mut c = Cluster::new(2, 2);
    let v = c.vdi("v");
    for i in 1..=n {
        assert_eq!(c.run(snap(&[v], &format!("s{i}"))), Reply::Snapshots(vec![(v, i, LayerId(i + 1))]));
    }
    (c, v)
}
fn merge(c: &mut Cluster, layer: u32) {
    for n in 0..2 {
        assert_eq!(c.run(merged(c, layer, n)), Reply::Done);
    }
}

#[test]
fn a_snapshot_freezes_and_adds() {
    let (c, v) = chain(2);
    assert_eq!(layers(&c), [(1, 0, 0, 'f'), (2, 1, 0, 'f'), (3, 2, 0, 'l')]);
    assert_eq!(c.s.chain(LayerId(3)), Some(vec![LayerId(3), LayerId(2), LayerId(1)]));
    assert_eq!(c.s.chain(LayerId(9)), None);
    let tags: Vec<_> = c.s.vdis[&v].snapshots.iter().map(|s| (s.id, s.tag.as_str(), s.layer.0)).collect();
    assert_eq!(tags, [(1, "s1", 1), (2, "s2", 2)]);
}

#[test]
fn a_group_is_all_or_none() {
    let mut c = Cluster::new(2, 2);
    let (a, b) = (c.vdi("a"), c.vdi("b"));
    let made = vec![(a, 1, LayerId(3)), (b, 1, LayerId(4))];
    assert_eq!(c.run(snap(&[a, b], "t")), Reply::Snapshots(made));
    assert!(matches!(c.refused(snap(&[a, b], "t")), CommandError::Exists(_)));
    assert!(matches!(c.refused(snap(&[a, VdiId(99)], "u")), CommandError::NotFound(_)));
    assert!(matches!(c.refused(snap(&[a, a], "u")), CommandError::Invalid(_)));
    for tag in ["a/b", "a@b", "a\tb", &"x".repeat(256)] {
        assert!(matches!(c.refused(snap(&[a], tag)), CommandError::Invalid(_)));
    }
    let g = c.open(b, 0);
    assert!(matches!(c.refused(snap(&[a, b], "u")), CommandError::Busy(_)));
    let with = |g| Command::Snapshot { vdis: vec![(a, None), (b, Some(g))], tag: "u".into() };
    assert_eq!(c.refused(with(Generation(99))), CommandError::Fenced);
    assert_eq!(c.run(with(g)), Reply::Snapshots(vec![(a, 2, LayerId(5)), (b, 2, LayerId(6))]));
    c.ok(Command::NodeDown { node: node(0), incarnation: 1 });
    assert!(matches!(c.refused(snap(&[b], "w")), CommandError::Busy(_)), "copies may differ");
    assert_eq!(c.run(snap(&[], "none")), Reply::Snapshots(Vec::new()));
}

#[test]
fn a_tag_of_digits_is_a_tag_first() {
    let mut c = Cluster::new(2, 2);
    let v = c.vdi("v");
    c.ok(snap(&[v], "2"));
    c.ok(snap(&[v], ""));
    let by_tag = |tag: &str| Command::VdiDelete {
        vdi: v,
        snapshot: Some(SnapshotRef::Tag(tag.into())),
        with_snapshots: false,
        at_once: false,
    };
    assert!(matches!(c.refused(by_tag("3")), CommandError::NotFound(_)));
    c.ok(by_tag("2"));
    assert_eq!(c.s.vdis[&v].snapshots[0].id, 2);
    c.ok(by_tag("2"));
    assert!(matches!(c.refused(drop_snapshot(v, 2)), CommandError::NotFound(_)));
}

#[test]
fn a_deleted_snapshot_merges_into_its_only_child() {
    let (mut c, v) = chain(2);
    c.ok(drop_snapshot(v, 1));
    assert_eq!(layers(&c), [(1, 0, 0, 'm'), (2, 1, 0, 'f'), (3, 2, 0, 'l')]);
    c.ok(merged(&c, 1, 0));
    c.ok(merged(&c, 1, 0));
    assert_eq!(layers(&c).len(), 3, "one node has not reported");
    c.ok(merged(&c, 1, 1));
    assert_eq!(layers(&c), [(2, 0, 0, 'f'), (3, 2, 0, 'l')]);
    assert_eq!(c.s.families[&LayerId(1)].layers, 2, "the family keeps its name");
    merge(&mut c, 1);
    merge(&mut c, 3);
}

#[test]
fn neighbours_merge_one_after_the_other() {
    let (mut c, v) = chain(3);
    c.ok(drop_snapshot(v, 1));
    c.ok(drop_snapshot(v, 2));
    c.ok(drop_snapshot(v, 3));
    assert_eq!(layers(&c), [(1, 0, 0, 'm'), (2, 1, 0, 'h'), (3, 2, 0, 'm'), (4, 3, 0, 'l')]);
    merge(&mut c, 1);
    assert_eq!(layers(&c), [(2, 0, 0, 'h'), (3, 2, 0, 'm'), (4, 3, 0, 'l')]);
    merge(&mut c, 3);
    assert_eq!(layers(&c), [(2, 0, 0, 'm'), (4, 2, 0, 'l')]);
    merge(&mut c, 2);
    assert_eq!(layers(&c), [(4, 0, 0, 'l')]);
}

#[test]
fn a_node_that_goes_out_is_not_waited_for() {
    let (mut c, v) = chain(1);
    c.ok(drop_snapshot(v, 1));
    c.ok(merged(&c, 1, 0));
    c.ok(Command::NodeOut { node: node(1) });
    // It has other objects to keep now.
    c.ok(synced(&c, 0));
    c.ok(merged(&c, 1, 0));
    assert_eq!(layers(&c), [(2, 0, 0, 'l')]);
}

/// What a node gets to hold after it has reported comes from others that may not have merged: upper and lower layer one after the other, in any order (seed 16147).
#[test]
fn who_has_become_incomplete_merges_again() {
    let reported = |c: &Cluster| match &c.s.layers[&LayerId(1)].state {
        LayerState::Merging { done, .. } => (0..3).filter(|n| done.contains(&node(*n))).collect::<Vec<_>>(),
        _ => panic!("it is not being merged"),
    };
    let mut c = Cluster::new(3, 2);
    let v = c.vdi("v");
    c.ok(snap(&[v], "s"));
    c.ok(drop_snapshot(v, 1));
    c.ok(merged(&c, 1, 0));
    c.ok(merged(&c, 1, 1));
    assert_eq!(reported(&c), [0, 1]);

    // More copies: everybody looks what it is to hold now.
    let late = merged(&c, 1, 2);
    c.ok(Command::AlterCopies { vdi: Some(v), redundancy: Redundancy::Copies(3) });
    assert_eq!(reported(&c), []);
    assert!(matches!(c.refused(merged(&c, 1, 0)), CommandError::Busy(_)), "it is not complete");
    for n in 0..3 {
        c.ok(synced(&c, n));
    }
    // It was complete before, and is again. In between it was given something.
    assert!(matches!(c.refused(late), CommandError::Busy(_)));
    c.ok(merged(&c, 1, 0));
    c.ok(merged(&c, 1, 1));

    // Of who stays complete a change of membership asks nothing; who was away looks.
    c.ok(Command::NodeDown { node: node(1), incarnation: 1 });
    assert_eq!(reported(&c), [0]);
    c.ok(merged(&c, 1, 2));
    c.ok(Command::NodeUp(common::hello(1, 2)));
    assert_eq!(reported(&c), [0, 2]);
    assert!(matches!(c.refused(merged(&c, 1, 1)), CommandError::Busy(_)), "it is not complete");
    c.ok(synced(&c, 1));
    c.ok(merged(&c, 1, 1));
    assert_eq!(layers(&c), [(2, 0, 0, 'l')]);
}

#[test]
fn rollback_grows_a_branch_and_drops_the_old_one() {
    let (mut c, v) = chain(2);
    assert_eq!(c.run(rollback(v, 1, None)), Reply::Done);
    assert_eq!(layers(&c), [(1, 0, 0, 'f'), (2, 1, 0, 'f'), (4, 1, 0, 'l')]);
    assert_eq!(c.s.vdis[&v].top, Some(LayerId(4)));
    // Two children: hidden until one of them goes.
    c.ok(drop_snapshot(v, 1));
    assert_eq!(layers(&c), [(1, 0, 0, 'h'), (2, 1, 0, 'f'), (4, 1, 0, 'l')]);
    c.ok(drop_snapshot(v, 2));
    assert_eq!(layers(&c), [(1, 0, 0, 'm'), (4, 1, 0, 'l')]);
    assert!(matches!(c.refused(rollback(v, 1, None)), CommandError::NotFound(_)));
}

#[test]
fn rollback_takes_the_old_size_and_the_right_session() {
    let (mut c, v) = chain(1);
    c.ok(Command::VdiResize { vdi: v, size: 4096, generation: None });
    let g = c.open(v, 0);
    assert!(matches!(c.refused(rollback(v, 1, None)), CommandError::Busy(_)));
    assert_eq!(c.refused(rollback(v, 1, Some(Generation(9)))), CommandError::Fenced);
    c.ok(rollback(v, 1, Some(g)));
    assert_eq!(c.s.vdis[&v].size, 1 << 30);
    // Onto what is left of a deleted volume: it works again.
    let (mut c, v) = chain(1);
    c.ok(delete(v));
    c.ok(rollback(v, 1, None));
    assert_eq!(layers(&c), [(1, 0, 0, 'f'), (3, 1, 0, 'l')]);
}

#[test]
fn a_clone_is_a_family_of_its_own() {
    let (mut c, v) = chain(1);
    let w = VdiId(3);
    assert_eq!(c.run(clone(v, "s1", "w", 7, false)), Reply::Vdi(w));
    assert_eq!(c.run(clone(v, "s1", "w", 7, false)), Reply::Vdi(w));
    assert_eq!(layers(&c), [(1, 0, 0, 'f'), (2, 1, 0, 'l'), (3, 0, 1, 'l')]);
    assert!(matches!(c.refused(clone(v, "s1", "w", 8, false)), CommandError::Exists(_)));
    assert!(matches!(c.refused(clone(v, "s9", "x", 8, false)), CommandError::NotFound(_)));
    assert!(matches!(c.refused(clone(VdiId(99), "s1", "x", 8, false)), CommandError::NotFound(_)));
    let wide = Command::Clone {
        source: v,
        snapshot: SnapshotRef::Id(1),
        name: "x".into(),
        uuid: 8,
        redundancy: Some(Redundancy::Copies(3)),
        flatten: false,
    };
    assert!(matches!(c.refused(wide), CommandError::NotEnough(_)));
    // A base stays, hidden, as long as a clone stands on it.
    c.ok(drop_snapshot(v, 1));
    assert_eq!(layers(&c), [(1, 0, 0, 'h'), (2, 1, 0, 'l'), (3, 0, 1, 'l')]);
    c.ok(delete(v));
    assert_eq!(layers(&c), [(1, 0, 0, 'h'), (3, 0, 1, 'l')]);
    c.ok(delete(w));
    assert_eq!(layers(&c), []);
    assert!(c.s.families.is_empty());
}

/// What is seen through a base does not change when the layer under it is merged into it.
#[test]
fn a_base_takes_in_what_is_under_it() {
    let (mut c, v) = chain(2);
    c.ok(clone(v, "s2", "w", 7, false));
    c.ok(drop_snapshot(v, 1));
    assert_eq!(layers(&c)[0], (1, 0, 0, 'm'));
    merge(&mut c, 1);
    assert_eq!(layers(&c), [(2, 0, 0, 'f'), (3, 2, 0, 'l'), (4, 0, 2, 'l')]);
    // The other way round: the clone comes while the merge goes on.
    let (mut c, v) = chain(2);
    c.ok(drop_snapshot(v, 1));
    c.ok(clone(v, "s2", "w", 7, false));
    merge(&mut c, 1);
    assert_eq!(layers(&c), [(2, 0, 0, 'f'), (3, 2, 0, 'l'), (4, 0, 2, 'l')]);
}

#[test]
fn a_merge_whose_target_is_deleted_is_over() {
    let (mut c, v) = chain(1);
    c.ok(drop_snapshot(v, 1));
    c.ok(merged(&c, 1, 0));
    c.ok(delete(v));
    assert_eq!(layers(&c), []);
    assert_eq!(c.run(merged(&c, 1, 1)), Reply::Done);
}

#[test]
fn flattening_lets_the_base_go() {
    let (mut c, v) = chain(1);
    c.ok(clone(v, "s1", "w", 7, false));
    let w = VdiId(3);
    let done = |g| Command::FlattenDone { vdi: w, generation: g };
    let g = c.open(w, 0);
    assert!(matches!(c.refused(done(g)), CommandError::Busy(_)), "nobody asked for it");
    assert_eq!(c.run(Command::FlattenStart { vdi: w }), Reply::Done);
    let held = Command::Snapshot { vdis: vec![(w, Some(g))], tag: "t".into() };
    assert!(matches!(c.refused(held), CommandError::Busy(_)));
    assert_eq!(c.refused(done(Generation(99))), CommandError::Fenced);
    c.ok(drop_snapshot(v, 1));
    assert_eq!(layers(&c)[0], (1, 0, 0, 'h'));
    assert_eq!(c.run(done(g)), Reply::Done);
    assert_eq!(layers(&c), [(1, 0, 0, 'm'), (2, 1, 0, 'l'), (3, 0, 0, 'l')]);
    // Nothing to do, nothing to say.
    assert_eq!(c.run(Command::FlattenStart { vdi: w }), Reply::Done);
    assert!(!c.s.vdis[&w].flattening);
    assert!(matches!(c.refused(Command::FlattenStart { vdi: VdiId(99) }), CommandError::NotFound(_)));
}

/// The root of a clone's chain may be merged away: the base is then under the layer that took its place.
#[test]
fn a_clone_whose_root_was_merged_is_flattened_all_the_same() {
    let (mut c, v) = chain(1);
    c.ok(clone(v, "s1", "w", 7, false));
    let w = VdiId(3);
    c.ok(snap(&[w], "own"));
    assert!(matches!(c.refused(Command::FlattenStart { vdi: w }), CommandError::Busy(_)));
    c.ok(drop_snapshot(w, 1));
    merge(&mut c, 3);
    assert_eq!(layers(&c), [(1, 0, 0, 'f'), (2, 1, 0, 'l'), (4, 0, 1, 'l')]);
    c.ok(Command::FlattenStart { vdi: w });
    assert!(c.s.vdis[&w].flattening);
    let g = c.open(w, 0);
    c.ok(Command::FlattenDone { vdi: w, generation: g });
    assert_eq!(layers(&c)[2], (4, 0, 0, 'l'));
}

#[test]
fn no_layer_id_ever_comes_back() {
    let (mut c, v) = chain(1);
    let mut seen: BTreeSet<LayerId> = c.s.layers.keys().copied().collect();
    for round in 2..12 {
        c.ok(snap(&[v], ""));
        c.ok(drop_snapshot(v, round));
        let new: Vec<LayerId> = c.s.layers.keys().copied().filter(|l| !seen.contains(l)).collect();
        assert!(new.iter().all(|l| seen.iter().all(|s| s < l)));
        seen.extend(new);
        for l in c.s.layers.keys().map(|l| l.0).collect::<Vec<_>>() {
            merge(&mut c, l);
        }
    }
}
