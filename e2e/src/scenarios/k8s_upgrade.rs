//! Everything of Sheepdog is replaced, one after the other, under a pod that writes, reads back and compares.

use crate::harness::Lab;
use crate::harness::fio::{gap, verified};
use crate::harness::k8s::sheepdog::{CLUSTER, Installed, NAMESPACE, claim, condition, pod};
use crate::harness::wait::{self, until};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub const ABOUT: &str = "a new image of sheep, CSI pods and operator replaced, under fio in a pod";

const PATIENCE: Duration = Duration::from_secs(420);
/// The longest time without a finished write.
const BOUND: Duration = Duration::from_secs(5);
const POD: &str = "load";
const IMAGE: &str = "docker.io/sheepdog/sheep";

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let s = Installed::start(lab)?;
    s.all_ready()?;
    let next = next_image(&s)?;
    s.k.apply(&[claim("data", &json!({})), pod(POD, "data", None)])?;
    s.ready(POD)?;
    s.sh(POD, FIO)?;
    let start = Instant::now();
    until("fio writes", wait::PATIENCE, || {
        s.sh(POD, "cat /tmp/log; pidof fio && test -s /data/pulse.0.0 && test -s /data/verify.0.0").map(Some)
    })?;
    let mut steps = Vec::new();
    let mut step = |what: &'static str, f: &dyn Fn() -> Result<()>| -> Result<()> {
        let from = start.elapsed();
        f().with_context(|| what.to_owned())?;
        steps.push((what, from, start.elapsed()));
        lab.step(what);
        Ok(())
    };
    step("every sheep updated to another image", &|| update(&s, &next))?;
    step("the node's CSI pods replaced", &|| replaced(&s, "daemonset/sheepdog-csi-node"))?;
    step("the CSI controller replaced", &|| replaced(&s, "deployment/sheepdog-csi-controller"))?;
    step("the operator replaced", &|| replaced(&s, "deployment/sheepdog-operator"))?;
    s.sh(POD, "kill -INT $(pidof fio)")?;
    let result = until("fio ends", PATIENCE, || {
        s.sh(POD, "! pidof fio >/dev/null")?;
        s.sh(POD, "cat /tmp/result.json").map(Some)
    })?;
    let compared = verified(&result).with_context(|| s.sh(POD, "cat /tmp/log").unwrap_or_default())?;
    let times = pulse(&s)?;
    for (what, from, to) in steps {
        let during = |t: &&u64| (from..to + BOUND).contains(&Duration::from_millis(**t));
        let (longest, _) = gap(&times.iter().filter(during).copied().collect::<Vec<_>>());
        let took = (to - from).as_secs_f64();
        lab.measured(what, format!("{took:.1} s, longest time without a write {} ms", longest.as_millis()));
    }
    let (longest, _) = gap(&times);
    lab.measured("longest time without a finished write", format!("{} ms", longest.as_millis()));
    lab.within("longest time without a finished write", longest, BOUND)?;
    lab.proved(format!(
        "sheep, CSI pods and operator replaced under load: {compared} blocks compared, 0 errors"
    ));
    s.delete(&[&format!("pod/{POD}"), "pvc/data"])?;
    s.no_volumes()?;
    s.finish(lab)
}

/// In the background, until it is told to stop.
const FIO: &str = "cd /tmp; setsid fio --directory=/data --ioengine=libaio --direct=1 --time_based=1 --runtime=3600 \
    --output-format=json --output=result.json \
    --name=verify --rw=randwrite --bs=4k --iodepth=4 --size=64m --verify=crc32c --verify_backlog=512 --verify_fatal=1 \
    --verify_state_save=0 --rate_iops=200 \
    --name=pulse --rw=randwrite --bs=4k --iodepth=2 --size=16m --norandommap=1 --rate_iops=25 --write_lat_log=pulse --log_offset=1 >log 2>&1 </dev/null &";

/// When writes finished, in milliseconds from the start. fio writes it down when it ends.
fn pulse(s: &Installed) -> Result<Vec<u64>> {
    let text = s.sh(POD, "cat /tmp/pulse_lat.*.log")?;
    let mut times: Vec<u64> = text.lines().filter_map(|l| l.split(',').next()?.trim().parse().ok()).collect();
    times.sort_unstable();
    Ok(times)
}

/// The same programs by another name: what an update changes is the image.
fn next_image(s: &Installed) -> Result<String> {
    let (now, next) = (format!("{IMAGE}:{}", env!("CARGO_PKG_VERSION")), format!("{IMAGE}:next"));
    for node in &s.k.nodes {
        node.tag(&now, &next)?;
    }
    Ok(next)
}

fn update(s: &Installed, image: &str) -> Result<()> {
    let patch = json!({"spec": {"image": image}}).to_string();
    s.k.kubectl(&["patch", "-n", NAMESPACE, "sheepdogcluster", CLUSTER, "--type=merge", "-p", &patch])?;
    until("every sheep has the new image and everything has all its copies", PATIENCE, || {
        let pods = s.k.get(&["-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/component=sheep"])?;
        let image_of = |p: &Value| p["spec"]["containers"][0]["image"] == image;
        let all = pods["items"].as_array().cloned().unwrap_or_default();
        let c = s.cluster()?;
        ensure!(all.len() == 3 && all.iter().all(image_of), "{}", c["status"]["conditions"]);
        ensure!(condition(&c, "Progressing") == "False", "{}", c["status"]["conditions"]);
        ensure!(condition(&c, "Degraded") == "False", "{}", c["status"]["conditions"]);
        Ok(Some(()))
    })
}

fn replaced(s: &Installed, what: &str) -> Result<()> {
    s.k.kubectl(&["rollout", "restart", "-n", NAMESPACE, what])?;
    s.k.kubectl(&["rollout", "status", "-n", NAMESPACE, what, "--timeout=170s"]).map(drop)
}
