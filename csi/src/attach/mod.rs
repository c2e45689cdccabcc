//! Volumes as block devices of this node.
//!
//! Two backends with one contract: `nbd` uses the kernel's NBD client through netlink, `loopback` a FUSE file and a loop device where the kernel has no NBD.
//!
//! What both keep:
//! * *Named by what it is*: a device belongs to (volume, attachment), which the kernel itself says (sysfs), never to a number that was remembered.
//! * *Nothing transient is an I/O error*: while sheep is away, I/O waits and is sent again.
//! * *Repeatable*: attaching what is attached answers its device, detaching what is not is done.

pub mod loopback;
pub mod nbd;

use crate::fault::Outcome;
use std::path::PathBuf;
use uuid::Uuid;

/// What to attach.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Request {
    /// Volume.
    pub volume: Uuid,
    /// Number of the attachment in the cluster, never used again.
    pub attachment: u64,
    /// Name of the NBD export.
    pub export: String,
    /// It may only be read.
    pub read_only: bool,
}

/// A device that is there.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attached {
    /// Volume.
    pub volume: Uuid,
    /// Number of the attachment.
    pub attachment: u64,
    /// Device.
    pub device: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Why its I/O waits, if it does.
    #[serde(default)]
    pub waiting: Option<String>,
}

/// A way to attach volumes.
#[derive(Debug, Clone)]
pub enum Backend {
    /// Kernel NBD.
    Nbd(nbd::Nbd),
    /// FUSE and loop.
    Loopback(loopback::Loopback),
}

impl Backend {
    /// As preflight reports it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Nbd(_) => "nbd",
            Self::Loopback(_) => "loop",
        }
    }
    /// Attach.
    pub async fn attach(&self, r: &Request) -> Outcome<Attached> {
        match self {
            Self::Nbd(b) => b.attach(r).await,
            Self::Loopback(b) => b.attach(r).await,
        }
    }
    /// Detach. Nothing may use the device any more.
    pub async fn detach(&self, volume: Uuid) -> Outcome<()> {
        match self {
            Self::Nbd(b) => b.detach(volume).await,
            Self::Loopback(b) => b.detach(volume).await,
        }
    }
    /// The volume has another size: let the device have it. Answers the size.
    pub async fn resize(&self, r: &Request) -> Outcome<u64> {
        match self {
            Self::Nbd(b) => b.resize(r).await,
            Self::Loopback(b) => b.resize(r.volume).await,
        }
    }
    /// The attachment is gone for good: whatever waits or comes fails, so that the device can be let go of.
    pub async fn give_up(&self, volume: Uuid) -> Outcome<()> {
        match self {
            Self::Nbd(b) => b.give_up(volume).await,
            Self::Loopback(b) => b.give_up(volume).await,
        }
    }
    /// Give devices of these volumes new connections where theirs are dead. The fuse-host does that by itself.
    pub async fn revive(&self, staged: &[Request]) -> Outcome<()> {
        match self {
            Self::Nbd(b) => b.revive(staged).await,
            Self::Loopback(_) => Ok(()),
        }
    }
    /// Everything that is attached.
    pub async fn list(&self) -> Outcome<Vec<Attached>> {
        match self {
            Self::Nbd(b) => b.list().await,
            Self::Loopback(b) => b.list().await,
        }
    }
    /// One that is attached.
    pub async fn find(&self, volume: Uuid) -> Outcome<Option<Attached>> {
        Ok(self.list().await?.into_iter().find(|a| a.volume == volume))
    }
}
