//! Frames on a byte stream: many small ones per system call, large payloads straight into aligned buffers.

use crate::buf::AlignedBuf;
use bytes::Bytes;
use sheepdog_proto::peer::{Envelope, Frame, HEADER_LEN, Kind, WireError};
use sheepdog_proto::{MAX_META, MAX_PAYLOAD};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes gathered per read call: several small frames, or one with a 32 KiB payload.
const READ_BUFFER: usize = 64 << 10;
/// Metadata of a first message: four ids.
const MAX_GREETING: usize = 1 << 10;
/// Slices per vectored write.
const MAX_SLICES: usize = 64;

/// A message as received, checked.
#[derive(Debug)]
pub struct Incoming {
    /// Kind.
    pub kind: Kind,
    /// Number.
    pub request: u64,
    /// Metadata.
    pub meta: Bytes,
    /// Payload, aligned to 4 KiB in memory.
    pub payload: Bytes,
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Socket.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Contents.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Reading half.
pub struct FrameReader<R> {
    io: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Wrap.
    pub fn new(io: R) -> Self {
        Self { io, buffer: vec![0; READ_BUFFER].into_boxed_slice(), start: 0, end: 0 }
    }

    async fn ensure(&mut self, want: usize) -> io::Result<()> {
        if self.buffer.len() - self.start < want {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < want {
            let n = self.io.read(&mut self.buffer[self.end..]).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.end += n;
        }
        Ok(())
    }

    /// Fill `out` from the buffer first, then from the stream.
    async fn take(&mut self, out: &mut [u8]) -> io::Result<()> {
        let n = out.len().min(self.end - self.start);
        out[..n].copy_from_slice(&self.buffer[self.start..self.start + n]);
        self.start += n;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if n < out.len() {
            self.io.read_exact(&mut out[n..]).await?;
        }
        Ok(())
    }

    /// Next message. Not cancel-safe: the stream is lost when the future is dropped midway.
    pub async fn next(&mut self) -> Result<Incoming, FrameError> {
        self.next_within(MAX_META, MAX_PAYLOAD).await
    }

    /// The first message: short, because nothing is known yet of who sends it.
    pub async fn greeting(&mut self) -> Result<Incoming, FrameError> {
        self.next_within(MAX_GREETING, 0).await
    }

    async fn next_within(&mut self, meta: usize, payload: usize) -> Result<Incoming, FrameError> {
        self.ensure(HEADER_LEN).await?;
        let head: [u8; HEADER_LEN] =
            self.buffer[self.start..self.start + HEADER_LEN].try_into().expect("length was ensured");
        self.start += HEADER_LEN;
        let envelope = Envelope::decode(&head)?;
        if envelope.meta_len > meta {
            return Err(WireError::TooLong("metadata", envelope.meta_len).into());
        }
        if envelope.payload_len > payload {
            return Err(WireError::TooLong("payload", envelope.payload_len).into());
        }
        let mut meta = vec![0; envelope.meta_len];
        self.take(&mut meta).await?;
        let payload = if envelope.payload_len == 0 {
            Bytes::new()
        } else {
            let mut buf = AlignedBuf::new(envelope.payload_len);
            self.take(&mut buf).await?;
            buf.freeze()
        };
        envelope.verify(&meta, &payload)?;
        Ok(Incoming { kind: envelope.kind, request: envelope.request, meta: meta.into(), payload })
    }
}

/// Write every frame of `queue`, as few calls as possible.
pub async fn write_frames<W: AsyncWrite + Unpin>(io: &mut W, frames: &[Frame]) -> io::Result<()> {
    let mut parts: VecDeque<&[u8]> = VecDeque::with_capacity(frames.len() * 2);
    for f in frames {
        parts.push_back(&f.head);
        parts.extend(f.payload.iter().filter(|p| !p.is_empty()).map(|p| p.as_ref()));
    }
    while !parts.is_empty() {
        let slices: Vec<IoSlice<'_>> = parts.iter().take(MAX_SLICES).map(|p| IoSlice::new(p)).collect();
        let mut n = io.write_vectored(&slices).await?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while n > 0 {
            let first = parts.front_mut().expect("no more was written than there is");
            if n >= first.len() {
                n -= first.len();
                parts.pop_front();
            } else {
                *first = &first[n..];
                n = 0;
            }
        }
    }
    io.flush().await
}
