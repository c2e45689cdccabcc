//! `dog trash restore`

use super::{called, find, id, ids};
use crate::context::Context;
use crate::failure::{Failure, code};
use crate::output::{Cell, Output, Record};
use sheepdog_client::pb::RestoreTrashRequest;

/// Bring a deleted VDI or snapshot back
///
/// With every byte that it had. A VDI comes with the snapshots that were deleted along with it; a snapshot comes back to its VDI.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// NAME (the newest of that name), NAME@TAG, or an id as dog trash list shows it
    which: String,
    /// Another name, or for a snapshot another tag, than it had
    #[arg(long = "as", value_name = "NEW")]
    new: Option<String>,
}

/// Find, bring back.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    if args.new.as_deref() == Some("") {
        return Err(Failure::usage("the new name is empty: leave --as out for the one it had"));
    }
    let client = ctx.client().await?;
    let (all, _) = client.all_trash(false).await?;
    let found = find(&all, &args.which)?;
    let (newest, others) = (found[0], &found[1..]);
    if others.iter().any(|t| t.deleted_ms == newest.deleted_ms) {
        return Err(Failure::new(code::FAILED, format!("{} could be {}", args.which, ids(&found)))
            .hint("give the id: dog trash list shows more of them"));
    }
    let name = args.new.unwrap_or_default();
    let request = RestoreTrashRequest { vdi: newest.vdi, snapshot: newest.snapshot, name };
    let vdi = client.restore_trash(request).await?;
    if !others.is_empty() {
        eprintln!(
            "dog: {} is back, the newest of that name; still in the trash: {}",
            called(newest),
            ids(others)
        );
    }
    let tag = vdi.snapshots.iter().find(|s| s.id == newest.snapshot).map(|s| s.tag.clone());
    Ok(Output::Done(
        Record::default()
            .field("name", "Name", Cell::text(&vdi.name))
            .field("tag", "Tag", Cell::text(tag.unwrap_or_default()))
            .field("id", "Id", Cell::text(id(newest)))
            .field("size", "Size", Cell::Bytes(newest.size)),
    ))
}
