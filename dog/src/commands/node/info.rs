//! `dog node info`

use super::{node_addr, node_id};
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Record, Table};
use sheepdog_client::pb::NodeInfoRequest;

/// Space on the nodes
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Node: first digits of its id, or HOST:PORT; all without one
    node: Vec<String>,
}

const COLUMNS: &[Column] = &[
    Column("id", "ID", false),
    Column("address", "ADDRESS", false),
    Column("size", "SIZE", false),
    Column("used", "USED", false),
    Column("avail", "AVAIL", false),
    Column("use_percent", "USE%", false),
    Column("objects", "OBJECTS", true),
    Column("disks", "DISKS", true),
    Column("error", "ERROR", false),
];

/// A row of each node, and the sum.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let reply = ctx.client().await?.node_info(NodeInfoRequest { nodes: args.node }).await?;
    let mut table = Table::new(COLUMNS);
    let (mut size, mut used, mut free) = (0, 0, 0);
    for n in &reply.nodes {
        (size, used, free) = (size + n.total, used + n.used, free + n.free);
        let known = n.error.is_empty();
        let bytes = |b| if known { Cell::Bytes(b) } else { Cell::None };
        table.row(vec![
            Cell::text(node_id(&n.node)),
            Cell::text(node_addr(&n.node)),
            bytes(n.total),
            bytes(n.used),
            bytes(n.free),
            percent(n.total, n.free),
            if known { Cell::Number(n.objects) } else { Cell::None },
            if known { Cell::Number(n.disks.len() as u64) } else { Cell::None },
            Cell::text(&n.error),
        ]);
    }
    Ok(Output::Record(
        Record::default()
            .field("size", "Size of all disks", Cell::Bytes(size))
            .field("used", "Used by objects", Cell::Bytes(used))
            .field("avail", "Available", Cell::Bytes(free))
            .field("virtual_size", "Size of all VDIs", Cell::Bytes(reply.virtual_size))
            .field("trash_size", "Size of VDIs in the trash", Cell::Bytes(reply.trash_size))
            .section("nodes", "Nodes", table),
    ))
}

fn percent(total: u64, free: u64) -> Cell {
    if total == 0 {
        Cell::None
    } else {
        Cell::Real((total - free.min(total)) as f64 * 100.0 / total as f64, "%")
    }
}
