//! Taking over a session that did not end cleanly: fence, collect, bring the copies to one state.
//!
//! The generation is already committed. (1) Every up node is asked to fence: once it has applied that commit it refuses older generations, and answers with
//! its tail: the writes it has that were not yet known to be on every copy. A node that does not answer is waited for until it does or is declared down. (2) For every
//! object in any tail, the copies that can vouch for themselves are compared; the one with the longest log wins (an acknowledged write is on all of them) and the
//! others adopt it. (3) Older tails are dropped everywhere, and the session serves.

use super::owner::{Session, SessionError};
use futures::stream::{FuturesUnordered, StreamExt};
use sheepdog_proto::peer::{Request, Response, Status, Tail};
use sheepdog_proto::{Epoch, NodeId, ObjectId, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// Pause before something that failed is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// Objects reconciled at a time.
const CONCURRENCY: usize = 16;

impl Session {
    /// Bring the copies of this VDI to one state. Returns when that is so, however long it takes, or when the session dies.
    pub async fn take_over(self: &Rc<Self>) -> Result<(), SessionError> {
        self.alive(async {
            let tails = self.fence().await?;
            let mut objects: BTreeMap<ObjectId, Vec<Range<u32>>> = BTreeMap::new();
            for t in tails {
                objects.entry(t.oid).or_default().push(t.blocks);
            }
            tracing::info!(vdi = %self.vdi, generation = %self.generation, objects = objects.len(), "taking over an unclean session");
            let mut todo = objects.into_iter();
            let mut running = FuturesUnordered::new();
            loop {
                while running.len() < CONCURRENCY {
                    let Some((oid, blocks)) = todo.next() else { break };
                    running.push(self.reconcile(oid, blocks));
                }
                match running.next().await {
                    None => break,
                    Some(r) => r?,
                }
            }
            self.drop_old_tails().await;
            Ok(())
        })
        .await
    }

    async fn fence(&self) -> Result<Vec<Tail>, SessionError> {
        if crate::planted::is(crate::planted::Bug::SkippedFence) {
            return Ok(Vec::new());
        }
        let mut tails = Vec::new();
        let mut answered = BTreeSet::new();
        loop {
            let map = self.control.map();
            let waiting: Vec<NodeId> = map
                .nodes
                .iter()
                .filter(|(n, v)| v.is_up() && !answered.contains(*n))
                .map(|(n, _)| *n)
                .collect();
            if waiting.is_empty() {
                return Ok(tails);
            }
            let request = Request::Fence {
                vdi: self.vdi,
                generation: self.generation,
                control_index: self.control.applied().index,
            };
            let mut asked: FuturesUnordered<_> = waiting
                .into_iter()
                .map(|n| {
                    let request = request.clone();
                    async move { (n, self.replica.ask(n, &request).await) }
                })
                .collect();
            let mut failed = false;
            while let Some((node, answer)) = asked.next().await {
                match answer {
                    Ok(Response::Tail(tail)) => {
                        answered.insert(node);
                        tails.extend(tail);
                    }
                    Ok(Response::Failed(Status::Fenced, _)) => {
                        self.refresh();
                        failed = true;
                    }
                    _ => failed = true,
                }
            }
            if failed {
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Make every reachable copy of one object equal.
    async fn reconcile(&self, oid: ObjectId, blocks: Vec<Range<u32>>) -> Result<(), SessionError> {
        loop {
            match self.reconcile_once(oid, &blocks).await {
                Ok(()) => return Ok(()),
                Err(why) => {
                    tracing::debug!(%oid, %why, "reconcile");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn reconcile_once(&self, oid: ObjectId, blocks: &[Range<u32>]) -> Result<(), String> {
        if self.control.read(|s| !s.layers.contains_key(&oid.layer())) {
            return Ok(());
        }
        let map = self.control.map();
        let acting = map.acting(self.key(oid.index()), self.redundancy);
        let mut clean: Vec<(NodeId, Version)> = Vec::new();
        let (mut incomplete, mut half) = (Vec::new(), Vec::new());
        for n in acting.all().filter(|n| map.nodes.get(n).is_some_and(|v| v.is_up())) {
            let stat = crate::work::sync::stat(&self.replica, n, oid, self.family).await?;
            match stat.status {
                Status::Ok => clean.push((n, stat.version)),
                // Complete, but for this object: a fill of it was cut off. Nothing else makes it whole before anybody writes.
                Status::Behind if map.nodes.get(&n).is_some_and(|v| v.synced >= map.epoch) => half.push(n),
                Status::NotHere | Status::Behind => incomplete.push(n),
                other => return Err(format!("node {} answers {other:?}", n.short())),
            }
        }
        let Some((winner, version)) = clean.iter().max_by_key(|(_, v)| *v).copied() else {
            return Err("no clean copy is up".into());
        };
        tracing::trace!(%oid, winner = %winner.short(), %version, ?incomplete, epoch = %map.epoch, generation = %self.generation, "reconcile");
        let up_to_date = clean.clone();
        let older = clean.into_iter().filter(|(_, v)| *v != version).map(|(n, _)| n);
        for node in older.chain(half) {
            self.adopt_from(oid, node, winner, Some(blocks.to_vec()), map.epoch).await?;
        }
        // Holders that are away or incomplete will ask for what changed since they were complete: this did. One that is out may be believed as of when it went.
        let present: Vec<NodeId> = up_to_date.iter().map(|(n, _)| *n).collect();
        let out = map.out_until(self.key(oid.index()), self.redundancy, Epoch(0)).is_some();
        if out || acting.all().any(|n| !present.contains(&n)) {
            let floor = acting.all().filter_map(|n| map.nodes.get(&n)).map(|v| v.synced).min();
            let floor = floor.unwrap_or_default();
            for node in present {
                let stamp = Request::Stamp { oid, epoch: map.epoch, blocks: blocks.to_vec(), floor };
                let answer = self.replica.ask(node, &stamp).await.map_err(|e| e.to_string())?;
                match answer {
                    Response::Done => {}
                    Response::Failed(_, why) => return Err(why),
                    _ => return Err("unexpected answer".into()),
                }
            }
        }
        // They fill this object themselves, and may have done so from a copy that was another then.
        for node in incomplete {
            let control_index = self.control.applied().index;
            let missed = Request::Missed { oid, family: self.family, epoch: map.epoch, control_index };
            let told = self.replica.ask(node, &missed).await.map_err(|e| e.to_string())?;
            if told != Response::Done {
                return Err(format!("node {} answers {told:?}", node.short()));
            }
        }
        // A node may have come or gone meanwhile; then look again.
        if self.control.map().epoch == map.epoch { Ok(()) } else { Err("the map changed".into()) }
    }

    async fn drop_old_tails(&self) {
        if let Some(store) = &self.replica.store {
            self.replica.note_standing();
            store.set_watermark(self.vdi, self.generation, 0);
        }
        let map = self.control.map();
        for (n, _) in map.nodes.iter().filter(|(n, v)| **n != self.control.me() && v.is_up()) {
            let control_index = self.control.applied().index;
            let request =
                Request::Watermark { vdi: self.vdi, generation: self.generation, seq: 0, control_index };
            let _ = self.replica.links.to(*n).request(&request, Vec::new()).await;
        }
    }
}
