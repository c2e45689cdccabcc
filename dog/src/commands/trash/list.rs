//! `dog trash list`

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Table};

/// What is in the trash, first what leaves it first
///
/// USED is what it takes on all disks together, with the snapshots that were deleted along with it. At UNTIL it is really deleted.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Do not ask the nodes how much space is used
    #[arg(long)]
    fast: bool,
}

const COLUMNS: &[Column] = &[
    Column("kind", "KIND", false),
    Column("name", "NAME", false),
    Column("tag", "TAG", false),
    Column("id", "ID", false),
    Column("size", "SIZE", false),
    Column("used", "USED", false),
    Column("deleted", "DELETED", false),
    Column("until", "UNTIL", false),
    Column("snapshots", "SNAPSHOTS", true),
    Column("locked_until", "LOCKED UNTIL", true),
];

/// A row for each thing.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let (all, missing) = ctx.client().await?.all_trash(!args.fast).await?;
    if !missing.is_empty() {
        eprintln!("dog: {} nodes did not answer: USED is too low", missing.len());
    }
    let mut table = Table::new(COLUMNS);
    for t in &all {
        table.row(vec![
            Cell::text(if t.snapshot == 0 { "vdi" } else { "snapshot" }),
            Cell::text(&t.name),
            Cell::text(&t.tag),
            Cell::text(super::id(t)),
            Cell::Bytes(t.size),
            t.used.map_or(Cell::None, Cell::Bytes),
            Cell::Time(t.deleted_ms),
            Cell::Time(t.until_ms),
            Cell::Number(t.snapshots.into()),
            Cell::Time(t.locked_until_ms),
        ]);
    }
    Ok(Output::Table(table))
}
