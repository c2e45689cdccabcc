//! The only disk of a sheep stops to answer and returns no error, for minutes: a file system that is frozen takes no write and no sync. Writes of clients wait until it is clear that it does not
//! come back by itself; then the sheep ends, and the others go on. It leads, so its control log stands still as well.

use crate::harness::Lab;
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::fio::{Fio, Job};
use crate::harness::proc::run;
use crate::harness::wait::{PATIENCE, phase, until};
use anyhow::{Context as _, Result, ensure};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const ABOUT: &str = "the only disk of a sheep stops to answer";

const SIZE: u64 = 256 << 20;
/// Of the file system that will be frozen.
const DISK: u64 = 3 << 30;
/// Half a minute until it is clear, and what the failure detector needs.
const LIMIT: Duration = Duration::from_secs(45);
/// The one whose disk it is; the last one leads first.
const VICTIM: usize = 3;

/// A file system on a file. Goes with this, frozen or not.
struct Disk {
    at: PathBuf,
    frozen: bool,
}

impl Disk {
    fn mount(file: &Path, at: &Path) -> Result<Self> {
        let (file_name, at_name) = (file.to_str().context("path")?, at.to_str().context("path")?);
        File::create(file)?.set_len(DISK)?;
        run("mkfs.ext4", &["-q", file_name])?;
        std::fs::create_dir_all(at)?;
        run("mount", &["-o", "loop", file_name, at_name])?;
        Ok(Self { at: at.into(), frozen: false })
    }
    fn freeze(&mut self, on: bool) -> Result<()> {
        run("fsfreeze", &[if on { "-f" } else { "-u" }, self.at.to_str().context("path")?])?;
        self.frozen = on;
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.frozen {
            let _ = self.freeze(false);
        }
        let _ = run("umount", &["-l", &self.at.display().to_string()]);
    }
}

pub fn run_scenario(lab: &Lab) -> Result<()> {
    // Before the cluster: what is made first goes last.
    let mut disk = Disk::mount(&lab.dir.join("disk.img"), &lab.dir.join(format!("sheep{VICTIM}")))?;
    let mut c = Cluster::start(lab, Plan::new(4, 3))?;
    c.create("disk", SIZE)?;
    ensure!(c.leader()? == VICTIM, "sheep {VICTIM} was to lead");
    let id = c.id(VICTIM)?;
    let mut client = UnixStream::connect(c.nbd_socket(VICTIM))?;
    client.set_read_timeout(Some(PATIENCE))?;

    let length = Duration::from_secs(lab.pick(180, 100));
    let jobs = Job::verify_and_pulse(&c.uri(0, "disk"), SIZE, 300, false);
    let mut fio = Fio::start(&lab.dir, "fio", length, &jobs)?;
    phase(Duration::from_secs(15), || Ok(!fio.running()?))?;
    lab.step("the file system of the leader's only disk is frozen");
    disk.freeze(true)?;
    until("the others go on without it", PATIENCE, || {
        let rows = c.rows(&["node", "list"])?;
        let row = rows.iter().find(|r| r["id"] == *id).context("it is a node")?;
        ensure!(row["state"] == "down", "it is {}", row["state"]);
        Ok(Some(()))
    })?;
    // Not left waiting for a process that cannot end while its disk does not answer.
    let mut said = Vec::new();
    client.read_to_end(&mut said).context("its clients' connections are closed")?;
    lab.proved("its clients' connections were closed while its disk stood still");
    let done = fio.finish(length + PATIENCE)?;
    let (gap, at) = done.gap();
    ensure!(done.writes > 1000 && done.pulse.len() > 500, "fio hardly did anything: {done:?}");
    lab.proved(format!(
        "{} writes and {} compared reads at another gateway without an error",
        done.writes, done.reads
    ));
    lab.measured(
        "longest time without a finished write",
        format!("{:.1} s (at {:.1} s)", gap.as_secs_f64(), at.as_secs_f64()),
    );
    lab.within("writes stood still", gap, LIMIT)?;

    lab.step("it answers again, and the sheep is started again");
    disk.freeze(false)?;
    let status = c.ended(VICTIM)?;
    ensure!(!status.success(), "it ended with {status}");
    c.spawn(VICTIM)?;
    c.whole()?;
    let objects = c.check("disk")?;
    ensure!(c.index(&id)? == VICTIM, "it is the same node");
    lab.proved(format!("the process had ended by itself; it came back as the same node, {objects} objects equal in all copies"));
    c.stop_all()
}
