//! The store of one sheep: its disks, each with a journal, object files and an index.
//!
//! Owned by the data thread, no locks. Everything above speaks in 4 KiB blocks of objects.
//!
//! What holds, and who relies on it:
//! * A finished `write` is durable: its journal record has reached stable storage.
//! * Calls for one object take effect in the order they were *made* (the synchronous part of the call enqueues), even when the
//!   object's header has to be read from disk first. The session's prefix rule stands on this.
//! * A `read` made after a `write` call sees that write, durable or not. The session keeps overlapping reads back.
//! * A block whose checksum does not match is never returned: `StoreError::Corrupt` names it.
//! * After a crash at any point every finished write is there, and each unfinished one is there as a whole or not at all, per block, in
//!   the order of its object's log (a prefix).

pub mod types;

pub use types::*;
mod stub;
pub use stub::Store;
