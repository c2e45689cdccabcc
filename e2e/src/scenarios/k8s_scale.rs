//! A fourth sheep, then one of the first leaves, with an operator that is killed all the time; then everything is uninstalled and installed again over
//! the same disks.

use crate::harness::Lab;
use crate::harness::k8s::sheepdog::{CLUSTER, Installed, NAMESPACE, claim, condition, pod};
use crate::harness::k8s::{Kubernetes, Plan, seconds};
use crate::harness::wait::until;
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::{Duration, Instant};

pub const ABOUT: &str =
    "3 sheep, 4, 3 again, the operator killed meanwhile; uninstalled and installed again over the same disks";

const PATIENCE: Duration = Duration::from_secs(300);
const LABEL: &str = "sheepdog.io/storage";
/// Between two deaths of the operator.
const KILL: Duration = Duration::from_secs(4);

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let k = Kubernetes::start(lab, &Plan { csi: true, ..Plan::new(4) })?;
    for node in ["node0", "node1", "node2"] {
        k.kubectl(&["label", "node", node, &format!("{LABEL}=true")])?;
    }
    let spec = json!({"nodeGroups": [{"nodeSelector": {LABEL: "true"}}]});
    let s = Installed::install(lab, k, &spec)?;
    s.k.apply(&[claim("data", &json!({})), pod("app", "data", Some("node3"))])?;
    s.ready("app")?;
    s.fill("app", 64)?;
    lab.proved("a pod on a node without a sheep of its own uses its volume through a gateway");
    scale(lab, &s, "node3", true, 4)?;
    scale(lab, &s, "node0", false, 3)?;
    let nodes = s.json(&["node", "list"])?.to_string();
    ensure!(nodes.contains("out"), "no sheep is out: {nodes}");
    let s = again(lab, s, &spec)?;
    s.delete(&["pod/app", "pvc/data"])?;
    s.no_volumes()?;
    s.finish(lab)
}

/// A node joins or leaves; as long as that lasts the operator is killed again and again.
fn scale(lab: &Lab, s: &Installed, node: &str, joins: bool, sheep: usize) -> Result<()> {
    let label = if joins { format!("{LABEL}=true") } else { format!("{LABEL}-") };
    let start = Instant::now();
    s.k.kubectl(&["label", "node", node, &label])?;
    let told = format!("{sheep}/{sheep}");
    let killed = s.until_though_killed(&format!("{sheep} sheep with all copies"), KILL, 6, |c| {
        c["status"]["sheep"] == told
            && condition(c, "Degraded") == "False"
            && condition(c, "Progressing") == "False"
            && c["status"]["observedGeneration"] == c["metadata"]["generation"]
    })?;
    s.same("app")?;
    let what = if joins { "joins" } else { "is emptied and leaves" };
    lab.measured(&format!("{node} {what}, {sheep} sheep with all copies after"), seconds(start));
    lab.proved(format!(
        "{node} {what} while the operator is killed {killed} times; the pod's data is the same"
    ));
    Ok(())
}

fn again(lab: &Lab, s: Installed, spec: &serde_json::Value) -> Result<Installed> {
    let id = s.cluster()?["status"]["clusterId"].clone();
    let cluster = format!("sheepdogcluster/{CLUSTER}");
    s.k.kubectl(&["delete", "-n", NAMESPACE, &cluster, "--wait=false"])?;
    until("the deletion waits for the volume in use", PATIENCE, || {
        let c = s.cluster()?;
        ensure!(
            c["status"]["conditions"].to_string().contains("DeletionHeld"),
            "{}",
            c["status"]["conditions"]
        );
        Ok(Some(()))
    })?;
    s.same("app")?;
    s.delete(&["pod/app"])?;
    until("the cluster object is gone", PATIENCE, || Ok(s.cluster().is_err().then_some(())))?;
    s.uninstall()?;
    lab.proved("a cluster whose volume is in use is not deleted; then it goes, and the release with it");
    let s = Installed::install(lab, s.k, spec)?;
    ensure!(s.cluster()?["status"]["clusterId"] == id, "it is another cluster");
    s.k.apply(&[pod("app", "data", None)])?;
    s.ready("app")?;
    s.same("app")?;
    lab.proved("installed again over the same disks: the same cluster, the claim's volume and data");
    Ok(s)
}
