//! The journal of one disk: a ring of batches on a preallocated, pre-written file; a record is acknowledged when its batch is on stable storage.
//!
//! ```text
//! 0      superblock A     4096   superblock B     (written in turn: where replay begins, and how long the ring is)
//! 8192   batches, each: header blocks (4 KiB multiple), then payload blocks
//! ```
//! A batch header holds magic, the batch's sequence, lengths, a CRC-32C of header and records, and the records (postcard); data records carry one CRC-32C per payload
//! block, the same that ends up in the object's table. A batch that does not fit before the end of the ring is preceded by a wrap marker.
//! Group commit: while batches are being written, further records gather for the next one. Replay begins at the superblock's position and ends at the
//! first batch whose sequence or any checksum is wrong: that batch was never acknowledged. Every opening of the journal has a number of its own in its batches, which
//! never falls along the ring: what an earlier run left behind the end is not taken for a continuation.

use super::fs::File;
use super::types::WriteKind;
use crate::buf::{AlignedBuf, aligned};
use crate::observe::cells::OpStats;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sheepdog_proto::checksum::crc32c;
use sheepdog_proto::peer::{Seal, WriteAction};
use sheepdog_proto::{
    BLOCK_SHIFT, BLOCK_SIZE, BlockMap, Epoch, Generation, MAX_OBJECT_SIZE, MIN_OBJECT_SIZE, ObjectId,
    PlacementKey, VdiId, Version,
};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use tokio::sync::oneshot;
use tokio::time::Instant;

const SUPER: u64 = u64::from_le_bytes(*b"SHPJSUP1");
const BATCH: u64 = u64::from_le_bytes(*b"SHPJBAT1");
/// Where the ring begins.
const START: u64 = 2 * BLOCK_SIZE as u64;
/// Payload and records of one batch at most.
const MAX_BATCH_BYTES: usize = 4 << 20;
const MAX_BATCH_RECORDS: usize = 256;
/// Batches being written at a time.
const IN_FLIGHT: usize = 3;
/// Bytes looked at at a time behind an unreadable batch.
const SCAN: u64 = 1 << 20;
/// Fixed part of a batch header, bytes.
const BATCH_HEAD: usize = 40;
/// Smallest journal, bytes: room for several of the largest batches.
pub const MIN_SIZE: u64 = 32 << 20;

/// One tail entry as kept in a checkpoint.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct SavedTail {
    /// VDI.
    pub vdi: VdiId,
    /// Object.
    pub oid: ObjectId,
    /// Step.
    pub version: Version,
    /// Step before.
    pub prev: Version,
    /// Blocks.
    pub blocks: Range<u32>,
}

/// What happened. Payload blocks of data follow in the batch, in the order of the records.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A step of an object's log.
    Write {
        /// Object.
        oid: ObjectId,
        /// Placement.
        key: PlacementKey,
        /// VDI.
        vdi: VdiId,
        /// Bytes.
        object_size: u32,
        /// Step.
        version: Version,
        /// Step before.
        prev: Version,
        /// Epoch.
        epoch: Epoch,
        /// See `WriteOp`.
        degraded: Option<Epoch>,
        /// See `WriteOp`.
        watermark: u64,
        /// Blocks.
        blocks: Range<u32>,
        /// What.
        action: WriteAction,
        /// Of payload blocks.
        crcs: Vec<u32>,
    },
    /// Contents outside the log.
    Fill {
        /// Object.
        oid: ObjectId,
        /// Placement.
        key: PlacementKey,
        /// VDI.
        vdi: VdiId,
        /// Bytes.
        object_size: u32,
        /// Marks the object as being filled (a merge does not).
        filling: bool,
        /// Runs.
        ops: Vec<(Range<u32>, WriteAction)>,
        /// Of payload blocks.
        crcs: Vec<u32>,
    },
    /// End of a fill.
    FinishFill {
        /// Object.
        oid: ObjectId,
        /// Version now.
        version: Version,
        /// Epoch.
        epoch: Epoch,
        /// Dirty blocks.
        dirty: BlockMap,
        /// Since.
        dirty_since: Option<Epoch>,
        /// Its tail: the version before, and the blocks.
        tail: Option<(Version, Range<u32>)>,
    },
    /// The object is gone.
    Remove {
        /// Object.
        oid: ObjectId,
    },
    /// Committed up to here.
    Watermark {
        /// VDI.
        vdi: VdiId,
        /// Generation.
        generation: Generation,
        /// Sequence.
        seq: u64,
    },
    /// All tails at a checkpoint.
    Tails {
        /// Entries.
        entries: Vec<SavedTail>,
        /// Watermarks.
        marks: Vec<(VdiId, Version)>,
    },
    /// A step that is here already was finished in a later epoch, without a holder that will ask for it.
    Stamp {
        /// Object.
        oid: ObjectId,
        /// Epoch.
        epoch: Epoch,
        /// Blocks of the step.
        blocks: Vec<Range<u32>>,
        /// As in `Write`.
        degraded: Option<Epoch>,
    },
    /// Contents of these blocks are in strips, and not here any more.
    Seal {
        /// Object.
        oid: ObjectId,
        /// Placement.
        key: PlacementKey,
        /// VDI.
        vdi: VdiId,
        /// Bytes.
        object_size: u32,
        /// As in `Fill`.
        filling: bool,
        /// Epoch in which it was sealed, becomes the header's; 0 while it is being filled.
        epoch: Epoch,
        /// Which strips.
        seal: Seal,
        /// Blocks.
        blocks: BlockMap,
        /// Checksum of each.
        crcs: Vec<u32>,
    },
    /// No seal of a lower number is taken any more.
    Promise {
        /// Object.
        oid: ObjectId,
        /// Number.
        number: u32,
    },
}

impl Record {
    /// Payload blocks that follow.
    pub fn payload_blocks(&self) -> usize {
        match self {
            Self::Write { crcs, .. } | Self::Fill { crcs, .. } => crcs.len(),
            _ => 0,
        }
    }

    /// Could this have been logged? Replay relies on it.
    fn makes_sense(&self) -> bool {
        let size = |s: u32| s.is_power_of_two() && (MIN_OBJECT_SIZE..=MAX_OBJECT_SIZE).contains(&s);
        let fits = |r: &Range<u32>, s: u32| r.start < r.end && r.end <= s >> BLOCK_SHIFT;
        let data = |r: &Range<u32>, a: &WriteAction| if *a == WriteAction::Data { r.len() } else { 0 };
        match self {
            Self::Write { object_size, blocks, action, crcs, .. } => {
                size(*object_size) && fits(blocks, *object_size) && crcs.len() == data(blocks, action)
            }
            Self::Fill { object_size, ops, crcs, .. } => {
                size(*object_size)
                    && ops.iter().all(|(r, _)| fits(r, *object_size))
                    && crcs.len() == ops.iter().map(|(r, a)| data(r, a)).sum::<usize>()
            }
            Self::Seal { object_size, seal, blocks, crcs, .. } => {
                size(*object_size)
                    && seal.check().is_ok()
                    && blocks.capacity() <= object_size >> BLOCK_SHIFT
                    && blocks.count() as usize == crcs.len()
            }
            _ => true,
        }
    }
}

/// `WriteAction` of a kind.
pub fn action(kind: &WriteKind) -> WriteAction {
    match kind {
        WriteKind::Data(_) => WriteAction::Data,
        WriteKind::Zero => WriteAction::Zero,
        WriteKind::Remove => WriteAction::Remove,
    }
}

struct Queued {
    record: Record,
    payload: Vec<Bytes>,
    done: Option<oneshot::Sender<Result<(), String>>>,
}

struct Position {
    /// Logical offset of the next batch.
    head: u64,
    /// Logical offset where replay begins.
    tail: u64,
    /// Sequence of the next batch.
    sequence: u64,
    super_counter: u64,
}

/// A batch under way: its number, its outcome once known, and whom to tell.
type Batch = (u64, Option<Result<(), String>>, Vec<oneshot::Sender<Result<(), String>>>);

/// The journal.
pub struct Journal {
    file: Rc<dyn File>,
    area: u64,
    at: RefCell<Position>,
    queue: RefCell<VecDeque<Queued>>,
    queued_bytes: Cell<usize>,
    writing: Cell<usize>,
    /// Oldest batches first: done or not, with whom to tell.
    order: RefCell<VecDeque<Batch>>,
    failed: RefCell<Option<String>>,
    /// Number of this opening.
    run: u32,
    scheduled: Cell<bool>,
    batches: Cell<u64>,
    bytes: Cell<u64>,
    /// Batches that have reached stable storage, or failed to.
    pub stats: OpStats,
}

/// What replay found: records with the logical position of their batch, and their payload.
pub type Replayed = Vec<(u64, Record, Bytes)>;

fn damaged(what: &str) -> io::Error {
    let text = format!(
        "the journal's {what} is damaged, so writes that only it held are lost: restore it, or, when other sheep have copies, move \
         `disk`, `journal` and `obj` out of this directory and start again, and it is filled from them"
    );
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl Journal {
    /// Make a new one: the whole file is written, so that later writes never change file-system metadata.
    pub async fn create(file: Rc<dyn File>, size: u64) -> io::Result<()> {
        let size = size.max(MIN_SIZE).next_multiple_of(1 << 20);
        file.set_len(size)?;
        let zeros = crate::buf::zeros(1 << 20);
        let mut at = 0;
        while at < size {
            file.write_at(at, vec![zeros.clone()], false).await?;
            at += 1 << 20;
        }
        let area = area_of(size);
        write_super(&*file, 1, START, 1, area).await?;
        write_super(&*file, 2, START, 1, area).await?;
        file.sync().await
    }

    /// Open and read everything since the last checkpoint. The last value: acknowledged writes are damaged, not just a batch that was being written when the
    /// power failed.
    pub async fn open(file: Rc<dyn File>) -> io::Result<(Rc<Self>, Replayed, bool)> {
        let area = area_of(file.len()?);
        if area < MIN_SIZE / 2 {
            return Err(damaged("length"));
        }
        let (counter, tail, sequence, was) =
            read_super(&*file).await?.ok_or_else(|| damaged("superblock"))?;
        // In a ring of another length nothing is where it was.
        if was != 0 && was != area {
            return Err(damaged("length"));
        }
        // A ring that has gone round so often that these numbers are near their end does not exist.
        let most = u64::MAX >> 8;
        let block = BLOCK_SIZE as u64;
        if tail < START || !(tail - START).is_multiple_of(block) || counter.max(tail).max(sequence) > most {
            return Err(damaged("superblock"));
        }
        let mut found = Vec::new();
        let (mut head, mut next, mut run) = (tail, sequence, 0);
        while let Some((records, len, of_run)) = read_batch(&*file, area, head, next).await? {
            if of_run < run {
                break;
            }
            run = of_run;
            found.extend(records.into_iter().map(|(r, p)| (head, r, p)));
            head += len;
            next += 1;
            if head - tail > area {
                return Err(damaged("order"));
            }
        }
        let lost = went_on(&*file, area, head, next, run).await?;
        let counter = counter + 1;
        write_super(&*file, counter, tail, sequence, area).await?;
        let journal = Rc::new(Self {
            run: counter as u32,
            scheduled: Cell::new(false),
            file,
            area,
            at: RefCell::new(Position { head, tail, sequence: next, super_counter: counter }),
            queue: RefCell::default(),
            queued_bytes: Cell::new(0),
            writing: Cell::new(0),
            order: RefCell::default(),
            failed: RefCell::default(),
            batches: Cell::new(0),
            bytes: Cell::new(0),
            stats: OpStats::default(),
        });
        Ok((journal, found, lost))
    }

    /// Append; the receiver hears when the record is durable, or why it never will be. Order of calls is the order in the journal.
    pub fn append(
        self: &Rc<Self>,
        record: Record,
        payload: Vec<Bytes>,
    ) -> oneshot::Receiver<Result<(), String>> {
        let (tx, rx) = oneshot::channel();
        let bytes: usize = payload.iter().map(Bytes::len).sum();
        debug_assert_eq!(bytes >> BLOCK_SHIFT, record.payload_blocks());
        self.queued_bytes.set(self.queued_bytes.get() + bytes);
        let queued = Queued { record, payload, done: Some(tx) };
        if matches!(queued.record, Record::Tails { .. }) {
            // What waits for room waits for the checkpoint that this record completes.
            self.queue.borrow_mut().push_front(queued);
        } else {
            self.queue.borrow_mut().push_back(queued);
        }
        // At the end of this turn of the scheduler: what arrives together is written together.
        if !self.scheduled.replace(true) {
            let this = self.clone();
            tokio::task::spawn_local(async move {
                this.scheduled.set(false);
                this.pump();
            });
        }
        rx
    }

    /// Hears when everything appended so far is durable.
    pub fn barrier(self: &Rc<Self>) -> oneshot::Receiver<Result<(), String>> {
        let (tx, rx) = oneshot::channel();
        if let Some(last) = self.queue.borrow_mut().back_mut() {
            // Ride along with the last queued record.
            let (inner_tx, inner_rx) = oneshot::channel();
            let old = last.done.replace(inner_tx);
            tokio::task::spawn_local(async move {
                let r = inner_rx.await.unwrap_or_else(|_| Err("closed".into()));
                if let Some(old) = old {
                    let _ = old.send(r.clone());
                }
                let _ = tx.send(r);
            });
            return rx;
        }
        match self.order.borrow_mut().back_mut() {
            Some((_, _, waiters)) => waiters.push(tx),
            None => {
                let _ = tx.send(self.failed.borrow().clone().map_or(Ok(()), Err));
            }
        }
        rx
    }

    /// Logical position of the next batch: records appended from now on are at or after it.
    pub fn head(&self) -> u64 {
        self.at.borrow().head
    }
    /// Is there room for a record with so much payload, also at the worst place? What is made without asking (small records) fits
    /// into what is kept free.
    pub fn admits(&self, bytes: usize) -> bool {
        let at = self.at.borrow();
        let queued = self.queued_bytes.get() + self.queue.borrow().len() * BLOCK_SIZE;
        at.head - at.tail + (queued + bytes + BLOCK_SIZE + 3 * MAX_BATCH_BYTES) as u64 <= self.area
    }
    /// Share of the ring in use, 0 to 1, with what is queued.
    pub fn pressure(&self) -> f64 {
        let at = self.at.borrow();
        (at.head - at.tail + self.queued_bytes.get() as u64) as f64 / self.area as f64
    }
    /// (batches, bytes) written.
    pub fn written(&self) -> (u64, u64) {
        (self.batches.get(), self.bytes.get())
    }
    /// (size of the ring, part of it in use, payload waiting to be written), bytes.
    pub fn fill_level(&self) -> (u64, u64, u64) {
        let at = self.at.borrow();
        (self.area, at.head - at.tail, self.queued_bytes.get() as u64)
    }
    /// Records waiting.
    pub fn depth(&self) -> usize {
        self.queue.borrow().len()
    }
    /// Replay may begin at `position` from now on.
    pub async fn advance(self: &Rc<Self>, position: u64, sequence: u64) -> io::Result<()> {
        let counter = {
            let mut at = self.at.borrow_mut();
            at.super_counter += 1;
            at.super_counter
        };
        write_super(&*self.file, counter, position, sequence, self.area).await?;
        let mut at = self.at.borrow_mut();
        at.tail = at.tail.max(position);
        drop(at);
        self.pump();
        Ok(())
    }

    /// Number of the oldest batch that is being written.
    pub fn oldest(&self) -> Option<u64> {
        self.order.borrow().front().map(|(sequence, ..)| *sequence)
    }
    /// Ask the disk for something.
    pub async fn read_something(&self) -> io::Result<()> {
        self.file.read_at(0, BLOCK_SIZE).await.map(drop)
    }
    /// Nothing becomes durable any more, whatever becomes of what is under way: all who wait are told.
    pub fn give_up(&self, why: &str) {
        self.failed.borrow_mut().get_or_insert_with(|| why.to_owned());
        let under_way = std::mem::take(&mut *self.order.borrow_mut());
        let queued = std::mem::take(&mut *self.queue.borrow_mut());
        self.queued_bytes.set(0);
        let waiters = under_way.into_iter().flat_map(|(_, _, waiters)| waiters);
        for waiter in waiters.chain(queued.into_iter().filter_map(|q| q.done)) {
            let _ = waiter.send(Err(why.to_owned()));
        }
    }

    /// Position and sequence of the next batch, taken together.
    pub fn mark(&self) -> (u64, u64) {
        let at = self.at.borrow();
        (at.head, at.sequence)
    }

    fn pump(self: &Rc<Self>) {
        while self.writing.get() < IN_FLIGHT && !self.queue.borrow().is_empty() {
            // Let more gather while the disk is busy with enough; but never wait with nothing in flight.
            if self.writing.get() > 0
                && self.queue.borrow().len() < 4
                && self.queued_bytes.get() < 64 << 10
                && self.writing.get() + 1 >= IN_FLIGHT
            {
                return;
            }
            if let Some(why) = self.failed.borrow().clone() {
                for q in self.queue.borrow_mut().drain(..) {
                    if let Some(done) = q.done {
                        let _ = done.send(Err(why.clone()));
                    }
                }
                self.queued_bytes.set(0);
                return;
            }
            if !self.write_one() {
                return;
            }
        }
    }

    /// Start the next batch; false when there is no room.
    fn write_one(self: &Rc<Self>) -> bool {
        let (payload, waiters, encoded) = {
            let mut queue = self.queue.borrow_mut();
            let mut bytes = 0;
            let mut count = 0;
            for q in queue.iter().take(MAX_BATCH_RECORDS) {
                let size: usize = q.payload.iter().map(Bytes::len).sum::<usize>() + 256;
                if count > 0 && bytes + size > MAX_BATCH_BYTES {
                    break;
                }
                bytes += size;
                count += 1;
            }
            let refs: Vec<&Record> = queue.iter().take(count).map(|q| &q.record).collect();
            let encoded = postcard::to_allocvec(&refs).expect("records always encode");
            let head_len = (BATCH_HEAD + encoded.len()).next_multiple_of(BLOCK_SIZE);
            let payload_len: usize = queue.iter().take(count).flat_map(|q| &q.payload).map(Bytes::len).sum();
            let need = (head_len + payload_len) as u64;
            let (_, left) = self.place();
            let wrap = if left < need { left } else { 0 };
            {
                let at = self.at.borrow();
                // One batch of room is kept free, so that a checkpoint can always write its tails.
                let reserve = if matches!(queue[0].record, Record::Tails { .. }) {
                    0
                } else {
                    2 * MAX_BATCH_BYTES as u64
                };
                if at.head + wrap + need + reserve > at.tail + self.area {
                    return false;
                }
            }
            let taken: Vec<Queued> = queue.drain(..count).collect();
            self.queued_bytes.set(self.queued_bytes.get() - payload_len);
            let mut payload = Vec::new();
            let mut waiters = Vec::new();
            for q in taken {
                payload.extend(q.payload);
                waiters.extend(q.done);
            }
            if wrap > 0 {
                self.write_wrap(wrap);
            }
            (payload, waiters, encoded)
        };
        self.write_batch(&encoded, payload, waiters, 0);
        true
    }

    /// Physical offset of the head and room before the end of the ring.
    fn place(&self) -> (u64, u64) {
        let at = self.at.borrow();
        let offset = (at.head - START) % self.area;
        (START + offset, self.area - offset)
    }

    fn write_wrap(self: &Rc<Self>, left: u64) {
        self.write_batch(&[], Vec::new(), Vec::new(), left);
    }

    fn write_batch(
        self: &Rc<Self>,
        encoded: &[u8],
        payload: Vec<Bytes>,
        waiters: Vec<oneshot::Sender<Result<(), String>>>,
        wrap: u64,
    ) {
        let (phys, _) = self.place();
        let head_len = (BATCH_HEAD + encoded.len()).next_multiple_of(BLOCK_SIZE);
        let payload_len: usize = payload.iter().map(Bytes::len).sum();
        let sequence = {
            let mut at = self.at.borrow_mut();
            let s = at.sequence;
            at.sequence += 1;
            at.head += if wrap > 0 { wrap } else { (head_len + payload_len) as u64 };
            s
        };
        let mut head = AlignedBuf::zeroed(head_len);
        head[0..8].copy_from_slice(&BATCH.to_le_bytes());
        head[8..16].copy_from_slice(&sequence.to_le_bytes());
        head[16..20].copy_from_slice(&(encoded.len() as u32).to_le_bytes());
        head[20..24].copy_from_slice(&(payload_len as u32).to_le_bytes());
        head[24..32].copy_from_slice(&wrap.to_le_bytes());
        head[36..40].copy_from_slice(&self.run.to_le_bytes());
        head[BATCH_HEAD..BATCH_HEAD + encoded.len()].copy_from_slice(encoded);
        let crc = crc32c(&head);
        head[32..36].copy_from_slice(&crc.to_le_bytes());
        let mut parts = vec![head.freeze()];
        parts.extend(payload.into_iter().map(aligned));
        self.order.borrow_mut().push_back((sequence, None, waiters));
        self.writing.set(self.writing.get() + 1);
        self.batches.set(self.batches.get() + 1);
        self.bytes.set(self.bytes.get() + (head_len + payload_len) as u64);
        let this = self.clone();
        let began = Instant::now();
        let write = self.file.write_at(phys, parts, true);
        tokio::task::spawn_local(async move {
            let result = write.await.map_err(|e| e.to_string());
            this.stats.finished((head_len + payload_len) as u64, began.elapsed(), result.is_ok());
            this.finished(sequence, result);
        });
    }

    /// A batch is written; tell its waiters once everything before it is, too.
    fn finished(self: &Rc<Self>, sequence: u64, result: Result<(), String>) {
        self.writing.set(self.writing.get() - 1);
        if let Err(why) = &result {
            self.failed.borrow_mut().get_or_insert_with(|| why.clone());
        }
        {
            let mut order = self.order.borrow_mut();
            if let Some(entry) = order.iter_mut().find(|(s, ..)| *s == sequence) {
                entry.1 = Some(result);
            }
            while let Some((_, Some(_), _)) = order.front() {
                let Some((_, Some(result), waiters)) = order.pop_front() else { break };
                // After a failed batch nothing behind it counts: replay would stop there.
                let result = match self.failed.borrow().clone() {
                    Some(why) if result.is_err() => Err(why),
                    _ => result,
                };
                for w in waiters {
                    let _ = w.send(result.clone());
                }
                if let Err(why) = result {
                    for (_, _, waiters) in order.drain(..) {
                        for w in waiters {
                            let _ = w.send(Err(why.clone()));
                        }
                    }
                    break;
                }
            }
        }
        self.pump();
    }
}

/// Bytes of the ring in a file of so many.
fn area_of(len: u64) -> u64 {
    len.saturating_sub(START) / BLOCK_SIZE as u64 * BLOCK_SIZE as u64
}

async fn write_super(file: &dyn File, counter: u64, tail: u64, sequence: u64, area: u64) -> io::Result<()> {
    let mut block = AlignedBuf::zeroed(BLOCK_SIZE);
    block[0..8].copy_from_slice(&SUPER.to_le_bytes());
    block[8..16].copy_from_slice(&counter.to_le_bytes());
    block[16..24].copy_from_slice(&tail.to_le_bytes());
    block[24..32].copy_from_slice(&sequence.to_le_bytes());
    let crc = crc32c(&block[..32]);
    block[32..36].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c(&area.to_le_bytes());
    block[36..40].copy_from_slice(&crc.to_le_bytes());
    block[40..48].copy_from_slice(&area.to_le_bytes());
    file.write_at((counter % 2) * BLOCK_SIZE as u64, vec![block.freeze()], true).await
}

/// Counter, beginning of replay, its sequence, and the length of the ring (0 in a journal made before that was written down).
async fn read_super(file: &dyn File) -> io::Result<Option<(u64, u64, u64, u64)>> {
    let both = file.read_at(0, 2 * BLOCK_SIZE).await?;
    let u64_at = |b: &[u8], i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("8 bytes"));
    let crc_at = |b: &[u8], i: usize| u32::from_le_bytes(b[i..i + 4].try_into().expect("4 bytes"));
    let best = both
        .chunks_exact(BLOCK_SIZE)
        .filter(|b| {
            let area = b[36..48] == [0; 12] || crc32c(&b[40..48]) == crc_at(b, 36);
            u64_at(b, 0) == SUPER && crc32c(&b[..32]) == crc_at(b, 32) && area
        })
        .map(|b| (u64_at(b, 8), u64_at(b, 16), u64_at(b, 24), u64_at(b, 40)))
        .max();
    Ok(best)
}

/// Does the journal go on behind a batch that cannot be read? No more than `IN_FLIGHT` batches are written at a time, so if one that far behind is whole, the
/// unreadable one was acknowledged.
async fn went_on(file: &dyn File, area: u64, from: u64, sequence: u64, run: u32) -> io::Result<bool> {
    let reach = (2 * (IN_FLIGHT + 1) * MAX_BATCH_BYTES) as u64;
    let mut at = from;
    while at < from + reach.min(area) {
        let len = (area - (at - START) % area).min(SCAN);
        let chunk = file.read_at(START + (at - START) % area, len as usize).await?;
        for (i, block) in chunk.chunks_exact(BLOCK_SIZE).enumerate() {
            let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("8 bytes"));
            let far = sequence + IN_FLIGHT as u64;
            if word(0) == BATCH && (far..far + reach / BLOCK_SIZE as u64).contains(&word(8)) {
                let found = read_batch(file, area, at + (i * BLOCK_SIZE) as u64, word(8)).await?;
                if found.is_some_and(|(_, _, of_run)| of_run >= run) {
                    return Ok(true);
                }
            }
        }
        at += len;
    }
    Ok(false)
}

/// One batch: its records with payload, its length, and its run. `None`: the end.
async fn read_batch(
    file: &dyn File,
    area: u64,
    logical: u64,
    sequence: u64,
) -> io::Result<Option<(Vec<(Record, Bytes)>, u64, u32)>> {
    let offset = (logical - START) % area;
    let left = area - offset;
    let phys = START + offset;
    let first = file.read_at(phys, BLOCK_SIZE).await?;
    let u32_at = |b: &[u8], i: usize| u32::from_le_bytes(b[i..i + 4].try_into().expect("4 bytes")) as usize;
    let u64_at = |b: &[u8], i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("8 bytes"));
    if u64_at(&first, 0) != BATCH || u64_at(&first, 8) != sequence {
        return Ok(None);
    }
    let (records_len, payload_len, wrap) = (u32_at(&first, 16), u32_at(&first, 20), u64_at(&first, 24));
    let head_len = (BATCH_HEAD + records_len).next_multiple_of(BLOCK_SIZE);
    if records_len > 2 * MAX_BATCH_BYTES
        || payload_len > 2 * MAX_BATCH_BYTES
        || (head_len + payload_len) as u64 > left
        || !payload_len.is_multiple_of(BLOCK_SIZE)
        || !(wrap == 0 || wrap == left)
    {
        return Ok(None);
    }
    let mut head = if head_len > BLOCK_SIZE { file.read_at(phys, head_len).await? } else { first };
    let crc = u32_at(&head, 32) as u32;
    head[32..36].fill(0);
    if crc32c(&head) != crc {
        return Ok(None);
    }
    let run = u32_at(&head, 36) as u32;
    if wrap > 0 {
        return Ok(Some((Vec::new(), wrap, run)));
    }
    let Ok(records) = postcard::from_bytes::<Vec<Record>>(&head[BATCH_HEAD..BATCH_HEAD + records_len]) else {
        return Ok(None);
    };
    let payload = if payload_len == 0 {
        Bytes::new()
    } else {
        file.read_at(phys + head_len as u64, payload_len).await?.freeze()
    };
    let mut at = 0;
    let mut out = Vec::with_capacity(records.len());
    if !records.iter().all(Record::makes_sense) {
        return Err(damaged("contents"));
    }
    for r in records {
        let len = r.payload_blocks() << BLOCK_SHIFT;
        if at + len > payload.len() {
            return Ok(None);
        }
        let data = payload.slice(at..at + len);
        at += len;
        if let Record::Write { crcs, .. } | Record::Fill { crcs, .. } = &r {
            // A torn batch shows in its payload as well as in its header.
            if data.chunks_exact(BLOCK_SIZE).zip(crcs).any(|(block, crc)| crc32c(block) != *crc) {
                return Ok(None);
            }
        }
        out.push((r, data));
    }
    Ok(Some((out, (head_len + payload_len) as u64, run)))
}
