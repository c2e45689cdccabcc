//! `dog cluster trash`

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Cell, Output, Record};
use crate::time;
use sheepdog_client::pb::{ClusterInfoRequest, SetTrashRequest};

/// How long deleted VDIs and snapshots can be brought back: shows it, or changes it for what is deleted from then on
///
/// What is in the trash already keeps the time it was given (`dog trash list`).
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Duration, for example 24h or 7d; 0 to delete at once
    #[arg(long, value_name = "DURATION", value_parser = time::duration)]
    keep: Option<u64>,
}

/// Set, show.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let client = ctx.client().await?;
    let set = client.set_trash(SetTrashRequest { keep_ms: args.keep }).await?;
    let info = client.cluster_info(ClusterInfoRequest { history: 0 }).await?;
    let record = Record::default()
        .field("keep", "Deleted things are kept for", Cell::text(time::show(set.keep_ms)))
        .field("items", "VDIs and snapshots in the trash", Cell::Number(info.trash_items))
        .field("size", "Size of these VDIs", Cell::Bytes(info.trash_size));
    Ok(if args.keep.is_some() { Output::Done(record) } else { Output::Record(record) })
}
