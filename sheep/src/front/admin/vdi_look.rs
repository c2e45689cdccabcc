//! Questions about where a VDI's objects are and what happens to it.

use super::backend::Image;
use super::convert::io;
use super::service::{Admin, Answers, usage};
use futures::future::BoxFuture;
use sheepdog_client::pb::*;
use sheepdog_client::{Client, Error, ErrorKind};
use sheepdog_cluster::{NodeMap, Redundancy};
use sheepdog_proto::{LayerId, NodeId, ObjectId, PlacementKey, VdiId};
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::{Response, Status};

type Stream1<T> = Result<Response<Answers<T>>, Status>;

/// Placement of a VDI's objects.
struct Shape {
    family: LayerId,
    redundancy: Redundancy,
    objects: u64,
}

fn shape(admin: &Admin, vdi: &Option<VdiRef>) -> Result<Shape, Error> {
    admin.with_vdi(vdi, |s, v| {
        let f = s
            .families
            .get(&v.family)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "the VDI has no family"))?;
        let objects =
            v.size.max(v.snapshots.iter().map(|s| s.size).max().unwrap_or(0)).div_ceil(f.object_size.into());
        Ok(Shape { family: v.family, redundancy: f.redundancy, objects })
    })
}

impl Shape {
    fn key(&self, index: u32) -> Result<PlacementKey, Error> {
        if u64::from(index) >= self.objects {
            return Err(usage(format!("the VDI has objects 0 to {}", self.objects.saturating_sub(1))));
        }
        Ok(PlacementKey { family: self.family, index })
    }
}

/// The newest copy on this node, if any.
async fn copy_here(
    admin: &Admin,
    key: PlacementKey,
    chain: Vec<LayerId>,
) -> Result<(Option<ObjectId>, Replica), Error> {
    use replica::State;
    let copies = admin.data().copy_of(key, chain.clone()).await?;
    let newest = chain.iter().find_map(|l| copies.get(l).map(|c| (*l, c)));
    let Some((layer, c)) = newest else {
        return Ok((None, Replica { state: State::Absent.into(), ..Default::default() }));
    };
    let state = match (c.corrupt, c.filling) {
        (true, _) => State::Corrupt,
        (_, true) => State::Filling,
        _ => State::Present,
    };
    let replica = Replica {
        state: state.into(),
        version: c.version.to_string(),
        bytes: copies.values().map(|c| c.bytes).sum(),
        disk: c.disk.clone(),
        ..Default::default()
    };
    Ok((Some(ObjectId::data(layer, key.index)), replica))
}

pub(super) async fn locate(
    admin: &Arc<Admin>,
    r: LocateRequest,
    forwarded: bool,
) -> Result<LocateReply, Error> {
    let shape = shape(admin, &r.vdi)?;
    let key = shape.key(r.index)?;
    let (image, _) = admin.image(&r.vdi, &r.snapshot)?;
    let top = admin.top_layer(image)?;
    let chain = admin.control().chain(top).map(|c| c.to_vec()).unwrap_or_default();
    let map = admin.control().map();
    let acting = map.acting(key, shape.redundancy);
    let me = admin.me();
    let mut reply = LocateReply { epoch: map.epoch.0, ..Default::default() };
    let fill = |node: NodeId, mut replica: Replica| {
        let view = map.nodes.get(&node);
        replica.node = node.to_string();
        replica.host = view.map(|v| v.addr.host.clone()).unwrap_or_default();
        replica.port = view.map_or(0, |v| v.addr.client_port.into());
        replica.target = acting.targets.contains(&node);
        replica
    };
    let mut oid: Option<ObjectId> = None;
    if forwarded || acting.all().any(|n| n == me) {
        let (found, replica) = copy_here(admin, key, chain).await?;
        oid = found;
        reply.replicas.push(fill(me, replica));
    }
    if !forwarded {
        // By layer and id: names may change between here and there.
        let question = LocateRequest { vdi: Some(VdiRef::id(image.vdi.0)), ..r };
        let others = admin.control().read(|s| {
            acting.all().filter(|n| *n != me).filter_map(|n| s.nodes.get(&n).cloned()).collect::<Vec<_>>()
        });
        let ask = |c: Client| -> BoxFuture<'static, _> {
            let question = question.clone();
            Box::pin(async move { c.locate(question).await })
        };
        for (node, answer) in admin.peers.each(others, ask).await {
            let theirs = answer.ok();
            let found = theirs.as_ref().and_then(|t| ObjectId::parse(&t.object));
            oid = oid.max(found);
            let replica = theirs.and_then(|mut t| t.replicas.pop()).unwrap_or_default();
            reply.replicas.push(fill(node.id, replica));
        }
        reply.replicas.sort_by_key(|r| acting.all().position(|n| n.to_string() == r.node));
    }
    reply.object = oid.map(|o| o.to_string()).unwrap_or_default();
    Ok(reply)
}

fn holders(map: &NodeMap, key: PlacementKey, redundancy: Redundancy) -> Vec<String> {
    map.acting(key, redundancy).targets.iter().map(NodeId::to_string).collect()
}

pub(super) fn map(admin: &Arc<Admin>, r: MapRequest) -> Stream1<MapEntry> {
    let shape = shape(admin, &r.vdi)?;
    let (image, _) = admin.image(&r.vdi, &r.snapshot)?;
    admin.stream(async move |admin, sink| {
        let (tx, mut rx) = mpsc::channel(64);
        let work = admin.data().map(image, tx);
        let map = admin.control().map();
        let relay = async {
            while let Some(row) = rx.recv().await {
                let key = PlacementKey { family: shape.family, index: row.index };
                let entry = MapEntry {
                    index: row.index,
                    object: ObjectId::data(row.layer, row.index).to_string(),
                    bytes: row.bytes,
                    nodes: holders(&map, key, shape.redundancy),
                };
                if !sink.send(entry).await {
                    break;
                }
            }
        };
        let (result, ()) = tokio::join!(work, relay);
        Ok(result?)
    })
}

pub(super) fn track(admin: &Arc<Admin>, r: &TrackRequest) -> Result<TrackReply, Error> {
    let shape = shape(admin, &r.vdi)?;
    let key = shape.key(r.index)?;
    let map = admin.control().map();
    let placements = map.rings.iter().map(|at| track_reply::Placement {
        epoch: at.0.0,
        nodes: map.targets(at, key, shape.redundancy).iter().map(NodeId::to_string).collect(),
    });
    Ok(TrackReply {
        object: ObjectId::data(shape.family, r.index).to_string(),
        placements: placements.collect(),
    })
}

pub(super) fn diff(admin: &Arc<Admin>, r: DiffRequest) -> Stream1<DiffRange> {
    let (to, _) = admin.image(&r.vdi, &r.to)?;
    let from = match r.from.as_str() {
        "" => None,
        from => admin.image(&r.vdi, from)?.0.layer,
    };
    if let Some(from) = from {
        in_order(admin, from, to)?;
    }
    admin.stream(async move |admin, sink| {
        let (tx, mut rx) = mpsc::channel(64);
        let work = admin.data().diff(to, from, tx);
        let relay = async {
            while let Some(d) = rx.recv().await {
                let range = DiffRange { offset: d.offset, length: d.length, zero: d.zero };
                if !sink.send(range).await {
                    break;
                }
            }
        };
        let (result, ()) = tokio::join!(work, relay);
        Ok(result?)
    })
}

fn in_order(admin: &Admin, from: LayerId, to: Image) -> Result<(), Error> {
    let top = admin.top_layer(to)?;
    match admin.control().chain(top) {
        Some(chain) if chain.contains(&from) => Ok(()),
        _ => Err(usage("the first snapshot is not an ancestor of the second: name the older one first")),
    }
}

async fn stat_once(admin: &Arc<Admin>, only: Option<VdiId>, forwarded: bool) -> Result<StatVdiReply, Error> {
    let mine = admin.data().vdi_counters().await;
    let me = admin.me().to_string();
    let vdis = admin.control().read(|s| {
        mine.iter()
            .filter(|c| only.is_none_or(|v| v == c.vdi))
            .map(|c| VdiStat {
                vdi: c.vdi.0,
                name: s.vdis.get(&c.vdi).map(|v| v.name.clone()).unwrap_or_default(),
                owner: me.clone(),
                io: Some(io(&c.io)),
                in_flight: c.in_flight,
                connections: c.connections,
            })
            .collect()
    });
    let mut reply = StatVdiReply { vdis, missing_nodes: Vec::new() };
    if forwarded {
        return Ok(reply);
    }
    let question = StatVdiRequest { vdi: only.map(|v| VdiRef::id(v.0)), interval_ms: 0 };
    let ask = |c: Client| -> BoxFuture<'static, Result<StatVdiReply, Error>> {
        let question = question.clone();
        Box::pin(async move { Ok(c.stat_vdi(question).await?.message().await?.unwrap_or_default()) })
    };
    for (node, answer) in admin.peers.each(admin.others_up(), ask).await {
        match answer {
            Ok(theirs) => reply.vdis.extend(theirs.vdis),
            Err(_) => reply.missing_nodes.push(node.id.to_string()),
        }
    }
    reply.vdis.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(reply)
}

pub(super) fn stat(admin: &Arc<Admin>, r: StatVdiRequest, forwarded: bool) -> Stream1<StatVdiReply> {
    let only = match &r.vdi {
        None => None,
        some => Some(admin.vdi_id(some)?),
    };
    admin.stream(async move |admin, sink| {
        admin
            .repeat(r.interval_ms, &sink, || async { Ok((stat_once(&admin, only, forwarded).await?, false)) })
            .await
    })
}
