//! The `VdiService`: the table of volumes, and changes that lie between writes.

use super::backend::Image;
use super::convert::{limits_in, redundancy_in, vdi as to_pb};
use super::service::{Admin, Answers, find_snapshot, is_forwarded, missing, usage};
use super::{vdi_data, vdi_look};
use futures::future::BoxFuture;
use sheepdog_client::pb::vdi_service_server::VdiService;
use sheepdog_client::pb::*;
use sheepdog_client::{Client, Error, ErrorKind};
use sheepdog_cluster::{AttachmentRef, ClusterState, Command, Reply, SnapshotRef};
use sheepdog_proto::{ControlIndex, LayerId, VdiId};
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// VDIs of one page unless asked otherwise, and at most.
const PAGE: usize = 500;
const MAX_PAGE: usize = 2_000;
/// VDIs of one group snapshot.
const MAX_GROUP: usize = 256;

type Reply1<T> = Result<Response<T>, Status>;

fn deletion(r: &DeleteVdiRequest, vdi: VdiId, snapshot: Option<SnapshotRef>) -> Command {
    Command::VdiDelete { vdi, snapshot, with_snapshots: r.with_snapshots, at_once: r.now }
}

fn uuid_in(text: &str) -> Result<u128, Error> {
    if text.is_empty() {
        return Ok(uuid::Uuid::new_v4().as_u128());
    }
    uuid::Uuid::parse_str(text).map(|u| u.as_u128()).map_err(|_| usage(format!("\"{text}\" is not a uuid")))
}

impl Admin {
    fn vdi_by_id(&self, id: VdiId) -> Result<Vdi, Error> {
        self.with_vdi(&Some(VdiRef::id(id.0)), |s, v| Ok(to_pb(s, v)))
    }

    async fn create(&self, r: CreateVdiRequest) -> Result<Vdi, Error> {
        let redundancy = redundancy_in(r.redundancy)?;
        let uuid = uuid_in(&r.uuid)?;
        if r.source.is_some() {
            return self.clone_vdi(&r, redundancy, uuid).await;
        }
        if r.size == 0 {
            return Err(usage("a VDI needs a size"));
        }
        let object_size = (r.object_size > 0).then_some(r.object_size);
        let command = Command::VdiCreate { name: r.name, uuid, size: r.size, redundancy, object_size };
        match self.propose(command).await? {
            Reply::Vdi(id) => self.vdi_by_id(id),
            other => Err(odd(&other)),
        }
    }

    async fn clone_vdi(
        &self,
        r: &CreateVdiRequest,
        redundancy: Option<sheepdog_cluster::Redundancy>,
        uuid: u128,
    ) -> Result<Vdi, Error> {
        let made = self.control().read(|s| {
            s.names.get(&r.name).and_then(|id| s.vdis.get(id)).filter(|v| v.uuid == uuid).map(|v| v.id)
        });
        let id = match made {
            // A repeated request: no second automatic snapshot.
            Some(id) => id,
            None => {
                let source = self.vdi_id(&r.source)?;
                let (snapshot, size) = self.clone_source(r, source).await?;
                if r.size != 0 && r.size < size {
                    return Err(usage(format!("a clone is at least as large as its source: {size} bytes")));
                }
                let command = Command::Clone {
                    source,
                    snapshot,
                    name: r.name.clone(),
                    uuid,
                    redundancy,
                    flatten: r.flatten,
                };
                match self.propose(command).await? {
                    Reply::Vdi(id) => id,
                    other => return Err(odd(&other)),
                }
            }
        };
        let vdi = self.vdi_by_id(id)?;
        if r.size > vdi.size {
            return self
                .resize_here(id, ResizeRequest { vdi: Some(VdiRef::id(id.0)), size: r.size, shrink: false })
                .await;
        }
        Ok(vdi)
    }

    /// The snapshot to clone; made now when none is named.
    async fn clone_source(&self, r: &CreateVdiRequest, source: VdiId) -> Result<(SnapshotRef, u64), Error> {
        if r.source_snapshot.is_empty() {
            // Refused here already, so that no snapshot is left behind by a clone that cannot be.
            if self.control().read(|s| s.names.contains_key(&r.name)) {
                return Err(Error::new(ErrorKind::Exists, format!("a VDI named {} exists", r.name)));
            }
            let made = self
                .snapshot(SnapshotRequest { vdis: vec![VdiRef::id(source.0)], tag: String::new() })
                .await?;
            let s = made
                .made
                .into_iter()
                .next()
                .and_then(|m| m.snapshot)
                .ok_or_else(|| missing("the source was deleted"))?;
            return Ok((SnapshotRef::Id(s.id), s.size));
        }
        self.with_vdi(&r.source, |_, v| {
            find_snapshot(v, &r.source_snapshot).map(|s| (SnapshotRef::Id(s.id), s.size))
        })
    }

    fn page(&self, r: &ListVdisRequest) -> Result<ListVdisReply, Error> {
        let limit = match r.page_size as usize {
            0 => PAGE,
            n => n.min(MAX_PAGE),
        };
        self.control().read(|s| {
            if s.format.is_none() {
                return Err(Error::new(
                    ErrorKind::NotFormatted,
                    sheepdog_cluster::CommandError::NotFormatted.to_string(),
                ));
            }
            let from = if r.page_token > r.prefix { r.page_token.clone() } else { r.prefix.clone() };
            let mut rows =
                s.names.range(from..).filter(|(name, _)| **name != r.page_token || r.page_token.is_empty());
            let mut vdis = Vec::new();
            for (name, id) in rows.by_ref() {
                if !name.starts_with(&r.prefix) {
                    return Ok(ListVdisReply { vdis, next_page_token: String::new() });
                }
                vdis.extend(s.vdis.get(id).map(|v| to_pb(s, v)));
                if vdis.len() == limit {
                    let more = rows.next().is_some_and(|(n, _)| n.starts_with(&r.prefix));
                    let next_page_token = if more { name.clone() } else { String::new() };
                    return Ok(ListVdisReply { vdis, next_page_token });
                }
            }
            Ok(ListVdisReply { vdis, next_page_token: String::new() })
        })
    }

    /// Bytes of this node's disks, per layer, put to the VDIs they belong to.
    async fn add_usage(&self, vdis: &mut [Vdi]) -> Result<(), Error> {
        let mine = match self.data().usage().await {
            // A listing without the numbers is better than none.
            Err(super::DataError::Unsupported(_)) => return Ok(()),
            mine => mine?,
        };
        self.control().read(|s| {
            for v in vdis {
                put_usage(s, v, &mine);
            }
        });
        Ok(())
    }

    /// Add what the other nodes answer to the same question.
    async fn with_usage(
        &self,
        vdis: &mut [Vdi],
        forwarded: bool,
        ask: impl Fn(Client) -> BoxFuture<'static, Result<Vec<Vdi>, Error>>,
    ) -> Result<(), Error> {
        self.add_usage(vdis).await?;
        if forwarded || vdis.is_empty() {
            return Ok(());
        }
        for (node, answer) in self.peers.each(self.others_up(), ask).await {
            match answer {
                Ok(theirs) => merge_usage(vdis, theirs),
                Err(_) => {
                    for u in vdis.iter_mut().filter_map(|v| v.usage.as_mut()) {
                        u.missing_nodes.push(node.id.to_string());
                    }
                }
            }
        }
        Ok(())
    }

    async fn delete(&self, r: &DeleteVdiRequest, forwarded: bool) -> Result<DeleteVdiReply, Error> {
        let vdi = self.vdi_id(&r.vdi)?;
        if !r.snapshot.is_empty() {
            // By its number: later somebody else may have its tag.
            let n = self.with_vdi(&r.vdi, |_, v| find_snapshot(v, &r.snapshot).map(|s| s.id))?;
            self.propose(deletion(r, vdi, Some(SnapshotRef::Id(n)))).await?;
            return Ok(DeleteVdiReply { until_ms: self.trashed_until(vdi, n) });
        }
        if r.force {
            self.detach_all(vdi, AttachmentRef::All).await?;
        }
        let working = self.with_vdi(&r.vdi, |_, v| {
            if !v.attachments.is_empty() {
                let text = format!("{}, or add --force to delete it all the same", v.attached_to());
                return Err(Error::new(ErrorKind::Busy, text));
            }
            Ok(v.working().is_some())
        })?;
        if working {
            self.settle(async || match self.delete_working(r, vdi, forwarded).await {
                // Connections that were cut are being closed.
                Err(e) if r.force && e.kind == ErrorKind::Busy => {
                    Err(Error::new(ErrorKind::Moved, e.message))
                }
                done => done,
            })
            .await?;
        } else if !r.with_snapshots {
            return Err(missing(
                "only snapshots of this VDI are left: delete them with -s TAG or --with-snapshots",
            ));
        }
        if !working {
            self.propose(deletion(r, vdi, None)).await?;
        }
        Ok(DeleteVdiReply { until_ms: self.trashed_until(vdi, 0) })
    }

    async fn delete_working(&self, r: &DeleteVdiRequest, vdi: VdiId, forwarded: bool) -> Result<(), Error> {
        if let Some(owner) = self.release(vdi).await? {
            if forwarded {
                return Err(Error::new(ErrorKind::Moved, "the session moved to another node"));
            }
            let theirs = DeleteVdiRequest { vdi: Some(VdiRef::id(vdi.0)), ..r.clone() };
            return match owner.delete_vdi(theirs).await {
                // It died or is dying: the session will be someone else's.
                Err(e) if e.kind == ErrorKind::Unreachable => Err(Error::new(ErrorKind::Moved, e.message)),
                done => done.map(|_| ()),
            };
        }
        match self.propose(deletion(r, vdi, None)).await {
            // Opened again between the two steps.
            Err(e) if e.kind == ErrorKind::Busy && self.owner(vdi).is_some_and(|n| n.id != self.me()) => {
                Err(Error::new(ErrorKind::Moved, e.message))
            }
            done => done.map(|_| ()),
        }
    }

    async fn snapshot(&self, r: SnapshotRequest) -> Result<SnapshotReply, Error> {
        if r.vdis.is_empty() || r.vdis.len() > MAX_GROUP {
            return Err(usage(format!("name 1 to {MAX_GROUP} VDIs")));
        }
        let ids = r.vdis.iter().map(|v| self.vdi_id(&Some(v.clone()))).collect::<Result<Vec<_>, _>>()?;
        let reply = self
            .settle(|| {
                self.held(ids.clone(), |generations| {
                    let vdis = ids.iter().map(|id| (*id, generations.get(id).copied().flatten())).collect();
                    self.propose(Command::Snapshot { vdis, tag: r.tag.clone() })
                })
            })
            .await?;
        let Reply::Snapshots(made) = reply else { return Err(odd(&reply)) };
        Ok(self.control().read(|s| SnapshotReply {
            made: made
                .iter()
                .filter_map(|(vdi, number, _)| {
                    let v = s.vdis.get(vdi)?;
                    let snapshot = v.snapshots.iter().find(|x| x.id == *number).map(super::convert::snapshot);
                    Some(snapshot_reply::Made { vdi: vdi.0, name: v.name.clone(), snapshot })
                })
                .collect(),
        }))
    }

    async fn rollback(&self, r: RollbackRequest) -> Result<(), Error> {
        let vdi = self.vdi_id(&r.vdi)?;
        // Named by its number, so that nobody's new snapshot with this tag is meant.
        let snapshot =
            self.with_vdi(&r.vdi, |_, v| find_snapshot(v, &r.snapshot).map(|s| SnapshotRef::Id(s.id)))?;
        self.settle(|| {
            let snapshot = snapshot.clone();
            self.held(vec![vdi], async move |g| {
                let generation = g.get(&vdi).copied().flatten();
                self.propose(Command::Rollback { vdi, snapshot, generation }).await
            })
        })
        .await?;
        Ok(())
    }

    async fn resize(&self, r: ResizeRequest, forwarded: bool) -> Result<Vdi, Error> {
        let vdi = self.vdi_id(&r.vdi)?;
        if r.size < self.with_vdi(&r.vdi, |_, v| Ok(v.size))? && r.shrink {
            // What lies beyond is cut off by the session's owner: there has to be one, and it does the rest.
            let _open = self.data().open(Image { vdi, layer: None }).await?;
            if let Some(owner) = self.owner(vdi).filter(|n| n.id != self.me()) {
                if forwarded {
                    return Err(Error::new(ErrorKind::Moved, "the session moved to another node"));
                }
                let theirs = ResizeRequest { vdi: Some(VdiRef::id(vdi.0)), ..r };
                return self.peers.to(&owner)?.resize(theirs).await;
            }
            return self.resize_here(vdi, r).await;
        }
        self.resize_here(vdi, r).await
    }

    async fn resize_here(&self, vdi: VdiId, r: ResizeRequest) -> Result<Vdi, Error> {
        self.settle(|| {
            self.held(vec![vdi], async |g| {
                let generation = g.get(&vdi).copied().flatten();
                let now = self.with_vdi(&r.vdi, |_, v| Ok(v.size))?;
                if r.size < now && !r.shrink {
                    return Err(usage(format!(
                        "the VDI has {now} bytes; a smaller size loses what lies beyond it: add --shrink if you mean it"
                    )));
                }
                if r.size < now {
                    // Refused before anything is cut off, not after.
                    if r.size == 0 || !r.size.is_multiple_of(512) {
                        return Err(usage("the size must be a multiple of 512 bytes, more than 0"));
                    }
                    self.data().cut(vdi, r.size).await?;
                }
                self.propose(Command::VdiResize { vdi, size: r.size, generation }).await
            })
        })
        .await?;
        self.vdi_by_id(vdi)
    }

    async fn hold(&self, r: HoldRequest) -> Result<HoldReply, Error> {
        let mut held = Vec::new();
        for id in &r.vdis {
            let vdi = VdiId(*id);
            if !r.hold {
                self.data().let_go(vdi, r.known.map(ControlIndex)).await;
                continue;
            }
            let timeout = std::time::Duration::from_millis(r.timeout_ms.clamp(1, 60_000).into());
            let generation = self.data().hold(vdi, timeout).await?.map(|g| g.0);
            held.push(hold_reply::Held { vdi: *id, generation });
        }
        Ok(HoldReply { held })
    }
}

fn put_usage(s: &ClusterState, v: &mut Vdi, mine: &BTreeMap<LayerId, u64>) {
    let Some(state) = s.vdis.get(&VdiId(v.id)) else { return };
    let of = |layer: LayerId| mine.get(&layer).copied().unwrap_or(0);
    for (row, snapshot) in v.snapshots.iter_mut().zip(state.shown()) {
        row.used = Some(of(snapshot.layer));
    }
    v.usage = Some(Usage {
        used: state.working().map_or(0, of),
        shared: v.snapshots.iter().filter_map(|s| s.used).sum(),
        missing_nodes: Vec::new(),
    });
}

fn merge_usage(vdis: &mut [Vdi], theirs: Vec<Vdi>) {
    let theirs: BTreeMap<u32, Vdi> = theirs.into_iter().map(|v| (v.id, v)).collect();
    for v in vdis {
        let Some(t) = theirs.get(&v.id) else { continue };
        if let (Some(u), Some(more)) = (v.usage.as_mut(), &t.usage) {
            u.used += more.used;
            u.shared += more.shared;
        }
        for s in &mut v.snapshots {
            let more = t.snapshots.iter().find(|x| x.id == s.id).and_then(|x| x.used).unwrap_or(0);
            s.used = Some(s.used.unwrap_or(0) + more);
        }
    }
}

/// An answer that the command cannot have.
pub(super) fn odd(reply: &Reply) -> Error {
    Error::new(ErrorKind::Internal, format!("the control plane answered {reply:?}"))
}

/// The service, as tonic wants it.
#[derive(Clone)]
pub(super) struct Vdis(pub(super) Arc<Admin>);

fn done() -> Reply1<Done> {
    Ok(Response::new(Done {}))
}

#[tonic::async_trait]
impl VdiService for Vdis {
    async fn create(&self, r: Request<CreateVdiRequest>) -> Reply1<Vdi> {
        Ok(Response::new(self.0.create(r.into_inner()).await?))
    }
    async fn get(&self, r: Request<GetVdiRequest>) -> Reply1<Vdi> {
        let forwarded = is_forwarded(&r);
        let r = r.into_inner();
        let mut vdi = [self.0.with_vdi(&r.vdi, |s, v| Ok(to_pb(s, v)))?];
        if r.usage {
            // By id: it may be renamed meanwhile.
            let question = GetVdiRequest { vdi: Some(VdiRef::id(vdi[0].id)), usage: true };
            let ask = |c: Client| -> BoxFuture<'static, _> {
                let question = question.clone();
                Box::pin(async move { c.get_vdi(question).await.map(|v| vec![v]) })
            };
            self.0.with_usage(&mut vdi, forwarded, ask).await?;
        }
        let [vdi] = vdi;
        Ok(Response::new(vdi))
    }
    async fn list(&self, r: Request<ListVdisRequest>) -> Reply1<ListVdisReply> {
        let forwarded = is_forwarded(&r);
        let r = r.into_inner();
        let mut page = self.0.page(&r)?;
        if r.usage {
            let ask = |c: Client| -> BoxFuture<'static, _> {
                let r = r.clone();
                Box::pin(async move { c.list_vdis(r).await.map(|p| p.vdis) })
            };
            self.0.with_usage(&mut page.vdis, forwarded, ask).await?;
        }
        Ok(Response::new(page))
    }
    async fn delete(&self, r: Request<DeleteVdiRequest>) -> Reply1<DeleteVdiReply> {
        let forwarded = is_forwarded(&r);
        Ok(Response::new(self.0.delete(r.get_ref(), forwarded).await?))
    }
    async fn list_trash(&self, r: Request<ListTrashRequest>) -> Reply1<ListTrashReply> {
        let forwarded = is_forwarded(&r);
        Ok(Response::new(self.0.list_trash(r.into_inner(), forwarded).await?))
    }
    async fn restore_trash(&self, r: Request<RestoreTrashRequest>) -> Reply1<Vdi> {
        let r = r.into_inner();
        let id = VdiId(r.vdi);
        self.0.restore_trash(r).await?;
        Ok(Response::new(self.0.vdi_by_id(id)?))
    }
    async fn purge_trash(&self, r: Request<PurgeTrashRequest>) -> Reply1<Done> {
        self.0.purge_trash(r.get_ref()).await?;
        done()
    }
    async fn lock_snapshot(&self, r: Request<LockSnapshotRequest>) -> Reply1<Snapshot> {
        Ok(Response::new(self.0.lock_snapshot(r.get_ref()).await?))
    }
    async fn rename(&self, r: Request<RenameVdiRequest>) -> Reply1<Done> {
        let r = r.into_inner();
        let vdi = self.0.vdi_id(&r.vdi)?;
        self.0.propose(Command::VdiRename { vdi, name: r.name }).await?;
        done()
    }
    async fn snapshot(&self, r: Request<SnapshotRequest>) -> Reply1<SnapshotReply> {
        Ok(Response::new(self.0.snapshot(r.into_inner()).await?))
    }
    async fn rollback(&self, r: Request<RollbackRequest>) -> Reply1<Done> {
        self.0.rollback(r.into_inner()).await?;
        done()
    }
    async fn resize(&self, r: Request<ResizeRequest>) -> Reply1<Vdi> {
        let forwarded = is_forwarded(&r);
        Ok(Response::new(self.0.resize(r.into_inner(), forwarded).await?))
    }
    async fn alter_copies(&self, r: Request<AlterVdiCopiesRequest>) -> Reply1<Done> {
        let r = r.into_inner();
        let vdi = self.0.vdi_id(&r.vdi)?;
        let redundancy = redundancy_in(r.redundancy)?.ok_or_else(|| usage("say how many copies"))?;
        self.0.propose(Command::AlterCopies { vdi: Some(vdi), redundancy }).await?;
        done()
    }
    async fn set_limits(&self, r: Request<SetLimitsRequest>) -> Reply1<Done> {
        let SetLimitsRequest { vdi, limits } = r.into_inner();
        let vdi = self.0.vdi_id(&vdi)?;
        self.0.propose(Command::SetLimits { vdi, limits: limits_in(limits) }).await?;
        done()
    }
    async fn set_attr(&self, r: Request<SetAttrRequest>) -> Reply1<Done> {
        let SetAttrRequest { vdi, key, value, exclusive } = r.into_inner();
        let vdi = self.0.vdi_id(&vdi)?;
        self.0.propose(Command::SetAttr { vdi, key, value, exclusive }).await?;
        done()
    }
    async fn lock(&self, r: Request<LockRequest>) -> Reply1<Done> {
        let r = r.into_inner();
        let vdi = self.0.vdi_id(&r.vdi)?;
        if r.holder.is_empty() || r.holder.len() > 255 {
            return Err(usage("a lock needs the name of its holder, at most 255 bytes").into());
        }
        self.0.propose(Command::Lock { vdi, holder: r.holder, exclusive: r.exclusive }).await?;
        done()
    }
    async fn unlock(&self, r: Request<UnlockRequest>) -> Reply1<Done> {
        let r = r.into_inner();
        let vdi = self.0.vdi_id(&r.vdi)?;
        let holder = (!r.holder.is_empty()).then_some(r.holder);
        self.0.propose(Command::Unlock { vdi, holder }).await?;
        done()
    }
    async fn attach(&self, r: Request<AttachRequest>) -> Reply1<Attachment> {
        Ok(Response::new(self.0.attach(r.into_inner()).await?))
    }
    async fn detach(&self, r: Request<DetachRequest>) -> Reply1<Done> {
        self.0.detach(r.into_inner()).await?;
        done()
    }
    async fn hold(&self, r: Request<HoldRequest>) -> Reply1<HoldReply> {
        Ok(Response::new(self.0.hold(r.into_inner()).await?))
    }

    type FlattenStream = Answers<Progress>;
    async fn flatten(&self, r: Request<FlattenRequest>) -> Reply1<Answers<Progress>> {
        vdi_data::flatten(&self.0, r)
    }
    type PreallocateStream = Answers<Progress>;
    async fn preallocate(&self, r: Request<PreallocateRequest>) -> Reply1<Answers<Progress>> {
        vdi_data::preallocate(&self.0, r.into_inner())
    }
    type ReadStream = Answers<Chunk>;
    async fn read(&self, r: Request<ReadRequest>) -> Reply1<Answers<Chunk>> {
        vdi_data::read(&self.0, r.into_inner())
    }
    type WriteStream = Answers<WriteAck>;
    async fn write(&self, r: Request<Streaming<WriteRequest>>) -> Reply1<Answers<WriteAck>> {
        vdi_data::write(&self.0, r.into_inner())
    }
    type CheckStream = Answers<CheckReport>;
    async fn check(&self, r: Request<CheckRequest>) -> Reply1<Answers<CheckReport>> {
        vdi_data::check(&self.0, r.into_inner())
    }
    async fn locate(&self, r: Request<LocateRequest>) -> Reply1<LocateReply> {
        let forwarded = is_forwarded(&r);
        Ok(Response::new(vdi_look::locate(&self.0, r.into_inner(), forwarded).await?))
    }
    type MapStream = Answers<MapEntry>;
    async fn map(&self, r: Request<MapRequest>) -> Reply1<Answers<MapEntry>> {
        vdi_look::map(&self.0, r.into_inner())
    }
    async fn track(&self, r: Request<TrackRequest>) -> Reply1<TrackReply> {
        Ok(Response::new(vdi_look::track(&self.0, &r.into_inner())?))
    }
    type DiffStream = Answers<DiffRange>;
    async fn diff(&self, r: Request<DiffRequest>) -> Reply1<Answers<DiffRange>> {
        vdi_look::diff(&self.0, r.into_inner())
    }
    type StatStream = Answers<StatVdiReply>;
    async fn stat(&self, r: Request<StatVdiRequest>) -> Reply1<Answers<StatVdiReply>> {
        let forwarded = is_forwarded(&r);
        vdi_look::stat(&self.0, r.into_inner(), forwarded)
    }
}
