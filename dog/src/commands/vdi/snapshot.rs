//! `dog vdi snapshot` and `dog vdi snapshot-group`

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Table};
use sheepdog_client::pb::{SnapshotRequest, VdiRef};

/// Snapshot a VDI as it is now
///
/// Takes milliseconds whatever the size. Clients go on; what they were told is written is in the snapshot.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// VDI
    name: String,
    /// Tag: unique for this VDI
    #[arg(short, long = "snapshot", value_name = "TAG")]
    snapshot: Option<String>,
}

/// Snapshot several VDIs at one instant
///
/// All or none. No write is in one of the snapshots while an earlier one is missing in another.
#[derive(clap::Args, Debug)]
pub struct GroupArgs {
    /// VDIs
    #[arg(required = true, num_args = 1..=256)]
    names: Vec<String>,
    /// Tag of all of them
    #[arg(short, long = "snapshot", value_name = "TAG")]
    snapshot: Option<String>,
}

const COLUMNS: &[Column] = &[
    Column("name", "NAME", false),
    Column("snapshot", "ID", false),
    Column("tag", "TAG", false),
    Column("size", "SIZE", false),
];

/// One.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    take(ctx, vec![args.name], args.snapshot).await
}

/// Several.
pub async fn run_group(ctx: &Context, args: GroupArgs) -> Result<Output, Failure> {
    take(ctx, args.names, args.snapshot).await
}

async fn take(ctx: &Context, names: Vec<String>, tag: Option<String>) -> Result<Output, Failure> {
    if tag.as_deref() == Some("") {
        return Err(Failure::usage("the tag is empty: leave -s out for a snapshot with a number only"));
    }
    let vdis = names.iter().map(VdiRef::name).collect();
    let reply = ctx.client().await?.snapshot(SnapshotRequest { vdis, tag: tag.unwrap_or_default() }).await?;
    let mut table = Table::new(COLUMNS);
    for m in &reply.made {
        let s = m.snapshot.clone().unwrap_or_default();
        table.row(vec![
            Cell::text(&m.name),
            Cell::Number(s.id.into()),
            Cell::text(&s.tag),
            Cell::Bytes(s.size),
        ]);
    }
    Ok(Output::Made(table))
}
