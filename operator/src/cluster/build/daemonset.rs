//! DaemonSets: one per node group, one for the gateways. Updated OnDelete: the operator restarts their pods, one at a time.
//!
//! The nodes of a group are named one by one, so that a node whose label is taken away keeps its sheep until its data has left. Where pods run is not part of
//! their revision: it changes without a restart.

use super::{BuildError, Input, disks, owned, typed};
use crate::names::{GATEWAY, GROUP, REVISION, SECRET_KEY, SHEEP};
use crate::quantity::bytes;
use crate::seccomp;
use k8s_openapi::api::apps::v1::DaemonSet;
use serde_json::{Value, json};
use sheepdog_crds::cluster::{NodeGroup, Seccomp};
use xxhash_rust::xxh3::xxh3_64;

const CONFIG_DIR: &str = "/etc/sheepdog/nodes";
const SECRET_DIR: &str = "/etc/sheepdog/credentials";
/// Opening disks replays their journals: so long may a sheep take until it answers.
const START_SECONDS: u32 = 1_800;

/// What differs between sheep with data and gateways.
struct Part {
    name: String,
    component: &'static str,
    group: String,
    env: Vec<(&'static str, String)>,
    /// (volume, path, type of hostPath)
    dirs: Vec<(String, String, &'static str)>,
    /// A container that runs before the sheep, and a volume of its own.
    init: Option<(Value, Value)>,
    affinity: Option<Value>,
    node_selector: Value,
    tolerations: Value,
    resources: Value,
}

/// Of a group, on these nodes.
pub(super) fn sheep(i: &Input<'_>, group: &NodeGroup, nodes: &[&str]) -> Result<DaemonSet, BuildError> {
    let spec = &i.cluster.spec;
    let directories = disks::directories(i.cluster, i.names, group).into_iter().enumerate();
    let mut dirs: Vec<(String, String, &str)> =
        directories.map(|(n, (path, kind))| (format!("disk-{n}"), path, kind)).collect();
    let mut env = vec![("SHEEP_DIR", disks::paths(i.cluster, i.names, group).join(","))];
    if !group.devices.is_empty() {
        env.push(("SHEEP_ONLY_MOUNTED", "true".into()));
        dirs.push(("disks".into(), disks::mounts(i.cluster, i.names), "DirectoryOrCreate"));
    }
    if let Some(home) = disks::home(i.cluster, i.names, group) {
        env.push(("SHEEP_HOME", home.clone()));
        dirs.push(("home".into(), home, "DirectoryOrCreate"));
    }
    if let Some(n) = group.vnodes {
        env.push(("SHEEP_VNODES", n.to_string()));
    }
    if let Some(j) = &group.journal {
        env.push(("SHEEP_JOURNAL", format!("{},size={}", j.directory, j.size)));
        dirs.push(("journal".into(), j.directory.clone(), "Directory"));
    }
    let terms: Vec<Value> = nodes
        .iter()
        .map(|n| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [n]}]}))
        .collect();
    daemonset(
        i,
        Part {
            name: i.names.sheep(&group.name),
            component: SHEEP,
            group: group.name.clone(),
            env,
            dirs,
            init: disks::init(i, group),
            affinity: Some(json!(terms)),
            node_selector: json!({}),
            tolerations: json!(group.tolerations),
            resources: json!(group.resources.as_ref().or(spec.resources.as_ref())),
        },
    )
}

/// On every node that stores no data.
pub(super) fn gateways(i: &Input<'_>) -> Result<DaemonSet, BuildError> {
    let spec = &i.cluster.spec.gateways;
    let home = format!("{}/gateway", i.names.host_dir(i.cluster));
    let not: Vec<Value> = i
        .members
        .groups
        .keys()
        .map(|n| json!({"key": "metadata.name", "operator": "NotIn", "values": [n]}))
        .collect();
    let mut selector = spec.node_selector.clone();
    selector.entry("kubernetes.io/os".into()).or_insert_with(|| "linux".into());
    let everything = json!([{"operator": "Exists"}]);
    daemonset(
        i,
        Part {
            name: i.names.gateway(),
            component: GATEWAY,
            group: String::new(),
            env: vec![("SHEEP_DIR", home.clone()), ("SHEEP_GATEWAY", "true".into())],
            dirs: vec![("home".into(), home, "DirectoryOrCreate")],
            init: None,
            affinity: (!not.is_empty()).then(|| json!([{"matchFields": not}])),
            node_selector: json!(selector),
            tolerations: if spec.tolerations.is_empty() { everything } else { json!(spec.tolerations) },
            resources: json!(spec.resources),
        },
    )
}

fn environment(i: &Input<'_>, part: &Part) -> Value {
    let spec = &i.cluster.spec;
    let p = &spec.ports;
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut env = vec![field("NODE_NAME", "spec.nodeName"), field("HOST_IP", "status.hostIP")];
    let mut add = |name: &str, value: String| env.push(json!({"name": name, "value": value}));
    for (name, value) in &part.env {
        add(name, value.clone());
    }
    add("SHEEP_CONFIG", format!("{CONFIG_DIR}/$(NODE_NAME)"));
    add("SHEEP_ADVERTISE_ADDR", "$(HOST_IP)".into());
    add("SHEEP_CLUSTER_DRIVER", "sdcluster".into());
    add("SHEEP_PORT", p.client.to_string());
    add("SHEEP_CLUSTER_PORT_OFFSET", p.peer.saturating_sub(p.client).to_string());
    add("SHEEP_METRICS_PORT", p.metrics.to_string());
    add("SHEEP_SECRET_FILE", format!("{SECRET_DIR}/{SECRET_KEY}"));
    add("SHEEP_NBD_SOCKET", format!("{}/run/nbd.sock", i.names.host_dir(i.cluster)));
    if let Some(nbd) = p.nbd {
        add("SHEEP_NBD", "true".into());
        add("SHEEP_NBD_PORT", nbd.to_string());
    }
    add("SHEEP_DOWN_OUT_INTERVAL", spec.down_out_interval.clone());
    if let Some(bytes) = spec.cache.as_deref().and_then(bytes) {
        add("SHEEP_CACHE", "true".into());
        add("SHEEP_CACHE_SIZE", bytes.div_ceil(1 << 20).to_string());
    }
    add("SHEEP_LOG_LEVEL", spec.log_level.clone());
    add("DOG_PORT", p.client.to_string());
    json!(env)
}

fn ports(i: &Input<'_>) -> Value {
    let p = &i.cluster.spec.ports;
    // Named as host ports too, so that the scheduler never puts a gateway beside a sheep.
    let port =
        |name: &str, n: u16| json!({"name": name, "containerPort": n, "hostPort": n, "protocol": "TCP"});
    let mut all = vec![port("client", p.client), port("peer", p.peer), port("metrics", p.metrics)];
    all.extend(p.nbd.map(|n| port("nbd", n)));
    json!(all)
}

/// The profile of the pod's sheep, and the container that puts it on the node first.
fn seccomp(i: &Input<'_>) -> (Value, Option<Value>, Option<Value>) {
    match (i.cluster.spec.seccomp, &i.installed.operator_image) {
        (Seccomp::Unconfined, _) => (json!({"type": "Unconfined"}), None, None),
        (Seccomp::IoUring, Some(image)) => {
            let container = json!({
                "name": "seccomp-profile",
                "image": image,
                "imagePullPolicy": i.cluster.spec.image_pull_policy.as_str(),
                "command": ["sheepdog-operator", "seccomp-profile", "--root", "/seccomp"],
                "resources": {"requests": {"cpu": "5m", "memory": "8Mi"}, "limits": {"memory": "64Mi"}},
                "securityContext": hardened(json!({"type": "RuntimeDefault"})),
                "volumeMounts": [{"name": "seccomp", "mountPath": "/seccomp"}],
            });
            let path = format!("{}/seccomp", i.installed.kubelet_root.trim_end_matches('/'));
            let volume = json!({"name": "seccomp", "hostPath": {"path": path, "type": "DirectoryOrCreate"}});
            let profile = json!({"type": "Localhost", "localhostProfile": seccomp::FILE});
            (profile, Some(container), Some(volume))
        }
        (Seccomp::RuntimeDefault | Seccomp::IoUring, _) => (json!({"type": "RuntimeDefault"}), None, None),
    }
}

/// Root, because directories of the host belong to it, and nothing else.
fn hardened(profile: Value) -> Value {
    json!({
        "runAsUser": 0,
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": profile,
    })
}

fn daemonset(i: &Input<'_>, part: Part) -> Result<DaemonSet, BuildError> {
    let spec = &i.cluster.spec;
    let metrics = spec.ports.metrics;
    let page = |path: &str| json!({"path": path, "port": metrics, "scheme": "HTTP"});
    let (profile, seccomp, seccomp_volume) = seccomp(i);
    let (init, init_volume) = part.init.clone().unzip();
    let run = format!("{}/run", i.names.host_dir(i.cluster));
    let dirs = part.dirs.iter().cloned().chain([("run".to_owned(), run, "DirectoryOrCreate")]);
    let dirs: Vec<(String, String, &str)> = dirs.collect();
    let mut mounts: Vec<Value> = dirs
        .iter()
        .map(|(n, path, _)| json!({"name": n, "mountPath": path, "mountPropagation": "HostToContainer"}))
        .collect();
    mounts.push(json!({"name": "nodes", "mountPath": CONFIG_DIR, "readOnly": true}));
    mounts.push(json!({"name": "credentials", "mountPath": SECRET_DIR, "readOnly": true}));
    mounts.push(json!({"name": "tmp", "mountPath": "/tmp"}));
    let mut volumes: Vec<Value> = dirs
        .iter()
        .map(|(n, path, kind)| json!({"name": n, "hostPath": {"path": path, "type": kind}}))
        .collect();
    volumes.push(json!({"name": "nodes", "configMap": {"name": i.names.config()}}));
    volumes.push(
        json!({"name": "credentials", "secret": {"secretName": i.names.secret(i.cluster), "defaultMode": 0o400}}),
    );
    volumes.push(json!({"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}));
    volumes.extend(seccomp_volume.into_iter().chain(init_volume));
    let pull: Vec<Value> =
        spec.image_pull_secrets.iter().chain(&i.installed.pull_secrets).map(|n| json!({"name": n})).collect();
    let container = json!({
        "name": "sheep",
        "image": spec.image.as_deref().unwrap_or(&i.installed.sheep_image),
        "imagePullPolicy": spec.image_pull_policy.as_str(),
        "command": ["sheep"],
        "env": environment(i, &part),
        "ports": ports(i),
        "resources": part.resources,
        "securityContext": hardened(profile),
        "volumeMounts": mounts,
        "startupProbe": {"httpGet": page("/healthz"), "periodSeconds": 2, "timeoutSeconds": 3, "failureThreshold": START_SECONDS / 2},
        "livenessProbe": {"httpGet": page("/healthz"), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "readinessProbe": {"httpGet": page("/readyz"), "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 2},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    let mut pod = json!({
        "hostNetwork": true,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "priorityClassName": spec.priority_class_name,
        "terminationGracePeriodSeconds": 60,
        "nodeSelector": part.node_selector,
        "tolerations": part.tolerations,
        "imagePullSecrets": pull,
        "initContainers": seccomp.into_iter().chain(init).collect::<Vec<_>>(),
        "containers": [container],
        "volumes": volumes,
    });
    let revision = format!("{:016x}", xxh3_64(pod_text(&pod).as_bytes()));
    if let Some(terms) = part.affinity {
        pod["affinity"] = json!({
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        });
    }
    let selector = {
        let mut s = i.names.selector(part.component);
        if part.component == SHEEP {
            s.insert(GROUP.into(), part.group.clone());
        }
        s
    };
    let mut labels = i.names.labels();
    labels.extend(selector.clone());
    let mut metadata = owned(i, &part.name);
    metadata["labels"] = json!(labels);
    typed(
        "DaemonSet",
        json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": metadata,
            "spec": {
                "selector": {"matchLabels": selector},
                "updateStrategy": {"type": "OnDelete"},
                "revisionHistoryLimit": 3,
                "template": {
                    "metadata": {
                        "labels": labels,
                        "annotations": {
                            (REVISION): revision,
                            "kubectl.kubernetes.io/default-container": "sheep",
                        },
                    },
                    "spec": pod,
                },
            },
        }),
    )
}

/// What the revision is made from: where pods may run is left out.
fn pod_text(pod: &Value) -> String {
    let mut pod = pod.clone();
    if let Value::Object(o) = &mut pod {
        o.remove("nodeSelector");
        o.remove("tolerations");
    }
    // Objects of serde_json are ordered by key.
    pod.to_string()
}

/// The nodes that a DaemonSet of a group names.
pub fn named_nodes(ds: &DaemonSet) -> Vec<String> {
    let affinity = ds.spec.as_ref().and_then(|s| s.template.spec.as_ref()?.affinity.as_ref());
    let required = affinity
        .and_then(|a| a.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref());
    let terms = required.map(|r| r.node_selector_terms.as_slice()).unwrap_or_default();
    let fields = terms.iter().filter_map(|t| t.match_fields.as_deref()).flatten();
    fields.filter(|f| f.operator == "In").filter_map(|f| f.values.clone()).flatten().collect()
}
