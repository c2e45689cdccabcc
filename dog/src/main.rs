//! `dog`: the command line of Sheepdog.
//!
//! One file per command under `commands`: an `Args` whose doc comments are the help, and `run`, which talks to a sheep through
//! `sheepdog_client` and answers with an `Output` or a `Failure`. Answers go to standard output, everything else to standard error.

mod backup;
mod blocks;
mod commands;
mod contents;
mod context;
mod failure;
mod nbd;
mod output;
mod progress;
mod qemu;
mod redundancy;
mod size;
mod time;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};
use commands::Cli;
use context::Context;
use failure::{Failure, code};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::command().try_get_matches().and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return match e.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(code::USAGE),
            };
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(f) => {
            eprintln!("dog: {}", f.message);
            if let Some(hint) = &f.hint {
                eprintln!("Hint: {hint}");
            }
            ExitCode::from(f.code)
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::io("cannot start", &e))?;
    let result = runtime.block_on(async {
        let ctx = Context::new(cli.global);
        let output = cli.command.run(&ctx).await?;
        ctx.print(&output)
    });
    // A thread that waits for standard input would keep the process alive.
    runtime.shutdown_background();
    result
}
