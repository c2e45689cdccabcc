//! Objects move from one disk of this node to another, so that a disk can be taken away without any object having one copy less meanwhile.
//!
//! One object at a time. Its steps and fills wait while it moves; reads go on. What holds at every moment, also after a crash:
//! * The copy on the old disk is the object until the new one is whole and on stable storage; until then the new one counts as being filled, and is not seen.
//! * The old one is removed, on stable storage, before anything changes the new one. So two whole copies are always equal (`settle_twins`).

use super::apply::FRESH_BYTES;
use super::disk::{Disk, Obj};
use super::journal::Record;
use super::types::{FillOp, StoreError, WriteKind};
use super::{Durable, Store, durable};
use sheepdog_proto::{BLOCK_SHIFT, DiskId, Epoch, ObjectId, PlacementKey};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// Blocks copied at a time.
const CHUNK: u32 = 256;

/// For a disk to write what clients have given it.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is moving.
#[derive(Default)]
pub(super) struct Moves {
    object: Cell<Option<ObjectId>>,
    /// Where its new copy is made: not seen there yet.
    to: Cell<Option<DiskId>>,
    done: Notify,
}

impl Moves {
    /// Is it this one that moves? Then nothing but the move may change it.
    pub(super) fn is(&self, oid: ObjectId) -> bool {
        self.object.get() == Some(oid)
    }
    /// The copy that is being made on that disk, which nobody sees.
    pub(super) fn hides(&self, disk: DiskId, oid: ObjectId) -> bool {
        self.to.get() == Some(disk) && self.is(oid)
    }
    /// Until it does not move any more. Whoever waits looks again before it changes the object, because another move may have begun.
    pub(super) async fn still(&self, oid: ObjectId) {
        self.wait(|m| !m.is(oid)).await;
    }
    /// Until nothing moves.
    pub(super) async fn rest(&self) {
        self.wait(|m| m.object.get().is_none()).await;
    }
    async fn wait(&self, until: impl Fn(&Self) -> bool) {
        loop {
            let done = self.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if until(self) {
                return;
            }
            done.await;
        }
    }
}

impl Disk {
    /// For something new: not while the cluster may have forgotten this disk. It waits, as if there were no room.
    pub(super) fn if_known(self: &Rc<Self>) -> Result<Rc<Self>, StoreError> {
        if self.retiring.get() { Err(StoreError::Full { disk: self.id }) } else { Ok(self.clone()) }
    }
}

/// One move. What it has begun ends when it is dropped.
struct Turn<'a> {
    moves: &'a Moves,
    /// Where the unfinished copy is.
    unfinished: RefCell<Option<Rc<Disk>>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let oid = self.moves.object.take();
        self.moves.to.set(None);
        if let (Some(d), Some(oid)) = (self.unfinished.take(), oid)
            && d.check().is_ok()
            && d.object(oid).is_some()
        {
            // Not waited for: after a crash it counts as being filled, and the old copy stays.
            drop(d.log(Record::Remove { oid }));
        }
        self.moves.done.notify_waiters();
    }
}

impl Store {
    /// The disk takes no new objects any more (and why it is not empty yet, if that is known), or it does again. `false`: there is no such disk.
    pub fn set_leaving(&self, disk: DiskId, leaving: Option<String>) -> bool {
        let disks = self.disks.borrow();
        let found = disks.iter().find(|d| d.id == disk);
        found.inspect(|d| *d.leaving.borrow_mut() = leaving).is_some()
    }

    /// The empty disk is being taken out of the committed map: it does not stay, and takes nothing, before it is certain what became of that.
    pub fn set_retiring(&self, disk: DiskId, retiring: bool) {
        if let Some(d) = self.disks.borrow().iter().find(|d| d.id == disk) {
            d.retiring.set(retiring);
        }
    }

    /// Is it?
    pub fn is_retiring(&self, disk: DiskId) -> bool {
        self.disks.borrow().iter().any(|d| d.id == disk && d.retiring.get())
    }

    /// Is another one in use that stays?
    pub fn can_do_without(&self, disk: DiskId) -> bool {
        let stays = |d: &Rc<Disk>| d.id != disk && d.leaving.borrow().is_none() && d.check().is_ok();
        self.disks.borrow().iter().any(stays)
    }

    /// Is the disk to be emptied?
    pub fn is_leaving(&self, disk: DiskId) -> bool {
        self.disks.borrow().iter().any(|d| d.id == disk && d.leaving.borrow().is_some())
    }

    /// Objects on one disk after this one, in order, at most `limit`.
    pub fn objects_on(&self, disk: DiskId, after: Option<ObjectId>, limit: usize) -> Vec<(ObjectId, u64)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let disks = self.disks.borrow();
        let Some(d) = disks.iter().find(|d| d.id == disk) else { return Vec::new() };
        let objects = d.objects.borrow();
        let from = after.map_or(Unbounded, Excluded);
        let size = |o: &Rc<Obj>| u64::from(o.summary.borrow().data_blocks) << BLOCK_SHIFT;
        objects.range((from, Unbounded)).take(limit).map(|(oid, o)| (*oid, size(o))).collect()
    }

    /// Where the object would be put if it were new. `None`: there is no such object, or no disk for it.
    pub fn belongs_on(&self, oid: ObjectId) -> Option<DiskId> {
        let (_, obj) = self.locate(oid)?;
        Some(self.choose(obj.key).ok()?.id)
    }

    /// Move an object from a disk, that is leaving for example, to the one that it belongs on. Nothing to do when it is not there any more.
    ///
    /// # Errors
    /// The object cannot be read (it is healed from another copy, like everything that is found damaged), or no other disk takes it.
    pub async fn relocate(&self, oid: ObjectId, from: DiskId) -> Result<(), StoreError> {
        if self.moves.hides(from, oid) {
            // It is just coming here.
            self.moves.still(oid).await;
        }
        let Some((_, obj)) = self.locate(oid).filter(|(d, _)| d.id == from) else { return Ok(()) };
        // Until the disk has written most of what it was given: room in its memory is for clients first.
        let disk = self.choose(obj.key)?;
        let _ = tokio::time::timeout(PATIENCE, disk.until(|d| d.fresh_bytes.get() < FRESH_BYTES)).await;
        self.moves.rest().await;
        let Some((source, obj)) = self.locate(oid).filter(|(d, _)| d.id == from) else { return Ok(()) };
        self.moves.object.set(Some(oid));
        let turn = Turn { moves: &self.moves, unfinished: RefCell::default() };
        // What came before has begun by now, or waits behind the move.
        source.load(&obj).await?;
        let Some(info) = source.info(&obj) else { return Ok(()) };
        let target = self.choose(info.key)?;
        if target.id == from {
            return Err(StoreError::NoDisk);
        }
        self.moves.to.set(Some(target.id));
        *turn.unfinished.borrow_mut() = Some(target.clone());
        let make = |ops| target.fill(oid, info.key, info.vdi, info.object_size, true, ops);
        let mut last: Durable = make(Vec::new())?;
        if info.promised > 0 {
            last = target.log(Record::Promise { oid, number: info.promised });
        }
        let blocks = info.object_size >> BLOCK_SHIFT;
        for first in (0..blocks).step_by(CHUNK as usize) {
            let chunk = first..(first + CHUNK).min(blocks);
            let runs: Vec<_> = info.present.runs(chunk.clone()).filter(|(_, there)| *there).collect();
            if runs.is_empty() {
                continue;
            }
            let data = self.read_object(oid, chunk.clone()).await?.data;
            let mut ops = Vec::new();
            let warm = runs.into_iter().flat_map(|(run, _)| info.cold.runs(run)).filter(|(_, cold)| !cold);
            for (run, zero) in warm.flat_map(|(run, _)| info.zero.runs(run)) {
                let at = |b: u32| ((b - first) as usize) << BLOCK_SHIFT;
                let kind = match zero {
                    true => WriteKind::Zero,
                    false => WriteKind::Data(data.slice(at(run.start)..at(run.end))),
                };
                ops.push(FillOp { blocks: run, kind });
            }
            target.room(chunk.len() << BLOCK_SHIFT).await?;
            last = make(ops)?;
        }
        if let Some(seal) = info.seal {
            last = target.log(Record::Seal {
                oid,
                key: info.key,
                vdi: info.vdi,
                object_size: info.object_size,
                filling: true,
                epoch: Epoch(0),
                seal,
                blocks: info.cold.clone(),
                crcs: info.cold_crcs.clone(),
            });
        }
        if !info.filling {
            // As a copy that is filled from another one: with all that the old one knows of its last steps.
            last = target.log(Record::FinishFill {
                oid,
                version: info.version,
                epoch: info.epoch,
                dirty: info.dirty.clone(),
                dirty_since: info.dirty_since,
                tail: self.tail_bounds(info.vdi, oid),
            });
        }
        durable(&target, last).await?;
        // The new one takes over, with nothing awaited in between.
        turn.unfinished.take();
        self.moves.to.set(None);
        source.check()?;
        let removed = source.log(Record::Remove { oid });
        durable(&source, removed).await
    }

    /// Wait until the files of objects that have gone are gone, too.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn swept(&self, disk: DiskId) -> Result<(), StoreError> {
        let found = self.disks.borrow().iter().find(|d| d.id == disk).cloned();
        let Some(d) = found else { return Ok(()) };
        d.until(|d| d.dirty.borrow().is_empty() && d.unlink.borrow().is_empty()).await
    }

    /// The object with its header, or none, at a moment when it does not move: the caller changes it before it awaits anything.
    pub(super) async fn at_rest(&self, oid: ObjectId) -> Result<Option<(Rc<Disk>, Rc<Obj>)>, StoreError> {
        loop {
            let found = self.loaded(oid).await?;
            if !self.moves.is(oid) {
                return Ok(found);
            }
            self.moves.still(oid).await;
        }
    }

    /// Where contents of an object go, with room for them, at such a moment.
    pub(super) async fn place_for(
        &self,
        oid: ObjectId,
        key: PlacementKey,
        bytes: usize,
    ) -> Result<Rc<Disk>, StoreError> {
        loop {
            let mut places = Vec::with_capacity(2);
            for _ in 0..2 {
                let disk = match self.at_rest(oid).await? {
                    Some((d, _)) => d,
                    None => self.choose(key)?,
                };
                if places.is_empty() {
                    disk.room(bytes).await?;
                }
                places.push(disk);
            }
            // Looked at again after the wait for room.
            if places[0].id == places[1].id {
                return Ok(places.remove(1));
            }
        }
    }
}
