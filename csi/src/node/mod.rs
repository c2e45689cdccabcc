//! The plugin of one node: volumes become devices, devices file systems, file systems places in pods.
//!
//! ```text
//!   stage:   attach ─► (LUKS) ─► may it be formatted? ─► mkfs or fsck ─► mount at the staging path ─► grow
//!   publish: bind the staging path, or the device, to where the pod looks
//! ```
//!
//! Every step may be repeated, and is found done when it was, by asking the kernel. What must outlive this process (mounts, loop devices, the FUSE server, NBD in
//! the kernel) is none of this process's.

mod publish;
mod renew;
mod stage;
mod state;
mod stats;

use crate::attach::Backend;
use crate::cli::Here;
use crate::controller::{TOPOLOGY_CLUSTER, TOPOLOGY_ZONE};
use crate::csi::node_server::Node as Service;
use crate::csi::*;
use crate::fault::{Fault, Kind, Outcome};
use crate::locks::Locks;
use crate::registry::{self, Record};
use crate::sheep::Sheep;
use sheepdog_client::pb::{ClusterInfoRequest, ListNodesRequest};
use state::Store;
use std::collections::HashMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use uuid::Uuid;

/// How often devices are looked after whose connections may be dead.
const REVIVE: Duration = Duration::from_millis(500);
/// How often this node looks whether it is still known and its attachments still stand.
const LOOK: Duration = Duration::from_secs(15);

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Plugin {
    sheep: Sheep,
    backend: Backend,
    node_id: String,
    max_volumes: u32,
    locks: Locks,
    store: Store,
}

impl Plugin {
    /// One node.
    pub fn new(sheep: Sheep, backend: Backend, here: &Here) -> Outcome<Self> {
        registry::check_node(&here.node_id)?;
        Ok(Self {
            sheep,
            backend,
            node_id: here.node_id.clone(),
            max_volumes: here.max_volumes,
            locks: Locks::default(),
            store: Store::new(&here.state_dir)?,
        })
    }

    /// Run an operation of one volume.
    async fn operate<T: Send + 'static, F: Future<Output = Outcome<T>> + Send + 'static>(
        &self,
        doing: &'static str,
        volume: Uuid,
        operation: impl FnOnce(Self) -> F,
    ) -> Outcome<T> {
        self.locks.run(doing, [format!("volume {volume}")], operation(self.clone())).await
    }

    /// Make this node known. Answers the cluster's id and the zone.
    async fn register(&self) -> Outcome<(String, String)> {
        let info = self.sheep.client().cluster_info(ClusterInfoRequest { history: 0 }).await?;
        let nodes = self.sheep.client().list_nodes(ListNodesRequest {}).await?.nodes;
        let zone = nodes.into_iter().find(|n| n.id == info.answered_by).map(|n| n.zone).unwrap_or_default();
        let record = Record {
            sheep: info.answered_by,
            zone: zone.clone(),
            backend: self.backend.name().into(),
            version: crate::VERSION.into(),
            max_volumes: self.max_volumes.into(),
        };
        registry::register(&self.sheep, &self.node_id, &record).await?;
        Ok((info.id, zone))
    }

    async fn info(&self) -> Outcome<NodeGetInfoResponse> {
        let (cluster, zone) = self.register().await?;
        let mut segments = HashMap::from([(TOPOLOGY_CLUSTER.to_owned(), cluster)]);
        if is_label(&zone) {
            segments.insert(TOPOLOGY_ZONE.into(), zone);
        }
        Ok(NodeGetInfoResponse {
            node_id: self.node_id.clone(),
            max_volumes_per_node: self.max_volumes.into(),
            accessible_topology: Some(Topology { segments }),
        })
    }

    /// An attachment that is gone does not come back: whoever still waits for its I/O is told.
    async fn look_at_attachments(&self) -> Outcome<()> {
        for staged in self.store.all()? {
            let r = staged.request;
            let there = self.sheep.any(r.volume).await?;
            let stands = there.is_some_and(|v| v.attachments.iter().any(|a| a.id == r.attachment));
            if stands {
                continue;
            }
            // Staged anew since we looked?
            if self.store.get(r.volume)?.is_some_and(|s| s.request.attachment == r.attachment) {
                tracing::error!(
                    volume = r.volume.to_string(),
                    attachment = r.attachment,
                    "the attachment is gone: the volume's I/O on this node fails from now on"
                );
                self.backend.give_up(r.volume).await?;
            }
        }
        Ok(())
    }
}

/// Dead connections of devices get new ones, until the token ends.
async fn keep_connected(plugin: &Plugin) {
    let mut said = String::new();
    loop {
        let staged = plugin.store.all().map(|all| all.into_iter().map(|s| s.request).collect::<Vec<_>>());
        let outcome = match staged {
            Ok(staged) => plugin.backend.revive(&staged).await,
            Err(f) => Err(f),
        };
        // Once, not twice a second, for as long as sheep is away.
        let text = outcome.err().map(|f| f.text).unwrap_or_default();
        if text != said && !text.is_empty() {
            tracing::warn!("devices wait for new connections: {text}");
        }
        said = text;
        tokio::time::sleep(REVIVE).await;
    }
}

/// Values of topology segments are labels.
fn is_label(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && ends(text.chars().next())
        && ends(text.chars().last())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// Keep this node known and its devices honest until the token ends.
pub async fn watch(plugin: Plugin, stop: CancellationToken) {
    if let Err(f) = stage::recall(&plugin).await {
        tracing::warn!("look at what was staged before: {f}");
    }
    tokio::select! {
        () = stop.cancelled() => {}
        () = keep_connected(&plugin) => {}
        () = keep_honest(&plugin) => {}
    }
}

/// This node is known, and what is staged is its own.
async fn keep_honest(plugin: &Plugin) {
    loop {
        let looked = async {
            plugin.register().await?;
            plugin.look_at_attachments().await
        };
        if let Err(f) = looked.await {
            tracing::warn!("look at this node's attachments: {f}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A volume's id; one that cannot be ours is not found.
fn volume(id: &str) -> Outcome<Uuid> {
    crate::names::required_volume(id)?.ok_or_else(|| Fault::not_found(format!("there is no volume {id}")))
}

fn path(what: &str, text: &str) -> Outcome<std::path::PathBuf> {
    match text {
        "" => Err(Fault::invalid(format!("a {what} is needed"))),
        text if !text.starts_with('/') => Err(Fault::invalid(format!("the {what} {text} is not absolute"))),
        text => Ok(text.into()),
    }
}

type Reply<T> = Result<Response<T>, Status>;

fn reply<T>(outcome: Outcome<T>) -> Reply<T> {
    outcome.map(Response::new).map_err(|f| {
        if matches!(f.kind, Kind::Internal) {
            tracing::error!("{f}");
        }
        Status::from(f)
    })
}

#[tonic::async_trait]
impl Service for Plugin {
    async fn node_stage_volume(&self, r: Request<NodeStageVolumeRequest>) -> Reply<NodeStageVolumeResponse> {
        reply(stage::stage(self, r.into_inner()).await)
    }
    async fn node_unstage_volume(
        &self,
        r: Request<NodeUnstageVolumeRequest>,
    ) -> Reply<NodeUnstageVolumeResponse> {
        reply(stage::unstage(self, r.into_inner()).await)
    }
    async fn node_publish_volume(
        &self,
        r: Request<NodePublishVolumeRequest>,
    ) -> Reply<NodePublishVolumeResponse> {
        reply(publish::publish(self, r.into_inner()).await)
    }
    async fn node_unpublish_volume(
        &self,
        r: Request<NodeUnpublishVolumeRequest>,
    ) -> Reply<NodeUnpublishVolumeResponse> {
        reply(publish::unpublish(self, r.into_inner()).await)
    }
    async fn node_get_volume_stats(
        &self,
        r: Request<NodeGetVolumeStatsRequest>,
    ) -> Reply<NodeGetVolumeStatsResponse> {
        reply(stats::stats(self, r.into_inner()).await)
    }
    async fn node_expand_volume(
        &self,
        r: Request<NodeExpandVolumeRequest>,
    ) -> Reply<NodeExpandVolumeResponse> {
        reply(stats::expand(self, r.into_inner()).await)
    }
    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Reply<NodeGetCapabilitiesResponse> {
        use node_service_capability::{Rpc, Type, rpc::Type::*};
        let all = [StageUnstageVolume, GetVolumeStats, ExpandVolume, SingleNodeMultiWriter];
        let capabilities = all
            .into_iter()
            .map(|t| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: t.into() })) })
            .collect();
        reply(Ok(NodeGetCapabilitiesResponse { capabilities }))
    }
    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Reply<NodeGetInfoResponse> {
        reply(self.info().await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_that_are_no_labels_are_left_out() {
        for (text, label) in [("zone-1", true), ("", false), ("a b", false), ("-a", false), ("a.b_c", true)] {
            assert_eq!(is_label(text), label, "{text}");
        }
    }
}
