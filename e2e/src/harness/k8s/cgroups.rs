//! A node's place in the control groups of this machine: the same path in each hierarchy.

use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ROOT: &str = "sheepdog-e2e";
/// The kernel takes a moment to forget processes that were killed.
const GONE: Duration = Duration::from_secs(20);

/// The path of a node's group, as the kubelet wants it.
pub fn path(node: &str) -> String {
    format!("/{ROOT}/{node}")
}

/// Where the hierarchies are mounted.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let fields: Vec<Vec<&str>> = mounts.lines().map(|l| l.split(' ').collect()).collect();
    if !fields.iter().any(|f| f[2] == "cgroup") {
        bail!("no control groups of version 1 are mounted: the lab's nodes know no other");
    }
    // runc makes its groups in the hierarchy of version 2 as well where there are both.
    let found = fields
        .iter()
        .filter(|f| f[2] == "cgroup" || f[2] == "cgroup2")
        .map(|f| PathBuf::from(f[1]))
        .collect();
    Ok(found)
}

/// A group for a node, empty, in every hierarchy.
pub fn make(node: &str) -> Result<()> {
    for h in hierarchies()? {
        remove_tree(&h.join(ROOT).join(node))?;
        let mut dir = h;
        for part in [ROOT, node] {
            let above = dir.clone();
            dir.push(part);
            std::fs::create_dir_all(&dir)?;
            // A group without processors and memory nodes takes no process.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if dir.join(file).exists() {
                    std::fs::write(dir.join(file), std::fs::read(above.join(file))?)?;
                }
            }
        }
    }
    Ok(())
}

/// Take everything away again. The processes must be gone.
pub fn remove() -> Result<()> {
    for h in hierarchies()? {
        remove_tree(&h.join(ROOT))?;
    }
    Ok(())
}

/// Groups that are left, for the check at the end.
pub fn left() -> Result<Vec<PathBuf>> {
    Ok(hierarchies()?.into_iter().map(|h| h.join(ROOT)).filter(|p| p.exists()).collect())
}

fn remove_tree(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    let deadline = Instant::now() + GONE;
    loop {
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) if Instant::now() >= deadline => {
                return Err(e).with_context(|| format!("control group {}", dir.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
