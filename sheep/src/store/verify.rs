//! Comparing what is on the disks with what is in memory: headers, blocks, the index, and files that no object has.
//!
//! What is in memory was read and checked once, or came by the journal, so it is what counts: a header and an index that are damaged are written anew from it, and a file that it does
//! not know is moved out of the way. Only contents of blocks have to come from another copy.

use super::disk::{Disk, Obj, best_slot, has_broken_slot};
use super::index::{BATCH, Change};
use super::object::{Meta, file_len, slot_len};
use super::open::INDEX;
use super::{Store, StoreError};
use sheepdog_proto::{DiskId, ObjectId};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;

/// Blocks checked at a time.
const CHUNK: u32 = 256;
/// Where files go that no object has: a directory beside the objects'.
const STRAYS: &str = "strays";

/// What was found of one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blocks that do not match their checksums.
    pub damaged: Vec<Range<u32>>,
    /// The file's header, or its length, was not what it should be. It is written anew with the next checkpoint.
    pub header: bool,
}

impl Verified {
    /// Nothing is wrong with it.
    pub fn is_sound(&self) -> bool {
        self.damaged.is_empty() && !self.header
    }
}

impl Store {
    /// Check an object's file: its header, and every block against its checksum.
    ///
    /// # Errors
    /// `CorruptHeader`: the file is gone, or nothing of its header can be read or is known.
    pub async fn verify(&self, oid: ObjectId) -> Result<Verified, StoreError> {
        let Some((d, o)) = self.loaded(oid).await? else { return Ok(Verified::default()) };
        let mut found = Verified { damaged: Vec::new(), header: d.check_header(&o).await? };
        let Some(info) = d.info(&o) else { return Ok(found) };
        let mut data = info.present;
        data.subtract(&info.zero);
        data.subtract(&info.cold);
        for run in data.set_runs() {
            let mut first = run.start;
            while first < run.end {
                let chunk = first..(first + CHUNK).min(run.end);
                first = chunk.end;
                match self.read_object(oid, chunk.clone()).await {
                    Ok(_) => {}
                    Err(StoreError::Corrupt { .. }) => {
                        self.damaged_in(oid, chunk, &mut found.damaged).await?
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(found)
    }

    /// Name each damaged block, so that healing fetches no more than it must.
    async fn damaged_in(
        &self,
        oid: ObjectId,
        chunk: Range<u32>,
        bad: &mut Vec<Range<u32>>,
    ) -> Result<(), StoreError> {
        for b in chunk {
            match self.read_object(oid, b..b + 1).await {
                Err(StoreError::Corrupt { .. }) => match bad.last_mut() {
                    Some(last) if last.end == b => last.end = b + 1,
                    _ => bad.push(b..b + 1),
                },
                Err(e) => return Err(e),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Compare a disk's index with its objects; `true`: it was damaged or wrong, and was made again.
    ///
    /// # Errors
    /// It cannot be made again: the disk has failed.
    pub async fn check_index(&self, disk: DiskId) -> Result<bool, StoreError> {
        match self.disk(disk) {
            Some(d) if d.check().is_ok() => d.check_index().await,
            _ => Ok(false),
        }
    }

    /// Files on a disk that no object has. Those that are `gone` for good are removed, others are moved to a directory of their own, which nobody looks into but people.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn remove_strays(
        &self,
        disk: DiskId,
        gone: impl Fn(ObjectId) -> bool,
    ) -> Result<Vec<(ObjectId, PathBuf)>, StoreError> {
        let Some(d) = self.disk(disk).filter(|d| d.check().is_ok()) else { return Ok(Vec::new()) };
        let dirs = d.object_dirs().map_err(|e| d.fail(e.to_string()))?;
        let mut found = Vec::new();
        for dir in dirs {
            // Files go and come with a checkpoint only.
            let turn = d.turn.lock().await;
            let names = d.fs.list(&dir).map_err(|e| d.fail(e.to_string()))?;
            for oid in names.iter().filter_map(|name| ObjectId::parse(name)) {
                if d.object(oid).is_some() || d.unlink.borrow().contains(&oid) {
                    continue;
                }
                let file = dir.join(oid.to_string());
                let moved = match gone(oid) {
                    true => d.fs.unlink(&file),
                    false => {
                        let aside = d.path.join(STRAYS);
                        d.fs.mkdir(&aside).and_then(|()| d.fs.rename(&file, &aside.join(oid.to_string())))
                    }
                };
                moved.map_err(|e| d.fail(format!("{}: {e}", file.display())))?;
                found.push((oid, file));
            }
            drop(turn);
            tokio::task::yield_now().await;
        }
        Ok(found)
    }

    fn disk(&self, disk: DiskId) -> Option<Rc<Disk>> {
        self.disks.borrow().iter().find(|d| d.id == disk).cloned()
    }
}

impl Disk {
    /// Is the header in the file what is in memory? `true`: it is not, and is written anew.
    async fn check_header(self: &Rc<Self>, obj: &Rc<Obj>) -> Result<bool, StoreError> {
        let _turn = self.turn.lock().await;
        if obj.removed.get() || obj.slot.get() == 0 {
            return Ok(false);
        }
        // By its name, not by a handle that still works when the file is gone.
        *obj.file.borrow_mut() = None;
        let file = self.open_file(obj, false)?;
        let size = obj.summary.borrow().object_size;
        let failed = |e: io::Error| self.fail(e.to_string());
        let cut = file.len().map_err(failed)? != file_len(size);
        if cut {
            file.set_len(file_len(size)).map_err(failed)?;
        }
        let len = slot_len(size);
        let both = file.read_at(0, 2 * len).await.map_err(failed)?;
        let right = match best_slot(obj.oid, &both, len) {
            Ok((counter, header)) => {
                let meta = obj.meta.borrow();
                // With changes that are not in the file yet it is older than they are.
                let same = |m: &Meta| obj.since.get().is_some() || *header == *m;
                counter == obj.slot.get() && meta.as_ref().is_none_or(same)
            }
            Err(_) => false,
        };
        if right && !cut && !has_broken_slot(obj.oid, &both, len) {
            return Ok(false);
        }
        if obj.removed.get() {
            return Ok(false);
        }
        if obj.meta.borrow().is_none() {
            return Err(self.lost(obj));
        }
        tracing::warn!(oid = %obj.oid, disk = %self.path.display(), "an object's header is damaged on disk: it is written anew from memory");
        obj.mend.set(true);
        self.touch(obj, self.journal.head());
        Ok(true)
    }

    /// Directories of object files.
    pub(super) fn object_dirs(&self) -> io::Result<Vec<PathBuf>> {
        let root = self.path.join("obj");
        if self.plain.get() {
            return Ok(vec![root]);
        }
        let mut dirs = Vec::new();
        for layer in self.fs.list(&root)? {
            let layer = root.join(layer);
            dirs.extend(self.fs.list(&layer)?.into_iter().map(|part| layer.join(part)));
        }
        Ok(dirs)
    }

    /// Tell the index of changes. It can always be made again, so that it cannot be written is no reason to give up the disk.
    pub(super) async fn note(&self, rows: Vec<Change>) -> Result<(), StoreError> {
        let index = self.index.borrow().clone();
        let why = match index {
            Some(index) => match index.commit(rows, false).await {
                Ok(()) => return Ok(()),
                Err(e) => e.to_string(),
            },
            None => "it is not open".into(),
        };
        self.new_index(&why).await
    }

    /// By whoever has the `turn`.
    async fn new_index(&self, why: &str) -> Result<(), StoreError> {
        tracing::warn!(path = %self.path.display(), %why, "the index is damaged: it is made again");
        self.index.borrow_mut().take();
        let made = async {
            let file = self.path.join(INDEX);
            self.fs.unlink(&file)?;
            *self.index.borrow_mut() = Some(self.fs.index(&file, self.id).await?);
            self.fill_index().await
        };
        made.await.map_err(|e| self.fail(format!("index: {e}")))
    }

    /// All objects that have a file.
    pub(super) async fn fill_index(&self) -> io::Result<()> {
        let index = self.index.borrow().clone().ok_or_else(|| io::Error::other("it is not open"))?;
        let all: Vec<Change> = {
            let objects = self.objects.borrow();
            let filed = |o: &&Rc<Obj>| o.slot.get() > 0 || o.summary.borrow().broken;
            objects.values().filter(filed).map(|o| (o.oid, Some(self.known(o)))).collect()
        };
        for part in all.chunks(BATCH) {
            index.commit(part.to_vec(), false).await?;
        }
        index.commit(Vec::new(), true).await
    }

    async fn check_index(&self) -> Result<bool, StoreError> {
        let _turn = self.turn.lock().await;
        // Closed and opened again: that is when it checks itself.
        self.index.borrow_mut().take();
        let read = async {
            let index = self.fs.index(&self.path.join(INDEX), self.id).await?;
            let rows = index.rows().await?;
            *self.index.borrow_mut() = Some(index);
            io::Result::Ok(rows.unwrap_or_default())
        };
        let why = match read.await {
            Err(e) => e.to_string(),
            Ok(rows) => {
                let mut rows: BTreeMap<ObjectId, _> =
                    rows.into_iter().map(|row| (row.summary.oid, row)).collect();
                let objects = self.objects.borrow();
                let wrong = objects.values().find(|o| {
                    let row = rows.remove(&o.oid);
                    // What is not in its file yet is not in the index.
                    let rests = o.since.get().is_none() && !o.summary.borrow().broken && o.slot.get() > 0;
                    rests && row != Some(self.known(o))
                });
                let unlink = self.unlink.borrow();
                match (wrong, rows.keys().find(|oid| !unlink.contains(oid))) {
                    (Some(o), _) => format!("it is wrong about object {}", o.oid),
                    (None, Some(oid)) => format!("it knows an object {oid}, which there is not"),
                    (None, None) => return Ok(false),
                }
            }
        };
        self.new_index(&why).await.map(|()| true)
    }
}
