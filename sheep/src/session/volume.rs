//! `Volume` and `VolumeSource` over sessions: what the front-ends get.

use super::attach::{Attached, Gateway, Io, IoDone, MAX_FORWARD};
use super::opens::{Ear, Gone, Open};
use crate::buf::AlignedBuf;
use crate::volume::{ExportInfo, Extent, LocalFut, Volume, VolumeError, VolumeSource, ZeroFlags};
use crate::wait::until;
use bytes::Bytes;
use futures::stream::{FuturesOrdered, FuturesUnordered, StreamExt};
use sheepdog_cluster::{ClusterState, Vdi};
use sheepdog_proto::{AttachmentId, LayerId, VdiId};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// A request that takes longer is told of in the log, and again after as long.
const SLOW: Duration = Duration::from_secs(20);
/// Parts of one large request in flight at a time.
const PARTS: usize = 8;

/// The VDI table.
pub struct Table {
    gateway: Rc<Gateway>,
}

impl Table {
    /// Over this node's gateway.
    pub fn new(gateway: Rc<Gateway>) -> Rc<Self> {
        Rc::new(Self { gateway })
    }
}

/// Working volume (`None`) or a snapshot's layer and size.
type Found = (VdiId, Option<(LayerId, u64)>);

/// As whom a client opens a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// Without an attachment, to read and write.
    Anyone,
    /// `#ro`: without an attachment, to read.
    Reader,
    /// `#number`: with this attachment.
    Holder(AttachmentId),
}

/// What an export name says behind the volume's name. Tags of snapshots may hold anything.
pub fn client_of(name: &str) -> Result<(&str, Client), VolumeError> {
    match name.split_once('#') {
        _ if name.contains('@') => Ok((name, Client::Anyone)),
        None => Ok((name, Client::Anyone)),
        Some((base, "ro")) => Ok((base, Client::Reader)),
        Some((base, id)) => match id.parse() {
            Ok(id) if id > 0 => Ok((base, Client::Holder(AttachmentId(id)))),
            _ => Err(VolumeError::NotFound(format!(
                "\"{name}\" is no export: behind # stands the number of an attachment, or ro"
            ))),
        },
    }
}

/// Find `name` or `name@tag` (tag or number).
pub fn find(state: &ClusterState, name: &str) -> Result<Found, VolumeError> {
    let missing = || VolumeError::NotFound(format!("there is no VDI or snapshot named \"{name}\""));
    let (base, tag) = match name.split_once('@') {
        Some((base, tag)) => (base, Some(tag)),
        None => (name, None),
    };
    let vdi = state.names.get(base).and_then(|id| state.vdis.get(id)).ok_or_else(missing)?;
    match tag {
        None if vdi.working().is_some() => Ok((vdi.id, None)),
        None => Err(missing()),
        Some(tag) => {
            let by_tag = vdi.shown().find(|s| s.tag == tag);
            let by_id = || vdi.shown().find(|s| tag.parse() == Ok(s.id));
            let s = by_tag.or_else(by_id).ok_or_else(missing)?;
            Ok((vdi.id, Some((s.layer, s.size))))
        }
    }
}

fn exports(vdi: &Vdi) -> Vec<ExportInfo> {
    let mut out = Vec::new();
    if vdi.working().is_some() {
        out.push(ExportInfo { name: vdi.name.clone(), size: vdi.size, read_only: false });
    }
    for s in vdi.shown() {
        let tag = if s.tag.is_empty() { s.id.to_string() } else { s.tag.clone() };
        out.push(ExportInfo { name: format!("{}@{tag}", vdi.name), size: s.size, read_only: true });
    }
    out
}

/// How long a name that is not known here may take to be looked up.
const KNOWING: std::time::Duration = std::time::Duration::from_secs(10);

/// Open a VDI by its id, or one of its layers.
pub async fn open_image(
    gateway: &Rc<Gateway>,
    vdi: VdiId,
    layer: Option<LayerId>,
) -> Result<Rc<dyn Volume>, VolumeError> {
    match layer {
        Some(layer) => {
            let control = &gateway.replica.control;
            let size = || {
                control.read(|s| {
                    let v = s.vdis.get(&vdi)?;
                    let snapshot = v.snapshots.iter().find(|s| s.layer == layer);
                    Some(snapshot.map_or(v.size, |s| s.size))
                })
            };
            if size().is_none() {
                control.barrier().await;
            }
            let size = size().ok_or_else(|| VolumeError::Gone("the VDI was deleted".into()))?;
            Ok(Rc::new(Frozen { gateway: gateway.clone(), layer, size }))
        }
        None => {
            // Whether it may write is seen when it does.
            Ok(open_live(gateway, vdi, Client::Anyone, false).await?)
        }
    }
}

/// Open a VDI as somebody who has it attached.
pub async fn open_attached(
    gateway: &Rc<Gateway>,
    vdi: VdiId,
    by: AttachmentId,
) -> Result<Rc<dyn Volume>, VolumeError> {
    Ok(open_live(gateway, vdi, Client::Holder(by), false).await?)
}

/// `change`: only if that client may write.
async fn open_live(
    gateway: &Rc<Gateway>,
    vdi: VdiId,
    client: Client,
    change: bool,
) -> Result<Rc<Live>, VolumeError> {
    let by = match client {
        Client::Holder(by) => by,
        Client::Anyone | Client::Reader => AttachmentId::NONE,
    };
    let (entry, open) = gateway.attach(vdi, by, change).await?;
    let read_only = match client {
        Client::Anyone => false,
        Client::Reader => true,
        Client::Holder(_) => gateway.permits(vdi, by, true) == Err(VolumeError::ReadOnly),
    };
    let ear = Rc::new(Ear::default());
    entry.rule.listen_to(&ear);
    Ok(Rc::new(Live {
        gateway: gateway.clone(),
        entry,
        open,
        read_only,
        flight: Rc::default(),
        ear,
        background: Cell::default(),
    }))
}

impl Table {
    /// A name that is not known here may be new, or this process: then it is made sure first.
    async fn find(&self, name: &str) -> Result<(VdiId, Option<(LayerId, u64)>), VolumeError> {
        let control = &self.gateway.replica.control;
        match control.read(|s| find(s, name)) {
            Err(VolumeError::NotFound(_)) => {
                let _ = tokio::time::timeout(KNOWING, control.barrier()).await;
                control.read(|s| find(s, name))
            }
            found => found,
        }
    }
}

impl VolumeSource for Table {
    fn list(&self) -> LocalFut<'_, Result<Vec<ExportInfo>, VolumeError>> {
        Box::pin(async move {
            let control = &self.gateway.replica.control;
            if !control.lease_valid() {
                let _ = tokio::time::timeout(KNOWING, control.barrier()).await;
            }
            Ok(control.read(|s| s.vdis.values().flat_map(exports).collect()))
        })
    }
    fn info(&self, name: &str) -> LocalFut<'_, Result<ExportInfo, VolumeError>> {
        let name = name.to_owned();
        Box::pin(async move {
            let (base, client) = client_of(&name)?;
            let (vdi, snapshot) = self.find(base).await?;
            let read_only = match client {
                Client::Anyone => snapshot.is_some(),
                Client::Reader => true,
                Client::Holder(by) => {
                    let control = &self.gateway.replica.control;
                    if control.read(|s| by.0 > s.last_attachment) {
                        let _ = tokio::time::timeout(KNOWING, control.barrier()).await;
                    }
                    self.gateway.permits(vdi, by, false)?;
                    self.gateway.permits(vdi, by, true).is_err()
                }
            };
            let size_now = || self.gateway.replica.control.read(|s| s.vdis.get(&vdi).map_or(0, |v| v.size));
            let size = snapshot.map_or_else(size_now, |(_, size)| size);
            Ok(ExportInfo { name, size, read_only })
        })
    }
    fn open(&self, name: &str) -> LocalFut<'_, Result<Rc<dyn Volume>, VolumeError>> {
        let (name, gateway) = (name.to_owned(), self.gateway.clone());
        Box::pin(async move {
            let (base, client) = client_of(&name)?;
            let (vdi, snapshot) = self.find(base).await?;
            let volume: Rc<dyn Volume> = match snapshot {
                Some((layer, size)) => Rc::new(Frozen { gateway, layer, size }),
                None => open_live(&gateway, vdi, client, client == Client::Anyone).await?,
            };
            Ok(volume)
        })
    }
}

/// A working volume.
struct Live {
    gateway: Rc<Gateway>,
    entry: Rc<Attached>,
    open: Open,
    read_only: bool,
    flight: Rc<Flight>,
    ear: Rc<Ear>,
    /// Makes way for clients: it is none.
    background: Cell<bool>,
}

/// Requests of one open that have not ended.
#[derive(Default)]
struct Flight {
    count: Cell<u32>,
    idle: tokio::sync::Notify,
    /// When a request that took long was last told of.
    told: Cell<Option<Instant>>,
}

impl Flight {
    async fn ended(&self) {
        until(&self.idle, || (self.count.get() == 0).then_some(())).await;
    }
}

struct InFlight(Rc<Flight>);
impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if self.0.count.get() == 0 {
            self.0.idle.notify_waiters();
        }
    }
}

impl Live {
    fn enter(&self) -> Result<InFlight, VolumeError> {
        if self.ear.gone.get() == Gone::Closed {
            return Err(VolumeError::Gone("closed".into()));
        }
        self.flight.count.set(self.flight.count.get() + 1);
        Ok(InFlight(self.flight.clone()))
    }
    /// See `pace`.
    async fn admitted(&self, io: &Io) -> Result<(), VolumeError> {
        let bytes = match io {
            Io::Read { len, .. } => u64::from(*len),
            Io::Write { data, .. } => data.len() as u64,
            Io::Zero { .. } => 0,
            Io::Status { .. } => return Ok(()),
        };
        let (control, gone) = (&self.gateway.replica.control, || self.ear.gone.get() != Gone::No);
        self.entry.pace.admit(control, self.entry.vdi, bytes, gone).await
    }
    /// One request. Says in the log what it may be waiting for when it takes long, unless another one of this volume has just done so.
    async fn one(&self, io: Io) -> Result<IoDone, VolumeError> {
        let (kind, bytes, began) = (io.kind(), io.bytes(), Instant::now());
        let work = self.carry_out(io);
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(SLOW) => {
                    if self.flight.told.get().is_some_and(|told| told.elapsed() < SLOW) {
                        continue;
                    }
                    self.flight.told.set(Some(Instant::now()));
                    let (vdi, why) = (self.entry.vdi, self.gateway.describe(self.entry.vdi));
                    let waited = began.elapsed().as_secs();
                    tracing::warn!(%vdi, kind, ?bytes, waited, %why, "a request takes long");
                }
            }
        }
    }
    async fn carry_out(&self, io: Io) -> Result<IoDone, VolumeError> {
        self.admitted(&io).await?;
        let (in_flight, began) = (self.enter()?, Instant::now());
        if matches!(io, Io::Read { .. } | Io::Status { .. }) {
            let done = self.gateway.submit(&self.entry, self.open, &io).await;
            if !self.background.get() {
                self.gateway.replica.sync.served(began.elapsed());
            }
            return done;
        }
        if self.read_only {
            return Err(VolumeError::ReadOnly);
        }
        // A change that has begun goes to its end, also when nobody waits for it any more: half of it would be worse.
        let (gateway, entry, open) = (self.gateway.clone(), self.entry.clone(), self.open);
        let task = tokio::task::spawn_local(async move {
            let _in_flight = in_flight;
            let done = gateway.submit_change(&entry, open, &io).await;
            gateway.replica.sync.served(began.elapsed());
            done
        });
        task.await.unwrap_or(Err(VolumeError::ShuttingDown))
    }
    /// Cut into parts that can be forwarded and run some of them at a time.
    async fn parts(
        &self,
        offset: u64,
        len: u64,
        max: u64,
        make: impl Fn(u64, u64) -> Io,
    ) -> Result<(), VolumeError> {
        if len <= max {
            return self.one(make(offset, len)).await.map(drop);
        }
        let mut todo = (0..len.div_ceil(max)).map(|i| {
            let at = offset + i * max;
            make(at, max.min(offset + len - at))
        });
        let mut running = FuturesUnordered::new();
        let mut failed = None;
        loop {
            while running.len() < PARTS && failed.is_none() {
                let Some(io) = todo.next() else { break };
                running.push(self.one(io));
            }
            match running.next().await {
                None => return failed.map_or(Ok(()), Err),
                Some(Err(e)) => failed = Some(e),
                Some(Ok(_)) => {}
            }
        }
    }
}

impl Volume for Live {
    fn size(&self) -> u64 {
        self.gateway.replica.control.read(|s| s.vdis.get(&self.entry.vdi).map_or(0, |v| v.size))
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn read(&self, offset: u64, len: u32) -> LocalFut<'_, Result<Vec<Bytes>, VolumeError>> {
        Box::pin(async move {
            if len as u64 <= MAX_FORWARD {
                return match self.one(Io::Read { layer: None, offset, len }).await? {
                    IoDone::Data(d) => Ok(d),
                    other => Err(VolumeError::Io(format!("a read ended as {other:?}"))),
                };
            }
            let mut running = FuturesOrdered::new();
            let (mut at, end) = (offset, offset + len as u64);
            let mut out = Vec::new();
            loop {
                while running.len() < PARTS && at < end {
                    let n = MAX_FORWARD.min(end - at) as u32;
                    running.push_back(self.one(Io::Read { layer: None, offset: at, len: n }));
                    at += n as u64;
                }
                match running.next().await {
                    None => return Ok(out),
                    Some(Ok(IoDone::Data(d))) => out.extend(d),
                    Some(Ok(other)) => return Err(VolumeError::Io(format!("a read ended as {other:?}"))),
                    Some(Err(e)) => return Err(e),
                }
            }
        })
    }
    fn write(&self, offset: u64, data: Bytes) -> LocalFut<'_, Result<(), VolumeError>> {
        Box::pin(async move {
            let len = data.len() as u64;
            self.parts(offset, len, MAX_FORWARD, |at, n| Io::Write {
                offset: at,
                data: data.slice((at - offset) as usize..(at - offset + n) as usize),
            })
            .await
        })
    }
    fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> LocalFut<'_, Result<(), VolumeError>> {
        Box::pin(async move {
            if !flags.no_hole {
                let part = |at, n| Io::Zero { offset: at, len: n, discard: false };
                return self.parts(offset, len, 256 << 20, part).await;
            }
            if flags.fast {
                return Err(VolumeError::NotFast);
            }
            let zeros = AlignedBuf::zeroed(len.min(MAX_FORWARD) as usize).freeze();
            let part = |at, n: u64| Io::Write { offset: at, data: zeros.slice(..n as usize) };
            self.parts(offset, len, MAX_FORWARD, part).await
        })
    }
    fn trim(&self, offset: u64, len: u64) -> LocalFut<'_, Result<(), VolumeError>> {
        Box::pin(self.parts(offset, len, 256 << 20, |at, n| Io::Zero { offset: at, len: n, discard: true }))
    }
    fn flush(&self) -> LocalFut<'_, Result<(), VolumeError>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn block_status(
        &self,
        offset: u64,
        len: u64,
        max: usize,
    ) -> LocalFut<'_, Result<Vec<Extent>, VolumeError>> {
        Box::pin(async move {
            // Bounded work per request: a shorter answer is allowed.
            let len = len.min(1 << 30);
            match self.one(Io::Status { layer: None, offset, len, max }).await? {
                IoDone::Extents(e) => Ok(e),
                other => Err(VolumeError::Io(format!("a status ended as {other:?}"))),
            }
        })
    }
    fn watch(&self, hung_up: Rc<dyn Fn() -> bool>) {
        *self.ear.hung_up.borrow_mut() = Some(hung_up);
    }
    fn revoked(&self) -> LocalFut<'_, ()> {
        let by = self.open.by;
        // Without an attachment only writing can be lost.
        let change = by == AttachmentId::NONE;
        if change && self.read_only {
            return Box::pin(std::future::pending());
        }
        Box::pin(self.gateway.revoked(self.entry.vdi, by, change))
    }
    fn set_background(&self) {
        self.background.set(true);
    }
    fn abandon(&self) {
        self.entry.rule.abandon(&self.ear);
    }
    fn close(&self) -> LocalFut<'_, ()> {
        Box::pin(async move {
            self.abandon();
            self.flight.ended().await;
            if self.entry.rule.bury(&self.ear) {
                self.gateway.detach(self.entry.clone(), self.open);
            }
        })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // A front-end that ends without `close` (it was aborted) still gives its open back, once its requests have ended.
        self.abandon();
        // Nothing runs here any more when the daemon ends, and the session ends with it.
        if self.ear.gone.get() != Gone::Dying || self.gateway.is_over() {
            return;
        }
        let (gateway, entry, open) = (self.gateway.clone(), self.entry.clone(), self.open);
        let (flight, ear) = (self.flight.clone(), self.ear.clone());
        let bury = async move {
            flight.ended().await;
            if entry.rule.bury(&ear) {
                gateway.detach(entry, open);
            }
        };
        tokio::task::spawn_local(bury);
    }
}

/// A snapshot.
struct Frozen {
    gateway: Rc<Gateway>,
    layer: LayerId,
    size: u64,
}

impl Volume for Frozen {
    fn size(&self) -> u64 {
        self.size
    }
    fn read_only(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, len: u32) -> LocalFut<'_, Result<Vec<Bytes>, VolumeError>> {
        Box::pin(async move {
            if offset.checked_add(len as u64).is_none_or(|e| e > self.size) {
                return Err(VolumeError::OutOfRange);
            }
            self.gateway.read_frozen(self.layer, offset, len).await
        })
    }
    fn write(&self, _: u64, _: Bytes) -> LocalFut<'_, Result<(), VolumeError>> {
        Box::pin(std::future::ready(Err(VolumeError::ReadOnly)))
    }
    fn zero(&self, _: u64, _: u64, _: ZeroFlags) -> LocalFut<'_, Result<(), VolumeError>> {
        Box::pin(std::future::ready(Err(VolumeError::ReadOnly)))
    }
    fn trim(&self, _: u64, _: u64) -> LocalFut<'_, Result<(), VolumeError>> {
        Box::pin(std::future::ready(Err(VolumeError::ReadOnly)))
    }
    fn flush(&self) -> LocalFut<'_, Result<(), VolumeError>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn block_status(
        &self,
        offset: u64,
        len: u64,
        max: usize,
    ) -> LocalFut<'_, Result<Vec<Extent>, VolumeError>> {
        Box::pin(async move { self.gateway.extents(self.layer, offset, len.min(1 << 30), max).await })
    }
    fn close(&self) -> LocalFut<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_a_name_says_who_comes() {
        let holder = |n| Client::Holder(AttachmentId(n));
        for (name, base, client) in [
            ("disk", "disk", Client::Anyone),
            ("disk#ro", "disk", Client::Reader),
            ("disk#17", "disk", holder(17)),
            ("disk#18446744073709551615", "disk", holder(u64::MAX)),
            // A tag may hold anything, and a snapshot is for everybody.
            ("disk@monday", "disk@monday", Client::Anyone),
            ("disk@a#1", "disk@a#1", Client::Anyone),
            ("disk#1@a", "disk#1@a", Client::Anyone),
        ] {
            assert_eq!(client_of(name), Ok((base, client)), "{name}");
        }
        for name in ["disk#", "disk#0", "disk#-1", "disk#1#2", "disk#rw", "disk#18446744073709551616"] {
            assert!(matches!(client_of(name), Err(VolumeError::NotFound(_))), "{name}");
        }
    }
}
