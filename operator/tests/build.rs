//! The objects that are built, in full: `tests/golden`. After a change that is meant: SHEEPDOG_GOLDEN=write cargo test -p sheepdog-operator --test build

#![allow(clippy::unwrap_used)]

use serde_json::json;
use sheepdog_crds::SheepdogCluster;
use sheepdog_operator::cluster::build::{self, Input, Installed, classes};
use sheepdog_operator::cluster::members::Members;
use sheepdog_operator::cluster::seen::NodeSeen;
use sheepdog_operator::names::Names;
use std::collections::BTreeMap;
use std::path::Path;

fn cluster(spec: serde_json::Value) -> SheepdogCluster {
    let object = json!({
        "apiVersion": "sheepdog.io/v1alpha1", "kind": "SheepdogCluster",
        "metadata": {"name": "main", "namespace": "sheepdog", "uid": "11111111-2222-3333-4444-555555555555"},
        "spec": spec,
    });
    sheepdog_crds::check::accept(&object, None).unwrap()
}

fn node(ip: &str, zone: Option<&str>) -> NodeSeen {
    let labels = zone.map(|z| ("topology.kubernetes.io/zone".to_owned(), z.to_owned()));
    NodeSeen { labels: labels.into_iter().collect(), ip: Some(ip.into()), ready: true, ..Default::default() }
}

struct Made {
    text: String,
    desired: build::Desired,
}

fn build(c: &SheepdogCluster, groups: &[(&str, &str)], leaving: &[&str]) -> Made {
    let names = Names::of(c);
    let nodes: BTreeMap<String, NodeSeen> = [
        ("a".to_owned(), node("10.0.0.1", Some("east"))),
        ("b".to_owned(), node("10.0.0.2", Some("west"))),
        ("c".to_owned(), node("10.0.0.3", None)),
        ("d".to_owned(), node("10.0.0.4", Some("east"))),
    ]
    .into();
    let installed = Installed {
        sheep_image: "sheepdog/sheep:0.1.0".into(),
        operator_image: Some("sheepdog/operator:0.1.0".into()),
        pull_secrets: vec!["registry".into()],
        kubelet_root: "/var/lib/kubelet".into(),
    };
    let members = Members {
        groups: groups.iter().map(|(n, g)| ((*n).to_owned(), (*g).to_owned())).collect(),
        leaving: leaving.iter().map(|n| (*n).to_owned()).collect(),
        ..Default::default()
    };
    let input = Input {
        cluster: c,
        names: &names,
        installed: &installed,
        nodes: &nodes,
        members: &members,
        evictable: 1,
    };
    let desired = build::desired(&input).unwrap();
    let mut all = vec![
        serde_json::to_value(&desired.config).unwrap(),
        serde_json::to_value(&desired.service).unwrap(),
        serde_json::to_value(&desired.budget).unwrap(),
    ];
    all.extend(desired.daemonsets.iter().map(|d| serde_json::to_value(d).unwrap()));
    all.extend(classes::storage_class(c, &names).unwrap().map(|s| serde_json::to_value(s).unwrap()));
    all.extend(classes::snapshot_class(c, &names).map(|s| serde_json::to_value(s).unwrap()));
    all.push(serde_json::to_value(classes::storage_profile(c, &names)).unwrap());
    let text = all.iter().map(|o| format!("---\n{}", serde_yaml_ng::to_string(o).unwrap())).collect();
    Made { text, desired }
}

fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var("SHEEPDOG_GOLDEN").is_ok_and(|v| v == "write") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == text, "{name} differs: look at it with SHEEPDOG_GOLDEN=write and git diff\n{text}");
}

#[test]
fn the_least_cluster() {
    let c = cluster(json!({"nodeGroups": [{"name": "default"}]}));
    golden("least.yaml", &build(&c, &[("a", "default"), ("b", "default"), ("c", "default")], &[]).text);
}

#[test]
fn a_cluster_with_everything() {
    let c = cluster(json!({
        "image": "registry.example.com/sheep:2",
        "imagePullPolicy": "Always",
        "imagePullSecrets": ["own"],
        "nodeGroups": [
            {
                "name": "nvme", "nodeSelector": {"disk": "nvme"}, "directories": ["/mnt/d1", "/mnt/d2"], "vnodes": 64,
                "journal": {"directory": "/mnt/fast", "size": "2Gi"},
                "tolerations": [{"key": "storage", "operator": "Exists"}],
                "resources": {"requests": {"cpu": "2", "memory": "4Gi"}},
            },
            {"name": "default"},
        ],
        "gateways": {"nodeSelector": {"role": "worker"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
        "redundancy": {"copies": 2},
        "ports": {"client": 7100, "peer": 7110, "metrics": 9800, "nbd": 10809},
        "dataDir": "/srv/sheepdog",
        "tls": {"secretName": "mine"},
        "downOutInterval": "1h",
        "resources": {"requests": {"cpu": "1"}},
        "seccomp": "Unconfined",
        "storageClass": {"name": "fast", "default": true, "reclaimPolicy": "Retain", "fsType": "xfs", "parameters": {"copies": "2"}},
        "snapshotClass": {"name": "fast", "deletionPolicy": "Retain"},
    }));
    golden("everything.yaml", &build(&c, &[("a", "nvme"), ("b", "default")], &[]).text);
}

fn revision(m: &Made, n: usize) -> String {
    let template = &m.desired.daemonsets[n].spec.as_ref().unwrap().template;
    template.metadata.as_ref().unwrap().annotations.as_ref().unwrap()["sheepdog.io/revision"].clone()
}

/// Nodes come and go without a restart of the others; options do not.
#[test]
fn what_changes_the_revision() {
    let least = json!({"nodeGroups": [{"name": "default"}]});
    let two = build(&cluster(least.clone()), &[("a", "default"), ("b", "default")], &[]);
    let three =
        build(&cluster(least.clone()), &[("a", "default"), ("b", "default"), ("c", "default")], &["b"]);
    assert_eq!((revision(&two, 0), revision(&two, 1)), (revision(&three, 0), revision(&three, 1)));
    let mut spec = least.clone();
    spec["gateways"] = json!({"nodeSelector": {"x": "y"}});
    assert_eq!(revision(&two, 1), revision(&build(&cluster(spec), &[("a", "default")], &[]), 1));
    let mut spec = least;
    spec["logLevel"] = json!("debug");
    assert_ne!(revision(&two, 0), revision(&build(&cluster(spec), &[("a", "default")], &[]), 0));
}

#[test]
fn a_node_that_leaves_is_no_seed_and_nobody_is_its_own() {
    let c = cluster(json!({"nodeGroups": [{"name": "default"}]}));
    let m = build(&c, &[("a", "default"), ("b", "default"), ("c", "default")], &["c"]);
    let data = m.desired.config.data.unwrap();
    assert_eq!(data["a"], "zone = \"east\"\nseed = [\"10.0.0.2:7001\"]\n");
    assert_eq!(data["c"], "seed = [\"10.0.0.1:7001\", \"10.0.0.2:7001\"]\n");
    assert_eq!(data["d"], "zone = \"east\"\nseed = [\"10.0.0.1:7001\", \"10.0.0.2:7001\"]\n");
}

/// Options that sheep take are those that the pods give.
#[test]
fn every_variable_is_an_option_of_sheep() {
    let text = include_str!("../../sheep/src/cli.rs");
    let c = cluster(
        json!({"nodeGroups": [{"name": "default", "vnodes": 3, "journal": {"directory": "/j"}}], "ports": {"nbd": 10809}}),
    );
    let m = build(&c, &[("a", "default")], &[]);
    for set in &m.desired.daemonsets {
        let container = &set.spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers[0];
        for v in container.env.as_ref().unwrap().iter().filter(|v| v.name.starts_with("SHEEP_")) {
            assert!(text.contains(&format!("env = \"{}\"", v.name)), "{}", v.name);
        }
    }
}
