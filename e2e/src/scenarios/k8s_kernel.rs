//! Kernel NBD, on a node that is a machine with Debian's kernel: attached, used while sheep and the plugin die or stand still, grown, detached, attached
//! again, encrypted. The kernel must never see an I/O error, and nothing may be left of a device.

use crate::harness::Lab;
use crate::harness::fio::verified;
use crate::harness::k8s::sheepdog::{CLUSTER, Installed, NAMESPACE, claim, pod};
use crate::harness::k8s::{BOX, Kubernetes, Plan, seconds};
use crate::harness::wait::{phase, until};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

pub const ABOUT: &str = "kernel NBD and LUKS2 on a node that is a machine: sheep and plugin killed, sheep frozen, grown, detached";

/// The machine, and what it runs for us.
const NODE: &str = "node3";
const ROOT: &str = "root";
const LABEL: &str = "sheepdog.io/storage";
const ENCRYPTED: &str = "main-encrypted";
const SECRET: &str = "passphrase";
/// Everything is slow under emulation.
const PATIENCE: Duration = Duration::from_secs(600);
/// Longer than a request may take on a live connection before the kernel would do something about it: 30 s.
const AWAY: Duration = Duration::from_secs(50);
/// Plain text that is looked for on the devices.
const WORD: &str = "sheepdog-wrote-this-where-all-can-read-it";

pub fn run_scenario(lab: &Lab) -> Result<()> {
    // Emulated nodes are slow to say that they live.
    let patient = Plan { lease: Duration::from_secs(40), grace: Duration::from_secs(120), ..Plan::new(3) };
    let k = Kubernetes::start(lab, &Plan { csi: true, machine: true, ..patient })?;
    for node in &k.nodes {
        k.kubectl(&["label", "node", &node.name, &format!("{LABEL}=true")])?;
    }
    // What need not be there is elsewhere: its images are.
    k.kubectl(&["cordon", NODE])?;
    let s = Installed::install(lab, k, &json!({"nodeGroups": [{"nodeSelector": {LABEL: "true"}}]}))?;
    s.all_ready()?;
    s.k.kubectl(&["uncordon", NODE])?;
    s.k.apply(&[root_pod()])?;
    s.ready(ROOT)?;
    attached(lab, &s)?;
    grown(lab, &s)?;
    detached(lab, &s)?;
    encrypted(lab, &s)?;
    failures(lab, &s)?;
    s.delete(&[&format!("pod/{ROOT}")])?;
    s.no_volumes()?;
    s.finish(lab)
}

/// A pod that sees the machine as its administrator does.
fn root_pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": ROOT}, "spec": {
        "nodeSelector": {"kubernetes.io/hostname": NODE}, "terminationGracePeriodSeconds": 1,
        "hostPID": true, "hostNetwork": true,
        "containers": [{"name": "box", "image": BOX, "imagePullPolicy": "Never",
            "command": ["sh", "-ec", "sleep 1000000 & wait"], "securityContext": {"privileged": true}}]}})
}

/// A command of the machine's administrator.
fn root(s: &Installed, script: &str) -> Result<String> {
    s.sh(ROOT, &format!("nsenter -t 1 -m -- /bin/bash -ec '{script}'"))
}

/// Writes a number, again and again, and waits each time until it is on the volume.
const COUNT: &str = "setsid sh -c 'i=0; while i=$((i+1)); do echo $i >/data/n.new && sync /data/n.new && mv /data/n.new /data/n || echo $i >>/tmp/failed; done' >/dev/null 2>&1 </dev/null &";
const FIO: &str = "cd /tmp; setsid fio --directory=/data --ioengine=libaio --direct=1 --time_based=1 --runtime=3600 \
    --output-format=json --output=result.json --name=verify --rw=randwrite --bs=4k --iodepth=4 --size=32m --verify=crc32c \
    --verify_backlog=128 --verify_fatal=1 --verify_state_save=0 --rate_iops=50 >log 2>&1 </dev/null &";

fn count(s: &Installed) -> Result<u64> {
    Ok(s.sh("app", "cat /data/n")?.trim().parse()?)
}

/// It has counted on, and fio runs.
fn goes_on(s: &Installed) -> Result<()> {
    let from = until("the count can be read", PATIENCE, || count(s).map(Some))?;
    until(&format!("the pod writes on from {from}"), PATIENCE, || {
        ensure!(count(s)? > from + 5, "it is at {}; the kernel says: {}", count(s)?, trouble(s)?);
        s.sh("app", "pidof fio >/dev/null && ! test -e /tmp/failed")?;
        Ok(Some(()))
    })
}

/// What the machine's kernel logged of devices, without what is only waiting.
fn trouble(s: &Installed) -> Result<String> {
    root(
        s,
        "dmesg | grep -iE \"nbd|I/O error|EXT4-fs|dm-|blocked for more\" | grep -vE \"Possible stuck|mounted filesystem|re-mounted|unmounting|capacity change|reconnected socket|resized filesystem|resizing filesystem|device-mapper: (uevent|ioctl)|NBD_DISCONNECT|Receive control failed|shutting down sockets|Send disconnect|(Dead |Dis)conn|module|: p[0-9]\" || true",
    )
}

fn no_errors(s: &Installed) -> Result<()> {
    let said = trouble(s)?;
    ensure!(said.trim().is_empty(), "the machine's kernel says: {said}");
    Ok(())
}

/// The device of a pod's volume, and what the kernel says whose it is.
fn device(s: &Installed, pod: &str) -> Result<String> {
    let mounts = s.sh(pod, "grep \" /data \" /proc/mounts")?;
    Ok(mounts.split(' ').next().unwrap_or_default().to_owned())
}

fn attached(lab: &Lab, s: &Installed) -> Result<()> {
    let plugin = plugin(s)?;
    let log = s.k.kubectl(&["logs", "-n", NAMESPACE, &plugin, "-c", "csi"])?;
    ensure!(log.contains("volumes are attached through: nbd"), "preflight of {plugin} says: {log}");
    let start = Instant::now();
    s.k.apply(&[claim("data", &json!({})), pod("app", "data", Some(NODE))])?;
    s.ready("app")?;
    lab.measured("a claim and a pod with it on the machine, Ready after", seconds(start));
    s.fill("app", 32)?;
    let device = device(s, "app")?;
    let number = device.strip_prefix("/dev/").context("no device")?;
    ensure!(number.starts_with("nbd"), "the volume is mounted from {device}");
    let backend = root(s, &format!("cat /sys/block/{number}/backend"))?;
    let volume = s.k.get(&["pv"])?["items"][0]["spec"]["csi"]["volumeHandle"].clone();
    ensure!(
        volume.as_str().is_some_and(|v| backend.starts_with(&format!("{v}/"))),
        "{device} belongs to {backend}, the volume is {volume}"
    );
    no_errors(s)?;
    lab.proved(format!("ext4 on {device}, kernel NBD, which says that it is the claim's volume"));
    Ok(())
}

/// The node plugin's pod on the machine.
fn plugin(s: &Installed) -> Result<String> {
    component(s, "csi-node", NODE)
}

/// The pod of a part on a node.
fn component(s: &Installed, what: &str, node: &str) -> Result<String> {
    let label = format!("app.kubernetes.io/component={what}");
    let all = s.k.get(&["pods", "-n", NAMESPACE, "-l", &label])?;
    let pods = all["items"].as_array().into_iter().flatten();
    let found = pods.filter(|p| p["spec"]["nodeName"] == node).find_map(|p| p["metadata"]["name"].as_str());
    found.map(str::to_owned).with_context(|| format!("no pod of {what} on {node}"))
}

/// How often the containers of a part on the machine were started again.
fn restarts(s: &Installed, what: &str) -> Result<u64> {
    let name = component(s, what, NODE)?;
    let p = s.k.get(&["pod", "-n", NAMESPACE, &name])?;
    let all = p["status"]["containerStatuses"].as_array().into_iter().flatten();
    Ok(all.filter_map(|c| c["restartCount"].as_u64()).sum())
}

/// Processes of the machine die.
fn kill(s: &Installed, programs: &str) -> Result<()> {
    s.sh(ROOT, &format!("kill -9 $(pidof {programs})")).map(drop)
}

fn failures(lab: &Lab, s: &Installed) -> Result<()> {
    s.k.apply(&[claim("load", &json!({})), pod("app", "load", Some(NODE))])?;
    s.ready("app")?;
    s.fill("app", 32)?;
    s.sh("app", &format!("{FIO} {COUNT}"))?;
    until("the pod writes", PATIENCE, || {
        s.sh("app", "test -s /data/verify.0.0 && test -s /data/n").map(Some)
    })?;
    goes_on(s)?;

    let start = Instant::now();
    kill(s, "sheep")?;
    goes_on(s)?;
    lab.measured("the machine's sheep killed, the pod writes again after", seconds(start));
    no_errors(s)?;
    lab.proved("the sheep that serves the device died: I/O waited and went on");

    let before = restarts(s, "csi-node")?;
    let start = Instant::now();
    kill(s, "sheep sheepdog-csi")?;
    goes_on(s)?;
    lab.measured("sheep and plugin killed at once, the pod writes again after", seconds(start));
    ensure!(restarts(s, "csi-node")? > before, "the plugin was not started again");
    no_errors(s)?;
    lab.proved(
        "the sheep died while no plugin was there: the next one found the device and gave it a socket",
    );

    let node0 = &s.k.nodes[0];
    node0.space()?.run(Path::new("/bin/sh"), &["-c", "kill -9 $(pgrep -x sheep)"])?;
    goes_on(s)?;
    no_errors(s)?;
    lab.proved("a sheep with copies died: I/O went on");

    s.sh(ROOT, "kill -STOP $(pidof sheep)")?;
    phase(AWAY, || Ok(false))?;
    // The kubelet may have lost its patience with it.
    s.sh(ROOT, "kill -CONT $(pidof sheep) || true")?;
    goes_on(s)?;
    no_errors(s)?;
    ensure!(!root(s, "dmesg")?.contains("Connection timed out"), "the kernel ended a connection that lives");
    lab.proved(format!(
        "the sheep stood still for {} s: requests waited, the kernel left the connection alone",
        AWAY.as_secs()
    ));

    s.sh("app", "kill -INT $(pidof fio)")?;
    let result = until("fio ends", PATIENCE, || {
        s.sh("app", "! pidof fio >/dev/null")?;
        s.sh("app", "cat /tmp/result.json").map(Some)
    })?;
    let compared = verified(&result).with_context(|| s.sh("app", "cat /tmp/log").unwrap_or_default())?;
    s.same("app")?;
    lab.proved(format!("fio compared {compared} blocks, 0 errors"));
    s.delete(&["pod/app", "pvc/load"])?;
    nothing_left(s)?;
    no_errors(s)
}

fn replace_plugin(s: &Installed) -> Result<()> {
    let old = plugin(s)?;
    s.k.kubectl(&["delete", "pod", "-n", NAMESPACE, &old, "--timeout=170s"])?;
    s.all_ready()
}

/// The claim has so many MiB, as its pod sees them.
fn has_grown(s: &Installed, pod: &str, claim: &str, mib: u64) -> Result<()> {
    until("the file system has grown", PATIENCE, || {
        let space = s.sh(pod, "df -Pm /data | tail -1 | awk '{print $2}'")?;
        let status = s.k.get(&["pvc", claim])?["status"].clone();
        let events = s.k.kubectl(&["events", "--for", &format!("pvc/{claim}"), "--types=Warning"]);
        ensure!(
            space.trim().parse::<u64>()? >= mib,
            "{} MiB; {status}; {}",
            space.trim(),
            events.unwrap_or_default().trim()
        );
        Ok(Some(()))
    })
}

fn grown(lab: &Lab, s: &Installed) -> Result<()> {
    s.sh("app", COUNT)?;
    replace_plugin(s)?;
    goes_on_counting(s)?;
    let before = s.ready("app")?;
    s.k.apply(&[claim("data", &json!({"resources": {"requests": {"storage": "2Gi"}}}))])?;
    has_grown(s, "app", "data", 1900)?;
    ensure!(s.ready("app")?["metadata"]["uid"] == before["metadata"]["uid"], "it is another pod");
    s.same("app")?;
    goes_on_counting(s)?;
    no_errors(s)?;
    lab.proved("the plugin's pod replaced, then the claim grown in use: ext4 has the new size");
    Ok(())
}

fn goes_on_counting(s: &Installed) -> Result<()> {
    let from = until("the count can be read", PATIENCE, || count(s).map(Some))?;
    until(&format!("the pod counts on from {from}"), PATIENCE, || Ok((count(s)? > from + 5).then_some(())))
}

/// Nothing of a volume is left on the machine.
fn nothing_left(s: &Installed) -> Result<()> {
    until("no device is left", PATIENCE, || {
        let left = root(
            s,
            "for d in /sys/block/nbd*; do if [ $(cat $d/size) != 0 ] || [ -e $d/pid ] || [ -e $d/backend ]; then echo $d; fi; done; \
             ls /sys/block | grep ^dm- || true; grep -E \"/dev/(nbd|mapper)\" /proc/self/mountinfo || true; ls /var/lib/sheepdog-csi/volumes",
        )?;
        ensure!(left.trim().is_empty(), "left: {left}");
        Ok(Some(()))
    })
}

fn detached(lab: &Lab, s: &Installed) -> Result<()> {
    let old = plugin(s)?;
    s.k.kubectl(&["delete", "pod", "-n", NAMESPACE, &old, "--wait=false"])?;
    s.delete(&["pod/app"])?;
    nothing_left(s)?;
    no_errors(s)?;
    lab.proved("plugin and pod deleted together: detached, no device, mapping, mount or record is left");
    s.k.apply(&[pod("app", "data", Some(NODE))])?;
    s.ready("app")?;
    s.same("app")?;
    lab.proved("attached again: the same data");
    s.delete(&["pod/app"])?;
    s.k.apply(&[pod("app", "data", Some("node1"))])?;
    s.ready("app")?;
    s.same("app")?;
    lab.proved("attached on a node without kernel NBD: the same data");
    s.delete(&["pod/app", "pvc/data"])?;
    nothing_left(s)
}

fn secret(word: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": {"encryptionPassphrase": word}})
}

fn encrypted(lab: &Lab, s: &Installed) -> Result<()> {
    let mut parameters = json!({"encrypted": "true"});
    for step in ["node-stage", "node-expand"] {
        parameters[format!("csi.storage.k8s.io/{step}-secret-name")] = json!(SECRET);
        parameters[format!("csi.storage.k8s.io/{step}-secret-namespace")] = json!("default");
    }
    let small = |class: &str, size: &str| json!({"storageClassName": class, "resources": {"requests": {"storage": size}}});
    s.k.apply(&[
        secret("correct horse"),
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": ENCRYPTED},
               "provisioner": "csi.sheepdog.io", "allowVolumeExpansion": true, "parameters": parameters}),
        claim("closed", &small(ENCRYPTED, "256Mi")),
        claim("open", &small(CLUSTER, "256Mi")),
        pod("closed", "closed", Some(NODE)),
        pod("open", "open", Some(NODE)),
    ])?;
    let start = Instant::now();
    for name in ["closed", "open"] {
        s.ready(name)?;
        s.fill(name, 16)?;
        s.sh(name, &format!("for i in 1 2 3 4 5 6 7 8; do echo {WORD}; done >/data/word; sync -f /data"))?;
    }
    lab.measured("an encrypted and a plain volume made and written", seconds(start));
    let mapped = device(s, "closed")?;
    ensure!(mapped.starts_with("/dev/mapper/sheepdog-"), "the encrypted volume is mounted from {mapped}");
    let below = root(s, "ls /sys/block/dm-0/slaves; cat /sys/block/dm-0/dm/uuid")?;
    ensure!(below.contains("nbd") && below.contains("CRYPT-LUKS2"), "the mapping stands on {below}");
    let (plain, cipher) = (reads(s, "open")?, reads(s, "closed")?);
    ensure!(plain.contains(WORD), "the plain volume does not show what was written: nothing is compared");
    ensure!(!cipher.contains(WORD) && cipher.contains("LUKS"), "the cluster sees what the pod wrote");
    drop((plain, cipher));
    lab.proved(format!("{mapped} is dm-crypt on kernel NBD; what the pod wrote is in the plain volume, and not in the encrypted"));

    s.k.apply(&[claim("closed", &small(ENCRYPTED, "512Mi"))])?;
    has_grown(s, "closed", "closed", 440)?;
    s.same("closed")?;
    lab.proved("the encrypted volume grew in use");

    s.delete(&["pod/closed", "pod/open"])?;
    nothing_left(s)?;
    s.k.apply(&[secret("wrong horse"), pod("closed", "closed", Some(NODE))])?;
    until("the wrong passphrase is refused", PATIENCE, || {
        let events = s.k.kubectl(&["events", "--for", "pod/closed", "--types=Warning"])?;
        if s.ready_now("closed")? {
            bail!("the pod runs with a wrong passphrase");
        }
        ensure!(events.contains("passphrase in the secret does not open"), "{events}");
        ensure!(!events.contains("wrong horse"), "the passphrase is in an event");
        Ok(Some(()))
    })?;
    s.k.apply(&[secret("correct horse")])?;
    s.ready("closed")?;
    s.same("closed")?;
    lab.proved("a wrong passphrase is refused in words, the right one opens the volume: the same data");
    s.delete(&["pod/closed"])?;
    nothing_left(s)?;
    no_errors(s)?;
    s.delete(&["pvc/closed", "pvc/open"])
}

/// The volume of a claim as the cluster has it.
fn reads(s: &Installed, claim: &str) -> Result<String> {
    let volume = s.k.get(&["pvc", claim])?["spec"]["volumeName"].clone();
    let pv = s.k.get(&["pv", volume.as_str().context("volume")?])?;
    let id = pv["spec"]["csi"]["volumeHandle"].clone();
    let list = s.json(&["vdi", "list"])?;
    let rows = list.as_array().into_iter().flatten();
    let name = rows.filter(|v| v["uuid"] == id).find_map(|v| v["name"].as_str());
    let name = name.with_context(|| format!("no VDI {id} in {list}"))?;
    s.dog(&["vdi", "read", name])
}
