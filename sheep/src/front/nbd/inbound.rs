//! Bytes from a client to requests.
//!
//! Headers and small payloads are read in bulk into one buffer, many requests per system call. A larger payload is read straight
//! into its aligned buffer. Every payload leaves here aligned to 4 KiB.

use crate::buf::AlignedBuf;
use bytes::Bytes;
use sheepdog_nbd::wire::{Broken, REQUEST_LEN};
use sheepdog_nbd::{Command, Refused, RequestHeader};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes read at once. 16 requests with 4 KiB each, or what a socket usually holds.
const BUFFER: usize = 128 << 10;
/// A payload up to this size is waited for in the buffer and copied; the copy is cheaper than a system call of its own.
const SMALL: usize = 16 << 10;

const _: () = assert!(BUFFER >= 2 * (SMALL + REQUEST_LEN));

/// What the session says to a header, before the payload is taken in.
pub(super) enum Verdict {
    /// Go ahead.
    Take(Command),
    /// Answer with an error, throw the payload away.
    Refuse(Refused),
    /// Not now: ask again later.
    Hold,
}

/// What came.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A valid request, its payload complete (empty for all but writes).
    Request { cookie: u64, command: Command, payload: Bytes },
    /// One to refuse.
    Refused { cookie: u64, refused: Refused },
    /// Nothing complete is there.
    NeedInput,
    /// A limit is reached.
    Held,
}

/// How a fill ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// Something came.
    Bytes,
    /// The buffer is full of requests that are held.
    Full,
    /// The client has closed.
    End,
}

/// A write whose payload is on its way.
struct Direct {
    cookie: u64,
    command: Command,
    payload: AlignedBuf,
    filled: usize,
}

/// The receiving half of a session.
pub(super) struct Inbound {
    buf: Box<[u8]>,
    head: usize,
    tail: usize,
    /// Bytes of a refused payload still to be thrown away.
    skip: usize,
    direct: Option<Direct>,
    /// A small write that was let through and waits for the rest of its payload in the buffer.
    admitted: Option<(RequestHeader, Command)>,
}

impl Inbound {
    /// `early` is what came behind the handshake.
    pub(super) fn new(early: &[u8]) -> Self {
        let mut buf = vec![0; BUFFER.max(early.len())].into_boxed_slice();
        buf[..early.len()].copy_from_slice(early);
        Self { buf, head: 0, tail: early.len(), skip: 0, direct: None, admitted: None }
    }

    fn waiting(&self) -> usize {
        self.tail - self.head
    }

    /// Read once.
    pub(super) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<Fill>> {
        let space = match &mut self.direct {
            Some(d) if d.filled < d.payload.len() => &mut d.payload[d.filled..],
            _ => {
                if self.head == self.tail {
                    (self.head, self.tail) = (0, 0);
                } else if self.buf.len() - self.tail < BUFFER / 4 && self.head >= self.buf.len() / 2 {
                    // Only then, so that a byte is moved at most once per byte taken, also while requests are held. What is
                    // incomplete is small, so when it does not fit the head is always that far.
                    self.buf.copy_within(self.head..self.tail, 0);
                    (self.head, self.tail) = (0, self.tail - self.head);
                }
                &mut self.buf[self.tail..]
            }
        };
        if space.is_empty() {
            return Poll::Ready(Ok(Fill::Full));
        }
        let mut space = ReadBuf::new(space);
        ready!(Pin::new(stream).poll_read(cx, &mut space))?;
        let n = space.filled().len();
        match &mut self.direct {
            Some(d) if d.filled < d.payload.len() => d.filled += n,
            _ => self.tail += n,
        }
        Poll::Ready(Ok(if n == 0 { Fill::End } else { Fill::Bytes }))
    }

    /// The next request, if it is complete. `judge` is asked once for each header that it lets pass or refuses.
    pub(super) fn next(
        &mut self,
        mut judge: impl FnMut(&RequestHeader) -> Verdict,
    ) -> Result<Incoming, Broken> {
        if let Some(d) = self.direct.take_if(|d| d.filled == d.payload.len()) {
            let Direct { cookie, command, payload, .. } = d;
            return Ok(Incoming::Request { cookie, command, payload: payload.freeze() });
        }
        if self.direct.is_some() {
            return Ok(Incoming::NeedInput);
        }
        let thrown = self.skip.min(self.waiting());
        (self.head, self.skip) = (self.head + thrown, self.skip - thrown);
        if self.skip > 0 {
            return Ok(Incoming::NeedInput);
        }
        if let Some((header, command)) = self.admitted {
            return Ok(self.small_write(header, command));
        }
        let Some((raw, _)) = self.buf[self.head..self.tail].split_first_chunk() else {
            return Ok(Incoming::NeedInput);
        };
        let header = RequestHeader::parse(raw)?;
        let payload = header.payload()? as usize;
        let command = match judge(&header) {
            Verdict::Take(command) => command,
            Verdict::Hold => return Ok(Incoming::Held),
            Verdict::Refuse(refused) => {
                self.head += REQUEST_LEN;
                self.skip = payload;
                return Ok(Incoming::Refused { cookie: header.cookie, refused });
            }
        };
        self.head += REQUEST_LEN;
        let cookie = header.cookie;
        if payload == 0 {
            return Ok(Incoming::Request { cookie, command, payload: Bytes::new() });
        }
        if payload <= SMALL {
            return Ok(self.small_write(header, command));
        }
        let mut buf = AlignedBuf::new(payload);
        let here = payload.min(self.waiting());
        buf[..here].copy_from_slice(&self.buf[self.head..self.head + here]);
        self.head += here;
        self.direct = Some(Direct { cookie, command, payload: buf, filled: here });
        self.next(judge)
    }

    fn small_write(&mut self, header: RequestHeader, command: Command) -> Incoming {
        let len = header.len as usize;
        if self.waiting() < len {
            self.admitted = Some((header, command));
            return Incoming::NeedInput;
        }
        self.admitted = None;
        let payload = AlignedBuf::copy_of(&self.buf[self.head..self.head + len]).freeze();
        self.head += len;
        Incoming::Request { cookie: header.cookie, command, payload }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sheepdog_nbd::wire::cmd;
    use sheepdog_nbd::{Errno, Terms, validate};
    use std::task::Waker;

    /// A socket that hands out its bytes in pieces of these sizes.
    struct Pieces<'a> {
        bytes: &'a [u8],
        sizes: std::iter::Cycle<std::slice::Iter<'a, usize>>,
    }

    impl AsyncRead for Pieces<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let size = self.sizes.next().copied().unwrap_or(1);
            let n = size.min(self.bytes.len()).min(buf.remaining());
            let (now, rest) = self.bytes.split_at(n);
            buf.put_slice(now);
            self.bytes = rest;
            Poll::Ready(Ok(()))
        }
    }

    fn payload(seed: usize, len: u32) -> Vec<u8> {
        (0..len as usize).map(|i| (i * 13 + seed) as u8).collect()
    }

    proptest! {
        /// However the stream is cut and whenever requests are held: each comes once, in order, its payload intact and aligned.
        #[test]
        fn requests_survive_any_cut(
            requests in proptest::collection::vec(
                prop_oneof![
                    Just((cmd::READ, 0)), Just((cmd::FLUSH, 0)), Just((99u16, 0)),
                    (0u32..40_000).prop_map(|n| (cmd::WRITE, n)),
                    (0u32..300_000).prop_map(|n| (cmd::WRITE, n)),
                ], 1..20),
            sizes in proptest::collection::vec(1usize..200_000, 1..10),
            holds in proptest::collection::vec(any::<bool>(), 1..10),
            early in 0usize..50_000,
        ) {
            let mut bytes = Vec::new();
            for (i, (kind, len)) in requests.iter().enumerate() {
                // Every fifth write lies outside, so that its payload is thrown away.
                let offset = if i % 5 == 4 { 1 << 40 } else { 0 };
                bytes.extend(RequestHeader { flags: 0, kind: *kind, cookie: i as u64, offset, len: *len }.encode());
                if *kind == cmd::WRITE {
                    bytes.extend(payload(i, *len));
                }
            }
            let terms = Terms { size: 1 << 30, read_only: false, structured: true, base_allocation: false };
            let (early, rest) = bytes.split_at(early.min(bytes.len()));
            let mut inbound = Inbound::new(early);
            let mut socket = Pieces { bytes: rest, sizes: sizes.iter().cycle() };
            let mut holds = holds.into_iter().chain([false]).cycle();
            let mut cx = Context::from_waker(Waker::noop());
            let (mut next, mut ended) = (0u64, false);
            while next < requests.len() as u64 {
                let incoming = inbound.next(|h| match validate(h, &terms) {
                    _ if holds.next() == Some(true) => Verdict::Hold,
                    Ok(c) => Verdict::Take(c),
                    Err(r) => Verdict::Refuse(r),
                }).unwrap();
                let (kind, len) = requests[next as usize];
                match incoming {
                    Incoming::NeedInput => {
                        prop_assert!(!ended, "all bytes are there");
                        let fill = inbound.poll_fill(&mut cx, &mut socket);
                        ended = matches!(fill, Poll::Ready(Ok(Fill::End)));
                    }
                    Incoming::Held => {}
                    Incoming::Refused { cookie, refused } => {
                        prop_assert_eq!(cookie, next);
                        let outside = kind == cmd::WRITE && refused.errno == Errno::NoSpace;
                        prop_assert!(outside || kind == 99 || next % 5 == 4);
                        next += 1;
                    }
                    Incoming::Request { cookie, payload: got, .. } => {
                        prop_assert_eq!(cookie, next);
                        let want = if kind == cmd::WRITE { payload(next as usize, len) } else { Vec::new() };
                        prop_assert!(got == want);
                        prop_assert!(got.is_empty() || (got.as_ptr() as usize).is_multiple_of(4096));
                        next += 1;
                    }
                }
            }
        }
    }

    #[test]
    fn the_buffer_does_not_grow_while_requests_are_held() {
        let read = RequestHeader { flags: 0, kind: cmd::READ, cookie: 1, offset: 0, len: 512 }.encode();
        let bytes = read.repeat(100_000);
        let mut socket = Pieces { bytes: &bytes, sizes: [10_000].iter().cycle() };
        let mut inbound = Inbound::new(&[]);
        let mut cx = Context::from_waker(Waker::noop());
        while !matches!(inbound.poll_fill(&mut cx, &mut socket), Poll::Ready(Ok(Fill::Full))) {}
        assert_eq!(inbound.waiting(), BUFFER);
        assert!(matches!(inbound.next(|_| Verdict::Hold), Ok(Incoming::Held)));
    }
}
