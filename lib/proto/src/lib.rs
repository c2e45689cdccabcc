//! Every type that crosses a wire or a disk, declared once.
//!
//! `ids` names things, `constants` bounds them, `peer` is the protocol between sheep (port 7001).
//! This crate depends on nothing else of ours and does no I/O.

pub mod bitmap;
pub mod checksum;
pub mod constants;
pub mod ids;
pub mod peer;
pub mod time;

pub use bitmap::BlockMap;
pub use constants::*;
pub use ids::*;
