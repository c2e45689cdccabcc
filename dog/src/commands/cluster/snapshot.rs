//! `dog cluster snapshot ...`: all VDIs with their snapshots, in a repository, and back.

use crate::backup::save::{Save, is_of};
use crate::backup::{At, Packing, is_stamp, load, mark, readable, stamp};
use crate::commands::vdi::{backup, restore};
use crate::context::Context;
use crate::failure::{Failure, code};
use crate::output::{Cell, Column, Output, Record, Table};
use crate::redundancy::Copies;
use clap::Subcommand;
use sheepdog_backup::repository::now_ms;
use sheepdog_backup::{Index, Lock, Manifest, Repository};
use sheepdog_client::pb::{DeleteVdiRequest, GetVdiRequest, Snapshot as Shot, SnapshotRequest, Vdi, VdiRef};
use std::collections::BTreeMap;

/// VDIs that are snapshot at one instant.
const GROUP: usize = 256;
/// Beginning of the tags of snapshots that are taken here.
const OWN: &str = "save-";

/// Copies of the whole cluster in a repository
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Save all VDIs as they are now, with their snapshots
    Save(SaveArgs),
    /// What was saved, oldest first
    List(ListArgs),
    /// VDIs and snapshots of one saved state
    Show(ShowArgs),
    /// Make all VDIs of a saved state again, in this or another cluster
    Load(LoadArgs),
}

/// Save all VDIs as they are now, with their snapshots
///
/// All at one instant (up to 256 VDIs; more in groups). What the repository has already is not stored again.
#[derive(clap::Args, Debug)]
pub struct SaveArgs {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    packing: Packing,
}

/// What was saved, oldest first
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    at: At,
}

/// VDIs and snapshots of one saved state
#[derive(clap::Args, Debug)]
pub struct ShowArgs {
    #[command(flatten)]
    at: At,
    /// Which: a name that list shows; the latest if left out
    set: Option<String>,
}

/// Make all VDIs of a saved state again, in this or another cluster
///
/// Refused when a VDI of one of the names is there. Clones come back as VDIs of their own.
#[derive(clap::Args, Debug)]
pub struct LoadArgs {
    #[command(flatten)]
    at: At,
    /// Which: a name that list shows; the latest if left out
    set: Option<String>,
    #[command(flatten)]
    copies: Copies,
}

impl Command {
    /// Do it.
    pub async fn run(self, ctx: &Context) -> Result<Output, Failure> {
        match self {
            Self::Save(a) => save(ctx, a).await,
            Self::List(a) => list(a).await,
            Self::Show(a) => show(a).await,
            Self::Load(a) => load_all(ctx, a).await,
        }
    }
}

async fn save(ctx: &Context, args: SaveArgs) -> Result<Output, Failure> {
    let repository = args.at.open_or_create(sheepdog_backup::CHUNK, &args.packing).await?;
    let lock = repository.lock("backup").await?;
    let set = format!("{OWN}{}", stamp(now_ms()));
    let saved = tokio::select! {
        r = save_all(ctx, (&repository, &lock), &set) => r,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(code::FAILED, "interrupted")),
    };
    if saved.is_err() {
        forget(ctx, &set).await;
    }
    lock.release().await?;
    let all = saved?;
    repository.place.finish().await?;
    if args.at.repository == "-" {
        return Ok(Output::Nothing);
    }
    let sum = |f: fn(&Manifest) -> u64| all.iter().map(f).sum();
    Ok(Output::Done(
        Record::default()
            .field("set", "Saved as", Cell::text(set))
            .field("backups", "Backups", Cell::Number(all.len() as u64))
            .field("added", "Added", Cell::Bytes(sum(|m| m.added)))
            .field("stored", "Stored", Cell::Bytes(sum(|m| m.stored))),
    ))
}

/// Snapshots that were taken for something that came to nothing.
async fn forget(ctx: &Context, set: &str) {
    let Ok(client) = ctx.client().await else { return };
    let Ok(vdis) = client.all_vdis("", false).await else { return };
    for vdi in &vdis {
        for snapshot in vdi.snapshots.iter().filter(|s| s.tag == set) {
            backup::delete(ctx, vdi, snapshot).await;
        }
    }
}

async fn save_all(
    ctx: &Context,
    (repository, lock): (&Repository, &Lock),
    set: &str,
) -> Result<Vec<Manifest>, Failure> {
    let client = ctx.client().await?;
    let (mut known, _) = repository.backups().await?;
    let vdis = client.all_vdis("", false).await?;
    let (working, rest): (Vec<Vdi>, Vec<Vdi>) = vdis.into_iter().partition(|v| v.working);
    for v in rest {
        eprintln!(
            "dog: {} has only snapshots left and is not saved: dog vdi clone one of them to keep it",
            v.name
        );
    }
    if working.is_empty() {
        return Err(Failure::new(code::FAILED, "there is no VDI to save"));
    }
    working.iter().try_for_each(mark::refuse)?;
    if working.len() > GROUP {
        eprintln!("dog: there are {} VDIs: {GROUP} at a time are saved at one instant", working.len());
    }
    for group in working.chunks(GROUP) {
        let vdis = group.iter().map(|v| VdiRef::id(v.id)).collect();
        client.snapshot(SnapshotRequest { vdis, tag: set.to_owned() }).await?;
    }
    let mut made = Vec::new();
    let mut saved = Vec::new();
    for v in &working {
        let vdi = client.get_vdi(GetVdiRequest { vdi: Some(VdiRef::id(v.id)), usage: false }).await?;
        for snapshot in vdi.snapshots.iter().filter(|s| s.tag == set || !is_own(s)) {
            let there = known.iter().rev().find(|m| is_of(m, &vdi, snapshot)).cloned();
            let own = snapshot.tag == set;
            let manifest = match there {
                // Its contents are known: this set has it, too.
                Some(m) => {
                    let id = uuid::Uuid::new_v4().simple().to_string();
                    let (name, created_ms) = (vdi.name.clone(), now_ms());
                    let set = Some(set.to_owned());
                    let mut m = Manifest { id, created_ms, set, set_size: None, added: 0, stored: 0, ..m };
                    m.volume.name = name;
                    m
                }
                None => {
                    let (known, set) = (known.as_slice(), Some(set.to_owned()));
                    let (vdi, full) = (&vdi, false);
                    Save { ctx, repository, known, vdi, snapshot, own, set, full }.run().await?
                }
            };
            known.push(manifest.clone());
            made.push(manifest);
        }
        saved.push(vdi);
    }
    // All of them or none: what is not all is not shown.
    let size = u32::try_from(made.len()).ok();
    made.iter_mut().for_each(|m: &mut Manifest| m.set_size = size);
    repository.commit(lock, &made).await?;
    if !repository.place.is_file() {
        // The next save begins at these.
        for vdi in &saved {
            for old in vdi.snapshots.iter().filter(|s| s.tag != set && s.tag.starts_with(OWN)) {
                if known.iter().any(|m| m.snapshot.own && is_of(m, vdi, old)) {
                    backup::delete(ctx, vdi, old).await;
                }
            }
        }
    }
    Ok(made)
}

/// Taken by dog for a backup. What a user calls "backup-monday" is not.
fn is_own(s: &Shot) -> bool {
    [OWN, backup::OWN].iter().any(|own| s.tag.strip_prefix(own).is_some_and(is_stamp))
}

/// Backups by set, those of each volume in the order of its snapshots: many are made in the same moment. What is not all of a set is told, and left out.
fn sets(all: Vec<Manifest>) -> BTreeMap<String, Vec<Manifest>> {
    let mut out: BTreeMap<String, Vec<Manifest>> = BTreeMap::new();
    for m in all {
        if let Some(set) = m.set.clone() {
            out.entry(set).or_default().push(m);
        }
    }
    for made in out.values_mut() {
        made.sort_by(|a, b| (&a.volume.name, a.snapshot.id).cmp(&(&b.volume.name, b.snapshot.id)));
    }
    out.retain(|name, made| {
        let whole = made.iter().all(|m| m.set_size == u32::try_from(made.len()).ok());
        if !whole {
            eprintln!("dog: of {name} only {} backups are there: it is left out", made.len());
        }
        whole
    });
    out
}

async fn set_of(at: &At, name: Option<&String>) -> Result<(Repository, String, Vec<Manifest>), Failure> {
    let repository = at.open().await?;
    let all = readable(&repository).await?;
    let mut sets = sets(all);
    let wanted = name.cloned().or_else(|| sets.keys().next_back().cloned());
    let missing = || {
        Failure::new(5, "the repository has no such saved state").hint("dog cluster snapshot list names them")
    };
    let wanted = wanted.ok_or_else(missing)?;
    let set = sets.remove(&wanted).ok_or_else(missing)?;
    Ok((repository, wanted, set))
}

const SETS: &[Column] = &[
    Column("set", "SAVED", false),
    Column("vdis", "VDIS", false),
    Column("snapshots", "SNAPSHOTS", false),
    Column("data", "CONTENTS", false),
    Column("added", "ADDED", false),
];

async fn list(args: ListArgs) -> Result<Output, Failure> {
    let all = readable(&args.at.open().await?).await?;
    let mut table = Table::new(SETS);
    for (set, made) in sets(all) {
        let vdis: std::collections::BTreeSet<&String> = made.iter().map(|m| &m.volume.uuid).collect();
        let snapshots = made.iter().filter(|m| !m.snapshot.own).count();
        table.row(vec![
            Cell::text(set),
            Cell::Number(vdis.len() as u64),
            Cell::Number(snapshots as u64),
            Cell::Bytes(made.iter().filter(|m| m.snapshot.own).map(|m| m.data).sum()),
            Cell::Bytes(made.iter().map(|m| m.added).sum()),
        ]);
    }
    Ok(Output::Table(table))
}

const SHOWN: &[Column] = &[
    Column("volume", "VDI", false),
    Column("tag", "SNAPSHOT", false),
    Column("taken", "TAKEN", false),
    Column("size", "SIZE", false),
    Column("data", "CONTENTS", false),
    Column("id", "BACKUP", true),
];

async fn show(args: ShowArgs) -> Result<Output, Failure> {
    let (_, _, set) = set_of(&args.at, args.set.as_ref()).await?;
    let mut table = Table::new(SHOWN);
    for m in &set {
        let tag = if m.snapshot.own { Cell::None } else { Cell::text(&m.snapshot.tag) };
        table.row(vec![
            Cell::text(&m.volume.name),
            tag,
            Cell::Time(m.snapshot.created_ms),
            Cell::Bytes(m.volume.size),
            Cell::Bytes(m.data),
            Cell::text(&m.id),
        ]);
    }
    Ok(Output::Table(table))
}

async fn load_all(ctx: &Context, args: LoadArgs) -> Result<Output, Failure> {
    let (repository, set, made) = set_of(&args.at, args.set.as_ref()).await?;
    let mut volumes: BTreeMap<String, Vec<Manifest>> = BTreeMap::new();
    for m in made {
        volumes.entry(m.volume.uuid.clone()).or_default().push(m);
    }
    let there: Vec<String> =
        ctx.client().await?.all_vdis("", false).await?.into_iter().map(|v| v.name).collect();
    let taken: Vec<&str> = volumes
        .values()
        .flatten()
        .map(|m| m.volume.name.as_str())
        .filter(|n| there.iter().any(|t| t == n))
        .collect();
    if let Some(first) = taken.first() {
        return Err(Failure::new(3, format!("a VDI named {first} is there already")).hint(
            "rename or delete it, load into another cluster, or take single VDIs with dog vdi restore",
        ));
    }
    let mut table = Table::new(&[
        Column("name", "NAME", false),
        Column("snapshots", "SNAPSHOTS", false),
        Column("size", "SIZE", false),
    ]);
    for history in volumes.values() {
        let vdi = load_one(ctx, &repository, history, &args.copies).await.map_err(|f| Failure {
            message: format!("{} of {set}: {}", history[0].volume.name, f.message),
            ..f
        })?;
        let snapshots = history.iter().filter(|m| !m.snapshot.own).count();
        table.row(vec![Cell::text(&vdi.name), Cell::Number(snapshots as u64), Cell::Bytes(vdi.size)]);
    }
    Ok(Output::Made(table))
}

/// Snapshot after snapshot, each by what differs from the one before.
async fn load_one(
    ctx: &Context,
    repository: &Repository,
    history: &[Manifest],
    copies: &Copies,
) -> Result<Vdi, Failure> {
    let client = ctx.client().await?;
    let first = &history[0];
    let uuid = uuid::Uuid::new_v4().to_string();
    let redundancy = restore::redundancy(first, copies);
    let mut vdi = load::create(ctx, first, &first.volume.name, redundancy, uuid).await?;
    let target = VdiRef::id(vdi.id);
    let mut before = Index::empty(first.volume.size, first.chunk);
    let filled = async {
        for m in history {
            if m.volume.size != vdi.size {
                let request = sheepdog_client::pb::ResizeRequest {
                    vdi: Some(target.clone()),
                    size: m.volume.size,
                    shrink: m.volume.size < vdi.size,
                };
                vdi = client.resize(request).await?;
            }
            before = before.clone().resized(m.volume.size);
            let index = repository.index(m).await?;
            load::contents(ctx, repository, target.clone(), (&before, &index), m.volume.size, false).await?;
            before = index;
            if !m.snapshot.own {
                let request = SnapshotRequest { vdis: vec![target.clone()], tag: m.snapshot.tag.clone() };
                client.snapshot(request).await?;
            }
        }
        load::attributes(ctx, history.last().unwrap_or(first), &target).await
    };
    let filled = filled.await;
    if let Err(f) = filled {
        let request =
            DeleteVdiRequest { vdi: Some(target), with_snapshots: true, now: true, ..Default::default() };
        if let Err(e) = client.delete_vdi(request).await {
            eprintln!("dog: the unfinished VDI {} was not deleted: {e}", vdi.name);
        }
        return Err(f);
    }
    Ok(vdi)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::save::name_of;

    #[test]
    fn a_volume_is_loaded_in_the_order_of_its_snapshots() {
        // All of one moment, as those of a set are whose contents were known; ids say nothing.
        let made = |name: &str, snapshot: u32, id: u32| -> Manifest {
            let value = serde_json::json!({
                "version": 1, "id": format!("{id:032x}"), "created_ms": 7, "chunk": 1 << 20, "pages": [],
                "data": 0, "added": 0, "stored": 0, "set": "save-1", "set_size": 4,
                "volume": {"uuid": name, "name": name, "size": 0, "redundancy": "3", "object_size": 4 << 20},
                "snapshot": {"id": snapshot, "tag": "", "created_ms": snapshot, "own": false},
            });
            serde_json::from_value(value).expect("a manifest")
        };
        let order = |all: Vec<Manifest>| {
            let sets = sets(all);
            let set = sets.get("save-1").map(Vec::as_slice).unwrap_or_default();
            set.iter().map(|m| (m.volume.name.clone(), m.snapshot.id)).collect::<Vec<_>>()
        };
        let all = vec![made("a", 3, 1), made("b", 1, 2), made("a", 1, 3), made("a", 2, 4)];
        let named = |n: &str, id| (n.to_owned(), id);
        assert_eq!(order(all.clone()), [named("a", 1), named("a", 2), named("a", 3), named("b", 1)]);
        assert_eq!(order(all[..3].to_vec()), [], "not all of it");
    }

    #[test]
    fn what_dog_took_for_backups_is_not_saved_again() {
        let own = |tag: &str| is_own(&Shot { tag: tag.into(), ..Default::default() });
        assert!(own("save-20261122T133000123Z") && own("backup-20261122T133000123Z"));
        assert!(!own("backup-monday") && !own("save-2"));
        assert!(!own("monday") && !own("") && name_of(&Shot { id: 7, ..Default::default() }) == "7");
    }
}
