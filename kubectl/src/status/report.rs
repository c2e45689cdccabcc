//! What a status says. Pure.

use super::fetch::Seen;
use crate::why::{condition, silence};
use crate::words::{finalizers, going, is_ready, labels, listing, name, namespace, node_of, unready};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use serde::Serialize;
use sheepdog_crds::{CLUSTER, COMPONENT, DRIVER, SheepdogCluster, Vdi};
use std::collections::{BTreeMap, BTreeSet};

/// Conditions in the order in which they matter.
const ORDER: [&str; 7] =
    ["Available", "QuorumHeld", "Degraded", "CapacityLow", "Recovering", "UpgradeBlocked", "Progressing"];
/// Claims that are listed.
const CLAIMS: usize = 20;

/// One cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Name.
    pub cluster: String,
    /// Namespace.
    pub namespace: String,
    /// Being deleted.
    pub deleting: bool,
    /// Conditions.
    pub conditions: Vec<Said>,
    /// up/wanted.
    pub sheep: Option<String>,
    /// up/wanted.
    pub gateways: Option<String>,
    /// Used of total, for people.
    pub usage: Option<String>,
    /// Bytes.
    pub capacity_bytes: Option<i64>,
    /// Bytes.
    pub free_bytes: Option<i64>,
    /// What is being moved.
    pub recovery: Option<String>,
    /// Versions that sheep run.
    pub version: Option<String>,
    /// Epoch of the map.
    pub epoch: Option<i64>,
    /// Images of each component's pods, and how many of its pods are ready.
    pub components: BTreeMap<String, Component>,
    /// Nodes with a sheep or a gateway.
    pub nodes: Vec<Place>,
    /// Nodes that are not heard, in words.
    pub lost: Vec<String>,
    /// Volumes.
    pub volumes: Volumes,
    /// Claims that wait.
    pub unhappy: Vec<Claim>,
    /// What could not be read.
    pub unread: Vec<String>,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Said {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
}

/// Pods of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Component {
    pub ready: usize,
    pub pods: usize,
    pub images: BTreeSet<String>,
}

/// A node with its sheep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Place {
    pub node: String,
    pub group: String,
    pub zone: Option<String>,
    /// What the sheep is to the cluster; empty for a gateway.
    pub state: String,
    pub pod: Option<String>,
    pub ready: bool,
    /// Why not.
    pub trouble: Option<String>,
}

/// Counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Volumes {
    /// In Sheepdog.
    pub vdis: Option<i64>,
    /// Shown as objects.
    pub listed: usize,
    pub attached: usize,
    pub persistent_volumes: usize,
    pub attachments: usize,
}

/// A claim that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Claim {
    pub namespace: String,
    pub name: String,
    pub why: String,
}

impl Report {
    /// Of one cluster.
    pub fn of(c: &SheepdogCluster, s: &Seen) -> Self {
        report(c, s)
    }
}

fn report(c: &SheepdogCluster, s: &Seen) -> Report {
    let st = c.status.clone().unwrap_or_default();
    let mut conditions: Vec<Said> = ORDER
        .iter()
        .filter_map(|kind| condition(c, kind))
        .map(|x| Said {
            kind: x.type_.clone(),
            status: x.status.clone(),
            reason: x.reason.clone(),
            message: x.message.clone(),
        })
        .collect();
    if conditions.is_empty() {
        conditions.push(Said {
            kind: "Available".into(),
            status: "Unknown".into(),
            reason: "NotLookedAt".into(),
            message: "no operator has looked at it yet: does it run?".into(),
        });
    }
    Report {
        cluster: name(c),
        namespace: namespace(c),
        deleting: going(c),
        conditions,
        nodes: places(c, s),
        lost: s.nodes.iter().filter_map(silence).collect(),
        components: components(c, s),
        volumes: volumes(c, s, st.vdis),
        unhappy: unhappy(s),
        unread: s.unread.clone(),
        sheep: st.sheep,
        gateways: st.gateways,
        usage: st.usage,
        capacity_bytes: st.capacity_bytes,
        free_bytes: st.free_bytes,
        recovery: st.recovery,
        version: st.version,
        epoch: st.epoch,
    }
}

fn component(p: &Pod) -> &str {
    labels(p).get(COMPONENT).map_or("", String::as_str)
}

fn is_sheep_of(c: &SheepdogCluster, p: &Pod) -> bool {
    namespace(p) == namespace(c)
        && labels(p).get(CLUSTER).is_some_and(|l| *l == name(c))
        && matches!(component(p), "sheep" | "gateway")
}

fn components(c: &SheepdogCluster, s: &Seen) -> BTreeMap<String, Component> {
    let mut all: BTreeMap<String, Component> = BTreeMap::new();
    for p in &s.pods {
        let sheep = matches!(component(p), "sheep" | "gateway");
        let plumbing = ["operator", "csi-controller", "csi-node", "csi-fuse"].contains(&component(p));
        if (sheep && !is_sheep_of(c, p)) || !(sheep || plumbing) {
            continue;
        }
        let entry = all.entry(component(p).to_owned()).or_default();
        entry.pods += 1;
        entry.ready += usize::from(is_ready(p));
        // The first container is ours, the others are sidecars.
        let image = p.spec.as_ref().and_then(|s| s.containers.first()?.image.clone());
        entry.images.extend(image);
    }
    all
}

fn places(c: &SheepdogCluster, s: &Seen) -> Vec<Place> {
    let mut all: BTreeMap<String, Place> = BTreeMap::new();
    for n in c.status.iter().flat_map(|s| &s.nodes) {
        let place = Place {
            node: n.name.clone(),
            group: n.group.clone(),
            zone: n.zone.clone(),
            state: n.state.clone(),
            ..Place::default()
        };
        all.insert(n.name.clone(), place);
    }
    for p in s.pods.iter().filter(|p| is_sheep_of(c, p)) {
        let Some(node) = node_of(p) else { continue };
        let fresh = || Place { node: node.into(), group: component(p).into(), ..Place::default() };
        let place = all.entry(node.to_owned()).or_insert_with(fresh);
        if place.ready {
            continue;
        }
        place.pod = Some(name(p));
        place.ready = is_ready(p);
        place.trouble = (!place.ready).then(|| unready(p));
    }
    for place in all.values_mut().filter(|p| p.pod.is_none()) {
        place.trouble = Some("has no pod".into());
    }
    let quiet = |n: &&Node| silence(n).is_some();
    for n in s.nodes.iter().filter(quiet) {
        if let Some(place) = all.get_mut(&name(n)) {
            place.ready = false;
            place.trouble = Some("the node is not heard".into());
        }
    }
    all.into_values().collect()
}

fn volumes(c: &SheepdogCluster, s: &Seen, vdis: Option<i64>) -> Volumes {
    let mine = |v: &&Vdi| namespace(*v) == namespace(c) && v.spec.cluster == name(c);
    let attached =
        |v: &&Vdi| v.status.as_ref().and_then(|s| s.attached_to.as_ref()).is_some_and(|a| !a.is_empty());
    let listed = s.vdis.iter().filter(mine);
    let ours = s
        .volumes
        .iter()
        .filter(|v| v.spec.as_ref().and_then(|s| s.csi.as_ref()).is_some_and(|c| c.driver == DRIVER));
    Volumes {
        vdis,
        listed: listed.clone().count(),
        attached: listed.filter(attached).count(),
        persistent_volumes: ours.count(),
        attachments: s.attachments.iter().filter(|a| a.spec.attacher == DRIVER).count(),
    }
}

/// Claims of our classes or volumes that are not as they should be.
pub fn unhappy(s: &Seen) -> Vec<Claim> {
    let classes: BTreeSet<String> = s.classes.iter().filter(|c| c.provisioner == DRIVER).map(name).collect();
    let ours = |c: &&PersistentVolumeClaim| {
        let class = c.spec.as_ref().and_then(|s| s.storage_class_name.as_ref());
        class.is_some_and(|c| classes.contains(c))
    };
    let mut all: Vec<Claim> = s
        .claims
        .iter()
        .filter(ours)
        .filter_map(|c| Some(Claim { namespace: namespace(c), name: name(c), why: complaint(c)? }))
        .collect();
    all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    all.truncate(CLAIMS);
    all
}

fn complaint(c: &PersistentVolumeClaim) -> Option<String> {
    if going(c) {
        return Some(format!("is being deleted, waits for {}", listing(finalizers(c))));
    }
    let status = c.status.as_ref();
    let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    if phase != "Bound" {
        return Some(format!("is {phase}"));
    }
    let all = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    all.iter().find(|c| c.status == "True").map(|c| c.type_.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn from<T: serde::de::DeserializeOwned>(v: Value) -> T {
        serde_json::from_value(v).unwrap()
    }

    fn pod(name: &str, component: &str, node: &str, ready: &str) -> Pod {
        from(
            json!({"metadata": {"name": name, "namespace": "sd", "labels": {"app.kubernetes.io/name": "sheepdog",
                    "app.kubernetes.io/component": component, "sheepdog.io/cluster": "main"}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": format!("img/{component}:1")}]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}}),
        )
    }

    fn cluster() -> SheepdogCluster {
        from(
            json!({"apiVersion": "sheepdog.io/v1alpha1", "kind": "SheepdogCluster", "metadata": {"name": "main", "namespace": "sd"},
            "spec": {"nodeGroups": [{}]},
            "status": {"sheep": "2/3", "usage": "1 of 3", "vdis": 4, "nodes": [
                {"name": "n0", "group": "default", "state": "up", "zone": "a"}, {"name": "n1", "group": "default", "state": "down"}],
              "conditions": [{"type": "Degraded", "status": "True", "reason": "NodeDown", "message": "n1 is down", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": "Available", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
        )
    }

    #[test]
    fn a_cluster_at_a_glance() {
        let claim = |name: &str, class: &str, phase: &str| -> PersistentVolumeClaim {
            from(
                json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"storageClassName": class}, "status": {"phase": phase}}),
            )
        };
        let s = Seen {
            pods: vec![
                pod("s0", "sheep", "n0", "True"),
                pod("g2", "gateway", "n2", "True"),
                pod("o", "operator", "n0", "False"),
            ],
            nodes: vec![from(
                json!({"metadata": {"name": "n1"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}),
            )],
            claims: vec![
                claim("good", "main", "Bound"),
                claim("bad", "main", "Pending"),
                claim("theirs", "other", "Pending"),
            ],
            classes: vec![
                from(json!({"metadata": {"name": "main"}, "provisioner": "csi.sheepdog.io"})),
                from(json!({"metadata": {"name": "other"}, "provisioner": "x"})),
            ],
            vdis: vec![from(
                json!({"apiVersion": "sheepdog.io/v1alpha1", "kind": "Vdi", "metadata": {"name": "v", "namespace": "sd"},
                "spec": {"cluster": "main", "size": "1Gi"}, "status": {"attachedTo": "n0"}}),
            )],
            ..Seen::default()
        };
        let r = Report::of(&cluster(), &s);
        let kinds: Vec<&str> = r.conditions.iter().map(|c| c.kind.as_str()).collect();
        assert_eq!(kinds, ["Available", "Degraded"]);
        assert_eq!(
            r.unhappy,
            [Claim { namespace: "shop".into(), name: "bad".into(), why: "is Pending".into() }]
        );
        let nodes: Vec<(&str, bool)> = r.nodes.iter().map(|n| (n.node.as_str(), n.ready)).collect();
        assert_eq!(nodes, [("n0", true), ("n1", false), ("n2", true)]);
        assert_eq!(r.nodes[2].group, "gateway");
        assert!(r.lost[0].contains("n1"));
        assert_eq!((r.components["operator"].ready, r.components["operator"].pods), (0, 1));
        assert!(r.components["sheep"].images.contains("img/sheep:1"));
        assert_eq!((r.volumes.listed, r.volumes.attached, r.volumes.vdis), (1, 1, Some(4)));
    }

    #[test]
    fn a_cluster_that_nobody_looked_at_says_so() {
        let mut c = cluster();
        c.status = None;
        let r = Report::of(&c, &Seen::default());
        assert_eq!(r.conditions[0].reason, "NotLookedAt");
    }
}
