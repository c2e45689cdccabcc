//! What the kernel says of its NBD devices. Numbers of devices mean nothing; the backend does.

use crate::fault::{Outcome, io};
use std::path::Path;
use uuid::Uuid;

/// A connected device of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Number.
    pub index: u32,
    /// Volume.
    pub volume: Uuid,
    /// Attachment.
    pub attachment: u64,
    /// Bytes.
    pub size: u64,
}

/// What a device is told to belong to.
pub fn backend(volume: Uuid, attachment: u64) -> String {
    format!("{volume}/{attachment}")
}

/// The reverse; nothing for a device of somebody else.
pub fn read_backend(text: &str) -> Option<(Uuid, u64)> {
    let (volume, attachment) = text.trim_end().split_once('/')?;
    Some((crate::names::volume_id(volume)?, attachment.parse().ok()?))
}

/// All connected devices of ours.
pub fn devices() -> Outcome<Vec<Device>> {
    devices_in(Path::new("/sys/block"))
}

fn devices_in(block: &Path) -> Outcome<Vec<Device>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(block).map_err(io("list block devices"))? {
        let name = entry.map_err(io("list block devices"))?.file_name();
        let index = name.to_str().and_then(|n| n.strip_prefix("nbd")).and_then(|n| n.parse().ok());
        let Some(index) = index else { continue };
        let read = |file: &str| std::fs::read_to_string(block.join(&name).join(file)).ok();
        // Both files are there only while it is connected.
        let owner = read("backend").and_then(|b| read_backend(&b));
        let (Some((volume, attachment)), true) = (owner, block.join(&name).join("pid").exists()) else {
            continue;
        };
        let sectors: u64 = read("size").and_then(|s| s.trim().parse().ok()).unwrap_or(0);
        found.push(Device { index, volume, attachment, size: sectors * 512 });
    }
    found.sort_by_key(|d| d.index);
    Ok(found)
}

/// Does anybody use it: a file system mounted anywhere, in whatever namespace, or another block device on it? Opening may read: not for threads that
/// must not wait.
pub fn is_held(index: u32) -> bool {
    held(&format!("/dev/nbd{index}"))
}

fn held(device: &str) -> bool {
    use std::os::unix::fs::OpenOptionsExt as _;
    let opened = std::fs::File::options().read(true).custom_flags(libc::O_EXCL).open(device);
    opened.is_err_and(|e| e.kind() == std::io::ErrorKind::ResourceBusy)
}

/// Settings of a device's queue: for a server that has its own scheduler and no heads. A request that was on its way when its socket died is sent again when
/// its time, in milliseconds, is over and the socket was replaced; with a socket that lives it only goes on waiting, which the kernel logs each time.
const QUEUE: [(&str, &str); 4] =
    [("scheduler", "none"), ("rotational", "0"), ("max_sectors_kb", "1024"), ("io_timeout", "5000")];

/// Kernels that know a setting not are left as they are.
pub fn tune(index: u32) {
    for (file, value) in QUEUE {
        let _ = std::fs::write(format!("/sys/block/nbd{index}/queue/{file}"), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connected_devices_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, files: &[(&str, &str)]| {
            let d = dir.path().join(name);
            std::fs::create_dir(&d).unwrap();
            for (f, text) in files {
                std::fs::write(d.join(f), text).unwrap();
            }
        };
        let volume = Uuid::new_v4();
        let ours = backend(volume, 7);
        make("nbd3", &[("backend", &format!("{ours}\n")), ("pid", "1\n"), ("size", "2048\n")]);
        make("nbd1", &[("backend", &ours), ("size", "2048")]);
        make("nbd2", &[("backend", "somebody\n"), ("pid", "1"), ("size", "8")]);
        make("nbd4", &[("pid", "1"), ("size", "8")]);
        make("loop0", &[("backend", &ours), ("pid", "1")]);
        let want = Device { index: 3, volume, attachment: 7, size: 1 << 20 };
        assert_eq!(devices_in(dir.path()).unwrap(), [want]);
        assert_eq!(read_backend("x/1"), None);
        assert_eq!(read_backend(&format!("{volume}/-1")), None);
    }
}
