//! Entry point: read options, run, say what went wrong.

use sheep::cli::{Args, CliError};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = match Args::load(std::env::args_os()) {
        Ok(args) => args,
        Err(CliError::Clap(e)) => {
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
        Err(e) => {
            eprintln!("sheep: {e}");
            return ExitCode::from(64);
        }
    };
    match sheep::daemon::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sheep: {e:#}");
            let usage = e.downcast_ref::<sheep::config::ConfigError>().is_some();
            ExitCode::from(if usage { 64 } else { 1 })
        }
    }
}
