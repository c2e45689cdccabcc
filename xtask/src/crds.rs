//! `cargo xtask crds`: writes the YAML of the custom resources from their Rust types.

use anyhow::{Context, Result};
use std::process::{Command, ExitCode};

/// Write the YAML of the custom resources (crds/yaml, and the chart's copy) from the types in crds/src
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Run. A program of its own, so that the other chores do not have to build the Kubernetes crates.
pub fn run(_: &Args) -> Result<ExitCode> {
    let status = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--profile", "ci", "--package", "sheepdog-crds", "--example", "generate"])
        .status()
        .context("cargo could not be started")?;
    Ok(crate::passed_on(status))
}
