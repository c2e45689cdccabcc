//! A repository: `repo.json`, backups, chunks, locks.
//!
//! ```text
//! repo.json               what it is, and how keys are made
//! backups/ID              a manifest, sealed as chunks are
//! chunks/AB/ABCD...       contents and pages
//! locks/KIND-ID           who is at it, and since when
//! ```
//! A backup is there when its manifest is: it is put last, after everything it names is on stable storage.

use crate::error::Error;
use crate::hex::{hex, unhex};
use crate::index::{Entry, Index, PAGE};
use crate::manifest::{Manifest, VERSION};
use crate::place::Place;
use crate::seal::{self, Derivation, Id, Key, LEVEL, MAX};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const CONFIG: &str = "repo.json";
/// What is sealed in `check`, to tell a wrong password from damage.
const CHECK: &[u8] = b"sheepdog backup repository";
/// A lock that is older was left behind. Clocks of hosts may differ by most of it.
const STALE: Duration = Duration::from_secs(3600);
/// Whoever is alive writes its lock anew in this time.
const REFRESH: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Config {
    format: String,
    version: u32,
    id: String,
    chunk: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encryption: Option<Derivation>,
    /// A known text, sealed: hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    check: Option<String>,
}

/// See the module.
#[derive(Clone)]
pub struct Repository {
    /// Where.
    pub place: Place,
    id: String,
    chunk: u32,
    key: Option<Key>,
    level: i32,
}

/// What keeps others away. Ends when it is released; one whose program died ends by age.
pub struct Lock(Option<Held>);

struct Held {
    place: Place,
    name: String,
    /// When it was last written, milliseconds since 1970.
    written: Arc<AtomicU64>,
    /// Gone: it is not written any more.
    stop: oneshot::Sender<()>,
    writer: JoinHandle<()>,
}

impl Lock {
    /// Let others in.
    ///
    /// # Errors
    /// `Place`.
    pub async fn release(self) -> Result<(), Error> {
        let Some(held) = self.0 else { return Ok(()) };
        drop(held.stop);
        // What is being written comes before it is deleted.
        let _ = held.writer.await;
        held.place.delete(&held.name).await
    }

    /// Others still wait for it.
    ///
    /// # Errors
    /// `Locked`: this program stood still for so long that they may not.
    pub fn holds(&self) -> Result<(), Error> {
        let Some(held) = &self.0 else { return Ok(()) };
        let age = now_ms().saturating_sub(held.written.load(Ordering::Relaxed));
        if age < STALE.as_millis() as u64 / 2 {
            return Ok(());
        }
        Err(Error::Locked(format!(
            "{} was not written for {} minutes, so others may have changed the repository meanwhile: run this again",
            held.name,
            age / 60_000
        )))
    }
}

/// Written at once, and again and again.
async fn write_lock(place: Place, name: String) -> Result<Lock, Error> {
    let write = async |place: &Place, name: &str| {
        let now = now_ms();
        place.put(name, Bytes::from(now.to_string())).await.map(|()| now)
    };
    let written = Arc::new(AtomicU64::new(write(&place, &name).await?));
    let (stop, mut stopped) = oneshot::channel();
    let (at, of, last) = (place.clone(), name.clone(), written.clone());
    let writer = tokio::spawn(async move {
        while tokio::time::timeout(REFRESH, &mut stopped).await.is_err() {
            // One that cannot be written is too old at some time.
            if let Ok(now) = write(&at, &of).await {
                last.store(now, Ordering::Relaxed);
            }
        }
    });
    Ok(Lock(Some(Held { place, name, written, stop, writer })))
}

/// What became of contents that were to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Nothing: they are zeros.
    Zeros,
    /// They were there.
    There(Id),
    /// They were not.
    New {
        /// Their name.
        id: Id,
        /// Bytes they take.
        bytes: u64,
    },
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

impl Repository {
    /// Make one where nothing is.
    ///
    /// # Errors
    /// `Place`, `Config`.
    pub async fn create(place: Place, password: Option<&[u8]>, chunk: u32) -> Result<Self, Error> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let encryption = password.map(|_| Derivation::new());
        let key = match (password, &encryption) {
            (Some(p), Some(how)) => Some(Key::derive(p, how)?),
            _ => None,
        };
        let check = match &key {
            None => None,
            Some(_) => Some(hex(&seal::seal(key.as_ref(), seal::name(key.as_ref(), CHECK), CHECK)?)),
        };
        let config =
            Config { format: "sheepdog-backup".into(), version: VERSION, id, chunk, encryption, check };
        let text = serde_json::to_vec_pretty(&config).map_err(|e| Error::Config(e.to_string()))?;
        place.put(CONFIG, text.into()).await?;
        place.sync().await?;
        Ok(Self { place, id: config.id, chunk, key, level: LEVEL })
    }

    /// Open one; `None` where there is none and nothing else.
    ///
    /// # Errors
    /// It is something else, of a later version, encrypted with another password.
    pub async fn open(place: Place, password: Option<&[u8]>) -> Result<Option<Self>, Error> {
        let Some(text) = place.get(CONFIG).await? else {
            if place.list("chunks").await?.is_empty() && place.list("backups").await?.is_empty() {
                return Ok(None);
            }
            return Err(Error::Config(
                "the repository has backups and its repo.json is gone: put that file back from a copy".into(),
            ));
        };
        let config: Config = serde_json::from_slice(&text)
            .map_err(|e| Error::Config(format!("repo.json is damaged, put it back from a copy: {e}")))?;
        if config.format != "sheepdog-backup" {
            return Err(Error::Config("its repo.json is not of Sheepdog's backups".into()));
        }
        if config.version > VERSION {
            let text = format!(
                "the repository has format {}, this dog knows up to {VERSION}: use a newer one",
                config.version
            );
            return Err(Error::Config(text));
        }
        if !(64 << 10..=MAX as u32).contains(&config.chunk) || !config.chunk.is_power_of_two() {
            return Err(Error::Config(format!("repo.json: chunks of {} bytes", config.chunk)));
        }
        let key = match (&config.encryption, password) {
            (None, _) => None,
            (Some(_), None) => return Err(Error::NoPassword),
            (Some(how), Some(p)) => Some(Key::derive(p, how)?),
        };
        if key.is_some() {
            let id = seal::name(key.as_ref(), CHECK);
            let known = config.check.as_deref().and_then(unhex).unwrap_or_default();
            if seal::open(key.as_ref(), id, &known).is_err() {
                return Err(Error::Password);
            }
        }
        Ok(Some(Self { place, id: config.id, chunk: config.chunk, key, level: LEVEL }))
    }

    /// Chunks that are stored from now on are compressed at this level: see `LEVEL`.
    pub fn compressing(self, level: i32) -> Self {
        Self { level, ..self }
    }
    /// Its name: every repository has another one.
    pub fn id(&self) -> &str {
        &self.id
    }
    /// Bytes of a chunk of new backups.
    pub fn chunk(&self) -> u32 {
        self.chunk
    }
    /// Is it encrypted?
    pub fn is_encrypted(&self) -> bool {
        self.key.is_some()
    }

    /// Keep others away: `prune` keeps everybody else away, `backup` only that. Refused while somebody is there who would be in the way.
    ///
    /// # Errors
    /// `Locked`, `Place`.
    pub async fn lock(&self, kind: &str) -> Result<Lock, Error> {
        if self.place.is_file() {
            return Ok(Lock(None));
        }
        let own = format!("locks/{kind}-{}", uuid::Uuid::new_v4().simple());
        // First our own, then the others': of two that begin together at least one sees the other.
        let lock = write_lock(self.place.clone(), own.clone()).await?;
        let refused = self.in_the_way(kind, &own).await;
        match refused {
            Ok(None) => Ok(lock),
            Ok(Some(other)) => {
                lock.release().await?;
                Err(Error::Locked(format!(
                    "the repository is in use ({other}): wait until that has ended; if it has died, delete that file"
                )))
            }
            Err(e) => {
                let _ = lock.release().await;
                Err(e)
            }
        }
    }

    async fn in_the_way(&self, kind: &str, own: &str) -> Result<Option<String>, Error> {
        for (name, _) in self.place.list("locks").await? {
            let theirs = name.trim_start_matches("locks/");
            if name == own || (kind != "prune" && !theirs.starts_with("prune-")) {
                continue;
            }
            let since =
                self.place.get(&name).await?.and_then(|b| String::from_utf8(b.to_vec()).ok()?.parse().ok());
            // Gone meanwhile.
            let Some(since): Option<u64> = since else { continue };
            if now_ms().saturating_sub(since) < STALE.as_millis() as u64 {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Name of these contents here.
    pub fn name(&self, contents: &[u8]) -> Id {
        seal::name(self.key.as_ref(), contents)
    }

    fn chunk_path(id: Id) -> String {
        let text = id.to_string();
        format!("chunks/{}/{text}", &text[..2])
    }

    /// Is this chunk there?
    ///
    /// # Errors
    /// `Place`.
    pub async fn has(&self, id: Id) -> Result<bool, Error> {
        self.place.has(&Self::chunk_path(id)).await
    }

    /// Store contents under their name. Bytes as they are stored.
    ///
    /// # Errors
    /// `Place`.
    pub async fn put(&self, id: Id, contents: Bytes) -> Result<u64, Error> {
        let (key, level) = (self.key.clone(), self.level);
        let sealed =
            tokio::task::spawn_blocking(move || seal::seal_at(key.as_ref(), id, &contents, level)).await;
        let sealed = sealed.map_err(|e| Error::place(id.to_string(), e))??;
        let len = sealed.len() as u64;
        self.place.put(&Self::chunk_path(id), sealed.into()).await?;
        Ok(len)
    }

    /// Name contents, and store them unless they are zeros, or `known` says of their name that they are there, or they are. It is asked once, on another thread.
    ///
    /// # Errors
    /// `Place`.
    pub async fn store(
        &self,
        contents: Bytes,
        known: impl FnOnce(Id) -> bool + Send + 'static,
    ) -> Result<Stored, Error> {
        let this = self.clone();
        // All of it on one thread, where that can be: each change of thread costs as much as hashing.
        let named = tokio::task::spawn_blocking(move || {
            if contents.iter().all(|b| *b == 0) {
                return Ok((Stored::Zeros, None));
            }
            let id = this.name(&contents);
            if known(id) {
                return Ok((Stored::There(id), None));
            }
            let Some(place) = this.place.local() else { return Ok((Stored::There(id), Some(contents))) };
            let path = Self::chunk_path(id);
            if place.has(&path)? {
                return Ok((Stored::There(id), None));
            }
            seal::sealed(this.key.as_ref(), id, &contents, this.level, |head, body| {
                place.put(&path, &[head, body])?;
                Ok((Stored::New { id, bytes: (head.len() + body.len()) as u64 }, None))
            })?
        });
        match named.await.map_err(|e| Error::place("a chunk", e))?? {
            (Stored::There(id), Some(contents)) if !self.has(id).await? => {
                Ok(Stored::New { id, bytes: self.put(id, contents).await? })
            }
            (stored, _) => Ok(stored),
        }
    }

    /// Contents of a chunk, checked.
    ///
    /// # Errors
    /// `Missing`, `Damaged`, `Place`.
    pub async fn get(&self, id: Id) -> Result<Vec<u8>, Error> {
        let stored = self.place.get(&Self::chunk_path(id)).await?;
        let stored = stored.ok_or_else(|| Error::Missing(format!("chunk {id}")))?;
        let key = self.key.clone();
        let opened = tokio::task::spawn_blocking(move || seal::open(key.as_ref(), id, &stored)).await;
        opened.map_err(|e| Error::place(id.to_string(), e))?
    }

    /// Names of all chunks, with their stored bytes. What has another name is left alone.
    ///
    /// # Errors
    /// `Place`.
    pub async fn chunks(&self) -> Result<BTreeMap<Id, u64>, Error> {
        let all = self.place.list("chunks").await?;
        Ok(all.iter().filter_map(|(n, len)| Some((Id::parse(n.rsplit('/').next()?)?, *len))).collect())
    }

    /// Take a chunk away.
    ///
    /// # Errors
    /// `Place`.
    pub async fn forget(&self, id: Id) -> Result<(), Error> {
        self.place.delete(&Self::chunk_path(id)).await
    }

    /// Store the pages of an index that are not there yet: their names, in order.
    ///
    /// # Errors
    /// `Place`.
    pub async fn put_index(&self, index: &Index) -> Result<Vec<Option<Id>>, Error> {
        let mut out = Vec::new();
        for page in index.pages() {
            let Some(page) = page else {
                out.push(None);
                continue;
            };
            let bytes = postcard::to_allocvec(page).map_err(|e| Error::Config(e.to_string()))?;
            let id = self.name(&bytes);
            if !self.has(id).await? {
                self.put(id, bytes.into()).await?;
            }
            out.push(Some(id));
        }
        Ok(out)
    }

    /// The index of a backup.
    ///
    /// # Errors
    /// `Missing`, `Damaged`, `Place`.
    pub async fn index(&self, of: &Manifest) -> Result<Index, Error> {
        let chunks = of.volume.size.div_ceil(u64::from(of.chunk)) as usize;
        let mut pages = Vec::new();
        for (n, page) in of.pages.iter().enumerate() {
            let len = chunks.saturating_sub(n * PAGE).min(PAGE);
            let Some(id) = page else {
                pages.push(vec![Entry::Hole; len]);
                continue;
            };
            let bytes = self.get(*id).await?;
            let entries: Vec<Entry> = postcard::from_bytes(&bytes)
                .map_err(|e| Error::Damaged { id: *id, why: format!("it is no page of an index: {e}") })?;
            pages.push(entries);
        }
        Index::from_pages(of.volume.size, of.chunk, pages)
            .ok_or_else(|| Error::Config(format!("backup {}: its index is not that of its volume", of.id)))
    }

    /// Everything that was put before is on stable storage, and then these backups are there. `lock`: what kept a prune away meanwhile.
    ///
    /// # Errors
    /// `Place`, `Locked` when it may not have done so.
    pub async fn commit(&self, lock: &Lock, manifests: &[Manifest]) -> Result<(), Error> {
        self.place.sync().await?;
        lock.holds()?;
        for manifest in manifests {
            let text = serde_json::to_vec(manifest).map_err(|e| Error::Config(e.to_string()))?;
            let sealed = seal::seal(self.key.as_ref(), self.name(&text), &text)?;
            // Its own hash in front: a manifest is not named by its contents.
            let whole = [&self.name(&text).0[..], &sealed].concat();
            self.place.put(&format!("backups/{}", manifest.id), whole.into()).await?;
        }
        self.place.sync().await
    }

    async fn manifest(&self, name: &str) -> Result<Manifest, Error> {
        let stored = self.place.get(name).await?.ok_or_else(|| Error::Missing(name.to_owned()))?;
        let damaged = |why: String| Error::Config(format!("{name} is damaged: {why}"));
        let (id, sealed) = stored.split_at_checked(32).ok_or_else(|| damaged("it is cut short".into()))?;
        let id = Id(id.try_into().unwrap_or_default());
        let text = seal::open(self.key.as_ref(), id, sealed).map_err(|e| damaged(e.to_string()))?;
        let m: Manifest = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        if m.version > VERSION || m.chunk != self.chunk || format!("backups/{}", m.id) != name {
            return Err(damaged("it is not of this repository, or of a later version of dog".into()));
        }
        Ok(m)
    }

    /// All backups, oldest first, and what is wrong with those that cannot be read.
    ///
    /// # Errors
    /// `Place`.
    pub async fn backups(&self) -> Result<(Vec<Manifest>, Vec<Error>), Error> {
        let (mut all, mut bad) = (Vec::new(), Vec::new());
        for (name, _) in self.place.list("backups").await? {
            match self.manifest(&name).await {
                Ok(m) => all.push(m),
                Err(e @ Error::Place { .. }) => return Err(e),
                Err(e) => bad.push(e),
            }
        }
        all.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
        Ok((all, bad))
    }

    /// The backup that is meant: by the beginning of its id, as VOLUME (its latest), or as VOLUME@TAG.
    ///
    /// # Errors
    /// `NotFound`: none, or several.
    pub fn find<'a>(all: &'a [Manifest], meant: &str) -> Result<&'a Manifest, Error> {
        let (name, tag) = meant.split_once('@').map_or((meant, None), |(n, t)| (n, Some(t)));
        let named = |m: &&Manifest| m.volume.name == name && tag.is_none_or(|t| m.snapshot.tag == t);
        // Of the latest instant, whenever it was backed up.
        if let Some(m) = all.iter().filter(named).max_by_key(|m| (m.snapshot.created_ms, m.created_ms)) {
            return Ok(m);
        }
        let begins: Vec<_> = all.iter().filter(|m| meant.len() >= 4 && m.id.starts_with(meant)).collect();
        match begins.as_slice() {
            [one] => Ok(one),
            [] => Err(Error::NotFound(format!(
                "the repository has no backup \"{meant}\": dog backup list names them"
            ))),
            _ => {
                Err(Error::NotFound(format!("several backups begin with \"{meant}\": write more of the id")))
            }
        }
    }

    /// Take a backup away; what only it needed stays until `prune`.
    ///
    /// # Errors
    /// `Place`.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        self.place.delete(&format!("backups/{id}")).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("starts")
    }

    async fn new(dir: &tempfile::TempDir) -> Repository {
        Repository::create(Place::dir(dir.path()), None, 64 << 10).await.expect("made")
    }

    #[test]
    fn a_lock_lives_as_long_as_its_program() {
        let dir = tempfile::tempdir().expect("a directory");
        start().block_on(async {
            let r = new(&dir).await;
            let lock = r.lock("backup").await.expect("locks");
            let name = lock.0.as_ref().expect("is held").name.clone();
            r.place.put(&name, Bytes::from_static(b"1000")).await.expect("put");
            assert!(r.lock("prune").await.is_ok(), "as old as if its program had died");
            tokio::time::sleep(2 * REFRESH).await;
            assert!(matches!(r.lock("prune").await, Err(Error::Locked(_))), "it is alive");
            lock.release().await.expect("released");
            tokio::time::sleep(3 * REFRESH).await;
            assert!(!r.place.has(&name).await.expect("asked"), "it does not come back");
        });
    }

    #[test]
    fn who_stood_still_neither_commits_nor_prunes() {
        let dir = tempfile::tempdir().expect("a directory");
        start().block_on(async {
            let r = new(&dir).await;
            let lock = r.lock("backup").await.expect("locks");
            r.commit(&lock, &[]).await.expect("committed");
            lock.0.as_ref().expect("is held").written.store(now_ms() - 2_000_000, Ordering::Relaxed);
            assert!(matches!(r.commit(&lock, &[]).await, Err(Error::Locked(_))));
        });
    }
}
