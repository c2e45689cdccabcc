//! `dog node recovery`

use super::{node_addr, node_id};
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Record, Table};
use crate::progress::{Progress, Unit};
use crate::size;
use clap::Subcommand;
use sheepdog_client::pb::{RecoveryReply, RecoveryRequest, RecoverySettings, SetRecoveryRequest};

/// Without a subcommand: what is still to be moved
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Wait until it is over, with a progress bar on a terminal
    #[arg(long)]
    progress: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Subcommands
#[derive(Subcommand, Debug)]
enum Command {
    /// Show or set how fast data may be moved, per node
    Throttle {
        /// Bytes a second, for example 100M; 0 = no limit
        #[arg(long, value_name = "SIZE", value_parser = size::parse)]
        max_bytes_per_s: Option<u64>,
        /// Objects at a time
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
        concurrency: Option<u32>,
    },
}

const COLUMNS: &[Column] = &[
    Column("id", "ID", false),
    Column("address", "ADDRESS", false),
    Column("state", "STATE", false),
    Column("done", "DONE", false),
    Column("total", "TOTAL", false),
    Column("percent", "PERCENT", false),
    Column("bytes_moved", "MOVED", true),
    Column("waiting", "WAITS FOR", false),
];

/// Show, watch or throttle.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let client = ctx.client().await?;
    if let Some(Command::Throttle { max_bytes_per_s, concurrency }) = args.command {
        let request = SetRecoveryRequest { enabled: None, max_bytes_per_s, concurrency };
        return Ok(Output::Record(settings(&client.set_recovery(request).await?)));
    }
    if args.progress {
        return watch(ctx, None).await;
    }
    let report = client.recovery(RecoveryRequest { interval_ms: 0 }).await?.message().await?;
    Ok(Output::Table(table(&report.unwrap_or_default())))
}

/// Wait until every node (or this one) is complete.
pub async fn watch(ctx: &Context, drained: Option<&str>) -> Result<Output, Failure> {
    let mut reports = ctx.client().await?.recovery(RecoveryRequest { interval_ms: 500 }).await?;
    let bar = Progress::new(if drained.is_some() { "Draining" } else { "Recovery" }, 0, Unit::Count);
    let mut last = RecoveryReply::default();
    while let Some(report) = reports.message().await? {
        let done: u64 = report.nodes.iter().map(|n| n.objects_done).sum();
        let total: u64 = report.nodes.iter().map(|n| n.objects_total).sum();
        bar.set(done, total.max(1));
        let idle = report.idle;
        last = report;
        if idle {
            break;
        }
    }
    drop(bar);
    Ok(Output::Table(table(&last)))
}

/// The switches.
pub fn settings(s: &RecoverySettings) -> Record {
    let limit = if s.max_bytes_per_s == 0 { Cell::None } else { Cell::Bytes(s.max_bytes_per_s) };
    Record::default()
        .field("enabled", "Recovery enabled", Cell::Bool(s.enabled))
        .field("max_bytes_per_s", "Limit per second and node", limit)
        .field("concurrency", "Objects at a time", Cell::Number(s.concurrency.into()))
}

fn table(report: &RecoveryReply) -> Table {
    let enabled = report.settings.as_ref().is_none_or(|s| s.enabled);
    let mut table = Table::new(COLUMNS);
    for n in &report.nodes {
        let state = match (n.error.is_empty(), n.complete, enabled) {
            (false, ..) => n.error.clone(),
            (_, true, _) => "complete".into(),
            (_, _, false) => "paused".into(),
            _ => "recovering".into(),
        };
        let percent = match (n.complete, n.objects_total) {
            (true, _) => Cell::Real(100.0, "%"),
            (_, 0) => Cell::None,
            (_, t) => Cell::Real(n.objects_done as f64 * 100.0 / t as f64, "%"),
        };
        table.row(vec![
            Cell::text(node_id(&n.node)),
            Cell::text(node_addr(&n.node)),
            Cell::text(state),
            Cell::Number(n.objects_done),
            Cell::Number(n.objects_total),
            percent,
            Cell::Bytes(n.bytes_moved),
            Cell::text(&n.waiting),
        ]);
    }
    table
}
