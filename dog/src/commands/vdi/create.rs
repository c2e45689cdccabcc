//! `dog vdi create`

use crate::context::Context;
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::{Progress, Unit};
use crate::redundancy::Copies;
use crate::size;
use sheepdog_client::pb::{CreateVdiRequest, PreallocateRequest, VdiRef};

/// Make an empty VDI
///
/// Space is taken as it is written, unless --prealloc is given.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Name: 1 to 255 bytes without @, / and #
    name: String,
    /// Size, for example 512M or 10G (powers of 1024)
    #[arg(value_parser = size::parse_positive)]
    size: u64,
    #[command(flatten)]
    copies: Copies,
    /// Take all the space now
    #[arg(short = 'P', long)]
    prealloc: bool,
    /// Object size, 1M to 64M (default: the cluster's)
    #[arg(long, value_name = "SIZE", value_parser = size::parse_positive)]
    object_size: Option<u64>,
}

/// Make it, and perhaps fill it.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let object_size = args.object_size.unwrap_or(0);
    let request = CreateVdiRequest {
        name: args.name,
        size: args.size.next_multiple_of(512),
        redundancy: args.copies.to_pb(),
        object_size: u32::try_from(object_size).map_err(|_| Failure::usage("an object has at most 64M"))?,
        uuid: uuid::Uuid::new_v4().to_string(),
        ..Default::default()
    };
    let client = ctx.client().await?;
    let vdi = client.create_vdi(request).await?;
    if args.prealloc {
        let mut steps = client.preallocate(PreallocateRequest { vdi: Some(VdiRef::id(vdi.id)) }).await?;
        let bar = Progress::new("Allocating", vdi.size, Unit::Bytes);
        while let Some(p) = steps.message().await? {
            bar.set(p.done, p.total);
        }
    }
    Ok(Output::Done(super::record(&vdi)))
}
