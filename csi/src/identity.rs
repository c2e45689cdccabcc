//! Who we are.

use crate::csi::identity_server::Identity;
use crate::csi::plugin_capability::service::Type as Service;
use crate::csi::plugin_capability::volume_expansion::Type as Expansion;
use crate::csi::plugin_capability::{self, Type};
use crate::csi::*;
use crate::sheep::Sheep;
use sheepdog_client::pb::ClusterInfoRequest;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// True once the cluster has answered, for ever: a cluster that is away later must not have the driver restarted.
#[derive(Clone, Default, Debug)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
    /// Did it answer?
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Ask until it does, or the token ends.
    pub async fn watch(self, sheep: Sheep, stop: CancellationToken) {
        let mut pause = Duration::from_millis(200);
        loop {
            let asked = sheep.client().cluster_info(ClusterInfoRequest { history: 0 });
            let answer = tokio::select! {
                () = stop.cancelled() => return,
                answer = asked => answer,
            };
            match answer {
                Ok(_) => return self.0.store(true, Ordering::Relaxed),
                Err(e) => tracing::warn!("not ready: {e}"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(5)),
            }
        }
    }
}

/// The service.
#[derive(Debug)]
pub struct Plugin {
    /// Whether the cluster has answered.
    pub ready: Ready,
}

fn service(s: Service) -> PluginCapability {
    PluginCapability { r#type: Some(Type::Service(plugin_capability::Service { r#type: s.into() })) }
}

#[tonic::async_trait]
impl Identity for Plugin {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: crate::DRIVER.into(),
            vendor_version: crate::VERSION.into(),
            manifest: HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let online = plugin_capability::VolumeExpansion { r#type: Expansion::Online.into() };
        Ok(Response::new(GetPluginCapabilitiesResponse {
            capabilities: vec![
                service(Service::ControllerService),
                service(Service::VolumeAccessibilityConstraints),
                service(Service::GroupControllerService),
                service(Service::SnapshotMetadataService),
                PluginCapability { r#type: Some(Type::VolumeExpansion(online)) },
            ],
        }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(self.ready.get()) }))
    }
}
