//! A volume that is being written is backed up again and again; each backup comes back in another cluster as the volume was, also from an S3 service, where one is installed.

use crate::harness::cluster::{Cluster, Plan};
use crate::harness::fio::{Fio, Job};
use crate::harness::proc::{Proc, run, run_command};
use crate::harness::wait::{PATIENCE, phase, until};
use crate::harness::{Lab, cache};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub const ABOUT: &str =
    "incremental backups of a volume in use, restored elsewhere and on demand, pruned, damaged";

const MIB: u64 = 1 << 20;
/// Writes to a volume that is restored on demand: four for each of three sheep.
const WRITES: u64 = 12;

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let (size, points) = lab.pick((2048 * MIB, 10), (256 * MIB, 3));
    let mut here = Cluster::start(lab, Plan::new(3, 3))?;
    here.create("disk", size)?;
    let uri = here.uri(0, "disk");
    // Contents that do not repeat, as files have them.
    let source = lab.dir.join("source.img");
    noise(&source, size / 2)?;
    let text = source.to_str().context("path")?;
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text, &uri])?;
    let there_lab = Lab::new(lab.dir.join("there"), lab.bin.clone(), None, lab.quick)?;
    let there = Cluster::start(&there_lab, Plan::new(1, 1))?;
    let repository = lab.dir.join("repository");
    let repository = repository.to_str().context("path")?.to_owned();

    let load = Duration::from_secs(points as u64 * 6);
    let jobs = [Job::pulse(&uri, size / 2, size / 2, 200)];
    let mut fio = Fio::start(&lab.dir, "load", load, &jobs)?;
    let mut busy = 0;
    let mut made = Vec::new();
    for n in 0..points {
        // A file of this name is what the snapshot shows, whatever is written meanwhile.
        let tag = format!("point{n}");
        let (offset, byte) = ((n as u64 * 37 % 100) * (size / 200), 0x21 + n as u8);
        let write = format!("write -q -P {byte} {} 3M", offset / 4096 * 4096);
        run("qemu-io", &["-f", "raw", "-c", &write, &here.uri(1, "disk")])?;
        here.dog(&["vdi", "snapshot", "disk", "-s", &tag])?;
        let start = Instant::now();
        let image = format!("disk@{tag}");
        let backup = here.json(&["vdi", "backup", &image, &repository])?;
        let seconds = start.elapsed().as_secs_f64();
        let added = number(&backup, "added")?;
        lab.step(format!("{image}: {} MiB added in {seconds:.1} s", added / MIB));
        made.push((backup["id"].as_str().context("id")?.to_owned(), image, added));
        busy += u32::from(fio.running()?);
    }
    let done = fio.finish(load * 10)?;
    ensure!(busy > 0 && done.writes > 0, "nothing was written meanwhile");
    lab.proved(format!("{} writes without an error, {busy} backups ended meanwhile", done.writes));
    let full = made[0].2;
    let increments: u64 = made[1..].iter().map(|(.., added)| added).sum();
    lab.measured("first backup", format!("{} MiB", full / MIB));
    lab.measured("all increments", format!("{} MiB", increments / MIB));
    ensure!(made[1..].iter().all(|(.., added)| *added < full), "an increment is as large as the first");

    for (n, (id, image, _)) in made.iter().enumerate() {
        let name = format!("r{n}");
        there.dog(&["vdi", "restore", &repository, id, &name, "-c", "1"])?;
        same(&here, image, &there, &name)?;
        if n + 1 < made.len() {
            there.dog(&["vdi", "delete", &name, "--now", "--yes"])?;
        }
    }
    lab.proved(format!("{points} backups of a volume in use, restored in another cluster: qemu-img compare finds no difference"));

    on_demand(lab, &mut here, &repository, &made[points - 1].0, size)?;
    speed(lab, &here, &made[0].1)?;
    damage(lab, &there, &repository, &made[points - 1].0)?;
    let pruned = there.json(&["backup", "prune", &repository, "--keep-last", "2"])?;
    ensure!(number(&pruned, "backups")? == points as u64 - 2, "{pruned}");
    there.dog(&["backup", "verify", &repository])?;
    there.dog(&["vdi", "restore", &repository, &made[points - 2].0, "kept", "-c", "1"])?;
    same(&here, &made[points - 2].1, &there, "kept")?;
    lab.proved(format!("pruned: {} chunks gone, what is left restores", number(&pruned, "chunks")?));

    s3(lab, &here, &there)?;
    here.alive()?;
    here.stop_all()?;
    let mut there = there;
    there.stop_all()
}

fn number(v: &Value, key: &str) -> Result<u64> {
    v[key].as_u64().with_context(|| format!("{key} of {v}"))
}

fn noise(path: &Path, bytes: u64) -> Result<()> {
    let mut random = crate::harness::files::Noise::new(7);
    let mut out = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut buf = vec![0; MIB as usize];
    for _ in 0..bytes / MIB {
        random.fill(&mut buf);
        std::io::Write::write_all(&mut out, &buf)?;
    }
    Ok(())
}

fn same(a: &Cluster, image: &str, b: &Cluster, name: &str) -> Result<()> {
    let (x, y) = (a.uri(0, image), b.uri(0, name));
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &x, &y]).map(drop)
}

/// How long a run of dog takes whose output nobody wants. A second after the last request of a client background work, as a backup is, need not make way for it any more.
fn timed(c: &Cluster, args: &[&str]) -> Result<f64> {
    phase(Duration::from_secs(2), || Ok(false))?;
    let start = Instant::now();
    let mut dog = Command::new(c.program("dog"));
    dog.args(["-a", &c.address(0)]).args(args).stdout(std::process::Stdio::null());
    ensure!(dog.status()?.success(), "dog {}", args.join(" "));
    Ok(start.elapsed().as_secs_f64())
}

/// Side by side: everything read and thrown away, and first backups of the same, into a pipe and into a directory beside the sheep's disks.
fn speed(lab: &Lab, c: &Cluster, image: &str) -> Result<()> {
    let (mut pipe, mut directory) = (Vec::new(), Vec::new());
    for n in 0..3 {
        let plain = timed(c, &["vdi", "read", image])?;
        pipe.push(plain / timed(c, &["vdi", "backup", image, "-"])?);
        let repository = lab.dir.join(format!("speed{n}"));
        directory.push(plain / timed(c, &["vdi", "backup", image, repository.to_str().context("path")?])?);
        std::fs::remove_dir_all(repository)?;
    }
    for (ratios, into) in [(&mut pipe, "a pipe"), (&mut directory, "a directory on the same disk")] {
        ratios.sort_by(f64::total_cmp);
        lab.measured(
            &format!("a first backup into {into}, against dog vdi read > /dev/null"),
            format!("{:.2} x (of three)", ratios[1]),
        );
    }
    Ok(())
}

/// A volume of three copies is used while it is restored; what serves it dies, and so do sheep, the one that it talks to among them.
fn on_demand(lab: &Lab, c: &mut Cluster, repository: &str, id: &str, size: u64) -> Result<()> {
    let socket = lab.dir.join("lazy.sock").display().to_string();
    let lazy = format!("nbd+unix:///lazy?socket={socket}");
    let addresses = (0..3).map(|i| c.address(i)).collect::<Vec<_>>().join(",");
    let dog = c.program("dog");
    let serve = |options: &[&str]| -> Result<Proc> {
        let mut command = Command::new(&dog);
        command.args(["-a", &addresses, "vdi", "restore", repository, id, "lazy"]);
        command.args(["--lazy", "--listen", &socket]).args(options);
        let proc = Proc::start("dog", command, &lab.dir.join("lazy.log"))?;
        let served = || Ok(run("nbdinfo", &["--size", &lazy]).is_ok().then_some(()));
        until("the volume is served", PATIENCE, served)?;
        Ok(proc)
    };
    // So slowly that nearly all of it is missing when clients come.
    let rate = (size / 1000).to_string();
    let slowly = ["--fill-rate", &rate];
    let mut server = serve(&slowly)?;
    // Not whole blocks: contents of the backup are before and after them.
    let words = |n: u64| format!("write -q -P {} {} 10k", 0x40 + n, n * (size / 40) + 512);
    let write = |uri: &str, n: u64| run("qemu-io", &["-f", "raw", "-c", &words(n), uri]).map(drop);
    for n in 0..WRITES {
        if n % 4 == 2 {
            server.kill()?;
            server = serve(&slowly)?;
        }
        if n % 4 == 3 {
            let victim = n as usize / 4;
            c.kill(victim)?;
            write(&lazy, n)?;
            c.spawn(victim)?;
            c.whole()?;
        } else {
            write(&lazy, n)?;
        }
    }
    let rows = c.rows(&["vdi", "list"])?;
    let restoring = rows.iter().any(|v| v["name"] == "lazy" && v["state"] == "restoring");
    ensure!(restoring, "nothing was missing any more: {rows:?}");
    // The same writes to a volume that was restored first.
    c.dog(&["vdi", "restore", repository, id, "plain"])?;
    let plain = c.uri(0, "plain");
    for n in 0..WRITES {
        write(&plain, n)?;
    }
    server.kill()?;
    server = serve(&[])?;
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &lazy, &plain])?;
    let status = server.wait(PATIENCE)?;
    ensure!(status.success(), "dog vdi restore --lazy ended with {status}");
    same(c, "lazy", c, "plain")?;
    c.check("lazy")?;
    // As documented: a program that died has left its lock, and nobody prunes while that is there.
    for lock in std::fs::read_dir(Path::new(repository).join("locks"))? {
        std::fs::remove_file(lock?.path())?;
    }
    lab.proved("restored on demand, as three copies, under writes: its server and each sheep killed, every write and byte of the backup there");
    for name in ["lazy", "plain"] {
        c.dog(&["vdi", "delete", name, "--now", "--yes"])?;
    }
    Ok(())
}

/// A flipped bit is found and named, and nothing is restored from it.
fn damage(lab: &Lab, there: &Cluster, repository: &str, id: &str) -> Result<()> {
    let victim = largest(&Path::new(repository).join("chunks"))?;
    let whole = std::fs::read(&victim)?;
    let mut bad = whole.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 16;
    std::fs::write(&victim, bad)?;
    let name = victim.file_name().and_then(|n| n.to_str()).context("name")?;
    for words in
        [&["backup", "verify", repository][..], &["vdi", "restore", repository, id, "half", "-c", "1"]]
    {
        match there.dog(words) {
            Ok(_) => anyhow::bail!("dog {} did not notice the damage", words.join(" ")),
            Err(e) => ensure!(format!("{e:#}").contains(name), "the damage is not named: {e:#}"),
        }
    }
    ensure!(!there.rows(&["vdi", "list"])?.iter().any(|v| v["name"] == "half"), "half a volume stayed");
    std::fs::write(&victim, whole)?;
    lab.proved("a flipped bit is named by verify and restore, and nothing half stays");
    Ok(())
}

fn largest(dir: &Path) -> Result<PathBuf> {
    let mut all = Vec::new();
    for part in std::fs::read_dir(dir)? {
        for file in std::fs::read_dir(part?.path())? {
            let path = file?.path();
            all.push((path.metadata()?.len(), path));
        }
    }
    Ok(all.into_iter().max().context("no chunks")?.1)
}

/// The same with somebody else's S3 service, where `scripts/setup.sh --e2e` has installed one.
fn s3(lab: &Lab, here: &Cluster, there: &Cluster) -> Result<()> {
    let server = cache()?.join("moto/bin/moto_server");
    if !server.exists() {
        lab.step("no S3 service is installed (scripts/setup.sh --e2e): that part is left out");
        return Ok(());
    }
    let port = sheepdog_testing::ports(1).map_err(anyhow::Error::msg)?;
    let mut command = Command::new(&server);
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    let moto = Proc::start("moto", command, &lab.dir.join("moto.log"))?;
    let endpoint = format!("http://127.0.0.1:{port}");
    let make = format!(
        "import boto3; boto3.client('s3', endpoint_url='{endpoint}', region_name='us-east-1', aws_access_key_id='a', aws_secret_access_key='b').create_bucket(Bucket='backups')"
    );
    let python = server.with_file_name("python");
    until("the S3 service", PATIENCE, || Ok(run(&python, &["-c", &make]).is_ok().then_some(())))?;
    let dog = |c: &Cluster, words: &[&str]| -> Result<String> {
        let mut command = Command::new(c.program("dog"));
        command.args(["-a", &c.address(0)]).args(words).env("AWS_ENDPOINT_URL", &endpoint);
        command.envs([
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
        ]);
        run_command(command, Duration::from_secs(300))
    };
    let place = "s3://backups/of/disks";
    here.create("small", 64 * MIB)?;
    run("qemu-io", &["-f", "raw", "-c", "write -q -P 7 5M 9M", &here.uri(0, "small")])?;
    dog(here, &["vdi", "backup", "small", place])?;
    run("qemu-io", &["-f", "raw", "-c", "write -q -P 8 6M 64k", &here.uri(0, "small")])?;
    dog(here, &["vdi", "backup", "small", place])?;
    dog(there, &["vdi", "restore", place, "small", "small", "-c", "1"])?;
    same(here, "small", there, "small")?;
    dog(there, &["backup", "prune", place, "--keep-last", "1"])?;
    dog(there, &["backup", "verify", place])?;
    moto.kill()?;
    lab.proved("two backups in an S3 bucket, the latest restored, pruned and verified");
    Ok(())
}
