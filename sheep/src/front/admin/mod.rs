//! The admin front-end: gRPC on the client port, for dog, CSI, the operator, and other sheep.
//!
//! ```text
//! server (sockets, TLS, limits) -> vdi, node, cluster (one gRPC service each) -> service (finding, proposing, holding) -> backend (traits of the daemon)
//!                                     |-- vdi_data (streams of contents), vdi_look (where things are)      '-> peers (the other sheep)
//! ```
//!
//! Any sheep answers for the whole cluster: listings of the control plane come from its own copy of the state, changes are proposals, and
//! what only other nodes know is asked there once (`peers`), marked so that it goes no further. What the daemon has to supply is in
//! `backend`; nothing here touches the data thread but through `DataPlane`.

mod attachments;
pub mod backend;
mod cluster;
mod convert;
mod node;
mod peers;
mod server;
mod service;
mod trash;
mod vdi;
mod vdi_data;
mod vdi_look;

pub use backend::{AdminBackend, AdminVolume, DataError, DataPlane};
pub(crate) use convert::command_error;
pub use server::{AdminListenError, AdminServer};
