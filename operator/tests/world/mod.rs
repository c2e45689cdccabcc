//! A world for the operator: an API server in memory, and a DaemonSet controller with kubelets that start real daemons exactly as the pods say.

#![allow(dead_code, clippy::unwrap_used)]

pub mod api;

use api::Api;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{reflector, watcher};
use serde_json::{Value, json};
use sheepdog_crds::SheepdogCluster;
use sheepdog_operator::cluster::{self, build::Installed};
use sheepdog_operator::context::Context;
use sheepdog_operator::observe::Metrics;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CHILD: &str = "OPERATOR_TEST_SHEEP";
pub const NS: &str = "/namespaces/sheepdog";

/// Not a test: the daemon's process. Its options are the variables that the pod has.
#[test]
#[ignore = "started by the other tests"]
fn daemon() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let args = sheep::cli::Args::load(["sheep".into()]).unwrap();
    sheep::daemon::run(&args).unwrap();
}

struct Running {
    node: String,
    set: String,
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Labels of a node.
pub type Labels = &'static [(&'static str, &'static str)];

/// See the module.
pub struct World {
    pub api: Api,
    dir: tempfile::TempDir,
    running: BTreeMap<String, Running>,
    serial: usize,
    /// Most sheep with data that were away at one time since it was set to 0.
    pub most_away: usize,
}

pub fn cluster_path(name: &str) -> String {
    format!("/apis/sheepdog.io/v1alpha1{NS}/sheepdogclusters/{name}")
}

impl World {
    /// With these nodes: name, address, labels.
    pub fn new(nodes: &[(&str, &str, Labels)]) -> Self {
        let api = Api::default();
        for (name, ip, labels) in nodes {
            let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
            api.put(
                &format!("/api/v1/nodes/{name}"),
                json!({
                    "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {},
                    "status": {"addresses": [{"type": "InternalIP", "address": ip}], "conditions": [{"type": "Ready", "status": "True"}]},
                }),
            );
        }
        let dir = tempfile::tempdir().unwrap();
        Self { api, dir, running: BTreeMap::new(), serial: 0, most_away: 0 }
    }

    /// A SheepdogCluster, checked and completed as the API server would.
    pub fn apply(&self, name: &str, spec: Value) {
        let mut object = json!({
            "apiVersion": "sheepdog.io/v1alpha1", "kind": "SheepdogCluster",
            "metadata": {"name": name, "namespace": "sheepdog"}, "spec": spec,
        });
        let path = cluster_path(name);
        let old = self.api.get(&path);
        let taken: SheepdogCluster = sheepdog_crds::check::accept(&object, old.as_ref()).unwrap();
        object["spec"] = serde_json::to_value(&taken.spec).unwrap();
        if let Some(old) = old {
            object["metadata"] = old["metadata"].clone();
            object["status"] = old["status"].clone();
        }
        self.api.put(&path, object);
    }

    pub fn cluster(&self, name: &str) -> Option<SheepdogCluster> {
        self.api.get(&cluster_path(name)).map(|v| serde_json::from_value(v).unwrap())
    }

    /// An operator that has just been started: it remembers nothing.
    pub fn operator(&self) -> Arc<Context> {
        let (nodes, mut writer) = reflector::store::<Node>();
        writer.apply_watcher_event(&watcher::Event::Init);
        for node in self.api.list("/api/v1/nodes") {
            writer.apply_watcher_event(&watcher::Event::InitApply(serde_json::from_value(node).unwrap()));
        }
        writer.apply_watcher_event(&watcher::Event::InitDone);
        let installed = Installed {
            sheep_image: "sheep:1".into(),
            operator_image: Some("operator:1".into()),
            csi_image: Some("csi:1".into()),
            pull_secrets: Vec::new(),
            kubelet_root: "/var/lib/kubelet".into(),
        };
        let metrics = Arc::new(Metrics::default());
        Arc::new(Context::new(self.api.client(), "sheepdog".into(), installed, nodes, metrics))
    }

    /// One look of a newly started operator, then the kubelets'.
    pub async fn tick(&mut self, name: &str) {
        if let Some(c) = self.cluster(name) {
            let done = cluster::reconcile(Arc::new(c), self.operator()).await;
            if let Err(e) = done {
                eprintln!("operator: {e}");
            }
        }
        self.kubelets();
        self.garbage(name);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }

    /// Tick until it is so.
    pub async fn until(&mut self, name: &str, what: &str, good: impl Fn(&World) -> bool) {
        let end = Instant::now() + Duration::from_secs(180);
        while !good(self) {
            self.tick(name).await;
            if Instant::now() > end {
                let status = self.cluster(name).and_then(|c| c.status);
                panic!("{what}: not in time: {status:#?}");
            }
        }
    }

    /// Children go when their owner has gone.
    fn garbage(&mut self, name: &str) {
        if self.cluster(name).is_some() {
            return;
        }
        let base = format!("/apis/apps/v1{NS}/daemonsets");
        for set in self.api.list(&base) {
            self.api.remove(&format!("{base}/{}", set["metadata"]["name"].as_str().unwrap()));
        }
    }

    fn nodes_of(&self, set: &DaemonSet) -> Vec<String> {
        let pod = set.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
        let named = cluster::build::daemonset::named_nodes(set);
        if !named.is_empty() {
            return named;
        }
        let affinity = serde_json::to_value(pod.affinity.as_ref()).unwrap().to_string();
        let nodes = self.api.list("/api/v1/nodes");
        let names = nodes.iter().map(|n| n["metadata"]["name"].as_str().unwrap().to_owned());
        names.filter(|n| !affinity.contains(&format!("\"{n}\""))).collect()
    }

    fn kubelets(&mut self) {
        let pods = format!("/api/v1{NS}/pods");
        let sets: Vec<DaemonSet> = self
            .api
            .list(&format!("/apis/apps/v1{NS}/daemonsets"))
            .into_iter()
            .map(|v| serde_json::from_value(v).unwrap())
            .collect();
        // Pods that nobody wants, or that were deleted, end; in order, as with SIGTERM.
        let wanted: BTreeMap<String, (String, &DaemonSet)> = sets
            .iter()
            .flat_map(|s| self.nodes_of(s).into_iter().map(move |n| (s, n)))
            .map(|(s, n)| (format!("{}/{n}", s.metadata.name.as_deref().unwrap()), (n, s)))
            .collect();
        let gone: Vec<String> = self
            .running
            .iter()
            .filter(|(pod, r)| {
                let there = self.api.get(&format!("{pods}/{pod}")).is_some();
                !there || !wanted.contains_key(&format!("{}/{}", r.set, r.node))
            })
            .map(|(pod, _)| pod.clone())
            .collect();
        for pod in gone {
            let mut running = self.running.remove(&pod).unwrap();
            let pid = running.child.id().to_string();
            let _ = Command::new("kill").args(["-TERM", &pid]).status();
            let _ = running.child.wait();
            self.api.remove(&format!("{pods}/{pod}"));
        }
        for (key, (node, set)) in &wanted {
            if !self.running.values().any(|r| format!("{}/{}", r.set, r.node) == *key) {
                self.start(set, node);
            }
        }
        let names: Vec<String> = self.running.keys().cloned().collect();
        for name in names {
            self.report(&name);
        }
        let with_data = |s: &DaemonSet| s.metadata.name.as_deref().unwrap().contains("-sheep");
        let due = wanted.values().filter(|(_, s)| with_data(s)).count();
        let ready = self
            .api
            .list(&pods)
            .iter()
            .filter(|p| p["metadata"]["labels"]["app.kubernetes.io/component"] == "sheep")
            .filter(|p| p["status"]["conditions"][0]["status"] == "True")
            .count();
        self.most_away = self.most_away.max(due.saturating_sub(ready));
    }

    /// Where a path of the host lies. One that lies in the world already is taken as it is: sheep then know it by the name that the object has.
    fn host(&self, node: &str, path: &str) -> PathBuf {
        if Path::new(path).starts_with(self.dir.path()) {
            return path.into();
        }
        self.dir.path().join(node).join(path.trim_start_matches('/'))
    }

    fn start(&mut self, set: &DaemonSet, node: &str) {
        let template = serde_json::to_value(&set.spec.as_ref().unwrap().template).unwrap();
        let ip = self.api.get(&format!("/api/v1/nodes/{node}")).unwrap()["status"]["addresses"][0]["address"]
            .as_str()
            .unwrap()
            .to_owned();
        // Mounts: the ConfigMap and the secret must be there, or the kubelet waits.
        let volume = |name: &str| {
            let all = template["spec"]["volumes"].as_array().unwrap();
            all.iter().find(|v| v["name"] == name).unwrap().clone()
        };
        let config =
            format!("/api/v1{NS}/configmaps/{}", volume("nodes")["configMap"]["name"].as_str().unwrap());
        let secret = format!(
            "/api/v1{NS}/secrets/{}",
            volume("credentials")["secret"]["secretName"].as_str().unwrap()
        );
        let (Some(config), Some(secret)) = (self.api.get(&config), self.api.get(&secret)) else { return };
        let Some(options) = config["data"][node].as_str() else { return };
        self.write(node, &format!("/etc/sheepdog/nodes/{node}"), options);
        let text = secret["data"]["secret"].as_str().unwrap();
        self.write(node, "/etc/sheepdog/credentials/secret", &base64(text));
        let container = &template["spec"]["containers"][0];
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["world::daemon", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
        for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("SHEEP_")) {
            command.env_remove(name);
        }
        for v in container["env"].as_array().unwrap() {
            let Some(value) = v["value"].as_str() else { continue };
            let value = value.replace("$(NODE_NAME)", node).replace("$(HOST_IP)", &ip);
            let value: Vec<String> =
                value
                    .split(',')
                    .map(|p| {
                        if p.starts_with('/') {
                            self.host(node, p).display().to_string()
                        } else {
                            p.to_owned()
                        }
                    })
                    .collect();
            command.env(v["name"].as_str().unwrap(), value.join(","));
        }
        for v in template["spec"]["volumes"].as_array().unwrap() {
            if let Some(path) = v["hostPath"]["path"].as_str() {
                std::fs::create_dir_all(self.host(node, path)).unwrap();
            }
        }
        // All nodes share this host: each has an address of its own on loopback.
        command.env("SHEEP_BIND_ADDR", &ip).env(CHILD, "1");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("{node}.log")))
            .unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.serial += 1;
        let set_name = set.metadata.name.clone().unwrap();
        let name = format!("{set_name}-{}", self.serial);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "sheepdog",
                "labels": template["metadata"]["labels"], "annotations": template["metadata"]["annotations"],
            },
            "spec": {"nodeName": node, "containers": template["spec"]["containers"]},
            "status": {"hostIP": ip},
        });
        self.api.put(&format!("/api/v1{NS}/pods/{name}"), pod);
        self.running.insert(name, Running { node: node.into(), set: set_name, child });
    }

    fn write(&self, node: &str, path: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.host(node, path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// What the kubelet finds by its probes.
    fn report(&mut self, name: &str) {
        let running = self.running.get_mut(name).unwrap();
        let alive = running.child.try_wait().unwrap().is_none();
        let path = format!("/api/v1{NS}/pods/{name}");
        let Some(mut pod) = self.api.get(&path) else { return };
        let ip = pod["status"]["hostIP"].as_str().unwrap().to_owned();
        let ready = alive && page(&ip, 9700, "/readyz");
        let state = if alive { json!({"running": {}}) } else { json!({"terminated": {"exitCode": 1}}) };
        pod["status"]["containerStatuses"] = json!([{"name": "sheep", "image": "", "imageID": "", "ready": ready, "restartCount": 0, "state": state}]);
        let word = if ready { "True" } else { "False" };
        pod["status"]["conditions"] = json!([{"type": "Ready", "status": word}]);
        if self.api.get(&path).is_some_and(|old| old["status"] != pod["status"]) {
            self.api.put(&path, pod);
        }
        if !alive {
            // The container is started again: here with a new pod.
            self.running.remove(name);
            self.api.remove(&path);
        }
    }

    /// The end of a node's log.
    pub fn log(&self, node: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{node}.log"))).unwrap_or_default()
    }
    /// The directory of a node.
    pub fn node_dir(&self, node: &str) -> PathBuf {
        Path::new(self.dir.path()).join(node)
    }
}

/// Does the page answer 200?
fn page(ip: &str, port: u16, path: &str) -> bool {
    use std::io::{Read, Write};
    let addr = format!("{ip}:{port}").parse().unwrap();
    let Ok(mut tcp) = std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(500)) else {
        return false;
    };
    let _ = tcp.set_read_timeout(Some(Duration::from_secs(3)));
    let asked = write!(tcp, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut text = String::new();
    asked.is_ok() && tcp.read_to_string(&mut text).is_ok() && text.starts_with("HTTP/1.1 200")
}

fn base64(text: &str) -> String {
    let bytes: k8s_openapi::ByteString = serde_json::from_value(json!(text)).unwrap();
    String::from_utf8(bytes.0).unwrap()
}

/// Is this condition of the cluster True?
pub fn is(w: &World, name: &str, kind: &str) -> bool {
    let status = w.cluster(name).and_then(|c| c.status).unwrap_or_default();
    sheepdog_operator::condition::holds(&status.conditions, kind)
}
