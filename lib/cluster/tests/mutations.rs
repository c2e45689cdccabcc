//! Entries of the log and whole states on damaged input. Entries are applied on every node, so one that panics would stop them all.

#[path = "../../proto/tests/mutate/mod.rs"]
mod mutate;

use mutate::{each_of, peak, rounds, within};
use sheepdog_cluster::{
    Access, AttachmentRef, ClusterState, Command, DiskEntry, Entry, EventLevel, Format, Limits, NodeAddr,
    NodeHello, Redundancy, Reply, SnapshotRef, Timing,
};
use sheepdog_proto::{
    AttachmentId, ClusterId, ControlIndex, DiskId, Epoch, Generation, LayerId, NodeId, VdiId,
};

/// What one entry may add to a state of a few nodes: a ring is rebuilt with up to 65,536 points for a node.
const RINGS: usize = 16 << 20;

fn hello(n: u128) -> NodeHello {
    NodeHello {
        id: NodeId(n),
        addr: NodeAddr { host: format!("10.0.0.{n}"), client_port: 7000, peer_port: 7001 },
        zone: Some("a".into()),
        weight: 1000,
        vnodes: None,
        gateway: false,
        incarnation: 5,
        disks: vec![DiskEntry {
            id: DiskId(n),
            path: "/d".into(),
            capacity: 1 << 40,
            retired: false,
            missing: false,
        }],
        version: "0.1.0".into(),
        has_data: true,
    }
}

/// One of every command, in an order in which each does something.
fn commands() -> Vec<Command> {
    let (vdi, generation, node) = (VdiId(1), Generation(1), NodeId(1));
    let format = Format {
        cluster: ClusterId(9),
        created: 1,
        redundancy: Redundancy::Copies(1),
        min_copies: Some(1),
        strict: false,
        object_size: 4 << 20,
        timing: Timing::default(),
        layout: None,
        trash_keep: sheepdog_cluster::TRASH_KEEP,
    };
    let tag = || SnapshotRef::Tag("s".into());
    vec![
        Command::Format(format),
        Command::NodeUp(hello(1)),
        Command::NodeUp(hello(2)),
        Command::NodeSynced { node, incarnation: 5, epoch: Epoch(2) },
        Command::VdiCreate { name: "v".into(), uuid: 7, size: 1 << 30, redundancy: None, object_size: None },
        Command::SessionOpen { vdi, node, incarnation: 5 },
        Command::SessionReady { vdi, generation },
        Command::Snapshot { vdis: vec![(vdi, Some(generation))], tag: "s".into() },
        Command::VdiResize { vdi, size: 2 << 30, generation: Some(generation) },
        Command::SessionClose { vdi, generation },
        Command::Rollback { vdi, snapshot: tag(), generation: None },
        Command::Clone {
            source: vdi,
            snapshot: tag(),
            name: "c".into(),
            uuid: 8,
            redundancy: Some(Redundancy::Copies(2)),
            flatten: true,
        },
        Command::FlattenStart { vdi: VdiId(4) },
        Command::FlattenDone { vdi: VdiId(4), generation },
        Command::SetAttr { vdi, key: "k".into(), value: Some(vec![1, 2]), exclusive: true },
        Command::SetLimits { vdi, limits: Limits { iops: 100, iops_burst: 9, ..Limits::default() } },
        Command::Lock { vdi, holder: "h".into(), exclusive: false },
        Command::Unlock { vdi, holder: None },
        Command::VdiRename { vdi, name: "w".into() },
        Command::Attach { vdi, holder: "node".into(), access: Access::Shared },
        Command::Attach { vdi, holder: "other".into(), access: Access::Shared },
        Command::Detach { vdi, which: AttachmentRef::Id(AttachmentId(1)) },
        Command::Detach { vdi, which: AttachmentRef::Holder("other".into()) },
        Command::AlterCopies { vdi: Some(vdi), redundancy: Redundancy::Copies(2) },
        Command::VdiDelete { vdi, snapshot: Some(SnapshotRef::Id(1)), with_snapshots: false, at_once: true },
        Command::LayerMerged { layer: LayerId(1), node, epoch: Epoch(3) },
        Command::NodeWeight { node, weight: Some(2000), vnodes: Some(9) },
        Command::NodeDrain { node, on: true },
        Command::DiskAdded {
            node,
            disk: DiskEntry {
                id: DiskId(77),
                path: "/e".into(),
                capacity: 1,
                retired: false,
                missing: false,
            },
        },
        Command::DiskEmptied { node, incarnation: 5, disk: DiskId(78) },
        Command::DiskRetired { node, disk: DiskId(77) },
        Command::NodeDown { node, incarnation: 5 },
        Command::NodeOut { node },
        Command::Recovery { enabled: Some(false), max_bytes_per_s: Some(1), concurrency: Some(3) },
        Command::SetTiming(Timing { heartbeat: 500, lease: 2000, down_out: 3000 }),
        Command::Force { reason: "lost".into() },
        Command::Note { level: EventLevel::Info, text: "text".into() },
        Command::Nothing,
        Command::VdiDelete { vdi, snapshot: None, with_snapshots: false, at_once: false },
        Command::TrashRestore { vdi, snapshot: None, name: Some("back".into()) },
        Command::Snapshot { vdis: vec![(vdi, None)], tag: "t".into() },
        Command::SnapshotLock { vdi, snapshot: SnapshotRef::Tag("t".into()), until: 2_000 },
        Command::VdiDelete { vdi, snapshot: None, with_snapshots: true, at_once: false },
        Command::SetTrash { keep: 1_000 },
        Command::VdiDelete { vdi: VdiId(4), snapshot: None, with_snapshots: false, at_once: false },
        Command::TrashPurge { vdi: VdiId(4), snapshot: None },
        Command::TrashExpire,
        Command::Shutdown,
    ]
}

/// States along the way: early, in the middle, late.
fn states() -> Vec<ClusterState> {
    let mut state = ClusterState::default();
    let mut all = vec![state.clone()];
    for (i, command) in commands().into_iter().enumerate() {
        let entry = Entry { now: 1000 + i as u64, request: i as u128 + 1, command };
        state.apply(ControlIndex(i as u64 + 1), &entry);
        if [6, 12, 25].contains(&i) {
            all.push(state.clone());
        }
    }
    all.push(state);
    all
}

fn entries() -> Vec<Vec<u8>> {
    let all = commands().into_iter().map(|command| Entry { now: 5, request: 0, command });
    all.map(|e| postcard::to_allocvec(&e).expect("encodes")).collect()
}

#[test]
fn whatever_an_entry_says() {
    let states = states();
    let mut turn = 0;
    each_of(1, &entries(), rounds(), |bytes| {
        let cap = (1 << 20) + (64 << 10) + 64 * bytes.len();
        let Ok(entry) = within(cap, || postcard::from_bytes::<Entry>(bytes)) else { return };
        turn += 1;
        let mut state = states[turn % states.len()].clone();
        let (reply, most) = peak(|| state.apply(ControlIndex(u64::MAX), &entry));
        assert!(most <= RINGS + 64 * bytes.len(), "{most} bytes for {entry:?}");
        if let Reply::Error(e) = &reply {
            assert!(!e.to_string().is_empty());
        }
        // What came out of it can be told to others and used.
        if turn.is_multiple_of(16) {
            let map = state.node_map();
            assert!(map.nodes.len() <= state.nodes.len());
            let told = postcard::to_allocvec(&state).expect("encodes");
            assert_eq!(postcard::from_bytes::<ClusterState>(&told).as_ref(), Ok(&state));
        }
    });
}

#[test]
fn whatever_a_state_says() {
    let told: Vec<Vec<u8>> =
        states().iter().skip(1).map(|s| postcard::to_allocvec(s).expect("encodes")).collect();
    each_of(2, &told, rounds(), |bytes| {
        // Lists in lists: each level may ask for serde's own limit once.
        let cap = (4 << 20) + 64 * bytes.len();
        let Ok(found) = within(cap, || postcard::from_bytes::<ClusterState>(bytes)) else { return };
        let entry = Entry { now: 9, request: 0, command: Command::Restore(Box::new(found)) };
        let mut new = ClusterState::default();
        new.apply(ControlIndex(1), &entry);
    });
}

#[test]
fn a_node_cannot_take_the_whole_ring() {
    let mut state = states().swap_remove(1);
    let command = Command::NodeUp(NodeHello { vnodes: Some(u32::MAX), weight: u32::MAX, ..hello(3) });
    let (_, most) = peak(|| state.apply(ControlIndex(99), &Entry { now: 1, request: 0, command }));
    assert!(most <= RINGS, "{most} bytes");
}

#[test]
fn texts_are_cut() {
    let mut state = states().swap_remove(1);
    let text = "ä".repeat(100_000);
    for command in [
        Command::Note { level: EventLevel::Info, text: text.clone() },
        Command::Force { reason: text.clone() },
    ] {
        state.apply(ControlIndex(99), &Entry { now: 1, request: 0, command });
    }
    assert!(state.events.iter().all(|e| e.text.len() <= 2048));
    assert!(state.forced.iter().all(|t| t.len() <= 2048));
}

#[test]
fn times_that_cannot_be_added_are_refused() {
    let mut state = states().swap_remove(1);
    for (heartbeat, lease, down_out) in
        [(u64::MAX, u64::MAX, u64::MAX), (0, 1, 2), (1, 2, u64::MAX), (5, 9, 99)]
    {
        let command = Command::SetTiming(Timing { heartbeat, lease, down_out });
        let reply = state.apply(ControlIndex(99), &Entry { now: u64::MAX, request: 0, command });
        assert!(matches!(reply, Reply::Error(_)), "{heartbeat} {lease} {down_out}");
    }
}
