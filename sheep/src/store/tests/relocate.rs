//! Objects that move between disks while they are written, read, merged and removed, with crashes at any moment.

use super::*;
use std::time::Duration;

/// What every block of an object was last acknowledged as.
type Model = BTreeMap<u32, BTreeMap<u32, u8>>;

const OBJECTS: u32 = 8;

fn oid(index: u32) -> ObjectId {
    ObjectId::data(LayerId(1), index)
}

/// Empty one disk after the other, for ever.
async fn movers(store: Rc<Store>, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    loop {
        let all = store.disks();
        let disk = all[rng.random_range(0..all.len())].id;
        store.set_leaving(disk, Some(String::new()));
        for (oid, _) in store.objects_on(disk, None, 100) {
            if rng.random_bool(0.9) {
                store.relocate(oid, disk).await.expect("moves");
            }
        }
        store.set_leaving(disk, None);
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..20))).await;
    }
}

async fn same(store: &Store, model: &Model, why: &str) {
    for index in 0..OBJECTS {
        let want = model.get(&index);
        assert_eq!(store.version(oid(index)).is_some(), want.is_some(), "{why}: {index} is there");
        let data = store.read(&[LayerId(1)], key(index), 0..BLOCKS).await.expect("reads").data;
        for (block, data) in data.chunks(4096).enumerate() {
            let value = want.and_then(|w| w.get(&(block as u32))).copied().unwrap_or(0);
            assert!(data.iter().all(|b| *b == value), "{why}: {index}/{block} is {}, not {value}", data[0]);
        }
    }
    let listed = store.list(None, 1000);
    assert!(listed.windows(2).all(|w| w[0].oid < w[1].oid), "{why}: each object once: {listed:?}");
    assert!(listed.iter().all(|r| !r.filling), "{why}: a copy that is being made is seen: {listed:?}");
    assert_eq!(store.half_filled(), [], "{why}: or asked to be filled");
}

/// One process, until its power fails.
async fn process(seed: u64, round: u32, fs: MemoryFs, rng: &mut SmallRng, model: &mut Model, seq: &mut u64) {
    let dirs = [PathBuf::from("/a"), PathBuf::from("/b"), PathBuf::from("/c")];
    let store = Store::open(config(&dirs), Rc::new(fs)).await.expect("opens");
    same(&store, model, &format!("seed {seed}, opened for the {round}. time")).await;
    tokio::task::spawn_local(movers(store.clone(), seed + 1000));
    for _ in 0..rng.random_range(5..80) {
        let index = rng.random_range(0..OBJECTS);
        let head = store.version(oid(index)).map_or(0, |v| v.seq);
        let first = rng.random_range(0..BLOCKS);
        let blocks = first..(first + rng.random_range(1..20)).min(BLOCKS);
        let value = rng.random_range(1..=255u8);
        *seq += 1;
        let mut last = value;
        match rng.random_range(0..20) {
            0 if head > 0 => {
                store.remove(oid(index)).await.expect("removes");
                model.remove(&index);
                continue;
            }
            // As another copy's contents come, perhaps instead of what was there.
            1..5 => {
                if rng.random_bool(0.5) {
                    store.remove(oid(index)).await.expect("removes");
                    model.remove(&index);
                }
                let mut buf = AlignedBuf::new(blocks.len() << BLOCK_SHIFT);
                buf.fill(value);
                let ops = vec![FillOp { blocks: blocks.clone(), kind: WriteKind::Data(buf.freeze()) }];
                store.fill(oid(index), key(index), VdiId(1), SIZE, ops).await.expect("fills");
                let (v, none) = (Version { generation: 1, seq: *seq }, BlockMap::new(BLOCKS));
                store.finish_fill(oid(index), v, Epoch(3), none, None, None).await.expect("ends");
            }
            // Several at once, in order.
            5..10 => {
                let one = store.write(op(index, head, *seq, blocks.clone(), Some(value)));
                last = value ^ 1;
                let two = store.write(op(index, *seq, *seq + 1, blocks.clone(), Some(last)));
                *seq += 1;
                assert_eq!(two.await, Ok(WriteOutcome::Done), "seed {seed}");
                assert_eq!(one.await, Ok(WriteOutcome::Done), "seed {seed}");
            }
            _ => {
                let done = store.write(op(index, head, *seq, blocks.clone(), Some(value))).await;
                assert_eq!(done, Ok(WriteOutcome::Done), "seed {seed}");
            }
        }
        model.entry(index).or_default().extend(blocks.map(|b| (b, last)));
        if rng.random_bool(0.2) {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..2_000))).await;
        }
    }
    same(&store, model, &format!("seed {seed}, in the middle")).await;
}

#[test]
fn nothing_is_lost_whatever_moves_and_whenever_the_power_fails() {
    for seed in 0..60u64 {
        local(|| async move {
            let mut rng = SmallRng::seed_from_u64(seed);
            let fs = MemoryFs::default();
            fs.seed(seed);
            fs.set_latency(Duration::from_micros(rng.random_range(20..20_000)));
            let (mut model, mut seq) = (Model::new(), 0);
            for round in 0..4 {
                // Its tasks end with it.
                let set = tokio::task::LocalSet::new();
                set.run_until(process(seed, round, fs.clone(), &mut rng, &mut model, &mut seq)).await;
                drop(set);
                fs.crash(rng.random());
            }
        });
    }
}

#[test]
fn what_a_copy_knows_of_its_last_steps_goes_with_it() {
    local(|| async {
        let fs = MemoryFs::default();
        let dirs = ["/a".into(), "/b".into()];
        let store = Store::open(config(&dirs), Rc::new(fs.clone())).await.expect("opens");
        let degraded = WriteOp { degraded: Some(Epoch(2)), ..op(0, 1, 2, 4..6, Some(2)) };
        store.write(op(0, 0, 1, 0..4, Some(1))).await.expect("writes");
        store.write(degraded).await.expect("writes");
        let before = (store.info(oid(0)).await.expect("reads"), store.tail_bounds(VdiId(1), oid(0)));
        let from = store.disks().into_iter().find(|d| d.objects == 1).expect("a disk").id;
        assert!(store.set_leaving(from, Some(String::new())));
        store.relocate(oid(0), from).await.expect("moves");
        let after = (store.info(oid(0)).await.expect("reads"), store.tail_bounds(VdiId(1), oid(0)));
        assert_eq!(before, after);
        assert!(store.objects_on(from, None, 1).is_empty());
        // New ones do not go there, and nothing is left of the old one.
        for index in 1..20 {
            store.write(op(index, 0, 3, 0..1, Some(3))).await.expect("writes");
        }
        assert!(store.objects_on(from, None, 1).is_empty());
        store.swept(from).await.expect("sweeps");
        let place = store.disks().into_iter().find(|d| d.id == from).expect("a disk").path;
        let left =
            fs.paths().into_iter().filter(|p| p.starts_with(&place)).any(|p| p.ends_with(oid(0).to_string()));
        assert!(!left, "its file is gone");
        store.unplug(from).await.expect("unplugs");
        let read = store.read(&[LayerId(1)], key(0), 0..6).await.expect("reads").data;
        assert_eq!(read.chunks(4096).map(|c| c[0]).collect::<Vec<_>>(), [1, 1, 1, 1, 2, 2]);
        // It comes back empty.
        let back = store.plug(std::path::Path::new(&place)).await.expect("plugs");
        assert_eq!((back, store.objects_on(back, None, 1).len()), (from, 0));
    });
}

#[test]
fn a_damaged_object_stays_where_it_is_until_it_is_healed() {
    local(|| async {
        let fs = MemoryFs::default();
        let dirs = ["/a".into(), "/b".into()];
        let store = Store::open(config(&dirs), Rc::new(fs.clone())).await.expect("opens");
        store.write(op(0, 0, 1, 0..8, Some(5))).await.expect("writes");
        store.close().await.expect("closes");
        let path = fs.paths().into_iter().find(|p| p.ends_with(oid(0).to_string())).expect("file");
        assert!(fs.flip(&path, object::data_offset(SIZE, 3) + 17, 2));
        let from = store.disks().into_iter().find(|d| d.objects == 1).expect("a disk").id;
        store.set_leaving(from, Some(String::new()));
        let refused = store.relocate(oid(0), from).await;
        assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{refused:?}");
        let rows: Vec<bool> = store.list(None, 10).iter().map(|r| r.filling).collect();
        assert_eq!(rows, [false], "one whole copy, and no trace of the other");
        let good = WriteKind::Data(Bytes::from(vec![5; 4096]));
        let ops = vec![FillOp { blocks: 3..4, kind: good }];
        store.fill(oid(0), key(0), VdiId(1), SIZE, ops).await.expect("fills");
        let v = Version { generation: 1, seq: 1 };
        store.finish_fill(oid(0), v, Epoch(3), BlockMap::new(BLOCKS), None, None).await.expect("ends");
        store.relocate(oid(0), from).await.expect("moves");
        assert_eq!(store.verify(oid(0)).await, Ok(Verified::default()));
    });
}

#[test]
fn nothing_comes_onto_a_disk_that_the_cluster_may_have_forgotten() {
    local(|| async {
        let fs = MemoryFs::default();
        let dirs = ["/a".into(), "/b".into()];
        let store = Store::open(config(&dirs), Rc::new(fs.clone())).await.expect("opens");
        let all = store.disks();
        let (goes, stays) = (all[0].id, all[1].id);
        store.set_leaving(goes, Some(String::new()));
        store.set_retiring(goes, true);
        assert!(store.can_do_without(goes));
        store.unplug(stays).await.expect("gone");
        assert!(!store.can_do_without(goes), "it is the last one");
        let waits = store.write(op(0, 0, 1, 0..8, Some(5))).await;
        assert!(matches!(waits, Err(StoreError::Full { disk }) if disk == goes), "{waits:?}");
        assert!(store.is_leaving(goes));
        store.set_leaving(goes, None);
        store.set_retiring(goes, false);
        store.write(op(0, 0, 1, 0..8, Some(5))).await.expect("it is known again");
    });
}

#[test]
fn the_last_disk_that_works_stays() {
    local(|| async {
        let fs = MemoryFs::default();
        let dirs = ["/a".into(), "/b".into()];
        let store = Store::open(config(&dirs), Rc::new(fs.clone())).await.expect("opens");
        let all = store.disks();
        store.set_leaving(all[0].id, Some(String::new()));
        store.unplug(all[1].id).await.expect("gone");
        store.write(op(0, 0, 1, 0..8, Some(5))).await.expect("writes");
        assert!(!store.is_leaving(all[0].id) || store.disks().len() == 1);
        store.relocate(oid(0), all[0].id).await.expect_err("nowhere to go");
        let read = store.read(&[LayerId(1)], key(0), 0..1).await.expect("reads").data;
        assert_eq!(read[0], 5);
    });
}
