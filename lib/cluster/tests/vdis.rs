//! Volumes: names, sizes, attributes, locks, sessions.

mod common;

use common::{Cluster, create, format, hello, node};
use sheepdog_cluster::{Command, CommandError, Limits, NodeHello, Redundancy, Reply, Session, SnapshotRef};
use sheepdog_proto::{Generation, LayerId, PlacementKey, VdiId};

const GONE: VdiId = VdiId(999);

fn delete(vdi: VdiId) -> Command {
    Command::VdiDelete { vdi, snapshot: None, with_snapshots: false, at_once: false }
}
fn rename(vdi: VdiId, name: &str) -> Command {
    Command::VdiRename { vdi, name: name.into() }
}
fn resize(vdi: VdiId, size: u64, generation: Option<Generation>) -> Command {
    Command::VdiResize { vdi, size, generation }
}
fn attr(vdi: VdiId, key: &str, value: Option<&[u8]>, exclusive: bool) -> Command {
    Command::SetAttr { vdi, key: key.into(), value: value.map(Into::into), exclusive }
}
fn lock(vdi: VdiId, holder: &str, exclusive: bool) -> Command {
    Command::Lock { vdi, holder: holder.into(), exclusive }
}
fn unlock(vdi: VdiId, holder: Option<&str>) -> Command {
    Command::Unlock { vdi, holder: holder.map(Into::into) }
}
fn open(vdi: VdiId, by: u64, incarnation: u64) -> Command {
    Command::SessionOpen { vdi, node: node(by), incarnation }
}
fn ready(vdi: VdiId, g: Generation) -> Command {
    Command::SessionReady { vdi, generation: g }
}
fn close(vdi: VdiId, g: Generation) -> Command {
    Command::SessionClose { vdi, generation: g }
}
fn session(g: u64, reconcile: bool) -> Reply {
    Reply::Session { generation: Generation(g), reconcile }
}

#[test]
fn create_and_ask_again() {
    let mut c = Cluster::new(3, 3);
    assert_eq!(c.run(create("a", 1)), Reply::Vdi(VdiId(1)));
    assert_eq!(c.run(create("b", 2)), Reply::Vdi(VdiId(2)));
    // The same request once more is no second volume; the same name for another one is refused.
    assert_eq!(c.run(create("a", 1)), Reply::Vdi(VdiId(1)));
    assert_eq!(c.refused(create("a", 3)), CommandError::Exists("a VDI named a exists".into()));
    let v = &c.s.vdis[&VdiId(1)];
    assert_eq!((v.top, v.family, v.size, v.uuid), (Some(LayerId(1)), LayerId(1), 1 << 30, 1));
    assert_eq!(c.s.families[&v.family].redundancy, Redundancy::Copies(3));
}

#[test]
fn bad_volumes_are_refused() {
    let mut c = Cluster::new(3, 3);
    let long = "x".repeat(256);
    for name in ["", ".", "..", "a/b", "a@b", "a#1", "a\nb", &long] {
        assert!(matches!(c.refused(create(name, 1)), CommandError::Invalid(_)), "{name:?}");
    }
    let with = |size, redundancy, object_size| Command::VdiCreate {
        name: "v".into(),
        uuid: 1,
        size,
        redundancy,
        object_size,
    };
    for size in [0, 1, 511, 513, ((4u64 << 20) << 32) + 512, u64::MAX] {
        assert!(matches!(c.refused(with(size, None, None)), CommandError::Invalid(_)), "{size}");
    }
    for object_size in [0, 1, 3 << 20, 128 << 20] {
        assert!(matches!(c.refused(with(512, None, Some(object_size))), CommandError::Invalid(_)));
    }
    for r in [Redundancy::Copies(0), Redundancy::Copies(17), Redundancy::Erasure { data: 0, parity: 1 }] {
        assert!(matches!(c.refused(with(512, Some(r), None)), CommandError::Invalid(_)));
    }
    assert!(matches!(c.refused(with(512, Some(Redundancy::Copies(4)), None)), CommandError::NotEnough(_)));
    c.ok(with((4u64 << 20) << 32, Some(Redundancy::Copies(1)), Some(4 << 20)));
}

#[test]
fn strips_want_as_many_sheep_as_there_are_strips() {
    let mut c = Cluster::new(3, 3);
    let with = |name: &str, data, parity| Command::VdiCreate {
        name: name.into(),
        uuid: name.len() as u128,
        size: 4 << 20,
        redundancy: Some(Redundancy::Erasure { data, parity }),
        object_size: None,
    };
    let CommandError::NotEnough(text) = c.refused(with("v", 4, 2)) else { panic!("it was made") };
    assert!(text.contains("4:2") && text.contains("6 sheep") && text.contains("--copy-policy"), "{text}");
    let Reply::Vdi(vdi) = c.ok(with("vv", 2, 1)) else { panic!("no volume") };
    // What is written lately has as many copies as nodes may be lost, and one.
    let (family, key) = (LayerId(vdi.0), PlacementKey { family: LayerId(vdi.0), index: 0 });
    let redundancy = c.s.redundancy(family).expect("a family");
    let map = c.s.node_map();
    assert_eq!((redundancy.width(), redundancy.spread()), (2, 3));
    assert_eq!(map.acting(key, redundancy).targets.len(), 2);
    let mut places: Vec<_> = map.strip_targets(key, 3).into_iter().flatten().collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 3);
    assert!(c.s.has_strips());
}

#[test]
fn a_strict_cluster_wants_zones() {
    let mut c = Cluster { watch: Some(Default::default()), ..Cluster::default() };
    let Command::Format(mut f) = format(2) else { unreachable!() };
    f.strict = true;
    c.ok(Command::Format(f));
    for n in 0..3 {
        c.ok(Command::NodeUp(NodeHello { zone: Some("a".into()), ..hello(n, 1) }));
    }
    assert!(matches!(c.refused(create("v", 1)), CommandError::NotEnough(_)));
    c.ok(Command::NodeUp(NodeHello { zone: Some("b".into()), ..hello(3, 1) }));
    c.ok(create("v", 1));
}

#[test]
fn ids_run_out_loudly() {
    let mut c = Cluster::new(1, 1);
    c.s.last_id = sheepdog_proto::MAX_LAYER_ID - 1;
    c.watch = None;
    let v = c.vdi("last");
    assert_eq!(v, VdiId(sheepdog_proto::MAX_LAYER_ID));
    assert!(matches!(c.refused(create("one more", 2)), CommandError::Invalid(_)));
    let snap = Command::Snapshot { vdis: vec![(v, None)], tag: String::new() };
    assert!(matches!(c.refused(snap), CommandError::Invalid(_)));
}

#[test]
fn a_new_name() {
    let mut c = Cluster::new(1, 1);
    let (a, b) = (c.vdi("a"), c.vdi("b"));
    assert_eq!(c.run(rename(a, "a")), Reply::Done);
    assert_eq!(c.run(rename(a, "z")), Reply::Done);
    assert_eq!((c.s.names.get("a"), c.s.names.get("z")), (None, Some(&a)));
    assert!(matches!(c.refused(rename(b, "z")), CommandError::Exists(_)));
    assert!(matches!(c.refused(rename(b, "x/y")), CommandError::Invalid(_)));
    assert!(matches!(c.refused(rename(GONE, "q")), CommandError::NotFound(_)));
    c.ok(rename(b, "a"));
}

#[test]
fn a_new_size() {
    let mut c = Cluster::new(1, 1);
    let v = c.vdi("a");
    assert_eq!(c.run(resize(v, 4096, None)), Reply::Done);
    assert_eq!(c.s.vdis[&v].size, 4096);
    for bad in [0, 100, u64::MAX] {
        assert!(matches!(c.refused(resize(v, bad, None)), CommandError::Invalid(_)));
    }
    let g = c.open(v, 0);
    assert!(matches!(c.refused(resize(v, 8192, None)), CommandError::Busy(_)));
    assert_eq!(c.refused(resize(v, 8192, Some(Generation(77)))), CommandError::Fenced);
    assert_eq!(c.run(resize(v, 8192, Some(g))), Reply::Done);
    c.ok(close(v, g));
    assert_eq!(c.refused(resize(v, 4096, Some(g))), CommandError::Fenced);
    assert!(matches!(c.refused(resize(GONE, 4096, None)), CommandError::NotFound(_)));
}

#[test]
fn delete_frees_the_name_but_not_the_id() {
    let mut c = Cluster::new(1, 1);
    let v = c.vdi("a");
    assert_eq!(c.run(delete(v)), Reply::Done);
    assert!(c.s.vdis.is_empty() && c.s.names.is_empty() && c.s.layers.is_empty() && c.s.families.is_empty());
    assert!(matches!(c.refused(delete(v)), CommandError::NotFound(_)));
    assert_eq!(c.vdi("a"), VdiId(2));
}

#[test]
fn what_is_used_is_not_deleted() {
    let mut c = Cluster::new(1, 1);
    let v = c.vdi("a");
    let g = c.open(v, 0);
    assert!(matches!(c.refused(delete(v)), CommandError::Busy(_)));
    c.ok(close(v, g));
    c.ok(lock(v, "me", false));
    assert!(matches!(c.refused(delete(v)), CommandError::Busy(_)));
    c.ok(unlock(v, Some("me")));
    c.ok(delete(v));
}

#[test]
fn a_deleted_volume_with_snapshots_keeps_its_name() {
    let mut c = Cluster::new(1, 1);
    let v = c.vdi("a");
    c.ok(Command::Snapshot { vdis: vec![(v, None)], tag: "t".into() });
    c.ok(delete(v));
    assert!(matches!(c.refused(delete(v)), CommandError::NotFound(_)));
    assert!(matches!(c.refused(create("a", 9)), CommandError::Exists(_)));
    assert!(matches!(c.refused(open(v, 0, 1)), CommandError::NotFound(_)));
    c.ok(Command::VdiDelete {
        vdi: v,
        snapshot: Some(SnapshotRef::Tag("t".into())),
        with_snapshots: false,
        at_once: false,
    });
    assert!(c.s.vdis.is_empty() && c.s.layers.is_empty());
}

#[test]
fn attributes() {
    let mut c = Cluster::new(1, 1);
    let v = c.vdi("a");
    assert_eq!(c.run(attr(v, "k", Some(b"1"), true)), Reply::Done);
    assert!(matches!(c.refused(attr(v, "k", Some(b"2"), true)), CommandError::Exists(_)));
    assert_eq!(c.run(attr(v, "k", Some(b"2"), false)), Reply::Done);
    assert_eq!(c.s.vdis[&v].attrs["k"], b"2");
    assert_eq!(c.run(attr(v, "k", None, false)), Reply::Done);
    assert!(matches!(c.refused(attr(v, "k", None, false)), CommandError::NotFound(_)));
    c.ok(attr(v, &"k".repeat(256), Some(&vec![0; 64 << 10]), false));
    for (key, value) in [("", 1), (&*"k".repeat(257), 1), ("k", (64 << 10) + 1)] {
        assert!(matches!(c.refused(attr(v, key, Some(&vec![0; value]), false)), CommandError::Invalid(_)));
    }
    for n in 0..1023 {
        c.ok(attr(v, &format!("k{n}"), Some(b""), false));
    }
    assert!(matches!(c.refused(attr(v, "one more", Some(b""), false)), CommandError::Invalid(_)));
    c.ok(attr(v, "k7", Some(b"changed"), false));
    assert!(matches!(c.refused(attr(GONE, "k", Some(b""), false)), CommandError::NotFound(_)));
}

#[test]
fn locks() {
    let mut c = Cluster::new(1, 1);
    let v = c.vdi("a");
    c.ok(lock(v, "a", false));
    c.ok(lock(v, "b", false));
    assert_eq!(c.refused(lock(v, "c", true)), CommandError::Busy("VDI a is locked by a".into()));
    assert!(matches!(c.refused(lock(v, "a", true)), CommandError::Busy(_)), "b has it too");
    assert!(matches!(c.refused(unlock(v, Some("c"))), CommandError::NotFound(_)));
    c.ok(unlock(v, Some("b")));
    c.ok(lock(v, "a", true));
    assert_eq!(c.s.vdis[&v].locks.len(), 1);
    assert!(matches!(c.refused(lock(v, "b", false)), CommandError::Busy(_)));
    c.ok(lock(v, "a", true));
    c.ok(unlock(v, None));
    c.ok(unlock(v, None));
    assert!(c.s.vdis[&v].locks.is_empty());
    assert!(matches!(c.refused(lock(GONE, "a", true)), CommandError::NotFound(_)));
}

#[test]
fn a_session_has_one_owner() {
    let mut c = Cluster::new(3, 3);
    let v = c.vdi("a");
    assert_eq!(c.run(open(v, 0, 1)), session(1, false));
    let owned = Reply::Owned { owner: node(0), generation: Generation(1) };
    assert_eq!(c.run(open(v, 1, 1)), owned);
    assert_eq!(c.run(ready(v, Generation(1))), Reply::Done);
    assert_eq!(c.refused(ready(v, Generation(2))), CommandError::Fenced);
    assert_eq!(c.refused(close(v, Generation(2))), CommandError::Fenced);
    assert_eq!(c.run(close(v, Generation(1))), Reply::Done);
    assert_eq!(c.run(close(v, Generation(1))), Reply::Done, "closing twice is closing");
    assert_eq!(c.run(open(v, 1, 1)), session(2, false));
    // Not ready: nothing of its predecessor is settled yet, so it cannot say that all copies are equal.
    assert_eq!(c.refused(close(v, Generation(2))), CommandError::Fenced);
    assert_eq!(c.refused(close(v, Generation(1))), CommandError::Fenced);
    // The same process asks again: what it had begun is lost.
    assert_eq!(c.run(open(v, 1, 1)), session(3, true));
    assert_eq!(c.refused(ready(v, Generation(2))), CommandError::Fenced);
}

#[test]
fn a_takeover_has_a_new_generation_and_reconciles() {
    let mut c = Cluster::new(3, 3);
    let v = c.vdi("a");
    let g = c.open(v, 0);
    c.ok(Command::NodeDown { node: node(0), incarnation: 1 });
    assert_eq!(c.refused(close(v, g)), CommandError::Fenced);
    assert_eq!(c.refused(resize(v, 4096, Some(g))), CommandError::Fenced);
    assert_eq!(c.run(open(v, 1, 1)), session(2, true));
    // Dead again before it was ready: the next one still reconciles.
    c.ok(Command::NodeOut { node: node(1) });
    assert_eq!(c.s.vdis[&v].session, Session::Unclean { generation: Generation(2) });
    assert_eq!(c.run(open(v, 2, 1)), session(3, true));
    // Only a process that lives now may own.
    for (by, incarnation) in [(0, 1), (2, 9), (9, 1)] {
        assert_eq!(c.refused(open(v, by, incarnation)), CommandError::Fenced);
    }
    assert!(matches!(c.refused(open(GONE, 2, 1)), CommandError::NotFound(_)));
}

#[test]
fn altering_copies() {
    let mut c = Cluster::new(3, 3);
    let v = c.vdi("a");
    let alter = |vdi, n| Command::AlterCopies { vdi, redundancy: Redundancy::Copies(n) };
    assert_eq!(c.run(alter(None, 2)), Reply::Done);
    let w = c.vdi("b");
    let of = |c: &Cluster, v: VdiId| c.s.families[&c.s.vdis[&v].family].redundancy;
    assert_eq!((of(&c, v), of(&c, w)), (Redundancy::Copies(3), Redundancy::Copies(2)));
    assert!(matches!(c.refused(alter(None, 4)), CommandError::NotEnough(_)));
    assert!(matches!(c.refused(alter(None, 0)), CommandError::Invalid(_)));
    assert!(matches!(c.refused(alter(Some(GONE), 2)), CommandError::NotFound(_)));
    // Of one that is there, also in use: old holders stay until the new ones are complete.
    c.open(v, 0);
    let (family, made_with) = (c.s.vdis[&v].family, of(&c, v));
    let acting = |c: &Cluster, index| {
        let a = c.s.node_map().acting(PlacementKey { family, index }, made_with);
        (a.targets.len(), a.extra.len())
    };
    let settle = |c: &mut Cluster| {
        for n in 0..3 {
            c.ok(Command::NodeSynced { node: node(n), incarnation: 1, epoch: c.s.epoch });
        }
    };
    let epoch = c.s.epoch;
    assert_eq!(c.run(alter(Some(v), 3)), Reply::Done);
    assert_eq!(c.s.epoch, epoch, "nothing to change");
    assert_eq!(c.run(alter(Some(v), 1)), Reply::Done);
    assert_eq!((c.s.epoch, c.s.redundancy(family)), (epoch.next(), Some(Redundancy::Copies(1))));
    assert!((0..20).all(|i| acting(&c, i) == (1, 2)));
    let before = c.s.node_map();
    assert_eq!(c.run(alter(Some(v), 2)), Reply::Done);
    assert!((0..20).all(|i| acting(&c, i) == (2, 1)));
    let least = |c: &Cluster| c.s.node_map().least_width(family, made_with);
    assert_eq!(least(&c), 1);
    settle(&mut c);
    assert_eq!((least(&c), c.s.altered[&family].len()), (2, 1));
    assert!((0..20).all(|i| acting(&c, i) == (2, 0)));
    assert_eq!(c.s.node_map().min_width, 2);
    // Whoever has an older map goes by that.
    assert_eq!(before.acting(PlacementKey { family, index: 0 }, made_with).targets.len(), 1);
    // A clone has as many as its source has now, and what is known of the family goes with it.
    assert!(matches!(c.refused(alter(Some(v), 4)), CommandError::NotEnough(_)));
    for n in [3, 2, 3, 2, 3, 2, 3] {
        c.ok(alter(Some(v), n));
    }
    assert!(matches!(c.refused(alter(Some(v), 2)), CommandError::Busy(_)), "one after the other");
    settle(&mut c);
    let generation = c.s.vdis[&v].generation;
    c.ok(Command::SessionClose { vdi: v, generation });
    c.ok(Command::VdiDelete { vdi: v, snapshot: None, with_snapshots: false, at_once: false });
    assert!(c.s.altered.is_empty());
}

#[test]
fn a_gateway_keeps_its_registration_until_it_closes_or_is_fenced() {
    let mut c = Cluster::new(3, 3);
    c.ok(create("a", 1));
    let v = VdiId(1);
    let register = |by: u64, incarnation| Command::GatewayOpen { vdi: v, node: node(by), incarnation };
    let end = |by: u64, since, fence| Command::GatewayClose { vdi: v, node: node(by), since, fence };
    let registered = |r| match r {
        Reply::Registered(since) => since,
        other => panic!("{other:?}"),
    };
    let first = registered(c.run(register(1, 1)));
    assert_eq!(registered(c.run(register(1, 1))), first, "the same process, the same registration");
    assert!(c.s.vdis[&v].is_open_at(node(1), first));
    assert_eq!(c.refused(register(1, 9)), CommandError::Fenced, "no such process");
    assert!(matches!(c.refused(end(1, first, true)), CommandError::Busy(_)), "it is up: it can be asked");
    // Away: anybody may void what it had open. It comes back as the same process and is somebody new.
    c.ok(Command::NodeDown { node: node(1), incarnation: 1 });
    assert_eq!(c.refused(register(1, 1)), CommandError::Fenced);
    c.ok(end(1, first, true));
    assert!(!c.s.vdis[&v].is_open_at(node(1), first));
    c.ok(Command::NodeUp(hello(1, 1)));
    let second = registered(c.run(register(1, 1)));
    assert!(second > first);
    // What was said of the first registration does not end the second.
    c.ok(end(1, first, false));
    assert!(c.s.vdis[&v].is_open_at(node(1), second));
    // Another process of the node: what the one before had open is void at once.
    c.ok(Command::NodeUp(hello(1, 2)));
    c.ok(end(1, second, true));
    let third = registered(c.run(register(1, 2)));
    assert!(third > second);
    c.ok(end(1, third, false));
    assert!(c.s.vdis[&v].gateways.is_empty());
    assert!(matches!(
        c.refused(Command::GatewayOpen { vdi: GONE, node: node(1), incarnation: 2 }),
        CommandError::NotFound(_)
    ));
}

#[test]
fn limits_are_kept_where_they_make_sense() {
    let mut c = Cluster::new(3, 2);
    let v = c.vdi("v");
    let limits = |iops, iops_burst, bandwidth, bandwidth_burst| Command::SetLimits {
        vdi: v,
        limits: Limits { iops, iops_burst, bandwidth, bandwidth_burst },
    };
    assert_eq!(c.s.vdis[&v].limits, Limits::default());
    c.ok(limits(100, 200, 1 << 20, 0));
    assert_eq!(c.s.vdis[&v].limits.iops_burst, 200);
    for bad in [limits(0, 1, 0, 0), limits(0, 0, 0, 1), limits(0, 0, 1000, 0)] {
        assert!(matches!(c.refused(bad), CommandError::Invalid(_)));
    }
    assert_eq!(c.s.vdis[&v].limits.iops, 100, "as it was");
    c.ok(limits(0, 0, 0, 0));
    assert_eq!(c.s.vdis[&v].limits, Limits::default());
    let none = Command::SetLimits { vdi: VdiId(99), limits: Limits::default() };
    assert!(matches!(c.refused(none), CommandError::NotFound(_)));
}
