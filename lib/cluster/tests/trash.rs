//! The trash: what was deleted can be brought back until its time is over, and a locked snapshot cannot be deleted before.

mod common;

use common::{Cluster, create, format, node};
use sheepdog_cluster::{
    Access, Command, CommandError, Entry, Limits, Reply, Session, SnapshotRef, TRASH_KEEP, VdiState,
};
use sheepdog_proto::{LayerId, VdiId};

const HOUR: u64 = 3_600_000;

/// A cluster with the trash that clusters have, and a clock.
struct World {
    c: Cluster,
    now: u64,
}

impl World {
    fn new() -> Self {
        let mut w = Self { c: Cluster::new(2, 2), now: HOUR };
        w.ok(Command::SetTrash { keep: TRASH_KEEP });
        w
    }
    fn run(&mut self, command: Command) -> Reply {
        let index = self.c.s.index.next();
        self.c.entry(index, Entry { now: self.now, request: 0, command })
    }
    fn ok(&mut self, command: Command) -> Reply {
        let what = format!("{command:?}");
        let reply = self.run(command);
        assert!(!matches!(reply, Reply::Error(_)), "{what}: {reply:?}");
        reply
    }
    /// Refused without a change; the sentence.
    fn refused(&mut self, command: Command) -> (CommandError, String) {
        let (mut before, what) = (self.c.s.clone(), format!("{command:?}"));
        let Reply::Error(e) = self.run(command) else { panic!("{what} was not refused") };
        before.index = self.c.s.index;
        assert!(before == self.c.s, "{what} was refused ({e}) but changed something");
        let text = e.to_string();
        (e, text)
    }
    fn vdi(&mut self, name: &str) -> VdiId {
        let uuid = u128::from(self.c.s.index.0) + 1000;
        match self.ok(create(name, uuid)) {
            Reply::Vdi(id) => id,
            r => panic!("{r:?}"),
        }
    }
    fn snapshot(&mut self, vdi: VdiId, tag: &str) {
        self.ok(Command::Snapshot { vdis: vec![(vdi, None)], tag: tag.into() });
    }
    fn lock(&mut self, vdi: VdiId, tag: &str, until: u64) -> Command {
        Command::SnapshotLock { vdi, snapshot: by_tag(tag), until }
    }
    fn held(&self) -> Vec<(u64, u32, u32)> {
        self.c.s.trash.iter().map(|(until, v, s)| (*until, v.0, *s)).collect()
    }
}

fn by_tag(tag: &str) -> SnapshotRef {
    SnapshotRef::Tag(tag.into())
}

fn delete(vdi: VdiId) -> Command {
    Command::VdiDelete { vdi, snapshot: None, with_snapshots: false, at_once: false }
}

fn delete_all(vdi: VdiId) -> Command {
    Command::VdiDelete { vdi, snapshot: None, with_snapshots: true, at_once: false }
}

fn delete_snapshot(vdi: VdiId, tag: &str) -> Command {
    Command::VdiDelete { vdi, snapshot: Some(by_tag(tag)), with_snapshots: false, at_once: false }
}

fn now(command: Command) -> Command {
    match command {
        Command::VdiDelete { vdi, snapshot, with_snapshots, .. } => {
            Command::VdiDelete { vdi, snapshot, with_snapshots, at_once: true }
        }
        other => other,
    }
}

fn restore(vdi: VdiId, name: Option<&str>) -> Command {
    Command::TrashRestore { vdi, snapshot: None, name: name.map(Into::into) }
}

fn restore_snapshot(vdi: VdiId, n: u32, tag: Option<&str>) -> Command {
    Command::TrashRestore { vdi, snapshot: Some(n), name: tag.map(Into::into) }
}

fn purge(vdi: VdiId, snapshot: Option<u32>) -> Command {
    Command::TrashPurge { vdi, snapshot }
}

#[test]
fn a_deleted_volume_keeps_everything_but_its_name() {
    let mut w = World::new();
    let v = w.vdi("a");
    w.snapshot(v, "one");
    let (layers, families) = (w.c.s.layers.clone(), w.c.s.families.clone());
    w.ok(delete_all(v));
    assert_eq!(w.held(), [(HOUR + TRASH_KEEP, v.0, 0)]);
    assert_eq!((&w.c.s.layers, &w.c.s.families), (&layers, &families));
    let again = w.vdi("a");
    assert_ne!(again, v);
    let (e, text) = w.refused(restore(v, None));
    assert!(matches!(e, CommandError::Exists(_)) && text.contains("--as"), "{text}");
    w.refused(restore(v, Some("a/b")));
    assert_eq!(w.ok(restore(v, Some("b"))), Reply::Vdi(v));
    assert_eq!((w.c.s.names["a"], w.c.s.names["b"]), (again, v));
    assert_eq!(w.c.s.vdis[&v].shown().count(), 1);
    assert!(w.held().is_empty());
    w.refused(restore(v, None));
    w.refused(purge(v, None));
}

#[test]
fn what_is_in_the_trash_cannot_be_used() {
    let mut w = World::new();
    let v = w.vdi("a");
    w.snapshot(v, "one");
    w.ok(delete_all(v));
    let (n, snapshot) = (node(0), by_tag("one"));
    let uses = [
        Command::SessionOpen { vdi: v, node: n, incarnation: 1 },
        Command::GatewayOpen { vdi: v, node: n, incarnation: 1 },
        Command::Attach { vdi: v, holder: "h".into(), access: Access::Single },
        Command::Snapshot { vdis: vec![(v, None)], tag: "two".into() },
        Command::VdiResize { vdi: v, size: 2 << 30, generation: None },
        Command::Rollback { vdi: v, snapshot: snapshot.clone(), generation: None },
        Command::Clone {
            source: v,
            snapshot: snapshot.clone(),
            name: "c".into(),
            uuid: 9,
            redundancy: None,
            flatten: false,
        },
        Command::FlattenStart { vdi: v },
        Command::VdiRename { vdi: v, name: "b".into() },
        Command::SetAttr { vdi: v, key: "k".into(), value: Some(vec![1]), exclusive: false },
        Command::SetLimits { vdi: v, limits: Limits::default() },
        Command::Lock { vdi: v, holder: "h".into(), exclusive: false },
        Command::AlterCopies { vdi: Some(v), redundancy: sheepdog_cluster::Redundancy::Copies(1) },
        Command::SnapshotLock { vdi: v, snapshot, until: 2 * HOUR },
        delete(v),
        now(delete_all(v)),
        delete_snapshot(v, "one"),
    ];
    for command in uses {
        let what = format!("{command:?}");
        let (e, text) = w.refused(command);
        assert!(
            matches!(e, CommandError::NotFound(_)) && text.contains("dog trash restore"),
            "{what}: {text}"
        );
    }
}

#[test]
fn its_time_over_it_is_really_deleted() {
    let mut w = World::new();
    let (a, b) = (w.vdi("a"), w.vdi("b"));
    w.snapshot(a, "one");
    w.ok(delete_all(a));
    w.now += HOUR;
    w.ok(delete(b));
    w.now = HOUR + TRASH_KEEP - 1;
    assert!(!w.c.s.trash_is_due(w.now));
    let events = w.c.s.next_event;
    w.ok(Command::TrashExpire);
    assert_eq!((w.c.s.vdis.len(), w.c.s.next_event), (2, events));
    w.now += 1;
    assert!(w.c.s.trash_is_due(w.now));
    w.ok(Command::TrashExpire);
    assert_eq!(w.c.s.vdis.keys().collect::<Vec<_>>(), [&b]);
    assert_eq!(w.c.s.layers.keys().collect::<Vec<_>>(), [&LayerId(b.0)]);
    w.now += HOUR;
    w.ok(Command::TrashExpire);
    w.ok(Command::TrashExpire);
    assert!(w.c.s.vdis.is_empty() && w.c.s.layers.is_empty() && w.c.s.families.is_empty());
}

#[test]
fn a_full_trash_is_emptied_in_steps() {
    let mut w = World::new();
    for n in 0..150 {
        let v = w.vdi(&format!("v{n}"));
        w.ok(delete(v));
    }
    w.now += TRASH_KEEP;
    for left in [86, 22, 0, 0] {
        w.ok(Command::TrashExpire);
        assert_eq!(w.held().len(), left);
    }
}

#[test]
fn snapshots_come_back_to_their_volume() {
    let mut w = World::new();
    let v = w.vdi("a");
    w.snapshot(v, "one");
    w.snapshot(v, "two");
    w.ok(delete_snapshot(v, "one"));
    assert_eq!(w.c.s.vdis[&v].shown().map(|s| s.id).collect::<Vec<_>>(), [2]);
    w.refused(delete_snapshot(v, "one"));
    w.refused(Command::Rollback { vdi: v, snapshot: SnapshotRef::Id(1), generation: None });
    // Its tag is free.
    w.snapshot(v, "one");
    let (_, text) = w.refused(restore_snapshot(v, 1, None));
    assert!(text.contains("--as"), "{text}");
    w.refused(restore_snapshot(v, 1, Some("a@b")));
    w.refused(restore_snapshot(v, 2, None));
    w.ok(restore_snapshot(v, 1, Some("old")));
    assert_eq!(w.c.s.vdis[&v].shown().map(|s| s.tag.as_str()).collect::<Vec<_>>(), ["old", "two", "one"]);
    // A rollback leaves what is in the trash alone.
    w.ok(delete_snapshot(v, "two"));
    w.ok(Command::Rollback { vdi: v, snapshot: by_tag("old"), generation: None });
    // With its volume in the trash, that comes first.
    w.ok(delete_all(v));
    let (_, text) = w.refused(restore_snapshot(v, 2, None));
    assert!(text.contains("dog trash restore 000001"), "{text}");
    w.ok(restore(v, None));
    assert_eq!(w.c.s.vdis[&v].shown().count(), 2, "the one that was deleted before stays where it was");
    w.ok(restore_snapshot(v, 2, None));
    w.ok(delete_snapshot(v, "two"));
    w.ok(purge(v, Some(2)));
    w.refused(restore_snapshot(v, 2, None));
}

#[test]
fn a_working_image_is_deleted_without_its_snapshots() {
    let mut w = World::new();
    let v = w.vdi("a");
    w.snapshot(v, "one");
    w.ok(delete(v));
    assert!(matches!(w.c.s.vdis[&v].state, VdiState::WorkingInTrash(_)));
    assert_eq!(w.c.s.names["a"], v, "its snapshot is read as a@one");
    w.refused(create("a", 77));
    w.refused(Command::SessionOpen { vdi: v, node: node(0), incarnation: 1 });
    let rollback = Command::Rollback { vdi: v, snapshot: by_tag("one"), generation: None };
    let (_, text) = w.refused(rollback.clone());
    assert!(text.contains("dog trash restore a"), "{text}");
    w.ok(restore(v, Some("b")));
    assert_eq!((w.c.s.names.len(), w.c.s.names["b"]), (1, v));
    // The last snapshot follows: nothing is listed any more, and the volume comes back first.
    w.ok(delete(v));
    w.ok(delete_snapshot(v, "one"));
    assert!(w.c.s.names.is_empty() && w.held().len() == 2);
    w.refused(restore_snapshot(v, 1, None));
    w.ok(restore(v, None));
    w.ok(restore_snapshot(v, 1, None));
    // The image goes for good, the snapshot stays, and can be the image again.
    w.ok(delete(v));
    w.ok(purge(v, None));
    assert_eq!((w.c.s.vdis[&v].top, w.c.s.names["b"]), (None, v));
    w.ok(rollback);
    w.ok(now(delete(v)));
    // A snapshot alone in the trash has the name back when it comes back.
    w.ok(delete_snapshot(v, "one"));
    assert!(w.c.s.names.is_empty());
    let other = w.vdi("b");
    w.refused(restore_snapshot(v, 1, None));
    w.ok(Command::VdiRename { vdi: other, name: "c".into() });
    w.ok(restore_snapshot(v, 1, None));
    assert_eq!(w.c.s.names["b"], v);
    w.ok(delete_all(v));
    w.ok(purge(v, None));
    assert!(!w.c.s.vdis.contains_key(&v));
}

#[test]
fn snapshots_deleted_earlier_or_later_have_their_own_time() {
    let mut w = World::new();
    let v = w.vdi("a");
    w.snapshot(v, "one");
    w.ok(delete(v));
    w.now += HOUR;
    w.ok(delete_snapshot(v, "one"));
    w.now = HOUR + TRASH_KEEP;
    w.ok(Command::TrashExpire);
    // The volume is gone; its snapshot is not, for another hour, and can be brought back.
    assert_eq!(w.held().len(), 1);
    w.ok(restore_snapshot(v, 1, None));
    assert_eq!(w.c.s.names["a"], v);
    w.ok(delete_snapshot(v, "one"));
    w.now += TRASH_KEEP;
    w.ok(Command::TrashExpire);
    assert!(w.c.s.vdis.is_empty() && w.c.s.layers.is_empty());
}

#[test]
fn a_trash_that_keeps_nothing() {
    let mut w = World::new();
    w.ok(Command::SetTrash { keep: 0 });
    let v = w.vdi("a");
    w.snapshot(v, "one");
    w.ok(delete_snapshot(v, "one"));
    assert_eq!(w.c.s.vdis[&v].snapshots.len(), 0);
    w.ok(delete(v));
    assert!(w.c.s.vdis.is_empty());
    w.refused(Command::SetTrash { keep: u64::MAX });
    // What is in it already has the time it was given.
    w.ok(Command::SetTrash { keep: HOUR });
    let v = w.vdi("a");
    w.ok(delete(v));
    w.ok(Command::SetTrash { keep: 0 });
    w.ok(Command::TrashExpire);
    assert_eq!(w.held(), [(2 * HOUR, v.0, 0)]);
    w.ok(restore(v, None));
    w.ok(now(delete(v)));
    assert!(w.c.s.vdis.is_empty() && w.held().is_empty());
}

#[test]
fn a_lock_holds_until_its_time() {
    let mut w = World::new();
    let v = w.vdi("a");
    w.snapshot(v, "one");
    let end = w.now + 48 * HOUR;
    for until in [0, w.now, u64::MAX] {
        let command = w.lock(v, "one", until);
        assert!(matches!(w.refused(command).0, CommandError::Invalid(_)));
    }
    let command = w.lock(v, "one", end - HOUR);
    w.ok(command);
    let command = w.lock(v, "one", end);
    w.ok(command.clone());
    w.ok(command);
    let shorter = w.lock(v, "one", end - 1);
    let (e, text) = w.refused(shorter);
    assert!(matches!(e, CommandError::Busy(_)) && text.contains("1970-01-03T01:00:00Z"), "{text}");
    for command in [delete_snapshot(v, "one"), now(delete_snapshot(v, "one")), now(delete_all(v))] {
        let (e, text) = w.refused(command);
        assert!(matches!(e, CommandError::Busy(_)) && text.contains("1970-01-03T01:00:00Z"), "{text}");
    }
    // Into the trash it may go with its volume, for as long as the lock lasts at least; whatever the cluster's time is.
    w.ok(Command::SetTrash { keep: 0 });
    w.ok(delete_all(v));
    assert_eq!(w.held(), [(end, v.0, 0)]);
    let (_, text) = w.refused(purge(v, None));
    assert!(text.contains("locked until"), "{text}");
    w.ok(restore(v, None));
    // The working image is not what is locked.
    w.ok(now(delete(v)));
    w.ok(Command::SetTrash { keep: TRASH_KEEP });
    w.ok(delete_all(v));
    w.now = end;
    w.ok(purge(v, None));
    assert!(w.c.s.vdis.is_empty());
}

#[test]
fn an_unclean_session_is_reconciled_when_it_is_back() {
    let mut w = World::new();
    let v = w.vdi("a");
    w.c.open(v, 0);
    assert!(matches!(w.refused(delete(v)).0, CommandError::Busy(_)));
    w.ok(Command::NodeDown { node: node(0), incarnation: 1 });
    w.ok(delete(v));
    w.ok(restore(v, None));
    assert!(matches!(w.c.s.vdis[&v].session, Session::Unclean { .. }));
    let reply = w.ok(Command::SessionOpen { vdi: v, node: node(1), incarnation: 1 });
    assert!(matches!(reply, Reply::Session { reconcile: true, .. }), "{reply:?}");
}

#[test]
fn a_clone_outlives_what_it_stands_on() {
    let mut w = World::new();
    let v = w.vdi("a");
    w.snapshot(v, "one");
    w.ok(Command::Clone {
        source: v,
        snapshot: by_tag("one"),
        name: "c".into(),
        uuid: 9,
        redundancy: None,
        flatten: false,
    });
    w.ok(delete_all(v));
    w.now += TRASH_KEEP;
    w.ok(Command::TrashExpire);
    assert_eq!(w.c.s.names.keys().collect::<Vec<_>>(), ["c"]);
    assert!(w.c.s.layers.contains_key(&LayerId(1)), "the clone reads it");
}

#[test]
fn a_cluster_has_a_trash_of_its_own_time() {
    let Command::Format(mut f) = format(1) else { panic!() };
    f.trash_keep = u64::MAX;
    let mut c = Cluster::default();
    assert!(matches!(c.run(Command::Format(f)), Reply::Error(CommandError::Invalid(_))));
}
