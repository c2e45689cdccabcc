//! `dog vdi backup`

use crate::backup::save::{Save, is_of, name_of};
use crate::backup::{At, Packing, mark, stamp};
use crate::commands::backup::row;
use crate::context::{Context, Image};
use crate::failure::{Failure, code};
use crate::output::Output;
use sheepdog_backup::Manifest;
use sheepdog_backup::repository::now_ms;
use sheepdog_client::pb::{DeleteVdiRequest, GetVdiRequest, Snapshot, SnapshotRequest, Vdi, VdiRef};

/// Back up a VDI into a repository outside of the cluster
///
/// Of NAME a snapshot is taken and kept: the next backup reads what has changed since. Every backup is complete; contents that the repository has are not stored again,
/// whichever volume they came from. The repository is made when it is not there, encrypted when a password is given.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// NAME: as it is now. NAME@TAG: one of its snapshots
    #[arg(value_parser = Image::parse)]
    vdi: Image,
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    packing: Packing,
    /// Of a repository that is made now: contents are stored in chunks of this size, 64 KiB to 16 MiB, a power of two. Small ones store less of what changes here and there, and
    /// are more files
    #[arg(long, value_parser = chunk, default_value = "1Mi")]
    chunk: u32,
    /// Read everything, whatever was backed up before
    #[arg(long)]
    full: bool,
}

fn chunk(text: &str) -> Result<u32, String> {
    let size = crate::size::parse(text)?;
    match u32::try_from(size) {
        Ok(n) if n.is_power_of_two() && (64 << 10..=16 << 20).contains(&n) => Ok(n),
        _ => Err("64 KiB to 16 MiB, a power of two".into()),
    }
}

/// Beginning of the tags of snapshots that are taken here.
pub const OWN: &str = "backup-";

/// A snapshot, unless one is meant; into the repository; and away with the snapshots of earlier backups.
pub async fn run(ctx: &Context, args: Args) -> Result<Output, Failure> {
    let client = ctx.client().await?;
    let get = || GetVdiRequest { vdi: args.vdi.vdi(), usage: false };
    let mut vdi = client.get_vdi(get()).await?;
    mark::refuse(&vdi)?;
    let wanted = args.vdi.snapshot.clone();
    let find =
        |v: &Vdi| v.snapshots.iter().find(|s| name_of(s) == wanted || s.id.to_string() == wanted).cloned();
    if !wanted.is_empty() && find(&vdi).is_none() {
        return Err(Failure::new(5, format!("{} has no snapshot \"{wanted}\"", args.vdi.name))
            .hint(format!("dog vdi list {} names them", args.vdi.name)));
    }
    let repository = args.at.open_or_create(args.chunk, &args.packing).await?;
    let lock = repository.lock("backup").await?;
    let done = async {
        let (known, _) = repository.backups().await?;
        let own = wanted.is_empty();
        let snapshot = if own {
            let snapshot = take(ctx, &args.vdi.name).await?;
            vdi = client.get_vdi(get()).await?;
            snapshot
        } else {
            find(&vdi).ok_or_else(|| Failure::new(5, "the snapshot was deleted meanwhile"))?
        };
        if let Some(there) = known.iter().find(|m| is_of(m, &vdi, &snapshot))
            && !args.full
        {
            ctx.remark("it is in the repository already");
            return Ok(there.clone());
        }
        let save = Save {
            ctx,
            repository: &repository,
            known: &known,
            vdi: &vdi,
            snapshot: &snapshot,
            own,
            set: None,
            full: args.full,
        };
        let run = async {
            let made = save.run().await?;
            repository.commit(&lock, std::slice::from_ref(&made)).await?;
            Ok(made)
        };
        let saved = tokio::select! {
            r = run => r,
            _ = tokio::signal::ctrl_c() => Err(Failure::new(code::FAILED, "interrupted")),
        };
        let saved = match saved {
            Ok(m) => m,
            Err(f) => {
                if own {
                    delete(ctx, &vdi, &snapshot).await;
                }
                return Err(f);
            }
        };
        if own && !repository.place.is_file() {
            // The next backup begins at this one.
            for old in vdi.snapshots.iter().filter(|s| s.id != snapshot.id && s.tag.starts_with(OWN)) {
                if known.iter().any(|m| m.snapshot.own && is_of(m, &vdi, old)) {
                    delete(ctx, &vdi, old).await;
                }
            }
        }
        Ok::<Manifest, Failure>(saved)
    }
    .await;
    lock.release().await?;
    let done = done?;
    repository.place.finish().await?;
    if args.at.repository == "-" {
        return Ok(Output::Nothing);
    }
    Ok(Output::Done(row(&done)))
}

async fn take(ctx: &Context, name: &str) -> Result<Snapshot, Failure> {
    let tag = format!("{OWN}{}", stamp(now_ms()));
    let request = SnapshotRequest { vdis: vec![VdiRef::name(name)], tag };
    let made = ctx.client().await?.snapshot(request).await?.made;
    let snapshot = made.into_iter().next().and_then(|m| m.snapshot);
    snapshot.ok_or_else(|| Failure::new(code::FAILED, "the sheep took no snapshot"))
}

/// What is left behind costs room, no more. Nobody would look for it in the trash.
pub async fn delete(ctx: &Context, vdi: &Vdi, snapshot: &Snapshot) {
    let request = DeleteVdiRequest {
        vdi: Some(VdiRef::id(vdi.id)),
        snapshot: name_of(snapshot),
        now: true,
        ..Default::default()
    };
    let deleted = match ctx.client().await {
        Ok(client) => client.delete_vdi(request).await.map_err(Failure::from),
        Err(f) => Err(f),
    };
    if let Err(f) = deleted {
        eprintln!("dog: snapshot {} of {} was not deleted: {}", name_of(snapshot), vdi.name, f.message);
    }
}
