//! `cargo xtask sim`: builds the simulator optimised and runs it.

use anyhow::{Context, Result};
use std::process::{Command, ExitCode};

/// Run the seeded simulation; every option goes to it (`--seeds N`, `--first-seed S`, `--plant BUG`, `--help`)
#[derive(clap::Args, Debug)]
pub struct Args {
    /// For the simulator
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Run. The simulator prints the seeds that break a promise, and ends with 1 when there are any.
pub fn run(args: &Args) -> Result<ExitCode> {
    let status = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--profile", "ci", "--package", "sheepdog-sim", "--"])
        .args(&args.rest)
        .status()
        .context("cargo could not be started")?;
    Ok(crate::passed_on(status))
}
