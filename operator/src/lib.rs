//! The operator: takes a `SheepdogCluster` to Available and keeps it there, and carries out `Vdi` and `VdiSnapshot` objects.
//!
//! Each kind has a folder. A look at an object is: fetch, decide, build, apply, status. Deciding and building are pure functions; what happened before is known from
//! objects and from the sheep, never from memory. Sheep serve volumes without the operator and without the API server.

pub mod apply;
pub mod cli;
pub mod cluster;
pub mod condition;
pub mod context;
pub mod leader;
pub mod lost;
pub mod names;
pub mod observe;
pub mod quantity;
pub mod run;
pub mod seccomp;
pub mod snapshot;
pub mod vdi;
