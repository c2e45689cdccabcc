//! `dog cluster ...`

mod absent;
mod alter_copy;
mod bundle;
mod check;
mod events;
mod format;
mod info;
mod rebuild;
mod recover;
mod shutdown;
mod snapshot;
mod trash;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::Output;
use clap::Subcommand;

/// The cluster as a whole
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Condition, settings and history
    Info(info::Args),
    /// Make an empty cluster of the sheep that wait for it
    Format(format::Args),
    /// Stop all sheep in order
    Shutdown(shutdown::Args),
    /// Compare all copies of all VDIs
    Check(check::Args),
    /// Copies of VDIs that are made from now on
    AlterCopy(alter_copy::Args),
    /// How long deleted VDIs and snapshots can be brought back
    Trash(trash::Args),
    /// Pause, resume or force recovery
    #[command(subcommand)]
    Recover(recover::Command),
    /// Bring back a cluster whose control plane was lost from its data disks
    Rebuild(rebuild::Args),
    /// What happened
    Events(events::Args),
    /// Copies of the whole cluster in a repository
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Users and keys of S3 and Swift
    #[command(subcommand)]
    User(absent::User),
    /// Write everything that helps to find a fault into one file
    SupportBundle(bundle::Args),
}

impl Command {
    /// Do it.
    pub async fn run(self, ctx: &Context) -> Result<Output, Failure> {
        match self {
            Self::Info(a) => info::run(ctx, a).await,
            Self::Format(a) => format::run(ctx, a).await,
            Self::Shutdown(a) => shutdown::run(ctx, a).await,
            Self::Check(a) => check::run(ctx, a).await,
            Self::AlterCopy(a) => alter_copy::run(ctx, a).await,
            Self::Trash(a) => trash::run(ctx, a).await,
            Self::Recover(c) => c.run(ctx).await,
            Self::Rebuild(a) => rebuild::run(ctx, a).await,
            Self::Events(a) => events::run(ctx, a).await,
            Self::Snapshot(c) => c.run(ctx).await,
            Self::User(c) => c.run(),
            Self::SupportBundle(a) => bundle::run(ctx, a).await,
        }
    }
}
