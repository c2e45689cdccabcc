//! `dog vdi track`

use crate::commands::node::short;
use crate::context::{Context, vdi};
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Table};
use sheepdog_client::pb::TrackRequest;

/// Where an object belonged as nodes came and went
///
/// Shows every placement that the cluster still remembers: old ones are forgotten once all data has moved.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// VDI
    name: String,
    /// Object: offset / object size
    #[arg(short, long, default_value_t = 0)]
    index: u32,
}

const COLUMNS: &[Column] = &[Column("epoch", "SINCE EPOCH", false), Column("nodes", "NODES", false)];

/// A row for each placement.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let reply = ctx.client().await?.track(TrackRequest { vdi: vdi(&args.name), index: args.index }).await?;
    let mut table = Table::new(COLUMNS);
    for p in &reply.placements {
        table.row(vec![Cell::Number(p.epoch), Cell::List(p.nodes.iter().map(|n| short(n)).collect())]);
    }
    Ok(Output::Table(table))
}
