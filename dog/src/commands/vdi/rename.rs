//! `dog vdi rename`

use crate::context::{Context, vdi};
use crate::failure::Failure;
use crate::output::Output;
use sheepdog_client::pb::RenameVdiRequest;

/// Give a VDI another name
#[derive(clap::Args, Debug)]
pub struct Args {
    /// VDI
    name: String,
    /// New name
    new_name: String,
}

/// Rename.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let request = RenameVdiRequest { vdi: vdi(&args.name), name: args.new_name };
    ctx.client().await?.rename_vdi(request).await?;
    Ok(Output::Nothing)
}
