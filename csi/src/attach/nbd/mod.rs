//! The kernel's NBD client, through generic netlink.
//!
//! ```text
//!   file system or pod ─► /dev/nbdN ─► kernel ─► unix socket ─► sheep
//! ```
//!
//! The kernel has everything: the socket, requests under way, and, as the device's *backend*, which volume and attachment it is (`UUID/ATTACHMENT`). The plugin may
//! end at any time and finds its devices in sysfs. When sheep went away and is back, a new socket replaces the dead one, which the kernel allows only to
//! whoever names the same backend; requests without an answer are sent again by the kernel. Until then I/O waits, for as long as the dead connection timeout.
//!
//! One socket, because the kernel gives a device with several no way to wait: a request that takes longer than its timeout ends the connection it was sent on,
//! though the server is well and only waits for the cluster; when the last one has ended so, and the plugin is not there, I/O fails. A device with one socket and
//! no timeout waits, and sends again what was sent on a socket that has been replaced.

mod deaths;
mod message;
mod socket;
pub mod table;

pub use message::family;

use super::{Attached, Request};
use crate::fault::{Fault, Kind, Outcome};
use deaths::{Deaths, Suspects};
use sheepdog_nbd::client::Connected;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use table::Device;
use uuid::Uuid;

/// For a netlink request: one that resizes waits for I/O that is under way.
const PATIENCE: Duration = Duration::from_secs(30);
/// For a device to go.
const LET_GO: Duration = Duration::from_secs(10);

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Nbd {
    socket: PathBuf,
    dead_conn_timeout: u64,
    deaths: Arc<Mutex<Deaths>>,
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
        Self { socket, dead_conn_timeout, deaths: Arc::default() }
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

    /// Something to be done to the suspects, who are known to be among those present.
    fn suspects<T>(&self, present: &[u32], f: impl FnOnce(&mut Suspects) -> T) -> Outcome<T> {
        let mut deaths = self.deaths.lock().unwrap_or_else(PoisonError::into_inner);
        deaths.look(present).map(f)
    }

    /// Let the kernel have a new socket where the device's is dead. Answers what sheep said of the export.
    async fn offer(&self, d: &Device, r: &Request) -> Outcome<Connected> {
        let (facts, socket) = socket::open(&self.socket, &r.export).await?;
        let (index, backend) = (d.index, table::backend(d.volume, d.attachment));
        let timeout = self.dead_conn_timeout;
        blocking(move || message::reconnect(index, &backend, timeout, &socket)).await?;
        Ok(facts)
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
        let (facts, socket) = socket::open(&self.socket, &r.export).await?;
        let wanted = message::Connect {
            size: facts.size,
            flags: facts.flags,
            read_only: r.read_only,
            dead_conn_timeout: self.dead_conn_timeout,
            backend: table::backend(r.volume, r.attachment),
        };
        // The kernel has the socket from here on, and ours is closed.
        let index = blocking(move || message::connect(&wanted, &socket)).await?;
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
        if blocking(move || Ok(table::is_held(d.index))).await? {
            return Err(Fault::precondition(format!(
                "/dev/nbd{} is still in use: mounted in another mount namespace, or under another device",
                d.index
            )));
        }
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
        // The kernel first waits for all requests that are under way, and lets nobody replace a dead socket meanwhile: so that is done before.
        let size = self.offer(&d, r).await?.size;
        if size > d.size {
            let backend = table::backend(d.volume, d.attachment);
            blocking(move || message::resize(d.index, size, &backend)).await?;
            tracing::info!(volume = r.volume.to_string(), before = d.size, after = size, "resized");
        }
        Ok(self.device(r.volume)?.ok_or_else(missing)?.size)
    }

    /// Replace dead sockets of these volumes, when sheep is there. One that cannot be helped keeps no other from it.
    pub(super) async fn revive(&self, staged: &[Request]) -> Outcome<()> {
        let devices = table::devices()?;
        let present: Vec<u32> = devices.iter().map(|d| d.index).collect();
        let suspects = self.suspects(&present, |s| s.among(&present))?;
        let mut first = Ok(());
        for d in devices.iter().filter(|d| suspects.contains(&d.index)) {
            let ours = staged.iter().find(|r| r.volume == d.volume && r.attachment == d.attachment);
            let Some(r) = ours else { continue };
            // Before, so that what is heard meanwhile counts.
            self.suspects(&present, |s| s.clear(d.index))?;
            match self.offer(d, r).await {
                Ok(_) => {
                    tracing::info!(
                        volume = r.volume.to_string(),
                        "/dev/nbd{} has a socket that lives",
                        d.index
                    );
                }
                Err(f) => {
                    self.suspects(&present, |s| s.suspect(d.index))?;
                    first = first.and(Err(f));
                }
            }
        }
        first
    }

    pub(super) async fn give_up(&self, volume: Uuid) -> Outcome<()> {
        let Some(d) = self.device(volume)? else { return Ok(()) };
        blocking(move || message::disconnect(d.index)).await
    }

    pub(super) async fn list(&self) -> Outcome<Vec<Attached>> {
        Ok(table::devices()?.into_iter().map(|d| self.described(d)).collect())
    }
}
