//! Membership: epochs, rings, what a node is synced to, history.

mod common;

use common::{Cluster, create, format, hello, node};
use sheepdog_cluster::{
    Command, CommandError, DiskEntry, Node, NodeHello, NodeState, Redundancy, Reply, Session, Timing,
};
use sheepdog_proto::{ClusterId, DiskId, Epoch, Generation, MAX_NODES, PlacementKey};

fn up(n: u64, incarnation: u64) -> Command {
    Command::NodeUp(hello(n, incarnation))
}
fn down(n: u64, incarnation: u64) -> Command {
    Command::NodeDown { node: node(n), incarnation }
}
fn out(n: u64) -> Command {
    Command::NodeOut { node: node(n) }
}
fn drain(n: u64, on: bool) -> Command {
    Command::NodeDrain { node: node(n), on }
}
fn synced(n: u64, incarnation: u64, epoch: u64) -> Command {
    Command::NodeSynced { node: node(n), incarnation, epoch: Epoch(epoch) }
}
fn epoch(e: u64) -> Reply {
    Reply::Epoch(Epoch(e))
}
/// Three nodes at epoch 5 with a volume, so that a ring change asks for data to move.
fn three() -> Cluster {
    let mut c = Cluster::new(3, 3);
    c.vdi("v");
    assert_eq!(c.s.epoch, Epoch(5));
    c
}
fn of(c: &Cluster, n: u64) -> &Node {
    &c.s.nodes[&node(n)]
}
fn rings(c: &Cluster) -> Vec<(u64, usize)> {
    c.s.rings.iter().map(|r| (r.epoch.0, r.members.len())).collect()
}

#[test]
fn nothing_but_format_comes_first() {
    let mut c = Cluster { watch: Some(Default::default()), ..Cluster::default() };
    for command in [up(1, 1), create("v", 1), Command::Shutdown, out(1)] {
        assert_eq!(c.refused(command), CommandError::NotFormatted);
    }
    assert_eq!(c.run(format(3)), Reply::Formatted(ClusterId(7)));
    assert_eq!(c.s.epoch, Epoch(2));
    // Again: the same cluster is the same answer, another one is refused.
    assert_eq!(c.run(format(3)), Reply::Formatted(ClusterId(7)));
    let Command::Format(mut other) = format(3) else { unreachable!() };
    other.cluster = ClusterId(8);
    assert!(matches!(c.refused(Command::Format(other)), CommandError::Exists(_)));
}

#[test]
fn a_bad_format_is_refused() {
    let refuse = |change: fn(&mut sheepdog_cluster::Format)| {
        let Command::Format(mut f) = format(3) else { unreachable!() };
        change(&mut f);
        assert!(matches!(Cluster::default().refused(Command::Format(f)), CommandError::Invalid(_)));
    };
    refuse(|f| f.object_size = 3 << 20);
    refuse(|f| f.object_size = 512 << 10);
    refuse(|f| f.object_size = 128 << 20);
    refuse(|f| f.redundancy = Redundancy::Copies(0));
    refuse(|f| f.redundancy = Redundancy::Copies(17));
    refuse(|f| f.redundancy = Redundancy::Erasure { data: 17, parity: 2 });
    refuse(|f| f.redundancy = Redundancy::Erasure { data: 4, parity: 0 });
    refuse(|f| (f.redundancy, f.object_size) = (Redundancy::Erasure { data: 4, parity: 2 }, 32 << 20));
    refuse(|f| f.min_copies = Some(0));
    refuse(|f| f.min_copies = Some(4));
}

#[test]
fn joining_without_volumes_moves_nothing() {
    let mut c = Cluster::new(0, 3);
    for n in 0..3 {
        assert_eq!(c.run(up(n, 1)), epoch(3 + n));
        assert_eq!(rings(&c), [(3 + n, n as usize + 1)]);
    }
    assert!((0..3).all(|n| of(&c, n).synced == Epoch(5)));
    assert!(c.s.rings[0].members.contains(&(node(0), node(0).to_string(), 16_000)));
}

#[test]
fn joining_with_volumes_asks_everybody_to_look() {
    let mut c = three();
    assert_eq!(c.run(up(3, 1)), epoch(6));
    assert_eq!(rings(&c), [(5, 3), (6, 4)]);
    assert_eq!((0..4).map(|n| of(&c, n).synced.0).collect::<Vec<_>>(), [5, 5, 5, 0]);
    for n in 0..3 {
        assert_eq!(c.run(synced(n, 1, 6)), epoch(6));
    }
    assert_eq!(rings(&c), [(5, 3), (6, 4)], "one is missing");
    assert_eq!(c.run(synced(3, 1, 6)), epoch(6));
    assert_eq!(rings(&c), [(6, 4)]);
}

/// What is written while a holder by the new ring is away may be only on holders by the old one, who may not be forgotten because it once was complete.
#[test]
fn an_older_ring_stays_while_somebody_is_away() {
    let mut c = three();
    c.ok(up(3, 1));
    c.ok(synced(0, 1, 6));
    c.ok(synced(1, 1, 6));
    c.ok(synced(3, 1, 6));
    c.ok(down(3, 1));
    c.ok(synced(2, 1, 7));
    assert_eq!(rings(&c), [(5, 3), (6, 4)], "3 has been complete by the new ring, and is away");
    c.ok(up(3, 2));
    assert_eq!(rings(&c), [(5, 3), (6, 4)], "it has not looked for what it missed");
    c.ok(synced(3, 2, 8));
    assert_eq!(rings(&c), [(6, 4)]);
}

#[test]
fn a_node_that_is_down_stays_in_the_ring() {
    let mut c = three();
    assert_eq!(c.run(down(1, 1)), epoch(6));
    assert_eq!(of(&c, 1).state, NodeState::Down);
    assert_eq!((of(&c, 1).down_at, of(&c, 1).synced), (Epoch(6), Epoch(5)));
    assert_eq!((of(&c, 0).synced, of(&c, 2).synced), (Epoch(6), Epoch(6)));
    assert_eq!(rings(&c), [(5, 3)]);
    // Again, or about a process that was replaced: nothing.
    assert_eq!(c.run(down(1, 1)), epoch(6));
    assert_eq!(c.run(down(0, 99)), epoch(6));
    assert_eq!(of(&c, 0).state, NodeState::Up);

    let mut back = hello(1, 2);
    back.has_data = true;
    assert_eq!(c.run(Command::NodeUp(back)), epoch(7));
    assert_eq!((of(&c, 1).synced, of(&c, 1).up_since), (Epoch(5), Epoch(7)));
    assert_eq!((of(&c, 0).synced, of(&c, 2).synced), (Epoch(7), Epoch(7)));
    // It came back after what it says it is complete for: not enough.
    assert_eq!(c.run(synced(1, 2, 6)), epoch(7));
    assert_eq!(of(&c, 1).synced, Epoch(6));
    assert_eq!(c.run(synced(1, 2, 7)), epoch(7));
    assert_eq!(of(&c, 1).synced, Epoch(7));
}

#[test]
fn being_synced_is_believed_only_of_the_right_process_and_epoch() {
    let mut c = three();
    c.ok(up(3, 1));
    for command in [synced(3, 2, 6), synced(3, 1, 7), synced(0, 1, 5), synced(0, 1, 1)] {
        let before = c.s.nodes.clone();
        assert_eq!(c.run(command), epoch(6));
        assert_eq!(c.s.nodes, before);
    }
    assert!(matches!(c.refused(synced(9, 1, 6)), CommandError::NotFound(_)));
}

#[test]
fn a_restart_that_nobody_noticed_is_no_change_of_membership() {
    let mut c = three();
    let mut again = hello(1, 2);
    again.has_data = true;
    assert_eq!(c.run(Command::NodeUp(again)), epoch(5));
    assert_eq!((of(&c, 1).incarnation, of(&c, 1).synced), (2, Epoch(5)));
}

#[test]
fn what_a_node_has_goes_on_being_complete_while_it_is_up() {
    let mut c = three();
    let key = PlacementKey { family: *c.s.families.keys().next().expect("a family"), index: 0 };
    let complete = |c: &Cluster, n| c.s.node_map().complete_at(node(n), key, Redundancy::Copies(3)).0;
    // A ring change asks for more than it has. What was its own it goes on having, until it goes.
    c.ok(up(3, 1));
    c.ok(down(1, 1));
    c.ok(down(2, 1));
    assert_eq!((0..4).map(|n| of(&c, n).synced.0).collect::<Vec<_>>(), [5, 5, 5, 0]);
    assert_eq!((0..4).map(|n| of(&c, n).kept.0).collect::<Vec<_>>(), [8, 6, 7, 0]);
    assert_eq!((0..4).map(|n| complete(&c, n)).collect::<Vec<_>>(), [8, 6, 7, 0]);
    // Back, and away again: nothing of what was in between.
    c.ok(Command::NodeUp(NodeHello { has_data: true, ..hello(1, 2) }));
    c.ok(down(1, 2));
    assert_eq!((c.s.epoch, of(&c, 1).kept, of(&c, 0).kept), (Epoch(10), Epoch(6), Epoch(10)));
}

#[test]
fn what_a_node_had_before_it_was_out_is_not_forgotten() {
    let mut c = three();
    let (key, copies) = (
        PlacementKey { family: *c.s.families.keys().next().expect("a family"), index: 0 },
        Redundancy::Copies(3),
    );
    let back = |n, incarnation| Command::NodeUp(NodeHello { has_data: true, ..hello(n, incarnation) });
    // One loses its disk while all others are complete. Before it has everything again these are away for so long that they are out.
    c.ok(down(1, 1));
    let mut empty = hello(1, 2);
    empty.disks[0].id = DiskId(999);
    c.ok(Command::NodeUp(empty));
    assert_eq!((of(&c, 1).lost_at, of(&c, 0).kept), (Epoch(6), Epoch(7)));
    for n in [0, 2] {
        c.ok(down(n, 1));
        c.ok(out(n));
    }
    assert_eq!(c.s.node_map().out_until(key, copies, Epoch(0)), Some(of(&c, 2).down_at));
    assert_eq!(c.s.node_map().out_until(key, copies, of(&c, 2).down_at), None);
    for n in [0, 2] {
        c.ok(back(n, 2));
    }
    let map = c.s.node_map();
    assert_eq!(map.out_until(key, copies, Epoch(0)), None);
    // They look at everything again, but what was lost was no later than what they have: nobody waits for it.
    assert_eq!((of(&c, 0).synced, of(&c, 2).synced), (Epoch(0), Epoch(0)));
    assert_eq!([0, 1, 2].map(|n| map.complete_at(node(n), key, copies).0), [7, 0, 8]);
    assert_eq!(map.unknowable_object(key, copies, Epoch(5), None), Some(node(1)));
    assert_eq!(map.unknowable_object(key, copies, map.complete_at(node(2), key, copies), None), None);
    // Away once more, and out once more: the same.
    c.ok(down(0, 2));
    c.ok(out(0));
    c.ok(back(0, 3));
    assert_eq!(c.s.node_map().complete_at(node(0), key, copies), Epoch(7));
    // Who is away when loss is accepted knows nothing.
    c.ok(down(0, 3));
    c.ok(out(0));
    c.ok(Command::Force { reason: "gone".into() });
    c.ok(back(0, 4));
    assert_eq!(c.s.node_map().complete_at(node(0), key, copies), Epoch(0));
}

#[test]
fn what_a_ring_gave_to_a_node_that_was_out_before_it_had_it_does_not_count() {
    let mut c = three();
    let key = PlacementKey { family: *c.s.families.keys().next().expect("a family"), index: 0 };
    let complete = |c: &Cluster, n| c.s.node_map().complete_at(node(n), key, Redundancy::Copies(3)).0;
    c.ok(up(3, 1));
    assert_eq!((of(&c, 1).synced, of(&c, 1).kept), (Epoch(5), Epoch(6)));
    c.ok(down(1, 1));
    c.ok(out(1));
    c.ok(Command::NodeUp(NodeHello { has_data: true, ..hello(1, 2) }));
    assert_eq!((of(&c, 1).synced, of(&c, 1).kept, complete(&c, 1)), (Epoch(0), Epoch(5), 5));
    // With another disk it has nothing.
    c.ok(down(2, 1));
    c.ok(out(2));
    let mut empty = hello(2, 2);
    empty.disks[0].id = DiskId(999);
    c.ok(Command::NodeUp(empty));
    assert_eq!((of(&c, 2).kept, complete(&c, 2)), (Epoch(0), 0));
}

#[test]
fn a_node_that_lost_its_disk_starts_from_nothing() {
    let mut c = three();
    let mut empty = hello(1, 2);
    empty.disks[0].id = DiskId(999);
    assert_eq!(c.run(Command::NodeUp(empty)), epoch(6));
    let n = of(&c, 1);
    assert_eq!((n.synced, n.up_since, n.lost_at), (Epoch(0), Epoch(6), Epoch(6)));
    assert_eq!(of(&c, 0).synced, Epoch(6));
}

#[test]
fn only_copies_that_a_disk_took_with_it_are_remembered() {
    let mut c = three();
    let single = |c: &mut Cluster, name| {
        let mut command = create(name, u128::from(c.s.index.0) + 1000);
        if let Command::VdiCreate { redundancy, .. } = &mut command {
            *redundancy = Some(Redundancy::Copies(1));
        }
        match c.ok(command) {
            Reply::Vdi(id) => id,
            r => panic!("{r:?}"),
        }
    };
    let (one, double) = (single(&mut c, "s"), c.vdi("d"));
    let family = |c: &Cluster, v| c.s.vdis[&v].family;
    let (fs, fd) = (family(&c, one), family(&c, double));
    let key = |family, index| PlacementKey { family, index };
    let of_node = |c: &Cluster, index| {
        let r = c.s.families[&fs].redundancy;
        c.s.node_map().acting(key(fs, index), r).targets == [node(1)]
    };
    let lost =
        |c: &Cluster, f, index| c.s.node_map().may_be_lost(key(f, index), c.s.families[&f].redundancy, false);
    let mut without = hello(1, 2);
    let disk = without.disks[0].id;
    without.disks[0].id = DiskId(999);
    c.ok(Command::NodeUp(without));
    let later = single(&mut c, "later");
    let fl = family(&c, later);
    for i in 0..100 {
        assert_eq!(lost(&c, fs, i), of_node(&c, i), "what it was the holder of");
        assert!(!lost(&c, fd, i) && !lost(&c, fl, i), "another copy, or not there yet");
    }
    // Complete again it still does not have it, and once the ring of then is forgotten nobody knows what it had.
    c.ok(synced(1, 2, c.s.epoch.0));
    assert!((0..100).any(|i| lost(&c, fs, i)));
    c.ok(up(3, 1));
    for n in 0..4 {
        c.ok(synced(n, if n == 1 { 2 } else { 1 }, c.s.epoch.0));
    }
    assert_eq!(rings(&c).len(), 1);
    assert!((0..100).all(|i| lost(&c, fs, i)));
    // The disk is back.
    let mut with = Cluster { s: c.s.clone(), ..Cluster::default() };
    let mut again = hello(1, 3);
    again.disks.push(DiskEntry { id: DiskId(999), ..again.disks[0].clone() });
    assert_eq!(again.disks[0].id, disk);
    with.ok(Command::NodeUp(again));
    // Complete it was without it, so all else that is on it may be old: it starts from nothing, and has everything again once it is complete.
    assert_eq!(of(&with, 1).synced, Epoch(0));
    assert!(with.s.lost.values().all(|l| l.outdated));
    with.ok(synced(1, 3, with.s.epoch.0));
    assert!((0..100).all(|i| !lost(&with, fs, i)) && with.s.lost.is_empty());
    // Or its loss accepted, or nothing is left to lose.
    let mut forced = Cluster { s: c.s.clone(), ..Cluster::default() };
    forced.ok(Command::Force { reason: "scrap".into() });
    assert!((0..100).all(|i| !lost(&forced, fs, i)));
    c.ok(Command::VdiDelete { vdi: one, snapshot: None, with_snapshots: false, at_once: false });
    assert!(c.s.lost.is_empty());
}

#[test]
fn a_disk_that_was_missing_may_come_back_until_its_node_is_complete_without_it() {
    let with = |incarnation, extra: &[u128]| {
        let mut h = hello(1, incarnation);
        let entry = |d: &u128| DiskEntry { id: DiskId(*d), ..h.disks[0].clone() };
        let more: Vec<DiskEntry> = extra.iter().map(entry).collect();
        h.disks.extend(more);
        Command::NodeUp(h)
    };
    let mut c = three();
    c.ok(with(2, &[500]));
    c.ok(with(3, &[]));
    assert_eq!(of(&c, 1).synced, Epoch(0));
    c.ok(with(4, &[500]));
    assert!(of(&c, 1).disks.iter().all(DiskEntry::is_there));
    assert_eq!(of(&c, 1).synced, Epoch(0), "what the others did meanwhile it has not");
    c.ok(with(5, &[]));
    c.ok(synced(1, 5, c.s.epoch.0));
    assert!(matches!(c.refused(with(6, &[500])), CommandError::Invalid(_)));
    c.ok(with(6, &[501]));
}

#[test]
fn going_out_leaves_the_ring_and_coming_back_joins_it() {
    let mut c = three();
    c.ok(up(3, 1));
    for n in 0..4 {
        c.ok(synced(n, 1, 6));
    }
    c.ok(down(3, 1));
    assert_eq!(c.run(out(3)), epoch(8));
    assert_eq!((of(&c, 3).state, of(&c, 3).down_at), (NodeState::Out, Epoch(7)));
    assert_eq!(rings(&c), [(6, 4), (8, 3)]);
    assert_eq!(c.run(out(3)), epoch(8), "once");
    for n in 0..3 {
        c.ok(synced(n, 1, 8));
    }
    assert_eq!(rings(&c), [(8, 3)]);
    assert_eq!(c.run(up(3, 2)), epoch(9));
    assert_eq!((of(&c, 3).state, of(&c, 3).synced), (NodeState::Up, Epoch(0)));
    assert_eq!(rings(&c), [(8, 3), (9, 4)]);
    assert!(matches!(c.refused(out(9)), CommandError::NotFound(_)));
}

#[test]
fn only_one_that_served_when_it_was_taken_out_is_dismissed() {
    let mut c = three();
    c.ok(up(3, 1));
    c.ok(drain(3, true));
    c.ok(out(3));
    assert!(of(&c, 3).dismissed);
    c.ok(up(3, 2));
    assert!(!of(&c, 3).dismissed, "its next process may join");
    c.ok(out(3));
    assert!(of(&c, 3).dismissed);
    c.ok(up(3, 3));
    // Silent for too long: when it is heard again it comes back by itself.
    c.ok(down(3, 3));
    c.ok(out(3));
    assert!(!of(&c, 3).dismissed);
}

#[test]
fn draining_leaves_the_ring_and_can_be_cancelled() {
    let mut c = three();
    assert_eq!(c.run(drain(1, true)), epoch(6));
    assert_eq!(c.run(drain(1, true)), epoch(6));
    assert_eq!(rings(&c), [(5, 3), (6, 2)]);
    assert!(of(&c, 1).is_up());
    assert_eq!(c.run(drain(1, false)), epoch(7));
    assert_eq!(c.run(drain(1, false)), epoch(7));
    assert_eq!(rings(&c), [(5, 3), (6, 2), (7, 3)]);
    // A draining node that dies is a member again: it may hold what nobody else has.
    c.ok(drain(1, true));
    assert_eq!(c.run(down(1, 1)), epoch(9));
    assert_eq!(c.s.rings.last().map(|r| r.members.len()), Some(3));
    assert!(matches!(c.refused(drain(1, true)), CommandError::Invalid(_)));
    assert!(matches!(c.refused(drain(9, true)), CommandError::NotFound(_)));
}

#[test]
fn a_drained_node_that_goes_out_is_not_waited_for() {
    let mut c = three();
    c.ok(drain(1, true));
    for n in 0..3 {
        c.ok(synced(n, 1, 6));
    }
    c.ok(out(1));
    assert_eq!(of(&c, 1).down_at, Epoch(0));
    // In a hurry: what it took may be nowhere else.
    let mut c = three();
    c.ok(drain(1, true));
    assert_eq!(c.run(out(1)), epoch(7));
    assert_eq!(of(&c, 1).down_at, Epoch(7));
}

#[test]
fn gateways_are_in_no_ring() {
    let mut c = three();
    let gateway = NodeHello { gateway: true, disks: Vec::new(), ..hello(3, 1) };
    assert_eq!(c.run(Command::NodeUp(gateway)), epoch(6));
    assert_eq!(rings(&c), [(5, 3)]);
    assert_eq!((of(&c, 3).weight, of(&c, 3).synced, of(&c, 0).synced), (0, Epoch(6), Epoch(6)));
    let weigh = Command::NodeWeight { node: node(3), weight: Some(1), vnodes: None };
    assert!(matches!(c.refused(weigh), CommandError::Invalid(_)));
    assert_eq!(c.run(down(3, 1)), epoch(7));
    assert_eq!(rings(&c), [(5, 3)]);
}

#[test]
fn weights_and_virtual_nodes_change_the_ring() {
    let mut c = three();
    let weigh = |n, weight, vnodes| Command::NodeWeight { node: node(n), weight, vnodes };
    let in_ring = |c: &Cluster| {
        let last = c.s.rings.last().expect("formatted");
        last.members.iter().find(|m| m.0 == node(0)).map(|m| m.2)
    };
    assert_eq!(c.run(weigh(0, Some(2_000), None)), epoch(6));
    assert_eq!(in_ring(&c), Some(32_000));
    c.ok(weigh(0, None, Some(128)));
    assert_eq!(in_ring(&c), Some(16_000), "128 virtual nodes are a weight of 1,000");
    c.ok(weigh(0, None, Some(0)));
    assert_eq!(in_ring(&c), Some(32_000), "back to weight");
    c.ok(weigh(0, Some(0), None));
    assert_eq!(in_ring(&c), Some(16), "at least a little");
    c.ok(weigh(0, Some(u32::MAX), None));
    assert_eq!(in_ring(&c), Some(u32::MAX));
    assert!(matches!(c.refused(weigh(0, None, Some(65_537))), CommandError::Invalid(_)));
    assert!(matches!(c.refused(weigh(9, Some(1), None)), CommandError::NotFound(_)));
}

#[test]
fn a_capacity_that_moves_a_little_does_not_shuffle_data() {
    let mut c = three();
    let again =
        |weight, incarnation| Command::NodeUp(NodeHello { weight, has_data: true, ..hello(0, incarnation) });
    assert_eq!(c.run(again(1_099, 2)), epoch(5));
    assert_eq!(of(&c, 0).weight, 1_000);
    assert_eq!(c.run(again(1_200, 3)), epoch(6));
    assert_eq!((of(&c, 0).weight, rings(&c).len()), (1_200, 2));
}

#[test]
fn disks_come_and_go() {
    let mut c = three();
    let retire = |disk| Command::DiskRetired { node: node(0), disk: DiskId(disk) };
    assert!(matches!(c.refused(retire(77)), CommandError::NotFound(_)));
    let disk = DiskEntry { id: DiskId(77), path: "/e".into(), capacity: 1, retired: false, missing: false };
    assert_eq!(c.run(Command::DiskAdded { node: node(0), disk: disk.clone() }), epoch(5));
    assert_eq!(of(&c, 0).disks.len(), 2);
    assert_eq!(c.run(retire(77)), epoch(6));
    let n = of(&c, 0);
    assert_eq!((n.synced, n.up_since, n.lost_at), (Epoch(0), Epoch(6), Epoch(6)));
    assert_eq!(c.run(retire(77)), epoch(6), "once");
    // The cluster went on without what is on it; an emptied directory gets another id.
    assert!(matches!(
        c.refused(Command::DiskAdded { node: node(0), disk: disk.clone() }),
        CommandError::Invalid(_)
    ));
    c.ok(Command::DiskAdded { node: node(0), disk: DiskEntry { id: DiskId(78), ..disk } });
    assert_eq!(of(&c, 0).disks.iter().filter(|d| !d.retired).count(), 2);
    assert!(matches!(
        c.refused(Command::DiskRetired { node: node(9), disk: DiskId(1) }),
        CommandError::NotFound(_)
    ));
}

#[test]
fn an_emptied_disk_is_forgotten_and_nobody_lacks_anything() {
    let mut c = three();
    let disk = DiskEntry { id: DiskId(77), path: "/e".into(), capacity: 1, retired: false, missing: false };
    let add = Command::DiskAdded { node: node(0), disk };
    c.ok(add.clone());
    let before = of(&c, 0).clone();
    let emptied = |incarnation| Command::DiskEmptied { node: node(0), incarnation, disk: DiskId(77) };
    assert!(
        matches!(c.refused(emptied(before.incarnation + 1)), CommandError::Invalid(_)),
        "another process"
    );
    assert_eq!(c.run(emptied(before.incarnation)), epoch(5), "nobody has to look at anything");
    let after = of(&c, 0);
    assert_eq!((after.disks.len(), after.synced, after.up_since), (1, before.synced, before.up_since));
    assert_eq!(c.run(emptied(before.incarnation)), epoch(5), "again");
    c.ok(add);
    assert_eq!(of(&c, 0).disks.len(), 2, "it may come back");
}

#[test]
fn a_disk_plugged_since_the_start_is_there_when_its_sheep_was_only_silent() {
    let mut c = three();
    let disk = DiskEntry { id: DiskId(77), path: "/e".into(), capacity: 1, retired: false, missing: false };
    c.ok(Command::DiskAdded { node: node(0), disk });
    let before = of(&c, 0).clone();
    let incarnation = before.incarnation;
    c.ok(Command::NodeDown { node: node(0), incarnation });
    // As it began: without that disk.
    c.ok(Command::NodeUp(NodeHello { has_data: true, ..hello(0, incarnation) }));
    let after = of(&c, 0);
    assert_eq!((&after.disks, after.lost_at), (&before.disks, before.lost_at));
    assert_eq!(after.synced, before.synced, "it lost nothing");
}

#[test]
fn a_sheep_that_was_only_silent_lost_nothing_when_none_of_its_disks_is_in_the_map() {
    let mut c = three();
    let before = of(&c, 0).clone();
    let (incarnation, disk) = (before.incarnation, before.disks[0].clone());
    c.ok(Command::NodeDown { node: node(0), incarnation });
    // It was to be emptied, and stays: its sheep is about to say so.
    c.ok(Command::DiskEmptied { node: node(0), incarnation, disk: disk.id });
    assert!(of(&c, 0).disks.is_empty());
    // As it began: as a new node.
    c.ok(up(0, incarnation));
    c.ok(Command::DiskAdded { node: node(0), disk });
    let after = of(&c, 0);
    assert_eq!((after.synced, after.kept, after.lost_at), (before.synced, before.kept, Epoch(0)));
    assert_eq!(after.disks, before.disks);
    assert!(!c.s.node_map().away.contains_key(&node(0)), "nobody waits for it");
}

#[test]
fn a_map_is_not_of_a_state_in_which_another_process_has_a_nodes_place() {
    let mut c = three();
    let before = c.s.node_map();
    assert!(before.is_of(&c.s));
    // Faster than anybody noticed: no new epoch.
    assert_eq!(c.ok(up(1, 2)), epoch(5));
    assert!(!before.is_of(&c.s));
    let after = c.s.node_map_after(Some(&before));
    assert!(after.is_of(&c.s));
    assert_eq!(after.nodes[&node(1)].incarnation, 2);
    c.ok(create("w", 9));
    assert!(after.is_of(&c.s), "volumes are none of its business");
}

#[test]
fn a_death_leaves_sessions_unclean_and_so_does_a_restart() {
    let mut c = three();
    let (a, b) = (c.s.names["v"], c.vdi("w"));
    let (ga, gb) = (c.open(a, 0), c.open(b, 1));
    assert_eq!((ga, gb), (Generation(1), Generation(2)));
    c.ok(down(0, 1));
    assert_eq!(c.s.vdis[&a].session, Session::Unclean { generation: ga });
    assert!(matches!(c.s.vdis[&b].session, Session::Open { .. }));
    c.ok(Command::NodeUp(NodeHello { has_data: true, ..hello(1, 2) }));
    assert_eq!(c.s.vdis[&b].session, Session::Unclean { generation: gb });
}

#[test]
fn a_nil_node_and_one_too_many_are_refused() {
    let mut c = three();
    let nil = NodeHello { id: sheepdog_proto::NodeId(0), ..hello(1, 1) };
    assert!(matches!(c.refused(Command::NodeUp(nil)), CommandError::Invalid(_)));
    let mut c = Cluster::default();
    c.ok(format(3));
    for n in 0..MAX_NODES as u64 {
        c.ok(up(n, 1));
    }
    assert!(matches!(c.refused(up(9_999, 1)), CommandError::NotEnough(_)));
    assert_eq!(c.run(Command::NodeUp(NodeHello { has_data: true, ..hello(5, 2) })), epoch(6_146));
}

#[test]
fn force_counts_everybody_up_as_complete_and_says_so() {
    let mut c = three();
    c.ok(up(3, 1));
    c.ok(down(2, 1));
    assert_eq!(c.run(Command::Force { reason: "both gone".into() }), epoch(7));
    assert_eq!([0, 1, 2, 3].map(|n| of(&c, n).synced.0), [7, 7, 0, 7]);
    assert!([0, 1, 2, 3].iter().all(|n| of(&c, *n).down_at == Epoch(0)));
    assert_eq!(c.s.forced, ["both gone"]);
    assert_eq!(rings(&c).len(), 2, "the one that is down is still to come");
}

#[test]
fn history_tells_who_was_up_in_each_epoch() {
    let mut c = three();
    c.ok(down(1, 1));
    c.ok(up(3, 1));
    let latest = c.s.latest_epochs(4);
    let told: Vec<_> = latest.iter().map(|(r, up)| (r.epoch.0, r.what.as_str(), up.len())).collect();
    let short = |n: u64| node(n).short();
    let texts = [
        format!("node {} joined (10.0.0.3:7000)", short(3)),
        format!("node {} is down", short(1)),
        format!("node {} joined (10.0.0.2:7000)", short(2)),
        format!("node {} joined (10.0.0.1:7000)", short(1)),
    ];
    let want = [(7, texts[0].as_str(), 3), (6, &texts[1], 2), (5, &texts[2], 3), (4, &texts[3], 2)];
    assert_eq!(told, want);
    assert!(
        latest[0].1.contains(&node(3)) && !latest[1].1.contains(&node(1)) && latest[2].1.contains(&node(1))
    );
}

#[test]
fn history_is_bounded_but_reaches_back_to_whoever_is_behind() {
    let mut c = three();
    c.watch = None;
    for round in 0..400 {
        c.ok(down(1, round + 1));
        c.ok(Command::NodeUp(NodeHello { has_data: true, ..hello(1, round + 2) }));
    }
    assert_eq!(c.s.history.front().map(|r| r.epoch), Some(Epoch(5)), "node 1 is complete up to epoch 5");
    c.ok(synced(1, 401, c.s.epoch.0));
    c.ok(up(3, 1));
    c.ok(synced(3, 1, c.s.epoch.0));
    c.ok(down(3, 1));
    assert_eq!(c.s.history.len(), 512);
}

#[test]
fn switches() {
    let mut c = three();
    let set =
        |enabled, max_bytes_per_s, concurrency| Command::Recovery { enabled, max_bytes_per_s, concurrency };
    assert_eq!(c.run(set(Some(false), Some(5), Some(64))), Reply::Done);
    assert!((!c.s.recovery.enabled, c.s.recovery.max_bytes_per_s, c.s.recovery.concurrency) == (true, 5, 64));
    assert_eq!(c.run(set(None, None, None)), Reply::Done);
    assert_eq!(c.s.recovery.max_bytes_per_s, 5);
    for bad in [0, 65] {
        assert!(matches!(c.refused(set(None, None, Some(bad))), CommandError::Invalid(_)));
    }
    let timing = |heartbeat, lease, down_out| Command::SetTiming(Timing { heartbeat, lease, down_out });
    assert_eq!(c.run(timing(1, 2, 2)), Reply::Done);
    for bad in [timing(0, 1, 1), timing(2, 3, 9), timing(1, 5, 4)] {
        assert!(matches!(c.refused(bad), CommandError::Invalid(_)));
    }
    assert_eq!(c.run(Command::Shutdown), Reply::Done);
    assert_eq!(c.s.shutdowns, 1);
}

#[test]
fn what_any_ring_in_force_gave_to_a_node_that_is_complete_is_its_own() {
    let mut c = Cluster::new(4, 2);
    let v = c.vdi("v");
    let family = c.s.vdis[&v].family;
    let (made_with, key) = (c.s.families[&family].redundancy, PlacementKey { family, index: 0 });
    let alter = |n| Command::AlterCopies { vdi: Some(v), redundancy: Redundancy::Copies(n) };
    // Three copies for a while. The holder of the third is complete when there are to be two again; the others are not, so every ring stays in force.
    c.ok(alter(3));
    let third = c.s.node_map().acting(key, made_with).targets[2];
    c.ok(alter(2));
    let complete = c.s.epoch;
    c.ok(Command::NodeSynced { node: third, incarnation: 1, epoch: complete });
    c.ok(alter(3));
    let map = c.s.node_map();
    assert_eq!((map.nodes[&third].synced, map.nodes[&third].kept), (complete, c.s.epoch));
    // It is believed, so it must know that it is to be given every step.
    assert_eq!(map.complete_at(third, key, made_with), c.s.epoch);
    assert!(map.was_target(third, complete, key, made_with));
    // What it was given after it was complete does not count.
    assert!(!map.was_target(third, map.rings[0].0, key, made_with));
}
