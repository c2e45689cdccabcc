//! What is built for a cluster, as Kubernetes gets it.

#![allow(clippy::unwrap_used)]

use serde_json::json;
use sheepdog_crds::SheepdogCluster;
use sheepdog_operator::cluster::build::{self, Input, Installed, classes};
use sheepdog_operator::cluster::members::Members;
use sheepdog_operator::cluster::seen::NodeSeen;
use sheepdog_operator::names::Names;
use std::collections::BTreeMap;

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
    desired: build::Desired,
}

impl Made {
    /// A DaemonSet as JSON.
    fn set(&self, n: usize) -> serde_json::Value {
        serde_json::to_value(&self.desired.daemonsets[n]).unwrap()
    }
    fn pod(&self, n: usize) -> serde_json::Value {
        self.set(n)["spec"]["template"]["spec"].clone()
    }
    /// A variable of the sheep's container.
    fn env(&self, n: usize, name: &str) -> Option<String> {
        let pod = self.pod(n);
        let all = pod["containers"][0]["env"].as_array().unwrap();
        all.iter().find(|v| v["name"] == name).map(|v| v["value"].as_str().unwrap().to_owned())
    }
    /// (path, type) of a volume on the host.
    fn host_path(&self, n: usize, name: &str) -> (String, String) {
        let pod = self.pod(n);
        let v = pod["volumes"].as_array().unwrap().iter().find(|v| v["name"] == name).unwrap().clone();
        let word = |k: &str| v["hostPath"][k].as_str().unwrap().to_owned();
        (word("path"), word("type"))
    }
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
        csi_image: Some("sheepdog/csi:0.1.0".into()),
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
    Made { desired }
}

#[test]
fn the_least_cluster() {
    let c = cluster(json!({"nodeGroups": [{"name": "default"}]}));
    let m = build(&c, &[("a", "default"), ("b", "default"), ("c", "default")], &[]);
    assert_eq!(m.desired.daemonsets.len(), 2);
    let (sheep, gateway) = (m.set(0), m.set(1));
    assert_eq!(
        (&sheep["metadata"]["name"], &gateway["metadata"]["name"]),
        (&json!("main-sheep"), &json!("main-gateway"))
    );
    for set in [&sheep, &gateway] {
        assert_eq!(set["spec"]["updateStrategy"]["type"], "OnDelete");
        let owner = &set["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["kind"], &owner["controller"]), (&json!("SheepdogCluster"), &json!(true)));
        let pod = &set["spec"]["template"]["spec"];
        assert_eq!(
            (&pod["hostNetwork"], &pod["automountServiceAccountToken"]),
            (&json!(true), &json!(false))
        );
        let security = &pod["containers"][0]["securityContext"];
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(
            security["seccompProfile"],
            json!({"type": "Localhost", "localhostProfile": "sheepdog/io-uring.json"})
        );
        assert_eq!(pod["initContainers"][0]["image"], "sheepdog/operator:0.1.0");
        assert_eq!(pod["containers"][0]["image"], "sheepdog/sheep:0.1.0");
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
        // The selector never changes, and selects the template.
        let labels = set["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
        for (k, v) in set["spec"]["selector"]["matchLabels"].as_object().unwrap() {
            assert_eq!(labels.get(k), Some(v));
        }
    }
    assert_eq!(build::daemonset::named_nodes(&m.desired.daemonsets[0]), ["a", "b", "c"]);
    let terms = m.pod(1)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"].clone();
    assert_eq!(terms.as_array().unwrap().len(), 1, "all of them must hold");
    assert_eq!(
        terms[0]["matchFields"][2],
        json!({"key": "metadata.name", "operator": "NotIn", "values": ["c"]})
    );
    assert_eq!(m.pod(1)["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(m.env(0, "SHEEP_DIR").as_deref(), Some("/var/lib/sheepdog/main/data"));
    assert_eq!(m.host_path(0, "disk-0"), ("/var/lib/sheepdog/main/data".into(), "DirectoryOrCreate".into()));
    assert_eq!(m.env(0, "SHEEP_NBD_SOCKET").as_deref(), Some("/var/lib/sheepdog/main/run/nbd.sock"));
    assert_eq!((m.env(0, "SHEEP_GATEWAY"), m.env(1, "SHEEP_GATEWAY").as_deref()), (None, Some("true")));
    assert_eq!((m.env(0, "SHEEP_CACHE"), m.env(0, "SHEEP_CACHE_SIZE")), (None, None));
    let budget = m.desired.budget.spec.as_ref().unwrap();
    assert_eq!(serde_json::to_value(&budget.min_available).unwrap(), 2);
    let class = classes::storage_class(&c, &Names::of(&c)).unwrap().unwrap();
    assert_eq!(
        (class.metadata.name.as_deref(), class.provisioner.as_str()),
        (Some("main"), "csi.sheepdog.io")
    );
}

#[test]
fn a_cluster_with_everything() {
    let c = cluster(json!({
        "image": "registry.example.com/sheep:2",
        "imagePullPolicy": "Always",
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
        "cache": "1.5G",
        "seccomp": "Unconfined",
        "storageClass": {"name": "fast", "default": true, "reclaimPolicy": "Retain", "fsType": "xfs", "parameters": {"copies": "2"}},
        "snapshotClass": {"name": "fast", "deletionPolicy": "Retain"},
    }));
    let m = build(&c, &[("a", "nvme"), ("b", "default")], &[]);
    assert_eq!(m.desired.daemonsets.len(), 3);
    assert_eq!(m.set(0)["metadata"]["name"], "main-sheep-nvme");
    for (name, value) in [
        ("SHEEP_DIR", "/mnt/d1,/mnt/d2"),
        ("SHEEP_JOURNAL", "/mnt/fast,size=2Gi"),
        ("SHEEP_VNODES", "64"),
        ("SHEEP_PORT", "7100"),
        ("SHEEP_CLUSTER_PORT_OFFSET", "10"),
        ("SHEEP_METRICS_PORT", "9800"),
        ("SHEEP_NBD_PORT", "10809"),
        ("SHEEP_DOWN_OUT_INTERVAL", "1h"),
        ("SHEEP_NBD_SOCKET", "/srv/sheepdog/main/run/nbd.sock"),
        ("DOG_PORT", "7100"),
        ("SHEEP_CACHE", "true"),
        // 1.5 GB, in MiB, rounded up.
        ("SHEEP_CACHE_SIZE", "1431"),
    ] {
        assert_eq!(m.env(0, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(m.env(2, "SHEEP_CACHE_SIZE").as_deref(), Some("1431"), "gateways own volumes as well");
    // Directories that a person named are never made.
    assert_eq!(m.host_path(0, "disk-1"), ("/mnt/d2".into(), "Directory".into()));
    let pod = m.pod(0);
    assert!(pod.get("initContainers").is_none_or(|i| i == &json!([])));
    assert_eq!(pod["containers"][0]["resources"]["requests"]["cpu"], "2");
    assert_eq!(m.pod(1)["containers"][0]["resources"]["requests"]["cpu"], "1");
    assert_eq!(pod["tolerations"][0]["key"], "storage");
    assert_eq!(m.pod(2)["nodeSelector"], json!({"kubernetes.io/os": "linux", "role": "worker"}));
    let names = Names::of(&c);
    let class = classes::storage_class(&c, &names).unwrap().unwrap();
    let parameters = class.parameters.clone().unwrap();
    assert_eq!(
        (parameters["copies"].as_str(), parameters["csi.storage.k8s.io/fstype"].as_str()),
        ("2", "xfs")
    );
    assert!(classes::must_be_replaced(
        &class,
        &classes::storage_class(&cluster(json!({"nodeGroups": [{}]})), &names).unwrap().unwrap()
    ));
    let snapshots = classes::snapshot_class(&c, &names).unwrap();
    assert_eq!(
        (snapshots.metadata.name.as_deref(), &snapshots.data["deletionPolicy"]),
        (Some("fast"), &json!("Retain"))
    );
}

/// Block devices are mounted by a container that runs before the sheep; the sheep has no more privileges than any other.
#[test]
fn devices() {
    let two = ["/dev/disk/by-id/nvme-A:1", "/dev/sdb"];
    let c = cluster(json!({"nodeGroups": [{"name": "default", "devices": two, "deviceFsType": "ext4"}]}));
    let m = build(&c, &[("a", "default")], &[]);
    let pod = m.pod(0);
    let at = build::disks::paths(&c, &Names::of(&c), &c.spec.node_groups[0]);
    assert_eq!(
        at,
        ["/var/lib/sheepdog/main/disks/nvme-A_1-680f19e7", "/var/lib/sheepdog/main/disks/sdb-85622796"]
    );
    for (name, value) in [
        ("SHEEP_DIR", at.join(",").as_str()),
        ("SHEEP_HOME", "/var/lib/sheepdog/main/home"),
        ("SHEEP_ONLY_MOUNTED", "true"),
    ] {
        assert_eq!(m.env(0, name).as_deref(), Some(value), "{name}");
        assert_eq!(m.env(1, name).is_some(), name == "SHEEP_DIR", "a gateway has none");
    }
    let init = &pod["initContainers"][1];
    assert_eq!((&init["name"], &init["image"]), (&json!("disks"), &json!("sheepdog/csi:0.1.0")));
    assert_eq!(
        init["args"],
        json!([
            "disks",
            "--cluster=sheepdog/main",
            "--fs-type=ext4",
            "--dir=/var/lib/sheepdog/main/disks",
            "--report=/termination-log",
            "--need-one",
            format!("--disk={}={}", two[0], at[0]),
            format!("--disk={}={}", two[1], at[1]),
        ])
    );
    assert_eq!(init["securityContext"]["privileged"], true);
    let propagation = |container: &serde_json::Value| {
        let mounts = container["volumeMounts"].as_array().unwrap();
        mounts.iter().find(|v| v["name"] == "disks").unwrap()["mountPropagation"].clone()
    };
    let sheep = &pod["containers"][0];
    assert_eq!((propagation(init), propagation(sheep)), (json!("Bidirectional"), json!("HostToContainer")));
    assert_eq!(sheep["securityContext"]["privileged"], false);
    assert!(!sheep["volumeMounts"].to_string().contains("/dev"), "the sheep does not see the host's devices");
    assert_eq!(m.host_path(0, "dev"), ("/dev".into(), "Directory".into()));
    // Behind directories the identity stays where it was, and the pod starts without devices as well.
    let c = cluster(
        json!({"nodeGroups": [{"name": "default", "directories": ["/mnt/d1"], "devices": ["/dev/sdb"]}]}),
    );
    let m = build(&c, &[("a", "default")], &[]);
    assert_eq!(m.env(0, "SHEEP_HOME"), None);
    assert!(m.env(0, "SHEEP_DIR").unwrap().starts_with("/mnt/d1,/var/lib/sheepdog/main/disks/sdb-"));
    assert!(!m.pod(0)["initContainers"].to_string().contains("--need-one"));
}

#[test]
fn classes_for_volumes() {
    let names = |c: &SheepdogCluster| Names::of(c);
    let c = cluster(json!({
        "nodeGroups": [{}], "snapshotClass": {"name": "snaps"},
        "volumeAttributesClasses": [{"name": "two", "parameters": {"copies": 2}}, {"name": "three", "parameters": {"copies": 3}},
            {"name": "slow", "parameters": {"iops": 500, "iopsBurst": 900, "bandwidth": "50Mi", "bandwidthBurst": "1Gi"}},
            {"name": "strips", "parameters": {"copyPolicy": "4:2", "iops": 0}}],
    }));
    let all = classes::attributes_classes(&c, &names(&c));
    assert_eq!(all.len(), 4);
    assert_eq!(
        all[2].data["parameters"],
        json!({"iops": "500", "iopsBurst": "900", "bandwidth": "50Mi", "bandwidthBurst": "1Gi"})
    );
    assert_eq!(all[3].data["parameters"], json!({"copyPolicy": "4:2", "iops": "0"}));
    // What the classes say is what the driver knows.
    let driver = include_str!("../../csi/src/parameters.rs");
    let known = driver.split("pub const MUTABLE").nth(1).and_then(|t| t.split(';').nth(1)).unwrap();
    for key in all.iter().flat_map(|c| c.data["parameters"].as_object().unwrap().keys()) {
        assert!(known.contains(&format!("\"{key}\"")), "{key}: {known}");
    }
    assert_eq!(all[0].metadata.name.as_deref(), Some("two"));
    assert_eq!(all[0].data, json!({"driverName": "csi.sheepdog.io", "parameters": {"copies": "2"}}));
    let profile = classes::storage_profile(&c, &names(&c));
    assert_eq!(profile.metadata.name.as_deref(), Some("main"));
    assert_eq!(
        profile.data["spec"]["claimPropertySets"][0],
        json!({"accessModes": ["ReadWriteMany"], "volumeMode": "Block"})
    );
    assert_eq!(profile.data["spec"]["snapshotClass"], "snaps");
    let c = cluster(json!({"nodeGroups": [{}], "snapshotClass": {"create": false}}));
    assert!(classes::storage_profile(&c, &names(&c)).data["spec"].get("snapshotClass").is_none());
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
        json!({"nodeGroups": [{"name": "default", "vnodes": 3, "journal": {"directory": "/j"}, "devices": ["/dev/sdb"]}], "ports": {"nbd": 10809}, "cache": "1Gi"}),
    );
    let m = build(&c, &[("a", "default")], &[]);
    for set in &m.desired.daemonsets {
        let container = &set.spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers[0];
        for v in container.env.as_ref().unwrap().iter().filter(|v| v.name.starts_with("SHEEP_")) {
            assert!(text.contains(&format!("env = \"{}\"", v.name)), "{}", v.name);
        }
    }
}
