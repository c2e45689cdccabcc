//! Commands whose subject is not part of this release: they say so instead of not existing.

use crate::failure::{Failure, code};
use crate::output::Output;
use clap::Subcommand;
use std::path::PathBuf;

/// Copies of the whole cluster in a directory
#[derive(Subcommand, Debug)]
pub enum Snapshot {
    /// Save all VDIs
    Save {
        /// Directory
        dir: PathBuf,
    },
    /// List what was saved
    List {
        /// Directory
        dir: PathBuf,
    },
    /// Show one saved state
    Show {
        /// Directory
        dir: PathBuf,
    },
    /// Load VDIs back
    Load {
        /// Directory
        dir: PathBuf,
    },
}

/// Users and keys of S3 and Swift
#[derive(Subcommand, Debug)]
pub enum User {
    /// Make a user
    Create {
        /// Name
        name: String,
    },
    /// All users
    List,
    /// Delete a user
    Delete {
        /// Name
        name: String,
    },
}

impl Snapshot {
    /// Not yet.
    pub fn run(self) -> Result<Output, Failure> {
        Err(Failure::new(code::FAILED, "cluster snapshots in a directory are not part of this release")
            .hint("`dog vdi export NAME@TAG FILE` saves one VDI, `dog vdi snapshot-group` snapshots several at one instant"))
    }
}

impl User {
    /// Not yet.
    pub fn run(self) -> Result<Output, Failure> {
        Err(Failure::new(code::FAILED, "S3 and Swift are not part of this release, so there are no users"))
    }
}
