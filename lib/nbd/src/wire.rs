//! Numbers of the protocol, caps, and the checked reader every parser here uses.
//!
//! Names follow the protocol text (`NBD_OPT_GO` is [`opt::GO`]). All integers are big endian.

/// First eight bytes of a server.
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of a newstyle server, and first of every option.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// First eight bytes of every option reply.
pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// First four bytes of a request.
pub const REQUEST: u32 = 0x2560_9513;
/// First four bytes of a simple reply.
pub const SIMPLE_REPLY: u32 = 0x6744_6698;
/// First four bytes of a structured reply chunk.
pub const STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// Longest export name the protocol allows, bytes.
pub const MAX_NAME: usize = 4096;
/// Longest option payload we store, bytes: a name and sixty long queries. Longer ones are skipped and answered `TOO_BIG`.
pub const MAX_OPTION: usize = 64 << 10;
/// Longest option payload we skip, bytes. Beyond it the peer is not speaking NBD and the session ends.
pub const MAX_SKIP: usize = 4 << 20;
/// Options per session: a client that walks 50,000 exports is fine, one that loops for ever is not.
pub const MAX_OPTIONS: u32 = 200_000;
/// Longest read or write payload, bytes. What the protocol text recommends and qemu uses.
pub const MAX_REQUEST: u32 = 32 << 20;
/// Longest refused write payload that is read and thrown away, bytes. A larger one ends the session.
pub const MAX_DRAIN: u32 = 64 << 20;
/// Block size we ask for, bytes: the unit of checksums and of ordering.
pub const PREFERRED_BLOCK: u32 = 4096;
/// Descriptors in one block status reply.
pub const MAX_EXTENTS: usize = 4096;
/// The one metadata context we know.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Our id of it.
pub const BASE_ALLOCATION_ID: u32 = 1;
/// Bytes of a request header.
pub const REQUEST_LEN: usize = 28;

const _: () = assert!(MAX_OPTION > 2 * MAX_NAME && MAX_SKIP > MAX_OPTION && MAX_DRAIN >= MAX_REQUEST);

/// Handshake flags, server then client.
pub mod hflag {
    /// Fixed newstyle, both sides.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// No 124 zeros after `EXPORT_NAME`, both sides.
    pub const NO_ZEROES: u16 = 2;
}

/// Options.
pub mod opt {
    #![allow(missing_docs)]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Option replies. Errors have the top bit.
pub mod rep {
    #![allow(missing_docs)]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR | 1;
    pub const ERR_POLICY: u32 = ERROR | 2;
    pub const ERR_INVALID: u32 = ERROR | 3;
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Information types of `INFO` and `GO`.
pub mod info {
    #![allow(missing_docs)]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub mod tflag {
    #![allow(missing_docs)]
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Request types.
pub mod cmd {
    #![allow(missing_docs)]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Request flags.
pub mod cflag {
    #![allow(missing_docs)]
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types and flag of structured reply chunks.
pub mod chunk {
    #![allow(missing_docs)]
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = (1 << 15) | 1;
    pub const ERROR_OFFSET: u16 = (1 << 15) | 2;
    /// Flag: the last chunk of a reply.
    pub const DONE: u16 = 1;
}

/// Flags of a `base:allocation` descriptor.
pub mod state {
    /// Nothing is allocated.
    pub const HOLE: u32 = 1;
    /// Reads as zeros.
    pub const ZERO: u32 = 2;
}

/// The peer does not speak the protocol: end the session. Nothing can be answered, because the stream is out of step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A magic number is wrong.
    #[error("{what}: bad magic number {got:#x}; is the peer an NBD client, on the right port?")]
    Magic {
        /// Which.
        what: &'static str,
        /// What came.
        got: u64,
    },
    /// Flags we do not know and so cannot honour.
    #[error("unknown handshake flags {0:#x}")]
    Flags(u32),
    /// Something is longer than a cap.
    #[error("{what} of {len} bytes is above the limit of {max}")]
    TooLong {
        /// Which.
        what: &'static str,
        /// Bytes announced.
        len: u64,
        /// The cap.
        max: u64,
    },
    /// A message contradicts the protocol.
    #[error("{0}")]
    Unexpected(&'static str),
    /// The other side said no.
    #[error("{0}")]
    Refused(String),
}

/// Cursor over bytes of the peer. Every read is checked; `None` means the message is too short.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }
    /// Big endian.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }
    /// Big endian.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }
    /// Big endian.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
    /// A length of 32 bits, then that many bytes of UTF-8 without NUL, at most `MAX_NAME`.
    pub fn string(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        if len > MAX_NAME {
            return None;
        }
        text(self.bytes(len)?)
    }
    /// Is everything consumed?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A string of the protocol: UTF-8, no NUL, at most `MAX_NAME` bytes.
pub fn text(raw: &[u8]) -> Option<&str> {
    if raw.len() > MAX_NAME || raw.contains(&0) {
        return None;
    }
    std::str::from_utf8(raw).ok()
}

/// A text for people, cut to the `MAX_NAME` bytes a reply may carry.
pub fn clip(text: &str) -> &str {
    let mut end = text.len().min(MAX_NAME);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
