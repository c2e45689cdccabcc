//! What a sheep sends of a range, cut into chunks. A piece that is a chunk is not copied.

use crate::failure::{Failure, code};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, Stream, StreamExt};
use sheepdog_client::pb::Chunk;
use std::ops::Range;

/// See the module.
pub struct Cutter<S> {
    pieces: S,
    /// Bytes that are still to come, of the volume.
    left: Range<u64>,
    /// Bytes of a chunk.
    chunk: u64,
    /// Of the last piece what is not cut yet: data, or zeros.
    rest: Chunk,
    /// Beginning of the next chunk, when it comes in several pieces.
    begun: BytesMut,
}

impl<S> Cutter<S>
where
    S: Stream<Item = Result<Chunk, tonic::Status>> + Unpin,
{
    /// Of a range that begins where a chunk does.
    pub fn new(pieces: S, range: Range<u64>, chunk: u64) -> Self {
        Self { pieces, left: range, chunk, rest: Chunk::default(), begun: BytesMut::new() }
    }

    /// Chunks, each with its number; `None`: it was sent as zeros.
    pub fn into_stream(self) -> impl Stream<Item = Result<(usize, Option<Bytes>), Failure>> {
        stream::try_unfold(self, |mut this| async move { Ok(this.next().await?.map(|chunk| (chunk, this))) })
    }

    async fn next(&mut self) -> Result<Option<(usize, Option<Bytes>)>, Failure> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let number = (self.left.start / self.chunk) as usize;
        let whole = self.chunk.min(self.left.end - self.left.start);
        let contents = loop {
            if self.rest.data.is_empty() && self.rest.zeros == 0 {
                self.rest = self.piece().await?;
            }
            let wanted = whole - self.begun.len() as u64;
            let (data, zeros) = (wanted.min(self.rest.data.len() as u64), wanted.min(self.rest.zeros));
            if data == whole {
                self.rest.offset += data;
                break Some(self.rest.data.split_to(data as usize));
            }
            if zeros == whole {
                (self.rest.offset, self.rest.zeros) = (self.rest.offset + zeros, self.rest.zeros - zeros);
                break None;
            }
            self.begun.reserve(wanted as usize);
            if data > 0 {
                self.begun.extend_from_slice(&self.rest.data.split_to(data as usize));
            } else {
                self.begun.resize(self.begun.len() + zeros as usize, 0);
                self.rest.zeros -= zeros;
            }
            self.rest.offset += data.max(zeros);
            if self.begun.len() as u64 == whole {
                break Some(self.begun.split().freeze());
            }
        };
        self.left.start += whole;
        Ok(Some((number, contents)))
    }

    /// The next that the sheep sends, which has to follow the one before.
    async fn piece(&mut self) -> Result<Chunk, Failure> {
        let at = self.left.start + self.begun.len() as u64;
        let Some(piece) = self.pieces.next().await else {
            return Err(Failure::new(code::FAILED, "the sheep ended a read before its end: try again"));
        };
        let piece = piece?;
        if piece.offset != at || (piece.data.is_empty() == (piece.zeros == 0)) {
            return Err(Failure::new(code::FAILED, "the sheep left something out of a read: try again"));
        }
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;

    fn data(offset: u64, bytes: &[u8]) -> Chunk {
        Chunk { offset, data: Bytes::copy_from_slice(bytes), zeros: 0 }
    }

    fn zeros(offset: u64, zeros: u64) -> Chunk {
        Chunk { offset, data: Bytes::new(), zeros }
    }

    async fn cut(range: Range<u64>, pieces: Vec<Chunk>) -> Result<Vec<(usize, Option<Vec<u8>>)>, Failure> {
        let cutter = Cutter::new(stream::iter(pieces.into_iter().map(Ok)), range, 4);
        cutter.into_stream().map_ok(|(n, c)| (n, c.map(|c| c.to_vec()))).try_collect().await
    }

    #[tokio::test]
    async fn pieces_become_chunks_wherever_they_end() {
        let whole = |n, bytes: &[u8]| (n, Some(bytes.to_vec()));
        for (range, pieces, chunks) in [
            (0..0, vec![], vec![]),
            (8..16, vec![data(8, b"abcd"), data(12, b"efgh")], vec![whole(2, b"abcd"), whole(3, b"efgh")]),
            (8..16, vec![data(8, b"abcdefgh")], vec![whole(2, b"abcd"), whole(3, b"efgh")]),
            (
                0..8,
                vec![data(0, b"a"), data(1, b"bcdefg"), data(7, b"h")],
                vec![whole(0, b"abcd"), whole(1, b"efgh")],
            ),
            (0..12, vec![zeros(0, 12)], vec![(0, None), (1, None), (2, None)]),
            (
                0..14,
                vec![data(0, b"ab"), zeros(2, 8), data(10, b"cd"), data(12, b"ef")],
                vec![whole(0, b"ab\0\0"), (1, None), whole(2, b"\0\0cd"), whole(3, b"ef")],
            ),
            (4..5, vec![zeros(4, 1)], vec![(1, None)]),
        ] {
            assert_eq!(cut(range, pieces).await, Ok(chunks));
        }
    }

    #[tokio::test]
    async fn what_does_not_follow_is_refused() {
        for (pieces, why) in [
            (vec![], "ended a read"),
            (vec![data(0, b"abc")], "ended a read"),
            (vec![data(0, b"ab"), data(3, b"cdefg")], "left something out"),
            (vec![data(0, b"ab"), data(1, b"cdefg")], "left something out"),
            (vec![data(0, b"ab"), zeros(2, 0)], "left something out"),
            (vec![data(4, b"abcd")], "left something out"),
        ] {
            let said = cut(0..8, pieces).await.map_err(|f| f.message).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
