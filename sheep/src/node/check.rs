//! Work over whole volumes: check, map, flatten.

use super::DataNode;
use crate::front::admin::backend::{CheckFinding, CheckStep, DataError, DataResult, Image, MapRow, Step};
use crate::peer::strips::Sealed;
use crate::session::volume::open_image;
use sheepdog_cluster::Command;
use sheepdog_proto::peer::{CopyDigest, Request, Response, Seal, Status};
use sheepdog_proto::{BLOCK_SHIFT, BlockMap, LayerId, NodeId, ObjectId, PlacementKey, VdiId};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Attempts to compare an object that is written meanwhile.
const ATTEMPTS: usize = 20;

/// Shape of an image: its layers (newest first), family, object size.
struct Shape {
    layers: Vec<LayerId>,
    family: LayerId,
    object_size: u32,
    width: usize,
}

fn shape(n: &DataNode, image: Image) -> DataResult<Shape> {
    n.control
        .read(|s| {
            let top = match image.layer {
                Some(l) => l,
                None => s.vdis.get(&image.vdi)?.top?,
            };
            let family = s.layers.get(&top)?.family;
            let f = s.families.get(&family)?;
            Some(Shape {
                layers: s.chain(top)?,
                family,
                object_size: f.object_size,
                width: s.redundancy(family)?.width(),
            })
        })
        .ok_or_else(|| DataError::NotFound("the image was deleted".into()))
}

async fn ask(n: &DataNode, node: NodeId, request: Request) -> DataResult<Response> {
    let answer = n.replica.ask(node, &request).await;
    answer.map_err(|e| DataError::Failed(format!("node {}: {e}", node.short())))
}

fn up_holders(n: &DataNode) -> Vec<NodeId> {
    let map = n.control.map();
    map.nodes.iter().filter(|(_, v)| v.is_up()).map(|(id, _)| *id).collect()
}

/// Presence of every object of a layer, from all nodes (the fullest copy of each).
async fn presence(n: &DataNode, layer: LayerId) -> DataResult<BTreeMap<u32, (BlockMap, BlockMap)>> {
    let mut all: BTreeMap<u32, (BlockMap, BlockMap)> = BTreeMap::new();
    for node in up_holders(n) {
        let mut after = None;
        loop {
            match ask(n, node, Request::Presence { layer, after }).await? {
                Response::Presence(rows, more) => {
                    after = rows.last().map(|(i, ..)| *i);
                    for (i, present, zero) in rows {
                        match all.get(&i) {
                            Some((p, _)) if p.count() >= present.count() => {}
                            _ => {
                                all.insert(i, (present, zero));
                            }
                        }
                    }
                    if !more || after.is_none() {
                        break;
                    }
                }
                other => return Err(DataError::Failed(format!("unexpected answer {other:?}"))),
            }
        }
    }
    Ok(all)
}

/// Compare all copies of all objects.
pub async fn check(
    n: Rc<DataNode>,
    image: Image,
    repair: bool,
    steps: mpsc::Sender<CheckStep>,
) -> DataResult<()> {
    let shape = shape(&n, image)?;
    let mut objects: BTreeSet<ObjectId> = BTreeSet::new();
    for layer in &shape.layers {
        objects.extend(presence(&n, *layer).await?.into_keys().map(|i| ObjectId::data(*layer, i)));
    }
    let total = objects.len() as u64;
    for (done, oid) in objects.into_iter().enumerate() {
        let step = |finding| CheckStep { done: done as u64 + 1, total, finding };
        let mut findings = check_object(&n, oid, shape.family, shape.width, repair).await?;
        findings.extend(check_strips(&n, oid, &shape, repair).await?);
        if findings.is_empty() && steps.send(step(None)).await.is_err() {
            return Ok(());
        }
        for f in findings {
            if steps.send(step(Some(f))).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn digests(
    n: &DataNode,
    oid: ObjectId,
    family: LayerId,
    deep: bool,
) -> DataResult<Vec<(NodeId, Option<CopyDigest>)>> {
    let map = n.control.map();
    let key = PlacementKey { family, index: oid.index() };
    let Some(redundancy) = n.replica.redundancy(family) else {
        return Err(DataError::NotFound("the image was deleted".into()));
    };
    let mut out = Vec::new();
    for node in map.acting(key, redundancy).targets {
        if !map.nodes.get(&node).is_some_and(|v| v.is_up()) {
            out.push((node, None));
            continue;
        }
        let request =
            Request::Digests { objects: vec![(oid, family)], deep, control_index: n.control.applied().index };
        match ask(n, node, request).await {
            Ok(Response::Digests(mut d)) if d.len() == 1 => out.push((node, Some(d.remove(0)))),
            _ => out.push((node, None)),
        }
    }
    Ok(out)
}

async fn check_object(
    n: &Rc<DataNode>,
    oid: ObjectId,
    family: LayerId,
    width: usize,
    repair: bool,
) -> DataResult<Vec<CheckFinding>> {
    let mut last = Vec::new();
    for attempt in 0..ATTEMPTS {
        let copies = digests(n, oid, family, attempt == 0 || !last.is_empty()).await?;
        last = judge(oid, &copies, width);
        let differ = last.iter().any(|f| f.text.contains("differs"));
        if !differ || attempt + 1 == ATTEMPTS {
            break;
        }
        // Perhaps it was written between the answers.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Its layer was deleted or merged meanwhile, and each node removes its copy when it gets to that.
    if n.control.read(|s| !s.layers.contains_key(&oid.layer())) {
        return Ok(Vec::new());
    }
    if !repair || last.is_empty() {
        return Ok(last);
    }
    for f in &mut last {
        f.repaired = mend(n, oid, family, f.node).await;
    }
    Ok(last)
}

/// What is wrong with the strips of an object, where it has some.
async fn check_strips(
    n: &Rc<DataNode>,
    oid: ObjectId,
    shape: &Shape,
    repair: bool,
) -> DataResult<Vec<CheckFinding>> {
    let mut findings = Vec::new();
    for attempt in 0..ATTEMPTS {
        findings.clear();
        let map = n.control.map();
        let key = PlacementKey { family: shape.family, index: oid.index() };
        let Some(redundancy) = n.replica.redundancy(shape.family) else { break };
        let up = |id: &NodeId| map.nodes.get(id).is_some_and(|v| v.is_up());
        let holders: Vec<NodeId> = map.acting(key, redundancy).targets.into_iter().filter(up).collect();
        let objects = [(oid, shape.family, 0)];
        let all = n.replica.seals(&holders, &objects, map.epoch).await.map_err(DataError::Failed)?;
        let clean = all.into_iter().flatten().filter(|needs| needs.stat.status == Status::Ok);
        let mut seals: Vec<Seal> = Vec::new();
        for seal in clean.filter_map(|needs| needs.seal) {
            if !seals.contains(&seal) {
                seals.push(seal);
            }
        }
        for seal in seals {
            let of = Sealed { oid, family: shape.family, object_size: shape.object_size, seal };
            for bad in n.replica.check_strips(of).await.map_err(DataError::Failed)? {
                let vdi = n.control.read(|s| s.layers.get(&oid.layer()).map(|l| l.vdi)).unwrap_or_default();
                let mended = repair && n.replica.mend_strip(of, &bad, vdi).await.is_ok();
                findings.push(CheckFinding {
                    oid,
                    node: bad.node,
                    text: format!("strip {} of {} {}", bad.role + 1, seal.strips(), bad.text),
                    repaired: mended,
                });
            }
        }
        if n.control.read(|s| !s.layers.contains_key(&oid.layer())) {
            findings.clear();
        }
        if findings.iter().all(|f| f.repaired) || attempt + 1 == ATTEMPTS {
            break;
        }
        // Perhaps it was put away anew between the answers, or is being made again.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(findings)
}

fn judge(oid: ObjectId, copies: &[(NodeId, Option<CopyDigest>)], width: usize) -> Vec<CheckFinding> {
    let mut out = Vec::new();
    let finding = |node, text: String| CheckFinding { oid, node, text, repaired: false };
    let good = copies
        .iter()
        .filter_map(|(_, d)| d.as_ref())
        .filter(|d| d.status == Status::Ok)
        .max_by_key(|d| d.version);
    for (node, copy) in copies {
        match (copy, good) {
            (None, _) => out.push(finding(*node, "the copy cannot be reached".into())),
            (Some(d), _) if d.status == Status::Corrupt => {
                let blocks: usize = d.corrupt.iter().map(|r| r.len()).sum();
                out.push(finding(*node, format!("{blocks} damaged blocks")));
            }
            (Some(d), _) if d.status != Status::Ok => {
                out.push(finding(*node, "the copy is being filled".into()));
            }
            (Some(d), Some(g)) if d.digest != g.digest || d.version != g.version => {
                out.push(finding(
                    *node,
                    format!("the copy differs: it is at {}, the latest is {}", d.version, g.version),
                ));
            }
            _ => {}
        }
    }
    if copies.len() < width {
        let text = format!("only {} of {width} copies have a place: add sheep", copies.len());
        out.push(finding(NodeId::default(), text));
    }
    out
}

/// Have one copy adopt a clean one, through the session's owner where there is one.
async fn mend(n: &Rc<DataNode>, oid: ObjectId, family: LayerId, node: NodeId) -> bool {
    let Ok(copies) = digests(n, oid, family, true).await else { return false };
    let source = copies
        .iter()
        .filter_map(|(id, d)| d.as_ref().map(|d| (*id, d)))
        .filter(|(id, d)| *id != node && d.status == Status::Ok)
        .max_by_key(|(_, d)| d.version);
    let Some((source, _)) = source else { return false };
    let blocks = copies
        .iter()
        .find(|(id, _)| *id == node)
        .and_then(|(_, d)| d.as_ref())
        .map(|d| d.corrupt.clone())
        .filter(|c| !c.is_empty());
    n.replica.have_adopted(node, oid, family, source, blocks).await
}

/// Objects that exist in an image.
pub async fn map(n: Rc<DataNode>, image: Image, rows: mpsc::Sender<MapRow>) -> DataResult<()> {
    let shape = shape(&n, image)?;
    let mut found: BTreeMap<u32, MapRow> = BTreeMap::new();
    for layer in &shape.layers {
        for (index, (present, zero)) in presence(&n, *layer).await? {
            let bytes = ((present.count() - zero.count()) as u64) << BLOCK_SHIFT;
            let row = found.entry(index).or_insert(MapRow { index, layer: *layer, bytes: 0 });
            row.bytes += bytes;
        }
    }
    for row in found.into_values() {
        if rows.send(row).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Copy in what a clone still reads from its base.
pub async fn flatten(n: Rc<DataNode>, vdi: VdiId, steps: mpsc::Sender<Step>) -> DataResult<()> {
    let volume = open_image(&n.gateway, vdi, None).await?;
    let result = flatten_open(&n, vdi, &steps).await;
    volume.close().await;
    result
}

async fn flatten_open(n: &Rc<DataNode>, vdi: VdiId, steps: &mpsc::Sender<Step>) -> DataResult<()> {
    let shape = shape(n, Image { vdi, layer: None })?;
    let size = n.control.read(|s| s.vdis.get(&vdi).map_or(0, |v| v.size));
    let total = size.div_ceil(shape.object_size as u64);
    for index in 0..total {
        let session = n.gateway.session(vdi).ok_or(DataError::NotOwner(None))?;
        session.fill_from_base(index as u32).await.map_err(|e| DataError::Failed(e.to_string()))?;
        let _ = steps.try_send(Step { done: index + 1, total });
    }
    let session = n.gateway.session(vdi).ok_or(DataError::NotOwner(None))?;
    let command = Command::FlattenDone { vdi, generation: session.generation };
    match n.control.propose(command).await {
        Ok(sheepdog_cluster::Reply::Done) => Ok(()),
        Ok(other) => Err(DataError::Failed(format!("{other:?}"))),
        Err(e) => Err(DataError::Failed(e.to_string())),
    }
}
