//! Seals, what copies promise about them, and strips.

use super::*;
use sheepdog_proto::checksum::crc32c;
use sheepdog_proto::peer::Seal;
use std::time::Duration;

const OID: fn() -> ObjectId = || ObjectId::data(LayerId(1), 0);

async fn open(fs: &MemoryFs, disks: &[&str]) -> Rc<Store> {
    let dirs: Vec<PathBuf> = disks.iter().map(PathBuf::from).collect();
    Store::open(config(&dirs), Rc::new(fs.clone())).await.expect("opens")
}

/// The `number`th seal of an object that was written with `op(0, 0, 1, ..)`.
fn seal(number: u64) -> Seal {
    let version = Version { generation: 1, seq: 1 };
    Seal { version, digest: number << 32 | 1, slot: (number % 4) as u8, data: 1, parity: 1 }
}

/// Give up the object's first blocks, all of the same contents.
async fn put_away(store: &Store, number: u64, blocks: u32, fill: u8) -> bool {
    let mut map = BlockMap::new(BLOCKS);
    map.set(0..blocks);
    let crcs = vec![crc32c(&[fill; 4096]); blocks as usize];
    store.seal(OID(), Epoch(3), seal(number), (&map, &crcs), || true).await.expect("works")
}

async fn promised(store: &Store) -> (u32, u32) {
    let (row, _) = store.row(OID()).expect("is there");
    (row.promised, store.info(OID()).await.expect("reads").expect("is there").promised)
}

#[test]
fn what_was_promised_stays() {
    local(|| async {
        let fs = MemoryFs::default();
        let store = open(&fs, &["/a"]).await;
        store.promise(OID(), 9).await.expect("there is nothing to promise about");
        store.write(op(0, 0, 1, 0..8, Some(5))).await.expect("writes");
        assert!(put_away(&store, 4, 8, 5).await);
        assert_eq!(promised(&store).await, (4, 4), "by taking it");
        assert!(put_away(&store, 4, 8, 5).await, "told once more");
        assert!(!put_away(&store, 3, 8, 5).await, "of before");
        store.promise(OID(), 7).await.expect("promises");
        assert!(!put_away(&store, 6, 8, 5).await);
        assert_eq!(store.row(OID()).expect("is there").0.seal, Some(seal(4)), "what it has it keeps");
        drop(store);
        fs.crash(1);
        let store = open(&fs, &["/a"]).await;
        assert_eq!(promised(&store).await, (7, 7), "after a crash");
        store.promise(OID(), 2).await.expect("less is nothing");
        store.close().await.expect("closes");
        let store = open(&fs, &["/a"]).await;
        assert_eq!(promised(&store).await, (7, 7), "by the index and the header");
        // All of it is written anew: the seal goes, the promise does not.
        store.write(op(0, 1, 2, 0..8, Some(6))).await.expect("writes");
        let (row, _) = store.row(OID()).expect("is there");
        assert_eq!((row.seal, row.promised), (None, 7));
    });
}

#[test]
fn a_promise_moves_with_its_object() {
    local(|| async {
        let fs = MemoryFs::default();
        let store = open(&fs, &["/a", "/b"]).await;
        store.write(op(0, 0, 1, 0..8, Some(5))).await.expect("writes");
        store.promise(OID(), 7).await.expect("promises");
        let from = store.disks().into_iter().find(|d| d.objects == 1).expect("a disk has it").id;
        store.set_leaving(from, Some(String::new()));
        store.relocate(OID(), from).await.expect("moves");
        assert_eq!(promised(&store).await, (7, 7));
        assert!(!put_away(&store, 6, 8, 5).await && put_away(&store, 7, 8, 5).await);
    });
}

#[test]
fn a_strip_gives_way_to_a_later_one_only() {
    local(|| async {
        let store = open(&MemoryFs::default(), &["/a"]).await;
        let put = async |seal: Seal| {
            let oid = OID().strip_of(seal.slot, 1);
            let row = 0..1;
            let data = Bytes::from(vec![7; 4096]);
            store.put_strip(oid, key(0), VdiId(1), SIZE, seal, std::slice::from_ref(&row), &data).await
        };
        // Of the same slot.
        let (first, second) = (seal(4), seal(8));
        let other = Seal { digest: second.digest + 1, ..second };
        let oid = OID().strip_of(first.slot, 1);
        put(first).await.expect("the first");
        put(first).await.expect("once more");
        let looked_at = store.row(oid).expect("is there").0;
        put(second).await.expect("a later one");
        assert!(put(first).await.is_err() && put(other).await.is_err());
        assert!(store.has_strip(oid, second) && !store.has_strip(oid, first) && !store.has_strip(oid, other));
        store.remove_strip(&looked_at, || true).await.expect("nothing is done");
        let now = store.row(oid).expect("is there").0;
        store.remove_strip(&now, || false).await.expect("nothing is done");
        assert!(store.has_strip(oid, second), "another one than that which was looked at");
        store.remove_strip(&now, || true).await.expect("is removed");
        assert!(!store.has_strip(oid, second));
    });
}

#[test]
fn blocks_are_counted_by_the_header_after_a_crash_in_a_checkpoint() {
    for ms in 1000..1080 {
        local(|| async move {
            let fs = MemoryFs::default();
            fs.set_latency(Duration::from_millis(1));
            let store = open(&fs, &["/a"]).await;
            store.write(op(0, 0, 1, 0..8, Some(5))).await.expect("writes");
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert!(put_away(&store, 1, 8, 5).await);
            tokio::time::sleep(Duration::from_millis(ms)).await;
            drop(store);
            fs.crash(ms);
            let store = open(&fs, &["/a"]).await;
            let (row, _) = store.row(OID()).expect("is there");
            assert_eq!((row.data_blocks, row.seal), (0, Some(seal(1))), "{ms} ms");
            assert_eq!(store.disk_stats()[0].used, 0, "{ms} ms");
        });
    }
}
