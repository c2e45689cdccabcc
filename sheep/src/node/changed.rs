//! What changed between two snapshots, or is there at all: from presence, without reading anything.
//!
//! Backups leave out what is not named here, so nothing may be missing:
//! * Only nodes that vouch are asked: complete for this epoch, and no object on them half filled. They are enough when fewer others are left than an object has copies. Otherwise,
//!   and when the epoch changes meanwhile (objects may have moved from one that was asked later to one that was asked before), it is tried again.
//! * Of several copies a block is there if one has it, and reads as zeros if all that have it say so: one too many costs a read.
//! * Older layers are asked before newer ones: a layer whose snapshot was deleted is merged into the next newer one, by each node when it gets to it.
//! * Under the layers of a clone lie those of its source.

use super::DataNode;
use crate::front::admin::backend::{DataError, DataResult, DiffRow, Image};
use sheepdog_cluster::{ClusterState, NodeState};
use sheepdog_proto::peer::{Request, Response};
use sheepdog_proto::{BLOCK_SHIFT, BlockMap, Epoch, LayerId, NodeId};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How long it is tried.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before it is tried again, unless the control plane tells something.
const RETRY: Duration = Duration::from_millis(250);

/// Presence and zeros of objects, by index.
type Objects = BTreeMap<u32, (BlockMap, BlockMap)>;

/// What is asked about.
struct Lineage {
    /// Newest first.
    layers: Vec<LayerId>,
    /// Copies of the family that has fewest.
    width: usize,
    object_size: u32,
}

/// Layers of `to` that are newer than `from`; all of them, those of its bases too, without.
fn lineage(s: &ClusterState, to: Image, from: Option<LayerId>) -> DataResult<Lineage> {
    let gone = || DataError::NotFound("the image was deleted".into());
    let top = match to.layer {
        Some(l) => Some(l),
        None => s.vdis.get(&to.vdi).and_then(|v| v.top),
    };
    let mut next = top;
    let (mut layers, mut width, mut object_size) = (Vec::new(), usize::MAX, 0);
    while let Some(top) = next {
        let family = s.layers.get(&top).ok_or_else(gone)?.family;
        let chain = s.chain(top).ok_or_else(gone)?;
        object_size = s.families.get(&family).ok_or_else(gone)?.object_size;
        width = width.min(s.redundancy(family).ok_or_else(gone)?.width());
        next = chain.last().and_then(|root| s.layers.get(root)?.base);
        if let Some(from) = from {
            let at = chain.iter().position(|l| *l == from);
            let at =
                at.ok_or_else(|| DataError::Invalid("the older snapshot is not below the newer one".into()))?;
            layers.extend_from_slice(&chain[..at]);
            break;
        }
        layers.extend(chain);
    }
    if object_size == 0 {
        return Err(gone());
    }
    Ok(Lineage { layers, width, object_size })
}

/// Who can be asked, and in which epoch; `None`: they are not enough.
fn vouching(s: &ClusterState, width: usize) -> Option<(Epoch, Vec<NodeId>)> {
    let holders = s.nodes.values().filter(|n| !n.gateway && n.state != NodeState::Out);
    let (good, bad): (Vec<_>, Vec<_>) = holders.partition(|n| n.is_up() && n.synced >= s.epoch);
    (bad.len() < width && !good.is_empty()).then(|| (s.epoch, good.iter().map(|n| n.id).collect()))
}

/// Ranges that layers of `to` newer than `from` have; without `from` everything that is there.
pub async fn diff(
    n: Rc<DataNode>,
    to: Image,
    from: Option<LayerId>,
    rows: mpsc::Sender<DiffRow>,
) -> DataResult<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut watch = n.control.watch();
    let (object_size, changed) = loop {
        watch.borrow_and_update();
        let asked = n.control.read(|s| {
            let lineage = lineage(s, to, from)?;
            Ok::<_, DataError>((vouching(s, lineage.width), lineage))
        })?;
        if let (Some((epoch, nodes)), lineage) = asked
            && let Some(changed) = gather(&n, &lineage, epoch, &nodes).await
            && n.control.read(|s| s.epoch) == epoch
        {
            break (lineage.object_size, changed);
        }
        if Instant::now() >= deadline {
            let text = "too few sheep have all of their data, so it is not known what changed: wait until dog node recovery shows none, and try again";
            return Err(DataError::Busy(text.into()));
        }
        let _ = tokio::time::timeout(RETRY, watch.changed()).await;
    };
    for (index, (all, zeros)) in changed {
        let base = u64::from(index) * u64::from(object_size);
        for run in all.set_runs() {
            for (part, zero) in zeros.runs(run) {
                let row = DiffRow {
                    offset: base + (u64::from(part.start) << BLOCK_SHIFT),
                    length: (part.len() as u64) << BLOCK_SHIFT,
                    zero,
                };
                if rows.send(row).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// All of it; `None`: somebody could not say.
async fn gather(n: &DataNode, lineage: &Lineage, epoch: Epoch, nodes: &[NodeId]) -> Option<Objects> {
    let mut by_layer = Vec::with_capacity(lineage.layers.len());
    for layer in lineage.layers.iter().rev() {
        let mut objects = Objects::new();
        for node in nodes {
            layer_of(n, *node, *layer, epoch, &mut objects).await?;
        }
        by_layer.push(objects);
    }
    let blocks = lineage.object_size >> BLOCK_SHIFT;
    let mut changed = Objects::new();
    for objects in by_layer.into_iter().rev() {
        for (index, (present, zero)) in objects {
            let empty = || (BlockMap::new(blocks), BlockMap::new(blocks));
            let (all, zeros) = changed.entry(index).or_insert_with(empty);
            // Newest first: what is known already stays.
            let mut fresh_zero = zero;
            fresh_zero.subtract(all);
            zeros.union(&fresh_zero);
            all.union(&present);
        }
    }
    Some(changed)
}

/// What one node has of a layer, added to what others have.
async fn layer_of(
    n: &DataNode,
    node: NodeId,
    layer: LayerId,
    epoch: Epoch,
    objects: &mut Objects,
) -> Option<()> {
    let mut after = None;
    loop {
        let control_index = n.control.applied().index;
        let ask = Request::Contents { layer, after, epoch, control_index };
        let Ok(Response::Presence(rows, more)) = n.replica.ask(node, &ask).await else { return None };
        after = rows.last().map(|(i, ..)| *i).or(after);
        let none = rows.is_empty();
        for (index, present, zero) in rows {
            let copy = Copy { present, zero };
            match objects.remove(&index) {
                None => objects.insert(index, (copy.present, copy.zero)),
                Some((present, zero)) => {
                    let both = copy.and(Copy { present, zero });
                    objects.insert(index, (both.present, both.zero))
                }
            };
        }
        if !more {
            return Some(());
        }
        if none {
            // Everything of this page went meanwhile.
            return None;
        }
    }
}

/// Presence of one copy.
struct Copy {
    present: BlockMap,
    zero: BlockMap,
}

impl Copy {
    /// Of two copies: what one of them has; zeros where nobody who has it has data.
    fn and(mut self, other: Self) -> Self {
        let data = |c: &Self| {
            let mut data = c.present.clone();
            data.subtract(&c.zero);
            data
        };
        let (mine, theirs) = (data(&self), data(&other));
        self.zero.union(&other.zero);
        self.zero.subtract(&mine);
        self.zero.subtract(&theirs);
        self.present.union(&other.present);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(set: &[u32]) -> BlockMap {
        let mut m = BlockMap::new(64);
        for b in set {
            m.set(*b..b + 1);
        }
        m
    }

    #[test]
    fn copies_that_differ_are_not_trusted_with_zeros() {
        let copy = |present: &[u32], zero: &[u32]| Copy { present: map(present), zero: map(zero) };
        for both in [
            copy(&[0, 1, 2, 3], &[0, 1]).and(copy(&[1, 2, 3, 4, 5], &[2, 3, 5])),
            copy(&[1, 2, 3, 4, 5], &[2, 3, 5]).and(copy(&[0, 1, 2, 3], &[0, 1])),
        ] {
            assert_eq!((both.present, both.zero), (map(&[0, 1, 2, 3, 4, 5]), map(&[0, 5])));
        }
    }
}
