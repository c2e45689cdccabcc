//! Reading through layers: overlay first, then files, every block checked.

use super::disk::{Disk, Obj};
use super::{ReadResult, Store, StoreError};
use crate::buf::AlignedBuf;
use futures::stream::{FuturesUnordered, StreamExt};
use sheepdog_proto::peer::BlockState;
use sheepdog_proto::{BLOCK_SHIFT, LayerId, ObjectId, PlacementKey};
use std::ops::Range;
use std::rc::Rc;

/// Attempts while the object is overwritten under the reader.
const ATTEMPTS: usize = 100;
/// Blocks checked at a time by `verify`.
const VERIFY: u32 = 256;

enum Source {
    Absent,
    Zero,
    /// Index into the layers.
    Layer(usize),
}

async fn read_part(
    d: &Rc<Disk>,
    o: &Rc<Obj>,
    part: Range<u32>,
) -> (Range<u32>, Result<Option<AlignedBuf>, StoreError>) {
    let data = d.read_run(o, part.clone()).await;
    (part, data)
}

impl Store {
    async fn chain(&self, layers: &[LayerId], index: u32) -> Result<Vec<(Rc<Disk>, Rc<Obj>)>, StoreError> {
        let mut objects = Vec::with_capacity(layers.len());
        for layer in layers {
            if let Some(found) = self.loaded(ObjectId::data(*layer, index)).await? {
                objects.push(found);
            }
        }
        Ok(objects)
    }

    /// Runs of blocks by where they come from.
    fn plan(objects: &[(Rc<Disk>, Rc<Obj>)], blocks: Range<u32>) -> Vec<(Range<u32>, Source)> {
        let mut runs = vec![(blocks, Source::Absent)];
        for (i, (_, o)) in objects.iter().enumerate() {
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
                        next.push((part, if zero { Source::Zero } else { Source::Layer(i) }));
                    }
                }
            }
            runs = next;
        }
        runs
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
            let objects = self.chain(layers, key.index).await?;
            if let Some(r) = self.read_once(&objects, blocks.clone()).await? {
                return Ok(r);
            }
        }
        Err(StoreError::Invalid("the object keeps changing".into()))
    }

    async fn read_once(
        &self,
        objects: &[(Rc<Disk>, Rc<Obj>)],
        blocks: Range<u32>,
    ) -> Result<Option<ReadResult>, StoreError> {
        let plan = Self::plan(objects, blocks.clone());
        // The usual case: everything from one file, straight into the answer.
        if let [(run, Source::Layer(i))] = plan.as_slice() {
            let (d, o) = &objects[*i];
            if o.fresh.borrow().range(run.clone()).next().is_none() {
                let data = d.read_run(o, run.clone()).await?;
                return Ok(data.map(|b| ReadResult { data: b.freeze(), absent: Vec::new() }));
            }
        }
        let mut buf = AlignedBuf::new(blocks.len() << BLOCK_SHIFT);
        let mut absent: Vec<Range<u32>> = Vec::new();
        let mut reads = FuturesUnordered::new();
        for (run, source) in plan {
            let at = ((run.start - blocks.start) as usize) << BLOCK_SHIFT;
            let len = run.len() << BLOCK_SHIFT;
            let i = match source {
                Source::Layer(i) => i,
                Source::Zero | Source::Absent => {
                    buf[at..at + len].fill(0);
                    if matches!(source, Source::Absent) {
                        match absent.last_mut() {
                            Some(last) if last.end == run.start => last.end = run.end,
                            _ => absent.push(run),
                        }
                    }
                    continue;
                }
            };
            let (d, o) = &objects[i];
            // Blocks in the overlay are copied now; runs between them are read.
            let fresh = o.fresh.borrow();
            let mut start = run.start;
            for (b, f) in fresh.range(run.clone()) {
                if *b > start {
                    reads.push(read_part(d, o, start..*b));
                }
                start = b + 1;
                let to = ((b - blocks.start) as usize) << BLOCK_SHIFT;
                match &f.data {
                    Some(data) => buf[to..to + data.len()].copy_from_slice(data),
                    None => buf[to..to + (1 << BLOCK_SHIFT)].fill(0),
                }
            }
            if start < run.end {
                reads.push(read_part(d, o, start..run.end));
            }
        }
        while let Some((part, data)) = reads.next().await {
            let Some(data) = data? else { return Ok(None) };
            let to = ((part.start - blocks.start) as usize) << BLOCK_SHIFT;
            buf[to..to + data.len()].copy_from_slice(&data);
        }
        drop(reads);
        Ok(Some(ReadResult { data: buf.freeze(), absent }))
    }

    /// What lies where, without data.
    pub async fn status(
        &self,
        layers: &[LayerId],
        key: PlacementKey,
        blocks: Range<u32>,
    ) -> Result<Vec<(Range<u32>, BlockState)>, StoreError> {
        let objects = self.chain(layers, key.index).await?;
        let mut out: Vec<(Range<u32>, BlockState)> = Vec::new();
        for (run, source) in Self::plan(&objects, blocks) {
            let state = match source {
                Source::Absent => BlockState::Absent,
                Source::Zero => BlockState::Zero,
                Source::Layer(_) => BlockState::Data,
            };
            match out.last_mut() {
                Some((last, s)) if *s == state && last.end == run.start => last.end = run.end,
                _ => out.push((run, state)),
            }
        }
        Ok(out)
    }

    /// Check every block of an object against its checksum; runs that do not match.
    pub async fn verify(&self, oid: ObjectId) -> Result<Vec<Range<u32>>, StoreError> {
        let Some((d, o)) = self.loaded(oid).await? else { return Ok(Vec::new()) };
        // By its name, not by a handle that still works when the file is gone.
        if o.since.get().is_none() && !o.applying.get() {
            *o.file.borrow_mut() = None;
        }
        let mut bad: Vec<Range<u32>> = Vec::new();
        let Some(info) = d.info(&o) else { return Ok(bad) };
        let mut data = info.present;
        data.subtract(&info.zero);
        for run in data.set_runs().collect::<Vec<_>>() {
            let mut first = run.start;
            while first < run.end {
                let chunk = first..(first + VERIFY).min(run.end);
                first = chunk.end;
                let read = self.read(&[oid.layer()], o.key, chunk.clone()).await;
                if let Err(e) = read {
                    if !matches!(e, StoreError::Corrupt { .. }) {
                        return Err(e);
                    }
                    // Name each block, so that healing fetches no more than it must.
                    for b in chunk {
                        match self.read(&[oid.layer()], o.key, b..b + 1).await {
                            Err(StoreError::Corrupt { .. }) => match bad.last_mut() {
                                Some(last) if last.end == b => last.end = b + 1,
                                _ => bad.push(b..b + 1),
                            },
                            Err(e) => return Err(e),
                            Ok(_) => {}
                        }
                    }
                }
            }
        }
        Ok(bad)
    }
}
