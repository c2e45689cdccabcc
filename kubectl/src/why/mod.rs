//! `kubectl sheepdog why pvc/NAME | pod/NAME | volumesnapshot/NAME`
//!
//! [`fetch`] reads what has to do with it into [`facts`]; [`judge`] and the steps beside it decide, without asking anybody, and answer with a [`verdict`].

mod attach;
mod claim;
mod cluster;
mod facts;
mod fetch;
mod grow;
mod judge;
mod mount;
mod node;
mod pod;
mod provision;
mod snapshot;
#[cfg(test)]
mod tests;
mod verdict;

pub use cluster::condition;
pub use facts::{Kind, Target};
pub use node::silence;

use crate::connect::Connected;
use crate::failure::Failure;
use std::io::Write as _;

/// Say what blocks a claim, a pod or a snapshot, and what to do about it
///
/// It walks from the pod or claim through its class, volume, attachment, node and Sheepdog's own pods, and names the first thing that blocks, then what it saw, then what to
/// do. It changes nothing. Exit codes: 0 nothing blocks, 1 something does, 2 it could not ask (or not read enough to be sure).
#[derive(clap::Args, Debug)]
pub struct Args {
    /// pvc/NAME, pod/NAME or volumesnapshot/NAME
    #[arg(value_name = "KIND/NAME", value_parser = parse)]
    target: Target,
    /// How to print the answer
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

fn parse(text: &str) -> Result<Target, String> {
    let (kind, name) = text.split_once('/').unwrap_or(("", text));
    let kind = match kind.to_ascii_lowercase().as_str() {
        "pvc" | "pvcs" | "persistentvolumeclaim" | "persistentvolumeclaims" => Kind::Claim,
        "pod" | "pods" | "po" => Kind::Pod,
        "volumesnapshot" | "volumesnapshots" | "vs" => Kind::Snapshot,
        "" => return Err(format!("write pvc/{name}, pod/{name} or volumesnapshot/{name}")),
        other => {
            return Err(format!("\"{other}\" is not a kind it knows: there are pvc, pod and volumesnapshot"));
        }
    };
    if name.is_empty() || name.contains('/') {
        return Err("write KIND/NAME".into());
    }
    Ok(Target { kind, name: name.into() })
}

/// Fetch, decide, print.
pub async fn run(c: &Connected, args: &Args) -> Result<u8, Failure> {
    let verdict = ask(c, c.namespace(), &args.target).await?;
    let text = match args.output {
        Format::Text => verdict.text(),
        Format::Json => serde_json::to_string_pretty(&verdict).unwrap_or_default() + "\n",
    };
    print(&text)?;
    Ok(verdict.exit())
}

/// The verdict about one thing.
pub async fn ask(c: &Connected, namespace: &str, target: &Target) -> Result<verdict::Verdict, Failure> {
    let facts = fetch::fetch(c, namespace, target).await?;
    Ok(judge::judge(&facts, target))
}

/// To standard output.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever read us has had enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Failure::new(format!("standard output: {e}"))),
        Ok(()) => Ok(()),
    }
}
