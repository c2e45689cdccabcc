//! `dog cluster alter-copy`

use crate::context::Context;
use crate::failure::Failure;
use crate::output::Output;
use crate::redundancy::Copies;
use sheepdog_client::pb::AlterCopiesRequest;

/// Copies of VDIs that are made from now on
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    copies: Copies,
}

/// Set the default.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let redundancy = args.copies.to_pb().ok_or_else(|| Failure::usage("say how many copies: --copies N"))?;
    ctx.client().await?.alter_copies(AlterCopiesRequest { redundancy: Some(redundancy) }).await?;
    Ok(Output::Nothing)
}
