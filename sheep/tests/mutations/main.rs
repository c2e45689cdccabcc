//! Everything that a sheep parses, on damaged input: streams of peers, what is on its disks, its options.

#![allow(clippy::unwrap_used)] // in a test, that is how it fails

#[path = "../../../lib/proto/tests/mutate/mod.rs"]
mod mutate;

mod options;
mod stored;
mod streams;
