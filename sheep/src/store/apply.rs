//! Writing overlays to object files, and letting the journal go.
//!
//! A checkpoint: note the journal's position; write every changed object (data, then metadata to the older slot, then sync); unlink removed ones; log the tails;
//! move the journal's beginning to the noted position. What changes meanwhile is in the journal behind that position.

use super::disk::{Disk, Fresh, Obj};
use super::index::{Change, Known};
use super::object::{data_offset, slot_len};
use super::types::{DiskState, StoreError};
use crate::buf::AlignedBuf;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use sheepdog_proto::{BLOCK_SHIFT, ObjectId};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Objects written at a time.
const OBJECTS: usize = 8;
/// Data writes of one object in flight.
const WRITES: usize = 16;
/// Overlay bytes that start a checkpoint at once.
pub(super) const FRESH_BYTES: usize = 24 << 20;
/// Overlay bytes at which writers wait.
pub(super) const FRESH_LIMIT: usize = 96 << 20;
/// Share of the journal that starts a checkpoint at once.
const PRESSURE: f64 = 0.35;
/// A quiet disk is brought up to date after this.
const IDLE: Duration = Duration::from_millis(1000);
/// How often an idle disk is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Parts of one vectored write.
const PARTS: usize = 256;

/// The applier of one disk. Ends when the disk is dropped or fails.
pub(super) async fn run(disk: Weak<Disk>) {
    loop {
        let Some(d) = disk.upgrade() else { return };
        if matches!(*d.state.borrow(), DiskState::Failed(_)) {
            return;
        }
        if d.dirty.borrow().is_empty() && d.unlink.borrow().is_empty() {
            // Without the disk: nobody waits for something to do on one that is not used any more.
            let work = d.work.clone();
            drop(d);
            work.notified().await;
            continue;
        }
        if d.fresh_bytes.get() < FRESH_BYTES && d.journal.pressure() < PRESSURE {
            // Let changes gather, but look often enough not to be late.
            let deadline = tokio::time::Instant::now() + IDLE;
            while tokio::time::Instant::now() < deadline
                && d.fresh_bytes.get() < FRESH_BYTES
                && d.journal.pressure() < PRESSURE
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        if checkpoint(&d).await.is_err() {
            return;
        }
        d.applied.notify_waiters();
        d.trim_cache();
    }
}

/// Bring the files up to date with everything journaled so far.
pub(super) async fn checkpoint(d: &Rc<Disk>) -> Result<(), StoreError> {
    d.check()?;
    let _turn = d.turn.lock().await;
    let (began, bytes) = (tokio::time::Instant::now(), d.fresh_bytes.get());
    let result = write_all(d).await;
    d.ops.checkpoint.finished(bytes as u64, began.elapsed(), result.is_ok());
    result
}

async fn write_all(d: &Rc<Disk>) -> Result<(), StoreError> {
    // Together, without awaiting in between: whatever comes later is at or behind the mark.
    let (position, sequence) = d.journal.mark();
    let dirty: BTreeSet<ObjectId> = std::mem::take(&mut *d.dirty.borrow_mut());
    let unlink: BTreeSet<ObjectId> = std::mem::take(&mut *d.unlink.borrow_mut());
    let objects: Vec<Rc<Obj>> = dirty.iter().filter_map(|o| d.object(*o)).collect();
    for o in &objects {
        o.since.set(None);
        o.applying.set(true);
    }
    // Nothing may reach a file before its record is durable: after a crash a file must not be ahead of the journal.
    wait(d, d.journal.barrier()).await?;
    let (mut dirs, mut gone) = (BTreeSet::new(), Vec::new());
    for oid in unlink {
        // Made again since the mark it has no file yet: what is there is of before, and the journal will not tell any more that it was removed.
        if d.object(oid).is_none_or(|o| o.slot.get() == 0 && o.file.borrow().is_none()) {
            let (dir, path) = d.object_path(oid);
            d.fs.unlink(&path).map_err(|e| d.fail(e.to_string()))?;
            dirs.insert(dir);
            gone.push(oid);
        }
    }
    let mut rows: Vec<Change> = Vec::new();
    let mut todo = objects.iter();
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < OBJECTS {
            let Some(o) = todo.next() else { break };
            if o.slot.get() == 0 {
                dirs.insert(d.object_path(o.oid).0);
            }
            running.push(object(d, o));
        }
        match running.next().await {
            None => break,
            Some(r) => rows.extend(r?.map(|row| (row.summary.oid, Some(row)))),
        }
    }
    rows.extend(gone.into_iter().map(|oid| (oid, None)));
    for dir in dirs {
        match d.fs.sync_dir(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(d.fail(e.to_string())),
            _ => {}
        }
    }
    if !rows.is_empty() {
        d.note(rows).await?;
    }
    let tails = d.saved_tails();
    wait(d, d.journal.append(tails, Vec::new())).await?;
    d.journal.advance(position, sequence).await.map_err(|e| d.fail(e.to_string()))?;
    d.measure();
    Ok(())
}

async fn wait(d: &Rc<Disk>, durable: super::disk::Durable) -> Result<(), StoreError> {
    match durable.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => Err(d.fail(why)),
        Err(_) => Err(StoreError::Closed),
    }
}

/// Notice when a disk disappears from under an idle daemon, and when somebody else has made room on it. Ends like `run`.
pub(super) async fn look_after(disk: Weak<Disk>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(d) = disk.upgrade() else { return };
        let _turn = d.looking.lock().await;
        if d.check().is_err() || d.is_there().is_err() {
            return;
        }
        d.measure();
    }
}

/// Write one object's changes to its file; its row for the index.
async fn object(d: &Rc<Disk>, o: &Rc<Obj>) -> Result<Option<Known>, StoreError> {
    let result = write_object(d, o).await;
    o.applying.set(false);
    result
}

async fn write_object(d: &Rc<Disk>, o: &Rc<Obj>) -> Result<Option<Known>, StoreError> {
    if o.removed.get() {
        return Ok(None);
    }
    let (meta, fresh): (_, BTreeMap<u32, Fresh>) = {
        let meta = o.meta.borrow();
        // Without contents of its own only its row has changed.
        let Some(m) = meta.as_ref() else { return Ok(Some(d.known(o))) };
        (m.clone(), o.fresh.borrow().clone())
    };
    let summary = d.summary(o);
    if o.slot.get() == 0 && o.file.borrow().is_none() {
        // A file of this name is of before the object was removed, or of a start whose journal is replayed: all that counts is here.
        d.fs.unlink(&d.object_path(o.oid).1).map_err(|e| d.fail(e.to_string()))?;
    }
    let file = d.open_file(o, true)?;
    let mut writes = FuturesUnordered::new();
    let mut blocks = fresh.iter().peekable();
    let mut failed = None;
    while let Some((first, f)) = blocks.next() {
        // A run of neighbours of one kind.
        let is_data = f.data.is_some();
        let mut parts: Vec<Bytes> = f.data.clone().into_iter().collect();
        let mut end = first + 1;
        while let Some((b, next)) = blocks.peek() {
            if **b != end || next.data.is_some() != is_data || parts.len() >= PARTS {
                break;
            }
            parts.extend(next.data.clone());
            end += 1;
            blocks.next();
        }
        let offset = data_offset(meta.object_size, *first);
        if is_data {
            writes.push(file.write_at(offset, parts, false));
            if writes.len() >= WRITES
                && let Some(Err(e)) = writes.next().await
            {
                failed = Some(e);
                break;
            }
        } else if let Err(e) = file.punch(offset, ((end - first) as u64) << BLOCK_SHIFT) {
            failed = Some(e);
            break;
        }
    }
    while let Some(r) = writes.next().await {
        if let Err(e) = r {
            failed.get_or_insert(e);
        }
    }
    if let Some(e) = failed {
        return Err(d.fail(e.to_string()));
    }
    let mend = o.mend.take();
    if mend {
        // It may have been another file: nothing of that stays.
        for (run, data) in meta.data().runs(0..meta.blocks()) {
            let (offset, len) = (data_offset(meta.object_size, run.start), (run.len() as u64) << BLOCK_SHIFT);
            if !data {
                file.punch(offset, len).map_err(|e| d.fail(e.to_string()))?;
            }
        }
    }
    // One after the other, so that there is a whole one at any time.
    let slots = if mend { 2 } else { 1 };
    for _ in 0..slots {
        let counter = o.slot.get() + 1;
        let len = slot_len(meta.object_size);
        let mut slot = AlignedBuf::new(len);
        meta.encode(counter, &mut slot);
        let at = (counter % 2) * len as u64;
        file.write_at(at, vec![slot.freeze()], false).await.map_err(|e| d.fail(e.to_string()))?;
        file.sync().await.map_err(|e| d.fail(e.to_string()))?;
        o.slot.set(counter);
    }
    let mut now = o.fresh.borrow_mut();
    let mut dropped = 0;
    for (b, f) in fresh {
        if now.get(&b).is_some_and(|n| n.change == f.change) {
            now.remove(&b);
            dropped += usize::from(f.data.is_some());
        }
    }
    if !o.removed.get() {
        d.fresh_bytes.set(d.fresh_bytes.get().saturating_sub(dropped << BLOCK_SHIFT));
    }
    Ok(Some(Known { summary, slot: o.slot.get() }))
}
