//! The NBD protocol as plain values: handshake, requests and replies, both sides. No sockets, no clock, no tasks.
//!
//! ```text
//!            bytes in                                   bytes out
//!  server  ─────────► server::Handshake ──► Step ──────► take_output()
//!                     RequestHeader::parse ─► validate ─► Command ... reply::*
//!  client  ─────────► client::Handshake ──► Step        (requests::encode, Replies::receive)
//! ```
//!
//! What holds:
//! * *No trust*: every byte from the peer goes through [`wire::Reader`], which is checked; nothing here panics on input.
//! * *Bounded*: an option is at most [`wire::MAX_OPTION`] bytes (longer ones are skipped, not stored), a name
//!   [`wire::MAX_NAME`], a request [`wire::MAX_REQUEST`]; the input buffer is the caller's and never has to exceed
//!   these plus a header.
//! * *One gate*: a request reaches a volume only through [`validate`], which alone knows range, read-only, flags, sizes.
//! * *TLS forgets*: what was agreed before `STARTTLS` is void after it, and bytes sent ahead of it end the session.

pub mod client;
pub mod errno;
pub mod reply;
pub mod request;
pub mod server;
pub mod wire;

pub use errno::Errno;
pub use request::{Command, Refused, RequestHeader, Terms, validate};

/// Facts of one export that the handshake tells the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Canonical name.
    pub name: String,
    /// Free text, may be empty.
    pub description: String,
    /// Bytes.
    pub size: u64,
    /// Writes are refused with `EPERM`.
    pub read_only: bool,
}

impl Export {
    /// Transmission flags that go with this export. `DF` only means something with structured replies.
    pub fn flags(&self, structured: bool) -> u16 {
        use wire::tflag::*;
        let mut f = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
        f |= if self.read_only { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO };
        if structured { f | SEND_DF } else { f }
    }

    /// Smallest request we ask clients to make: a sector, or a byte where the size is not made of sectors.
    /// Anything smaller works too.
    pub fn minimum_block(&self) -> u32 {
        if self.size.is_multiple_of(512) { 512 } else { 1 }
    }
}
