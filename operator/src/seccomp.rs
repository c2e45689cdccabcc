//! The seccomp profile of sheep: what container runtimes allow by default, and io_uring, which most of them forbid.
//!
//! An init container of each sheep runs `sheepdog-operator seccomp-profile --root DIR` and so puts it where the kubelet looks for it.

use std::io;
use std::path::Path;

/// Below the kubelet's `seccomp` directory.
pub const FILE: &str = "sheepdog/io-uring.json";
const PROFILE: &str = include_str!("io-uring.json");

/// Write the profile, whole or not at all. A file that is the same already is left alone.
pub fn install(root: &Path) -> io::Result<bool> {
    let path = root.join(FILE);
    if std::fs::read_to_string(&path).is_ok_and(|t| t == PROFILE) {
        return Ok(false);
    }
    let dir = path.parent().unwrap_or(root);
    std::fs::create_dir_all(dir)?;
    // Several pods of one node may do this at once.
    let new = dir.join(format!(".io-uring.{}", std::process::id()));
    let mut file = std::fs::File::create(&new)?;
    io::Write::write_all(&mut file, PROFILE.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, &path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_once_and_repaired() {
        let dir = tempfile::tempdir().unwrap();
        assert!(install(dir.path()).unwrap());
        assert!(!install(dir.path()).unwrap());
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(install(dir.path()).unwrap());
        assert_eq!(std::fs::read_dir(dir.path().join("sheepdog")).unwrap().count(), 1);
    }

    #[test]
    fn io_uring_is_allowed_and_the_rest_is_not() {
        let profile: serde_json::Value = serde_json::from_str(PROFILE).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        let allowed: Vec<&str> = profile["syscalls"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|s| s["action"] == "SCMP_ACT_ALLOW")
            .flat_map(|s| s["names"].as_array().unwrap())
            .map(|n| n.as_str().unwrap())
            .collect();
        for name in ["io_uring_setup", "io_uring_enter", "io_uring_register", "read", "fallocate", "flock"] {
            assert!(allowed.contains(&name), "{name}");
        }
        for name in ["mount", "ptrace", "bpf", "kexec_load", "init_module", "setns", "unshare"] {
            assert!(!allowed.contains(&name), "{name}");
        }
    }
}
