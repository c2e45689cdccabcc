//! A snapshot goes into a repository: what has changed since the newest backup whose snapshot is still there is read, and what the repository has not yet is stored.

use crate::context::Context;
use crate::failure::{Failure, code};
use crate::progress::{Progress, Unit};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use sheepdog_backup::hex::hex;
use sheepdog_backup::manifest::{self, Manifest};
use sheepdog_backup::repository::now_ms;
use sheepdog_backup::seal::Id;
use sheepdog_backup::{Entry, Index, Repository};
use sheepdog_client::pb::{DiffRequest, ReadRequest, Snapshot, Vdi, VdiRef};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Chunks read by one request.
const RUN: usize = 16;
/// Requests at a time.
const RUNS: usize = 4;

/// What is to be saved.
pub struct Save<'a> {
    /// Connection.
    pub ctx: &'a Context,
    /// Where to.
    pub repository: &'a Repository,
    /// What is there.
    pub known: &'a [Manifest],
    /// Of which volume.
    pub vdi: &'a Vdi,
    /// Which instant.
    pub snapshot: &'a Snapshot,
    /// Taken for this.
    pub own: bool,
    /// Made together with others.
    pub set: Option<String>,
    /// Look at everything, whatever was saved before.
    pub full: bool,
}

/// What names a snapshot in a request.
pub fn name_of(s: &Snapshot) -> String {
    if s.tag.is_empty() { s.id.to_string() } else { s.tag.clone() }
}

/// Is it this one that was saved?
pub fn is_of(m: &Manifest, vdi: &Vdi, s: &Snapshot) -> bool {
    (&m.volume.uuid, m.snapshot.id, &m.snapshot.tag, m.snapshot.created_ms)
        == (&vdi.uuid, s.id, &s.tag, s.created_ms)
}

/// Bytes that were added.
#[derive(Default)]
struct Added {
    contents: Cell<u64>,
    stored: Cell<u64>,
    ids: RefCell<BTreeSet<Id>>,
}

impl Save<'_> {
    /// Store what is new. The backup is there when the answer has been committed.
    pub async fn run(self) -> Result<Manifest, Failure> {
        let size = self.snapshot.size;
        let base = self.base();
        let old = match base {
            Some((m, _)) => Some(self.repository.index(m).await?),
            None => None,
        };
        let chunk = self.repository.chunk();
        // What a backup of before names is there: it does not have to be looked for.
        let known = old.as_ref().map(Index::ids).unwrap_or_default();
        let mut index = old.map_or_else(|| Index::empty(size, chunk), |i| i.resized(size));
        let since = base.map(|(_, s)| name_of(s)).unwrap_or_default();
        let edges = base.map(|(m, _)| edges(m.volume.size, size, chunk)).unwrap_or_default();
        let (read, gone) = self.changes(&index, since, edges).await?;
        for number in gone {
            index.set(number, Entry::Hole);
        }
        let total = read.iter().map(|r| (r.len() as u64) * u64::from(chunk)).sum();
        let bar = Progress::new(&format!("Backing up {}", self.vdi.name), total, Unit::Bytes);
        let (mut done, added) = (0, Added::default());
        let jobs = stream::iter(read).map(|run| self.run_of(run, &known, &added));
        let mut jobs = jobs.buffer_unordered(RUNS);
        while let Some(entries) = jobs.try_next().await? {
            done += entries.len() as u64 * u64::from(chunk);
            bar.advance(done);
            for (number, entry) in entries {
                index.set(number, entry);
            }
        }
        drop(jobs);
        let pages = self.repository.put_index(&index).await?;
        let manifest = Manifest {
            version: manifest::VERSION,
            id: uuid::Uuid::new_v4().simple().to_string(),
            created_ms: now_ms(),
            volume: manifest::Volume {
                uuid: self.vdi.uuid.clone(),
                name: self.vdi.name.clone(),
                size,
                redundancy: crate::redundancy::show(self.vdi.redundancy.as_ref()),
                object_size: self.vdi.object_size,
                attributes: self.vdi.attrs.iter().map(|(k, v)| (k.clone(), hex(v))).collect(),
            },
            snapshot: manifest::Snapshot {
                id: self.snapshot.id,
                tag: self.snapshot.tag.clone(),
                created_ms: self.snapshot.created_ms,
                own: self.own,
            },
            chunk,
            pages,
            data: index.data() * u64::from(chunk),
            added: added.contents.get(),
            stored: added.stored.get(),
            set: self.set.clone(),
            set_size: None,
        };
        Ok(manifest)
    }

    /// The newest backup of this volume whose snapshot is there, and older than this one.
    fn base(&self) -> Option<(&Manifest, &Snapshot)> {
        if self.full {
            return None;
        }
        let there = |m: &'_ Manifest| {
            self.vdi.snapshots.iter().find(|s| s.id <= self.snapshot.id && is_of(m, self.vdi, s))
        };
        let found = self.known.iter().filter_map(|m| Some((m, there(m)?)));
        found.max_by_key(|(_, s)| s.id)
    }

    /// Runs of chunks to be read, and chunks that are zeros now.
    async fn changes(
        &self,
        index: &Index,
        since: String,
        edges: Vec<usize>,
    ) -> Result<(Vec<Range<usize>>, Vec<usize>), Failure> {
        let to = name_of(self.snapshot);
        if since == to {
            return Ok((Vec::new(), Vec::new()));
        }
        let request = DiffRequest { vdi: Some(VdiRef::id(self.vdi.id)), from: since, to };
        let mut ranges = self.ctx.client().await?.diff(request).await?;
        let (mut read, mut zero) = (BTreeSet::from_iter(edges), BTreeMap::<usize, u64>::new());
        while let Some(r) = ranges.message().await? {
            for n in index.touched(r.offset, r.length) {
                if !r.zero {
                    read.insert(n);
                    continue;
                }
                // How much of it.
                let chunk = u64::from(index.chunk());
                let (start, end) = (n as u64 * chunk, (n as u64 * chunk + chunk).min(self.snapshot.size));
                let covered = (r.offset + r.length).min(end).saturating_sub(r.offset.max(start));
                *zero.entry(n).or_default() += covered;
            }
        }
        let mut gone = Vec::new();
        for (n, covered) in zero {
            let start = n as u64 * u64::from(index.chunk());
            let whole = (self.snapshot.size - start).min(u64::from(index.chunk()));
            match covered >= whole {
                true => gone.push(n),
                false => drop(read.insert(n)),
            }
        }
        gone.retain(|n| !read.contains(n));
        let mut runs: Vec<Range<usize>> = Vec::new();
        for n in read {
            match runs.last_mut() {
                Some(run) if run.end == n && run.len() < RUN => run.end = n + 1,
                _ => runs.push(n..n + 1),
            }
        }
        Ok((runs, gone))
    }

    /// Read some chunks and store what is new of them.
    async fn run_of(
        &self,
        run: Range<usize>,
        known: &BTreeSet<Id>,
        added: &Added,
    ) -> Result<Vec<(usize, Entry)>, Failure> {
        let chunk = u64::from(self.repository.chunk());
        let (start, end) = (run.start as u64 * chunk, (run.end as u64 * chunk).min(self.snapshot.size));
        let request = ReadRequest {
            vdi: Some(VdiRef::id(self.vdi.id)),
            snapshot: name_of(self.snapshot),
            offset: start,
            length: Some(end - start),
        };
        let mut pieces = self.ctx.client().await?.read(request).await?;
        let mut out = Vec::with_capacity(run.len());
        let mut at = start;
        let mut contents: Vec<u8> = Vec::new();
        let mut number = run.start;
        while number < run.end {
            let Some(piece) = pieces.message().await? else {
                return Err(Failure::new(code::FAILED, "the sheep ended a read before its end: try again"));
            };
            if piece.offset != at {
                return Err(Failure::new(code::FAILED, "the sheep left something out of a read: try again"));
            }
            let len = piece.data.len() as u64 + piece.zeros;
            at += len;
            contents.extend_from_slice(&piece.data);
            contents.resize(contents.len() + piece.zeros as usize, 0);
            while number < run.end {
                let whole = (end - number as u64 * chunk).min(chunk) as usize;
                if contents.len() < whole {
                    break;
                }
                let rest = contents.split_off(whole);
                let this = std::mem::replace(&mut contents, rest);
                out.push((number, self.store(this, known, added).await?));
                number += 1;
            }
        }
        Ok(out)
    }

    async fn store(&self, contents: Vec<u8>, known: &BTreeSet<Id>, added: &Added) -> Result<Entry, Failure> {
        let repository = self.repository.clone();
        let named = tokio::task::spawn_blocking(move || {
            let zero = contents.iter().all(|b| *b == 0);
            let id = (!zero).then(|| repository.name(&contents));
            (id, contents)
        });
        let (id, contents) = named.await.map_err(|e| Failure::new(code::FAILED, e.to_string()))?;
        let Some(id) = id else { return Ok(Entry::Hole) };
        // Two requests may have the same contents at the same time: stored once.
        let first = added.ids.borrow_mut().insert(id);
        if first && !known.contains(&id) && !self.repository.has(id).await? {
            added.contents.set(added.contents.get() + contents.len() as u64);
            let stored = self.repository.put(id, Bytes::from(contents)).await?;
            added.stored.set(added.stored.get() + stored);
        }
        Ok(Entry::Data(id))
    }
}

/// Chunks that end elsewhere since the volume has another size, though nothing was written.
fn edges(was: u64, is: u64, chunk: u32) -> Vec<usize> {
    let chunk = u64::from(chunk);
    let cut = |size: u64| {
        let there = !size.is_multiple_of(chunk) && size / chunk < is.div_ceil(chunk);
        there.then_some((size / chunk) as usize)
    };
    if was == is { Vec::new() } else { [cut(was), cut(is)].into_iter().flatten().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_that_ends_elsewhere_is_read_again() {
        const C: u64 = 1 << 20;
        for (was, is, read) in [
            (3 * C, 3 * C, vec![]),
            (3 * C + 5, 3 * C + 5, vec![]),
            (3 * C, 5 * C, vec![]),
            (3 * C + 5, 5 * C, vec![3]),
            (3 * C + 5, 5 * C + 7, vec![3, 5]),
            (5 * C + 7, 3 * C + 5, vec![3]),
            (5 * C + 7, 5 * C, vec![]),
            (5 * C, 3 * C + 5, vec![3]),
        ] {
            assert_eq!(edges(was, is, C as u32), read, "{was} {is}");
        }
    }
}
