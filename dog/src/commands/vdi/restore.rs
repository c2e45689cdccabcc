//! `dog vdi restore`

use super::restore_lazy;
use crate::backup::{At, load, lock_for_reading, mark, pick, readable};
use crate::context::{Context, vdi};
use crate::failure::{Failure, code};
use crate::nbd::Address;
use crate::output::Output;
use crate::redundancy::Copies;
use crate::size;
use sheepdog_backup::{Index, Manifest, Repository};
use sheepdog_client::pb::{DeleteVdiRequest, GetVdiRequest, Redundancy, VdiRef};

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
    /// Let it be used at once: what is read comes from the backup as long as it is not there. This process serves it at --listen until all of it is, and the same command goes on
    /// after it was interrupted or killed
    #[arg(long, requires = "listen", conflicts_with = "keep_going")]
    lazy: bool,
    /// With --lazy: the path of a socket (./nbd.sock), or a port of loopback (10809, 127.0.0.1:10809), for NBD clients
    #[arg(long, requires = "lazy", value_name = "ADDRESS", value_parser = Address::parse)]
    listen: Option<Address>,
    /// With --lazy: fill at most so many bytes a second, so that clients have the rest; what they ask for is not held back
    #[arg(long, requires = "lazy", value_name = "BYTES", value_parser = size::parse_positive)]
    fill_rate: Option<u64>,
    /// Leave out what is damaged (it reads as zeros), and fail at the end
    #[arg(long)]
    keep_going: bool,
}

/// Make, fill; what is half filled is deleted again.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let repository = args.at.open().await?;
    let all = readable(&repository).await?;
    let found = pick(&all, args.backup.as_deref())?;
    let lock = lock_for_reading(ctx, &repository).await?;
    let restored = match &args.listen {
        Some(listen) if args.lazy => {
            let name = args.name.as_deref().unwrap_or(&found.volume.name);
            let redundancy = redundancy(found, &args.copies);
            let job = restore_lazy::Job {
                repository: &repository,
                of: found,
                name,
                redundancy,
                listen,
                rate: args.fill_rate,
            };
            restore_lazy::run(ctx, job).await
        }
        _ => restore(ctx, &repository, found, &args).await,
    };
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

/// The name is taken: perhaps by what is meant.
async fn taken(ctx: &Context, name: &str, f: Failure) -> Failure {
    let Ok(client) = ctx.client().await else { return f };
    match client.get_vdi(GetVdiRequest { vdi: vdi(name), usage: false }).await {
        Ok(v) if mark::is_restoring(&v) => {
            f.hint("that one is being restored with --lazy: the same command goes on with it")
        }
        _ => f,
    }
}

async fn restore(
    ctx: &Context,
    repository: &Repository,
    found: &Manifest,
    args: &Args,
) -> Result<Output, Failure> {
    let index = repository.index(found).await?;
    let name = args.name.as_deref().unwrap_or(&found.volume.name);
    let uuid = uuid::Uuid::new_v4().to_string();
    let vdi = match load::create(ctx, found, name, redundancy(found, &args.copies), uuid).await {
        Err(f) if f.code == 3 => return Err(taken(ctx, name, f).await),
        made => made?,
    };
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
