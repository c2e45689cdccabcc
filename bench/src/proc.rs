//! Processes: each is ended through the handle that started it, and dies with this program whatever happens to that.

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that is not measured. Not a measure of speed.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// What a server gets for an orderly end.
const FAREWELL: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(20);

/// A program with a log.
#[derive(Debug)]
pub struct Proc {
    name: String,
    child: Child,
}

impl Proc {
    /// Start; standard output and error are added to `log`.
    pub fn start(name: &str, mut cmd: Command, log: &Path) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        cmd.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        // SAFETY: between fork and exec; prctl is async-signal-safe and nothing is allocated.
        unsafe {
            cmd.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into)
            });
        }
        let child = cmd
            .spawn()
            .with_context(|| format!("{name}: {cmd:?} (scripts/setup.sh --bench installs tools)"))?;
        Ok(Self { name: name.into(), child })
    }
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
    /// An error when it has ended.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}", self.name),
        }
    }
    /// Until it ends by itself; killed when it does not.
    pub fn wait(mut self, limit: Duration) -> Result<ExitStatus> {
        match self.wait_until(Instant::now() + limit)? {
            Some(status) => Ok(status),
            // Dropped, and thereby killed.
            None => bail!("{} hangs, ended after {} s", self.name, limit.as_secs()),
        }
    }
    fn wait_until(&mut self, deadline: Instant) -> Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(STEP);
        }
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
                let _ = rustix::process::kill_process(pid, Signal::TERM);
            }
            let _ = self.wait_until(Instant::now() + FAREWELL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Run to the end and answer what it printed; anything but success is an error with what it said. `log` is overwritten.
pub fn run(name: &str, cmd: Command, log: &Path, limit: Duration) -> Result<String> {
    let _ = std::fs::remove_file(log);
    let status = Proc::start(name, cmd, log)?.wait(limit)?;
    let said = std::fs::read_to_string(log)?;
    ensure!(status.success(), "{name}: {status}: {said}");
    Ok(said)
}

/// Ask until it is so; the last error is told when time is up.
pub fn until(what: &str, mut ask: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let Err(e) = ask() else { return Ok(()) };
        if Instant::now() >= deadline {
            bail!("{what}: not within {} s: {e:#}", PATIENCE.as_secs());
        }
        std::thread::sleep(STEP * 10);
    }
}
