//! Damage of what is on disk beside blocks: headers, files, the index.

use super::super::object::{data_offset, slot_len};
use super::super::open::INDEX;
use super::*;
use std::path::Path;

const OID: ObjectId = ObjectId(1 << 32);

fn file_of(fs: &MemoryFs, oid: ObjectId) -> PathBuf {
    let named = |p: &PathBuf| p.ends_with(oid.to_string()) && p.to_string_lossy().contains("/obj/");
    fs.paths().into_iter().find(named).expect("it has a file")
}

async fn opened(fs: &MemoryFs) -> Rc<Store> {
    Store::open(config(&["/d".into()]), Rc::new(fs.clone())).await.expect("opens")
}

/// Written, and then blocks 2 and 3 zeroed, each with a checkpoint of its own; closed.
async fn twice(fs: &MemoryFs) {
    let store = opened(fs).await;
    store.write(op(0, 0, 1, 0..8, Some(5))).await.expect("writes");
    store.close().await.expect("closes");
    drop(store);
    let store = opened(fs).await;
    store.write(op(0, 1, 2, 2..4, None)).await.expect("writes");
    store.close().await.expect("closes");
}

/// Where the slots are: (newer, older).
fn slots() -> (u64, u64) {
    (0, slot_len(SIZE) as u64)
}

#[test]
fn the_header_of_before_is_not_taken_for_the_last_one() {
    for with_index in [true, false] {
        local(|| async move {
            let fs = MemoryFs::default();
            twice(&fs).await;
            assert!(fs.flip(&file_of(&fs, OID), slots().0 + 333, 1));
            if !with_index {
                fs.unlink(Path::new("/d").join(INDEX).as_path()).expect("unlinks");
            }
            let store = opened(&fs).await;
            let read = store.read(&[LayerId(1)], key(0), 0..1).await.map(|r| r.data[0]);
            assert_eq!(read, Err(StoreError::CorruptHeader { oid: OID }), "index: {with_index}");
            assert_eq!(store.verify(OID).await, Err(StoreError::CorruptHeader { oid: OID }));
            assert!(store.list(None, 9)[0].filling, "it is no copy");
        });
    }
}

#[test]
fn the_other_header_may_be_damaged() {
    local(|| async {
        let fs = MemoryFs::default();
        twice(&fs).await;
        assert!(fs.flip(&file_of(&fs, OID), slots().1 + 333, 1));
        let store = opened(&fs).await;
        assert_eq!(store.read(&[LayerId(1)], key(0), 0..1).await.map(|r| r.data[0]), Ok(5));
        assert_eq!(store.version(OID).map(|v| v.seq), Some(2));
    });
}

#[test]
fn headers_are_written_anew_from_memory() {
    for what in ["newer", "older", "both", "cut", "file of another object"] {
        local(|| async move {
            let fs = MemoryFs::default();
            twice(&fs).await;
            let store = opened(&fs).await;
            let other = ObjectId::data(LayerId(1), 1);
            store.write(op(1, 0, 1, 0..8, Some(6))).await.expect("writes");
            tokio::time::sleep(std::time::Duration::from_secs(5)).await;
            assert_eq!(store.verify(OID).await, Ok(Verified::default()));
            let (file, (newer, older)) = (file_of(&fs, OID), slots());
            match what {
                "newer" => assert!(fs.flip(&file, newer + 9, 0)),
                "older" => assert!(fs.flip(&file, older + 9, 0)),
                "both" => assert!(fs.flip(&file, newer + 9, 0) && fs.flip(&file, older + 9, 0)),
                "cut" => {
                    let cut = fs.open(&file, Default::default()).expect("opens");
                    cut.set_len(data_offset(SIZE, 9)).expect("cut");
                }
                _ => assert!(fs.swap(&file, &file_of(&fs, other))),
            }
            let found = store.verify(OID).await.expect("it is known what it was");
            assert!(found.header, "{what}: {found:?}");
            let lost: &[Range<u32>] = if what.starts_with("file") { &[0..2, 4..8] } else { &[] };
            assert_eq!(found.damaged, lost, "{what}");
            tokio::time::sleep(std::time::Duration::from_secs(5)).await;
            let again = store.verify(OID).await.expect("it is whole");
            assert!(!again.header, "{what}: {again:?}");
            drop(store);
            fs.crash(1);
            let store = opened(&fs).await;
            assert_eq!(store.version(OID).map(|v| v.seq), Some(2), "{what}");
            assert_eq!(store.read(&[LayerId(1)], key(0), 2..3).await.map(|r| r.data[0]), Ok(0), "{what}");
        });
    }
}

#[test]
fn a_file_that_no_object_has_is_moved_away() {
    local(|| async {
        let fs = MemoryFs::default();
        twice(&fs).await;
        let store = opened(&fs).await;
        let file = file_of(&fs, OID);
        for index in [5, 6] {
            let stray = file.with_file_name(ObjectId::data(LayerId(1), index).to_string());
            fs.restore(&stray, fs.keep(&file).expect("there"));
        }
        let disk = store.disks()[0].id;
        let gone = |oid: ObjectId| oid.index() == 6;
        let found = store.remove_strays(disk, gone).await.expect("looks");
        assert_eq!(found.iter().map(|(o, _)| o.index()).collect::<Vec<_>>(), [5, 6]);
        let aside: Vec<_> = fs.paths().into_iter().filter(|p| p.starts_with("/d/strays")).collect();
        assert_eq!(aside.len(), 1, "{aside:?}");
        assert!(aside[0].ends_with(ObjectId::data(LayerId(1), 5).to_string()));
        assert_eq!(store.remove_strays(disk, gone).await, Ok(Vec::new()));
        assert_eq!(store.read(&[LayerId(1)], key(0), 0..1).await.map(|r| r.data[0]), Ok(5));
        // One that is removed goes with the next checkpoint, and is nobody's stray before.
        store.remove(OID).await.expect("removes");
        assert_eq!(store.remove_strays(disk, |_| false).await, Ok(Vec::new()));
    });
}

#[test]
fn an_index_that_is_wrong_is_made_again() {
    for salt in 0..16 {
        local(|| async move {
            let fs = MemoryFs::default();
            twice(&fs).await;
            let store = opened(&fs).await;
            let disk = store.disks()[0].id;
            for index in 1..4 {
                store.write(op(index, 0, 1, 0..8, Some(6))).await.expect("writes");
            }
            assert_eq!(store.check_index(disk).await, Ok(false), "what is not in it yet is no damage");
            tokio::time::sleep(std::time::Duration::from_secs(5)).await;
            assert_eq!(store.check_index(disk).await, Ok(false));
            assert!(fs.damage_index(Path::new("/d/index.redb"), salt));
            assert_eq!(store.check_index(disk).await, Ok(true), "salt {salt}");
            assert_eq!(store.check_index(disk).await, Ok(false));
            store.close().await.expect("closes");
            drop(store);
            let store = opened(&fs).await;
            for index in 0..4 {
                assert!(store.read(&[LayerId(1)], key(index), 0..1).await.is_ok(), "salt {salt}");
            }
        });
    }
}

/// The real one, with bits flipped anywhere in its file while it is used.
#[test]
fn a_real_index_bears_any_flip() {
    real(|| async {
        let dir = tempfile::tempdir().expect("directory");
        let fs: Rc<dyn Fs> = Rc::new(ThreadsFs);
        let path = dir.path().join(INDEX);
        let mut rng = SmallRng::seed_from_u64(5);
        let mut store = Store::open(config(&[dir.path().to_owned()]), fs.clone()).await.expect("opens");
        let mut found = 0;
        for round in 1..=60u64 {
            for index in 0..20 {
                assert_eq!(
                    store.write(op(index, round - 1, round, 0..2, Some(round as u8))).await,
                    Ok(WriteOutcome::Done)
                );
            }
            let disk = store.disks()[0].id;
            let all: Vec<_> = store.disks.borrow().clone();
            apply::checkpoint(&all[0]).await.expect("a checkpoint");
            drop(all);
            let mut bytes = std::fs::read(&path).expect("reads");
            let used: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i] != 0).collect();
            let at = used[rng.random_range(0..used.len())];
            bytes[at] ^= 1 << rng.random_range(0..8);
            {
                use std::os::unix::fs::FileExt;
                let file = std::fs::File::options().write(true).open(&path).expect("opens");
                file.write_all_at(&bytes[at..=at], at as u64).expect("flips");
            }
            if round % 2 == 0 {
                found += u32::from(store.check_index(disk).await.expect("the disk has not failed"));
                assert_eq!(store.check_index(disk).await, Ok(false));
            } else {
                // Found when it is used, or opened again, or of no consequence.
                drop(store);
                store = Store::open(config(&[dir.path().to_owned()]), fs.clone()).await.expect("opens");
            }
            assert_eq!(store.list(None, 100).len(), 20);
            for index in 0..20 {
                let r = store.read(&store.layers_at(key(index)), key(index), 0..1).await.expect("reads");
                assert_eq!(u64::from(r.data[0]), round);
            }
        }
        assert!(found > 0, "of thirty flips some hit");
    });
}
