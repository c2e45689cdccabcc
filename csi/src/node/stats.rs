//! How full a volume is, and growing it while it is used.

use super::stage::device_of;
use super::state::Staged;
use super::{Plugin, volume};
use crate::csi::*;
use crate::exec::SHORT;
use crate::fault::{Fault, Kind, Outcome, given, io};
use crate::size::signed;
use crate::{luks, mount};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A volume that is at this path, staged or published.
fn staged_at(p: &Plugin, id: Uuid, at: &Path) -> Outcome<Staged> {
    let missing = || Fault::not_found(format!("volume {id} is not at {} on this node", at.display()));
    let s = p.store.get(id)?.ok_or_else(missing)?;
    let known = s.staging == at || s.targets.contains(at);
    if known && at.exists() { Ok(s) } else { Err(missing()) }
}

/// A path is needed; one that cannot be a volume's is one where there is none.
fn place(path: &str) -> Outcome<PathBuf> {
    given("volume path", path)?;
    Ok(path.into())
}

pub(super) async fn stats(p: &Plugin, r: NodeGetVolumeStatsRequest) -> Outcome<NodeGetVolumeStatsResponse> {
    given("volume id", &r.volume_id)?;
    let at = place(&r.volume_path)?;
    let s = staged_at(p, volume(&r.volume_id)?, &at)?;
    let usage = match s.fs {
        None => {
            let total = signed(device_size(&device_of(p, &s).await?).await?);
            vec![VolumeUsage { total, unit: volume_usage::Unit::Bytes.into(), ..Default::default() }]
        }
        Some(_) if mount::at(&at)?.is_none() => {
            return Err(Fault::not_found(format!("nothing is mounted at {}", at.display())));
        }
        Some(_) => {
            if let Some(m) = mount::at(&s.staging)?.filter(|m| m.is_read_only() && !s.request.read_only) {
                tracing::error!(
                    volume = r.volume_id,
                    "the file system stopped taking writes after an error ({}): its pods have to be started again",
                    m.super_options
                );
            }
            in_file_system(at).await?
        }
    };
    Ok(NodeGetVolumeStatsResponse { usage, volume_condition: None })
}

/// On a thread of its own, since it waits when the volume's I/O does.
async fn limited<T: Send + 'static>(work: impl FnOnce() -> Outcome<T> + Send + 'static) -> Outcome<T> {
    let done = tokio::time::timeout(SHORT, tokio::task::spawn_blocking(work)).await;
    let waits = || Fault::new(Kind::Unavailable, "the volume does not answer: its I/O waits for the cluster");
    done.map_err(|_| waits())?.map_err(|e| Fault::internal(e.to_string()))?
}

pub(super) async fn device_size(device: &Path) -> Outcome<u64> {
    let device = device.to_owned();
    limited(move || {
        use std::io::{Seek as _, SeekFrom};
        let mut file = std::fs::File::open(&device).map_err(io(device.display()))?;
        file.seek(SeekFrom::End(0)).map_err(io(device.display()))
    })
    .await
}

async fn in_file_system(at: PathBuf) -> Outcome<Vec<VolumeUsage>> {
    limited(move || {
        let s = rustix::fs::statvfs(&at).map_err(|e| io(at.display())(e.into()))?;
        let bytes = |blocks: u64| signed(blocks.saturating_mul(s.f_frsize));
        Ok(vec![
            VolumeUsage {
                available: bytes(s.f_bavail),
                total: bytes(s.f_blocks),
                used: bytes(s.f_blocks.saturating_sub(s.f_bfree)),
                unit: volume_usage::Unit::Bytes.into(),
            },
            VolumeUsage {
                available: signed(s.f_favail),
                total: signed(s.f_files),
                used: signed(s.f_files.saturating_sub(s.f_ffree)),
                unit: volume_usage::Unit::Inodes.into(),
            },
        ])
    })
    .await
}

pub(super) async fn expand(p: &Plugin, r: NodeExpandVolumeRequest) -> Outcome<NodeExpandVolumeResponse> {
    given("volume id", &r.volume_id)?;
    let at = place(&r.volume_path)?;
    let id = volume(&r.volume_id)?;
    // Said before anything grows.
    let encrypted = staged_at(p, id, &at)?.encrypted;
    let passphrase = if encrypted { Some(luks::passphrase_to_grow(&r.secrets)?.to_owned()) } else { None };
    let wanted = r.capacity_range.map_or(0, |c| u64::try_from(c.required_bytes).unwrap_or(0));
    p.operate("expansion", id, |p| async move {
        let s = staged_at(&p, id, &at)?;
        let size = p.backend.resize(&s.request).await?;
        if size < wanted {
            return Err(Fault::new(
                Kind::Unavailable,
                format!("the device has {size} bytes and {wanted} are wanted: the volume has not grown yet"),
            ));
        }
        if let Some(passphrase) = &passphrase {
            luks::grow(id, passphrase).await?;
        }
        // A device has no file system of ours.
        if let (Some(fs), false) = (s.fs, s.request.read_only) {
            if !mount::grows_in_use(fs) {
                return Err(Fault::precondition(format!(
                    "the device has grown, the file system grows when it is mounted next: growing {} in use needs the capability SYS_RESOURCE, which the node plugin does not have",
                    fs.name()
                )));
            }
            mount::grow(fs, &device_of(&p, &s).await?, &s.staging).await?;
        }
        tracing::info!(volume = id.to_string(), size, "expanded");
        Ok(NodeExpandVolumeResponse { capacity_bytes: signed(size) })
    })
    .await
}
