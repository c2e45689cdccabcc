//! `dog vdi restore`

use crate::backup::{At, load, readable};
use crate::context::Context;
use crate::failure::{Failure, code};
use crate::output::Output;
use crate::redundancy::Copies;
use sheepdog_backup::{Index, Manifest, Repository};
use sheepdog_client::pb::{DeleteVdiRequest, Redundancy, VdiRef};

/// Make a VDI from a backup
///
/// Into this or any other cluster. Every chunk is checked before it is written.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    at: At,
    /// Which one: VOLUME (its latest), VOLUME@TAG, or the beginning of an id as dog backup list shows it. May be left out when there is only one
    backup: Option<String>,
    /// Name of the new VDI; that of the backup if left out
    name: Option<String>,
    #[command(flatten)]
    copies: Copies,
    /// Leave out what is damaged (it reads as zeros), and fail at the end
    #[arg(long)]
    keep_going: bool,
}

/// Make, fill; what is half filled is deleted again.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let repository = args.at.open().await?;
    let all = readable(&repository).await?;
    let found = match (&args.backup, all.as_slice()) {
        (Some(b), _) => Repository::find(&all, b)?,
        (None, [only]) => only,
        (None, _) => {
            return Err(Failure::usage("the repository has several backups: say which")
                .hint("dog backup list names them"));
        }
    };
    let lock = match repository.lock("restore").await {
        Ok(lock) => Some(lock),
        // Who may only read it restores all the same.
        Err(e @ sheepdog_backup::Error::Place { .. }) => {
            ctx.remark(&format!("nobody keeps a prune away meanwhile: {e}"));
            None
        }
        Err(e) => return Err(e.into()),
    };
    let restored = restore(ctx, &repository, found, &args).await;
    if let Some(lock) = lock {
        lock.release().await?;
    }
    restored
}

/// Redundancy as it was, where it is not said.
pub fn redundancy(of: &Manifest, asked: &Copies) -> Option<Redundancy> {
    let was = || of.volume.redundancy.parse().ok().map(|copies| Redundancy { copies, ..Default::default() });
    asked.to_pb().or_else(was)
}

async fn restore(
    ctx: &Context,
    repository: &Repository,
    found: &Manifest,
    args: &Args,
) -> Result<Output, Failure> {
    let index = repository.index(found).await?;
    let name = args.name.as_deref().unwrap_or(&found.volume.name);
    let vdi = load::create(ctx, found, name, redundancy(found, &args.copies)).await?;
    let target = VdiRef::id(vdi.id);
    let empty = Index::empty(found.volume.size, found.chunk);
    let size = found.volume.size;
    let filled = tokio::select! {
        r = load::contents(ctx, repository, target.clone(), (&empty, &index), size, args.keep_going) => r,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(code::FAILED, "interrupted")),
    };
    match filled {
        Ok(hurt) => {
            load::attributes(ctx, found, &target).await?;
            if hurt.chunks == 0 {
                return Ok(Output::Done(super::record(&vdi)));
            }
            let load::Hurt { chunks, bytes } = hurt;
            let what =
                format!("{name} was restored without {chunks} damaged chunks: {bytes} bytes read as zeros");
            Err(Failure::new(code::FAILED, what))
        }
        Err(f) => {
            let request = DeleteVdiRequest { vdi: Some(target), now: true, ..Default::default() };
            if let Err(e) = ctx.client().await?.delete_vdi(request).await {
                eprintln!("dog: the unfinished VDI {name} was not deleted: {e}");
            }
            Err(f)
        }
    }
}
