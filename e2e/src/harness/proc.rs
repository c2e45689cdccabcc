//! Processes: each is ended through the handle that started it, and dies with the harness whatever happens to that.

use super::wait::until;
use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

/// Nothing that is waited for takes longer, a debootstrap included.
const LIMIT: Duration = Duration::from_secs(300);

/// A program with a log.
#[derive(Debug)]
pub struct Proc {
    name: String,
    child: Child,
}

/// The kernel kills the child when this process is gone.
fn tie(cmd: &mut Command) {
    // SAFETY: between fork and exec; prctl is async-signal-safe and nothing is allocated.
    unsafe {
        cmd.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into)
        });
    }
}

impl Proc {
    /// Start; standard output and error are added to `log`.
    pub fn start(name: &str, mut cmd: Command, log: &Path) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        cmd.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        Self::spawn(name, cmd)
    }
    /// Start, with the streams it has been given.
    pub fn spawn(name: &str, mut cmd: Command) -> Result<Self> {
        tie(&mut cmd);
        let child =
            cmd.spawn().with_context(|| format!("{name}: {cmd:?} (scripts/setup.sh installs tools)"))?;
        Ok(Self { name: name.into(), child })
    }
    /// Its id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
    /// Send a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed()).context("pid")?;
        rustix::process::kill_process(pid, signal).with_context(|| self.name.clone())
    }
    /// SIGKILL, and gone.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
    /// SIGTERM, and gone within the time.
    pub fn stop(mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(limit)
    }
    /// Still there?
    pub fn running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
    /// Until it ends by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        until(&format!("{} ends", self.name), limit, || Ok(child.try_wait()?))
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // A stopped process dies of SIGKILL too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Run to the end, with everything it said.
pub fn output(program: impl AsRef<OsStr>, args: &[&str]) -> Result<Output> {
    let mut cmd = Command::new(program);
    cmd.args(args);
    complete(cmd, LIMIT)
}

/// Run to the end; anything but success is an error with what it said.
pub fn run(program: impl AsRef<OsStr>, args: &[&str]) -> Result<String> {
    let mut cmd = Command::new(program);
    cmd.args(args);
    run_command(cmd, LIMIT)
}

/// The same for a command with an environment, within a time.
pub fn run_command(cmd: Command, limit: Duration) -> Result<String> {
    let what = said(&cmd);
    let out = complete(cmd, limit)?;
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if !out.status.success() {
        bail!("{what}: {}: {stdout}{stderr}", out.status);
    }
    Ok(stdout.into_owned())
}

/// The same, with everything it said and however it ended.
pub fn output_command(cmd: Command, limit: Duration) -> Result<Output> {
    complete(cmd, limit)
}

/// As one would type it.
fn said(cmd: &Command) -> String {
    let words: Vec<_> =
        std::iter::once(cmd.get_program()).chain(cmd.get_args()).map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

fn complete(mut cmd: Command, limit: Duration) -> Result<Output> {
    let what = said(&cmd);
    cmd.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    tie(&mut cmd);
    let child = cmd.spawn().with_context(|| format!("{what} (scripts/setup.sh installs tools)"))?;
    let pid = Pid::from_raw(child.id().cast_signed()).context("pid")?;
    let (tx, rx) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || tx.send(child.wait_with_output()));
    let Ok(out) = rx.recv_timeout(limit) else {
        // Not reaped yet: its thread still waits, so the id is its own.
        rustix::process::kill_process(pid, Signal::KILL)?;
        let _ = waiting.join();
        bail!("{what}: hangs, ended after {} s", limit.as_secs());
    };
    Ok(out?)
}
