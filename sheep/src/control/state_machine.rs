//! The applier: committed raft entries go through the `Publisher`; snapshots are the encoded `ClusterState` in one checked file.
//!
//! The state lives in memory. A restart loads the snapshot and raft applies the log after it. A node that follows a watch stream may
//! be ahead of its raft log; entries the state already has are skipped, which is right because both come from the same log.
//!
//! Snapshot file: `SHPSNAP1`, u32 LE length of meta, meta, state, u32 LE CRC-32C of everything before. Replaced by rename.

use super::Publisher;
use super::raft_types::{Answer, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use sheepdog_cluster::{ClusterState, Reply};
use sheepdog_proto::ControlIndex;
use sheepdog_proto::checksum::crc32c;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tokio::sync::watch;

const MAGIC: &[u8; 8] = b"SHPSNAP1";

/// Bytes of a state, as snapshots and watch streams carry it.
pub fn encode_state(state: &ClusterState) -> io::Result<Bytes> {
    postcard::to_stdvec(state).map(Bytes::from).map_err(|e| io::Error::other(e.to_string()))
}

/// The reverse.
pub fn decode_state(b: &[u8]) -> io::Result<ClusterState> {
    postcard::from_bytes(b).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
}

/// Replace a file so that after a crash either the old or the new content is there.
pub(crate) fn write_atomically(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let tmp = path.with_extension("new");
    let mut f = std::fs::File::create(&tmp)?;
    for p in parts {
        f.write_all(p)?;
    }
    f.sync_all()?;
    std::fs::rename(&tmp, path)?;
    match path.parent() {
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// Where the current snapshot is kept.
#[derive(Clone)]
struct SnapshotFile {
    path: PathBuf,
}

impl SnapshotFile {
    fn save(&self, meta: &SnapshotMeta, state: &[u8]) -> io::Result<()> {
        let meta = postcard::to_stdvec(meta).map_err(|e| io::Error::other(e.to_string()))?;
        let mut all = Vec::with_capacity(meta.len() + state.len() + 16);
        all.extend_from_slice(MAGIC);
        all.extend_from_slice(&(meta.len() as u32).to_le_bytes());
        all.extend_from_slice(&meta);
        all.extend_from_slice(state);
        let crc = crc32c(&all);
        write_atomically(&self.path, &[&all, &crc.to_le_bytes()])
    }
    fn load(&self) -> io::Result<Option<Snapshot>> {
        let all = match std::fs::read(&self.path) {
            Ok(b) => Bytes::from(b),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let bad = |what: &str| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", self.path.display()))
        };
        if all.len() < 16 || !all.starts_with(MAGIC) {
            return Err(bad("not a control snapshot"));
        }
        let (body, crc) = (all.slice(..all.len() - 4), &all[all.len() - 4..]);
        if crc32c(&body).to_le_bytes() != crc {
            return Err(bad("checksum does not match: the snapshot is damaged"));
        }
        let len = u32::from_le_bytes([body[8], body[9], body[10], body[11]]) as usize;
        let meta = body.get(12..12 + len).ok_or_else(|| bad("cut short"))?;
        let meta = postcard::from_bytes(meta).map_err(|e| bad(&e.to_string()))?;
        Ok(Some(Snapshot { meta, snapshot: body.slice(12 + len..) }))
    }
}

/// See the module.
pub struct StateMachine {
    publisher: Publisher,
    applied: Option<LogId>,
    membership: StoredMembership,
    file: SnapshotFile,
    told: watch::Sender<Option<u64>>,
}

impl StateMachine {
    /// With its snapshot at `snapshot`; tells on `told` how far it has applied.
    pub fn new(publisher: Publisher, snapshot: PathBuf, told: watch::Sender<Option<u64>>) -> Self {
        Self {
            told,
            publisher,
            applied: None,
            membership: StoredMembership::default(),
            file: SnapshotFile { path: snapshot },
        }
    }
    fn apply_one(&mut self, entry: &super::raft_types::LogEntry) -> Reply {
        let index = ControlIndex(entry.log_id.index);
        self.applied = Some(entry.log_id);
        match &entry.payload {
            EntryPayload::Normal(p) => self.publisher.apply_once(index, Some(&p.0)).unwrap_or_else(|| {
                // Applied through the watch stream before: the answer is still remembered if anyone asks.
                self.publisher.read(|s| {
                    let found = s.recent.iter().find(|(r, _)| *r == p.0.request);
                    found.map_or(Reply::Done, |(_, reply)| reply.clone())
                })
            }),
            EntryPayload::Membership(m) => {
                self.membership = StoredMembership::new(Some(entry.log_id), m.clone());
                self.publisher.apply_once(index, None).unwrap_or(Reply::Done)
            }
            EntryPayload::Blank => self.publisher.apply_once(index, None).unwrap_or(Reply::Done),
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }
    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let reply = self.apply_one(&entry);
            if let Some(r) = responder {
                r.send(Answer(reply));
            }
        }
        self.told.send_replace(self.applied.map(|a| a.index));
        Ok(())
    }
    async fn get_snapshot_builder(&mut self) -> Builder {
        // Encoded here, under the read lock, so that later entries do not leak into it.
        let state = self.publisher.read(encode_state);
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        Builder { meta, state, file: self.file.clone() }
    }
    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> io::Result<()> {
        let state = decode_state(&snapshot)?;
        let (file, m) = (self.file.clone(), meta.clone());
        tokio::task::spawn_blocking(move || file.save(&m, &snapshot)).await.map_err(io::Error::other)??;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.publisher.install_newer(state);
        self.told.send_replace(self.applied.map(|a| a.index));
        Ok(())
    }
    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let file = self.file.clone();
        tokio::task::spawn_blocking(move || file.load()).await.map_err(io::Error::other)?
    }
}

/// Writes one snapshot.
pub struct Builder {
    meta: SnapshotMeta,
    state: io::Result<Bytes>,
    file: SnapshotFile,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let state = match &self.state {
            Ok(b) => b.clone(),
            Err(e) => return Err(io::Error::other(e.to_string())),
        };
        let (file, meta, bytes) = (self.file.clone(), self.meta.clone(), state.clone());
        tokio::task::spawn_blocking(move || file.save(&meta, &bytes)).await.map_err(io::Error::other)??;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: state })
    }
}
