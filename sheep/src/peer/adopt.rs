//! Becoming equal to another copy of one object: for catch-up, rebuild, reconciliation and healing.
//!
//! The caller makes sure that the source is a clean copy, and keeps writes away from the object or accepts that the attempt is repeated: the source's version
//! must be the same before, during and after the copying. First only the blocks that are known to differ are fetched; then both sides' digests (of presence and all block
//! checksums) are compared, and if they differ everything is fetched.

use super::link::LinkError;
use super::replica::Replica;
use crate::store::{ColdRun, FillOp, ObjectInfo, Store, StoreError, WriteKind};
use bytes::Bytes;
use sheepdog_cluster::{LayerState, Session};
use sheepdog_proto::peer::{PullHead, Request, Response, Seal, Status, Terms};
use sheepdog_proto::{
    BLOCK_SHIFT, BlockMap, ControlIndex, Generation, LayerId, NodeId, ObjectId, PlacementKey, Version,
};
use std::ops::Range;
use std::rc::Rc;

/// Bytes fetched at a time: small enough to let client I/O in between.
const CHUNK: u64 = 1 << 20;
/// Attempts while the source keeps changing.
const ATTEMPTS: usize = 5;

/// Why an object could not be adopted now.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AdoptError {
    /// The source cannot be reached or refused.
    #[error("source: {0}")]
    Source(String),
    /// Chosen by another map, or for another session.
    #[error("the map or the session has changed since the source was chosen")]
    Over,
    /// The source kept changing.
    #[error("the source kept changing")]
    Moving,
    /// What was merged into it here is being filled.
    #[error("what is merged into it is not whole yet")]
    Merging,
    /// Our store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<LinkError> for AdoptError {
    fn from(e: LinkError) -> Self {
        Self::Source(e.to_string())
    }
}

/// What a copy may lose by becoming equal to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loses {
    /// Whatever the other one does not have. The session's owner asks: it keeps writes away, or sends them again.
    Anything,
    /// Steps of generations below this one, the first that can have written since the source was chosen. What a later one has written here may be acknowledged as soon as the
    /// source has it as well, and the source was looked at before.
    Before(Generation),
    /// Nothing: both copies are clean, and one of them is damaged.
    Nothing,
}

impl Loses {
    fn permits(self, mine: Version, theirs: Version) -> bool {
        mine <= theirs
            || match self {
                Self::Anything => true,
                Self::Before(first) => mine.generation < first.0,
                Self::Nothing => false,
            }
    }
}

/// What is to become equal to what.
#[derive(Debug, Clone, Copy)]
pub struct Adoption {
    /// Object.
    pub oid: ObjectId,
    /// Its family.
    pub family: LayerId,
    /// Node to copy from.
    pub source: NodeId,
    /// On what the choice of the source rests.
    pub terms: Terms,
    /// What it may cost.
    pub loses: Loses,
}

impl Adoption {
    /// A session holds its clients' writes to the object meanwhile.
    fn is_held(&self) -> bool {
        self.terms.session.is_some()
    }
    /// The copy here has taken nothing that must not be lost. Steps are refused while an object is filled: whatever came, came before.
    fn may_lose(&self, mine: Option<&ObjectInfo>, theirs: Version) -> Result<(), AdoptError> {
        // What is half filled already is no copy.
        match mine.filter(|i| !i.filling).is_none_or(|i| self.loses.permits(i.version, theirs)) {
            true => Ok(()),
            false => Err(AdoptError::Over),
        }
    }
}

/// What an adoption did.
#[derive(Debug, Clone, Copy)]
pub struct Adopted {
    /// Version now.
    pub version: Version,
    /// Bytes fetched.
    pub bytes: u64,
}

/// Of a chunk of the source's object, the blocks that are in strips, and their checksums; `None`: none.
fn cold_in(head: &PullHead, chunk: &Range<u32>) -> Option<(BlockMap, Vec<u32>)> {
    let mut blocks = BlockMap::new(head.object_size >> BLOCK_SHIFT);
    let mut crcs = Vec::new();
    for (b, crc) in head.cold.set_runs().flatten().zip(&head.cold_crcs) {
        if chunk.contains(&b) {
            blocks.set(b..b + 1);
            crcs.push(*crc);
        }
    }
    (!crcs.is_empty()).then_some((blocks, crcs))
}

impl Replica {
    pub(crate) async fn adopt_request(
        self: &Rc<Self>,
        what: Adoption,
        blocks: Option<Vec<Range<u32>>>,
        index: ControlIndex,
    ) -> Response {
        if !self.catch_up(index).await {
            return Response::Failed(Status::NoLease, "behind the control plane".into());
        }
        match self.adopt(what, blocks).await {
            Ok(a) => Response::Adopted(a.version),
            Err(e) => Response::Failed(Status::NotHere, e.to_string()),
        }
    }

    /// Have a node become equal to a clean copy of another, or put these blocks right, where nothing is lost by it. `false`: not now.
    pub(crate) async fn have_adopted(
        self: &Rc<Self>,
        node: NodeId,
        oid: ObjectId,
        family: LayerId,
        source: NodeId,
        blocks: Option<Vec<Range<u32>>>,
    ) -> bool {
        let terms = Terms { epoch: self.control.map().epoch, session: None };
        let control_index = self.control.applied().index;
        let request = Request::Adopt { oid, family, source, blocks, terms, control_index };
        matches!(self.ask(node, &request).await, Ok(Response::Adopted(_)))
    }

    /// Make this node's copy equal to the source's, for as long as the terms hold under which it was chosen. With a session in them its owner asks, and keeps writes to the object away
    /// meanwhile, or sends them again.
    pub async fn adopt(
        self: &Rc<Self>,
        what: Adoption,
        hint: Option<Vec<Range<u32>>>,
    ) -> Result<Adopted, AdoptError> {
        let Adoption { oid, family, .. } = what;
        let store = self.store.clone().ok_or(StoreError::NoDisk)?;
        let adopted = self.adopt_now(&store, what, hint).await;
        // Cut off half way: whoever asked may be gone, so it is begun again here, also on a node that is complete otherwise.
        if adopted.is_err() && store.is_half_filled(oid) {
            self.sync.missed(oid, family);
        }
        adopted
    }

    async fn adopt_now(
        self: &Rc<Self>,
        store: &Rc<Store>,
        what: Adoption,
        hint: Option<Vec<Range<u32>>>,
    ) -> Result<Adopted, AdoptError> {
        let Adoption { oid, family, source, terms, .. } = what;
        let _guard = self.sync.begin_fill(oid, family).await;
        let mark = self.sync.mark();
        let mut bytes = 0;
        let before = self.merging_into(oid);
        for attempt in 0..ATTEMPTS {
            let Some(head) = self.fetch_head(oid, family, source).await? else {
                // The source has never had it, or it was removed: so shall we. One without a step is there because what was under it has been merged into it.
                self.hold(oid, terms)?;
                self.merges(oid, before)?;
                let goes = match store.info(oid).await {
                    Ok(mine) => {
                        what.may_lose(mine.as_ref(), Version::NONE)?;
                        mine.is_some_and(|i| i.filling || i.version != Version::NONE)
                    }
                    Err(StoreError::CorruptHeader { .. }) => true,
                    Err(e) => return Err(e.into()),
                };
                if goes {
                    store.remove(oid).await?;
                }
                self.merge_again(store, oid, before).await?;
                self.joined(oid, terms.session, mark);
                return Ok(Adopted { version: Version::NONE, bytes });
            };
            let hint = if attempt == 0 { hint.clone() } else { None };
            match self.adopt_head(store, what, &head, hint, before, attempt > 0).await? {
                (true, n) => {
                    self.joined(oid, terms.session, mark);
                    return Ok(Adopted { version: head.version, bytes: bytes + n });
                }
                (false, n) => bytes += n,
            }
        }
        Err(AdoptError::Moving)
    }

    /// The terms still hold, as far as this node knows. What it does not know yet it has not taken part in: no write was acknowledged without the source and with this node.
    fn hold(&self, oid: ObjectId, terms: Terms) -> Result<(), AdoptError> {
        let same = self.control.map().epoch == terms.epoch
            && terms.session.is_none_or(|g| self.session_over(oid) == Some(g));
        if same { Ok(()) } else { Err(AdoptError::Over) }
    }

    /// The object is equal to a clean copy, as of `mark`; as of now, if the session whose owner saw to it is still the one that writes. An owner who asked may be
    /// gone already: steps that a later session's owner sent and that were refused here, it does not know of.
    pub(crate) fn joined(&self, oid: ObjectId, session: Option<Generation>, mark: u64) {
        match session.is_some() && session == self.session_over(oid) {
            true => self.sync.resolved(oid),
            false => self.sync.resolved_as_of(oid, mark),
        }
    }

    /// The session that writes the object's volume.
    pub(crate) fn session_over(&self, oid: ObjectId) -> Option<Generation> {
        self.control.read(|s| match s.vdis.get(&s.layers.get(&oid.layer())?.vdi)?.session {
            Session::Open { generation, .. } => Some(generation),
            _ => None,
        })
    }

    /// The first generation that may write the object's volume from now on, if none does now.
    pub(crate) fn next_session_over(&self, oid: ObjectId) -> Generation {
        let next = self.control.read(|s| {
            let vdi = s.vdis.get(&s.layers.get(&oid.layer())?.vdi)?;
            Some(match vdi.session {
                Session::Open { generation, ready: false, .. } => generation,
                _ => Generation(vdi.generation.0 + 1),
            })
        });
        next.unwrap_or(Generation(u64::MAX))
    }

    /// The layer that is being merged into this object's layer.
    fn merging_into(&self, oid: ObjectId) -> Option<LayerId> {
        self.control.read(|s| {
            let lower = s.layers.get(&s.layers.get(&oid.layer())?.parent?)?;
            matches!(lower.state, LayerState::Merging { .. }).then_some(lower.id)
        })
    }

    /// What has to be merged into an object before it counts: see `merge_again`.
    fn merges(&self, oid: ObjectId, before: Option<LayerId>) -> Result<Vec<ObjectId>, AdoptError> {
        let gone = before.filter(|l| self.control.read(|s| !s.layers.contains_key(l)));
        let now = self.merging_into(oid).filter(|_| self.is_synced());
        let lower: Vec<_> = gone.into_iter().chain(now).map(|l| ObjectId::data(l, oid.index())).collect();
        if lower.iter().any(|o| self.lacks(*o)) { Err(AdoptError::Merging) } else { Ok(lower) }
    }

    /// Becoming equal to a copy whose node has not merged yet undoes the merge here. A node that is complete may have done it, and reported it or be about to: so it does it
    /// again, before the copy counts. (`before`: what was being merged into this layer when the adoption began. When that has left the chain meanwhile, this node had reported; its
    /// objects stay while one is filled.) A node that is not complete merges when it is: its reports do not count until then.
    async fn merge_again(
        self: &Rc<Self>,
        store: &Rc<Store>,
        oid: ObjectId,
        before: Option<LayerId>,
    ) -> Result<(), AdoptError> {
        for lower in self.merges(oid, before)? {
            self.merge_one(store, lower, oid).await?;
        }
        let into = self.control.read(|s| match s.layers.get(&oid.layer()).map(|l| &l.state) {
            Some(LayerState::Merging { into, .. }) => Some(*into),
            _ => None,
        });
        // What is being filled takes in this object at its end.
        let upper = into.map(|l| ObjectId::data(l, oid.index()));
        if let Some(upper) = upper.filter(|o| self.is_synced() && !self.lacks(*o)) {
            self.merge_one(store, oid, upper).await?;
        }
        Ok(())
    }

    /// Merge one object into another; what is in strips is brought back first, because strips have its name.
    pub(crate) async fn merge_one(
        self: &Rc<Self>,
        store: &Rc<Store>,
        from: ObjectId,
        into: ObjectId,
    ) -> Result<(), AdoptError> {
        loop {
            match store.merge(from, into).await {
                Err(StoreError::Sealed { .. }) => {}
                other => return Ok(other?),
            }
            let Some((row, _)) = store.row(from) else { return Ok(()) };
            self.thaw(from, row.key.family).await.map_err(AdoptError::Source)?;
        }
    }

    async fn fetch_head(
        &self,
        oid: ObjectId,
        family: LayerId,
        source: NodeId,
    ) -> Result<Option<Box<PullHead>>, AdoptError> {
        let control_index = self.control.applied().index;
        let request = Request::PullHead { oid, family, control_index };
        match self.links.to(source).request(&request, Vec::new()).await?.0 {
            Response::Head(head) => {
                if let Some(Err(e)) = head.as_ref().map(|h| h.check()) {
                    return Err(AdoptError::Source(e.to_string()));
                }
                Ok(head)
            }
            Response::Failed(_, why) => Err(AdoptError::Source(why)),
            other => Err(AdoptError::Source(format!("unexpected answer {other:?}"))),
        }
    }

    /// One attempt: (equal now?, bytes fetched).
    async fn adopt_head(
        self: &Rc<Self>,
        store: &Rc<Store>,
        what: Adoption,
        head: &PullHead,
        hint: Option<Vec<Range<u32>>>,
        before: Option<LayerId>,
        everything: bool,
    ) -> Result<(bool, u64), AdoptError> {
        let Adoption { oid, family, source, terms, .. } = what;
        let key = PlacementKey { family, index: oid.index() };
        let known = store.row(oid).map_or(0, |(row, _)| row.promised);
        let local = match store.info(oid).await {
            Ok(i) => i,
            // An unreadable header: start again from nothing. What has begun to be filled does not look as if it had never been written.
            Err(StoreError::CorruptHeader { .. }) => {
                self.hold(oid, terms)?;
                store.remove(oid).await?;
                store.fill(oid, key, head.vdi, head.object_size, Vec::new()).await?;
                store.promise(oid, known).await?;
                store.info(oid).await?
            }
            Err(e) => return Err(e.into()),
        };
        let total = head.object_size >> BLOCK_SHIFT;
        let mut want = BlockMap::new(total);
        match &local {
            Some(l) if !everything => {
                // What may differ: what the source marked while we were away, what we have beyond it, presence.
                want.union(&head.dirty);
                for r in hint.iter().flatten() {
                    want.set(r.clone());
                }
                for t in store.tail_of(l.vdi, oid) {
                    want.set(t.blocks);
                }
                for b in 0..total {
                    if l.present.get(b) != head.present.get(b) || l.zero.get(b) != head.zero.get(b) {
                        want.set(b..b + 1);
                    }
                }
                // What is in strips is where the other copy says.
                if (l.seal, &l.cold, &l.cold_crcs) != (head.seal, &head.cold, &head.cold_crcs) {
                    want.union(&l.cold);
                    want.union(&head.cold);
                }
                if l.filling {
                    want.union(&head.present);
                }
            }
            Some(l) => {
                want.union(&l.present);
                want.union(&head.present);
            }
            None => want.union(&head.present),
        }
        // Strips that this copy has promised not to take may be removed as soon as the other one has others: then what is in them is taken out of them.
        let (own, promised) = local.as_ref().map_or((None, 0), |l| (l.seal, l.promised));
        let thaw = head.seal.filter(|s| own != Some(*s) && s.number() < promised);
        let takes = head.seal.filter(|_| thaw.is_none());
        let mut fetched = 0;
        for run in want.set_runs().collect::<Vec<_>>() {
            let mut at = run.start;
            while at < run.end {
                let piece = self.sync.yielding.piece(CHUNK);
                let chunk = at..(at + (piece >> BLOCK_SHIFT) as u32).min(run.end);
                at = chunk.end;
                let Some((mut ops, mut n)) = self.fetch(what, head, chunk.clone()).await? else {
                    return Ok((false, fetched));
                };
                if let Some(seal) = thaw {
                    n += self.fetch_strips(what, head, seal, chunk.clone(), &mut ops).await?;
                }
                let cold = cold_in(head, &chunk);
                fetched += n;
                what.may_lose(store.info(oid).await?.as_ref(), head.version)?;
                self.hold(oid, terms)?;
                store.fill(oid, key, head.vdi, head.object_size, ops).await?;
                if let Some((seal, (blocks, crcs))) = takes.zip(cold) {
                    store.fill_cold(oid, key, head.vdi, head.object_size, seal, blocks, crcs).await?;
                }
                self.sync.fetched(n);
            }
        }
        // Nothing to fetch still has to create the object and to move its version.
        what.may_lose(store.info(oid).await?.as_ref(), head.version)?;
        self.hold(oid, terms)?;
        if local.is_none() && want.is_empty() {
            store.fill(oid, key, head.vdi, head.object_size, Vec::new()).await?;
        }
        let now = self.fetch_head(oid, family, source).await?;
        if now.is_none_or(|h| h.version != head.version || h.digest != head.digest) {
            return Ok((false, fetched));
        }
        // Compared before it counts: a crash in between must not leave a copy that only claims to be equal.
        if store.digest(oid).await? != Some(head.digest) {
            return Ok((false, fetched));
        }
        self.merge_again(store, oid, before).await?;
        self.hold(oid, terms)?;
        if head.promised > 0 {
            store.promise(oid, head.promised).await?;
        }
        let (dirty, tail) = (head.dirty.clone(), head.tail.clone());
        store.finish_fill(oid, head.version, head.epoch, dirty, head.dirty_since, tail).await?;
        tracing::trace!(me = %self.control.me().short(), %oid, source = %source.short(), version = %head.version, "adopted");
        Ok((true, fetched))
    }

    /// Make way for clients, unless it is them who wait.
    async fn pay(&self, what: Adoption, bytes: u64) {
        match what.is_held() {
            true => self.sync.charge(bytes),
            false => self.sync.throttle(bytes).await,
        }
    }

    /// What of a chunk is in strips, as fill steps; bytes fetched.
    async fn fetch_strips(
        self: &Rc<Self>,
        what: Adoption,
        head: &PullHead,
        seal: Seal,
        chunk: Range<u32>,
        ops: &mut Vec<FillOp>,
    ) -> Result<u64, AdoptError> {
        let Adoption { oid, family, .. } = what;
        let mut bytes = 0;
        for (blocks, _) in head.cold.runs(chunk).filter(|(_, cold)| *cold) {
            let crcs = cold_in(head, &blocks).map_or_else(Vec::new, |(_, crcs)| crcs);
            let run = ColdRun { oid, object_size: head.object_size, seal, blocks: blocks.clone(), crcs };
            self.pay(what, (blocks.len() << BLOCK_SHIFT) as u64).await;
            let data = self.fetch_cold(family, &run).await.map_err(AdoptError::Source)?;
            bytes += data.len() as u64;
            ops.push(FillOp { blocks, kind: WriteKind::Data(data) });
        }
        Ok(bytes)
    }

    /// Contents of one chunk as fill steps; `None` when the source has moved on.
    async fn fetch(
        &self,
        what: Adoption,
        head: &PullHead,
        chunk: Range<u32>,
    ) -> Result<Option<(Vec<FillOp>, u64)>, AdoptError> {
        let Adoption { oid, family, source, .. } = what;
        let mut ops = Vec::new();
        let mut data_runs = Vec::new();
        for (run, present) in head.present.runs(chunk) {
            if !present {
                ops.push(FillOp { blocks: run, kind: WriteKind::Remove });
                continue;
            }
            for (run, zero) in head.zero.runs(run) {
                if zero {
                    ops.push(FillOp { blocks: run, kind: WriteKind::Zero });
                } else {
                    data_runs.extend(head.cold.runs(run).filter(|(_, cold)| !cold).map(|(run, _)| run));
                }
            }
        }
        if data_runs.is_empty() {
            return Ok(Some((ops, 0)));
        }
        let expect: usize = data_runs.iter().map(|r| r.len() << BLOCK_SHIFT).sum();
        self.pay(what, expect as u64).await;
        let request = Request::PullData { oid, family, runs: data_runs.clone(), held: what.is_held() };
        let (response, payload) = self.links.to(source).request(&request, Vec::new()).await?;
        match response {
            Response::Data(before, after) if before == head.version && after == head.version => {}
            Response::Data(..) => return Ok(None),
            Response::Failed(_, why) => return Err(AdoptError::Source(why)),
            other => return Err(AdoptError::Source(format!("unexpected answer {other:?}"))),
        }
        if payload.len() != expect {
            return Err(AdoptError::Source("wrong payload length".into()));
        }
        let mut at = 0;
        for run in data_runs {
            let len = run.len() << BLOCK_SHIFT;
            let data: Bytes = payload.slice(at..at + len);
            at += len;
            ops.push(FillOp { blocks: run, kind: WriteKind::Data(data) });
        }
        Ok(Some((ops, expect as u64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_session_has_written_since_is_not_taken_back() {
        let v = |generation, seq| Version::new(Generation(generation), seq);
        let before = Loses::Before(Generation(4));
        assert!(before.permits(v(3, 7), Version::NONE), "a tail that nobody acknowledged");
        assert!(before.permits(v(4, 2), v(4, 3)), "the other one has it too");
        assert!(!before.permits(v(4, 2), v(4, 1)) && !before.permits(v(5, 1), v(3, 9)));
        assert!(Loses::Anything.permits(v(4, 2), Version::NONE));
        assert!(Loses::Nothing.permits(v(4, 2), v(4, 2)) && !Loses::Nothing.permits(v(3, 2), v(3, 1)));
    }
}
