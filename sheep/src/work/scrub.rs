//! Scrubbing: reads every object of this node now and then, so that bit rot is found while another copy can still heal it.
//!
//! One object at a time, spread evenly over `PERIOD`, beginning anywhere: a restart does not start over. What it finds is told by the store as an event, like damage
//! that a client's read comes upon, and healed by the same worker (`sync`). Yields to clients by being slow; stops while this node has no lease or is catching up.

use crate::peer::Replica;
use crate::store::StoreError;
use std::rc::Rc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// All objects are read once in this time, if that is not faster than `SHORTEST` between two.
const PERIOD: Duration = Duration::from_secs(7 * 24 * 3600);
/// At most one object in this time: 16 MiB/s of 4 MiB objects.
const SHORTEST: Duration = Duration::from_millis(250);
/// With few objects: one in this time at least.
const LONGEST: Duration = Duration::from_secs(600);

/// The worker of one node.
pub struct Scrub {
    /// Holder side.
    pub replica: Rc<Replica>,
    /// Stop.
    pub stop: CancellationToken,
}

/// Pause between two objects when there are so many.
fn pause(objects: u64) -> Duration {
    let each = PERIOD.as_millis() as u64 / objects.max(1);
    Duration::from_millis(each).clamp(SHORTEST, LONGEST)
}

impl Scrub {
    /// Run until stopped.
    pub async fn run(self) {
        let stop = self.stop.clone();
        tokio::select! { biased; () = stop.cancelled() => {} () = self.work() => {} }
    }

    async fn work(&self) {
        let Some(store) = self.replica.store.clone() else { return };
        let mut at = store.somewhere(self.replica.control.incarnation());
        loop {
            let objects = store.disks().iter().map(|d| d.objects).sum();
            tokio::time::sleep(pause(objects)).await;
            if !self.replica.control.lease_valid() || !self.replica.is_synced() {
                continue;
            }
            let Some(row) = store.list(at, 1).first().copied() else {
                at = None;
                continue;
            };
            at = Some(row.oid);
            match store.verify(row.oid).await {
                Ok(damaged) if damaged.is_empty() => {}
                Ok(damaged) => tracing::warn!(oid = %row.oid, ?damaged, "scrubbing found damaged blocks"),
                Err(StoreError::CorruptHeader { oid }) => {
                    tracing::warn!(%oid, "scrubbing found an object without a usable header");
                    self.replica.sync.corrupt(oid, row.key.family);
                }
                // The disk's own business.
                Err(e) => tracing::debug!(oid = %row.oid, error = %e, "scrub"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_takes_a_week_and_an_empty_one_no_time() {
        assert_eq!(pause(0), LONGEST);
        assert_eq!(pause(262_144).as_millis(), 2307);
        assert_eq!(pause(u64::MAX), SHORTEST);
    }
}
