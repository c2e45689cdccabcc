//! Block devices of a sheep: an init container of its pod looks at each, gives blank ones a file system, and mounts them where the sheep expects its disks. The sheep
//! itself has no privileges, and leaves out what is not mounted.
//!
//! What holds: nothing is formatted that is not provably blank (`judge`); a device that cannot be used keeps no other from being used; what was mounted
//! here before and is not named any more is unmounted, so that it can be pulled. It may be run again at any time.

mod device;
mod judge;
mod mark;

pub use judge::{Look, Verdict, judge};
pub use mark::{Owner, Whose};

use crate::capability::Fs;
use crate::exec::{self, SHORT};
use crate::fault::{Fault, Outcome, io};
use crate::mount;
use device::Device;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A device and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// As the SheepdogCluster names it.
    pub device: PathBuf,
    /// Mount point, a directory of its own in the directory of all.
    pub at: PathBuf,
}

impl std::str::FromStr for Disk {
    type Err = String;
    /// `DEVICE=DIR`
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((d, at)) if d.starts_with('/') && at.starts_with('/') => {
                Ok(Self { device: d.into(), at: at.into() })
            }
            _ => Err("write DEVICE=DIR, two absolute paths".into()),
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Mount points that are disks now.
    pub mounted: Vec<PathBuf>,
    /// Devices that are not, and why: `DEVICE: sentence`.
    pub left_out: Vec<String>,
}

impl Report {
    /// A line for each device that was left out; what the kubelet passes on has room for 4 KiB.
    pub fn text(&self) -> String {
        let line = |l: &String| {
            l.chars().map(|c| if c.is_control() { ' ' } else { c }).take(600).collect::<String>()
        };
        self.left_out.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Mount them all in `dir`.
pub async fn prepare(owner: &Owner, fs: Fs, dir: &Path, disks: &[Disk]) -> Outcome<Report> {
    if let Some(d) = disks.iter().find(|d| d.at.parent() != Some(dir)) {
        return Err(Fault::invalid(format!("{} does not lie in {}", d.at.display(), dir.display())));
    }
    std::fs::create_dir_all(dir).map_err(io(dir.display()))?;
    strays(dir, disks).await?;
    let mut report = Report::default();
    for d in disks {
        let why = match one(owner, fs, d).await {
            Ok(None) => {
                report.mounted.push(d.at.clone());
                continue;
            }
            Ok(Some(why)) => why,
            Err(fault) => fault.text,
        };
        // Whatever was there before is not the device that is meant.
        if let Err(fault) = away(&d.at).await {
            tracing::warn!("{}: {}", d.at.display(), fault.text);
        }
        let line = format!("{}: {why}", d.device.display());
        tracing::error!("{line}");
        report.left_out.push(line);
    }
    Ok(report)
}

/// `None`: it is mounted; else why not.
async fn one(owner: &Owner, fs: Fs, d: &Disk) -> Outcome<Option<String>> {
    let Some(device) = Device::find(&d.device)? else {
        return Ok(Some("there is no such device".into()));
    };
    if let Some(m) = mount::at(&d.at)? {
        // A file system that has stopped after an error does not even tell of its root.
        let works = !m.is_read_only() && std::fs::metadata(&d.at).is_ok();
        if m.device == device.number && works {
            tracing::info!("{} is mounted at {} already", d.device.display(), d.at.display());
            return Ok(None);
        }
        // The disk was replaced while its file system was mounted, or stopped after an error.
        away(&d.at).await?;
    }
    let _lock = device.lock().await?;
    let found = match judge(owner, &d.device.display().to_string(), &device.look().await?) {
        Verdict::LeaveOut(why) => return Ok(Some(why)),
        Verdict::Mount(found) => found,
        Verdict::Make => {
            tracing::info!("{} is blank: it gets a file system, {}", d.device.display(), fs.name());
            device.make(fs, owner).await?;
            // As the next start will.
            match judge(owner, "", &device.look().await?) {
                Verdict::Mount(made) => made,
                other => {
                    return Err(Fault::internal(format!("mkfs succeeded, but the device shows {other:?}")));
                }
            }
        }
    };
    std::fs::create_dir_all(&d.at).map_err(io(d.at.display()))?;
    device.mount(found, &d.at).await?;
    tracing::info!("{} is mounted at {}", d.device.display(), d.at.display());
    Ok(None)
}

/// Unmount what is mounted in the directory and is none of the disks.
async fn strays(dir: &Path, disks: &[Disk]) -> Outcome<()> {
    let wanted: BTreeSet<&Path> = disks.iter().map(|d| d.at.as_path()).collect();
    for entry in std::fs::read_dir(dir).map_err(io(dir.display()))? {
        let path = entry.map_err(io(dir.display()))?.path();
        if wanted.contains(path.as_path()) {
            continue;
        }
        match away(&path).await {
            // Only an empty directory goes.
            Ok(()) => drop(std::fs::remove_dir(&path)),
            Err(fault) => tracing::warn!("{}: {}", path.display(), fault.text),
        }
    }
    Ok(())
}

/// Unmount, at once or when the last who uses it has ended.
async fn away(at: &Path) -> Outcome<()> {
    if mount::at(at)?.is_none() {
        return Ok(());
    }
    if mount::unmount(at).await.is_ok() {
        return Ok(());
    }
    let path = at.to_str().ok_or_else(|| Fault::internal("a path that is not text"))?;
    exec::succeed("umount", &["--lazy", "--", path], SHORT).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_read_from_the_command_line() {
        let d: Disk = "/dev/disk/by-path/pci-0000:00:1f.2=/var/lib/x".parse().unwrap();
        assert_eq!(
            (d.device.to_str(), d.at.to_str()),
            (Some("/dev/disk/by-path/pci-0000:00:1f.2"), Some("/var/lib/x"))
        );
        for bad in ["", "/dev/sdb", "sdb=/x", "/dev/sdb=x"] {
            assert!(bad.parse::<Disk>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_is_not_there_is_left_out_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let owner = Owner { cluster: "a/b".into(), node: "n".into() };
        let disk = |device: &str, name: &str| Disk { device: device.into(), at: dir.path().join(name) };
        std::fs::create_dir(dir.path().join("old")).unwrap();
        std::fs::create_dir(dir.path().join("full")).unwrap();
        std::fs::write(dir.path().join("full/file"), "x").unwrap();
        let disks = [disk("/dev/sheepdog-none", "a"), disk("/dev/null", "b")];
        let report = prepare(&owner, Fs::Xfs, dir.path(), &disks).await.unwrap();
        assert_eq!(report.mounted, Vec::<PathBuf>::new());
        assert_eq!(report.left_out[0], "/dev/sheepdog-none: there is no such device");
        assert!(report.text().lines().nth(1).unwrap().contains("not a block device"));
        assert!(!dir.path().join("old").exists() && dir.path().join("full/file").exists());
        let elsewhere = Disk { device: "/dev/null".into(), at: "/tmp/x/y".into() };
        assert!(prepare(&owner, Fs::Xfs, dir.path(), &[elsewhere]).await.is_err());
    }
}
