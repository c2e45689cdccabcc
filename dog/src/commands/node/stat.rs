//! `dog node stat`

use super::{node_addr, node_id};
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Table};
use sheepdog_client::pb::{IoStat, NodeStat, StatNodeReply, StatNodeRequest};
use std::collections::HashMap;

/// Requests and bytes of the nodes
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Node: first digits of its id, or HOST:PORT; all without one
    node: Vec<String>,
    /// Go on, with rates per second since the last line
    #[arg(short, long)]
    watch: bool,
    /// Seconds between two reports
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
    interval: u32,
}

const COLUMNS: &[Column] = &[
    Column("id", "ID", false),
    Column("address", "ADDRESS", true),
    Column("reads", "READS", false),
    Column("writes", "WRITES", false),
    Column("read_bytes", "READ", false),
    Column("write_bytes", "WRITTEN", false),
    Column("read_us", "READ LATENCY", false),
    Column("write_us", "WRITE LATENCY", false),
    Column("errors", "ERRORS", false),
    Column("active", "ACTIVE", false),
    Column("peer_reads", "PEER READS", false),
    Column("peer_writes", "PEER WRITES", false),
    Column("connections", "CONNECTIONS", true),
    Column("sessions", "SESSIONS", true),
    Column("journal", "JOURNAL", true),
    Column("memory", "MEMORY", true),
    Column("uptime_s", "UPTIME", true),
    Column("error", "ERROR", false),
];

/// Once, or again and again.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let interval_ms = if args.watch { args.interval * 1000 } else { 0 };
    let mut reports =
        ctx.client().await?.stat_node(StatNodeRequest { nodes: args.node, interval_ms }).await?;
    if !args.watch {
        let report = reports.message().await?.unwrap_or_default();
        return Ok(Output::Table(table(&report, None, 1.0)));
    }
    let mut before: Option<StatNodeReply> = None;
    while let Some(report) = reports.message().await? {
        ctx.print_next(&Output::Table(table(&report, before.as_ref(), args.interval.into())))?;
        before = Some(report);
    }
    Ok(Output::Nothing)
}

/// What was added since `before`, per second.
pub fn rate(now: Option<&IoStat>, before: Option<&IoStat>, seconds: f64) -> IoStat {
    let now = now.copied().unwrap_or_default();
    let Some(b) = before else { return now };
    // A restarted process counts from 0 again.
    let per = |n: u64, b: u64| (n.saturating_sub(b) as f64 / seconds) as u64;
    IoStat {
        reads: per(now.reads, b.reads),
        writes: per(now.writes, b.writes),
        discards: per(now.discards, b.discards),
        flushes: per(now.flushes, b.flushes),
        read_bytes: per(now.read_bytes, b.read_bytes),
        write_bytes: per(now.write_bytes, b.write_bytes),
        read_us: per(now.read_us, b.read_us),
        write_us: per(now.write_us, b.write_us),
        errors: now.errors.saturating_sub(b.errors),
    }
}

/// Mean latency.
pub fn mean(us: u64, count: u64) -> Cell {
    if count == 0 { Cell::None } else { Cell::Real(us as f64 / count as f64, " us") }
}

fn table(report: &StatNodeReply, before: Option<&StatNodeReply>, seconds: f64) -> Table {
    let old: HashMap<String, &NodeStat> =
        before.iter().flat_map(|b| &b.nodes).map(|n| (node_id(&n.node), n)).collect();
    let mut table = Table::new(COLUMNS);
    for n in &report.nodes {
        let b = old.get(&node_id(&n.node));
        let c = rate(n.client.as_ref(), b.and_then(|b| b.client.as_ref()), seconds);
        let p = rate(n.peer.as_ref(), b.and_then(|b| b.peer.as_ref()), seconds);
        table.row(vec![
            Cell::text(node_id(&n.node)),
            Cell::text(node_addr(&n.node)),
            Cell::Number(c.reads),
            Cell::Number(c.writes),
            Cell::Bytes(c.read_bytes),
            Cell::Bytes(c.write_bytes),
            mean(c.read_us, c.reads),
            mean(c.write_us, c.writes),
            Cell::Number(c.errors),
            Cell::Number(n.client_active + n.peer_active),
            Cell::Number(p.reads),
            Cell::Number(p.writes),
            Cell::Number(n.connections),
            Cell::Number(n.sessions),
            Cell::Bytes(n.journal_bytes),
            Cell::Bytes(n.resident_bytes),
            Cell::Real(n.uptime_ms as f64 / 1000.0, " s"),
            Cell::text(&n.error),
        ]);
    }
    table
}
