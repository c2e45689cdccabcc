//! Scrubbing: everything on this node's disks is read and compared now and then, so that damage is found while something is left to mend it with.
//!
//! One file at a time: its header with what is in memory, its blocks with their checksums (`store::verify`), the copy with those on other nodes, and strips with each other
//! (`compare`). After all files of a disk come its index, and files that no object has. What is damaged is made again from another copy or from other strips by the worker that heals
//! what reads come upon (`sync`); what is missing or has too few steps is copied from where it is not. What is right is told by checksums and versions, never by how many say so.
//!
//! All of it takes `PERIOD`. How far it has come, and what was found, is kept on the disks: a restart goes on there. Somebody may ask for a pass at once, which takes half of the time that there is. Stands still
//! while this node has no lease or is catching up.

mod compare;
pub mod report;

use crate::peer::Replica;
use crate::store::{ObjectSummary, Store, StoreError};
use report::{Pass, Scrubbing};
use sheepdog_cluster::{Command, EventLevel};
use sheepdog_proto::{BLOCK_SHIFT, ObjectId, VdiId};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// All objects are read once in this time, if that is not faster than `SHORTEST` between two.
const PERIOD: Duration = Duration::from_secs(7 * 24 * 3600);
/// At most one object in this time: 16 MiB/s of 4 MiB objects.
const SHORTEST: Duration = Duration::from_millis(250);
/// With few objects: one in this time at least.
const LONGEST: Duration = Duration::from_secs(600);
/// How often it is looked whether what was found is mended.
const RECHECK: Duration = Duration::from_secs(10);
/// How long that is looked for.
const GIVE_UP: Duration = Duration::from_secs(24 * 3600);
/// Under this name the report is kept on every disk.
const NAME: &str = "scrub-report";
/// It is written at most this often, a large one less often: at most so many bytes in this time.
const SAVE: Duration = Duration::from_secs(60);
const SAVE_BYTES: u32 = 256 << 10;
/// Pause while this node may not, or cannot, compare anything.
const RETRY: Duration = Duration::from_secs(1);

/// The worker of one node.
pub struct Scrub {
    /// Holder side.
    pub replica: Rc<Replica>,
    /// Stop.
    pub stop: CancellationToken,
}

/// Something that was found.
struct Wrong {
    text: String,
    mended: bool,
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

    fn scrubbing(&self) -> &Scrubbing {
        &self.replica.scrubbing
    }

    async fn work(&self) {
        let Some(store) = self.replica.store.clone() else { return };
        let kept = store.get_blobs(NAME).await;
        // Without any: somewhere, so that a node that is new each time is looked at all over, too.
        let anywhere = || Pass { at: store.somewhere(self.replica.control.incarnation()), ..Pass::default() };
        let mut pass = self.scrubbing().load(kept.iter().map(|(_, kept)| &**kept)).unwrap_or_else(anywhere);
        let (mut took, mut rechecked, mut save_at) = (Duration::ZERO, None, Instant::now());
        loop {
            let objects = store.disks().iter().map(|d| d.objects).sum();
            if pass.hurried {
                // As long as the last one took: half of the time is left for others.
                tokio::time::sleep(took).await;
            } else {
                let wait = if self.scrubbing().open().is_empty() {
                    pause(objects)
                } else {
                    pause(objects).min(RECHECK)
                };
                tokio::select! {
                    biased;
                    () = self.scrubbing().wake.notified() => {}
                    () = tokio::time::sleep(wait) => {}
                }
            }
            if !self.replica.control.lease_valid() || !self.replica.is_synced() {
                tokio::time::sleep(RETRY).await;
                continue;
            }
            if self.scrubbing().is_asked() && !pass.hurried {
                (pass.at, pass.whole) = (None, true);
                pass.hurried = self.scrubbing().begin();
            }
            let began = Instant::now();
            self.recheck(&store, &mut rechecked).await;
            match store.list(pass.at, 1).first() {
                Some(row) => {
                    pass.at = Some(row.oid);
                    self.look(&store, row, objects).await;
                }
                None => self.end(&store, &mut pass).await,
            }
            took = began.elapsed();
            if Instant::now() >= save_at {
                let kept = self.scrubbing().save(pass);
                save_at = Instant::now() + SAVE * (1 + kept.len() as u32 / SAVE_BYTES);
                if let Err(e) = store.put_blob(NAME, kept.into()).await {
                    tracing::debug!(error = %e, "the report of scrubbing");
                }
            }
        }
    }

    /// The last file has been looked at.
    async fn end(&self, store: &Rc<Store>, pass: &mut Pass) {
        for disk in store.disks() {
            match store.check_index(disk.id).await {
                Ok(true) => {
                    let text = "the index was damaged".to_owned();
                    let number = self.scrubbing().found(None, VdiId(0), &disk.path, text);
                    self.scrubbing().mended(number, VdiId(0), &disk.path);
                }
                Ok(false) => {}
                Err(e) => tracing::debug!(disk = %disk.path, error = %e, "index"),
            }
            let gone = |oid: ObjectId| {
                self.replica
                    .control
                    .read(|s| oid.layer().0 <= s.last_id && !s.layers.contains_key(&oid.layer()))
            };
            for (oid, file) in store.remove_strays(disk.id, gone).await.unwrap_or_default() {
                let text = format!("{} is a file that no object has: it was moved away", file.display());
                let number = self.scrubbing().found(Some(oid), VdiId(0), &disk.path, text);
                self.scrubbing().mended(number, VdiId(0), &disk.path);
            }
        }
        self.scrubbing().end(pass.whole);
        self.scrubbing().keep(|vdi| self.replica.control.read(|s| s.vdis.contains_key(&vdi)));
        (pass.at, pass.whole) = (None, true);
        pass.hurried = self.scrubbing().begin();
    }

    /// One file.
    async fn look(&self, store: &Rc<Store>, row: &ObjectSummary, total: u64) {
        let Some((_, disk)) = store.row(row.oid) else { return };
        let bytes = u64::from(row.data_blocks) << BLOCK_SHIFT;
        self.replica.sync.throttle(bytes).await;
        let vdi = self.vdi_of(row);
        let wrong = match store.verify(row.oid).await {
            Ok(found) => {
                if !found.damaged.is_empty() {
                    self.replica.sync.corrupt(row.oid, row.key.family);
                }
                let blocks: usize = found.damaged.iter().map(|r| r.len()).sum();
                match (blocks, found.header) {
                    (0, false) => None,
                    (0, true) => Some("its header was damaged".to_owned()),
                    (n, false) => Some(format!("{n} damaged blocks")),
                    (n, true) => Some(format!("its header was damaged, and {n} blocks")),
                }
            }
            Err(StoreError::CorruptHeader { .. }) => {
                self.replica.sync.corrupt(row.oid, row.key.family);
                Some("its file is gone, or its header cannot be read".to_owned())
            }
            // The disk's own business.
            Err(e) => return tracing::debug!(oid = %row.oid, error = %e, "scrub"),
        };
        self.scrubbing().looked(vdi, &disk, bytes, total);
        if let Some(text) = wrong {
            self.scrubbing().damaged(row.oid, vdi, &disk, text);
        } else if row.oid.is_data() && !row.filling {
            for Wrong { text, mended } in self.compare(row).await {
                tracing::warn!(oid = %row.oid, %disk, %text, mended, "scrubbing found a difference");
                let number = self.scrubbing().found(Some(row.oid), vdi, &disk, text.clone());
                if mended {
                    self.scrubbing().mended(number, vdi, &disk);
                }
                let (level, what) = match mended {
                    true => (EventLevel::Warning, "it was made equal"),
                    false => (EventLevel::Error, "it could not be made equal"),
                };
                let text = format!("object {}: {text}; {what}", row.oid);
                let _ = self.replica.control.propose(Command::Note { level, text }).await;
            }
        }
    }

    /// The VDI that has the object now: a layer may have gone from one to another.
    fn vdi_of(&self, row: &ObjectSummary) -> VdiId {
        self.replica.control.read(|s| s.layers.get(&row.oid.layer()).map_or(row.vdi, |l| l.vdi))
    }

    /// What was found damaged may be whole by now.
    async fn recheck(&self, store: &Rc<Store>, last: &mut Option<Instant>) {
        if last.is_some_and(|at| at.elapsed() < RECHECK) {
            return;
        }
        *last = Some(Instant::now());
        for oid in self.scrubbing().open() {
            let sound = match store.verify(oid).await {
                Ok(found) => found.is_sound() && !store.row(oid).is_some_and(|(row, _)| row.filling),
                Err(_) => false,
            };
            if sound {
                self.scrubbing().healed(oid);
            }
        }
        self.scrubbing().give_up(GIVE_UP);
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
