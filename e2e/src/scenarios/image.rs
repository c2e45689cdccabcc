//! Real images in and out with other people's tools, and every file in them the same.

use crate::harness::Lab;
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::files;
use crate::harness::proc::run;
use anyhow::{Context as _, Result, ensure};
use std::path::Path;
use std::time::Instant;

pub const ABOUT: &str = "an ext4 image through qemu-img and nbdcopy, all files compared";

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let bytes: u64 = lab.pick(1 << 30, 128 << 20);
    let size = bytes + bytes / 4;
    let source = lab.dir.join("source.img");
    let folder = lab.dir.join("files");
    let sums = files::folder(&folder, bytes)?;
    files::ext4(&folder, &source, size)?;
    std::fs::remove_dir_all(&folder)?;
    lab.step(format!("{} files, {} MiB, in an ext4 image of {} MiB", sums.len(), bytes >> 20, size >> 20));

    let mut c = Cluster::start(lab, Plan::new(4, 3))?;
    let source = source.to_str().context("path")?;
    let (to, from) = (c.uri(0, "qemu"), c.uri(1, "qemu"));
    c.create("qemu", size)?;
    timed(lab, "qemu-img convert into the volume", bytes, || {
        run("qemu-img", &["convert", "-n", "-W", "-f", "raw", "-O", "raw", source, &to])
    })?;
    timed(lab, "qemu-img compare at another gateway", bytes, || {
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &from])
    })?;
    let back = lab.dir.join("back.img");
    let back_name = back.to_str().context("path")?;
    timed(lab, "qemu-img convert out at another gateway", bytes, || {
        run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &c.uri(2, "qemu"), back_name])
    })?;
    same(lab, "qemu-img", &back, &sums)?;

    c.create("nbdcopy", size)?;
    let to = c.uri(1, "nbdcopy");
    timed(lab, "nbdcopy into the volume", bytes, || run("nbdcopy", &["--flush", source, &to]))?;
    std::fs::remove_file(&back)?;
    timed(lab, "nbdcopy out at another gateway", bytes, || {
        run("nbdcopy", &[&c.uri(3, "nbdcopy"), back_name])
    })?;
    same(lab, "nbdcopy", &back, &sums)?;
    timed(lab, "qemu-img compare of the two volumes", bytes, || {
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &c.uri(0, "nbdcopy"), &c.uri(2, "qemu")])
    })?;
    let objects = c.check("qemu")? + c.check("nbdcopy")?;
    c.alive()?;
    lab.proved(format!("{objects} objects equal in all copies"));
    c.stop_all()
}

fn timed(lab: &Lab, what: &str, bytes: u64, f: impl FnOnce() -> Result<String>) -> Result<()> {
    let start = Instant::now();
    f()?;
    let seconds = start.elapsed().as_secs_f64();
    lab.measured(what, format!("{seconds:.1} s, {:.0} MiB/s", bytes as f64 / f64::from(1 << 20) / seconds));
    Ok(())
}

fn same(lab: &Lab, tool: &str, image: &Path, sums: &files::Sums) -> Result<()> {
    files::holds(image, sums, &lab.dir)?;
    ensure!(!sums.is_empty(), "no files");
    lab.proved(format!("{tool}: e2fsck clean, SHA-256 of all {} files as before", sums.len()));
    Ok(())
}
