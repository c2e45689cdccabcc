//! `dog vdi alter-copy`

use crate::context::{Context, vdi};
use crate::failure::Failure;
use crate::output::Output;
use crate::redundancy::Copies;
use sheepdog_client::pb::AlterVdiCopiesRequest;

/// Change the number of copies of a VDI
#[derive(clap::Args, Debug)]
pub struct Args {
    /// VDI
    name: String,
    #[command(flatten)]
    copies: Copies,
}

/// Change it.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let redundancy = args.copies.to_pb().ok_or_else(|| Failure::usage("say how many copies: --copies N"))?;
    let request = AlterVdiCopiesRequest { vdi: vdi(&args.name), redundancy: Some(redundancy) };
    ctx.client().await?.alter_vdi_copies(request).await?;
    Ok(Output::Nothing)
}
