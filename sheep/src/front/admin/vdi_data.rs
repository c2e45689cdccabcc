//! The streams of `VdiService` that move or compare contents.

use super::backend::{AdminVolume, CheckStep, DataError, Image, Piece};
use super::service::{Admin, Answers, is_forwarded, usage};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use sheepdog_client::client::MAX_CHUNK;
use sheepdog_client::pb::*;
use sheepdog_client::{Error, ErrorKind};
use sheepdog_cluster::Command;
use sheepdog_proto::AttachmentId;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

type Stream1<T> = Result<Response<Answers<T>>, Status>;

/// Bytes that one reader asks for at a time, and readers in flight.
const SPAN: u64 = 4 << 20;
const SPANS: usize = 4;
/// Writes of one stream in flight.
const WRITES: usize = 8;
/// One step of preallocation.
const ALLOCATE: u64 = 16 << 20;

fn chunk(offset: u64, piece: Piece) -> Chunk {
    match piece {
        Piece::Data(data) => Chunk { offset, data, zeros: 0 },
        Piece::Zeros(zeros) => Chunk { offset, data: Default::default(), zeros },
    }
}

async fn read_span(
    volume: Arc<Box<dyn AdminVolume>>,
    mut offset: u64,
    end: u64,
) -> Result<Vec<Chunk>, DataError> {
    let mut chunks = Vec::new();
    while offset < end {
        let piece = volume.read(offset, (end - offset).min(MAX_CHUNK as u64)).await?;
        let n = match &piece {
            Piece::Data(d) => d.len() as u64,
            Piece::Zeros(n) => *n,
        };
        if n == 0 || n > end - offset {
            return Err(DataError::Failed("a read was answered with the wrong length".into()));
        }
        chunks.push(chunk(offset, piece));
        offset += n;
    }
    Ok(chunks)
}

pub(super) fn read(admin: &Arc<Admin>, r: ReadRequest) -> Stream1<Chunk> {
    let (image, size) = admin.image(&r.vdi, &r.snapshot)?;
    let length = r.length.unwrap_or(size.saturating_sub(r.offset));
    if r.offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(usage(format!("the image ends at {size} bytes")).into());
    }
    admin.stream(async move |admin, sink| {
        let volume = Arc::new(admin.data().open(image).await?);
        if r.background {
            volume.set_background();
        }
        let (mut next, end) = (r.offset, r.offset + length);
        let mut spans = FuturesOrdered::new();
        let mut zeros: Option<Chunk> = None;
        loop {
            while spans.len() < SPANS && next < end {
                let stop = (next + SPAN).min(end);
                spans.push_back(read_span(volume.clone(), next, stop));
                next = stop;
            }
            let Some(chunks) = spans.next().await else { break };
            for c in chunks? {
                // Holes are told as few messages, whatever their size.
                match &mut zeros {
                    Some(z) if c.zeros > 0 => z.zeros += c.zeros,
                    _ => {
                        let before = if c.zeros > 0 { zeros.replace(c.clone()) } else { zeros.take() };
                        if let Some(z) = before
                            && !sink.send(z).await
                        {
                            return Ok(());
                        }
                        if c.zeros == 0 && !sink.send(c).await {
                            return Ok(());
                        }
                    }
                }
            }
        }
        if let Some(z) = zeros {
            sink.send(z).await;
        }
        drop(spans);
        volume.close().await;
        Ok(())
    })
}

fn piece(c: Chunk) -> Result<(u64, u64, Piece), Error> {
    match (c.data.len(), c.zeros) {
        (0, n) if n > 0 => Ok((c.offset, n, Piece::Zeros(n))),
        (n, 0) if n > 0 && n <= MAX_CHUNK => Ok((c.offset, n as u64, Piece::Data(c.data))),
        _ => Err(usage(format!("a chunk has 1 to {MAX_CHUNK} bytes of data or a number of zeros"))),
    }
}

pub(super) fn write(admin: &Arc<Admin>, mut input: Streaming<WriteRequest>) -> Stream1<WriteAck> {
    use write_request::Message;
    admin.stream(async move |admin, sink| {
        let Some(WriteRequest { message: Some(Message::Vdi(vdi)), attachment }) = input.message().await?
        else {
            return Err(usage("the first message of a write names the VDI"));
        };
        let (image, _) = admin.image(&Some(vdi), "")?;
        let volume = Arc::new(match attachment {
            0 => admin.data().open(image).await?,
            id => admin.data().open_attached(image.vdi, AttachmentId(id)).await?,
        });
        let mut flying = FuturesOrdered::new();
        let mut ranges: std::collections::VecDeque<Range<u64>> = Default::default();
        let mut durable = 0;
        let mut open = true;
        while open || !flying.is_empty() {
            let message = tokio::select! {
                biased;
                Some(done) = flying.next(), if !flying.is_empty() => {
                    done?;
                    durable += ranges.pop_front().map_or(0, |r| r.end - r.start);
                    if !sink.send(WriteAck { durable }).await {
                        return Ok(());
                    }
                    continue;
                }
                m = input.message(), if open && flying.len() < WRITES => m?,
            };
            let c = match message {
                None => {
                    open = false;
                    continue;
                }
                Some(WriteRequest { message: Some(Message::Chunk(c)), .. }) => c,
                Some(_) => return Err(usage("a write stream names its VDI once, then sends chunks")),
            };
            let (offset, len, piece) = piece(c)?;
            let end = offset.checked_add(len).ok_or_else(|| usage("a chunk ends beyond 2^64"))?;
            // Overlapping writes take effect in the order they were sent.
            while ranges.iter().any(|r| r.start < end && offset < r.end) {
                let Some(done) = flying.next().await else { break };
                done?;
                durable += ranges.pop_front().map_or(0, |r| r.end - r.start);
                sink.send(WriteAck { durable }).await;
            }
            ranges.push_back(offset..end);
            let volume = volume.clone();
            flying.push_back(async move { volume.write(offset, piece).await });
        }
        drop(flying);
        volume.close().await;
        Ok(())
    })
}

pub(super) fn preallocate(admin: &Arc<Admin>, r: PreallocateRequest) -> Stream1<Progress> {
    let (image, total) = admin.image(&r.vdi, "")?;
    admin.stream(async move |admin, sink| {
        let volume = admin.data().open(image).await?;
        let mut done = 0;
        while done < total {
            let len = ALLOCATE.min(total - done);
            volume.allocate(done, len).await?;
            done += len;
            let finished = done == total;
            if !sink.send(Progress { done, total, unit: "bytes".into(), finished }).await {
                break;
            }
        }
        volume.close().await;
        Ok(())
    })
}

pub(super) fn flatten(admin: &Arc<Admin>, r: Request<FlattenRequest>) -> Stream1<Progress> {
    let forwarded = is_forwarded(&r);
    let r = r.into_inner();
    let vdi = admin.vdi_id(&r.vdi)?;
    admin.stream(async move |admin, sink| {
        admin.propose(Command::FlattenStart { vdi }).await?;
        if let Some(owner) = admin.owner(vdi).filter(|n| n.id != admin.me()) {
            if forwarded {
                return Err(Error::new(ErrorKind::Moved, "the session moved to another node: try again"));
            }
            let mut theirs = admin.peers.to(&owner)?.flatten(r).await?;
            while let Some(p) = theirs.message().await? {
                if !sink.send(p).await {
                    break;
                }
            }
            return Ok(());
        }
        let (tx, mut rx) = mpsc::channel(16);
        let work = admin.data().flatten(vdi, tx);
        let mut last = (0, 0);
        let relay = async {
            while let Some(s) = rx.recv().await {
                last = (s.done, s.total);
                let p = Progress { done: s.done, total: s.total, unit: "objects".into(), finished: false };
                if !sink.send(p).await {
                    break;
                }
            }
        };
        let (result, ()) = tokio::join!(work, relay);
        result?;
        sink.send(Progress { done: last.1, total: last.1, unit: "objects".into(), finished: true }).await;
        Ok(())
    })
}

/// What a check of a VDI looks at.
fn check_image(admin: &Admin, r: &CheckRequest) -> Result<Image, Error> {
    if !r.snapshot.is_empty() {
        return Ok(admin.image(&r.vdi, &r.snapshot)?.0);
    }
    admin.with_vdi(&r.vdi, |_, v| {
        // With only snapshots left the newest one stands on the others.
        let layer = if v.working().is_some() { None } else { v.shown().last().map(|s| s.layer) };
        Ok(Image { vdi: v.id, layer })
    })
}

pub(super) fn check(admin: &Arc<Admin>, r: CheckRequest) -> Stream1<CheckReport> {
    let image = check_image(admin, &r)?;
    admin.stream(async move |admin, sink| {
        let (tx, mut rx) = mpsc::channel::<CheckStep>(16);
        let work = admin.data().check(image, r.repair, tx);
        let mut total = CheckReport::default();
        let relay = async {
            while let Some(step) = rx.recv().await {
                (total.objects_done, total.objects_total) = (step.done, step.total);
                let finding = step.finding.map(|f| {
                    total.bad += 1;
                    total.repaired += u64::from(f.repaired);
                    Finding {
                        object: f.oid.to_string(),
                        index: f.oid.index(),
                        node: f.node.to_string(),
                        text: f.text,
                        repaired: f.repaired,
                    }
                });
                if !sink.send(CheckReport { finding, ..total.clone() }).await {
                    break;
                }
            }
        };
        let (result, ()) = tokio::join!(work, relay);
        result?;
        total.finished = true;
        sink.send(total).await;
        Ok(())
    })
}
