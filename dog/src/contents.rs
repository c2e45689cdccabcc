//! Contents of one image of the cluster, read and written here and there through the admin interface.
//!
//! Reads are streams of their own. Writes share one stream, which keeps the volume open: at most `WRITES` wait for their acknowledgement in it. When the connection breaks
//! both are repeated, for as long as `patience` says: a sheep opens a volume only when nothing of its dead connections can take effect any more, so that what is repeated is
//! not overtaken by itself.

use crate::blocks::Blocks;
use crate::context::Context;
use crate::failure::Failure;
use bytes::{Bytes, BytesMut};
use sheepdog_client::client::MAX_CHUNK;
use sheepdog_client::pb::{Chunk, DiffRequest, ReadRequest, VdiRef, WriteAck};
use sheepdog_client::{Client, Error, ErrorKind};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Writes of the stream that are not acknowledged.
const WRITES: usize = 8;
/// How long whoever only copies contents waits while the connection to the sheep is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Before what was broken off is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// A write on its way.
struct Job {
    chunk: Chunk,
    done: oneshot::Sender<Result<(), Error>>,
}

/// See the module.
pub struct Contents {
    client: Client,
    vdi: u32,
    snapshot: String,
    size: u64,
    attachment: u64,
    patience: Duration,
    writer: Mutex<Option<mpsc::Sender<Job>>>,
}

impl Contents {
    /// Of a VDI, as it is now or (not empty) of one of its snapshots, `size` bytes. It is written under an attachment, or under none (0).
    ///
    /// # Errors
    /// No sheep answers.
    pub async fn open(
        ctx: &Context,
        vdi: u32,
        snapshot: String,
        size: u64,
        attachment: u64,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let client = ctx.client().await?.clone();
        Ok(Self { client, vdi, snapshot, size, attachment, patience, writer: Mutex::new(None) })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Blocks that are allocated, those that were written as zeros too; without `zeros` only those that may be something else.
    ///
    /// # Errors
    /// The sheep cannot tell.
    pub async fn allocated(&self, zeros: bool) -> Result<Blocks, Failure> {
        let request =
            DiffRequest { vdi: Some(VdiRef::id(self.vdi)), from: String::new(), to: self.snapshot.clone() };
        let mut ranges = self.client.diff(request).await?;
        let mut out = Blocks::default();
        while let Some(r) = ranges.message().await? {
            if zeros || !r.zero {
                out.add_touched(r.offset..r.offset.saturating_add(r.length));
            }
        }
        Ok(out)
    }

    /// A range that lies in it.
    ///
    /// # Errors
    /// As the sheep says it.
    pub async fn read(&self, offset: u64, len: u64) -> Result<Bytes, Failure> {
        self.again(|| self.read_once(offset, len)).await
    }

    async fn read_once(&self, offset: u64, len: u64) -> Result<Bytes, Error> {
        let request = ReadRequest {
            vdi: Some(VdiRef::id(self.vdi)),
            snapshot: self.snapshot.clone(),
            offset,
            length: Some(len),
            background: false,
        };
        let mut pieces = self.client.read(request).await?;
        let (mut out, mut at) = (BytesMut::new(), offset);
        while let Some(piece) = pieces.message().await? {
            if piece.offset != at {
                return Err(Error::new(ErrorKind::Unreachable, "something was left out of a read"));
            }
            at += piece.data.len() as u64 + piece.zeros;
            if piece.data.len() as u64 == len {
                return Ok(piece.data);
            }
            out.reserve((len as usize).saturating_sub(out.len()));
            out.extend_from_slice(&piece.data);
            out.resize((at.min(offset + len) - offset) as usize, 0);
        }
        match out.len() as u64 == len {
            true => Ok(out.freeze()),
            false => Err(Error::new(ErrorKind::Unreachable, "a read ended before its end")),
        }
    }

    /// Write; durable when it returns.
    ///
    /// # Errors
    /// As the sheep says it. It may have taken effect in part.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), Failure> {
        let parts = (0..data.len()).step_by(MAX_CHUNK).map(|at| {
            let part = data.slice(at..data.len().min(at + MAX_CHUNK));
            (offset + at as u64, part)
        });
        let each = parts.map(|(offset, part)| {
            self.again(move || {
                let chunk = Chunk { offset, data: part.clone(), zeros: 0 };
                self.send(chunk)
            })
        });
        futures::future::try_join_all(each).await.map(drop)
    }

    /// Zeros, without space where they need none; durable when it returns.
    ///
    /// # Errors
    /// As for `write`.
    pub async fn discard(&self, offset: u64, len: u64) -> Result<(), Failure> {
        self.again(|| self.send(Chunk { offset, data: Bytes::new(), zeros: len })).await
    }

    /// Until it succeeds, fails for a reason that stays, or patience ends.
    async fn again<T, F: Future<Output = Result<T, Error>>>(
        &self,
        mut once: impl FnMut() -> F,
    ) -> Result<T, Failure> {
        let until = Instant::now() + self.patience;
        loop {
            match once().await {
                Ok(t) => return Ok(t),
                Err(e) if !passes(e.kind) => return Err(e.into()),
                Err(e) if Instant::now() >= until => return Err(e.into()),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn send(&self, chunk: Chunk) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        let jobs = self.writer().await?;
        let broken = || Error::new(ErrorKind::Unreachable, "the connection to the sheep broke");
        jobs.send(Job { chunk, done }).await.map_err(|_| broken())?;
        answer.await.map_err(|_| broken())?
    }

    /// The stream, opened when there is none.
    async fn writer(&self) -> Result<mpsc::Sender<Job>, Error> {
        let mut writer = self.writer.lock().await;
        if let Some(jobs) = writer.as_ref().filter(|w| !w.is_closed()) {
            return Ok(jobs.clone());
        }
        let (chunks, input) = mpsc::channel(WRITES);
        let stream = ReceiverStream::new(input);
        let acks = self.client.write_attached(VdiRef::id(self.vdi), self.attachment, stream).await?;
        let (jobs, queue) = mpsc::channel(WRITES);
        // Ends when the last sender of jobs has gone, or the stream has.
        tokio::spawn(pump(queue, chunks, acks));
        *writer = Some(jobs.clone());
        Ok(jobs)
    }
}

/// Does it help to try again?
fn passes(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unreachable | ErrorKind::Moved | ErrorKind::Cluster)
}

/// Jobs into the stream, acknowledgements back to those who wait for them. When the stream ends all who wait hear of it.
async fn pump(mut jobs: mpsc::Receiver<Job>, chunks: mpsc::Sender<Chunk>, mut acks: Streaming<WriteAck>) {
    let mut chunks = Some(chunks);
    let mut waiting: VecDeque<(u64, oneshot::Sender<Result<(), Error>>)> = VecDeque::new();
    let mut sent = 0u64;
    let why = loop {
        tokio::select! {
            biased;
            ack = acks.message() => match ack {
                Ok(Some(ack)) => {
                    while waiting.front().is_some_and(|(end, _)| *end <= ack.durable) {
                        // Who does not wait any more does not have to know.
                        let _ = waiting.pop_front().map(|(_, done)| done.send(Ok(())));
                    }
                }
                Ok(None) => break Error::new(ErrorKind::Unreachable, "the sheep ended a write"),
                Err(status) => break Error::from(status),
            },
            job = jobs.recv(), if chunks.is_some() && waiting.len() < WRITES => match (job, &chunks) {
                (Some(Job { chunk, done }), Some(out)) => {
                    sent += chunk.data.len() as u64 + chunk.zeros;
                    waiting.push_back((sent, done));
                    // When nobody takes it the acknowledgements end, too, and say why.
                    let _ = out.send(chunk).await;
                }
                _ => chunks = None,
            },
        }
    };
    jobs.close();
    while let Ok(job) = jobs.try_recv() {
        waiting.push_back((0, job.done));
    }
    for (_, done) in waiting {
        let _ = done.send(Err(why.clone()));
    }
}
