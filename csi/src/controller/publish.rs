//! Attachments: which nodes may use a volume. The answer of `Detach` is the fence: with it, nothing of the node can take effect any more, whatever has become of it.

use super::Controller;
use crate::capability::{Access, Fs, Use};
use crate::csi::*;
use crate::fault::{Fault, Kind, Outcome, given};
use crate::registry;
use sheepdog_client::pb::{
    self, AttachRequest, DetachRequest, Vdi, VdiRef, attachment, detach_request::Which,
};
use std::collections::HashMap;

/// Keys of what a node is told about its attachment.
pub mod context {
    /// Name of the NBD export.
    pub const EXPORT: &str = "export";
    /// Number of the attachment.
    pub const ATTACHMENT: &str = "attachment";
    /// `true`: it may only read.
    pub const READ_ONLY: &str = "readOnly";
}

/// As the admin interface says it.
fn wire(access: Access) -> attachment::Access {
    match access {
        Access::Single => attachment::Access::Single,
        Access::Shared => attachment::Access::Shared,
        Access::ReadOnly => attachment::Access::ReadOnly,
    }
}

/// May `node` get this volume? Says so before the cluster is asked, because CSI wants different answers for what is one refusal there.
fn permits(v: &Vdi, node: &str, access: Access) -> Outcome<()> {
    let wanted = i32::from(wire(access));
    if let Some(mine) = v.attachments.iter().find(|a| a.holder == node) {
        if mine.access == wanted {
            return Ok(());
        }
        return Err(Fault::new(
            Kind::Exists,
            format!(
                "volume {} is attached to {node} already, for another kind of access: detach it first",
                v.uuid
            ),
        ));
    }
    match v.attachments.iter().find(|a| access == Access::Single || a.access != wanted) {
        None => Ok(()),
        Some(other) => Err(Fault::precondition(format!(
            "volume {} is attached to node {}: it has to be detached there first",
            v.uuid, other.holder
        ))),
    }
}

pub(super) async fn publish(
    c: &Controller,
    r: ControllerPublishVolumeRequest,
) -> Outcome<ControllerPublishVolumeResponse> {
    given("volume id", &r.volume_id)?;
    registry::check_node(&r.node_id)?;
    let wanted = Use::new(r.volume_capability.as_ref(), Fs::Ext4)?;
    let access = if r.readonly { Access::ReadOnly } else { wanted.access };
    let this = c.clone();
    let key = format!("volume {}", r.volume_id);
    c.locks
        .run("attaching", [key], async move {
            let v = this.sheep.the_volume(&r.volume_id).await?;
            let node = registry::find(&this.sheep, &r.node_id).await?.ok_or_else(|| {
                Fault::not_found(format!(
                    "no node {} runs this driver: its node plugin has not registered with the cluster",
                    r.node_id
                ))
            })?;
            permits(&v, &r.node_id, access)?;
            room(&this, &v, &r.node_id, node.max_volumes).await?;
            let request = AttachRequest {
                vdi: Some(VdiRef::id(v.id)),
                holder: r.node_id.clone(),
                access: wire(access).into(),
            };
            let a = this.sheep.client().attach(request).await?;
            tracing::info!(volume = v.uuid, node = r.node_id, attachment = a.id, "attached");
            Ok(ControllerPublishVolumeResponse { publish_context: publish_context(&v, &a, access) })
        })
        .await
}

fn publish_context(v: &Vdi, a: &pb::Attachment, access: Access) -> HashMap<String, String> {
    let mut context = HashMap::from([
        (context::EXPORT.to_owned(), format!("{}#{}", v.name, a.id)),
        (context::ATTACHMENT.to_owned(), a.id.to_string()),
    ]);
    if access == Access::ReadOnly {
        context.insert(context::READ_ONLY.into(), "true".into());
    }
    context
}

/// Does the node take one more?
async fn room(c: &Controller, v: &Vdi, node: &str, max: u64) -> Outcome<()> {
    if max == 0 || v.attachments.iter().any(|a| a.holder == node) {
        return Ok(());
    }
    let all = c.sheep.all().await?;
    let has = all.iter().filter(|v| v.attachments.iter().any(|a| a.holder == node)).count() as u64;
    if has < max {
        return Ok(());
    }
    Err(Fault::new(
        Kind::Exhausted,
        format!("node {node} has {has} volumes attached and takes no more than {max}"),
    ))
}

pub(super) async fn unpublish(
    c: &Controller,
    r: ControllerUnpublishVolumeRequest,
) -> Outcome<ControllerUnpublishVolumeResponse> {
    let Some(id) = crate::names::required_volume(&r.volume_id)? else {
        return Ok(ControllerUnpublishVolumeResponse {});
    };
    // Without a node: everywhere. A node that cannot be one has nothing.
    let which = match r.node_id.as_str() {
        "" => Which::All(true),
        node => match registry::check_node(node) {
            Ok(()) => Which::Holder(node.to_owned()),
            Err(_) => return Ok(ControllerUnpublishVolumeResponse {}),
        },
    };
    let (this, key) = (c.clone(), format!("volume {}", r.volume_id));
    c.locks
        .run("detaching", [key], async move {
            let Some(v) = this.sheep.any(id).await? else { return Ok(ControllerUnpublishVolumeResponse {}) };
            // Also when it is not listed any more: an earlier call may have had no answer, and its answer is the fence.
            let request = DetachRequest { vdi: Some(VdiRef::id(v.id)), which: Some(which) };
            this.sheep.client().detach(request).await?;
            tracing::info!(volume = v.uuid, node = r.node_id, "detached");
            Ok(ControllerUnpublishVolumeResponse {})
        })
        .await
}

/// Nodes that have it attached.
pub(super) fn nodes(v: &Vdi) -> Vec<String> {
    v.attachments.iter().map(|a| a.holder.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_have_a_volume() {
        let with = |holders: &[(&str, Access)]| Vdi {
            attachments: holders
                .iter()
                .map(|(h, a)| pb::Attachment {
                    holder: (*h).into(),
                    access: wire(*a).into(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        };
        let ask = |v: &Vdi, node, access| permits(v, node, access).map_err(|f| f.kind);
        use Access::*;
        assert_eq!(ask(&with(&[]), "a", Single), Ok(()));
        assert_eq!(ask(&with(&[("a", Single)]), "a", Single), Ok(()));
        assert_eq!(ask(&with(&[("a", Single)]), "a", ReadOnly), Err(Kind::Exists));
        assert_eq!(ask(&with(&[("a", Single)]), "b", Single), Err(Kind::Precondition));
        assert_eq!(ask(&with(&[("a", Shared)]), "b", Shared), Ok(()));
        assert_eq!(ask(&with(&[("a", Shared)]), "b", Single), Err(Kind::Precondition));
        assert_eq!(ask(&with(&[("a", ReadOnly)]), "b", ReadOnly), Ok(()));
        assert_eq!(ask(&with(&[("a", ReadOnly)]), "b", Shared), Err(Kind::Precondition));
    }
}
