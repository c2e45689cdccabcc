//! The sheep daemon: an I/O shell round the pure crates in `lib/`.
//!
//! Two worlds. The *data thread* (`volume`, `session`, `peer`, `store`, `work`, `front::nbd`) is one current-thread runtime where every value is
//! owned without locks. The *control runtime* (`control`, `front::admin`, `observe`) is multi-threaded and slow by nature.
//! They share the cluster state behind one read-write lock and talk through channels.

pub mod buf;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
mod dirs;
pub mod front;
pub mod node;
pub mod observe;
pub mod peer;
pub mod planted;
pub mod session;
pub mod store;
pub mod transport;
pub mod volume;
mod wait;
mod watchdog;
pub mod work;
