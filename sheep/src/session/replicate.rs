//! One step to every copy.
//!
//! A step is done when every acting node that is up has acknowledged it or was rightly left out (it is not synced in the committed map and said
//! "not here"), and at least `min_copies` have it. Until then it waits: for an answer, for a new map, for its turn.

use super::owner::{Session, SessionError, Step};
use crate::peer::LinkError;
use crate::volume::LocalFut;
use futures::stream::{FuturesUnordered, StreamExt};
use sheepdog_cluster::{Acting, NodeMap};
use sheepdog_proto::peer::{Kind, ObjectStat, Status, WriteAction, WriteReply, WriteRequest};
use sheepdog_proto::{Epoch, NodeId};
use std::time::Duration;

/// Pause before a refusal that only time can change is tried again.
const RETRY: Duration = Duration::from_millis(20);
/// The same for a full disk.
const RETRY_FULL: Duration = Duration::from_millis(500);

/// Where one copy stands with a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Copy {
    /// Sent, no answer yet.
    Sent,
    /// Has it, as a change of this epoch, and said so when this many copies had joined.
    Acked(Epoch, u64),
    /// Said "not here", when this many copies had joined.
    LeftOut(u64),
    /// To be sent again, in order.
    Again,
    /// Lacks an earlier step although it should not: have it repaired.
    Gap,
}

type Sending<'a> = LocalFut<'a, (NodeId, Result<WriteReply, LinkError>)>;

struct Round<'a> {
    copies: Vec<(NodeId, Copy)>,
    sending: FuturesUnordered<Sending<'a>>,
    first: bool,
    pause: Option<Duration>,
}

impl Round<'_> {
    fn get(&self, node: NodeId) -> Option<Copy> {
        self.copies.iter().find(|(n, _)| *n == node).map(|(_, c)| *c)
    }
    fn set(&mut self, node: NodeId, copy: Copy) {
        match self.copies.iter_mut().find(|(n, _)| *n == node) {
            Some((_, c)) => *c = copy,
            None => self.copies.push((node, copy)),
        }
    }
}

impl Session {
    fn min_copies(&self, map: &NodeMap) -> usize {
        // While copies are added those of before count, or writes would wait until the object is copied.
        let width = map.least_width(self.family, self.redundancy);
        let asked = self.control.read(|s| s.format.as_ref().and_then(|f| f.min_copies));
        asked.map_or(width.saturating_sub(1), usize::from).clamp(1, width)
    }

    fn request(&self, step: &Step, map: &NodeMap, acting: &Acting) -> WriteRequest {
        // Degraded: some holder is away or not complete. The floor is what even the least complete one has.
        let floor = acting.all().filter_map(|n| map.nodes.get(&n)).map(|v| v.synced).min();
        let degraded =
            acting.all().any(|n| map.nodes.get(&n).is_none_or(|v| !v.is_up() || v.synced < map.epoch));
        WriteRequest {
            oid: step.oid,
            family: self.family,
            vdi: self.vdi,
            object_size: self.object_size,
            action: step.action,
            degraded: degraded.then(|| floor.unwrap_or(Epoch(0))),
            version: step.version,
            prev: step.prev,
            epoch: map.epoch,
            watermark: self.committed(),
            control_index: self.control.applied().index,
            blocks: step.blocks.clone(),
        }
    }

    fn send<'a>(&'a self, step: &Step, node: NodeId, req: &WriteRequest) -> Sending<'a> {
        if node == self.control.me() {
            let write = self.replica.write(req, step.payload.clone());
            return Box::pin(async move { (node, Ok(write.await)) });
        }
        let payload = if step.action == WriteAction::Data { vec![step.payload.clone()] } else { Vec::new() };
        let call = self.replica.links.to(node).call(Kind::Write, &req.encode(), payload);
        Box::pin(async move {
            let reply = call.await.and_then(|r| WriteReply::decode(&r.meta).map_err(|_| LinkError::Protocol));
            (node, reply)
        })
    }

    pub(crate) async fn replicate(&self, step: &Step) -> Result<(), SessionError> {
        let mut watch = self.control.watch();
        let mut round = Round {
            copies: Vec::with_capacity(4),
            sending: FuturesUnordered::new(),
            first: true,
            pause: None,
        };
        loop {
            watch.borrow_and_update();
            let map = self.control.map();
            let min = self.min_copies(&map);
            let acting = self.acting(&step.object, &map, step.key);
            let oldest = step.object.locks.borrow().is_oldest(step.ticket);
            let changed = step.object.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let mut request = None;
            // While a copy joins nothing is finished: what it has said about this step may not hold afterwards.
            let (mut resolved, mut acked, mut waits_for_turn) =
                (!step.object.locks.borrow().is_gated(), 0, false);
            for node in acting.all() {
                let Some(view) = map.nodes.get(&node).filter(|v| v.is_up()) else { continue };
                let send = match round.get(node) {
                    Some(Copy::Acked(epoch, joins))
                        if view.up_since <= epoch && joins == step.object.joins.get() =>
                    {
                        acked += 1;
                        false
                    }
                    // It was away since then, or a copy was made equal to another: to one without this step, perhaps.
                    Some(Copy::Acked(..)) => true,
                    Some(Copy::Sent) => {
                        resolved = false;
                        false
                    }
                    // Only a node that the committed map knows to be incomplete may be left out.
                    Some(Copy::LeftOut(joins)) => {
                        joins != step.object.joins.get() || view.synced >= map.epoch
                    }
                    Some(Copy::Gap) if oldest => {
                        self.repair(step, node, &mut round).await;
                        resolved = false;
                        false
                    }
                    Some(Copy::Again | Copy::Gap) | None => true,
                };
                if !send {
                    continue;
                }
                resolved = false;
                if !round.first && !oldest {
                    waits_for_turn = true;
                    continue;
                }
                if round.pause.is_some() && !round.first {
                    continue;
                }
                let req = request.get_or_insert_with(|| self.request(step, &map, &acting));
                round.sending.push(self.send(step, node, req));
                round.set(node, Copy::Sent);
            }
            round.first = false;
            if resolved && acked >= min && self.stamp_again(step, &mut round, &map, &acting) {
                continue;
            }
            if resolved && acked >= min {
                return if self.control.lease_valid() { Ok(()) } else { self.lease_again().await };
            }
            let pause = round.pause;
            tokio::select! {
                biased;
                Some((node, reply)) = round.sending.next() => self.note(step, &mut round, node, reply)?,
                _ = watch.changed() => {}
                () = &mut changed, if waits_for_turn || !resolved || acked < min => {}
                () = tokio::time::sleep(pause.unwrap_or(RETRY_FULL)), if pause.is_some() || waits_for_turn => {
                    round.pause = None;
                }
            }
        }
    }

    /// A copy that has the step as a change of an epoch before the one until which a holder that lacks it has everything of its own has to note a later
    /// one: the holder will ask only for what changed since, and be believed before who has only earlier changes. The same holds for one that is out. `true`: some are asked again.
    fn stamp_again(&self, step: &Step, round: &mut Round<'_>, map: &NodeMap, acting: &Acting) -> bool {
        let lacks = |n: &NodeId| !matches!(round.get(*n), Some(Copy::Acked(..)));
        let since = acting.all().filter(lacks).filter_map(|n| map.nodes.get(&n)).map(|v| v.kept).max();
        let acked = |(_, copy): &(NodeId, Copy)| match copy {
            Copy::Acked(epoch, _) => Some(*epoch),
            _ => None,
        };
        let earliest = round.copies.iter().filter_map(acked).min().unwrap_or(map.epoch);
        let since = since.max(map.out_until(step.key, self.redundancy, earliest));
        let Some(since) = since else { return false };
        let mut again = false;
        for (_, copy) in &mut round.copies {
            if matches!(copy, Copy::Acked(epoch, _) if *epoch < since) {
                *copy = Copy::Again;
                again = true;
            }
        }
        again
    }

    /// The step is durable; the answer to the client waits until this node may speak again.
    async fn lease_again(&self) -> Result<(), SessionError> {
        while !self.control.lease_valid() {
            tokio::time::sleep(RETRY).await;
            self.refresh();
        }
        Ok(())
    }

    fn note(
        &self,
        step: &Step,
        round: &mut Round<'_>,
        node: NodeId,
        reply: Result<WriteReply, LinkError>,
    ) -> Result<(), SessionError> {
        let copy = match reply {
            // The map says it is down: the next look at the map leaves it out; if it came back, it gets the step again.
            Err(LinkError::Down) => Copy::Again,
            Err(LinkError::ShuttingDown) => return Err(SessionError::NotOwner),
            Err(LinkError::Protocol) => {
                round.pause = Some(RETRY);
                Copy::Again
            }
            Ok(reply) => match reply.status {
                Status::Ok => Copy::Acked(reply.epoch, step.object.joins.get()),
                Status::NotHere => Copy::LeftOut(step.object.joins.get()),
                Status::Behind => Copy::Gap,
                Status::StaleEpoch => {
                    if reply.epoch > self.control.map().epoch {
                        round.pause = Some(RETRY);
                    }
                    Copy::Again
                }
                Status::Fenced => {
                    self.refresh();
                    if self.is_dead() {
                        return Err(SessionError::NotOwner);
                    }
                    round.pause = Some(RETRY);
                    Copy::Again
                }
                Status::Full => {
                    round.pause = Some(RETRY_FULL);
                    Copy::Again
                }
                Status::NoLease | Status::DiskFailed | Status::ShuttingDown | Status::Corrupt => {
                    round.pause = Some(RETRY);
                    Copy::Again
                }
                Status::Invalid => {
                    tracing::error!(oid = %step.oid, node = %node.short(), "a replica calls a write invalid");
                    round.pause = Some(RETRY_FULL);
                    Copy::Again
                }
            },
        };
        round.set(node, copy);
        Ok(())
    }

    /// A complete node lacks an earlier step of this object. That happens when a step had to be sent again and the order was lost (then sending
    /// again in turn is enough), or when its copy really is behind, or half filled, whatever its version (then it adopts one that has this step).
    async fn repair(&self, step: &Step, node: NodeId, round: &mut Round<'_>) {
        let acting: Vec<NodeId> = round.copies.iter().map(|(n, _)| *n).collect();
        let has_it = acting.iter().any(|n| matches!(round.get(*n), Some(Copy::Acked(..))));
        let stat = crate::work::sync::stat(&self.replica, node, step.oid, self.family).await;
        let in_order = |s: &ObjectStat| s.version == step.prev || s.version >= step.version;
        if stat.is_ok_and(|s| s.status != Status::Behind && in_order(&s)) || !has_it {
            round.set(node, Copy::Again);
            round.pause = Some(RETRY);
            return;
        }
        let gate = step.object.locks.borrow_mut().close_gate();
        let result = self.adopt_at(step.oid, node, None).await;
        if gate {
            step.object.locks.borrow_mut().open_gate();
        }
        step.object.joins.set(step.object.joins.get() + 1);
        step.object.changed.notify_waiters();
        if let Err(why) = result {
            tracing::warn!(oid = %step.oid, node = %node.short(), %why, "a copy is behind and cannot be repaired yet");
            round.pause = Some(RETRY_FULL);
        } else {
            round.pause = Some(RETRY);
        }
        round.set(node, Copy::Again);
    }
}
