//! `dog vdi limit`

use crate::context::{Context, vdi};
use crate::failure::Failure;
use crate::output::{Cell, Output, Record};
use crate::size;
use sheepdog_client::limits::{Rate, Wish};
use sheepdog_client::pb::{GetVdiRequest, Limits, SetLimitsRequest};

/// How fast a VDI may be used: shows it, or changes it at once
///
/// At each gateway that has the VDI open. A request of more than 1 MiB counts as several.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// VDI
    name: String,
    /// Requests a second, 0 for as many as there are
    #[arg(long, value_name = "N")]
    iops: Option<u64>,
    /// Requests that may go at once after a pause; a second's worth if left out
    #[arg(long, value_name = "N", requires = "iops")]
    iops_burst: Option<u64>,
    /// Bytes a second, 0 for as many as there are
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    bandwidth: Option<u64>,
    /// Bytes that may go at once after a pause; a second's worth if left out
    #[arg(long, value_name = "SIZE", value_parser = size::parse, requires = "bandwidth")]
    bandwidth_burst: Option<u64>,
    /// No limits any more
    #[arg(long, conflicts_with_all = ["iops", "bandwidth"])]
    none: bool,
}

/// What is not named stays.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let client = ctx.client().await?;
    let found = client.get_vdi(GetVdiRequest { vdi: vdi(&args.name), usage: false }).await?;
    let was = found.limits.unwrap_or_default();
    let new = if args.none { Limits::default() } else { wish(&args).on(was) };
    if new != was {
        client.set_limits(SetLimitsRequest { vdi: vdi(&args.name), limits: Some(new) }).await?;
    }
    let count = |n| if n == 0 { Cell::None } else { Cell::Number(n) };
    let bytes = |n| if n == 0 { Cell::None } else { Cell::Bytes(n) };
    Ok(Output::Record(
        Record::default()
            .field("iops", "Requests a second", count(new.iops))
            .field("iops_burst", "Burst", count(new.iops_burst))
            .field("bandwidth", "Bytes a second", bytes(new.bandwidth))
            .field("bandwidth_burst", "Burst", bytes(new.bandwidth_burst)),
    ))
}

fn wish(args: &Args) -> Wish {
    let rate = |n: Option<u64>, burst| n.map(|per_second| Rate { per_second, burst });
    Wish { iops: rate(args.iops, args.iops_burst), bandwidth: rate(args.bandwidth, args.bandwidth_burst) }
}
