//! A disk that was away while its node went on: what it has may be on another disk by now, or be old.

use super::disk::Disk;
use super::journal::Record;
use super::{ObjectSummary, Store, StoreError, durable};
use sheepdog_proto::{DiskId, ObjectId};
use std::rc::Rc;

impl Store {
    /// Of objects that another disk has as well one stays: a whole one rather than one that was being filled, then the later (of equal ones the one that was sealed later: strips of before
    /// may be gone). Which of them is right is found out when
    /// the node compares itself with the others; two at once would shadow each other.
    pub(super) fn settle_twins(&self, disk: &Rc<Disk>) {
        let disks = self.disks.borrow();
        let others = || disks.iter().filter(|d| d.id != disk.id);
        let rank = |d: &Disk, oid| {
            let row = d.object(oid).map(|o| d.summary(&o));
            row.map(|s| (!s.filling, s.version, s.promised))
        };
        let mine: Vec<ObjectId> = disk.objects.borrow().keys().copied().collect();
        let mut twins = 0;
        for oid in mine {
            let Some(twin) = others().find(|d| d.object(oid).is_some()) else { continue };
            let worse = if rank(disk, oid) > rank(twin, oid) { twin } else { disk };
            // Not waited for: after a crash they are twins again.
            drop(worse.log(Record::Remove { oid }));
            twins += 1;
        }
        if twins > 0 {
            tracing::warn!(path = %disk.path.display(), twins, "objects were on another disk, too: the later ones stay");
        }
    }

    /// Remove all objects from one disk but those to `keep`.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn keep_only(
        &self,
        disk: DiskId,
        keep: impl Fn(&ObjectSummary) -> bool,
    ) -> Result<(), StoreError> {
        let Some(d) = self.disks.borrow().iter().find(|d| d.id == disk).cloned() else { return Ok(()) };
        let all: Vec<ObjectSummary> = d.objects.borrow().values().map(|o| d.summary(o)).collect();
        let mut last = None;
        for row in all.iter().filter(|row| !keep(row)) {
            self.moves.still(row.oid).await;
            d.check()?;
            last = Some(d.log(Record::Remove { oid: row.oid }));
        }
        match last {
            Some(rx) => durable(&d, rx).await,
            None => Ok(()),
        }
    }
}
