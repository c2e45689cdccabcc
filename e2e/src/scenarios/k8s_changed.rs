//! Changed blocks, as a backup program asks for them: through the Kubernetes API and upstream's sidecar, by upstream's own client, which copies what it is told
//! has changed and compares everything.

use super::k8s_volumes::{DEVICE, device_pod, is_usable, snapshot};
use crate::harness::Lab;
use crate::harness::k8s::sheepdog::{Installed, claim, with};
use crate::harness::wait::until;
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(300);
/// As the program calls itself and its account.
const CLIENT: &str = "snapshot-metadata-verifier";
const SIZE: &str = "64Mi";

/// Part of `k8s-volumes`.
pub fn changed(lab: &Lab, s: &Installed) -> Result<()> {
    let block = |more: Value| {
        with(json!({"volumeMode": "Block", "resources": {"requests": {"storage": SIZE}}}), &more)
    };
    let of = |name: &str| json!({"dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name}});
    s.k.apply(&[claim("source", &block(json!({}))), device_pod("source", "source", "node0")])?;
    s.ready("source")?;
    s.sh("source", &format!("dd if=/dev/urandom of={DEVICE} bs=1M count=24 conv=fsync 2>/dev/null"))?;
    s.k.apply(&[snapshot("monday", "source")])?;
    is_usable(s, "volumesnapshot/monday")?;
    // Some of it is written over, some of it discarded, some is new; blocks that begin and end in the middle of objects.
    for (command, offset, length) in
        [("dd", 3_000_000, 200_000), ("dd", 40 << 20, 5 << 20), ("discard", 8 << 20, 6 << 20)]
    {
        let script = match command {
            "dd" => format!(
                "head -c {length} /dev/urandom | dd of={DEVICE} oflag=seek_bytes seek={offset} conv=notrunc,fsync 2>/dev/null"
            ),
            _ => format!("blkdiscard -o {offset} -l {length} {DEVICE}"),
        };
        s.sh("source", &script)?;
    }
    s.k.apply(&[snapshot("tuesday", "source")])?;
    is_usable(s, "volumesnapshot/tuesday")?;
    s.k.apply(&account())?;
    s.k.apply(&[
        claim("then", &block(of("monday"))),
        claim("now", &block(of("tuesday"))),
        claim("empty", &block(json!({}))),
    ])?;
    verify(s, "full", "empty", &["-s", "tuesday"])?;
    lab.proved("upstream's client copies the blocks that a snapshot has to an empty volume: equal");
    verify(s, "incremental", "then", &["-s", "tuesday", "-p", "monday"])?;
    lab.proved(
        "upstream's client copies the blocks that changed since an older snapshot over that one: equal",
    );
    s.delete(&["pod/source", "volumesnapshot/monday", "volumesnapshot/tuesday"])?;
    s.delete(&["pvc/source", "pvc/then", "pvc/now", "pvc/empty"])
}

/// The client brings a volume to the state of the claim `now` with what the service tells it, and compares the two.
fn verify(s: &Installed, name: &str, target: &str, snapshots: &[&str]) -> Result<()> {
    let mut pod = device_pod(name, "now", "node1");
    let spec = &mut pod["spec"];
    spec["restartPolicy"] = json!("Never");
    spec["serviceAccountName"] = json!(CLIENT);
    spec["volumes"] = json!([
        {"name": "data", "persistentVolumeClaim": {"claimName": "now"}},
        {"name": "target", "persistentVolumeClaim": {"claimName": target}}]);
    let container = &mut spec["containers"][0];
    container["image"] = json!(format!("sheepdog.test/{CLIENT}:1"));
    container.as_object_mut().map(|c| c.remove("command"));
    container["args"] =
        json!([&["-n", "default", "-src", DEVICE, "-tgt", "/dev/target"], snapshots].concat());
    container["volumeDevices"] =
        json!([{"name": "data", "devicePath": DEVICE}, {"name": "target", "devicePath": "/dev/target"}]);
    s.k.apply(&[pod])?;
    let phase = until(&format!("{name} has ended"), PATIENCE, || {
        let pod = s.k.get(&["pod", name])?;
        let phase = pod["status"]["phase"].as_str().unwrap_or_default().to_owned();
        ensure!(phase == "Succeeded" || phase == "Failed", "{}", pod["status"]);
        Ok(Some(phase))
    })?;
    ensure!(phase == "Succeeded", "{name}: {}", s.k.kubectl(&["logs", name])?);
    s.delete(&[&format!("pod/{name}")])
}

/// What a backup program may do, as upstream gives it.
fn account() -> Vec<Value> {
    let rbac = "rbac.authorization.k8s.io";
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": CLIENT}}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": {"name": CLIENT}, "rules": [
            {"apiGroups": ["snapshot.storage.k8s.io"], "resources": ["volumesnapshots", "volumesnapshotcontents"],
             "verbs": ["get", "list", "watch"]},
            {"apiGroups": ["cbt.storage.k8s.io"], "resources": ["snapshotmetadataservices"], "verbs": ["get", "list"]},
            {"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create", "get"]}]}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": CLIENT},
               "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": CLIENT},
               "subjects": [{"kind": "ServiceAccount", "name": CLIENT, "namespace": "default"}]}),
    ]
}
