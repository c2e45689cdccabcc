//! openraft's parameters for Sheepdog.
//!
//! A raft node is a sheep's `NodeId`; raft does not know addresses (`EmptyNode`): they come from the address book, so that a node may
//! move. The log's index is the `ControlIndex`. What is stored or sent is postcard of these types: changing openraft (pinned with `=`)
//! must not change them: `tests/control_golden.rs` compares.

use serde::{Deserialize, Serialize};
use sheepdog_cluster::{Entry, Reply};
use sheepdog_proto::NodeId;
use std::fmt;

/// A `NodeId` as raft wants it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct RaftId(pub NodeId);

impl fmt::Debug for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.short())
    }
}
impl fmt::Display for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.short())
    }
}
impl From<u64> for RaftId {
    /// Only openraft's storage suite makes ids from numbers.
    fn from(n: u64) -> Self {
        Self(NodeId(u128::from(n)))
    }
}

/// What is proposed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Proposal(pub Entry);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {:032x}", self.0.request)
    }
}

/// What applying answers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Answer(pub Reply);

openraft::declare_raft_types!(
    /// See the module.
    pub TypeConfig:
        D = Proposal,
        R = Answer,
        NodeId = RaftId,
        Node = openraft::EmptyNode,
);

/// Log position with the leader that made it.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// Vote.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// Log entry.
pub type LogEntry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// Membership with its position.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// Snapshot metadata.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
/// Snapshot.
pub type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, bytes::Bytes>;
/// The raft node.
pub type SheepRaft = openraft::Raft<TypeConfig, super::state_machine::StateMachine>;
