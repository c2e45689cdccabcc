//! `dog cluster format`

use crate::context::Context;
use crate::failure::Failure;
use crate::output::Output;
use crate::redundancy::Copies;
use crate::size;
use crate::time;
use clap::ValueEnum;
use sheepdog_client::pb::FormatRequest;

/// Make an empty cluster of the sheep that wait for it
///
/// The sheep that dog talks to starts the cluster and takes in the others that know it through --seed. Refused when it is formatted already.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    copies: Copies,
    /// Copies that must have a write before it is acknowledged (default: copies - 1, at least 1)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    min_copies: Option<u8>,
    /// Refuse VDIs that ask for more copies than there are zones
    #[arg(short = 't', long)]
    strict: bool,
    /// Object size of new VDIs, 1M to 64M (default 4M)
    #[arg(long, value_name = "SIZE", value_parser = size::parse_positive)]
    object_size: Option<u64>,
    /// How objects lie on disks that have none yet, whatever `sheep --store` says (default: as each sheep says)
    #[arg(short = 'b', long, value_enum)]
    store: Option<Store>,
    /// How long deleted VDIs and snapshots can be brought back, for example 7d; 0 to delete at once (default 24h)
    #[arg(long, value_name = "DURATION", value_parser = time::duration)]
    trash_keep: Option<u64>,
    /// Wait until this many sheep that store data have joined
    #[arg(long, value_name = "N", default_value_t = 0)]
    nodes: u32,
}

/// Layouts on disk.
#[derive(ValueEnum, Debug, Clone, Copy)]
enum Store {
    /// All objects in one directory
    Plain,
    /// In a tree of directories
    Tree,
}

/// Format.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let object_size = args.object_size.unwrap_or(0);
    let request = FormatRequest {
        redundancy: args.copies.to_pb(),
        min_copies: args.min_copies.unwrap_or(0).into(),
        strict: args.strict,
        object_size: u32::try_from(object_size).map_err(|_| Failure::usage("an object has at most 64M"))?,
        wait_for_nodes: args.nodes,
        trash_keep_ms: args.trash_keep,
        store: match args.store {
            None => "",
            Some(Store::Plain) => "plain",
            Some(Store::Tree) => "tree",
        }
        .into(),
    };
    let info = ctx.client().await?.format(request).await?;
    Ok(Output::Done(super::info::record(&info)))
}
