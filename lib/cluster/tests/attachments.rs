//! Attachments: who gets one, what it is good for, how it ends.

mod common;

use common::{Cluster, hello, node};
use sheepdog_cluster::{
    Access, AttachmentRef, Command, CommandError, Denied, MAX_ATTACHMENTS, NodeHello, Reply,
};
use sheepdog_proto::{AttachmentId, VdiId};

const NOBODY: AttachmentId = AttachmentId::NONE;

fn attach(vdi: VdiId, holder: &str, access: Access) -> Command {
    Command::Attach { vdi, holder: holder.into(), access }
}
fn detach(vdi: VdiId, holder: &str) -> Command {
    Command::Detach { vdi, which: AttachmentRef::Holder(holder.into()) }
}
fn given(c: &mut Cluster, vdi: VdiId, holder: &str, access: Access) -> AttachmentId {
    match c.ok(attach(vdi, holder, access)) {
        Reply::Attached(id) => id,
        other => panic!("{other:?}"),
    }
}
fn busy(c: &mut Cluster, command: Command) -> String {
    match c.refused(command) {
        CommandError::Busy(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_same_holder_gets_the_same_and_a_number_is_never_given_again() {
    let mut c = Cluster::new(2, 2);
    let (a, b) = (c.vdi("a"), c.vdi("b"));
    let first = given(&mut c, a, "n1", Access::Single);
    assert_eq!(given(&mut c, a, "n1", Access::Single), first);
    let other = given(&mut c, b, "n1", Access::Single);
    assert!(other > first, "one counter for all VDIs");
    c.ok(detach(a, "n1"));
    assert!(given(&mut c, a, "n1", Access::Single) > other);
    // In another way it must be detached first.
    let e = c.refused(attach(a, "n1", Access::Shared));
    assert!(matches!(&e, CommandError::Exists(why) if why.contains("as single, not as shared")), "{e}");
}

#[test]
fn access_decides_who_may_be_beside_whom() {
    use Access::{ReadOnly, Shared, Single};
    for (has, wants, together) in [
        (Single, Single, false),
        (Single, Shared, false),
        (Single, ReadOnly, false),
        (Shared, Shared, true),
        (Shared, Single, false),
        (Shared, ReadOnly, false),
        (ReadOnly, ReadOnly, true),
        (ReadOnly, Single, false),
        (ReadOnly, Shared, false),
    ] {
        let mut c = Cluster::new(2, 2);
        let v = c.vdi("v");
        given(&mut c, v, "n1", has);
        if together {
            given(&mut c, v, "n2", wants);
            continue;
        }
        let why = busy(&mut c, attach(v, "n2", wants));
        let named = why.contains("n1") && why.contains(has.word()) && why.contains("dog vdi detach v");
        assert!(named, "{why}");
        c.ok(detach(v, "n1"));
        given(&mut c, v, "n2", wants);
    }
}

#[test]
fn what_an_attachment_permits() {
    let mut c = Cluster::new(2, 2);
    let v = c.vdi("v");
    let may = |c: &Cluster, by, change| c.s.vdis[&v].permits(by, change);
    assert_eq!((may(&c, NOBODY, true), may(&c, NOBODY, false)), (Ok(()), Ok(())));
    assert!(may(&c, AttachmentId(1), false).is_err(), "not given yet");
    let id = given(&mut c, v, "n1", Access::Single);
    assert_eq!((may(&c, id, true), may(&c, NOBODY, false)), (Ok(()), Ok(())));
    let Err(Denied::NotAttached(why)) = may(&c, NOBODY, true) else { panic!("anybody may write") };
    assert!(why.contains("n1") && why.contains("dog vdi detach"), "{why}");
    c.ok(Command::Detach { vdi: v, which: AttachmentRef::Id(id) });
    for change in [true, false] {
        assert!(matches!(may(&c, id, change), Err(Denied::NotAttached(why)) if why.contains("is over")));
    }
    assert_eq!(may(&c, NOBODY, true), Ok(()));
    let reader = given(&mut c, v, "n2", Access::ReadOnly);
    assert_eq!((may(&c, reader, false), may(&c, reader, true)), (Ok(()), Err(Denied::ReadOnly)));
}

#[test]
fn who_must_know_of_a_detach() {
    let mut c = Cluster::new(3, 2);
    c.ok(Command::NodeUp(NodeHello { gateway: true, ..hello(3, 1) }));
    let v = c.vdi("v");
    let asked = |c: &Cluster| {
        let mut all = c.s.enforcers(v);
        all.sort_by_key(|(n, _)| (0..4).find(|i| node(*i) == *n));
        all
    };
    assert_eq!(asked(&c), [], "nobody has written");
    let generation = c.open(v, 0);
    assert_eq!(asked(&c), [(node(0), 1)], "it looks the attachments up");
    c.ok(Command::SessionClose { vdi: v, generation });
    assert_eq!(asked(&c), [], "it had carried out everything");
    c.open(v, 0);
    // It may be alive and know nothing of this. Until a holder knows it takes what the former owner sends.
    c.ok(Command::NodeDown { node: node(0), incarnation: 1 });
    assert_eq!(asked(&c), [(node(1), 1), (node(2), 1)]);
    c.ok(Command::NodeUp(hello(2, 2)));
    assert_eq!(asked(&c), [(node(1), 1), (node(2), 2)], "another process may have heard less");
    // While it is being taken over not everybody need have heard of it yet.
    let Reply::Session { generation, reconcile: true } =
        c.ok(Command::SessionOpen { vdi: v, node: node(1), incarnation: 1 })
    else {
        panic!("no takeover")
    };
    assert_eq!(asked(&c), [(node(1), 1), (node(2), 2)]);
    c.ok(Command::SessionReady { vdi: v, generation });
    assert_eq!(asked(&c), [(node(1), 1)]);
    assert_eq!(c.s.enforcers(VdiId(99)), []);
}

#[test]
fn detaching_names_one_or_all_and_may_be_repeated() {
    let mut c = Cluster::new(2, 2);
    let v = c.vdi("v");
    let ids = ["n1", "n2", "n3"].map(|n| given(&mut c, v, n, Access::Shared));
    let left = |c: &Cluster| c.s.vdis[&v].attachments.iter().map(|a| a.id).collect::<Vec<_>>();
    for _ in 0..2 {
        c.ok(detach(v, "n2"));
        assert_eq!(left(&c), [ids[0], ids[2]]);
    }
    c.ok(Command::Detach { vdi: v, which: AttachmentRef::Id(ids[1]) });
    c.ok(Command::Detach { vdi: v, which: AttachmentRef::Id(NOBODY) });
    assert_eq!(left(&c), [ids[0], ids[2]]);
    c.ok(Command::Detach { vdi: v, which: AttachmentRef::All });
    assert_eq!(left(&c), []);
    assert!(matches!(c.refused(detach(VdiId(99), "n1")), CommandError::NotFound(_)));
}

#[test]
fn an_attached_vdi_is_not_deleted_or_renamed() {
    let mut c = Cluster::new(2, 2);
    let v = c.vdi("v");
    c.ok(Command::Snapshot { vdis: vec![(v, None)], tag: "s".into() });
    given(&mut c, v, "n1", Access::Single);
    assert!(
        busy(&mut c, Command::VdiDelete { vdi: v, snapshot: None, with_snapshots: false, at_once: false })
            .contains("n1")
    );
    assert!(busy(&mut c, Command::VdiRename { vdi: v, name: "w".into() }).contains("n1"));
    c.ok(Command::VdiRename { vdi: v, name: "v".into() });
    c.ok(detach(v, "n1"));
    c.ok(Command::VdiDelete { vdi: v, snapshot: None, with_snapshots: false, at_once: false });
    // What is left is a snapshot, and everybody may read that.
    assert!(matches!(c.refused(attach(v, "n1", Access::Single)), CommandError::NotFound(_)));
}

#[test]
fn bounds() {
    let mut c = Cluster::new(2, 2);
    let v = c.vdi("v");
    for holder in ["", "a\nb", &"x".repeat(257)] {
        assert!(matches!(c.refused(attach(v, holder, Access::Single)), CommandError::Invalid(_)));
    }
    for n in 0..MAX_ATTACHMENTS {
        given(&mut c, v, &format!("{n:0>256}"), Access::ReadOnly);
    }
    let why = busy(&mut c, attach(v, "one more", Access::ReadOnly));
    assert!(why.contains("256"), "{why}");
    let why = busy(&mut c, attach(v, "one more", Access::Single));
    assert!(why.contains("253 more") && why.len() < 2048, "{why}");
}
