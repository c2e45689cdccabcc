//! `kubectl sheepdog` on a real cluster, found by kubectl itself: what blocks claims and pods, the cluster on one screen, dog, a support bundle, and somebody who may read
//! little.

mod terminal;

use crate::harness::Lab;
use crate::harness::k8s::seconds;
use crate::harness::k8s::sheepdog::{CLUSTER, Installed, NAMESPACE, claim, pod};
use crate::harness::proc::run;
use crate::harness::wait::until;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

pub const ABOUT: &str = "kubectl sheepdog: why, status, dog, bundle";

const PATIENCE: Duration = Duration::from_secs(240);
/// The DaemonSet of the CSI driver, and a label that it is made to want.
const NODE_SET: &str = "ds/sheepdog-csi-node";
const LABEL: &str = "sheepdog.test/volumes";

/// How it ended and what it said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

struct Plugin<'a> {
    lab: &'a Lab,
    s: &'a Installed,
}

const PLUGIN: &str = "exec kubectl sheepdog \"$@\"";

impl Plugin<'_> {
    /// `kubectl sheepdog ARGS`.
    fn run(&self, args: &[&str]) -> Result<Said> {
        self.shell(PLUGIN, args)
    }

    fn shell(&self, script: &str, args: &[&str]) -> Result<Said> {
        let out = self.s.k.control.shell(&self.lab.bin, script, args)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = out.status.code().context("ended by a signal")?;
        Ok(Said { code, out: text(&out.stdout), err: text(&out.stderr) })
    }

    /// It must end so, and say all of this.
    fn says(&self, args: &[&str], code: i32, words: &[&str]) -> Result<String> {
        let said = self.run(args)?;
        let lacks = words.iter().find(|w| !said.out.contains(**w));
        if said.code != code || lacks.is_some() {
            bail!("{}: exit code {}, lacks {lacks:?}: {}{}", args.join(" "), said.code, said.out, said.err);
        }
        Ok(said.out)
    }

    /// Do what was advised.
    fn follow(&self, command: &str) -> Result<()> {
        let said = self.shell(command, &[])?;
        ensure!(said.code == 0, "{command}: {}{}", said.out, said.err);
        Ok(())
    }

    /// The cause's name, as programs get it.
    fn code(&self, target: &str) -> Result<String> {
        let said = self.run(&["why", target, "-o", "json"])?;
        let verdict: Value = serde_json::from_str(&said.out)?;
        Ok(verdict["cause"]["code"].as_str().unwrap_or_default().to_owned())
    }

    /// The same, soon.
    fn comes_to_say(&self, args: &[&str], code: i32, words: &[&str]) -> Result<String> {
        until(&format!("kubectl sheepdog {}", args.join(" ")), PATIENCE, || {
            self.says(args, code, words).map(Some)
        })
    }
}

pub fn run_scenario(lab: &Lab) -> Result<()> {
    ensure!(
        lab.bin.join("kubectl-sheepdog").exists(),
        "no kubectl-sheepdog in {}: run `cargo xtask e2e`, which builds it",
        lab.bin.display()
    );
    let s = Installed::start(lab)?;
    s.all_ready()?;
    let p = Plugin { lab, s: &s };
    claims(&p)?;
    elsewhere(&p)?;
    not_registered(&p)?;
    controller(&p)?;
    foreign(&p)?;
    snapshot(&p)?;
    growing(&p)?;
    status(&p)?;
    dog(&p)?;
    terminal::run(&p)?;
    bundle(&p)?;
    little(&p)?;
    held(&p)?;
    s.delete(&["pod/third", "pod/foreign"])?;
    s.delete(&["pvc/third", "pvc/wrong", "pvc/late", "pvc/foreign", "pvc/growing"])?;
    s.no_volumes()?;
    s.finish(lab)
}

/// Nothing there, a wrong class, a claim and a pod that are well.
fn claims(p: &Plugin<'_>) -> Result<()> {
    let none = p.run(&["why", "pvc/none"])?;
    ensure!(none.code == 2 && none.err.contains("no PersistentVolumeClaim none"), "{}{}", none.out, none.err);
    p.s.k.apply(&[claim("wrong", &json!({"storageClassName": "fast"}))])?;
    let said = p.says(
        &["why", "pvc/wrong"],
        1,
        &["StorageClass fast, which does not exist", &format!("Classes of Sheepdog: {CLUSTER}")],
    )?;
    print!("{said}");
    p.lab.proved("a claim whose class does not exist: why says so, and which classes there are");
    p.s.k.apply(&[claim("data", &json!({})), pod("first", "data", Some("node0"))])?;
    p.s.ready("first")?;
    let start = Instant::now();
    p.says(&["why", "pod/first"], 0, &["Nothing blocks pod/first", "pod/first is Ready on node0"])?;
    p.lab.measured("why of a pod that is well took", seconds(start));
    p.says(&["why", "pvc/data"], 0, &["Nothing blocks pvc/data"])?;
    let machine: Value = serde_json::from_str(&p.says(&["why", "pod/first", "-o", "json"], 0, &[])?)?;
    ensure!(machine["cause"].is_null() && machine["about"] == "pod/first", "{machine}");
    p.lab.proved("a pod and a claim that are well: nothing blocks them, exit code 0");
    Ok(())
}

/// A second pod wants on another node what only one node may have; doing what is advised helps.
fn elsewhere(p: &Plugin<'_>) -> Result<()> {
    p.s.k.apply(&[pod("second", "data", Some("node1"))])?;
    let advice = "kubectl delete pod -n default first";
    let said = p.comes_to_say(
        &["why", "pod/second"],
        1,
        &["attached to node node0, where pod/first uses it", "wanted on node node1", advice],
    )?;
    print!("{said}");
    p.says(&["why", "pvc/data"], 1, &["pod/first uses it"])?;
    p.follow(advice)?;
    p.s.ready("second")?;
    p.says(&["why", "pod/second"], 0, &["Nothing blocks pod/second"])?;
    p.lab.proved(
        "a volume that another node has: why names the node and the pod; the command it advises helps",
    );
    Ok(())
}

/// The CSI driver is kept off a node.
fn not_registered(p: &Plugin<'_>) -> Result<()> {
    let k = &p.s.k;
    k.kubectl(&["label", "node", "node0", "node1", &format!("{LABEL}=yes")])?;
    let patch =
        |value: Value| json!({"spec": {"template": {"spec": {"nodeSelector": {LABEL: value}}}}}).to_string();
    k.kubectl(&["patch", "-n", NAMESPACE, NODE_SET, "-p", &patch(json!("yes"))])?;
    until("node2's kubelet has forgotten the driver", PATIENCE, || {
        let csi = k.get(&["csinode", "node2"])?;
        ensure!(!csi["spec"].to_string().contains("csi.sheepdog.io"), "{}", csi["spec"]);
        Ok(Some(()))
    })?;
    k.apply(&[claim("third", &json!({})), pod("third", "third", Some("node2"))])?;
    let said = p.comes_to_say(
        &["why", "pod/third"],
        1,
        &[
            "csi.sheepdog.io is not registered on node node2",
            &format!("label {LABEL}=yes"),
            "daemonset/sheepdog-csi-node",
        ],
    )?;
    print!("{said}");
    k.kubectl(&["patch", "-n", NAMESPACE, NODE_SET, "-p", &patch(Value::Null)])?;
    p.s.ready("third")?;
    p.says(&["why", "pod/third"], 0, &["Nothing blocks pod/third"])?;
    p.lab.proved("a node without the CSI driver: why says that, and which label keeps it away");
    p.s.all_ready()
}

/// Nobody makes volumes.
fn controller(p: &Plugin<'_>) -> Result<()> {
    p.s.k.kubectl(&["scale", "-n", NAMESPACE, "deployment/sheepdog-csi-controller", "--replicas=0"])?;
    p.s.k.apply(&[claim("late", &json!({}))])?;
    let advice = format!("kubectl scale -n {NAMESPACE} deployment/sheepdog-csi-controller --replicas=2");
    p.comes_to_say(&["why", "pvc/late"], 1, &["no CSI controller runs", "is scaled to 0", &advice])?;
    ensure!(p.code("pvc/late")? == "NoCsiController", "another code");
    p.follow(&advice)?;
    p.comes_to_say(&["why", "pvc/late"], 0, &["Nothing blocks pvc/late", "no pod uses pvc/late"])?;
    p.lab.proved("no CSI controller: why says so; the command it advises helps");
    Ok(())
}

/// A volume on which somebody has put something else.
fn foreign(p: &Plugin<'_>) -> Result<()> {
    p.s.k.apply(&[claim("foreign", &json!({}))])?;
    let volume = until("the claim is bound", PATIENCE, || {
        let name = p.s.k.get(&["pvc", "foreign"])?["spec"]["volumeName"].as_str().map(str::to_owned);
        Ok(name)
    })?;
    p.follow(&format!("head -c 1000000 /dev/urandom | kubectl sheepdog dog vdi write {volume}"))?;
    p.s.k.apply(&[pod("foreign", "foreign", None)])?;
    let said =
        p.comes_to_say(&["why", "pod/foreign"], 1, &["holds something else", "never formatted over"])?;
    print!("{said}");
    ensure!(p.code("pod/foreign")? == "ForeignData", "another code");
    p.lab.proved("a volume with foreign data: why says what the driver said");
    Ok(())
}

/// There is no snapshot controller yet, then there is.
fn snapshot(p: &Plugin<'_>) -> Result<()> {
    p.s.k.apply(&[json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": "s"},
        "spec": {"volumeSnapshotClassName": CLUSTER, "source": {"persistentVolumeClaimName": "data"}}})])?;
    p.says(&["why", "volumesnapshot/s"], 1, &["the snapshot controller does not run"])?;
    p.s.snapshot_controller()?;
    p.comes_to_say(&["why", "volumesnapshot/s"], 0, &["Nothing blocks volumesnapshot/s", "is ready to use"])?;
    p.s.delete(&["volumesnapshot/s"])?;
    p.lab.proved("a snapshot that nobody takes: why says who is missing");
    Ok(())
}

/// Grown in Sheepdog, and nobody mounts it.
fn growing(p: &Plugin<'_>) -> Result<()> {
    p.s.k.apply(&[claim("growing", &json!({}))])?;
    p.comes_to_say(&["why", "pvc/growing"], 0, &["Nothing blocks pvc/growing"])?;
    p.s.k.apply(&[claim("growing", &json!({"resources": {"requests": {"storage": "2Gi"}}}))])?;
    p.comes_to_say(&["why", "pvc/growing"], 1, &["grows from 1Gi to 2Gi", "when a pod uses it next"])?;
    p.lab.proved("a claim that has grown and waits for a pod: why says that nothing is wrong");
    Ok(())
}

/// A claim that is deleted in use.
fn held(p: &Plugin<'_>) -> Result<()> {
    p.s.k.kubectl(&["delete", "pvc", "data", "--wait=false"])?;
    let advice = "kubectl delete pod -n default second";
    p.says(&["why", "pvc/data"], 1, &["stays for as long as a pod uses it: second", advice])?;
    p.says(&["status"], 0, &["default/data", "is being deleted"])?;
    p.follow(advice)?;
    until("the claim is gone", PATIENCE, || {
        let said = p.run(&["why", "pvc/data"])?;
        Ok((said.code == 2 && said.err.contains("no PersistentVolumeClaim data")).then_some(()))
    })?;
    p.lab.proved("a claim deleted in use: why names the pod that holds it; the command it advises helps");
    Ok(())
}

fn status(p: &Plugin<'_>) -> Result<()> {
    let text = until("all three sheep are well", PATIENCE, || {
        p.says(&["status"], 0, &["Sheep:     3/3", "Available", "node0", "node1", "node2", "csi-controller"])
            .map(Some)
    })?;
    print!("{text}");
    let json = p.says(&["status", "-n", NAMESPACE, CLUSTER, "-o", "json"], 0, &[])?;
    let report: Value = serde_json::from_str(&json)?;
    let ready = report[0]["nodes"].as_array().into_iter().flatten().filter(|n| n["ready"] == true).count();
    ensure!(report[0]["sheep"] == "3/3" && ready == 3, "{report}");
    let nobody = p.run(&["status", "nobody"])?;
    ensure!(nobody.code == 2 && nobody.err.contains(&format!("{NAMESPACE}/{CLUSTER}")), "{}", nobody.err);
    p.lab.proved("status: three of three sheep on three nodes, also as JSON");
    Ok(())
}

/// Output, input and exit codes of dog.
fn dog(p: &Plugin<'_>) -> Result<()> {
    let volume = p.s.k.get(&["pvc", "data"])?["spec"]["volumeName"].as_str().unwrap_or_default().to_owned();
    p.says(&["dog", "vdi", "list"], 0, &[&volume])?;
    let missing = p.run(&["dog", "vdi", "list", "nothing"])?;
    ensure!(missing.code == 5 && missing.err.contains("nothing"), "{}: {}", missing.code, missing.err);
    let usage = p.run(&["dog", "vdi", "nonsense"])?;
    ensure!(usage.code == 64, "{}: {}", usage.code, usage.err);
    p.says(&["dog", "-n", NAMESPACE, "--cluster", CLUSTER, "vdi", "create", "scratch", "64M"], 0, &[])?;
    let through = "head -c 20000000 /dev/urandom >$1; kubectl sheepdog dog vdi write scratch <$1 && kubectl sheepdog dog vdi read scratch 0 20000000 | cmp - $1";
    let file = p.lab.dir.join("noise");
    let file = file.to_str().context("path")?;
    let start = Instant::now();
    let said = p.shell(through, &[file])?;
    ensure!(said.code == 0, "{}{}", said.out, said.err);
    p.lab.measured("20 MB through kubectl sheepdog dog, there and back", seconds(start));
    p.says(&["dog", "vdi", "delete", "scratch", "-y"], 0, &[])?;
    p.lab.proved("dog: output, 20 MB of input and output, exit codes 0, 5 and 64 come through");
    Ok(())
}

fn bundle(p: &Plugin<'_>) -> Result<()> {
    let dir = p.lab.dir.join("bundle");
    std::fs::create_dir_all(&dir)?;
    let file = dir.join("b.tar.gz");
    let file = file.to_str().context("path")?;
    let start = Instant::now();
    p.says(&["bundle", "-o", file], 0, &[file])?;
    p.lab.measured("a bundle took", seconds(start));
    p.lab.measured("it has, bytes", std::fs::metadata(file)?.len());
    let again = p.run(&["bundle", "-o", file])?;
    ensure!(again.code == 2 && again.err.contains("exists"), "it is written over: {}", again.err);
    run("tar", &["-xzf", file, "-C", dir.to_str().context("path")?])?;
    let top = dir.join("sheepdog-bundle");
    let readme = std::fs::read_to_string(top.join("README.txt"))?;
    for wanted in [
        "sheepdogclusters.json",
        "pods.json",
        "nodes.json",
        "csinodes.json",
        "storageclasses.json",
        "volumeattachments.json",
        "persistentvolumes.json",
        "persistentvolumeclaims.json",
        "events-of-claims.json",
        "status.json",
        "sheepdog/vdis.json",
        "sheepdog/daemonsets.json",
        "sheepdog/deployments.json",
        "sheepdog/events.json",
        "sheepdog/dog-main/cluster-info.json",
        "sheepdog/dog-main/vdis.json",
    ] {
        let text =
            std::fs::read_to_string(top.join(wanted)).with_context(|| format!("{wanted}; {readme}"))?;
        serde_json::from_str::<Value>(&text).with_context(|| wanted.to_owned())?;
    }
    let logs = files(&top.join("logs"))?;
    for container in ["sheep.log", "csi.log", "operator.log", "provisioner.log"] {
        let has =
            logs.iter().any(|f| f.ends_with(container) && std::fs::metadata(f).is_ok_and(|m| m.len() > 0));
        ensure!(has, "no {container} among {}; {readme}", logs.join(", "));
    }
    no_secret(p, &top)?;
    p.lab.proved("a bundle has objects, logs and dog's answers, and nothing of the cluster's secret");
    Ok(())
}

/// Neither as Kubernetes keeps it nor as sheep read it.
fn no_secret(p: &Plugin<'_>, top: &Path) -> Result<()> {
    let secret = p.s.k.get(&["-n", NAMESPACE, "secret", &format!("{CLUSTER}-secret")])?;
    let kept = secret["data"]["secret"].as_str().context("the secret has no key")?.to_owned();
    let template = "{{.data.secret | base64decode}}";
    let secret = format!("{CLUSTER}-secret");
    let plain = p.s.k.kubectl(&[
        "get",
        "-n",
        NAMESPACE,
        "secret",
        &secret,
        "-o",
        &format!("go-template={template}"),
    ])?;
    let long = plain
        .split_whitespace()
        .chain(kept.as_bytes().chunks(64).filter_map(|c| std::str::from_utf8(c).ok()));
    let words: Vec<&str> = long.filter(|w| w.len() >= 24).collect();
    ensure!(words.len() > 1, "the secret is too short to look for");
    for file in files(top)? {
        let text = String::from_utf8_lossy(&std::fs::read(&file)?).into_owned();
        if let Some(word) = words.iter().find(|w| text.contains(**w)) {
            bail!("{file} has {} characters of the secret", word.len());
        }
    }
    Ok(())
}

fn files(dir: &Path) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(files(&path)?);
        } else {
            all.push(path.display().to_string());
        }
    }
    Ok(all)
}

/// Somebody who may read claims and pods of one namespace, and nothing else.
fn little(p: &Plugin<'_>) -> Result<()> {
    let k = &p.s.k;
    let rules = json!([{"apiGroups": [""], "resources": ["pods", "persistentvolumeclaims"], "verbs": ["get", "list"]}]);
    k.apply(&[
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "viewer", "namespace": "default"}}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "viewer", "namespace": "default"}, "rules": rules}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "viewer", "namespace": "default"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "viewer"},
            "subjects": [{"kind": "ServiceAccount", "name": "viewer", "namespace": "default"}]}),
    ])?;
    let token = k.kubectl(&["create", "token", "viewer"])?;
    let mut config: Value =
        serde_json::from_str(&k.kubectl(&["config", "view", "--raw", "--flatten", "-o", "json"])?)?;
    config["users"][0]["user"] = json!({"token": token.trim()});
    let file = p.lab.dir.join("viewer.kubeconfig");
    std::fs::write(&file, config.to_string())?;
    let file = file.to_str().context("path")?;
    let said = p.says(
        &["why", "pod/second", "--kubeconfig", file],
        2,
        &["not everything could be read", "nodes: no permission", "pod/second is Ready"],
    )?;
    print!("{said}");
    let status = p.run(&["status", "--kubeconfig", file])?;
    ensure!(status.code == 2 && status.err.contains("no permission"), "{}", status.err);
    p.lab.proved("who may read little is told what could not be read, exit code 2");
    Ok(())
}
