//! One disk: objects in memory, their journal, their files.
//!
//! A step changes the metadata in memory at once, puts its blocks into the object's *overlay*, and goes to the journal. `apply` later writes overlays to object
//! files and frees the journal. Reads look at the overlay first. Replay after a crash runs the same code over the journal's records.

use super::fs::{File, Fs, OpenHow};
use super::index::{Index, Known};
use super::journal::{Journal, Record, SavedTail, action};
use super::object::{Meta, Slot, data_offset, file_len, slot_len};
use super::pulse::Pulse;
use super::types::{
    DiskState, FillOp, ObjectInfo, ObjectSummary, Opinion, StoreError, StoreEvent, TailEntry, WriteKind,
    WriteOp, WriteOutcome,
};
use super::view::{SHALLOW, Views};
use crate::buf::AlignedBuf;
use crate::observe::cells::OpStats;
use bytes::Bytes;
use sheepdog_proto::checksum::crc32c;
use sheepdog_proto::peer::{Seal, WriteAction};
use sheepdog_proto::{
    BLOCK_SHIFT, BLOCK_SIZE, BlockMap, DiskId, Epoch, Generation, LayerId, ObjectId, PlacementKey, VdiId,
    Version,
};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

/// A disk that takes a write of this many bytes, the largest there are, is not full.
const LARGEST: u64 = 1 << 20;
/// Metadata kept in memory for objects at rest, per disk (about 5 KiB each).
const MAX_LOADED: usize = 2048;
/// Files kept open for objects at rest, per disk, where as many are allowed.
pub(super) const MAX_OPEN: usize = 4096;
/// Headers read and files opened before it is looked whether there are too many: looking goes over all objects.
const FETCHES: usize = 1024;
/// Tail entries per VDI at which those of one object are made into one: a takeover needs to know which objects to compare, and blocks that may differ.
const MAX_TAIL: usize = 65_536;
/// Objects in the tail of one VDI: their entries fit into one message. Beyond it the oldest are dropped, and the log says so: a takeover does not compare these
/// objects, and only `dog vdi check` finds where their copies differ. It takes one write that waits while so many other objects are written.
const MAX_TAIL_OBJECTS: usize = 131_072;

/// A block that is not in the object file yet.
#[derive(Clone)]
pub(super) struct Fresh {
    /// `None`: zero or absent, to be punched.
    pub(super) data: Option<Bytes>,
    /// Which change: applying must not drop a newer one.
    pub(super) change: u64,
}

/// One object.
pub(super) struct Obj {
    pub(super) oid: ObjectId,
    pub(super) key: PlacementKey,
    pub(super) summary: RefCell<Summary>,
    pub(super) meta: RefCell<Option<Meta>>,
    pub(super) fresh: RefCell<BTreeMap<u32, Fresh>>,
    /// Journal position of the oldest change that is not in the file, while there is one.
    pub(super) since: Cell<Option<u64>>,
    /// Counts changes.
    pub(super) change: Cell<u64>,
    /// Counter of the last metadata slot written.
    pub(super) slot: Cell<u64>,
    /// A slot in the file is damaged: both are to be written.
    pub(super) mend: Cell<bool>,
    pub(super) file: RefCell<Option<Rc<dyn File>>>,
    waiting: RefCell<VecDeque<oneshot::Sender<()>>>,
    loading: Cell<bool>,
    used: Cell<u64>,
    pub(super) applying: Cell<bool>,
    pub(super) removed: Cell<bool>,
}

/// What is kept of an object without its metadata.
#[derive(Clone, Copy)]
pub(super) struct Summary {
    pub(super) vdi: VdiId,
    pub(super) object_size: u32,
    pub(super) version: Version,
    pub(super) epoch: Epoch,
    pub(super) filling: bool,
    pub(super) data_blocks: u32,
    pub(super) seal: Option<Seal>,
    pub(super) promised: u32,
    /// Both metadata slots are damaged.
    pub(super) broken: bool,
}

#[derive(Default)]
struct Tails {
    mark: Version,
    entries: VecDeque<TailEntry>,
    /// How many there are after the entries of one object were made into one.
    folded: usize,
}

impl Tails {
    /// Remember one more. How many were dropped for it.
    fn push(&mut self, entry: TailEntry, (entries, objects): (usize, usize)) -> usize {
        self.entries.push_back(entry);
        // At least as many again as were left over last time, so that this costs little per entry.
        if self.entries.len() <= entries.max(2 * self.folded) {
            return 0;
        }
        let mut last: BTreeMap<ObjectId, TailEntry> = BTreeMap::new();
        for e in self.entries.drain(..) {
            let whole = match last.remove(&e.oid) {
                None => e,
                Some(earlier) => earlier.and(e),
            };
            last.insert(whole.oid, whole);
        }
        let mut left: Vec<TailEntry> = last.into_values().collect();
        left.sort_unstable_by_key(|e| e.version);
        let dropped = left.len().saturating_sub(objects);
        self.entries = left.split_off(dropped).into();
        self.folded = self.entries.len();
        dropped
    }
}

/// One disk.
pub(super) struct Disk {
    pub(super) id: DiskId,
    pub(super) path: PathBuf,
    pub(super) plain: Cell<bool>,
    pub(super) fs: Rc<dyn Fs>,
    pub(super) journal: Rc<Journal>,
    /// Nothing only while it is opened anew, by whoever has the `turn`.
    pub(super) index: RefCell<Option<Rc<dyn Index>>>,
    /// Held while files are brought up to date, and while what is on the disk is compared with what is in memory.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Identity and journal, and which files they are: without them the disk is gone.
    files: RefCell<Vec<(PathBuf, u64)>>,
    /// Held while these are compared or replaced.
    pub(super) looking: tokio::sync::Mutex<()>,
    pub(super) objects: RefCell<BTreeMap<ObjectId, Rc<Obj>>>,
    pub(super) by_key: RefCell<BTreeSet<(PlacementKey, LayerId)>>,
    /// Objects whose fill was begun and has not ended: see `half`.
    pub(super) half: RefCell<BTreeSet<ObjectId>>,
    tails: RefCell<BTreeMap<VdiId, Tails>>,
    /// Entries of ended sessions stay, whatever the watermark says: see `Store::keep_old_tails`.
    pub(super) keep_old_tails: Cell<bool>,
    pub(super) dirty: RefCell<BTreeSet<ObjectId>>,
    /// Object files to be unlinked at the next checkpoint.
    pub(super) unlink: RefCell<BTreeSet<ObjectId>>,
    pub(super) fresh_bytes: Cell<usize>,
    pub(super) state: RefCell<DiskState>,
    /// It is being emptied and takes no new objects; why it is not empty yet, where that is known.
    pub(super) leaving: RefCell<Option<String>>,
    /// Why it is thought to be failing, if it is, and when it will be full: for listings.
    pub(super) opinion: RefCell<Opinion>,
    /// The cluster may have forgotten it by now: nothing may come onto it before it is known again.
    pub(super) retiring: Cell<bool>,
    pub(super) free: Cell<u64>,
    pub(super) total: Cell<u64>,
    clock: Cell<u64>,
    pub(super) loaded: Cell<usize>,
    /// Files open, about: counted again when some are closed.
    open: Cell<usize>,
    /// Of these may stay open.
    pub(super) max_open: Cell<usize>,
    /// Headers read and files opened since the cache was trimmed.
    fetches: Cell<usize>,
    /// What lies under the newest layer of objects with many.
    pub(super) views: Views,
    pub(super) work: Rc<Notify>,
    pub(super) applied: Notify,
    /// It answers nothing any more: who reads from it need not wait.
    pub(super) gave_up: Notify,
    pub(super) pulse: Pulse,
    pub(super) events: mpsc::Sender<StoreEvent>,
    pub(super) corrupt_blocks: Cell<u64>,
    /// Sum of all objects' `data_blocks`, so that asking for it costs nothing.
    pub(super) data_blocks: Cell<u64>,
    pub(super) ops: DiskOps,
}

/// What the disk has done.
#[derive(Default)]
pub(super) struct DiskOps {
    /// Reads of object files.
    pub(super) read: OpStats,
    /// Steps, until they are durable.
    pub(super) write: OpStats,
    /// Contents from other copies, until they are durable.
    pub(super) fill: OpStats,
    /// Overlays written to object files.
    pub(super) checkpoint: OpStats,
}

pub(super) type Durable = oneshot::Receiver<Result<(), String>>;

impl Disk {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        id: DiskId,
        path: PathBuf,
        plain: bool,
        fs: Rc<dyn Fs>,
        journal: Rc<Journal>,
        index: Rc<dyn Index>,
        files: Vec<(PathBuf, u64)>,
        events: mpsc::Sender<StoreEvent>,
    ) -> Rc<Self> {
        let space = fs.space(&path).unwrap_or(super::fs::Space { total: 0, free: 0 });
        Rc::new(Self {
            id,
            path,
            plain: Cell::new(plain),
            fs,
            journal,
            index: RefCell::new(Some(index)),
            turn: tokio::sync::Mutex::default(),
            files: RefCell::new(files),
            looking: tokio::sync::Mutex::default(),
            objects: RefCell::default(),
            by_key: RefCell::default(),
            half: RefCell::default(),
            tails: RefCell::default(),
            keep_old_tails: Cell::new(true),
            dirty: RefCell::default(),
            unlink: RefCell::default(),
            fresh_bytes: Cell::new(0),
            state: RefCell::new(DiskState::Ok),
            leaving: RefCell::default(),
            opinion: RefCell::default(),
            retiring: Cell::new(false),
            free: Cell::new(space.free),
            total: Cell::new(space.total),
            clock: Cell::new(0),
            loaded: Cell::new(0),
            open: Cell::new(0),
            max_open: Cell::new(MAX_OPEN),
            fetches: Cell::new(0),
            views: Views::default(),
            work: Rc::default(),
            applied: Notify::new(),
            gave_up: Notify::new(),
            pulse: Pulse::default(),
            events,
            corrupt_blocks: Cell::new(0),
            data_blocks: Cell::new(0),
            ops: DiskOps::default(),
        })
    }

    /// Directory of an object's file, and the file.
    pub(super) fn object_path(&self, oid: ObjectId) -> (PathBuf, PathBuf) {
        let mut dir = self.path.join("obj");
        if !self.plain.get() {
            dir.push(oid.layer().hex());
            dir.push(format!("{:03x}", oid.index() >> 12));
        }
        let file = dir.join(oid.to_string());
        (dir, file)
    }

    pub(super) fn fail(&self, reason: String) -> StoreError {
        if self.out_of_use(&reason) {
            tracing::error!(disk = %self.id.short(), path = %self.path.display(), %reason, "disk failed");
            let _ = self.events.try_send(StoreEvent::DiskFailed { disk: self.id, reason: reason.clone() });
        }
        StoreError::DiskFailed { disk: self.id, reason }
    }
    /// Nothing is done on it any more, and nobody is told that it has failed. False: it had been before.
    pub(super) fn out_of_use(&self, reason: &str) -> bool {
        let mut state = self.state.borrow_mut();
        let was_used = !matches!(*state, DiskState::Failed(_));
        if was_used {
            *state = DiskState::Failed(reason.to_owned());
        }
        drop(state);
        self.work.notify_one();
        self.applied.notify_waiters();
        was_used
    }
    /// What it answers, unless it is given up meanwhile.
    pub(super) async fn answer<T>(
        &self,
        request: impl Future<Output = std::io::Result<T>>,
    ) -> std::io::Result<T> {
        tokio::select! {
            biased;
            answer = request => answer,
            () = self.gave_up.notified() => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }
    /// The object's file is gone, or nothing in its header can be read. What is in memory of an object at rest counts no more: it is filled anew.
    pub(super) fn lost(&self, obj: &Obj) -> StoreError {
        // With changes that are not in its file yet it gets one again: then blocks are missing, one by one.
        let comes_again = obj.since.get().is_some() || obj.applying.get();
        if comes_again || !std::mem::replace(&mut obj.summary.borrow_mut().broken, true) {
            tracing::warn!(oid = %obj.oid, disk = %self.path.display(), "an object's header is damaged or its file is gone");
            let _ = self.events.try_send(StoreEvent::Corrupt { oid: obj.oid, blocks: 0..0 });
        }
        if !comes_again {
            self.note_half(obj.oid, false);
            if obj.meta.borrow_mut().take().is_some() {
                self.loaded.set(self.loaded.get() - 1);
            }
        }
        StoreError::CorruptHeader { oid: obj.oid }
    }
    /// The identity was written anew: these are its files now.
    pub(super) fn known_again(&self) -> std::io::Result<()> {
        for (path, id) in self.files.borrow_mut().iter_mut() {
            *id = self.fs.file_id(path)?;
        }
        Ok(())
    }
    /// The disk itself can be found where it was.
    pub(super) fn is_there(&self) -> Result<(), StoreError> {
        for (path, id) in self.files.borrow().iter() {
            match self.fs.file_id(path) {
                Ok(now) if now == *id => {}
                Ok(_) => return Err(self.fail(format!("{} was replaced", path.display()))),
                Err(e) => return Err(self.fail(format!("{}: {e}", path.display()))),
            }
        }
        Ok(())
    }
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match &*self.state.borrow() {
            DiskState::Failed(reason) => {
                Err(StoreError::DiskFailed { disk: self.id, reason: reason.clone() })
            }
            _ => Ok(()),
        }
    }
    /// Wait until memory and journal have room for so many bytes.
    pub(super) async fn room(&self, bytes: usize) -> Result<(), StoreError> {
        self.until(|d| d.admits(bytes)).await
    }
    /// Wait for checkpoints until it is so.
    pub(super) async fn until(&self, good: impl Fn(&Self) -> bool) -> Result<(), StoreError> {
        loop {
            self.check()?;
            let applied = self.applied.notified();
            tokio::pin!(applied);
            applied.as_mut().enable();
            if good(self) {
                return Ok(());
            }
            self.work.notify_one();
            applied.await;
        }
    }
    /// See `room`.
    pub(super) fn admits(&self, bytes: usize) -> bool {
        self.fresh_bytes.get() <= super::apply::FRESH_LIMIT && self.journal.admits(bytes)
    }
    /// How much room there is now: others may use the file system, or make room on it.
    pub(super) fn measure(&self) {
        if let Ok(space) = self.fs.space(&self.path) {
            self.free.set(space.free);
            self.total.set(space.total);
        }
        if *self.state.borrow() == DiskState::Full {
            self.has_room(LARGEST);
        }
    }
    /// The names of directories of changed objects are on stable storage, up to the disk's own.
    pub(super) fn sync_parents(&self) -> std::io::Result<()> {
        let mut parents = BTreeSet::new();
        for oid in self.dirty.borrow().iter() {
            let (dir, _) = self.object_path(*oid);
            let above = dir.ancestors().skip(1).take_while(|d| d.starts_with(&self.path));
            parents.extend(above.map(std::path::Path::to_owned));
        }
        for dir in parents {
            match self.fs.sync_dir(&dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
    /// May a whole copy of so many bytes be made anew here, one that is rebuilt or that a drained node gives away? Those fill a disk less far than clients may: else it is the
    /// rebuild after the loss of a node that stops the clients of the others.
    pub(super) fn may_rebuild(&self, bytes: u64) -> Result<(), StoreError> {
        let kept = super::kept_for_clients(self.total.get());
        let free = self.free.get().saturating_sub(self.fresh_bytes.get() as u64);
        if free >= kept.saturating_add(bytes) {
            return Ok(());
        }
        Err(StoreError::NoRoomToRebuild { path: self.path.display().to_string(), free, kept })
    }
    /// Free space that may still be promised.
    fn has_room(&self, bytes: u64) -> bool {
        let reserve = super::kept_at_least(self.total.get());
        let full = self.free.get() < reserve + self.fresh_bytes.get() as u64 + bytes;
        let mut state = self.state.borrow_mut();
        let was = *state == DiskState::Full;
        if full != was && !matches!(*state, DiskState::Failed(_)) {
            *state = if full { DiskState::Full } else { DiskState::Ok };
            let _ = self.events.try_send(StoreEvent::DiskFull { disk: self.id, full });
        }
        !full
    }

    fn insert(&self, oid: ObjectId, key: PlacementKey, summary: Summary, meta: Option<Meta>) -> Rc<Obj> {
        let obj = Rc::new(Obj {
            oid,
            key,
            summary: RefCell::new(summary),
            fresh: RefCell::default(),
            since: Cell::new(None),
            change: Cell::new(0),
            slot: Cell::new(0),
            mend: Cell::new(false),
            file: RefCell::default(),
            waiting: RefCell::default(),
            loading: Cell::new(false),
            used: Cell::new(0),
            applying: Cell::new(false),
            removed: Cell::new(false),
            meta: RefCell::new(None),
        });
        if meta.is_some() {
            self.loaded.set(self.loaded.get() + 1);
        }
        *obj.meta.borrow_mut() = meta;
        if oid.is_data() {
            self.by_key.borrow_mut().insert((key, oid.layer()));
            self.views.moved(key);
        }
        self.note_half(oid, summary.filling && !summary.broken);
        self.data_blocks.set(self.data_blocks.get() + u64::from(summary.data_blocks));
        self.objects.borrow_mut().insert(oid, obj.clone());
        obj
    }

    /// Objects with a damaged header that nothing tells the family of.
    pub(super) fn unplaced(&self) -> usize {
        let range = (PlacementKey { family: LayerId(0), index: 0 }, LayerId(0))
            ..(PlacementKey { family: LayerId(1), index: 0 }, LayerId(0));
        self.by_key.borrow().range(range).count()
    }
    /// The family of such an object.
    pub(super) fn place(&self, oid: ObjectId, family: LayerId) {
        let Some(old) = self.object(oid).filter(|o| o.key.family == LayerId(0)) else { return };
        self.by_key.borrow_mut().remove(&(old.key, oid.layer()));
        self.views.gone(old.key, oid.layer());
        self.data_blocks.set(self.data_blocks.get() - u64::from(old.summary.borrow().data_blocks));
        let summary = *old.summary.borrow();
        let placed = self.insert(oid, PlacementKey { family, index: oid.index() }, summary, None);
        placed.slot.set(old.slot.get());
        self.dirty.borrow_mut().insert(oid);
    }
    /// An object found on the disk at start.
    pub(super) fn found(&self, oid: ObjectId, key: PlacementKey, slot: u64, summary: Summary) {
        // An unlink that the journal still remembers comes later, in replay.
        let obj = self.insert(oid, key, summary, None);
        obj.slot.set(slot);
    }

    /// An object that the index knows. Its header is read when it is needed.
    pub(super) fn listed(&self, known: &Known) {
        let row = &known.summary;
        let summary = Summary {
            vdi: row.vdi,
            object_size: row.object_size,
            version: row.version,
            epoch: row.epoch,
            filling: row.filling,
            data_blocks: row.data_blocks,
            seal: row.seal,
            promised: row.promised,
            broken: false,
        };
        self.insert(row.oid, row.key, summary, None).slot.set(known.slot);
    }

    fn fresh_object(&self, oid: ObjectId, key: PlacementKey, vdi: VdiId, object_size: u32) -> Rc<Obj> {
        let summary = Summary {
            vdi,
            object_size,
            version: Version::NONE,
            epoch: Epoch(0),
            filling: false,
            data_blocks: 0,
            seal: None,
            promised: 0,
            broken: false,
        };
        self.insert(oid, key, summary, Some(Meta::new(oid, key, vdi, object_size)))
    }

    pub(super) fn object(&self, oid: ObjectId) -> Option<Rc<Obj>> {
        self.objects.borrow().get(&oid).cloned()
    }

    pub(super) fn open_file(&self, obj: &Obj, create: bool) -> Result<Rc<dyn File>, StoreError> {
        self.note_use(obj);
        if let Some(f) = &*obj.file.borrow() {
            return Ok(f.clone());
        }
        let (dir, path) = self.object_path(obj.oid);
        let open = || {
            let file = self.fs.open(&path, OpenHow { create, direct: true })?;
            if create && file.is_empty()? {
                file.set_len(file_len(obj.summary.borrow().object_size))?;
            }
            std::io::Result::Ok(file)
        };
        let file = match open() {
            Err(e) if create && e.kind() == std::io::ErrorKind::NotFound => {
                // Not below a mount point from which the disk has gone.
                self.is_there()?;
                self.fs.mkdir(&dir).and_then(|()| open())
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.is_there()?;
                if obj.removed.get() {
                    return Err(StoreError::CorruptHeader { oid: obj.oid });
                }
                return Err(self.lost(obj));
            }
            other => other,
        };
        let file = file.map_err(|e| self.fail(format!("{}: {e}", path.display())))?;
        *obj.file.borrow_mut() = Some(file.clone());
        self.open.set(self.open.get() + 1);
        self.fetches.set(self.fetches.get() + 1);
        Ok(file)
    }

    /// Metadata in memory, from the file if need be. Callers get it in the order they came.
    pub(super) async fn load(self: &Rc<Self>, obj: &Rc<Obj>) -> Result<(), StoreError> {
        loop {
            self.check()?;
            if obj.meta.borrow().is_some() {
                self.note_use(obj);
                return Ok(());
            }
            if obj.summary.borrow().broken {
                return Err(StoreError::CorruptHeader { oid: obj.oid });
            }
            if obj.loading.replace(true) {
                let (tx, rx) = oneshot::channel();
                obj.waiting.borrow_mut().push_back(tx);
                let _ = rx.await;
                continue;
            }
            // Also when this future is dropped: somebody else reads it then.
            let _turn = Loading(obj);
            self.read_meta(obj).await?;
        }
    }

    async fn read_meta(&self, obj: &Rc<Obj>) -> Result<(), StoreError> {
        let file = self.open_file(obj, false)?;
        let len = slot_len(obj.summary.borrow().object_size);
        let both = self.answer(file.read_at(0, 2 * len)).await.map_err(|e| self.fail(e.to_string()))?;
        match best_slot(obj.oid, &both, len) {
            // An older one is what the object was before its newer one was damaged. (A newer one than is known of is of before a crash: the journal goes on from it.)
            Ok((counter, meta)) if counter >= obj.slot.get() => {
                obj.slot.set(counter);
                if obj.meta.borrow().is_none() {
                    self.count(obj, meta.data().count());
                    *obj.meta.borrow_mut() = Some(*meta);
                    self.loaded.set(self.loaded.get() + 1);
                    self.fetches.set(self.fetches.get() + 1);
                }
                Ok(())
            }
            _ => Err(self.lost(obj)),
        }
    }

    /// So many blocks of the object have contents here. A row of the index may be older than the header: the crash came in between.
    fn count(&self, obj: &Obj, data_blocks: u32) {
        let before = std::mem::replace(&mut obj.summary.borrow_mut().data_blocks, data_blocks);
        let total = self.data_blocks.get() + u64::from(data_blocks);
        self.data_blocks.set(total.saturating_sub(u64::from(before)));
    }

    fn note_use(&self, obj: &Obj) {
        self.clock.set(self.clock.get() + 1);
        obj.used.set(self.clock.get());
    }

    /// After reads: as `trim_cache`, from time to time.
    pub(super) fn tidy(&self) {
        if self.fetches.get() >= FETCHES {
            self.trim_cache();
        }
    }

    /// Forget metadata and files of objects at rest beyond the limits.
    pub(super) fn trim_cache(&self) {
        self.fetches.set(0);
        if self.loaded.get() <= MAX_LOADED && self.open.get() <= self.max_open.get() {
            return;
        }
        let objects = self.objects.borrow();
        let open = objects.values().filter(|o| o.file.borrow().is_some()).count();
        let mut rest: Vec<(u64, &Rc<Obj>)> = objects
            .values()
            .filter(|o| o.since.get().is_none() && !o.applying.get() && !o.loading.get())
            .filter(|o| o.meta.borrow().is_some() || o.file.borrow().is_some())
            .filter(|o| Rc::strong_count(o) == 1)
            .map(|o| (o.used.get(), o))
            .collect();
        rest.sort_unstable_by_key(|(used, _)| *used);
        // Down to three quarters of a limit that is passed.
        let surplus = |count: usize, limit: usize| if count > limit { count - limit * 3 / 4 } else { 0 };
        let (mut metas, mut files) =
            (surplus(self.loaded.get(), MAX_LOADED), surplus(open, self.max_open.get()));
        let mut closed = 0;
        for (_, o) in rest {
            if metas > 0 && o.meta.borrow_mut().take().is_some() {
                metas -= 1;
                self.loaded.set(self.loaded.get() - 1);
            }
            if files > 0 && o.file.borrow_mut().take().is_some() {
                files -= 1;
                closed += 1;
            }
        }
        self.open.set(open - closed);
    }

    /// Layers of this chain that have an object here at this key, newest first. Ids grow along a chain, so a chain is sorted.
    pub(super) fn stack(&self, key: PlacementKey, chain: &Arc<[LayerId]>) -> Rc<[LayerId]> {
        if let Some(known) = self.views.stack(key, chain) {
            return known;
        }
        let by_key = self.by_key.borrow();
        let here = by_key.range((key, LayerId(0))..=(key, LayerId(u32::MAX))).rev().map(|(_, l)| *l);
        let layers: Rc<[LayerId]> = here.filter(|l| chain.binary_search_by(|c| l.cmp(c)).is_ok()).collect();
        if layers.len() > SHALLOW {
            self.views.keep_stack(key, chain, &layers);
        }
        layers
    }

    /// Remember that the object differs from its file.
    pub(super) fn touch(&self, obj: &Rc<Obj>, position: u64) {
        obj.change.set(obj.change.get() + 1);
        if obj.since.get().is_none() {
            obj.since.set(Some(position));
        }
        if self.dirty.borrow_mut().insert(obj.oid) {
            self.work.notify_one();
        }
        let mut s = obj.summary.borrow_mut();
        if let Some(m) = &*obj.meta.borrow() {
            s.version = m.version;
            s.epoch = m.epoch;
            s.filling = m.filling;
            s.vdi = m.vdi;
            s.seal = m.seal;
            s.promised = m.promised;
            self.note_half(obj.oid, m.filling);
        }
    }

    fn put_blocks(&self, obj: &Obj, blocks: Range<u32>, what: WriteAction, data: &Bytes, crcs: &[u32]) {
        self.views.wrote(obj.key, obj.oid.layer());
        let mut meta = obj.meta.borrow_mut();
        let Some(m) = meta.as_mut() else { return };
        let mut fresh = obj.fresh.borrow_mut();
        let change = obj.change.get() + 1;
        let mut data_blocks = obj.summary.borrow().data_blocks as i64;
        for (i, b) in blocks.clone().enumerate() {
            let had = m.has_data(b);
            let has = what == WriteAction::Data;
            data_blocks += i64::from(has) - i64::from(had);
            m.crcs[b as usize] = if has { crcs[i] } else { 0 };
            let at = i << BLOCK_SHIFT;
            let new = Fresh { data: has.then(|| data.slice(at..at + BLOCK_SIZE)), change };
            let old = fresh.insert(b, new);
            let grown = i64::from(has) - i64::from(old.is_some_and(|o| o.data.is_some()));
            self.fresh_bytes.set((self.fresh_bytes.get() as i64 + (grown << BLOCK_SHIFT)).max(0) as usize);
        }
        self.count(obj, data_blocks.max(0) as u32);
        m.warm(blocks.clone());
        match what {
            WriteAction::Data => {
                m.present.set(blocks.clone());
                m.zero.clear(blocks);
            }
            WriteAction::Zero => {
                m.present.set(blocks.clone());
                m.zero.set(blocks);
            }
            WriteAction::Remove => {
                m.present.clear(blocks.clone());
                m.zero.clear(blocks);
            }
        }
    }

    /// Contents of blocks are in strips from now on.
    fn put_away(&self, obj: &Obj, seal: Seal, blocks: &BlockMap, crcs: &[u32]) {
        self.views.wrote(obj.key, obj.oid.layer());
        let mut meta = obj.meta.borrow_mut();
        let Some(m) = meta.as_mut() else { return };
        let mut fresh = obj.fresh.borrow_mut();
        let change = obj.change.get() + 1;
        let (mut freed, mut gone) = (0, 0);
        for (b, crc) in blocks.set_runs().flatten().zip(crcs) {
            if m.has_data(b) {
                gone += 1;
                let old = fresh.insert(b, Fresh { data: None, change });
                freed += usize::from(old.is_some_and(|o| o.data.is_some()));
            }
            if let Some(known) = m.crcs.get_mut(b as usize) {
                *known = *crc;
            }
        }
        self.fresh_bytes.set(self.fresh_bytes.get().saturating_sub(freed << BLOCK_SHIFT));
        let mut summary = obj.summary.borrow_mut();
        summary.data_blocks = summary.data_blocks.saturating_sub(gone);
        self.data_blocks.set(self.data_blocks.get().saturating_sub(u64::from(gone)));
        m.present.union(blocks);
        m.zero.subtract(blocks);
        m.cold.union(blocks);
        m.seal = (!m.cold.is_empty()).then_some(seal);
        m.promised = m.promised.max(seal.number());
    }

    /// Take one step. The object's metadata must be loaded, or the object not exist.
    pub(super) fn step(self: &Rc<Self>, op: &WriteOp) -> Result<(WriteOutcome, Option<Durable>), StoreError> {
        self.check()?;
        let max = op.object_size >> BLOCK_SHIFT;
        if op.blocks.start >= op.blocks.end || op.blocks.end > max {
            return Err(StoreError::Invalid("block range".into()));
        }
        let existing = self.object(op.oid);
        let current = existing.as_ref().map_or(Version::NONE, |o| o.summary.borrow().version);
        if let Some(o) = &existing {
            let s = *o.summary.borrow();
            if s.object_size != op.object_size {
                return Err(StoreError::Invalid("object size differs from the object's".into()));
            }
            if s.filling {
                return Ok((WriteOutcome::Behind { current: Version::NONE }, None));
            }
        }
        if op.version <= current {
            let stamped = self.stamp(op.oid, op.epoch, vec![op.blocks.clone()], op.degraded);
            return Ok((WriteOutcome::Duplicate, Some(stamped)));
        }
        if op.prev != current {
            return Ok((WriteOutcome::Behind { current }, None));
        }
        let (payload, crcs) = match &op.kind {
            WriteKind::Data(d) if d.len() == op.blocks.len() << BLOCK_SHIFT => {
                if !self.has_room(d.len() as u64) {
                    return Err(StoreError::Full { disk: self.id });
                }
                (d.clone(), d.chunks_exact(BLOCK_SIZE).map(crc32c).collect())
            }
            WriteKind::Data(_) => return Err(StoreError::Invalid("payload length".into())),
            WriteKind::Zero | WriteKind::Remove => (Bytes::new(), Vec::new()),
        };
        let payload = crate::buf::aligned(payload);
        let record = Record::Write {
            oid: op.oid,
            key: op.key,
            vdi: op.vdi,
            object_size: op.object_size,
            version: op.version,
            prev: op.prev,
            epoch: op.epoch,
            degraded: op.degraded,
            watermark: op.watermark,
            blocks: op.blocks.clone(),
            action: action(&op.kind),
            crcs,
        };
        self.run(self.journal.head(), &record, &payload);
        let parts = if payload.is_empty() { Vec::new() } else { vec![payload] };
        Ok((WriteOutcome::Done, Some(self.journal.append(record, parts))))
    }

    /// Make sure that the header says that these blocks changed in this epoch or later.
    pub(super) fn stamp(
        self: &Rc<Self>,
        oid: ObjectId,
        epoch: Epoch,
        blocks: Vec<Range<u32>>,
        degraded: Option<Epoch>,
    ) -> Durable {
        let Some(obj) = self.object(oid) else { return self.journal.barrier() };
        let old = obj.meta.borrow().as_ref().is_some_and(|m| {
            let dirty = blocks.iter().all(|r| r.clone().all(|b| m.dirty.get(b)));
            m.epoch < epoch || (degraded.is_some() && !dirty)
        });
        if !old {
            return self.journal.barrier();
        }
        let record = Record::Stamp { oid, epoch, blocks, degraded };
        self.run(self.journal.head(), &record, &Bytes::new());
        self.journal.append(record, Vec::new())
    }

    /// Carry a record out in memory: when it is made, and again in replay.
    pub(super) fn run(self: &Rc<Self>, position: u64, record: &Record, data: &Bytes) {
        match record {
            Record::Write {
                oid,
                key,
                vdi,
                object_size,
                version,
                prev,
                epoch,
                degraded,
                watermark,
                blocks,
                action,
                crcs,
            } => {
                let obj =
                    self.object(*oid).unwrap_or_else(|| self.fresh_object(*oid, *key, *vdi, *object_size));
                self.put_blocks(&obj, blocks.clone(), *action, data, crcs);
                if let Some(m) = obj.meta.borrow_mut().as_mut() {
                    m.version = *version;
                    m.epoch = *epoch;
                    m.mark_dirty(std::slice::from_ref(blocks), *epoch, *degraded);
                }
                self.touch(&obj, position);
                self.unlink.borrow_mut().remove(oid);
                let entry = TailEntry { oid: *oid, version: *version, prev: *prev, blocks: blocks.clone() };
                self.note_tail(*vdi, entry);
                self.set_mark(*vdi, Version { generation: version.generation, seq: *watermark });
            }
            Record::Fill { oid, key, vdi, object_size, filling, ops, crcs } => {
                let obj =
                    self.object(*oid).unwrap_or_else(|| self.fresh_object(*oid, *key, *vdi, *object_size));
                let mut at = 0;
                for (blocks, action) in ops {
                    let n = if *action == WriteAction::Data { blocks.len() } else { 0 };
                    let bytes = data.slice(at << BLOCK_SHIFT..(at + n) << BLOCK_SHIFT);
                    self.put_blocks(&obj, blocks.clone(), *action, &bytes, &crcs[at..at + n]);
                    at += n;
                }
                if let Some(m) = obj.meta.borrow_mut().as_mut() {
                    m.filling |= *filling;
                }
                self.touch(&obj, position);
                self.unlink.borrow_mut().remove(oid);
            }
            Record::FinishFill { oid, version, epoch, dirty, dirty_since, tail } => {
                let Some(obj) = self.object(*oid) else { return };
                if let Some(m) = obj.meta.borrow_mut().as_mut() {
                    m.version = *version;
                    m.epoch = *epoch;
                    m.filling = false;
                    m.dirty = BlockMap::new(m.blocks());
                    m.dirty.union(dirty);
                    m.dirty_since = *dirty_since;
                    m.dirty_last = *epoch;
                }
                self.touch(&obj, position);
                // What it had beyond the copy it became equal to is no more; what that one has that may not be everywhere, this one has, too.
                for t in self.tails.borrow_mut().values_mut() {
                    t.entries.retain(|e| e.oid != *oid);
                }
                if let Some((prev, blocks)) = tail {
                    let vdi = obj.summary.borrow().vdi;
                    let entry =
                        TailEntry { oid: *oid, version: *version, prev: *prev, blocks: blocks.clone() };
                    self.note_tail(vdi, entry);
                }
            }
            Record::Remove { oid } => {
                if let Some(obj) = self.objects.borrow_mut().remove(oid) {
                    obj.removed.set(true);
                    let gone = u64::from(obj.summary.borrow().data_blocks);
                    self.data_blocks.set(self.data_blocks.get().saturating_sub(gone));
                    if oid.is_data() {
                        self.by_key.borrow_mut().remove(&(obj.key, oid.layer()));
                        self.views.gone(obj.key, oid.layer());
                    }
                    self.note_half(*oid, false);
                    let data = obj.fresh.borrow().values().filter(|f| f.data.is_some()).count();
                    self.fresh_bytes.set(self.fresh_bytes.get().saturating_sub(data << BLOCK_SHIFT));
                    if obj.meta.borrow_mut().take().is_some() {
                        self.loaded.set(self.loaded.get() - 1);
                    }
                }
                self.dirty.borrow_mut().remove(oid);
                self.unlink.borrow_mut().insert(*oid);
                for t in self.tails.borrow_mut().values_mut() {
                    t.entries.retain(|e| e.oid != *oid);
                }
                self.work.notify_one();
            }
            Record::Stamp { oid, epoch, blocks, degraded } => {
                let Some(obj) = self.object(*oid) else { return };
                if let Some(m) = obj.meta.borrow_mut().as_mut() {
                    m.epoch = m.epoch.max(*epoch);
                    m.mark_dirty(blocks, *epoch, *degraded);
                }
                self.touch(&obj, position);
            }
            Record::Seal { oid, key, vdi, object_size, filling, epoch, seal, blocks, crcs } => {
                let obj =
                    self.object(*oid).unwrap_or_else(|| self.fresh_object(*oid, *key, *vdi, *object_size));
                self.put_away(&obj, *seal, blocks, crcs);
                if let Some(m) = obj.meta.borrow_mut().as_mut() {
                    m.filling |= *filling;
                    m.epoch = m.epoch.max(*epoch);
                }
                self.touch(&obj, position);
                self.unlink.borrow_mut().remove(oid);
            }
            Record::Promise { oid, number } => {
                let Some(obj) = self.object(*oid) else { return };
                if let Some(m) = obj.meta.borrow_mut().as_mut() {
                    m.promised = m.promised.max(*number);
                }
                self.touch(&obj, position);
            }
            Record::Watermark { vdi, generation, seq } => {
                self.set_mark(*vdi, Version { generation: generation.0, seq: *seq });
            }
            Record::Tails { entries, marks } => {
                let mut tails = self.tails.borrow_mut();
                tails.clear();
                for (vdi, mark) in marks {
                    tails.entry(*vdi).or_default().mark = *mark;
                }
                for e in entries {
                    tails.entry(e.vdi).or_default().entries.push_back(TailEntry {
                        oid: e.oid,
                        version: e.version,
                        prev: e.prev,
                        blocks: e.blocks.clone(),
                    });
                }
            }
        }
    }

    fn note_tail(&self, vdi: VdiId, entry: TailEntry) {
        let mut tails = self.tails.borrow_mut();
        let t = tails.entry(vdi).or_default();
        let of_ended = self.keep_old_tails.get() && entry.version.generation < t.mark.generation;
        if entry.version > t.mark || of_ended {
            let dropped = t.push(entry, (MAX_TAIL, MAX_TAIL_OBJECTS));
            if dropped > 0 {
                tracing::error!(%vdi, dropped, "too many objects were written while one write waited: a takeover would not compare all of them; check the VDI");
            }
        }
    }

    fn set_mark(&self, vdi: VdiId, mark: Version) {
        let mut tails = self.tails.borrow_mut();
        let t = tails.entry(vdi).or_default();
        if mark > t.mark {
            t.mark = mark;
            let keep = self.keep_old_tails.get();
            t.entries.retain(|e| e.version > mark || (keep && e.version.generation < mark.generation));
        }
    }

    pub(super) fn watermark(self: &Rc<Self>, vdi: VdiId, generation: Generation, seq: u64) {
        let mark = Version { generation: generation.0, seq };
        let had = self.tails.borrow().get(&vdi).is_some_and(|t| mark > t.mark && !t.entries.is_empty());
        tracing::trace!(%vdi, %mark, had, keep = self.keep_old_tails.get(), "watermark");
        self.set_mark(vdi, mark);
        // Without entries there is nothing a restart could wrongly remember.
        if had {
            drop(self.journal.append(Record::Watermark { vdi, generation, seq }, Vec::new()));
        }
    }

    pub(super) fn tail(&self, vdi: VdiId) -> Vec<TailEntry> {
        self.tails.borrow().get(&vdi).map(|t| t.entries.iter().cloned().collect()).unwrap_or_default()
    }

    pub(super) fn tail_of(&self, vdi: VdiId, oid: ObjectId) -> Vec<TailEntry> {
        let tails = self.tails.borrow();
        let entries = tails.get(&vdi).into_iter().flat_map(|t| &t.entries);
        entries.filter(|e| e.oid == oid).cloned().collect()
    }

    pub(super) fn tail_vdis(&self) -> Vec<VdiId> {
        self.tails.borrow().iter().filter(|(_, t)| !t.entries.is_empty()).map(|(v, _)| *v).collect()
    }

    /// All tails, for a checkpoint.
    pub(super) fn saved_tails(&self) -> Record {
        let tails = self.tails.borrow();
        let entries = tails
            .iter()
            .flat_map(|(vdi, t)| {
                t.entries.iter().map(|e| SavedTail {
                    vdi: *vdi,
                    oid: e.oid,
                    version: e.version,
                    prev: e.prev,
                    blocks: e.blocks.clone(),
                })
            })
            .collect();
        let marks = tails.iter().map(|(v, t)| (*v, t.mark)).collect();
        Record::Tails { entries, marks }
    }

    /// Contents outside the log.
    pub(super) fn fill(
        self: &Rc<Self>,
        oid: ObjectId,
        key: PlacementKey,
        vdi: VdiId,
        object_size: u32,
        filling: bool,
        ops: Vec<FillOp>,
    ) -> Result<Durable, StoreError> {
        self.check()?;
        if self.object(oid).is_some_and(|o| o.summary.borrow().object_size != object_size) {
            return Err(StoreError::Invalid("object size differs from the object's".into()));
        }
        let max = object_size >> BLOCK_SHIFT;
        let mut crcs = Vec::new();
        let mut payload = Vec::new();
        let mut runs = Vec::with_capacity(ops.len());
        for op in ops {
            let len = op.blocks.len() << BLOCK_SHIFT;
            if op.blocks.start >= op.blocks.end || op.blocks.end > max {
                return Err(StoreError::Invalid("block range".into()));
            }
            runs.push((op.blocks, action(&op.kind)));
            if let WriteKind::Data(d) = op.kind {
                if d.len() != len {
                    return Err(StoreError::Invalid("payload length".into()));
                }
                crcs.extend(d.chunks_exact(BLOCK_SIZE).map(crc32c));
                payload.push(d);
            }
        }
        let bytes: usize = payload.iter().map(Bytes::len).sum();
        if bytes > 0 && !self.has_room(bytes as u64) {
            return Err(StoreError::Full { disk: self.id });
        }
        let whole = match payload.len() {
            0 => Bytes::new(),
            1 => crate::buf::aligned(payload.remove(0)),
            _ => {
                let mut buf = AlignedBuf::new(bytes);
                let mut at = 0;
                for p in payload {
                    buf[at..at + p.len()].copy_from_slice(&p);
                    at += p.len();
                }
                buf.freeze()
            }
        };
        let record = Record::Fill { oid, key, vdi, object_size, filling, ops: runs, crcs };
        self.run(self.journal.head(), &record, &whole);
        let parts = if whole.is_empty() { Vec::new() } else { vec![whole] };
        Ok(self.journal.append(record, parts))
    }

    /// A record without payload.
    pub(super) fn log(self: &Rc<Self>, record: Record) -> Durable {
        self.run(self.journal.head(), &record, &Bytes::new());
        self.journal.append(record, Vec::new())
    }

    pub(super) fn info(&self, obj: &Obj) -> Option<ObjectInfo> {
        obj.meta.borrow().as_ref().map(|m| ObjectInfo {
            oid: m.oid,
            key: m.key,
            vdi: m.vdi,
            object_size: m.object_size,
            version: m.version,
            epoch: m.epoch,
            present: m.present.clone(),
            zero: m.zero.clone(),
            dirty: m.dirty.clone(),
            dirty_since: m.dirty_since,
            filling: m.filling,
            cold: m.cold.clone(),
            cold_crcs: m.cold_crcs(),
            seal: m.seal,
            promised: m.promised,
        })
    }

    /// Its row of the index.
    pub(super) fn known(&self, obj: &Obj) -> Known {
        Known { summary: self.summary(obj), slot: obj.slot.get() }
    }

    pub(super) fn summary(&self, obj: &Obj) -> ObjectSummary {
        let s = obj.summary.borrow();
        ObjectSummary {
            oid: obj.oid,
            key: obj.key,
            vdi: s.vdi,
            object_size: s.object_size,
            version: s.version,
            epoch: s.epoch,
            filling: s.filling || s.broken,
            data_blocks: s.data_blocks,
            seal: s.seal,
            promised: s.promised,
        }
    }

    /// A block does not match its checksum.
    pub(super) fn corrupt(&self, oid: ObjectId, blocks: Range<u32>) -> StoreError {
        self.corrupt_blocks.set(self.corrupt_blocks.get() + blocks.len() as u64);
        let _ = self.events.try_send(StoreEvent::Corrupt { oid, blocks: blocks.clone() });
        StoreError::Corrupt { oid, blocks }
    }

    /// Data blocks `run` of an object as they are on disk (none of them in the overlay), checked: `want` are their checksums, as of its `change`. `None`: it
    /// was changed meanwhile.
    pub(super) async fn read_run(
        &self,
        obj: &Rc<Obj>,
        run: Range<u32>,
        (want, change): (&[u32], u64),
    ) -> Result<Option<AlignedBuf>, StoreError> {
        let size = obj.summary.borrow().object_size;
        let file = match self.open_file(obj, false) {
            // Its file went with it: look again where it is.
            Err(_) if obj.removed.get() => return Ok(None),
            file => file?,
        };
        let (began, len) = (Instant::now(), run.len() << BLOCK_SHIFT);
        let read = self.answer(file.read_at(data_offset(size, run.start), len)).await;
        self.ops.read.finished(len as u64, began.elapsed(), read.is_ok());
        let buf = read.map_err(|e| self.fail(e.to_string()))?;
        let bad = |i: &usize| crc32c(&buf[i << BLOCK_SHIFT..(i + 1) << BLOCK_SHIFT]) != want[*i];
        let Some(first) = (0..run.len()).find(bad) else { return Ok(Some(buf)) };
        if obj.change.get() != change || obj.removed.get() {
            // Overwritten while we read: look again.
            return Ok(None);
        }
        let last = (first..run.len()).rev().find(bad).unwrap_or(first);
        Err(self.corrupt(obj.oid, run.start + first as u32..run.start + last as u32 + 1))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.work.notify_one();
    }
}

/// The newer valid slot of the two.
pub(super) fn best_slot(oid: ObjectId, both: &[u8], len: usize) -> Result<(u64, Box<Meta>), Slot> {
    let a = Meta::decode(oid, &both[..len.min(both.len())]);
    let b = Meta::decode(oid, both.get(len..).unwrap_or_default());
    match (a, b) {
        (Slot::Valid(x, a), Slot::Valid(y, b)) => Ok(if x > y { (x, a) } else { (y, b) }),
        (Slot::Valid(x, m), _) | (_, Slot::Valid(x, m)) => Ok((x, m)),
        (Slot::Blank, Slot::Blank) => Err(Slot::Blank),
        _ => Err(Slot::Broken),
    }
}

/// One of the two is damaged.
pub(super) fn has_broken_slot(oid: ObjectId, both: &[u8], len: usize) -> bool {
    let slots = [&both[..len.min(both.len())], both.get(len..).unwrap_or_default()];
    slots.iter().any(|slot| Meta::decode(oid, slot) == Slot::Broken)
}

/// The turn to read an object's header.
struct Loading<'a>(&'a Obj);

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.0.loading.set(false);
        for w in self.0.waiting.borrow_mut().drain(..) {
            let _ = w.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_tail_still_names_every_object_and_block() {
        let v = |seq| Version { generation: 1, seq };
        let mut tails = Tails::default();
        // One write waits for ever, ten objects are written again and again.
        for seq in 1..=1000u64 {
            let oid = ObjectId::data(LayerId(1), if seq == 1 { 99 } else { (seq % 10) as u32 });
            let first = (seq % 7) as u32 * 10;
            let entry = TailEntry { oid, version: v(seq), prev: v(seq - 1), blocks: first..first + 2 };
            assert_eq!(tails.push(entry, (64, 128)), 0, "nothing is dropped");
            assert!(tails.entries.len() <= 64);
        }
        let of = |index| tails.entries.iter().filter(move |e| e.oid == ObjectId::data(LayerId(1), index));
        assert_eq!(of(99).map(|e| (e.version, e.blocks.clone())).collect::<Vec<_>>(), [(v(1), 10..12)]);
        for index in 0..10 {
            let (start, end) =
                of(index).fold((u32::MAX, 0), |(s, e), t| (s.min(t.blocks.start), e.max(t.blocks.end)));
            assert_eq!((start, end), (0, 62), "all blocks that were written");
            let last = of(index).map(|e| e.version.seq).max();
            assert_eq!(last.map(|s| s % 10), Some(u64::from(index)));
        }
        assert!(tails.entries.iter().zip(tails.entries.iter().skip(1)).all(|(a, b)| a.version < b.version));
        // With more objects than there may be the oldest go, and that is told.
        let mut dropped = 0;
        for seq in 2000..2400u64 {
            let entry = TailEntry {
                oid: ObjectId::data(LayerId(1), seq as u32),
                version: v(seq),
                prev: Version::NONE,
                blocks: 0..1,
            };
            dropped += tails.push(entry, (64, 128));
            assert!(tails.entries.len() <= 256);
        }
        assert!(dropped > 0 && tails.entries.iter().any(|e| e.version == v(2399)));
    }
}
