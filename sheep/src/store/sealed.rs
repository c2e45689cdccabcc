//! Objects whose contents are in strips, and the strips.
//!
//! Sealing changes where contents are and not what they are: the version of an object stays, each copy is sealed on its own, and copies that are sealed differ in nothing that a
//! reader could see from copies that are not. But it is a change: the epoch of the last one moves, so that a node that was not a holder then asks for it.
//!
//! A strip is an object of its own: its version is the seal's, and where other objects have the epoch of their last change it has the seal's digest.
//!
//! Seals of an object are numbered. A copy takes none below the number that it has *promised*, and what it has promised stays: so strips that it does not need now, of a lower number, it
//! will never need.

use super::journal::Record;
use super::types::{FillOp, ObjectSummary, StoreError, WriteKind};
use super::{Store, durable};
use crate::planted::{self, Bug};
use bytes::Bytes;
use sheepdog_proto::checksum::crc32c;
use sheepdog_proto::peer::Seal;
use sheepdog_proto::{BLOCK_SHIFT, BLOCK_SIZE, BlockMap, Epoch, ObjectId, PlacementKey, VdiId};
use std::ops::Range;

/// One strip is made by one at a time: the turn.
struct Making<'a>(&'a Store, ObjectId);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.making.borrow_mut().remove(&self.1);
    }
}

impl Store {
    /// Give up contents that are in strips by now: of those `blocks` that have these checksums here. `false`: the object is not at the version that the strips were made of (or
    /// there is none, it is being filled, needs strips of before, or has promised not to take these), or `admitted` says no, and nothing was done.
    pub async fn seal(
        &self,
        oid: ObjectId,
        epoch: Epoch,
        seal: Seal,
        (blocks, crcs): (&BlockMap, &[u32]),
        admitted: impl FnOnce() -> bool,
    ) -> Result<bool, StoreError> {
        let Some((disk, obj)) = self.at_rest(oid).await? else { return Ok(false) };
        // From here on without awaiting.
        if !admitted() {
            return Ok(false);
        }
        let record = {
            let meta = obj.meta.borrow();
            let Some(m) = meta.as_ref() else { return Ok(false) };
            let stale = planted::is(Bug::StaleSeal);
            if (m.version != seal.version && !stale) || m.filling || blocks.capacity() > m.blocks() {
                return Ok(false);
            }
            let mut away = BlockMap::new(m.blocks());
            let mut kept = Vec::with_capacity(crcs.len());
            for (b, crc) in blocks.set_runs().flatten().zip(crcs) {
                let same = m.crcs.get(b as usize) == Some(crc) || stale;
                if (m.has_data(b) || m.cold.get(b)) && same {
                    away.set(b..b + 1);
                    kept.push(*crc);
                }
            }
            let mut left = m.cold.clone();
            left.subtract(&away);
            if m.seal != Some(seal) && (!left.is_empty() || seal.number() < m.promised) {
                return Ok(false);
            }
            let mut todo = away.clone();
            todo.subtract(&m.cold);
            let (key, vdi, object_size) = (m.key, m.vdi, m.object_size);
            let (filling, blocks, crcs) = (false, away, kept);
            let record = Record::Seal { oid, key, vdi, object_size, filling, epoch, seal, blocks, crcs };
            (!todo.is_empty() || (m.seal.is_some() && m.seal != Some(seal))).then_some(record)
        };
        let rx = match record {
            Some(record) => disk.log(record),
            None => disk.journal.barrier(),
        };
        durable(&disk, rx).await?;
        Ok(true)
    }

    /// Take no seal of a lower number any more. On stable storage when done.
    pub async fn promise(&self, oid: ObjectId, number: u32) -> Result<(), StoreError> {
        let Some((disk, obj)) = self.at_rest(oid).await? else { return Ok(()) };
        let more = obj.meta.borrow().as_ref().is_some_and(|m| m.promised < number);
        let rx = if more { disk.log(Record::Promise { oid, number }) } else { disk.journal.barrier() };
        durable(&disk, rx).await
    }

    /// Of an object that is being filled: contents of these blocks are in strips. `crcs`: of each of them.
    #[allow(clippy::too_many_arguments)]
    pub async fn fill_cold(
        &self,
        oid: ObjectId,
        key: PlacementKey,
        vdi: VdiId,
        object_size: u32,
        seal: Seal,
        blocks: BlockMap,
        crcs: Vec<u32>,
    ) -> Result<(), StoreError> {
        let most = object_size >> BLOCK_SHIFT;
        if blocks.count() as usize != crcs.len() || blocks.capacity() > most || seal.check().is_err() {
            return Err(StoreError::Invalid("a seal that does not fit".into()));
        }
        let disk = self.place_for(oid, key, 0).await?;
        disk.check()?;
        if disk.object(oid).is_some_and(|o| o.summary.borrow().object_size != object_size) {
            return Err(StoreError::Invalid("object size differs from the object's".into()));
        }
        let epoch = Epoch(0);
        let rx =
            disk.log(Record::Seal { oid, key, vdi, object_size, filling: true, epoch, seal, blocks, crcs });
        durable(&disk, rx).await
    }

    /// Take contents back out of strips: those of `run` that are still as they were in this seal.
    pub async fn thaw(
        &self,
        oid: ObjectId,
        seal: Seal,
        run: Range<u32>,
        data: &Bytes,
    ) -> Result<(), StoreError> {
        let Some((_, obj)) = self.loaded(oid).await? else { return Ok(()) };
        let (key, summary) = (obj.key, *obj.summary.borrow());
        let disk = self.place_for(oid, key, data.len()).await?;
        // From here on without awaiting.
        let mut ops = Vec::new();
        if let Some(obj) = disk.object(oid)
            && let Some(m) = obj.meta.borrow().as_ref()
            && m.seal == Some(seal)
            && !m.filling
        {
            for (b, bytes) in run.zip(data.chunks_exact(BLOCK_SIZE)) {
                if m.cold.get(b) && m.crcs.get(b as usize) == Some(&crc32c(bytes)) {
                    let kind = WriteKind::Data(data.slice_ref(bytes));
                    ops.push(FillOp { blocks: b..b + 1, kind });
                }
            }
        }
        if ops.is_empty() {
            return Ok(());
        }
        let rx = disk.fill(oid, key, summary.vdi, summary.object_size, false, ops)?;
        durable(&disk, rx).await
    }

    /// Wait until everything that was changed so far is on stable storage. An error while a failed disk is not given up yet: it may come back without its last changes.
    pub async fn all_durable(&self) -> Result<(), StoreError> {
        let disks: Vec<_> = self.disks.borrow().clone();
        for disk in &disks {
            disk.check()?;
            durable(disk, disk.journal.barrier()).await?;
        }
        Ok(())
    }

    /// Is any strip here, of whatever?
    pub fn has_strips(&self) -> bool {
        !self.list(Some(ObjectId(u64::MAX >> 1)), 1).is_empty()
    }

    /// Is this strip here, whole?
    pub fn has_strip(&self, oid: ObjectId, seal: Seal) -> bool {
        let of = |slot, role| slot == seal.slot && role < seal.strips();
        oid.strip().is_some_and(|(slot, role)| of(slot, role))
            && self.row(oid).is_some_and(|(row, _)| {
                row.version == seal.version && row.epoch.0 == seal.digest && !row.filling
            })
    }

    /// Remove a strip, if it is still the one that was looked at (another may have taken its name since), and `still` says yes.
    pub async fn remove_strip(
        &self,
        strip: &ObjectSummary,
        still: impl FnOnce() -> bool,
    ) -> Result<(), StoreError> {
        let oid = strip.oid;
        self.moves.still(oid).await;
        // From here on without awaiting.
        let Some((disk, obj)) = self.locate(oid) else { return Ok(()) };
        let now = disk.summary(&obj);
        let same = (now.version, now.epoch) == (strip.version, strip.epoch);
        if oid.is_data() || !same || self.making.borrow().contains(&oid) || !still() {
            return Ok(());
        }
        disk.check()?;
        let rx = disk.log(Record::Remove { oid });
        durable(&disk, rx).await
    }

    /// Keep a strip. `rows` are those with contents, and `data` the contents. Whoever makes it makes the same one, so one that is here stays. It takes the place of one of an earlier
    /// seal: whoever began to make it had the promise of all copies that they take none of those any more.
    #[allow(clippy::too_many_arguments)]
    pub async fn put_strip(
        &self,
        oid: ObjectId,
        key: PlacementKey,
        vdi: VdiId,
        object_size: u32,
        seal: Seal,
        rows: &[Range<u32>],
        data: &Bytes,
    ) -> Result<(), StoreError> {
        if oid.strip().is_none_or(|(slot, role)| slot != seal.slot || role >= seal.strips()) {
            return Err(StoreError::Invalid("not the name of a strip of this seal".into()));
        }
        if self.has_strip(oid, seal) {
            // Whoever made it may not have been told yet.
            return self.all_durable().await;
        }
        let mut at = 0;
        let mut ops = Vec::with_capacity(rows.len());
        for run in rows {
            let len = run.len() << BLOCK_SHIFT;
            if run.start >= run.end || at + len > data.len() {
                return Err(StoreError::Invalid("payload length".into()));
            }
            ops.push(FillOp { blocks: run.clone(), kind: WriteKind::Data(data.slice(at..at + len)) });
            at += len;
        }
        if at != data.len() {
            return Err(StoreError::Invalid("payload length".into()));
        }
        // Of an earlier seal, or half made. A later one stays: whoever asks has waited for long.
        let later = |row: &ObjectSummary| !row.filling && Seal::number_in(row.epoch.0) >= seal.number();
        if self.row(oid).is_some_and(|(row, _)| later(&row)) {
            return Err(StoreError::Invalid("a strip of a later seal is there".into()));
        }
        if !self.making.borrow_mut().insert(oid) {
            return Err(StoreError::Invalid("the strip is being made".into()));
        }
        let _turn = Making(self, oid);
        self.remove(oid).await?;
        let size = seal.strip_size(object_size);
        self.fill(oid, key, vdi, size, ops).await?;
        let none = BlockMap::new(size >> BLOCK_SHIFT);
        self.finish_fill(oid, seal.version, Epoch(seal.digest), none, None, None).await
    }
}
