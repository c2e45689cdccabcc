//! Giving space back: objects of deleted layers, and copies this node no longer has to hold.
//!
//! A layer that the state does not know although its id was given out is deleted for good (ids are never used again), so its objects go. A copy of an object that the
//! current rings do not place here goes only after every target has *shown* that it has the object, complete, at this version or a later one.
//! Layers being merged into their child are merged object by object, each replica on its own.

use super::sync::stat;
use crate::peer::Replica;
use crate::store::ObjectSummary;
use sheepdog_cluster::{Command, Layer, LayerState, Reply};
use sheepdog_proto::peer::Status;
use sheepdog_proto::{LayerId, ObjectId, PlacementKey};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Objects looked at before others get a turn: well under a millisecond.
const PAGE: usize = 128;
/// Pause after a round that left something to do.
const RETRY: Duration = Duration::from_secs(1);

/// The worker.
pub struct Reclaim {
    /// Holder side.
    pub replica: Rc<Replica>,
    /// Stop.
    pub stop: CancellationToken,
}

impl Reclaim {
    /// Run until stopped: a round whenever layers have gone or are to be merged, or the rings changed. New layers (snapshots, clones, volumes) leave nothing to
    /// reclaim, so they cost no look at every object.
    pub async fn run(self) {
        let stop = self.stop.clone();
        tokio::select! { biased; () = stop.cancelled() => {} () = self.work() => {} }
    }

    async fn work(&self) {
        let mut watch = self.replica.control.watch();
        let (mut seen, mut looked, mut losses) = (None, None, (0, Vec::new()));
        loop {
            let applied = *watch.borrow_and_update();
            if looked != Some((applied.epoch, applied.layers_revision)) {
                looked = Some((applied.epoch, applied.layers_revision));
                losses = self.losses();
            }
            let now = (applied.epoch, losses.clone(), self.replica.control.map().rings.len());
            let mut again = false;
            if seen.as_ref() != Some(&now) && self.replica.control.lease_valid() {
                again = self.round().await;
                if !again {
                    seen = Some(now.clone());
                }
            }
            if again || seen.as_ref() != Some(&now) {
                tokio::time::sleep(RETRY).await;
            } else if watch.changed().await.is_err() {
                return;
            }
        }
    }

    /// How many layers have gone so far, and those that this node is to merge. Every layer has an id of its own, and ids are never used twice: what was given
    /// out and is not there has gone. (A few ids without a layer would do no harm: only changes count.)
    fn losses(&self) -> (u64, Vec<LayerId>) {
        let me = self.replica.control.me();
        let todo = |l: &Layer| matches!(&l.state, LayerState::Merging { done, .. } if !done.contains(&me));
        self.replica.control.read(|s| {
            let gone = u64::from(s.last_id).saturating_sub(s.layers.len() as u64);
            (gone, s.layers.values().filter(|l| todo(l)).map(|l| l.id).collect())
        })
    }

    /// One pass over all objects; `true`: something is left.
    async fn round(&self) -> bool {
        let Some(store) = self.replica.store.clone() else { return false };
        let control = &self.replica.control;
        let mut left = self.merge().await;
        let mut gone: BTreeSet<LayerId> = BTreeSet::new();
        let mut after = None;
        loop {
            let page = store.list(after, PAGE);
            for row in &page {
                let layer = row.oid.layer();
                if gone.contains(&layer) && row.oid.is_data() {
                    continue;
                }
                let known =
                    control.read(|s| (layer.0 <= s.last_id && !s.layers.contains_key(&layer), s.epoch));
                if known.0 {
                    // A copy that is being filled may have to merge it once more.
                    if self.replica.sync.fills(|o| store.row(ObjectId::data(layer, o.index())).is_some()) {
                        left = true;
                        continue;
                    }
                    if !row.oid.is_data() {
                        left |= store.remove(row.oid).await.is_err();
                        continue;
                    }
                    gone.insert(layer);
                    if let Err(e) = store.remove_layer(layer).await {
                        tracing::warn!(%layer, error = %e, "objects of a deleted layer");
                        left = true;
                    }
                    continue;
                }
                // Strips are looked at by `seal`.
                if row.oid.is_data() {
                    left |= self.surplus(row.oid, row.key).await;
                }
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.oid),
                _ => return left,
            }
            tokio::task::yield_now().await;
        }
    }

    /// Remove a copy that belongs elsewhere, with proof; `true`: look again.
    async fn surplus(&self, oid: ObjectId, key: PlacementKey) -> bool {
        let r = &self.replica;
        let me = r.control.me();
        let Some(redundancy) = r.redundancy(key.family) else { return false };
        let map = r.control.map();
        let acting = map.acting(key, redundancy);
        if acting.all().any(|n| n == me) {
            return false;
        }
        let mine = r.stat_one(oid, key.family).await;
        // What cannot be read may be later than what the targets have.
        if !matches!(mine.status, Status::Ok | Status::NotHere | Status::Behind) {
            return true;
        }
        for target in &acting.targets {
            if !map.nodes.get(target).is_some_and(|n| n.is_up() && n.synced >= map.epoch) {
                return true;
            }
            match stat(r, *target, oid, key.family).await {
                Ok(s) if s.status == Status::Ok && s.version >= mine.version => {}
                _ => return true,
            }
        }
        if acting.targets.is_empty() || r.control.map().epoch != map.epoch {
            return true;
        }
        let Some(store) = &r.store else { return false };
        // Looked at once more: a session's owner that has not heard yet may have it copied here again.
        let _ = store.remove(oid).await;
        true
    }

    /// Merge layers that are to be merged; `true`: some objects are left.
    async fn merge(&self) -> bool {
        let r = &self.replica;
        let Some(store) = r.store.clone() else { return false };
        let me = r.control.me();
        let epoch = r.control.map().epoch;
        let todo: Vec<(LayerId, LayerId)> = r.control.read(|s| {
            s.layers
                .values()
                .filter_map(|l| match &l.state {
                    LayerState::Merging { into, done } if !done.contains(&me) => Some((l.id, *into)),
                    _ => None,
                })
                .collect()
        });
        let mut left = false;
        'layers: for (from, into) in todo {
            // A node that lacks something could merge too early: first it catches up.
            if !r.is_synced() || r.sync.lacks_of(from) {
                left = true;
                continue;
            }
            let mut after = (from.0 > 0).then(|| ObjectId::data(LayerId(from.0 - 1), u32::MAX));
            loop {
                let page = store.list(after, PAGE);
                let of_it = |row: &ObjectSummary| row.oid.is_data() && row.oid.layer() == from;
                for row in page.iter().take_while(|row| of_it(row)) {
                    let target = ObjectId::data(into, row.oid.index());
                    if r.lacks(row.oid) || r.lacks(target) {
                        left = true;
                        continue 'layers;
                    }
                    if let Err(e) = r.merge_one(&store, row.oid, target).await {
                        tracing::warn!(from = %row.oid, into = %target, error = %e, "layer merge");
                        left = true;
                        continue 'layers;
                    }
                }
                match page.last() {
                    Some(last) if page.len() == PAGE && of_it(last) => after = Some(last.oid),
                    _ => break,
                }
            }
            let command = Command::LayerMerged { layer: from, node: me, epoch };
            left |= r.control.propose(command).await.ok() != Some(Reply::Done);
        }
        left
    }
}
