//! `dog vdi resize`

use crate::context::{Confirm, Context, vdi};
use crate::failure::Failure;
use crate::output::Output;
use crate::size;
use sheepdog_client::pb::ResizeRequest;

/// Change the size of a VDI, also while it is in use
#[derive(clap::Args, Debug)]
pub struct Args {
    /// VDI
    name: String,
    /// New size
    #[arg(value_parser = size::parse_positive)]
    size: u64,
    /// The new size may be smaller: what lies beyond it is lost
    #[arg(long)]
    shrink: bool,
    #[command(flatten)]
    confirm: Confirm,
}

/// Resize.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    if args.shrink {
        args.confirm.ask(&format!("loses what VDI {} has beyond {}.", args.name, size::show(args.size)))?;
    }
    let request =
        ResizeRequest { vdi: vdi(&args.name), size: args.size.next_multiple_of(512), shrink: args.shrink };
    let vdi = ctx.client().await?.resize(request).await?;
    Ok(Output::Done(super::record(&vdi)))
}
