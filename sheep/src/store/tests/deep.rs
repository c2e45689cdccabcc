//! Objects in many layers, read through views, against a model in which every layer is a map.

use super::*;
use sheepdog_proto::peer::BlockState;
use std::sync::Arc;

/// What a layer has: a value, or zeros.
type Layer = BTreeMap<u32, Option<u8>>;

/// One object, all its layers, oldest first.
struct Deep {
    store: Rc<Store>,
    layers: Vec<(LayerId, Layer)>,
    chain: Arc<[LayerId]>,
    heads: BTreeMap<LayerId, u64>,
    seq: u64,
}

fn object(layer: LayerId) -> ObjectId {
    ObjectId::data(layer, 0)
}

fn kind(value: Option<u8>, blocks: usize) -> WriteKind {
    value.map_or(WriteKind::Zero, |v| {
        let mut buf = AlignedBuf::new(blocks << BLOCK_SHIFT);
        buf.fill(v);
        WriteKind::Data(buf.freeze())
    })
}

impl Deep {
    fn new(store: Rc<Store>) -> Self {
        let mut me = Self { store, layers: Vec::new(), chain: Arc::from([]), heads: BTreeMap::new(), seq: 0 };
        me.push(LayerId(1));
        me
    }
    fn push(&mut self, layer: LayerId) {
        self.layers.push((layer, Layer::new()));
        self.reshaped();
    }
    fn reshaped(&mut self) {
        self.chain = self.layers.iter().rev().map(|(l, _)| *l).collect();
    }
    fn snapshot(&mut self) {
        let next = self.layers.last().map_or(1, |(l, _)| l.0 + 1);
        self.push(LayerId(next));
    }
    async fn write(&mut self, blocks: Range<u32>, value: Option<u8>) {
        let Some((layer, contents)) = self.layers.last_mut() else { return };
        self.seq += 1;
        let head = self.heads.entry(*layer).or_default();
        let o = WriteOp {
            oid: object(*layer),
            kind: kind(value, blocks.len()),
            ..op(0, *head, self.seq, blocks.clone(), None)
        };
        *head = self.seq;
        assert_eq!(self.store.write(o).await, Ok(WriteOutcome::Done));
        contents.extend(blocks.map(|b| (b, value)));
    }
    /// Another copy's contents come into some layer.
    async fn fill(&mut self, at: usize, blocks: Range<u32>, value: Option<u8>) {
        let (layer, contents) = &mut self.layers[at];
        self.seq += 1;
        let ops = vec![FillOp { blocks: blocks.clone(), kind: kind(value, blocks.len()) }];
        self.store.fill(object(*layer), key(0), VdiId(1), SIZE, ops).await.expect("fills");
        let version = Version { generation: 1, seq: self.seq };
        let none = BlockMap::new(BLOCKS);
        self.store.finish_fill(object(*layer), version, Epoch(3), none, None, None).await.expect("fills");
        self.heads.insert(*layer, self.seq);
        contents.extend(blocks.map(|b| (b, value)));
    }
    /// A layer goes into the next one.
    async fn merge(&mut self, at: usize) {
        let (from, into) = (self.layers[at].0, self.layers[at + 1].0);
        self.store.merge(object(from), object(into)).await.expect("merges");
        let (_, below) = self.layers[at].clone();
        for (b, value) in below {
            self.layers[at + 1].1.entry(b).or_insert(value);
        }
        // Between the two, readers see the same.
        self.check(self.layers.len()).await;
        self.layers.remove(at);
        self.reshaped();
        self.store.remove(object(from)).await.expect("removes");
    }
    /// Read what the oldest `depth` layers show, whole and block by block.
    async fn check(&self, depth: usize) {
        let chain: Arc<[LayerId]> = if depth == self.layers.len() {
            self.chain.clone()
        } else {
            self.chain[self.layers.len() - depth..].into()
        };
        let layers = self.store.layers_in(key(0), &chain);
        let mut slow = self.store.layers_at(key(0));
        slow.retain(|l| chain.contains(l));
        slow.reverse();
        assert_eq!(*layers, *slow);
        let read = self.store.read(&layers, key(0), 0..BLOCKS).await.expect("reads");
        let states = self.store.status(&layers, key(0), 0..BLOCKS).await.expect("tells");
        let mut absent = read.absent.iter().cloned().flatten().peekable();
        for b in 0..BLOCKS {
            let want = self.layers[..depth].iter().rev().find_map(|(_, l)| l.get(&b));
            let data = &read.data[(b as usize) << BLOCK_SHIFT..][..1 << BLOCK_SHIFT];
            let value = want.copied().flatten().unwrap_or(0);
            assert!(data.iter().all(|x| *x == value), "block {b} of {depth} layers: {} for {value}", data[0]);
            assert_eq!(absent.next_if_eq(&b).is_some(), want.is_none(), "block {b}");
            let state = match want {
                None => BlockState::Absent,
                Some(None) => BlockState::Zero,
                Some(Some(_)) => BlockState::Data,
            };
            let told = states.iter().find(|(run, _)| run.contains(&b)).map(|(_, s)| *s);
            assert_eq!(told, Some(state), "block {b}");
        }
    }
}

#[test]
fn what_many_layers_show() {
    for seed in 0..12 {
        local(|| async move {
            let mut rng = SmallRng::seed_from_u64(seed);
            let fs = MemoryFs::default();
            let dirs = [PathBuf::from("/a"), PathBuf::from("/b")];
            let mut d = Deep::new(Store::open(config(&dirs), Rc::new(fs.clone())).await.expect("opens"));
            for _ in 0..250 {
                let first = rng.random_range(0..BLOCKS);
                let blocks = first..(first + rng.random_range(1..6)).min(BLOCKS);
                let value = rng.random_bool(0.9).then(|| rng.random_range(1..=255));
                let depth = d.layers.len();
                match rng.random_range(0..100) {
                    0..45 => d.write(blocks, value).await,
                    45..70 => d.snapshot(),
                    70..75 => d.fill(rng.random_range(0..depth), blocks, value).await,
                    75..80 if depth > 2 => d.merge(rng.random_range(0..depth - 1)).await,
                    80..95 => d.check(rng.random_range(1..=depth)).await,
                    95..98 => tokio::time::sleep(std::time::Duration::from_secs(3)).await,
                    98 => {
                        d.store.close().await.expect("closes");
                        d.store = Store::open(config(&dirs), Rc::new(fs.clone())).await.expect("opens");
                    }
                    _ => {}
                }
                d.check(d.layers.len()).await;
            }
            assert!(d.layers.len() > super::super::view::SHALLOW, "nothing was deep");
        });
    }
}

#[test]
fn damage_under_a_view_is_found() {
    local(|| async {
        let fs = MemoryFs::default();
        let dirs = [PathBuf::from("/a")];
        let mut d = Deep::new(Store::open(config(&dirs), Rc::new(fs.clone())).await.expect("opens"));
        for i in 0..8 {
            d.write(i..i + 2, Some(i as u8 + 1)).await;
            d.snapshot();
        }
        d.write(20..21, Some(99)).await;
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        d.check(d.layers.len()).await;
        // Block 2 is the third layer's: a bit flips on the disk, after the view was made.
        let victim = d.layers[2].0;
        let path = d.store.disks.borrow()[0].object_path(object(victim)).1;
        let file = fs.open(&path, fs::OpenHow { create: false, direct: true }).expect("is there");
        let at = super::super::object::data_offset(SIZE, 2);
        let mut bad = AlignedBuf::new(1 << BLOCK_SHIFT);
        bad.fill(7);
        file.write_at(at, vec![bad.freeze()], false).await.expect("writes");
        let layers = d.store.layers_in(key(0), &d.chain);
        let read = d.store.read(&layers, key(0), 0..8).await;
        assert_eq!(
            read.map(|r| r.data.len()),
            Err(StoreError::Corrupt { oid: object(victim), blocks: 2..3 }),
            "not served"
        );
        // Healed from elsewhere: served again, through the view of what there is now.
        d.fill(2, 2..3, Some(3)).await;
        d.check(d.layers.len()).await;
    });
}
