//! How long claims, pods and snapshots take, and what the operator costs when nothing happens. Figures, no bars: machines are shared.

use crate::harness::Lab;
use crate::harness::k8s::sheepdog::{CLUSTER, Installed, claim, pod};
use crate::harness::wait::{phase, until};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

pub const ABOUT: &str =
    "times of claims, pods and snapshots; 200 claims at once; memory and CPU of the operator";

const MANY: usize = 200;

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let s = Installed::start(lab)?;
    s.snapshot_controller()?;
    s.all_ready()?;
    let rounds = lab.pick(15, 5);
    let bound = times(rounds, |i| {
        let name = format!("claim{i}");
        s.k.apply(&[claim(&name, &json!({"resources": {"requests": {"storage": "64Mi"}}}))])?;
        wait(&s, "{.status.phase}=Bound", &format!("pvc/{name}"))
    })?;
    lab.measured("claim made to Bound", &bound);
    let ready = times(rounds, |i| {
        s.k.apply(&[pod(&format!("pod{i}"), &format!("claim{i}"), None)])?;
        s.ready(&format!("pod{i}")).map(drop)
    })?;
    lab.measured("pod made to Ready (placed, attached, formatted, mounted, started)", &ready);
    let usable = times(rounds, |i| {
        s.k.apply(&[json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
            "metadata": {"name": format!("snap{i}")},
            "spec": {"volumeSnapshotClassName": CLUSTER, "source": {"persistentVolumeClaimName": format!("claim{i}")}}})])?;
        wait(&s, "{.status.readyToUse}=true", &format!("volumesnapshot/snap{i}"))
    })?;
    lab.measured("snapshot made to ready", &usable);
    let all: Vec<Value> = (0..MANY)
        .map(|i| {
            let mut c = claim(&format!("many{i}"), &json!({"resources": {"requests": {"storage": "64Mi"}}}));
            c["metadata"]["labels"] = json!({"set": "many"});
            c
        })
        .collect();
    let start = Instant::now();
    s.k.apply(&all)?;
    until("all claims are bound", Duration::from_secs(300), || {
        let list = s.k.get(&["pvc", "-l", "set=many"])?;
        let claims = list["items"].as_array().cloned().unwrap_or_default();
        let bound = claims.iter().filter(|c| c["status"]["phase"] == "Bound").count();
        ensure!(bound == MANY, "{bound} of {MANY}");
        Ok(Some(()))
    })?;
    lab.measured(
        &format!("{MANY} claims at once, all Bound after"),
        format!("{:.1} s", start.elapsed().as_secs_f64()),
    );
    operators(lab, &s)?;
    s.k.kubectl(&["delete", "pod", "--all", "--wait", "--timeout=170s"])?;
    s.k.kubectl(&["delete", "volumesnapshot", "--all", "--timeout=170s"])?;
    s.k.kubectl(&["delete", "pvc", "--all", "--wait=false"])?;
    s.no_volumes()?;
    lab.proved("nothing of it is left");
    s.finish(lab)
}

fn wait(s: &Installed, what: &str, object: &str) -> Result<()> {
    s.k.kubectl(&["wait", &format!("--for=jsonpath={what}"), object, "--timeout=170s"]).map(drop)
}

/// Median, least and most.
fn times(rounds: usize, mut f: impl FnMut(usize) -> Result<()>) -> Result<String> {
    let mut took = Vec::new();
    for i in 0..rounds {
        let start = Instant::now();
        f(i)?;
        took.push(start.elapsed().as_millis());
    }
    took.sort_unstable();
    let (least, most) = (took.first().context("rounds")?, took.last().context("rounds")?);
    Ok(format!("median {} ms, {least} to {most} ms, kubectl's own start included", took[took.len() / 2]))
}

/// What they cost while nothing happens.
fn operators(lab: &Lab, s: &Installed) -> Result<()> {
    const IDLE: Duration = Duration::from_secs(20);
    for node in &s.k.nodes {
        let space = node.space()?;
        let script = "for p in $(pgrep -x sheepdog-operat); do awk '/VmRSS/ {print $2}' /proc/$p/status; awk '{print $14 + $15}' /proc/$p/stat; done";
        let look = || -> Result<Vec<u64>> {
            let said = space.run(Path::new("/bin/sh"), &["-c", script])?;
            Ok(said.lines().filter_map(|l| l.trim().parse().ok()).collect())
        };
        let before = look()?;
        if before.len() < 2 {
            continue;
        }
        phase(IDLE, || Ok(false))?;
        let after = look()?;
        let ticks = after[1].saturating_sub(before[1]);
        let share =
            ticks as f64 / rustix::param::clock_ticks_per_second() as f64 / IDLE.as_secs_f64() * 100.0;
        lab.measured(
            &format!("operator on {}", node.name),
            format!("{} MiB, {share:.2} % of a core", after[0] >> 10),
        );
    }
    Ok(())
}
