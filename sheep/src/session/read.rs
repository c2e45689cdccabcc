//! Reading blocks: from the nearest copy that can vouch for them, through the layers, and through the base of a clone.

use super::owner::{Session, SessionError};
use crate::buf::AlignedBuf;
use crate::peer::Replica;
use crate::volume::{LocalFut, VolumeError};
use bytes::Bytes;
use sheepdog_proto::peer::{BlockState, Kind, ReadReply, ReadRequest, Request, Response, Status};
use sheepdog_proto::{BLOCK_SHIFT, LayerId, NodeId, ObjectId, PlacementKey, Version};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// Pause when no copy could answer and nothing tells when one can.
const RETRY: Duration = Duration::from_millis(50);

/// Runs of blocks with their state.
pub type BlockRuns = Vec<(Range<u32>, BlockState)>;

/// What to look under when the chain of a layer has nothing: the base of its oldest layer.
fn base_of(r: &Replica, top: LayerId) -> Option<(LayerId, LayerId)> {
    let root = *r.control.chain(top)?.last()?;
    r.control.read(|s| {
        let base = s.layers.get(&root)?.base?;
        Some((base, s.layers.get(&base)?.family))
    })
}

/// Holders to ask, best first: this node, then synced ones, then the rest.
fn order(
    r: &Replica,
    key: PlacementKey,
) -> Result<(std::sync::Arc<sheepdog_cluster::NodeMap>, Vec<NodeId>), VolumeError> {
    let redundancy =
        r.redundancy(key.family).ok_or_else(|| VolumeError::Gone("the volume was deleted".into()))?;
    let map = r.control.map();
    let me = r.control.me();
    let mut nodes: Vec<NodeId> =
        map.acting(key, redundancy).all().filter(|n| map.nodes.get(n).is_some_and(|v| v.is_up())).collect();
    nodes.sort_by_key(|n| (*n != me, map.nodes.get(n).is_none_or(|v| v.synced < map.epoch)));
    Ok((map, nodes))
}

/// Wait for the map to change or a moment to pass.
async fn pause(r: &Replica) {
    let mut watch = r.control.watch();
    let _ = tokio::time::timeout(RETRY, watch.changed()).await;
}

async fn read_at(r: &Rc<Replica>, node: NodeId, req: &ReadRequest) -> Option<(ReadReply, Bytes)> {
    if node == r.control.me() {
        return Some(r.read(req).await);
    }
    let reply = r.links.to(node).call(Kind::Read, &req.encode(), Vec::new()).await.ok()?;
    let head = ReadReply::decode(&reply.meta).ok()?;
    let right_size = reply.payload.len() == req.blocks.len() << BLOCK_SHIFT;
    (head.status != Status::Ok || right_size).then_some((head, reply.payload))
}

/// Blocks of one family's chain; absent ones are zeros and listed. Waits as long as no copy can answer.
async fn read_family(
    r: &Rc<Replica>,
    top: LayerId,
    key: PlacementKey,
    blocks: &Range<u32>,
) -> Result<(Bytes, Vec<Range<u32>>), VolumeError> {
    loop {
        let (map, nodes) = order(r, key)?;
        let req = ReadRequest {
            top,
            key,
            blocks: blocks.clone(),
            epoch: map.epoch,
            control_index: r.control.applied().index,
        };
        let mut corrupt = 0;
        for node in &nodes {
            if let Some((head, data)) = read_at(r, *node, &req).await {
                match head.status {
                    Status::Ok => return Ok((data, head.absent)),
                    Status::Corrupt => corrupt += 1,
                    Status::Invalid => {
                        return Err(VolumeError::Gone("the layer was deleted".into()));
                    }
                    _ => {}
                }
            }
        }
        let redundancy = r.redundancy(key.family).map_or(0, |x| map.redundancy(key.family, x).width());
        if corrupt > 0 && corrupt == nodes.len() && nodes.len() >= redundancy {
            return Err(VolumeError::Io(format!(
                "blocks {}..{} of object {} are damaged on every copy",
                blocks.start,
                blocks.end,
                ObjectId::data(top, key.index)
            )));
        }
        pause(r).await;
    }
}

/// Blocks of a layer, through its chain and its bases. Zeros where nothing was ever written.
pub fn read_through<'a>(
    r: &'a Rc<Replica>,
    top: LayerId,
    key: PlacementKey,
    blocks: Range<u32>,
) -> LocalFut<'a, Result<Bytes, VolumeError>> {
    Box::pin(async move {
        let (data, absent) = read_family(r, top, key, &blocks).await?;
        if absent.is_empty() {
            return Ok(data);
        }
        let Some((base, family)) = base_of(r, top) else { return Ok(data) };
        let mut buf = AlignedBuf::copy_of(&data);
        for run in absent {
            let under = read_through(r, base, PlacementKey { family, index: key.index }, run.clone()).await?;
            let at = ((run.start - blocks.start) as usize) << BLOCK_SHIFT;
            buf[at..at + under.len()].copy_from_slice(&under);
        }
        Ok(buf.freeze())
    })
}

async fn state_at(
    r: &Rc<Replica>,
    node: NodeId,
    top: LayerId,
    key: PlacementKey,
    blocks: &Range<u32>,
) -> Option<Response> {
    let request =
        Request::BlockState { top, key, blocks: blocks.clone(), control_index: r.control.applied().index };
    if node == r.control.me() {
        return Some(r.handle(request).await.0);
    }
    r.links.to(node).request(&request, Vec::new()).await.ok().map(|(response, _)| response)
}

/// What lies where in one family's chain.
async fn status_family(
    r: &Rc<Replica>,
    top: LayerId,
    key: PlacementKey,
    blocks: &Range<u32>,
) -> Result<BlockRuns, VolumeError> {
    loop {
        let (_, nodes) = order(r, key)?;
        for node in &nodes {
            match state_at(r, *node, top, key, blocks).await {
                Some(Response::Blocks(runs)) => return Ok(runs),
                Some(Response::Failed(Status::Invalid, why)) => return Err(VolumeError::Gone(why)),
                _ => {}
            }
        }
        pause(r).await;
    }
}

/// What lies where, through chain and bases.
pub fn status_through<'a>(
    r: &'a Rc<Replica>,
    top: LayerId,
    key: PlacementKey,
    blocks: Range<u32>,
) -> LocalFut<'a, Result<BlockRuns, VolumeError>> {
    Box::pin(async move {
        let runs = status_family(r, top, key, &blocks).await?;
        let Some((base, family)) = base_of(r, top) else { return Ok(runs) };
        let mut out = Vec::with_capacity(runs.len());
        for (run, state) in runs {
            if state == BlockState::Absent {
                out.extend(status_through(r, base, PlacementKey { family, index: key.index }, run).await?);
            } else {
                out.push((run, state));
            }
        }
        Ok(out)
    })
}

impl Session {
    /// Blocks of one object as a reader of `layer` sees them.
    pub(crate) async fn read_blocks(
        &self,
        layer: LayerId,
        index: u32,
        blocks: Range<u32>,
    ) -> Result<Bytes, SessionError> {
        let family = self.family_of(layer)?;
        Ok(read_through(&self.replica, layer, PlacementKey { family, index }, blocks).await?)
    }

    /// Runs of data that the clone's own layers do not have but its base does.
    pub(crate) async fn only_in_base(
        &self,
        index: u32,
        blocks: Range<u32>,
    ) -> Result<Vec<Range<u32>>, SessionError> {
        let (top, key) = (self.top.get(), self.key(index));
        let own = status_family(&self.replica, top, key, &blocks).await?;
        let mut out = Vec::new();
        let Some((base, family)) = base_of(&self.replica, top) else { return Ok(out) };
        for (run, state) in own {
            if state != BlockState::Absent {
                continue;
            }
            let under = status_through(&self.replica, base, PlacementKey { family, index }, run).await?;
            out.extend(under.into_iter().filter(|(_, s)| *s == BlockState::Data).map(|(r, _)| r));
        }
        Ok(out)
    }

    fn family_of(&self, layer: LayerId) -> Result<LayerId, SessionError> {
        if layer == self.top.get() {
            return Ok(self.family);
        }
        self.control
            .read(|s| s.layers.get(&layer).map(|l| l.family))
            .ok_or_else(|| VolumeError::Gone("the snapshot was deleted".into()).into())
    }

    /// Latest step of an object, from a copy that can vouch for it.
    pub(crate) async fn latest_version(&self, oid: ObjectId) -> Result<Version, SessionError> {
        loop {
            let (_, nodes) = order(&self.replica, self.key(oid.index()))?;
            for n in nodes {
                if let Ok(s) = crate::work::sync::stat(&self.replica, n, oid, self.family).await
                    && s.status == Status::Ok
                {
                    return Ok(s.version);
                }
            }
            pause(&self.replica).await;
        }
    }
}
