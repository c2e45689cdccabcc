//! The store of one sheep: its disks, each with a journal, object files and an index in memory.
//!
//! Owned by the data thread, no locks. Everything above speaks in 4 KiB blocks of objects.
//!
//! What holds, and who relies on it:
//! * A finished `write` is durable: its journal record has reached stable storage.
//! * Calls for one object take effect in the order they were *made* (the synchronous part of the call enqueues), even when the
//!   object's header has to be read from disk first. The session's prefix rule stands on this.
//! * A `read` made after a `write` call sees that write, durable or not. The session keeps overlapping reads back.
//! * A block whose checksum does not match is never returned: `StoreError::Corrupt` names it.
//! * After a crash at any point every finished write is there, and each unfinished one is there as a whole or not at all, per block, in
//!   the order of its object's log (a prefix).

mod apply;
mod disk;
pub mod fs;
mod half;
pub mod index;
mod journal;
mod object;
mod open;
mod pulse;
mod read;
mod relocate;
mod returned;
mod sealed;
#[cfg(test)]
mod tests;
pub mod types;
mod verify;
mod view;

pub use open::{OpenError, StoreConfig};
pub use pulse::Owing;
pub use types::*;
pub use verify::Verified;

use crate::observe::cells::OpCounts;
use bytes::Bytes;
use disk::{Disk, Durable, Obj};
use journal::Record;
use rustix::process::{Resource, getrlimit};
use sheepdog_proto::{
    BLOCK_SHIFT, BlockMap, DiskId, Epoch, Generation, LayerId, ObjectId, PlacementKey, VdiId, Version,
};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// A step that was taken, and on which disk it becomes durable.
type Began = Result<(WriteOutcome, Option<(Rc<Disk>, Durable)>), StoreError>;

fn begin(disk: Rc<Disk>, op: &WriteOp) -> Began {
    let (outcome, rx) = disk.step(op)?;
    Ok((outcome, rx.map(|rx| (disk, rx))))
}

/// Counters for metrics.
#[derive(Debug, Clone, Copy, Default)]
pub struct StoreStats {
    /// Journal batches written.
    pub journal_batches: u64,
    /// Journal bytes written.
    pub journal_bytes: u64,
    /// Records waiting for the journal.
    pub journal_depth: u64,
    /// Bytes journaled but not in object files yet.
    pub overlay_bytes: u64,
    /// Blocks whose checksum did not match.
    pub corrupt_blocks: u64,
}

/// One disk, for metrics.
#[derive(Debug, Clone)]
pub struct DiskStats {
    /// Identity.
    pub id: DiskId,
    /// Directory.
    pub path: String,
    /// Bytes the file system has.
    pub total: u64,
    /// Bytes free on it.
    pub free: u64,
    /// Bytes in object files.
    pub used: u64,
    /// Objects.
    pub objects: u64,
    /// State.
    pub state: DiskState,
    /// What is thought of it.
    pub opinion: Opinion,
    /// Size of the journal's ring, bytes.
    pub journal_size: u64,
    /// Part of the ring that a checkpoint has not freed yet, bytes.
    pub journal_used: u64,
    /// Payload waiting to be written to the journal, bytes.
    pub journal_queued: u64,
    /// Records waiting to be written to the journal.
    pub journal_records: u64,
    /// Bytes journaled but not in object files yet.
    pub overlay: u64,
    /// Blocks whose checksum did not match.
    pub corrupt_blocks: u64,
    /// What it has done, by kind.
    pub ops: [(&'static str, OpCounts); 5],
}

/// What stays free on a disk of so many bytes whatever happens: below it writes wait.
pub(crate) fn kept_at_least(total: u64) -> u64 {
    (total / 50).min(1 << 30)
}

/// What stays free for clients when copies are rebuilt.
pub fn kept_for_clients(total: u64) -> u64 {
    4 * kept_at_least(total)
}

/// Writes that wait for an object's header, in order.
type Pending = HashMap<ObjectId, VecDeque<(WriteOp, oneshot::Sender<Began>)>>;

/// The store.
pub struct Store {
    config: StoreConfig,
    fs: Rc<dyn fs::Fs>,
    disks: RefCell<Vec<Rc<Disk>>>,
    pending: RefCell<Pending>,
    moves: relocate::Moves,
    /// Strips that are being made.
    making: RefCell<BTreeSet<ObjectId>>,
    events_out: mpsc::Sender<StoreEvent>,
    events_in: RefCell<Option<mpsc::Receiver<StoreEvent>>>,
    /// Layout of disks that have no objects yet.
    plain: Cell<bool>,
    me: std::rc::Weak<Store>,
}

async fn durable(d: &Rc<Disk>, rx: Durable) -> Result<(), StoreError> {
    if crate::planted::is(crate::planted::Bug::AckBeforeJournal) {
        return Ok(());
    }
    match rx.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => Err(d.fail(why)),
        Err(_) => Err(StoreError::Closed),
    }
}

impl Store {
    /// How disk I/O is done.
    pub fn engine(&self) -> &'static str {
        self.fs.engine()
    }

    fn locate(&self, oid: ObjectId) -> Option<(Rc<Disk>, Rc<Obj>)> {
        let disks = self.disks.borrow();
        let mut seen = disks.iter().filter(|d| !self.moves.hides(d.id, oid));
        seen.find_map(|d| d.object(oid).map(|o| (d.clone(), o)))
    }

    /// Where a new object goes: weighted rendezvous over the usable disks that stay (a private ring of this node).
    fn choose(&self, key: PlacementKey) -> Result<Rc<Disk>, StoreError> {
        let disks = self.disks.borrow();
        let usable = || disks.iter().filter(|d| !matches!(*d.state.borrow(), DiskState::Failed(_)));
        let score = |d: &Rc<Disk>| {
            let mut bytes = [0u8; 24];
            bytes[..16].copy_from_slice(&d.id.0.to_be_bytes());
            bytes[16..20].copy_from_slice(&key.family.0.to_be_bytes());
            bytes[20..].copy_from_slice(&key.index.to_be_bytes());
            let h = xxhash_rust::xxh3::xxh3_64(&bytes);
            let unit = (h >> 11) as f64 / (1u64 << 53) as f64;
            d.total.get().max(1) as f64 / -(unit.max(f64::MIN_POSITIVE)).ln()
        };
        if let [only] = disks.as_slice() {
            only.check()?;
            return only.if_known();
        }
        let staying = usable().filter(|d| d.leaving.borrow().is_none());
        let best = staying.max_by(|a, b| score(a).total_cmp(&score(b))).cloned();
        if best.is_none()
            && let Some(left) = usable().next()
        {
            // All others have failed: this one has to stay.
            tracing::error!(path = %left.path.display(), "the disk was to be emptied and is the only one left: it stays in use");
            let stays = left.if_known()?;
            *stays.leaving.borrow_mut() = None;
            return Ok(stays);
        }
        best.ok_or(StoreError::NoDisk)
    }

    /// See the module: order of calls is the order of effects. The write happens even if the future is dropped.
    pub fn write(&self, op: WriteOp) -> impl Future<Output = Result<WriteOutcome, StoreError>> + use<> {
        let (called, bytes) = (Instant::now(), op.bytes() as u64);
        let place = match self.locate(op.oid) {
            Some((d, o)) => Ok((d, Some(o))),
            None => self.choose(op.key).map(|d| (d, None)),
        };
        let mut later = None;
        let mut now: Option<Began> = None;
        let disk = match place {
            Err(e) => {
                now = Some(Err(e));
                None
            }
            Ok((disk, obj)) => {
                let waits = self.pending.borrow().contains_key(&op.oid)
                    || self.moves.is(op.oid)
                    || obj.as_ref().is_some_and(|o| o.meta.borrow().is_none())
                    || !disk.admits(op.bytes());
                if waits {
                    let (tx, rx) = oneshot::channel();
                    let oid = op.oid;
                    let mut pending = self.pending.borrow_mut();
                    let first = !pending.contains_key(&oid);
                    pending.entry(oid).or_default().push_back((op, tx));
                    if first && let Some(me) = self.me.upgrade() {
                        tokio::task::spawn_local(me.drain(oid));
                    }
                    later = Some(rx);
                } else {
                    now = Some(begin(disk.clone(), &op));
                }
                Some(disk)
            }
        };
        async move {
            let end = async move {
                let began = match (now, later) {
                    (Some(b), _) => b,
                    (None, Some(rx)) => rx.await.unwrap_or(Err(StoreError::Closed)),
                    (None, None) => Err(StoreError::Closed),
                };
                let (outcome, written) = began?;
                if let Some((d, rx)) = written {
                    durable(&d, rx).await?;
                }
                Ok(outcome)
            };
            let result = end.await;
            if let Some(d) = disk {
                d.ops.write.finished(bytes, called.elapsed(), result.is_ok());
            }
            result
        }
    }

    /// Take the steps that wait for an object's header, for room, or for the end of a move, in order. While the entry is there, new ones queue behind.
    async fn drain(self: Rc<Self>, oid: ObjectId) {
        loop {
            let first =
                self.pending.borrow().get(&oid).and_then(|q| q.front()).map(|(op, _)| (op.key, op.bytes()));
            let Some((key, bytes)) = first else {
                self.pending.borrow_mut().remove(&oid);
                return;
            };
            let ready = self.place_for(oid, key, bytes).await;
            let next = self.pending.borrow_mut().get_mut(&oid).and_then(|q| match q.front() {
                // Another one has moved up meanwhile: it may need more room.
                Some((op, _)) if op.bytes() > bytes && ready.is_ok() => None,
                _ => q.pop_front(),
            });
            if let Some((op, tx)) = next {
                let _ = tx.send(ready.and_then(|disk| begin(disk, &op)));
            }
        }
    }

    /// See `Request::Stamp`.
    pub async fn stamp(
        &self,
        oid: ObjectId,
        epoch: Epoch,
        blocks: Vec<Range<u32>>,
        floor: Epoch,
    ) -> Result<(), StoreError> {
        let Some((disk, _)) = self.at_rest(oid).await? else { return Ok(()) };
        let rx = disk.stamp(oid, epoch, blocks, Some(floor));
        durable(&disk, rx).await
    }

    /// Everything that was taken before the call is durable.
    ///
    /// # Errors
    /// `DiskFailed`: not all of it ever will be; what was on that disk is gone.
    pub async fn settled(&self) -> Result<(), StoreError> {
        let disks: Vec<Rc<Disk>> = self.disks.borrow().clone();
        let under_way: Vec<_> = disks.iter().map(|d| (d, d.journal.barrier())).collect();
        for (d, rx) in under_way {
            durable(d, rx).await?;
        }
        Ok(())
    }

    /// Throw out writes that were accepted but have not begun (their object's header is being read, or there is no room), where `late` says so. What is
    /// left has begun, and is seen by `list`, `info` and `tail`.
    pub fn refuse_waiting(&self, late: impl Fn(&WriteOp) -> bool) {
        for queue in self.pending.borrow_mut().values_mut() {
            for (op, tx) in std::mem::take(queue) {
                if late(&op) {
                    let _ = tx.send(Err(StoreError::Late));
                } else {
                    queue.push_back((op, tx));
                }
            }
        }
    }

    async fn loaded(&self, oid: ObjectId) -> Result<Option<(Rc<Disk>, Rc<Obj>)>, StoreError> {
        loop {
            let Some((d, o)) = self.locate(oid) else { return Ok(None) };
            let loaded = d.load(&o).await;
            // Removed meanwhile, or moved: then it is elsewhere.
            if !o.removed.get() {
                return loaded.map(|()| Some((d, o)));
            }
        }
    }

    /// Header of an object; `None`: there is none.
    pub async fn info(&self, oid: ObjectId) -> Result<Option<ObjectInfo>, StoreError> {
        Ok(self.loaded(oid).await?.and_then(|(d, o)| d.info(&o)))
    }

    /// Last step of an object, from memory.
    pub fn version(&self, oid: ObjectId) -> Option<Version> {
        self.locate(oid).map(|(_, o)| o.summary.borrow().version)
    }

    /// Layers that have an object at this key, oldest first. Reads ask `layers_in`.
    pub fn layers_at(&self, key: PlacementKey) -> Vec<LayerId> {
        let mut out = Vec::new();
        for d in self.disks.borrow().iter() {
            let range = (key, LayerId(0))..=(key, LayerId(u32::MAX));
            out.extend(d.by_key.borrow().range(range).map(|(_, l)| *l));
        }
        out.sort_unstable();
        out.dedup();
        out
    }

    /// Layers of a chain that have an object at this key, newest first.
    pub fn layers_in(&self, key: PlacementKey, chain: &Arc<[LayerId]>) -> Rc<[LayerId]> {
        let mut all: Rc<[LayerId]> = Rc::default();
        for d in self.disks.borrow().iter() {
            let here = d.stack(key, chain);
            if all.is_empty() {
                all = here;
            } else if !here.is_empty() {
                let mut both = [&*all, &*here].concat();
                both.sort_unstable_by(|a, b| b.cmp(a));
                // One that moves is on two.
                both.dedup();
                all = both.into();
            }
        }
        all
    }

    /// Every write above the last known watermark; survives a restart.
    pub fn tail(&self, vdi: VdiId) -> Vec<TailEntry> {
        self.disks.borrow().iter().flat_map(|d| d.tail(vdi)).collect()
    }
    /// The tail of one object.
    pub fn tail_of(&self, vdi: VdiId, oid: ObjectId) -> Vec<TailEntry> {
        self.disks.borrow().iter().flat_map(|d| d.tail_of(vdi, oid)).collect()
    }
    /// The same in short: the version before it, and all blocks between the outermost it changed.
    pub fn tail_bounds(&self, vdi: VdiId, oid: ObjectId) -> Option<(Version, Range<u32>)> {
        self.tail_of(vdi, oid).into_iter().reduce(TailEntry::and).map(|t| (t.prev, t.blocks))
    }
    /// VDIs with a tail.
    pub fn tail_vdis(&self) -> Vec<VdiId> {
        let mut all: Vec<VdiId> = self.disks.borrow().iter().flat_map(|d| d.tail_vdis()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
    /// Everything of this VDI up to here is committed.
    pub fn set_watermark(&self, vdi: VdiId, generation: Generation, seq: u64) {
        for d in self.disks.borrow().iter() {
            d.watermark(vdi, generation, seq);
        }
    }

    /// While this node is not complete, what it has of ended sessions may differ from the other copies in ways that only it knows: it was not there when
    /// the session was taken over. So these entries stay until the objects are filled, or until the node is complete.
    pub fn keep_old_tails(&self, keep: bool) {
        for d in self.disks.borrow().iter() {
            d.keep_old_tails.set(keep);
        }
    }

    /// Put contents into an object outside its log and mark it as being filled; makes it if need be.
    pub async fn fill(
        &self,
        oid: ObjectId,
        key: PlacementKey,
        vdi: VdiId,
        object_size: u32,
        ops: Vec<FillOp>,
    ) -> Result<(), StoreError> {
        let bytes = ops.iter().map(|op| op.blocks.len() << BLOCK_SHIFT).sum();
        let disk = self.place_for(oid, key, bytes).await?;
        let began = Instant::now();
        let rx = disk.fill(oid, key, vdi, object_size, true, ops)?;
        let result = durable(&disk, rx).await;
        disk.ops.fill.finished(bytes as u64, began.elapsed(), result.is_ok());
        result
    }

    /// May a copy of this object, of so many bytes, be made here? Always, when there is one already.
    pub async fn may_rebuild(&self, oid: ObjectId, key: PlacementKey, bytes: u64) -> Result<(), StoreError> {
        match self.at_rest(oid).await? {
            Some(_) => Ok(()),
            None => self.choose(key)?.may_rebuild(bytes),
        }
    }

    /// End a fill: the object is a valid copy at this version. `tail`: what the copy it is equal to says with `tail_bounds`.
    pub async fn finish_fill(
        &self,
        oid: ObjectId,
        version: Version,
        epoch: Epoch,
        dirty: BlockMap,
        dirty_since: Option<Epoch>,
        tail: Option<(Version, Range<u32>)>,
    ) -> Result<(), StoreError> {
        let Some((disk, _)) = self.at_rest(oid).await? else {
            return Err(StoreError::Invalid("no such object to finish".into()));
        };
        let rx = disk.log(Record::FinishFill { oid, version, epoch, dirty, dirty_since, tail });
        durable(&disk, rx).await
    }

    /// Equal contents, equal digest.
    pub async fn digest(&self, oid: ObjectId) -> Result<Option<u64>, StoreError> {
        Ok(self.loaded(oid).await?.and_then(|(_, o)| o.meta.borrow().as_ref().map(object::Meta::digest)))
    }

    /// Remove an object for good.
    pub async fn remove(&self, oid: ObjectId) -> Result<(), StoreError> {
        self.moves.still(oid).await;
        let Some((disk, _)) = self.locate(oid) else { return Ok(()) };
        disk.check()?;
        let rx = disk.log(Record::Remove { oid });
        durable(&disk, rx).await
    }

    /// Remove every object of a layer; how many there were.
    pub async fn remove_layer(&self, layer: LayerId) -> Result<u64, StoreError> {
        let range = ObjectId::data(layer, 0)..=ObjectId::data(layer, u32::MAX);
        let mut all: Vec<ObjectId> = Vec::new();
        for d in self.disks.borrow().iter() {
            all.extend(d.objects.borrow().range(range.clone()).map(|(o, _)| *o));
        }
        all.sort_unstable();
        all.dedup();
        let mut count = 0;
        let mut last: HashMap<DiskId, (Rc<Disk>, Durable)> = HashMap::new();
        for oid in all {
            self.moves.still(oid).await;
            let Some((d, _)) = self.locate(oid) else { continue };
            d.check()?;
            let rx = d.log(Record::Remove { oid });
            last.insert(d.id, (d, rx));
            count += 1;
        }
        for (d, rx) in last.into_values() {
            durable(&d, rx).await?;
        }
        Ok(count)
    }

    /// Copy blocks that `from` has and `into` has not into `into`. Readers of the chain see no difference at any moment; `from` goes when its layer does.
    pub async fn merge(&self, from: ObjectId, into: ObjectId) -> Result<(), StoreError> {
        const CHUNK: u32 = 256;
        let Some((source, obj)) = self.loaded(from).await? else { return Ok(()) };
        let Some(info) = source.info(&obj) else { return Ok(()) };
        for run in info.present.set_runs().collect::<Vec<_>>() {
            let mut first = run.start;
            while first < run.end {
                let chunk = first..(first + CHUNK).min(run.end);
                first = chunk.end;
                if let Some((_, o)) = self.loaded(into).await?
                    && o.meta.borrow().as_ref().is_some_and(|m| chunk.clone().all(|b| m.present.get(b)))
                {
                    continue;
                }
                let read = self.read(&[from.layer()], info.key, chunk.clone()).await?;
                if !read.cold.is_empty() {
                    return Err(StoreError::Sealed { oid: from });
                }
                let data = read.data;
                let target = self.place_for(into, info.key, data.len()).await?;
                // From here without awaiting: only blocks that `into` still lacks.
                let has =
                    target.object(into).and_then(|o| o.meta.borrow().as_ref().map(|m| m.present.clone()));
                let mut ops = Vec::new();
                for b in chunk.clone() {
                    if has.as_ref().is_some_and(|h| h.get(b)) || !info.present.get(b) {
                        continue;
                    }
                    let at = ((b - chunk.start) as usize) << BLOCK_SHIFT;
                    let kind = if info.zero.get(b) {
                        WriteKind::Zero
                    } else {
                        WriteKind::Data(data.slice(at..at + (1 << BLOCK_SHIFT)))
                    };
                    ops.push(FillOp { blocks: b..b + 1, kind });
                }
                if !ops.is_empty() {
                    let rx = target.fill(into, info.key, info.vdi, info.object_size, false, ops)?;
                    durable(&target, rx).await?;
                }
            }
        }
        Ok(())
    }

    /// Some object here has a damaged header and is not known to belong anywhere yet: nothing can be called absent.
    pub fn has_unplaced(&self) -> bool {
        self.disks.borrow().iter().any(|d| d.unplaced() > 0)
    }
    /// An object with a damaged header belongs to this family.
    pub fn place(&self, oid: ObjectId, family: LayerId) {
        if let Some((disk, _)) = self.locate(oid) {
            disk.place(oid, family);
        }
    }

    /// Rows after an object, in order, at most `limit`.
    pub fn list(&self, after: Option<ObjectId>, limit: usize) -> Vec<ObjectSummary> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let mut out = Vec::new();
        for d in self.disks.borrow().iter() {
            let objects = d.objects.borrow();
            let seen = objects.range((from, Unbounded)).filter(|(oid, _)| !self.moves.hides(d.id, **oid));
            out.extend(seen.take(limit).map(|(_, o)| d.summary(o)));
        }
        out.sort_unstable_by_key(|r| r.oid);
        out.truncate(limit);
        out
    }

    /// Some object, chosen by a number; none when there is none.
    pub fn somewhere(&self, salt: u64) -> Option<ObjectId> {
        let disks = self.disks.borrow();
        let total: usize = disks.iter().map(|d| d.objects.borrow().len()).sum();
        let mut nth = (salt % (total.max(1) as u64)) as usize;
        for d in disks.iter() {
            let objects = d.objects.borrow();
            if nth < objects.len() {
                return objects.keys().nth(nth).copied();
            }
            nth -= objects.len();
        }
        None
    }

    /// Row and disk of one object.
    pub fn row(&self, oid: ObjectId) -> Option<(ObjectSummary, String)> {
        self.locate(oid).map(|(d, o)| (d.summary(&o), d.path.display().to_string()))
    }

    /// Disks, for listings and weights.
    pub fn disks(&self) -> Vec<DiskInfo> {
        self.disks
            .borrow()
            .iter()
            .map(|d| {
                let objects = d.objects.borrow();
                DiskInfo {
                    id: d.id,
                    path: d.path.display().to_string(),
                    total: d.total.get(),
                    free: d.free.get(),
                    used: d.data_blocks.get() << BLOCK_SHIFT,
                    objects: objects.len() as u64,
                    state: d.state.borrow().clone(),
                    leaving: d.leaving.borrow().clone(),
                    opinion: d.opinion.borrow().clone(),
                }
            })
            .collect()
    }

    /// Note what is thought of a disk.
    pub fn set_opinion(&self, disk: DiskId, change: impl FnOnce(&mut Opinion)) {
        if let Some(d) = self.disks.borrow().iter().find(|d| d.id == disk) {
            change(&mut d.opinion.borrow_mut());
        }
    }

    /// Open another disk. It takes no new objects before `set_leaving` says that it stays: the cluster has to know of it first.
    pub async fn plug(&self, path: &Path) -> Result<DiskId, OpenError> {
        let me = self.me.upgrade().ok_or_else(|| OpenError("the store is closed".into()))?;
        me.add_disk(path, Some(String::new())).await
    }

    /// Of the files that this process may have open, objects at rest get half at most.
    fn share_files(&self) {
        let allowed = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |n| n as usize);
        let disks = self.disks.borrow();
        for d in disks.iter() {
            d.max_open.set((allowed / 2 / disks.len()).min(disk::MAX_OPEN));
        }
    }

    /// Stop using a disk at once: its objects are gone from this node.
    pub async fn unplug(&self, disk: DiskId) -> Result<(), StoreError> {
        let at = self.disks.borrow().iter().position(|d| d.id == disk);
        let Some(at) = at else { return Err(StoreError::Invalid("no such disk".into())) };
        let gone = self.disks.borrow_mut().remove(at);
        self.share_files();
        gone.out_of_use("unplugged");
        Ok(())
    }

    /// Keep a small named value on every disk.
    pub async fn put_blob(&self, name: &str, data: Bytes) -> Result<(), StoreError> {
        let disks: Vec<Rc<Disk>> = self.disks.borrow().clone();
        let mut first = Ok(());
        for d in disks {
            if d.check().is_ok() {
                let written = d.answer(open::write_small(&*d.fs, &d.path, name, &data)).await;
                first = first.and(written.map_err(|e| match e.kind() {
                    // Others may fill its file system.
                    std::io::ErrorKind::StorageFull => StoreError::Full { disk: d.id },
                    _ => d.fail(e.to_string()),
                }));
            }
        }
        first
    }

    /// What every disk has under a name.
    pub async fn get_blobs(&self, name: &str) -> Vec<(DiskId, Bytes)> {
        let disks: Vec<Rc<Disk>> = self.disks.borrow().clone();
        let mut out = Vec::new();
        for d in disks {
            if let Ok(Some(data)) = open::read_small(&*d.fs, &d.path, name).await {
                out.push((d.id, data));
            }
        }
        out
    }

    /// What the store tells without being asked; taken once.
    pub fn events(&self) -> Option<mpsc::Receiver<StoreEvent>> {
        self.events_in.borrow_mut().take()
    }

    /// Counters.
    pub fn stats(&self) -> StoreStats {
        let mut s = StoreStats::default();
        for d in self.disks.borrow().iter() {
            let (batches, bytes) = d.journal.written();
            s.journal_batches += batches;
            s.journal_bytes += bytes;
            s.journal_depth += d.journal.depth() as u64;
            s.overlay_bytes += d.fresh_bytes.get() as u64;
            s.corrupt_blocks += d.corrupt_blocks.get();
        }
        s
    }

    /// Counters of each disk. Costs the same however much is stored.
    pub fn disk_stats(&self) -> Vec<DiskStats> {
        let row = |d: &Rc<Disk>| {
            let (journal_size, journal_used, journal_queued) = d.journal.fill_level();
            DiskStats {
                id: d.id,
                path: d.path.display().to_string(),
                total: d.total.get(),
                free: d.free.get(),
                used: d.data_blocks.get() << BLOCK_SHIFT,
                objects: d.objects.borrow().len() as u64,
                state: d.state.borrow().clone(),
                opinion: d.opinion.borrow().clone(),
                journal_size,
                journal_used,
                journal_queued,
                journal_records: d.journal.depth() as u64,
                overlay: d.fresh_bytes.get() as u64,
                corrupt_blocks: d.corrupt_blocks.get(),
                ops: [
                    ("read", d.ops.read.counts()),
                    ("write", d.ops.write.counts()),
                    ("fill", d.ops.fill.counts()),
                    ("journal", d.journal.stats.counts()),
                    ("checkpoint", d.ops.checkpoint.counts()),
                ],
            }
        };
        self.disks.borrow().iter().map(row).collect()
    }

    /// Write everything to its place. The store must not be used afterwards.
    pub async fn close(&self) -> Result<(), StoreError> {
        let disks: Vec<Rc<Disk>> = self.disks.borrow().clone();
        let mut first = Ok(());
        for d in disks {
            if d.check().is_ok() {
                let r = apply::checkpoint(&d).await;
                first = first.and(r);
            }
        }
        first
    }
}

/// Blocks of a range, for tests and tools.
pub fn block_range(offset: u64, len: u64) -> Range<u32> {
    (offset >> BLOCK_SHIFT) as u32..(offset + len).div_ceil(1 << BLOCK_SHIFT) as u32
}
