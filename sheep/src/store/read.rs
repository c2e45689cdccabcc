//! Reading through layers: overlay first, then files, every block checked.

use super::disk::{Disk, Obj};
use super::view::{SHALLOW, Under, View};
use super::{ColdRun, ReadResult, Store, StoreError};
use crate::buf::AlignedBuf;
use futures::stream::{self, FuturesUnordered, StreamExt};
use sheepdog_proto::peer::BlockState;
use sheepdog_proto::{BLOCK_SHIFT, LayerId, ObjectId, PlacementKey};
use std::ops::Range;
use std::rc::Rc;

/// Attempts while the object is overwritten under the reader.
const ATTEMPTS: usize = 100;
/// Headers read at a time when a view is made.
const LOADS: usize = 16;
/// Attempts to make a view while its layers are changed.
const VIEW_ATTEMPTS: usize = 3;

enum Source {
    Absent,
    Zero,
    Data(Stored),
    /// In strips.
    Cold(ColdRun),
}

/// Blocks of an object, as they were when it was looked up.
struct Stored {
    disk: Rc<Disk>,
    obj: Rc<Obj>,
    /// Checksum of each.
    want: Vec<u32>,
    /// The object's count of changes then.
    change: u64,
}

impl Stored {
    fn new(disk: &Rc<Disk>, obj: &Rc<Obj>, want: Vec<u32>) -> Self {
        Self { disk: disk.clone(), obj: obj.clone(), want, change: obj.change.get() }
    }
    /// `first`: the block of the first checksum.
    async fn read(&self, first: u32, part: Range<u32>) -> Result<Option<AlignedBuf>, StoreError> {
        let want = &self.want[(part.start - first) as usize..(part.end - first) as usize];
        self.disk.read_run(&self.obj, part, (want, self.change)).await
    }
}

type Plan = Vec<(Range<u32>, Source)>;

async fn read_part(
    stored: &Stored,
    first: u32,
    part: Range<u32>,
) -> (Range<u32>, Result<Option<AlignedBuf>, StoreError>) {
    let data = stored.read(first, part.clone()).await;
    (part, data)
}

impl Store {
    async fn chain(&self, layers: &[LayerId], index: u32) -> Result<Vec<(Rc<Disk>, Rc<Obj>)>, StoreError> {
        loop {
            let mut objects = Vec::with_capacity(layers.len());
            for layer in layers {
                if let Some(found) = self.loaded(ObjectId::data(*layer, index)).await? {
                    objects.push(found);
                }
            }
            // While the others were loaded one may have moved to another disk.
            if objects.iter().all(|(_, o)| !o.removed.get()) {
                return Ok(objects);
            }
        }
    }

    /// Runs of blocks by where they come from.
    fn plan(objects: &[(Rc<Disk>, Rc<Obj>)], blocks: Range<u32>) -> Plan {
        let mut runs = vec![(blocks, Source::Absent)];
        for (d, o) in objects {
            let meta = o.meta.borrow();
            let Some(m) = meta.as_ref() else { continue };
            let mut next = Vec::with_capacity(runs.len());
            for (run, source) in runs {
                if !matches!(source, Source::Absent) {
                    next.push((run, source));
                    continue;
                }
                for (part, present) in m.present.runs(run) {
                    if !present {
                        next.push((part, Source::Absent));
                        continue;
                    }
                    for (part, zero) in m.zero.runs(part) {
                        if zero {
                            next.push((part, Source::Zero));
                            continue;
                        }
                        for (part, cold) in m.cold.runs(part) {
                            let crcs = m.crcs[part.start as usize..part.end as usize].to_vec();
                            let source = match m.seal.filter(|_| cold) {
                                None => Source::Data(Stored::new(d, o, crcs)),
                                Some(seal) => Source::Cold(ColdRun {
                                    oid: o.oid,
                                    object_size: m.object_size,
                                    seal,
                                    blocks: part.clone(),
                                    crcs,
                                }),
                            };
                            next.push((part, source));
                        }
                    }
                }
            }
            runs = next;
        }
        runs
    }

    /// The same for a chain of any length; after the last `await` nothing was changed.
    async fn sources(
        &self,
        layers: &[LayerId],
        key: PlacementKey,
        blocks: Range<u32>,
    ) -> Result<Plan, StoreError> {
        if let [top, under @ ..] = layers
            && layers.len() > SHALLOW
        {
            for _ in 0..VIEW_ATTEMPTS {
                let top = self.loaded(ObjectId::data(*top, key.index)).await?;
                if let Some(plan) = self.plan_under(top.as_slice(), under, key, blocks.clone()) {
                    return Ok(plan);
                }
                if !self.make_view(under, key).await? {
                    break;
                }
            }
        }
        let objects = self.chain(layers, key.index).await?;
        Ok(Self::plan(&objects, blocks))
    }

    /// With the view of the layers under the newest. `None`: there is none.
    fn plan_under(
        &self,
        top: &[(Rc<Disk>, Rc<Obj>)],
        under: &[LayerId],
        key: PlacementKey,
        blocks: Range<u32>,
    ) -> Option<Plan> {
        let disks = self.disks.borrow();
        let (disk, view) = disks.iter().find_map(|d| Some((d, d.views.whole(key, under)?)))?;
        let mut out = Vec::new();
        for (run, source) in Self::plan(top, blocks) {
            if !matches!(source, Source::Absent) {
                out.push((run, source));
                continue;
            }
            for (run, under, want) in view.runs(run) {
                let source = match under {
                    Under::Absent => Source::Absent,
                    Under::Zero => Source::Zero,
                    Under::Data(layer, _) => {
                        let obj = disk.object(ObjectId::data(layer, key.index))?;
                        Source::Data(Stored::new(disk, &obj, want))
                    }
                };
                out.push((run, source));
            }
        }
        Some(out)
    }

    /// Make the view of these layers, from one of the older of them if there is one. `false`: it cannot be, every header has to be asked.
    async fn make_view(&self, under: &[LayerId], key: PlacementKey) -> Result<bool, StoreError> {
        let Some(first) = under.first() else { return Ok(false) };
        let Some((disk, _)) = self.locate(ObjectId::data(*first, key.index)) else { return Ok(false) };
        for _ in 0..VIEW_ATTEMPTS {
            let newer = disk.views.nearest(key, under).map_or(under.len(), |(newer, _)| newer);
            let find = |l: &LayerId| {
                let oid = ObjectId::data(*l, key.index);
                disk.object(oid).filter(|o| o.key == key && !self.moves.hides(disk.id, oid))
            };
            // Held to the end, so that their headers stay.
            let Some(objects) = under[..newer].iter().map(find).collect::<Option<Vec<_>>>() else {
                return Ok(false);
            };
            let mut loads = stream::iter(objects.iter().map(|o| disk.load(o))).buffer_unordered(LOADS);
            while let Some(loaded) = loads.next().await {
                loaded?;
            }
            drop(loads);
            // From here to the end nothing awaits.
            let (left, mut view) = match disk.views.nearest(key, under) {
                Some((left, base)) => (left, View::clone(&base)),
                None => {
                    let size = objects.first().map_or(0, |o| o.summary.borrow().object_size);
                    (under.len(), View::empty(size >> BLOCK_SHIFT))
                }
            };
            let cover = |(layer, o): (&LayerId, &Rc<Obj>)| {
                let meta = o.meta.borrow();
                meta.as_ref().is_some_and(|m| !o.removed.get() && view.cover(*layer, m))
            };
            if left <= objects.len() && under[..left].iter().zip(&objects).rev().all(cover) {
                view.layers = under.into();
                disk.views.keep(key, view);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Read a range through a chain (newest layer first, all of one family).
    pub async fn read(
        &self,
        layers: &[LayerId],
        key: PlacementKey,
        blocks: Range<u32>,
    ) -> Result<ReadResult, StoreError> {
        if blocks.start >= blocks.end || blocks.len() > 16384 {
            return Err(StoreError::Invalid("block range".into()));
        }
        for _ in 0..ATTEMPTS {
            let plan = self.sources(layers, key, blocks.clone()).await?;
            let read = Self::read_once(&plan, blocks.clone()).await;
            // What it held may go.
            drop(plan);
            self.disks.borrow().iter().for_each(|d| d.tidy());
            if let Some(r) = read? {
                return Ok(r);
            }
        }
        Err(StoreError::Invalid("the object keeps changing".into()))
    }

    /// Read a range of one object, not through layers.
    pub async fn read_object(&self, oid: ObjectId, blocks: Range<u32>) -> Result<ReadResult, StoreError> {
        if blocks.start >= blocks.end || blocks.len() > 16384 {
            return Err(StoreError::Invalid("block range".into()));
        }
        for _ in 0..ATTEMPTS {
            let objects: Vec<_> = self.loaded(oid).await?.into_iter().collect();
            let read = Self::read_once(&Self::plan(&objects, blocks.clone()), blocks.clone()).await;
            drop(objects);
            self.disks.borrow().iter().for_each(|d| d.tidy());
            if let Some(r) = read? {
                return Ok(r);
            }
        }
        Err(StoreError::Invalid("the object keeps changing".into()))
    }

    async fn read_once(
        plan: &[(Range<u32>, Source)],
        blocks: Range<u32>,
    ) -> Result<Option<ReadResult>, StoreError> {
        // The usual case: everything from one file, straight into the answer.
        if let [(run, Source::Data(s))] = plan
            && s.obj.fresh.borrow().range(run.clone()).next().is_none()
        {
            let data = s.read(run.start, run.clone()).await?;
            return Ok(data.map(|b| ReadResult { data: b.freeze(), absent: Vec::new(), cold: Vec::new() }));
        }
        let mut buf = AlignedBuf::new(blocks.len() << BLOCK_SHIFT);
        let mut absent: Vec<Range<u32>> = Vec::new();
        let mut cold: Vec<ColdRun> = Vec::new();
        let mut reads = FuturesUnordered::new();
        for (run, source) in plan {
            let at = ((run.start - blocks.start) as usize) << BLOCK_SHIFT;
            let len = run.len() << BLOCK_SHIFT;
            let stored = match source {
                Source::Data(stored) => stored,
                Source::Cold(run) => {
                    buf[at..at + len].fill(0);
                    cold.push(run.clone());
                    continue;
                }
                Source::Zero | Source::Absent => {
                    buf[at..at + len].fill(0);
                    if matches!(source, Source::Absent) {
                        match absent.last_mut() {
                            Some(last) if last.end == run.start => last.end = run.end,
                            _ => absent.push(run.clone()),
                        }
                    }
                    continue;
                }
            };
            // Blocks in the overlay are copied now; runs between them are read.
            let fresh = stored.obj.fresh.borrow();
            let mut start = run.start;
            for (b, f) in fresh.range(run.clone()) {
                if *b > start {
                    reads.push(read_part(stored, run.start, start..*b));
                }
                start = b + 1;
                let to = ((b - blocks.start) as usize) << BLOCK_SHIFT;
                match &f.data {
                    Some(data) => buf[to..to + data.len()].copy_from_slice(data),
                    None => buf[to..to + (1 << BLOCK_SHIFT)].fill(0),
                }
            }
            if start < run.end {
                reads.push(read_part(stored, run.start, start..run.end));
            }
        }
        while let Some((part, data)) = reads.next().await {
            let Some(data) = data? else { return Ok(None) };
            let to = ((part.start - blocks.start) as usize) << BLOCK_SHIFT;
            buf[to..to + data.len()].copy_from_slice(&data);
        }
        drop(reads);
        Ok(Some(ReadResult { data: buf.freeze(), absent, cold }))
    }

    /// What lies where, without data.
    pub async fn status(
        &self,
        layers: &[LayerId],
        key: PlacementKey,
        blocks: Range<u32>,
    ) -> Result<Vec<(Range<u32>, BlockState)>, StoreError> {
        let plan = self.sources(layers, key, blocks).await?;
        let mut out: Vec<(Range<u32>, BlockState)> = Vec::new();
        for (run, source) in plan {
            let state = match source {
                Source::Absent => BlockState::Absent,
                Source::Zero => BlockState::Zero,
                Source::Data(_) | Source::Cold(_) => BlockState::Data,
            };
            match out.last_mut() {
                Some((last, s)) if *s == state && last.end == run.start => last.end = run.end,
                _ => out.push((run, state)),
            }
        }
        Ok(out)
    }
}
