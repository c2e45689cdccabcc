//! Sheepdog and its peers side by side: the same fio cases, on the same disk, in alternation within one run.
//!
//! `plan` says what is measured and what is expected of it, `system` brings Sheepdog and each peer up, `fio` and `usage` measure, `results`
//! takes medians and ratios, `report` prints. Absolute figures mean little elsewhere; the ratios are what counts. Started by
//! `cargo xtask bench`, which builds the binaries first. Everything ends with the handle that started it.

mod fio;
mod plan;
mod proc;
mod report;
mod results;
mod system;
mod usage;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use plan::{Case, Kind};
use results::{NOISE, Results, Sample};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use system::{Lab, System};

/// Measure Sheepdog against its peers and print ratios.
#[derive(Parser, Debug)]
#[command(name = "bench", version)]
struct Args {
    /// Only this case; may be repeated
    #[arg(long = "case", value_name = "NAME", value_enum)]
    cases: Vec<Case>,
    /// Only this system; may be repeated. Bars that need another one are not judged
    #[arg(long = "system", value_name = "NAME", value_enum)]
    systems: Vec<Kind>,
    /// Rounds; each visits every case and every system
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measured seconds of each visit
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Where all systems keep their data, on the disk to be measured; must allow direct I/O
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    dir: PathBuf,
    /// Where sheep and dog are. Default: beside this program
    #[arg(long, env = "SHEEPDOG_BIN", value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Before each visit, wait up to so many seconds until the machine is idle
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    calm: u64,
    /// Also write every sample, median and bar to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail when a bar is missed
    #[arg(long)]
    strict: bool,
    /// Keep data and logs
    #[arg(long)]
    keep: bool,
}

/// CPUs that are busy when the machine counts as idle.
const IDLE: f64 = 0.3;
/// Times a noisy run is repeated; the quieter one counts.
const REPEATS: u32 = 1;
/// Not measured, before each run.
const WARM_UP: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(met) if met || !args.strict => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Are all bars met?
fn run(args: &Args) -> Result<bool> {
    let start = Instant::now();
    let bin = match &args.bin_dir {
        Some(b) => b.clone(),
        None => std::env::current_exe()?.parent().context("no directory of this program")?.to_owned(),
    };
    let lab = Lab::new(&args.dir, bin)?;
    let outcome = measure(args, &lab);
    let results = match outcome {
        Ok(r) => r,
        Err(e) => bail!("{e:#}\nlogs: {}", lab.dir.display()),
    };
    if !args.keep {
        lab.remove()?;
    }
    let verdicts = results.judge(&plan::bars());
    report::print(&results, &verdicts);
    println!("\n{} s in all", start.elapsed().as_secs());
    if let Some(file) = &args.json {
        report::write(file, args.seconds, &results, &verdicts)?;
    }
    Ok(verdicts.iter().all(|v| v.pass != Some(false)))
}

fn chosen<T: Copy + PartialEq>(all: &[T], wanted: &[T]) -> Vec<T> {
    all.iter().copied().filter(|x| wanted.is_empty() || wanted.contains(x)).collect()
}

fn measure(args: &Args, lab: &Lab) -> Result<Results> {
    let cases = chosen(&Case::ALL, &args.cases);
    let kinds: Vec<Kind> = chosen(&Kind::ALL, &args.systems)
        .into_iter()
        .filter(|k| cases.iter().any(|c| c.systems().contains(k)))
        .collect();
    let mut systems = Vec::new();
    for kind in kinds {
        if kind == Kind::Ceph && !system::ceph_installed() {
            println!("ceph: not installed, skipped");
            continue;
        }
        println!("{}: start and fill", kind.name());
        let s = System::start(lab, kind).with_context(|| kind.name())?;
        fio::fill(lab, &s).with_context(|| format!("{}: fill", kind.name()))?;
        systems.push(s);
    }
    ensure!(!systems.is_empty(), "none of the chosen systems takes part in the chosen cases");
    let mut results = Results::new(lab.versions());
    for round in 0..args.rounds {
        for &case in &cases {
            let mut taking_part: Vec<&mut System> =
                systems.iter_mut().filter(|s| case.systems().contains(&s.kind)).collect();
            // Nobody always comes first.
            if round % 2 == 1 {
                taking_part.reverse();
            }
            for s in taking_part {
                let what = format!("round {} {} {}", round + 1, case.name(), s.kind.name());
                let sample = visit(lab, case, s, args).context(what.clone())?;
                println!("{what}: {}", report::brief(case, &sample));
                results.add(case, s.kind, sample);
            }
        }
    }
    // Proper ends, last one first.
    while let Some(s) = systems.pop() {
        drop(s);
    }
    Ok(results)
}

/// Measure one case on one system; again when the machine was busy with something else.
fn visit(lab: &Lab, case: Case, s: &mut System, args: &Args) -> Result<Sample> {
    let mut best: Option<Sample> = None;
    for _ in 0..=REPEATS {
        s.alive()?;
        rustix::fs::sync();
        let calm = calm_down(Duration::from_secs(args.calm))?;
        fio::run(lab, case, s, WARM_UP)?;
        let before = usage::snapshot(&s.pids())?;
        let run = fio::run(lab, case, s, Duration::from_secs(args.seconds))?;
        let spent = usage::snapshot(&s.pids())?.since(&before);
        let sample = Sample::new(&run, &spent, s.has_server());
        if best.as_ref().is_none_or(|b| sample.others_busy < b.others_busy) {
            best = Some(sample);
        }
        // Where it is never calm, once more would be no better.
        if !calm || best.as_ref().is_some_and(|b| b.others_busy <= NOISE) {
            break;
        }
    }
    best.context("no sample")
}

/// Wait for an idle machine, but not for ever. Is it idle?
fn calm_down(limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        let before = usage::snapshot(&[])?;
        std::thread::sleep(Duration::from_millis(300));
        let spent = usage::snapshot(&[])?.since(&before);
        if spent.machine / spent.wall <= IDLE {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A path as a string; only ever one that this program made.
fn text(path: &Path) -> String {
    path.display().to_string()
}
