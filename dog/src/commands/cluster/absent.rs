//! Commands whose subject is not part of this release: they say so instead of not existing.

use crate::failure::{Failure, code};
use crate::output::Output;
use clap::Subcommand;

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

impl User {
    /// Not yet.
    pub fn run(self) -> Result<Output, Failure> {
        Err(Failure::new(code::FAILED, "S3 and Swift are not part of this release, so there are no users"))
    }
}
