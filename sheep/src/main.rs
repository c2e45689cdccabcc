//! Entry point: read options, run, say what went wrong.

use sheep::cli::{Args, CliError};
use std::process::ExitCode;

fn main() -> ExitCode {
    sheep::observe::panics::end_the_process();
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
            eprintln!("sheep: {}", sentence(&e));
            let usage = e.downcast_ref::<sheep::config::ConfigError>().is_some();
            ExitCode::from(if usage { 64 } else { 1 })
        }
    }
}

/// The error and its causes, those left out that the text before them has in it already.
fn sentence(e: &anyhow::Error) -> String {
    let mut text = e.to_string();
    for cause in e.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
