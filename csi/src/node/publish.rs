//! Publishing: a staged volume appears where a pod looks for it.

use super::stage::{device_of, remove_place};
use super::{Plugin, path, renew, volume};
use crate::capability::{Access, Fs, Shape, Use};
use crate::csi::*;
use crate::fault::{Fault, Outcome, given, io};
use crate::mount;
use std::path::Path;

pub(super) async fn publish(p: &Plugin, r: NodePublishVolumeRequest) -> Outcome<NodePublishVolumeResponse> {
    given("volume id", &r.volume_id)?;
    let target = path("target path", &r.target_path)?;
    let usage = Use::new(r.volume_capability.as_ref(), Fs::Ext4)?;
    if r.staging_target_path.is_empty() {
        return Err(Fault::precondition(
            "the volume has to be staged first: there is no staging target path",
        ));
    }
    let staging = path("staging target path", &r.staging_target_path)?;
    let volume = volume(&r.volume_id)?;
    let read_only = r.readonly || usage.access == Access::ReadOnly;
    p.operate("publishing", volume, |p| async move {
        let s = p.store.get(volume)?.filter(|s| s.staging == staging).ok_or_else(|| {
            Fault::precondition(format!("volume {volume} is not staged at {}", staging.display()))
        })?;
        if (usage.single_writer || s.single_writer)
            && let Some(other) = s.mounted_target(Some(&target))
        {
            return Err(Fault::precondition(format!(
                "volume {volume} is for one pod only and published at {} already",
                other.display()
            )));
        }
        let mut s = renew::current(&p, s, &r).await?;
        let device = device_of(&p, &s).await?;
        match (&usage.shape, s.fs) {
            (Shape::Block, None) => publish_device(&device, &target, read_only).await?,
            (Shape::Mount { .. }, Some(_)) => publish_mount(&staging, &device, &target, read_only).await?,
            _ => return Err(Fault::invalid("the volume was staged as the other of block and mount")),
        }
        if s.targets.insert(target) {
            p.store.put(&s)?;
        }
        Ok(NodePublishVolumeResponse {})
    })
    .await
}

async fn publish_mount(staging: &Path, device: &Path, target: &Path, read_only: bool) -> Outcome<()> {
    let staged = mount::at(staging)?;
    let number = mount::device_number(device)?;
    if staged.is_none_or(|m| m.device != number) {
        return Err(Fault::precondition(format!(
            "nothing of this volume is mounted at {}",
            staging.display()
        )));
    }
    match mount::at(target)? {
        Some(m) if m.device == number => return Ok(()),
        Some(m) => return Err(taken(target, &m.source)),
        None => std::fs::create_dir_all(target).map_err(io(target.display()))?,
    }
    mount::bind(staging, target, read_only).await
}

async fn publish_device(device: &Path, target: &Path, read_only: bool) -> Outcome<()> {
    if let Some(m) = mount::at(target)? {
        // A bind of a device node: which one, says the node.
        let same = mount::device_number(target).ok() == mount::device_number(device).ok();
        return if same { Ok(()) } else { Err(taken(target, &m.source)) };
    }
    if let Some(dir) = target.parent() {
        std::fs::create_dir_all(dir).map_err(io(dir.display()))?;
    }
    let made = std::fs::File::options().create(true).append(true).open(target);
    made.map_err(io(target.display()))?;
    mount::bind(device, target, read_only).await
}

fn taken(target: &Path, by: &str) -> Fault {
    Fault::precondition(format!("{} is mounted from {by}, which is not this volume", target.display()))
}

pub(super) async fn unpublish(
    p: &Plugin,
    r: NodeUnpublishVolumeRequest,
) -> Outcome<NodeUnpublishVolumeResponse> {
    given("volume id", &r.volume_id)?;
    let target = path("target path", &r.target_path)?;
    let Some(volume) = crate::names::volume_id(&r.volume_id) else {
        return Ok(NodeUnpublishVolumeResponse {});
    };
    p.operate("unpublishing", volume, |p| async move {
        mount::unmount(&target).await?;
        remove_place(&target)?;
        if let Some(mut s) = p.store.get(volume)?
            && s.targets.remove(&target)
        {
            p.store.put(&s)?;
        }
        Ok(NodeUnpublishVolumeResponse {})
    })
    .await
}
