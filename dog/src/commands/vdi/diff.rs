//! `dog vdi diff`

use crate::context::{Context, vdi};
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Table};
use sheepdog_client::pb::DiffRequest;

/// Ranges that differ between two snapshots, or a snapshot and now
///
/// Without --from: everything that is allocated.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// VDI
    name: String,
    /// Older snapshot: tag or number
    #[arg(short = 'F', long, value_name = "TAG")]
    from: Option<String>,
    /// Newer snapshot; the working image if left out
    #[arg(short = 's', long, value_name = "TAG")]
    to: Option<String>,
}

const COLUMNS: &[Column] =
    &[Column("offset", "OFFSET", false), Column("length", "LENGTH", false), Column("zero", "ZERO", false)];

/// A row for each range.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let request = DiffRequest {
        vdi: vdi(&args.name),
        from: args.from.unwrap_or_default(),
        to: args.to.unwrap_or_default(),
    };
    let mut ranges = ctx.client().await?.diff(request).await?;
    let mut table = Table::new(COLUMNS);
    while let Some(r) = ranges.message().await? {
        table.row(vec![Cell::Number(r.offset), Cell::Number(r.length), Cell::Bool(r.zero)]);
    }
    Ok(Output::Table(table))
}
