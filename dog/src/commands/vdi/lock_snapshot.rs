//! `dog vdi lock-snapshot`

use crate::context::{Context, Image};
use crate::failure::Failure;
use crate::output::{Cell, Output, Record};
use crate::time::{self, Until};
use sheepdog_client::pb::{LockSnapshotRequest, lock_snapshot_request};

/// Keep a snapshot from being deleted before a date, by anybody
///
/// The lock can be extended, never shortened or taken back. Its VDI may be deleted into the trash, and stays there at least as long.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// NAME@TAG
    #[arg(value_parser = Image::parse)]
    vdi: Image,
    /// Snapshot: tag or number
    #[arg(short, long, value_name = "TAG")]
    snapshot: Option<String>,
    /// A date in UTC (2027-01-31 or 2027-01-31T12:30:00Z), or how long from now on (30d, 24h)
    #[arg(long, value_name = "DATE|DURATION", value_parser = time::until)]
    until: Until,
}

/// Lock.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let snapshot = args.vdi.with_option(&args.snapshot)?;
    if snapshot.is_empty() {
        return Err(Failure::usage("name the snapshot: NAME@TAG or -s TAG"));
    }
    let until = Some(match args.until {
        Until::At(ms) => lock_snapshot_request::Until::UntilMs(ms),
        Until::For(ms) => lock_snapshot_request::Until::ForMs(ms),
    });
    let request = LockSnapshotRequest { vdi: args.vdi.vdi(), snapshot, until };
    let locked = ctx.client().await?.lock_snapshot(request).await?;
    Ok(Output::Done(
        Record::default()
            .field("name", "Name", Cell::text(&args.vdi.name))
            .field("snapshot", "Snapshot", Cell::Number(locked.id.into()))
            .field("tag", "Tag", Cell::text(&locked.tag))
            .field("locked_until", "Locked until", Cell::Time(locked.locked_until_ms)),
    ))
}
