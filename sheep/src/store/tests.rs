//! The store against a simple model, with crashes at any moment.

#![allow(clippy::single_range_in_vec_init)]

mod deep;
mod relocate;
mod sealed;
mod verify;

use super::fs::memory::MemoryFs;
use super::fs::{Fs, threads::ThreadsFs, uring::UringFs};
use super::*;
use crate::buf::AlignedBuf;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sheepdog_proto::{ClusterId, NodeId};
use std::collections::BTreeMap;
use std::path::PathBuf;

const SIZE: u32 = 1 << 20;
const BLOCKS: u32 = SIZE >> BLOCK_SHIFT;

fn local<F: Future>(f: impl FnOnce() -> F) -> F::Output {
    let rt = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("runtime");
    tokio::task::LocalSet::new().block_on(&rt, async { f().await })
}

fn real<F: Future>(f: impl FnOnce() -> F) -> F::Output {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    tokio::task::LocalSet::new().block_on(&rt, async { f().await })
}

fn config(dirs: &[PathBuf]) -> StoreConfig {
    StoreConfig {
        node: NodeId(7),
        cluster: Some(ClusterId(9)),
        disks: dirs.to_vec(),
        journal_dir: None,
        journal_size: Some(32 << 20),
        plain: false,
    }
}

fn key(index: u32) -> PlacementKey {
    PlacementKey { family: LayerId(1), index }
}

fn op(index: u32, prev: u64, seq: u64, blocks: Range<u32>, fill: Option<u8>) -> WriteOp {
    let kind = match fill {
        Some(b) => {
            let mut buf = AlignedBuf::new(blocks.len() << BLOCK_SHIFT);
            buf.fill(b);
            WriteKind::Data(buf.freeze())
        }
        None => WriteKind::Zero,
    };
    let v = |seq| if seq == 0 { Version::NONE } else { Version { generation: 1, seq } };
    WriteOp {
        oid: ObjectId::data(LayerId(1), index),
        key: key(index),
        vdi: VdiId(1),
        object_size: SIZE,
        version: v(seq),
        prev: v(prev),
        epoch: Epoch(3),
        degraded: None,
        watermark: 0,
        blocks,
        kind,
    }
}

#[test]
fn survives_crashes_at_any_moment() {
    for seed in 0..40u64 {
        local(|| async move {
            let mut rng = SmallRng::seed_from_u64(seed);
            let fs = MemoryFs::default();
            let dirs = [PathBuf::from("/a"), PathBuf::from("/b")];
            let mut acked: BTreeMap<(u32, u32), u8> = BTreeMap::new();
            let mut last: BTreeMap<u32, u64> = BTreeMap::new();
            let mut seq = 0;
            for round in 0..4 {
                let store = Store::open(config(&dirs), Rc::new(fs.clone())).await.expect("opens");
                for (index, want) in &last {
                    let have = store.version(ObjectId::data(LayerId(1), *index)).map_or(0, |v| v.seq);
                    assert!(
                        have >= *want,
                        "seed {seed}: object {index} is at {have}, {want} was acknowledged"
                    );
                    last.clone().insert(*index, have);
                }
                let mut heads: BTreeMap<u32, u64> = BTreeMap::new();
                for index in 0..6 {
                    let have = store.version(ObjectId::data(LayerId(1), index)).map_or(0, |v| v.seq);
                    heads.insert(index, have);
                }
                for ((index, block), value) in &acked {
                    let layers = store.layers_at(key(*index));
                    let data =
                        store.read(&layers, key(*index), *block..*block + 1).await.expect("reads").data;
                    // A later write that was not acknowledged may have got through.
                    let later = heads[index] > last[index];
                    assert!(later || data[0] == *value, "seed {seed} round {round}: {index}/{block}");
                    assert!(data.iter().all(|b| *b == data[0]), "seed {seed}: torn block");
                }
                for _ in 0..rng.random_range(1..60) {
                    let index = rng.random_range(0..6u32);
                    let first = rng.random_range(0..BLOCKS);
                    let end = (first + rng.random_range(1..20)).min(BLOCKS);
                    let value = rng.random_range(1..=255u8);
                    seq += 1;
                    let zero = rng.random_bool(0.1);
                    let o = op(index, heads[&index], seq, first..end, (!zero).then_some(value));
                    heads.insert(index, seq);
                    let write = store.write(o);
                    if rng.random_bool(0.8) {
                        assert_eq!(write.await, Ok(WriteOutcome::Done));
                        last.insert(index, seq);
                        for b in first..end {
                            acked.insert((index, b), if zero { 0 } else { value });
                        }
                    } else {
                        // Not waited for: it may or may not survive, so nothing is known of these blocks.
                        for b in first..end {
                            acked.remove(&(index, b));
                        }
                    }
                    if rng.random_bool(0.05) {
                        tokio::time::sleep(std::time::Duration::from_millis(rng.random_range(0..3000))).await;
                    }
                }
                // What was not waited for is forgotten by the model when the object moves on.
                drop(store);
                fs.crash(rng.random());
                // What a header that was being written was, the journal tells as well as the index.
                if seed % 2 == 1 {
                    for dir in &dirs {
                        fs.unlink(&dir.join(open::INDEX)).expect("unlinks");
                    }
                }
            }
        });
    }
}

async fn contract(fs: Rc<dyn Fs>, dir: PathBuf) {
    let store = Store::open(config(std::slice::from_ref(&dir)), fs.clone()).await.expect("opens");
    assert_eq!(store.write(op(0, 0, 1, 0..4, Some(1))).await, Ok(WriteOutcome::Done));
    assert_eq!(store.write(op(0, 0, 1, 0..4, Some(1))).await, Ok(WriteOutcome::Duplicate));
    let current = Version { generation: 1, seq: 1 };
    assert_eq!(store.write(op(0, 5, 6, 0..4, Some(1))).await, Ok(WriteOutcome::Behind { current }));
    // Order of calls, not of awaiting.
    let second = store.write(op(0, 1, 2, 1..2, Some(2)));
    let third = store.write(op(0, 2, 3, 1..3, Some(3)));
    assert_eq!(third.await, Ok(WriteOutcome::Done));
    assert_eq!(second.await, Ok(WriteOutcome::Done));
    let layers = store.layers_at(key(0));
    let r = store.read(&layers, key(0), 0..6).await.expect("reads");
    let firsts: Vec<u8> = r.data.chunks(4096).map(|c| c[0]).collect();
    assert_eq!((firsts, r.absent), (vec![1, 3, 3, 1, 0, 0], vec![4..6]));
    assert_eq!(store.tail(VdiId(1)).len(), 3);
    store.set_watermark(VdiId(1), Generation(1), 2);
    assert_eq!(store.tail(VdiId(1)).len(), 1);
    store.close().await.expect("closes");
    drop(store);
    let store = Store::open(config(std::slice::from_ref(&dir)), fs.clone()).await.expect("opens again");
    let r = store.read(&layers, key(0), 0..4).await.expect("reads");
    assert_eq!(r.data.chunks(4096).map(|c| c[0]).collect::<Vec<_>>(), [1, 3, 3, 1]);
    assert_eq!(store.tail(VdiId(1)).len(), 1);
    // A frozen layer below a new one, and merging it up.
    let upper = ObjectId::data(LayerId(2), 0);
    let mut w = op(0, 0, 4, 2..3, Some(9));
    w.oid = upper;
    assert_eq!(store.write(w).await, Ok(WriteOutcome::Done));
    let both = [LayerId(2), LayerId(1)];
    let before = store.read(&both, key(0), 0..6).await.expect("reads");
    store.merge(ObjectId::data(LayerId(1), 0), upper).await.expect("merges");
    let after = store.read(&[LayerId(2)], key(0), 0..6).await.expect("reads");
    assert_eq!((before.data, before.absent), (after.data, after.absent));
    // What was merged stays until its layer goes: others may not have merged yet.
    assert_eq!(store.layers_at(key(0)), [LayerId(1), LayerId(2)]);
    store.remove_layer(LayerId(1)).await.expect("removes");
    assert_eq!(store.layers_at(key(0)), [LayerId(2)]);
    store.remove_layer(LayerId(2)).await.expect("removes");
    store.close().await.expect("closes");
    drop(store);
    let store = Store::open(config(&[dir]), fs).await.expect("opens");
    assert!(store.list(None, 10).is_empty(), "removed objects do not come back");
}

#[test]
fn contract_in_memory() {
    local(|| contract(Rc::new(MemoryFs::default()), "/d".into()));
}

#[test]
fn contract_with_io_uring() {
    let dir = tempfile::tempdir().expect("tempdir");
    real(|| async { contract(Rc::new(UringFs::new().expect("io_uring")), dir.path().join("d")).await });
}

#[test]
fn contract_with_threads() {
    let dir = tempfile::tempdir().expect("tempdir");
    real(|| contract(Rc::new(ThreadsFs), dir.path().join("d")));
}

#[test]
fn flipped_bits_are_found_and_repaired() {
    local(|| async {
        let fs = MemoryFs::default();
        let store = Store::open(config(&["/d".into()]), Rc::new(fs.clone())).await.expect("opens");
        store.write(op(0, 0, 1, 0..8, Some(5))).await.expect("writes");
        store.close().await.expect("closes");
        let oid = ObjectId::data(LayerId(1), 0);
        let path = fs.paths().into_iter().find(|p| p.ends_with(oid.to_string())).expect("file");
        assert!(fs.flip(&path, object::data_offset(SIZE, 3) + 17, 2));
        assert_eq!(store.verify(oid).await.map(|v| v.damaged), Ok(vec![3..4]));
        let read = store.read(&[LayerId(1)], key(0), 0..8).await;
        assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
        let good = WriteKind::Data(Bytes::from(vec![5; 4096]));
        store
            .fill(oid, key(0), VdiId(1), SIZE, vec![FillOp { blocks: 3..4, kind: good }])
            .await
            .expect("fills");
        let v = Version { generation: 1, seq: 1 };
        store.finish_fill(oid, v, Epoch(3), BlockMap::new(BLOCKS), None, None).await.expect("finishes");
        assert_eq!(store.verify(oid).await, Ok(Verified::default()));
    });
}

#[test]
fn a_foreign_disk_is_refused() {
    local(|| async {
        let fs = MemoryFs::default();
        drop(Store::open(config(&["/d".into()]), Rc::new(fs.clone())).await.expect("opens"));
        let mut other = config(&["/d".into()]);
        other.cluster = Some(ClusterId(10));
        let e = Store::open(other, Rc::new(fs.clone())).await.err().expect("refused");
        assert!(e.0.contains("belongs to cluster"), "{e}");
        let mut other = config(&["/d".into()]);
        other.node = NodeId(8);
        let e = Store::open(other, Rc::new(fs)).await.err().expect("refused");
        assert!(e.0.contains("belongs to node"), "{e}");
    });
}

#[test]
fn a_full_disk_says_so_and_recovers() {
    local(|| async {
        let fs = MemoryFs::new(80 << 20);
        let store = Store::open(config(&["/d".into()]), Rc::new(fs.clone())).await.expect("opens");
        let mut seq = 0;
        let refused = loop {
            seq += 1;
            match store.write(op(seq as u32, 0, seq, 0..BLOCKS, Some(1))).await {
                Ok(_) => {}
                Err(e) => break e,
            }
            assert!(seq < 100);
        };
        assert!(matches!(refused, StoreError::Full { .. }), "{refused}");
        for i in 1..seq {
            store.remove(ObjectId::data(LayerId(1), i as u32)).await.expect("removing works on a full disk");
        }
        store.close().await.expect("checkpoint");
        assert_eq!(store.write(op(200, 0, seq + 1, 0..BLOCKS, Some(1))).await, Ok(WriteOutcome::Done));
    });
}

#[test]
fn room_made_by_others_is_noticed_without_a_write() {
    local(|| async {
        let fs = MemoryFs::new(80 << 20);
        let store = Store::open(config(&["/d".into()]), Rc::new(fs.clone())).await.expect("opens");
        let mut events = store.events().expect("events");
        let mut seq = 0;
        while store.write(op(seq as u32, 0, seq + 1, 0..BLOCKS, Some(1))).await.is_ok() {
            seq += 1;
            assert!(seq < 100);
        }
        assert!(matches!(events.recv().await, Some(StoreEvent::DiskFull { full: true, .. })));
        assert_eq!(store.disks()[0].state, DiskState::Full);
        // Everything is in its place: no checkpoint looks at the disk any more.
        tokio::time::sleep(std::time::Duration::from_secs(30)).await;
        fs.set_total(200 << 20);
        let told = tokio::time::timeout(std::time::Duration::from_secs(10), events.recv()).await;
        assert!(matches!(told, Ok(Some(StoreEvent::DiskFull { full: false, .. }))), "{told:?}");
        assert_eq!((store.disks()[0].state.clone(), store.disks()[0].total), (DiskState::Ok, 200 << 20));
        assert_eq!(store.write(op(200, 0, seq + 1, 0..BLOCKS, Some(1))).await, Ok(WriteOutcome::Done));
    });
}

#[test]
fn used_space_is_the_sum_over_all_objects() {
    local(|| async {
        let fs = MemoryFs::default();
        let disks = ["/d".into(), "/e".into()];
        let store = Store::open(config(&disks), Rc::new(fs.clone())).await.expect("opens");
        let same = |store: &Store, what: &str| {
            let listed: u64 =
                store.list(None, 100).iter().map(|r| (r.data_blocks as u64) << BLOCK_SHIFT).sum();
            let told: u64 = store.disk_stats().iter().map(|d| d.used).sum();
            assert_eq!(told, listed, "{what}");
            assert_eq!(told, store.disks().iter().map(|d| d.used).sum::<u64>());
            told
        };
        for i in 0..10 {
            store.write(op(i, 0, u64::from(i) + 1, 0..8, Some(5))).await.expect("writes");
        }
        assert_eq!(same(&store, "written"), 10 * 8 * 4096);
        store.write(op(0, 1, 11, 2..4, Some(6))).await.expect("overwrites");
        store.write(op(1, 2, 12, 2..4, None)).await.expect("zeroes");
        assert_eq!(same(&store, "overwritten"), (10 * 8 - 2) * 4096);
        store.remove(ObjectId::data(LayerId(1), 3)).await.expect("removes");
        same(&store, "removed");
        drop(store);
        let store = Store::open(config(&disks), Rc::new(fs.clone())).await.expect("opens after a crash");
        assert_eq!(same(&store, "replayed"), (9 * 8 - 2) * 4096);
        store.close().await.expect("closes");
        let store = Store::open(config(&disks), Rc::new(fs)).await.expect("opens");
        assert_eq!(same(&store, "scanned"), (9 * 8 - 2) * 4096);
        let counted: u64 = store.disk_stats().iter().map(|d| d.ops[0].1.count).sum();
        assert_eq!(counted, 0, "nothing was read yet");
        store.read(&[LayerId(1)], key(0), 0..8).await.expect("reads");
        let read: u64 = store.disk_stats().iter().map(|d| d.ops[0].1.bytes).sum();
        assert_eq!(read, 8 * 4096);
    });
}

/// A store with objects 0 to 3 at rest.
async fn at_rest(fs: &Rc<dyn Fs>, dir: &std::path::Path) -> Rc<Store> {
    let store = Store::open(config(&[dir.to_owned()]), fs.clone()).await.expect("opens");
    for index in 0..4 {
        assert_eq!(store.write(op(index, 0, 1, 0..4, Some(index as u8 + 1))).await, Ok(WriteOutcome::Done));
    }
    store.close().await.expect("closes");
    drop(store);
    Store::open(config(&[dir.to_owned()]), fs.clone()).await.expect("opens again")
}

fn object_file(dir: &std::path::Path, index: u32) -> PathBuf {
    let oid = ObjectId::data(LayerId(1), index);
    dir.join("obj").join(LayerId(1).hex()).join("000").join(oid.to_string())
}

#[test]
fn a_file_that_is_gone_is_not_read_as_zeros() {
    real(|| async {
        let dir = tempfile::tempdir().expect("directory");
        let fs: Rc<dyn Fs> = Rc::new(ThreadsFs);
        let store = at_rest(&fs, dir.path()).await;
        std::fs::remove_file(object_file(dir.path(), 2)).expect("the file is where the tests think");
        let oid = ObjectId::data(LayerId(1), 2);
        let layers = store.layers_at(key(2));
        let read = store.read(&layers, key(2), 0..4).await.map(|r| r.data.len());
        assert_eq!(read, Err(StoreError::CorruptHeader { oid }));
        assert_eq!(store.verify(oid).await, Err(StoreError::CorruptHeader { oid }));
        // Another copy makes it whole again.
        store.remove(oid).await.expect("removed");
        let fill = FillOp { blocks: 0..1, kind: op(2, 0, 1, 0..1, Some(9)).kind };
        store.fill(oid, key(2), VdiId(1), SIZE, vec![fill]).await.expect("filled");
        let v = Version { generation: 1, seq: 1 };
        let none = sheepdog_proto::BlockMap::new(BLOCKS);
        store.finish_fill(oid, v, Epoch(3), none, None, None).await.expect("finished");
        store.close().await.expect("closes");
        drop(store);
        let store = Store::open(config(&[dir.path().to_owned()]), fs).await.expect("opens");
        let r = store.read(&store.layers_at(key(2)), key(2), 0..1).await.expect("reads");
        assert!(r.data.iter().all(|b| *b == 9));
    });
}

#[test]
fn an_index_that_is_gone_or_damaged_is_made_again() {
    real(|| async {
        let dir = tempfile::tempdir().expect("directory");
        let fs: Rc<dyn Fs> = Rc::new(ThreadsFs);
        drop(at_rest(&fs, dir.path()).await);
        let index = dir.path().join("index.redb");
        for damage in [None, Some(vec![0u8; 9000]), Some(b"not a database".to_vec())] {
            match damage {
                None => std::fs::remove_file(&index).expect("there is an index"),
                Some(bytes) => std::fs::write(&index, bytes).expect("write"),
            }
            let store = Store::open(config(&[dir.path().to_owned()]), fs.clone()).await.expect("opens");
            assert_eq!(store.list(None, 10).len(), 4);
            let r = store.read(&store.layers_at(key(3)), key(3), 0..4).await.expect("reads");
            assert!(r.data.iter().all(|b| *b == 4));
            drop(store);
        }
    });
}

#[test]
fn a_file_cut_to_the_length_of_a_smaller_object_is_damaged() {
    real(|| async {
        // Cut after one write, when one of the two headers is blank, and after several.
        for writes in 1..=3 {
            let dir = tempfile::tempdir().expect("directory");
            let fs: Rc<dyn Fs> = Rc::new(ThreadsFs);
            let big = |index, seq| WriteOp { object_size: 4 << 20, ..op(index, seq - 1, seq, 0..4, Some(7)) };
            for seq in 1..=writes {
                let store = Store::open(config(&[dir.path().to_owned()]), fs.clone()).await.expect("opens");
                for index in 0..2 {
                    assert_eq!(store.write(big(index, seq)).await, Ok(WriteOutcome::Done));
                }
                store.close().await.expect("closes");
            }
            let file = std::fs::File::options().write(true).open(object_file(dir.path(), 0)).expect("opens");
            assert_eq!(file.metadata().expect("length").len(), object::file_len(4 << 20));
            assert_eq!(
                object::file_len(4 << 20) / 2,
                object::file_len(2 << 20),
                "so that lengths do not tell"
            );
            file.set_len(object::file_len(2 << 20)).expect("cut");
            std::fs::remove_file(dir.path().join("index.redb")).expect("there is an index");
            let store = Store::open(config(&[dir.path().to_owned()]), fs).await.expect("opens");
            let oid = ObjectId::data(LayerId(1), 0);
            let told = store.events().expect("events").try_recv();
            assert!(
                matches!(told, Ok(StoreEvent::Corrupt { oid: o, .. }) if o == oid),
                "{writes} writes: {told:?}"
            );
            let (row, _) = store.row(oid).expect("it is not forgotten");
            assert_eq!((row.object_size, row.key, row.vdi, row.filling), (4 << 20, key(0), VdiId(1), true));
            let read = store.read(&[LayerId(1)], key(0), 0..4).await.map(|r| r.data.len());
            assert_eq!(read, Err(StoreError::CorruptHeader { oid }));
            let other = store.read(&[LayerId(1)], key(1), 0..4).await.expect("the other one is whole");
            assert!(other.data.iter().all(|b| *b == 7));
        }
    });
}

#[test]
fn an_object_that_is_made_again_has_nothing_of_before() {
    local(|| async {
        let fs: Rc<dyn Fs> = Rc::new(MemoryFs::default());
        let dir = PathBuf::from("/a");
        let store = Store::open(config(std::slice::from_ref(&dir)), fs.clone()).await.expect("opens");
        for seq in 1..6 {
            store.write(op(0, seq - 1, seq, 0..2, Some(seq as u8))).await.expect("writes");
            tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        }
        // Removed and made again before the file was unlinked: the new header starts counting from one.
        store.remove(ObjectId::data(LayerId(1), 0)).await.expect("removes");
        store.write(op(0, 0, 7, 1..2, Some(77))).await.expect("writes");
        store.close().await.expect("closes");
        drop(store);
        let store = Store::open(config(std::slice::from_ref(&dir)), fs.clone()).await.expect("opens");
        let r = store.read(&store.layers_at(key(0)), key(0), 0..2).await.expect("reads");
        assert_eq!((r.data[0], r.data[4096], r.absent), (0, 77, vec![0..1]));
    });
}

#[test]
fn an_object_that_is_made_again_while_a_checkpoint_begins_has_nothing_of_before() {
    local(|| async {
        let fs = MemoryFs::default();
        let dir = PathBuf::from("/a");
        let made_again = async {
            let store = at_rest(&(Rc::new(fs.clone()) as Rc<dyn Fs>), &dir).await;
            let oid = ObjectId::data(LayerId(1), 0);
            let disk = store.disks.borrow()[0].clone();
            fs.set_latency(std::time::Duration::from_millis(5));
            // In this order: the removal is on its way into the journal, the checkpoint begins behind it, the object is there again before any file is unlinked.
            let after = |ms| tokio::time::sleep(std::time::Duration::from_millis(ms));
            let checkpoint = async {
                after(1).await;
                apply::checkpoint(&disk).await
            };
            let again = async {
                after(2).await;
                store.write(op(0, 0, 9, 1..2, Some(77))).await
            };
            let (gone, written, again) = tokio::join!(store.remove(oid), checkpoint, again);
            assert_eq!((gone, written, again), (Ok(()), Ok(()), Ok(WriteOutcome::Done)));
        };
        let set = tokio::task::LocalSet::new();
        set.run_until(made_again).await;
        drop(set);
        fs.crash(1);
        let store = Store::open(config(std::slice::from_ref(&dir)), Rc::new(fs)).await.expect("opens");
        let r = store.read(&[LayerId(1)], key(0), 0..4).await.expect("reads");
        assert_eq!((r.data[4096], r.absent), (77, vec![0..1, 2..4]));
    });
}

#[test]
fn a_disk_that_is_taken_away_fails_by_itself() {
    real(|| async {
        let dir = tempfile::tempdir().expect("directory");
        let home = dir.path().join("disk");
        let fs: Rc<dyn Fs> = Rc::new(ThreadsFs);
        let store = at_rest(&fs, &home).await;
        let mut events = store.events().expect("events");
        std::fs::rename(&home, dir.path().join("elsewhere")).expect("rename");
        assert!(matches!(events.recv().await, Some(StoreEvent::DiskFailed { .. })));
        assert!(matches!(store.write(op(9, 0, 1, 0..4, Some(1))).await, Err(StoreError::DiskFailed { .. })));
        assert!(!home.exists(), "nothing is made again where the disk was");
    });
}

#[test]
fn damage_in_the_middle_of_the_journal_makes_it_another_disk() {
    local(|| async {
        let fs = MemoryFs::default();
        let dir = PathBuf::from("/a");
        let mut offsets = Vec::new();
        let first = {
            let store =
                Store::open(config(std::slice::from_ref(&dir)), Rc::new(fs.clone())).await.expect("opens");
            for seq in 1..=12 {
                store.write(op(0, seq - 1, seq, 0..1, Some(seq as u8))).await.expect("writes");
                offsets.push(seq);
            }
            store.disks()[0].id
        };
        // Power fails before anything reached the object; then a bit rots in the third batch: two blocks of superblocks, two per batch before it.
        fs.crash(1);
        let whole =
            Store::open(config(std::slice::from_ref(&dir)), Rc::new(fs.clone())).await.expect("opens");
        assert_eq!(
            (whole.disks()[0].id, whole.version(ObjectId::data(LayerId(1), 0)).map(|v| v.seq)),
            (first, Some(12))
        );
        drop(whole);
        fs.crash(2);
        assert!(fs.flip(&dir.join("journal"), 4096 * (2 + 2 * 2) + 4096 + 17, 3));
        let store =
            Store::open(config(std::slice::from_ref(&dir)), Rc::new(fs.clone())).await.expect("opens");
        assert_ne!(store.disks()[0].id, first, "it must not pass for the disk that has everything");
        let id = store.disks()[0].id;
        drop(store);
        fs.crash(3);
        let store = Store::open(config(&[dir]), Rc::new(fs.clone())).await.expect("opens");
        assert_eq!(store.disks()[0].id, id, "once is enough");
    });
}
