//! An erasure coded volume: what it takes on disks, what it bears, what is found and made good.

use crate::harness::Lab;
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::files::Noise;
use crate::harness::fio::fill;
use crate::harness::proc::run;
use crate::harness::wait::until;
use anyhow::{Context as _, Result, ensure};
use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub const ABOUT: &str =
    "4:2 on six sheep: 1.5 times the space, any two gone, damage, kill and rejoin under fio, copies and back";

const SIZE: u64 = 128 << 20;
/// Longer than a machine under load takes to put the volume away.
const PUT_AWAY: Duration = Duration::from_secs(240);

/// Files of strips (or of objects) below a sheep's disks.
fn files(c: &Cluster, i: usize, strips: bool) -> Result<Vec<PathBuf>> {
    fn collect(dir: &Path, strips: bool, out: &mut Vec<PathBuf>) -> Result<()> {
        if !dir.exists() {
            return Ok(());
        }
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if path.is_dir() {
                collect(&path, strips, out)?;
            } else if name.starts_with("00") != strips {
                out.push(path);
            }
        }
        Ok(())
    }
    let mut all = Vec::new();
    for disk in &c.sheep[i].disks {
        collect(&disk.join("obj"), strips, &mut all)?;
    }
    all.sort();
    Ok(all)
}

/// Strips on all disks.
pub fn strips(c: &Cluster) -> Result<u64> {
    (0..c.sheep.len()).map(|i| Ok(files(c, i, true)?.len() as u64)).sum()
}

/// Fill the beginning of a volume with the plan's code, in objects of 1 MiB, and wait until nearly all of it is in strips.
pub fn fill_and_put_away(c: &Cluster, volume: &str, bytes: u64) -> Result<()> {
    let (data, parity) = c.plan.policy.context("volumes of this plan are not erasure coded")?;
    fill(&c.uri(0, volume), bytes)?;
    let all = (bytes >> 20) * u64::from(data + parity);
    until("the volume is put away", PUT_AWAY, || {
        let there = strips(c)?;
        ensure!(there * 10 >= all * 9, "{there} of {all} strips");
        Ok(Some(()))
    })
}

/// Bytes that files take, as the file system counts. One that goes meanwhile takes none.
fn taken(c: &Cluster) -> Result<u64> {
    let mut sum = 0;
    for i in 0..c.sheep.len() {
        for strips in [false, true] {
            sum += files(c, i, strips)?
                .iter()
                .map(|f| f.metadata().map_or(0, |m| m.blocks() * 512))
                .sum::<u64>();
        }
    }
    Ok(sum)
}

/// Wait until the volume takes no more than this times its size.
fn put_away(c: &Cluster, most: f64) -> Result<f64> {
    until("the volume is put away", PUT_AWAY, || {
        let times = taken(c)? as f64 / SIZE as f64;
        ensure!(times <= most, "it takes {times:.2} times its size");
        Ok(Some(times))
    })
}

fn compare(c: &Cluster, gateway: usize, source: &str) -> Result<()> {
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &c.uri(gateway, "disk")])
        .with_context(|| format!("gateway {gateway}"))
        .map(drop)
}

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let mut c = Cluster::start(lab, Plan::new(6, 3))?;
    let refused = c.dog(&["vdi", "create", "wide", "1G", "--copy-policy", "8:3"]);
    let said = refused.err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(said.contains("11 sheep"), "8:3 on six sheep: {said:?}");
    c.dog(&["vdi", "create", "disk", &SIZE.to_string(), "--copy-policy", "4:2"])?;
    let path = lab.dir.join("source.img");
    let mut data = vec![0; SIZE as usize];
    Noise::new(5).fill(&mut data);
    std::fs::write(&path, &data)?;
    let source = path.to_str().context("path")?.to_owned();
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &source, &c.uri(0, "disk")])?;
    let hot = taken(&c)? as f64 / SIZE as f64;
    let times = put_away(&c, 1.6)?;
    lab.proved(format!("{hot:.2} times its size while it is written, {times:.2} times when it is put away"));
    for i in 0..6 {
        compare(&c, i, &source)?;
    }
    lab.proved(format!("{} objects and their strips as they should be", c.check("disk")?));
    any_two(lab, &mut c, &source)?;
    damage(lab, &mut c, &source)?;
    under_load(lab, &mut c)?;
    back_and_forth(lab, &c, &source)
}

/// kill -9 of two sheep, every pair (a few when it is quick): everything is read by those that are left.
fn any_two(lab: &Lab, c: &mut Cluster, source: &str) -> Result<()> {
    let all: Vec<(usize, usize)> = (0..6).flat_map(|a| (a + 1..6).map(move |b| (a, b))).collect();
    let pairs: Vec<_> = all.iter().copied().step_by(lab.pick(1, 5)).collect();
    for (a, b) in &pairs {
        let (a, b) = (*a, *b);
        c.kill(a)?;
        c.kill(b)?;
        let gateway = (0..6).find(|g| *g != a && *g != b).context("a gateway")?;
        compare(c, gateway, source).with_context(|| format!("without {a} and {b}"))?;
        c.spawn(a)?;
        c.spawn(b)?;
        c.whole()?;
    }
    lab.proved(format!("{} pairs of six sheep killed: every byte read through the others", pairs.len()));
    Ok(())
}

/// Bits flipped in strips, strips deleted: nothing wrong is read, and they are made again.
fn damage(lab: &Lab, c: &mut Cluster, source: &str) -> Result<()> {
    c.stop(1)?;
    let strips = files(c, 1, true)?;
    ensure!(strips.len() > 8, "sheep 1 has {} strips", strips.len());
    for (n, path) in strips.iter().enumerate() {
        match n % 4 {
            0 => std::fs::remove_file(path)?,
            1 => flip(path)?,
            _ => {}
        }
    }
    c.spawn(1)?;
    c.whole()?;
    compare(c, 1, source)?;
    let found = c.dog(&["vdi", "check", "disk"]).is_err();
    c.json(&["vdi", "check", "disk", "--repair"])?;
    until("the strips are as they should be", PUT_AWAY, || c.check("disk").map(Some))?;
    compare(c, 1, source)?;
    lab.proved(format!(
        "half of a sheep's {} strips flipped or deleted: never served, {}, all made again",
        strips.len(),
        if found { "named by dog vdi check" } else { "made again before dog vdi check" }
    ));
    Ok(())
}

fn flip(path: &Path) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    for i in 1..4 {
        // Behind the header, in the part that strips of 4 MiB objects in four fill.
        let at = (64 << 10) + (len - (128 << 10)) * i / 4;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        byte[0] ^= 0x10;
        file.write_all_at(&byte, at)?;
    }
    Ok(file.sync_all()?)
}

/// fio verifies what it writes while sheep are killed and come back, some of it in what is put away.
fn under_load(lab: &Lab, c: &mut Cluster) -> Result<()> {
    c.dog(&["vdi", "create", "load", "64M", "--copy-policy", "4:2"])?;
    let seconds = lab.pick(120, 40);
    let fio = Command::new("fio")
        .args(["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=4", "--size=64m"])
        // Slow enough that objects rest between two writes.
        .args(["--rate_iops=20", "--time_based=1", "--verify=crc32c", "--verify_backlog=64"])
        .args(["--verify_state_save=0", "--output-format=terse"])
        .args([format!("--uri={}", c.uri(0, "load")), format!("--runtime={seconds}")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("fio: scripts/setup.sh installs it")?;
    let (end, mut kills) = (Instant::now() + Duration::from_secs(seconds), 0);
    while Instant::now() + Duration::from_secs(10) < end {
        let victim = 1 + kills % 5;
        c.kill(victim)?;
        std::thread::sleep(Duration::from_secs(2));
        c.spawn(victim)?;
        c.whole()?;
        kills += 1;
    }
    let out = fio.wait_with_output()?;
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    ensure!(out.status.success(), "fio saw an error: {text}");
    c.check("load")?;
    c.dog(&["vdi", "delete", "load", "--now", "--yes"])?;
    lab.proved(format!("fio verified for {seconds} s beside {kills} kills: no error"));
    Ok(())
}

/// Another redundancy, online.
fn back_and_forth(lab: &Lab, c: &Cluster, source: &str) -> Result<()> {
    for (args, least, most) in [(["--copies", "2"], 1.95, 2.1), (["--copy-policy", "2:1"], 1.45, 1.6)] {
        c.dog(&["vdi", "alter-copy", "disk", args[0], args[1]])?;
        compare(c, 2, source)?;
        let times = until(&format!("{} {}", args[0], args[1]), PUT_AWAY, || {
            let times = taken(c)? as f64 / SIZE as f64;
            let strips = strips(c)?;
            ensure!((strips == 0) == (args[0] == "--copies"), "there are {strips} strips");
            ensure!((least..=most).contains(&times), "it takes {times:.2} times its size");
            Ok(Some(times))
        })?;
        compare(c, 3, source)?;
        c.check("disk")?;
        lab.proved(format!("{} {}: {times:.2} times its size, equal all along", args[0], args[1]));
    }
    Ok(())
}
