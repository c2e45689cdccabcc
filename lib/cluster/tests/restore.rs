//! A state read back from disks, and maps of it.

mod common;

use common::{Cluster, create, format, hello, node};
use sheepdog_cluster::{Access, ClusterState, Command, CommandError, NodeState, Redundancy, Reply, Session};
use sheepdog_proto::{ClusterId, Epoch, LayerId, PlacementKey};

fn old() -> (Cluster, ClusterState) {
    let mut c = Cluster::new(3, 2);
    let (a, b) = (c.vdi("a"), c.vdi("b"));
    c.ok(Command::Snapshot { vdis: vec![(a, None)], tag: "t".into() });
    c.open(b, 1);
    c.ok(Command::Attach { vdi: a, holder: "n".into(), access: Access::Single });
    c.ok(Command::NodeOut { node: node(2) });
    let state = c.s.clone();
    (c, state)
}

#[test]
fn a_restored_state_gives_nothing_out_twice() {
    let (_, state) = old();
    let mut c = Cluster { watch: Some(Default::default()), ..Cluster::default() };
    c.ok(format(2));
    assert_eq!(c.run(Command::Restore(Box::new(state.clone()))), Reply::Done);
    assert!(c.s.epoch > Epoch(state.epoch.0 + 1024));
    assert!(c.s.last_generation > state.last_generation + 1000 && c.s.last_id > state.last_id + 1000);
    assert_eq!((c.s.vdis.len(), &c.s.names), (2, &state.names));
    let attached = &c.s.vdis[&c.s.names["a"]].attachments;
    assert_eq!((attached.len(), attached[0].holder.as_str()), (1, "n"));
    assert!(c.s.last_attachment > state.last_attachment + 1000);
    assert_eq!(
        c.s.vdis[&c.s.names["b"]].session,
        Session::Unclean { generation: sheepdog_proto::Generation(1) }
    );
    let states = [0, 1, 2].map(|n| c.s.nodes[&node(n)].state);
    assert_eq!(states, [NodeState::Down, NodeState::Down, NodeState::Out]);
    assert_eq!(c.s.forced.len(), 1);
    assert!(matches!(c.refused(Command::Restore(Box::new(state))), CommandError::Exists(_)));
    let mut back = hello(0, 5);
    back.has_data = true;
    c.ok(Command::NodeUp(back));
    assert_eq!(c.s.latest_epochs(1)[0].1, [node(0)]);
}

#[test]
fn only_a_formatted_state_is_restored() {
    let mut c = Cluster::default();
    c.ok(format(2));
    let never = Command::Restore(Box::default());
    assert!(matches!(c.refused(never), CommandError::Invalid(_)));
    // Also into a cluster that was not formatted itself.
    let mut c = Cluster::default();
    assert_eq!(c.run(Command::Restore(Box::new(old().1))), Reply::Done);
    assert_eq!(c.s.format.as_ref().map(|f| f.cluster), Some(ClusterId(7)));
}

#[test]
fn the_map_knows_old_holders_until_the_new_ones_are_complete() {
    let mut c = Cluster::new(3, 2);
    c.ok(create("v", 1));
    let copies = Redundancy::Copies(2);
    let keys: Vec<PlacementKey> = (0..200).map(|index| PlacementKey { family: LayerId(1), index }).collect();
    let before = c.s.node_map();
    c.ok(Command::NodeUp(hello(3, 1)));
    let during = c.s.node_map_after(Some(&before));
    let mut moved = 0;
    for key in &keys {
        let (was, is) = (before.acting(*key, copies), during.acting(*key, copies));
        assert!(was.extra.is_empty());
        assert!(was.targets.iter().all(|n| is.all().any(|m| m == *n)), "an old holder was forgotten");
        assert!(is.targets.len() == 2 && is.extra.len() <= 1);
        moved += is.extra.len();
    }
    // A quarter of 2 x 200 copies goes to the fourth node, give or take.
    assert!((70..130).contains(&moved), "{moved}");
    for n in 0..4 {
        c.ok(Command::NodeSynced { node: node(n), incarnation: 1, epoch: c.s.epoch });
    }
    let after = c.s.node_map_after(Some(&during));
    for key in &keys {
        assert_eq!(after.acting(*key, copies).targets, during.acting(*key, copies).targets);
        assert!(after.acting(*key, copies).extra.is_empty());
    }
    // The same from nothing.
    let fresh = c.s.node_map();
    assert_eq!(fresh.acting(keys[0], copies), after.acting(keys[0], copies));
    assert_eq!((after.epoch, after.min_width), (c.s.epoch, 2));
}

#[test]
fn a_repeated_request_is_remembered_for_a_while() {
    let mut c = Cluster::new(1, 1);
    let entry =
        |request, name: &str| sheepdog_cluster::Entry { now: 1, request, command: create(name, request) };
    let first = c.entry(c.s.index.next(), entry(1, "a"));
    c.ok(Command::VdiDelete { vdi: c.s.names["a"], snapshot: None, with_snapshots: false, at_once: false });
    assert_eq!(c.entry(c.s.index.next(), entry(1, "a")), first, "not made again");
    assert!(c.s.vdis.is_empty());
    c.watch = None;
    for request in 2..=4_097 {
        c.entry(c.s.index.next(), entry(request, "b"));
    }
    assert_eq!(c.s.recent.len(), 4_096);
    assert_ne!(c.entry(c.s.index.next(), entry(1, "a")), first, "long ago");
}
