//! Messages between control planes, and how they are framed.
//!
//! A frame is a 20-byte header and a postcard body. Header, little endian: `u32` body length, `u8` version, `u8` kind (1 request,
//! 2 response), `u16` zero, `u64` request id, `u32` CRC-32C of the first 16 header bytes and the body. Bodies are enums that only grow
//! at their end: a peer that does not know a request answers `Response::Error`.
//!
//! The first request on a link is `Hello`; nothing else is answered before it. See docs/wire.md.

use super::raft_types::{TypeConfig, Vote};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};
use sheepdog_cluster::{Entry, NodeAddr, Reply};
use sheepdog_proto::checksum::crc32c_parts;
use sheepdog_proto::{ClusterId, ControlIndex, NodeId};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Version of the control protocol.
pub const VERSION: u8 = 1;
/// Largest body. A raft round is at most 300 entries of at most 64 KiB; snapshots travel in parts of `PART`.
pub const MAX_BODY: usize = 64 << 20;
/// Largest first message of a link, from somebody nothing is known of yet. A `Hello` is ids, an address and a version.
pub const MAX_HELLO: usize = 4 << 10;
/// Bytes of a snapshot per message.
pub const PART: usize = 1 << 20;
/// Largest snapshot that is taken.
pub const MAX_SNAPSHOT: u64 = 1 << 30;
/// Header bytes.
pub const HEADER: usize = 20;

/// Kind of frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Asks.
    Request,
    /// Answers the request of the same id.
    Response,
}

/// What is wrong with a frame. The link is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another version.
    #[error(
        "peer speaks version {0} of the control protocol, this sheep speaks {VERSION}: upgrade the older one"
    )]
    Version(u8),
    /// Unknown kind or reserved bits.
    #[error("malformed frame header")]
    Header,
    /// Too long.
    #[error("frame of {0} bytes is over the limit of {1}")]
    TooLong(usize, usize),
    /// Damaged on the way.
    #[error("frame checksum does not match")]
    Checksum,
}

/// Frame a message.
pub fn encode<T: Serialize>(kind: Kind, id: u64, body: &T) -> io::Result<Vec<u8>> {
    let mut out = vec![0u8; HEADER];
    out = postcard::to_extend(body, out).map_err(|e| io::Error::other(e.to_string()))?;
    let len = out.len() - HEADER;
    if len > MAX_BODY {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, FrameError::TooLong(len, MAX_BODY)));
    }
    out[..4].copy_from_slice(&(len as u32).to_le_bytes());
    out[4] = VERSION;
    out[5] = if kind == Kind::Request { 1 } else { 2 };
    out[8..16].copy_from_slice(&id.to_le_bytes());
    let crc = crc32c_parts(&[&out[..16], &out[HEADER..]]);
    out[16..20].copy_from_slice(&crc.to_le_bytes());
    Ok(out)
}

/// Check a header: kind, id, body length.
pub fn decode_header(h: &[u8; HEADER]) -> Result<(Kind, u64, usize), FrameError> {
    if h[4] != VERSION {
        return Err(FrameError::Version(h[4]));
    }
    let kind = match (h[5], h[6], h[7]) {
        (1, 0, 0) => Kind::Request,
        (2, 0, 0) => Kind::Response,
        _ => return Err(FrameError::Header),
    };
    let len = u32::from_le_bytes([h[0], h[1], h[2], h[3]]) as usize;
    if len > MAX_BODY {
        return Err(FrameError::TooLong(len, MAX_BODY));
    }
    let mut id = [0u8; 8];
    id.copy_from_slice(&h[8..16]);
    Ok((kind, u64::from_le_bytes(id), len))
}

/// Check a body against its header.
pub fn check_body(h: &[u8; HEADER], body: &[u8]) -> Result<(), FrameError> {
    match crc32c_parts(&[&h[..16], body]).to_le_bytes() == h[16..20] {
        true => Ok(()),
        false => Err(FrameError::Checksum),
    }
}

/// Read one frame; `None` at an orderly end. Memory grows with what arrives, not with what the header promises.
pub async fn read_frame<R: AsyncRead + Unpin>(r: &mut R) -> io::Result<Option<(Kind, u64, Vec<u8>)>> {
    read_frame_within(r, MAX_BODY).await
}

/// As `read_frame`, with a body of at most `max` bytes.
pub async fn read_frame_within<R: AsyncRead + Unpin>(
    r: &mut R,
    max: usize,
) -> io::Result<Option<(Kind, u64, Vec<u8>)>> {
    let bad = |e: FrameError| io::Error::new(io::ErrorKind::InvalidData, e);
    let mut h = [0u8; HEADER];
    match r.read_exact(&mut h).await {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let (kind, id, len) = decode_header(&h).map_err(bad)?;
    if len > max {
        return Err(bad(FrameError::TooLong(len, max)));
    }
    let mut body = Vec::with_capacity(len.min(64 << 10));
    if r.take(len as u64).read_to_end(&mut body).await? != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    check_body(&h, &body).map_err(bad)?;
    Ok(Some((kind, id, body)))
}

/// Decode a body.
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> io::Result<T> {
    postcard::from_bytes(body).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
}

/// A sheep and where it answers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct PeerInfo {
    /// Node.
    pub node: NodeId,
    /// Process.
    pub incarnation: u64,
    /// Address.
    pub addr: NodeAddr,
}

/// Opens a link.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Hello {
    /// Who calls.
    pub me: PeerInfo,
    /// Its cluster; `None` while it waits for format.
    pub cluster: Option<ClusterId>,
    /// Who is called; `None`: whoever is there (seeds).
    pub to: Option<NodeId>,
    /// Software version.
    pub version: String,
    /// Cluster whose data is on the caller's disks.
    pub remembers: Option<ClusterId>,
}

/// The other side of `Hello`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Welcome {
    /// Go on.
    Ok {
        /// Who answers.
        me: PeerInfo,
        /// Its cluster.
        cluster: Option<ClusterId>,
    },
    /// This link is of no use; the text says why.
    Refused(String),
    /// The called node is not here: this one is.
    WrongNode(PeerInfo),
}

/// What a sheep knows about the cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct StatusReply {
    /// Who answers.
    pub me: PeerInfo,
    /// Its cluster, once it is a member.
    pub cluster: Option<ClusterId>,
    /// Cluster whose data is on its disks.
    pub remembers: Option<ClusterId>,
    /// Leader as it knows it.
    pub leader: Option<PeerInfo>,
    /// Nodes it knows, members or waiting, at most 64.
    pub peers: Vec<PeerInfo>,
    /// Voters as it knows them.
    pub voters: Vec<NodeId>,
    /// How far it has applied.
    pub applied: ControlIndex,
}

/// Asks for a lease.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Heartbeat {
    /// Node.
    pub node: NodeId,
    /// Process.
    pub incarnation: u64,
    /// How far it has applied.
    pub applied: ControlIndex,
}

/// Answer to a heartbeat.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum LeaseReply {
    /// Serve for `lease` milliseconds from when the heartbeat was sent, once everything up to `min_index` is applied.
    Granted {
        /// Milliseconds.
        lease: u64,
        /// Position.
        min_index: ControlIndex,
    },
    /// The leader is not sure of itself at the moment.
    NotNow,
    /// This process is not up in the leader's map: introduce yourself.
    NotUp,
}

/// Part of a raft snapshot.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct SnapshotPart {
    /// Leader's vote.
    pub vote: Vote,
    /// Metadata.
    pub meta: super::raft_types::SnapshotMeta,
    /// Bytes of the whole.
    pub total: u64,
    /// Where this part goes.
    pub offset: u64,
    /// CRC-32C of the whole.
    pub crc: u32,
    /// Part.
    #[serde(with = "bytes_serde")]
    pub data: Vec<u8>,
}

/// Answer to `Watch`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum WatchReply {
    /// Entries from the asked position on, in order; possibly none. `None` in a pair is an entry of raft's own.
    Entries(Vec<(ControlIndex, Option<Entry>)>),
    /// The log does not go back that far: fetch the state at `index` with `SnapshotRead`.
    Snapshot {
        /// Position of the state.
        index: ControlIndex,
        /// Bytes.
        total: u64,
        /// CRC-32C of them.
        crc: u32,
    },
}

/// What one control plane asks another.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub enum Request {
    /// First on every link.
    Hello(Hello),
    /// Anyone may ask.
    Status,
    /// Raft.
    Append(AppendEntriesRequest<TypeConfig>),
    /// Raft.
    Vote(VoteRequest<TypeConfig>),
    /// Raft.
    PreVote(VoteRequest<TypeConfig>),
    /// Raft; parts come in order.
    SnapshotPart(SnapshotPart),
    /// Commit this (leader only).
    Propose(Entry),
    /// Lease, please (leader only).
    Heartbeat(Heartbeat),
    /// This node does not answer me (leader only).
    Suspect(NodeId),
    /// Entries after this position; answered when there are some, or after a while.
    Watch {
        /// Last position the asker has.
        after: ControlIndex,
    },
    /// Part of the state that `WatchReply::Snapshot` announced.
    SnapshotRead {
        /// Position of the state.
        index: ControlIndex,
        /// From here.
        offset: u64,
    },
    /// The cluster was formatted: come and join (to waiting sheep).
    Invite {
        /// Cluster.
        cluster: ClusterId,
    },
}

/// Answers.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub enum Response {
    /// To `Hello`.
    Welcome(Welcome),
    /// To `Status`.
    Status(StatusReply),
    /// To `Append`.
    Append(AppendEntriesResponse<TypeConfig>),
    /// To `Vote` and `PreVote`.
    Vote(VoteResponse<TypeConfig>),
    /// To the last `SnapshotPart`.
    Snapshot(SnapshotResponse<TypeConfig>),
    /// To a part that is not the last, `Suspect`, `Invite`.
    Done,
    /// To `Propose`.
    Proposed(Reply, ControlIndex),
    /// Ask this one.
    NotLeader(Option<PeerInfo>),
    /// To `Heartbeat`.
    Lease(LeaseReply),
    /// To `Watch`.
    Watch(WatchReply),
    /// To `SnapshotRead`; empty when that state is not kept any more.
    SnapshotData(#[serde(with = "bytes_serde")] Vec<u8>),
    /// Cannot.
    Error(String),
}

/// Byte strings in one piece rather than element by element.
mod bytes_serde {
    use serde::{Deserializer, Serializer, de::Visitor};

    pub(super) fn serialize<S: Serializer>(v: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(v)
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, b: &[u8]) -> Result<Vec<u8>, E> {
                Ok(b.to_vec())
            }
        }
        d.deserialize_bytes(V)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block<T>(f: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(f)
    }

    #[test]
    fn frames_are_frozen() {
        let b = encode(Kind::Request, 0x0102, &Request::Status).unwrap();
        let head = [1, 0, 0, 0, 1, 1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(&b[..16], head);
        assert_eq!(&b[20..], [1]);
        assert_eq!(b[16..20], crc32c_parts(&[&head, &[1]]).to_le_bytes());
    }

    #[test]
    fn round_trip_and_end() {
        let a = encode(Kind::Response, 7, &Response::SnapshotData(vec![9; 100_000])).unwrap();
        let (kind, id, body) = block(read_frame(&mut &a[..])).unwrap().unwrap();
        assert_eq!((kind, id), (Kind::Response, 7));
        assert!(matches!(parse(&body).unwrap(), Response::SnapshotData(d) if d.len() == 100_000));
        assert!(block(read_frame(&mut &[][..])).unwrap().is_none());
    }

    #[test]
    fn damage_is_noticed() {
        let good = encode(Kind::Request, 1, &Request::Suspect(NodeId(77))).unwrap();
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 0x10;
            assert!(!matches!(block(read_frame(&mut &bad[..])), Ok(Some(_))), "byte {i}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(b in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = block(read_frame(&mut &b[..]));
            let _ = parse::<Request>(&b);
            let _ = parse::<Response>(&b);
        }
    }
}
