//! `dog node stat`

use super::{node_addr, node_id};
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Table};
use sheepdog_client::pb::{IoStat, NodeStat, StatNodeReply, StatNodeRequest};
use std::collections::HashMap;
use std::time::Instant;

/// Requests and bytes of the nodes, since they started
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Node: first digits of its id, or HOST:PORT; all without one
    node: Vec<String>,
    /// Go on, with rates per second since the report before; the first one comes after one interval
    #[arg(short, long)]
    watch: bool,
    /// Seconds between two reports
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
    interval: u32,
}

const COLUMNS: [Column; 18] = [
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
const TOTALS: &[Column] = &COLUMNS;
/// The same with other headings.
const RATES: &[Column] = &{
    let mut c = COLUMNS;
    c[2].1 = "READS/S";
    c[3].1 = "WRITES/S";
    c[4].1 = "READ/S";
    c[5].1 = "WRITTEN/S";
    c[10].1 = "PEER READS/S";
    c[11].1 = "PEER WRITES/S";
    c
};

/// Once, or again and again.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let interval_ms = if args.watch { args.interval * 1000 } else { 0 };
    let mut reports =
        ctx.client().await?.stat_node(StatNodeRequest { nodes: args.node, interval_ms }).await?;
    let mut before: Option<(StatNodeReply, Instant)> = None;
    while let Some(report) = reports.message().await? {
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

/// What was added since `before`.
pub fn since(now: Option<&IoStat>, before: Option<&IoStat>) -> IoStat {
    let (Some(n), Some(b)) = (now, before) else { return IoStat::default() };
    // A restarted process counts from 0 again.
    let added = |n: u64, b: u64| n.checked_sub(b).unwrap_or(n);
    IoStat {
        reads: added(n.reads, b.reads),
        writes: added(n.writes, b.writes),
        discards: added(n.discards, b.discards),
        flushes: added(n.flushes, b.flushes),
        read_bytes: added(n.read_bytes, b.read_bytes),
        write_bytes: added(n.write_bytes, b.write_bytes),
        read_us: added(n.read_us, b.read_us),
        write_us: added(n.write_us, b.write_us),
        errors: added(n.errors, b.errors),
    }
}

/// Per second.
pub fn per_second(n: u64, seconds: f64) -> u64 {
    (n as f64 / seconds.max(1e-3)).round() as u64
}

/// Mean latency.
pub fn mean(us: u64, count: u64) -> Cell {
    if count == 0 { Cell::None } else { Cell::Real(us as f64 / count as f64, " us") }
}

/// Totals, or with an earlier report and the seconds between the two: rates. What happens now is not divided.
fn table(report: &StatNodeReply, before: Option<(&StatNodeReply, f64)>) -> Table {
    let old: HashMap<String, &NodeStat> =
        before.iter().flat_map(|(b, _)| &b.nodes).map(|n| (node_id(&n.node), n)).collect();
    let seconds = before.map_or(1.0, |(_, s)| s);
    let mut table = Table::new(if before.is_some() { RATES } else { TOTALS });
    for n in &report.nodes {
        let b = old.get(&node_id(&n.node));
        let io = |of: fn(&NodeStat) -> Option<&IoStat>| match before {
            None => of(n).copied().unwrap_or_default(),
            Some(_) => since(of(n), b.and_then(|b| of(b))),
        };
        let (c, p) = (io(|n| n.client.as_ref()), io(|n| n.peer.as_ref()));
        table.row(vec![
            Cell::text(node_id(&n.node)),
            Cell::text(node_addr(&n.node)),
            Cell::Number(per_second(c.reads, seconds)),
            Cell::Number(per_second(c.writes, seconds)),
            Cell::Bytes(per_second(c.read_bytes, seconds)),
            Cell::Bytes(per_second(c.write_bytes, seconds)),
            mean(c.read_us, c.reads),
            mean(c.write_us, c.writes),
            Cell::Number(c.errors),
            Cell::Number(n.client_active + n.peer_active),
            Cell::Number(per_second(p.reads, seconds)),
            Cell::Number(per_second(p.writes, seconds)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    fn report(rows: &[(&str, u64, u64)]) -> StatNodeReply {
        let node = |(id, reads, us): &(&str, u64, u64)| NodeStat {
            node: Some(sheepdog_client::pb::Node { id: (*id).into(), ..Default::default() }),
            client: Some(IoStat { reads: *reads, read_us: *us, ..Default::default() }),
            ..Default::default()
        };
        StatNodeReply { nodes: rows.iter().map(node).collect() }
    }

    fn raw(t: Table) -> Vec<(String, String)> {
        let text = Output::Table(t).render(Format::Raw, false);
        let row = |l: &str| {
            let words: Vec<&str> = l.split(' ').collect();
            (words[1].to_owned(), words[5].to_owned())
        };
        text.lines().map(row).collect()
    }

    #[test]
    fn rates_are_of_the_time_between_two_reports() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let before = report(&[("a", 100, 1_000), ("b", 500, 9_000)]);
        assert_eq!(raw(table(&before, None)), [pair("100", "10.000"), pair("500", "18.000")]);
        // b was restarted, c has come.
        let now = report(&[("a", 140, 2_000), ("b", 4, 8), ("c", 9_999, 1)]);
        let rates = raw(table(&now, Some((&before, 2.0))));
        assert_eq!(rates, [pair("20", "25.000"), pair("2", "2.000"), pair("0", "-")]);
    }
}
