//! Replies of the server: small fixed heads, so that data can follow them on the wire without being copied.

use crate::Errno;
use crate::wire::{self, chunk};
use bytes::{BufMut, Bytes, BytesMut};

/// Head of a reply, at most 32 bytes, kept inline.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Head {
    raw: [u8; 32],
    len: u8,
}

impl std::ops::Deref for Head {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.raw[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Head({:02x?})", &**self)
    }
}

impl Head {
    fn new() -> Self {
        Self { raw: [0; 32], len: 0 }
    }
    fn put(mut self, b: &[u8]) -> Self {
        let at = usize::from(self.len);
        self.raw[at..at + b.len()].copy_from_slice(b);
        self.len += b.len() as u8;
        self
    }
    fn chunk(last: bool, kind: u16, cookie: u64, len: u32) -> Self {
        let flags = if last { chunk::DONE } else { 0 };
        Self::new()
            .put(&wire::STRUCTURED_REPLY.to_be_bytes())
            .put(&flags.to_be_bytes())
            .put(&kind.to_be_bytes())
            .put(&cookie.to_be_bytes())
            .put(&len.to_be_bytes())
    }
}

/// Simple reply; the data of a successful read follows.
pub fn simple(cookie: u64, error: Option<Errno>) -> Head {
    Head::new()
        .put(&wire::SIMPLE_REPLY.to_be_bytes())
        .put(&error.map_or(0, Errno::code).to_be_bytes())
        .put(&cookie.to_be_bytes())
}

/// Structured success without content.
pub fn done(cookie: u64) -> Head {
    Head::chunk(true, chunk::NONE, cookie, 0)
}

/// `len` bytes of data at `offset` follow. `len` is at most `MAX_REQUEST`.
pub fn data(cookie: u64, offset: u64, len: u32, last: bool) -> Head {
    debug_assert!(len <= wire::MAX_REQUEST);
    Head::chunk(last, chunk::OFFSET_DATA, cookie, len + 8).put(&offset.to_be_bytes())
}

/// `len` zero bytes at `offset`, not sent.
pub fn hole(cookie: u64, offset: u64, len: u32, last: bool) -> Head {
    Head::chunk(last, chunk::OFFSET_HOLE, cookie, 12).put(&offset.to_be_bytes()).put(&len.to_be_bytes())
}

/// Structured error with a sentence, cut to what fits.
pub fn error(cookie: u64, errno: Errno, why: &str) -> Bytes {
    let why = wire::clip(why).as_bytes();
    let mut b = BytesMut::with_capacity(26 + why.len());
    b.put_slice(&Head::chunk(true, chunk::ERROR, cookie, 6 + why.len() as u32));
    b.put_u32(errno.code());
    b.put_u16(why.len() as u16);
    b.put_slice(why);
    b.freeze()
}

/// One run of a block status reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Bytes.
    pub len: u32,
    /// `wire::state` bits.
    pub flags: u32,
}

/// Block status of `base:allocation`, the whole reply.
pub fn block_status(cookie: u64, extents: &[Descriptor]) -> Bytes {
    let mut b = BytesMut::with_capacity(24 + 8 * extents.len());
    b.put_slice(&Head::chunk(true, chunk::BLOCK_STATUS, cookie, 4 + 8 * extents.len() as u32));
    b.put_u32(wire::BASE_ALLOCATION_ID);
    for e in extents {
        b.put_u32(e.len);
        b.put_u32(e.flags);
    }
    b.freeze()
}

/// Runs `(bytes, flags)` from a volume made fit for the wire: neighbours with equal flags are one; every length but the
/// request's own tail is a multiple of `block`, a block with several runs having the flags they share; nothing is empty, and
/// the sum is at most `len`. Returns nothing only when `runs` covers nothing.
pub fn descriptors(runs: impl IntoIterator<Item = (u64, u32)>, block: u32, len: u32) -> Vec<Descriptor> {
    let block = u64::from(block.max(1));
    let mut out: Vec<Descriptor> = Vec::new();
    let mut left = u64::from(len);
    // A started block that no single run fills: its bytes so far, and the flags all of them share.
    let (mut part, mut shared) = (0u64, 0u32);
    for (run, flags) in runs {
        let mut run = run.min(left);
        left -= run;
        if part > 0 && run > 0 {
            let fill = run.min(block - part);
            (part, run, shared) = (part + fill, run - fill, shared & flags);
            if part == block {
                append(&mut out, block, shared);
                part = 0;
            }
        }
        append(&mut out, run - run % block, flags);
        if !run.is_multiple_of(block) {
            (part, shared) = (run % block, flags);
        }
    }
    // A started block counts at the end of the request, or when there is nothing else to say.
    if left == 0 || out.is_empty() {
        append(&mut out, part, shared);
    }
    out
}

fn append(out: &mut Vec<Descriptor>, len: u64, flags: u32) {
    match out.last_mut() {
        _ if len == 0 => {}
        // The sum of all lengths fits a u32: it is at most the request's.
        Some(d) if d.flags == flags => d.len += len as u32,
        _ => out.push(Descriptor { len: len as u32, flags }),
    }
}
