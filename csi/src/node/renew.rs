//! A pod comes to a node on which its volume is still staged for an attachment that has ended.
//!
//! It happens when a node was cut off, its volumes were moved, and a pod is placed there again before the kubelet has taken down what was left: as long as the kubelet
//! believes a device to be mounted it does not ask for staging, but publishes what is there. That mount is of no use and not harmless: its I/O fails, but what the
//! kernel has cached is still read, which is older than the volume. So each publication is held against the attachment it is for, and the volume is staged anew.

use super::Plugin;
use super::stage::{self, Wanted};
use super::state::Staged;
use crate::csi::{NodePublishVolumeRequest, NodeStageVolumeRequest};
use crate::fault::{Fault, Outcome};
use crate::{luks, mount};

/// What is staged, for the attachment of this request.
///
/// # Errors
/// The attachment has ended; or another pod still holds what is left of an earlier one; or the volume cannot be staged.
pub(super) async fn current(p: &Plugin, s: Staged, r: &NodePublishVolumeRequest) -> Outcome<Staged> {
    let volume = s.request.volume;
    let attachment = stage::attachment(volume, &r.publish_context)?;
    let vdi = p.sheep.the_volume(&volume.to_string()).await?;
    stage::stands(p, &vdi, attachment)?;
    let Some(held) = p.backend.find(volume).await? else { return Ok(s) };
    let mounted = s.fs.is_none() || mount::at(&s.staging)?.is_some();
    if held.attachment == attachment && mounted {
        return Ok(s);
    }
    if let Some(target) = s.mounted_target(None) {
        return Err(Fault::precondition(format!(
            "volume {volume} is still mounted at {} through attachment {}, which has ended: the pod that had it there has to go first",
            target.display(),
            held.attachment
        )));
    }
    if s.encrypted && !r.secrets.contains_key(luks::SECRET) {
        return Err(Fault::precondition(format!(
            "volume {volume} has to be opened anew and its passphrase is not here: delete the pod, so that the volume is unstaged, or set csi.storage.k8s.io/node-publish-secret-name and -namespace in the storage class"
        )));
    }
    let again = NodeStageVolumeRequest {
        volume_id: r.volume_id.clone(),
        publish_context: r.publish_context.clone(),
        staging_target_path: r.staging_target_path.clone(),
        volume_capability: r.volume_capability.clone(),
        secrets: r.secrets.clone(),
        volume_context: r.volume_context.clone(),
    };
    stage::staged(p, &Wanted::new(&again)?).await?;
    let gone = || Fault::internal(format!("volume {volume} was staged and nothing is known of it"));
    p.store.get(volume)?.ok_or_else(gone)
}
