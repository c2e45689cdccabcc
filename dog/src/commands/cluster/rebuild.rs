//! `dog cluster rebuild --from-disks`

use crate::context::{Confirm, Context};
use crate::failure::Failure;
use crate::output::Output;
use sheepdog_client::pb::RebuildRequest;

/// Bring back a cluster whose control plane was lost from its data disks
///
/// Start all sheep with their old disks first, then run this on one of them. VDIs, snapshots and names come from what the disks remember.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Read the state back from the data disks
    #[arg(long, required = true)]
    from_disks: bool,
    /// Also when some of the sheep that the disks remember do not wait to be taken in
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    confirm: Confirm,
}

/// Rebuild.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    debug_assert!(args.from_disks);
    args.confirm.ask(
        "starts a new control plane from the data disks: use it only when the old one is lost for good.",
    )?;
    let info = ctx.client().await?.rebuild(RebuildRequest { force: args.force }).await?;
    Ok(Output::Record(super::info::record(&info)))
}
