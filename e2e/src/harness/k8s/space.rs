//! A machine made of namespaces: processes, mounts, network, host name and IPC of its own, on this kernel and this root file system.
//!
//! Its first process is ours and dies with the harness. When it dies, the kernel kills every process in the space, releases every mount and
//! every network device in it: a power cut, and the whole of the cleaning up.

use crate::harness::proc::{Proc, run, run_command};
use crate::harness::wait::{PATIENCE, until};
use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags};
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Programs that run to their end inside.
const LIMIT: Duration = Duration::from_secs(180);

/// Namespaces and the process that holds them.
#[derive(Debug)]
pub struct Space {
    init: Proc,
    fd: Arc<OwnedFd>,
}

/// Runs something whose child is born into other process namespace, and comes back to our own. Only this thread's children are concerned.
fn abroad<T>(leave: impl FnOnce() -> rustix::io::Result<()>, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let own = File::open("/proc/thread-self/ns/pid")?;
    leave().context("process namespace (needs root)")?;
    let done = f();
    rustix::thread::move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
    done
}

impl Space {
    /// Make it; `script` (for sh) makes the mounts before anything else runs. Call this on the thread that lives as long as the space: the
    /// first process ends with the thread that made it.
    pub fn new(name: &str, script: &str, dir: &Path) -> Result<Self> {
        let ready = dir.join("ready");
        if ready.exists() {
            std::fs::remove_file(&ready)?;
        }
        // Network namespaces of others, which would stay as long as we have them mounted, are let go. Orphans of containers are children of
        // the first process, which lets the kernel reap them.
        let script = format!(
            "set -e; hostname {name}; mount --make-rprivate /; umount -l -R /run/netns 2>/dev/null || :; mount -t proc proc /proc; {script}\n: >\"$1\"; trap '' CHLD; exec sleep infinity"
        );
        let mut cmd = Command::new("sh");
        cmd.args(["-c", &script, "sh"]).arg(&ready);
        // SAFETY: between fork and exec; one system call, nothing is allocated.
        unsafe {
            cmd.pre_exec(|| {
                let own =
                    UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
                Ok(rustix::thread::unshare_unsafe(own)?)
            });
        }
        let log = dir.join("space.log");
        // SAFETY: changes only where children of this thread are born.
        let mut init = abroad(
            || unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) },
            || Proc::start(name, cmd, &log),
        )?;
        until(&format!("{name} is set up"), PATIENCE, || {
            if !init.running()? {
                return Ok(Some(Err(std::fs::read_to_string(&log).unwrap_or_default())));
            }
            Ok(ready.exists().then_some(Ok(())))
        })?
        .map_err(|said| anyhow::anyhow!("{name}: the script of its mounts failed: {said}"))?;
        let pid = Pid::from_raw(init.pid().cast_signed()).context("pid")?;
        let fd = Arc::new(rustix::process::pidfd_open(pid, PidfdFlags::empty())?);
        Ok(Self { init, fd })
    }

    /// The first process's id, as seen from outside.
    pub fn pid(&self) -> u32 {
        self.init.pid()
    }

    /// Start a program inside.
    pub fn start(&self, name: &str, mut cmd: Command, log: &Path) -> Result<Proc> {
        let fd = self.fd.clone();
        let inside = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
        // SAFETY: between fork and exec; one system call, nothing is allocated.
        unsafe {
            cmd.pre_exec(move || Ok(rustix::thread::move_into_thread_name_spaces(fd.as_fd(), inside)?));
        }
        abroad(
            || rustix::thread::move_into_thread_name_spaces(self.fd.as_fd(), ThreadNameSpaceType::PROCESS_ID),
            || Proc::start(name, cmd, log),
        )
    }

    /// Run a program inside to its end; from any thread.
    pub fn run(&self, program: &Path, args: &[&str]) -> Result<String> {
        let mut cmd = Command::new("nsenter");
        cmd.args(["--target", &self.pid().to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]);
        cmd.arg(program).args(args);
        run_command(cmd, LIMIT)
    }

    /// Run a script in its network, with this host's files and processes.
    pub fn net(&self, script: &str) -> Result<String> {
        run("nsenter", &[&format!("--net=/proc/{}/ns/net", self.pid()), "sh", "-ec", script])
    }

    /// Everything in it is killed, and gone. `started` are the programs that were started in it: the first process is not gone before we have
    /// seen to it that they are.
    pub fn kill(self, started: Vec<Proc>) -> Result<()> {
        let dir = PathBuf::from(format!("/proc/{}/ns", self.pid()));
        let own: Vec<PathBuf> =
            KINDS.iter().map(|kind| std::fs::read_link(dir.join(kind))).collect::<Result<_, _>>()?;
        self.init.signal(Signal::KILL)?;
        drop(started);
        self.init.kill()?;
        // The kernel lets the first process end last: nothing can be left. Looked at all the same.
        match members(&own)?.as_slice() {
            [] => Ok(()),
            left => bail!("processes {left:?} outlive their namespaces"),
        }
    }
}

/// Namespaces of a space, as they are called in /proc.
const KINDS: [&str; 5] = ["pid", "mnt", "net", "uts", "ipc"];

/// Processes that are in one of these namespaces.
fn members(namespaces: &[PathBuf]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let dir = entry.path().join("ns");
        // A process that ends meanwhile has none.
        if KINDS.iter().filter_map(|k| std::fs::read_link(dir.join(k)).ok()).any(|n| namespaces.contains(&n))
        {
            found.push(name);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::Space;
    use std::path::Path;
    use std::process::Command;

    /// Needs root, as the lab does.
    #[test]
    fn everything_in_a_space_dies_with_it() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let space =
            Space::new("spacetest", "mount -t tmpfs tmpfs /mnt; echo inside >/mnt/file", dir).unwrap();
        let mut sleep = Command::new("sh");
        // The second one is nobody's child any more.
        sleep.args(["-c", "(setsid sleep 1000 &) ; exec sleep 1000"]);
        let sleep = space.start("sleep", sleep, &dir.join("sleep.log")).unwrap();
        let said =
            space.run(Path::new("/bin/sh"), &["-c", "hostname; cat /mnt/file; ip -o link | wc -l"]).unwrap();
        assert_eq!(said, "spacetest\ninside\n1\n");
        assert!(!Path::new("/mnt/file").exists(), "a mount of the space is seen outside");
        let programs = || space.run(Path::new("/bin/sh"), &["-c", "ls /proc | grep -c '^[0-9]'"]).unwrap();
        // First process, two sleeps, and those of the question.
        let count: u32 = programs().trim().parse().unwrap();
        assert!((4..10).contains(&count), "{count} processes in the space");
        // Children of this thread are born outside again.
        let outside = Command::new("readlink").arg("/proc/self/ns/pid").output().unwrap().stdout;
        assert_eq!(
            String::from_utf8_lossy(&outside).trim(),
            std::fs::read_link("/proc/self/ns/pid").unwrap().to_str().unwrap()
        );
        // Fails when anything outlives the namespaces.
        space.kill(vec![sleep]).unwrap();
    }
}
