//! Scenarios with real components: sheep and dog as processes, real disks, clients that others wrote (fio, qemu, nbdcopy, a guest kernel).
//!
//! `harness` starts and ends things and measures; each file of `scenarios` is one story, told as it is proved. Started by `cargo xtask e2e`,
//! which builds the binaries first. Everything lives in a directory of its own and ends with the handle that started it.

mod harness;
mod scenarios;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use harness::Lab;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Run scenarios against real sheep.
#[derive(Parser, Debug)]
#[command(name = "e2e", version)]
struct Args {
    /// Scenarios, `core` (those a change should pass: minutes) or `all`
    #[arg(required = true, value_name = "NAME|core|all")]
    names: Vec<String>,
    /// Shorter runs, smaller data
    #[arg(long)]
    quick: bool,
    /// Try a scenario that fails once more: for machines that others use, too. Both outcomes are told
    #[arg(long)]
    again: bool,
    /// Begin no scenario later than so many seconds after the start. What is left out is told
    #[arg(long, value_name = "SECONDS")]
    begin_within: Option<u64>,
    /// Keep the directories of scenarios that passed, too
    #[arg(long)]
    keep: bool,
    /// Where sheep and dog are
    #[arg(long, env = "SHEEPDOG_BIN", value_name = "DIR")]
    bin: Option<PathBuf>,
    /// Container images for Kubernetes that `scripts/images.sh --save DIR` has built, instead of ones made of the programs
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Where each scenario gets a directory; must allow direct I/O
    #[arg(long, default_value = "target/e2e", value_name = "DIR")]
    dir: PathBuf,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("e2e: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    let chosen = scenarios::choose(&args.names)?;
    let bin = match &args.bin {
        Some(b) => b.clone(),
        None => std::env::current_exe()?.parent().context("no directory of this program")?.to_owned(),
    };
    if !bin.join("sheep").exists() || !bin.join("dog").exists() {
        bail!("no sheep and dog in {}: run `cargo xtask e2e`, which builds them", bin.display());
    }
    std::fs::create_dir_all(&args.dir)?;
    let root = args.dir.canonicalize()?;
    let (mut results, mut left_out) = (Vec::new(), Vec::new());
    let start = Instant::now();
    for s in chosen {
        if args.begin_within.is_some_and(|most| start.elapsed().as_secs() > most) {
            left_out.push(s.name);
            continue;
        }
        let mut passed = one(args, s, &root, &bin)?;
        if !passed && args.again {
            println!("   once more");
            passed = one(args, s, &root, &bin)?;
        }
        results.push((s.name, passed));
    }
    if !left_out.is_empty() {
        println!("e2e: left out, because the time was over: {}", left_out.join(" "));
    }
    let failed: Vec<&str> = results.iter().filter(|(_, ok)| !ok).map(|(n, _)| *n).collect();
    println!("e2e: {} passed, {} failed {}", results.len() - failed.len(), failed.len(), failed.join(" "));
    Ok(failed.is_empty())
}

/// Run a scenario: did it pass?
fn one(args: &Args, s: &scenarios::Scenario, root: &Path, bin: &Path) -> Result<bool> {
    println!("== {}: {}", s.name, s.about);
    let start = Instant::now();
    let lab = Lab::new(root.join(s.name), bin.to_owned(), args.images.clone(), args.quick)?;
    let outcome = (s.run)(&lab);
    let seconds = start.elapsed().as_secs();
    match &outcome {
        Ok(()) => {
            println!("   passed in {seconds} s");
            if !args.keep {
                lab.remove()?;
            }
        }
        Err(e) => println!("   FAILED after {seconds} s: {e:#}\n   logs: {}", lab.dir.display()),
    }
    Ok(outcome.is_ok())
}
