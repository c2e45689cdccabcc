//! The admin front-end: gRPC on the client port, for dog, CSI, the operator, and other sheep.
//!
//! `backend` says what it needs from the daemon.

pub mod backend;

pub use backend::{AdminBackend, AdminVolume, DataError, DataPlane};
