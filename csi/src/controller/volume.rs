//! What is done to volumes that are there.

use super::{Controller, create, publish};
use crate::capability::{Fs, Use};
use crate::csi::*;
use crate::fault::{Fault, Outcome, given};
use crate::names::{self, Tag};
use crate::parameters::{Mutable, Parameters};
use crate::size::{self, Range, signed};
use sheepdog_client::ErrorKind;
use sheepdog_client::pb::node::State;
use sheepdog_client::pb::{
    AlterVdiCopiesRequest, ClusterInfoRequest, DeleteVdiRequest, NodeInfoReply, NodeInfoRequest, Redundancy,
    ResizeRequest, VdiRef,
};

pub(super) async fn delete(c: &Controller, id: String) -> Outcome<DeleteVolumeResponse> {
    let Some(vdi) = names::required_volume(&id)? else { return Ok(DeleteVolumeResponse {}) };
    let this = c.clone();
    c.locks
        .run("deletion", [format!("volume {id}")], async move {
            let Some(v) = this.sheep.volume(vdi).await? else { return Ok(DeleteVolumeResponse {}) };
            if let Some(node) = publish::nodes(&v).first() {
                return Err(Fault::precondition(format!(
                    "volume {id} is attached to node {node}: it is deleted after it is detached"
                )));
            }
            let vdi = Some(VdiRef::id(v.id));
            let mut rest = vec![String::new()];
            // Left behind by a controller that died while it cloned: nobody else knows them.
            let forgotten = v.snapshots.iter().filter(|s| names::tag(&s.tag) == Tag::Clone);
            rest.extend(forgotten.map(|s| s.tag.clone()));
            for snapshot in rest.into_iter().rev() {
                // The volume goes into the trash, where somebody may look for it.
                let now = !snapshot.is_empty();
                let request = DeleteVdiRequest { vdi: vdi.clone(), snapshot, now, ..Default::default() };
                match this.sheep.client().delete_vdi(request).await {
                    Err(e) if e.kind != ErrorKind::Missing => return Err(e.into()),
                    _ => {}
                }
            }
            tracing::info!(volume = id, name = v.name, "deleted");
            Ok(DeleteVolumeResponse {})
        })
        .await
}

pub(super) async fn validate(
    c: &Controller,
    r: ValidateVolumeCapabilitiesRequest,
) -> Outcome<ValidateVolumeCapabilitiesResponse> {
    if r.volume_id.is_empty() || r.volume_capabilities.is_empty() {
        return Err(Fault::invalid("a volume id and volume capabilities are needed"));
    }
    c.sheep.the_volume(&r.volume_id).await?;
    let fit = Use::all(&r.volume_capabilities, Fs::Ext4)
        .and_then(|_| Parameters::new(&r.parameters, &r.mutable_parameters));
    use validate_volume_capabilities_response::Confirmed;
    Ok(match fit {
        Err(f) => ValidateVolumeCapabilitiesResponse { confirmed: None, message: f.text },
        Ok(_) => ValidateVolumeCapabilitiesResponse {
            confirmed: Some(Confirmed {
                volume_context: r.volume_context,
                volume_capabilities: r.volume_capabilities,
                parameters: r.parameters,
                mutable_parameters: r.mutable_parameters,
            }),
            message: String::new(),
        },
    })
}

pub(super) async fn get(c: &Controller, id: &str) -> Outcome<ControllerGetVolumeResponse> {
    use controller_get_volume_response::VolumeStatus;
    let v = c.sheep.the_volume(id).await?;
    Ok(ControllerGetVolumeResponse {
        volume: Some(create::describe(c, &v).await?),
        status: Some(VolumeStatus { published_node_ids: publish::nodes(&v), volume_condition: None }),
    })
}

pub(super) async fn expand(
    c: &Controller,
    r: ControllerExpandVolumeRequest,
) -> Outcome<ControllerExpandVolumeResponse> {
    given("volume id", &r.volume_id)?;
    let range = r.capacity_range.ok_or_else(|| Fault::invalid("a capacity range is needed"))?;
    let range = Range::new(Some(&range))?;
    let this = c.clone();
    c.locks
        .run("expansion", [format!("volume {}", r.volume_id)], async move {
            let mut v = this.sheep.the_volume(&r.volume_id).await?;
            // Never smaller: that would lose data.
            let size = range.choose(v.size)?;
            if size > v.size {
                let request = ResizeRequest { vdi: Some(VdiRef::id(v.id)), size, shrink: false };
                v = this.sheep.client().resize(request).await?;
                tracing::info!(volume = v.uuid, size = v.size, "expanded");
            }
            Ok(ControllerExpandVolumeResponse {
                capacity_bytes: signed(v.size),
                node_expansion_required: true,
            })
        })
        .await
}

pub(super) async fn modify(
    c: &Controller,
    r: ControllerModifyVolumeRequest,
) -> Outcome<ControllerModifyVolumeResponse> {
    given("volume id", &r.volume_id)?;
    let this = c.clone();
    c.locks
        .run("modification", [format!("volume {}", r.volume_id)], async move {
            let v = this.sheep.the_volume(&r.volume_id).await?;
            let wanted = Mutable::new(&r.mutable_parameters)?;
            if let Some(redundancy) = wanted.redundancy.filter(|r| Some(*r) != v.redundancy) {
                let request =
                    AlterVdiCopiesRequest { vdi: Some(VdiRef::id(v.id)), redundancy: Some(redundancy) };
                this.sheep.client().alter_vdi_copies(request).await?;
                tracing::info!(volume = v.uuid, ?redundancy, "redundancy changed");
            }
            // After what may be refused for the moment: a claim that goes back to its old class then still has that one's limits.
            let was = v.limits.unwrap_or_default();
            this.sheep.limit(&v, wanted.limits.on(was)).await?;
            Ok(ControllerModifyVolumeResponse {})
        })
        .await
}

pub(super) async fn capacity(c: &Controller, r: GetCapacityRequest) -> Outcome<GetCapacityResponse> {
    let parameters = Parameters::new(&r.parameters, &Default::default())?;
    let fits = r.volume_capabilities.is_empty() || Use::all(&r.volume_capabilities, Fs::Ext4).is_ok();
    let here = match r.accessible_topology.as_ref().and_then(|t| t.segments.get(super::TOPOLOGY_CLUSTER)) {
        Some(id) => id == c.cluster().await?,
        None => true,
    };
    let redundancy = match parameters.redundancy {
        Some(r) => r,
        None => {
            let info = c.sheep.client().cluster_info(ClusterInfoRequest { history: 0 }).await?;
            info.redundancy.unwrap_or_default()
        }
    };
    let available = if fits && here {
        available(&c.sheep.client().node_info(NodeInfoRequest::default()).await?, &redundancy)
    } else {
        0
    };
    Ok(GetCapacityResponse {
        available_capacity: signed(available),
        maximum_volume_size: Some(signed(size::LARGEST)),
        minimum_volume_size: Some(signed(size::SMALLEST)),
    })
}

/// Bytes that new volumes may fill with this redundancy (of strips: once everything is put away), when what one node has must still find room elsewhere. Sheep that cannot say count as full.
fn available(info: &NodeInfoReply, redundancy: &Redundancy) -> u64 {
    let Redundancy { copies, data, parity } = *redundancy;
    let width = if data > 0 { data + parity } else { copies.max(1) };
    let stores = info.nodes.iter().filter(|s| {
        s.error.is_empty()
            && s.total > 0
            && s.node.as_ref().is_some_and(|n| !n.gateway && matches!(n.state(), State::Up))
    });
    let (mut free, mut most, mut nodes) = (0u64, 0, 0);
    for s in stores {
        free = free.saturating_add(s.free);
        most = most.max(s.used);
        nodes += 1;
    }
    if nodes < width {
        return 0;
    }
    // With as many nodes as copies there is nowhere else to rebuild to.
    let reserve = if nodes > width { most } else { 0 };
    free.saturating_sub(reserve) / u64::from(width) * u64::from(data.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_client::pb::{Node, NodeSpace};

    #[test]
    fn capacity_leaves_room_for_a_rebuild() {
        let node = |free, used, gateway| NodeSpace {
            node: Some(Node { gateway, ..Default::default() }),
            total: if gateway { 0 } else { free + used },
            free,
            used,
            ..Default::default()
        };
        let of = |nodes, copies| {
            let redundancy = Redundancy { copies, data: 0, parity: 0 };
            available(&NodeInfoReply { nodes, ..Default::default() }, &redundancy)
        };
        assert_eq!(of(vec![node(90, 10, false), node(80, 20, false), node(70, 30, false)], 3), 80);
        assert_eq!(of(vec![node(90, 10, false), node(80, 20, false), node(70, 30, false)], 2), 105);
        assert_eq!(of(vec![node(90, 10, false), node(0, 0, true)], 2), 0);
        assert_eq!(of(vec![node(10, 90, false), node(0, 100, false), node(0, 100, false)], 2), 0);
    }
}
