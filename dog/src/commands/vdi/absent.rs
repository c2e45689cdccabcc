//! `dog vdi backup` and `dog vdi restore`: not part of this release; they say so instead of not existing.

use crate::failure::{Failure, code};
use crate::output::Output;

/// Not part of this release
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Anything
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Not yet.
pub fn run() -> Result<Output, Failure> {
    Err(Failure::new(code::FAILED, "incremental backups are not part of this release")
        .hint("`dog vdi export NAME@TAG FILE` writes a full image, `dog vdi diff` lists what changed"))
}
