//! `kubectl sheepdog`: what people want to know of Sheepdog on Kubernetes, and `dog` without looking for a pod.
//!
//! `why` says what blocks a claim, a pod or a snapshot; `status` is a cluster on one screen; `bundle` is everything that helps to find a fault, in one file; `dog`
//! runs dog in a sheep's pod. Reading (`read`, `why::fetch`, `status::fetch`) is a thin shell round pure code that decides and words. What may not be read is said, and
//! ends nothing else.

mod bundle;
mod choose;
mod connect;
mod dog;
mod exec;
mod failure;
mod read;
mod status;
mod terminal;
mod why;
mod words;

use clap::{Parser, Subcommand};
use connect::Connection;
use failure::Failure;
use std::process::ExitCode;

/// Sheepdog on Kubernetes: why a volume does not work, the state of a cluster, support bundles, and dog
///
/// It reads the cluster with your own rights, as kubectl does (KUBECONFIG, --kubeconfig, --context). What you may not read is said and left out.
#[derive(Parser, Debug)]
#[command(
    name = "kubectl-sheepdog",
    bin_name = "kubectl sheepdog",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 110
)]
struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

// Their help is that of their arguments.
#[derive(Subcommand, Debug)]
enum Command {
    Why(why::Args),
    Status(status::Args),
    Bundle(bundle::Args),
    Dog(dog::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(f) => {
            eprintln!("kubectl sheepdog: {}", f.message);
            if let Some(hint) = &f.hint {
                eprintln!("Hint: {hint}");
            }
            ExitCode::from(failure::COULD_NOT_ASK)
        }
    }
}

fn run(cli: Cli) -> Result<u8, Failure> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("cannot start: {e}")))?;
    let ended = runtime.block_on(async {
        let c = cli.connection.open().await?;
        match cli.command {
            Command::Why(a) => why::run(&c, &a).await,
            Command::Status(a) => status::run(&c, &a).await,
            Command::Bundle(a) => bundle::run(&c, &a).await,
            Command::Dog(a) => dog::run(&c, a).await,
        }
    });
    // A thread that waits for standard input would keep the process alive.
    runtime.shutdown_background();
    ended
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_dog_is_dogs() {
        let parse = |words: &[&str]| Cli::try_parse_from([&["kubectl-sheepdog"], words].concat());
        let of = |words: &[&str]| match parse(words).map(|c| (c.connection.namespace, c.command)) {
            Ok((ns, Command::Dog(a))) => (ns, a.cluster, a.dog.join(" ")),
            other => panic!("{other:?}"),
        };
        assert_eq!(of(&["dog", "vdi", "list", "-o", "json"]), (None, None, "vdi list -o json".into()));
        let both = of(&["-n", "a", "dog", "--cluster", "main", "node", "kill", "-n", "x", "--cluster", "y"]);
        assert_eq!(both, (Some("a".into()), Some("main".into()), "node kill -n x --cluster y".into()));
        assert_eq!(of(&["dog", "-n", "a", "vdi", "--help"]), (Some("a".into()), None, "vdi --help".into()));
    }
}
