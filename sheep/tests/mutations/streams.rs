//! Links between sheep: preface, frames of the data link, frames and messages of the control link, messages of the admin interface.

use crate::mutate::{cuts, each, each_of, rounds, within};
use bytes::Bytes;
use prost::Message;
use sheep::control::rpc::{self, Heartbeat, Kind as ControlKind, LeaseReply, PeerInfo, Request, Response};
use sheep::control::rpc::{StatusReply, WatchReply, Welcome};
use sheep::peer::frame_io::{FrameReader, write_frames};
use sheep::transport::{LinkKind, decode_preface, encode_preface};
use sheepdog_client::pb;
use sheepdog_cluster::{Command, Entry, EventLevel, NodeAddr};
use sheepdog_proto::checksum::{crc32c, crc32c_parts};
use sheepdog_proto::peer::{Frame, HEADER_LEN, Hello, Kind, encode};
use sheepdog_proto::{ClusterId, ControlIndex, MAX_META, MAX_PAYLOAD, NodeId};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};

/// A socket that hands out its bytes in pieces.
struct Pieces<'a> {
    bytes: &'a [u8],
    sizes: std::vec::IntoIter<usize>,
    left: usize,
}

impl<'a> Pieces<'a> {
    fn new(bytes: &'a [u8], sizes: Vec<usize>) -> Self {
        Self { bytes, sizes: sizes.into_iter(), left: 0 }
    }
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.left == 0 {
            self.left = self.sizes.next().unwrap_or(0);
        }
        let n = self.left.min(buf.remaining()).min(self.bytes.len());
        let (now, rest) = self.bytes.split_at(n);
        buf.put_slice(now);
        (self.bytes, self.left) = (rest, self.left - n);
        Poll::Ready(Ok(()))
    }
}

/// Nothing here ever waits.
fn now<T>(f: impl Future<Output = T>) -> T {
    let mut f = std::pin::pin!(f);
    match f.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
        Poll::Ready(t) => t,
        Poll::Pending => panic!("waits for nothing"),
    }
}

#[test]
fn prefaces() {
    let valid = [LinkKind::Data, LinkKind::Control].map(|k| encode_preface(k).to_vec());
    each(1, &valid, |bytes| {
        let Some(head) = bytes.first_chunk() else { return };
        if let Err(e) = within(0, || decode_preface(*head)) {
            assert!(!e.to_string().is_empty());
        }
    });
}

fn data_streams() -> Vec<Vec<u8>> {
    let hello =
        Hello { cluster: ClusterId(1), node: NodeId(2), incarnation: 3, to: NodeId(4), connection: 5 };
    let frames = [
        Frame::new(Kind::Hello, 0, &encode(&hello), Vec::new()),
        Frame::new(Kind::Write, 7, &[3; 96], vec![Bytes::from(vec![7; 600])]),
        Frame::new(Kind::Response, 8, &[1; 20], vec![Bytes::from_static(b"abc"), Bytes::from_static(b"de")]),
    ];
    let mut all = Vec::new();
    for some in [&frames[..1], &frames[1..2], &frames[..]] {
        let mut stream = Vec::new();
        now(write_frames(&mut stream, some)).unwrap();
        all.push(stream);
    }
    all
}

/// (number, metadata, payload) of every message, and why it ended.
type Heard = (Vec<(u64, Bytes, Bytes)>, String);

fn hear(bytes: &[u8], sizes: Vec<usize>) -> Heard {
    let mut reader = FrameReader::new(Pieces::new(bytes, sizes));
    let mut all = Vec::new();
    loop {
        match now(reader.next()) {
            Ok(m) => all.push((m.request, m.meta, m.payload)),
            Err(e) => return (all, e.to_string()),
        }
    }
}

#[test]
fn data_frames() {
    // A header may announce as much as the caps allow; more is never asked for.
    let cap = MAX_META + MAX_PAYLOAD + (1 << 20);
    let check = |bytes: &[u8]| {
        let mut ends = cuts(1, bytes.len()).into_iter().map(|c| within(cap, || hear(bytes, c)));
        let first = ends.next();
        assert!(ends.all(|e| Some(e) == first), "the outcome depends on how the stream was cut");
    };
    each_of(2, &data_streams(), rounds() / 3, check);
    // With a right checksum of the first header, so that its lengths are believed.
    each_of(3, &data_streams(), rounds() / 3, |bytes| {
        let mut bytes = bytes.to_vec();
        if bytes.len() >= HEADER_LEN {
            let crc = crc32c(&bytes[..HEADER_LEN - 4]);
            bytes[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        }
        check(&bytes);
    });
}

#[test]
fn a_stranger_cannot_make_a_data_link_read_much() {
    for (meta, payload) in [(MAX_META, 0), (0, MAX_PAYLOAD), (2000, 0), (0, 1)] {
        let payload = if payload == 0 { Vec::new() } else { vec![Bytes::from(vec![1; payload])] };
        let frame = Frame::new(Kind::Hello, 0, &vec![1; meta], payload);
        let head = &frame.head[..HEADER_LEN];
        let mut reader = FrameReader::new(Pieces::new(head, vec![head.len()]));
        let e = within(4096, || now(reader.greeting())).unwrap_err();
        assert!(e.to_string().contains("over the limit"), "{e}");
    }
}

fn me() -> PeerInfo {
    let addr = NodeAddr { host: "10.0.0.1".into(), client_port: 7000, peer_port: 7001 };
    PeerInfo { node: NodeId(7), incarnation: 8, addr }
}

fn control_messages() -> (Vec<Request>, Vec<Response>) {
    let command = Command::Note { level: EventLevel::Info, text: "hello".into() };
    let entry = Entry { now: 5, request: 6, command };
    let requests = vec![
        Request::Hello(rpc::Hello {
            me: me(),
            cluster: Some(ClusterId(1)),
            to: Some(NodeId(9)),
            version: "0.1.0".into(),
            remembers: Some(ClusterId(2)),
        }),
        Request::Status,
        Request::Propose(entry.clone()),
        Request::Heartbeat(Heartbeat { node: NodeId(7), incarnation: 8, applied: ControlIndex(9) }),
        Request::Suspect(NodeId(3)),
        Request::Watch { after: ControlIndex(9) },
        Request::SnapshotRead { index: ControlIndex(9), offset: 1 << 30 },
        Request::Invite { cluster: ClusterId(5) },
    ];
    let status = StatusReply {
        me: me(),
        cluster: None,
        remembers: Some(ClusterId(2)),
        leader: Some(me()),
        peers: vec![me(); 2],
        voters: vec![NodeId(7); 3],
        applied: ControlIndex(4),
    };
    let responses = vec![
        Response::Welcome(Welcome::Ok { me: me(), cluster: Some(ClusterId(1)) }),
        Response::Welcome(Welcome::WrongNode(me())),
        Response::Status(status),
        Response::Done,
        Response::NotLeader(Some(me())),
        Response::Lease(LeaseReply::Granted { lease: 4000, min_index: ControlIndex(3) }),
        Response::Watch(WatchReply::Entries(vec![(ControlIndex(1), None), (ControlIndex(2), Some(entry))])),
        Response::Watch(WatchReply::Snapshot { index: ControlIndex(9), total: 100, crc: 5 }),
        Response::SnapshotData(vec![1; 50]),
        Response::Error("no".into()),
    ];
    (requests, responses)
}

/// Whether it asks, its number, its body.
type ControlMessage = (bool, u64, Vec<u8>);

/// What comes of one stream: messages, and how it ended.
fn listen(bytes: &[u8], sizes: Vec<usize>, max: usize) -> (Vec<ControlMessage>, Option<String>) {
    let mut stream = Pieces::new(bytes, sizes);
    let mut all = Vec::new();
    loop {
        match now(rpc::read_frame_within(&mut stream, max)) {
            Ok(Some((kind, id, body))) => all.push((kind == ControlKind::Request, id, body)),
            Ok(None) => return (all, None),
            Err(e) => return (all, Some(e.to_string())),
        }
    }
}

#[test]
fn control_frames() {
    let (requests, responses) = control_messages();
    let mut streams: Vec<Vec<u8>> =
        requests.iter().map(|r| rpc::encode(ControlKind::Request, 1, r).unwrap()).collect();
    streams.extend(responses.iter().map(|r| rpc::encode(ControlKind::Response, 2, r).unwrap()));
    streams.truncate(6);
    streams.push(streams.concat());
    let check = |bytes: &[u8]| {
        let cap = (64 << 10) + (4 << 10) + 8 * bytes.len();
        let run = |c| within(cap, || listen(bytes, c, rpc::MAX_BODY));
        let mut ends = cuts(4, bytes.len()).into_iter().map(run);
        let first = ends.next();
        assert!(ends.all(|e| Some(e) == first), "the outcome depends on how the stream was cut");
        // Of a stranger only a short message is taken.
        let (taken, _) = within(cap, || listen(bytes, vec![bytes.len()], rpc::MAX_HELLO));
        assert!(taken.iter().all(|(_, _, body)| body.len() <= rpc::MAX_HELLO));
    };
    each_of(4, &streams, rounds() / 3, check);
    each_of(5, &streams, rounds() / 3, |bytes| {
        let mut bytes = bytes.to_vec();
        if bytes.len() >= rpc::HEADER {
            let crc = crc32c_parts(&[&bytes[..16], &bytes[rpc::HEADER..]]);
            bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        }
        check(&bytes);
    });
}

#[test]
fn control_bodies() {
    let (requests, responses) = control_messages();
    let body = |frame: Vec<u8>| frame[rpc::HEADER..].to_vec();
    let requests: Vec<_> =
        requests.iter().map(|r| body(rpc::encode(ControlKind::Request, 1, r).unwrap())).collect();
    let responses: Vec<_> =
        responses.iter().map(|r| body(rpc::encode(ControlKind::Response, 1, r).unwrap())).collect();
    // serde's own limit for a list whose elements were not seen yet, at each of a few levels.
    let cap = |len: usize| (4 << 20) + 64 * len;
    each(6, &requests, |bytes| {
        let _ = within(cap(bytes.len()), || rpc::parse::<Request>(bytes));
    });
    each(7, &responses, |bytes| {
        let _ = within(cap(bytes.len()), || rpc::parse::<Response>(bytes));
    });
}

#[test]
fn admin_messages() {
    let vdi = Some(pb::VdiRef::id(7));
    let chunk = pb::Chunk { offset: 5, data: vec![1; 30].into(), zeros: 0 };
    let create = pb::CreateVdiRequest {
        name: "vol".into(),
        size: 1 << 30,
        redundancy: Some(pb::Redundancy { copies: 3, data: 0, parity: 0 }),
        uuid: "67e55044-10b1-426f-9247-bb680e5fe0c8".into(),
        source: vdi.clone(),
        ..Default::default()
    };
    let snapshot = pb::SnapshotRequest { vdis: vec![pb::VdiRef::id(1), pb::VdiRef::id(2)], tag: "t".into() };
    let write = pb::WriteRequest { message: Some(pb::write_request::Message::Chunk(chunk)), attachment: 0 };
    let valid = [create.encode_to_vec(), snapshot.encode_to_vec(), write.encode_to_vec()];
    each(8, &valid, |bytes| {
        let cap = 4096 + 64 * bytes.len();
        within(cap, || {
            let _ = pb::CreateVdiRequest::decode(bytes);
            let _ = pb::SnapshotRequest::decode(bytes);
            let _ = pb::WriteRequest::decode(bytes);
            let _ = pb::FormatRequest::decode(bytes);
        });
    });
}
