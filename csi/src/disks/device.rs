//! One block device of the node: is it there, is it in use, what is on it.

use super::judge::Look;
use super::mark::Owner;
use crate::capability::Fs;
use crate::exec::{self, LONG};
use crate::fault::{Fault, Outcome, io};
use crate::{guard, mount};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two attempts to get a device's lock, and how many there are: udev holds it for a moment.
const LOCK: (Duration, u32) = (Duration::from_millis(250), 40);

/// A block device that is there.
#[derive(Debug)]
pub struct Device {
    /// As it was named.
    pub path: PathBuf,
    /// Major and minor number.
    pub number: (u32, u32),
}

impl Device {
    /// `None`: there is no such device at the moment.
    pub fn find(path: &Path) -> Outcome<Option<Self>> {
        let meta = match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io(path.display()))?,
        };
        if !meta.file_type().is_block_device() {
            return Err(Fault::invalid("it is not a block device: name a disk or a partition below /dev"));
        }
        Ok(Some(Self { path: path.to_owned(), number: mount::device_number(path)? }))
    }

    /// Nobody else of those who ask looks at it or makes anything on it until this is dropped: other sheep's pods, and udev.
    pub async fn lock(&self) -> Outcome<std::fs::File> {
        let file = std::fs::File::open(&self.path).map_err(io("open it"))?;
        for _ in 0..LOCK.1 {
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Ok(file);
            }
            tokio::time::sleep(LOCK.0).await;
        }
        Err(Fault::precondition("another program holds its lock"))
    }

    /// Everything that decides.
    pub async fn look(&self) -> Outcome<Look> {
        let mut file = std::fs::File::open(&self.path).map_err(io("open it"))?;
        let size = file.seek(SeekFrom::End(0)).map_err(io("measure it"))?;
        let busy = self.busy()?;
        let (probe, uuid) = guard::signatures(&self.path).await?;
        Ok(Look { size, busy, probe, uuid, ends_are_zeros: guard::ends_are_zeros(&self.path).await? })
    }

    /// Who has it in use. The kernel refuses to open exclusively what is mounted anywhere, in any container, a part of a RAID or of a volume group, or swap.
    fn busy(&self) -> Outcome<Option<String>> {
        let parts = self.below("", "partition");
        if !parts.is_empty() {
            return Ok(Some(format!("partitions {}", parts.join(", "))));
        }
        match rustix::fs::open(&self.path, OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
            Ok(_) => Ok(None),
            Err(rustix::io::Errno::BUSY) => {
                let at = mount::all()?.into_iter().find(|m| m.device == self.number);
                let holders = self.below("holders", "");
                Ok(Some(match at {
                    Some(m) => format!("mounted at {}", m.at.display()),
                    None if !holders.is_empty() => format!("part of {}", holders.join(", ")),
                    None => "somebody has it open for himself alone".into(),
                }))
            }
            Err(e) => Err(Fault::precondition(format!("it cannot be opened for writing: {e}"))),
        }
    }

    /// Names in a directory of the kernel's about it, of those that have such a file.
    fn below(&self, dir: &str, having: &str) -> Vec<String> {
        let dir = PathBuf::from(format!("/sys/dev/block/{}:{}", self.number.0, self.number.1)).join(dir);
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter(|e| having.is_empty() || e.path().join(having).exists())
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Make a file system of ours on it. The caller has found it blank, and holds its lock.
    pub async fn make(&self, fs: Fs, owner: &Owner) -> Outcome<()> {
        make(&self.path, fs, owner).await
    }

    /// Mount it.
    pub async fn mount(&self, fs: Fs, at: &Path) -> Outcome<()> {
        let (device, at) = (text(&self.path)?, text(at)?);
        let args = ["-w", "-t", fs.name(), "-o", "noatime,nodev,nosuid,noexec", "--", device, at];
        exec::succeed("mount", &args, LONG).await.map(drop)
    }
}

async fn make(device: &Path, fs: Fs, owner: &Owner) -> Outcome<()> {
    let (device, uuid, label) = (text(device)?, owner.new_uuid().to_string(), owner.label());
    let uuid_of_xfs = format!("uuid={uuid}");
    // Without `-f` mkfs.xfs refuses by itself what it recognizes; mkfs.ext4 would ask, and gets no answer.
    let (program, args): (_, Vec<&str>) = match fs {
        Fs::Xfs => ("mkfs.xfs", vec!["-q", "-L", &label, "-m", &uuid_of_xfs, device]),
        // Journals and objects are few and large.
        Fs::Ext4 => {
            ("mkfs.ext4", vec!["-q", "-m", "0", "-T", "largefile", "-L", &label, "-U", &uuid, device])
        }
    };
    exec::succeed(program, &args, LONG).await.map(drop)
}

fn text(path: &Path) -> Outcome<&str> {
    path.to_str().ok_or_else(|| Fault::invalid(format!("the path {} is not text", path.display())))
}

#[cfg(test)]
mod tests {
    use super::super::judge::{Verdict, judge};
    use super::*;
    use crate::guard::Probe;

    #[test]
    fn what_is_there_and_what_is_not() {
        assert!(Device::find(Path::new("/dev/sheepdog-no-such-device")).unwrap().is_none());
        for other in ["/dev/null", "/tmp"] {
            assert!(Device::find(Path::new(other)).unwrap_err().text.contains("not a block device"));
        }
    }

    #[tokio::test]
    async fn what_is_made_is_recognized() {
        let dir = tempfile::tempdir().unwrap();
        let owner = Owner { cluster: "sheepdog/main".into(), node: "node1".into() };
        for fs in [Fs::Xfs, Fs::Ext4] {
            let path = dir.path().join(fs.name());
            std::fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
            make(&path, fs, &owner).await.unwrap();
            let (probe, uuid) = guard::signatures(&path).await.unwrap();
            assert_eq!(probe, Probe::Found(fs.name().into()));
            let look = Look { size: 1 << 30, busy: None, probe, uuid, ends_are_zeros: false };
            assert_eq!(judge(&owner, "x", &look), Verdict::Mount(fs));
        }
    }
}
