//! A guest: a Debian system under TCG whose only disk is a volume over NBD.
//!
//! Its init is our script (`guest.sh`): it writes files with checksums until told to stop, and reports on the serial console.

use super::debian::{Recipe, System};
use super::proc::Proc;
use super::wait::until;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Debian that writes to its disk.
pub const WRITER: Recipe = Recipe {
    name: "bookworm-1",
    suite: "bookworm",
    packages: &["e2fsprogs"],
    init: include_str!("guest.sh"),
};
/// How long QEMU asks for a lost connection before the guest is paused.
pub const RECONNECT: Duration = Duration::from_secs(20);
/// Everything is slow under emulation.
pub const SLOW: Duration = Duration::from_secs(240);

/// A name for a socket that can be made to mean another one.
fn lead(way: &Path, socket: &Path) -> Result<()> {
    let new = way.with_extension("new");
    std::os::unix::fs::symlink(socket, &new)?;
    std::fs::rename(new, way)?;
    Ok(())
}

/// A running QEMU.
#[derive(Debug)]
pub struct Guest {
    proc: Proc,
    qmp: Qmp,
    serial: PathBuf,
    console: UnixStream,
    way: PathBuf,
}

fn nbd(name: &str, socket: &Path, export: &str) -> Value {
    json!({"driver": "nbd", "node-name": name, "server": {"type": "unix", "path": socket}, "export": export,
           "reconnect-delay": RECONNECT.as_secs(), "open-timeout": 60})
}

impl Guest {
    /// Start with the disk at a gateway; `incoming` waits for another QEMU to hand a guest over.
    pub fn start(
        s: &System,
        dir: &Path,
        name: &str,
        socket: &Path,
        export: &str,
        incoming: bool,
    ) -> Result<Self> {
        let at = |what: &str| dir.join(format!("{name}.{what}"));
        let (qmp, console, serial, way) = (at("qmp"), at("console"), at("serial"), at("nbd"));
        lead(&way, socket)?;
        let mut cmd = Command::new("qemu-system-x86_64");
        cmd.args(s.machine(name, 512, 2))
            .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
            .arg("-chardev")
            .arg(format!(
                "socket,id=c,path={},server=on,wait=off,logfile={},logappend=off",
                console.display(),
                serial.display()
            ))
            .args(["-serial", "chardev:c"])
            .args(["-blockdev", &nbd("disk", &way, export).to_string()])
            .args(["-device", "virtio-blk-pci,drive=disk,werror=stop,rerror=stop"]);
        if incoming {
            cmd.args(["-incoming", "defer"]);
        }
        let mut proc = Proc::start(name, cmd, &at("log"))?;
        let log = at("log");
        let connect = |proc: &mut Proc, path: &Path| {
            until("qemu listens", SLOW, || {
                if !proc.running()? {
                    return Ok(Some(Err(std::fs::read_to_string(&log).unwrap_or_default())));
                }
                Ok(Some(Ok(UnixStream::connect(path)?)))
            })?
            .map_err(|said| anyhow::anyhow!("qemu ended: {said}"))
        };
        let qmp = Qmp::new(connect(&mut proc, &qmp)?)?;
        let console = connect(&mut proc, &console)?;
        Ok(Self { proc, qmp, serial, console, way })
    }

    /// Everything that the guest said.
    pub fn said(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.serial)?).into_owned())
    }
    /// Rounds of writing, syncing and reading back that it has finished.
    pub fn rounds(&self) -> Result<u64> {
        let said = self.said()?;
        let last = said.lines().rev().find_map(|l| l.trim().strip_prefix("E2E-ROUND ")?.parse().ok());
        Ok(last.unwrap_or(0))
    }
    /// So many more rounds.
    pub fn goes_on(&mut self, more: u64) -> Result<u64> {
        let from = self.rounds()?;
        let limit = SLOW;
        let reached = until(&format!("the guest goes on from round {from}"), limit, || {
            let now = self.rounds()?;
            Ok((now >= from + more).then_some(now))
        });
        match reached {
            Ok(n) => Ok(n),
            Err(e) => bail!("{e:#}; {}; the guest said: {}", self.state()?, tail(&self.said()?)),
        }
    }
    /// QEMU's word for the guest's state.
    pub fn state(&mut self) -> Result<String> {
        let status = self.qmp.ask("query-status", &json!({}))?;
        Ok(status["status"].as_str().unwrap_or_default().to_owned())
    }
    /// Wait for a state.
    pub fn becomes(&mut self, state: &str, limit: Duration) -> Result<()> {
        until(&format!("the guest is {state}"), limit, || Ok((self.state()? == state).then_some(())))
    }
    /// Give the disk another way to its volume, and go on: what failed is done again.
    ///
    /// The way is a name that now leads elsewhere (for TCP it would be an address that moves). `blockdev-reopen` is of no use here: QEMU 7.2
    /// first flushes the connection that is lost, and that fails, even with `no-flush`.
    pub fn move_disk(&mut self, socket: &Path) -> Result<()> {
        lead(&self.way, socket)?;
        let before = self.rounds()?;
        // Requests of a guest that goes on fail again until QEMU's own attempts, seconds apart, have found the new way.
        until("the guest goes on elsewhere", SLOW, || {
            if self.state()? == "io-error" {
                self.qmp.ask("cont", &json!({}))?;
            }
            Ok((self.rounds()? > before).then_some(()))
        })
    }
    /// Hand the guest over to another QEMU while it runs.
    pub fn migrate(mut self, to: &mut Self, socket: &Path) -> Result<Value> {
        let uri = format!("unix:{}", socket.display());
        to.qmp.ask("migrate-incoming", &json!({"uri": uri}))?;
        self.qmp
            .ask("migrate-set-parameters", &json!({"max-bandwidth": 1u64 << 30, "downtime-limit": 2000}))?;
        self.qmp.ask("migrate", &json!({"uri": uri}))?;
        let info = until("the migration ends", SLOW, || {
            let info = self.qmp.ask("query-migrate", &json!({}))?;
            match info["status"].as_str() {
                Some("completed" | "failed" | "cancelled") => Ok(Some(info)),
                _ => Ok(None),
            }
        })?;
        ensure!(info["status"] == "completed", "migration: {info}");
        to.becomes("running", SLOW)?;
        Ok(info)
    }
    /// Stop writing, compare everything, look at the kernel's log, unmount and power off.
    pub fn finish(mut self) -> Result<String> {
        self.console.write_all(b"stop\n")?;
        let ended = self.proc.wait(SLOW);
        let said = self.said()?;
        ended.with_context(|| format!("the guest said: {}", tail(&said)))?;
        for word in ["E2E-FILES-OK", "E2E-DMESG-CLEAN", "E2E-BYE"] {
            ensure!(said.contains(word), "the guest did not say {word}: {}", tail(&said));
        }
        ensure!(!said.contains("E2E-WRONG"), "the guest read something wrong: {}", tail(&said));
        Ok(said)
    }
}

fn tail(said: &str) -> String {
    let lines: Vec<&str> = said.lines().rev().take(20).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}

/// QEMU's monitor.
#[derive(Debug)]
struct Qmp {
    socket: UnixStream,
    buf: Vec<u8>,
}

impl Qmp {
    fn new(socket: UnixStream) -> Result<Self> {
        socket.set_read_timeout(Some(SLOW))?;
        let mut me = Self { socket, buf: Vec::new() };
        me.line().context("QMP greeting")?;
        me.ask("qmp_capabilities", &json!({}))?;
        Ok(me)
    }
    fn line(&mut self) -> Result<Value> {
        loop {
            if let Some(end) = self.buf.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buf.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            let mut part = [0; 4096];
            match self.socket.read(&mut part)? {
                0 => bail!("QEMU closed its monitor"),
                n => self.buf.extend_from_slice(&part[..n]),
            }
        }
    }
    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        self.socket.write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut answer = self.line()?;
            if let Some(e) = answer.get("error") {
                bail!("{command}: {}", e["desc"]);
            }
            // Events come in between.
            if let Some(r) = answer.get_mut("return") {
                return Ok(r.take());
            }
        }
    }
}
