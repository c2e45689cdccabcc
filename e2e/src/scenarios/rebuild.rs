//! The control plane is lost on every node at once; the data disks are enough.

use crate::harness::Lab;
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::proc::run;
use crate::harness::wait::{PATIENCE, until};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;

pub const ABOUT: &str = "dog cluster rebuild --from-disks after every control directory is gone";

const MIB: u64 = 1 << 20;

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let mut c = Cluster::start(lab, Plan { more_disks: 1, ..Plan::new(3, 2) })?;
    for (name, size) in [("a", 64 * MIB), ("b", 32 * MIB), ("empty", 16 * MIB)] {
        c.create(name, size)?;
    }
    write(&c, "a", &["write -P 1 0 32M"])?;
    c.dog(&["vdi", "snapshot", "a", "-s", "monday"])?;
    write(&c, "a", &["write -P 2 8M 8M", "write -P 9 20000 3000"])?;
    c.dog(&["vdi", "snapshot", "a", "-s", "tuesday"])?;
    c.dog(&["vdi", "clone", "a@monday", "clone"])?;
    write(&c, "clone", &["write -P 3 1M 1M"])?;
    write(&c, "b", &["write -P 4 5M 20M"])?;
    let images = ["a", "a@monday", "a@tuesday", "b", "empty", "clone"];
    let before = sums(&c, lab, &images)?;
    let listed = listing(&c)?;
    // The newest volume is on the disks when its state is: written within a second of each change.
    until("the state is kept on every disk", PATIENCE, || {
        let kept = c.sheep.iter().flat_map(|s| &s.disks).all(|d| d.join("cluster-state").exists());
        Ok(kept.then_some(()))
    })?;
    c.stop_all()?;

    lab.step("raft logs, identities and addresses of all nodes removed");
    for s in &c.sheep {
        std::fs::remove_dir_all(s.dir.join("raft"))?;
        std::fs::remove_file(s.dir.join("node.json"))?;
    }
    for i in 0..c.sheep.len() {
        c.spawn(i)?;
    }
    for i in 0..c.sheep.len() {
        until(&format!("sheep {i} answers"), PATIENCE, || c.dog_of(i, &["cluster", "info"]).map(Some))?;
    }
    let info: Value = serde_json::from_str(&c.dog_of(0, &["cluster", "info", "-o", "json"])?)?;
    ensure!(
        info["status"] == "waiting for format",
        "without its control plane the cluster is {}",
        info["status"]
    );
    let Err(refused) = c.dog_of(0, &["cluster", "format"]) else {
        bail!("a cluster was formatted over disks with data")
    };
    let refused = format!("{refused:#}");
    ensure!(refused.contains("hold data of cluster") && refused.contains("--from-disks"), "{refused}");
    lab.proved("dog cluster format over these disks is refused in words");
    c.dog_of(0, &["cluster", "rebuild", "--from-disks", "--yes"])?;
    c.whole()?;
    lab.proved("dog cluster rebuild --from-disks: all nodes up and complete again");

    let now = listing(&c)?;
    ensure!(now == listed, "volumes and snapshots before: {listed:?}, after: {now:?}");
    let after = sums(&c, lab, &images)?;
    for name in images {
        ensure!(before.get(name) == after.get(name), "{name} differs");
    }
    lab.proved(format!(
        "{} volumes and snapshots are back, contents of {} compared by SHA-256",
        now.len(),
        images.len()
    ));
    for name in ["a", "b", "clone"] {
        c.check(name)?;
    }
    write(&c, "a", &["write -P 5 0 1M", "read -P 5 0 1M"])?;
    c.create("new", MIB)?;
    c.dog(&["vdi", "snapshot", "b", "-s", "after"])?;
    c.alive()?;
    lab.proved("it takes writes, new volumes and snapshots");
    c.stop_all()
}

fn write(c: &Cluster, volume: &str, commands: &[&str]) -> Result<()> {
    let uri = c.uri(0, volume);
    let mut args = vec!["-f", "raw"];
    args.extend(commands.iter().flat_map(|p| ["-c", p]));
    args.push(&uri);
    let said = run("qemu-io", &args)?;
    ensure!(!said.contains("failed"), "qemu-io: {said}");
    Ok(())
}

fn sums(c: &Cluster, lab: &Lab, images: &[&str]) -> Result<BTreeMap<String, String>> {
    let mut sums = BTreeMap::new();
    let file = lab.dir.join("export.img");
    let path = file.to_str().context("path")?;
    for (i, name) in images.iter().enumerate() {
        run("nbdcopy", &[&c.uri(i % c.sheep.len(), name), path])?;
        let sum = run("sha256sum", &[path])?;
        sums.insert((*name).to_owned(), sum.split(' ').next().unwrap_or_default().to_owned());
    }
    Ok(sums)
}

/// Name, snapshot and size of everything.
fn listing(c: &Cluster) -> Result<Vec<String>> {
    let rows = c.rows(&["vdi", "list"])?;
    let mut all: Vec<String> =
        rows.iter().map(|r| format!("{} {} {}", r["name"], r["tag"], r["size"])).collect();
    all.sort();
    Ok(all)
}
