//! What the lab changes on this machine, given back at the end, and the proof that nothing else is left.

use super::cgroups;
use super::node::{LOOPS, OWN, free, loops};
use crate::harness::proc::run;
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

const LOCK: &str = "/run/sheepdog-e2e-k8s.lock";
/// A kubelet sets these for the whole machine.
const SYSCTLS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// File of a loop device whose file system is mounted in no namespace that is left: a volume of a node that is gone.
const ORPHAN: &str = "/disk";

/// Held while a lab runs: there is one at a time.
#[derive(Debug)]
pub struct Host {
    sysctls: Vec<(PathBuf, String)>,
    made: Vec<PathBuf>,
    before: BTreeSet<String>,
    lab: PathBuf,
    _lock: File,
}

/// What a lab might leave behind. Others may be at work on this machine, so only what bears our names.
fn traces(lab: &Path) -> Result<BTreeSet<String>> {
    let lab = lab.to_str().context("path")?;
    let mut found = BTreeSet::new();
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let ours =
        |l: &&str| l.contains(lab) || l.contains("/run/netns/cni-") || OWN.iter().any(|o| l.contains(o));
    found.extend(mounts.lines().filter(ours).map(|l| format!("mount {l}")));
    for line in run("ip", &["-o", "link"])?.lines() {
        let name = line.split(": ").nth(1).unwrap_or_default();
        // Taps of machines are ports, too.
        if ["port", "switch", "cni", "veth"].iter().any(|p| name.starts_with(p)) {
            found.insert(format!("network device {name}"));
        }
    }
    let ours = |file: &str| file.contains(lab) || file.contains("/var/lib/kubelet") || file == ORPHAN;
    found.extend(loops(&run("losetup", &LOOPS)?, ours).into_iter().map(|l| format!("loop device {l}")));
    found.extend(machines(lab)?.into_iter().map(|p| format!("QEMU {p}")));
    found.extend(cgroups::left()?.into_iter().map(|g| format!("control group {}", g.display())));
    Ok(found)
}

/// Processes of QEMU with a disk in this directory.
fn machines(lab: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        // Gone meanwhile, or not a process: nothing.
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.starts_with("qemu-system") && line.contains(lab) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

impl Host {
    /// Take the machine.
    pub fn take(lab: &Path) -> Result<Self> {
        let lock = File::options().create(true).append(true).open(LOCK).context("the lab needs root")?;
        lock.try_lock().context("another lab is running")?;
        // Left by a run that was killed; its processes died with it.
        let mut me = Self {
            sysctls: Vec::new(),
            made: Vec::new(),
            before: BTreeSet::new(),
            lab: lab.to_owned(),
            _lock: lock,
        };
        me.recall()?;
        me.restore()?;
        free(&loops(&run("losetup", &LOOPS)?, |file| file == ORPHAN))?;
        me.before = traces(lab)?;
        for name in SYSCTLS {
            let path = Path::new("/proc/sys").join(name);
            me.sysctls.push((path.clone(), std::fs::read_to_string(&path)?.trim().to_owned()));
        }
        me.made = OWN.iter().map(PathBuf::from).filter(|d| !d.exists()).collect();
        me.note()?;
        for dir in &me.made {
            std::fs::create_dir_all(dir)?;
        }
        Ok(me)
    }

    /// What is to be given back stands in the lock's file until it is, so that the next run does it when this one is killed.
    fn note(&self) -> Result<()> {
        let values = self.sysctls.iter().map(|(path, value)| format!("value {} {value}\n", path.display()));
        let made = self.made.iter().map(|d| format!("directory {}\n", d.display()));
        Ok(std::fs::write(LOCK, values.chain(made).collect::<String>())?)
    }

    fn recall(&mut self) -> Result<()> {
        for line in std::fs::read_to_string(LOCK)?.lines() {
            match line.splitn(3, ' ').collect::<Vec<_>>().as_slice() {
                ["value", path, value] => self.sysctls.push((path.into(), (*value).to_owned())),
                ["directory", path] => self.made.push(path.into()),
                _ => bail!("{LOCK} has a line that is none of ours, {line:?}: remove the file"),
            }
        }
        Ok(())
    }

    fn restore(&mut self) -> Result<()> {
        for (path, value) in self.sysctls.drain(..) {
            if std::fs::read_to_string(&path)?.trim() != value {
                std::fs::write(&path, value).with_context(|| format!("{}", path.display()))?;
            }
        }
        for dir in self.made.drain(..) {
            // Not empty: somebody else has begun to use it.
            let _ = std::fs::remove_dir(dir);
        }
        cgroups::remove()?;
        self.note()
    }

    /// Give the machine back as it was; anything left behind is an error that names it.
    pub fn give_back(mut self) -> Result<()> {
        self.restore()?;
        let left: Vec<String> = traces(&self.lab)?.difference(&self.before).cloned().collect();
        ensure!(left.is_empty(), "left behind: {}", left.join("; "));
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(e) = self.restore() {
            eprintln!("e2e: the machine is not quite as it was: {e:#}");
        }
    }
}
