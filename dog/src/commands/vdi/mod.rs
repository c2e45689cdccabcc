//! `dog vdi ...`

mod alter_copy;
mod attach;
mod attr;
pub mod backup;
pub mod check;
mod clone;
mod create;
mod delete;
mod detach;
mod diff;
mod export;
mod flatten;
mod import;
mod limit;
mod list;
mod lock;
mod lock_snapshot;
mod object;
mod read;
mod rename;
mod resize;
pub mod restore;
mod restore_lazy;
mod rollback;
mod snapshot;
mod stat;
mod track;
mod tree;
mod write;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Cell, Output, Record};
use clap::Subcommand;
use sheepdog_client::pb::Vdi;

/// Volumes and their snapshots
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make an empty VDI
    Create(create::Args),
    /// Delete a VDI or one of its snapshots: into the trash (see dog trash)
    Delete(delete::Args),
    /// All VDIs and snapshots, or those of one VDI
    List(list::Args),
    /// Give a VDI another name
    Rename(rename::Args),
    /// Snapshot a VDI as it is now
    Snapshot(snapshot::Args),
    /// Snapshot several VDIs at one instant
    SnapshotGroup(snapshot::GroupArgs),
    /// Keep a snapshot from being deleted before a date
    LockSnapshot(lock_snapshot::Args),
    /// Make a writable copy of a VDI or snapshot, in no time
    Clone(clone::Args),
    /// Copy what a clone still reads from its source, so that it stands alone
    Flatten(flatten::Args),
    /// Make a snapshot the working image again
    Rollback(rollback::Args),
    /// Change the size of a VDI, also while it is in use
    Resize(resize::Args),
    /// Objects of a VDI
    #[command(subcommand)]
    Object(object::Command),
    /// Where an object belonged as nodes came and went
    Track(track::Args),
    /// VDIs, snapshots and clones as a tree
    Tree(tree::TreeArgs),
    /// VDIs, snapshots and clones for Graphviz
    Graph(tree::GraphArgs),
    /// Set or delete an attribute
    Setattr(attr::SetArgs),
    /// Print an attribute's value
    Getattr(attr::GetArgs),
    /// Attributes of a VDI
    Listattr(attr::ListArgs),
    /// Let a node or client use a VDI, and nobody else change it
    Attach(attach::Args),
    /// Let a node or client use a VDI no longer, whatever has become of it
    Detach(detach::Args),
    /// Locks that users took
    #[command(subcommand)]
    Lock(lock::Command),
    /// Write contents to standard output
    Read(read::Args),
    /// Write standard input into a VDI
    Write(write::Args),
    /// Make a VDI from an image file: raw, qcow2, vmdk...
    Import(import::Args),
    /// Write a VDI or snapshot to an image file: raw, qcow2, vmdk...
    Export(export::Args),
    /// Ranges that differ between two snapshots, or a snapshot and now
    Diff(diff::Args),
    /// Back up a VDI into a repository outside of the cluster
    Backup(backup::Args),
    /// Make a VDI from a backup
    Restore(restore::Args),
    /// Compare all copies of a VDI, block by block
    Check(check::Args),
    /// How fast a VDI may be used
    Limit(limit::Args),
    /// Change the number of copies of a VDI
    AlterCopy(alter_copy::Args),
    /// Requests and bytes of open VDIs
    Stat(stat::Args),
}

impl Command {
    /// Do it.
    pub async fn run(self, ctx: &Context) -> Result<Output, Failure> {
        match self {
            Self::Create(a) => create::run(ctx, a).await,
            Self::Delete(a) => delete::run(ctx, a).await,
            Self::List(a) => list::run(ctx, a).await,
            Self::Rename(a) => rename::run(ctx, a).await,
            Self::Snapshot(a) => snapshot::run(ctx, a).await,
            Self::SnapshotGroup(a) => snapshot::run_group(ctx, a).await,
            Self::LockSnapshot(a) => lock_snapshot::run(ctx, a).await,
            Self::Clone(a) => clone::run(ctx, a).await,
            Self::Flatten(a) => flatten::run(ctx, a).await,
            Self::Rollback(a) => rollback::run(ctx, a).await,
            Self::Resize(a) => resize::run(ctx, a).await,
            Self::Object(c) => c.run(ctx).await,
            Self::Track(a) => track::run(ctx, a).await,
            Self::Tree(a) => tree::run(ctx, a).await,
            Self::Graph(a) => tree::run_graph(ctx, a).await,
            Self::Setattr(a) => attr::set(ctx, a).await,
            Self::Getattr(a) => attr::get(ctx, a).await,
            Self::Listattr(a) => attr::list(ctx, a).await,
            Self::Attach(a) => attach::run(ctx, a).await,
            Self::Detach(a) => detach::run(ctx, a).await,
            Self::Lock(c) => c.run(ctx).await,
            Self::Read(a) => read::run(ctx, a).await,
            Self::Write(a) => write::run(ctx, a).await,
            Self::Import(a) => import::run(ctx, a).await,
            Self::Export(a) => export::run(ctx, a).await,
            Self::Diff(a) => diff::run(ctx, a).await,
            Self::Backup(a) => backup::run(ctx, a).await,
            Self::Restore(a) => restore::run(ctx, a).await,
            Self::Check(a) => check::run(ctx, a).await,
            Self::Limit(a) => limit::run(ctx, a).await,
            Self::AlterCopy(a) => alter_copy::run(ctx, a).await,
            Self::Stat(a) => stat::run(ctx, a).await,
        }
    }
}

/// A VDI that was made or changed.
fn record(v: &Vdi) -> Record {
    Record::default()
        .field("name", "Name", Cell::text(&v.name))
        .field("id", "VDI id", Cell::text(format!("{:06x}", v.id)))
        .field("uuid", "UUID", Cell::text(&v.uuid))
        .field("size", "Size", Cell::Bytes(v.size))
        .field("copies", "Copies", Cell::text(crate::redundancy::show(v.redundancy.as_ref())))
        .field("object_size", "Object size", Cell::Bytes(v.object_size.into()))
}
