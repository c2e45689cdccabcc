//! Chores of this repository: `cargo xtask ...`. One file per subcommand.

mod bench;
mod e2e;
mod sim;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Chores of this repository
#[derive(Parser, Debug)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Measure Sheepdog against its peers
    Bench(bench::Args),
    /// Build everything and run scenarios with real components
    E2e(e2e::Args),
    /// Run the seeded simulation
    Sim(sim::Args),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::E2e(args) => e2e::run(&args),
        Command::Sim(args) => sim::run(&args),
    }
}
