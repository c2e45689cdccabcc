//! `dog backup verify`

use crate::backup::At;
use crate::failure::{Failure, code};
use crate::output::{Cell, Column, Output, Table};
use crate::progress::{Progress, Unit};
use futures::stream::{self, StreamExt};
use sheepdog_backup::{Entry, Error, Id, Index, Manifest, Repository};
use std::collections::BTreeMap;

/// Chunks read at a time.
const READS: usize = 8;

/// Read all contents of backups and compare them with their checksums
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    at: At,
    /// Only this one: VOLUME, VOLUME@TAG or the beginning of an id
    backup: Option<String>,
}

const COLUMNS: &[Column] = &[
    Column("id", "BACKUP", false),
    Column("volume", "VDI", false),
    Column("tag", "SNAPSHOT", false),
    Column("offset", "OFFSET", false),
    Column("length", "LENGTH", false),
    Column("damage", "DAMAGE", false),
];

fn line(m: &Manifest, offset: Cell, length: Cell, why: String) -> Vec<Cell> {
    vec![
        Cell::text(&m.id),
        Cell::text(&m.volume.name),
        Cell::text(&m.snapshot.tag),
        offset,
        length,
        Cell::text(why),
    ]
}

/// Each chunk once, however many backups have it; every place where a bad one is, is named.
pub async fn run(args: Args) -> Result<Output, Failure> {
    let repository = args.at.open().await?;
    let (all, bad) = repository.backups().await?;
    let chosen: Vec<&Manifest> = match &args.backup {
        Some(b) => vec![Repository::find(&all, b)?],
        None => all.iter().collect(),
    };
    let (mut table, mut indexes, mut indexless) = (Table::new(COLUMNS), Vec::new(), 0);
    for m in chosen {
        match repository.index(m).await {
            Ok(index) => indexes.push((m, index)),
            Err(e @ Error::Place { .. }) => return Err(e.into()),
            Err(e) => {
                indexless += 1;
                table.row(line(m, Cell::Number(0), Cell::Number(m.volume.size), e.to_string()));
            }
        }
    }
    let ids: std::collections::BTreeSet<Id> = indexes.iter().flat_map(|(_, i)| i.ids()).collect();
    let total = ids.len() as u64;
    let bar = Progress::new("Verifying", total, Unit::Count);
    let reads = stream::iter(ids).map(|id| {
        let repository = &repository;
        async move { (id, repository.get(id).await) }
    });
    let (mut reads, mut broken, mut done) = (reads.buffer_unordered(READS), BTreeMap::new(), 0);
    while let Some((id, read)) = reads.next().await {
        done += 1;
        bar.advance(done);
        match read {
            Ok(_) => {}
            Err(e) if e.is_damage() => drop(broken.insert(id, e.to_string())),
            Err(e) => return Err(e.into()),
        }
    }
    drop((reads, bar));
    for (m, index) in &indexes {
        for (offset, length, why) in places(m, index, &broken) {
            table.row(line(m, Cell::Number(offset), Cell::Number(length), why));
        }
    }
    for e in &bad {
        eprintln!("dog: {e}");
    }
    if table.is_empty() && bad.is_empty() {
        return Ok(Output::Nothing);
    }
    eprint!("{}", Output::Table(table).render(crate::output::Format::Table, false));
    let unread = bad.len() + indexless;
    let what = format!("{} of {total} chunks are damaged, and {unread} backups cannot be read", broken.len());
    Err(Failure::new(code::FAILED, what).hint(
        "a new backup with --full puts chunks back whose contents the volume still has, once the damaged files are deleted",
    ))
}

fn places(m: &Manifest, index: &Index, broken: &BTreeMap<Id, String>) -> Vec<(u64, u64, String)> {
    let chunk = u64::from(m.chunk);
    let hurt = |n: usize| match index.get(n) {
        Entry::Data(id) => broken.get(&id).cloned(),
        Entry::Hole => None,
    };
    let all = (0..index.len()).filter_map(|n| Some((n as u64 * chunk, hurt(n)?)));
    all.map(|(offset, why)| (offset, chunk.min(m.volume.size - offset), why)).collect()
}
