//! Where a repository is. Names have `/` between their parts; what is there under a name is whole: it was put at once, or is not there.

use crate::error::Error;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Largest thing in one file that is read back.
const MOST: u64 = 256 << 20;

/// See the module.
#[derive(Clone)]
pub struct Place(Kind);

#[derive(Clone)]
enum Kind {
    Dir(PathBuf),
    S3 {
        store: Arc<dyn ObjectStore>,
        prefix: String,
    },
    /// Put only.
    Writer(Arc<Mutex<tar::Builder<Box<dyn Write + Send>>>>),
    /// Get only: what is where.
    Reader {
        file: Arc<std::fs::File>,
        at: Arc<HashMap<String, (u64, u64)>>,
    },
}

impl Place {
    /// A directory, which may not be there yet.
    pub fn dir(path: &Path) -> Self {
        Self(Kind::Dir(path.to_owned()))
    }

    /// `s3://BUCKET/PREFIX`. Credentials, region and endpoint come from the usual variables: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`,
    /// `AWS_ENDPOINT_URL` (another service than Amazon's).
    ///
    /// # Errors
    /// They make no sense.
    pub fn s3(address: &str) -> Result<Self, Error> {
        let wrong = |why: &dyn std::fmt::Display| Error::Config(format!("{address}: {why}"));
        let rest = address.strip_prefix("s3://").ok_or_else(|| wrong(&"write s3://BUCKET/PREFIX"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(wrong(&"write s3://BUCKET/PREFIX"));
        }
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
        if let Ok(endpoint) =
            std::env::var("AWS_ENDPOINT_URL_S3").or_else(|_| std::env::var("AWS_ENDPOINT_URL"))
        {
            // Without TLS only where somebody has written so.
            builder = builder.with_allow_http(endpoint.starts_with("http://")).with_endpoint(endpoint);
        }
        let store = builder.build().map_err(|e| wrong(&e))?;
        let prefix = prefix.trim_matches('/').to_owned();
        Ok(Self(Kind::S3 { store: Arc::new(store), prefix }))
    }

    /// One file or stream (tar), to be written from the beginning to the end.
    pub fn writer(out: Box<dyn Write + Send>) -> Self {
        let mut tar = tar::Builder::new(out);
        tar.mode(tar::HeaderMode::Deterministic);
        Self(Kind::Writer(Arc::new(Mutex::new(tar))))
    }

    /// The same, to be read.
    ///
    /// # Errors
    /// It cannot be read, or is no such file.
    pub fn reader(mut file: std::fs::File) -> Result<Self, Error> {
        let wrong = |e: std::io::Error| {
            Error::place("the file", format!("{e}: is it one that dog vdi backup wrote?"))
        };
        file.seek(SeekFrom::Start(0)).map_err(wrong)?;
        let mut at = HashMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            at.insert(name, (entry.raw_file_position(), entry.size()));
        }
        Ok(Self(Kind::Reader { file: Arc::new(file), at: Arc::new(at) }))
    }

    /// Is it one file or stream?
    pub fn is_file(&self) -> bool {
        matches!(self.0, Kind::Writer(_) | Kind::Reader { .. })
    }

    /// Put; what was there is replaced.
    ///
    /// # Errors
    /// `Place`.
    pub async fn put(&self, name: &str, contents: Bytes) -> Result<(), Error> {
        match &self.0 {
            Kind::Dir(dir) => {
                let path = dir.join(name);
                blocking(name, move || put_file(&path, &[&contents])).await
            }
            Kind::S3 { store, prefix } => {
                let put = store.put(&key(prefix, name), contents.into()).await;
                put.map(drop).map_err(|e| Error::place(name, plain(&e)))
            }
            Kind::Writer(tar) => {
                let (tar, owned) = (tar.clone(), name.to_owned());
                blocking(name, move || {
                    let mut tar = tar.lock().map_err(|_| std::io::Error::other("an earlier write failed"))?;
                    let mut header = tar::Header::new_ustar();
                    header.set_size(contents.len() as u64);
                    header.set_mode(0o600);
                    tar.append_data(&mut header, owned, &contents[..])
                })
                .await
            }
            Kind::Reader { .. } => Err(Error::place(name, "the file is only read")),
        }
    }

    /// Where things lie on this host: then they are put there at once, on the thread that has made them. `None`: use `put`.
    pub(crate) fn local(&self) -> Option<Local<'_>> {
        match &self.0 {
            Kind::Dir(dir) => Some(Local(dir)),
            _ => None,
        }
    }

    /// Get; `None` where nothing is.
    ///
    /// # Errors
    /// `Place`.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>, Error> {
        match &self.0 {
            Kind::Dir(dir) => {
                let path = dir.join(name);
                blocking(name, move || found(std::fs::read(path)).map(|b| b.map(Bytes::from))).await
            }
            Kind::S3 { store, prefix } => match store.get(&key(prefix, name)).await {
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(e) => Err(Error::place(name, plain(&e))),
                Ok(found) => found.bytes().await.map(Some).map_err(|e| Error::place(name, plain(&e))),
            },
            Kind::Reader { file, at } => {
                let Some((at, len)) = at.get(name).copied() else { return Ok(None) };
                let file = file.clone();
                blocking(name, move || {
                    if len > MOST {
                        return Err(std::io::Error::other("larger than anything that is written there"));
                    }
                    let mut out = vec![0; len as usize];
                    std::os::unix::fs::FileExt::read_exact_at(&*file, &mut out, at)?;
                    Ok(Some(Bytes::from(out)))
                })
                .await
            }
            Kind::Writer(_) => Ok(None),
        }
    }

    /// Is something there?
    ///
    /// # Errors
    /// `Place`.
    pub async fn has(&self, name: &str) -> Result<bool, Error> {
        match &self.0 {
            Kind::Dir(dir) => {
                let path = dir.join(name);
                blocking(name, move || path.try_exists()).await
            }
            Kind::S3 { store, prefix } => match store.head(&key(prefix, name)).await {
                Ok(_) => Ok(true),
                Err(object_store::Error::NotFound { .. }) => Ok(false),
                Err(e) => Err(Error::place(name, plain(&e))),
            },
            Kind::Reader { at, .. } => Ok(at.contains_key(name)),
            Kind::Writer(_) => Ok(false),
        }
    }

    /// Names under a part, with their length in bytes, in order.
    ///
    /// # Errors
    /// `Place`.
    pub async fn list(&self, part: &str) -> Result<Vec<(String, u64)>, Error> {
        let mut out = match &self.0 {
            Kind::Dir(dir) => {
                let (dir, owned) = (dir.clone(), part.to_owned());
                blocking(part, move || {
                    let mut out = Vec::new();
                    walk(&dir.join(&owned), &owned, &mut out)?;
                    Ok(out)
                })
                .await?
            }
            Kind::S3 { store, prefix } => {
                let base = key(prefix, part);
                let strip = key(prefix, "").to_string();
                let all: Vec<_> =
                    store.list(Some(&base)).try_collect().await.map_err(|e| Error::place(part, plain(&e)))?;
                let short = |k: &Key| {
                    let whole = k.to_string();
                    whole.strip_prefix(&strip).unwrap_or(&whole).trim_start_matches('/').to_owned()
                };
                all.iter().map(|m| (short(&m.location), m.size)).collect()
            }
            Kind::Reader { at, .. } => {
                let under = format!("{part}/");
                at.iter()
                    .filter(|(n, _)| n.starts_with(&under))
                    .map(|(n, (_, len))| (n.clone(), *len))
                    .collect()
            }
            Kind::Writer(_) => Vec::new(),
        };
        out.sort_unstable();
        Ok(out)
    }

    /// Take away; nothing happens where nothing is.
    ///
    /// # Errors
    /// `Place`.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        match &self.0 {
            Kind::Dir(dir) => {
                let path = dir.join(name);
                blocking(name, move || found(std::fs::remove_file(path)).map(drop)).await
            }
            Kind::S3 { store, prefix } => match store.delete(&key(prefix, name)).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(e) => Err(Error::place(name, plain(&e))),
            },
            Kind::Writer(_) | Kind::Reader { .. } => {
                Err(Error::place(name, "nothing is deleted from a file"))
            }
        }
    }

    /// Everything that was put is on stable storage.
    ///
    /// # Errors
    /// `Place`.
    pub async fn sync(&self) -> Result<(), Error> {
        match &self.0 {
            Kind::Dir(dir) => {
                let dir = dir.clone();
                blocking("the repository", move || {
                    // All of its file system: cheaper than file after file.
                    rustix::fs::syncfs(std::fs::File::open(dir)?).map_err(Into::into)
                })
                .await
            }
            Kind::Writer(tar) => {
                let tar = tar.clone();
                blocking("the file", move || {
                    tar.lock()
                        .map_err(|_| std::io::Error::other("an earlier write failed"))?
                        .get_mut()
                        .flush()
                })
                .await
            }
            Kind::S3 { .. } | Kind::Reader { .. } => Ok(()),
        }
    }

    /// Nothing more is put.
    ///
    /// # Errors
    /// `Place`.
    pub async fn finish(&self) -> Result<(), Error> {
        if let Kind::Writer(tar) = &self.0 {
            let tar = tar.clone();
            blocking("the file", move || {
                tar.lock().map_err(|_| std::io::Error::other("an earlier write failed"))?.finish()
            })
            .await?;
        }
        self.sync().await
    }
}

/// A directory, from a thread that may wait for it.
pub(crate) struct Local<'a>(&'a Path);

impl Local<'_> {
    /// Is something there?
    pub(crate) fn has(&self, name: &str) -> Result<bool, Error> {
        self.0.join(name).try_exists().map_err(|e| Error::place(name, e))
    }
    /// Put; the parts follow each other.
    pub(crate) fn put(&self, name: &str, parts: &[&[u8]]) -> Result<(), Error> {
        put_file(&self.0.join(name), parts).map_err(|e| Error::place(name, e))
    }
}

fn key(prefix: &str, name: &str) -> Key {
    if prefix.is_empty() { Key::from(name) } else { Key::from(format!("{prefix}/{name}")) }
}

/// What a server has said, where it said something, without the markup around it.
fn plain(e: &object_store::Error) -> String {
    let whole = e.to_string();
    let between = |from: &str, to: &str| Some(whole.split_once(from)?.1.split_once(to)?.0.to_owned());
    match (between("<Code>", "</Code>"), between("<Message>", "</Message>")) {
        (Some(code), _) if code == "NoSuchBucket" => "there is no such bucket: make it first".into(),
        (Some(code), Some(message)) => format!("{message} ({code})"),
        _ => whole,
    }
}

async fn blocking<T: Send + 'static>(
    what: &str,
    f: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(f).await.map_err(|e| Error::place(what, e))?;
    done.map_err(|e| Error::place(what, e))
}

/// What is not there is no error.
fn found<T>(result: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match result {
        Ok(t) => Ok(Some(t)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Under another name first, so that nobody finds half of it.
fn put_file(path: &Path, contents: &[&[u8]]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let temporary = || tempfile::Builder::new().prefix(".new-").tempfile_in(dir);
    let mut file = match temporary() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(dir)?;
            temporary()?
        }
        other => other?,
    };
    for part in contents {
        file.write_all(part)?;
    }
    file.persist(path)?;
    Ok(())
}

fn walk(dir: &Path, name: &str, out: &mut Vec<(String, u64)>) -> std::io::Result<()> {
    let Some(entries) = found(std::fs::read_dir(dir))? else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let Ok(file) = entry.file_name().into_string() else { continue };
        if file.starts_with('.') {
            continue;
        }
        let name = format!("{name}/{file}");
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), &name, out)?;
        } else {
            out.push((name, entry.metadata()?.len()));
        }
    }
    Ok(())
}

/// What is read from a pipe goes into a file without a name first: restoring looks here and there in it.
///
/// # Errors
/// Either cannot be read or written.
pub fn spool(mut input: impl Read) -> std::io::Result<std::fs::File> {
    let mut file = tempfile::tempfile()?;
    std::io::copy(&mut input, &mut file)?;
    Ok(file)
}
