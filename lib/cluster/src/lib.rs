//! The control plane's state machine: pure and deterministic.
//!
//! `ClusterState` is everything the cluster agrees on; `apply` takes one committed `Entry` and changes it. Time comes in with the entry.
//! Raft (in the daemon) decides the order of entries, every node applies the same ones. The data plane reads two derived
//! values: `NodeMap` (who holds an object, built once per epoch) and `chain` (which layers a VDI reads through).
//!
//! Invariants (checked by `check::check`, in tests, simulation and debug builds):
//! ids and generations never repeat; every name leads to a VDI and every VDI that is not in the trash has one; every layer's parent exists and is of the same family;
//! a session's generation is the highest ever given for its VDI; a node's `synced` never exceeds the epoch; `rings` is ordered by epoch and
//! its last entry is the ring of the current membership.

mod apply;
pub mod attachment;
pub mod check;
pub mod command;
pub mod map;
pub mod state;
pub mod trash;

pub use attachment::*;
pub use command::*;
pub use map::*;
pub use state::*;
pub use trash::*;
