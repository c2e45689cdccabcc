//! `dog cluster shutdown`

use crate::context::{Confirm, Context};
use crate::failure::Failure;
use crate::output::Output;
use sheepdog_client::pb::ShutdownRequest;

/// Stop all sheep in order
///
/// They come back with all data in any order of starting.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    confirm: Confirm,
}

/// Stop.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    args.confirm.ask("stops every sheep of the cluster: all volumes become unreachable.")?;
    ctx.client().await?.shutdown(ShutdownRequest {}).await?;
    Ok(Output::Nothing)
}
