//! `sheepdog-sim`: run seeds, print the ones that broke a promise. `cargo xtask sim` calls it.

use clap::Parser;
use sheep::planted::Bug;
use sheepdog_sim::{Options, run};
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

/// Run the seeded simulation
#[derive(Parser)]
struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first one; a failing seed is replayed with `--first-seed N --seeds 1`
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// From one seed to the next; `--first-seed 3 --step 7`: only worlds with an erasure coded volume
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    step: u64,
    /// Simulated seconds of faults per seed
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Plant a bug that must be found: skipped-fence, stale-read, ack-before-journal, late-detached, stale-cache
    #[arg(long, value_parser = bug)]
    plant: Option<Bug>,
    /// Threads
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, |n| n.get()))]
    jobs: usize,
    /// Stop after this many failing seeds
    #[arg(long, default_value_t = 5)]
    failures: u64,
    /// File of seeds that are known to break a promise, one a line (`#` begins a comment): they are reported and do not fail the run
    #[arg(long)]
    known: Option<std::path::PathBuf>,
    /// What the daemons log, as RUST_LOG says it
    #[arg(long)]
    log: Option<String>,
}

fn bug(text: &str) -> Result<Bug, String> {
    match text {
        "skipped-fence" => Ok(Bug::SkippedFence),
        "stale-read" => Ok(Bug::StaleRead),
        "ack-before-journal" => Ok(Bug::AckBeforeJournal),
        "late-detached" => Ok(Bug::LateDetached),
        "stale-cache" => Ok(Bug::StaleCache),
        "uncertain-read" => Ok(Bug::UncertainRead),
        "stale-seal" => Ok(Bug::StaleSeal),
        "hasty-seal" => Ok(Bug::HastySeal),
        "early-let-go" => Ok(Bug::EarlyLetGo),
        "hasty-fence" => Ok(Bug::HastyFence),
        _ => Err("known bugs: skipped-fence, stale-read, ack-before-journal, late-detached, stale-cache, \
                  uncertain-read, stale-seal, hasty-seal, early-let-go, hasty-fence"
            .into()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(log) = &args.log {
        let filter = tracing_subscriber::EnvFilter::new(log);
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .without_time()
            .with_ansi(false)
            .with_writer(std::io::stderr)
            .init();
    }
    let known: BTreeSet<u64> = match args.known.as_ref().map(std::fs::read_to_string) {
        None => BTreeSet::new(),
        Some(Ok(text)) => text.lines().filter_map(|l| l.split('#').next()?.trim().parse().ok()).collect(),
        Some(Err(e)) => {
            eprintln!("the file of known seeds cannot be read: {e}");
            return ExitCode::FAILURE;
        }
    };
    let open = AtomicU64::new(0);
    let next = AtomicU64::new(args.first_seed);
    let end = args.first_seed + args.seeds * args.step;
    let (failed, operations, faults, snapshots) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let ran = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(args.step, Ordering::Relaxed);
                    if seed >= end || failed.load(Ordering::Relaxed) >= args.failures {
                        return;
                    }
                    let report = run(Options { seed, bug: args.plant, seconds: args.seconds });
                    ran.fetch_add(1, Ordering::Relaxed);
                    operations.fetch_add(report.operations, Ordering::Relaxed);
                    faults.fetch_add(report.faults, Ordering::Relaxed);
                    snapshots.fetch_add(report.snapshots, Ordering::Relaxed);
                    if !report.violations.is_empty() && known.contains(&seed) {
                        open.fetch_add(1, Ordering::Relaxed);
                    } else if !report.violations.is_empty() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        let mut text = format!("seed {seed} breaks:\n");
                        for (name, what) in report.violations.iter().take(6) {
                            text += &format!("  {name}: {}\n", what.chars().take(1500).collect::<String>());
                        }
                        println!("{text}  replay: cargo xtask sim --first-seed {seed} --seeds 1");
                    } else if args.seeds == 1 {
                        println!("seed {seed}: {report:?}");
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    println!(
        "{} seeds, {failed} failed, {} known to fail; {} operations, {} faults, {} snapshots",
        ran.into_inner(),
        open.into_inner(),
        operations.into_inner(),
        faults.into_inner(),
        snapshots.into_inner()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
