//! `dog vdi clone`

use crate::context::{Context, Image};
use crate::failure::Failure;
use crate::output::Output;
use crate::redundancy::Copies;
use crate::size;
use sheepdog_client::pb::CreateVdiRequest;

/// Make a writable copy of a VDI or snapshot, in no time
///
/// The clone reads what it does not have from its source. Without a snapshot, one is taken of the source as it is now.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// NAME or NAME@TAG
    #[arg(value_parser = Image::parse)]
    source: Image,
    /// Name of the clone
    name: String,
    /// Snapshot to clone: tag or number
    #[arg(short, long, value_name = "TAG")]
    snapshot: Option<String>,
    /// Larger than the source
    #[arg(long, value_parser = size::parse_positive)]
    size: Option<u64>,
    /// Copy everything in, in the background, so that it stands alone
    #[arg(long)]
    flatten: bool,
    #[command(flatten)]
    copies: Copies,
}

/// Clone.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let request = CreateVdiRequest {
        name: args.name,
        size: args.size.unwrap_or(0).next_multiple_of(512),
        redundancy: args.copies.to_pb(),
        uuid: uuid::Uuid::new_v4().to_string(),
        source: args.source.vdi(),
        source_snapshot: args.source.with_option(&args.snapshot)?,
        flatten: args.flatten,
        object_size: 0,
    };
    let vdi = ctx.client().await?.create_vdi(request).await?;
    Ok(Output::Done(super::record(&vdi)))
}
