//! A small cluster in which everything is well, and ways to break it.

use crate::why::facts::{Facts, Kind, Target};
use crate::why::judge::judge;
use crate::why::verdict::{Code, Fix, Verdict};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub const ID: &str = "c1u5te4";
const THEN: &str = "2026-01-01T00:00:00Z";

pub fn from<T: DeserializeOwned>(v: Value) -> T {
    serde_json::from_value(v).unwrap()
}

pub fn claim(name: &str, spec: Value, status: Value) -> PersistentVolumeClaim {
    let mut full = json!({"storageClassName": "main", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    merge(&mut full, spec);
    from(
        json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "creationTimestamp": THEN},
        "spec": full, "status": status}),
    )
}

pub fn bound(name: &str) -> PersistentVolumeClaim {
    claim(
        name,
        json!({"volumeName": format!("pvc-{name}")}),
        json!({"phase": "Bound", "capacity": {"storage": "1Gi"}}),
    )
}

pub fn pending(name: &str) -> PersistentVolumeClaim {
    claim(name, json!({}), json!({"phase": "Pending"}))
}

pub fn volume(name: &str) -> PersistentVolume {
    from(json!({"metadata": {"name": name}, "spec": {
        "csi": {"driver": "csi.sheepdog.io", "volumeHandle": format!("uuid-{name}")},
        "claimRef": {"namespace": "shop", "name": name.trim_start_matches("pvc-")},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "topology.csi.sheepdog.io/cluster", "operator": "In", "values": [ID]}]}]}}},
        "status": {"phase": "Bound"}}))
}

fn merge(into: &mut Value, more: Value) {
    for (k, v) in more.as_object().unwrap() {
        into[k] = v.clone();
    }
}

/// A pod with a claim, Ready on a node.
pub fn running(name: &str, claim: &str, node: &str) -> Pod {
    from(
        json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "creationTimestamp": THEN},
        "spec": {"nodeName": node, "containers": [{"name": "app"}],
                 "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                                   "state": {"running": {}}}]}}),
    )
}

/// The same before its volumes are mounted.
pub fn waiting(name: &str, claim: &str, node: &str) -> Pod {
    let mut p = running(name, claim, node);
    p.status = from(json!({"phase": "Pending", "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                               "state": {"waiting": {"reason": "ContainerCreating"}}}]}));
    p
}

/// The same without a node, and what the scheduler says.
pub fn unscheduled(name: &str, claim: &str, said: &str) -> Pod {
    let mut p = running(name, claim, "");
    p.status = from(json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}]}));
    p
}

pub fn system(name: &str, component: &str, node: &str, ready: bool) -> Pod {
    let containers = json!([{"name": "c"}, {"name": "snapshotter"}]);
    from(
        json!({"metadata": {"name": name, "namespace": "sd", "labels": {"app.kubernetes.io/name": "sheepdog",
                "app.kubernetes.io/component": component, "sheepdog.io/cluster": "main"}},
        "spec": {"nodeName": node, "containers": containers},
        "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}}),
    )
}

pub fn attachment(pv: &str, node: &str, status: Value) -> k8s_openapi::api::storage::v1::VolumeAttachment {
    from(json!({"metadata": {"name": format!("va-{pv}-{node}"), "creationTimestamp": THEN},
        "spec": {"attacher": "csi.sheepdog.io", "nodeName": node, "source": {"persistentVolumeName": pv}}, "status": status}))
}

pub fn event(kind: &str, name: &str, reason: &str, message: &str) -> k8s_openapi::api::core::v1::Event {
    from(
        json!({"metadata": {"name": "e", "namespace": "shop"}, "reason": reason, "message": message, "lastTimestamp": THEN,
        "involvedObject": {"kind": kind, "name": name, "uid": format!("uid-{name}")}}),
    )
}

pub fn node(name: &str, ready: bool, taint: Option<&str>) -> k8s_openapi::api::core::v1::Node {
    let taints: Vec<Value> = taint.iter().map(|t| json!({"key": t, "effect": "NoSchedule"})).collect();
    from(
        json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {"taints": taints},
        "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "Unknown" }}]}}),
    )
}

pub fn cluster(available: &str, reason: &str, message: &str) -> sheepdog_crds::SheepdogCluster {
    from(
        json!({"apiVersion": "sheepdog.io/v1alpha1", "kind": "SheepdogCluster", "metadata": {"name": "main", "namespace": "sd"},
        "spec": {"nodeGroups": [{}]}, "status": {"clusterId": ID, "sheep": "2/2", "conditions": [
            {"type": "Available", "status": available, "reason": reason, "message": message, "lastTransitionTime": THEN}]}}),
    )
}

/// pvc/data, used by pod/app on n0; pvc/free, used by nobody. Two nodes.
pub fn well() -> Facts {
    let csi_node = |n: &str| {
        from(
            json!({"metadata": {"name": n}, "spec": {"drivers": [{"name": "csi.sheepdog.io", "nodeID": n}]}}),
        )
    };
    Facts {
        namespace: "shop".into(),
        now: Timestamp::from_second(1_767_225_700).unwrap(),
        claims: vec![bound("data"), bound("free")],
        pods: vec![running("app", "data", "n0")],
        classes: vec![from(
            json!({"metadata": {"name": "main", "labels": {"sheepdog.io/cluster": "main", "sheepdog.io/namespace": "sd"}},
            "provisioner": "csi.sheepdog.io", "allowVolumeExpansion": true, "volumeBindingMode": "Immediate"}),
        )],
        volumes: vec![volume("pvc-data"), volume("pvc-free")],
        attachments: vec![attachment("pvc-data", "n0", json!({"attached": true}))],
        nodes: vec![node("n0", true, None), node("n1", true, None)],
        topology: [("n0".to_owned(), ID.to_owned()), ("n1".to_owned(), ID.to_owned())].into(),
        csi_nodes: vec![csi_node("n0"), csi_node("n1")],
        driver: Some(from(json!({"metadata": {"name": "csi.sheepdog.io"}, "spec": {}}))),
        clusters: vec![cluster("True", "Serving", "2 of 2 sheep are up")],
        system: vec![
            system("main-sheep-0", "sheep", "n0", true),
            system("main-sheep-1", "sheep", "n1", true),
            system("csi-controller-0", "csi-controller", "n0", true),
            system("csi-node-0", "csi-node", "n0", true),
            system("csi-node-1", "csi-node", "n1", true),
        ],
        daemonsets: vec![from(json!({"metadata": {"name": "csi-node", "namespace": "sd",
                "labels": {"app.kubernetes.io/component": "csi-node"}},
            "spec": {"selector": {}, "template": {"spec": {"containers": []}}}}))],
        ..Facts::default()
    }
}

/// A broken one.
pub fn broken(how: impl FnOnce(&mut Facts)) -> Facts {
    let mut f = well();
    how(&mut f);
    f
}

pub fn ask(f: &Facts, what: &str) -> Verdict {
    let (kind, name) = what.split_once('/').unwrap();
    let kind = match kind {
        "pvc" => Kind::Claim,
        "pod" => Kind::Pod,
        _ => Kind::Snapshot,
    };
    judge(f, &Target { kind, name: name.into() })
}

/// The cause must be this one, and the sentence have these words.
pub fn blames(f: &Facts, what: &str, code: Code, words: &[&str]) -> Verdict {
    let v = ask(f, what);
    let Some(cause) = &v.cause else { panic!("nothing blocks {what}: {}", v.text()) };
    assert_eq!(cause.code, code, "{}", v.text());
    for w in words {
        assert!(cause.sentence.contains(w), "{w:?} is not in: {}", v.text());
    }
    assert!(!cause.fix.is_empty(), "nothing to do: {}", v.text());
    assert_eq!(v.exit(), 1);
    v
}

/// A command among what to do.
pub fn runs(v: &Verdict, command: &str) {
    let fix = &v.cause.as_ref().unwrap().fix;
    let found = fix.iter().any(|f| matches!(f, Fix::Run(c) if c.contains(command)));
    assert!(found, "{command:?} is not in: {}", v.text());
}

pub fn fine(f: &Facts, what: &str) {
    let v = ask(f, what);
    assert!(v.cause.is_none() && v.unread.is_empty(), "{}", v.text());
}
