//! `cargo xtask e2e`

use anyhow::{Context as _, Result, ensure};
use std::path::Path;
use std::process::{Command, ExitCode};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Cargo profile of what is built and run
    #[arg(long, default_value = "ci", value_name = "NAME")]
    profile: String,
    /// Scenarios, `core` or `all`, and options of the runner: --quick, --keep, --dir DIR
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "NAME|core|all"
    )]
    rest: Vec<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .current_dir(root)
        .args([
            "build",
            "--profile",
            &args.profile,
            "-p",
            "sheep",
            "-p",
            "dog",
            "-p",
            "sheepdog-csi",
            "-p",
            "kubectl-sheepdog",
            "-p",
            "sheepdog-e2e",
            "--bins",
        ])
        .status()?;
    ensure!(built.success(), "cargo build: {built}");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |t| root.join(t));
    // cargo's own profiles have directories of other names.
    let folder = if args.profile == "dev" { "debug" } else { &args.profile };
    let ran = Command::new(target.join(folder).join("e2e")).current_dir(root).args(&args.rest).status()?;
    Ok(crate::passed_on(ran))
}
