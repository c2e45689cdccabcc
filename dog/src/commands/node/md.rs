//! `dog node md info|plug|unplug`

use super::{node_addr, node_id};
use crate::context::{Confirm, Context};
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Record, Table};
use clap::Subcommand;
use sheepdog_client::pb::{NodeDisk, NodeInfoRequest, PlugDiskRequest, UnplugDiskRequest, node_disk};

/// Disks of the nodes
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Disks and their state
    Info {
        /// Node: first digits of its id, or HOST:PORT; all without one
        node: Vec<String>,
    },
    /// Take a directory of a node into use as a disk
    Plug {
        /// Directory on that node
        path: String,
        /// Node; the one that dog talks to if left out
        #[arg(short, long, default_value = "")]
        node: String,
    },
    /// Take a disk out of use; its data is rebuilt from other nodes
    Unplug {
        /// Disk: first digits of its id, or its directory
        disk: String,
        /// Node; the one that dog talks to if left out
        #[arg(short, long, default_value = "")]
        node: String,
        /// Also when it is the node's only disk
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        confirm: Confirm,
    },
}

const COLUMNS: &[Column] = &[
    Column("node", "NODE", false),
    Column("address", "ADDRESS", true),
    Column("disk", "DISK", false),
    Column("path", "PATH", false),
    Column("state", "STATE", false),
    Column("size", "SIZE", false),
    Column("used", "USED", false),
    Column("avail", "AVAIL", false),
    Column("objects", "OBJECTS", true),
    Column("reason", "REASON", false),
];

fn state(d: &NodeDisk) -> &'static str {
    match d.state() {
        node_disk::State::Ok => "ok",
        node_disk::State::Full => "full",
        node_disk::State::Failed => "failed",
        node_disk::State::Retired => "retired",
    }
}

impl Command {
    /// Do it.
    pub async fn run(self, ctx: &Context) -> Result<Output, Failure> {
        let client = ctx.client().await?;
        match self {
            Self::Info { node } => {
                let reply = client.node_info(NodeInfoRequest { nodes: node }).await?;
                let mut table = Table::new(COLUMNS);
                for n in &reply.nodes {
                    if !n.error.is_empty() {
                        eprintln!("dog: node {} ({}): {}", node_id(&n.node), node_addr(&n.node), n.error);
                    }
                    for d in &n.disks {
                        table.row(vec![
                            Cell::text(node_id(&n.node)),
                            Cell::text(node_addr(&n.node)),
                            Cell::text(super::short(&d.id)),
                            Cell::text(&d.path),
                            Cell::text(state(d)),
                            Cell::Bytes(d.total),
                            Cell::Bytes(d.used),
                            Cell::Bytes(d.free),
                            Cell::Number(d.objects),
                            Cell::text(&d.reason),
                        ]);
                    }
                }
                Ok(Output::Table(table))
            }
            Self::Plug { path, node } => {
                let d = client.plug_disk(PlugDiskRequest { node, path }).await?;
                Ok(Output::Done(
                    Record::default()
                        .field("disk", "Disk", Cell::text(&d.id))
                        .field("path", "Path", Cell::text(&d.path))
                        .field("size", "Size", Cell::Bytes(d.total)),
                ))
            }
            Self::Unplug { disk, node, force, confirm } => {
                confirm.ask(&format!(
                    "takes disk {disk} out of use: what it holds is rebuilt from other nodes."
                ))?;
                client.unplug_disk(UnplugDiskRequest { node, disk, force }).await?;
                Ok(Output::Nothing)
            }
        }
    }
}
