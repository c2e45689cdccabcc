//! Requests: the 28 bytes on the wire, and the one function that decides whether a request may go ahead.

use crate::Errno;
use crate::wire::{self, Broken, Reader, cflag, cmd};

/// A request header as it came. Nothing in it is to be believed before [`validate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// `cflag` bits.
    pub flags: u16,
    /// One of `cmd`.
    pub kind: u16,
    /// The client's tag, returned in the reply.
    pub cookie: u64,
    /// Bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

impl RequestHeader {
    /// From 28 bytes.
    pub fn parse(raw: &[u8; wire::REQUEST_LEN]) -> Result<Self, Broken> {
        let mut r = Reader(raw);
        let magic = r.u32().unwrap_or(0);
        if magic != wire::REQUEST {
            return Err(Broken::Magic { what: "request", got: u64::from(magic) });
        }
        let parsed = (|| {
            Some(Self { flags: r.u16()?, kind: r.u16()?, cookie: r.u64()?, offset: r.u64()?, len: r.u32()? })
        })();
        parsed.ok_or(Broken::Unexpected("short request header"))
    }

    /// To 28 bytes.
    pub fn encode(&self) -> [u8; wire::REQUEST_LEN] {
        let mut b = [0; wire::REQUEST_LEN];
        b[0..4].copy_from_slice(&wire::REQUEST.to_be_bytes());
        b[4..6].copy_from_slice(&self.flags.to_be_bytes());
        b[6..8].copy_from_slice(&self.kind.to_be_bytes());
        b[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        b[16..24].copy_from_slice(&self.offset.to_be_bytes());
        b[24..28].copy_from_slice(&self.len.to_be_bytes());
        b
    }

    /// Bytes of payload that follow the header on the wire, whatever becomes of the request.
    pub fn payload(&self) -> Result<u32, Broken> {
        if self.kind != cmd::WRITE {
            return Ok(0);
        }
        if self.len > wire::MAX_DRAIN {
            return Err(Broken::TooLong {
                what: "write payload",
                len: u64::from(self.len),
                max: u64::from(wire::MAX_DRAIN),
            });
        }
        Ok(self.len)
    }
}

/// What was agreed and what is true of the export at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Bytes, now: a volume may have grown since the handshake.
    pub size: u64,
    /// Refuse writes.
    pub read_only: bool,
    /// Structured replies were agreed.
    pub structured: bool,
    /// `base:allocation` was agreed.
    pub base_allocation: bool,
}

/// A request that may go ahead. Ranges lie inside the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// At most `MAX_REQUEST` bytes.
    Read {
        /// Bytes.
        offset: u64,
        /// Bytes.
        len: u32,
        /// In one chunk.
        whole: bool,
    },
    /// At most `MAX_REQUEST` bytes. `FUA` is not kept: every write is durable when acknowledged.
    Write {
        /// Bytes.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// End of the session, no reply.
    Disconnect,
    /// Make everything acknowledged durable.
    Flush,
    /// Give space back.
    Trim {
        /// Bytes.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Will be read soon.
    Cache {
        /// Bytes.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Make it zero.
    WriteZeroes {
        /// Bytes.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Keep space allocated.
        no_hole: bool,
        /// Only if faster than a write.
        fast: bool,
    },
    /// Which parts are allocated.
    BlockStatus {
        /// Bytes.
        offset: u64,
        /// Bytes.
        len: u32,
        /// One descriptor is enough.
        one: bool,
    },
}

/// A request that may not go ahead: answer this and go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{errno}: {why}")]
pub struct Refused {
    /// For the wire.
    pub errno: Errno,
    /// For people.
    pub why: &'static str,
}

fn refuse<T>(errno: Errno, why: &'static str) -> Result<T, Refused> {
    Err(Refused { errno, why })
}

/// Flags each request type may carry.
fn allowed_flags(kind: u16, structured: bool) -> u16 {
    match kind {
        // A read with FUA is legal and means nothing here.
        cmd::READ if structured => cflag::FUA | cflag::DF,
        cmd::WRITE_ZEROES => cflag::FUA | cflag::NO_HOLE | cflag::FAST_ZERO,
        cmd::BLOCK_STATUS => cflag::FUA | cflag::REQ_ONE,
        _ => cflag::FUA,
    }
}

/// May this request go ahead? The only place that knows ranges, read-only, flags and caps.
pub fn validate(h: &RequestHeader, t: &Terms) -> Result<Command, Refused> {
    let RequestHeader { flags, kind, offset, len, .. } = *h;
    if kind == cmd::DISC {
        return Ok(Command::Disconnect);
    }
    if kind > cmd::BLOCK_STATUS {
        return refuse(Errno::Inval, "unknown command");
    }
    if flags & !allowed_flags(kind, t.structured) != 0 {
        return refuse(Errno::Inval, "flag not valid for this command");
    }
    if kind == cmd::FLUSH {
        return match (offset, len) {
            (0, 0) => Ok(Command::Flush),
            _ => refuse(Errno::Inval, "flush takes no offset and no length"),
        };
    }
    let writes = matches!(kind, cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES);
    if writes && t.read_only {
        return refuse(Errno::Perm, "export is read-only");
    }
    if matches!(kind, cmd::READ | cmd::WRITE) && len > wire::MAX_REQUEST {
        return refuse(Errno::Inval, "request is larger than 32 MiB");
    }
    if offset.checked_add(u64::from(len)).is_none_or(|end| end > t.size) {
        let grows = matches!(kind, cmd::WRITE | cmd::WRITE_ZEROES);
        let errno = if grows { Errno::NoSpace } else { Errno::Inval };
        return refuse(errno, "request goes beyond the end of the export");
    }
    Ok(match kind {
        cmd::READ => Command::Read { offset, len, whole: flags & cflag::DF != 0 },
        cmd::WRITE => Command::Write { offset, len },
        cmd::TRIM => Command::Trim { offset, len },
        cmd::CACHE => Command::Cache { offset, len },
        cmd::WRITE_ZEROES => Command::WriteZeroes {
            offset,
            len,
            no_hole: flags & cflag::NO_HOLE != 0,
            fast: flags & cflag::FAST_ZERO != 0,
        },
        _ if !t.base_allocation => {
            return refuse(Errno::Inval, "block status needs base:allocation to be negotiated");
        }
        _ if len == 0 => return refuse(Errno::Inval, "block status of nothing"),
        _ => Command::BlockStatus { offset, len, one: flags & cflag::REQ_ONE != 0 },
    })
}
