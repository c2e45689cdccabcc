//! The protocol between sheep on the data link (port 7001, link kind 1).
//!
//! A message is a 40-byte header, a metadata part and a payload, each with its own CRC-32C. `Write`, `WriteReply`, `Read` and `ReadReply`,
//! the messages of every I/O, have fixed little-endian metadata (`zerocopy`); the rest carry one `postcard` value of `Request` or `Response`.
//! Both sides check lengths against the caps before they allocate. Requests flow from the side that opened the link, replies the other way; a reply
//! carries its request's number. Every request may be sent again after a reconnect: all of them may be carried out again, but for
//! forwarded changes, which are numbered so that the owner carries each out once.
//! The format version is in every header; a reader accepts `OLDEST_VERSION..=VERSION`.

use crate::checksum::{crc32c, crc32c_parts};
use crate::{
    AttachmentId, BlockMap, ClusterId, ControlIndex, Epoch, Generation, LayerId, MAX_META, MAX_OBJECT_BLOCKS,
    MAX_OBJECT_SIZE, MAX_PAYLOAD, MIN_OBJECT_SIZE, NodeId, ObjectId, PlacementKey, VdiId, Version,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What we speak.
pub const VERSION: u16 = 1;
/// The oldest we understand.
pub const OLDEST_VERSION: u16 = 1;
/// "SHPD".
pub const MAGIC: u32 = u32::from_le_bytes(*b"SHPD");
/// Encoded header, bytes.
pub const HEADER_LEN: usize = size_of::<Header>();

/// Kind of message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Kind {
    /// First message each way.
    Hello = 1,
    /// `WriteRequest`, payload for `op` data.
    Write = 2,
    /// `WriteReply`.
    WriteReply = 3,
    /// `ReadRequest`.
    Read = 4,
    /// `ReadReply`, absent runs in the metadata, payload when `Ok`.
    ReadReply = 5,
    /// Postcard `Request`.
    Request = 6,
    /// Postcard `Response`.
    Response = 7,
}

impl Kind {
    fn from_wire(v: u16) -> Option<Self> {
        use Kind::{Hello, Read, ReadReply, Request, Response, Write, WriteReply};
        [Hello, Write, WriteReply, Read, ReadReply, Request, Response].into_iter().find(|k| *k as u16 == v)
    }
}

/// On the wire before every message.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Header {
    magic: U32,
    version: U16,
    kind: U16,
    request: U64,
    flags: U32,
    meta_len: U32,
    payload_len: U32,
    meta_crc: U32,
    payload_crc: U32,
    header_crc: U32,
}
const _: () = assert!(HEADER_LEN == 40);

/// What a header says, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// Kind.
    pub kind: Kind,
    /// Number that pairs request and reply.
    pub request: u64,
    /// Bytes of metadata that follow.
    pub meta_len: usize,
    /// Bytes of payload after them.
    pub payload_len: usize,
    meta_crc: u32,
    payload_crc: u32,
}

/// Why a message was refused. The link is closed: framing cannot be trusted any more.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// Not our protocol.
    #[error("not a sheepdog peer message")]
    Magic,
    /// Too old or too new.
    #[error("peer speaks version {0}, this sheep understands {OLDEST_VERSION} to {VERSION}")]
    Version(u16),
    /// Unknown kind.
    #[error("unknown message kind {0}")]
    Kind(u16),
    /// A length beyond its cap.
    #[error("{0} length {1} is over the limit")]
    TooLong(&'static str, usize),
    /// Damaged in transit.
    #[error("checksum of the {0} does not match")]
    Checksum(&'static str),
    /// Contents make no sense.
    #[error("malformed {0}")]
    Malformed(&'static str),
}

impl Envelope {
    /// Check a header.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, WireError> {
        let h = Header::ref_from_bytes(bytes).map_err(|_| WireError::Malformed("header"))?;
        if h.magic.get() != MAGIC {
            return Err(WireError::Magic);
        }
        let version = h.version.get();
        if !(OLDEST_VERSION..=VERSION).contains(&version) {
            return Err(WireError::Version(version));
        }
        if crc32c(&bytes[..HEADER_LEN - 4]) != h.header_crc.get() {
            return Err(WireError::Checksum("header"));
        }
        let kind = Kind::from_wire(h.kind.get()).ok_or(WireError::Kind(h.kind.get()))?;
        let (meta_len, payload_len) = (h.meta_len.get() as usize, h.payload_len.get() as usize);
        if meta_len > MAX_META {
            return Err(WireError::TooLong("metadata", meta_len));
        }
        if payload_len > MAX_PAYLOAD {
            return Err(WireError::TooLong("payload", payload_len));
        }
        Ok(Self {
            kind,
            request: h.request.get(),
            meta_len,
            payload_len,
            meta_crc: h.meta_crc.get(),
            payload_crc: h.payload_crc.get(),
        })
    }
    /// Check the parts that followed the header.
    pub fn verify(&self, meta: &[u8], payload: &[u8]) -> Result<(), WireError> {
        if crc32c(meta) != self.meta_crc {
            return Err(WireError::Checksum("metadata"));
        }
        if !payload.is_empty() && crc32c(payload) != self.payload_crc {
            return Err(WireError::Checksum("payload"));
        }
        Ok(())
    }
}

/// A message ready to be sent: header and metadata in one piece, payload parts untouched.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Number of the request.
    pub request: u64,
    /// Header and metadata.
    pub head: Bytes,
    /// Payload, in order.
    pub payload: Vec<Bytes>,
}

impl Frame {
    /// Encode. The caller keeps within the caps.
    pub fn new(kind: Kind, request: u64, meta: &[u8], payload: Vec<Bytes>) -> Self {
        let payload_len: usize = payload.iter().map(Bytes::len).sum();
        debug_assert!(meta.len() <= MAX_META && payload_len <= MAX_PAYLOAD);
        let payload_crc = match payload.as_slice() {
            [] => 0,
            [one] => crc32c(one),
            many => crc32c_parts(&many.iter().map(|b| b.as_ref()).collect::<Vec<_>>()),
        };
        let mut h = Header {
            magic: MAGIC.into(),
            version: VERSION.into(),
            kind: (kind as u16).into(),
            request: request.into(),
            flags: 0.into(),
            meta_len: (meta.len() as u32).into(),
            payload_len: (payload_len as u32).into(),
            meta_crc: crc32c(meta).into(),
            payload_crc: payload_crc.into(),
            header_crc: 0.into(),
        };
        h.header_crc = crc32c(&h.as_bytes()[..HEADER_LEN - 4]).into();
        let mut head = Vec::with_capacity(HEADER_LEN + meta.len());
        head.extend_from_slice(h.as_bytes());
        head.extend_from_slice(meta);
        Self { request, head: head.into(), payload }
    }
    /// Bytes on the wire.
    pub fn len(&self) -> usize {
        self.head.len() + self.payload.iter().map(Bytes::len).sum::<usize>()
    }
    /// Never: a frame has a header.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// What a replica is asked to do to blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum WriteAction {
    /// Payload.
    Data = 0,
    /// Present, zeros.
    Zero = 1,
    /// Absent.
    Remove = 2,
}

/// One step of an object's log, from the session's owner to a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteRequest {
    /// Object (top layer).
    pub oid: ObjectId,
    /// Its family.
    pub family: LayerId,
    /// VDI.
    pub vdi: VdiId,
    /// Bytes.
    pub object_size: u32,
    /// What to do.
    pub action: WriteAction,
    /// See `store::WriteOp::degraded`.
    pub degraded: Option<Epoch>,
    /// This step.
    pub version: Version,
    /// The step before.
    pub prev: Version,
    /// Map epoch of the owner.
    pub epoch: Epoch,
    /// Committed up to here in this generation.
    pub watermark: u64,
    /// The replica must know the control plane's log up to here first.
    pub control_index: ControlIndex,
    /// Blocks.
    pub blocks: Range<u32>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireWrite {
    oid: U64,
    version_generation: U64,
    version_seq: U64,
    prev_generation: U64,
    prev_seq: U64,
    epoch: U64,
    floor: U64,
    watermark: U64,
    control_index: U64,
    family: U32,
    vdi: U32,
    object_size: U32,
    first: U32,
    end: U32,
    action: u8,
    degraded: u8,
    reserved: [u8; 2],
}

fn block_range(first: u32, end: u32) -> Result<Range<u32>, WireError> {
    if first >= end || end > MAX_OBJECT_BLOCKS {
        return Err(WireError::Malformed("block range"));
    }
    Ok(first..end)
}

impl WriteRequest {
    /// Metadata bytes.
    pub fn encode(&self) -> Vec<u8> {
        WireWrite {
            oid: self.oid.0.into(),
            version_generation: self.version.generation.into(),
            version_seq: self.version.seq.into(),
            prev_generation: self.prev.generation.into(),
            prev_seq: self.prev.seq.into(),
            epoch: self.epoch.0.into(),
            floor: self.degraded.unwrap_or_default().0.into(),
            watermark: self.watermark.into(),
            control_index: self.control_index.0.into(),
            family: self.family.0.into(),
            vdi: self.vdi.0.into(),
            object_size: self.object_size.into(),
            first: self.blocks.start.into(),
            end: self.blocks.end.into(),
            action: self.action as u8,
            degraded: u8::from(self.degraded.is_some()),
            reserved: [0; 2],
        }
        .as_bytes()
        .to_vec()
    }
    /// Checked parse.
    pub fn decode(meta: &[u8], payload_len: usize) -> Result<Self, WireError> {
        let w = WireWrite::ref_from_bytes(meta).map_err(|_| WireError::Malformed("write"))?;
        let blocks = block_range(w.first.get(), w.end.get())?;
        let action = match w.action {
            0 => WriteAction::Data,
            1 => WriteAction::Zero,
            2 => WriteAction::Remove,
            _ => return Err(WireError::Malformed("write action")),
        };
        let expect = if action == WriteAction::Data { blocks.len() << crate::BLOCK_SHIFT } else { 0 };
        if payload_len != expect {
            return Err(WireError::Malformed("write payload length"));
        }
        Ok(Self {
            oid: ObjectId(w.oid.get()),
            family: LayerId(w.family.get()),
            vdi: VdiId(w.vdi.get()),
            object_size: w.object_size.get(),
            action,
            degraded: (w.degraded != 0).then(|| Epoch(w.floor.get())),
            version: Version { generation: w.version_generation.get(), seq: w.version_seq.get() },
            prev: Version { generation: w.prev_generation.get(), seq: w.prev_seq.get() },
            epoch: Epoch(w.epoch.get()),
            watermark: w.watermark.get(),
            control_index: ControlIndex(w.control_index.get()),
            blocks,
        })
    }
    /// Placement key.
    pub fn key(&self) -> PlacementKey {
        PlacementKey { family: self.family, index: self.oid.index() }
    }
}

/// How a replica answers any object request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[repr(u16)]
pub enum Status {
    /// Done; a write is durable.
    Ok = 0,
    /// The object is not at `prev`: `version` says where it is. Of a copy: it is half filled, so that it is neither what it was nor what it is to be.
    Behind = 1,
    /// This replica is not complete and does not have the object (yet): leave it out.
    NotHere = 2,
    /// The request's epoch is older than this replica's, which is in `epoch`: try again with the new map.
    StaleEpoch = 3,
    /// The session is not the current one any more.
    Fenced = 4,
    /// No valid lease, or the control plane cannot be reached: try again.
    NoLease = 5,
    /// No space for now.
    Full = 6,
    /// The disk is failing; it will be retired.
    DiskFailed = 7,
    /// Stored bytes are damaged; being healed. Read elsewhere.
    Corrupt = 8,
    /// The request makes no sense here.
    Invalid = 9,
    /// The peer is stopping.
    ShuttingDown = 10,
}

impl Status {
    fn from_wire(v: u16) -> Option<Self> {
        use Status::*;
        [Ok, Behind, NotHere, StaleEpoch, Fenced, NoLease, Full, DiskFailed, Corrupt, Invalid, ShuttingDown]
            .into_iter()
            .find(|s| *s as u16 == v)
    }
}

/// Answer to a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteReply {
    /// Status.
    pub status: Status,
    /// Where the object is (`Behind`).
    pub version: Version,
    /// The replica's epoch.
    pub epoch: Epoch,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireWriteReply {
    version_generation: U64,
    version_seq: U64,
    epoch: U64,
    status: U16,
    reserved: [u8; 6],
}

impl WriteReply {
    /// Metadata bytes.
    pub fn encode(&self) -> Vec<u8> {
        WireWriteReply {
            version_generation: self.version.generation.into(),
            version_seq: self.version.seq.into(),
            epoch: self.epoch.0.into(),
            status: (self.status as u16).into(),
            reserved: [0; 6],
        }
        .as_bytes()
        .to_vec()
    }
    /// Checked parse.
    pub fn decode(meta: &[u8]) -> Result<Self, WireError> {
        let w = WireWriteReply::ref_from_bytes(meta).map_err(|_| WireError::Malformed("write reply"))?;
        Ok(Self {
            status: Status::from_wire(w.status.get()).ok_or(WireError::Malformed("status"))?,
            version: Version { generation: w.version_generation.get(), seq: w.version_seq.get() },
            epoch: Epoch(w.epoch.get()),
        })
    }
}

/// Read a range of one object index through the chain that starts at `top`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadRequest {
    /// Newest layer to look at.
    pub top: LayerId,
    /// Placement.
    pub key: PlacementKey,
    /// Blocks.
    pub blocks: Range<u32>,
    /// Map epoch of the reader.
    pub epoch: Epoch,
    /// The replica must know the control plane's log up to here first.
    pub control_index: ControlIndex,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireRead {
    epoch: U64,
    control_index: U64,
    top: U32,
    family: U32,
    index: U32,
    first: U32,
    end: U32,
    reserved: [u8; 4],
}

impl ReadRequest {
    /// Metadata bytes.
    pub fn encode(&self) -> Vec<u8> {
        WireRead {
            epoch: self.epoch.0.into(),
            control_index: self.control_index.0.into(),
            top: self.top.0.into(),
            family: self.key.family.0.into(),
            index: self.key.index.into(),
            first: self.blocks.start.into(),
            end: self.blocks.end.into(),
            reserved: [0; 4],
        }
        .as_bytes()
        .to_vec()
    }
    /// Checked parse.
    pub fn decode(meta: &[u8]) -> Result<Self, WireError> {
        let w = WireRead::ref_from_bytes(meta).map_err(|_| WireError::Malformed("read"))?;
        let blocks = block_range(w.first.get(), w.end.get())?;
        if blocks.len() << crate::BLOCK_SHIFT > MAX_PAYLOAD {
            return Err(WireError::TooLong("read", blocks.len() << crate::BLOCK_SHIFT));
        }
        Ok(Self {
            top: LayerId(w.top.get()),
            key: PlacementKey { family: LayerId(w.family.get()), index: w.index.get() },
            blocks,
            epoch: Epoch(w.epoch.get()),
            control_index: ControlIndex(w.control_index.get()),
        })
    }
}

/// Answer to a read: payload (all blocks of the range, absent ones zero) when `Ok`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadReply {
    /// Status.
    pub status: Status,
    /// The replica's epoch.
    pub epoch: Epoch,
    /// Runs that no layer of the chain has.
    pub absent: Vec<Range<u32>>,
}

impl ReadReply {
    /// Metadata bytes: status, epoch, count, pairs.
    pub fn encode(&self) -> Vec<u8> {
        let mut v = Vec::with_capacity(16 + self.absent.len() * 8);
        v.extend_from_slice(&(self.status as u16).to_le_bytes());
        v.extend_from_slice(&[0; 2]);
        v.extend_from_slice(&(self.absent.len() as u32).to_le_bytes());
        v.extend_from_slice(&self.epoch.0.to_le_bytes());
        for r in &self.absent {
            v.extend_from_slice(&r.start.to_le_bytes());
            v.extend_from_slice(&r.end.to_le_bytes());
        }
        v
    }
    /// Checked parse.
    pub fn decode(meta: &[u8]) -> Result<Self, WireError> {
        let bad = WireError::Malformed("read reply");
        let (head, rest) = meta.split_at_checked(16).ok_or(bad.clone())?;
        let u32_at = |b: &[u8], i: usize| u32::from_le_bytes(b[i..i + 4].try_into().expect("4 bytes"));
        let status = Status::from_wire(u16::from_le_bytes([head[0], head[1]])).ok_or(bad.clone())?;
        let count = u32_at(head, 4) as usize;
        let epoch = Epoch(u64::from_le_bytes(head[8..16].try_into().expect("8 bytes")));
        if rest.len() != count.saturating_mul(8) || count > MAX_OBJECT_BLOCKS as usize {
            return Err(bad);
        }
        let absent = rest
            .chunks_exact(8)
            .map(|c| block_range(u32_at(c, 0), u32_at(c, 4)))
            .collect::<Result<_, _>>()?;
        Ok(Self { status, epoch, absent })
    }
}

/// On what the choice of a copy to become equal to rests. The request may come late, after a reconnect or out of an old connection: when the map or the session is another
/// one by then, the source may be the one that is behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Terms {
    /// The epoch of the map by which the source was chosen.
    pub epoch: Epoch,
    /// The session whose owner asks and keeps writes away meanwhile; `None`: nobody does.
    pub session: Option<Generation>,
}

/// First message each way on a link.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Cluster; a link between clusters is refused.
    pub cluster: ClusterId,
    /// Who speaks.
    pub node: NodeId,
    /// Process.
    pub incarnation: u64,
    /// Whom the opener wants to reach (nil in the answer): a recycled address is noticed.
    pub to: NodeId,
    /// Number of this connection among those that the process has made to this peer, from 1 on (0 in the answer). Only the latest is listened to.
    pub connection: u64,
}

/// What is known of an object at a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ObjectStat {
    /// `Ok` or why it does not count.
    pub status: Status,
    /// Last step (`NONE`: no such object).
    pub version: Version,
    /// Epoch of its last change, as far as the header knows.
    pub epoch: Epoch,
    /// It takes no seal of a lower number any more.
    pub promised: u32,
}

/// Where contents of an object are that were erasure coded: in strips made of what it had. Strips never change, and are the same whoever makes them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seal {
    /// Of the object then, and of the strips.
    pub version: Version,
    /// The seal's number in the upper half: of an object's seals a later one has a higher one. In the lower half a hash of slot and code, and of the blocks and checksums that
    /// are in the strips: layers that are merged add blocks to an object without changing its version.
    pub digest: u64,
    /// Part of the strips' names: two seals of one object may be there at once.
    pub slot: u8,
    /// Data strips.
    pub data: u8,
    /// Parity strips.
    pub parity: u8,
}

impl Seal {
    /// The number in a digest.
    pub fn number_in(digest: u64) -> u32 {
        (digest >> 32) as u32
    }
    /// Which seal of its object it is, from 1.
    pub fn number(self) -> u32 {
        Self::number_in(self.digest)
    }
    /// Number of strips.
    pub fn strips(self) -> u8 {
        self.data + self.parity
    }
    /// Could this be one?
    pub fn check(&self) -> Result<(), WireError> {
        match self.slot < 4 && (1..=16).contains(&self.data) && (1..=15).contains(&self.parity) {
            true => Ok(()),
            false => Err(WireError::Malformed("seal")),
        }
    }
    /// Size of a strip's own object, for an object of this size: a power of two.
    pub fn strip_size(self, object_size: u32) -> u32 {
        let blocks = (object_size >> crate::BLOCK_SHIFT).div_ceil(u32::from(self.data.max(1)));
        (blocks << crate::BLOCK_SHIFT).next_power_of_two().max(MIN_OBJECT_SIZE)
    }
}

/// Which strips a copy needs, and which it can never need.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Needs {
    /// The copy.
    pub stat: ObjectStat,
    /// There is one.
    pub here: bool,
    /// Some of its contents are in these.
    pub seal: Option<Seal>,
}

impl Needs {
    /// It takes no seal below this number any more. (Where there is no copy, nothing can be promised.)
    pub fn promises(&self, number: u32) -> bool {
        self.here && self.stat.promised >= number
    }
}

/// Row of an inventory of sealed objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SealedRow {
    /// Object.
    pub oid: ObjectId,
    /// Its family.
    pub family: LayerId,
    /// VDI.
    pub vdi: VdiId,
    /// Bytes.
    pub object_size: u32,
    /// Where its contents are.
    pub seal: Seal,
}

/// Head of a pull: what the source has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PullHead {
    /// Last step.
    pub version: Version,
    /// Epoch of last change.
    pub epoch: Epoch,
    /// VDI.
    pub vdi: VdiId,
    /// Bytes.
    pub object_size: u32,
    /// Blocks it has.
    pub present: BlockMap,
    /// Of these, zeros.
    pub zero: BlockMap,
    /// Changed since `dirty_since` while someone was away.
    pub dirty: BlockMap,
    /// See `dirty`.
    pub dirty_since: Option<Epoch>,
    /// Its last steps may not be everywhere: those after this version, which changed these blocks. Who copies them has to remember as much.
    pub tail: Option<(Version, Range<u32>)>,
    /// Of present, zero and block checksums.
    pub digest: u64,
    /// Of `present`, blocks whose contents are in strips.
    pub cold: BlockMap,
    /// Their checksums, in order.
    pub cold_crcs: Vec<u32>,
    /// Which strips.
    pub seal: Option<Seal>,
    /// As in `ObjectStat`.
    pub promised: u32,
}

impl PullHead {
    /// Could this be an object? Whoever copies it relies on the size and on the maps fitting it.
    pub fn check(&self) -> Result<(), WireError> {
        let size = self.object_size;
        if !size.is_power_of_two() || !(MIN_OBJECT_SIZE..=MAX_OBJECT_SIZE).contains(&size) {
            return Err(WireError::Malformed("object size"));
        }
        let blocks = size >> crate::BLOCK_SHIFT;
        if self.tail.as_ref().is_some_and(|(_, t)| t.start >= t.end || t.end > blocks) {
            return Err(WireError::Malformed("blocks of the tail"));
        }
        if let Some(seal) = &self.seal {
            seal.check()?;
        }
        if self.cold.count() as usize != self.cold_crcs.len() || self.seal.is_none() != self.cold.is_empty() {
            return Err(WireError::Malformed("seal"));
        }
        match [&self.present, &self.zero, &self.dirty, &self.cold].iter().all(|m| m.capacity() <= blocks) {
            true => Ok(()),
            false => Err(WireError::Malformed("block map")),
        }
    }
}

/// A tail entry on the wire.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tail {
    /// Object.
    pub oid: ObjectId,
    /// Step.
    pub version: Version,
    /// Step before.
    pub prev: Version,
    /// Blocks.
    pub blocks: Range<u32>,
}

/// Row of an inventory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InventoryRow {
    /// Object.
    pub oid: ObjectId,
    /// Family.
    pub family: LayerId,
    /// VDI.
    pub vdi: VdiId,
    /// Last step.
    pub version: Version,
    /// Epoch of last change.
    pub epoch: Epoch,
    /// The holder itself lacks it (so it cannot vouch for it).
    pub missing: bool,
    /// Digest of the seal of what is in strips; 0: nothing is.
    pub seal: u64,
}

/// An I/O that a gateway forwards to the session's owner. Offsets and lengths in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Forward {
    /// Payload comes back.
    Read {
        /// Layer to read (a snapshot's or the working one, `None`).
        layer: Option<LayerId>,
        /// Offset.
        offset: u64,
        /// Length.
        len: u32,
    },
    /// Payload goes along.
    Write {
        /// Offset.
        offset: u64,
    },
    /// Zero.
    Zero {
        /// Offset.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Discard.
    Trim {
        /// Offset.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Extents.
    BlockStatus {
        /// Layer, as in `Read`.
        layer: Option<LayerId>,
        /// Offset.
        offset: u64,
        /// Length.
        len: u64,
        /// At most so many.
        max: u32,
    },
    /// A gateway opened the VDI; answered when no request of a dead connection is left.
    Attach,
    /// It closed it.
    Detach,
}

/// Requests that are not on the path of every I/O.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// From now on refuse older generations of this VDI; answer with the tail.
    Fence {
        /// VDI.
        vdi: VdiId,
        /// New generation.
        generation: Generation,
        /// Position at which it was committed.
        control_index: ControlIndex,
    },
    /// Everything of this generation up to `seq`, and every older generation, is committed.
    Watermark {
        /// VDI.
        vdi: VdiId,
        /// Generation.
        generation: Generation,
        /// Sequence.
        seq: u64,
        /// Position the answerer must have reached.
        control_index: ControlIndex,
    },
    /// Where are these objects?
    Stat {
        /// Objects with their families.
        objects: Vec<(ObjectId, LayerId)>,
        /// Position the answerer must have reached.
        control_index: ControlIndex,
    },
    /// Become equal to `source` in this object.
    Adopt {
        /// Object.
        oid: ObjectId,
        /// Family.
        family: LayerId,
        /// Node to copy from.
        source: NodeId,
        /// Blocks that are known to differ; `None`: find out.
        blocks: Option<Vec<Range<u32>>>,
        /// On what the choice of the source rests.
        terms: Terms,
        /// Position the answerer must have reached.
        control_index: ControlIndex,
    },
    /// Ask the owner to let the sender's copy of an object join: it will hold writes and send `Adopt` back.
    Join {
        /// VDI.
        vdi: VdiId,
        /// Object.
        oid: ObjectId,
        /// Family.
        family: LayerId,
    },
    /// First step of a copy.
    PullHead {
        /// Object.
        oid: ObjectId,
        /// Family.
        family: LayerId,
        /// Position the answerer must have reached.
        control_index: ControlIndex,
    },
    /// Contents of runs (together at most `MAX_PAYLOAD`), data blocks only, in order.
    PullData {
        /// Object.
        oid: ObjectId,
        /// Family.
        family: LayerId,
        /// Runs.
        runs: Vec<Range<u32>>,
        /// Clients wait for it: nobody is made way for.
        held: bool,
    },
    /// Objects the asking node should have that changed at `since` or later, or that it was not a target of at `since`.
    Inventory {
        /// Asking node.
        node: NodeId,
        /// It is complete up to here.
        since: Epoch,
        /// Its epoch; the answerer waits until it is there too.
        epoch: Epoch,
        /// Position in the listing.
        after: Option<ObjectId>,
    },
    /// Forwarded I/O.
    Forward {
        /// VDI.
        vdi: VdiId,
        /// The gateway's open number: requests of one open are accounted together.
        open: u64,
        /// The registration under which the VDI was opened (`Vdi::gateways`); of `Attach` the position of the control plane that the owner must know.
        since: ControlIndex,
        /// The attachment under which it was opened; 0: without one.
        attachment: AttachmentId,
        /// Number of this request among those of this sender to this owner, from 1: it is carried out once however often it arrives. 0 for what
        /// changes nothing.
        seq: u64,
        /// The sender has the answers to all numbers below.
        floor: u64,
        /// What.
        io: Forward,
    },
    /// Presence through a chain, without data.
    BlockState {
        /// Newest layer.
        top: LayerId,
        /// Placement.
        key: PlacementKey,
        /// Blocks.
        blocks: Range<u32>,
        /// Position the answerer must have reached.
        control_index: ControlIndex,
    },
    /// Number of objects and bytes of a layer here, and of what `diff` needs: presence maps of objects after a position.
    Presence {
        /// Layer.
        layer: LayerId,
        /// Position.
        after: Option<u32>,
    },
    /// Digests of objects, for `dog vdi check`.
    Digests {
        /// Objects with families.
        objects: Vec<(ObjectId, LayerId)>,
        /// Read and verify every block.
        deep: bool,
        /// Position the answerer must have reached.
        control_index: ControlIndex,
    },
    /// Note in the header of an object that it changed in this epoch, after a step was finished without some holder.
    Stamp {
        /// Object.
        oid: ObjectId,
        /// Epoch of the asker; the holder must be in the same.
        epoch: Epoch,
        /// What the missing holder may lack.
        blocks: Vec<Range<u32>>,
        /// As in `WriteRequest::degraded`.
        floor: Epoch,
    },
    /// Copies of this object were made equal without the receiver's, which was not complete: whatever it was filled from before, it is missing there again.
    /// Refused by a node that is complete by now: then it takes part.
    Missed {
        /// Object.
        oid: ObjectId,
        /// Its family.
        family: LayerId,
        /// Epoch of the asker; the receiver must be in the same. It may be complete for a later one than the others were told of.
        epoch: Epoch,
        /// Position the receiver must have reached.
        control_index: ControlIndex,
    },
    /// Somebody opens this VDI elsewhere. Answered when no request of a dead connection to it is under way here.
    Settled {
        /// VDI.
        vdi: VdiId,
        /// The process that the map knows as the gateway's: another one cannot speak for it.
        incarnation: u64,
    },
    /// Attachments of this VDI have changed. Answered by its session's owner, or by its holders while no session serves, when no change that they do not permit any more is
    /// carried out there, and none will be.
    Enforced {
        /// VDI.
        vdi: VdiId,
        /// The process that the map knows as that node's: another one cannot speak for it.
        incarnation: u64,
        /// Position the answerer must have reached.
        control_index: ControlIndex,
    },
    /// As `Presence`, from a node that vouches for its answer: refused when it is not complete in this epoch, or an object is half filled.
    Contents {
        /// Layer.
        layer: LayerId,
        /// Index after which to go on.
        after: Option<u32>,
        /// Epoch of the asker.
        epoch: Epoch,
        /// Position the answerer must have reached.
        control_index: ControlIndex,
    },
    /// The receiver forwarded these changes to the sender, which has carried them out. Answered when the receiver has their answers: it will not send them again.
    Answered {
        /// The process that sent them: another one cannot speak for it.
        incarnation: u64,
        /// Their numbers, `MAX_ANSWERED` at most.
        seqs: Vec<u64>,
    },
    /// The sender has opened a session. Answered when the receiver has the answers to all changes that it had sent to owners of earlier sessions of the VDI.
    Repeated {
        /// VDI.
        vdi: VdiId,
        /// The process that the map knows as the gateway's: another one cannot speak for it.
        incarnation: u64,
        /// Generation of the session.
        generation: Generation,
        /// Position the answerer must have reached: it knows of the session then.
        control_index: ControlIndex,
    },
    /// Keep this strip; payload: the blocks of the runs, in order. Nothing to do when it is there.
    PutStrip {
        /// Name of the strip.
        oid: ObjectId,
        /// Its object's family.
        family: LayerId,
        /// VDI.
        vdi: VdiId,
        /// Size of the whole object.
        object_size: u32,
        /// Of which seal.
        seal: Seal,
        /// Rows that have contents.
        rows: Vec<Range<u32>>,
        /// What is there under this name is wrong, although it says the same.
        replace: bool,
    },
    /// Contents of rows of a strip.
    GetStrip {
        /// Name of the strip.
        oid: ObjectId,
        /// Of which seal.
        seal: Seal,
        /// Rows; one that is absent is zeros.
        rows: Range<u32>,
    },
    /// All strips of this seal are on stable storage: give up what is in them, if the object is still at the seal's version.
    Seal {
        /// Object.
        oid: ObjectId,
        /// Its family.
        family: LayerId,
        /// Where its contents are.
        seal: Seal,
        /// Blocks that are in the strips.
        blocks: BlockMap,
        /// Checksum of each.
        crcs: Vec<u32>,
        /// Epoch of the asker, by whose map the strips were placed; the receiver must be in the same.
        epoch: Epoch,
        /// Position the receiver must have reached.
        control_index: ControlIndex,
    },
    /// Sealed objects of which the asking node should have a strip.
    Sealed {
        /// Asking node.
        node: NodeId,
        /// Its epoch; the answerer waits until it is there too.
        epoch: Epoch,
        /// Position in the listing.
        after: Option<ObjectId>,
    },
    /// Does the receiver have these strips, whole?
    HasStrips {
        /// Names and seals.
        strips: Vec<(ObjectId, Seal)>,
    },
    /// Where are these objects, and which strips do they need?
    Seals {
        /// Objects with their families, and the number below which the receiver is to take no seal of each from now on (0: it need not promise anything).
        objects: Vec<(ObjectId, LayerId, u32)>,
        /// Epoch of the asker; the receiver must be in the same.
        epoch: Epoch,
        /// Position the receiver must have reached.
        control_index: ControlIndex,
    },
}

/// Numbers in `Request::Answered` at most.
pub const MAX_ANSWERED: usize = 1024;

/// One extent of a `BlockState` answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum BlockState {
    /// Data.
    Data,
    /// Present as zeros.
    Zero,
    /// In no layer of the chain.
    Absent,
}

/// Outcome of a forwarded I/O that is not a success.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ForwardError {
    /// Not the owner (any more): look again.
    NotOwner,
    /// Out of range.
    OutOfRange,
    /// Read-only.
    ReadOnly,
    /// No such VDI or layer.
    Gone(String),
    /// Lost data.
    Io(String),
    /// Stopping: look again.
    ShuttingDown,
    /// The gateway's registration is not in force any more: what it had open is void.
    Fenced,
    /// The VDI's attachments do not permit it, and why.
    NotAttached(String),
}

/// Digest of one copy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CopyDigest {
    /// `Ok`, `NotHere`, `Corrupt`, ...
    pub status: Status,
    /// Last step.
    pub version: Version,
    /// `None`: no such object.
    pub digest: Option<u64>,
    /// Runs whose checksum does not match (deep only).
    pub corrupt: Vec<Range<u32>>,
}

/// Answers to `Request`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Response {
    /// Done.
    Done,
    /// Not possible now, and why.
    Failed(Status, String),
    /// `Fence`.
    Tail(Vec<Tail>),
    /// `Stat`.
    Stats(Vec<ObjectStat>),
    /// `Adopt`: now at this version.
    Adopted(Version),
    /// `PullHead`; `None`: no such object.
    Head(Option<Box<PullHead>>),
    /// `PullData`: version before and after reading; payload is the data.
    Data(Version, Version),
    /// `Inventory`: rows, and where to go on.
    Inventory {
        /// Rows.
        rows: Vec<InventoryRow>,
        /// Continue after this.
        next: Option<ObjectId>,
    },
    /// `Forward`, done; a read's payload comes along.
    Forwarded,
    /// `Forward`, failed.
    ForwardFailed(ForwardError),
    /// `Forward::BlockStatus`: (length, hole, zero).
    Extents(Vec<(u64, bool, bool)>),
    /// `BlockState`.
    Blocks(Vec<(Range<u32>, BlockState)>),
    /// `Presence`: (index, present, zero), and whether there is more.
    Presence(Vec<(u32, BlockMap, BlockMap)>, bool),
    /// `Digests`.
    Digests(Vec<CopyDigest>),
    /// `GetStrip`; payload: the rows.
    Strip,
    /// `Sealed`: rows, and where to go on.
    Sealed {
        /// Rows.
        rows: Vec<SealedRow>,
        /// Continue after this.
        next: Option<ObjectId>,
    },
    /// `HasStrips`.
    Has(Vec<bool>),
    /// `Seals`.
    Seals(Vec<Needs>),
}

/// Encode a cold message's metadata.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("plain data always encodes")
}

/// Decode a cold message's metadata.
pub fn decode<T: for<'a> Deserialize<'a>>(meta: &[u8]) -> Result<T, WireError> {
    postcard::from_bytes(meta).map_err(|_| WireError::Malformed("message"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> WriteRequest {
        WriteRequest {
            oid: ObjectId::data(LayerId(3), 9),
            family: LayerId(1),
            vdi: VdiId(1),
            object_size: 4 << 20,
            action: WriteAction::Data,
            degraded: Some(Epoch(7)),
            version: Version { generation: 2, seq: 5 },
            prev: Version { generation: 2, seq: 4 },
            epoch: Epoch(8),
            watermark: 3,
            control_index: ControlIndex(44),
            blocks: 10..11,
        }
    }

    #[test]
    fn write_round_trip_and_golden_length() {
        let w = sample();
        let meta = w.encode();
        assert_eq!(meta.len(), 96);
        assert_eq!(WriteRequest::decode(&meta, 4096), Ok(w));
        assert_eq!(WriteRequest::decode(&meta, 8192), Err(WireError::Malformed("write payload length")));
    }

    #[test]
    fn frame_header_is_frozen() {
        let f = Frame::new(Kind::Hello, 0x0102, b"ab", vec![Bytes::from_static(b"xyz")]);
        let hex: String = f.head.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(&hex[..40], "5348504401000100020100000000000000000000");
        let head: [u8; HEADER_LEN] = f.head[..HEADER_LEN].try_into().expect("length");
        let e = Envelope::decode(&head).expect("valid");
        assert_eq!((e.kind, e.request, e.meta_len, e.payload_len), (Kind::Hello, 0x0102, 2, 3));
        assert_eq!(e.verify(b"ab", b"xyz"), Ok(()));
        assert_eq!(e.verify(b"ab", b"xyZ"), Err(WireError::Checksum("payload")));
    }

    #[test]
    fn replies_round_trip() {
        let r = ReadReply { status: Status::Ok, epoch: Epoch(3), absent: vec![1..3, 7..9] };
        assert_eq!(ReadReply::decode(&r.encode()), Ok(r));
        let w = WriteReply {
            status: Status::Behind,
            version: Version { generation: 1, seq: 2 },
            epoch: Epoch(5),
        };
        assert_eq!(WriteReply::decode(&w.encode()), Ok(w));
    }

    proptest! {
        #[test]
        fn parsers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), len in 0usize..10_000) {
            let _ = WriteRequest::decode(&bytes, len);
            let _ = WriteReply::decode(&bytes);
            let _ = ReadRequest::decode(&bytes);
            let _ = ReadReply::decode(&bytes);
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Response>(&bytes);
            let _ = decode::<Hello>(&bytes);
            if let Some(h) = bytes.first_chunk::<HEADER_LEN>() { let _ = Envelope::decode(h); }
        }

        #[test]
        fn any_flipped_header_bit_is_noticed(bit in 0usize..HEADER_LEN * 8) {
            let f = Frame::new(Kind::Write, 7, &sample().encode(), vec![]);
            let mut head: [u8; HEADER_LEN] = f.head[..HEADER_LEN].try_into().expect("length");
            head[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Envelope::decode(&head).is_err());
        }
    }
}
