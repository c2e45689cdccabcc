//! The raft log and vote on redb.
//!
//! One writer thread owns all write transactions. It takes what is queued, puts it into one transaction, makes that durable, and only then
//! reports; so several appends share one flush, and vote and log keep their order. Entries not yet durable are readable from `Tail`, which
//! every reader shares. Committed positions ride along with the next durable transaction: losing the last of them only means that a
//! restarted node waits for its leader to say them again.
//!
//! Holds: the log has no hole; what was reported flushed survives a crash; `Tail` never holds an entry that was truncated.
//! The thread ends when the last handle is dropped.

use super::raft_types::{LogEntry, LogId, TypeConfig, Vote};
use crate::watchdog::Beat;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use tokio::sync::oneshot;

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// What to do when it cannot be read.
const DAMAGED: &str =
    "restore it; or, if it is lost, empty the directory so that the node joins as a new one";
/// Version of what the tables hold.
const FORMAT: u32 = 1;
/// Durable entries kept in memory for followers that are only a little behind.
const TAIL_KEEP: usize = 128;
/// Most bytes of entries that one replication round reads.
const READ_LIMIT: usize = 4 << 20;
/// Most operations that share one flush.
const GROUP: usize = 256;

/// The log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// redb says no.
    #[error("control log {path}: {what}")]
    Open {
        /// File.
        path: String,
        /// Reason.
        what: String,
    },
    /// Written by another version.
    #[error("control log has format {found}, this sheep reads {FORMAT}: run the version that wrote it")]
    Format {
        /// In the file.
        found: u32,
    },
}

enum Op {
    Append(Vec<(u64, Vec<u8>)>, IOFlushed<TypeConfig>),
    Vote(Vec<u8>, oneshot::Sender<io::Result<()>>),
    Truncate(u64, oneshot::Sender<io::Result<()>>),
    Purge(u64, Vec<u8>, oneshot::Sender<io::Result<()>>),
    Committed(Vec<u8>),
    Sync(oneshot::Sender<io::Result<()>>),
    Close(oneshot::Sender<()>),
}

#[derive(Default)]
struct Tail {
    /// Entries that may not be in the database yet, and some that are.
    entries: BTreeMap<u64, LogEntry>,
    /// Everything up to here is in the database.
    durable: u64,
    last: Option<LogId>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
}

struct Inner {
    /// `None` once closed.
    db: Mutex<Option<Arc<Database>>>,
    tail: Mutex<Tail>,
    ops: mpsc::SyncSender<Op>,
    /// At the beginning and at the end of each transaction.
    steps: Beat,
}

/// Handle on the log; clones share it.
#[derive(Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

fn other(e: impl std::fmt::Display) -> io::Error {
    io::Error::other(e.to_string())
}
fn encode<T: Serialize>(v: &T) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(v).map_err(other)
}
fn decode<T: DeserializeOwned>(b: &[u8]) -> io::Result<T> {
    postcard::from_bytes(b).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
}

impl LogStore {
    /// Open or create the log file.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let err = |what: String| LogError::Open { path: path.display().to_string(), what };
        let open = || {
            let db = redb::Builder::new().set_cache_size(4 << 20).create(path);
            let mut db = db.map_err(|e| match e {
                redb::DatabaseError::DatabaseAlreadyOpen => {
                    err(format!("{e} (is another sheep running in this directory?)"))
                }
                e => err(format!("{e}: {DAMAGED}")),
            })?;
            // The file is small. After a clean end redb trusts its pages, and panics over one that was damaged since.
            db.check_integrity().map_err(|e| err(format!("{e}: {DAMAGED}")))?;
            Self::start(db, &|what| err(format!("{what}: {DAMAGED}")))
        };
        // Over some damage it panics while it checks. Nothing of it is left then.
        crate::observe::panics::caught(open)
            .unwrap_or_else(|_| Err(err(format!("its contents make no sense: {DAMAGED}"))))
    }
    /// On memory, for tests and simulation.
    pub fn in_memory() -> Result<Self, LogError> {
        let err = |what: String| LogError::Open { path: "memory".into(), what };
        let db = redb::Builder::new()
            .create_with_backend(redb::backends::InMemoryBackend::new())
            .map_err(|e| err(e.to_string()))?;
        Self::start(db, &err)
    }
    fn start(db: Database, err: &dyn Fn(String) -> LogError) -> Result<Self, LogError> {
        let db = Arc::new(db);
        let tail = load(&db).map_err(|e| err(e.to_string()))?;
        let found = check_format(&db).map_err(|e| err(e.to_string()))?;
        if found != FORMAT {
            return Err(LogError::Format { found });
        }
        let (ops, rx) = mpsc::sync_channel(1024);
        let steps = Beat::default();
        let inner =
            Inner { db: Mutex::new(Some(db.clone())), tail: Mutex::new(tail), ops, steps: steps.clone() };
        let inner = Arc::new(inner);
        let weak = Arc::downgrade(&inner);
        std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || Writer { db, rx, inner: weak, steps }.run())
            .map_err(|e| err(e.to_string()))?;
        Ok(Self { inner })
    }
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.inner.tail.lock().expect("no panic under this lock")
    }
    fn send(&self, op: Op) -> io::Result<()> {
        self.inner.ops.send(op).map_err(|_| other("the control log's writer has stopped"))
    }
    async fn done(rx: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
        rx.await.map_err(|_| other("the control log's writer has stopped"))?
    }
    /// Number of the transaction that is being made durable, if one is.
    pub fn writing(&self) -> Option<u64> {
        let steps = self.inner.steps.count();
        (steps % 2 == 1).then_some(steps)
    }
    /// Everything queued, committed position included, is durable when this returns.
    pub async fn sync(&self) -> io::Result<()> {
        let (tx, rx) = oneshot::channel();
        self.send(Op::Sync(tx))?;
        Self::done(rx).await
    }
    /// Let go of the file, whoever still holds a handle: afterwards every call fails, and the file may be opened again.
    pub async fn close(&self) {
        let (tx, rx) = oneshot::channel();
        self.inner.db.lock().expect("no panic under this lock").take();
        if self.send(Op::Close(tx)).is_ok() {
            // An error means that the writer is gone, and the file with it.
            let _ = rx.await;
        }
    }
    /// True when nothing was ever stored.
    pub fn is_empty(&self) -> bool {
        let t = self.tail();
        t.last.is_none() && t.vote.is_none()
    }
    /// Entries of `range` that are there, oldest first, at most about `limit` bytes but at least one.
    pub fn read(&self, range: impl RangeBounds<u64>, limit: usize) -> io::Result<Vec<LogEntry>> {
        let start = match range.start_bound() {
            Bound::Included(&n) => n,
            Bound::Excluded(&n) => n.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&n) => n.saturating_add(1),
            Bound::Excluded(&n) => n,
            Bound::Unbounded => u64::MAX,
        };
        // First what memory has, so that nothing is lost when the writer trims the tail in between.
        let recent: Vec<LogEntry> = match start < end {
            true => self.tail().entries.range(start..end).map(|(_, e)| e.clone()).collect(),
            false => Vec::new(),
        };
        let from_db_end = recent.first().map_or(end, |e| e.log_id.index);
        let mut out = Vec::new();
        let mut bytes = 0;
        if start < from_db_end {
            let db = self.inner.db.lock().expect("no panic under this lock").clone();
            let tx = db.ok_or_else(|| other("the control log is closed"))?.begin_read().map_err(other)?;
            let table = tx.open_table(LOG).map_err(other)?;
            for row in table.range(start..from_db_end).map_err(other)? {
                let (_, v) = row.map_err(other)?;
                bytes += v.value().len();
                if bytes > limit && !out.is_empty() {
                    return Ok(out);
                }
                out.push(decode(v.value())?);
            }
        }
        out.extend(recent);
        Ok(out)
    }
}

fn load(db: &Database) -> io::Result<Tail> {
    let tx = db.begin_write().map_err(other)?;
    tx.open_table(LOG).map_err(other)?;
    {
        let mut meta = tx.open_table(META).map_err(other)?;
        if meta.get("format").map_err(other)?.is_none() {
            meta.insert("format", FORMAT.to_le_bytes().as_slice()).map_err(other)?;
        }
    }
    tx.commit().map_err(other)?;
    let tx = db.begin_read().map_err(other)?;
    let meta = tx.open_table(META).map_err(other)?;
    let purged: Option<LogId> = get(&meta, "purged")?;
    let log = tx.open_table(LOG).map_err(other)?;
    let last = match log.last().map_err(other)? {
        Some((_, v)) => Some(decode::<LogEntry>(v.value())?.log_id),
        None => purged,
    };
    Ok(Tail {
        entries: BTreeMap::new(),
        durable: last.map_or(0, |l| l.index),
        last,
        purged,
        vote: get(&meta, "vote")?,
        committed: get(&meta, "committed")?,
    })
}

fn get<T: DeserializeOwned>(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> io::Result<Option<T>> {
    match meta.get(key).map_err(other)? {
        Some(v) => decode(v.value()).map(Some),
        None => Ok(None),
    }
}

fn check_format(db: &Database) -> io::Result<u32> {
    let tx = db.begin_read().map_err(other)?;
    let meta = tx.open_table(META).map_err(other)?;
    let v = meta.get("format").map_err(other)?;
    let bytes = v.as_ref().and_then(|v| <[u8; 4]>::try_from(v.value()).ok());
    Ok(bytes.map_or(0, u32::from_le_bytes))
}

struct Writer {
    db: Arc<Database>,
    rx: mpsc::Receiver<Op>,
    inner: std::sync::Weak<Inner>,
    steps: Beat,
}

impl Writer {
    fn run(self) {
        let mut batch = VecDeque::new();
        // A failed transaction poisons the log: raft is told and stops; nothing later may be reported durable.
        let mut failed: Option<String> = None;
        let mut closed = None;
        while closed.is_none() {
            let Ok(first) = self.rx.recv() else { return };
            let mut next = Some(first);
            while let Some(op) = next.take() {
                match op {
                    Op::Close(tx) => closed = Some(tx),
                    op => batch.push_back(op),
                }
                if closed.is_none() && batch.len() < GROUP {
                    next = self.rx.try_recv().ok();
                }
            }
            let result = match &failed {
                Some(what) => Err(what.clone()),
                None => {
                    self.steps.beat();
                    let result = self.commit(&batch).map_err(|e| e.to_string());
                    self.steps.beat();
                    result
                }
            };
            if let Err(what) = &result {
                if failed.is_none() {
                    tracing::error!(error = %what, "the control log cannot be written: this sheep stops taking part");
                }
                failed = Some(what.clone());
            }
            self.report(&mut batch, &result);
        }
        drop(self);
        if let Some(tx) = closed {
            let _ = tx.send(());
        }
    }
    fn commit(&self, batch: &VecDeque<Op>) -> io::Result<()> {
        let mut tx = self.db.begin_write().map_err(other)?;
        let lazy = batch.iter().all(|op| matches!(op, Op::Committed(_)));
        if lazy {
            tx.set_durability(redb::Durability::None).map_err(other)?;
        }
        {
            let mut log = tx.open_table(LOG).map_err(other)?;
            let mut meta = tx.open_table(META).map_err(other)?;
            for op in batch {
                match op {
                    Op::Append(entries, _) => {
                        for (index, bytes) in entries {
                            log.insert(*index, bytes.as_slice()).map_err(other)?;
                        }
                    }
                    Op::Vote(v, _) => {
                        meta.insert("vote", v.as_slice()).map_err(other)?;
                    }
                    Op::Truncate(from, _) => log.retain_in(*from.., |_, _| false).map_err(other)?,
                    Op::Purge(upto, id, _) => {
                        meta.insert("purged", id.as_slice()).map_err(other)?;
                        log.retain_in(..=*upto, |_, _| false).map_err(other)?;
                    }
                    Op::Committed(c) => {
                        meta.insert("committed", c.as_slice()).map_err(other)?;
                    }
                    Op::Sync(_) | Op::Close(_) => {}
                }
            }
        }
        tx.commit().map_err(other)
    }
    fn report(&self, batch: &mut VecDeque<Op>, result: &Result<(), String>) {
        let io = || result.clone().map_err(other);
        for op in batch.drain(..) {
            match op {
                Op::Append(entries, flushed) => {
                    if let (Ok(()), Some((last, _)), Some(inner)) =
                        (result, entries.last(), self.inner.upgrade())
                    {
                        trim(&mut inner.tail.lock().expect("no panic under this lock"), *last);
                    }
                    flushed.io_completed(io());
                }
                // The asker may be gone: then nobody waits for the answer.
                Op::Vote(_, tx) | Op::Truncate(_, tx) | Op::Purge(_, _, tx) | Op::Sync(tx) => {
                    let _ = tx.send(io());
                }
                Op::Committed(_) | Op::Close(_) => {}
            }
        }
    }
}

/// Forget entries that are durable, but for the latest few.
fn trim(tail: &mut Tail, durable: u64) {
    tail.durable = tail.durable.max(durable);
    while tail.entries.len() > TAIL_KEEP {
        match tail.entries.first_key_value() {
            Some((&index, _)) if index <= tail.durable => tail.entries.remove(&index),
            _ => break,
        };
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<LogEntry>> {
        self.read(range, usize::MAX)
    }
    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.tail().vote)
    }
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<LogEntry>> {
        self.read(start..end, READ_LIMIT)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let t = self.tail();
        Ok(LogState { last_purged_log_id: t.purged, last_log_id: t.last })
    }
    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }
    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (tx, rx) = oneshot::channel();
        self.send(Op::Vote(encode(vote)?, tx))?;
        Self::done(rx).await?;
        self.tail().vote = Some(*vote);
        Ok(())
    }
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(c) = committed {
            self.tail().committed = Some(c);
            self.send(Op::Committed(encode(&c)?))?;
        }
        Ok(())
    }
    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.tail().committed)
    }
    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut rows = Vec::new();
        {
            let mut t = self.tail();
            for e in entries {
                rows.push((e.log_id.index, encode(&e)?));
                t.last = Some(e.log_id);
                t.entries.insert(e.log_id.index, e);
            }
        }
        self.send(Op::Append(rows, callback))
    }
    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |l| l.index + 1);
        {
            let mut t = self.tail();
            t.entries.split_off(&from);
            t.durable = t.durable.min(from.saturating_sub(1));
            // Nothing to cut when the log ends before it.
            if t.last.is_some_and(|l| l.index >= from) {
                t.last = last;
            }
        }
        let (tx, rx) = oneshot::channel();
        self.send(Op::Truncate(from, tx))?;
        Self::done(rx).await
    }
    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        {
            let mut t = self.tail();
            t.purged = Some(upto);
            t.entries = t.entries.split_off(&(upto.index + 1));
            if t.last.is_none_or(|l| l.index < upto.index) {
                t.last = Some(upto);
            }
        }
        let (tx, rx) = oneshot::channel();
        self.send(Op::Purge(upto.index, encode(&upto)?, tx))?;
        Self::done(rx).await
    }
}
