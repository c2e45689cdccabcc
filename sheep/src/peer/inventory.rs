//! Telling a returning or gaining node what it may lack.

use super::replica::Replica;
use sheepdog_proto::peer::{InventoryRow, Response, Status};
use sheepdog_proto::{ControlIndex, Epoch, NodeId, ObjectId, PlacementKey};
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

/// Objects looked at per answer.
const PAGE: usize = 4096;
/// How long to wait for the asker's epoch.
const EPOCH_WAIT: Duration = Duration::from_secs(10);

impl Replica {
    /// Rows of objects that `node` should have and that changed at `since` or later, or that it was not a target of at `since`, or of which this node has
    /// steps that it does not know to be everywhere: the others may have been complete without them.
    pub(crate) async fn inventory(
        self: &Rc<Self>,
        node: NodeId,
        since: Epoch,
        epoch: Epoch,
        after: Option<ObjectId>,
    ) -> Response {
        // Writes of older epochs are refused from here on, so what the listing misses, the asker will be sent.
        let mut watch = self.control.watch();
        let wait = watch.wait_for(|a| a.epoch >= epoch);
        if tokio::time::timeout(EPOCH_WAIT, wait).await.is_err() {
            return Response::Failed(Status::NoLease, "behind the control plane".into());
        }
        self.catch_up(ControlIndex(0)).await;
        let Some(store) = &self.store else {
            return Response::Inventory { rows: Vec::new(), next: None };
        };
        let map = self.control.map();
        store.refuse_waiting(|op| op.epoch < map.epoch);
        let synced = self.is_synced();
        let page = store.list(after, PAGE);
        let next = (page.len() == PAGE).then(|| page.last().map(|r| r.oid)).flatten();
        let families: Vec<_> = self.control.read(|s| {
            page.iter()
                .map(|r| {
                    s.layers.get(&r.oid.layer())?;
                    s.families.get(&r.key.family).map(|f| f.redundancy)
                })
                .collect()
        });
        let unsettled: HashSet<ObjectId> =
            store.tail_vdis().into_iter().flat_map(|vdi| store.tail(vdi)).map(|t| t.oid).collect();
        let mut rows = Vec::new();
        for (row, redundancy) in page.iter().zip(families) {
            // Objects of deleted layers are on their way out.
            let Some(redundancy) = redundancy.filter(|_| row.oid.is_data()) else { continue };
            let key = PlacementKey { family: row.key.family, index: row.oid.index() };
            if !map.acting(key, redundancy).all().any(|n| n == node) {
                continue;
            }
            // What was on a lost disk that is back its holders of meanwhile have never had.
            let had = since.0 > 0
                && map.was_target(node, since, key, redundancy)
                && !map.may_be_lost(key, redundancy, false);
            if row.epoch < since && had && !unsettled.contains(&row.oid) {
                continue;
            }
            // A copy that is left over from an earlier ring is given no steps any more.
            let missing = row.filling
                || !self.holds(&map, key)
                || self.lacks(row.oid)
                || !(synced
                    || self.sync.inventory_done(map.epoch)
                    || self.sync.was_up_since(&map, key, redundancy));
            rows.push(InventoryRow {
                oid: row.oid,
                family: row.key.family,
                vdi: row.vdi,
                version: row.version,
                epoch: row.epoch,
                missing,
                seal: row.seal.map_or(0, |s| s.digest),
            });
        }
        Response::Inventory { rows, next }
    }
}
