//! Strips of erasure coded objects: kept here for others, fetched from others, made again from any D of them.
//!
//! A strip never changes, so nothing has to be ordered: whoever has one of the right seal has the right one. What order there is, is in the objects that point to strips
//! (`store::sealed`, docs/design/erasure.md).

use super::replica::Replica;
use crate::store::{ColdRun, ReadResult, StoreError};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use sheepdog_erasure::{Codec, Shape};
use sheepdog_proto::checksum::crc32c;
use sheepdog_proto::peer::{Needs, Request, Response, Seal, SealedRow, Status};
use sheepdog_proto::{
    BLOCK_SHIFT, BLOCK_SIZE, BlockMap, ControlIndex, Epoch, LayerId, MAX_PAYLOAD, NodeId, ObjectId,
    PlacementKey, VdiId,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// Objects looked at per answer of an inventory: a few milliseconds.
const PAGE: usize = 512;
/// Strips and objects asked for in one message.
pub(crate) const ASKED: usize = 512;
/// How long to wait for the asker's epoch.
const EPOCH_WAIT: Duration = Duration::from_secs(10);
/// Blocks brought back at a time.
const CHUNK: u32 = 256;
/// A read that comes upon strips that are being replaced looks again.
const ATTEMPTS: usize = 3;

/// The shape of an object of this size under a seal.
pub(crate) fn shape(object_size: u32, seal: Seal) -> Shape {
    Shape { blocks: object_size >> BLOCK_SHIFT, data: seal.data, parity: seal.parity }
}

/// Runs of rows that are not all zeros, and their contents.
pub(crate) fn contents(strip: &[u8]) -> (Vec<Range<u32>>, Bytes) {
    let mut runs: Vec<Range<u32>> = Vec::new();
    let mut data = Vec::with_capacity(strip.len());
    for (row, block) in (0u32..).zip(strip.chunks_exact(BLOCK_SIZE)) {
        if block.iter().all(|b| *b == 0) {
            continue;
        }
        match runs.last_mut() {
            Some(last) if last.end == row => last.end = row + 1,
            _ => runs.push(row..row + 1),
        }
        data.extend_from_slice(block);
    }
    (runs, data.into())
}

pub(super) fn matches(data: &[u8], crcs: &[u32]) -> bool {
    data.len() == crcs.len() << BLOCK_SHIFT
        && data.chunks_exact(BLOCK_SIZE).zip(crcs).all(|(block, crc)| crc32c(block) == *crc)
}

/// Which strips of what.
#[derive(Clone, Copy)]
pub(crate) struct Sealed {
    /// The object.
    pub oid: ObjectId,
    /// Its family.
    pub family: LayerId,
    /// Its size, bytes.
    pub object_size: u32,
    /// The seal.
    pub seal: Seal,
}

impl Sealed {
    pub(crate) fn key(self) -> PlacementKey {
        PlacementKey { family: self.family, index: self.oid.index() }
    }
    pub(crate) fn shape(self) -> Shape {
        shape(self.object_size, self.seal)
    }
    pub(crate) fn strip(self, role: u8) -> ObjectId {
        self.oid.strip_of(self.seal.slot, role)
    }
}

impl From<SealedRow> for Sealed {
    fn from(row: SealedRow) -> Self {
        Self { oid: row.oid, family: row.family, object_size: row.object_size, seal: row.seal }
    }
}

impl Replica {
    /// Requests about strips; the payload belongs to `PutStrip`.
    pub(crate) async fn handle_strips(
        self: &Rc<Self>,
        request: Request,
        payload: Bytes,
    ) -> (Response, Vec<Bytes>) {
        let response = match request {
            Request::PutStrip { oid, family, vdi, object_size, seal, rows, replace } => {
                let of = Sealed { oid: oid.whole(), family, object_size, seal };
                let role = oid.strip().map_or(u8::MAX, |(_, role)| role);
                self.put_strip(of, role, vdi, (&rows, &payload), replace).await
            }
            Request::GetStrip { oid, seal, rows } => match self.get_strip(oid, seal, rows).await {
                Ok(data) => return (Response::Strip, vec![data]),
                Err(failed) => failed,
            },
            Request::Seal { oid, family, seal, blocks, crcs, epoch, control_index } => {
                self.seal_here(oid, family, seal, (&blocks, &crcs), epoch, control_index).await
            }
            Request::Sealed { node, epoch, after } => self.sealed_for(node, epoch, after).await,
            Request::HasStrips { strips } => self.has_here(&strips).await,
            Request::Seals { objects, epoch, control_index } => {
                self.seals_here(&objects, epoch, control_index).await
            }
            _ => Response::Failed(Status::Invalid, "not about strips".into()),
        };
        (response, Vec::new())
    }

    /// Ask a node, which may be this one, about strips.
    pub(super) async fn ask_strips(
        self: &Rc<Self>,
        node: NodeId,
        request: Request,
        payload: Bytes,
    ) -> Result<(Response, Bytes), String> {
        if node == self.control.me() {
            let (response, parts) = self.handle_strips(request, payload).await;
            return Ok((response, parts.into_iter().next().unwrap_or_default()));
        }
        let payload = if payload.is_empty() { Vec::new() } else { vec![payload] };
        self.links.to(node).request(&request, payload).await.map_err(|e| e.to_string())
    }

    async fn put_strip(
        &self,
        of: Sealed,
        role: u8,
        vdi: VdiId,
        (rows, data): (&[Range<u32>], &Bytes),
        replace: bool,
    ) -> Response {
        let Some(store) = &self.store else { return Response::Failed(Status::NotHere, "a gateway".into()) };
        let known = self.control.read(|s| s.families.get(&of.family).map(|f| f.object_size));
        let fits = of.seal.check().is_ok()
            && known == Some(of.object_size)
            && rows.iter().all(|r| r.start < r.end && r.end <= of.shape().rows());
        if !fits {
            return Response::Failed(Status::Invalid, "not a strip of this object".into());
        }
        if replace
            && let Some((row, _)) = store.row(of.strip(role))
            && let Err(e) = store.remove_strip(&row, || true).await
        {
            return Response::Failed(self.status_of(&e), e.to_string());
        }
        match store.put_strip(of.strip(role), of.key(), vdi, of.object_size, of.seal, rows, data).await {
            Ok(()) => Response::Done,
            Err(e) => Response::Failed(self.status_of(&e), e.to_string()),
        }
    }

    async fn has_here(&self, strips: &[(ObjectId, Seal)]) -> Response {
        let Some(store) = &self.store else { return Response::Failed(Status::NotHere, "a gateway".into()) };
        let has = strips.iter().map(|(oid, seal)| store.has_strip(*oid, *seal)).collect();
        // Others remove theirs because of this answer.
        match store.all_durable().await {
            Ok(()) => Response::Has(has),
            Err(e) => Response::Failed(self.status_of(&e), e.to_string()),
        }
    }

    async fn get_strip(&self, oid: ObjectId, seal: Seal, rows: Range<u32>) -> Result<Bytes, Response> {
        let failed = |status, why: &str| Err(Response::Failed(status, why.into()));
        let Some(store) = &self.store else { return failed(Status::NotHere, "a gateway") };
        if rows.start >= rows.end || rows.len() << BLOCK_SHIFT > MAX_PAYLOAD {
            return failed(Status::Invalid, "too much at once");
        }
        if !store.has_strip(oid, seal) {
            return failed(Status::NotHere, "no such strip");
        }
        match store.read_object(oid, rows).await {
            // It may have been replaced while it was read.
            Ok(_) if !store.has_strip(oid, seal) => failed(Status::NotHere, "no such strip any more"),
            Ok(read) => Ok(read.data),
            Err(e) => Err(Response::Failed(self.status_of(&e), e.to_string())),
        }
    }

    /// See `Request::Seal`.
    async fn seal_here(
        self: &Rc<Self>,
        oid: ObjectId,
        family: LayerId,
        seal: Seal,
        (blocks, crcs): (&BlockMap, &[u32]),
        epoch: Epoch,
        index: ControlIndex,
    ) -> Response {
        if !self.catch_up(index).await {
            return Response::Failed(Status::NoLease, "behind the control plane".into());
        }
        let Some(store) = &self.store else { return Response::Failed(Status::NotHere, "a gateway".into()) };
        if !oid.is_data() || seal.check().is_err() || blocks.count() as usize != crcs.len() {
            return Response::Failed(Status::Invalid, "not a seal".into());
        }
        let stat = self.stat_one(oid, family).await;
        if stat.status != Status::Ok || self.sync.is_filling(oid) {
            return Response::Failed(Status::NotHere, "not complete here".into());
        }
        // By another map the strips may belong elsewhere, and whoever asked what it should have was told without them.
        match store.seal(oid, epoch, seal, (blocks, crcs), || self.admit(epoch).is_ok()).await {
            Ok(true) => Response::Done,
            Ok(false) => {
                Response::Failed(Status::Behind, "it was written meanwhile, or the map changed".into())
            }
            Err(e) => Response::Failed(self.status_of(&e), e.to_string()),
        }
    }

    /// See `Request::Sealed`: what clean copies here say.
    async fn sealed_for(&self, node: NodeId, epoch: Epoch, after: Option<ObjectId>) -> Response {
        // Seals of older epochs are refused from here on, so what the listing misses is placed by the asker's map.
        let mut watch = self.control.watch();
        let wait = watch.wait_for(|a| a.epoch >= epoch);
        if tokio::time::timeout(EPOCH_WAIT, wait).await.is_err() {
            return Response::Failed(Status::NoLease, "behind the control plane".into());
        }
        let Some(store) = &self.store else { return Response::Sealed { rows: Vec::new(), next: None } };
        let page = store.list(after, PAGE);
        let next = (page.len() == PAGE).then(|| page.last().map(|r| r.oid)).flatten();
        let map = self.control.map();
        let mut rows = Vec::new();
        for row in page.iter().filter(|row| row.sealed() && row.oid.is_data()) {
            if row.filling || self.control.read(|s| !s.layers.contains_key(&row.oid.layer())) {
                continue;
            }
            let Some(seal) = row.seal.filter(|_| self.vouched(row.oid, row.key.family).status == Status::Ok)
            else {
                continue;
            };
            if map.strip_targets(row.key, seal.strips()).contains(&Some(node)) {
                rows.push(SealedRow {
                    oid: row.oid,
                    family: row.key.family,
                    vdi: row.vdi,
                    object_size: row.object_size,
                    seal,
                });
            }
        }
        Response::Sealed { rows, next }
    }

    /// See `Request::Seals`.
    async fn seals_here(
        &self,
        objects: &[(ObjectId, LayerId, u32)],
        epoch: Epoch,
        index: ControlIndex,
    ) -> Response {
        if !self.catch_up(index).await {
            return Response::Failed(Status::NoLease, "behind the control plane".into());
        }
        let Some(store) = &self.store else { return Response::Failed(Status::NotHere, "a gateway".into()) };
        for (oid, _, number) in objects.iter().filter(|(.., number)| *number > 0) {
            if let Err(e) = store.promise(*oid, *number).await {
                return Response::Failed(self.status_of(&e), e.to_string());
            }
        }
        let mut out = Vec::with_capacity(objects.len());
        for (oid, family, _) in objects {
            let row = store.row(*oid).map(|(row, _)| row);
            let (here, seal) = (row.is_some(), row.and_then(|r| r.seal));
            out.push(Needs { stat: self.vouched(*oid, *family), here, seal });
        }
        // Strips are removed because of this answer: it must still be true after a power cut.
        if let Err(e) = store.all_durable().await {
            return Response::Failed(self.status_of(&e), e.to_string());
        }
        if let Err((status, _)) = self.admit(epoch) {
            return Response::Failed(status, "another epoch".into());
        }
        Response::Seals(out)
    }

    /// What each of these nodes says of objects, and promises; an error when one does not answer.
    pub(crate) async fn seals(
        self: &Rc<Self>,
        nodes: &[NodeId],
        objects: &[(ObjectId, LayerId, u32)],
        epoch: Epoch,
    ) -> Result<Vec<Vec<Needs>>, String> {
        let mut all = Vec::with_capacity(nodes.len());
        for node in nodes {
            let control_index = self.control.applied().index;
            let request = Request::Seals { objects: objects.to_vec(), epoch, control_index };
            match self.ask_strips(*node, request, Bytes::new()).await?.0 {
                Response::Seals(seals) if seals.len() == objects.len() => all.push(seals),
                Response::Failed(_, why) => return Err(why),
                _ => return Err("unexpected answer".into()),
            }
        }
        Ok(all)
    }

    /// Has the node this strip?
    pub(crate) async fn has_strips(
        self: &Rc<Self>,
        node: NodeId,
        strips: Vec<(ObjectId, Seal)>,
    ) -> Result<Vec<bool>, String> {
        let count = strips.len();
        match self.ask_strips(node, Request::HasStrips { strips }, Bytes::new()).await?.0 {
            Response::Has(has) if has.len() == count => Ok(has),
            Response::Failed(_, why) => Err(why),
            _ => Err("unexpected answer".into()),
        }
    }

    /// Of these strips, those that the node has not.
    pub(crate) async fn lacking<T>(
        self: &Rc<Self>,
        node: NodeId,
        strips: Vec<T>,
        which: impl Fn(&T) -> (Sealed, u8),
    ) -> Result<Vec<T>, String> {
        let name = |strip: &T| {
            let (of, role) = which(strip);
            (of.strip(role), of.seal)
        };
        let has = self.has_strips(node, strips.iter().map(name).collect()).await?;
        Ok(strips.into_iter().zip(has).filter_map(|(strip, has)| (!has).then_some(strip)).collect())
    }

    /// Have a node keep a strip, all of it.
    pub(crate) async fn send_strip(
        self: &Rc<Self>,
        node: NodeId,
        of: Sealed,
        role: u8,
        vdi: VdiId,
        strip: &[u8],
    ) -> Result<(), String> {
        self.put_strip_at(node, of, role, vdi, strip, false).await
    }

    /// The same. `replace`: what it has under this name is wrong.
    pub(crate) async fn put_strip_at(
        self: &Rc<Self>,
        node: NodeId,
        of: Sealed,
        role: u8,
        vdi: VdiId,
        strip: &[u8],
        replace: bool,
    ) -> Result<(), String> {
        let (rows, data) = contents(strip);
        let request = Request::PutStrip {
            oid: of.strip(role),
            family: of.family,
            vdi,
            object_size: of.object_size,
            seal: of.seal,
            rows,
            replace,
        };
        match self.ask_strips(node, request, data).await?.0 {
            Response::Done => Ok(()),
            Response::Failed(_, why) => Err(why),
            _ => Err("unexpected answer".into()),
        }
    }

    /// Have a node give up what is in strips.
    pub(crate) async fn ask_to_seal(
        self: &Rc<Self>,
        node: NodeId,
        of: Sealed,
        blocks: &BlockMap,
        crcs: &[u32],
        epoch: Epoch,
    ) -> Result<(), String> {
        let request = Request::Seal {
            oid: of.oid,
            family: of.family,
            seal: of.seal,
            blocks: blocks.clone(),
            crcs: crcs.to_vec(),
            epoch,
            control_index: self.control.applied().index,
        };
        match self.ask_strips(node, request, Bytes::new()).await?.0 {
            Response::Done => Ok(()),
            Response::Failed(_, why) => Err(why),
            _ => Err("unexpected answer".into()),
        }
    }

    /// Rows of one strip from whoever has it. `None`: nobody who is up.
    async fn rows_of(self: &Rc<Self>, of: Sealed, role: u8, rows: Range<u32>) -> Option<Bytes> {
        let map = self.control.map();
        let oid = of.strip(role);
        let (me, len) = (self.control.me(), rows.len() << BLOCK_SHIFT);
        let mut nodes = map.strip_holders(of.key(), of.seal.strips(), role);
        // What is here costs nothing to ask.
        nodes.sort_by_key(|n| *n != me);
        for node in nodes {
            if !map.nodes.get(&node).is_some_and(|n| n.is_up()) {
                continue;
            }
            let request = Request::GetStrip { oid, seal: of.seal, rows: rows.clone() };
            match self.ask_strips(node, request, Bytes::new()).await {
                Ok((Response::Strip, data)) if data.len() == len => return Some(data),
                Ok((Response::Failed(Status::Corrupt, _), _)) if node == me => {
                    self.sync.corrupt(oid, of.family);
                }
                _ => {}
            }
        }
        None
    }

    /// Rows of one strip, made from any D others.
    async fn rebuild_rows(
        self: &Rc<Self>,
        of: Sealed,
        role: u8,
        rows: Range<u32>,
    ) -> Result<Vec<u8>, String> {
        let codec = Codec::new(of.seal.data, of.seal.parity).map_err(|e| e.to_string())?;
        let need = usize::from(of.seal.data);
        let mut found: BTreeMap<u8, Bytes> = BTreeMap::new();
        let mut others = (0..of.seal.strips()).filter(|r| *r != role);
        let mut running = FuturesUnordered::new();
        while found.len() < need {
            while found.len() + running.len() < need {
                let Some(r) = others.next() else { break };
                let rows = rows.clone();
                running.push(async move { (r, self.rows_of(of, r, rows).await) });
            }
            match running.next().await {
                None => break,
                Some((r, Some(data))) => {
                    found.insert(r, data);
                }
                Some((_, None)) => {}
            }
        }
        let strips: Vec<Option<&[u8]>> =
            (0..of.seal.strips()).map(|r| found.get(&r).map(|b| b.as_ref())).collect();
        let rebuilt = codec.rebuild(&strips, &[usize::from(role)]).map_err(|e| e.to_string())?;
        rebuilt.into_iter().next().ok_or_else(|| "nothing was rebuilt".into())
    }

    /// Contents of blocks that are in strips.
    pub(crate) async fn fetch_cold(self: &Rc<Self>, family: LayerId, run: &ColdRun) -> Result<Bytes, String> {
        let of = Sealed { oid: run.oid, family, object_size: run.object_size, seal: run.seal };
        let mut whole = Vec::with_capacity(run.blocks.len() << BLOCK_SHIFT);
        for (role, rows, blocks) in of.shape().cut(run.blocks.clone()) {
            let from = (blocks.start - run.blocks.start) as usize;
            let Some(crcs) = run.crcs.get(from..from + blocks.len()) else {
                return Err("checksums are missing".into());
            };
            if let Some(data) = self.rows_of(of, role, rows.clone()).await
                && matches(&data, crcs)
            {
                if blocks == run.blocks {
                    return Ok(data);
                }
                whole.extend_from_slice(&data);
                continue;
            }
            let data = self.rebuild_rows(of, role, rows).await?;
            if !matches(&data, crcs) {
                tracing::error!(oid = %run.oid, blocks = ?run.blocks, seal = ?run.seal, "strips do not fit the checksums of their object");
                return Err(format!("strips of object {} do not fit its checksums", run.oid));
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole.into())
    }

    /// What a read found, with what is in strips. `again` looks once more, when strips were replaced meanwhile.
    pub(crate) async fn with_cold<F>(
        self: &Rc<Self>,
        family: LayerId,
        first: u32,
        again: impl Fn() -> F,
    ) -> Result<ReadResult, StoreError>
    where
        F: Future<Output = Result<ReadResult, StoreError>>,
    {
        let mut sealed = None;
        for _ in 0..ATTEMPTS {
            let mut found = again().await?;
            if found.cold.is_empty() {
                return Ok(found);
            }
            let mut data = crate::buf::AlignedBuf::copy_of(&found.data);
            let mut failed = None;
            for run in &found.cold {
                match self.fetch_cold(family, run).await {
                    Ok(bytes) => {
                        let at = ((run.blocks.start - first) as usize) << BLOCK_SHIFT;
                        data[at..at + bytes.len()].copy_from_slice(&bytes);
                    }
                    Err(why) => {
                        tracing::debug!(oid = %run.oid, blocks = ?run.blocks, %why, "strips");
                        failed = Some(run.oid);
                        break;
                    }
                }
            }
            if failed.is_none() {
                found.data = data.freeze();
                found.cold.clear();
                return Ok(found);
            }
            sealed = failed;
        }
        Err(StoreError::Sealed { oid: sealed.unwrap_or_default() })
    }

    /// Make the strip that this node should have of an object, if it has not; bytes fetched.
    pub(crate) async fn make_strip(self: &Rc<Self>, of: Sealed, role: u8, vdi: VdiId) -> Result<u64, String> {
        let store = self.store.clone().ok_or("a gateway")?;
        if store.has_strip(of.strip(role), of.seal) {
            return Ok(0);
        }
        let bytes = u64::from(of.shape().rows()) << BLOCK_SHIFT;
        store.may_rebuild(of.strip(role), of.key(), bytes).await.map_err(|e| e.to_string())?;
        let (strip, cost) = self.whole_strip(of, role).await?;
        self.sync.fetched(cost);
        self.send_strip(self.control.me(), of, role, vdi, &strip).await.map(|()| cost)
    }

    /// A strip here is damaged: it is made again, if a copy is known to need it. If not it stays until it is known that none does: then it is removed like any other.
    pub(crate) async fn heal_strip(self: &Rc<Self>, oid: ObjectId, family: LayerId) -> Result<(), String> {
        let store = self.store.clone().ok_or("a gateway")?;
        let Some((row, _)) = store.row(oid) else { return Ok(()) };
        let damaged = match store.verify(oid).await {
            Ok(found) => !found.damaged.is_empty(),
            Err(StoreError::CorruptHeader { .. }) => true,
            Err(e) => return Err(e.to_string()),
        };
        if !damaged {
            return Ok(());
        }
        let (Some((slot, role)), whole) = (oid.strip(), oid.whole()) else { return Ok(()) };
        let known = self
            .control
            .read(|s| Some((s.families.get(&family)?.redundancy, s.families.get(&family)?.object_size)));
        // Of a deleted volume.
        let Some((redundancy, object_size)) = known else { return Ok(()) };
        let map = self.control.map();
        let key = PlacementKey { family, index: oid.index() };
        let up = |n: &NodeId| map.nodes.get(n).is_some_and(|v| v.is_up());
        let holders: Vec<NodeId> = map.acting(key, redundancy).all().filter(up).collect();
        let all = self.seals(&holders, &[(whole, family, 0)], map.epoch).await?;
        let mut clean = all.iter().flatten().filter(|needs| needs.stat.status == Status::Ok).peekable();
        if clean.peek().is_none() {
            return Err("no copy of its object can say whether it is needed".into());
        }
        // A header that cannot be read does not say which one it was.
        let this = |s: &Seal| {
            s.slot == slot
                && (row.version == Default::default() || (s.version, s.digest) == (row.version, row.epoch.0))
        };
        let Some(seal) = clean.find_map(|needs| needs.seal.filter(this)) else { return Ok(()) };
        let of = Sealed { oid: whole, family, object_size, seal };
        let strip = self.rebuild_rows(of, role, 0..of.shape().rows()).await?;
        store.remove_strip(&row, || true).await.map_err(|e| e.to_string())?;
        self.send_strip(self.control.me(), of, role, row.vdi, &strip).await?;
        tracing::warn!(%oid, "a damaged strip was made again from others");
        Ok(())
    }

    /// A strip from whoever has it, or else made again from others; and how many bytes were read for it.
    pub(crate) async fn whole_strip(self: &Rc<Self>, of: Sealed, role: u8) -> Result<(Vec<u8>, u64), String> {
        let rows = 0..of.shape().rows();
        let bytes = (rows.len() << BLOCK_SHIFT) as u64;
        self.sync.throttle(bytes).await;
        // By an older map another node has it, or had.
        if let Some(data) = self.rows_of(of, role, rows.clone()).await {
            return Ok((data.to_vec(), bytes));
        }
        let all = bytes * u64::from(of.seal.data);
        self.sync.throttle(all - bytes).await;
        Ok((self.rebuild_rows(of, role, rows).await?, all))
    }

    /// Have a node keep a strip that it lacks.
    pub(crate) async fn give_strip(
        self: &Rc<Self>,
        node: NodeId,
        of: Sealed,
        role: u8,
        vdi: VdiId,
    ) -> Result<(), String> {
        let (strip, _) = self.whole_strip(of, role).await?;
        self.send_strip(node, of, role, vdi, &strip).await
    }

    /// Bring an object's contents back from strips, here.
    pub(crate) async fn thaw(self: &Rc<Self>, oid: ObjectId, family: LayerId) -> Result<(), String> {
        let store = self.store.clone().ok_or("a gateway")?;
        let Some(info) = store.info(oid).await.map_err(|e| e.to_string())? else { return Ok(()) };
        let Some(seal) = info.seal else { return Ok(()) };
        for run in info.cold.set_runs().collect::<Vec<_>>() {
            let mut first = run.start;
            while first < run.end {
                let chunk = first..(first + CHUNK).min(run.end);
                first = chunk.end;
                self.sync.throttle((chunk.len() << BLOCK_SHIFT) as u64).await;
                let read = self
                    .with_cold(family, chunk.start, || store.read_object(oid, chunk.clone()))
                    .await
                    .map_err(|e| e.to_string())?;
                store.thaw(oid, seal, chunk, &read.data).await.map_err(|e| e.to_string())?;
            }
        }
        match store.info(oid).await.map_err(|e| e.to_string())?.and_then(|i| i.seal) {
            None => Ok(()),
            Some(_) => Err("it was sealed again meanwhile".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_with_contents_are_kept() {
        let mut strip = vec![0u8; 5 * BLOCK_SIZE];
        strip[BLOCK_SIZE] = 1;
        strip[3 * BLOCK_SIZE - 1] = 2;
        strip[5 * BLOCK_SIZE - 1] = 3;
        let (rows, data) = contents(&strip);
        assert_eq!(rows, [1..3, 4..5]);
        assert_eq!(data.len(), 3 * BLOCK_SIZE);
        assert_eq!((data[0], data[2 * BLOCK_SIZE - 1], data[3 * BLOCK_SIZE - 1]), (1, 2, 3));
        assert_eq!(contents(&[0; BLOCK_SIZE]), (Vec::new(), Bytes::new()));
    }
}
