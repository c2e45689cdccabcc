//! `dog node vnodes`

use crate::context::Context;
use crate::failure::Failure;
use crate::output::Output;
use sheepdog_client::pb::SetWeightRequest;

/// Weight of a node: its share of the data
///
/// A node has 128 virtual nodes for each unit of weight, unless their number is fixed. Data moves until shares follow the new numbers.
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(false))]
pub struct Args {
    /// Node: first digits of its id, or HOST:PORT
    node: String,
    /// Fixed number of virtual nodes; 0 = back to weight x 128
    #[arg(group = "what", value_parser = clap::value_parser!(u32).range(0..=65536))]
    vnodes: Option<u32>,
    /// Weight, 1000 = one unit
    #[arg(long, group = "what", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    weight: Option<u32>,
}

/// Set it.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let request = SetWeightRequest { node: args.node, weight: args.weight, vnodes: args.vnodes };
    ctx.client().await?.set_weight(request).await?;
    Ok(Output::Nothing)
}
