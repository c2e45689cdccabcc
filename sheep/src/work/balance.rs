//! Balance among the disks of this node: objects move to the disks that they would be put on if they were new, when disks have come, gone or returned.
//!
//! Where that is, is decided by capacity (`Store::choose`), so only what has to move does: with a fourth disk beside three equal ones, a quarter of everything. Nothing moves to a disk that is fuller
//! than the one it comes from, while a disk is being emptied, or while this node catches up. Nothing is asked of other nodes.

use crate::peer::Replica;
use crate::store::{DiskInfo, DiskState, Store};
use sheepdog_proto::{DiskId, ObjectId};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often it is looked whether other disks are in use.
const LOOK: Duration = Duration::from_secs(5);
/// What could not be moved, or came to a full disk's neighbour meanwhile, is looked for again after so long.
const AGAIN: Duration = Duration::from_secs(3600);
/// Objects looked at at a time.
const PAGE: usize = 256;
/// Of a disk that is filled so far nothing more is wanted, in parts of a hundred.
const FULL: f64 = 85.0;
/// Disks that are filled alike, in parts of a hundred: how much is free is not looked at in the same moment for all of them, and some share a file system.
const ALIKE: f64 = 1.0;

/// The worker of one node.
pub struct Balance {
    /// Holder side.
    pub replica: Rc<Replica>,
    /// Stop.
    pub stop: CancellationToken,
}

/// How full, in parts of a hundred.
fn fill(d: &DiskInfo) -> f64 {
    (d.total.saturating_sub(d.free)) as f64 * 100.0 / d.total.max(1) as f64
}

/// Does it help to move something from the one to the other?
fn helps(disks: &[DiskInfo], from: DiskId, to: DiskId) -> bool {
    let find = |id| disks.iter().find(|d| d.id == id);
    let (Some(from), Some(to)) = (find(from), find(to)) else { return false };
    to.state == DiskState::Ok
        && to.opinion.suspect.is_none()
        && fill(to) < FULL
        && fill(to) <= fill(from) + ALIKE
}

impl Balance {
    /// Run until stopped.
    pub async fn run(self) {
        let stop = self.stop.clone();
        tokio::select! { biased; () = stop.cancelled() => {} () = self.work() => {} }
    }

    async fn work(&self) {
        let Some(store) = self.replica.store.clone() else { return };
        let mut balanced: Option<(Vec<DiskId>, Instant)> = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(now) = self.ready(&store) else { continue };
            let lately = |(disks, at): &(Vec<DiskId>, Instant)| *disks == now && at.elapsed() < AGAIN;
            if now.len() < 2 || balanced.as_ref().is_some_and(lately) {
                continue;
            }
            if self.pass(&store, &now).await.is_some() {
                balanced = Some((now, Instant::now()));
            }
        }
    }

    /// Look at everything once. `None`: something has changed.
    async fn pass(&self, store: &Rc<Store>, disks: &[DiskId]) -> Option<()> {
        for disk in disks {
            let moved = self.from(store, *disk, disks).await?;
            if moved > 0 {
                tracing::info!(disk = %disk.short(), objects = moved, "moved to other disks of this node, for balance");
            }
        }
        Some(())
    }

    /// The disks in use, when none is leaving and this node is complete.
    fn ready(&self, store: &Store) -> Option<Vec<DiskId>> {
        let recovery = self.replica.control.read(|s| s.recovery.enabled);
        if !recovery || !self.replica.control.lease_valid() || !self.replica.is_synced() {
            return None;
        }
        let disks = store.disks();
        if disks.iter().any(|d| d.leaving.is_some()) {
            return None;
        }
        let mut usable: Vec<DiskId> =
            disks.iter().filter(|d| !matches!(d.state, DiskState::Failed(_))).map(|d| d.id).collect();
        usable.sort_unstable();
        Some(usable)
    }

    /// Move what belongs elsewhere; how many. `None`: something has changed.
    async fn from(&self, store: &Rc<Store>, disk: DiskId, among: &[DiskId]) -> Option<u64> {
        let (mut after, mut moved): (Option<ObjectId>, u64) = (None, 0);
        loop {
            let page = store.objects_on(disk, after, PAGE);
            let Some((last, _)) = page.last() else { return Some(moved) };
            after = Some(*last);
            for (oid, bytes) in page {
                let Some(to) = store.belongs_on(oid).filter(|to| *to != disk) else { continue };
                self.replica.sync.throttle(bytes).await;
                // It took a while.
                if self.ready(store).as_deref() != Some(among) {
                    return None;
                }
                if !helps(&store.disks(), disk, to) {
                    continue;
                }
                match store.relocate(oid, disk).await {
                    Ok(()) => moved += 1,
                    Err(e) => tracing::debug!(%oid, error = %e, "not moved for balance"),
                }
            }
            // What there was nothing to do for has cost time, too.
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_to_a_fuller_disk() {
        let disk = |id: u128, total: u64, free| DiskInfo {
            id: DiskId(id),
            path: String::new(),
            total,
            free,
            used: 0,
            objects: 0,
            state: DiskState::Ok,
            leaving: None,
            opinion: Default::default(),
        };
        let disks =
            [disk(1, 1000, 500), disk(2, 4000, 3000), disk(3, 1000, 100), disk(4, 0, 0), disk(6, 1000, 495)];
        let helps = |from, to| helps(&disks, DiskId(from), DiskId(to));
        assert!(helps(1, 2) && helps(3, 1) && !helps(2, 1) && !helps(1, 3));
        assert!(helps(1, 6) && helps(6, 1), "filled alike");
        assert!(!helps(1, 5) && !helps(5, 1));
        let mut failed = disks.clone();
        failed[1].state = DiskState::Failed("gone".into());
        assert!(!super::helps(&failed, DiskId(1), DiskId(2)));
    }
}
