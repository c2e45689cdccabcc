//! From `helm install` to a pod that writes, and back to nothing but the data on the nodes.

use crate::harness::Lab;
use crate::harness::k8s::seconds;
use crate::harness::k8s::sheepdog::{CLUSTER, Installed, NAMESPACE, claim, pod};
use crate::harness::wait::{PATIENCE, until};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::time::Instant;

pub const ABOUT: &str =
    "helm install, a cluster of three sheep, a claim, a pod that writes, helm test, uninstall";

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let s = Installed::start(lab)?;
    let start = Instant::now();
    s.k.apply(&[claim("data", &json!({})), pod("writer", "data", None)])?;
    s.ready("writer")?;
    lab.measured("from a claim and its pod to Ready", seconds(start));
    lab.measured("from helm install to a running pod", seconds(s.start));
    s.fill("writer", 64)?;
    s.same("writer")?;
    lab.proved("a claim is bound, its pod writes and reads");
    s.all_ready()?;
    lab.measured("from helm install to every pod of the release Ready", seconds(s.start));
    shown(lab, &s)?;
    upgrade(lab, &s)?;
    let said =
        s.k.control.client("helm", &["test", NAMESPACE, "--namespace", NAMESPACE, "--timeout", "170s"])?;
    ensure!(said.contains("Succeeded"), "{said}");
    lab.proved("helm test");
    s.delete(&["pod/writer", "pvc/data"])?;
    s.no_volumes()?;
    lab.proved("a deleted claim leaves no PersistentVolume and no VDI");
    uninstall(lab, &s)?;
    s.finish(lab)
}

/// What people look at.
fn shown(lab: &Lab, s: &Installed) -> Result<()> {
    let info = s.dog(&["cluster", "info"])?;
    ensure!(info.contains("ok"), "{info}");
    let nodes = s.json(&["node", "list"])?.to_string();
    for zone in ["zone0", "zone1", "zone2"] {
        ensure!(nodes.contains(zone), "no sheep in {zone}: {nodes}");
    }
    lab.proved("dog needs no flags in a sheep's pod; each sheep is in the zone of its node");
    let claim = s.k.get(&["pvc", "data"])?;
    let volume = claim["spec"]["volumeName"].as_str().unwrap_or_default().to_owned();
    let vdi = until("the claim's VDI is shown as an object", PATIENCE, || {
        let list = s.k.get(&["-n", NAMESPACE, "vdi"])?;
        let mut all = list["items"].as_array().into_iter().flatten();
        Ok(all.find(|v| v["status"]["claim"] == "default/data").cloned())
    })?;
    ensure!(!volume.is_empty() && vdi["status"]["sizeBytes"] == 1 << 30, "{vdi}");
    let writer = s.k.get(&["pod", "writer"])?;
    let node = writer["spec"]["nodeName"].as_str().unwrap_or_default();
    until("its object says where it is attached", PATIENCE, || {
        let list = s.k.get(&["-n", NAMESPACE, "vdi"])?;
        let all = list["items"].as_array().into_iter().flatten();
        Ok(all.filter(|v| v["status"]["attachedTo"] == node).count().eq(&1).then_some(()))
    })?;
    let table = s.k.kubectl(&["get", "-n", NAMESPACE, "sheepdog"])?;
    ensure!(table.contains(CLUSTER), "{table}");
    lab.proved("kubectl get sheepdog shows cluster and volume, with its claim and node");
    Ok(())
}

/// A definition that an older chart had made is brought up to date, and what stands on it stays.
fn upgrade(lab: &Lab, s: &Installed) -> Result<()> {
    let columns = |s: &Installed| -> Result<usize> {
        let crd = s.k.get(&["crd", "vdis.sheepdog.io"])?;
        let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array();
        Ok(columns.map_or(0, Vec::len))
    };
    let before = columns(s)?;
    // As helm had made it: what somebody else has changed, helm does not touch.
    let mut older = s.k.get(&["crd", "vdis.sheepdog.io"])?;
    older["spec"]["versions"][0].as_object_mut().map(|v| v.remove("additionalPrinterColumns"));
    older["metadata"].as_object_mut().map(|m| m.remove("managedFields"));
    let file = lab.dir.join("older.json");
    std::fs::write(&file, older.to_string())?;
    let file = file.to_str().context("path")?;
    s.k.kubectl(&["apply", "--server-side", "--force-conflicts", "--field-manager=helm", "-f", file])?;
    ensure!(columns(s)? < before, "the definition is still the newer one");
    s.upgrade()?;
    ensure!(columns(s)? == before, "helm upgrade left the older definition");
    s.available()?;
    s.same("writer")?;
    lab.proved("helm upgrade brings an older definition up to date; cluster, volume and pod stay");
    Ok(())
}

/// Nothing of the release is left but what the documents say: directories and secret.
fn uninstall(lab: &Lab, s: &Installed) -> Result<()> {
    s.delete(&["-n", NAMESPACE, &format!("sheepdogcluster/{CLUSTER}")])?;
    s.uninstall()?;
    s.k.get(&["-n", NAMESPACE, "secret", &format!("{CLUSTER}-secret")])?;
    for i in 0..s.k.nodes.len() {
        let data = lab.dir.join(format!("node{i}/var/lib/sheepdog/{CLUSTER}/data"));
        ensure!(data.is_dir(), "{} has gone with the release", data.display());
    }
    lab.proved("uninstalled: the nodes' directories and the secret stay");
    Ok(())
}
