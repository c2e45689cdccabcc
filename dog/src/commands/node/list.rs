//! `dog node list`

use super::{short, state};
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Cell, Column, Format, Output, Table};
use sheepdog_client::pb::ListNodesRequest;

const COLUMNS: &[Column] = &[
    Column("id", "ID", false),
    Column("address", "ADDRESS", false),
    Column("state", "STATE", false),
    Column("zone", "ZONE", false),
    Column("vnodes", "VNODES", false),
    Column("role", "ROLE", false),
    Column("synced", "COMPLETE TO", true),
    Column("since", "SINCE", true),
    Column("peer_port", "PEER PORT", true),
    Column("version", "VERSION", true),
    Column("uuid", "UUID", true),
];

/// All nodes.
pub async fn run(ctx: &Context) -> Result<Output, Failure> {
    let reply = ctx.client().await?.list_nodes(ListNodesRequest {}).await?;
    let mut table = Table::new(COLUMNS);
    for n in &reply.nodes {
        let role = match (n.leader, n.voter) {
            (true, _) => "leader",
            (_, true) => "voter",
            _ => "",
        };
        let role = if n.gateway { format!("gateway {role}").trim().to_owned() } else { role.to_owned() };
        let vnodes = n.vnodes.map_or(u64::from(n.weight) * 128 / 1000, u64::from).max(1);
        table.row(vec![
            Cell::text(short(&n.id)),
            Cell::text(format!("{}:{}", n.host, n.client_port)),
            Cell::text(state(n)),
            Cell::text(&n.zone),
            Cell::Number(if n.gateway { 0 } else { vnodes }),
            Cell::text(role),
            Cell::Number(n.synced),
            Cell::Time(n.since_ms),
            Cell::Number(n.peer_port.into()),
            Cell::text(&n.version),
            Cell::text(&n.id),
        ]);
    }
    if reply.trash_items > 0 && matches!(ctx.global.output, Format::Table | Format::Wide) {
        let n = reply.trash_items;
        eprintln!("dog: {n} deleted VDIs and snapshots are in the trash and take space (dog trash list)");
    }
    Ok(Output::Table(table))
}
