//! Disks lie, tear, lose and vanish: what they say is never served, and the copies become whole again.

use crate::harness::Lab;
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::files::Noise;
use crate::harness::fio::{Fio, Job};
use crate::harness::proc::{output, run};
use crate::harness::wait::{PATIENCE, until};
use anyhow::{Context as _, Result, bail, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const ABOUT: &str =
    "flipped bits, a torn journal, a lost object, a disk that goes and comes, a lost disk";

const SIZE: u64 = 128 << 20;

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let mut c = Cluster::start(lab, Plan { more_disks: 1, ..Plan::new(4, 3) })?;
    c.create("disk", SIZE)?;
    let noise = |seed: u64| -> Result<String> {
        let path = lab.dir.join(format!("source{seed}.img"));
        let mut data = vec![0; SIZE as usize];
        Noise::new(seed).fill(&mut data);
        std::fs::write(&path, &data)?;
        Ok(path.to_str().context("path")?.to_owned())
    };
    let (source, second) = (noise(7)?, noise(8)?);
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &source, &c.uri(0, "disk")])?;
    let story = Story { lab, source, second };
    // All of them, so that one fault does not hide another.
    let mut failed = Vec::new();
    for (name, tell) in Story::ALL {
        if let Err(e) = tell(&story, &mut c) {
            lab.step(format!("FAILED: {name}: {e:#}"));
            failed.push(*name);
            story.start_over(&mut c)?;
        }
    }
    ensure!(failed.is_empty(), "wrong: {}", failed.join(", "));
    Ok(())
}

type Tell = for<'a> fn(&Story<'a>, &mut Cluster) -> Result<()>;

struct Story<'a> {
    lab: &'a Lab,
    /// What is in the volume, and what is while its journal is torn.
    source: String,
    second: String,
}

/// Object files below a sheep's disks.
fn objects(c: &Cluster, i: usize) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for disk in &c.sheep[i].disks {
        collect(&disk.join("obj"), &mut all)?;
    }
    all.sort();
    Ok(all)
}

fn collect(dir: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, out)?;
        } else if path.metadata()?.len() > 1 << 20 {
            out.push(path);
        }
    }
    Ok(())
}

/// One bit in so many places of a file's data.
fn flip(path: &Path, places: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    for i in 1..=places {
        let mut byte = [0];
        let at = (1 << 17) + (len - (1 << 17)) * i / (places + 1);
        file.read_exact_at(&mut byte, at)?;
        byte[0] ^= 0x10;
        file.write_all_at(&byte, at)?;
    }
    file.sync_all()?;
    Ok(())
}

impl Story<'_> {
    const ALL: &'static [(&'static str, Tell)] = &[
        ("flipped bits", |s, c| s.flipped(c)),
        ("torn journal", |s, c| s.torn(c)),
        ("deleted objects", |s, c| s.deleted(c)),
        ("a disk goes and comes", |s, c| s.balanced(c)),
        ("lost disk", |s, c| s.disk_gone(c)),
    ];

    /// All sheep up, and the volume written afresh.
    fn start_over(&self, c: &mut Cluster) -> Result<()> {
        for i in 0..c.sheep.len() {
            if !c.runs(i) {
                c.spawn(i)?;
            }
        }
        c.whole()?;
        c.dog(&["vdi", "delete", "disk", "--yes"])?;
        c.create("disk", SIZE)?;
        run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &self.source, &c.uri(0, "disk")])
            .map(drop)
    }

    /// Every gateway shows what was written.
    fn served(&self, c: &Cluster) -> Result<()> {
        self.shows(c, &self.source)
    }

    fn shows(&self, c: &Cluster, image: &str) -> Result<()> {
        for i in 0..c.sheep.len() {
            run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &c.uri(i, "disk")])
                .with_context(|| format!("gateway {i}"))?;
        }
        Ok(())
    }

    /// What a check says while it repairs, and that nothing is left to say after.
    fn repaired(&self, c: &Cluster) -> Result<u64> {
        let sum = c.json(&["vdi", "check", "disk", "--repair"])?;
        ensure!(sum["bad"] == sum["repaired"], "not all repaired: {sum}");
        c.check("disk")?;
        Ok(sum["repaired"].as_u64().unwrap_or(0))
    }

    fn flipped(&self, c: &mut Cluster) -> Result<()> {
        self.lab.step("bits flipped in half of one sheep's object files");
        // What is in the journal only is not in the files yet, and would hide the damage.
        c.stop(1)?;
        let all = objects(c, 1)?;
        let victims: Vec<_> = all.iter().step_by(2).collect();
        ensure!(!victims.is_empty(), "sheep 1 has no object files");
        for v in &victims {
            flip(v, 3)?;
        }
        c.spawn(1)?;
        c.whole()?;
        self.served(c)?;
        self.lab.proved(format!(
            "{} of {} object files of a sheep damaged: never served, at any gateway",
            victims.len(),
            all.len()
        ));
        let found = c.dog(&["vdi", "check", "disk"]);
        match found {
            Err(e) => self.lab.proved(format!(
                "dog vdi check names them: {}",
                format!("{e:#}").lines().find(|l| l.contains("object")).unwrap_or_default().trim()
            )),
            Ok(_) => self.lab.step("reads had healed them before the check"),
        }
        let repaired = self.repaired(c)?;
        self.lab.proved(format!("repaired: {repaired} copies by dog vdi check --repair, all equal after"));
        self.served(c)
    }

    fn deleted(&self, c: &mut Cluster) -> Result<()> {
        self.lab.step("object files deleted");
        // Twice, so that nothing of them is in the journal any more.
        c.stop(2)?;
        c.spawn(2)?;
        c.whole()?;
        c.stop(2)?;
        let all = objects(c, 2)?;
        for v in all.iter().take(3) {
            std::fs::remove_file(v)?;
        }
        c.spawn(2)?;
        c.whole()?;
        self.served(c)?;
        let found = c.dog(&["vdi", "check", "disk"]).is_err();
        let repaired = self.repaired(c)?;
        self.served(c)?;
        self.lab.proved(format!(
            "3 object files deleted: never missed by a reader; {} dog vdi check, {repaired} repaired by it",
            if found { "named by" } else { "healed before" }
        ));
        Ok(())
    }

    fn torn(&self, c: &mut Cluster) -> Result<()> {
        self.lab.step("journal torn under writes");
        // Other data: what is lost with the journal shows.
        run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &self.second, &c.uri(0, "disk")])?;
        c.kill(3)?;
        let mut torn = 0;
        for disk in c.sheep[3].disks.clone() {
            let path = disk.join("journal");
            let file = File::options().read(true).write(true).open(&path)?;
            let len = file.metadata()?.len();
            // Every second mebibyte of it.
            for at in ((1 << 20)..len).step_by(2 << 20) {
                file.write_all_at(&[0xA5; 4096], at)?;
                torn += 1;
            }
            file.sync_all()?;
        }
        c.spawn(3)?;
        c.whole()?;
        self.shows(c, &self.second)?;
        let found = c.dog(&["vdi", "check", "disk"]).err().map(|e| format!("{e:#}"));
        let repaired = self.repaired(c)?;
        self.shows(c, &self.second)?;
        let said = found.map_or_else(
            || "nothing left to repair".into(),
            |_| format!("{repaired} repaired by dog vdi check"),
        );
        self.lab.proved(format!("journal torn in {torn} places: nothing wrong served; {said}"));
        run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &self.source, &c.uri(0, "disk")])?;
        self.served(c)
    }

    /// What is on a disk moves to its neighbour, and its share moves back, while fio compares what it writes.
    fn balanced(&self, c: &mut Cluster) -> Result<()> {
        self.lab.step("one of two disks is emptied and taken, and brought back");
        let (id, disk) = (c.id(2)?, c.sheep[2].disks[1].display().to_string());
        let on = |c: &Cluster| -> Result<(u64, u64)> {
            let rows = c.rows(&["node", "md", "info", &id])?;
            let sum = |of: &dyn Fn(&&serde_json::Value) -> bool| -> u64 {
                rows.iter().filter(of).filter_map(|r| r["objects"].as_u64()).sum()
            };
            Ok((sum(&|r| r["path"] == *disk), sum(&|_| true)))
        };
        let (before, all) = on(c)?;
        ensure!(before > 4, "{disk} has {before} of {all} objects");
        c.create("busy", SIZE / 2)?;
        let seconds = Duration::from_secs(self.lab.pick(60, 40));
        let mut fio =
            Fio::start(&self.lab.dir, "busy", seconds, &[Job::verify(&c.uri(0, "busy"), 0, SIZE / 2)])?;
        c.dog(&["node", "md", "unplug", &disk, "-n", &id, "--yes"])?;
        let (left, _) = on(c)?;
        ensure!(left == 0 && fio.running()?, "{left} objects are left on {disk}, or the load was too short");
        c.dog(&["node", "md", "plug", &disk, "-n", &id])?;
        // Half of them belong there: the two disks are on one file system.
        let (back, of) = until("the disk has its share again", PATIENCE, || {
            let (back, of) = on(c)?;
            ensure!(back * 4 >= of, "{back} of {of} objects, {before} of {all} before");
            Ok(Some((back, of)))
        })?;
        fio.finish(seconds * 10)?;
        c.whole()?;
        c.check("busy")?;
        c.check("disk")?;
        self.served(c)?;
        c.dog(&["vdi", "delete", "busy", "--now", "--yes"])?;
        self.lab.proved(format!("a disk emptied under fio, and plugged again: it had {before} of {all} objects and has {back} of {of}, all copies equal"));
        Ok(())
    }

    fn disk_gone(&self, c: &mut Cluster) -> Result<()> {
        self.lab.step("one of two disk directories removed while the sheep runs");
        let disk = c.sheep[1].disks[1].clone();
        let name = disk.display().to_string();
        std::fs::remove_dir_all(&disk)?;
        // Files that are open live on; new objects find that the disk is gone. Clients must not notice.
        c.create("more", SIZE)?;
        for volume in ["disk", "more"] {
            run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &self.source, &c.uri(0, volume)])?;
        }
        self.served(c)?;
        c.alive()?;
        let id = c.id(1)?;
        until("dog tells of the lost disk", PATIENCE, || {
            let out =
                output(c.program("dog"), &["-a", &c.address(1), "node", "md", "info", &id, "-o", "json"])?;
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            let rows: serde_json::Value = serde_json::from_str(&text)?;
            let rows = rows.as_array().context("rows")?;
            let lost = rows.iter().any(|r| r["path"] == *name && r["state"] != "ok");
            let absent = !rows.iter().any(|r| r["path"] == *name);
            if !lost && !absent {
                bail!("{text}");
            }
            Ok(Some(()))
        })?;
        c.whole()?;
        let objects = c.check("disk")?;
        self.served(c)?;
        self.lab
            .proved(format!("a disk vanished: told by dog, rebuilt, {objects} objects equal in all copies"));
        Ok(())
    }
}
