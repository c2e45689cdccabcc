//! The command tree. Each leaf is a file with `Args` and `run`.

pub mod backup;
pub mod benchmark;
pub mod cluster;
pub mod completion;
pub mod explain;
pub mod node;
pub mod secret;
pub mod trash;
pub mod upgrade;
pub mod vdi;

use crate::context::{Context, Global};
use crate::failure::Failure;
use crate::output::Output;
use clap::{Parser, Subcommand};

/// Manage a Sheepdog cluster: volumes (VDIs), nodes, and the cluster as a whole
///
/// Exit codes: 0 ok, 1 failed, 2 cluster or host problem, 3 exists, 4 full, 5 missing, 64 usage (see `dog explain`).
#[derive(Parser, Debug)]
#[command(
    name = "dog",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 110
)]
pub struct Cli {
    /// Global options.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Families of commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Volumes and their snapshots
    #[command(subcommand)]
    Vdi(vdi::Command),
    /// Deleted VDIs and snapshots that can still be brought back
    #[command(subcommand)]
    Trash(trash::Command),
    /// Nodes and their disks
    #[command(subcommand)]
    Node(node::Command),
    /// The cluster as a whole
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// State of a rolling upgrade
    #[command(subcommand)]
    Upgrade(upgrade::Command),
    /// Repositories of backups (dog vdi backup makes them)
    #[command(subcommand)]
    Backup(backup::Command),
    /// Measure
    #[command(subcommand)]
    Benchmark(benchmark::Command),
    /// Credentials
    #[command(subcommand)]
    Secret(secret::Command),
    /// Print a completion script for a shell
    Completion(completion::Args),
    /// Explain an exit code or an error
    Explain(explain::Args),
}

impl Command {
    /// Do it.
    pub async fn run(self, ctx: &Context) -> Result<Output, Failure> {
        match self {
            Self::Vdi(c) => c.run(ctx).await,
            Self::Trash(c) => c.run(ctx).await,
            Self::Node(c) => c.run(ctx).await,
            Self::Cluster(c) => c.run(ctx).await,
            Self::Upgrade(c) => c.run(ctx).await,
            Self::Backup(c) => c.run(ctx).await,
            Self::Benchmark(c) => c.run(ctx).await,
            Self::Secret(c) => c.run(),
            Self::Completion(a) => Ok(completion::run(&a)),
            Self::Explain(a) => explain::run(&a),
        }
    }
}
