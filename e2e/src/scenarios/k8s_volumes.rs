//! What users do with volumes: snapshot, restore, clone, grow in use, raw devices, a device on two nodes, snapshots of several volumes at one moment, changed
//! blocks.

use super::k8s_changed::changed;
use crate::harness::Lab;
use crate::harness::k8s::seconds;
use crate::harness::k8s::sheepdog::{CLUSTER, Installed, claim, pod};
use crate::harness::wait::until;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub const ABOUT: &str =
    "snapshot, restore, clone, grow, raw block, one device on two nodes, group snapshot, changed blocks";

const PATIENCE: Duration = Duration::from_secs(300);
const XFS: &str = "main-xfs";
pub const DEVICE: &str = "/dev/volume";

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let s = Installed::start(lab)?;
    s.snapshot_controller()?;
    s.all_ready()?;
    s.k.apply(&[
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": XFS},
        "provisioner": "csi.sheepdog.io", "allowVolumeExpansion": true,
        "parameters": {"csi.storage.k8s.io/fstype": "xfs"}}),
    ])?;
    copies(lab, &s)?;
    grow(lab, &s)?;
    two_nodes(lab, &s)?;
    group(lab, &s)?;
    changed(lab, &s)?;
    s.no_volumes()?;
    s.finish(lab)
}

pub fn snapshot(name: &str, claim: &str) -> Value {
    json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
           "spec": {"volumeSnapshotClassName": CLUSTER, "source": {"persistentVolumeClaimName": claim}}})
}

pub fn is_usable(s: &Installed, object: &str) -> Result<Value> {
    until(&format!("{object} can be used"), PATIENCE, || {
        let o = s.k.get(&[object])?;
        ensure!(o["status"]["readyToUse"] == true, "{}", o["status"]);
        Ok(Some(o))
    })
}

fn from_snapshot(name: &str) -> Value {
    json!({"dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name},
           "resources": {"requests": {"storage": "2Gi"}}})
}

fn copies(lab: &Lab, s: &Installed) -> Result<()> {
    s.k.apply(&[claim("first", &json!({})), pod("first", "first", None)])?;
    s.ready("first")?;
    s.fill("first", 32)?;
    let start = Instant::now();
    s.k.apply(&[snapshot("before", "first")])?;
    is_usable(s, "volumesnapshot/before")?;
    lab.measured("VolumeSnapshot ready to use after", seconds(start));
    s.fill("first", 32)?;
    let now = s.same("first")?;
    let clone = json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "first"}});
    let start = Instant::now();
    s.k.apply(&[
        claim("restored", &from_snapshot("before")),
        pod("restored", "restored", None),
        claim("cloned", &clone),
        pod("cloned", "cloned", None),
    ])?;
    s.ready("restored")?;
    s.ready("cloned")?;
    lab.measured("a restored and a cloned claim in running pods after", seconds(start));
    let (restored, cloned) = (s.same("restored")?, s.same("cloned")?);
    ensure!(restored != now, "restored: {restored}, and now {now}");
    ensure!(cloned == now, "cloned: {cloned}, and now {now}");
    let space = s.sh("restored", "df -m /data | tail -1 | awk '{print $2}'")?;
    ensure!(space.trim().parse::<u64>()? > 1800, "restored into 2 GiB, the file system has {space} MiB");
    lab.proved(
        "a snapshot, restored into a larger claim, has the data of its moment; a clone has the latest",
    );
    s.delete(&["pod/first", "pod/restored", "pod/cloned", "volumesnapshot/before"])?;
    s.delete(&["pvc/first", "pvc/restored", "pvc/cloned"])
}

fn grow(lab: &Lab, s: &Installed) -> Result<()> {
    s.k.apply(&[claim("growing", &json!({"storageClassName": XFS})), pod("growing", "growing", None)])?;
    let before = s.ready("growing")?;
    s.fill("growing", 32)?;
    let start = Instant::now();
    s.k.apply(&[claim(
        "growing",
        &json!({"storageClassName": XFS, "resources": {"requests": {"storage": "3Gi"}}}),
    )])?;
    until("the file system has grown", PATIENCE, || {
        let space = s.sh("growing", "df -m /data | tail -1 | awk '{print $2}'")?;
        let claim = s.k.get(&["pvc", "growing"])?;
        ensure!(space.trim().parse::<u64>()? > 2800, "{} MiB; {}", space.trim(), claim["status"]);
        Ok(Some(()))
    })?;
    lab.measured("a claim grown in use, the pod sees it after", seconds(start));
    let after = s.ready("growing")?;
    ensure!(before["metadata"]["uid"] == after["metadata"]["uid"], "it is another pod");
    s.same("growing")?;
    lab.proved("a claim grows while its pod uses it (XFS)");
    s.delete(&["pod/growing"])?;
    s.delete(&["pvc/growing"])
}

/// A pod with the claim as a device.
pub fn device_pod(name: &str, claim: &str, node: &str) -> Value {
    let mut pod = pod(name, claim, Some(node));
    let container = &mut pod["spec"]["containers"][0];
    container["volumeDevices"] = json!([{"name": "data", "devicePath": DEVICE}]);
    container.as_object_mut().map(|c| c.remove("volumeMounts"));
    pod
}

/// fio writes a pattern, or reads and compares it, past all caches.
fn pattern(s: &Installed, pod: &str, write: bool, value: u8) -> Result<()> {
    let what = if write { "--rw=write --do_verify=0" } else { "--rw=read" };
    s.sh(pod, &format!(
        "cd /tmp; fio --name=p --filename={DEVICE} --direct=1 --ioengine=libaio --iodepth=4 --bs=64k --size=32m {what} \
         --verify=pattern --verify_pattern=0x{value:02x} --verify_fatal=1 --verify_state_save=0 >log 2>&1 || {{ cat log; exit 1; }}"
    ))
    .map(drop)
}

fn two_nodes(lab: &Lab, s: &Installed) -> Result<()> {
    s.k.apply(&[
        claim("shared", &json!({"accessModes": ["ReadWriteMany"], "volumeMode": "Block"})),
        device_pod("left", "shared", "node0"),
        device_pod("right", "shared", "node1"),
    ])?;
    s.ready("left")?;
    s.ready("right")?;
    for (writer, reader, value) in [("left", "right", 0xa1), ("right", "left", 0xb2), ("left", "right", 0xc3)]
    {
        pattern(s, writer, true, value)?;
        pattern(s, reader, false, value)?;
    }
    ensure!(pattern(s, "right", false, 0xb2).is_err(), "fio compares nothing");
    lab.proved("a raw device in pods on two nodes at once: each reads what the other wrote, there and back");
    s.delete(&["pod/left"])?;
    pattern(s, "right", true, 0xd4)?;
    pattern(s, "right", false, 0xd4)?;
    lab.proved("handed over: one pod ends, the other goes on");
    s.delete(&["pod/right"])?;
    s.delete(&["pvc/shared"])
}

/// Writes a number to one volume, then to the other, and so on.
const PAIR: &str = "setsid sh -c 'i=0; while i=$((i+1)); echo $i | dd of=/data/n conv=fsync 2>/dev/null && echo $i | dd of=/other/n conv=fsync 2>/dev/null; do :; done' >/dev/null 2>&1 </dev/null &";

fn group(lab: &Lab, s: &Installed) -> Result<()> {
    let labelled = |name: &str| {
        let mut c = claim(name, &json!({}));
        c["metadata"]["labels"] = json!({"set": "pair"});
        c
    };
    let two = |name: &str, first: &str, second: &str| {
        let mut p = pod(name, first, None);
        let add = |list: &mut Value, item: Value| list.as_array_mut().map(|l| l.push(item));
        let volume = json!({"name": "other", "persistentVolumeClaim": {"claimName": second}});
        add(&mut p["spec"]["volumes"], volume);
        let mount = json!({"name": "other", "mountPath": "/other"});
        add(&mut p["spec"]["containers"][0]["volumeMounts"], mount);
        p
    };
    let group = "groupsnapshot.storage.k8s.io/v1";
    s.k.apply(&[labelled("one"), labelled("two"), two("pair", "one", "two")])?;
    s.ready("pair")?;
    s.sh("pair", PAIR)?;
    until("it writes", PATIENCE, || s.sh("pair", "test $(cat /other/n) -gt 20").map(Some))?;
    s.k.apply(&[
        json!({"apiVersion": group, "kind": "VolumeGroupSnapshotClass", "metadata": {"name": CLUSTER},
               "driver": "csi.sheepdog.io", "deletionPolicy": "Delete"}),
        json!({"apiVersion": group, "kind": "VolumeGroupSnapshot", "metadata": {"name": "both"}, "spec": {
               "volumeGroupSnapshotClassName": CLUSTER, "source": {"selector": {"matchLabels": {"set": "pair"}}}}}),
    ])?;
    is_usable(s, "volumegroupsnapshot/both")?;
    let snapshots = until("its snapshots are there", PATIENCE, || {
        let list = s.k.get(&["volumesnapshot"])?;
        let all = list["items"].as_array().cloned().unwrap_or_default();
        let of = |claim: &str| {
            let mine = |v: &&Value| {
                v["spec"]["source"]["persistentVolumeClaimName"] == claim
                    || v["status"]["boundVolumeSnapshotContentName"]
                        .as_str()
                        .is_some_and(|c| content_is_of(s, c, claim))
            };
            all.iter().find(mine).and_then(|v| v["metadata"]["name"].as_str()).map(str::to_owned)
        };
        Ok(of("one").zip(of("two")))
    })?;
    s.k.apply(&[
        claim("one-then", &from_snapshot(&snapshots.0)),
        claim("two-then", &from_snapshot(&snapshots.1)),
        two("then", "one-then", "two-then"),
    ])?;
    s.ready("then")?;
    let number = |path: &str| -> Result<u64> {
        let said = s.sh("then", &format!("cat {path}"))?;
        said.trim().parse().with_context(|| format!("{path} has {said:?}"))
    };
    let (first, second) = (number("/data/n")?, number("/other/n")?);
    ensure!(first == second || first == second + 1, "the first volume is at {first}, the second at {second}");
    lab.proved(format!(
        "a group snapshot is one moment of two volumes: {first} and {second}, written in turns"
    ));
    s.delete(&["pod/pair", "pod/then", "volumegroupsnapshot/both"])?;
    s.delete(&["pvc/one", "pvc/two", "pvc/one-then", "pvc/two-then"])
}

/// Is a snapshot's content of the volume of this claim?
fn content_is_of(s: &Installed, content: &str, claim: &str) -> bool {
    let handle = || -> Result<(Value, Value)> {
        let content = s.k.get(&["volumesnapshotcontent", content])?;
        let claim = s.k.get(&["pvc", claim])?;
        let volume = s.k.get(&["pv", claim["spec"]["volumeName"].as_str().context("volume")?])?;
        Ok((content["spec"]["source"]["volumeHandle"].clone(), volume["spec"]["csi"]["volumeHandle"].clone()))
    };
    handle().is_ok_and(|(of, want)| !want.is_null() && of == want)
}
