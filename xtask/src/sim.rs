//! `cargo xtask sim`: builds the simulator optimised and runs it.

use anyhow::{Context, Result, bail};
use std::process::Command;

/// Run the seeded simulation; every option goes to it (`--seeds N`, `--first-seed S`, `--plant BUG`, `--help`)
#[derive(clap::Args, Debug)]
pub struct Args {
    /// For the simulator
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Run.
pub fn run(args: &Args) -> Result<()> {
    let status = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--profile", "ci", "--package", "sheepdog-sim", "--"])
        .args(&args.rest)
        .status()
        .context("cargo could not be started")?;
    if !status.success() {
        bail!("the simulation found something");
    }
    Ok(())
}
