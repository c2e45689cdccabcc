//! Block devices as disks: one with somebody else's data is refused and stays as it is; disks are replaced through the object, after a failure and before
//! one; a node is switched off and on. And what goes with volumes: their copies and limits through VolumeAttributesClasses, the trash and the cache, and KubeVirt's
//! StorageProfile.

use crate::harness::Lab;
use crate::harness::k8s::sheepdog::{CLUSTER, Installed, NAMESPACE, claim, cluster, condition, pod};
use crate::harness::k8s::{Kubernetes, Plan, seconds};
use crate::harness::proc::run;
use crate::harness::wait::{phase, until};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub const ABOUT: &str = "block devices as disks: refused, added, taken away, failed, replaced through the object; copies and limits by VolumeAttributesClasses; StorageProfile";

const PATIENCE: Duration = Duration::from_secs(300);
/// Between two deaths of the operator.
const KILL: Duration = Duration::from_secs(5);
const SIZE: u64 = 2 << 30;
/// In which the operator looks at all volumes twice.
const LOOKS: Duration = Duration::from_secs(32);

/// A loop device; it is let go when the last who uses it has ended.
struct Device {
    name: String,
    file: PathBuf,
}

impl Device {
    fn new(lab: &Lab, name: &str) -> Result<Self> {
        let dir = lab.dir.join("disks");
        std::fs::create_dir_all(&dir)?;
        let file = dir.join(name);
        std::fs::File::create(&file)?.set_len(SIZE)?;
        let path = file.to_str().context("path")?;
        let name = run("losetup", &["--find", "--show", path])?.trim().to_owned();
        Ok(Self { name, file })
    }

    /// What a person does to a device whose contents nobody needs.
    fn clear(&self) -> Result<()> {
        run("wipefs", &["--quiet", "--all", &self.name])?;
        let last = format!("seek={}", (SIZE >> 20) - 1);
        for at in ["seek=0", &last] {
            run("dd", &["if=/dev/zero", &format!("of={}", self.name), "bs=1M", "count=1", at, "conv=fsync"])?;
        }
        Ok(())
    }

    fn sum(&self) -> Result<String> {
        // Through the device: its pages are not those of the file.
        run("sha256sum", &[&self.name]).map(|s| s.split(' ').next().unwrap_or_default().to_owned())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(e) = run("losetup", &["--detach", &self.name]) {
            eprintln!("e2e: {} of {}: {e:#}", self.name, self.file.display());
        }
    }
}

/// Copies are two by default, and every node is a group with devices of its own: all of them share this machine's.
fn spec(devices: [[&Device; 2]; 3]) -> Value {
    let group = |i: usize, [a, b]: [&Device; 2]| {
        let name = if i == 0 { "default".to_owned() } else { format!("n{i}") };
        json!({"name": name, "nodeSelector": {"kubernetes.io/hostname": format!("node{i}")}, "devices": [a.name, b.name]})
    };
    let groups: Vec<Value> = devices.into_iter().enumerate().map(|(i, d)| group(i, d)).collect();
    // So much that they do not make the scenario slower.
    let classes = json!([
        {"name": "two", "parameters": {"copies": 2, "iops": 0, "bandwidth": "400Mi", "bandwidthBurst": "1Gi"}},
        {"name": "three", "parameters": {"copies": 3, "iops": 5000, "iopsBurst": 9000}},
    ]);
    json!({"nodeGroups": groups, "redundancy": {"copies": 2}, "volumeAttributesClasses": classes,
           "trash": {"keep": "36h"}, "cache": "64Mi"})
}

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let mut k = Kubernetes::start(lab, &Plan { csi: true, ..Plan::new(3) })?;
    k.apply(&[profiles()])?;
    k.kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd/storageprofiles.cdi.kubevirt.io",
        "--timeout=60s",
    ])?;
    k.alive()?;
    let device = |name: &str| Device::new(lab, name);
    let (a0, b0, a1, b1, a2) = (device("a0")?, device("b0")?, device("a1")?, device("b1")?, device("a2")?);
    let (foreign, spare) = (device("foreign")?, device("spare")?);
    run("mkfs.ext4", &["-q", "-L", "holiday-photos", &foreign.name])?;
    let before = foreign.sum()?;
    let s = Installed::install(lab, k, &spec([[&a0, &b0], [&a1, &b1], [&a2, &foreign]]))?;
    refused(lab, &s, &foreign, &before)?;
    profile(lab, &s)?;
    s.k.apply(&[
        claim("data", &json!({"volumeAttributesClassName": "three"})),
        pod("app", "data", Some("node1")),
    ])?;
    s.ready("app")?;
    s.fill("app", 96)?;
    cleared(lab, &s, &foreign)?;
    s.same("app")?;
    options(lab, &s)?;
    copies(lab, &s)?;
    exchanged(lab, &s, &b0, [[&a0, &spare], [&a1, &b1], [&a2, &foreign]])?;
    failed(lab, &s, &b1)?;
    // The next disk comes from another node, and was not cleared.
    s.k.apply(&[cluster(&spec([[&a0, &spare], [&a1, &b0], [&a2, &foreign]]))])?;
    trouble(&s, &[&b0.name, "another node of this Sheepdog cluster", "wipefs"])?;
    b0.clear()?;
    restart(&s, "node1")?;
    settled(&s, "the new disk is in use", 6)?;
    s.same("app")?;
    lab.proved("a failed disk replaced by one that another node had used: refused until it was cleared");
    let s = power(lab, s)?;
    s.same("app")?;
    s.delete(&["pod/app", "pvc/data"])?;
    s.no_volumes()?;
    drop((a0, b0, a1, b1, a2, foreign, spare));
    s.finish(lab)
}

/// The kind alone, as far as the operator uses it: CDI itself is not here.
fn profiles() -> Value {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "storageprofiles.cdi.kubevirt.io",
                     "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}},
        "spec": {"group": "cdi.kubevirt.io", "scope": "Cluster",
            "names": {"plural": "storageprofiles", "singular": "storageprofile", "kind": "StorageProfile"},
            "versions": [{"name": "v1beta1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
}

fn profile(lab: &Lab, s: &Installed) -> Result<()> {
    let p = s.k.get(&["storageprofile", CLUSTER])?;
    let first = &p["spec"]["claimPropertySets"][0];
    ensure!(first["accessModes"] == json!(["ReadWriteMany"]) && first["volumeMode"] == "Block", "{p}");
    ensure!(p["spec"]["cloneStrategy"] == "csi-clone" && p["spec"]["snapshotClass"] == CLUSTER, "{p}");
    lab.proved("where KubeVirt's StorageProfile is known, the class has one: shared block devices first");
    Ok(())
}

/// Paths of the disks that are in use, and of the others.
fn disks(s: &Installed) -> Result<(Vec<String>, Vec<String>)> {
    let rows = s.json(&["node", "md", "info"])?;
    let (mut used, mut others) = (Vec::new(), Vec::new());
    for row in rows.as_array().context("rows")? {
        let told = format!("{} {}", row["address"], row["path"]);
        if row["state"] == "ok" { used.push(told) } else { others.push(told) }
    }
    Ok((used, others))
}

/// Wait until all is as the object says, with so many disks in use and none in trouble.
fn settled(s: &Installed, what: &str, count: usize) -> Result<()> {
    until(what, PATIENCE, || {
        let c = s.cluster()?;
        let well = as_it_should_be(&c) && condition(&c, "DiskTrouble") == "False";
        ensure!(well, "{}", c["status"]["conditions"]);
        let (used, _) = disks(s)?;
        ensure!(used.len() == count, "in use: {}", used.join(", "));
        Ok(Some(()))
    })
}

fn as_it_should_be(c: &Value) -> bool {
    condition(c, "Degraded") == "False"
        && condition(c, "Progressing") == "False"
        && condition(c, "Available") == "True"
        && c["status"]["observedGeneration"] == c["metadata"]["generation"]
}

/// Wait until the object tells of a disk in trouble in these words.
fn trouble(s: &Installed, words: &[&str]) -> Result<String> {
    until(&format!("the object tells of {}", words.join(", ")), PATIENCE, || {
        let c = s.cluster()?;
        let all = c["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let told = all.iter().find(|c| c["type"] == "DiskTrouble" && c["status"] == "True");
        let text = told.and_then(|c| c["message"].as_str()).unwrap_or_default().to_owned();
        ensure!(words.iter().all(|w| text.contains(w)), "{}", c["status"]["conditions"]);
        Ok(Some(text))
    })
}

/// Delete the sheep's pod of a node, as the messages say.
fn restart(s: &Installed, node: &str) -> Result<()> {
    let on = format!("spec.nodeName={node}");
    let label = "app.kubernetes.io/component=sheep";
    s.k.kubectl(&["delete", "pod", "-n", NAMESPACE, "-l", label, "--field-selector", &on]).map(drop)
}

fn refused(lab: &Lab, s: &Installed, foreign: &Device, before: &str) -> Result<()> {
    let text = trouble(s, &["node2", &foreign.name, "holds ext4", "wipefs"])?;
    ensure!(foreign.sum()? == before, "the foreign disk was changed");
    let (used, _) = disks(s)?;
    ensure!(used.len() == 5, "in use: {}", used.join(", "));
    lab.proved(format!("a disk with foreign data stays byte for byte what it was, the sheep starts with the other one, and the object says: {text}"));
    Ok(())
}

fn cleared(lab: &Lab, s: &Installed, foreign: &Device) -> Result<()> {
    let start = Instant::now();
    foreign.clear()?;
    restart(s, "node2")?;
    settled(s, "the cleared disk is in use", 6)?;
    lab.measured(
        "the disk cleared as the message says and the pod deleted, six disks in use",
        seconds(start),
    );
    Ok(())
}

/// Copies and limits of the claim's volume.
fn has(s: &Installed, copies: u64, limits: &Value) -> Result<()> {
    until(&format!("the volume has {copies} copies and limits {limits}"), PATIENCE, || {
        let vdis = s.json(&["vdi", "list"])?;
        let volume = vdis
            .as_array()
            .into_iter()
            .flatten()
            .find(|v| v["name"].as_str().is_some_and(|n| n.starts_with("pvc-")));
        let volume = volume.with_context(|| format!("no volume of a claim: {vdis}"))?;
        let now = volume["copies"].to_string();
        ensure!(now.trim_matches('"') == copies.to_string(), "{volume}");
        let now = s.json(&["vdi", "limit", volume["name"].as_str().unwrap_or_default()])?;
        ensure!(now == *limits, "limits are {now}");
        Ok(Some(()))
    })
}

/// What the operator shows of the claim's volume.
fn shows(s: &Installed, limits: &str) -> Result<()> {
    until(&format!("the Vdi object shows {limits}"), PATIENCE, || {
        let vdis = s.k.get(&["vdis", "-n", NAMESPACE])?;
        let all = vdis["items"].as_array().context("objects")?;
        let one =
            all.iter().find(|v| v["status"]["claim"] == "default/data").context("no object for the claim")?;
        ensure!(one["status"]["limits"] == limits, "{}", one["status"]);
        ensure!(one["spec"]["limits"].is_null(), "{}", one["spec"]);
        Ok(Some(()))
    })
}

/// Options of the cluster that are in its object only.
fn options(lab: &Lab, s: &Installed) -> Result<()> {
    let trash = s.json(&["cluster", "trash"])?;
    ensure!(trash["keep"] == "1d12h", "{trash}");
    for set in ["main-sheep", "main-gateway"] {
        let set = s.k.get(&["daemonset", "-n", NAMESPACE, set])?;
        let env = &set["spec"]["template"]["spec"]["containers"][0]["env"];
        let cache = json!({"name": "SHEEP_CACHE_SIZE", "value": "64"});
        ensure!(env.as_array().is_some_and(|all| all.contains(&cache)), "{env}");
    }
    lab.proved("the trash keeps what the object says, and sheep and gateways have the cache that it says");
    Ok(())
}

fn copies(lab: &Lab, s: &Installed) -> Result<()> {
    let three = json!({"iops": 5000, "iops_burst": 9000, "bandwidth": null, "bandwidth_burst": null});
    let two = json!({"iops": null, "iops_burst": null, "bandwidth": 400 << 20, "bandwidth_burst": 1 << 30});
    has(s, 3, &three)?;
    shows(s, "5000 IOPS (burst 9000)")?;
    let class = |name: &str| json!({"spec": {"volumeAttributesClassName": name}}).to_string();
    let start = Instant::now();
    s.k.kubectl(&["patch", "pvc", "data", "--type=merge", "-p", &class("two")])?;
    has(s, 2, &two)?;
    until("the claim says so", PATIENCE, || {
        let c = s.k.get(&["pvc", "data"])?;
        ensure!(c["status"]["currentVolumeAttributesClassName"] == "two", "{}", c["status"]);
        Ok(Some(()))
    })?;
    lab.measured(
        "a bound claim given another VolumeAttributesClass: its volume has two copies instead of three, and other limits",
        seconds(start),
    );
    shows(s, "400Mi/s (burst 1Gi)")?;
    // The operator, which looks every few seconds, does not change it back.
    phase(LOOKS, || Ok(false))?;
    has(s, 2, &two)?;
    lab.proved("limits of a VolumeAttributesClass hold for a new volume and are changed in use; the Vdi object shows them and does not fight them");
    s.same("app").map(drop)
}

/// One disk for another, by editing the object, while the operator is killed.
fn exchanged(lab: &Lab, s: &Installed, old: &Device, devices: [[&Device; 2]; 3]) -> Result<()> {
    let start = Instant::now();
    s.k.apply(&[cluster(&spec(devices))])?;
    let killed = s.until_though_killed("one disk is exchanged for another", KILL, 3, |c| {
        as_it_should_be(c) && condition(c, "DiskTrouble") == "False"
    })?;
    settled(s, "the other disk is in use", 6)?;
    s.same("app")?;
    let (_, others) = disks(s)?;
    ensure!(others.is_empty(), "out of use, and not forgotten: {}", others.join(", "));
    let events = s.json(&["cluster", "events"])?;
    let texts = events.as_array().context("events")?.iter().filter_map(|e| e["text"].as_str());
    let (emptied, retired): (Vec<&str>, Vec<&str>) =
        texts.filter(|t| t.starts_with("disk ")).partition(|t| t.contains("was emptied"));
    ensure!(emptied.len() == 1 && retired.is_empty(), "{emptied:?} {retired:?}");
    let number = old.name.trim_start_matches("/dev/");
    let mounts = s.k.nodes[0].space()?.run(Path::new("/bin/cat"), &["/proc/self/mounts"])?;
    ensure!(!mounts.lines().any(|l| l.starts_with(&format!("{} ", old.name))), "{number} is still mounted");
    lab.measured("one disk exchanged for another through the object, all copies there again", seconds(start));
    lab.proved(format!(
        "what was on the disk that left moved to the other one before its pod went without it: no copy was missing; the operator was killed {killed} times; the pod's data is the same"
    ));
    Ok(())
}

/// Every access to a file system fails from now on, as when its disk has died.
fn failed(lab: &Lab, s: &Installed, disk: &Device) -> Result<()> {
    let start = Instant::now();
    let node = s.k.nodes[1].space()?;
    let mounts = node.run(Path::new("/bin/cat"), &["/proc/self/mounts"])?;
    let line = mounts.lines().find(|l| l.starts_with(&format!("{} ", disk.name)) && l.contains("/disks/"));
    let at =
        line.and_then(|l| l.split(' ').nth(1)).with_context(|| format!("{} is not mounted", disk.name))?;
    node.run(Path::new("/usr/sbin/xfs_io"), &["-x", "-c", "shutdown", at])?;
    // So that somebody finds out.
    s.fill("app", 96)?;
    let text = trouble(s, &["node1", &disk.name])?;
    until("all copies are there again", PATIENCE, || {
        let c = s.cluster()?;
        ensure!(condition(&c, "Degraded") == "False", "{}", c["status"]["conditions"]);
        Ok(Some(()))
    })?;
    s.same("app")?;
    lab.measured("a disk died under writes, all copies there again on the others", seconds(start));
    lab.proved(format!("its pod never noticed; the object says: {text}"));
    Ok(())
}

/// A node without power comes back with its disks.
fn power(lab: &Lab, mut s: Installed) -> Result<Installed> {
    let start = Instant::now();
    s.k.nodes[2].cut_power()?;
    s.k.power_on(2)?;
    settled(&s, "the node is back with its disks", 6)?;
    lab.measured("power of a node cut and back, all six disks in use and complete", seconds(start));
    Ok(s)
}
