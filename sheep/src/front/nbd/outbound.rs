//! Replies to bytes: heads inline, data by reference, everything that is ready in one `writev`.

use bytes::{Buf, Bytes};
use sheepdog_nbd::reply::Head;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Pieces per system call: 64 read replies.
const BATCH: usize = 128;

enum Piece {
    Head(Head),
    Data(Bytes),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Head(h) => h,
            Self::Data(d) => d,
        }
    }
}

/// The sending half of a session. Its size is bounded by the session, which counts `len` as in flight.
#[derive(Default)]
pub(super) struct Outbound {
    queue: VecDeque<Piece>,
    /// Bytes of the first piece that are sent already.
    sent: usize,
    len: usize,
}

impl Outbound {
    /// Bytes not yet sent.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn head(&mut self, head: Head) {
        self.len += head.len();
        self.queue.push_back(Piece::Head(head));
    }

    pub(super) fn data(&mut self, data: Bytes) {
        if data.has_remaining() {
            self.len += data.len();
            self.queue.push_back(Piece::Data(data));
        }
    }

    /// Nobody will read this any more.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Send once; `Ready` when something was sent.
    pub(super) fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<()>> {
        let mut slices = [IoSlice::new(&[]); BATCH];
        let mut used = 0;
        for (slot, piece) in slices.iter_mut().zip(&self.queue) {
            let skip = if used == 0 { self.sent } else { 0 };
            *slot = IoSlice::new(&piece.bytes()[skip..]);
            used += 1;
        }
        let n = ready!(Pin::new(stream).poll_write_vectored(cx, &slices[..used]))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(n);
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, n: usize) {
        self.len -= n;
        self.sent += n;
        while let Some(first) = self.queue.front() {
            let len = first.bytes().len();
            if self.sent < len {
                break;
            }
            self.sent -= len;
            self.queue.pop_front();
        }
    }
}
