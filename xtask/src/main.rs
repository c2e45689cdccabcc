//! Chores of this repository: `cargo xtask ...`. One file per subcommand.

mod bench;
mod crds;
mod e2e;
mod sim;

use clap::{Parser, Subcommand};
use std::process::{ExitCode, ExitStatus};

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
    /// Write the YAML of the custom resources
    Crds(crds::Args),
    /// Build everything and run scenarios with real components
    E2e(e2e::Args),
    /// Run the seeded simulation
    Sim(sim::Args),
}

/// What a program that has said itself what is wrong ended with; 1 when a signal ended it.
fn passed_on(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|c| u8::try_from(c).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::Crds(args) => crds::run(&args),
        Command::E2e(args) => e2e::run(&args),
        Command::Sim(args) => sim::run(&args),
    };
    done.unwrap_or_else(|e| {
        // Without the stack, whatever RUST_BACKTRACE says: it would be of this little program.
        eprintln!("xtask: {e:#}");
        ExitCode::FAILURE
    })
}
