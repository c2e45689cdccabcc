//! The fuse-host: a process that serves the volumes of one node and does nothing else, so that it need not be restarted.
//!
//! For each volume it keeps an NBD connection, a FUSE mount at `DIR/UUID` with one file, and a loop device over that file.
//! It ends on SIGTERM only when nothing is attached; until then it says what is. What an earlier one left behind is of no use to anybody any more and is taken away
//! at the start.

use super::control::{self, Answer, Question};
use super::file::{NAME, OneFile};
use super::loopdev;
use super::volume::Handle;
use crate::attach::{Attached, Request};
use crate::fault::{Fault, Kind, Outcome, io};
use crate::locks::Locks;
use crate::mount;
use fuser::{BackgroundSession, Config, MountOption};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Volumes at a time.
const MAX_VOLUMES: usize = 1000;
/// For the kernel to let go of a loop device.
const LET_GO: Duration = Duration::from_secs(10);

/// One volume.
struct Entry {
    attachment: u64,
    handle: Handle,
    session: BackgroundSession,
    device: PathBuf,
}

impl Entry {
    fn attached(&self, volume: Uuid) -> Attached {
        Attached {
            volume,
            attachment: self.attachment,
            device: self.device.clone(),
            size: self.handle.size(),
            waiting: self.handle.waiting(),
        }
    }
}

/// See the module.
pub struct Host {
    dir: PathBuf,
    nbd: PathBuf,
    locks: Locks,
    entries: Mutex<BTreeMap<Uuid, Entry>>,
    /// Held while this process lives: a second one would take away the first one's volumes as left behind.
    _alone: std::fs::File,
}

impl Host {
    /// `dir`: where volumes are mounted. `nbd`: the socket of this node's sheep.
    pub fn new(dir: PathBuf, nbd: PathBuf) -> Outcome<Arc<Self>> {
        std::fs::create_dir_all(&dir).map_err(io(dir.display()))?;
        // As the kernel tells it.
        let dir = dir.canonicalize().map_err(io(dir.display()))?;
        let alone = std::fs::File::create(dir.join("lock")).map_err(io(dir.display()))?;
        rustix::fs::flock(&alone, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Fault::precondition(format!(
                "a fuse-host runs already for {}: it goes on until nothing is attached",
                dir.display()
            ))
        })?;
        Ok(Arc::new(Self { dir, nbd, locks: Locks::default(), entries: Mutex::default(), _alone: alone }))
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Uuid, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an earlier process left: loop devices over dead files, and dead mounts.
    pub fn clean(&self) -> Outcome<()> {
        for (file, device) in loopdev::all()? {
            if file.starts_with(&self.dir) {
                tracing::warn!(
                    "{} is over a file that an earlier fuse-host served: its I/O fails; taken away",
                    device.display()
                );
                loopdev::clear(&device)?;
            }
        }
        for m in mount::all()?.into_iter().filter(|m| m.at.starts_with(&self.dir) && m.fs.starts_with("fuse"))
        {
            tracing::warn!("{} was mounted by an earlier fuse-host: unmounted", m.at.display());
            let at = std::ffi::CString::new(m.at.as_os_str().as_encoded_bytes())
                .map_err(|e| Fault::internal(e.to_string()))?;
            // SAFETY: a path that ends with zero.
            if unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) } != 0 {
                return Err(io(m.at.display())(std::io::Error::last_os_error()));
            }
            let _ = std::fs::remove_dir(&m.at);
        }
        Ok(())
    }

    /// Answer questions until the token ends and nothing is attached.
    pub async fn run(self: Arc<Self>, listener: UnixListener, stop: CancellationToken) {
        let mut told = false;
        loop {
            let empty = self.entries().is_empty();
            if stop.is_cancelled() && empty {
                return;
            }
            if stop.is_cancelled() && !told {
                told = true;
                tracing::warn!("{} volumes are attached: ending when they are not", self.entries().len());
            }
            let accepted = tokio::select! {
                () = stop.cancelled(), if !told => continue,
                () = tokio::time::sleep(Duration::from_secs(1)), if told => continue,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let this = self.clone();
            tokio::spawn(async move {
                let asked = control::answer(stream, |q| async move { this.answer(q).await });
                // A caller that says nothing is not waited for for ever; one that waits for its answer is.
                if let Ok(Err(e)) = tokio::time::timeout(Duration::from_secs(300), asked).await {
                    tracing::debug!("a caller left: {e}");
                }
            });
        }
    }

    async fn answer(self: Arc<Self>, q: Question) -> Answer {
        let this = self.clone();
        let outcome = match q {
            Question::List => Ok(Answer::All(self.entries().iter().map(|(v, e)| e.attached(*v)).collect())),
            Question::Attach(r) => {
                let key = [r.volume.to_string()];
                let attached = self.locks.run("attaching", key, async move { this.attach(r).await }).await;
                attached.map(Answer::Attached)
            }
            Question::Detach(v) => {
                let detached = async move { this.detach(v).await };
                self.locks.run("detaching", [v.to_string()], detached).await.map(|()| Answer::Done)
            }
            Question::Resize(v) => {
                let resized = async move { this.resize(v).await };
                self.locks.run("resizing", [v.to_string()], resized).await.map(Answer::Attached)
            }
            Question::GiveUp(v) => {
                if let Some(e) = self.entries().get(&v) {
                    e.handle.give_up();
                }
                Ok(Answer::Done)
            }
        };
        outcome.unwrap_or_else(Answer::failed)
    }

    async fn attach(&self, r: Request) -> Outcome<Attached> {
        if let Some(e) = self.entries().get(&r.volume) {
            if e.attachment == r.attachment {
                return Ok(e.attached(r.volume));
            }
            return Err(Fault::precondition(format!(
                "volume {} is here with attachment {}, not {}: it has to be detached first",
                r.volume, e.attachment, r.attachment
            )));
        }
        if self.entries().len() >= MAX_VOLUMES {
            return Err(Fault::internal(format!("{MAX_VOLUMES} volumes are attached, there can be no more")));
        }
        let opened = Handle::open(&self.nbd, &r.export).await;
        let (handle, facts) = opened.map_err(|e| {
            Fault::new(Kind::Unavailable, format!("open {} at {}: {e}", r.export, self.nbd.display()))
        })?;
        let read_only = r.read_only || facts.read_only();
        let at = self.dir.join(r.volume.to_string());
        let made = tokio::task::spawn_blocking({
            let handle = handle.clone();
            move || present(&at, handle, r.volume, read_only)
        });
        let made = made.await.map_err(|e| Fault::internal(e.to_string()))?;
        let (session, device) = made.inspect_err(|_| handle.stop())?;
        let entry = Entry { attachment: r.attachment, handle, session, device };
        let attached = entry.attached(r.volume);
        tracing::info!(
            volume = r.volume.to_string(),
            export = r.export,
            "attached as {}",
            attached.device.display()
        );
        self.entries().insert(r.volume, entry);
        Ok(attached)
    }

    async fn detach(&self, volume: Uuid) -> Outcome<()> {
        let Some(device) = self.entries().get(&volume).map(|e| e.device.clone()) else { return Ok(()) };
        let file = self.dir.join(volume.to_string()).join(NAME);
        let gone = tokio::task::spawn_blocking(move || let_go(&file, &device));
        gone.await.map_err(|e| Fault::internal(e.to_string()))??;
        let Some(entry) = self.entries().remove(&volume) else { return Ok(()) };
        entry.handle.stop();
        let at = self.dir.join(volume.to_string());
        let unmounted = tokio::task::spawn_blocking(move || {
            entry.session.umount_and_join()?;
            std::fs::remove_dir(&at)
        });
        match unmounted.await {
            Ok(Ok(())) => tracing::info!(volume = volume.to_string(), "detached"),
            Ok(Err(e)) => tracing::warn!(volume = volume.to_string(), "detached, but unmounting: {e}"),
            Err(e) => tracing::warn!(volume = volume.to_string(), "detached, but unmounting broke off: {e}"),
        }
        Ok(())
    }

    async fn resize(&self, volume: Uuid) -> Outcome<Attached> {
        let found = self.entries().get(&volume).map(|e| (e.handle.clone(), e.device.clone()));
        let (handle, device) =
            found.ok_or_else(|| Fault::not_found(format!("volume {volume} is not attached here")))?;
        let before = handle.size();
        let after = handle.look_again().await;
        let after = after.map_err(|e| Fault::new(Kind::Unavailable, format!("ask for the size: {e}")))?;
        let file = self.dir.join(volume.to_string()).join(NAME);
        let grown = tokio::task::spawn_blocking(move || {
            // The kernel learns a file's size by asking, and the loop device looks at what the kernel knows.
            std::fs::metadata(&file).map_err(io(file.display()))?;
            loopdev::resize(&device)
        });
        grown.await.map_err(|e| Fault::internal(e.to_string()))??;
        if before != after {
            tracing::info!(volume = volume.to_string(), before, after, "resized");
        }
        let entries = self.entries();
        let entry = entries.get(&volume).ok_or_else(|| Fault::not_found("it was detached meanwhile"))?;
        Ok(entry.attached(volume))
    }
}

/// Mount the file and make a device over it.
fn present(
    at: &Path,
    handle: Handle,
    volume: Uuid,
    read_only: bool,
) -> Outcome<(BackgroundSession, PathBuf)> {
    std::fs::create_dir_all(at).map_err(io(at.display()))?;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(format!("sheepdog-{volume}")),
        MountOption::Subtype("sheepdog-csi".into()),
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
        MountOption::NoAtime,
    ];
    let session = fuser::spawn_mount(OneFile::new(handle), at, &config)
        .map_err(io(format!("mount FUSE at {} (is /dev/fuse there?)", at.display())))?;
    match loopdev::make(&at.join(NAME), &format!("sheepdog-{volume}"), read_only) {
        Ok(device) => Ok((session, device)),
        Err(f) => {
            let _ = session.umount_and_join();
            let _ = std::fs::remove_dir(at);
            Err(f)
        }
    }
}

/// Until the kernel has let go of the device, which it does when its last user is gone.
fn let_go(file: &Path, device: &Path) -> Outcome<()> {
    let deadline = Instant::now() + LET_GO;
    // Somebody else's by now, when it is not over our file.
    while loopdev::find(file)?.as_deref() == Some(device) {
        loopdev::clear(device)?;
        if loopdev::find(file)?.is_none() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Fault::precondition(format!("{} is still in use", device.display())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
