//! A volume that is used while it is restored: what it has not got yet comes from the backup.
//!
//! **The volume's own allocation says what is restored**, block by block of 4 KiB: a block that is allocated in the volume is the truth, one that is not is the backup's. So
//! nothing is lost when this process dies at any moment, and there is no state beside it but a hint. What follows from it:
//!
//! * A read takes allocated blocks from the volume and the others from the backup. A chunk that is damaged is an error, never zeros.
//! * A write of a part of a block that is not allocated is merged with the backup's bytes first, so that the volume gets the whole block.
//! * Zeros and discards are written as data, because a block that is given back would be the backup's again. In chunks that are holes in the backup, and in those that are
//!   *released*, they give space back as always.
//! * Filling writes those blocks of a chunk that are not allocated and not zeros, while nobody else changes that chunk.
//!
//! ```text
//! waiting ──fill, or all of its blocks written──► done ──every chunk before it done, and that is kept with the VDI──► released
//! ```
//! A chunk that is *done* is the volume's alone, and needs nothing of this. But its zeros may be unallocated only in a volume that remembers that it is done: for that the number
//! of the first chunk that is not done is kept in an attribute of the VDI, which is behind the truth, never before it.
//!
//! Of each chunk there is a lock (of `LOCKS`, shared by others far away). Filling and merging hold it alone; reads and writes of whole blocks share it. Reads and writes beside
//! each other need no order: the volume gives it to blocks that are allocated, and a block becomes so, here, before its first write is acknowledged and after it has taken effect.

use super::chunks::Chunks;
use crate::blocks::{BLOCK, Blocks};
use crate::contents::Contents;
use crate::failure::Failure;
use crate::nbd::{Answer, Fault, Image, runs_of};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{RwLock, watch};

/// Locks of chunks: neighbours have different ones.
const LOCKS: usize = 1024;
/// Parts of one large request that run at a time.
const PARTS: usize = 8;
/// Chunks that were read and are filled before others; further ones wait for their turn.
const HOT: usize = 64;

/// What is written where a block must not be given back.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// What is known of the volume.
struct State {
    /// Chunks, a bit each.
    done: Vec<u64>,
    /// Chunks that are not done.
    left: usize,
    /// All before it are done or have been tried.
    cursor: usize,
    /// To be filled next.
    hot: VecDeque<usize>,
    /// Blocks that are allocated. Of chunks that are done, and have something in the backup, some are left out.
    present: Blocks,
    /// Chunks that could not be had.
    hurt: BTreeSet<usize>,
    /// Chunks before this one are released.
    released: usize,
}

impl State {
    fn is_done(&self, chunk: usize) -> bool {
        // What lies behind the end of the backup never came from it.
        self.done.get(chunk / 64).is_none_or(|w| w >> (chunk % 64) & 1 == 1)
    }
    fn finish(&mut self, chunk: usize) {
        if !self.is_done(chunk) {
            self.done[chunk / 64] |= 1 << (chunk % 64);
            self.left -= 1;
            self.hurt.remove(&chunk);
        }
    }
    /// The first that is not done.
    fn first(&self, chunks: usize) -> usize {
        let word = self.done.iter().position(|w| *w != u64::MAX);
        word.map_or(chunks, |w| (w * 64 + self.done[w].trailing_ones() as usize).min(chunks))
    }
}

/// See the module.
pub struct Lazy {
    backup: Chunks,
    volume: Contents,
    locks: Vec<RwLock<()>>,
    state: Mutex<State>,
    /// Why it cannot go on: what became of a write is not known.
    broken: watch::Sender<Option<Failure>>,
}

impl Lazy {
    /// Of a volume that nobody else changes, in which these blocks are allocated, and of which all chunks before `released` are done for good.
    pub fn new(backup: Chunks, volume: Contents, present: Blocks, released: usize) -> Self {
        let chunks = backup.len();
        let mut done = vec![0u64; chunks.div_ceil(64)];
        // Bits behind the last chunk are set: they are nobody's.
        (chunks..done.len() * 64).for_each(|n| done[n / 64] |= 1 << (n % 64));
        let (hot, hurt) = (VecDeque::new(), BTreeSet::new());
        let mut state = State { done, left: chunks, cursor: 0, hot, present, hurt, released };
        let locks = (0..LOCKS).map(|_| RwLock::new(())).collect();
        for n in 0..chunks {
            let range = n as u64 * backup.chunk()..((n as u64 + 1) * backup.chunk()).min(volume.size());
            if n < released || backup.is_hole(n) || state.present.has_all(range) {
                state.finish(n);
            }
        }
        Self { backup, volume, locks, state: Mutex::new(state), broken: watch::channel(None).0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of a chunk.
    pub fn chunk(&self) -> u64 {
        self.backup.chunk()
    }

    /// Chunks there are, and those that are not done.
    pub fn progress(&self) -> (usize, usize) {
        (self.backup.len(), self.state().left)
    }

    /// How far it is done without a gap, in chunks.
    pub fn first_missing(&self) -> usize {
        self.state().first(self.backup.len())
    }

    /// It is kept with the VDI that all chunks before this one are done.
    pub fn release(&self, chunk: usize) {
        let mut state = self.state();
        state.released = state.released.max(chunk);
    }

    /// Completes when it cannot go on.
    pub async fn broken(&self) -> Failure {
        let mut watch = self.broken.subscribe();
        loop {
            if let Some(f) = watch.borrow_and_update().clone() {
                return f;
            }
            if watch.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// A chunk that is to be filled, those that were asked for first; `None`: each has been tried.
    fn next(&self) -> Option<usize> {
        let mut state = self.state();
        while let Some(n) = state.hot.pop_front() {
            if !state.is_done(n) {
                return Some(n);
            }
        }
        while state.cursor < self.backup.len() {
            state.cursor += 1;
            if !state.is_done(state.cursor - 1) {
                return Some(state.cursor - 1);
            }
        }
        None
    }

    /// Fill some chunk that is not done. `None`: each has been tried.
    ///
    /// # Errors
    /// It cannot be had: reads of it fail, and it stays as it is.
    pub async fn fill_next(&self) -> Option<Result<(), Failure>> {
        let n = self.next()?;
        let filled = self.fill(n).await;
        if filled.is_err() {
            self.state().hurt.insert(n);
        }
        Some(filled)
    }

    /// Chunks that could not be had, and are not written over since.
    pub fn hurt(&self) -> usize {
        self.state().hurt.len()
    }

    /// What could not be had is tried once more.
    pub fn again(&self) {
        let mut state = self.state();
        state.hurt.clear();
        state.cursor = 0;
    }

    async fn fill(&self, n: usize) -> Result<(), Failure> {
        // Fetched before the chunk is locked: that may take long.
        let data = self.backup.get(n).await?;
        let _alone = self.lock(n).write().await;
        let range = self.whole(n);
        let missing: Vec<Range<u64>> = {
            let state = self.state();
            if state.is_done(n) {
                return Ok(());
            }
            let runs = state.present.runs(range.clone());
            runs.filter(|(_, there)| !there).map(|(run, _)| run).collect()
        };
        let writes = missing.into_iter().flat_map(|run| contents_of(run, range.start, &data)).map(|run| {
            let part = data.slice((run.start - range.start) as usize..(run.end - range.start) as usize);
            self.put(run.start, part)
        });
        stream::iter(writes).buffer_unordered(PARTS).try_collect::<()>().await?;
        self.state().finish(n);
        Ok(())
    }

    fn lock(&self, chunk: usize) -> &RwLock<()> {
        &self.locks[chunk % LOCKS]
    }

    /// What of the volume belongs to a chunk: also what has grown behind the backup's end in its last one.
    fn whole(&self, chunk: usize) -> Range<u64> {
        let start = chunk as u64 * self.backup.chunk();
        start..(start + self.backup.chunk()).min(self.volume.size())
    }

    /// Into the volume. When it fails nobody knows what is there: then this process has to end, and the next one looks.
    async fn put(&self, offset: u64, data: Bytes) -> Result<(), Failure> {
        self.volume.write(offset, data).await.inspect_err(|f| self.lost(f))
    }

    fn lost(&self, why: &Failure) {
        self.broken.send_if_modified(|b| b.is_none() && b.replace(why.clone()).is_none());
    }

    /// A range as parts: those of chunks that are not done by themselves, with their number; what is done between them as one.
    fn parts(&self, range: Range<u64>) -> Vec<(Range<u64>, Option<usize>)> {
        let state = self.state();
        let mut out: Vec<(Range<u64>, Option<usize>)> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let n = (at / self.backup.chunk()) as usize;
            let stop = ((n as u64 + 1) * self.backup.chunk()).min(range.end);
            match (state.is_done(n), out.last_mut()) {
                (true, Some((last, None))) => last.end = stop,
                (true, _) => out.push((at..stop, None)),
                (false, _) => out.push((at..stop, Some(n))),
            }
            at = stop;
        }
        out
    }

    /// A part of one chunk. It may be done meanwhile, which is no matter: then its blocks are there.
    async fn read_part(&self, n: usize, range: Range<u64>) -> Result<Bytes, Fault> {
        let _shared = self.lock(n).read().await;
        let runs: Vec<_> = {
            let mut state = self.state();
            if state.is_done(n) {
                vec![(range.clone(), true)]
            } else {
                if state.hot.len() < HOT && !state.hot.contains(&n) && !state.hurt.contains(&n) {
                    state.hot.push_back(n);
                }
                state.present.runs(range.clone()).collect()
            }
        };
        if let [(_, true)] = runs[..] {
            return Ok(self.volume.read(range.start, range.end - range.start).await?);
        }
        let start = self.whole(n).start;
        let data = self.backup.get(n).await?;
        let mut out = BytesMut::with_capacity((range.end - range.start) as usize);
        for (run, there) in runs {
            if there {
                out.extend_from_slice(&self.volume.read(run.start, run.end - run.start).await?);
            } else {
                append(&mut out, &data, start, &run);
            }
        }
        Ok(out.freeze())
    }

    /// A part of one chunk that is not done, or was not when it was looked at.
    async fn write_part(&self, n: usize, offset: u64, data: Bytes) -> Result<(), Fault> {
        let range = offset..offset + data.len() as u64;
        {
            let _shared = self.lock(n).read().await;
            if self.edges(n, &range) == (None, None) {
                return self.put_part(n, offset, data).await;
            }
        }
        let _alone = self.lock(n).write().await;
        // Again: it may have been filled, or its blocks written.
        let (head, tail) = self.edges(n, &range);
        if (&head, &tail) == (&None, &None) {
            return self.put_part(n, offset, data).await;
        }
        let start = self.whole(n).start;
        let old = self.backup.get(n).await?;
        let mut merged = BytesMut::new();
        let mut begin = offset;
        for (edge, is_head) in [(head, true), (tail, false)] {
            if let Some(edge) = edge {
                append(&mut merged, &old, start, &edge);
                begin = begin.min(edge.start);
            }
            if is_head {
                merged.extend_from_slice(&data);
            }
        }
        self.put_part(n, begin, merged.freeze()).await
    }

    /// What has to be merged before and behind a change: the rest of blocks that it touches in part and that are not allocated.
    fn edges(&self, n: usize, range: &Range<u64>) -> (Option<Range<u64>>, Option<Range<u64>>) {
        let state = self.state();
        if state.is_done(n) {
            return (None, None);
        }
        let missing = |edge: &Range<u64>| !edge.is_empty() && !state.present.has(edge.start / BLOCK);
        let head = range.start / BLOCK * BLOCK..range.start;
        let tail = range.end..range.end.next_multiple_of(BLOCK).min(self.volume.size());
        (Some(head).filter(missing), Some(tail).filter(missing))
    }

    /// Write, and know that it is there.
    async fn put_part(&self, n: usize, offset: u64, data: Bytes) -> Result<(), Fault> {
        let range = offset..offset + data.len() as u64;
        self.put(offset, data).await?;
        let mut state = self.state();
        if !state.is_done(n) {
            state.present.add_covered(range, self.volume.size());
            if state.present.has_all(self.whole(n)) {
                state.finish(n);
            }
        }
        Ok(())
    }

    /// How far from `at` on, `end` at most, all chunks are the volume's for good, or none is; and which.
    fn same_fate(&self, at: u64, end: u64) -> (u64, bool) {
        let state = self.state();
        let released = |n: u64| n < state.released as u64 || self.backup.is_hole(n as usize);
        let (first, last) = (at / self.backup.chunk(), end.div_ceil(self.backup.chunk()));
        let fate = released(first);
        let other = (first + 1..last).find(|n| released(*n) != fate);
        (other.map_or(end, |n| n * self.backup.chunk()), fate)
    }

    /// A range of which each part is written the same way.
    async fn change(&self, range: Range<u64>, data: impl Fn(Range<u64>) -> Bytes) -> Result<(), Fault> {
        let parts = self.parts(range).into_iter().map(|(part, n)| {
            let data = data(part.clone());
            async move {
                match n {
                    Some(n) => self.write_part(n, part.start, data).await,
                    None => {
                        // For `status`: it may be where the backup has a hole.
                        self.state().present.add_touched(part.clone());
                        Ok(self.put(part.start, data).await?)
                    }
                }
            }
        });
        stream::iter(parts).buffer_unordered(PARTS).try_collect().await
    }
}

/// Bytes of a range, from the contents of a chunk which begin at `start`. Behind their end, in a volume that has grown, are zeros.
fn append(out: &mut BytesMut, data: &[u8], start: u64, range: &Range<u64>) {
    let clip = |at: u64| ((at - start) as usize).min(data.len());
    let end = out.len() + (range.end - range.start) as usize;
    out.extend_from_slice(&data[clip(range.start)..clip(range.end)]);
    out.resize(end, 0);
}

/// Those blocks of a run that are not zeros in the contents of a chunk, which begin at `start`.
fn contents_of(run: Range<u64>, start: u64, data: &[u8]) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    let end = run.end.min(start + data.len() as u64);
    let mut at = run.start;
    while at < end {
        let stop = (at + BLOCK).min(end);
        if data[(at - start) as usize..(stop - start) as usize].iter().any(|b| *b != 0) {
            match out.last_mut() {
                Some(last) if last.end == at => last.end = stop,
                _ => out.push(at..stop),
            }
        }
        at = stop;
    }
    out
}

impl Image for Lazy {
    fn size(&self) -> u64 {
        self.volume.size()
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, len: u32) -> Answer<'_, Bytes> {
        Box::pin(async move {
            let mut parts = self.parts(offset..offset + u64::from(len));
            let one = |(part, n): (Range<u64>, Option<usize>)| async move {
                match n {
                    Some(n) => self.read_part(n, part).await,
                    None => Ok(self.volume.read(part.start, part.end - part.start).await?),
                }
            };
            if parts.len() == 1 {
                return one(parts.remove(0)).await;
            }
            let mut reads = stream::iter(parts).map(one).buffered(PARTS);
            let mut out = BytesMut::with_capacity(len as usize);
            while let Some(part) = reads.try_next().await? {
                out.extend_from_slice(&part);
            }
            Ok(out.freeze())
        })
    }
    fn write(&self, offset: u64, data: Bytes) -> Answer<'_, ()> {
        Box::pin(async move {
            let range = offset..offset + data.len() as u64;
            self.change(range, |part| {
                data.slice((part.start - offset) as usize..(part.end - offset) as usize)
            })
            .await
        })
    }
    fn zero(&self, offset: u64, len: u64, allocate: bool) -> Answer<'_, ()> {
        Box::pin(async move {
            let (mut at, end) = (offset, offset + len);
            while at < end {
                let (mut stop, released) = self.same_fate(at, end);
                if released && !allocate {
                    self.volume.discard(at, stop - at).await.inspect_err(|f| self.lost(f))?;
                } else {
                    // In pieces: a request may be for all of the volume.
                    stop = stop.min(at + ZEROS.len() as u64);
                    let zeros =
                        |part: Range<u64>| Bytes::from_static(&ZEROS[..(part.end - part.start) as usize]);
                    self.change(at..stop, zeros).await?;
                }
                at = stop;
            }
            Ok(())
        })
    }
    fn zeroes_fast(&self, offset: u64, len: u64) -> bool {
        self.same_fate(offset, offset + len) == (offset + len, true)
    }
    fn status(&self, offset: u64, len: u64) -> Answer<'_, Vec<(u64, u32)>> {
        // Where the backup has something, or the volume had, or was written: data. What was given back since is data, too, which is allowed.
        let mut data = Blocks::default();
        let range = offset..offset + len.min(1 << 30);
        let first = (range.start / self.backup.chunk()) as usize;
        let last = range.end.div_ceil(self.backup.chunk()) as usize;
        let state = self.state();
        for n in first..last {
            if !self.backup.is_hole(n) {
                data.add_touched(self.whole(n));
                continue;
            }
            for (run, _) in state.present.runs(self.whole(n)).filter(|(_, there)| *there) {
                data.add_touched(run);
            }
        }
        drop(state);
        let runs = runs_of(&data, range);
        Box::pin(std::future::ready(Ok(runs)))
    }
}
