//! `cargo xtask bench`: builds what is measured as users get it, and runs the comparison.

use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Measure Sheepdog against its peers. Other options go to the runner and come last: --case NAME, --system NAME, --rounds N, --seconds N,
/// --dir DIR, --json FILE, --strict, --keep
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Cargo profile of what is built and measured
    #[arg(long, default_value = "release", value_name = "NAME")]
    profile: String,
    /// Measure the sheep and dog of this directory and build neither
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// For the runner
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(root).args(["build", "--profile", &args.profile, "-p", "sheepdog-bench", "--bins"]);
    if args.bin_dir.is_none() {
        build.args(["-p", "sheep", "-p", "dog"]);
    }
    let built = build.status()?;
    ensure!(built.success(), "cargo build: {built}");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |t| root.join(t));
    // cargo's own profiles have directories of other names.
    let folder = target.join(if args.profile == "dev" { "debug" } else { &args.profile });
    let bin = match &args.bin_dir {
        Some(b) => b.canonicalize().with_context(|| b.display().to_string())?,
        None => folder.clone(),
    };
    let mut bench = Command::new(folder.join("bench"));
    let ran = bench.current_dir(root).arg("--bin-dir").arg(bin).args(&args.rest).status()?;
    Ok(crate::passed_on(ran))
}
