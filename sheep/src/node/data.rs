//! `DataPlane` over a channel of jobs to the data thread.

use super::{DataNode, Job, changed, check, disks};
use crate::control::SendFut;
use crate::front::admin::backend::{
    AdminVolume, CheckStep, DataError, DataPlane, DataResult, DiffRow, Image, IoCounters, LocalCopy, MapRow,
    NodeCounters, Piece, RecoveryState, Step, VdiCounters,
};
use crate::front::nbd::NbdHandle;
use crate::front::nbd::stats::{ConnectionRow, counted_as};
use crate::observe::process::resident_bytes;
use crate::peer::server::PeerStats;
use crate::session::HoldError;
use crate::session::volume::{open_attached, open_image};
use crate::store::{DiskInfo, StoreError};
use crate::volume::{LocalFut, Volume, VolumeError, ZeroFlags};
use crate::work::scrub::report::Report;
use bytes::Bytes;
use sheepdog_proto::{
    AttachmentId, BLOCK_SHIFT, ControlIndex, DiskId, Generation, LayerId, ObjectId, PlacementKey, VdiId,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Bytes of one admin read.
const READ: u64 = 1 << 20;

/// The data thread, seen from elsewhere. Cheap to clone.
#[derive(Clone)]
pub struct DataHandle {
    jobs: mpsc::Sender<Job>,
}

fn stopped() -> DataError {
    DataError::Volume(VolumeError::ShuttingDown)
}

impl DataHandle {
    /// Over the channel given to `node::run`.
    pub fn new(jobs: mpsc::Sender<Job>) -> Self {
        Self { jobs }
    }

    /// What `keep_volume` keeps, for the control runtime.
    fn remote(&self, (number, size): (u64, u64)) -> Box<dyn AdminVolume> {
        Box::new(RemoteVolume {
            data: self.clone(),
            number,
            size: AtomicU64::new(size),
            background: AtomicBool::default(),
        })
    }

    /// Run something on the data thread and wait for its answer.
    pub async fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce(Rc<DataNode>) -> LocalFut<'static, T> + Send + 'static,
    ) -> Result<T, DataError> {
        let (tx, rx) = oneshot::channel();
        let job: Job = Box::new(move |node| {
            tokio::task::spawn_local(async move {
                let _ = tx.send(f(node).await);
            });
        });
        self.jobs.send(job).await.map_err(|_| stopped())?;
        rx.await.map_err(|_| stopped())
    }
}

fn hold_error(e: HoldError) -> DataError {
    match e {
        HoldError::Elsewhere(node) => DataError::NotOwner(Some(node)),
        HoldError::Volume(VolumeError::Busy(why)) => DataError::Busy(why),
        HoldError::Volume(e) => DataError::Volume(e),
    }
}

fn store_error(e: StoreError) -> DataError {
    DataError::Failed(e.to_string())
}

impl DataPlane for DataHandle {
    fn hold(&self, vdi: VdiId, timeout: Duration) -> SendFut<'_, DataResult<Option<Generation>>> {
        Box::pin(async move {
            self.run(move |n| Box::pin(async move { n.gateway.hold(vdi, timeout).await.map_err(hold_error) }))
                .await?
        })
    }
    fn let_go(&self, vdi: VdiId, known: Option<ControlIndex>) -> SendFut<'_, ()> {
        Box::pin(async move {
            let _ = self.run(move |n| Box::pin(async move { n.gateway.let_go(vdi, known).await })).await;
        })
    }
    fn release(&self, vdi: VdiId) -> SendFut<'_, DataResult<()>> {
        Box::pin(async move {
            self.run(move |n| {
                Box::pin(async move {
                    n.gateway.release(vdi).await.map_err(|e| match e {
                        VolumeError::Busy(why) => DataError::Busy(why),
                        e => e.into(),
                    })
                })
            })
            .await?
        })
    }
    fn enforced(&self, vdi: VdiId, patience: Duration) -> SendFut<'_, DataResult<bool>> {
        Box::pin(async move {
            self.run(move |n| {
                Box::pin(async move {
                    match tokio::time::timeout(patience, n.gateway.enforced(vdi)).await {
                        Ok(done) => Ok(done.map(|()| true)?),
                        Err(_) => Ok(false),
                    }
                })
            })
            .await?
        })
    }
    fn cut(&self, vdi: VdiId, from: u64) -> SendFut<'_, DataResult<()>> {
        Box::pin(async move {
            self.run(move |n| {
                Box::pin(async move {
                    let Some(session) = n.gateway.session(vdi) else {
                        return Err(DataError::NotOwner(None));
                    };
                    session.cut(from).await.map_err(|e| DataError::Failed(e.to_string()))
                })
            })
            .await?
        })
    }
    fn open(&self, image: Image) -> SendFut<'_, DataResult<Box<dyn AdminVolume>>> {
        Box::pin(async move {
            let opened = self.run(move |n| {
                Box::pin(async move { kept_as(open_image(&n.gateway, image.vdi, image.layer).await) })
            });
            Ok(self.remote(opened.await??))
        })
    }
    fn open_attached(&self, vdi: VdiId, by: AttachmentId) -> SendFut<'_, DataResult<Box<dyn AdminVolume>>> {
        Box::pin(async move {
            let opened =
                self.run(move |n| Box::pin(async move { kept_as(open_attached(&n.gateway, vdi, by).await) }));
            Ok(self.remote(opened.await??))
        })
    }
    fn flatten(&self, vdi: VdiId, steps: mpsc::Sender<Step>) -> SendFut<'_, DataResult<()>> {
        Box::pin(async move { self.run(move |n| Box::pin(check::flatten(n, vdi, steps))).await? })
    }
    fn check(
        &self,
        image: Image,
        repair: bool,
        steps: mpsc::Sender<CheckStep>,
    ) -> SendFut<'_, DataResult<()>> {
        Box::pin(async move { self.run(move |n| Box::pin(check::check(n, image, repair, steps))).await? })
    }
    fn copy_of(
        &self,
        key: PlacementKey,
        layers: Vec<LayerId>,
    ) -> SendFut<'_, DataResult<BTreeMap<LayerId, LocalCopy>>> {
        Box::pin(async move {
            self.run(move |n| {
                Box::pin(async move {
                    let mut out = BTreeMap::new();
                    let Some(store) = &n.replica.store else { return Ok(out) };
                    for layer in layers {
                        let oid = ObjectId::data(layer, key.index);
                        let corrupt = match store.info(oid).await {
                            Ok(None) => continue,
                            Ok(Some(_)) => false,
                            Err(StoreError::CorruptHeader { .. }) => true,
                            Err(e) => return Err(store_error(e)),
                        };
                        let Some((row, disk)) = store.row(oid) else { continue };
                        out.insert(
                            layer,
                            LocalCopy {
                                version: row.version,
                                bytes: (row.data_blocks as u64) << BLOCK_SHIFT,
                                filling: row.filling || n.replica.lacks(oid),
                                corrupt,
                                disk,
                            },
                        );
                    }
                    Ok(out)
                })
            })
            .await?
        })
    }
    fn map(&self, image: Image, rows: mpsc::Sender<MapRow>) -> SendFut<'_, DataResult<()>> {
        Box::pin(async move { self.run(move |n| Box::pin(check::map(n, image, rows))).await? })
    }
    fn diff(
        &self,
        to: Image,
        from: Option<LayerId>,
        rows: mpsc::Sender<DiffRow>,
    ) -> SendFut<'_, DataResult<()>> {
        Box::pin(async move { self.run(move |n| Box::pin(changed::diff(n, to, from, rows))).await? })
    }
    fn usage(&self) -> SendFut<'_, DataResult<BTreeMap<LayerId, u64>>> {
        Box::pin(async move {
            self.run(move |n| {
                Box::pin(async move {
                    let mut out = BTreeMap::new();
                    let Some(store) = &n.replica.store else { return out };
                    let mut after = None;
                    loop {
                        let page = store.list(after, 4096);
                        for row in &page {
                            *out.entry(row.oid.layer()).or_default() +=
                                (row.data_blocks as u64) << BLOCK_SHIFT;
                        }
                        after = page.last().map(|r| r.oid);
                        if page.len() < 4096 {
                            return out;
                        }
                        tokio::task::yield_now().await;
                    }
                })
            })
            .await
        })
    }
    fn disks(&self) -> SendFut<'_, Vec<DiskInfo>> {
        Box::pin(async move {
            self.run(|n| {
                Box::pin(async move { n.replica.store.as_ref().map(|s| s.disks()).unwrap_or_default() })
            })
            .await
            .unwrap_or_default()
        })
    }
    fn plug(&self, path: String) -> SendFut<'_, DataResult<DiskInfo>> {
        Box::pin(async move { self.run(move |n| Box::pin(disks::plug(n, path))).await? })
    }
    fn unplug(&self, disk: DiskId, force: bool) -> SendFut<'_, DataResult<()>> {
        Box::pin(async move { self.run(move |n| Box::pin(disks::unplug(n, disk, force))).await? })
    }
    fn vdi_counters(&self) -> SendFut<'_, Vec<VdiCounters>> {
        Box::pin(async move {
            self.run(|n| {
                Box::pin(async move {
                    let connections = nbd_connections(&n);
                    n.gateway
                        .sessions()
                        .into_iter()
                        .map(|(vdi, opens)| {
                            let name = n
                                .control
                                .read(|s| s.vdis.get(&vdi).map(|v| v.name.clone()))
                                .unwrap_or_default();
                            let mine = |export: &str| base(export) == name;
                            let in_flight = connections.iter().filter(|c| mine(&c.export));
                            VdiCounters {
                                vdi,
                                io: nbd_counters(&n, mine),
                                in_flight: in_flight.map(|c| c.in_flight as u64).sum(),
                                connections: opens as u64,
                            }
                        })
                        .collect()
                })
            })
            .await
            .unwrap_or_default()
        })
    }
    fn node_counters(&self) -> SendFut<'_, NodeCounters> {
        Box::pin(async move {
            self.run(|n| {
                Box::pin(async move {
                    let store = n.replica.store.as_ref().map(|s| s.stats()).unwrap_or_default();
                    let connections = nbd_connections(&n);
                    NodeCounters {
                        client: nbd_counters(&n, |_| true),
                        peer: peer_counters(&n.server.stats),
                        client_active: connections.iter().map(|c| c.in_flight as u64).sum(),
                        peer_active: n.server.stats.in_flight.get(),
                        connections: connections.len() as u64,
                        sessions: n.gateway.sessions().len() as u64,
                        journal_bytes: store.overlay_bytes,
                        resident_bytes: resident_bytes(),
                        uptime: n.started.elapsed(),
                    }
                })
            })
            .await
            .unwrap_or_default()
        })
    }
    fn scrub(&self, start: bool) -> SendFut<'_, Option<Report>> {
        Box::pin(async move {
            self.run(move |n| {
                Box::pin(async move {
                    n.replica.store.as_ref()?;
                    if start {
                        n.replica.scrubbing.start();
                    }
                    let mut report = n.replica.scrubbing.report();
                    report.hurried |= n.replica.scrubbing.is_asked();
                    Some(report)
                })
            })
            .await
            .unwrap_or_default()
        })
    }
    fn recovery(&self) -> SendFut<'_, RecoveryState> {
        Box::pin(async move {
            self.run(|n| {
                Box::pin(async move {
                    let p = n.replica.sync.progress();
                    let (missing, waiting) = n.replica.sync.state();
                    let total = p.done + missing as u64;
                    let objects = if p.active { Step { done: p.done, total } } else { Step::default() };
                    RecoveryState { objects, bytes_moved: p.bytes, waiting }
                })
            })
            .await
            .unwrap_or_default()
        })
    }
}

fn nbd_connections(n: &DataNode) -> Vec<ConnectionRow> {
    n.nbd.borrow().as_ref().map(NbdHandle::connections).unwrap_or_default()
}

/// The VDI of an export: snapshots are `name@tag`, attached ones `name#number`.
fn base(export: &str) -> &str {
    export.split_once('@').map_or(counted_as(export), |(base, _)| base)
}

fn peer_counters(s: &PeerStats) -> IoCounters {
    IoCounters {
        reads: s.read.count.get(),
        writes: s.write.count.get(),
        read_bytes: s.read.bytes.get(),
        write_bytes: s.write.bytes.get(),
        read_us: s.read.nanos.get() / 1000,
        write_us: s.write.nanos.get() / 1000,
        errors: s.read.errors.get() + s.write.errors.get() + s.other.errors.get(),
        ..IoCounters::default()
    }
}

/// Counters of NBD, of some exports.
fn nbd_counters(n: &DataNode, which: impl Fn(&str) -> bool) -> IoCounters {
    let mut io = IoCounters::default();
    let nbd = n.nbd.borrow();
    let Some(handle) = nbd.as_ref() else { return io };
    for (name, s) in handle.stats() {
        if !which(&name) {
            continue;
        }
        use crate::front::nbd::stats::Op;
        let (read, write) = (s.op(Op::Read), s.op(Op::Write));
        io.reads += read.count.get();
        io.read_bytes += read.bytes.get();
        io.read_us += read.nanos.get() / 1000;
        io.writes += write.count.get();
        io.write_bytes += write.bytes.get();
        io.write_us += write.nanos.get() / 1000;
        io.discards += s.op(Op::Trim).count.get() + s.op(Op::Zero).count.get();
        io.flushes += s.op(Op::Flush).count.get();
        io.errors += Op::ALL.iter().map(|op| s.op(*op).errors.get()).sum::<u64>();
    }
    io
}

type OpenVolumes = BTreeMap<u64, Rc<dyn Volume>>;

thread_local! {
    /// Volumes that the admin interface has open, by number. Lives on the data thread.
    static OPEN: RefCell<(u64, OpenVolumes)> = const { RefCell::new((0, BTreeMap::new())) };
}

fn keep_volume(volume: Rc<dyn Volume>) -> u64 {
    OPEN.with(|o| {
        let mut o = o.borrow_mut();
        o.0 += 1;
        let number = o.0;
        o.1.insert(number, volume);
        number
    })
}

/// Its number, and its size now.
fn kept_as(volume: Result<Rc<dyn Volume>, VolumeError>) -> DataResult<(u64, u64)> {
    let volume = volume?;
    let size = volume.size();
    Ok((keep_volume(volume), size))
}

fn kept(number: u64) -> Result<Rc<dyn Volume>, DataError> {
    OPEN.with(|o| o.borrow().1.get(&number).cloned()).ok_or_else(stopped)
}

async fn close_kept(number: u64) {
    let volume = OPEN.with(|o| o.borrow_mut().1.remove(&number));
    if let Some(v) = volume {
        v.close().await;
    }
}

struct RemoteVolume {
    data: DataHandle,
    number: u64,
    size: AtomicU64,
    background: AtomicBool,
}

impl AdminVolume for RemoteVolume {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }
    fn set_background(&self) {
        self.background.store(true, Ordering::Relaxed);
    }
    fn read(&self, offset: u64, len: u64) -> SendFut<'_, DataResult<Piece>> {
        let number = self.number;
        let background = self.background.load(Ordering::Relaxed);
        Box::pin(async move {
            self.data
                .run(move |node| {
                    Box::pin(async move {
                        let v = kept(number)?;
                        let extents = v.block_status(offset, len, 1).await?;
                        let first = extents.first().copied();
                        if let Some(e) = first.filter(|e| e.zero) {
                            return Ok(Piece::Zeros(e.len.min(len)));
                        }
                        let mut n = first.map_or(len, |e| e.len).min(len).min(READ);
                        if background {
                            let yielding = &node.replica.sync.yielding;
                            n = yielding.piece(n);
                            v.set_background();
                            yielding.admit(0, n).await;
                        }
                        let parts = v.read(offset, n as u32).await?;
                        let data = match <[Bytes; 1]>::try_from(parts) {
                            Ok([one]) => one,
                            Err(parts) => parts.concat().into(),
                        };
                        Ok(Piece::Data(data))
                    })
                })
                .await?
        })
    }
    fn write(&self, offset: u64, piece: Piece) -> SendFut<'_, DataResult<()>> {
        let number = self.number;
        Box::pin(async move {
            self.data
                .run(move |_| {
                    Box::pin(async move {
                        let v = kept(number)?;
                        match piece {
                            Piece::Data(d) => v.write(offset, d).await?,
                            Piece::Zeros(n) => v.zero(offset, n, ZeroFlags::default()).await?,
                        }
                        Ok(())
                    })
                })
                .await?
        })
    }
    fn allocate(&self, offset: u64, len: u64) -> SendFut<'_, DataResult<()>> {
        let number = self.number;
        Box::pin(async move {
            self.data
                .run(move |_| {
                    Box::pin(async move {
                        let v = kept(number)?;
                        let (mut at, end) = (offset, offset + len);
                        while at < end {
                            let e = v.block_status(at, end - at, 1).await?;
                            let n = e.first().map_or(end - at, |e| e.len).min(end - at).min(READ);
                            if e.first().is_none_or(|e| e.hole) {
                                v.write(at, crate::buf::zeros(n as usize)).await?;
                            }
                            at += n;
                        }
                        Ok(())
                    })
                })
                .await?
        })
    }
    fn close(&self) -> SendFut<'_, ()> {
        let number = self.number;
        Box::pin(async move {
            let _ = self.data.run(move |_| Box::pin(close_kept(number))).await;
        })
    }
}

impl Drop for RemoteVolume {
    fn drop(&mut self) {
        let number = self.number;
        let job: Job = Box::new(move |_| {
            tokio::task::spawn_local(close_kept(number));
        });
        // When the queue is full the volume stays open until the daemon ends: it holds a session, nothing else.
        let _ = self.data.jobs.try_send(job);
    }
}
