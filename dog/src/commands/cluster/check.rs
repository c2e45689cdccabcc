//! `dog cluster check`

use crate::commands::vdi::check::{Tally, check_one};
use crate::context::Context;
use crate::failure::{Failure, code};
use crate::output::{Cell, Column, Output, Table};

/// Compare all copies of all VDIs
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Put right what differs
    #[arg(long)]
    repair: bool,
}

const COLUMNS: &[Column] = &[
    Column("name", "NAME", false),
    Column("objects", "OBJECTS", false),
    Column("bad", "BAD", false),
    Column("repaired", "REPAIRED", false),
    Column("error", "ERROR", false),
];

/// One VDI after another.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let vdis = ctx.client().await?.all_vdis("", false).await?;
    let mut table = Table::new(COLUMNS);
    let mut left = 0;
    let mut failed = 0;
    for v in vdis {
        let (tally, error) = match check_one(ctx, &v.name, "", args.repair).await {
            Ok(t) => (t, String::new()),
            // Deleted meanwhile.
            Err(f) if f.code == 5 => continue,
            Err(f) => (Tally::default(), f.message),
        };
        left += tally.bad - tally.repaired;
        failed += usize::from(!error.is_empty());
        table.row(vec![
            Cell::text(&v.name),
            Cell::Number(tally.objects),
            Cell::Number(tally.bad),
            Cell::Number(tally.repaired),
            Cell::text(error),
        ]);
    }
    if left == 0 && failed == 0 {
        return Ok(Output::Table(table));
    }
    ctx.print(&Output::Table(table))?;
    let what = if failed > 0 {
        format!("{failed} VDIs could not be checked")
    } else {
        format!("{left} copies are not as they should be")
    };
    let f = Failure::new(code::FAILED, what);
    Err(if args.repair || left == 0 { f } else { f.hint("add --repair") })
}
