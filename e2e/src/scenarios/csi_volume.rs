//! A volume as a pod has it, through FUSE and a loop device: files stay what they were whatever ends meanwhile.

use crate::harness::Lab;
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::csi::{Driver, Volume, device, mounted};
use crate::harness::files;
use crate::harness::fio::finished_without_error;
use crate::harness::proc::{Proc, run};
use crate::harness::wait::{PATIENCE, phase};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sheepdog_csi::capability::Fs;
use sheepdog_csi::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

pub const ABOUT: &str =
    "ext4, XFS and devices through FUSE and loop, under kill -9 of sheep and plugin; limits";

const SIZE: u64 = 1 << 30;

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let mut c = Cluster::start(lab, Plan::new(3, 3))?;
    let mut d = Driver::start(lab, &c, &[])?;
    dirty_device(lab, &d)?;
    for fs in ["ext4", "xfs"] {
        let v = survives(lab, &mut c, &mut d, fs)?;
        copies_and_growth(lab, &c, &d, &v, fs)?;
    }
    comes_back(lab, &c, &d)?;
    limits(lab, &c, &d)?;
    foreign_data(lab, &c, &d)?;
    d.stop()?;
    c.alive()?;
    c.stop_all()
}

fn text(p: &Path) -> Result<&str> {
    p.to_str().context("path")
}

/// File systems made and made again on a device that is not blank, with direct I/O of the loop device: what one FUSE server got wrong.
fn dirty_device(lab: &Lab, d: &Driver) -> Result<()> {
    let mut v = d.create("dirty", SIZE, &device(), None)?;
    d.attach(&mut v)?;
    d.mount(&v)?;
    let dev = text(&v.target)?;
    let loops = d.loop_device(&v)?;
    let name = loops.file_name().and_then(|n| n.to_str()).context("device")?;
    let dio = std::fs::read_to_string(format!("/sys/block/{name}/loop/dio"))?;
    ensure!(dio.trim() == "1", "the loop device does no direct I/O");
    run(
        "dd",
        &[
            "if=/dev/urandom",
            &format!("of={dev}"),
            "bs=1M",
            "count=256",
            "oflag=direct",
            "conv=fsync,notrunc",
        ],
    )?;
    let folder = lab.dir.join("dirty-files");
    let bytes = lab.pick(64 << 20, 24 << 20);
    let want = files::folder(&folder, bytes)?;
    let at = lab.dir.join("dirty-mount");
    std::fs::create_dir_all(&at)?;
    for round in 0..lab.pick(5, 2) {
        run("mkfs.ext4", &["-q", "-F", dev])?;
        run("mount", &["-w", "-t", "ext4", dev, text(&at)?])?;
        run("cp", &["-a", &format!("{}/.", folder.display()), text(&at)?])?;
        run("umount", &[text(&at)?])?;
        run("e2fsck", &["-f", "-n", dev])?;
        run("mount", &["-w", "-t", "ext4", dev, text(&at)?])?;
        let same = files::sums(&at);
        run("umount", &[text(&at)?])?;
        ensure!(same? == want, "round {round}: files differ");
    }
    std::fs::remove_dir_all(&folder)?;
    lab.proved(format!(
        "a dirty device, made anew again and again: e2fsck clean, {} files as before",
        want.len()
    ));
    end(d, &v)
}

fn end(d: &Driver, v: &Volume) -> Result<()> {
    end_of(d, v)?;
    d.delete(v)
}

/// No more use of it on this node.
fn end_of(d: &Driver, v: &Volume) -> Result<()> {
    d.unmount(v)?;
    d.detach(v)
}

/// Everything below it ends once, under load: no error above it.
fn survives(lab: &Lab, c: &mut Cluster, d: &mut Driver, fs: &str) -> Result<Volume> {
    let mut v = d.create(&format!("pvc-{fs}"), SIZE, &mounted(fs), None)?;
    d.attach(&mut v)?;
    d.mount(&v)?;
    let want = files::folder(&v.target.join("files"), lab.pick(96 << 20, 32 << 20))?;
    let dir = lab.dir.join(format!("fio-{fs}"));
    std::fs::create_dir_all(&dir)?;
    let seconds = lab.pick(40, 20);
    let mut cmd = Command::new("fio");
    cmd.current_dir(&dir).args(["--name=verify", "--rw=randwrite", "--bs=4k", "--iodepth=8", "--direct=1"]);
    cmd.args([
        "--ioengine=libaio",
        "--size=64m",
        "--verify=crc32c",
        "--verify_backlog=1024",
        "--verify_fatal=1",
    ]);
    cmd.args(["--verify_state_save=0", "--fsync=64", "--time_based=1", "--output-format=json"]);
    cmd.args(["--output=result.json", &format!("--runtime={seconds}")]);
    cmd.arg(format!("--filename={}", v.target.join("fio").display()));
    let mut fio = Proc::start("fio", cmd, &dir.join("log"))?;
    let start = Instant::now();
    phase(Duration::from_secs(3), || Ok(!fio.running()?))?;
    c.kill(0)?;
    phase(Duration::from_secs(2), || Ok(!fio.running()?))?;
    c.spawn(0)?;
    phase(Duration::from_secs(3), || Ok(!fio.running()?))?;
    d.kill_plugin()?;
    phase(Duration::from_secs(1), || Ok(!fio.running()?))?;
    d.start_plugin()?;
    // What was staged is found staged: asked again, it is done.
    d.mount(&v)?;
    ensure!(fio.running()?, "fio ended after {} s: {}", start.elapsed().as_secs(), dir.display());
    let status = fio.wait(PATIENCE + Duration::from_secs(seconds))?;
    let verified = finished_without_error(&dir, status)?;
    c.whole()?;
    ensure!(files::sums(&v.target.join("files"))? == want, "files differ");
    lab.proved(format!(
        "{fs}: {verified} blocks read back and compared while sheep and plugin were killed: 0 errors, {} files as before",
        want.len()
    ));
    Ok(v)
}

/// Snapshot, restore into something larger, clone, expand while mounted; then what the device holds is sound.
fn copies_and_growth(lab: &Lab, c: &Cluster, d: &Driver, v: &Volume, fs: &str) -> Result<()> {
    run("sync", &["-f", text(&v.target)?])?;
    let want = files::sums(&v.target.join("files"))?;
    let snapshot = d.snapshot(v, &format!("snapshot-{fs}"))?;
    let from = Type::Snapshot(SnapshotSource { snapshot_id: snapshot.clone() });
    let mut restored = d.create(&format!("restored-{fs}"), 2 * SIZE, &mounted(fs), Some(from))?;
    let from = Type::Volume(VolumeSource { volume_id: v.id.clone() });
    let mut cloned = d.create(&format!("cloned-{fs}"), SIZE, &mounted(fs), Some(from))?;
    for (copy, what) in [(&mut restored, "restored"), (&mut cloned, "cloned")] {
        d.attach(copy)?;
        d.mount(copy)?;
        ensure!(files::sums(&copy.target.join("files"))? == want, "{fs}, {what}: files differ");
    }
    let total = d.total(&restored)?;
    ensure!(total > SIZE * 3 / 2, "{fs}: restored into {} bytes, the file system has {total}", 2 * SIZE);
    d.delete_snapshot(&snapshot)?;
    let before = d.total(v)?;
    let in_use = sheepdog_csi::mount::grows_in_use(Fs::parse(fs)?);
    match d.expand(v, 2 * SIZE) {
        Ok(()) => ensure!(in_use, "{fs} grew in use without the capability that the kernel wants"),
        Err(e) if in_use => return Err(e),
        // As said: when it is mounted next.
        Err(e) => {
            ensure!(format!("{e:#}").contains("SYS_RESOURCE"), "{fs}: {e:#}");
            d.unmount(v)?;
            d.mount(v)?;
        }
    }
    let after = d.total(v)?;
    ensure!(after > before + SIZE / 2, "{fs}: {before} bytes before, {after} after expansion");
    ensure!(files::sums(&v.target.join("files"))? == want, "{fs}, expanded: files differ");
    end(d, &restored)?;
    end(d, &cloned)?;
    d.unmount(v)?;
    d.detach(v)?;
    c.check(&format!("pvc-{fs}"))?;
    d.delete(v)?;
    lab.proved(format!(
        "{fs}: restored into twice the size, cloned, expanded {}: {} files the same",
        if in_use { "in use" } else { "at the next mount (no SYS_RESOURCE here)" },
        want.len()
    ));
    Ok(())
}

/// A volume with data that is no file system is not formatted.
fn foreign_data(lab: &Lab, c: &Cluster, d: &Driver) -> Result<()> {
    let mut v = d.create("pvc-foreign", SIZE, &mounted("ext4"), None)?;
    let raw = lab.dir.join("foreign");
    std::fs::write(&raw, [7; 4096])?;
    // In the middle, where no probe looks.
    let script = "exec \"$1\" -a \"$2\" vdi write pvc-foreign 536870912 4096 <\"$3\"";
    run("sh", &["-ec", script, "sh", text(&c.program("dog"))?, &c.address(0), text(&raw)?])?;
    d.attach(&mut v)?;
    let refused = d.mount(&v).err().context("a volume with data was formatted")?;
    let why = format!("{refused:#}");
    ensure!(why.contains("never formatted over"), "refused, but: {why}");
    d.unmount(&v)?;
    d.detach(&v)?;
    d.delete(&v)?;
    lab.proved("a volume with data that no probe finds is not formatted");
    Ok(())
}

/// Limits by classes: for a new volume, changed while it is used, and the same however often the volume is asked for.
fn limits(lab: &Lab, c: &Cluster, d: &Driver) -> Result<()> {
    let name = "pvc-limits";
    let has = |iops: Value, bandwidth: Value| -> Result<()> {
        let now = c.json(&["vdi", "limit", name])?;
        let want =
            json!({"iops": iops, "iops_burst": iops, "bandwidth": bandwidth, "bandwidth_burst": bandwidth});
        ensure!(now == want, "limits are {now} instead of {want}");
        Ok(())
    };
    let create = || d.create_of(name, SIZE, &device(), None, [&[("iops", "500")], &[("iops", "1000")]]);
    let mut v = create()?;
    has(json!(1000), Value::Null)?;
    // As a controller leaves it that dies before the last step of making it.
    c.dog(&["vdi", "setattr", name, "csi.sheepdog.io/origin", "--delete"])?;
    c.dog(&["vdi", "limit", name, "--iops", "7", "--bandwidth", "1M"])?;
    ensure!(create()?.id == v.id, "asked for again it is another volume");
    has(json!(1000), Value::Null)?;
    d.attach(&mut v)?;
    d.mount(&v)?;
    let dev = format!("of={}", text(&v.target)?);
    let write = || -> Result<Duration> {
        let start = Instant::now();
        run("dd", &["if=/dev/zero", &dev, "bs=4k", "count=60", "oflag=direct", "conv=notrunc"])?;
        Ok(start.elapsed())
    };
    d.modify(&v, &[("iops", "20"), ("iopsBurst", "0"), ("bandwidth", "200Mi")])?;
    let held = write()?;
    ensure!(held >= Duration::from_secs(2), "60 requests at 20 a second took {held:?}");
    for (bad, words) in [(("bandwidth", "1Ki"), "at least 64Ki"), (("iopsBurst", "5"), "belongs to a limit")]
    {
        let refused = d.modify(&v, &[bad]).err().with_context(|| format!("{bad:?} was taken"))?;
        ensure!(format!("{refused:#}").contains(words), "{refused:#}");
    }
    d.modify(&v, &[("iops", "none")])?;
    has(Value::Null, json!(200 << 20))?;
    let free = write()?;
    ensure!(free < held / 2, "without the limit it took {free:?}, with it {held:?}");
    ensure!(create()?.id == v.id, "asked for again it is another volume");
    has(Value::Null, json!(200 << 20))?;
    end(d, &v)?;
    lab.proved(format!(
        "limits of the classes hold from the beginning, are changed in use (60 requests in {} ms at 20 a second, in {} ms without), and are not changed back when the volume is asked for again",
        held.as_millis(),
        free.as_millis()
    ));
    Ok(())
}

/// A volume leaves a node on which it is staged, changes elsewhere, and comes back before the kubelet has unstaged it: the kubelet publishes and does not stage.
fn comes_back(lab: &Lab, c: &Cluster, d: &Driver) -> Result<()> {
    let mut first = d.create("pvc-back", SIZE, &mounted("ext4"), None)?;
    d.attach(&mut first)?;
    d.mount(&first)?;
    let sync = |v: &Volume| run("sync", &["-f", text(&v.target)?]);
    std::fs::write(first.target.join("kept"), "kept")?;
    sync(&first)?;
    c.dog(&["vdi", "snapshot", "pvc-back", "-s", "before"])?;
    std::fs::write(first.target.join("undone"), "undone")?;
    sync(&first)?;
    d.detach(&first)?;
    // What another node does to it.
    c.dog(&["vdi", "rollback", "pvc-back@before", "--yes"])?;
    let mut second = Volume { target: first.target.with_file_name("pod-pvc-back-2"), ..first.clone() };
    let refused = |v: &Volume, part: &str| -> Result<()> {
        let why =
            format!("{:#}", d.publish(v).err().context("what is left of an ended attachment was published")?);
        ensure!(why.contains(part), "refused, but: {why}");
        ensure!(!v.target.join("undone").exists() || v.target == first.target, "it is there nevertheless");
        Ok(())
    };
    refused(&second, "is gone")?;
    d.attach(&mut second)?;
    ensure!(second.publish != first.publish, "attached anew, and the same attachment");
    refused(&second, "has to go first")?;
    d.unpublish(&first)?;
    d.publish(&second)?;
    ensure!(second.target.join("kept").exists(), "not its file system");
    ensure!(!second.target.join("undone").exists(), "what the kernel had cached was published");
    std::fs::write(second.target.join("new"), "new")?;
    sync(&second)?;
    end_of(d, &second)?;
    d.attach(&mut second)?;
    d.mount(&second)?;
    ensure!(second.target.join("new").exists(), "what was written is not there");
    end_of(d, &second)?;
    c.dog(&["vdi", "delete", "pvc-back@before", "--yes"])?;
    d.delete(&second)?;
    lab.proved(
        "a volume that comes back to a node where it is still staged is staged anew: nothing old is seen",
    );
    Ok(())
}
