//! openraft's own storage conformance suite over our log store and state machine, and what it does not ask: durability.

#![allow(clippy::unwrap_used)]

use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::testing::{blank_ent, log_id};
use openraft::{RaftLogReader, StorageError};
use sheep::control::log_store::LogStore;
use sheep::control::raft_types::{RaftId, TypeConfig, Vote};
use sheep::control::state_machine::StateMachine;
use sheep::control::{Publisher, boottime_millis};
use sheepdog_cluster::ClusterState;
use sheepdog_proto::NodeId;
use tempfile::TempDir;
use tokio::sync::watch;

struct Builder {
    memory: bool,
}

fn machine(dir: &TempDir) -> StateMachine {
    let publisher = Publisher::new(NodeId(0), 1, ClusterState::default(), boottime_millis);
    StateMachine::new(publisher, dir.path().join("snapshot"), watch::Sender::new(None))
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let log = match self.memory {
            true => LogStore::in_memory().unwrap(),
            false => LogStore::open(&dir.path().join("log.redb")).unwrap(),
        };
        let sm = machine(&dir);
        Ok((dir, log, sm))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conformance_on_files() {
    Suite::test_all(Builder { memory: false }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn conformance_in_memory() {
    Suite::test_all(Builder { memory: true }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_reported_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    let id = |i| log_id::<TypeConfig>(3, RaftId(NodeId(9)), i);
    let vote = Vote::new_committed(3, RaftId(NodeId(9)));
    {
        let mut log = LogStore::open(&path).unwrap();
        assert!(log.is_empty());
        log.save_vote(&vote).await.unwrap();
        let entries: Vec<_> = (0..500).map(|i| blank_ent::<TypeConfig>(3, RaftId(NodeId(9)), i)).collect();
        log.blocking_append(entries).await.unwrap();
        log.truncate_after(Some(id(399))).await.unwrap();
        log.purge(id(99)).await.unwrap();
        log.save_committed(Some(id(350))).await.unwrap();
        log.sync().await.unwrap();
        assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 300);
    }
    // The writer thread lets go of the file a moment after the last handle is dropped.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let mut log = loop {
        match LogStore::open(&path) {
            Ok(l) => break l,
            Err(e) if std::time::Instant::now() > deadline => panic!("{e}"),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    };
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.read_committed().await.unwrap(), Some(id(350)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(99)), Some(id(399))));
    let got: Vec<u64> = log.try_get_log_entries(..).await.unwrap().iter().map(|e| e.log_id.index).collect();
    assert_eq!(got, (100..400).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sheep_in_the_same_directory_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    let _first = LogStore::open(&path).unwrap();
    let e = LogStore::open(&path).err().unwrap().to_string();
    assert!(e.contains("another sheep"), "{e}");
}
