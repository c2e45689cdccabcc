//! `dog vdi rollback`

use crate::backup::mark;
use crate::context::{Confirm, Context, Image};
use crate::failure::Failure;
use crate::output::Output;
use sheepdog_client::pb::{GetVdiRequest, RollbackRequest};

/// Make a snapshot the working image again
///
/// What was written since is lost, unless it was snapshotted. The snapshot stays.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// NAME or NAME@TAG
    #[arg(value_parser = Image::parse)]
    vdi: Image,
    /// Snapshot: tag or number
    #[arg(short, long, value_name = "TAG")]
    snapshot: Option<String>,
    #[command(flatten)]
    confirm: Confirm,
}

/// Ask, roll back.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let snapshot = args.vdi.with_option(&args.snapshot)?;
    if snapshot.is_empty() {
        return Err(Failure::usage("name the snapshot: -s TAG or NAME@TAG"));
    }
    let client = ctx.client().await?;
    let now = client.get_vdi(GetVdiRequest { vdi: args.vdi.vdi(), usage: false }).await?;
    // Its snapshots have holes where the backup has contents, and what it remembers of being restored would be wrong.
    mark::refuse(&now)?;
    args.confirm
        .ask(&format!("throws away what was written to VDI {} since snapshot {snapshot}.", args.vdi.name))?;
    client.rollback(RollbackRequest { vdi: args.vdi.vdi(), snapshot }).await?;
    Ok(Output::Nothing)
}
