//! `dog cluster events`

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Table};
use clap::ValueEnum;
use sheepdog_client::pb::{Event, EventsRequest, event};

/// What happened
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Go on as things happen
    #[arg(short, long)]
    follow: bool,
    /// Only events after the one with this number
    #[arg(long, default_value_t = 0, value_name = "ID")]
    after: u64,
    /// Only this bad or worse
    #[arg(long, value_enum, default_value_t)]
    level: Level,
}

/// How bad.
#[derive(ValueEnum, Debug, Clone, Copy, Default)]
enum Level {
    /// Normal life
    #[default]
    Info,
    /// Redundancy or space is reduced
    Warning,
    /// Data or service is affected
    Error,
}

const COLUMNS: &[Column] = &[
    Column("id", "ID", false),
    Column("at", "TIME", false),
    Column("level", "LEVEL", false),
    Column("text", "WHAT", false),
];

fn row(table: &mut Table, e: &Event) {
    let level = match e.level() {
        event::Level::Info => "info",
        event::Level::Warning => "warning",
        event::Level::Error => "error",
    };
    table.row(vec![Cell::Number(e.id), Cell::Time(e.at_ms), Cell::text(level), Cell::text(&e.text)]);
}

/// All, or all and then those that follow.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let min_level = match args.level {
        Level::Info => event::Level::Info,
        Level::Warning => event::Level::Warning,
        Level::Error => event::Level::Error,
    };
    let request = EventsRequest { after: args.after, follow: args.follow, min_level: min_level.into() };
    let mut events = ctx.client().await?.events(request).await?;
    let mut table = Table::new(COLUMNS);
    while let Some(e) = events.message().await? {
        row(&mut table, &e);
        if args.follow {
            let one = std::mem::replace(&mut table, Table::new(COLUMNS));
            ctx.print_next(&Output::Table(one.without_header()))?;
        }
    }
    Ok(if args.follow { Output::Nothing } else { Output::Table(table) })
}
