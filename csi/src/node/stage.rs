//! Staging: from an attachment to a mounted file system, or to a device.

use super::state::Staged;
use super::{Plugin, path, volume};
use crate::attach::Request;
use crate::capability::{Access, Fs, Shape, Use};
use crate::controller::{attached, made};
use crate::csi::*;
use crate::fault::{Fault, Outcome, given, io};
use crate::guard::{self, Format, Probe, Verdict, What, Witnesses};
use crate::names::ATTR_FORMAT;
use crate::{luks, mount};
use sheepdog_client::pb::Vdi;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// A request as it is meant.
pub(super) struct Wanted {
    volume: Uuid,
    staging: PathBuf,
    usage: Use,
    attachment: u64,
    read_only: bool,
    passphrase: Option<String>,
    checked: bool,
}

impl Wanted {
    pub(super) fn new(r: &NodeStageVolumeRequest) -> Outcome<Self> {
        // In this order, so that what is missing is said before what is not there.
        given("volume id", &r.volume_id)?;
        let staging = path("staging target path", &r.staging_target_path)?;
        let is = |key: &str, value: &str| r.volume_context.get(key).is_some_and(|v| v == value);
        let default = Fs::parse(r.volume_context.get(made::FS).map_or("", String::as_str))?;
        let usage = Use::new(r.volume_capability.as_ref(), default)?;
        let volume = volume(&r.volume_id)?;
        let attachment = attachment(volume, &r.publish_context)?;
        let read_only = usage.access == Access::ReadOnly
            || r.publish_context.get(attached::READ_ONLY).is_some_and(|v| v == "true");
        let encrypted = is(made::ENCRYPTED, "true");
        let passphrase = if encrypted { Some(luks::passphrase(&r.secrets)?.to_owned()) } else { None };
        Ok(Self {
            volume,
            staging,
            usage,
            attachment,
            read_only,
            passphrase,
            checked: !is(made::CHECK, "false"),
        })
    }

    fn fs(&self) -> Option<(Fs, &[String])> {
        match &self.usage.shape {
            Shape::Block => None,
            Shape::Mount { fs, options } => Some((*fs, options)),
        }
    }
}

/// Number of the attachment that a request is for.
pub(super) fn attachment(volume: Uuid, context: &HashMap<String, String>) -> Outcome<u64> {
    let number = context.get(attached::ATTACHMENT).and_then(|n| n.parse().ok());
    number.ok_or_else(|| {
        Fault::precondition(format!(
            "volume {volume} was not attached to this node by ControllerPublishVolume"
        ))
    })
}

pub(super) async fn stage(p: &Plugin, r: NodeStageVolumeRequest) -> Outcome<NodeStageVolumeResponse> {
    let wanted = Wanted::new(&r)?;
    p.operate("staging", wanted.volume, |p| async move {
        staged(&p, &wanted).await.map_err(|f| f.during(&format!("stage volume {}", wanted.volume)))?;
        Ok(NodeStageVolumeResponse {})
    })
    .await
}

/// Done when it returns, as often as it is asked.
pub(super) async fn staged(p: &Plugin, w: &Wanted) -> Outcome<()> {
    let vdi = p.sheep.the_volume(&w.volume.to_string()).await?;
    stands(p, &vdi, w.attachment)?;
    let request = Request {
        volume: w.volume,
        attachment: w.attachment,
        // By the name it has now: it may have been renamed.
        export: format!("{}#{}", vdi.name, w.attachment),
        read_only: w.read_only,
    };
    let before = p.store.get(w.volume)?;
    if let Some(s) = &before {
        compatible(s, w)?;
    }
    // Written down before anything is done, so that whatever is left can be undone.
    p.store.put(&Staged {
        request: request.clone(),
        staging: w.staging.clone(),
        fs: w.fs().map(|(fs, _)| fs),
        encrypted: w.passphrase.is_some(),
        single_writer: w.usage.single_writer,
        targets: before.map(|s| s.targets).unwrap_or_default(),
    })?;
    leave_old_attachment(p, w).await?;
    let device = p.backend.attach(&request).await?.device;
    let Some((fs, options)) = w.fs() else {
        if let Some(passphrase) = &w.passphrase {
            open_container(p, &vdi, w, &device, passphrase).await?;
        }
        return Ok(());
    };
    if let Some(m) = mount::at(&w.staging)? {
        return same_device(&m, &plain_device(w, &device), &w.staging);
    }
    let device = match &w.passphrase {
        None => device,
        Some(passphrase) => open_container(p, &vdi, w, &device, passphrase).await?,
    };
    prepare(p, w, &device, fs).await?;
    // Restored into something larger, or expanded while it was not here.
    let in_use = mount::grows_in_use(fs);
    if !w.read_only && !in_use {
        mount::grow_unmounted(&device, super::stats::device_size(&device).await?).await?;
    }
    mount::mount(&device, &w.staging, fs, w.read_only, options).await?;
    if !w.read_only && in_use {
        mount::grow(fs, &device, &w.staging).await?;
    }
    tracing::info!(volume = w.volume.to_string(), "staged {} at {}", device.display(), w.staging.display());
    Ok(())
}

/// The device that is mounted.
fn plain_device(w: &Wanted, device: &Path) -> PathBuf {
    if w.passphrase.is_some() { luks::device(w.volume) } else { device.to_owned() }
}

/// The cluster must know of the attachment, or the volume is somebody else's by now.
pub(super) fn stands(p: &Plugin, v: &Vdi, attachment: u64) -> Outcome<()> {
    match v.attachments.iter().find(|a| a.id == attachment) {
        Some(a) if a.holder == p.node_id => Ok(()),
        Some(a) => Err(Fault::precondition(format!(
            "attachment {attachment} is node {}'s, not this one's",
            a.holder
        ))),
        None => Err(Fault::precondition(format!(
            "attachment {attachment} is gone: the volume was detached from this node and has to be attached again"
        ))),
    }
}

/// A second request for what is staged must be for the same.
fn compatible(s: &Staged, w: &Wanted) -> Outcome<()> {
    if s.staging != w.staging {
        return Err(Fault::precondition(format!(
            "volume {} is staged at {} already: unstage it there first",
            w.volume,
            s.staging.display()
        )));
    }
    let fs = w.fs().map(|(fs, _)| fs);
    if s.request.attachment == w.attachment && (s.fs != fs || s.request.read_only != w.read_only) {
        return Err(Fault::new(
            crate::fault::Kind::Exists,
            format!("volume {} is staged already, for another kind of use", w.volume),
        ));
    }
    Ok(())
}

/// The volume was detached from this node and attached again while it was staged. What is left of the first time is of no use.
async fn leave_old_attachment(p: &Plugin, w: &Wanted) -> Outcome<()> {
    let Some(old) = p.backend.find(w.volume).await?.filter(|a| a.attachment != w.attachment) else {
        return Ok(());
    };
    tracing::warn!(
        volume = w.volume.to_string(),
        attachment = old.attachment,
        "left over from an earlier attachment"
    );
    p.backend.give_up(w.volume).await?;
    mount::unmount(&w.staging).await?;
    luks::close(w.volume).await?;
    p.backend.detach(w.volume).await
}

fn same_device(m: &mount::Mount, device: &Path, at: &Path) -> Outcome<()> {
    if m.device == mount::device_number(device)? {
        return Ok(());
    }
    Err(Fault::precondition(format!(
        "{} is mounted from {}, which is not this volume: unmount it first",
        at.display(),
        m.source
    )))
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// All witnesses, for a device that is the volume or the inside of its container.
async fn witnesses(p: &Plugin, id: Uuid, device: &Path, read_only: bool) -> Outcome<Witnesses> {
    let vdi = p.sheep.the_volume(&id.to_string()).await?;
    let record = Format::of(&vdi)?;
    // Read first: a device that cannot be read looks like nothing to a probe.
    let ends_are_zeros = guard::ends_are_zeros(device).await?;
    let probe = guard::probe(device).await?;
    // A clone of something blank has said so; other clones hold what their source does.
    let own = vdi.parent.is_none() || record == Some(Format::Blank);
    let never_written = probe == Probe::Nothing && own && p.sheep.is_blank(vdi.id, "").await?;
    Ok(Witnesses { record, never_written, ends_are_zeros, probe, read_only })
}

/// A file system that can be mounted.
async fn prepare(p: &Plugin, w: &Wanted, device: &Path, fs: Fs) -> Outcome<()> {
    let mut seen = witnesses(p, w.volume, device, w.read_only).await?;
    if w.passphrase.is_some() {
        // Inside a container that was just made, or opened: its inside has no map, and reads as noise where nothing was written. What was recorded counts.
        let making = matches!(seen.record, Some(Format::Making(_)));
        seen.never_written &= making;
    }
    match guard::judge(fs.name(), &seen) {
        Verdict::Refuse(why) => return Err(Fault::precondition(why)),
        Verdict::Use if w.read_only || !w.checked => {}
        Verdict::Use => mount::check(fs, device).await?,
        Verdict::Make => {
            let what = What { fs, encrypted: w.passphrase.is_some(), since_ms: now_ms() };
            record(p, w.volume, &Format::Making(what)).await?;
            mount::make(fs, device).await?;
            record(p, w.volume, &Format::Made(What { since_ms: now_ms(), ..what })).await?;
            tracing::info!(volume = w.volume.to_string(), "made {} on {}", fs.name(), device.display());
        }
    }
    Ok(())
}

async fn record(p: &Plugin, id: Uuid, format: &Format) -> Outcome<()> {
    let vdi = p.sheep.the_volume(&id.to_string()).await?;
    p.sheep.set(vdi.id, ATTR_FORMAT, format.to_text()?.as_bytes()).await
}

/// The LUKS2 container: made when the volume is blank, opened when it is there.
async fn open_container(
    p: &Plugin,
    vdi: &Vdi,
    w: &Wanted,
    device: &Path,
    passphrase: &str,
) -> Outcome<PathBuf> {
    if luks::device(w.volume).exists() {
        return Ok(luks::device(w.volume));
    }
    let seen = witnesses(p, w.volume, device, w.read_only).await?;
    match guard::judge(luks::SIGNATURE, &seen) {
        Verdict::Refuse(why) => return Err(Fault::precondition(why)),
        Verdict::Use => {}
        Verdict::Make => {
            let fs = w.fs().map_or(Fs::Ext4, |(fs, _)| fs);
            let what = What { fs, encrypted: true, since_ms: now_ms() };
            record(p, w.volume, &Format::Making(what)).await?;
            luks::make(device, passphrase).await?;
            if w.fs().is_none() {
                record(p, w.volume, &Format::Made(What { since_ms: now_ms(), ..what })).await?;
            }
            tracing::info!(volume = vdi.uuid, "made a LUKS2 container on {}", device.display());
        }
    }
    luks::open(w.volume, device, w.read_only, passphrase).await
}

pub(super) async fn unstage(p: &Plugin, r: NodeUnstageVolumeRequest) -> Outcome<NodeUnstageVolumeResponse> {
    given("volume id", &r.volume_id)?;
    let staging = path("staging target path", &r.staging_target_path)?;
    // Not one of ours: nothing is staged.
    let Some(volume) = crate::names::volume_id(&r.volume_id) else { return Ok(NodeUnstageVolumeResponse {}) };
    p.operate("unstaging", volume, |p| async move {
        if let Some(s) = p.store.get(volume)?
            && let Some(target) = s.mounted_target(None)
        {
            return Err(Fault::precondition(format!(
                "volume {volume} is still published at {}",
                target.display()
            )));
        }
        mount::unmount(&staging).await?;
        luks::close(volume).await?;
        p.backend.detach(volume).await?;
        p.store.remove(volume)?;
        tracing::info!(volume = volume.to_string(), "unstaged");
        Ok(NodeUnstageVolumeResponse {})
    })
    .await
}

/// After a restart: what was staged, and is it still there? Nothing is changed: the kubelet asks for what is missing, the watch gives up what is lost.
pub(super) async fn recall(p: &Plugin) -> Outcome<()> {
    let devices: HashMap<Uuid, _> = p.backend.list().await?.into_iter().map(|a| (a.volume, a)).collect();
    let staged = p.store.all()?;
    for s in &staged {
        let id = s.request.volume;
        match devices.get(&id) {
            Some(a) if a.attachment == s.request.attachment => {
                tracing::info!(volume = id.to_string(), "staged before, as {}", a.device.display());
            }
            Some(a) => tracing::warn!(
                volume = id.to_string(),
                "has attachment {}, and {} was staged",
                a.attachment,
                s.request.attachment
            ),
            None => tracing::error!(
                volume = id.to_string(),
                "was staged at {} and has no device any more: its pods have to be started again",
                s.staging.display()
            ),
        }
    }
    for a in devices.values().filter(|a| !staged.iter().any(|s| s.request.volume == a.volume)) {
        tracing::warn!(
            volume = a.volume.to_string(),
            "{} is attached and nothing is staged",
            a.device.display()
        );
    }
    Ok(())
}

/// What the place of a volume's device is for a pod: the device itself, or the inside of its container.
pub(super) async fn device_of(p: &Plugin, s: &Staged) -> Outcome<PathBuf> {
    if s.encrypted {
        return Ok(luks::device(s.request.volume));
    }
    let found = p.backend.find(s.request.volume).await?;
    found.map(|a| a.device).ok_or_else(|| {
        Fault::precondition(format!("volume {} has no device on this node: stage it again", s.request.volume))
    })
}

/// Remove a place for a mount that is not one any more. Never anything that has contents.
pub(super) fn remove_place(at: &Path) -> Outcome<()> {
    let removed = match std::fs::symlink_metadata(at) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => Err(e),
        Ok(m) if m.is_dir() => std::fs::remove_dir(at),
        Ok(m) if m.is_file() && m.len() == 0 => std::fs::remove_file(at),
        Ok(_) => {
            return Err(Fault::internal(format!(
                "{} is neither a mount nor empty: left alone",
                at.display()
            )));
        }
    };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io(at.display())(e)),
        _ => Ok(()),
    }
}
