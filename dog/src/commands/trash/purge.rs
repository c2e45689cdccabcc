//! `dog trash purge`

use super::{called, find, ids};
use crate::context::{Confirm, Context};
use crate::failure::{Failure, code};
use crate::output::Output;
use sheepdog_client::ErrorKind;
use sheepdog_client::pb::{PurgeTrashRequest, TrashItem};

/// Really delete what is in the trash
///
/// Its space is freed, and nothing brings it back. What holds a locked snapshot stays until the lock ends.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// NAME, NAME@TAG, or an id as dog trash list shows it
    which: Option<String>,
    /// Everything
    #[arg(long, conflicts_with = "which")]
    all: bool,
    /// Do not ask, either
    #[arg(short = 'f', hide = true)]
    force: bool,
    #[command(flatten)]
    confirm: Confirm,
}

/// Ask, purge.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    if args.which.is_none() && !args.all {
        return Err(Failure::usage("name what is to be deleted for good, or say --all"));
    }
    let client = ctx.client().await?;
    let (all, _) = client.all_trash(false).await?;
    let chosen: Vec<&TrashItem> = match &args.which {
        None => all.iter().collect(),
        Some(which) => {
            let found = find(&all, which)?;
            if found.len() > 1 {
                return Err(Failure::new(code::FAILED, format!("{which} could be {}", ids(&found)))
                    .hint("give the id: dog trash list shows more of them"));
            }
            found
        }
    };
    let what = match chosen.as_slice() {
        [] => return Ok(Output::Nothing),
        [one] => called(one),
        many => format!("{} VDIs and snapshots", many.len()),
    };
    if !args.force {
        args.confirm.ask(&format!("deletes {what} for good."))?;
    }
    let mut kept = None;
    for t in chosen {
        match client.purge_trash(PurgeTrashRequest { vdi: t.vdi, snapshot: t.snapshot }).await {
            // Its time was over meanwhile.
            Err(e) if args.all && e.kind == ErrorKind::Missing => {}
            // Of everything, what is locked stays and the rest goes.
            Err(e) if args.all && e.kind == ErrorKind::Busy => {
                eprintln!("dog: {} stays: {}", called(t), e.message);
                kept = Some(Failure::from(e));
            }
            done => {
                done?;
            }
        }
    }
    kept.map_or(Ok(Output::Nothing), Err)
}
