//! A pod moves with its data: when it is deleted, when its node dies, and when its node only seems dead and goes on writing. Kubernetes' own times.

use crate::harness::Lab;
use crate::harness::k8s::sheepdog::{Installed, NAMESPACE, claim, deployment};
use crate::harness::k8s::{Kubernetes, Plan, is_ready, seconds};
use crate::harness::wait::until;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

pub const ABOUT: &str = "a pod and its data move: deleted, its node dead, its node cut off and writing on";

/// From the loss of a node to its pod Ready elsewhere.
const BOUND: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(300);

pub fn run_scenario(lab: &Lab) -> Result<()> {
    // As a cluster has it when nobody has changed anything.
    let plan =
        Plan { csi: true, lease: Duration::from_secs(40), grace: Duration::from_secs(50), ..Plan::new(3) };
    let k = Kubernetes::start(lab, &plan)?;
    let mut s = Installed::install(lab, k, &json!({}))?;
    s.k.apply(&[claim("data", &json!({})), deployment("app", "data")])?;
    let mut pod = running(&s, None)?;
    s.fill(&pod.name, 48)?;
    pod = deleted(lab, &s, &pod)?;
    pod = dead(lab, &mut s, &pod)?;
    pod = cut_off(lab, &mut s, &pod)?;
    s.same(&pod.name)?;
    s.delete(&["deployment/app", "pvc/data"])?;
    s.no_volumes()?;
    s.finish(lab)
}

/// Where the application is.
struct Pod {
    name: String,
    node: String,
}

/// The application's pod when it is Ready, on another node than that.
fn running(s: &Installed, not_on: Option<&str>) -> Result<Pod> {
    until("the application runs", PATIENCE, || {
        let list = s.k.get(&["pods", "-l", "app=app"])?;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let all = list["items"].as_array().into_iter().flatten();
        let all: Vec<(&Value, String)> = all.map(|p| (p, text(&p["spec"]["nodeName"]))).collect();
        let found = all.iter().find(|(p, node)| is_ready(p) && not_on != Some(node.as_str()));
        let (p, node) = found.with_context(|| {
            let events = s.k.kubectl(&["events", "--types=Warning"]).unwrap_or_default();
            format!(
                "no pod is Ready where it should be: {}",
                events.lines().rev().take(6).collect::<Vec<_>>().join(" / ")
            )
        })?;
        Ok(Some(Pod { name: text(&p["metadata"]["name"]), node: node.clone() }))
    })
}

fn deleted(lab: &Lab, s: &Installed, pod: &Pod) -> Result<Pod> {
    s.k.kubectl(&["cordon", &pod.node])?;
    let start = Instant::now();
    s.k.kubectl(&["delete", "pod", &pod.name, "--wait=false"])?;
    let new = running(s, Some(&pod.node))?;
    lab.measured("pod deleted, Ready on another node after", seconds(start));
    s.same(&new.name)?;
    s.k.kubectl(&["uncordon", &pod.node])?;
    lab.proved("a deleted pod comes back on another node with its data");
    Ok(new)
}

/// Counts in a file and syncs it after every step, until its volume fails.
const COUNT: &str = "setsid sh -c 'i=0; while i=$((i+1)); echo $i >/data/count.new && sync /data/count.new && mv /data/count.new /data/count && sync /data; do :; done' >/dev/null 2>&1 </dev/null &";

fn count(s: &Installed, pod: &Pod) -> Result<u64> {
    let said = s.sh(&pod.name, "cat /data/count")?;
    said.trim().parse().with_context(|| format!("the counter is {said:?}"))
}

fn index(node: &str) -> Result<usize> {
    node.trim_start_matches("node").parse().context("name of a node")
}

fn dead(lab: &Lab, s: &mut Installed, pod: &Pod) -> Result<Pod> {
    s.sh(&pod.name, COUNT)?;
    let before = until("it counts", PATIENCE, || Ok(Some(count(s, pod)?).filter(|n| *n > 20)))?;
    let i = index(&pod.node)?;
    let start = Instant::now();
    s.k.nodes[i].cut_power()?;
    let new = running(s, Some(&pod.node))?;
    moved(lab, "power of its node cut", start)?;
    s.same(&new.name)?;
    let after = count(s, &new)?;
    // The last step may have been seen before its directory was synced.
    ensure!(after + 1 >= before, "the counter had been {before} and is {after}");
    lab.proved("a dead node's pod runs elsewhere with everything that was synced, without anybody's help");
    s.k.power_on(i)?;
    whole(s)?;
    Ok(new)
}

fn moved(lab: &Lab, what: &str, start: Instant) -> Result<()> {
    let took = start.elapsed();
    lab.measured(&format!("{what}, its pod Ready elsewhere after"), seconds(start));
    lab.within(what, took, BOUND)
}

/// All sheep are back, and all copies.
fn whole(s: &Installed) -> Result<()> {
    until("everything has all its copies again", PATIENCE, || {
        let info = s.json(&["cluster", "info"])?;
        ensure!(info["status"] == "ok", "{}: {}", info["status"], info["reasons"]);
        Ok(Some(()))
    })
}

/// The node is alive, only nobody hears it: its pod writes on, into nothing.
fn cut_off(lab: &Lab, s: &mut Installed, pod: &Pod) -> Result<Pod> {
    s.sh(&pod.name, COUNT)?;
    until("it counts", PATIENCE, || Ok(Some(count(s, pod)?).filter(|n| *n > 20)))?;
    let i = index(&pod.node)?;
    let start = Instant::now();
    s.k.nodes[i].cable(&s.k.control, false)?;
    let new = running(s, Some(&pod.node))?;
    moved(lab, "cable of its node pulled", start)?;
    let before = count(s, &new)?;
    // The old one still runs there.
    let alive = s.k.nodes[i]
        .space()?
        .run(Path::new("/bin/sh"), &["-c", "grep -l count.new /proc/[0-9]*/cmdline 2>/dev/null | wc -l"])?;
    ensure!(alive.trim() != "0", "the old pod has ended: nothing could have written late");
    s.sh(&new.name, "echo new >/data/whose; sync -f /data")?;
    s.k.nodes[i].cable(&s.k.control, true)?;
    s.k.node_becomes(i, true)?;
    until("the old node has let go of the volume", PATIENCE, || {
        let list = s.k.get(&["-n", NAMESPACE, "vdi"])?;
        let node = s.k.get(&["node", &pod.node])?;
        let in_use = node["status"]["volumesInUse"].as_array().is_some_and(|v| !v.is_empty());
        ensure!(!in_use, "{} still uses {}", pod.node, node["status"]["volumesInUse"]);
        ensure!(list["items"].as_array().is_some_and(|v| !v.is_empty()), "no volumes");
        Ok(Some(()))
    })?;
    whole(s)?;
    // What is on the disk, not what is cached.
    s.k.kubectl(&["delete", "pod", &new.name])?;
    let last = running(s, None)?;
    let (after, whose) = (count(s, &last)?, s.sh(&last.name, "cat /data/whose")?);
    ensure!(after == before && whose.trim() == "new", "the counter was {before} and is {after}, {whose}");
    lab.proved("a node that is cut off writes on and nothing of it arrives, also not when it is back");
    Ok(last)
}
