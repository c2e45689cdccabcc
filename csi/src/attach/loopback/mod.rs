//! FUSE and loop: the volume is a file of a small FUSE file system, and a loop device over that file is the block device.
//!
//! ```text
//!   file system or pod ─► /dev/loopN ─► kernel ─► FUSE ─► fuse-host ─► NBD, unix socket ─► sheep
//! ```
//!
//! The FUSE server must outlive the node plugin: its end is an I/O error for everybody above it. So it is a process of its own, `sheepdog-csi fuse-host`,
//! one a node, that does nothing else and is not restarted when the driver is updated. The node plugin asks it over a socket ([`control`]). When sheep goes away
//! it connects again, for as long as it takes, and sends what was not answered once more, in order ([`volume`]).

pub mod control;
mod file;
pub mod host;
mod loopdev;
mod volume;

use super::{Attached, Request};
use crate::fault::{Fault, Kind, Outcome};
use control::{Answer, Question};
use std::path::PathBuf;
use std::time::Duration;
use uuid::Uuid;

/// The node plugin's end: asks the fuse-host.
#[derive(Debug, Clone)]
pub struct Loopback {
    /// The fuse-host's socket.
    socket: PathBuf,
}

impl Loopback {
    /// Nothing is asked yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    async fn ask(&self, question: Question, limit: Duration) -> Outcome<Answer> {
        let asked = tokio::time::timeout(limit, control::ask(&self.socket, &question)).await;
        match asked {
            Ok(Ok(answer)) => answer.into_result(),
            Ok(Err(e)) => Err(Fault::new(
                Kind::Unavailable,
                format!(
                    "the fuse-host does not answer at {}: {e}: is `sheepdog-csi fuse-host` running on this node?",
                    self.socket.display()
                ),
            )),
            Err(_) => Err(Fault::new(
                Kind::Unavailable,
                format!("the fuse-host has not answered within {} s", limit.as_secs()),
            )),
        }
    }

    /// Does it run?
    pub async fn alive(&self) -> Outcome<()> {
        self.ask(Question::List, Duration::from_secs(5)).await.map(drop)
    }
    pub(super) async fn attach(&self, r: &Request) -> Outcome<Attached> {
        match self.ask(Question::Attach(r.clone()), Duration::from_secs(60)).await? {
            Answer::Attached(a) => Ok(a),
            other => Err(other.odd()),
        }
    }
    pub(super) async fn detach(&self, volume: Uuid) -> Outcome<()> {
        self.ask(Question::Detach(volume), Duration::from_secs(60)).await.map(drop)
    }
    pub(super) async fn resize(&self, volume: Uuid) -> Outcome<u64> {
        match self.ask(Question::Resize(volume), Duration::from_secs(60)).await? {
            Answer::Attached(a) => Ok(a.size),
            other => Err(other.odd()),
        }
    }
    pub(super) async fn give_up(&self, volume: Uuid) -> Outcome<()> {
        self.ask(Question::GiveUp(volume), Duration::from_secs(10)).await.map(drop)
    }
    pub(super) async fn list(&self) -> Outcome<Vec<Attached>> {
        match self.ask(Question::List, Duration::from_secs(10)).await? {
            Answer::All(all) => Ok(all),
            other => Err(other.odd()),
        }
    }
}
