//! The bytes that the control plane keeps: rows of the Raft log, vote, positions, snapshot, the copy of the state on data disks. They are postcard of openraft's
//! types and ours, so a new release of openraft, or a field moved, changes them without a word. Then a cluster cannot read its own log.
//!
//! A line of `golden/control.txt` is a name and hexadecimal bytes. When a change is meant: raise the version of what it changes (`log_store::FORMAT`,
//! `state_machine::MAGIC`, `keep::VERSION`) as soon as there is a release that wrote the old one, and run the test with `SHEEPDOG_GOLDEN=write`.

#![allow(clippy::unwrap_used)] // in a test, that is how it fails

use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EmptyNode, EntryPayload, Membership, RaftLogReader};
use serde::Serialize;
use sheep::control::log_store::LogStore;
use sheep::control::raft_types::{LogEntry, LogId, Proposal, RaftId, TypeConfig, Vote};
use sheep::control::state_machine::{StateMachine, encode_state};
use sheep::control::{Publisher, boottime_millis};
use sheep::node::keep;
use sheepdog_cluster::{
    Access, ClusterState, Command, DiskEntry, Entry, EventLevel, Format, Layout, NodeAddr, NodeHello,
    Redundancy, Timing,
};
use sheepdog_proto::{ClusterId, ControlIndex, DiskId, NodeId, VdiId};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use tokio::sync::watch;

const NODE: NodeId = NodeId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);

fn id(index: u64) -> LogId {
    openraft::testing::log_id::<TypeConfig>(3, RaftId(NODE), index)
}

fn entry(index: u64, payload: EntryPayload<Proposal, RaftId, EmptyNode>) -> LogEntry {
    LogEntry { log_id: id(index), payload }
}

/// Commands of every shape that a small cluster needs.
fn commands() -> Vec<Command> {
    let hello = NodeHello {
        id: NODE,
        addr: NodeAddr { host: "a.example".into(), client_port: 7000, peer_port: 7001 },
        zone: Some("rack1".into()),
        weight: 1000,
        vnodes: Some(64),
        gateway: false,
        incarnation: 9,
        disks: vec![DiskEntry {
            id: DiskId(5),
            path: "/disk".into(),
            capacity: 1 << 40,
            retired: false,
            missing: false,
        }],
        version: "0.1.0".into(),
        has_data: false,
    };
    let format = Format {
        cluster: ClusterId(7),
        created: 1_700_000_000_000,
        redundancy: Redundancy::Copies(1),
        min_copies: Some(1),
        strict: false,
        object_size: 4 << 20,
        timing: Timing::default(),
        layout: Some(Layout::Plain),
        trash_keep: sheepdog_cluster::TRASH_KEEP,
    };
    let vdi = Command::VdiCreate {
        name: "disk".into(),
        uuid: 0xabcd,
        size: 1 << 30,
        redundancy: Some(Redundancy::Copies(1)),
        object_size: Some(4 << 20),
    };
    vec![
        Command::Format(format),
        Command::NodeUp(hello),
        vdi,
        Command::Note { level: EventLevel::Warning, text: "a note".into() },
        Command::Nothing,
        Command::Attach { vdi: VdiId(1), holder: "host".into(), access: Access::Shared },
        Command::NodeWeight { node: NODE, weight: Some(500), vnodes: None },
        Command::Shutdown,
    ]
}

fn entries() -> Vec<Entry> {
    let all = commands().into_iter().zip(1u64..);
    all.map(|(command, n)| Entry { now: 1_700_000_000_000 + n, request: u128::from(n) << 64, command })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// All rows of the database of a closed log.
fn rows(path: &Path, out: &mut BTreeMap<String, Vec<u8>>) {
    use redb::{ReadableDatabase, ReadableTable, TableDefinition};
    let db = redb::Database::open(path).unwrap();
    let tx = db.begin_read().unwrap();
    let log = tx.open_table(TableDefinition::<u64, &[u8]>::new("log")).unwrap();
    for row in log.iter().unwrap() {
        let (index, bytes) = row.unwrap();
        out.insert(format!("log-{:02}", index.value()), bytes.value().to_vec());
    }
    let meta = tx.open_table(TableDefinition::<&str, &[u8]>::new("meta")).unwrap();
    for row in meta.iter().unwrap() {
        let (key, bytes) = row.unwrap();
        out.insert(format!("meta-{}", key.value()), bytes.value().to_vec());
    }
}

fn decoded<T: serde::de::DeserializeOwned + Serialize>(name: &str, bytes: &[u8]) {
    let value: T =
        postcard::from_bytes(bytes).unwrap_or_else(|e| panic!("{name} cannot be read any more: {e}"));
    assert_eq!(hex(&postcard::to_stdvec(&value).unwrap()), hex(bytes), "{name} is read as something else");
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/control.txt")
}

fn compare(now: &BTreeMap<String, Vec<u8>>) {
    let text: String = now.iter().fold(String::new(), |mut s, (name, bytes)| {
        let _ = writeln!(s, "{name} {}", hex(bytes));
        s
    });
    if std::env::var_os("SHEEPDOG_GOLDEN").is_some_and(|v| v == "write") {
        std::fs::create_dir_all(golden().parent().unwrap()).unwrap();
        std::fs::write(golden(), &text).unwrap();
    }
    let kept = std::fs::read_to_string(golden()).unwrap();
    let of = |text: &str| {
        let pairs = text.lines().filter_map(|l| l.split_once(' '));
        pairs.map(|(name, bytes)| (name.to_owned(), bytes.to_owned())).collect::<BTreeMap<_, _>>()
    };
    let (kept, now) = (of(&kept), of(&text));
    let names: Vec<&String> = kept.keys().chain(now.keys()).filter(|n| kept.get(*n) != now.get(*n)).collect();
    for n in &names {
        eprintln!("{n}\n  was {:?}\n  is  {:?}", kept.get(*n), now.get(*n));
    }
    assert!(names.is_empty(), "what is kept on disk has changed: {names:?}; see the beginning of this file");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_on_disk_has_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    let mut out = BTreeMap::new();
    // The log, as raft would have it written.
    let mut log = LogStore::open(&path).unwrap();
    log.save_vote(&Vote::new_committed(3, RaftId(NODE))).await.unwrap();
    let both = [RaftId(NODE), RaftId(NodeId(2))];
    let change = Membership::new_with_defaults(vec![[both[0]].into(), both.into()], both);
    let mut list = vec![
        entry(0, EntryPayload::Blank),
        entry(1, EntryPayload::Blank),
        entry(2, EntryPayload::Membership(change)),
    ];
    list.extend(entries().into_iter().zip(3u64..).map(|(e, i)| entry(i, EntryPayload::Normal(Proposal(e)))));
    let last = list.last().unwrap().log_id;
    log.blocking_append(list).await.unwrap();
    log.purge(id(0)).await.unwrap();
    log.save_committed(Some(last)).await.unwrap();
    log.sync().await.unwrap();
    assert_eq!(log.try_get_log_entries(1..).await.unwrap().len(), 2 + entries().len());
    log.close().await;
    rows(&path, &mut out);
    // The state after it, its snapshot, and its copy on the data disks.
    let publisher = Publisher::new(NODE, 9, ClusterState::default(), boottime_millis);
    for (e, i) in entries().iter().zip(3u64..) {
        publisher.apply(ControlIndex(i), e);
    }
    out.insert("state".into(), publisher.read(|s| encode_state(s).unwrap().to_vec()));
    out.insert("state-on-disks".into(), publisher.read(keep::encode));
    let at = dir.path().join("snapshot");
    let mut machine = StateMachine::new(publisher, at.clone(), watch::Sender::new(None));
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    out.insert("snapshot".into(), std::fs::read(at).unwrap());
    compare(&out);
    // And it means the same.
    for (name, bytes) in &out {
        match name.as_str() {
            n if n.starts_with("log-") => decoded::<LogEntry>(n, bytes),
            "meta-vote" => decoded::<Vote>(name, bytes),
            "meta-committed" | "meta-purged" => decoded::<LogId>(name, bytes),
            "state" => decoded::<ClusterState>(name, bytes),
            "state-on-disks" => assert!(keep::decode(bytes).is_some()),
            "meta-format" => assert_eq!(bytes, &1u32.to_le_bytes()),
            "snapshot" => assert!(bytes.starts_with(b"SHPSNAP1")),
            other => panic!("{other} is not looked at"),
        }
    }
}
