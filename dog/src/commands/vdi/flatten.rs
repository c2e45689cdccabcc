//! `dog vdi flatten`

use crate::context::{Context, vdi};
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::{Progress, Unit};
use sheepdog_client::pb::FlattenRequest;

/// Copy what a clone still reads from its source, so that it stands alone
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Clone
    name: String,
}

/// Flatten, and wait for it.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let mut steps = ctx.client().await?.flatten(FlattenRequest { vdi: vdi(&args.name) }).await?;
    let bar = Progress::new("Flattening", 0, Unit::Count);
    while let Some(p) = steps.message().await? {
        bar.set(p.done, p.total);
    }
    Ok(Output::Nothing)
}
