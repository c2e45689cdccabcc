//! The owner of a VDI: orders writes, keeps overlapping reads back, knows what is committed.
//!
//! Every write of an object is one step of that object's log: it carries the step before it (`prev`), so a replica that lacks anything notices by itself. Steps of
//! one object go out in order on each link; a step that has to be sent again (new epoch, refused) waits until it is
//! the oldest of its object, so the order holds then too.
//!
//! ```text
//! open -> (takeover: fence, collect tails, reconcile) -> serving -> hold (snapshot) -> serving -> drained -> closed
//!                                                           \-- generation passed us, lease lost for good --> fenced
//! ```

use super::cache::{Cache, View};
use crate::control::Control;
use crate::peer::Replica;
use crate::peer::adopt::{Adoption, Loses};
use crate::planted::{self, Bug};
use crate::volume::VolumeError;
use crate::wait::until;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use sheepdog_cluster::{Acting, NodeMap, Redundancy};
use sheepdog_proto::peer::{Request, Response, Terms, WriteAction};
use sheepdog_proto::{
    BLOCK_SHIFT, BLOCK_SIZE, Epoch, Generation, LayerId, ObjectId, PlacementKey, VdiId, Version,
};
use sheepdog_volume::order::Ticket;
use sheepdog_volume::{RangeLocks, Turn, Turns, Watermark, pieces};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{Notify, RwLock};
use tokio_util::sync::CancellationToken;

/// Object states kept; idle ones beyond it are forgotten (their version is looked up again).
const MAX_OBJECTS: usize = 8192;
/// Pieces of one request in flight at a time.
const PIECES_IN_FLIGHT: usize = 16;
/// Blocks of one replicated step at most (1 MiB): bounds what one link or journal batch has to carry.
const MAX_STEP: u32 = (1 << 20) >> BLOCK_SHIFT;
/// The watermark is told to replicas this long after the last write.
const IDLE_WATERMARK: Duration = Duration::from_millis(200);

/// Why the session cannot go on with a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// This node is not the owner any more: the gateway looks again.
    #[error("not the owner")]
    NotOwner,
    /// An answer for the client.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// Holders of an object, as worked out from one map.
struct Cached {
    epoch: Epoch,
    /// How many the map had: some are forgotten within an epoch.
    rings: usize,
    acting: Rc<Acting>,
}

/// What the session knows of one object.
pub(crate) struct Object {
    pub(crate) locks: RefCell<RangeLocks>,
    pub(crate) changed: Notify,
    /// Latest step given out; `None`: not looked up yet.
    pub(crate) version: Cell<Option<Version>>,
    opening: tokio::sync::Mutex<()>,
    acting: RefCell<Option<Cached>>,
    /// Times a copy joined: a replica that was left out is asked again.
    pub(crate) joins: Cell<u64>,
}

/// An owned VDI.
pub struct Session {
    pub(crate) replica: Rc<Replica>,
    pub(crate) control: Control,
    /// VDI.
    pub vdi: VdiId,
    /// Generation.
    pub generation: Generation,
    /// Placement family.
    pub family: LayerId,
    /// Bytes.
    pub object_size: u32,
    pub(crate) redundancy: Redundancy,
    pub(crate) top: Cell<LayerId>,
    size: Cell<u64>,
    watermark: RefCell<Watermark>,
    told: Cell<u64>,
    objects: RefCell<HashMap<u32, Rc<Object>>>,
    /// Requests hold it shared, snapshot and close exclusively.
    hold: std::sync::Arc<RwLock<()>>,
    dead: CancellationToken,
    wrote: Notify,
    cache: Option<Rc<Cache>>,
    /// What of the cache is this session's.
    view: Cell<Option<View>>,
    /// What gateways had sent to earlier owners is answered: see `repeats`.
    repeated: Cell<bool>,
    all_repeated: Notify,
    /// Changes of several steps, from before the first to after the last: until then all of it may be carried out once more.
    changing: RefCell<Turns>,
    changed: Notify,
}

/// A change of several steps, while it is carried out.
struct Changing<'a>(&'a Session, Turn);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.changing.borrow_mut().leave(self.1);
        self.0.changed.notify_waiters();
    }
}

/// A write that is in the object's log.
pub(crate) struct Step {
    pub(crate) oid: ObjectId,
    pub(crate) key: PlacementKey,
    pub(crate) object: Rc<Object>,
    pub(crate) ticket: Ticket,
    pub(crate) version: Version,
    pub(crate) prev: Version,
    pub(crate) action: WriteAction,
    pub(crate) blocks: Range<u32>,
    pub(crate) payload: Bytes,
}

impl Session {
    /// Become the serving object for a session this node opened. `None`: the VDI is gone.
    pub fn new(
        replica: Rc<Replica>,
        vdi: VdiId,
        generation: Generation,
        cache: Option<Rc<Cache>>,
        stop: &CancellationToken,
    ) -> Option<Rc<Self>> {
        let control = replica.control.clone();
        let (family, top, size, object_size, redundancy) = control.read(|s| {
            let v = s.vdis.get(&vdi)?;
            let f = s.families.get(&v.family)?;
            Some((v.family, v.top?, v.size, f.object_size, f.redundancy))
        })?;
        let session = Rc::new(Self {
            replica,
            control,
            vdi,
            generation,
            family,
            object_size,
            redundancy,
            top: Cell::new(top),
            size: Cell::new(size),
            watermark: RefCell::default(),
            told: Cell::new(0),
            objects: RefCell::default(),
            hold: Default::default(),
            dead: stop.child_token(),
            wrote: Notify::new(),
            view: Cell::new(cache.as_ref().map(|c| c.view())),
            cache,
            repeated: Cell::new(false),
            all_repeated: Notify::new(),
            changing: RefCell::default(),
            changed: Notify::new(),
        });
        tokio::task::spawn_local(session.clone().background());
        Some(session)
    }

    /// For support: what requests could be waiting for.
    pub fn describe(&self) -> String {
        let busy: Vec<String> = self
            .objects
            .borrow()
            .iter()
            .filter(|(_, o)| !o.locks.borrow().is_unused())
            .map(|(i, o)| format!("{i}: {:?}", o.locks.borrow()))
            .collect();
        let objects = self.objects.borrow();
        let opening: Vec<_> =
            objects.iter().filter(|(_, o)| o.opening.try_lock().is_err()).map(|(i, _)| i).collect();
        let hold = match (self.hold.try_write(), self.hold.try_read()) {
            (Ok(_), _) => "free",
            (_, Ok(_)) => "shared",
            _ => "kept back",
        };
        let repeated = self.repeated.get();
        format!("{}, {hold}, repeated {repeated}, opening {opening:?}, objects {busy:?}", self.generation)
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size.get()
    }
    /// Working layer.
    pub fn top(&self) -> LayerId {
        self.top.get()
    }
    /// Over: nothing is accepted any more.
    pub fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }
    /// Stop at once (fenced, or the daemon ends). Waiting requests end with `NotOwner`.
    pub fn kill(&self) {
        self.dead.cancel();
    }
    /// Is everything answered that gateways had sent to earlier owners?
    pub(super) fn is_repeated(&self) -> bool {
        self.repeated.get()
    }
    /// Wait until it is.
    pub(super) async fn repeated(&self) {
        until(&self.all_repeated, || self.repeated.get().then_some(())).await;
    }
    /// It is.
    pub(super) fn all_repeated(&self) {
        self.repeated.set(true);
        self.all_repeated.notify_waiters();
    }
    fn begin(&self, bytes: Range<u64>) -> Changing<'_> {
        Changing(self, self.changing.borrow_mut().enter(bytes))
    }
    /// Is a part of a change of these bytes done, perhaps, and another not?
    pub(super) fn is_changing(&self, bytes: &Range<u64>) -> bool {
        let changing = self.changing.borrow();
        !changing.is_clear(changing.now(), bytes)
    }
    /// Those that have begun by now have ended: answered, or together with the session.
    pub(super) async fn changes_ended(&self, bytes: &Range<u64>) {
        let before = self.changing.borrow().now();
        until(&self.changed, || self.changing.borrow().is_clear(before, bytes).then_some(())).await;
    }
    /// Run `f` until the session dies.
    pub(crate) async fn alive<T>(
        &self,
        f: impl Future<Output = Result<T, SessionError>>,
    ) -> Result<T, SessionError> {
        tokio::select! {
            biased;
            () = self.dead.cancelled() => Err(SessionError::NotOwner),
            r = f => r,
        }
    }

    /// Follows the control plane (size, top, fencing) and tells idle replicas the watermark.
    async fn background(self: Rc<Self>) {
        let mut watch = self.control.watch();
        loop {
            self.refresh();
            tokio::select! {
                biased;
                () = self.dead.cancelled() => return,
                r = watch.changed() => if r.is_err() { return },
                () = self.wrote.notified() => {
                    tokio::select! {
                        biased;
                        () = self.dead.cancelled() => return,
                        () = tokio::time::sleep(IDLE_WATERMARK) => self.tell_watermark().await,
                    }
                }
            }
        }
    }

    pub(crate) fn refresh(&self) {
        let now = self.control.read(|s| {
            let v = s.vdis.get(&self.vdi)?;
            v.session.is_of(self.generation).then_some((v.top?, v.size))
        });
        match now {
            Some((top, size)) => {
                if top != self.top.replace(top) {
                    // A new layer starts empty.
                    self.objects.borrow_mut().clear();
                    // A snapshot changes nothing that is seen, a rollback does.
                    self.view.set(self.cache.as_ref().map(|c| c.view()));
                }
                self.size.set(size);
            }
            None => self.kill(),
        }
    }

    /// The highest sequence that is on every copy, with everything before it.
    pub fn committed(&self) -> u64 {
        self.watermark.borrow().value()
    }

    async fn tell_watermark(&self) {
        let seq = self.committed();
        if seq <= self.told.replace(seq) {
            return;
        }
        if let Some(store) = &self.replica.store {
            self.replica.note_standing();
            store.set_watermark(self.vdi, self.generation, seq);
        }
        let map = self.control.map();
        let control_index = self.control.applied().index;
        let request = Request::Watermark { vdi: self.vdi, generation: self.generation, seq, control_index };
        for (n, _) in map.nodes.iter().filter(|(n, v)| **n != self.control.me() && v.is_up()) {
            let link = self.replica.links.to(*n);
            let request = request.clone();
            tokio::task::spawn_local(async move {
                let _ = link.request(&request, Vec::new()).await;
            });
        }
    }

    pub(crate) fn key(&self, index: u32) -> PlacementKey {
        PlacementKey { family: self.family, index }
    }

    pub(crate) fn object(&self, index: u32) -> Rc<Object> {
        let mut objects = self.objects.borrow_mut();
        if objects.len() >= MAX_OBJECTS && !objects.contains_key(&index) {
            objects.retain(|_, o| Rc::strong_count(o) > 1 || !o.locks.borrow().is_unused());
        }
        objects
            .entry(index)
            .or_insert_with(|| {
                Rc::new(Object {
                    locks: RefCell::default(),
                    changed: Notify::new(),
                    version: Cell::new(None),
                    opening: tokio::sync::Mutex::default(),
                    acting: RefCell::default(),
                    joins: Cell::new(0),
                })
            })
            .clone()
    }

    pub(crate) fn acting(&self, object: &Object, map: &NodeMap, key: PlacementKey) -> Rc<Acting> {
        let mut cached = object.acting.borrow_mut();
        let (epoch, rings) = (map.epoch, map.rings.len());
        match &*cached {
            Some(c) if (c.epoch, c.rings) == (epoch, rings) => c.acting.clone(),
            _ => {
                let acting = Rc::new(map.acting(key, self.redundancy));
                *cached = Some(Cached { epoch, rings, acting: acting.clone() });
                acting
            }
        }
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), SessionError> {
        if offset.checked_add(len).is_none_or(|end| end > self.size()) {
            return Err(VolumeError::OutOfRange.into());
        }
        Ok(())
    }

    /// Learn the object's latest step from a clean copy, once.
    async fn open_object(&self, object: &Object, oid: ObjectId) -> Result<(), SessionError> {
        if object.version.get().is_some() {
            return Ok(());
        }
        let _one = object.opening.lock().await;
        if object.version.get().is_some() {
            return Ok(());
        }
        let version = self.latest_version(oid).await?;
        object.version.set(Some(version));
        Ok(())
    }

    /// Replicate a write of whole blocks as one step.
    async fn step(
        &self,
        index: u32,
        blocks: Range<u32>,
        action: WriteAction,
        payload: Bytes,
        ticket: Option<(Rc<Object>, Ticket)>,
    ) -> Result<(), SessionError> {
        let (object, ticket) = match ticket {
            Some(t) => t,
            None => {
                let object = self.object(index);
                let oid = ObjectId::data(self.top.get(), index);
                self.open_object(&object, oid).await?;
                let ticket = self.enter(&object, &blocks, false).await;
                (object, ticket)
            }
        };
        let oid = ObjectId::data(self.top.get(), index);
        // From here to the first send nothing awaits: sequence, ticket and sending are in the same order.
        let prev = object.version.get().unwrap_or(Version::NONE);
        let seq = self.watermark.borrow_mut().assign();
        let version = Version::new(self.generation, seq);
        object.version.set(Some(version));
        object.locks.borrow_mut().begin(ticket);
        if let Some((cache, view)) = self.cached() {
            cache.forget(view, index, &blocks);
        }
        let step = Step { oid, key: self.key(index), object, ticket, version, prev, action, blocks, payload };
        let result = self.alive(self.replicate(&step)).await;
        step.object.locks.borrow_mut().release(step.ticket);
        step.object.changed.notify_waiters();
        if result.is_ok() {
            self.watermark.borrow_mut().complete(seq);
            self.wrote.notify_one();
            // The last of its object: nothing has overtaken it.
            if step.action == WriteAction::Data
                && step.object.version.get() == Some(version)
                && oid.layer() == self.top.get()
            {
                self.keep(index, &step.blocks, &step.payload);
            }
        }
        result
    }

    async fn enter(&self, object: &Rc<Object>, blocks: &Range<u32>, exclusive: bool) -> Ticket {
        until(&object.changed, || object.locks.borrow_mut().write(blocks.clone(), exclusive)).await
    }

    /// Write bytes at any offset.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), SessionError> {
        let _shared = self.hold.read().await;
        self.check_range(offset, data.len() as u64)?;
        let mut parts = Vec::new();
        for p in pieces(offset, data.len() as u64, self.object_size) {
            let bytes = data.slice(p.at..p.at + p.bytes.len());
            if !p.is_aligned() {
                parts.push((p.index, p.blocks, p.bytes, bytes));
                continue;
            }
            let mut first = p.blocks.start;
            while first < p.blocks.end {
                let end = (first + MAX_STEP).min(p.blocks.end);
                let from = ((first - p.blocks.start) as usize) << BLOCK_SHIFT;
                let len = ((end - first) as usize) << BLOCK_SHIFT;
                parts.push((p.index, first..end, 0..len, bytes.slice(from..from + len)));
                first = end;
            }
        }
        let several = parts.len() > 1 || parts.iter().any(|(_, b, ..)| b.len() > MAX_STEP as usize);
        let _changing = several.then(|| self.begin(offset..offset + data.len() as u64));
        if let [(index, blocks, range, bytes)] = parts.as_slice() {
            return self.write_part(*index, blocks.clone(), range.clone(), bytes.clone()).await;
        }
        let mut todo = parts.into_iter();
        let mut running = FuturesUnordered::new();
        let mut failed = None;
        loop {
            while running.len() < PIECES_IN_FLIGHT && failed.is_none() {
                let Some((index, blocks, range, bytes)) = todo.next() else { break };
                running.push(self.write_part(index, blocks, range, bytes));
            }
            match running.next().await {
                None => return failed.map_or(Ok(()), Err),
                Some(Err(e)) => failed = Some(e),
                Some(Ok(())) => {}
            }
        }
    }

    /// Blocks of one object; `range` says which of their bytes `data` is.
    async fn write_part(
        &self,
        index: u32,
        blocks: Range<u32>,
        range: Range<usize>,
        data: Bytes,
    ) -> Result<(), SessionError> {
        if range.start == 0 && range.len() == blocks.len() << BLOCK_SHIFT {
            return self.alive(self.step(index, blocks, WriteAction::Data, data, None)).await;
        }
        self.alive(self.read_modify_write(index, blocks, range, Some(data))).await
    }

    /// Change some bytes of whole blocks (`None`: to zero): alone on these blocks from the read to the end of the write.
    async fn read_modify_write(
        &self,
        index: u32,
        blocks: Range<u32>,
        range: Range<usize>,
        data: Option<Bytes>,
    ) -> Result<(), SessionError> {
        let object = self.object(index);
        self.open_object(&object, ObjectId::data(self.top.get(), index)).await?;
        // Large unaligned writes are cut so that no step is over the limit.
        let mut first = blocks.start;
        while first < blocks.end {
            let end = (first + MAX_STEP).min(blocks.end);
            let base = ((first - blocks.start) as usize) << BLOCK_SHIFT;
            let len = ((end - first) as usize) << BLOCK_SHIFT;
            let (from, to) = (range.start.max(base), range.end.min(base + len));
            let run = first..end;
            first = end;
            let ticket = self.enter(&object, &run, true).await;
            let read = match self.recall(index, &run) {
                Some(old) => Ok(old),
                None => self.read_blocks(self.top.get(), index, run.clone()).await,
            };
            let old = match read {
                Ok(old) => old,
                Err(e) => {
                    object.locks.borrow_mut().release(ticket);
                    object.changed.notify_waiters();
                    return Err(e);
                }
            };
            let mut new = crate::buf::AlignedBuf::copy_of(&old);
            match &data {
                Some(d) => {
                    new[from - base..to - base].copy_from_slice(&d[from - range.start..to - range.start])
                }
                None => new[from - base..to - base].fill(0),
            }
            self.step(index, run, WriteAction::Data, new.freeze(), Some((object.clone(), ticket))).await?;
        }
        Ok(())
    }

    /// Read bytes at any offset, from the working layer or a frozen one. Parts follow each other.
    pub async fn read(
        &self,
        layer: Option<LayerId>,
        offset: u64,
        len: u32,
    ) -> Result<Vec<Bytes>, SessionError> {
        if layer.is_none() {
            self.check_range(offset, len as u64)?;
        }
        let mut running = futures::stream::FuturesOrdered::new();
        let mut todo = pieces(offset, len as u64, self.object_size).flat_map(|p| {
            let mut out = Vec::with_capacity(1);
            let mut first = p.blocks.start;
            while first < p.blocks.end {
                let end = (first + MAX_STEP).min(p.blocks.end);
                let base = ((first - p.blocks.start) as usize) << BLOCK_SHIFT;
                let size = ((end - first) as usize) << BLOCK_SHIFT;
                let from = p.bytes.start.max(base) - base;
                let to = p.bytes.end.min(base + size) - base;
                out.push((p.index, first..end, from..to));
                first = end;
            }
            out
        });
        let mut out = Vec::with_capacity(1);
        loop {
            while running.len() < PIECES_IN_FLIGHT {
                let Some((index, blocks, bytes)) = todo.next() else { break };
                running.push_back(async move {
                    let data = self.alive(self.read_ordered(layer, index, blocks)).await?;
                    Ok::<_, SessionError>(data.slice(bytes))
                });
            }
            match running.next().await {
                None => return Ok(out),
                Some(r) => out.push(r?),
            }
        }
    }

    /// Read blocks once no overlapping write is in flight.
    async fn read_ordered(
        &self,
        layer: Option<LayerId>,
        index: u32,
        blocks: Range<u32>,
    ) -> Result<Bytes, SessionError> {
        let Some(layer) = layer else { return self.read_latest(index, blocks).await };
        self.read_blocks(layer, index, blocks).await
    }

    async fn read_latest(&self, index: u32, blocks: Range<u32>) -> Result<Bytes, SessionError> {
        loop {
            let object = self.object(index);
            let top = self.top.get();
            until(&object.changed, || object.locks.borrow().may_read(&blocks).then_some(())).await;
            if let Some(data) = self.recall(index, &blocks) {
                return Ok(data);
            }
            let version = object.version.get();
            let data = self.read_blocks(top, index, blocks.clone()).await?;
            // A write that came meanwhile may be in the data, and might still be lost with this session: nobody may have seen it then.
            let seen = object.locks.borrow().overlapping(&blocks);
            until(&object.changed, || (!object.locks.borrow().any_in_flight(&seen)).then_some(())).await;
            // The copy was read under a lease, so what this node knows by now includes whoever took the volume over before, and his layers: a process that stood
            // still may not have looked yet.
            self.refresh();
            if self.is_dead() {
                return Err(SessionError::NotOwner);
            }
            if self.top.get() == top {
                // No write began since: it is what every later read would get.
                let newest = object.version.get() == version && seen.is_empty();
                if newest || planted::is(Bug::StaleCache) {
                    self.keep(index, &blocks, &data);
                }
                return Ok(data);
            }
        }
    }

    fn cached(&self) -> Option<(&Cache, View)> {
        Some((self.cache.as_deref()?, self.view.get()?))
    }

    fn keep(&self, index: u32, blocks: &Range<u32>, data: &[u8]) {
        if let Some((cache, view)) = self.cached() {
            cache.put(view, index, blocks, data);
        }
    }

    /// Blocks from the cache. No write to them may be in flight. As a copy does when it is read, this looks whether the node has a lease: one that stood still, and whose volume
    /// somebody else took over, has none; with one it knows of that.
    fn recall(&self, index: u32, blocks: &Range<u32>) -> Option<Bytes> {
        self.cache.as_ref()?;
        if !self.control.lease_valid() {
            return None;
        }
        self.refresh();
        let (cache, view) = self.cached().filter(|_| !self.is_dead())?;
        cache.get(view, index, blocks)
    }

    /// Zero a byte range. `discard`: the space may be given back (it always is when nothing older has to be hidden).
    pub async fn zero(&self, offset: u64, len: u64, _discard: bool) -> Result<(), SessionError> {
        let _shared = self.hold.read().await;
        self.check_range(offset, len)?;
        let _changing = self.begin(offset..offset + len);
        let bare = self.is_bare();
        let mut todo = pieces(offset, len, self.object_size);
        let mut running = FuturesUnordered::new();
        let mut failed = None;
        loop {
            while running.len() < PIECES_IN_FLIGHT && failed.is_none() {
                let Some(p) = todo.next() else { break };
                running.push(self.zero_piece(p, bare));
            }
            match running.next().await {
                None => return failed.map_or(Ok(()), Err),
                Some(Err(e)) => failed = Some(e),
                Some(Ok(())) => {}
            }
        }
    }

    /// Nothing lies under the working layer.
    fn is_bare(&self) -> bool {
        self.control
            .read(|s| s.layers.get(&self.top.get()).is_some_and(|l| l.parent.is_none() && l.base.is_none()))
    }

    async fn zero_piece(&self, p: sheepdog_volume::Piece, bare: bool) -> Result<(), SessionError> {
        let whole_first = p.blocks.start + u32::from(p.bytes.start != 0);
        let ends_inside = !p.bytes.end.is_multiple_of(BLOCK_SIZE);
        let whole_end = p.blocks.end - u32::from(ends_inside);
        // Edges that cover only a part of a block.
        if whole_first > whole_end || (p.blocks.len() == 1 && !p.is_aligned()) {
            return self
                .alive(self.read_modify_write(p.index, p.blocks.clone(), p.bytes.clone(), None))
                .await;
        }
        if p.bytes.start != 0 {
            let first = p.blocks.start..p.blocks.start + 1;
            self.alive(self.read_modify_write(p.index, first, p.bytes.start..BLOCK_SIZE, None)).await?;
        }
        if ends_inside {
            let last = p.blocks.end - 1..p.blocks.end;
            let to = p.bytes.end - ((p.blocks.len() - 1) << BLOCK_SHIFT);
            self.alive(self.read_modify_write(p.index, last, 0..to, None)).await?;
        }
        if whole_first >= whole_end {
            return Ok(());
        }
        let object = self.object(p.index);
        let oid = ObjectId::data(self.top.get(), p.index);
        self.alive(self.open_object(&object, oid)).await?;
        if bare && object.version.get() == Some(Version::NONE) && object.locks.borrow().is_idle() {
            return Ok(());
        }
        let action = if bare { WriteAction::Remove } else { WriteAction::Zero };
        self.alive(self.step(p.index, whole_first..whole_end, action, Bytes::new(), None)).await
    }

    /// Remove everything from a byte on, before the VDI shrinks: nothing of it may come back when it grows again. The caller holds the session.
    pub async fn cut(&self, from: u64) -> Result<(), SessionError> {
        let size = self.size();
        let (bare, mut at) = (self.is_bare(), from);
        while at < size {
            let len = (size - at).min(1 << 30);
            for p in pieces(at, len, self.object_size) {
                self.zero_piece(p, bare).await?;
            }
            at += len;
        }
        Ok(())
    }

    /// Write what one object of a clone still reads from its base into the clone itself.
    pub async fn fill_from_base(&self, index: u32) -> Result<(), SessionError> {
        let _shared = self.hold.read().await;
        let total = self.object_size >> BLOCK_SHIFT;
        let mut first = 0;
        while first < total {
            let run = first..(first + MAX_STEP).min(total);
            first = run.end;
            let object = self.object(index);
            self.alive(self.open_object(&object, ObjectId::data(self.top.get(), index))).await?;
            // Alone on these blocks, so that nothing newer is overwritten.
            let ticket = self.enter(&object, &run, true).await;
            let missing = self.alive(self.only_in_base(index, run.clone())).await;
            object.locks.borrow_mut().release(ticket);
            object.changed.notify_waiters();
            for part in missing? {
                let ticket = self.enter(&object, &part, true).await;
                let still = self.alive(self.only_in_base(index, part.clone())).await;
                let (still, data) = match still {
                    Ok(s) if s == [part.clone()] => {
                        (true, self.read_blocks(self.top.get(), index, part.clone()).await)
                    }
                    Ok(_) => (false, Ok(Bytes::new())),
                    Err(e) => (false, Err(e)),
                };
                match data {
                    Ok(data) if still => {
                        self.step(index, part, WriteAction::Data, data, Some((object.clone(), ticket)))
                            .await?;
                    }
                    other => {
                        object.locks.borrow_mut().release(ticket);
                        object.changed.notify_waiters();
                        other?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Wait until nothing is in flight and keep requests out until the guard is dropped.
    pub async fn quiesce(&self) -> tokio::sync::OwnedRwLockWriteGuard<()> {
        self.hold.clone().write_owned().await
    }

    /// Let a copy of an object join: keep new writes to it away, have it adopted from a clean copy, go on.
    pub async fn join(
        &self,
        oid: ObjectId,
        family: LayerId,
        node: sheepdog_proto::NodeId,
    ) -> Result<(), String> {
        if family != self.family || self.is_dead() {
            return Err("not of this session".into());
        }
        if oid.layer() != self.top.get() {
            // Frozen layers do not change: no need to hold anything.
            return self.adopt_at(oid, node, None).await;
        }
        let object = self.object(oid.index());
        if !object.locks.borrow_mut().close_gate() {
            return Err("another copy is joining".into());
        }
        let result = self.adopt_at(oid, node, None).await;
        object.joins.set(object.joins.get() + 1);
        object.locks.borrow_mut().open_gate();
        object.changed.notify_waiters();
        result
    }

    /// Have `node` adopt an object from a clean copy.
    pub(crate) async fn adopt_at(
        &self,
        oid: ObjectId,
        node: sheepdog_proto::NodeId,
        blocks: Option<Vec<Range<u32>>>,
    ) -> Result<(), String> {
        let map = self.control.map();
        let acting: Vec<_> = map.acting(self.key(oid.index()), self.redundancy).all().collect();
        let r = &self.replica;
        let choice = crate::work::sync::choose_source(r, oid, self.family, &acting, node).await?;
        // Its own may be the best there is: from now on it vouches for it.
        if let Some(source) = choice.source {
            self.adopt_from(oid, node, source, blocks, choice.epoch).await?;
        }
        choice.settle(r, oid, node).await
    }

    pub(super) async fn adopt_from(
        &self,
        oid: ObjectId,
        node: sheepdog_proto::NodeId,
        source: sheepdog_proto::NodeId,
        blocks: Option<Vec<Range<u32>>>,
        epoch: Epoch,
    ) -> Result<(), String> {
        let terms = Terms { epoch, session: Some(self.generation) };
        if node == self.control.me() {
            let adopted = self
                .replica
                .adopt(Adoption { oid, family: self.family, source, terms, loses: Loses::Anything }, blocks)
                .await;
            return adopted.map(drop).map_err(|e| e.to_string());
        }
        let control_index = self.control.applied().index;
        let request = Request::Adopt { oid, family: self.family, source, blocks, terms, control_index };
        match self.replica.links.to(node).request(&request, Vec::new()).await {
            Ok((Response::Adopted(_), _)) => Ok(()),
            Ok((Response::Failed(_, why), _)) => Err(why),
            Ok(_) => Err("unexpected answer".into()),
            Err(e) => Err(e.to_string()),
        }
    }
}
