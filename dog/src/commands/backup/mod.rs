//! `dog backup ...`: what is in a repository. None of it needs a cluster.

mod delete;
mod list;
mod prune;
mod serve;
mod verify;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Cell, Output, Record};
use clap::Subcommand;
use sheepdog_backup::Manifest;

/// Repositories of backups (dog vdi backup makes them)
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Backups, oldest first
    List(list::Args),
    /// Read all contents of backups and compare them with their checksums
    Verify(verify::Args),
    /// Delete backups; prune gives their room back
    Delete(delete::Args),
    /// Delete what no backup needs, and with --keep-last old backups before
    Prune(prune::Args),
    /// Let NBD clients read a backup as it lies there
    Serve(serve::Args),
}

impl Command {
    /// Do it.
    pub async fn run(self, ctx: &Context) -> Result<Output, Failure> {
        match self {
            Self::List(a) => list::run(a).await,
            Self::Verify(a) => verify::run(a).await,
            Self::Delete(a) => delete::run(a).await,
            Self::Prune(a) => prune::run(a).await,
            Self::Serve(a) => serve::run(ctx, a).await,
        }
    }
}

/// A backup that was made.
pub fn row(m: &Manifest) -> Record {
    Record::default()
        .field("id", "Backup", Cell::text(&m.id))
        .field("volume", "VDI", Cell::text(&m.volume.name))
        .field("tag", "Snapshot", Cell::text(&m.snapshot.tag))
        .field("size", "Size", Cell::Bytes(m.volume.size))
        .field("data", "Contents", Cell::Bytes(m.data))
        .field("added", "Added", Cell::Bytes(m.added))
        .field("stored", "Stored", Cell::Bytes(m.stored))
}
