//! Sheepdog on the lab's Kubernetes, as its users have it: the chart, a `SheepdogCluster`, claims and pods.

use super::{BOX, Kubernetes, Plan, is_ready, measured, seconds, why};
use crate::harness::Lab;
use crate::harness::wait::until;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where it is installed, and the name of the release.
pub const NAMESPACE: &str = "sheepdog";
/// Name of the cluster and of its classes.
pub const CLUSTER: &str = "main";
/// A busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(300);

/// The chart of this tree.
pub fn chart() -> Result<String> {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/sheepdog").canonicalize()?;
    Ok(path.to_str().context("path")?.to_owned())
}

/// Values that the lab needs: of two sidecars it has programs of its own, and backup programs are served.
fn values() -> Vec<String> {
    [("registrar", "csi-node-driver-registrar"), ("livenessProbe", "livenessprobe")]
        .iter()
        .flat_map(|(key, image)| {
            [("registry", "sheepdog.test"), ("repository", image), ("tag", "1")]
                .map(|(what, value)| format!("--set-string=csi.sidecars.{key}.image.{what}={value}"))
        })
        .chain(["--set=csi.sidecars.snapshotMetadata.enabled=true".to_owned()])
        .collect()
}

/// An object with these fields instead of its own of the same names.
pub fn with(mut object: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    object
}

/// The object, with all nodes in one group and more in its spec.
pub fn cluster(more: &Value) -> Value {
    let spec = with(json!({"nodeGroups": [{}]}), more);
    json!({"apiVersion": "sheepdog.io/v1alpha1", "kind": "SheepdogCluster",
           "metadata": {"name": CLUSTER, "namespace": NAMESPACE}, "spec": spec})
}

/// A claim of the cluster's class.
pub fn claim(name: &str, more: &Value) -> Value {
    let spec = json!({"storageClassName": CLUSTER, "accessModes": ["ReadWriteOnce"],
                      "resources": {"requests": {"storage": "1Gi"}}});
    let spec = with(spec, more);
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec})
}

/// A pod that does nothing by itself, with a claim at `/data`, on a node or where the scheduler likes.
pub fn pod(name: &str, claim: &str, node: Option<&str>) -> Value {
    let mut spec = pod_spec(claim);
    if let Some(node) = node {
        spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec})
}

/// The same as a Deployment of one, which Kubernetes starts again elsewhere.
pub fn deployment(name: &str, claim: &str) -> Value {
    let labels = json!({"app": name});
    let mut spec = pod_spec(claim);
    // As short as for a user who wants his pod back soon; Kubernetes' own default is 300 s.
    let gone = |key: &str| json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
    spec["tolerations"] = json!([gone("not-ready"), gone("unreachable")]);
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": 1, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": spec}}})
}

fn pod_spec(claim: &str) -> Value {
    // The shell is the first process: it takes in what ends.
    json!({"terminationGracePeriodSeconds": 1,
        "containers": [{"name": "box", "image": BOX, "imagePullPolicy": "Never",
            "command": ["sh", "-ec", "sleep 1000000 & wait"],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]})
}

/// Kubernetes with Sheepdog on it.
#[derive(Debug)]
pub struct Installed {
    /// The nodes and the control plane.
    pub k: Kubernetes,
    /// When `helm install` began.
    pub start: Instant,
}

impl Installed {
    /// Three nodes, the chart, a cluster of three sheep that is Available.
    pub fn start(lab: &Lab) -> Result<Self> {
        let k = Kubernetes::start(lab, &Plan { csi: true, ..Plan::new(3) })?;
        Self::install(lab, k, &json!({}))
    }

    /// Chart and cluster on a Kubernetes that is there.
    pub fn install(lab: &Lab, k: Kubernetes, spec: &Value) -> Result<Self> {
        let me = Self::chart(lab, k)?;
        me.k.apply(&[cluster(spec)])?;
        me.available()?;
        lab.measured("from helm install to a cluster that is Available", seconds(me.start));
        Ok(me)
    }

    /// The chart alone.
    pub fn chart(lab: &Lab, k: Kubernetes) -> Result<Self> {
        let start = Instant::now();
        let (chart, values) = (chart()?, values());
        let mut args =
            vec!["install", NAMESPACE, chart.as_str(), "--namespace", NAMESPACE, "--create-namespace"];
        args.extend(values.iter().map(String::as_str));
        measured(lab, "helm install", || k.control.client("helm", &args))?;
        Ok(Self { k, start })
    }

    /// End the release, and wait until its pods are gone.
    pub fn uninstall(&self) -> Result<()> {
        self.k.control.client("helm", &["uninstall", NAMESPACE, "--namespace", NAMESPACE, "--wait"])?;
        until("the pods are gone", PATIENCE, || {
            let pods = self.k.get(&["-n", NAMESPACE, "pods"])?;
            Ok(pods["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
        })
    }

    /// Wait for something of the cluster's object while the operators are killed so often, with such a pause between; says how often they were.
    pub fn until_though_killed(
        &self,
        what: &str,
        pause: Duration,
        most: u32,
        is: impl Fn(&Value) -> bool,
    ) -> Result<u32> {
        let (mut killed, mut last) = (0, Instant::now());
        until(what, PATIENCE, || {
            if last.elapsed() > pause && killed < most {
                self.kill_operators()?;
                (killed, last) = (killed + 1, Instant::now());
            }
            let c = self.cluster()?;
            ensure!(is(&c), "{}", c["status"]["conditions"]);
            Ok(Some(()))
        })?;
        Ok(killed)
    }

    /// All operators die at once.
    fn kill_operators(&self) -> Result<()> {
        let label = "app.kubernetes.io/component=operator";
        let args =
            ["delete", "pods", "-n", NAMESPACE, "-l", label, "--grace-period=0", "--force", "--wait=false"];
        self.k.kubectl(&args).map(drop)
    }

    /// So many of the driver's controllers; none is there for a moment with 0.
    pub fn scale_csi_controller(&self, replicas: u32) -> Result<()> {
        let (name, replicas) = ("deployment/sheepdog-csi-controller", format!("--replicas={replicas}"));
        self.k.kubectl(&["scale", "-n", NAMESPACE, name, &replicas])?;
        let label = "app.kubernetes.io/component=csi-controller";
        until("the controllers are as many as they should be", PATIENCE, || {
            let pods = self.k.get(&["-n", NAMESPACE, "pods", "-l", label])?;
            let now = pods["items"].as_array().map_or(0, Vec::len);
            Ok((format!("--replicas={now}") == replicas).then_some(()))
        })
    }

    /// Wait until the conditions of the cluster's object say so.
    pub fn says(&self, text: &str) -> Result<()> {
        until(&format!("the SheepdogCluster says: {text}"), PATIENCE, || {
            let conditions = self.cluster()?["status"]["conditions"].to_string();
            ensure!(conditions.contains(text), "{conditions}");
            Ok(Some(()))
        })
    }

    /// The same chart and values once more.
    pub fn upgrade(&self) -> Result<()> {
        let (chart, values) = (chart()?, values());
        let mut args = vec!["upgrade", NAMESPACE, chart.as_str(), "--namespace", NAMESPACE];
        args.extend(values.iter().map(String::as_str));
        self.k.control.client("helm", &args).map(drop)
    }

    /// Wait until the cluster is Available.
    pub fn available(&self) -> Result<()> {
        until("the SheepdogCluster is Available", PATIENCE, || {
            let c = self.cluster()?;
            ensure!(condition(&c, "Available") == "True", "{}", c["status"]["conditions"]);
            Ok(Some(()))
        })
    }

    /// Wait until every container of the release runs and is ready.
    pub fn all_ready(&self) -> Result<()> {
        until("all pods of the release are Ready", PATIENCE, || {
            let list = self.k.get(&["-n", NAMESPACE, "pods"])?;
            let pods = list["items"].as_array().cloned().unwrap_or_default();
            ensure!(!pods.is_empty() && pods.iter().all(is_ready), "{}", why(&pods));
            Ok(Some(()))
        })
    }

    /// The object as it is now.
    pub fn cluster(&self) -> Result<Value> {
        self.k.get(&["-n", NAMESPACE, "sheepdogcluster", CLUSTER])
    }

    /// `dog` as people run it here.
    pub fn dog(&self, args: &[&str]) -> Result<String> {
        let set = format!("ds/{CLUSTER}-sheep");
        self.k.kubectl(&[&["exec", "-n", NAMESPACE, &set, "--", "dog"], args].concat())
    }

    /// Its answer as JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.dog(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("dog {}: {text}", args.join(" ")))
    }

    /// Run a script in a pod.
    pub fn sh(&self, pod: &str, script: &str) -> Result<String> {
        self.k.kubectl(&["exec", pod, "--", "sh", "-ec", script])
    }

    /// Write so many MiB of noise to a pod's volume, and what they sum up to; synced. (Only that file system: a sync of all would wait for those of dead nodes, too.)
    pub fn fill(&self, pod: &str, mib: u32) -> Result<()> {
        let write = format!("dd if=/dev/urandom of=/data/file bs=1M count={mib} conv=fsync 2>/dev/null");
        self.sh(pod, &format!("{write}; sha256sum /data/file >/data/sum; sync -f /data")).map(drop)
    }

    /// The file is what its sum says; returns the sum.
    pub fn same(&self, pod: &str) -> Result<String> {
        let said = self.sh(pod, "sha256sum -c /data/sum; cat /data/sum")?;
        ensure!(said.contains("/data/file: OK"), "{pod}: {said}");
        Ok(said)
    }

    /// Wait for a pod to be Ready; says what it waits for.
    pub fn ready(&self, name: &str) -> Result<Value> {
        until(&format!("pod {name} is Ready"), PATIENCE, || {
            let pod = self.k.get(&["pod", name])?;
            if is_ready(&pod) {
                return Ok(Some(pod));
            }
            let events = self.k.kubectl(&["events", "--for", &format!("pod/{name}"), "--types=Warning"]);
            bail!("{}; {}", why(&[pod]), events.unwrap_or_default().trim())
        })
    }

    /// Is a pod Ready?
    pub fn ready_now(&self, name: &str) -> Result<bool> {
        Ok(is_ready(&self.k.get(&["pod", name])?))
    }

    /// Delete objects, by `KIND/NAME`, and wait until they are gone; says what keeps them.
    pub fn delete(&self, objects: &[&str]) -> Result<()> {
        let args = [&["delete", "--wait", "--timeout=170s"], objects].concat();
        self.k.kubectl(&args).map(drop).with_context(|| self.kept(objects))
    }

    /// Which of these objects are there still, and the last things that anybody complained of.
    fn kept(&self, objects: &[&str]) -> String {
        let mut told = Vec::new();
        for object in objects {
            if let Ok(o) = self.k.get(&[object]) {
                let (meta, status) = (&o["metadata"], o["status"].to_string());
                let status: String = status.chars().take(500).collect();
                told.push(format!(
                    "{object} stays: {} {} {status}",
                    meta["deletionTimestamp"], meta["finalizers"]
                ));
            }
        }
        let last = |text: String, most: usize, is: &dyn Fn(&&str) -> bool| -> Vec<String> {
            let lines: Vec<&str> = text.lines().filter(is).collect();
            lines.iter().rev().take(most).rev().map(|l| l.chars().take(300).collect()).collect()
        };
        let events = self.k.kubectl(&["events", "-A", "--types=Warning"]).unwrap_or_default();
        told.extend(last(events, 8, &|_| true));
        let complains = |l: &&str| ["rror", "ailed", "WARN"].iter().any(|w| l.contains(w));
        let ours = ["-n", NAMESPACE, "-l", "app.kubernetes.io/component in (csi-controller,csi-node)"];
        for pods in [&ours[..], &["-l", "app=snapshot-controller"]] {
            let args = [&["logs", "--all-containers", "--prefix", "--tail=60"], pods].concat();
            told.extend(last(self.k.kubectl(&args).unwrap_or_default(), 12, &complains));
        }
        told.join("\n      ")
    }

    /// No claim's volume is left: neither in Kubernetes nor in the cluster.
    pub fn no_volumes(&self) -> Result<()> {
        until("all volumes are gone", PATIENCE, || {
            let list = self.k.get(&["pv"])?;
            ensure!(list["items"].as_array().is_some_and(Vec::is_empty), "PersistentVolumes are left");
            let left = self.json(&["vdi", "list"])?;
            let names: Vec<&str> = left
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|v| v["name"].as_str())
                .filter(|n| !n.starts_with("csi.sheepdog.io-"))
                .collect();
            ensure!(names.is_empty(), "VDIs are left: {}", names.join(", "));
            Ok(Some(()))
        })
    }

    /// See [`snapshot_controller`].
    pub fn snapshot_controller(&self) -> Result<()> {
        snapshot_controller(&self.k).map(drop)
    }

    /// End everything; what is left behind is an error.
    pub fn finish(self, lab: &Lab) -> Result<()> {
        measured(lab, "everything ended", || self.k.finish())?;
        lab.measured("in all, from helm install", seconds(self.start));
        Ok(())
    }
}

/// Upstream's controller of snapshots and group snapshots, which a cluster has once, whatever its drivers; returns its image. By itself
/// it asks the API server five times a second at most, and nine times for each snapshot.
pub fn snapshot_controller(k: &Kubernetes) -> Result<String> {
    let images = k.get(&["node", "node0"])?;
    let names = images["status"]["images"].as_array().cloned().unwrap_or_default();
    let image = names
        .iter()
        .flat_map(|i| i["names"].as_array().cloned().unwrap_or_default())
        .filter_map(|n| n.as_str().map(str::to_owned))
        .find(|n| n.contains("/snapshot-controller:"))
        .context("no snapshot-controller among the images of node0")?;
    let labels = json!({"app": "snapshot-controller"});
    k.apply(&[
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "snapshots"}}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "snapshots"},
               "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
               "subjects": [{"kind": "ServiceAccount", "name": "snapshots", "namespace": "default"}]}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "snapshot-controller"}, "spec": {
            "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
                "serviceAccountName": "snapshots", "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "c", "image": image, "imagePullPolicy": "IfNotPresent",
                    "args": ["--leader-election=false", "--http-endpoint=:8080", "--feature-gates=CSIVolumeGroupSnapshot=true",
                             "--kube-api-qps=50", "--kube-api-burst=100"],
                    "readinessProbe": {"httpGet": {"port": 8080, "path": "/metrics"}, "periodSeconds": 1}}]}}}}),
    ])?;
    k.pods("app=snapshot-controller", 1)?;
    Ok(image)
}

/// Status of a condition; empty when there is none.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let all = object["status"]["conditions"].as_array();
    let found = all.into_iter().flatten().find(|c| c["type"] == kind);
    found.and_then(|c| c["status"].as_str()).unwrap_or_default()
}
