//! `dog vdi check`

use crate::commands::node::short;
use crate::context::{Context, Image};
use crate::failure::{Failure, code};
use crate::output::{Cell, Output, Record};
use crate::progress::{Progress, Unit};
use sheepdog_client::pb::CheckRequest;

/// Compare all copies of a VDI, block by block
///
/// Fails when a copy is not as it should be and was not repaired. Findings go to standard error, the sum to standard output.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// NAME or NAME@TAG
    #[arg(value_parser = Image::parse)]
    vdi: Image,
    /// Snapshot: tag or number
    #[arg(short, long, value_name = "TAG")]
    snapshot: Option<String>,
    /// Put right what differs
    #[arg(long)]
    repair: bool,
}

/// Sum of a check.
#[derive(Default)]
pub struct Tally {
    /// Objects looked at.
    pub objects: u64,
    /// Copies not as they should be.
    pub bad: u64,
    /// Of these, put right.
    pub repaired: u64,
}

/// Check one VDI, with findings told as they come.
pub async fn check_one(ctx: &Context, name: &str, snapshot: &str, repair: bool) -> Result<Tally, Failure> {
    let request = CheckRequest { vdi: crate::context::vdi(name), snapshot: snapshot.into(), repair };
    let mut reports = ctx.client().await?.check(request).await?;
    let bar = Progress::new(&format!("Checking {name}"), 0, Unit::Count);
    let mut tally = Tally::default();
    let mut finished = false;
    while let Some(r) = reports.message().await? {
        bar.set(r.objects_done, r.objects_total);
        if let Some(f) = &r.finding {
            let done = if f.repaired { " (repaired)" } else { "" };
            bar.line(&format!("{name}: object {} on node {}: {}{done}", f.object, short(&f.node), f.text));
        }
        tally = Tally { objects: r.objects_done, bad: r.bad, repaired: r.repaired };
        finished = r.finished;
    }
    if !finished {
        return Err(Failure::new(code::CLUSTER, "the check was cut short"));
    }
    Ok(tally)
}

/// Check.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let snapshot = args.vdi.with_option(&args.snapshot)?;
    let t = check_one(ctx, &args.vdi.name, &snapshot, args.repair).await?;
    let output = Output::Record(
        Record::default()
            .field("objects", "Objects", Cell::Number(t.objects))
            .field("bad", "Bad copies", Cell::Number(t.bad))
            .field("repaired", "Repaired", Cell::Number(t.repaired)),
    );
    if t.bad == t.repaired {
        return Ok(output);
    }
    ctx.print(&output)?;
    let f = Failure::new(code::FAILED, format!("{} copies are not as they should be", t.bad - t.repaired));
    Err(if args.repair { f } else { f.hint("add --repair") })
}
