//! What goes wrong around a cluster: its operator dies while it makes and updates the cluster, the API server is away, a node's object is deleted, a claim is
//! deleted in use, objects and secrets are wrong.

use crate::harness::Lab;
use crate::harness::k8s::sheepdog::{CLUSTER, Installed, NAMESPACE, claim, cluster, condition, pod};
use crate::harness::k8s::{Kubernetes, Plan, seconds};
use crate::harness::proc::run;
use crate::harness::wait::{phase, until};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub const ABOUT: &str = "the operator killed, the API server away, a node's object deleted, a claim deleted in use, wrong objects, wrong secrets";

const PATIENCE: Duration = Duration::from_secs(300);
/// Between two deaths of the operator.
const KILL: Duration = Duration::from_secs(3);
const MOST: u32 = 8;
/// What is said of a secret of another cluster.
const REFUSED: &str = "not made from this secret";

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let k = Kubernetes::start(lab, &Plan { csi: true, ..Plan::new(3) })?;
    let mut s = Installed::chart(lab, k)?;
    refused(lab, &s)?;
    no_secret(lab, &s)?;
    s.k.apply(&[cluster(&json!({}))])?;
    s.until_though_killed("the cluster is Available", KILL, MOST, |c| condition(c, "Available") == "True")?;
    lab.proved("a cluster is made by operators that are killed every three seconds");
    s.k.apply(&[claim("data", &json!({})), pod("app", "data", None)])?;
    s.ready("app")?;
    s.fill("app", 32)?;
    updated(lab, &s)?;
    api_server(lab, &mut s)?;
    node_object(lab, &mut s)?;
    wrong_secret(lab, &s)?;
    claim_in_use(lab, &s)?;
    s.no_volumes()?;
    s.finish(lab)
}

/// By the API server itself, in words.
fn refused(lab: &Lab, s: &Installed) -> Result<()> {
    let vdi = |spec: Value| json!({"apiVersion": "sheepdog.io/v1alpha1", "kind": "Vdi", "metadata": {"name": "bad", "namespace": NAMESPACE}, "spec": spec});
    let wrong = [
        (cluster(&json!({"nodeGroups": []})), "nodeGroups"),
        (cluster(&json!({"redundancy": {"copies": 17}})), "copies"),
        (cluster(&json!({"redundancy": {"copies": 2}, "minCopies": 3})), "minCopies"),
        (cluster(&json!({"ports": {"client": 0}})), "ports.client"),
        (cluster(&json!({"downOutInterval": "soon"})), "downOutInterval"),
        (cluster(&json!({"dataDir": "relative"})), "dataDir"),
        (vdi(json!({"cluster": CLUSTER, "size": "much"})), "size"),
        (vdi(json!({"cluster": CLUSTER})), "size"),
    ];
    for (object, named) in &wrong {
        let error =
            s.k.apply(std::slice::from_ref(object)).err().with_context(|| format!("taken: {object}"))?;
        ensure!(format!("{error:#}").contains(named), "refused without {named}: {error:#}");
    }
    lab.proved(format!(
        "{} objects with values out of range are refused by the API server, each by the field's name",
        wrong.len()
    ));
    Ok(())
}

/// A cluster whose secret is not there, or holds something else, is not made, and says so.
fn no_secret(lab: &Lab, s: &Installed) -> Result<()> {
    s.k.apply(&[cluster(&json!({"tls": {"secretName": "own"}}))])?;
    s.says("secret own is not there: make it with `dog secret new")?;
    s.k.apply(&[secret("own", "nonsense")])?;
    s.says("it must hold what `dog secret new` wrote")?;
    let object = format!("sheepdogcluster/{CLUSTER}");
    s.k.kubectl(&["delete", "-n", NAMESPACE, &object, "secret/own", "--wait", "--timeout=170s"])?;
    lab.proved("a missing secret and one that is none are named, with what to do; the cluster is not made");
    Ok(())
}

/// Somebody puts the secret of another cluster in place of ours: what runs goes on, what starts is refused in words, and with the right one
/// everything is as before.
fn wrong_secret(lab: &Lab, s: &Installed) -> Result<()> {
    let name = format!("{CLUSTER}-secret");
    let right = s.k.get(&["-n", NAMESPACE, "secret", &name])?;
    let file = lab.dir.join("other-secret");
    let dog = lab.bin.join("dog");
    run(dog.to_str().context("path")?, &["secret", "new", "-f", file.to_str().context("path")?])?;
    // A controller that is there has read the right one.
    s.scale_csi_controller(0)?;
    change(s, &name, &json!({"stringData": {"secret": std::fs::read_to_string(file)?}}))?;
    s.says(REFUSED)?;
    s.scale_csi_controller(2)?;
    s.k.apply(&[claim("refused", &json!({}))])?;
    until("the controller says why it is not ready", PATIENCE, || {
        let said =
            s.k.kubectl(&["logs", "-n", NAMESPACE, "deployment/sheepdog-csi-controller", "-c", "csi"])?;
        Ok(said.contains(REFUSED).then_some(()))
    })?;
    ensure!(
        s.k.get(&["pvc", "refused"])?["status"]["phase"] == "Pending",
        "a volume was made with another cluster's secret"
    );
    s.same("app")?;
    s.sh("app", "echo on >/data/on; sync -f /data")?;
    s.scale_csi_controller(0)?;
    change(s, &name, &json!({"data": right["data"]}))?;
    s.scale_csi_controller(2)?;
    s.available()?;
    s.all_ready()?;
    s.k.apply(&[pod("refused", "refused", None)])?;
    s.ready("refused")?;
    s.delete(&["pod/refused", "pvc/refused"])?;
    lab.proved("with another cluster's secret the cluster's object and the driver say so, new claims wait, pods go on; with the right one all is as before");
    Ok(())
}

/// Whoever owns the field.
fn change(s: &Installed, secret: &str, patch: &Value) -> Result<()> {
    s.k.kubectl(&["patch", "-n", NAMESPACE, "secret", secret, "--type=merge", "-p", &patch.to_string()])
        .map(drop)
}

fn secret(name: &str, text: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}, "stringData": {"secret": text}})
}

fn updated(lab: &Lab, s: &Installed) -> Result<()> {
    let before = revisions(s)?;
    let patch = json!({"spec": {"logLevel": "warn"}}).to_string();
    s.k.kubectl(&["patch", "-n", NAMESPACE, "sheepdogcluster", CLUSTER, "--type=merge", "-p", &patch])?;
    let changed = || revisions(s).is_ok_and(|now| now.len() == 3 && now.iter().all(|r| !before.contains(r)));
    s.until_though_killed("every sheep is updated", KILL, MOST, |c| {
        changed() && condition(c, "Degraded") == "False" && condition(c, "Progressing") == "False"
    })?;
    s.same("app")?;
    lab.proved("sheep are updated by operators that are killed every three seconds");
    Ok(())
}

/// What each sheep's pod was made from.
fn revisions(s: &Installed) -> Result<Vec<String>> {
    let pods = s.k.get(&["-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/component=sheep"])?;
    let all = pods["items"].as_array().into_iter().flatten();
    Ok(all.map(|p| p["metadata"]["annotations"]["sheepdog.io/revision"].to_string()).collect())
}

/// Counts in a file, synced at every step.
const COUNT: &str = "setsid sh -c 'i=0; while i=$((i+1)); echo $i >/data/n.new && sync /data/n.new && mv /data/n.new /data/n; do date +%s >>/data/times; sleep 0.2; done' >/dev/null 2>&1 </dev/null &";

fn api_server(lab: &Lab, s: &mut Installed) -> Result<()> {
    s.sh("app", COUNT)?;
    let count = |s: &Installed| -> Result<u64> { Ok(s.sh("app", "cat /data/n")?.trim().parse()?) };
    let before = until("it counts", PATIENCE, || count(s).map(Some))?;
    s.k.control.kill_api()?;
    let away = lab.pick(60, 30);
    phase(Duration::from_secs(away), || Ok(false))?;
    s.k.control.start_api()?;
    s.k.control.ready()?;
    for i in 0..3 {
        s.k.node_becomes(i, true)?;
    }
    let after = until("it has counted on", PATIENCE, || count(s).map(Some))?;
    // Whole seconds in which it did something.
    let times = s.sh("app", "sort -u /data/times")?;
    let times: Vec<u64> = times.lines().filter_map(|l| l.trim().parse().ok()).collect();
    let longest = times.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(u64::MAX);
    ensure!(after > before && longest <= 5, "{before}, then {after}; it stood still for {longest} s");
    s.available()?;
    s.all_ready()?;
    s.same("app")?;
    lab.proved(format!("the API server was away for {away} s: a pod wrote on, {} synced writes, never more than {longest} s apart", after - before));
    Ok(())
}

/// Somebody deletes the object of a node that lives.
fn node_object(lab: &Lab, s: &mut Installed) -> Result<()> {
    let app = s.k.get(&["pod", "app"])?;
    let there = app["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
    let i = (0..3).find(|i| s.k.nodes[*i].name != there).context("a node without the pod")?;
    let name = s.k.nodes[i].name.clone();
    s.k.kubectl(&["delete", "node", &name])?;
    let start = Instant::now();
    until("the cluster has noticed", PATIENCE, || {
        Ok((s.cluster()?["status"]["sheep"] != "3/3").then_some(()))
    })?;
    s.same("app")?;
    // As an administrator would: the kubelet registers when it starts.
    s.k.nodes[i].kill_kubelet()?;
    s.k.nodes[i].start_kubelet()?;
    s.k.node_becomes(i, true)?;
    until("all sheep are back with all copies", PATIENCE, || {
        let c = s.cluster()?;
        ensure!(c["status"]["sheep"] == "3/3" && condition(&c, "Degraded") == "False", "{}", c["status"]);
        Ok(Some(()))
    })?;
    s.same("app")?;
    lab.measured("a node's object deleted, its sheep back after", seconds(start));
    lab.proved("a node whose object is deleted comes back with its sheep and data");
    Ok(())
}

fn claim_in_use(lab: &Lab, s: &Installed) -> Result<()> {
    s.k.kubectl(&["delete", "pvc", "data", "--wait=false"])?;
    s.sh("app", "echo on >/data/on; sync -f /data; sha256sum -c /data/sum")?;
    let claim = s.k.get(&["pvc", "data"])?;
    ensure!(!claim["metadata"]["deletionTimestamp"].is_null(), "the claim is not being deleted");
    s.delete(&["pod/app"])?;
    until("the claim is gone", PATIENCE, || Ok(s.k.get(&["pvc", "data"]).is_err().then_some(())))?;
    lab.proved("a claim deleted in use stays until its pod has gone, then its volume goes");
    Ok(())
}
