//! Backups of volumes outside of the cluster: their format, and where they lie.
//!
//! A *repository* is a directory or a prefix of an S3 bucket with many backups of many volumes. What they have in common is there once: contents are cut into *chunks* of
//! equal size, named by their hash. A backup is a list of chunks, itself cut into *pages* that are chunks, too, so that a backup of a volume of which little has changed costs
//! little more than what has changed, and still is complete: no backup needs another one.
//!
//! ```text
//! place        a directory, an S3 prefix, or one file: put, get, list, delete
//! seal         hash, compress, encrypt; and back, with every step checked
//! repository   config, backups, chunks, locks
//! index        which chunk is where in a volume
//! prune        which chunks no backup needs
//! ```
//!
//! Nothing here knows of a cluster: who reads a volume and writes it is `dog`. The format is in `docs/backup-format.md`.

mod error;
pub mod hex;
pub mod index;
pub mod manifest;
pub mod place;
mod prune;
pub mod repository;
pub mod seal;

pub use error::Error;
pub use index::{Entry, Index};
pub use manifest::Manifest;
pub use place::Place;
pub use prune::Pruned;
pub use repository::{Lock, Repository, Stored};
pub use seal::{Id, Key};

/// Bytes of a chunk, in repositories that are made now.
pub const CHUNK: u32 = 1 << 20;
