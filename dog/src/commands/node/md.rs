//! `dog node md info|plug|unplug`

use super::{node_addr, node_id};
use crate::context::{Confirm, Context};
use crate::failure::{Failure, code};
use crate::output::{Cell, Column, Output, Record, Table};
use crate::progress::{Progress, Unit};
use clap::Subcommand;
use sheepdog_client::Client;
use sheepdog_client::pb::{
    ClusterInfoRequest, NodeDisk, NodeInfoRequest, PlugDiskRequest, UnplugDiskRequest, node_disk,
};
use std::time::Duration;

/// Between two looks at a disk that is being emptied.
const LOOK: Duration = Duration::from_millis(500);
/// Looks without an answer after which it is given up.
const SILENT: u32 = 60;

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
    /// Take a disk out of use: what is on it moves to the node's other disks first
    ///
    /// No volume has one copy less meanwhile. `dog node md plug` with its directory lets the disk stay after all. A sheep that is restarted before the end uses the
    /// disk again.
    Unplug {
        /// Disk: first digits of its id, or its directory
        disk: String,
        /// Node; the one that dog talks to if left out
        #[arg(short, long, default_value = "")]
        node: String,
        /// At once: give up what is on it. It is rebuilt from other nodes, where those have it
        #[arg(long)]
        force: bool,
        /// Do not wait until it is empty
        #[arg(long, conflicts_with = "force")]
        no_wait: bool,
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
    Column("full_in_days", "FULL IN", true),
    Column("objects", "OBJECTS", true),
    Column("reason", "REASON", false),
];

fn state(d: &NodeDisk) -> &'static str {
    match d.state() {
        node_disk::State::Ok => "ok",
        node_disk::State::Full => "full",
        node_disk::State::Failed => "failed",
        node_disk::State::Retired => "retired",
        node_disk::State::Leaving => "leaving",
        node_disk::State::Suspect => "suspect",
    }
}

/// Wait until a disk is out of use, with a progress bar on a terminal.
async fn emptied(client: &Client, node: &str, disk: &str) -> Result<(), Failure> {
    let bar = Progress::new("Emptying", 0, Unit::Bytes);
    let (mut most, mut said, mut silent) = (0, String::new(), 0);
    loop {
        silent += 1;
        let reply = client.node_info(NodeInfoRequest { nodes: vec![node.to_owned()] }).await?;
        let rows = reply.nodes.iter().filter(|n| n.error.is_empty());
        let mut rows = rows.peekable();
        if rows.peek().is_some() {
            silent = 0;
            let found = rows.flat_map(|n| &n.disks).find(|d| d.id == disk);
            let Some(d) = found else { return Ok(()) };
            match d.state() {
                node_disk::State::Leaving => {}
                node_disk::State::Retired => return Ok(()),
                other => {
                    let now = NodeDisk { state: other.into(), ..Default::default() };
                    let text = format!("disk {disk} is not being emptied any more, it is {}", state(&now));
                    return Err(Failure::new(code::FAILED, text)
                        .hint("somebody let it stay, or its sheep was restarted: see `dog node md info`"));
                }
            }
            most = most.max(d.used);
            bar.set(most - d.used, most.max(1));
            if d.reason != said {
                said.clone_from(&d.reason);
                bar.line(&said);
            }
        }
        if silent > SILENT {
            let text = format!("node {node} does not say whether disk {disk} is empty");
            return Err(Failure::new(code::FAILED, text).hint("it goes on there: see `dog node md info`"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Of one node, or of the one that answers: the node and the full id of the disk.
async fn find(client: &Client, node: &str, disk: &str) -> Result<(String, String), Failure> {
    let id = match node {
        "" => client.cluster_info(ClusterInfoRequest { history: 0 }).await?.answered_by,
        node => node.to_owned(),
    };
    let reply = client.node_info(NodeInfoRequest { nodes: vec![id.clone()] }).await?;
    let wanted = disk.trim_end_matches('/');
    let is = |d: &&NodeDisk| d.path.trim_end_matches('/') == wanted || d.id.starts_with(wanted);
    let used = |d: &&NodeDisk| d.state() != node_disk::State::Retired;
    let all: Vec<&NodeDisk> = reply.nodes.iter().flat_map(|n| &n.disks).filter(is).filter(used).collect();
    match all[..] {
        [d] => Ok((id, d.id.clone())),
        // The sheep says what is wrong.
        _ => Ok((id, disk.to_owned())),
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
                            d.full_in_s.map_or(Cell::None, |s| Cell::Real(s as f64 / 86_400.0, " d")),
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
            Self::Unplug { disk, node, force, no_wait, confirm } => {
                let what = if force {
                    "gives up what is on it: that is rebuilt from other nodes, where those have it"
                } else {
                    "moves what is on it to the node's other disks"
                };
                confirm.ask(&format!("takes disk {disk} out of use and {what}."))?;
                let (node, disk) = find(client, &node, &disk).await?;
                let request = UnplugDiskRequest { node: node.clone(), disk: disk.clone(), force };
                client.unplug_disk(request).await?;
                if !force && !no_wait {
                    emptied(client, &node, &disk).await?;
                }
                Ok(Output::Nothing)
            }
        }
    }
}
