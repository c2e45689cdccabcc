//! A snapshot goes into a repository: what has changed since the newest backup whose snapshot is still there is read, and what the repository has not yet is stored.

use super::cut::Cutter;
use crate::context::Context;
use crate::failure::Failure;
use crate::progress::{Progress, Unit};
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use sheepdog_backup::hex::hex;
use sheepdog_backup::manifest::{self, Manifest};
use sheepdog_backup::repository::now_ms;
use sheepdog_backup::seal::Id;
use sheepdog_backup::{Entry, Index, Repository, Stored};
use sheepdog_client::pb::{DiffRequest, ReadRequest, Snapshot, Vdi, VdiRef};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

/// Chunks read by one request. Few long streams are faster than many short ones.
const RUN: usize = 64;
/// Requests at a time.
const RUNS: usize = 2;
/// Chunks that are hashed, compressed and written at a time.
const STORES: usize = 4;

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
        let before = Arc::new(old.as_ref().map(Index::ids).unwrap_or_default());
        let known = Known { before, met: Arc::default() };
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
        let runs = stream::iter(read).map(|run| Box::pin(self.chunks(run)));
        let stored =
            runs.flatten_unordered(RUNS).map(|chunk| async { self.store(chunk?, &known, &added).await });
        let mut stored = pin!(stored.buffer_unordered(STORES));
        while let Some((number, entry)) = stored.try_next().await? {
            done += u64::from(chunk);
            bar.advance(done);
            index.set(number, entry);
        }
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

    /// Read some chunks that follow each other.
    fn chunks(&self, run: Range<usize>) -> impl Stream<Item = Result<(usize, Option<Bytes>), Failure>> + '_ {
        let chunk = u64::from(self.repository.chunk());
        let (start, end) = (run.start as u64 * chunk, (run.end as u64 * chunk).min(self.snapshot.size));
        let request = ReadRequest {
            vdi: Some(VdiRef::id(self.vdi.id)),
            snapshot: name_of(self.snapshot),
            offset: start,
            length: Some(end - start),
            background: true,
        };
        let open = async move {
            let pieces = self.ctx.client().await?.read(request).await?;
            Ok::<_, Failure>(Cutter::new(pieces, start..end, chunk).into_stream())
        };
        stream::once(open).try_flatten()
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

    /// Store a chunk that was read.
    async fn store(
        &self,
        (number, contents): (usize, Option<Bytes>),
        known: &Known,
        added: &Added,
    ) -> Result<(usize, Entry), Failure> {
        let Some(contents) = contents else { return Ok((number, Entry::Hole)) };
        let (len, known) = (contents.len() as u64, known.clone());
        let entry = match self.repository.store(contents, move |id| known.has(id)).await? {
            Stored::Zeros => Entry::Hole,
            Stored::There(id) => Entry::Data(id),
            Stored::New { id, bytes } => {
                added.contents.set(added.contents.get() + len);
                added.stored.set(added.stored.get() + bytes);
                Entry::Data(id)
            }
        };
        Ok((number, entry))
    }
}

/// Chunks that need not be looked for: those of the backup before, and those that this one has met.
#[derive(Clone)]
struct Known {
    before: Arc<BTreeSet<Id>>,
    met: Arc<Mutex<BTreeSet<Id>>>,
}

impl Known {
    /// Who asks first has to look for it, and store it if need be.
    fn has(&self, id: Id) -> bool {
        self.before.contains(&id) || !self.met.lock().unwrap_or_else(PoisonError::into_inner).insert(id)
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
