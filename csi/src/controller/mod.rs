//! The controller: volumes, snapshots, groups of snapshots, attachments. Everything it knows is in the cluster; it may be restarted, or run twice, at any time.
//!
//! One file per kind of thing; this one turns requests of tonic into their calls. Operations that change something run under `locks`, by the name that
//! makes them unique.

mod create;
mod group;
mod list;
mod metadata;
mod publish;
mod snapshot;
mod volume;

use crate::csi::controller_server::Controller as Service;
use crate::csi::group_controller_server::GroupController;
use crate::csi::snapshot_metadata_server::SnapshotMetadata;
use crate::csi::*;
use crate::fault::Outcome;
use crate::locks::Locks;
use crate::sheep::Sheep;
use sheepdog_client::pb::ClusterInfoRequest;
use std::sync::Arc;
use tokio::sync::OnceCell;
use tonic::{Request, Response, Status};

pub use create::context as made;
pub use publish::context as attached;

/// Key of the one constraint on where a volume can be used: nodes with a sheep of its cluster.
pub const TOPOLOGY_CLUSTER: &str = "topology.csi.sheepdog.io/cluster";
/// Key of a node's zone, as its sheep says it. Volumes are spread over zones, so it constrains nothing.
pub const TOPOLOGY_ZONE: &str = "topology.csi.sheepdog.io/zone";

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Controller {
    sheep: Sheep,
    locks: Locks,
    cluster: Arc<OnceCell<String>>,
}

impl Controller {
    /// Knows nothing yet.
    pub fn new(sheep: Sheep) -> Self {
        Self { sheep, locks: Locks::default(), cluster: Arc::default() }
    }

    /// The cluster's id.
    async fn cluster(&self) -> Outcome<&str> {
        let ask =
            || async { Ok(self.sheep.client().cluster_info(ClusterInfoRequest { history: 0 }).await?.id) };
        self.cluster.get_or_try_init(ask).await.map(String::as_str)
    }
}

type Reply<T> = Result<Response<T>, Status>;

fn reply<T>(outcome: Outcome<T>) -> Reply<T> {
    outcome.map(Response::new).map_err(Status::from)
}

fn capability(rpc: controller_service_capability::rpc::Type) -> ControllerServiceCapability {
    use controller_service_capability::{Rpc, Type};
    ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: rpc.into() })) }
}

#[tonic::async_trait]
impl Service for Controller {
    async fn create_volume(&self, r: Request<CreateVolumeRequest>) -> Reply<CreateVolumeResponse> {
        reply(create::create(self, r.into_inner()).await)
    }
    async fn delete_volume(&self, r: Request<DeleteVolumeRequest>) -> Reply<DeleteVolumeResponse> {
        reply(volume::delete(self, r.into_inner().volume_id).await)
    }
    async fn controller_publish_volume(
        &self,
        r: Request<ControllerPublishVolumeRequest>,
    ) -> Reply<ControllerPublishVolumeResponse> {
        reply(publish::publish(self, r.into_inner()).await)
    }
    async fn controller_unpublish_volume(
        &self,
        r: Request<ControllerUnpublishVolumeRequest>,
    ) -> Reply<ControllerUnpublishVolumeResponse> {
        reply(publish::unpublish(self, r.into_inner()).await)
    }
    async fn validate_volume_capabilities(
        &self,
        r: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Reply<ValidateVolumeCapabilitiesResponse> {
        reply(volume::validate(self, r.into_inner()).await)
    }
    async fn list_volumes(&self, r: Request<ListVolumesRequest>) -> Reply<ListVolumesResponse> {
        reply(list::volumes(self, r.into_inner()).await)
    }
    async fn get_capacity(&self, r: Request<GetCapacityRequest>) -> Reply<GetCapacityResponse> {
        reply(volume::capacity(self, r.into_inner()).await)
    }
    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Reply<ControllerGetCapabilitiesResponse> {
        use controller_service_capability::rpc::Type::*;
        let all = [
            CreateDeleteVolume,
            PublishUnpublishVolume,
            ListVolumes,
            GetCapacity,
            CreateDeleteSnapshot,
            ListSnapshots,
            CloneVolume,
            PublishReadonly,
            ExpandVolume,
            ListVolumesPublishedNodes,
            GetVolume,
            SingleNodeMultiWriter,
            ModifyVolume,
            GetSnapshot,
        ];
        let capabilities = all.into_iter().map(capability).collect();
        reply(Ok(ControllerGetCapabilitiesResponse { capabilities }))
    }
    async fn create_snapshot(&self, r: Request<CreateSnapshotRequest>) -> Reply<CreateSnapshotResponse> {
        reply(snapshot::create(self, r.into_inner()).await)
    }
    async fn delete_snapshot(&self, r: Request<DeleteSnapshotRequest>) -> Reply<DeleteSnapshotResponse> {
        reply(snapshot::delete(self, r.into_inner().snapshot_id).await)
    }
    async fn list_snapshots(&self, r: Request<ListSnapshotsRequest>) -> Reply<ListSnapshotsResponse> {
        reply(list::snapshots(self, r.into_inner()).await)
    }
    async fn get_snapshot(&self, r: Request<GetSnapshotRequest>) -> Reply<GetSnapshotResponse> {
        reply(snapshot::get(self, &r.into_inner().snapshot_id).await)
    }
    async fn controller_expand_volume(
        &self,
        r: Request<ControllerExpandVolumeRequest>,
    ) -> Reply<ControllerExpandVolumeResponse> {
        reply(volume::expand(self, r.into_inner()).await)
    }
    async fn controller_get_volume(
        &self,
        r: Request<ControllerGetVolumeRequest>,
    ) -> Reply<ControllerGetVolumeResponse> {
        reply(volume::get(self, &r.into_inner().volume_id).await)
    }
    async fn controller_modify_volume(
        &self,
        r: Request<ControllerModifyVolumeRequest>,
    ) -> Reply<ControllerModifyVolumeResponse> {
        reply(volume::modify(self, r.into_inner()).await)
    }
}

#[tonic::async_trait]
impl GroupController for Controller {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Reply<GroupControllerGetCapabilitiesResponse> {
        use group_controller_service_capability::{Rpc, Type, rpc};
        let all = rpc::Type::CreateDeleteGetVolumeGroupSnapshot;
        let one = GroupControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: all.into() })) };
        reply(Ok(GroupControllerGetCapabilitiesResponse { capabilities: vec![one] }))
    }
    async fn create_volume_group_snapshot(
        &self,
        r: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Reply<CreateVolumeGroupSnapshotResponse> {
        reply(group::create(self, r.into_inner()).await)
    }
    async fn delete_volume_group_snapshot(
        &self,
        r: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Reply<DeleteVolumeGroupSnapshotResponse> {
        reply(group::delete(self, r.into_inner()).await)
    }
    async fn get_volume_group_snapshot(
        &self,
        r: Request<GetVolumeGroupSnapshotRequest>,
    ) -> Reply<GetVolumeGroupSnapshotResponse> {
        reply(group::get(self, r.into_inner()).await)
    }
}

#[tonic::async_trait]
impl SnapshotMetadata for Controller {
    type GetMetadataAllocatedStream = metadata::Answers<GetMetadataAllocatedResponse>;
    async fn get_metadata_allocated(
        &self,
        r: Request<GetMetadataAllocatedRequest>,
    ) -> Reply<Self::GetMetadataAllocatedStream> {
        reply(metadata::allocated(self, r.into_inner()).await)
    }
    type GetMetadataDeltaStream = metadata::Answers<GetMetadataDeltaResponse>;
    async fn get_metadata_delta(
        &self,
        r: Request<GetMetadataDeltaRequest>,
    ) -> Reply<Self::GetMetadataDeltaStream> {
        reply(metadata::delta(self, r.into_inner()).await)
    }
}
