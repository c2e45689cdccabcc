//! `dog node drain`

use crate::context::{Confirm, Context};
use crate::failure::Failure;
use crate::output::Output;
use sheepdog_client::pb::DrainNodeRequest;

/// Move everything away from a node
///
/// It serves on while its data is copied to the others. When `dog node recovery` shows everything complete it can be killed without loss.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Node: first digits of its id, or HOST:PORT
    node: String,
    /// Stop draining: the node takes data again
    #[arg(long)]
    cancel: bool,
    /// Begin although what it holds does not fit on the disks of the others
    #[arg(long, conflicts_with = "cancel")]
    force: bool,
    /// Wait until it is empty, with a progress bar on a terminal
    #[arg(long, conflicts_with = "cancel")]
    wait: bool,
    #[command(flatten)]
    confirm: Confirm,
}

/// Start or cancel, and perhaps wait.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    if !args.cancel {
        args.confirm.ask(&format!("moves all data away from node {}.", args.node))?;
    }
    let request = DrainNodeRequest { node: args.node.clone(), cancel: args.cancel, force: args.force };
    ctx.client().await?.drain_node(request).await?;
    if args.wait {
        return super::recovery::watch(ctx, Some(&args.node)).await;
    }
    Ok(Output::Nothing)
}
