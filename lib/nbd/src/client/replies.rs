//! Requests under way and their replies, simple and structured, in any order.
//!
//! What holds: a reply is only accepted for a request that is out, within its range, and a read is complete only when every
//! byte of it has come exactly once.

use crate::wire::{self, Broken, Reader, cflag, chunk, cmd};
use crate::{Errno, RequestHeader};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::BTreeMap;

/// Scattered chunks of one read, or runs of one block status, that we keep.
const MAX_PIECES: usize = 1 << 16;

/// One run of a block status answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub len: u32,
    /// `wire::state` bits.
    pub flags: u32,
}

/// What a successful request gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Ok,
    /// All bytes of a read.
    Data(Bytes),
    /// Answer to a block status.
    Extents(Vec<Extent>),
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{errno}{}{why}", if why.is_empty() { "" } else { ": " })]
pub struct Failed {
    /// From the wire.
    pub errno: Errno,
    /// The server's sentence, may be empty.
    pub why: String,
}

/// A finished request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// As `submit` returned it.
    pub cookie: u64,
    /// How it ended.
    pub result: Result<Outcome, Failed>,
}

#[derive(Debug)]
struct Pending {
    kind: u16,
    offset: u64,
    len: u32,
    /// Bytes of a read, filled as chunks come.
    data: BytesMut,
    /// Ranges of `data` that have come, `start -> end`, disjoint.
    have: BTreeMap<u32, u32>,
    extents: Vec<Extent>,
    failed: Option<Failed>,
}

/// The requests of one connection that are under way.
#[derive(Debug)]
pub struct Replies {
    structured: bool,
    next: u64,
    pending: BTreeMap<u64, Pending>,
}

impl Replies {
    /// `structured` as the handshake agreed.
    pub fn new(structured: bool) -> Self {
        Self { structured, next: 1, pending: BTreeMap::new() }
    }

    /// Requests without a reply yet.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Put a request into `out`. For a write, send its `len` bytes of payload right after. Returns its cookie.
    /// `kind` is one of `wire::cmd`, `flags` of `wire::cflag`. `DISC` gets no reply and is not remembered.
    pub fn submit(&mut self, kind: u16, flags: u16, offset: u64, len: u32, out: &mut BytesMut) -> u64 {
        let cookie = self.next;
        self.next += 1;
        out.put_slice(&RequestHeader { flags, kind, cookie, offset, len }.encode());
        if kind != cmd::DISC {
            let data = if kind == cmd::READ { BytesMut::zeroed(len as usize) } else { BytesMut::new() };
            let (have, extents, failed) = (BTreeMap::new(), Vec::new(), None);
            self.pending.insert(cookie, Pending { kind, offset, len, data, have, extents, failed });
        }
        cookie
    }

    /// Whole read in one request: the usual case.
    pub fn read(&mut self, offset: u64, len: u32, out: &mut BytesMut) -> u64 {
        self.submit(cmd::READ, 0, offset, len, out)
    }

    /// Write that is durable when answered; `data` is copied behind the header.
    pub fn write(&mut self, offset: u64, data: &[u8], out: &mut BytesMut) -> u64 {
        let cookie = self.submit(cmd::WRITE, cflag::FUA, offset, data.len() as u32, out);
        out.put_slice(data);
        cookie
    }

    /// Consume replies from `input` until a request is complete. `None`: read more.
    pub fn receive(&mut self, input: &mut BytesMut) -> Result<Option<Completion>, Broken> {
        loop {
            let Some(magic) = Reader(input).u32() else { return Ok(None) };
            let (used, completion) = match magic {
                wire::SIMPLE_REPLY => self.simple(input)?,
                wire::STRUCTURED_REPLY if self.structured => self.chunk(input)?,
                got => return Err(Broken::Magic { what: "reply", got: u64::from(got) }),
            };
            if used == 0 {
                return Ok(None);
            }
            input.advance(used);
            if completion.is_some() {
                return Ok(completion);
            }
        }
    }

    fn take(&mut self, cookie: u64) -> Result<Pending, Broken> {
        self.pending.remove(&cookie).ok_or(STRAY)
    }

    /// Returns bytes used (0: incomplete) and what is complete.
    fn simple(&mut self, input: &[u8]) -> Result<(usize, Option<Completion>), Broken> {
        let mut r = Reader(input);
        r.u32();
        let (Some(code), Some(cookie)) = (r.u32(), r.u64()) else { return Ok((0, None)) };
        let p = self.pending.get(&cookie).ok_or(STRAY)?;
        if self.structured && p.kind == cmd::READ {
            return Err(Broken::Unexpected("simple reply to a read although structured replies were agreed"));
        }
        if p.kind == cmd::BLOCK_STATUS && code == 0 {
            return Err(Broken::Unexpected("block status answered without status"));
        }
        let content = if code == 0 && p.kind == cmd::READ { p.len as usize } else { 0 };
        let Some(data) = r.bytes(content) else { return Ok((0, None)) };
        let mut p = self.take(cookie)?;
        let result = match code {
            0 if p.kind == cmd::READ => {
                p.data.copy_from_slice(data);
                Ok(Outcome::Data(p.data.freeze()))
            }
            0 => Ok(Outcome::Ok),
            code => Err(Failed { errno: Errno::from_code(code), why: String::new() }),
        };
        Ok((16 + content, Some(Completion { cookie, result })))
    }

    fn chunk(&mut self, input: &[u8]) -> Result<(usize, Option<Completion>), Broken> {
        let mut r = Reader(input);
        r.u32();
        let (Some(flags), Some(kind), Some(cookie), Some(len)) = (r.u16(), r.u16(), r.u64(), r.u32()) else {
            return Ok((0, None));
        };
        let max = u64::from(wire::MAX_REQUEST) + 8;
        if u64::from(len) > max {
            return Err(Broken::TooLong { what: "reply chunk", len: u64::from(len), max });
        }
        let p = self.pending.get_mut(&cookie).ok_or(STRAY)?;
        let Some(content) = r.bytes(len as usize) else { return Ok((0, None)) };
        p.accept(kind, content)?;
        let completion = if flags & chunk::DONE != 0 {
            let result = self.take(cookie)?.finish()?;
            Some(Completion { cookie, result })
        } else {
            None
        };
        Ok((20 + len as usize, completion))
    }
}

const STRAY: Broken = Broken::Unexpected("reply to a request that is not under way");
const MALFORMED: Broken = Broken::Unexpected("malformed reply chunk");

impl Pending {
    fn accept(&mut self, kind: u16, content: &[u8]) -> Result<(), Broken> {
        let mut r = Reader(content);
        match kind {
            chunk::NONE if content.is_empty() => {}
            chunk::OFFSET_DATA if self.kind == cmd::READ => {
                let offset = r.u64().ok_or(MALFORMED)?;
                let at = self.claim(offset, r.0.len() as u64)?;
                self.data[at..at + r.0.len()].copy_from_slice(r.0);
            }
            chunk::OFFSET_HOLE if self.kind == cmd::READ => {
                let (offset, len) = (r.u64().ok_or(MALFORMED)?, r.u32().ok_or(MALFORMED)?);
                self.claim(offset, u64::from(len))?; // the buffer is zero already
            }
            chunk::BLOCK_STATUS if self.kind == cmd::BLOCK_STATUS => {
                r.u32().ok_or(MALFORMED)?; // the only context we ask for
                while !r.is_empty() {
                    if self.extents.len() >= MAX_PIECES {
                        return Err(Broken::Unexpected("block status in too many pieces"));
                    }
                    let (len, flags) = (r.u32().ok_or(MALFORMED)?, r.u32().ok_or(MALFORMED)?);
                    self.extents.push(Extent { len, flags });
                }
            }
            k if k & 0x8000 != 0 => {
                let errno = Errno::from_code(r.u32().ok_or(MALFORMED)?);
                let n = r.u16().ok_or(MALFORMED)?;
                let why = r.bytes(usize::from(n)).ok_or(MALFORMED)?;
                let why = wire::text(why).unwrap_or_default().to_owned();
                self.failed.get_or_insert(Failed { errno, why });
            }
            _ => return Err(Broken::Unexpected("reply chunk of a kind this request does not have")),
        }
        Ok(())
    }

    /// Note that `len` bytes at `offset` have come; where in `data` they go.
    fn claim(&mut self, offset: u64, len: u64) -> Result<usize, Broken> {
        let outside = Broken::Unexpected("reply chunk outside the request");
        let start = offset.checked_sub(self.offset).ok_or(outside.clone())?;
        let end = start.checked_add(len).filter(|&e| e <= u64::from(self.len)).ok_or(outside)?;
        if len == 0 {
            return Err(Broken::Unexpected("empty reply chunk"));
        }
        let (start, end) = (start as u32, end as u32);
        let pieces = self.have.len();
        match self.have.range_mut(..end).next_back() {
            Some((_, e)) if *e > start => return Err(Broken::Unexpected("reply chunks overlap")),
            Some((_, e)) if *e == start => *e = end,
            _ if pieces >= MAX_PIECES => return Err(Broken::Unexpected("read answered in too many pieces")),
            _ => {
                self.have.insert(start, end);
            }
        }
        Ok(start as usize)
    }

    fn finish(self) -> Result<Result<Outcome, Failed>, Broken> {
        if let Some(failed) = self.failed {
            return Ok(Err(failed));
        }
        Ok(Ok(match self.kind {
            cmd::READ => {
                let have: u32 = self.have.iter().map(|(s, e)| e - s).sum();
                if have != self.len {
                    return Err(Broken::Unexpected("read answered in part"));
                }
                Outcome::Data(self.data.freeze())
            }
            cmd::BLOCK_STATUS if self.extents.is_empty() => {
                return Err(Broken::Unexpected("block status answered without status"));
            }
            cmd::BLOCK_STATUS => Outcome::Extents(self.extents),
            _ => Outcome::Ok,
        }))
    }
}
