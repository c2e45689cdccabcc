//! `dog node kill`

use crate::context::{Confirm, Context};
use crate::failure::Failure;
use crate::output::Output;
use sheepdog_client::pb::KillNodeRequest;

/// Stop a sheep, and have its data rebuilt elsewhere at once
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Node: first digits of its id, or HOST:PORT
    node: String,
    /// Only stop the daemon: it is expected back before its data is rebuilt
    #[arg(long)]
    keep: bool,
    /// Also when data would be lost or is not complete elsewhere
    #[arg(long, conflicts_with = "keep")]
    force: bool,
    #[command(flatten)]
    confirm: Confirm,
}

/// Ask, stop, wait until the cluster has noticed.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let what = if args.keep { "stops" } else { "stops for good" };
    args.confirm.ask(&format!("{what} the sheep {}.", args.node))?;
    let request = KillNodeRequest { node: args.node, keep: args.keep, force: args.force };
    ctx.client().await?.kill_node(request).await?;
    Ok(Output::Nothing)
}
