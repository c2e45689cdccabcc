//! `dog vdi delete`

use crate::context::{Confirm, Context, Image};
use crate::failure::Failure;
use crate::output::{Cell, Output, Record};
use sheepdog_client::pb::DeleteVdiRequest;

/// Delete a VDI or one of its snapshots
///
/// It goes into the trash, from where `dog trash restore` brings it back until the cluster's time for that is over (24 hours, `dog cluster trash`).
/// Deleting a VDI keeps its snapshots unless --with-snapshots is given; clones are not touched either way.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// NAME or NAME@TAG
    #[arg(value_parser = Image::parse)]
    vdi: Image,
    /// Snapshot to delete: tag or number
    #[arg(short, long, value_name = "TAG")]
    snapshot: Option<String>,
    /// Delete all its snapshots too
    #[arg(long, conflicts_with = "snapshot")]
    with_snapshots: bool,
    /// Also when it is attached: it is taken away from its holders first
    #[arg(long, conflicts_with = "snapshot")]
    force: bool,
    /// Not into the trash: its space is freed at once, and nothing brings it back
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    confirm: Confirm,
}

/// Ask, delete.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let snapshot = args.vdi.with_option(&args.snapshot)?;
    if args.with_snapshots && !snapshot.is_empty() {
        return Err(Failure::usage("--with-snapshots deletes the whole VDI: leave the snapshot out"));
    }
    let what = match (snapshot.is_empty(), args.with_snapshots) {
        (false, _) => format!("snapshot {snapshot} of VDI {}", args.vdi.name),
        (_, true) => format!("VDI {} and all its snapshots", args.vdi.name),
        _ => format!("VDI {}", args.vdi.name),
    };
    let how = if args.now { " for good, not into the trash" } else { "" };
    args.confirm.ask(&format!("deletes {what}{how}."))?;
    let Args { vdi, with_snapshots, force, now, .. } = args;
    let request = DeleteVdiRequest { vdi: vdi.vdi(), snapshot, with_snapshots, force, now };
    let deleted = ctx.client().await?.delete_vdi(request).await?;
    Ok(Output::Done(Record::default().field("until", "In the trash until", Cell::Time(deleted.until_ms))))
}
