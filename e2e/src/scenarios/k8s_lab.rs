//! The Kubernetes that the other scenarios stand on: that it works, that its nodes can die, and that it leaves nothing behind.

use crate::harness::Lab;
use crate::harness::k8s::{BOX, Kubernetes, Plan, measured, seconds, sheepdog};
use crate::harness::wait::until;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

pub const ABOUT: &str =
    "Kubernetes itself: three nodes, pods, services, names, mounts, a dead node, a dead API server";

const NODES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(120);
/// Where the pods' privileged container mounts something for the node to see.
const SHARED: &str = "/var/lib/kubelet/plugins/e2e";

type Pod = (String, String, String);

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let whole = Instant::now();
    let plan = Plan { csi: !lab.quick, ..Plan::new(NODES) };
    let mut k = Kubernetes::start(lab, &plan)?;
    k.apply(&objects())?;
    let pods = measured(lab, "a pod of a DaemonSet Ready on every node", || k.pods("app=box", NODES))?;
    ensure!(
        (0..NODES).all(|i| pods.iter().any(|p| p.1 == format!("node{i}"))),
        "not one on each node: {pods:?}"
    );
    reach(lab, &k, &pods)?;
    names(lab, &k, &pods)?;
    mounts(lab, &k, &pods)?;
    if plan.csi {
        snapshot_controller(lab, &k)?;
        own_image(lab, &k)?;
    }
    helm(lab, &k)?;
    kubelet(lab, &mut k)?;
    api_server(lab, &mut k, &pods)?;
    node(lab, &mut k)?;
    cable(lab, &mut k)?;
    k.alive()?;
    measured(lab, "everything ended", || k.finish())?;
    lab.proved("no process, mount, network device, loop device or control group of the lab is left");
    lab.measured("in all", seconds(whole));
    Ok(())
}

fn objects() -> Vec<Value> {
    let script = "mkdir -p /www; echo $NODE >/www/index.html; echo up on $NODE; mount -t tmpfs e2e /shared; \
                  echo $NODE >/own/name; exec httpd -f -p 8080 -h /www";
    let labels = json!({"app": "box"});
    let container = json!({
        "name": "box", "image": BOX, "imagePullPolicy": "Never", "command": ["sh", "-ec", script],
        "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "securityContext": {"privileged": true},
        "readinessProbe": {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1},
        "volumeMounts": [
            {"name": "own", "mountPath": "/own"},
            {"name": "shared", "mountPath": "/shared", "mountPropagation": "Bidirectional"}],
    });
    let spec = json!({
        "terminationGracePeriodSeconds": 1, "containers": [container],
        "volumes": [
            {"name": "own", "hostPath": {"path": "/var/lib/sheepdog"}},
            {"name": "shared", "hostPath": {"path": SHARED, "type": "DirectoryOrCreate"}}],
    });
    let service = |name: &str, address: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec":
            {"selector": labels, "clusterIP": address, "ports": [{"port": 80, "targetPort": 8080}]}})
    };
    vec![
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "box"}, "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec}}}),
        service("box", Value::Null),
        service("boxes", json!("None")),
    ]
}

/// Run a command in a pod. Time is limited with `timeout`: wget of Debian's busybox crashes when it is given its own option for it.
fn exec(k: &Kubernetes, pod: &str, command: &[&str]) -> Result<String> {
    k.kubectl(&[&["exec", pod, "--"], command].concat())
}

fn reach(lab: &Lab, k: &Kubernetes, pods: &[Pod]) -> Result<()> {
    for (name, node, _) in pods {
        let log = k.kubectl(&["logs", name])?;
        ensure!(log.trim() == format!("up on {node}"), "logs of {name}: {log}");
        for (_, other, address) in pods {
            let said = exec(
                k,
                name,
                &["timeout", "10", "wget", "-q", "-O", "-", &format!("http://{address}:8080/")],
            )?;
            ensure!(said.trim() == other, "{name} got {said} from {other}");
        }
    }
    lab.proved("kubectl exec and logs on every node; every pod reaches every pod");
    Ok(())
}

fn names(lab: &Lab, k: &Kubernetes, pods: &[Pod]) -> Result<()> {
    let (name, ..) = &pods[0];
    let found = until("the headless service's names", PATIENCE, || {
        let said = exec(k, name, &["nslookup", "boxes.default.svc.cluster.local"])?;
        Ok(pods.iter().all(|p| said.contains(&p.2)).then_some(said))
    })?;
    ensure!(found.contains("10.123.0.1"), "another name server: {found}");
    let said = until("the service answers", PATIENCE, || {
        exec(k, name, &["timeout", "5", "wget", "-q", "-O", "-", "http://box/"]).map(Some)
    })?;
    ensure!(pods.iter().any(|p| p.1 == said.trim()), "the service said {said}");
    let token = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    let script = format!("test -s {token} && nc -w 5 kubernetes.default 443 </dev/null");
    exec(k, name, &["sh", "-c", &script]).context("the API server's service")?;
    lab.proved(
        "a service by its address and name, a headless service's pods, the API server from within a pod",
    );
    Ok(())
}

fn mounts(lab: &Lab, k: &Kubernetes, pods: &[Pod]) -> Result<()> {
    for node in &k.nodes {
        let file = lab.dir.join(&node.name).join("var/lib/sheepdog/name");
        let said = std::fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        ensure!(said.trim() == node.name, "{} has the directory of {said}", node.name);
        node.space()?
            .run(Path::new("/bin/sh"), &["-c", &format!("mountpoint -q {SHARED}")])
            .with_context(|| format!("{} does not see what a pod mounted", node.name))?;
    }
    let (name, ..) = &pods[0];
    let sum = exec(
        k,
        name,
        &[
            "sh",
            "-ec",
            "fio --name=w --filename=/own/fio --size=4M --rw=write --verify=crc32c --output-format=terse >/dev/null; sha256sum /own/fio",
        ],
    )?;
    ensure!(sum.split_whitespace().next().is_some_and(|s| s.len() == 64), "sha256sum said {sum}");
    lab.proved(
        "host directories are each node's own; a mount made in a pod reaches its node; fio runs in a pod",
    );
    Ok(())
}

/// A program of upstream that is an ordinary client of the API server, from its image.
fn snapshot_controller(lab: &Lab, k: &Kubernetes) -> Result<()> {
    let image = measured(lab, "upstream's snapshot controller Ready", || sheepdog::snapshot_controller(k))?;
    lab.proved(format!("{image} reaches the API server in its usual way"));
    Ok(())
}

/// The image of sheep and dog, made of the programs beside the runner.
fn own_image(lab: &Lab, k: &Kubernetes) -> Result<()> {
    let image = format!("sheepdog/sheep:{}", env!("CARGO_PKG_VERSION"));
    k.apply(&[json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "sheep"}, "spec": {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [
            {"name": "sheep", "image": image, "imagePullPolicy": "Never", "args": ["--version"]},
            {"name": "dog", "image": image, "imagePullPolicy": "Never", "command": ["dog", "--version"]}]}})])?;
    until("sheep and dog tell their version", PATIENCE, || {
        let pod = k.get(&["pod", "sheep"])?;
        ensure!(pod["status"]["phase"] == "Succeeded", "{}", pod["status"]);
        Ok(Some(()))
    })?;
    for name in ["sheep", "dog"] {
        let said = k.kubectl(&["logs", "sheep", "-c", name])?;
        ensure!(said.contains(env!("CARGO_PKG_VERSION")), "{name} said {said}");
    }
    lab.proved(format!("{image} made here runs: sheep and dog in it"));
    Ok(())
}

fn helm(lab: &Lab, k: &Kubernetes) -> Result<()> {
    let chart = lab.dir.join("chart");
    std::fs::create_dir_all(chart.join("templates"))?;
    std::fs::write(chart.join("Chart.yaml"), "apiVersion: v2\nname: e2e\nversion: 1.0.0\n")?;
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}\ndata:\n  word: {{ .Values.word }}\n";
    std::fs::write(chart.join("templates/map.yaml"), map)?;
    let path = chart.to_str().context("path")?;
    k.control.client("helm", &["install", "said", path, "--set", "word=hello", "--wait"])?;
    let map = k.get(&["configmap", "said"])?;
    ensure!(map["data"]["word"] == "hello", "{map}");
    k.control.client("helm", &["uninstall", "said", "--wait"])?;
    ensure!(k.get(&["configmap", "said"]).is_err(), "helm uninstall left its object");
    lab.proved("helm installs and uninstalls a chart");
    Ok(())
}

fn kubelet(lab: &Lab, k: &mut Kubernetes) -> Result<()> {
    let before = k.pods("app=box", NODES)?;
    k.nodes[1].kill_kubelet()?;
    let start = Instant::now();
    k.node_becomes(1, false)?;
    lab.measured("kubelet killed, its node NotReady", seconds(start));
    let (_, _, address) = before.iter().find(|p| p.1 == "node1").context("no pod on node1")?;
    fetch(k, address).context("a pod without its kubelet")?;
    k.nodes[1].start_kubelet()?;
    let start = Instant::now();
    k.node_becomes(1, true)?;
    lab.measured("kubelet started again, its node Ready", seconds(start));
    let after = k.pods("app=box", NODES)?;
    ensure!(before == after, "the pods are others: {before:?}, {after:?}");
    lab.proved("a kubelet's death and return leave its pods alone");
    Ok(())
}

/// From node0 itself, not from a pod.
fn fetch(k: &Kubernetes, address: &str) -> Result<String> {
    let get = format!("exec 3<>/dev/tcp/{address}/8080; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3");
    k.nodes[0].space()?.run(Path::new("/usr/bin/timeout"), &["10", "bash", "-c", &get])
}

fn api_server(lab: &Lab, k: &mut Kubernetes, pods: &[Pod]) -> Result<()> {
    k.control.kill_api()?;
    for (_, node, address) in pods {
        let said = fetch(k, address)?;
        ensure!(said.contains(node.as_str()), "{node} said {said}");
    }
    k.control.start_api()?;
    measured(lab, "API server started again, ready", || k.control.ready())?;
    for i in 0..NODES {
        k.node_becomes(i, true)?;
    }
    lab.proved("pods go on while the API server is away");
    Ok(())
}

fn node(lab: &Lab, k: &mut Kubernetes) -> Result<()> {
    measured(lab, "power of node2 cut, everything on it dead", || k.nodes[2].cut_power())?;
    let start = Instant::now();
    k.node_becomes(2, false)?;
    lab.measured("the node without power NotReady", seconds(start));
    let others = k.pods("app=box", NODES - 1)?;
    ensure!(others.iter().all(|p| p.1 != "node2"), "a pod on the dead node is Ready: {others:?}");
    let start = Instant::now();
    k.power_on(2)?;
    k.pods("app=box", NODES)?;
    lab.measured("power back, its pod Ready again", seconds(start));
    lab.proved("a node dies at once with all its containers and comes back with its disk");
    Ok(())
}

fn cable(lab: &Lab, k: &mut Kubernetes) -> Result<()> {
    k.nodes[1].cable(&k.control, false)?;
    let start = Instant::now();
    k.node_becomes(1, false)?;
    lab.measured("cable of node1 pulled, NotReady", seconds(start));
    k.nodes[1].cable(&k.control, true)?;
    let start = Instant::now();
    k.node_becomes(1, true)?;
    lab.measured("cable back, Ready", seconds(start));
    k.pods("app=box", NODES)?;
    lab.proved("a node without its network is NotReady, and whole again with it");
    Ok(())
}
