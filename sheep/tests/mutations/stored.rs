//! What is on a sheep's disks: identity, journal, object headers, `node.json`, control log and snapshot. Each is damaged as it is, and again with
//! its checksum made right, so that what it says is looked at. A sheep refuses with a sentence, or serves; it does not fall over.

use crate::mutate::{each_of, rounds, within};
use bytes::Bytes;
use openraft::RaftLogReader;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::blank_ent;
use sheep::buf::AlignedBuf;
use sheep::control::identity::Identity;
use sheep::control::log_store::LogStore;
use sheep::control::raft_types::{RaftId, TypeConfig, Vote};
use sheep::control::state_machine::{StateMachine, decode_state};
use sheep::control::{Publisher, boottime_millis};
use sheep::store::fs::memory::MemoryFs;
use sheep::store::fs::{Fs, OpenHow};
use sheep::store::{FillOp, Store, StoreConfig, WriteKind, WriteOp};
use sheepdog_cluster::ClusterState;
use sheepdog_proto::checksum::crc32c;
use sheepdog_proto::{
    BLOCK_SHIFT, BLOCK_SIZE, ClusterId, Epoch, LayerId, NodeId, ObjectId, PlacementKey, VdiId, Version,
};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;

const SIZE: u32 = 1 << 20;
/// One of the two places of the header in the file of an object of that size, bytes.
const SLOT: usize = 4096;
const DISK: &str = "/disk";

/// On the data thread's kind of runtime, where a task that panics ends the test.
fn local<F: Future>(f: impl FnOnce() -> F) -> F::Output {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let mut set = tokio::task::LocalSet::new();
    set.unhandled_panic(tokio::runtime::UnhandledPanic::ShutdownRuntime);
    set.block_on(&runtime, async { f().await })
}

fn config() -> StoreConfig {
    StoreConfig {
        node: NodeId(7),
        cluster: Some(ClusterId(9)),
        disks: vec![PathBuf::from(DISK)],
        journal_dir: None,
        journal_size: Some(32 << 20),
        plain: false,
    }
}

fn key(index: u32) -> PlacementKey {
    PlacementKey { family: LayerId(1), index }
}

fn data(blocks: &Range<u32>, value: u8) -> WriteKind {
    let mut buf = AlignedBuf::new(blocks.len() << BLOCK_SHIFT);
    buf.fill(value);
    WriteKind::Data(buf.freeze())
}

fn step(index: u32, seq: u64, blocks: Range<u32>, kind: WriteKind) -> WriteOp {
    let version = |seq| if seq == 0 { Version::NONE } else { Version { generation: 1, seq } };
    WriteOp {
        oid: ObjectId::data(LayerId(1), index),
        key: key(index),
        vdi: VdiId(1),
        object_size: SIZE,
        version: version(seq),
        prev: version(seq - 1),
        epoch: Epoch(3),
        degraded: Some(Epoch(2)),
        watermark: seq.saturating_sub(2),
        blocks,
        kind,
    }
}

/// A disk as it was left behind: path, length, and the pages that are not zero.
type Image = Vec<(PathBuf, u64, Vec<(u64, Bytes)>)>;

async fn image(fs: &MemoryFs) -> Image {
    let mut all = Vec::new();
    for path in fs.paths() {
        let file = fs.open(&path, OpenHow::default()).unwrap();
        let len = file.len().unwrap();
        let mut pages = Vec::new();
        for at in (0..len).step_by(BLOCK_SIZE) {
            let page = file.read_at(at, BLOCK_SIZE).await.unwrap();
            if page.iter().any(|b| *b != 0) {
                pages.push((at, page.freeze()));
            }
        }
        all.push((path, len, pages));
    }
    all
}

async fn restore(image: &Image) -> MemoryFs {
    let fs = MemoryFs::default();
    for (path, len, pages) in image {
        let file = fs.open(path, OpenHow { create: true, direct: false }).unwrap();
        file.set_len(*len).unwrap();
        for (at, page) in pages {
            file.write_at(*at, vec![page.clone()], true).await.unwrap();
        }
        file.sync().await.unwrap();
    }
    fs
}

/// A disk with objects in their files, and the same and more in the journal, as a crash leaves it.
async fn left_behind() -> Image {
    let fs = MemoryFs::default();
    let store = Store::open(config(), Rc::new(fs.clone())).await.unwrap();
    for index in 0..2 {
        store.write(step(index, 1, 3..5, data(&(3..5), 7))).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(5)).await; // everything is in its place
    store.write(step(0, 2, 4..6, data(&(4..6), 8))).await.unwrap();
    store.write(step(0, 3, 3..4, WriteKind::Zero)).await.unwrap();
    let oid = ObjectId::data(LayerId(1), 5);
    let ops =
        vec![FillOp { blocks: 0..1, kind: data(&(0..1), 9) }, FillOp { blocks: 1..3, kind: WriteKind::Zero }];
    store.fill(oid, key(5), VdiId(1), SIZE, ops).await.unwrap();
    let done = store.finish_fill(
        oid,
        Version { generation: 1, seq: 4 },
        Epoch(3),
        Default::default(),
        None,
        Some((Version::NONE, 0..3)),
    );
    done.await.unwrap();
    let all = image(&fs).await;
    drop(store);
    all
}

fn bytes_of(image: &Image, path: &Path, range: Range<u64>) -> Vec<u8> {
    let (_, _, pages) = image.iter().find(|(p, ..)| p == path).unwrap();
    let mut out = vec![0; (range.end - range.start) as usize];
    for (at, page) in pages {
        for (i, b) in page.iter().enumerate() {
            let at = at + i as u64;
            if range.contains(&at) {
                out[(at - range.start) as usize] = *b;
            }
        }
    }
    out
}

/// Put bytes into a file: those of its page, whatever length they have now, up to `most`.
async fn put(fs: &MemoryFs, path: &Path, at: u64, bytes: &[u8], most: usize) {
    let file = fs.open(path, OpenHow::default()).unwrap();
    let mut block = file.read_at(at, most.next_multiple_of(BLOCK_SIZE)).await.unwrap();
    block[..most].fill(0);
    let n = bytes.len().min(most);
    block[..n].copy_from_slice(&bytes[..n]);
    file.write_at(at, vec![block.freeze()], true).await.unwrap();
}

/// Open, look at everything, let it settle, close.
async fn use_it(fs: MemoryFs) {
    let store = match Store::open(config(), Rc::new(fs)).await {
        Ok(store) => store,
        Err(e) => {
            let text = e.to_string();
            assert!(
                text.contains(DISK) && text.contains(' '),
                "{text:?} does not say what is wrong with what"
            );
            return;
        }
    };
    for row in store.list(None, 100) {
        let (layers, index) = (store.layers_at(row.key), row.oid.index());
        // Blocks of a damaged object are refused, not made up.
        let _ = store.read(&layers, PlacementKey { index, ..row.key }, 0..256).await;
        let _ = (store.info(row.oid).await, store.digest(row.oid).await, store.verify(row.oid).await);
    }
    let _ = store.write(step(9, 1, 0..1, data(&(0..1), 1))).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let _ = tokio::time::timeout(Duration::from_secs(60), store.close()).await;
}

/// Damage `len` bytes at `at` of a file in every way; `seal` makes the checksum right again.
fn damage(seed: u64, file: &str, at: u64, len: usize, seal: impl Fn(&mut [u8])) {
    let image = local(left_behind);
    let path = Path::new(DISK).join(file);
    let valid = bytes_of(&image, &path, at..at + len as u64);
    let mut turn = 0usize;
    each_of(seed, &[valid], rounds() / 5, |bytes| {
        turn += 1;
        // Each of these opens a store: of the systematic ones every seventh will do, unless more is asked for.
        if rounds() <= 3000 && turn > 1 && !turn.is_multiple_of(7) {
            return;
        }
        for sealed in [false, true] {
            let mut bytes = bytes.to_vec();
            bytes.resize(len, 0);
            if sealed {
                seal(&mut bytes);
            }
            within(64 << 20, || {
                local(|| async {
                    let fs = restore(&image).await;
                    put(&fs, &path, at, &bytes, len).await;
                    use_it(fs).await;
                });
            });
        }
    });
}

fn put_crc(bytes: &mut [u8], at: usize, crc: u32) {
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn identity_of_a_disk() {
    damage(1, "disk", 0, 100, |b| {
        let size = u64::from_le_bytes(b[..8].try_into().unwrap()) as usize;
        if let Some(crc) = b.get(16..16usize.saturating_add(size)).map(crc32c) {
            put_crc(b, 8, crc);
        }
    });
}

#[test]
fn superblocks_of_the_journal() {
    for at in [0, 4096] {
        damage(2, "journal", at, 48, |b| {
            let (crc, area) = (crc32c(&b[..32]), crc32c(&b[40..48]));
            put_crc(b, 32, crc);
            put_crc(b, 36, area);
        });
    }
}

#[test]
fn batches_of_the_journal() {
    // Replay begins where the superblocks say: the newer of them has the higher counter.
    let image = local(left_behind);
    let supers = bytes_of(&image, &Path::new(DISK).join("journal"), 0..8192);
    let u64_at = |at: usize| u64::from_le_bytes(supers[at..at + 8].try_into().unwrap());
    let newer = if u64_at(8) > u64_at(4096 + 8) { 0 } else { 4096 };
    let mut at = u64_at(newer + 16);
    for seed in 3..6 {
        damage(seed, "journal", at, BLOCK_SIZE, |b| {
            put_crc(b, 32, 0);
            let crc = crc32c(b);
            put_crc(b, 32, crc);
        });
        let head = bytes_of(&image, &Path::new(DISK).join("journal"), at..at + 40);
        let payload = u32::from_le_bytes(head[20..24].try_into().unwrap());
        at += BLOCK_SIZE as u64 + u64::from(payload);
    }
}

#[test]
fn headers_in_object_files() {
    let slot = SLOT as u64;
    for index in 0..2u32 {
        let oid = ObjectId::data(LayerId(1), index);
        let file = format!("obj/{}/{:03x}/{oid}", LayerId(1).hex(), 0);
        for at in [0, slot] {
            damage(6, &file, at, SLOT, |b| {
                put_crc(b, 236, 0);
                let crc = crc32c(b);
                put_crc(b, 236, crc);
            });
        }
    }
}

#[test]
fn identity_of_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.json");
    let mut id = Identity::load_or_create(dir.path()).unwrap();
    (id.cluster, id.member) = (Some(ClusterId(7)), true);
    id.save(dir.path()).unwrap();
    let valid = std::fs::read(&path).unwrap();
    each_of(8, std::slice::from_ref(&valid), rounds() / 3, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        match Identity::load_or_create(dir.path()) {
            Ok(read) => assert_eq!(read, id, "it was changed and nobody noticed"),
            Err(e) => assert!(e.to_string().contains("restore it"), "{e}"),
        }
    });
}

#[test]
fn snapshots_of_the_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let machine = || {
        let publisher = Publisher::new(NodeId(0), 1, ClusterState::default(), boottime_millis);
        StateMachine::new(publisher, path.clone(), watch::Sender::new(None))
    };
    runtime.block_on(async { machine().get_snapshot_builder().await.build_snapshot().await }).unwrap();
    let valid = std::fs::read(&path).unwrap();
    each_of(9, &[valid], rounds() / 10, |bytes| {
        for sealed in [false, true] {
            let mut bytes = bytes.to_vec();
            if sealed && bytes.len() >= 4 {
                let end = bytes.len() - 4;
                let crc = crc32c(&bytes[..end]);
                put_crc(&mut bytes, end, crc);
            }
            std::fs::write(&path, &bytes).unwrap();
            match runtime.block_on(async { machine().get_current_snapshot().await }) {
                Ok(Some(s)) => drop(decode_state(&s.snapshot)),
                Ok(None) => panic!("it is there"),
                Err(e) => assert!(e.to_string().contains("snapshot"), "{e}"),
            }
        }
    });
}

#[test]
fn the_control_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut log = LogStore::open(&path).unwrap();
        log.save_vote(&Vote::new_committed(3, RaftId(NodeId(9)))).await.unwrap();
        let entries: Vec<_> = (0..300).map(|i| blank_ent::<TypeConfig>(3, RaftId(NodeId(9)), i)).collect();
        log.blocking_append(entries).await.unwrap();
        log.sync().await.unwrap();
        log.close().await;
    });
    let valid = std::fs::read(&path).unwrap();
    let mut turn = 0usize;
    each_of(10, &[valid], rounds() / 20, |bytes| {
        turn += 1;
        if rounds() <= 3000 && !turn.is_multiple_of(40) {
            return;
        }
        std::fs::write(&path, bytes).unwrap();
        match LogStore::open(&path) {
            Ok(mut log) => runtime.block_on(async {
                let _ = log.try_get_log_entries(..).await;
                let _ = log.save_vote(&Vote::new_committed(4, RaftId(NodeId(9)))).await;
                log.close().await;
            }),
            Err(e) => assert!(e.to_string().contains("log.redb") || e.to_string().contains("format"), "{e}"),
        }
    });
}
