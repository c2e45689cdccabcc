//! `dog cluster check`

use crate::commands::node::{node_addr, node_id};
use crate::commands::vdi::check::{Tally, check_one};
use crate::context::Context;
use crate::failure::{Failure, code};
use crate::output::{Cell, Column, Output, Record, Table};
use crate::progress::{Progress, Unit};
use sheepdog_client::pb::{ScrubReply, ScrubRequest};
use std::time::Duration;

/// Compare all copies of all VDIs, or see to the scrubbing that goes on by itself
///
/// Without an option all copies of all VDIs are compared now, one VDI after another, and told what differs. Scrubbing is done by each sheep for what is on its own disks, a week for all
/// of it, and mends what it finds: --status shows what that was, by VDI and disk, and --start has all sheep look at everything now.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Put right what differs
    #[arg(long, conflicts_with_all = ["status", "start"])]
    repair: bool,
    /// What scrubbing has found since the sheep were started
    #[arg(long)]
    status: bool,
    /// Have all sheep scrub everything now
    #[arg(long)]
    start: bool,
    /// Wait until they have
    #[arg(long, requires = "start")]
    wait: bool,
}

const COLUMNS: &[Column] = &[
    Column("name", "NAME", false),
    Column("objects", "OBJECTS", false),
    Column("bad", "BAD", false),
    Column("repaired", "REPAIRED", false),
    Column("error", "ERROR", false),
];
const NODES: &[Column] = &[
    Column("id", "ID", false),
    Column("address", "ADDRESS", false),
    Column("state", "STATE", false),
    Column("done", "DONE", false),
    Column("total", "TOTAL", false),
    Column("passes", "PASSES", false),
    Column("ended", "LAST ENDED", false),
];
const ROWS: &[Column] = &[
    Column("node", "NODE", false),
    Column("disk", "DISK", false),
    Column("vdi", "VDI", false),
    Column("objects", "OBJECTS", false),
    Column("bytes", "READ", false),
    Column("found", "FOUND", false),
    Column("mended", "MENDED", false),
];
const FINDINGS: &[Column] = &[
    Column("at", "TIME", false),
    Column("node", "NODE", false),
    Column("disk", "DISK", false),
    Column("vdi", "VDI", false),
    Column("object", "OBJECT", false),
    Column("mended", "MENDED", false),
    Column("text", "WHAT", false),
];

/// How often it is asked how far they are.
const POLL: Duration = Duration::from_millis(500);

/// One VDI after another, or scrubbing.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    if args.start || args.status {
        return scrub(ctx, &args).await;
    }
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

async fn scrub(ctx: &Context, args: &Args) -> Result<Output, Failure> {
    let client = ctx.client().await?;
    let mut reply = client.scrub(ScrubRequest { nodes: Vec::new(), start: args.start }).await?;
    if args.wait {
        let bar = Progress::new("Scrubbing", 0, Unit::Count);
        while reply.nodes.iter().any(|n| n.asked) {
            let sum = |of: fn(&_) -> u64| reply.nodes.iter().map(of).sum::<u64>();
            bar.set(sum(|n| n.done.min(n.total)), sum(|n| n.total).max(1));
            tokio::time::sleep(POLL).await;
            reply = client.scrub(ScrubRequest::default()).await?;
        }
    }
    let output = report(&reply);
    let silent = reply.nodes.iter().filter(|n| !n.error.is_empty() && n.error != "out").count();
    let rows = reply.nodes.iter().flat_map(|n| &n.rows);
    let left: u64 = rows.map(|r| r.found.saturating_sub(r.mended)).sum();
    let what = match (silent, left) {
        (0, 0) => return Ok(output),
        (0, n) => format!("{n} findings are not mended yet"),
        (n, _) => format!("{n} sheep did not answer"),
    };
    ctx.print(&output)?;
    Err(Failure::new(code::FAILED, what)
        .hint("healing goes on by itself: look again, and see dog cluster events"))
}

fn report(reply: &ScrubReply) -> Output {
    let (mut nodes, mut rows, mut findings) = (Table::new(NODES), Table::new(ROWS), Table::new(FINDINGS));
    for n in &reply.nodes {
        let state = match (n.error.is_empty(), n.asked) {
            (false, _) => n.error.clone(),
            (_, true) => "scrubbing".into(),
            _ => "as time permits".into(),
        };
        nodes.row(vec![
            Cell::text(node_id(&n.node)),
            Cell::text(node_addr(&n.node)),
            Cell::text(state),
            Cell::Number(n.done),
            Cell::Number(n.total),
            Cell::Number(n.passes),
            if n.ended_ms == 0 { Cell::None } else { Cell::Time(n.ended_ms) },
        ]);
        for r in &n.rows {
            rows.row(vec![
                Cell::text(node_id(&n.node)),
                Cell::text(&r.disk),
                Cell::text(&r.vdi),
                Cell::Number(r.objects),
                Cell::Bytes(r.bytes),
                Cell::Number(r.found),
                Cell::Number(r.mended),
            ]);
        }
        for f in &n.findings {
            findings.row(vec![
                Cell::Time(f.at_ms),
                Cell::text(node_id(&n.node)),
                Cell::text(&f.disk),
                Cell::text(&f.vdi),
                Cell::text(&f.object),
                Cell::Bool(f.mended),
                Cell::text(&f.text),
            ]);
        }
    }
    let sum = |of: fn(&_) -> u64| reply.nodes.iter().flat_map(|n| &n.rows).map(of).sum::<u64>();
    Output::Record(
        Record::default()
            .field("found", "Found", Cell::Number(sum(|r| r.found)))
            .field("mended", "Mended", Cell::Number(sum(|r| r.mended)))
            .section("nodes", "Nodes", nodes)
            .section("rows", "By VDI and disk", rows)
            .section("findings", "Last findings", findings),
    )
}
