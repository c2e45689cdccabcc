//! Opening disks: identity, journal replay, finding the objects.

use super::disk::{Disk, Summary, best_slot, has_broken_slot};
use super::fs::{File, Fs, OpenHow};
use super::index::{Index, Known};
use super::journal::{Journal, Record};
use super::object::slot_len;
use super::{Store, StoreEvent, apply};
use crate::buf::AlignedBuf;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sheepdog_proto::checksum::crc32c;
use sheepdog_proto::{
    BLOCK_SIZE, ClusterId, DiskId, Epoch, Generation, LayerId, MAX_OBJECT_SIZE, MIN_OBJECT_SIZE, NodeId,
    ObjectId, PlacementKey, VdiId, Version,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Version of a disk's layout.
const FORMAT: u32 = 1;
/// Journal size unless told otherwise, bytes.
pub const DEFAULT_JOURNAL: u64 = 256 << 20;
/// Name of the identity file.
pub(super) const IDENTITY: &str = "disk";
/// Name of the index.
pub(super) const INDEX: &str = "index.redb";
/// How long the requests of a sheep that has ended are waited for.
const LAST_REQUESTS: Duration = Duration::from_secs(10);
/// Events that wait to be looked at.
const EVENTS: usize = 1024;

/// How to open a store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// This node.
    pub node: NodeId,
    /// Its cluster, once known.
    pub cluster: Option<ClusterId>,
    /// Directories.
    pub disks: Vec<PathBuf>,
    /// Journals go here instead of onto each disk.
    pub journal_dir: Option<PathBuf>,
    /// Journal size of new disks, bytes.
    pub journal_size: Option<u64>,
    /// All objects in one directory instead of a tree.
    pub plain: bool,
}

/// A disk that cannot be used, and what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(pub String);

#[derive(Serialize, Deserialize)]
struct Identity {
    format: u32,
    disk: DiskId,
    node: NodeId,
    cluster: Option<ClusterId>,
    plain: bool,
}

/// Write a small file atomically: length, CRC-32C, contents.
pub(super) async fn write_small(fs: &dyn Fs, dir: &Path, name: &str, data: &[u8]) -> io::Result<()> {
    let mut buf = AlignedBuf::zeroed((16 + data.len()).next_multiple_of(BLOCK_SIZE));
    buf[..8].copy_from_slice(&(data.len() as u64).to_le_bytes());
    buf[8..12].copy_from_slice(&crc32c(data).to_le_bytes());
    buf[16..16 + data.len()].copy_from_slice(data);
    let (temporary, path) = (dir.join(format!("{name}.new")), dir.join(name));
    fs.unlink(&temporary)?;
    let file = fs.open(&temporary, OpenHow { create: true, direct: false })?;
    file.write_at(0, vec![buf.freeze()], true).await?;
    file.sync().await?;
    fs.rename(&temporary, &path)?;
    fs.sync_dir(dir)
}

/// Read it back; `None`: no such file.
pub(super) async fn read_small(fs: &dyn Fs, dir: &Path, name: &str) -> io::Result<Option<Bytes>> {
    let file = match fs.open(&dir.join(name), OpenHow::default()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("{name}: damaged"));
    let len = file.len()?;
    if !(16..=1 << 30).contains(&len) {
        return Err(damaged());
    }
    let mut all = Vec::with_capacity(len as usize);
    let mut at = 0;
    while at < len {
        let n = (len - at).min(1 << 20);
        all.extend_from_slice(&file.read_at(at, n as usize).await?);
        at += n;
    }
    let size = u64::from_le_bytes(all[..8].try_into().map_err(|_| damaged())?) as usize;
    let crc = u32::from_le_bytes(all[8..12].try_into().map_err(|_| damaged())?);
    // Nothing small is empty; a block of zeros would pass for it.
    let data = all.get(16..16usize.saturating_add(size)).ok_or_else(damaged)?;
    if size == 0 || crc32c(data) != crc {
        return Err(damaged());
    }
    Ok(Some(Bytes::copy_from_slice(data)))
}

/// What a sheep that was killed had asked of a slow disk may come to it later than its successor's first requests: the journal is not looked at before.
async fn lock(journal: &dyn File) -> io::Result<()> {
    let until = Instant::now() + LAST_REQUESTS;
    while !journal.lock()? {
        if Instant::now() >= until {
            return Err(io::Error::other(
                "another sheep uses this journal, or has been killed while the disk does not answer: end it, or wait for the disk, then start this one again",
            ));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

impl Store {
    /// Open (and prepare, where virgin) every disk, and replay their journals. Must run on the data thread.
    pub async fn open(config: StoreConfig, fs: Rc<dyn Fs>) -> Result<Rc<Self>, OpenError> {
        let (events_out, events_in) = mpsc::channel(EVENTS);
        let store = Rc::new_cyclic(|me| Self {
            config: config.clone(),
            fs,
            disks: RefCell::default(),
            pending: RefCell::default(),
            moves: Default::default(),
            making: Default::default(),
            events_out,
            events_in: RefCell::new(Some(events_in)),
            plain: Cell::new(config.plain),
            me: me.clone(),
        });
        for path in &config.disks {
            store.add_disk(path, None).await?;
        }
        Ok(store)
    }

    /// Node that a directory was written by, if any: for restoring a lost home directory.
    pub async fn written_by(fs: &dyn Fs, path: &Path) -> Option<(NodeId, Option<ClusterId>)> {
        let data = read_small(fs, path, IDENTITY).await.ok()??;
        let id: Identity = postcard::from_bytes(&data).ok()?;
        Some((id.node, id.cluster))
    }

    /// Identity of the disk at a directory that is not open, if it has one.
    pub async fn identity_at(&self, path: &Path) -> Result<Option<DiskId>, OpenError> {
        let read = read_small(&*self.fs, path, IDENTITY).await;
        let data = read.map_err(|e| OpenError(format!("{}: {e}", path.display())))?;
        let id = data.map(|data| postcard::from_bytes::<Identity>(&data));
        Ok(id.and_then(Result::ok).map(|id| id.disk))
    }

    /// A named value on a directory that is not open, for rebuilding a cluster.
    pub async fn blob_at(fs: &dyn Fs, path: &Path, name: &str) -> Option<Bytes> {
        read_small(fs, path, name).await.ok()?
    }

    /// Any disk had data of this cluster when it was opened.
    pub fn has_objects(&self) -> bool {
        self.disks.borrow().iter().any(|d| !d.objects.borrow().is_empty())
    }

    /// Write the cluster's identity on every disk. `plain`: how the cluster wants objects to lie on disks that have none, if it says so.
    pub async fn set_cluster(&self, cluster: ClusterId, plain: Option<bool>) -> Result<(), OpenError> {
        self.plain.set(plain.unwrap_or(self.plain.get()));
        let disks: Vec<Rc<Disk>> = self.disks.borrow().clone();
        for d in disks {
            // A file that is still to be unlinked is looked for where it was.
            if d.objects.borrow().is_empty() && d.unlink.borrow().is_empty() {
                d.plain.set(self.plain.get());
            }
            let id = Identity {
                format: FORMAT,
                disk: d.id,
                node: self.config.node,
                cluster: Some(cluster),
                plain: d.plain.get(),
            };
            // Whoever looks in between sees a file that is not known yet.
            let _turn = d.looking.lock().await;
            self.write_identity(&d.path, &id).await?;
            d.known_again().map_err(|e| OpenError(format!("{}: {e}", d.path.display())))?;
        }
        Ok(())
    }

    async fn write_identity(&self, path: &Path, id: &Identity) -> Result<(), OpenError> {
        let data = postcard::to_allocvec(id).map_err(|e| OpenError(e.to_string()))?;
        write_small(&*self.fs, path, IDENTITY, &data)
            .await
            .map_err(|e| OpenError(format!("{}: {e}", path.display())))
    }

    async fn identify(&self, path: &Path) -> Result<Identity, OpenError> {
        let fail = |why: String| OpenError(format!("{}: {why}", path.display()));
        let unreadable = |e: &dyn std::fmt::Display| {
            fail(format!(
                "{e}: the disk's identity cannot be read; if its data is not needed any more, empty the directory"
            ))
        };
        let found = read_small(&*self.fs, path, IDENTITY).await.map_err(|e| unreadable(&e))?;
        let Some(data) = found else {
            let names = self.fs.list(path).map_err(|e| fail(e.to_string()))?;
            if names.iter().any(|n| n == "obj") {
                return Err(fail("has objects but no identity: it was damaged; empty it if its data is not needed any more".into()));
            }
            let id = Identity {
                format: FORMAT,
                disk: self.fs.new_disk(),
                node: self.config.node,
                cluster: self.config.cluster,
                plain: self.plain.get(),
            };
            return Ok(id);
        };
        let id: Identity = postcard::from_bytes(&data).map_err(|e| unreadable(&e))?;
        if id.format != FORMAT {
            return Err(fail(format!("format {} was written by another release of sheep", id.format)));
        }
        if id.node != self.config.node {
            return Err(fail(format!(
                "belongs to node {}, this is node {}: give each sheep its own disks, or empty the directory",
                id.node, self.config.node
            )));
        }
        if let (Some(theirs), Some(ours)) = (id.cluster, self.config.cluster)
            && theirs != ours
        {
            return Err(fail(format!(
                "belongs to cluster {theirs}, this sheep to cluster {ours}: empty the directory to use it here"
            )));
        }
        Ok(id)
    }

    pub(super) async fn add_disk(
        self: &Rc<Self>,
        path: &Path,
        leaving: Option<String>,
    ) -> Result<DiskId, OpenError> {
        let fail = |e: io::Error| OpenError(format!("{}: {e}", path.display()));
        if self.disks.borrow().iter().any(|d| d.path == path) {
            return Err(OpenError(format!("{}: is in use already", path.display())));
        }
        self.fs.mkdir(path).map_err(fail)?;
        let mut id = self.identify(path).await?;
        let mut journal_path = match &self.config.journal_dir {
            None => path.join("journal"),
            Some(dir) => {
                self.fs.mkdir(dir).map_err(fail)?;
                dir.join(format!("journal-{}", id.disk))
            }
        };
        let how = OpenHow { create: true, direct: true };
        let file = self
            .fs
            .open(&journal_path, how)
            .map_err(|e| OpenError(format!("{}: {e}: a journal is a file", journal_path.display())))?;
        lock(&*file).await.map_err(|e| OpenError(format!("{}: {e}", journal_path.display())))?;
        let virgin = read_small(&*self.fs, path, IDENTITY).await.map_err(fail)?.is_none();
        let journal_dir = journal_path.parent().unwrap_or(path).to_owned();
        if virgin {
            let size = self.config.journal_size.unwrap_or(DEFAULT_JOURNAL);
            Journal::create(file.clone(), size).await.map_err(fail)?;
            self.fs.sync_dir(&journal_dir).map_err(fail)?;
            // Last: a directory with an identity has a journal.
            self.write_identity(path, &id).await?;
        } else if file.is_empty().map_err(fail)? {
            return Err(OpenError(format!(
                "{}: the journal {} is missing: writes it held would be lost; give the same --journal as before",
                path.display(),
                journal_path.display()
            )));
        }
        let (journal, records, lost) = Journal::open(file).await.map_err(fail)?;
        if lost {
            // As another disk: the cluster then takes this one for gone, and everything on it is compared with the other copies before it is believed.
            id.disk = self.fs.new_disk();
            tracing::error!(
                path = %path.display(), disk = %id.disk,
                "acknowledged writes in the journal are damaged: this disk is filled anew from the other copies"
            );
            if self.config.journal_dir.is_some() {
                let name = journal_path.with_file_name(format!("journal-{}", id.disk));
                self.fs.rename(&journal_path, &name).map_err(fail)?;
                self.fs.sync_dir(&journal_dir).map_err(fail)?;
                journal_path = name;
            }
            self.write_identity(path, &id).await?;
        }
        let (index, rows) = self.index(path, id.disk).await?;
        let mut files = Vec::new();
        for file in [path.join(IDENTITY), journal_path] {
            let id = self.fs.file_id(&file).map_err(fail)?;
            files.push((file, id));
        }
        let (fs, events) = (self.fs.clone(), self.events_out.clone());
        let disk = Disk::new(id.disk, path.to_owned(), id.plain, fs, journal, index, files, events);
        // Objects of which a header is damaged, found without an index.
        let mut torn = BTreeSet::new();
        match rows {
            Some(rows) => rows.iter().for_each(|row| disk.listed(row)),
            None => {
                self.scan(&disk, &mut torn).await.map_err(fail)?;
                disk.fill_index().await.map_err(fail)?;
            }
        }
        let replayed = records.len();
        for (position, record, data) in records {
            // Replay changes metadata, so it must be in memory first.
            if let Some(oid) = touched(&record)
                && let Some(obj) = disk.object(oid)
                && disk.load(&obj).await.is_err()
            {
                // The journal has all of it: its first header was being written.
                let first = matches!(&record, Record::Write { prev, .. } if *prev == Version::NONE);
                if !first || obj.slot.get() != 0 {
                    // The header was torn or damaged and the journal does not have all of the object.
                    tracing::warn!(%oid, "an object's header is damaged: it will be filled from another copy");
                    continue;
                }
                disk.run(position, &Record::Remove { oid }, &data);
            }
            // A write of a header that was cut short left the one before it, and the journal has all that came after. Where it does not begin there, the newer header was whole once.
            if let Some(oid) = touched(&record)
                && torn.remove(&oid)
                && let Some(obj) = disk.object(oid)
                && let Record::Write { prev, .. } = &record
                && *prev > obj.summary.borrow().version
            {
                disk.lost(&obj);
                continue;
            }
            disk.run(position, &record, &data);
        }
        for obj in torn.into_iter().filter_map(|oid| disk.object(oid)) {
            disk.lost(&obj);
        }
        if replayed > 0 {
            // The process before this one may have ended between making a directory and making it durable.
            disk.sync_parents().map_err(fail)?;
            tracing::info!(path = %path.display(), records = replayed, "journal replayed");
        }
        if lost {
            // What lies behind the damage is of an earlier run than this, so it is not come upon again.
            let mark = Record::Watermark { vdi: VdiId(0), generation: Generation(0), seq: 0 };
            let done = disk.journal.append(mark, Vec::new()).await;
            done.map_err(|_| OpenError(format!("{}: closed", path.display())))?.map_err(OpenError)?;
        }
        tokio::task::spawn_local(apply::run(Rc::downgrade(&disk)));
        tokio::task::spawn_local(apply::look_after(Rc::downgrade(&disk)));
        disk.work.notify_one();
        *disk.leaving.borrow_mut() = leaving;
        self.moves.rest().await;
        self.disks.borrow_mut().push(disk.clone());
        self.settle_twins(&disk);
        self.share_files();
        Ok(id.disk)
    }

    /// The index of a disk and what it says; no rows when it has to be filled from the headers.
    async fn index(
        &self,
        path: &Path,
        disk: DiskId,
    ) -> Result<(Rc<dyn Index>, Option<Vec<Known>>), OpenError> {
        let file = path.join(INDEX);
        let mut last = None;
        for _ in 0..2 {
            let opened = async {
                let index = self.fs.index(&file, disk).await?;
                let rows = index.rows().await?;
                io::Result::Ok((index, rows))
            };
            match opened.await {
                Ok(found) => return Ok(found),
                Err(e) => {
                    tracing::warn!(path = %file.display(), error = %e, "the index cannot be used: it is made again from the objects' headers");
                    self.fs.unlink(&file).map_err(|e| OpenError(format!("{}: {e}", file.display())))?;
                    last = Some(e);
                }
            }
        }
        let why = last.map_or_else(String::new, |e| e.to_string());
        Err(OpenError(format!("{}: the index can neither be read nor be made again: {why}", file.display())))
    }

    /// Find every object by its header. `torn`: those of which one of the two is damaged.
    async fn scan(&self, disk: &Rc<Disk>, torn: &mut BTreeSet<ObjectId>) -> io::Result<()> {
        for dir in disk.object_dirs()? {
            for name in self.fs.list(&dir)? {
                if let Some(oid) = ObjectId::parse(&name) {
                    self.scan_object(disk, oid, torn).await.map_err(|e| {
                        io::Error::new(e.kind(), format!("object file {}: {e}", dir.join(&name).display()))
                    })?;
                }
            }
        }
        Ok(())
    }

    async fn scan_object(
        &self,
        disk: &Rc<Disk>,
        oid: ObjectId,
        torn: &mut BTreeSet<ObjectId>,
    ) -> io::Result<()> {
        let (_, path) = disk.object_path(oid);
        let file = self.fs.open(&path, OpenHow { create: false, direct: true })?;
        let len = file.len()?;
        // The length of the file tells the object size, and its header must say the same: a large object cut short may have the length of a small one.
        let told = object_sizes().find(|size| super::object::file_len(*size) == len);
        let mut header = Err(super::object::Slot::Blank);
        for size in told.into_iter().chain(object_sizes().filter(|s| Some(*s) != told)) {
            let slot = slot_len(size);
            let both = file.read_at(0, 2 * slot).await?;
            match best_slot(oid, &both, slot) {
                Ok((_, m)) if m.object_size != size => header = Err(super::object::Slot::Broken),
                Err(super::object::Slot::Blank) => {}
                Err(why) => header = Err(why),
                valid => {
                    if has_broken_slot(oid, &both, slot) {
                        torn.insert(oid);
                    }
                    header = valid;
                    break;
                }
            }
        }
        let whole = len == 0 || told.is_some();
        match header {
            Ok((counter, m)) if told == Some(m.object_size) => {
                let summary = Summary {
                    vdi: m.vdi,
                    object_size: m.object_size,
                    version: m.version,
                    epoch: m.epoch,
                    filling: m.filling,
                    data_blocks: m.data().count(),
                    seal: m.seal,
                    promised: m.promised,
                    broken: false,
                };
                disk.found(oid, m.key, counter, summary);
            }
            // Made, but the crash came before its first metadata: the journal has it, or nobody was told. A file of another length was cut.
            Err(super::object::Slot::Blank) if whole => self.fs.unlink(&path)?,
            Ok((_, m)) => {
                let _ = self.events_out.try_send(StoreEvent::Corrupt { oid, blocks: 0..0 });
                tracing::warn!(%oid, path = %path.display(), bytes = len, "an object's file has not the length that its header says");
                let summary = Summary {
                    vdi: m.vdi,
                    object_size: m.object_size,
                    version: Version::NONE,
                    epoch: m.epoch,
                    filling: false,
                    data_blocks: 0,
                    seal: None,
                    promised: 0,
                    broken: true,
                };
                disk.found(oid, m.key, 0, summary);
            }
            Err(_) => {
                let _ = self.events_out.try_send(StoreEvent::Corrupt { oid, blocks: 0..0 });
                let summary = Summary {
                    vdi: VdiId(0),
                    object_size: told.unwrap_or(sheepdog_proto::DEFAULT_OBJECT_SIZE),
                    version: Version::NONE,
                    epoch: Epoch(0),
                    filling: false,
                    data_blocks: 0,
                    seal: None,
                    promised: 0,
                    broken: true,
                };
                let key = PlacementKey { family: LayerId(0), index: oid.index() };
                disk.found(oid, key, 0, summary);
            }
        }
        Ok(())
    }
}

/// Sizes that an object may have.
fn object_sizes() -> impl Iterator<Item = u32> {
    std::iter::successors(Some(MIN_OBJECT_SIZE), |s| s.checked_mul(2)).take_while(|s| *s <= MAX_OBJECT_SIZE)
}

/// The object a record changes the metadata of.
fn touched(record: &super::journal::Record) -> Option<ObjectId> {
    use super::journal::Record as R;
    match record {
        R::Write { oid, .. }
        | R::Fill { oid, .. }
        | R::FinishFill { oid, .. }
        | R::Stamp { oid, .. }
        | R::Seal { oid, .. }
        | R::Promise { oid, .. } => Some(*oid),
        R::Remove { .. } | R::Watermark { .. } | R::Tails { .. } => None,
    }
}
