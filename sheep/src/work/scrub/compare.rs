//! Comparing this node's copy of an object with the others', and an object's strips with each other.

use super::{Scrub, Wrong};
use crate::peer::Replica;
use crate::peer::strips::Sealed;
use crate::store::ObjectSummary;
use sheepdog_cluster::{LayerState, NodeMap};
use sheepdog_proto::peer::{CopyDigest, Request, Response, Status};
use sheepdog_proto::{NodeId, Version};
use std::rc::Rc;
use std::time::Duration;

/// Looks at copies that differ: a write may be on its way.
const LOOKS: u32 = 6;
/// So many looks one after the other must show the same.
const SAME: u32 = 3;
/// Between two.
const PAUSE: Duration = Duration::from_secs(1);

/// What two copies say, when they differ.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Differ {
    mine: (Version, Option<u64>),
    theirs: (Version, Option<u64>),
}

/// `None`: they are equal, or one of them cannot be compared now.
fn differ(mine: &CopyDigest, theirs: &CopyDigest) -> Option<Differ> {
    if mine.status != Status::Ok || theirs.status != Status::Ok {
        return None;
    }
    let of = |d: &CopyDigest| (d.version, d.digest);
    (of(mine) != of(theirs)).then(|| Differ { mine: of(mine), theirs: of(theirs) })
}

/// Everybody has everything, so that what differs is not on its way.
fn settled(map: &NodeMap, nodes: &[NodeId]) -> bool {
    map.rings.len() == 1
        && nodes.iter().all(|n| map.nodes.get(n).is_some_and(|v| v.is_up() && v.synced >= map.epoch))
}

impl Scrub {
    /// The first holder compares with all others; the others with the first, which may not have the object at all.
    pub(super) async fn compare(&self, row: &ObjectSummary) -> Vec<Wrong> {
        let r = &self.replica;
        let me = r.control.me();
        let map = r.control.map();
        let Some(redundancy) = r.redundancy(row.key.family) else { return Vec::new() };
        let targets = map.acting(row.key, redundancy).targets;
        if !targets.contains(&me) || !settled(&map, &targets) || self.is_merged(row) {
            return Vec::new();
        }
        let others = match targets.split_first() {
            Some((first, rest)) if *first == me => rest,
            Some((first, _)) => std::slice::from_ref(first),
            None => &[],
        };
        let mut wrong = Vec::new();
        for other in others {
            if let Some(d) = self.differs(row, *other, &map).await {
                wrong.push(self.settle(row, *other, d).await);
            }
        }
        if targets.first() == Some(&me) && wrong.is_empty() {
            wrong.extend(self.strips(row).await);
        }
        wrong
    }

    /// What is in a lower layer comes into this one, at each node when it gets to it: until then they differ at one version.
    fn is_merged(&self, row: &ObjectSummary) -> bool {
        self.replica.control.read(|s| {
            let merging = |l| {
                let layer = s.layers.get(&l)?;
                Some((matches!(layer.state, LayerState::Merging { .. }), layer.parent))
            };
            let Some((this, parent)) = merging(row.oid.layer()) else { return true };
            this || parent.and_then(merging).is_some_and(|(lower, _)| lower)
        })
    }

    async fn digest(&self, node: NodeId, row: &ObjectSummary) -> Option<CopyDigest> {
        let r = &self.replica;
        let objects = vec![(row.oid, row.key.family)];
        let request = Request::Digests { objects, deep: false, control_index: r.control.applied().index };
        match r.ask(node, &request).await {
            Ok(Response::Digests(mut d)) if d.len() == 1 => d.pop(),
            _ => None,
        }
    }

    /// The copies differ, and it is not that one of them is being written.
    async fn differs(&self, row: &ObjectSummary, other: NodeId, map: &NodeMap) -> Option<Differ> {
        let r = &self.replica;
        let (mut last, mut same) = (None, 0);
        for _ in 0..LOOKS {
            let (mine, theirs) = (self.digest(r.control.me(), row).await?, self.digest(other, row).await?);
            let now = differ(&mine, &theirs)?;
            same = if last.as_ref() == Some(&now) { same + 1 } else { 1 };
            if same == SAME {
                let steady = r.control.map().epoch == map.epoch && !self.is_merged(row);
                return steady.then_some(now);
            }
            last = Some(now);
            tokio::time::sleep(PAUSE).await;
        }
        None
    }

    /// Of two copies the one with more steps is right: a holder has a step only after those before it, and none that is acknowledged is missing on a complete node. Of two at the same
    /// step nobody can say.
    async fn settle(&self, row: &ObjectSummary, other: NodeId, d: Differ) -> Wrong {
        let me = self.replica.control.me();
        let (mine, theirs) = (d.mine.0, d.theirs.0);
        let name =
            |node: NodeId| if node == me { "here".to_owned() } else { format!("on node {}", node.short()) };
        let (from, to) = if mine >= theirs { (me, other) } else { (other, me) };
        let text = match mine.min(theirs) {
            _ if mine == theirs => format!(
                "the copies here and on node {} differ at one version, {mine}: dog vdi check shows all, --repair makes them equal",
                other.short()
            ),
            Version::NONE => format!("the copy {} is missing", name(to)),
            old => {
                format!("the copy {} is at {old}, the one {} at {}", name(to), name(from), mine.max(theirs))
            }
        };
        let mended =
            mine != theirs && self.replica.have_adopted(to, row.oid, row.key.family, from, None).await;
        Wrong { text, mended }
    }

    /// Strips that are missing, or do not fit the others.
    async fn strips(&self, row: &ObjectSummary) -> Vec<Wrong> {
        let r = &self.replica;
        let Some(seal) = row.seal else { return Vec::new() };
        let map = r.control.map();
        let of = Sealed { oid: row.oid, family: row.key.family, object_size: row.object_size, seal };
        let places = map.strip_targets(row.key, seal.strips());
        let places: Vec<NodeId> = places.into_iter().flatten().collect();
        if places.len() < usize::from(seal.strips()) || !settled(&map, &places) {
            return Vec::new();
        }
        r.sync
            .throttle(
                (u64::from(of.shape().rows()) * u64::from(seal.strips())) << sheepdog_proto::BLOCK_SHIFT,
            )
            .await;
        let Ok(bad) = r.check_strips(of).await else { return Vec::new() };
        // Put away anew meanwhile.
        let now =
            |r: &Rc<Replica>| r.store.as_ref().and_then(|s| s.row(row.oid)).and_then(|(row, _)| row.seal);
        let mut wrong = Vec::new();
        for strip in bad {
            if now(r) != Some(seal) || r.control.map().epoch != map.epoch {
                return Vec::new();
            }
            let mended = r.mend_strip(of, &strip, row.vdi).await.is_ok();
            let text = format!("strip {} of {} {}", strip.role + 1, seal.strips(), strip.text);
            // Its own node finds it, too, and tells.
            if !strip.is_told() {
                wrong.push(Wrong { text: format!("{text} (node {})", strip.node.short()), mended });
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_copies_that_vouch_are_compared() {
        let of = |status, seq, digest| CopyDigest {
            status,
            version: Version { generation: 1, seq },
            digest,
            corrupt: Vec::new(),
        };
        let mine = of(Status::Ok, 3, Some(7));
        assert_eq!(differ(&mine, &mine), None);
        assert_eq!(differ(&mine, &of(Status::NotHere, 2, None)), None);
        assert_eq!(differ(&of(Status::Behind, 3, Some(1)), &mine), None);
        assert!(differ(&mine, &of(Status::Ok, 3, Some(8))).is_some());
        assert!(differ(&mine, &of(Status::Ok, 0, None)).is_some());
    }
}
