//! What one node does as a holder of objects: the same code serves the local session's owner and remote ones.
//!
//! Rules kept here (numbers of the design): nothing is served without a lease; a request of an older epoch is refused, of a newer one waits until this node has
//! caught up (5); a write of another generation than the VDI's latest is refused (5); a write applies only on top of the step
//! before it (the prefix rule); a node that is not synced answers "not here" for what it cannot vouch for (2, 3).

use super::adopt::{Adoption, Loses};
use super::link::{LinkError, Links};
use crate::control::Control;
use crate::planted::{self, Bug};
use crate::store::{ObjectSummary, Store, StoreError, WriteKind, WriteOp, WriteOutcome};
use crate::work::scrub::report::Scrubbing;
use crate::work::sync::Sync;
use bytes::Bytes;
use sheepdog_cluster::{NodeMap, Redundancy};
use sheepdog_proto::peer::{
    BlockState, CopyDigest, ObjectStat, PullHead, ReadReply, ReadRequest, Request, Response, Status, Tail,
    WriteAction, WriteReply, WriteRequest,
};
use sheepdog_proto::{
    BLOCK_SHIFT, BLOCK_SIZE, ControlIndex, Epoch, Generation, LayerId, MAX_PAYLOAD, NodeId, ObjectId,
    PlacementKey, VdiId, Version,
};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How long a request may wait for this node to catch up with the control plane before it is sent back.
const CATCH_UP: Duration = Duration::from_secs(10);

/// The holder side of this daemon.
pub struct Replica {
    /// Control plane.
    pub control: Control,
    /// `None` on a gateway.
    pub store: Option<Rc<Store>>,
    /// Links to others, for healing and filling.
    pub links: Rc<Links>,
    /// What this node is missing.
    pub sync: Sync,
    /// What scrubbing has found here.
    pub scrubbing: Scrubbing,
}

impl Replica {
    /// This node's epoch view, or why it must not serve.
    pub(crate) fn admit(&self, epoch: Epoch) -> Result<Arc<NodeMap>, (Status, Epoch)> {
        let map = self.control.map();
        if !self.control.lease_valid() {
            return Err((Status::NoLease, map.epoch));
        }
        match epoch.cmp(&map.epoch) {
            std::cmp::Ordering::Equal => Ok(map),
            std::cmp::Ordering::Less => Err((Status::StaleEpoch, map.epoch)),
            std::cmp::Ordering::Greater => Err((Status::NoLease, map.epoch)),
        }
    }

    /// Wait until this node knows the control plane's log up to `index`.
    pub async fn catch_up(&self, index: ControlIndex) -> bool {
        if self.control.applied().index >= index {
            return true;
        }
        tokio::time::timeout(CATCH_UP, self.control.wait_index(index)).await.is_ok()
    }

    /// Is this node complete for the current epoch?
    pub fn is_synced(&self) -> bool {
        let map = self.control.map();
        map.nodes.get(&self.control.me()).is_some_and(|n| n.synced >= map.epoch)
    }

    /// Tell the store whether this node is complete, before a watermark reaches it.
    pub(crate) fn note_standing(&self) {
        if let Some(store) = &self.store {
            store.keep_old_tails(!self.is_synced());
        }
    }

    fn check_write(&self, req: &WriteRequest) -> Result<(), (Status, Epoch)> {
        let map = self.admit(req.epoch)?;
        let status = self.control.read(|s| {
            let Some(vdi) = s.vdis.get(&req.vdi) else { return Status::Fenced };
            let current = vdi.session.is_of(Generation(req.version.generation));
            let fenced = !current && !planted::is(Bug::SkippedFence);
            if fenced || vdi.top != Some(req.oid.layer()) {
                return Status::Fenced;
            }
            let Some(family) = s.families.get(&req.family) else { return Status::Invalid };
            if family.object_size != req.object_size || req.blocks.end > req.object_size >> BLOCK_SHIFT {
                return Status::Invalid;
            }
            Status::Ok
        });
        if status == Status::Ok { Ok(()) } else { Err((status, map.epoch)) }
    }

    /// Take one step of an object's log. The synchronous part keeps the order of the calls; the future completes when the step is
    /// durable or refused.
    pub fn write(
        self: &Rc<Self>,
        req: &WriteRequest,
        payload: Bytes,
    ) -> impl Future<Output = WriteReply> + use<> {
        let started = self.check_write(req).and_then(|()| {
            let store = self.store.as_ref().ok_or((Status::NotHere, req.epoch))?;
            if self.sync.is_filling(req.oid) {
                return Err((Status::Behind, req.epoch));
            }
            self.note_standing();
            Ok(store.write(WriteOp {
                oid: req.oid,
                key: req.key(),
                vdi: req.vdi,
                object_size: req.object_size,
                version: req.version,
                prev: req.prev,
                epoch: req.epoch,
                degraded: req.degraded,
                watermark: req.watermark,
                blocks: req.blocks.clone(),
                kind: match req.action {
                    WriteAction::Data => WriteKind::Data(payload),
                    WriteAction::Zero => WriteKind::Zero,
                    WriteAction::Remove => WriteKind::Remove,
                },
            }))
        });
        let this = self.clone();
        let (oid, key, epoch) = (req.oid, req.key(), req.epoch);
        let (version, prev, blocks) = (req.version, req.prev, req.blocks.clone());
        async move {
            let reply = |status, version| WriteReply { status, version, epoch };
            let outcome = match started {
                Ok(write) => write.await,
                Err((Status::Behind, _)) => Ok(WriteOutcome::Behind { current: Version::NONE }),
                Err((status, epoch)) => return WriteReply { status, version: Version::NONE, epoch },
            };
            tracing::trace!(me = %this.control.me().short(), %oid, %version, %prev, %epoch, ?blocks, ?outcome, "step");
            match outcome {
                Ok(WriteOutcome::Done | WriteOutcome::Duplicate) => reply(Status::Ok, Version::NONE),
                Ok(WriteOutcome::Behind { current }) => {
                    if this.wants_all(oid, key) {
                        reply(Status::Behind, current)
                    } else {
                        this.sync.missed(oid, key.family);
                        reply(Status::NotHere, current)
                    }
                }
                Err(e) => reply(this.status_of(&e), Version::NONE),
            }
        }
    }

    pub(crate) fn status_of(&self, error: &StoreError) -> Status {
        match error {
            StoreError::Corrupt { .. } | StoreError::CorruptHeader { .. } => Status::Corrupt,
            StoreError::Full { .. } | StoreError::NoRoomToRebuild { .. } => Status::Full,
            // Strips that are missing now may be there again.
            StoreError::Sealed { .. } => Status::NotHere,
            StoreError::DiskFailed { .. } | StoreError::NoDisk => Status::DiskFailed,
            StoreError::Invalid(_) => Status::Invalid,
            StoreError::Closed => Status::ShuttingDown,
            // The owner, if there still is one, asks again with what is current.
            StoreError::Late => Status::NoLease,
        }
    }

    /// Layers of `top`'s chain that have an object here at this index, newest first.
    fn layers(&self, store: &Store, top: LayerId, key: PlacementKey) -> Option<Rc<[LayerId]>> {
        Some(store.layers_in(key, &self.control.chain(top)?))
    }

    /// Is the object known to be missing or stale here, or half filled? The latter is asked of the store: a process that was replaced knew of fills that were cut off, and this one may
    /// not have looked yet.
    pub(crate) fn lacks(&self, oid: ObjectId) -> bool {
        self.sync.lacks(oid) || self.store.as_ref().is_some_and(|s| s.is_half_filled(oid))
    }

    /// Can this node vouch for what it has at `key`?
    fn vouches(&self, map: &NodeMap, key: PlacementKey, layers: &[LayerId]) -> bool {
        if planted::is(Bug::StaleRead) {
            return true;
        }
        let half = self.store.as_ref().is_some_and(|s| s.has_half_filled());
        if (half || !self.sync.is_whole()) && layers.iter().any(|l| self.lacks(ObjectId::data(*l, key.index)))
        {
            return false;
        }
        if self.store.as_ref().is_some_and(|s| s.has_unplaced()) {
            return false;
        }
        // Zeros would be a lie.
        if self.may_be_lost(map, key, || !layers.is_empty()) {
            return false;
        }
        // An object that is listed under a layer which is not here yet counts too.
        !self.sync.lacks_any_at(key) && self.knows(map, key) && self.holds(map, key)
    }

    /// Is this node a holder of what is at `key`? If not, its copies get no steps any more and are being removed; who asks may not have heard of that.
    pub(crate) fn holds(&self, map: &NodeMap, key: PlacementKey) -> bool {
        let me = self.control.me();
        self.redundancy(key.family).is_some_and(|r| map.acting(key, r).all().any(|n| n == me))
    }

    /// Is this node to be given every step of this object, in order, rather than be left out until it has filled it? A good copy is not left out because steps came
    /// out of order. And nothing that was its own all along ever is: the map takes it for right until it goes, and it may restart without anybody noticing.
    fn wants_all(&self, oid: ObjectId, key: PlacementKey) -> bool {
        let map = self.control.map();
        self.is_synced() || self.stands(&map, key) || (!self.lacks(oid) && self.knows(&map, key))
    }

    /// Was what there was at `key` lost with the only disk that had it?
    fn may_be_lost(&self, map: &NodeMap, key: PlacementKey, here: impl FnOnce() -> bool) -> bool {
        !map.lost.is_empty() && self.redundancy(key.family).is_some_and(|r| map.may_be_lost(key, r, here()))
    }

    /// Would this node know it if it lacked something at `key`?
    fn knows(&self, map: &NodeMap, key: PlacementKey) -> bool {
        if planted::is(Bug::StaleRead) {
            return true;
        }
        let me = self.control.me();
        let Some(node) = map.nodes.get(&me) else { return false };
        if node.synced >= map.epoch || self.sync.inventory_done(map.epoch) {
            return true;
        }
        // Up all along: what it was a target of when it was last complete, it still has.
        self.stands(map, key)
    }

    /// Has this node been up since it was last complete, and was what is at `key` its own then?
    pub(crate) fn stands(&self, map: &NodeMap, key: PlacementKey) -> bool {
        self.redundancy(key.family).is_some_and(|r| self.sync.was_up_since(map, key, r))
    }

    /// What a family was made with: the map makes of it what it is.
    pub(crate) fn redundancy(&self, family: LayerId) -> Option<Redundancy> {
        self.control.read(|s| s.families.get(&family).map(|f| f.redundancy))
    }

    /// Read through a chain of layers.
    pub async fn read(self: &Rc<Self>, req: &ReadRequest) -> (ReadReply, Bytes) {
        let epoch = self.control.map().epoch;
        let fail = |status, epoch| (ReadReply { status, epoch, absent: Vec::new() }, Bytes::new());
        let map = match self.admit(req.epoch) {
            Ok(map) => map,
            Err((status, epoch)) => return fail(status, epoch),
        };
        let Some(store) = &self.store else { return fail(Status::NotHere, epoch) };
        let Some(layers) = self.layers(store, req.top, req.key) else { return fail(Status::Invalid, epoch) };
        if !self.vouches(&map, req.key, &layers) {
            return fail(Status::NotHere, epoch);
        }
        let look = || store.read(&layers, req.key, req.blocks.clone());
        match self.with_cold(req.key.family, req.blocks.start, look).await {
            // The data may have become stale while the disk was slow: the lease must still hold.
            Ok(_) if !self.control.lease_valid() => fail(Status::NoLease, epoch),
            Ok(r) => (ReadReply { status: Status::Ok, epoch, absent: r.absent }, r.data),
            Err(e) => {
                if let StoreError::Corrupt { oid, .. } | StoreError::CorruptHeader { oid } = &e {
                    self.sync.corrupt(*oid, req.key.family);
                }
                fail(self.status_of(&e), epoch)
            }
        }
    }

    /// Everything that is not a plain read or write. Forwarded I/O and joins are the session's and do not come here.
    pub async fn handle(self: &Rc<Self>, request: Request) -> (Response, Vec<Bytes>) {
        let none = Vec::new();
        match request {
            Request::Fence { vdi, generation, control_index } => {
                (self.fence(vdi, generation, control_index).await, none)
            }
            Request::Watermark { vdi, generation, seq, control_index } => {
                if let Some(store) = &self.store
                    && self.catch_up(control_index).await
                {
                    self.note_standing();
                    store.set_watermark(vdi, generation, seq);
                }
                (Response::Done, none)
            }
            Request::Stat { objects, control_index } => (self.stat(&objects, control_index).await, none),
            Request::Adopt { oid, family, source, blocks, terms, control_index } => {
                let loses = if terms.session.is_some() { Loses::Anything } else { Loses::Nothing };
                let what = Adoption { oid, family, source, terms, loses };
                (self.adopt_request(what, blocks, control_index).await, none)
            }
            Request::PullHead { oid, family, control_index } => {
                (self.pull_head(oid, family, control_index).await, none)
            }
            Request::PullData { oid, family, runs, held } => {
                if !held {
                    let blocks: usize = runs.iter().map(|r| r.len()).sum();
                    self.sync.serving.admit(0, (blocks << BLOCK_SHIFT) as u64).await;
                }
                self.pull_data(oid, family, &runs).await
            }
            Request::Inventory { node, since, epoch, after } => {
                (self.inventory(node, since, epoch, after).await, none)
            }
            Request::BlockState { top, key, blocks, control_index } => {
                (self.block_state(top, key, blocks, control_index).await, none)
            }
            Request::Stamp { oid, epoch, blocks, floor } => {
                (self.stamp(oid, epoch, blocks, floor).await, none)
            }
            Request::Missed { oid, family, epoch, control_index } => {
                (self.was_missed(oid, family, epoch, control_index).await, none)
            }
            Request::Digests { objects, deep, control_index } => {
                (self.digests(&objects, deep, control_index).await, none)
            }
            Request::Presence { layer, after } => (self.presence(layer, after, false).await, none),
            Request::Contents { layer, after, epoch, control_index } => {
                (self.contents(layer, after, epoch, control_index).await, none)
            }
            Request::GetStrip { .. }
            | Request::Seal { .. }
            | Request::Sealed { .. }
            | Request::HasStrips { .. }
            | Request::Seals { .. } => self.handle_strips(request, Bytes::new()).await,
            Request::PutStrip { .. }
            | Request::Join { .. }
            | Request::Forward { .. }
            | Request::Settled { .. }
            | Request::Enforced { .. }
            | Request::Answered { .. }
            | Request::Repeated { .. } => {
                (Response::Failed(Status::Invalid, "not a replica's request".into()), none)
            }
        }
    }

    async fn fence(&self, vdi: VdiId, generation: Generation, index: ControlIndex) -> Response {
        if !self.catch_up(index).await {
            return Response::Failed(Status::NoLease, "behind the control plane".into());
        }
        let known = self.control.read(|s| s.vdis.get(&vdi).map(|v| v.generation));
        if known != Some(generation) {
            return Response::Failed(Status::Fenced, "another session began meanwhile".into());
        }
        // From here on `check_write` refuses older generations, and what was let in but still waits in the store is thrown out: what the
        // store has now is all there will ever be. Copies are compared by what is said of them next, and nothing remembers which of them
        // had a step only in memory: so all of it is made durable first.
        if let Some(store) = &self.store {
            store.refuse_waiting(|op| op.vdi == vdi && op.version.generation < generation.0);
            if !planted::is(Bug::HastyFence)
                && let Err(e) = store.settled().await
            {
                return Response::Failed(self.status_of(&e), e.to_string());
            }
        }
        let tail = self.store.as_ref().map(|s| s.tail(vdi)).unwrap_or_default();
        Response::Tail(
            tail.into_iter()
                .map(|t| Tail { oid: t.oid, version: t.version, prev: t.prev, blocks: t.blocks })
                .collect(),
        )
    }

    async fn stamp(
        &self,
        oid: ObjectId,
        epoch: sheepdog_proto::Epoch,
        blocks: Vec<Range<u32>>,
        floor: sheepdog_proto::Epoch,
    ) -> Response {
        if let Err((status, _)) = self.admit(epoch) {
            return Response::Failed(status, "another epoch".into());
        }
        let Some(store) = &self.store else { return Response::Failed(Status::NotHere, "a gateway".into()) };
        let most = sheepdog_proto::MAX_OBJECT_BLOCKS;
        if blocks.iter().any(|r| r.start >= r.end || r.end > most) {
            return Response::Failed(Status::Invalid, "block range".into());
        }
        let decided = blocks.is_empty();
        match store.stamp(oid, epoch, blocks, floor).await {
            Ok(()) => {
                // See `Choice::settle`.
                if decided {
                    self.sync.decided(oid);
                }
                Response::Done
            }
            Err(e) => Response::Failed(self.status_of(&e), e.to_string()),
        }
    }

    /// Ask a node, which may be this one.
    pub async fn ask(self: &Rc<Self>, node: NodeId, what: &Request) -> Result<Response, LinkError> {
        if node == self.control.me() {
            return Ok(self.handle(what.clone()).await.0);
        }
        self.links.to(node).request(what, Vec::new()).await.map(|(response, _)| response)
    }

    async fn was_missed(
        &self,
        oid: ObjectId,
        family: LayerId,
        epoch: sheepdog_proto::Epoch,
        index: ControlIndex,
    ) -> Response {
        if !self.catch_up(index).await {
            return Response::Failed(Status::NoLease, "behind the control plane".into());
        }
        if let Err((status, _)) = self.admit(epoch) {
            return Response::Failed(status, "another epoch".into());
        }
        if self.is_synced() {
            return Response::Failed(Status::Invalid, "complete by now".into());
        }
        self.sync.missed(oid, family);
        Response::Done
    }

    /// Version and standing of one object here.
    pub async fn stat_one(&self, oid: ObjectId, family: LayerId) -> ObjectStat {
        let map = self.control.map();
        let fail = |status| ObjectStat { status, version: Version::NONE, epoch: Epoch(0), promised: 0 };
        let Some(store) = &self.store else { return fail(Status::NotHere) };
        match store.info(oid).await {
            Err(e) => fail(self.status_of(&e)),
            Ok(info) => {
                let version = info.as_ref().map_or(Version::NONE, |i| i.version);
                let epoch = info.as_ref().map_or(Epoch(0), |i| i.epoch);
                let promised = info.as_ref().map_or(0, |i| i.promised);
                let key = PlacementKey { family, index: oid.index() };
                // Of this object only: what is missing at other layers does not matter here.
                let whole = !self.lacks(oid);
                let lost = self.may_be_lost(&map, key, || !store.layers_at(key).is_empty());
                let clean = whole && self.knows(&map, key) && !lost && self.holds(&map, key);
                let status = match clean {
                    _ if info.as_ref().is_some_and(|i| i.filling) => Status::Behind,
                    true => Status::Ok,
                    false => Status::NotHere,
                };
                ObjectStat { status, version, epoch, promised }
            }
        }
    }

    /// The same from what is in memory: damage of a header that nobody has read is not seen.
    pub(crate) fn vouched(&self, oid: ObjectId, family: LayerId) -> ObjectStat {
        let map = self.control.map();
        let none = (Version::NONE, Epoch(0), 0);
        let row = self.store.as_ref().and_then(|s| s.row(oid)).map(|(row, _)| row);
        let (version, epoch, promised) = row.map_or(none, |r| (r.version, r.epoch, r.promised));
        let Some(store) = &self.store else {
            return ObjectStat { status: Status::NotHere, version, epoch, promised };
        };
        let key = PlacementKey { family, index: oid.index() };
        let lost = self.may_be_lost(&map, key, || !store.layers_at(key).is_empty());
        let clean = !self.lacks(oid) && self.knows(&map, key) && !lost && self.holds(&map, key);
        let status = match clean {
            _ if row.is_some_and(|r| r.filling) => Status::Behind,
            true => Status::Ok,
            false => Status::NotHere,
        };
        ObjectStat { status, version, epoch, promised }
    }

    async fn stat(&self, objects: &[(ObjectId, LayerId)], index: ControlIndex) -> Response {
        if !self.catch_up(index).await || !self.control.lease_valid() {
            return Response::Failed(Status::NoLease, "behind the control plane".into());
        }
        let mut stats = Vec::with_capacity(objects.len());
        for (oid, family) in objects {
            stats.push(self.stat_one(*oid, *family).await);
        }
        Response::Stats(stats)
    }

    async fn pull_head(&self, oid: ObjectId, family: LayerId, index: ControlIndex) -> Response {
        if !self.catch_up(index).await {
            return Response::Failed(Status::NoLease, "behind the control plane".into());
        }
        let Some(store) = &self.store else { return Response::Failed(Status::NotHere, "a gateway".into()) };
        let _ = family;
        match (store.info(oid).await, store.digest(oid).await) {
            (Ok(None), _) => Response::Head(None),
            (Ok(Some(i)), _) if i.filling => Response::Failed(Status::NotHere, "being filled itself".into()),
            (Ok(Some(i)), Ok(Some(digest))) => Response::Head(Some(Box::new(PullHead {
                version: i.version,
                epoch: i.epoch,
                vdi: i.vdi,
                object_size: i.object_size,
                present: i.present,
                zero: i.zero,
                dirty: i.dirty,
                dirty_since: i.dirty_since,
                tail: store.tail_bounds(i.vdi, oid),
                digest,
                cold: i.cold,
                cold_crcs: i.cold_crcs,
                seal: i.seal,
                promised: i.promised,
            }))),
            (Ok(_), Ok(None)) => Response::Head(None),
            (Err(e), _) | (_, Err(e)) => Response::Failed(self.status_of(&e), e.to_string()),
        }
    }

    async fn version_of(&self, store: &Store, oid: ObjectId) -> Result<Version, StoreError> {
        Ok(store.info(oid).await?.map_or(Version::NONE, |i| i.version))
    }

    async fn pull_data(&self, oid: ObjectId, family: LayerId, runs: &[Range<u32>]) -> (Response, Vec<Bytes>) {
        let bytes: usize = runs.iter().map(|r| r.len() << BLOCK_SHIFT).sum();
        let Some(store) = &self.store else {
            return (Response::Failed(Status::NotHere, "a gateway".into()), Vec::new());
        };
        if bytes > MAX_PAYLOAD || runs.iter().any(|r| r.start >= r.end) {
            return (Response::Failed(Status::Invalid, "too much at once".into()), Vec::new());
        }
        let key = PlacementKey { family, index: oid.index() };
        let result = async {
            let before = self.version_of(store, oid).await?;
            let mut parts = Vec::with_capacity(runs.len());
            for run in runs {
                let read = store.read(&[oid.layer()], key, run.clone()).await?;
                if !read.cold.is_empty() {
                    return Err(StoreError::Sealed { oid });
                }
                parts.push(read.data);
            }
            Ok((before, self.version_of(store, oid).await?, parts))
        };
        match result.await {
            Ok((before, after, parts)) => (Response::Data(before, after), parts),
            Err(e) => {
                let e: StoreError = e;
                if let StoreError::Corrupt { oid, .. } = &e {
                    self.sync.corrupt(*oid, family);
                }
                (Response::Failed(self.status_of(&e), e.to_string()), Vec::new())
            }
        }
    }

    async fn block_state(
        &self,
        top: LayerId,
        key: PlacementKey,
        blocks: Range<u32>,
        index: ControlIndex,
    ) -> Response {
        if !self.catch_up(index).await || !self.control.lease_valid() {
            return Response::Failed(Status::NoLease, "behind the control plane".into());
        }
        let Some(store) = &self.store else { return Response::Failed(Status::NotHere, "a gateway".into()) };
        let Some(layers) = self.layers(store, top, key) else {
            return Response::Failed(Status::Invalid, "no such layer".into());
        };
        if !self.vouches(&self.control.map(), key, &layers) {
            return Response::Failed(Status::NotHere, "not complete yet".into());
        }
        match store.status(&layers, key, blocks).await {
            Ok(runs) => Response::Blocks(runs),
            Err(e) => Response::Failed(self.status_of(&e), e.to_string()),
        }
    }

    async fn digests(&self, objects: &[(ObjectId, LayerId)], deep: bool, index: ControlIndex) -> Response {
        if !self.catch_up(index).await {
            return Response::Failed(Status::NoLease, "behind the control plane".into());
        }
        let Some(store) = &self.store else { return Response::Failed(Status::NotHere, "a gateway".into()) };
        let mut out = Vec::with_capacity(objects.len());
        for (oid, family) in objects {
            let stat = self.stat_one(*oid, *family).await;
            let mut d =
                CopyDigest { status: stat.status, version: stat.version, digest: None, corrupt: Vec::new() };
            match store.digest(*oid).await {
                Ok(digest) => d.digest = digest,
                Err(e) => d.status = self.status_of(&e),
            }
            if deep && d.digest.is_some() {
                match store.verify(*oid).await {
                    Ok(found) => d.corrupt = found.damaged,
                    Err(e) => d.status = self.status_of(&e),
                }
                if !d.corrupt.is_empty() {
                    d.status = Status::Corrupt;
                    self.sync.corrupt(*oid, *family);
                }
            }
            out.push(d);
        }
        Response::Digests(out)
    }

    /// Presence that is relied on: see `node::changed`.
    async fn contents(
        &self,
        layer: LayerId,
        after: Option<u32>,
        epoch: Epoch,
        index: ControlIndex,
    ) -> Response {
        if !self.catch_up(index).await {
            return Response::Failed(Status::NoLease, "behind the control plane".into());
        }
        let vouches = || self.control.map().epoch == epoch && self.is_synced();
        let incomplete = || Response::Failed(Status::NotHere, "not complete in this epoch".into());
        if !vouches() {
            return incomplete();
        }
        let answer = self.presence(layer, after, true).await;
        if vouches() { answer } else { incomplete() }
    }

    /// `whole`: half filled objects are not passed over.
    async fn presence(&self, layer: LayerId, after: Option<u32>, whole: bool) -> Response {
        const PAGE: usize = 256;
        let Some(store) = &self.store else { return Response::Presence(Vec::new(), false) };
        let start = after
            .map(|i| ObjectId::data(layer, i))
            .or_else(|| (layer.0 > 0).then(|| ObjectId::data(LayerId(layer.0 - 1), u32::MAX)));
        let rows = store.list(start, PAGE);
        let of_it = |r: &ObjectSummary| r.oid.is_data() && r.oid.layer() == layer;
        let full = rows.len() == PAGE && rows.last().is_some_and(of_it);
        let mut out = Vec::new();
        for row in rows.iter().take_while(|r| of_it(r)) {
            match store.info(row.oid).await {
                Ok(Some(i)) if whole && i.filling => {
                    return Response::Failed(Status::NotHere, format!("object {} is being filled", row.oid));
                }
                Ok(Some(i)) => out.push((row.oid.index(), i.present, i.zero)),
                Ok(None) => {}
                Err(e) => return Response::Failed(self.status_of(&e), e.to_string()),
            }
        }
        Response::Presence(out, full)
    }
}

/// Zero-fills are bounded by the payload cap on purpose.
const _: () = assert!(MAX_PAYLOAD.is_multiple_of(BLOCK_SIZE));
/// Used by `status` answers.
pub type Runs = Vec<(Range<u32>, BlockState)>;
