//! `dog vdi stat`

use crate::commands::node::{mean, per_second, short, since};
use crate::context::{Context, vdi};
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Table};
use sheepdog_client::pb::{StatVdiReply, StatVdiRequest, VdiStat};
use std::collections::HashMap;
use std::time::Instant;

/// Requests and bytes of open VDIs
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only this VDI
    name: Option<String>,
    /// Go on, with rates per second since the report before; the first one comes after one interval
    #[arg(short, long)]
    watch: bool,
    /// Seconds between two reports
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
    interval: u32,
}

const COLUMNS: [Column; 13] = [
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
const TOTALS: &[Column] = &COLUMNS;
/// The same with other headings.
const RATES: &[Column] = &{
    let mut c = COLUMNS;
    c[2].1 = "READS/S";
    c[3].1 = "WRITES/S";
    c[4].1 = "DISCARDS/S";
    c[5].1 = "FLUSHES/S";
    c[6].1 = "READ/S";
    c[7].1 = "WRITTEN/S";
    c
};

/// Once, or again and again.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let interval_ms = if args.watch { args.interval * 1000 } else { 0 };
    let request = StatVdiRequest { vdi: args.name.as_deref().and_then(vdi), interval_ms };
    let mut reports = ctx.client().await?.stat_vdi(request).await?;
    let mut before: Option<(StatVdiReply, Instant)> = None;
    while let Some(report) = reports.message().await? {
        if !report.missing_nodes.is_empty() {
            eprintln!("dog: {} nodes did not answer", report.missing_nodes.len());
        }
        let now = Instant::now();
        match &before {
            _ if !args.watch => return Ok(Output::Table(table(&report, None))),
            None => {}
            Some((b, at)) => {
                let seconds = now.duration_since(*at).as_secs_f64();
                ctx.print_next(&Output::Table(table(&report, Some((b, seconds)))))?;
            }
        }
        before = Some((report, now));
    }
    Ok(Output::Nothing)
}

/// Totals, or with an earlier report and the seconds between the two: rates.
fn table(report: &StatVdiReply, before: Option<(&StatVdiReply, f64)>) -> Table {
    let old: HashMap<(u32, &str), &VdiStat> =
        before.iter().flat_map(|(b, _)| &b.vdis).map(|v| ((v.vdi, v.owner.as_str()), v)).collect();
    let seconds = before.map_or(1.0, |(_, s)| s);
    let mut table = Table::new(if before.is_some() { RATES } else { TOTALS });
    for v in &report.vdis {
        let b = old.get(&(v.vdi, v.owner.as_str())).and_then(|b| b.io.as_ref());
        let io = match before {
            None => v.io.unwrap_or_default(),
            Some(_) => since(v.io.as_ref(), b),
        };
        table.row(vec![
            Cell::text(&v.name),
            Cell::text(short(&v.owner)),
            Cell::Number(per_second(io.reads, seconds)),
            Cell::Number(per_second(io.writes, seconds)),
            Cell::Number(per_second(io.discards, seconds)),
            Cell::Number(per_second(io.flushes, seconds)),
            Cell::Bytes(per_second(io.read_bytes, seconds)),
            Cell::Bytes(per_second(io.write_bytes, seconds)),
            mean(io.read_us, io.reads),
            mean(io.write_us, io.writes),
            Cell::Number(io.errors),
            Cell::Number(v.in_flight),
            Cell::Number(v.connections),
        ]);
    }
    table
}
