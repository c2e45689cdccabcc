//! Reading through many layers: what lies under an object's newest layer, worked out once.
//!
//! An object may be in a thousand layers. Asking the header of each on every read would cost a thousand looks, and more headers than are kept in memory. So a read of
//! more than `SHALLOW` layers asks the newest one's header, and for everything under it a *view*: for each block the layer that answers, and the checksum.
//!
//! What holds:
//! * A view is what the headers of exactly its layers say *now*. Whoever changes blocks of one of them, or takes the object away, calls `wrote` or `gone` in the
//!   same synchronous step; the view is dropped then. Finding a view and noting what to read from it is one synchronous step, too.
//! * So is a list of layers: `moved` drops it when an object comes or goes at its key.
//! * Nothing is ever written from a view. It is a cache: without it everything reads the same, only slower.
//!
//! The newest layer, which writes go to, is not in it: writing drops no view. After a snapshot and a write the view for the layers under the new one is the old one and
//! one header more.

use super::object::Meta;
use sheepdog_proto::{LayerId, PlacementKey};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// Up to so many layers each header is asked. Not more, so that what is rare in production is common in the simulator: a header is as large as a view.
pub(super) const SHALLOW: usize = 1;
/// Entries of 8 bytes in all views of a disk: as many objects of 4 MiB as headers are kept, 16 MiB.
const MAX_COST: usize = 2048 << 10;
/// Objects with views.
const MAX_KEYS: usize = 8192;
/// Views of one object: the volume's and those of snapshots being read.
const VIEWS: usize = 3;

/// One block under the newest layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Under {
    /// No layer has it.
    Absent,
    /// It reads as zeros.
    Zero,
    /// Its contents are in this layer, with this checksum.
    Data(LayerId, u32),
}

const ABSENT: u32 = u32::MAX;
const ZERO: u32 = u32::MAX - 1;

/// See the module.
#[derive(Clone)]
pub(super) struct View {
    /// Newest first.
    pub(super) layers: Box<[LayerId]>,
    /// Layer (or a mark beyond all layers) and checksum of each block.
    blocks: Box<[(u32, u32)]>,
}

const _: () = assert!(sheepdog_proto::MAX_LAYER_ID < ZERO);

impl View {
    /// Of no layers.
    pub(super) fn empty(blocks: u32) -> Self {
        Self { layers: Box::default(), blocks: vec![(ABSENT, 0); blocks as usize].into() }
    }
    /// Put a layer on top. `false`: its objects have another size, or some of it is in strips.
    pub(super) fn cover(&mut self, layer: LayerId, meta: &Meta) -> bool {
        // What is in strips is asked of its header.
        if meta.blocks() as usize != self.blocks.len() || meta.seal.is_some() {
            return false;
        }
        for b in meta.present.set_runs().flatten() {
            let i = b as usize;
            self.blocks[i] = if meta.zero.get(b) { (ZERO, 0) } else { (layer.0, meta.crcs[i]) };
        }
        true
    }
    fn block(&self, b: u32) -> Under {
        match self.blocks.get(b as usize) {
            None | Some((ABSENT, _)) => Under::Absent,
            Some((ZERO, _)) => Under::Zero,
            Some((layer, crc)) => Under::Data(LayerId(*layer), *crc),
        }
    }
    /// Runs of one source each, with the checksums of their blocks.
    pub(super) fn runs(&self, range: Range<u32>) -> Vec<(Range<u32>, Under, Vec<u32>)> {
        let mut out: Vec<(Range<u32>, Under, Vec<u32>)> = Vec::new();
        for b in range {
            let this = self.block(b);
            match (out.last_mut(), this) {
                (Some((run, Under::Data(layer, _), crcs)), Under::Data(l, crc)) if *layer == l => {
                    run.end = b + 1;
                    crcs.push(crc);
                }
                (Some((run, last, _)), this) if *last == this => run.end = b + 1,
                (_, Under::Data(_, crc)) => out.push((b..b + 1, this, vec![crc])),
                _ => out.push((b..b + 1, this, Vec::new())),
            }
        }
        out
    }
}

/// Layers of a chain that have an object at a key.
struct Stack {
    chain: Arc<[LayerId]>,
    layers: Rc<[LayerId]>,
}

#[derive(Default)]
struct At {
    stack: Option<Stack>,
    /// Last used first.
    views: Vec<Rc<View>>,
    used: u64,
}

impl At {
    /// In entries of 8 bytes.
    fn cost(&self) -> usize {
        let stack = self.stack.as_ref().map_or(0, |s| s.layers.len() + s.chain.len());
        stack / 2 + self.views.iter().map(|v| v.blocks.len() + v.layers.len() / 2).sum::<usize>()
    }
}

/// Equal, without a branch per layer: with a thousand of them that is most of a look.
fn same(a: &[LayerId], b: &[LayerId]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x.0 ^ y.0)) == 0
}

/// All views of a disk.
#[derive(Default)]
pub(super) struct Views {
    keys: RefCell<HashMap<PlacementKey, At>>,
    cost: Cell<usize>,
    clock: Cell<u64>,
}

impl Views {
    fn change(&self, key: PlacementKey, f: impl FnOnce(&mut At)) {
        let mut keys = self.keys.borrow_mut();
        let Some(at) = keys.get_mut(&key) else { return };
        let before = at.cost();
        f(at);
        self.cost.set(self.cost.get() - before + at.cost());
        if at.stack.is_none() && at.views.is_empty() {
            keys.remove(&key);
        }
    }
    /// An object came or went.
    pub(super) fn moved(&self, key: PlacementKey) {
        self.change(key, |at| at.stack = None);
    }
    /// Blocks of an object were changed.
    pub(super) fn wrote(&self, key: PlacementKey, layer: LayerId) {
        self.change(key, |at| at.views.retain(|v| v.layers.binary_search_by(|l| layer.cmp(l)).is_err()));
    }
    /// An object is no more.
    pub(super) fn gone(&self, key: PlacementKey, layer: LayerId) {
        self.moved(key);
        self.wrote(key, layer);
    }

    /// The list for this chain.
    pub(super) fn stack(&self, key: PlacementKey, chain: &Arc<[LayerId]>) -> Option<Rc<[LayerId]>> {
        let keys = self.keys.borrow();
        let stack = keys.get(&key)?.stack.as_ref()?;
        Arc::ptr_eq(&stack.chain, chain).then(|| stack.layers.clone())
    }
    /// Keep a list.
    pub(super) fn keep_stack(&self, key: PlacementKey, chain: &Arc<[LayerId]>, layers: &Rc<[LayerId]>) {
        self.add(key, |at| at.stack = Some(Stack { chain: chain.clone(), layers: layers.clone() }));
    }

    fn add(&self, key: PlacementKey, f: impl FnOnce(&mut At)) {
        let used = self.tick();
        self.keys.borrow_mut().entry(key).or_default().used = used;
        self.change(key, f);
        if self.cost.get() > MAX_COST || self.keys.borrow().len() > MAX_KEYS {
            self.shrink();
        }
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    /// The view of these layers.
    pub(super) fn whole(&self, key: PlacementKey, layers: &[LayerId]) -> Option<Rc<View>> {
        let mut keys = self.keys.borrow_mut();
        let at = keys.get_mut(&key)?;
        let i = at.views.iter().position(|v| same(&v.layers, layers))?;
        at.used = self.tick();
        at.views[..=i].rotate_right(1);
        at.views.first().cloned()
    }

    /// The view of as many of these layers, from the oldest, as there is one for; and how many newer ones are not in it.
    pub(super) fn nearest(&self, key: PlacementKey, layers: &[LayerId]) -> Option<(usize, Rc<View>)> {
        let keys = self.keys.borrow();
        let fits = |v: &&Rc<View>| layers.ends_with(&v.layers);
        let view = keys.get(&key)?.views.iter().filter(fits).max_by_key(|v| v.layers.len())?;
        Some((layers.len() - view.layers.len(), view.clone()))
    }

    /// Keep a view.
    pub(super) fn keep(&self, key: PlacementKey, view: View) {
        self.add(key, |at| {
            at.views.insert(0, Rc::new(view));
            at.views.truncate(VIEWS);
        });
    }

    /// Forget those not used for longest.
    fn shrink(&self) {
        let mut keys = self.keys.borrow_mut();
        let mut by_use: Vec<(u64, PlacementKey)> = keys.iter().map(|(k, at)| (at.used, *k)).collect();
        by_use.sort_unstable();
        let mut left = self.cost.get();
        for (_, key) in by_use {
            if left <= MAX_COST / 4 * 3 && keys.len() <= MAX_KEYS / 4 * 3 {
                break;
            }
            left -= keys.remove(&key).map_or(0, |at| at.cost());
        }
        self.cost.set(left);
    }
}
