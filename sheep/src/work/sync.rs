//! Catching up: what this node lacks, and the worker that gets it.
//!
//! A node is *synced* to the epoch up to which it has everything the map says it should have. When its `synced` is behind the map (it was down, or the ring changed,
//! or a disk went away) the worker
//! 1. asks every other up node for the objects this one may lack (`Inventory`), and adds its own uncommitted tail;
//! 2. waits if a node that is away may know more than it does (it was complete to a later epoch);
//! 3. fills each listed object: through the session's owner when there is one (`Join`: the owner holds writes to that object
//!    and has it adopted), else straight from a clean copy;
//! 4. proposes `NodeSynced`.
//!
//! Nothing here is needed for safety: a replica refuses a write that does not follow on what it has, and answers "not here" for
//! what it cannot vouch for. This makes it complete again.

use crate::control::Control;
use crate::peer::Replica;
use crate::peer::adopt::{AdoptError, Adoption, Loses};
use crate::peer::strips::{ASKED, Sealed};
use crate::store::{ObjectSummary, StoreError};
use crate::work::yielding::Yielding;
use futures::stream::{FuturesUnordered, StreamExt};
use sheepdog_cluster::{Command, LostDisk, NodeMap, Redundancy, Session};
use sheepdog_proto::peer::{Request, Response, Status, Terms};
use sheepdog_proto::{DiskId, Epoch, LayerId, NodeId, ObjectId, PlacementKey, VdiId, Version};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

/// Pause before something that failed is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// Pause before objects that found no room are tried again.
const RETRY_FULL: Duration = Duration::from_secs(1);
/// After so many that found no room, one after the other, no more are tried for now.
const FULL: u32 = 64;
/// Most objects remembered as missing one by one; beyond it the inventory is taken again when these are done.
const MAX_MISSING: usize = 1 << 20;

#[derive(Debug, Clone, Copy)]
struct Missing {
    family: LayerId,
    /// Counts what was missed: a fill resolves only what was missed before it began.
    mark: u64,
}

/// What the inventories of the others name: the object's family, and the versions that are held, by whom it is clean, and their seals.
type Wanted = BTreeMap<ObjectId, (LayerId, Vec<(Version, bool, u64)>)>;

/// Progress of the current or last catch-up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Objects found missing.
    pub total: u64,
    /// Of these, done.
    pub done: u64,
    /// Bytes fetched since the process started.
    pub bytes: u64,
    /// A run is going on.
    pub active: bool,
}

/// What this node lacks.
pub struct Sync {
    control: Control,
    missing: RefCell<BTreeMap<ObjectId, Missing>>,
    missing_at: RefCell<HashMap<PlacementKey, u32>>,
    marks: Cell<u64>,
    heal: RefCell<BTreeMap<ObjectId, Missing>>,
    /// Copies here that have become the truth, of objects of which none could vouch for itself: who asked before what is sealed was told without them.
    decided: RefCell<BTreeSet<ObjectId>>,
    filling: RefCell<HashMap<ObjectId, Rc<FillSlot>>>,
    /// The epoch that this process was last complete for, as far as it knows.
    complete_as: Cell<Option<Epoch>>,
    /// (synced, epoch) an inventory was completed for.
    inventory: Cell<Option<(Epoch, Epoch)>>,
    blocked: RefCell<Option<String>>,
    /// Objects wait for room on a disk here.
    full: RefCell<Option<String>>,
    progress: Cell<Progress>,
    /// How fast background work of this node may go.
    pub yielding: Yielding,
    /// The same of what is read for that of others.
    pub serving: Yielding,
    changed: Notify,
}

struct FillSlot {
    family: LayerId,
    lock: std::sync::Arc<tokio::sync::Mutex<()>>,
    users: Cell<u32>,
}

/// Held while an object is being filled: one fill at a time, writes are refused meanwhile.
pub struct FillGuard<'a> {
    sync: &'a Sync,
    oid: ObjectId,
    _lock: OwnedMutexGuard<()>,
}

impl Drop for FillGuard<'_> {
    fn drop(&mut self) {
        self.sync.leave(self.oid);
    }
}

/// Counts a waiter for a fill, also when it is dropped while waiting.
struct Waiter<'a>(&'a Sync, ObjectId, bool);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if !self.2 {
            self.0.leave(self.1);
        }
    }
}

impl Sync {
    /// Nothing known yet.
    pub fn new(control: Control) -> Self {
        Self {
            control,
            missing: RefCell::default(),
            missing_at: RefCell::default(),
            marks: Cell::new(0),
            heal: RefCell::default(),
            decided: RefCell::default(),
            filling: RefCell::default(),
            complete_as: Cell::new(None),
            inventory: Cell::new(None),
            blocked: RefCell::default(),
            full: RefCell::default(),
            progress: Cell::default(),
            yielding: Yielding::default(),
            serving: Yielding::default(),
            changed: Notify::new(),
        }
    }
    /// A fill of this object is going on.
    pub fn is_filling(&self, oid: ObjectId) -> bool {
        self.filling.borrow().contains_key(&oid)
    }
    /// An object of this kind is being filled.
    pub fn fills(&self, which: impl Fn(&ObjectId) -> bool) -> bool {
        self.filling.borrow().keys().any(which)
    }
    /// Known to be missing or stale here, or being filled.
    pub fn lacks(&self, oid: ObjectId) -> bool {
        self.missing.borrow().contains_key(&oid) || self.is_filling(oid)
    }
    /// An object of this layer is known to be missing, or is being filled.
    pub fn lacks_of(&self, layer: LayerId) -> bool {
        let of_it = ObjectId::data(layer, 0)..=ObjectId::data(layer, u32::MAX);
        self.missing.borrow().range(of_it).next().is_some() || self.fills(|o| o.layer() == layer)
    }
    /// Nothing is known to be missing, and nothing is being filled.
    pub fn is_whole(&self) -> bool {
        self.missing.borrow().is_empty() && self.filling.borrow().is_empty()
    }
    /// Any layer's object at this key is missing, or being filled: then it may have been removed before it is made again.
    pub fn lacks_any_at(&self, key: PlacementKey) -> bool {
        let at = |(o, slot): (&ObjectId, &Rc<FillSlot>)| o.index() == key.index && slot.family == key.family;
        self.missing_at.borrow().contains_key(&key) || self.filling.borrow().iter().any(at)
    }
    /// The list of missing objects is complete for this epoch.
    pub fn inventory_done(&self, epoch: Epoch) -> bool {
        self.inventory.get().is_some_and(|(_, e)| e == epoch)
    }
    /// This node has been up since it was last complete, and the object was its own then.
    pub fn was_up_since(&self, map: &NodeMap, key: PlacementKey, redundancy: Redundancy) -> bool {
        let me = self.control.me();
        map.nodes.get(&me).is_some_and(|n| {
            n.up_since <= n.synced && n.synced.0 > 0 && map.was_target(me, n.synced, key, redundancy)
        })
    }
    /// A write could not be applied because an earlier one is missing.
    pub fn missed(&self, oid: ObjectId, family: LayerId) {
        let mut missing = self.missing.borrow_mut();
        if missing.len() >= MAX_MISSING {
            self.inventory.set(None);
            self.complete_as.set(None);
            return;
        }
        self.marks.set(self.marks.get() + 1);
        if missing.insert(oid, Missing { family, mark: self.marks.get() }).is_none() {
            *self.missing_at.borrow_mut().entry(PlacementKey { family, index: oid.index() }).or_default() +=
                1;
            let mut p = self.progress.get();
            p.total += 1;
            self.progress.set(p);
            self.changed.notify_one();
        }
    }
    /// Blocks of this object are damaged on disk.
    pub fn corrupt(&self, oid: ObjectId, family: LayerId) {
        if self.heal.borrow_mut().insert(oid, Missing { family, mark: 0 }).is_none() {
            self.changed.notify_one();
        }
    }
    /// The copy here has become the truth, which it was not known to be before.
    pub fn decided(&self, oid: ObjectId) {
        self.decided.borrow_mut().insert(oid);
    }
    /// How much was missed until now.
    pub fn mark(&self) -> u64 {
        self.marks.get()
    }
    /// The object is equal to what a clean copy was when `mark` was taken. Without an owner that keeps writes away, one may have been refused here since: then it
    /// is still missing.
    pub fn resolved_as_of(&self, oid: ObjectId, mark: u64) {
        if self.missing.borrow().get(&oid).is_none_or(|m| m.mark <= mark) {
            self.resolved(oid);
        }
    }
    /// The object is equal to a clean copy again.
    pub fn resolved(&self, oid: ObjectId) {
        if let Some(m) = self.missing.borrow_mut().remove(&oid) {
            let key = PlacementKey { family: m.family, index: oid.index() };
            let mut at = self.missing_at.borrow_mut();
            if let Some(n) = at.get_mut(&key) {
                *n -= 1;
                if *n == 0 {
                    at.remove(&key);
                }
            }
            let mut p = self.progress.get();
            p.done += 1;
            self.progress.set(p);
        }
        self.heal.borrow_mut().remove(&oid);
    }
    /// Wait for the object's turn to be filled.
    pub async fn begin_fill(&self, oid: ObjectId, family: LayerId) -> FillGuard<'_> {
        let slot = self
            .filling
            .borrow_mut()
            .entry(oid)
            .or_insert_with(|| Rc::new(FillSlot { family, lock: Default::default(), users: Cell::new(0) }))
            .clone();
        slot.users.set(slot.users.get() + 1);
        let mut waiter = Waiter(self, oid, false);
        let lock = slot.lock.clone().lock_owned().await;
        waiter.2 = true;
        FillGuard { sync: self, oid, _lock: lock }
    }
    fn leave(&self, oid: ObjectId) {
        let mut filling = self.filling.borrow_mut();
        if let Some(slot) = filling.get(&oid) {
            slot.users.set(slot.users.get() - 1);
            if slot.users.get() == 0 {
                filling.remove(&oid);
            }
        }
    }
    /// Bytes were fetched.
    pub fn fetched(&self, bytes: u64) {
        let mut p = self.progress.get();
        p.bytes += bytes;
        self.progress.set(p);
    }
    /// Wait until background work may read, send or write `bytes` more: see `yielding`.
    pub async fn throttle(&self, bytes: u64) {
        let limit = self.control.read(|s| s.recovery.max_bytes_per_s);
        self.yielding.admit(limit, bytes).await;
    }
    /// `bytes` that must not wait: whoever comes next waits for them.
    pub fn charge(&self, bytes: u64) {
        self.yielding.charge(self.control.read(|s| s.recovery.max_bytes_per_s), bytes);
    }
    /// A client's request was served, here or for another node.
    pub fn served(&self, took: Duration) {
        self.yielding.served(took);
        self.serving.served(took);
    }
    /// For listings.
    pub fn progress(&self) -> Progress {
        self.progress.get()
    }
    /// Objects with damaged blocks that wait for another copy.
    pub fn damaged(&self) -> usize {
        self.heal.borrow().len()
    }
    /// Objects still missing, and why nothing happens if nothing does.
    pub fn state(&self) -> (usize, Option<String>) {
        let why = self.blocked.borrow().clone().or_else(|| self.full.borrow().clone());
        (self.missing.borrow().len(), why)
    }
}

/// Why an object is still missing.
enum NotFilled {
    /// The disk has to stay free for clients.
    NoRoom(String),
    /// It may work next time.
    Other(String),
}

impl From<String> for NotFilled {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

/// Asks a session's owner on this node to let a copy join. The worker gets it from the node so that it need not know sessions.
pub trait Joiner {
    /// `Ok(false)`: no such session here.
    fn join(
        &self,
        vdi: VdiId,
        oid: ObjectId,
        family: LayerId,
        from: NodeId,
    ) -> crate::volume::LocalFut<'_, Result<bool, String>>;
}

/// The worker. Runs until stopped.
pub struct Worker {
    /// Holder side.
    pub replica: Rc<Replica>,
    /// Sessions of this node.
    pub joiner: Rc<dyn Joiner>,
    /// Stop.
    pub stop: CancellationToken,
}

impl Worker {
    /// Run.
    pub async fn run(self) {
        let stop = self.stop.clone();
        tokio::select! { biased; () = stop.cancelled() => {} () = self.work() => {} }
    }

    async fn work(&self) {
        let sync = &self.replica.sync;
        let mut watch = self.replica.control.watch();
        loop {
            watch.borrow_and_update();
            let again = self.step().await;
            let mut p = sync.progress.get();
            p.active = again || !sync.missing.borrow().is_empty();
            sync.progress.set(p);
            if again {
                let full = sync.full.borrow().is_some();
                tokio::time::sleep(if full { RETRY_FULL } else { RETRY }).await;
                continue;
            }
            tokio::select! {
                biased;
                r = watch.changed() => if r.is_err() { return },
                () = sync.changed.notified() => {}
            }
        }
    }

    /// One round; `true`: something is left to do and nothing will tell us when.
    async fn step(&self) -> bool {
        let control = &self.replica.control;
        let sync = &self.replica.sync;
        if !control.lease_valid() {
            return true;
        }
        self.note_half_filled().await;
        let healing = self.heal().await;
        let map = control.map();
        let Some(node) = map.nodes.get(&control.me()) else { return healing };
        if self.replica.store.is_none() {
            return false;
        }
        let enabled = control.read(|s| s.recovery.enabled);
        if node.synced >= map.epoch {
            sync.complete_as.set(Some(node.synced));
        } else {
            if !sync.inventory_done(map.epoch) {
                match self.take_inventory(&map, node.synced, node.up_since > node.synced).await {
                    Ok(()) => sync.inventory.set(Some((node.synced, map.epoch))),
                    Err(why) => {
                        tracing::debug!(%why, "inventory");
                        *sync.blocked.borrow_mut() = Some(why);
                        return true;
                    }
                }
            }
            *sync.blocked.borrow_mut() = None;
        }
        if !enabled {
            return healing;
        }
        let left = self.fill_missing().await;
        if left {
            return true;
        }
        let map = control.map();
        if let Err(why) = self.bring_strips(&map).await {
            tracing::debug!(%why, "strips");
            *sync.blocked.borrow_mut() = Some(why);
            return true;
        }
        let behind = map.nodes.get(&control.me()).is_some_and(|n| n.synced < map.epoch);
        if behind && sync.inventory_done(map.epoch) {
            if let Err(why) = self.make_strips(&map).await {
                tracing::debug!(%why, "strips");
                *sync.blocked.borrow_mut() = Some(why);
                return true;
            }
            let command = Command::NodeSynced {
                node: control.me(),
                incarnation: control.incarnation(),
                epoch: map.epoch,
            };
            return control.propose(command).await.is_err() || healing;
        }
        behind || healing
    }

    /// Fills that were cut off are begun again, whoever began them: the process of before, or the owner of a session that is over. Also on a node that is complete: nobody but itself
    /// looks after its copies, and others wait for a copy that is half filled if it may have been the latest.
    async fn note_half_filled(&self) {
        let r = &self.replica;
        let Some(store) = r.store.as_ref().filter(|s| s.has_half_filled()) else { return };
        for oid in store.half_filled().into_iter().filter(|o| !r.sync.lacks(*o)) {
            // The index may call an object so whose header is damaged.
            let Ok(Some(info)) = store.info(oid).await else { continue };
            let known = r.control.read(|s| s.layers.contains_key(&oid.layer()));
            if known && store.is_half_filled(oid) && r.holds(&r.control.map(), info.key) {
                r.sync.missed(oid, info.key.family);
            }
        }
    }

    async fn take_inventory(&self, map: &NodeMap, since: Epoch, was_down: bool) -> Result<(), String> {
        let r = &self.replica;
        let me = r.control.me();
        let store = r.store.as_ref().ok_or("a gateway")?;
        // Up all along, as this very process, with the same objects to keep: what it lacks it was told, and knows (`missed`). Who is away cannot know better.
        let stood = !was_down
            && r.sync.complete_as.get() == Some(since)
            && map.rings.last().is_some_and(|(e, _)| *e <= since);
        if let Some(id) = map.unknowable(me, since).filter(|_| !stood) {
            return Err(format!("node {} is away and may have newer data", id.short()));
        }
        let outdated = |((node, _), lost): &&((NodeId, DiskId), LostDisk)| *node == me && lost.outdated;
        for ((_, disk), lost) in map.lost.iter().filter(outdated) {
            // Complete without it this node was: what is elsewhere as well it has newer, or it was removed since.
            let only = |row: &ObjectSummary| lost.families.contains(&row.key.family);
            store.keep_only(*disk, only).await.map_err(|e| e.to_string())?;
        }
        let mut wanted: Wanted = BTreeMap::new();
        tracing::trace!(me = %me.short(), %since, epoch = %map.epoch, was_down, "taking the inventory");
        for (id, _) in map.nodes.iter().filter(|(id, n)| **id != me && n.is_up()) {
            let mut after = None;
            loop {
                let request = Request::Inventory { node: me, since, epoch: map.epoch, after };
                match r.links.to(*id).request(&request, Vec::new()).await {
                    Ok((Response::Inventory { rows, next }, _)) => {
                        for row in rows {
                            let entry = wanted.entry(row.oid).or_insert_with(|| (row.family, Vec::new()));
                            entry.1.push((row.version, !row.missing, row.seal));
                        }
                        match next {
                            Some(n) => after = Some(n),
                            None => break,
                        }
                    }
                    Ok((Response::Failed(_, why), _)) => return Err(why),
                    Ok(_) => return Err("unexpected answer".into()),
                    Err(e) => return Err(format!("node {}: {e}", id.short())),
                }
            }
        }
        for (oid, (family, versions)) in &wanted {
            let (oid, family) = (*oid, *family);
            let key = PlacementKey { family, index: oid.index() };
            if r.stands(map, key) && !r.sync.lacks(oid) {
                // It has been given every step since, or will be: to leave it out of any now would lose what only it and another have.
                continue;
            }
            let info = store.info(oid).await.ok().flatten();
            let mine = info.as_ref().filter(|i| !i.filling).map(|i| i.version);
            // Without a clean copy anywhere it is decided one by one.
            let clean = || versions.iter().filter(|(_, clean, _)| *clean);
            let best = clean().map(|(v, ..)| *v).max();
            // Put away in other strips since: those of before are not kept.
            let seal = info.as_ref().and_then(|i| i.seal).map_or(0, |s| s.digest);
            let elsewhere = seal != 0 && clean().any(|(_, _, other)| *other != seal);
            // After being out or losing a disk, an equal version is not enough: layers may have been merged meanwhile.
            tracing::trace!(me = %me.short(), %oid, ?mine, ?versions, since = %since, epoch = %map.epoch, "inventory");
            if best.is_none() || mine != best || since.0 == 0 || elsewhere {
                r.sync.missed(oid, family);
            }
        }
        if was_down {
            for vdi in store.tail_vdis() {
                for t in store.tail(vdi) {
                    if let Some(family) = r.control.read(|s| s.layers.get(&t.oid.layer()).map(|l| l.family)) {
                        r.sync.missed(t.oid, family);
                    }
                }
            }
        }
        // Left over from an earlier ring: it was given no steps since, and nobody lists what the others never had or have given up (seed 19917).
        let left_over = |row: &ObjectSummary| {
            if !row.oid.is_data() {
                return false;
            }
            let Some(redundancy) = r.redundancy(row.key.family) else { return false };
            let own = since.0 > 0 && map.was_target(me, since, row.key, redundancy);
            if own || wanted.contains_key(&row.oid) {
                return false;
            }
            let acting = map.acting(row.key, redundancy);
            // Where nobody else holds it, nobody can say otherwise.
            acting.all().any(|n| n == me) && acting.all().any(|n| n != me)
        };
        // And fills that a crash interrupted.
        let mut after = None;
        loop {
            let page = store.list(after, 1024);
            // Of the only copy nothing can be fetched: its damage is an error to who reads it.
            let other = |row: &&ObjectSummary| {
                if !row.oid.is_data() {
                    return false;
                }
                let family = row.key.family;
                r.redundancy(family).is_none_or(|x| map.redundancy(family, x).width() > 1)
            };
            for row in page.iter().filter(|row| (row.filling && other(row)) || left_over(row)) {
                r.sync.missed(row.oid, row.key.family);
            }
            match page.last() {
                Some(last) if page.len() == 1024 => after = Some(last.oid),
                _ => return Ok(()),
            }
            tokio::task::yield_now().await;
        }
    }

    /// Strips that this node should have. Who is complete in an epoch has those of everything that was sealed before; later ones are placed by the map of then.
    async fn make_strips(&self, map: &NodeMap) -> Result<(), String> {
        let r = &self.replica;
        if !r.control.read(|s| s.has_strips()) {
            return Ok(());
        }
        let me = r.control.me();
        let mut wanted: BTreeMap<ObjectId, (Sealed, u8, VdiId)> = BTreeMap::new();
        for (id, _) in map.nodes.iter().filter(|(_, n)| n.is_up()) {
            let mut after = None;
            loop {
                let request = Request::Sealed { node: me, epoch: map.epoch, after };
                match r.ask(*id, &request).await.map_err(|e| format!("node {}: {e}", id.short()))? {
                    Response::Sealed { rows, next } => {
                        for row in rows.into_iter().filter(|row| row.seal.check().is_ok()) {
                            let key = PlacementKey { family: row.family, index: row.oid.index() };
                            let places = map.strip_targets(key, row.seal.strips());
                            let Some(role) = places.iter().position(|n| *n == Some(me)) else { continue };
                            let of = Sealed::from(row);
                            wanted.insert(of.strip(role as u8), (of, role as u8, row.vdi));
                        }
                        match next {
                            Some(n) => after = Some(n),
                            None => break,
                        }
                    }
                    Response::Failed(_, why) => return Err(why),
                    _ => return Err("unexpected answer".into()),
                }
            }
        }
        let mut todo = wanted.into_values();
        let mut running = FuturesUnordered::new();
        loop {
            let limit = r.control.read(|s| s.recovery.concurrency).clamp(1, 64) as usize;
            while running.len() < limit {
                let Some((of, role, vdi)) = todo.next() else { break };
                running.push(async move { (of.oid, r.make_strip(of, role, vdi).await) });
            }
            match running.next().await {
                None => return Ok(()),
                Some((_, Ok(_))) => {}
                Some((oid, Err(why))) => return Err(format!("a strip of object {oid}: {why}")),
            }
        }
    }

    /// Where strips are being moved, nodes get those of what is known to be sealed when they ask. Those of copies that have become the truth later are brought to them, before holders by older
    /// rings are let go.
    async fn bring_strips(&self, map: &NodeMap) -> Result<(), String> {
        let r = &self.replica;
        let Some(store) = &r.store else { return Ok(()) };
        let up = |n: &NodeId| map.nodes.get(n).is_some_and(|v| v.is_up());
        let decided: Vec<ObjectId> = r.sync.decided.borrow().iter().copied().collect();
        for part in decided.chunks(ASKED) {
            let mut asked: BTreeMap<NodeId, Vec<(Sealed, u8, VdiId)>> = BTreeMap::new();
            for (row, _) in part.iter().filter_map(|oid| store.row(*oid)).filter(|_| map.rings.len() > 1) {
                let Some(seal) = row.seal.filter(|_| !row.filling && r.holds(map, row.key)) else { continue };
                let of = Sealed { oid: row.oid, family: row.key.family, object_size: row.object_size, seal };
                for (role, node) in (0u8..).zip(map.strip_targets(row.key, seal.strips())) {
                    // Who is away asks when it is back.
                    let Some(node) = node.filter(up) else { continue };
                    asked.entry(node).or_default().push((of, role, row.vdi));
                }
            }
            for (node, strips) in asked {
                for (of, role, vdi) in r.lacking(node, strips, |(of, role, _)| (*of, *role)).await? {
                    let text = |why: String| format!("a strip of object {}: {why}", of.oid);
                    let strip = match r.whole_strip(of, role).await {
                        Ok((strip, _)) => strip,
                        Err(why) => {
                            let roles = 0..of.seal.strips();
                            let mut all =
                                roles.flat_map(|r| map.strip_holders(of.key(), of.seal.strips(), r));
                            if !all.all(|n| up(&n)) {
                                return Err(text(why));
                            }
                            // It does not get better by waiting, and others may wait for this node.
                            tracing::error!(oid = %of.strip(role), node = %node.short(), %why, "a strip is missing");
                            continue;
                        }
                    };
                    r.send_strip(node, of, role, vdi, &strip).await.map_err(text)?;
                    tracing::debug!(oid = %of.strip(role), node = %node.short(), "a strip was brought to where it belongs");
                }
            }
            r.sync.decided.borrow_mut().retain(|oid| part.binary_search(oid).is_err());
        }
        Ok(())
    }

    /// `true`: some are left.
    async fn fill_missing(&self) -> bool {
        let sync = &self.replica.sync;
        let mut failed = BTreeSet::new();
        let (mut full, mut refused) = (None, 0);
        let mut running = FuturesUnordered::new();
        let mut busy = BTreeSet::new();
        loop {
            let limit = self.replica.control.read(|s| s.recovery.concurrency).clamp(1, 64) as usize;
            if refused < FULL && self.replica.control.read(|s| s.recovery.enabled) {
                let next: Vec<_> = sync
                    .missing
                    .borrow()
                    .iter()
                    .filter(|(o, _)| !failed.contains(*o) && !busy.contains(*o))
                    .take(limit.saturating_sub(running.len()))
                    .map(|(o, m)| (*o, *m))
                    .collect();
                for (oid, m) in next {
                    busy.insert(oid);
                    running.push(async move { (oid, m.family, self.fill(oid, m).await) });
                }
            }
            match running.next().await {
                None => {
                    *sync.full.borrow_mut() = full;
                    return !sync.missing.borrow().is_empty();
                }
                Some((oid, family, result)) => {
                    busy.remove(&oid);
                    if let Err(why) = result {
                        let why = match why {
                            NotFilled::NoRoom(why) => {
                                refused += 1;
                                full.insert(why).clone()
                            }
                            NotFilled::Other(why) => why,
                        };
                        tracing::debug!(%oid, %why, "fill");
                        // The contents may be there already, but not all that goes with them.
                        sync.missed(oid, family);
                        failed.insert(oid);
                    } else {
                        refused = 0;
                    }
                }
            }
        }
    }

    async fn fill(&self, oid: ObjectId, m: Missing) -> Result<(), NotFilled> {
        let r = &self.replica;
        let me = r.control.me();
        let key = PlacementKey { family: m.family, index: oid.index() };
        let known = r.control.read(|s| {
            let layer = s.layers.get(&oid.layer())?;
            let f = s.families.get(&m.family)?;
            let owner = s.vdis.get(&layer.vdi).and_then(|v| match &v.session {
                Session::Open { owner, ready: true, .. } if v.top == Some(layer.id) => Some(*owner),
                _ => None,
            });
            Some((f.redundancy, owner, layer.vdi, f.object_size))
        });
        // As of the same moment as the owner: nothing is waited for in between.
        let loses = Loses::Before(r.next_session_over(oid));
        let Some((redundancy, owner, vdi, object_size)) = known else {
            // The layer was deleted meanwhile: `reclaim` removes what is left of it.
            r.sync.resolved(oid);
            return Ok(());
        };
        let map = r.control.map();
        let acting = map.acting(key, redundancy);
        tracing::trace!(me = %me.short(), %oid, owner = ?owner, "fill");
        if !acting.all().any(|n| n == me) {
            r.sync.resolved(oid);
            return Ok(());
        }
        if let Some(store) = &r.store
            && let Err(e @ StoreError::NoRoomToRebuild { .. }) =
                store.may_rebuild(oid, key, u64::from(object_size)).await
        {
            return Err(NotFilled::NoRoom(e.to_string()));
        }
        if let Some(owner) = owner {
            return Ok(self.join(owner, vdi, oid, m.family).await?);
        }
        let acting: Vec<NodeId> = acting.all().collect();
        let mark = r.sync.mark();
        let choice = choose_source(r, oid, m.family, &acting, me).await?;
        match choice.source {
            None => {
                choice.settle(r, oid, me).await?;
                r.sync.resolved_as_of(oid, mark);
            }
            Some(source) => {
                let terms = Terms { epoch: choice.epoch, session: None };
                let what = Adoption { oid, family: m.family, source, terms, loses };
                r.adopt(what, None).await.map_err(|e: AdoptError| e.to_string())?;
                choice.settle(r, oid, me).await?;
            }
        }
        Ok(())
    }

    async fn join(&self, owner: NodeId, vdi: VdiId, oid: ObjectId, family: LayerId) -> Result<(), String> {
        let r = &self.replica;
        let me = r.control.me();
        // Not later: writes to the object wait while it is copied.
        r.sync.throttle(0).await;
        let (session, mark) = (r.session_over(oid), r.sync.mark());
        if owner == me {
            if !self.joiner.join(vdi, oid, family, me).await? {
                return Err("the session is not serving yet".into());
            }
        } else {
            let request = Request::Join { vdi, oid, family };
            match r.links.to(owner).request(&request, Vec::new()).await {
                Ok((Response::Done, _)) => {}
                Ok((Response::Failed(_, why), _)) => return Err(why),
                Ok(_) => return Err("unexpected answer".into()),
                Err(e) => return Err(e.to_string()),
            }
        }
        r.joined(oid, session, mark);
        Ok(())
    }

    /// Rewrite damaged blocks from another copy; `true`: some could not be.
    async fn heal(&self) -> bool {
        let r = &self.replica;
        let Some(store) = &r.store else { return false };
        let mut left = false;
        let damaged: Vec<_> = r.sync.heal.borrow().iter().map(|(o, m)| (*o, *m)).collect();
        for (oid, m) in damaged {
            if !oid.is_data() {
                match r.heal_strip(oid, m.family).await {
                    Ok(()) => drop(r.sync.heal.borrow_mut().remove(&oid)),
                    Err(why) => {
                        tracing::debug!(%oid, %why, "a damaged strip");
                        left = true;
                    }
                }
                continue;
            }
            let runs = match store.verify(oid).await {
                // It is filled as a whole.
                Ok(_) if store.is_half_filled(oid) => Some(Vec::new()),
                Ok(found) => Some(found.damaged),
                Err(StoreError::CorruptHeader { .. }) => None,
                Err(_) => continue,
            };
            if runs.as_ref().is_some_and(Vec::is_empty) {
                r.sync.heal.borrow_mut().remove(&oid);
                continue;
            }
            let me = r.control.me();
            let map = r.control.map();
            let key = PlacementKey { family: m.family, index: oid.index() };
            let Some(redundancy) = r.redundancy(m.family) else {
                r.sync.heal.borrow_mut().remove(&oid);
                continue;
            };
            let mut healed = false;
            let (terms, loses) = (Terms { epoch: map.epoch, session: None }, Loses::Nothing);
            for source in map.acting(key, redundancy).all().filter(|n| *n != me) {
                if !map.nodes.get(&source).is_some_and(|n| n.is_up()) {
                    continue;
                }
                if stat(r, source, oid, m.family).await.is_ok_and(|s| s.status == Status::Ok)
                    && r.adopt(Adoption { oid, family: m.family, source, terms, loses }, runs.clone())
                        .await
                        .is_ok()
                {
                    tracing::warn!(%oid, source = %source.short(), "damaged blocks were healed from another copy");
                    healed = true;
                    break;
                }
            }
            let only = map.redundancy(m.family, redundancy).width() == 1;
            left |= !healed && !only;
            if !healed && only {
                r.sync.heal.borrow_mut().remove(&oid);
            }
        }
        left
    }
}

/// Where a node gets an object from.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// `None`: its own copy is the best there is.
    pub source: Option<NodeId>,
    /// The epoch of the map that was looked at.
    pub epoch: Epoch,
    /// No copy could vouch for itself, so it was decided which of them is the truth.
    decided: bool,
}

impl Choice {
    /// A copy that was not known to be on all holders has become the truth: those who are away must be told when they ask what has changed, although nothing was
    /// written to it since.
    pub async fn settle(&self, r: &Rc<Replica>, oid: ObjectId, node: NodeId) -> Result<(), String> {
        if !self.decided {
            return Ok(());
        }
        let request = Request::Stamp { oid, epoch: self.epoch, blocks: Vec::new(), floor: Epoch(0) };
        match r.ask(node, &request).await.map_err(|e| e.to_string())? {
            Response::Done => Ok(()),
            Response::Failed(_, why) => Err(why),
            _ => Err("unexpected answer".into()),
        }
    }
}

/// A clean copy, or the longest one when nobody is clean and nobody who is away can know better. An error: it cannot be said now.
pub async fn choose_source(
    r: &Rc<Replica>,
    oid: ObjectId,
    family: LayerId,
    acting: &[NodeId],
    node: NodeId,
) -> Result<Choice, String> {
    let map = r.control.map();
    let redundancy = r.redundancy(family).ok_or("the volume was deleted")?;
    // A copy is right as of the epoch at which its node last had everything here, or of its own last change: the latest of them, then the longest, is the truth.
    let key = PlacementKey { family, index: oid.index() };
    let mut best: Option<(Epoch, Version, u32, bool, NodeId)> = None;
    let mut behind: Vec<(Epoch, NodeId)> = Vec::new();
    for n in acting {
        if !map.nodes.get(n).is_some_and(|v| v.is_up()) {
            continue;
        }
        let stat = stat(r, *n, oid, family).await?;
        // That it has had everything but what a lost disk took with it says nothing about what was on that.
        let complete = match map.may_be_lost(key, redundancy, stat.version != Version::NONE) {
            true => Epoch(0),
            false => map.complete_at(*n, key, redundancy),
        };
        tracing::trace!(me = %r.control.me().short(), %oid, node = %n.short(), ?stat, %complete, "candidate");
        let right = stat.epoch.max(complete);
        match stat.status {
            Status::Ok if *n != node => {
                return Ok(Choice { source: Some(*n), epoch: map.epoch, decided: false });
            }
            Status::Ok | Status::NotHere => {
                // Of equal ones that which was sealed last: strips of the others may be gone.
                let this = (right, stat.version, stat.promised, *n == node, *n);
                if best.is_none_or(|b| (b.0, b.1, b.2, b.3) < (this.0, this.1, this.2, this.3)) {
                    best = Some(this);
                }
            }
            // Half filled: neither what it was nor what it is to be.
            Status::Behind => behind.push((right, *n)),
            other => return Err(format!("node {} answers {other:?}", n.short())),
        }
    }
    // It becomes equal to one that is at least as right as it was. Nodes are asked one after the other: its source may be one that has become clean since, or that
    // fills its own copy from it by now. Of those that are half filled themselves the first in this order does not wait.
    let first = behind.iter().find(|(_, n)| *n == node).copied();
    if let Some((right, n)) = behind.into_iter().max().filter(|b| Some(*b) > first)
        && best.is_none_or(|b| b.0 < right)
    {
        return Err(format!("node {} fills its copy", n.short()));
    }
    let Some((known, version, .., source)) = best else { return Err("no copy is whole".into()) };
    let owns = (version != Version::NONE).then_some(source);
    if let Some(away) = map.unknowable_object(key, redundancy, known, owns) {
        return Err(format!("node {} is away and may have newer data", away.short()));
    }
    if r.control.map().epoch != map.epoch {
        return Err("the map changed".into());
    }
    Ok(Choice { source: Some(source).filter(|n| *n != node), epoch: map.epoch, decided: true })
}

/// Ask one node for its version and standing of an object.
pub async fn stat(
    r: &Rc<Replica>,
    node: NodeId,
    oid: ObjectId,
    family: LayerId,
) -> Result<sheepdog_proto::peer::ObjectStat, String> {
    if node == r.control.me() {
        return Ok(r.stat_one(oid, family).await);
    }
    let request = Request::Stat { objects: vec![(oid, family)], control_index: r.control.applied().index };
    match r.links.to(node).request(&request, Vec::new()).await {
        Ok((Response::Stats(stats), _)) => stats.first().copied().ok_or_else(|| "empty answer".into()),
        Ok((Response::Failed(_, why), _)) => Err(why),
        Ok(_) => Err("unexpected answer".into()),
        Err(e) => Err(e.to_string()),
    }
}
