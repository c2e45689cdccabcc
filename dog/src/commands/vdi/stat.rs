//! `dog vdi stat`

use crate::commands::node::{mean, rate, short};
use crate::context::{Context, vdi};
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Table};
use sheepdog_client::pb::{StatVdiReply, StatVdiRequest, VdiStat};
use std::collections::HashMap;

/// Requests and bytes of open VDIs
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only this VDI
    name: Option<String>,
    /// Go on, with rates per second since the last report
    #[arg(short, long)]
    watch: bool,
    /// Seconds between two reports
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
    interval: u32,
}

const COLUMNS: &[Column] = &[
    Column("name", "NAME", false),
    Column("owner", "OWNER", false),
    Column("reads", "READS", false),
    Column("writes", "WRITES", false),
    Column("discards", "DISCARDS", true),
    Column("flushes", "FLUSHES", true),
    Column("read_bytes", "READ", false),
    Column("write_bytes", "WRITTEN", false),
    Column("read_us", "READ LATENCY", false),
    Column("write_us", "WRITE LATENCY", false),
    Column("errors", "ERRORS", false),
    Column("in_flight", "IN FLIGHT", false),
    Column("connections", "CONNECTIONS", true),
];

/// Once, or again and again.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let interval_ms = if args.watch { args.interval * 1000 } else { 0 };
    let request = StatVdiRequest { vdi: args.name.as_deref().and_then(vdi), interval_ms };
    let mut reports = ctx.client().await?.stat_vdi(request).await?;
    let mut before: Option<StatVdiReply> = None;
    while let Some(report) = reports.message().await? {
        if !report.missing_nodes.is_empty() {
            eprintln!("dog: {} nodes did not answer", report.missing_nodes.len());
        }
        let shown = Output::Table(table(&report, before.as_ref(), args.interval.into()));
        if !args.watch {
            return Ok(shown);
        }
        ctx.print_next(&shown)?;
        before = Some(report);
    }
    Ok(Output::Nothing)
}

fn table(report: &StatVdiReply, before: Option<&StatVdiReply>, seconds: f64) -> Table {
    let old: HashMap<(u32, &str), &VdiStat> =
        before.iter().flat_map(|b| &b.vdis).map(|v| ((v.vdi, v.owner.as_str()), v)).collect();
    let mut table = Table::new(COLUMNS);
    for v in &report.vdis {
        let b = old.get(&(v.vdi, v.owner.as_str())).and_then(|b| b.io.as_ref());
        let io = rate(v.io.as_ref(), b, seconds);
        table.row(vec![
            Cell::text(&v.name),
            Cell::text(short(&v.owner)),
            Cell::Number(io.reads),
            Cell::Number(io.writes),
            Cell::Number(io.discards),
            Cell::Number(io.flushes),
            Cell::Bytes(io.read_bytes),
            Cell::Bytes(io.write_bytes),
            mean(io.read_us, io.reads),
            mean(io.write_us, io.writes),
            Cell::Number(io.errors),
            Cell::Number(v.in_flight),
            Cell::Number(v.connections),
        ]);
    }
    table
}
