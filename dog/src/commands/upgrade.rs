//! `dog upgrade check|status|finish`

use crate::context::Context;
use crate::failure::{Failure, code};
use crate::output::{Cell, Column, Output, Record, Table};
use clap::Subcommand;
use sheepdog_client::pb::{ClusterInfoRequest, ListNodesRequest, Node, node};
use std::collections::BTreeMap;

/// State of a rolling upgrade
#[derive(Subcommand, Debug)]
pub enum Command {
    /// May a sheep be restarted now? Fails when one should wait
    ///
    /// Restart one sheep at a time, and the next only when this succeeds: then every volume has all its copies.
    Check,
    /// Which node runs which version
    Status,
    /// Switch to the newest format once all nodes run the new version
    Finish,
}

const COLUMNS: &[Column] = &[
    Column("node", "NODE", false),
    Column("address", "ADDRESS", false),
    Column("state", "STATE", false),
    Column("version", "VERSION", false),
];

fn versions(nodes: &[Node]) -> BTreeMap<&str, usize> {
    let mut count = BTreeMap::new();
    for n in nodes.iter().filter(|n| n.state() != node::State::Out) {
        *count.entry(n.version.as_str()).or_default() += 1;
    }
    count
}

impl Command {
    /// Do it.
    pub async fn run(self, ctx: &Context) -> Result<Output, Failure> {
        let client = ctx.client().await?;
        let nodes = client.list_nodes(ListNodesRequest {}).await?.nodes;
        match self {
            Self::Status => {
                let mut table = Table::new(COLUMNS);
                for n in &nodes {
                    table.row(vec![
                        Cell::text(super::node::short(&n.id)),
                        Cell::text(format!("{}:{}", n.host, n.client_port)),
                        Cell::text(super::node::state(n)),
                        Cell::text(&n.version),
                    ]);
                }
                Ok(Output::Table(table))
            }
            Self::Check => {
                let info = client.cluster_info(ClusterInfoRequest { history: 0 }).await?;
                if !info.reasons.is_empty() {
                    let text = format!("not now: {}", info.reasons.join("; "));
                    return Err(Failure::new(code::CLUSTER, text)
                        .hint("`dog node recovery --progress` shows when it is over"));
                }
                let text: Vec<String> = versions(&nodes).iter().map(|(v, n)| format!("{n} x {v}")).collect();
                Ok(Output::Record(Record::default().field("ready", "Ready", Cell::Bool(true)).field(
                    "versions",
                    "Versions",
                    Cell::List(text),
                )))
            }
            Self::Finish => {
                let count = versions(&nodes);
                if count.len() > 1 {
                    let text: Vec<String> = count.iter().map(|(v, n)| format!("{n} x {v}")).collect();
                    return Err(Failure::new(
                        code::CLUSTER,
                        format!("nodes run different versions: {}", text.join(", ")),
                    )
                    .hint("upgrade the rest first: `dog upgrade status`"));
                }
                // Every format of this release is the only one there is.
                Ok(Output::Done(Record::default().field("finished", "Finished", Cell::Bool(true))))
            }
        }
    }
}
