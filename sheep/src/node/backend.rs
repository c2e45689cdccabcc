//! `AdminBackend`: the process, as the admin front-end sees it.

use super::data::DataHandle;
use super::keep;
use crate::config::Config;
use crate::control::plane::{ControlPlane, FormatError};
use crate::control::{Control, SendFut};
use crate::front::admin::backend::{AdminBackend, DataPlane, Standing};
use crate::front::admin::command_error;
use crate::observe::Observer;
use crate::store::Store;
use crate::store::fs::threads::ThreadsFs;
use sheepdog_client::{Error, ErrorKind};
use sheepdog_cluster::{ClusterState, Format, NodeState, Redundancy};
use sheepdog_proto::{ClusterId, DEFAULT_COPIES, DEFAULT_OBJECT_SIZE, NodeId};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Changes the log filter.
pub type SetLog = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// The process.
pub struct Daemon {
    /// Options.
    pub config: Config,
    /// Control plane.
    pub control: Control,
    /// Its other half.
    pub plane: Arc<ControlPlane>,
    /// Data thread.
    pub data: Arc<dyn DataPlane>,
    /// The same, for things the trait does not have.
    pub handle: DataHandle,
    /// Looks at all of it.
    pub observer: Arc<Observer>,
    /// Ends the process in order.
    pub stop: CancellationToken,
    /// TLS to other sheep's client ports.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Log filter in force.
    pub level: std::sync::Mutex<String>,
    /// Changes it.
    pub set_level: SetLog,
}

/// How long a rebuild looks for the sheep that its disks remember: they say hello to their seeds every half second.
const GATHER: std::time::Duration = std::time::Duration::from_secs(5);

impl Daemon {
    /// Every sheep of a remembered state that was not out waits to be taken in. What one of them has and no other would be missing in the new cluster.
    async fn others_are_there(&self, state: &ClusterState) -> Result<(), Error> {
        let until = tokio::time::Instant::now() + GATHER;
        loop {
            let waiting: Vec<NodeId> = self.plane.peers_waiting().iter().map(|p| p.node).collect();
            let missing: Vec<String> = state
                .nodes
                .values()
                .filter(|n| {
                    n.state != NodeState::Out
                        && !n.gateway
                        && n.id != self.control.me()
                        && !waiting.contains(&n.id)
                })
                .map(|n| format!("{} at {}:{}", n.id.short(), n.addr.host, n.addr.peer_port))
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            if tokio::time::Instant::now() >= until {
                let text = format!(
                    "the disks remember sheep that do not wait to be taken in: {}: start them with this sheep as --seed, and without the raft/ and \
                     node.json of the cluster that was lost; or, if they are lost as well, use --force",
                    missing.join(", ")
                );
                return Err(Error::new(ErrorKind::Cluster, text));
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
}

fn failed(e: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Cluster, e.to_string())
}

/// The newest state that these disks remember. File systems are of one thread, so this has one of its own.
fn state_on_disks(disks: &[std::path::PathBuf]) -> Option<ClusterState> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        let mut best: Option<ClusterState> = None;
        for path in disks {
            let found = Store::blob_at(&ThreadsFs, path, keep::NAME).await.and_then(|b| keep::decode(&b));
            if let Some(s) = found
                && best.as_ref().is_none_or(|b| (s.epoch, s.index) > (b.epoch, b.index))
            {
                best = Some(s);
            }
        }
        best
    })
}

impl AdminBackend for Daemon {
    fn control(&self) -> &Control {
        &self.control
    }
    fn data(&self) -> &Arc<dyn DataPlane> {
        &self.data
    }
    fn standing(&self) -> Standing {
        let s = self.plane.status();
        Standing {
            leader: s.leader,
            voters: s.voters,
            waiting: self
                .plane
                .peers_waiting()
                .iter()
                .map(|p| format!("{}:{}", p.addr.host, p.addr.peer_port))
                .collect(),
        }
    }
    fn complaints(&self) -> SendFut<'_, Vec<String>> {
        Box::pin(self.observer.complaints())
    }
    fn format_template(&self) -> Format {
        Format {
            cluster: ClusterId(uuid::Uuid::new_v4().as_u128()),
            created: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| d.as_millis() as u64),
            redundancy: self.config.redundancy.unwrap_or(Redundancy::Copies(match self.config.local {
                true => 1,
                false => DEFAULT_COPIES,
            })),
            min_copies: self.config.min_copies,
            strict: false,
            object_size: DEFAULT_OBJECT_SIZE,
            timing: self.config.timing,
            layout: None,
            trash_keep: sheepdog_cluster::TRASH_KEEP,
        }
    }
    fn format(&self, format: Format) -> SendFut<'_, Result<ClusterId, Error>> {
        Box::pin(async move {
            let id = self.plane.format(format).await.map_err(|e| match &e {
                FormatError::Refused(why) => command_error(why),
                FormatError::Member(_) => Error::new(ErrorKind::Exists, e.to_string()),
                FormatError::Remembered { .. } | FormatError::Identity(_) | FormatError::Control(_) => {
                    failed(e)
                }
            })?;
            if self.config.recovery_max_bytes_per_s > 0 {
                let command = sheepdog_cluster::Command::Recovery {
                    enabled: None,
                    max_bytes_per_s: Some(self.config.recovery_max_bytes_per_s),
                    concurrency: None,
                };
                self.control.propose(command).await.map_err(failed)?;
            }
            Ok(id)
        })
    }
    fn rebuild(&self, force: bool) -> SendFut<'_, Result<ClusterId, Error>> {
        Box::pin(async move {
            let disks = self.config.disks.clone();
            let found = tokio::task::spawn_blocking(move || state_on_disks(&disks)).await.map_err(failed)?;
            let Some(state) = found else {
                return Err(Error::new(
                    ErrorKind::Missing,
                    "the disks of this sheep hold no copy of a cluster's state: ask a sheep whose disks do"
                        .to_owned(),
                ));
            };
            if !force {
                self.others_are_there(&state).await?;
            }
            self.plane.rebuild(state).await.map_err(failed)
        })
    }
    fn stop(&self, reason: &str) {
        tracing::info!(reason, "stopping");
        let stop = self.stop.clone();
        tokio::spawn(async move {
            // The answer to whoever asked goes out first.
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            stop.cancel();
        });
    }
    fn log_level(&self) -> String {
        self.level.lock().map(|l| l.clone()).unwrap_or_default()
    }
    fn set_log_level(&self, filter: &str) -> Result<(), String> {
        (self.set_level)(filter)?;
        if let Ok(mut l) = self.level.lock() {
            *l = filter.to_owned();
        }
        Ok(())
    }
    fn client_tls(&self) -> Option<Arc<rustls::ClientConfig>> {
        self.tls.clone()
    }
}
