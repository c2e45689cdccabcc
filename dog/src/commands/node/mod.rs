//! `dog node ...`

mod drain;
mod info;
mod kill;
mod list;
mod log;
mod md;
mod recovery;
mod stat;
mod vnodes;

use crate::context::Context;
use crate::failure::Failure;
use crate::output::Output;
use clap::Subcommand;
use sheepdog_client::pb::{Node, node};

/// Nodes and their disks
#[derive(Subcommand, Debug)]
pub enum Command {
    /// All nodes of the cluster
    List,
    /// Space on the nodes
    Info(info::Args),
    /// Data that is being moved or restored, and its speed limit
    Recovery(recovery::Args),
    /// Disks of the nodes
    #[command(subcommand)]
    Md(md::Command),
    /// Stop a sheep, and have its data rebuilt elsewhere at once
    Kill(kill::Args),
    /// Move everything away from a node
    Drain(drain::Args),
    /// Requests and bytes of the nodes
    Stat(stat::Args),
    /// Log level of a running sheep
    #[command(subcommand)]
    Log(log::Command),
    /// Weight of a node: its share of the data
    Vnodes(vnodes::Args),
}

impl Command {
    /// Do it.
    pub async fn run(self, ctx: &Context) -> Result<Output, Failure> {
        match self {
            Self::List => list::run(ctx).await,
            Self::Info(a) => info::run(ctx, a).await,
            Self::Recovery(a) => recovery::run(ctx, a).await,
            Self::Md(c) => c.run(ctx).await,
            Self::Kill(a) => kill::run(ctx, a).await,
            Self::Drain(a) => drain::run(ctx, a).await,
            Self::Stat(a) => stat::run(ctx, a).await,
            Self::Log(c) => c.run(ctx).await,
            Self::Vnodes(a) => vnodes::run(ctx, a).await,
        }
    }
}

pub use recovery::settings as recovery_settings;
pub use stat::{mean, per_second, since};

/// First digits of a node's id: what people type.
pub fn short(id: &str) -> String {
    id.chars().take(8).collect()
}

/// A node's state in one word.
pub fn state(n: &Node) -> &'static str {
    match n.state() {
        node::State::Up => "up",
        node::State::Draining => "draining",
        node::State::Down => "down",
        node::State::Out => "out",
    }
}

/// Id of the node of a row.
pub fn node_id(n: &Option<Node>) -> String {
    n.as_ref().map(|n| short(&n.id)).unwrap_or_default()
}

/// `host:port` of the node of a row.
pub fn node_addr(n: &Option<Node>) -> String {
    n.as_ref().map(|n| format!("{}:{}", n.host, n.client_port)).unwrap_or_default()
}
