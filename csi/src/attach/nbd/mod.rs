//! The kernel's NBD client, through generic netlink.
//!
//! ```text
//!   file system or pod ─► /dev/nbdN ─► kernel ─► two unix sockets ─► sheep
//! ```
//!
//! The kernel has everything: sockets, requests under way, and, as the device's *backend*, which volume and attachment it is (`UUID/ATTACHMENT`). The plugin may
//! end at any time and finds its devices in sysfs. When sheep went away and is back, new sockets replace the dead ones, which the kernel allows only to
//! whoever names the same backend; requests without an answer are sent again by the kernel. Until then I/O waits, for as long as the dead connection timeout.

mod message;
mod socket;
pub mod table;

pub use message::family;

use super::{Attached, Request};
use crate::fault::{Fault, Kind, Outcome};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use table::Device;
use uuid::Uuid;

/// Sockets of a device: while one is busy with a large answer the other goes on.
const SOCKETS: usize = 2;
/// For a netlink request: one that resizes waits for I/O that is under way.
const PATIENCE: Duration = Duration::from_secs(30);
/// For a device to go.
const LET_GO: Duration = Duration::from_secs(10);

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Nbd {
    socket: PathBuf,
    dead_conn_timeout: u64,
    /// Sockets that the kernel was given, to hear when they die. Those of a plugin before this one are not here.
    given: Arc<Mutex<Vec<(u32, OwnedFd)>>>,
}

/// Netlink blocks: on a thread, and not for ever. A thread that hangs in the kernel is left behind.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Outcome<T> + Send + 'static) -> Outcome<T> {
    match tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(e)) => Err(Fault::internal(e.to_string())),
        Err(_) => Err(Fault::new(
            Kind::Unavailable,
            "the kernel's NBD does not answer: I/O of the device waits for the cluster",
        )),
    }
}

impl Nbd {
    /// Through the NBD socket of this node's sheep.
    pub fn new(socket: PathBuf, dead_conn_timeout: u64) -> Self {
        Self { socket, dead_conn_timeout, given: Arc::default() }
    }

    fn described(&self, d: Device) -> Attached {
        Attached {
            volume: d.volume,
            attachment: d.attachment,
            device: PathBuf::from(format!("/dev/nbd{}", d.index)),
            size: d.size,
            waiting: None,
        }
    }

    fn device(&self, volume: Uuid) -> Outcome<Option<Device>> {
        Ok(table::devices()?.into_iter().find(|d| d.volume == volume))
    }

    /// Let the kernel have further descriptors of the sockets, and keep ours to hear of their end.
    fn keep(&self, index: u32, sockets: Vec<OwnedFd>) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.extend(sockets.into_iter().map(|s| (index, s)));
    }

    fn forget(&self, index: u32) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|(i, _)| *i != index);
    }

    fn knows(&self, index: u32) -> bool {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|(i, _)| *i == index)
    }

    /// Devices of which a socket has died.
    fn dead(&self) -> Vec<u32> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dead: Vec<u32> = Vec::new();
        given.retain(|(index, s)| {
            let ended = socket::has_ended(s);
            if ended {
                dead.push(*index);
            }
            !ended
        });
        dead.dedup();
        dead
    }

    pub(super) async fn attach(&self, r: &Request) -> Outcome<Attached> {
        if let Some(d) = self.device(r.volume)? {
            if d.attachment == r.attachment {
                return Ok(self.described(d));
            }
            return Err(Fault::precondition(format!(
                "volume {} is here with attachment {}, not {}: it has to be detached first",
                r.volume, d.attachment, r.attachment
            )));
        }
        let (facts, sockets) = socket::open(&self.socket, &r.export, SOCKETS).await?;
        let wanted = message::Connect {
            size: facts.size,
            flags: facts.flags,
            read_only: r.read_only,
            dead_conn_timeout: self.dead_conn_timeout,
            backend: table::backend(r.volume, r.attachment),
        };
        let (index, sockets) = blocking(move || {
            let index = message::connect(&wanted, &sockets)?;
            Ok((index, sockets))
        })
        .await?;
        self.keep(index, sockets);
        table::tune(index);
        let found = self.device(r.volume)?.filter(|d| d.index == index && d.attachment == r.attachment);
        match found {
            Some(d) => {
                tracing::info!(
                    volume = r.volume.to_string(),
                    export = r.export,
                    "attached as /dev/nbd{index}"
                );
                Ok(self.described(d))
            }
            None => {
                self.forget(index);
                blocking(move || message::disconnect(index)).await?;
                Err(Fault::internal(format!(
                    "the kernel does not keep the backend of /dev/nbd{index}: NBD wants Linux {}.{} or newer",
                    crate::preflight::KERNEL.0,
                    crate::preflight::KERNEL.1
                )))
            }
        }
    }

    pub(super) async fn detach(&self, volume: Uuid) -> Outcome<()> {
        let deadline = Instant::now() + LET_GO;
        let Some(d) = self.device(volume)? else { return Ok(()) };
        if table::is_held(d.index) {
            return Err(Fault::precondition(format!("/dev/nbd{} is still in use", d.index)));
        }
        self.forget(d.index);
        blocking(move || message::disconnect(d.index)).await?;
        while self.device(volume)?.is_some() {
            if Instant::now() > deadline {
                return Err(Fault::new(Kind::Unavailable, format!("/dev/nbd{} does not go away", d.index)));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tracing::info!(volume = volume.to_string(), "detached");
        Ok(())
    }

    pub(super) async fn resize(&self, r: &Request) -> Outcome<u64> {
        let missing = || Fault::not_found(format!("volume {} is not attached here", r.volume));
        let d = self.device(r.volume)?.ok_or_else(missing)?;
        let size = socket::open(&self.socket, &r.export, 1).await?.0.size;
        if size > d.size {
            let backend = table::backend(d.volume, d.attachment);
            blocking(move || message::resize(d.index, size, &backend)).await?;
            tracing::info!(volume = r.volume.to_string(), before = d.size, after = size, "resized");
        }
        Ok(self.device(r.volume)?.ok_or_else(missing)?.size)
    }

    /// Replace dead sockets of these volumes, when sheep is there.
    pub(super) async fn revive(&self, staged: &[Request]) -> Outcome<()> {
        let dead = self.dead();
        for d in table::devices()? {
            let ours = staged.iter().find(|r| r.volume == d.volume && r.attachment == d.attachment);
            // Of a plugin before this one we have no sockets: whether they are dead is the kernel's to say.
            let Some(r) = ours.filter(|_| dead.contains(&d.index) || !self.knows(d.index)) else { continue };
            let (_, sockets) = socket::open(&self.socket, &r.export, SOCKETS).await?;
            let (backend, timeout) = (table::backend(d.volume, d.attachment), self.dead_conn_timeout);
            let sockets = blocking(move || {
                let replaced = message::reconnect(d.index, &backend, timeout, &sockets);
                Ok((replaced, sockets))
            });
            match sockets.await? {
                (Ok(()), sockets) => {
                    tracing::info!(volume = r.volume.to_string(), "/dev/nbd{} has new sockets", d.index);
                    self.keep(d.index, sockets);
                }
                (Err(f), _) => tracing::info!(volume = r.volume.to_string(), "no socket was replaced: {f}"),
            }
        }
        Ok(())
    }

    pub(super) async fn give_up(&self, volume: Uuid) -> Outcome<()> {
        let Some(d) = self.device(volume)? else { return Ok(()) };
        self.forget(d.index);
        blocking(move || message::disconnect(d.index)).await
    }

    pub(super) async fn list(&self) -> Outcome<Vec<Attached>> {
        Ok(table::devices()?.into_iter().map(|d| self.described(d)).collect())
    }
}
