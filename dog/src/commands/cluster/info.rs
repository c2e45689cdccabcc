//! `dog cluster info`

use crate::commands::node::short;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Record, Table};
use crate::redundancy;
use crate::time;
use sheepdog_client::pb::{ClusterInfo, ClusterInfoRequest, cluster_info};

/// Condition, settings and history
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Epochs of history to show, newest first
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    history: u32,
}

const HISTORY: &[Column] = &[
    Column("epoch", "EPOCH", false),
    Column("at", "TIME", false),
    Column("up", "UP", false),
    Column("what", "WHAT", false),
    Column("nodes", "NODES", true),
];

/// A record with the history.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let info = ctx.client().await?.cluster_info(ClusterInfoRequest { history: args.history }).await?;
    Ok(Output::Record(record(&info)))
}

/// Condition in one word.
pub fn status(info: &ClusterInfo) -> &'static str {
    match info.status() {
        cluster_info::Status::WaitingForFormat => "waiting for format",
        cluster_info::Status::Ok => "ok",
        cluster_info::Status::Degraded => "degraded",
        cluster_info::Status::Impaired => "impaired",
    }
}

/// Everything about the cluster.
pub fn record(info: &ClusterInfo) -> Record {
    let r = Record::default().field("status", "Status", Cell::text(status(info))).field(
        "reasons",
        "Because",
        list(&info.reasons),
    );
    if info.id.is_empty() {
        return r.field("waiting", "Sheep that wait", list(&info.waiting));
    }
    let mut history = Table::new(HISTORY);
    for e in &info.history {
        history.row(vec![
            Cell::Number(e.epoch),
            Cell::Time(e.at_ms),
            Cell::Number(e.up.len() as u64),
            Cell::text(&e.what),
            Cell::List(e.up.iter().map(|n| short(n)).collect()),
        ]);
    }
    let seconds = |ms: u64| Cell::Real(ms as f64 / 1000.0, " s");
    let recovery = info.recovery.unwrap_or_default();
    r.field("id", "Cluster", Cell::text(&info.id))
        .field("created", "Created", Cell::Time(info.created_ms))
        .field("epoch", "Epoch", Cell::Number(info.epoch))
        .field("nodes_up", "Nodes up", Cell::Number(info.nodes_up.into()))
        .field("nodes", "Nodes", Cell::Number(info.nodes_total.into()))
        .field("leader", "Leader", Cell::text(short(&info.leader)))
        .field("voters", "Voters", Cell::List(info.voters.iter().map(|n| short(n)).collect()))
        .field("vdis", "VDIs", Cell::Number(info.vdis))
        .field("snapshots", "Snapshots", Cell::Number(info.snapshots))
        .field("trash_items", "In the trash", Cell::Number(info.trash_items))
        .field("trash_size", "Size of VDIs in the trash", Cell::Bytes(info.trash_size))
        .field("trash_keep", "Deleted things are kept for", Cell::text(time::show(info.trash_keep_ms)))
        .field("copies", "Copies", Cell::text(redundancy::show(info.redundancy.as_ref())))
        .field("min_copies", "Copies before a write is acknowledged", Cell::Number(info.min_copies.into()))
        .field("strict", "Strict zones", Cell::Bool(info.strict))
        .field("object_size", "Object size", Cell::Bytes(info.object_size.into()))
        .field(
            "store",
            "Layout of disks",
            if info.store.is_empty() { Cell::text("each sheep's") } else { Cell::text(&info.store) },
        )
        .field("recovery_enabled", "Recovery enabled", Cell::Bool(recovery.enabled))
        .field("heartbeat_s", "Heartbeat", seconds(info.heartbeat_ms))
        .field("lease_s", "Lease", seconds(info.lease_ms))
        .field("down_out_s", "Rebuilt elsewhere after", seconds(info.down_out_ms))
        .field("forced", "Losses accepted", list(&info.forced))
        .section("history", "Epochs", history)
}

fn list(l: &[String]) -> Cell {
    if l.is_empty() { Cell::None } else { Cell::List(l.to_vec()) }
}
