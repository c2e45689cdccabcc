//! File systems and mounts of one node. What is mounted is asked of the kernel, never remembered.

use crate::capability::Fs;
use crate::exec::{self, LONG, SHORT};
use crate::fault::{Fault, Outcome, io};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// One line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Device of the file system, as major and minor number.
    pub device: (u32, u32),
    /// What of the file system is mounted there.
    pub root: PathBuf,
    /// Where.
    pub at: PathBuf,
    /// Options of the mount.
    pub options: String,
    /// Type.
    pub fs: String,
    /// Source.
    pub source: String,
    /// Options of the file system.
    pub super_options: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let [_, _, device, root, at, options, ..] = left[..] else { return None };
        let (major, minor) = device.split_once(':')?;
        Some(Self {
            device: (major.parse().ok()?, minor.parse().ok()?),
            root: unescape(root),
            at: unescape(at),
            options: options.into(),
            fs: right.first()?.to_string(),
            source: right.get(1)?.to_string(),
            super_options: right.get(2).unwrap_or(&"").to_string(),
        })
    }

    /// Nothing can be written: by its own choice, or because the file system stopped after an error.
    pub fn is_read_only(&self) -> bool {
        let has = |options: &str, word: &str| options.split(',').any(|o| o == word);
        has(&self.options, "ro") || has(&self.super_options, "ro") || has(&self.super_options, "emergency_ro")
    }
}

/// The kernel writes spaces and the like as `\ooo`.
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&b, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match octal.filter(|_| b == b'\\').and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(b);
                rest = tail;
            }
        }
    }
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(out))
}

fn parse_all(text: &str) -> Vec<Mount> {
    text.lines().filter_map(Mount::parse).collect()
}

/// Everything that is mounted.
pub fn all() -> Outcome<Vec<Mount>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").map_err(io("read the mounts"))?;
    Ok(parse_all(&text))
}

/// What is mounted at a path: the topmost.
pub fn at(path: &Path) -> Outcome<Option<Mount>> {
    // The last component may be a device or be gone; what leads to it is made plain, as the kernel tells it.
    let plain = match (path.parent().and_then(|p| p.canonicalize().ok()), path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    };
    Ok(all()?.into_iter().rfind(|m| m.at == plain || m.at == path))
}

/// Major and minor number of a block device.
pub fn device_number(device: &Path) -> Outcome<(u32, u32)> {
    let m = std::fs::metadata(device).map_err(io(device.display()))?;
    let n = m.rdev();
    Ok((libc::major(n), libc::minor(n)))
}

fn text(path: &Path) -> Outcome<&str> {
    path.to_str().ok_or_else(|| Fault::invalid(format!("the path {} is not text", path.display())))
}

/// Options that every mount of this file system gets. `_netdev`: unmounted before the network goes at shutdown.
pub fn options(fs: Fs, read_only: bool, more: &[String]) -> String {
    let mut all = vec![if read_only { "ro" } else { "rw" }, "_netdev"];
    // A clone has the identity of its source, which may be mounted here, too.
    if fs == Fs::Xfs {
        all.push("nouuid");
    }
    all.extend(more.iter().map(String::as_str).filter(|o| !["rw", "_netdev", "nouuid"].contains(o)));
    all.join(",")
}

/// Mount a device.
pub async fn mount(device: &Path, at: &Path, fs: Fs, read_only: bool, more: &[String]) -> Outcome<()> {
    std::fs::create_dir_all(at).map_err(io(at.display()))?;
    let options = options(fs, read_only, more);
    // Told which it is, mount does not fall back to read-only by itself.
    let mode = if read_only { "-r" } else { "-w" };
    let args = [mode, "-t", fs.name(), "-o", &options, "--", text(device)?, text(at)?];
    exec::succeed("mount", &args, LONG).await.map(drop)
}

/// Mount what is at one place at another, too.
pub async fn bind(from: &Path, at: &Path, read_only: bool) -> Outcome<()> {
    let (from, to) = (text(from)?, text(at)?);
    exec::succeed("mount", &["--bind", "--", from, to], SHORT).await?;
    if !read_only {
        return Ok(());
    }
    match exec::succeed("mount", &["-o", "remount,bind,ro", "--", to], SHORT).await {
        Ok(_) => Ok(()),
        Err(f) => {
            // Better nothing there than something that can be written to.
            exec::run("umount", &["--", to], SHORT).await?;
            Err(f)
        }
    }
}

/// Unmount everything at a path; nothing to do when nothing is.
pub async fn unmount(path: &Path) -> Outcome<()> {
    for _ in 0..16 {
        if at(path)?.is_none() {
            return Ok(());
        }
        exec::succeed("umount", &["--", text(path)?], LONG).await?;
    }
    Err(Fault::internal(format!("{} is still mounted after 16 times", path.display())))
}

/// Make a file system on a blank device.
pub async fn make(fs: Fs, device: &Path) -> Outcome<()> {
    let device = text(device)?;
    // The device is blank: there is nothing to discard, and tables of zeros need not be written.
    let (program, args): (_, &[&str]) = match fs {
        Fs::Ext4 => ("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=1", device]),
        Fs::Xfs => ("mkfs.xfs", &["-q", "-f", "-K", device]),
    };
    exec::succeed(program, args, LONG).await.map(drop)
}

/// Repair what can be repaired without a question. XFS does that when it is mounted.
pub async fn check(fs: Fs, device: &Path) -> Outcome<()> {
    if fs == Fs::Xfs {
        return Ok(());
    }
    let args = ["-p", text(device)?];
    let ended = exec::run("e2fsck", &args, LONG).await?;
    match ended.code {
        0 => Ok(()),
        1 | 2 => {
            tracing::warn!(
                device = device.display().to_string(),
                "e2fsck repaired the file system: {}",
                ended.said
            );
            Ok(())
        }
        _ => Err(Fault::precondition(format!(
            "e2fsck found damage that it does not repair by itself (exit code {}): {}. Take a snapshot, then repair the volume by hand",
            ended.code, ended.said
        ))),
    }
}

/// May ext4 be grown while it is mounted? The kernel wants `CAP_SYS_RESOURCE` for that, which some containers lack.
pub fn grows_in_use(fs: Fs) -> bool {
    const SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let mask = line.and_then(|l| u64::from_str_radix(l.trim(), 16).ok()).unwrap_or(0);
    fs == Fs::Xfs || mask & (1 << SYS_RESOURCE) != 0
}

/// Let an ext4 that is not mounted have all of its device; does nothing when it has.
pub async fn grow_unmounted(device: &Path, bytes: u64) -> Outcome<()> {
    let device = text(device)?;
    let said = exec::succeed("dumpe2fs", &["-h", device], SHORT).await?.stdout;
    if ext4_size(&said).is_some_and(|has| bytes.saturating_sub(has) < 1 << 20) {
        return Ok(());
    }
    // Asked for by resize2fs.
    let checked = exec::run("e2fsck", &["-f", "-p", device], LONG).await?;
    if checked.code > 1 {
        return Err(exec::failed("e2fsck", &["-f", "-p", device], &checked));
    }
    exec::succeed("resize2fs", &[device], LONG).await.map(drop)
}

/// Bytes, by what dumpe2fs says.
fn ext4_size(said: &str) -> Option<u64> {
    let number = |key: &str| said.lines().find_map(|l| l.strip_prefix(key)?.trim().parse::<u64>().ok());
    number("Block count:")?.checked_mul(number("Block size:")?)
}

/// Let a mounted file system have all of its device; does nothing when it has.
pub async fn grow(fs: Fs, device: &Path, at: &Path) -> Outcome<()> {
    let done = match fs {
        Fs::Ext4 => exec::succeed("resize2fs", &[text(device)?], LONG).await,
        Fs::Xfs => exec::succeed("xfs_growfs", &["-d", text(at)?], LONG).await,
    };
    done.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "\
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
37 35 7:3 / /var/lib/kubelet/a\\040b rw - ext4 /dev/loop3 rw
38 35 7:3 / /target ro,relatime shared:2 master:1 - ext4 /dev/loop3 rw,emergency_ro
39 35 0:5 /loop4 /block rw - devtmpfs udev rw
bad line
";

    #[test]
    fn mounts_are_read_as_the_kernel_tells_them() {
        let all = parse_all(INFO);
        assert_eq!(all.len(), 4);
        assert_eq!(all[1].at, Path::new("/var/lib/kubelet/a b"));
        assert_eq!((all[1].device, all[1].fs.as_str()), ((7, 3), "ext4"));
        assert_eq!(all[3].root, Path::new("/loop4"));
        let ro: Vec<bool> = all.iter().map(Mount::is_read_only).collect();
        assert_eq!(ro, [false, false, true, false]);
        assert_eq!(unescape("a\\"), Path::new("a\\"));
        assert_eq!(unescape("\\04"), Path::new("\\04"));
    }

    #[test]
    fn options_always_say_whether_it_is_written() {
        let more = ["noatime".to_owned(), "rw".to_owned()];
        assert_eq!(options(Fs::Ext4, true, &more), "ro,_netdev,noatime");
        assert_eq!(options(Fs::Xfs, false, &[]), "rw,_netdev,nouuid");
    }

    #[test]
    fn sizes_of_ext4() {
        let said = "Filesystem volume name:   <none>\nBlock count:              262144\nBlock size:               4096\n";
        assert_eq!(ext4_size(said), Some(1 << 30));
        assert_eq!(ext4_size("Block count: x"), None);
        assert!(grows_in_use(Fs::Xfs));
    }

    #[tokio::test]
    async fn ext4_grows_to_its_device() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        make(Fs::Ext4, &path).await.unwrap();
        file.set_len(128 << 20).unwrap();
        for _ in 0..2 {
            grow_unmounted(&path, 128 << 20).await.unwrap();
            let said = exec::succeed("dumpe2fs", &["-h", path.to_str().unwrap()], SHORT).await.unwrap();
            assert_eq!(ext4_size(&said.stdout), Some(128 << 20));
        }
    }

    #[test]
    fn this_machine_has_a_root() {
        assert!(at(Path::new("/proc")).unwrap().is_some());
        assert!(at(Path::new("/proc/self/nothing")).unwrap().is_none());
    }
}
