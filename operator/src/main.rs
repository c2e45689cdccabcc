//! `sheepdog-operator`.

use clap::Parser;
use sheepdog_operator::cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::SeccompProfile { root } => match sheepdog_operator::seccomp::install(&root) {
            Ok(_) => Ok(()),
            Err(e) => Err(anyhow::anyhow!("{}: the seccomp profile cannot be written: {e}", root.display())),
        },
        Command::Run(options) => start(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sheepdog-operator: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(options: &sheepdog_operator::cli::Run) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&options.log_level)
        .map_err(|e| anyhow::anyhow!("--log-level: {e}"))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(sheepdog_operator::run::run(options));
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    done
}
