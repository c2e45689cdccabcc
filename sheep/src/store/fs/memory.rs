//! A file system in memory for the simulator: it loses what was not synced, and can be told to fail.
//!
//! Every file has two states: what a running process sees and what is on stable storage. `crash` makes the second the first, after letting an arbitrary (seeded)
//! part of the unsynced writes through, torn at 4 KiB. Deterministic: same calls and same seed, same bytes.

use super::{File, Fs, OpenHow, Space};
use crate::buf::AlignedBuf;
use crate::store::index::{Change, Index, Known};
use crate::volume::LocalFut;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sheepdog_proto::{DiskId, ObjectId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

const PAGE: u64 = 4096;

/// Shared by all states of a file in which it is the same: most of a simulation's time would go into copies.
type Page = Rc<[u8; PAGE as usize]>;

#[derive(Default, Clone, PartialEq, Eq)]
struct Contents {
    pages: BTreeMap<u64, Page>,
    len: u64,
}

impl Contents {
    fn read(&self, offset: u64, out: &mut [u8]) {
        out.fill(0);
        let (mut at, end) = (offset, offset + out.len() as u64);
        while at < end {
            let (page, from) = (at / PAGE, at % PAGE);
            let n = (PAGE - from).min(end - at);
            if let Some(p) = self.pages.get(&page) {
                let to = (at - offset) as usize;
                out[to..to + n as usize].copy_from_slice(&p[from as usize..(from + n) as usize]);
            }
            at += n;
        }
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        let (mut at, end) = (offset, offset + data.len() as u64);
        while at < end {
            let (page, from) = (at / PAGE, at % PAGE);
            let n = (PAGE - from).min(end - at);
            let p = self.pages.entry(page).or_insert_with(|| Rc::new([0; PAGE as usize]));
            let src = (at - offset) as usize;
            Rc::make_mut(p)[from as usize..(from + n) as usize].copy_from_slice(&data[src..src + n as usize]);
            at += n;
        }
        self.len = self.len.max(end);
    }
    fn write_page(&mut self, page: u64, data: Option<Page>) {
        match data {
            Some(data) => self.pages.insert(page, data),
            None => self.pages.remove(&page),
        };
        self.len = self.len.max((page + 1) * PAGE);
    }
    fn punch(&mut self, offset: u64, len: u64) {
        for page in offset.div_ceil(PAGE)..(offset + len) / PAGE {
            self.pages.remove(&page);
        }
    }
}

enum Unsynced {
    Write(u64, Bytes),
    /// Whole pages from this one on; `None`: zeros, as a new journal is full of.
    Pages(u64, Vec<Option<Page>>),
    Punch(u64, u64),
    SetLen(u64),
}

#[derive(Default)]
struct MemoryFile {
    now: Contents,
    durable: Contents,
    unsynced: Vec<Unsynced>,
    /// The name survives a crash.
    linked: bool,
}

impl MemoryFile {
    fn settle(&mut self, step: &Unsynced) {
        match step {
            Unsynced::Write(at, data) => self.durable.write(*at, data),
            Unsynced::Pages(first, pages) => {
                for (page, data) in (*first..).zip(pages) {
                    self.durable.write_page(page, data.clone());
                }
            }
            Unsynced::Punch(at, len) => self.durable.punch(*at, *len),
            Unsynced::SetLen(len) => self.durable.len = *len,
        }
    }
    fn sync(&mut self) {
        for step in std::mem::take(&mut self.unsynced) {
            self.settle(&step);
        }
        self.linked = true;
    }
    fn write(&mut self, at: u64, data: Bytes) {
        if !at.is_multiple_of(PAGE) || !(data.len() as u64).is_multiple_of(PAGE) {
            self.now.write(at, &data);
            return self.unsynced.push(Unsynced::Write(at, data));
        }
        let page = |p: &[u8; PAGE as usize]| (*p != [0; PAGE as usize]).then(|| Rc::new(*p));
        let pages: Vec<Option<Page>> = data.as_chunks::<{ PAGE as usize }>().0.iter().map(page).collect();
        for (page, data) in (at / PAGE..).zip(&pages) {
            self.now.write_page(page, data.clone());
        }
        self.unsynced.push(Unsynced::Pages(at / PAGE, pages));
    }
}

/// Rows that a real index would keep; a commit is whole or not at all.
#[derive(Default)]
struct MemoryIndex {
    disk: Cell<DiskId>,
    complete: Cell<bool>,
    rows: RefCell<BTreeMap<ObjectId, Known>>,
}

struct MemoryIndexHandle(Rc<MemoryIndex>);

impl Index for MemoryIndexHandle {
    fn rows(&self) -> LocalFut<'static, io::Result<Option<Vec<Known>>>> {
        let rows = self.0.complete.get().then(|| self.0.rows.borrow().values().copied().collect());
        Box::pin(std::future::ready(Ok(rows)))
    }
    fn commit(&self, changes: Vec<Change>, complete: bool) -> LocalFut<'static, io::Result<()>> {
        let mut rows = self.0.rows.borrow_mut();
        for (oid, row) in changes {
            match row {
                Some(row) => drop(rows.insert(oid, row)),
                None => drop(rows.remove(&oid)),
            }
        }
        self.0.complete.set(self.0.complete.get() || complete);
        Box::pin(std::future::ready(Ok(())))
    }
}

struct State {
    files: RefCell<BTreeMap<PathBuf, Rc<RefCell<MemoryFile>>>>,
    dirs: RefCell<BTreeSet<PathBuf>>,
    indexes: RefCell<BTreeMap<PathBuf, Rc<MemoryIndex>>>,
    total: Cell<u64>,
    latency: Cell<Duration>,
    /// Below this directory everything takes longer.
    slow: RefCell<Option<(PathBuf, Duration)>>,
    /// Nothing below this directory is answered, until there is another one or none.
    stalled: tokio::sync::watch::Sender<Option<PathBuf>>,
    fail_after: Cell<Option<u64>>,
    /// Where names of disks come from: which objects lie together hangs on them.
    ids: RefCell<SmallRng>,
}

/// The file system. Clones share it.
#[derive(Clone)]
pub struct MemoryFs(Rc<State>);

impl Default for MemoryFs {
    fn default() -> Self {
        Self::new(1 << 40)
    }
}

impl MemoryFs {
    /// Empty, of a size in bytes.
    pub fn new(total: u64) -> Self {
        Self(Rc::new(State {
            files: RefCell::default(),
            dirs: RefCell::default(),
            indexes: RefCell::default(),
            total: Cell::new(total),
            latency: Cell::new(Duration::ZERO),
            slow: RefCell::default(),
            stalled: tokio::sync::watch::Sender::new(None),
            fail_after: Cell::new(None),
            ids: RefCell::new(SmallRng::seed_from_u64(0)),
        }))
    }
    /// Disks get other names.
    pub fn seed(&self, seed: u64) {
        *self.0.ids.borrow_mut() = SmallRng::seed_from_u64(seed);
    }
    /// Every data operation takes this long (of the runtime's clock).
    pub fn set_latency(&self, latency: Duration) {
        self.0.latency.set(latency);
    }
    /// Every data operation on files below this directory takes so long, also on those that are open.
    pub fn set_slow(&self, dir: &Path, latency: Duration) {
        *self.0.slow.borrow_mut() = Some((dir.to_owned(), latency));
    }
    /// Data operations on files below this directory are not answered any more; with `None` they are, also those that wait.
    pub fn stall(&self, dir: Option<&Path>) {
        self.0.stalled.send_replace(dir.map(Path::to_owned));
    }
    /// Size in bytes.
    pub fn set_total(&self, total: u64) {
        self.0.total.set(total);
    }
    /// After this many more data operations every one fails with EIO; `None` stops that.
    pub fn fail_after(&self, operations: Option<u64>) {
        self.0.fail_after.set(operations);
    }
    /// Power off and on: unsynced writes are lost, or not, or in part. Open files of before the crash must not be used any more.
    pub fn crash(&self, seed: u64) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut files = self.0.files.borrow_mut();
        let mut gone = Vec::new();
        for (path, file) in files.iter() {
            let mut f = file.borrow_mut();
            if !f.linked && rng.random_bool(0.5) {
                gone.push(path.clone());
                continue;
            }
            for step in std::mem::take(&mut f.unsynced) {
                match step {
                    Unsynced::Write(at, data) => {
                        // Each page of a write reaches the disk or not, on its own.
                        let fate = rng.random_range(0..3);
                        for (i, page) in data.chunks(PAGE as usize).enumerate() {
                            if fate == 1 || (fate == 2 && rng.random_bool(0.5)) {
                                f.durable.write(at + i as u64 * PAGE, page);
                            }
                        }
                    }
                    Unsynced::Pages(first, pages) => {
                        let fate = rng.random_range(0..3);
                        for (page, data) in (first..).zip(pages) {
                            if fate == 1 || (fate == 2 && rng.random_bool(0.5)) {
                                f.durable.write_page(page, data);
                            }
                        }
                    }
                    other if rng.random_bool(0.5) => f.settle(&other),
                    _ => {}
                }
            }
            f.now = f.durable.clone();
            f.linked = true;
        }
        for path in gone {
            files.remove(&path);
        }
        // Handles from before the crash must not reach the files of after it.
        for index in self.0.indexes.borrow_mut().values_mut() {
            *index = Rc::new(MemoryIndex {
                disk: index.disk.clone(),
                complete: index.complete.clone(),
                rows: index.rows.clone(),
            });
        }
        for file in files.values_mut() {
            let old = file.borrow();
            let new = MemoryFile {
                now: old.now.clone(),
                durable: old.durable.clone(),
                unsynced: Vec::new(),
                linked: true,
            };
            drop(old);
            *file = Rc::new(RefCell::new(new));
        }
    }
    /// Forget everything: what is left behind of a finished simulation shall not take memory.
    pub fn wipe(&self) {
        self.0.files.borrow_mut().clear();
        self.0.indexes.borrow_mut().clear();
    }
    /// Flip one bit of a file, also of its durable state. False when there is nothing.
    pub fn flip(&self, path: &Path, offset: u64, bit: u8) -> bool {
        let Some(file) = self.0.files.borrow().get(path).cloned() else { return false };
        let mut f = file.borrow_mut();
        let mut byte = [0];
        f.now.read(offset, &mut byte);
        byte[0] ^= 1 << (bit % 8);
        f.now.write(offset, &byte);
        f.durable.write(offset, &byte);
        true
    }
    /// Make an index wrong about one of its objects, chosen by a number. False when it knows none.
    pub fn damage_index(&self, path: &Path, salt: u64) -> bool {
        let Some(index) = self.0.indexes.borrow().get(path).cloned() else { return false };
        let mut rows = index.rows.borrow_mut();
        let nth = (salt / 4) as usize % rows.len().max(1);
        let Some(oid) = rows.keys().nth(nth).copied() else { return false };
        let Some(mut row) = rows.remove(&oid) else { return false };
        match salt % 4 {
            0 => return true,
            1 => row.slot += 1,
            2 => row.summary.version.seq += 1,
            _ => row.summary.data_blocks ^= 1,
        }
        rows.insert(oid, row);
        true
    }
    /// Two files change their contents, also on stable storage. False when there are not both.
    pub fn swap(&self, a: &Path, b: &Path) -> bool {
        let files = self.0.files.borrow();
        let (Some(a), Some(b)) = (files.get(a), files.get(b)) else { return false };
        if Rc::ptr_eq(a, b) {
            return false;
        }
        let (mut a, mut b) = (a.borrow_mut(), b.borrow_mut());
        std::mem::swap(&mut a.now, &mut b.now);
        std::mem::swap(&mut a.durable, &mut b.durable);
        true
    }
    /// A copy of a file, which `restore` brings back; `None`: there is no such file.
    pub fn keep(&self, path: &Path) -> Option<Kept> {
        self.0.files.borrow().get(path).map(|f| Kept(f.borrow().now.clone()))
    }
    /// Somewhere in a file that is not a hole; `None`: it is one.
    pub fn somewhere(&self, path: &Path, salt: u64) -> Option<u64> {
        let file = self.0.files.borrow().get(path).cloned()?;
        let file = file.borrow();
        let pages = file.now.pages.len() as u64;
        let page = file.now.pages.keys().nth((salt % pages.max(1)) as usize)?;
        Some(page * PAGE + (salt >> 32) % PAGE)
    }
    /// A file is what it was.
    pub fn restore(&self, path: &Path, kept: Kept) {
        let mut files = self.0.files.borrow_mut();
        let mut f = files.entry(path.to_owned()).or_default().borrow_mut();
        (f.now, f.durable, f.linked) = (kept.0.clone(), kept.0, true);
    }
    /// Paths of all files.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.0.files.borrow().keys().cloned().collect()
    }
    fn used(&self) -> u64 {
        self.0.files.borrow().values().map(|f| f.borrow().now.pages.len() as u64 * PAGE).sum()
    }
}

/// See `MemoryFs::keep`.
#[derive(Clone, PartialEq, Eq)]
pub struct Kept(Contents);

struct Handle {
    state: Rc<State>,
    path: PathBuf,
    file: Rc<RefCell<MemoryFile>>,
}

impl Handle {
    fn gate(&self) -> io::Result<Gate> {
        if let Some(left) = self.state.fail_after.get() {
            if left == 0 {
                return Err(io::Error::from_raw_os_error(5));
            }
            self.state.fail_after.set(Some(left - 1));
        }
        let slow = self.state.slow.borrow();
        let slow = slow.as_ref().filter(|(dir, _)| self.path.starts_with(dir)).map(|(_, latency)| *latency);
        let latency = slow.unwrap_or(self.state.latency.get());
        Ok(Gate { latency, stalled: self.state.stalled.subscribe(), path: self.path.clone() })
    }
}

/// What holds an operation up.
struct Gate {
    latency: Duration,
    stalled: tokio::sync::watch::Receiver<Option<PathBuf>>,
    path: PathBuf,
}

impl Gate {
    async fn pass(mut self) {
        if !self.latency.is_zero() {
            tokio::time::sleep(self.latency).await;
        }
        // The sender is gone when the simulation is.
        let _ = self.stalled.wait_for(|dir| dir.as_ref().is_none_or(|dir| !self.path.starts_with(dir))).await;
    }
}

impl File for Handle {
    fn read_at(&self, offset: u64, len: usize) -> LocalFut<'static, io::Result<AlignedBuf>> {
        let (gate, file) = (self.gate(), self.file.clone());
        Box::pin(async move {
            gate?.pass().await;
            let mut buf = AlignedBuf::new(len);
            file.borrow().now.read(offset, &mut buf);
            Ok(buf)
        })
    }
    fn write_at(&self, offset: u64, parts: Vec<Bytes>, durable: bool) -> LocalFut<'static, io::Result<()>> {
        let (gate, file) = (self.gate(), self.file.clone());
        if gate.is_ok() {
            // The kernel has it from now on, whether anybody waits or not.
            let mut f = file.borrow_mut();
            let mut at = offset;
            for p in parts {
                let len = p.len() as u64;
                f.write(at, p);
                at += len;
            }
        }
        Box::pin(async move {
            gate?.pass().await;
            if durable {
                file.borrow_mut().sync();
            }
            Ok(())
        })
    }
    fn sync(&self) -> LocalFut<'static, io::Result<()>> {
        let (gate, file) = (self.gate(), self.file.clone());
        Box::pin(async move {
            gate?.pass().await;
            file.borrow_mut().sync();
            Ok(())
        })
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut f = self.file.borrow_mut();
        f.now.punch(offset, len);
        f.unsynced.push(Unsynced::Punch(offset, len));
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.borrow().now.len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut f = self.file.borrow_mut();
        f.now.len = len;
        f.unsynced.push(Unsynced::SetLen(len));
        Ok(())
    }
}

impl Fs for MemoryFs {
    fn engine(&self) -> &'static str {
        "memory"
    }
    fn new_disk(&self) -> DiskId {
        DiskId(self.0.ids.borrow_mut().random())
    }
    fn open(&self, path: &Path, how: OpenHow) -> io::Result<Rc<dyn File>> {
        let mut files = self.0.files.borrow_mut();
        let file = match files.get(path) {
            Some(f) => f.clone(),
            None if how.create => files.entry(path.to_owned()).or_default().clone(),
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Rc::new(Handle { state: self.0.clone(), path: path.to_owned(), file }))
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.0.files.borrow_mut().remove(path);
        self.0.indexes.borrow_mut().remove(path);
        Ok(())
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.0.files.borrow_mut();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }
    fn mkdir(&self, path: &Path) -> io::Result<()> {
        self.0.dirs.borrow_mut().insert(path.to_owned());
        Ok(())
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = BTreeSet::new();
        for p in self.0.files.borrow().keys().chain(self.0.dirs.borrow().iter()) {
            if let Ok(rest) = p.strip_prefix(path)
                && let Some(first) = rest.components().next()
            {
                names.insert(first.as_os_str().to_string_lossy().into_owned());
            }
        }
        Ok(names.into_iter().collect())
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        for (p, f) in self.0.files.borrow().iter() {
            if p.parent() == Some(path) {
                f.borrow_mut().linked = true;
            }
        }
        Ok(())
    }
    fn space(&self, _: &Path) -> io::Result<Space> {
        let total = self.0.total.get();
        Ok(Space { total, free: total.saturating_sub(self.used()) })
    }
    fn file_id(&self, path: &Path) -> io::Result<u64> {
        self.0.files.borrow().contains_key(path).then_some(1).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn index(&self, path: &Path, disk: DiskId) -> LocalFut<'static, io::Result<Rc<dyn Index>>> {
        let index = self.0.indexes.borrow_mut().entry(path.to_owned()).or_default().clone();
        if index.rows.borrow().is_empty() {
            index.disk.set(disk);
        }
        let result = match index.disk.get() == disk {
            true => Ok(Rc::new(MemoryIndexHandle(index)) as Rc<dyn Index>),
            false => Err(io::ErrorKind::InvalidData.into()),
        };
        Box::pin(std::future::ready(result))
    }
}
