//! The index of one disk: what objects it has, in a `redb` table beside them.
//!
//! The journal's beginning moves only after the index knows the changes before it, so an index that opens is right once the journal is replayed. It makes a
//! start cheap (no header is read) and it is what notices that an object's file is gone. It can always be rebuilt from the headers: any error of it, or a
//! missing file, leads to that.

use super::types::ObjectSummary;
use crate::observe::panics::caught;
use crate::volume::LocalFut;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use sheepdog_proto::peer::Seal;
use sheepdog_proto::{DiskId, Epoch, ObjectId, PlacementKey, VdiId, Version};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// Object id to `Row`.
const OBJECTS: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("objects");
/// `disk`: whose index it is; `complete`: it was filled once.
const ABOUT: TableDefinition<'static, &'static str, u128> = TableDefinition::new("about");
/// Pages `redb` may keep: rows are read once, at the start.
const CACHE: usize = 1 << 20;
/// Rows of one transaction while an index is rebuilt.
pub(super) const BATCH: usize = 16_384;

/// What the index knows of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The object.
    pub summary: ObjectSummary,
    /// Counter of the last header in its file. One that is older is not the object's any more: the newer one is damaged.
    pub slot: u64,
}

/// One change: an object and what is known of it, or that it is gone.
pub type Change = (ObjectId, Option<Known>);

/// Where rows are kept.
pub trait Index {
    /// Everything; `None`: it was never filled.
    fn rows(&self) -> LocalFut<'static, io::Result<Option<Vec<Known>>>>;
    /// Durable when done. `complete`: all objects of the disk are in it from now on.
    fn commit(&self, changes: Vec<Change>, complete: bool) -> LocalFut<'static, io::Result<()>>;
}

/// A row as stored. Its first byte is the version of this layout.
#[derive(Serialize, Deserialize)]
struct Row {
    key: PlacementKey,
    vdi: VdiId,
    object_size: u32,
    version: Version,
    epoch: Epoch,
    filling: bool,
    data_blocks: u32,
    seal: Option<Seal>,
    promised: u32,
    slot: u64,
}

/// An index of another layout is made again.
const LAYOUT: u8 = 4;

fn encode(known: &Known) -> Vec<u8> {
    let s = &known.summary;
    let row = Row {
        key: s.key,
        vdi: s.vdi,
        object_size: s.object_size,
        version: s.version,
        epoch: s.epoch,
        filling: s.filling,
        data_blocks: s.data_blocks,
        seal: s.seal,
        promised: s.promised,
        slot: known.slot,
    };
    postcard::to_extend(&row, vec![LAYOUT]).unwrap_or_default()
}

fn decode(oid: ObjectId, raw: &[u8]) -> Option<Known> {
    let (layout, rest) = raw.split_first()?;
    let row: Row = (*layout == LAYOUT).then(|| postcard::from_bytes(rest).ok())??;
    let summary = ObjectSummary {
        oid,
        key: row.key,
        vdi: row.vdi,
        object_size: row.object_size,
        version: row.version,
        epoch: row.epoch,
        filling: row.filling,
        data_blocks: row.data_blocks,
        seal: row.seal,
        promised: row.promised,
    };
    Some(Known { summary, slot: row.slot })
}

fn other(e: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(e)
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// `redb` in a file. It blocks, so it works on the runtime's blocking threads.
pub struct FileIndex(Arc<Database>);

impl FileIndex {
    /// Open or make it; a file of another disk is refused.
    pub fn open(path: &Path, disk: DiskId) -> LocalFut<'static, io::Result<Rc<dyn Index>>> {
        let path: PathBuf = path.to_owned();
        Box::pin(async move {
            let open = move || {
                let mut db = Database::builder().set_cache_size(CACHE).create(path).map_err(other)?;
                // After a clean end redb trusts its pages.
                db.check_integrity().map_err(other)?;
                let tx = db.begin_write().map_err(other)?;
                {
                    tx.open_table(OBJECTS).map_err(other)?;
                    let mut about = tx.open_table(ABOUT).map_err(other)?;
                    let of = about.get("disk").map_err(other)?.map(|v| v.value());
                    if of.is_some_and(|of| of != disk.0) {
                        return Err(damaged("it belongs to another disk"));
                    }
                    if of.is_none() {
                        about.insert("disk", disk.0).map_err(other)?;
                    }
                }
                tx.commit().map_err(other)?;
                Ok(db)
            };
            let open = move || caught(open).unwrap_or_else(|what| Err(damaged(&what)));
            let db = tokio::task::spawn_blocking(open).await.map_err(other)??;
            Ok(Rc::new(Self(Arc::new(db))) as Rc<dyn Index>)
        })
    }
}

impl Index for FileIndex {
    fn rows(&self) -> LocalFut<'static, io::Result<Option<Vec<Known>>>> {
        let db = self.0.clone();
        let read = move || {
            let tx = db.begin_read().map_err(other)?;
            if tx.open_table(ABOUT).map_err(other)?.get("complete").map_err(other)?.is_none() {
                return Ok(None);
            }
            let mut out = Vec::new();
            for row in tx.open_table(OBJECTS).map_err(other)?.iter().map_err(other)? {
                let (oid, raw) = row.map_err(other)?;
                out.push(decode(ObjectId(oid.value()), raw.value()).ok_or_else(|| damaged("a row"))?);
            }
            Ok(Some(out))
        };
        let read = move || caught(read).unwrap_or_else(|what| Err(damaged(&what)));
        Box::pin(async move { tokio::task::spawn_blocking(read).await.map_err(other)? })
    }

    fn commit(&self, changes: Vec<Change>, complete: bool) -> LocalFut<'static, io::Result<()>> {
        let db = self.0.clone();
        let write = move || {
            let tx = db.begin_write().map_err(other)?;
            {
                let mut table = tx.open_table(OBJECTS).map_err(other)?;
                for (oid, row) in &changes {
                    match row {
                        Some(s) => table.insert(oid.0, encode(s).as_slice()).map_err(other)?,
                        None => table.remove(oid.0).map_err(other)?,
                    };
                }
                if complete {
                    tx.open_table(ABOUT).map_err(other)?.insert("complete", 1).map_err(other)?;
                }
            }
            tx.commit().map_err(other)
        };
        let write = move || caught(write).unwrap_or_else(|what| Err(damaged(&what)));
        Box::pin(async move { tokio::task::spawn_blocking(write).await.map_err(other)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_proto::{Generation, LayerId};

    fn row(n: u32) -> Known {
        let summary = ObjectSummary {
            oid: ObjectId::data(LayerId(3), n),
            key: PlacementKey { family: LayerId(1), index: n },
            vdi: VdiId(9),
            object_size: 4 << 20,
            version: Version::new(Generation(7), u64::from(n)),
            epoch: Epoch(5),
            filling: n == 2,
            data_blocks: n,
            seal: (n == 3).then_some(Seal {
                version: Version::new(Generation(7), 3),
                digest: 9,
                slot: 1,
                data: 4,
                parity: 2,
            }),
            promised: n,
        };
        Known { summary, slot: u64::from(n) << 40 }
    }

    #[tokio::test]
    async fn rows_survive_and_an_index_of_another_disk_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("index");
        {
            let index = FileIndex::open(&path, DiskId(1)).await.expect("open");
            assert_eq!(index.rows().await.expect("read"), None);
            index
                .commit((1..4).map(|n| (row(n).summary.oid, Some(row(n)))).collect(), true)
                .await
                .expect("write");
            index.commit(vec![(row(1).summary.oid, None)], false).await.expect("write");
        }
        assert!(FileIndex::open(&path, DiskId(2)).await.is_err());
        let index = FileIndex::open(&path, DiskId(1)).await.expect("open");
        assert_eq!(index.rows().await.expect("read"), Some(vec![row(2), row(3)]));
    }

    #[tokio::test]
    async fn garbage_is_an_error() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("index");
        std::fs::write(&path, vec![0x5a; 70_000]).expect("write");
        assert!(FileIndex::open(&path, DiskId(1)).await.is_err());
    }
}
