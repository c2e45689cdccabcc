//! Every parser of the peer protocol on damaged input: a value or a named error, never a panic, never more memory than the input is worth.

#![allow(clippy::single_range_in_vec_init)]

mod mutate;

use bytes::Bytes;
use mutate::{each, within};
use sheepdog_proto::peer::{
    BlockState, CopyDigest, Envelope, Forward, ForwardError, Frame, HEADER_LEN, Hello, InventoryRow, Kind,
    Needs, ObjectStat, PullHead, ReadReply, ReadRequest, Request, Response, Seal, SealedRow, Status, Tail,
    Terms, WireError, WriteAction, WriteReply, WriteRequest, decode, encode,
};
use sheepdog_proto::{
    AttachmentId, BLOCK_SHIFT, BLOCK_SIZE, BlockMap, ClusterId, ControlIndex, DiskId, Epoch, Generation,
    LayerId, MAX_META, MAX_OBJECT_BLOCKS, MAX_PAYLOAD, NodeId, ObjectId, PlacementKey, VdiId, Version,
};

/// What a list may be given room for before its first element is seen (serde's own limit), and what an element of a list takes in
/// memory for each of its bytes.
fn cap(len: usize) -> usize {
    (1 << 20) + (64 << 10) + 64 * len
}

fn version(seq: u64) -> Version {
    Version { generation: 3, seq }
}

fn map(set: std::ops::Range<u32>) -> BlockMap {
    let mut m = BlockMap::new(256);
    m.set(set);
    m
}

fn write() -> WriteRequest {
    WriteRequest {
        oid: ObjectId::data(LayerId(3), 9),
        family: LayerId(1),
        vdi: VdiId(1),
        object_size: 4 << 20,
        action: WriteAction::Data,
        degraded: Some(Epoch(7)),
        version: version(5),
        prev: version(4),
        epoch: Epoch(8),
        watermark: 3,
        control_index: ControlIndex(44),
        blocks: 10..11,
    }
}

fn read() -> ReadRequest {
    ReadRequest {
        top: LayerId(3),
        key: PlacementKey { family: LayerId(1), index: 9 },
        blocks: 10..20,
        epoch: Epoch(8),
        control_index: ControlIndex(44),
    }
}

fn requests() -> Vec<Vec<u8>> {
    let (oid, family, vdi) = (ObjectId::data(LayerId(3), 9), LayerId(1), VdiId(1));
    let (control_index, key) = (ControlIndex(44), PlacementKey { family, index: 9 });
    let seal = Seal { version: version(5), digest: 9, slot: 1, data: 4, parity: 2 };
    let strip = oid.strip_of(1, 5);
    let all = [
        Request::Fence { vdi, generation: Generation(3), control_index },
        Request::Watermark { vdi, generation: Generation(3), seq: 4, control_index },
        Request::Stat { objects: vec![(oid, family); 3], control_index },
        Request::Adopt {
            oid,
            family,
            source: NodeId(7),
            blocks: Some(vec![1..2, 4..9]),
            terms: Terms { epoch: Epoch(8), session: Some(Generation(3)) },
            control_index,
        },
        Request::Join { vdi, oid, family },
        Request::PullHead { oid, family, control_index },
        Request::PullData { oid, family, runs: vec![0..4, 9..10], held: true },
        Request::Inventory { node: NodeId(7), since: Epoch(2), epoch: Epoch(8), after: Some(oid) },
        Request::Forward {
            vdi,
            open: 1,
            since: control_index,
            attachment: AttachmentId(2),
            seq: 7,
            floor: 3,
            io: Forward::Read { layer: Some(family), offset: 4096, len: 512 },
        },
        Request::Forward {
            vdi,
            open: 1,
            since: control_index,
            attachment: AttachmentId(2),
            seq: 7,
            floor: 3,
            io: Forward::Write { offset: 1 << 40 },
        },
        Request::Forward {
            vdi,
            open: 1,
            since: control_index,
            attachment: AttachmentId(2),
            seq: 7,
            floor: 3,
            io: Forward::Zero { offset: 0, len: 1 << 30 },
        },
        Request::Forward {
            vdi,
            open: 1,
            since: control_index,
            attachment: AttachmentId(2),
            seq: 0,
            floor: 0,
            io: Forward::BlockStatus { layer: None, offset: 0, len: 1 << 30, max: 100 },
        },
        Request::BlockState { top: family, key, blocks: 0..256, control_index },
        Request::Presence { layer: family, after: Some(9) },
        Request::Digests { objects: vec![(oid, family); 2], deep: true, control_index },
        Request::Stamp { oid, epoch: Epoch(8), blocks: vec![1..2], floor: Epoch(3) },
        Request::Missed { oid, family, epoch: Epoch(8), control_index },
        Request::Settled { vdi, incarnation: 5 },
        Request::Enforced { vdi, incarnation: 5, control_index },
        Request::PutStrip {
            oid: strip,
            family,
            vdi,
            object_size: 4 << 20,
            seal,
            rows: vec![0..4, 9..10],
            replace: true,
        },
        Request::GetStrip { oid: strip, seal, rows: 3..9 },
        Request::Seal {
            oid,
            family,
            seal,
            blocks: map(3..9),
            crcs: vec![7; 6],
            epoch: Epoch(8),
            control_index,
        },
        Request::Sealed { node: NodeId(7), epoch: Epoch(8), after: Some(oid) },
        Request::HasStrips { strips: vec![(strip, seal); 2] },
        Request::Seals { objects: vec![(oid, family, 3); 2], epoch: Epoch(8), control_index },
    ];
    all.iter().map(encode).collect()
}

fn responses() -> Vec<Vec<u8>> {
    let (oid, family, vdi) = (ObjectId::data(LayerId(3), 9), LayerId(1), VdiId(1));
    let seal = Seal { version: version(5), digest: 9, slot: 1, data: 4, parity: 2 };
    let sealed = SealedRow { oid, family, vdi, object_size: 1 << 20, seal };
    let row =
        InventoryRow { oid, family, vdi, version: version(5), epoch: Epoch(8), missing: false, seal: 7 };
    let head = PullHead {
        version: version(5),
        epoch: Epoch(8),
        vdi,
        object_size: 1 << 20,
        present: map(0..100),
        zero: map(50..60),
        dirty: map(3..4),
        dirty_since: Some(Epoch(4)),
        tail: Some((version(3), 3..9)),
        digest: 0x1234_5678_9abc_def0,
        cold: map(70..73),
        cold_crcs: vec![1, 2, 3],
        seal: Some(seal),
        promised: 3,
    };
    let stat = ObjectStat { status: Status::Ok, version: version(5), epoch: Epoch(8), promised: 3 };
    let digest = CopyDigest { status: Status::Ok, version: version(5), digest: Some(7), corrupt: vec![1..2] };
    let all = [
        Response::Done,
        Response::Failed(Status::NoLease, "behind".into()),
        Response::Tail(vec![Tail { oid, version: version(5), prev: version(4), blocks: 1..3 }; 2]),
        Response::Stats(vec![stat; 2]),
        Response::Adopted(version(5)),
        Response::Head(Some(Box::new(head))),
        Response::Data(version(4), version(5)),
        Response::Inventory { rows: vec![row; 3], next: Some(oid) },
        Response::ForwardFailed(ForwardError::Gone("deleted".into())),
        Response::Extents(vec![(4096, true, true), (512, false, false)]),
        Response::Blocks(vec![(0..4, BlockState::Data), (4..9, BlockState::Absent)]),
        Response::Presence(vec![(9, map(0..5), map(2..3))], true),
        Response::Digests(vec![digest; 2]),
        Response::Strip,
        Response::Sealed { rows: vec![sealed; 3], next: Some(oid) },
        Response::Has(vec![true, false]),
        Response::Seals(vec![Needs { stat, here: true, seal: Some(seal) }; 2]),
    ];
    all.iter().map(encode).collect()
}

/// Meta of a message is capped before it is read, so a valid one is never refused for its length.
fn documented(e: &WireError) {
    assert!(!e.to_string().is_empty());
}

#[test]
fn frame_headers() {
    let frames = [
        Frame::new(Kind::Hello, 1, b"ab", Vec::new()),
        Frame::new(Kind::Write, 2, &write().encode(), vec![Bytes::from(vec![7; BLOCK_SIZE])]),
        Frame::new(
            Kind::ReadReply,
            u64::MAX,
            b"",
            vec![Bytes::from_static(b"xyz"), Bytes::from_static(b"w")],
        ),
    ];
    let heads: Vec<Vec<u8>> = frames.iter().map(|f| f.head[..HEADER_LEN].to_vec()).collect();
    let check = |bytes: &[u8]| {
        let Some(head) = bytes.first_chunk() else { return };
        match within(0, || Envelope::decode(head)) {
            Ok(e) => {
                assert!(e.meta_len <= MAX_META && e.payload_len <= MAX_PAYLOAD);
                // Whatever the checksums in it are.
                let _ = e.verify(b"", b"");
                let _ = e.verify(&bytes[HEADER_LEN..], bytes);
            }
            Err(e) => documented(&e),
        }
    };
    each(1, &heads, check);
    // The same with a right checksum, so that the lengths and the kind are looked at.
    each(2, &heads, |bytes| {
        let mut bytes = bytes.to_vec();
        if bytes.len() >= HEADER_LEN {
            let crc = sheepdog_proto::checksum::crc32c(&bytes[..HEADER_LEN - 4]);
            bytes[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        }
        check(&bytes);
    });
}

#[test]
fn writes() {
    let zero = WriteRequest { action: WriteAction::Zero, blocks: 0..MAX_OBJECT_BLOCKS, ..write() };
    each(3, &[write().encode(), zero.encode()], |bytes| {
        for payload in [0, BLOCK_SIZE, MAX_PAYLOAD, usize::MAX] {
            match within(0, || WriteRequest::decode(bytes, payload)) {
                Ok(w) => {
                    assert!(w.blocks.start < w.blocks.end && w.blocks.end <= MAX_OBJECT_BLOCKS);
                    let data = w.action == WriteAction::Data;
                    assert_eq!(payload, if data { w.blocks.len() << BLOCK_SHIFT } else { 0 });
                    assert_eq!(WriteRequest::decode(&w.encode(), payload), Ok(w));
                }
                Err(e) => documented(&e),
            }
        }
    });
    let replies = [
        WriteReply { status: Status::Ok, version: Version::NONE, epoch: Epoch(3) },
        WriteReply { status: Status::Behind, version: version(9), epoch: Epoch(u64::MAX) },
    ];
    each(4, &replies.map(|r| r.encode()), |bytes| match within(0, || WriteReply::decode(bytes)) {
        Ok(r) => assert_eq!(WriteReply::decode(&r.encode()), Ok(r)),
        Err(e) => documented(&e),
    });
}

#[test]
fn reads() {
    each(5, &[read().encode()], |bytes| match within(0, || ReadRequest::decode(bytes)) {
        Ok(r) => {
            assert!(r.blocks.start < r.blocks.end && r.blocks.end <= MAX_OBJECT_BLOCKS);
            assert!(r.blocks.len() << BLOCK_SHIFT <= MAX_PAYLOAD);
            assert_eq!(ReadRequest::decode(&r.encode()), Ok(r));
        }
        Err(e) => documented(&e),
    });
    let replies = [
        ReadReply { status: Status::Ok, epoch: Epoch(3), absent: vec![1..3, 7..9] },
        ReadReply { status: Status::StaleEpoch, epoch: Epoch(9), absent: Vec::new() },
    ];
    each(6, &replies.map(|r| r.encode()), |bytes| {
        match within(4 * bytes.len(), || ReadReply::decode(bytes)) {
            Ok(r) => {
                assert!(r.absent.iter().all(|a| a.start < a.end && a.end <= MAX_OBJECT_BLOCKS));
                assert_eq!(ReadReply::decode(&r.encode()), Ok(r));
            }
            Err(e) => documented(&e),
        }
    });
}

#[test]
fn greetings() {
    let hello = Hello {
        cluster: ClusterId(77),
        node: NodeId(u128::MAX),
        incarnation: 5,
        to: NodeId(9),
        connection: 1,
    };
    each(7, &[encode(&hello)], |bytes| {
        if let Err(e) = within(256, || decode::<Hello>(bytes)) {
            documented(&e);
        }
    });
}

#[test]
fn cold_requests() {
    each(8, &requests(), |bytes| {
        if let Err(e) = within(cap(bytes.len()), || decode::<Request>(bytes)) {
            documented(&e);
        }
    });
}

#[test]
fn cold_responses() {
    each(9, &responses(), |bytes| match within(cap(bytes.len()), || decode::<Response>(bytes)) {
        Ok(Response::Head(Some(head))) => {
            // Whatever it says about itself: either it is refused, or everything in it fits the object.
            if head.check().is_ok() {
                let blocks = head.object_size >> BLOCK_SHIFT;
                assert!([&head.present, &head.zero, &head.dirty].iter().all(|m| m.capacity() <= blocks));
            }
        }
        Ok(_) => {}
        Err(e) => documented(&e),
    });
}

#[test]
fn lists_of_nothing_take_no_more_than_they_are_worth() {
    // As many of the shortest elements as a message may have.
    let rows = encode(&Response::Digests(vec![
        CopyDigest {
            status: Status::Ok,
            version: Version::NONE,
            digest: None,
            corrupt: Vec::new()
        };
        MAX_META / 5 - 2
    ]));
    assert!(rows.len() <= MAX_META);
    let (_, peak) = mutate::peak(|| decode::<Response>(&rows));
    assert!(peak <= 40 * MAX_META, "{peak} bytes for a message of {}", rows.len());
}

#[test]
fn block_maps() {
    each(10, &[encode(&map(0..9)), encode(&BlockMap::new(MAX_OBJECT_BLOCKS))], |bytes| {
        if let Ok(m) = within(cap(bytes.len()), || decode::<BlockMap>(bytes)) {
            assert!(m.capacity() <= MAX_OBJECT_BLOCKS, "longer than any object");
            // Walking it ends, whatever range is asked for.
            assert!(m.set_runs().all(|r| r.start < r.end));
            assert!(!m.get(u32::MAX));
        }
    });
    let m = map(0..9);
    #[allow(clippy::reversed_empty_ranges)]
    for range in [0..0, 9..3, 250..300, u32::MAX - 1..u32::MAX] {
        assert!(m.runs(range).count() <= 2);
    }
}

#[test]
fn names() {
    let oid = ObjectId::data(LayerId(3), 9);
    let texts = [
        oid.to_string(),
        NodeId(u128::MAX).to_string(),
        ClusterId(7).to_string(),
        DiskId(8).to_string(),
        LayerId(5).hex(),
    ];
    each(11, &texts.map(String::into_bytes), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Some(o) = ObjectId::parse(&text) {
            assert_eq!(ObjectId::parse(&o.to_string()), Some(o));
        }
        let _ = (NodeId::parse(&text), ClusterId::parse(&text), DiskId::parse(&text));
    });
}
