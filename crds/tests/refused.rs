//! Good objects are taken, and bad objects of every kind are refused with a sentence that helps. The rules are those of the schema that a server gets.

use serde_json::{Value, json};
use sheepdog_crds::check::accept;
use sheepdog_crds::{SheepdogCluster, Vdi, VdiSnapshot};

fn cluster(spec: Value) -> Value {
    json!({"apiVersion": "sheepdog.io/v1alpha1", "kind": "SheepdogCluster", "metadata": {"name": "main", "namespace": "sheepdog"}, "spec": spec})
}

fn least() -> Value {
    json!({"nodeGroups": [{"name": "default"}]})
}

/// The least spec with this change.
fn with(change: Value) -> Value {
    let mut spec = least();
    for (key, value) in change.as_object().expect("an object") {
        spec[key] = value.clone();
    }
    cluster(spec)
}

/// One VolumeAttributesClass.
fn attributes(parameters: Value) -> Value {
    json!({"volumeAttributesClasses": [{"name": "one", "parameters": parameters}]})
}

#[track_caller]
fn refused<K: kube::CustomResourceExt + serde::de::DeserializeOwned + std::fmt::Debug>(
    object: &Value,
    old: Option<&Value>,
    word: &str,
) {
    let e = accept::<K>(object, old).expect_err("refused");
    assert!(e.to_string().contains(word), "wanted {word:?} in {e}");
}

#[test]
fn the_least_cluster_is_taken_and_has_its_defaults() {
    let c: SheepdogCluster = accept(&cluster(least()), None).expect("good");
    assert_eq!(c.spec.redundancy.copies, Some(3));
    assert_eq!((c.spec.ports.client, c.spec.ports.peer, c.spec.ports.metrics), (7000, 7001, 9700));
    assert_eq!(c.spec.data_dir, "/var/lib/sheepdog");
    assert_eq!(c.spec.down_out_interval, "10m");
    assert_eq!(c.spec.zones.node_label, "topology.kubernetes.io/zone");
    assert!(c.spec.gateways.enabled && c.spec.list_vdis && !c.spec.paused);
    assert!(c.spec.storage_class.create && c.spec.snapshot_class.create);
    assert_eq!((c.spec.trash, c.spec.cache), (None, None));
}

#[test]
fn good_clusters_are_taken() {
    for change in [
        json!({"trash": {"keep": "0s"}}),
        json!({"trash": {"keep": "30d"}}),
        json!({"cache": "1Mi"}),
        json!({"cache": "1.5Gi"}),
        json!({"cache": "64Ti"}),
        attributes(json!({"copyPolicy": "16:15"})),
        attributes(json!({"iops": 0})),
        attributes(json!({"iops": 500, "iopsBurst": 1000, "bandwidth": "64Ki", "bandwidthBurst": "0"})),
        attributes(json!({"bandwidth": "0"})),
    ] {
        accept::<SheepdogCluster>(&with(change.clone()), None).unwrap_or_else(|e| panic!("{change}: {e}"));
    }
}

#[test]
fn bad_clusters_are_refused() {
    for (change, word) in [
        (json!({"redundancy": {}}), "either copies"),
        (json!({"redundancy": {"copies": 3, "erasureCoding": {"data": 4, "parity": 2}}}), "either copies"),
        (json!({"minCopies": 4}), "minCopies must not be larger"),
        (json!({"dataDir": "var/lib"}), "absolute path"),
        (json!({"dataDir": "/var/../etc"}), "absolute path"),
        (json!({"downOutInterval": "soon"}), "write for example 30s"),
        (json!({"downOutInterval": "0m"}), "write for example 30s"),
        (json!({"ports": {"client": 7000, "peer": 7000}}), "port of its own"),
        (json!({"ports": {"nbd": 7001}}), "port of its own"),
        (json!({"ports": {"client": 7005, "peer": 7001}}), "ports.peer must be larger"),
        (json!({"nodeGroups": [{"name": "NVMe"}]}), "lower-case letters"),
        (json!({"nodeGroups": [{"name": "a", "directories": ["mnt"]}]}), "absolute path"),
        (json!({"nodeGroups": [{"name": "a", "directories": ["/mnt/a,b"]}]}), "without spaces, commas"),
        (json!({"nodeGroups": [{"name": "a", "directories": ["/mnt/a", "/mnt/a"]}]}), "named twice"),
        (json!({"nodeGroups": [{"name": "a", "devices": ["/mnt/sdb"]}]}), "path below /dev"),
        (json!({"nodeGroups": [{"name": "a", "devices": ["/dev/../sdb"]}]}), "path below /dev"),
        (json!({"nodeGroups": [{"name": "a", "devices": ["/dev/sd b"]}]}), "path below /dev"),
        (json!({"nodeGroups": [{"name": "a", "devices": ["/dev/sdb", "/dev/sdb"]}]}), "named twice"),
        (json!({"nodeGroups": [{"name": "a", "deviceFsType": "btrfs"}]}), "unknown variant"),
        (
            json!({"volumeAttributesClasses": [{"name": "Three", "parameters": {"copies": 3}}]}),
            "VolumeAttributesClass consists of",
        ),
        (json!({"volumeAttributesClasses": [{"name": "three", "parameters": {}}]}), "parameters say nothing"),
        (attributes(json!({"copies": 3, "copyPolicy": "4:2"})), "either copies"),
        (attributes(json!({"copyPolicy": "17:2"})), "at most 16:15"),
        (attributes(json!({"copyPolicy": "4:0"})), "at most 16:15"),
        (attributes(json!({"copies": 3, "iopsBurst": 5})), "iopsBurst belongs to a limit"),
        (attributes(json!({"bandwidth": "0", "bandwidthBurst": "1Mi"})), "bandwidthBurst belongs to a limit"),
        (attributes(json!({"bandwidth": "63Ki"})), "at least 64Ki"),
        (json!({"trash": {}}), "keep"),
        (json!({"trash": {"keep": "24"}}), "write for example 24h"),
        (json!({"trash": {"keep": "1.5h"}}), "write for example 24h"),
        (json!({"cache": "much"}), "write for example 1Gi"),
        (json!({"cache": "0"}), "from 1Mi to 64Ti"),
        (json!({"cache": "65Ti"}), "from 1Mi to 64Ti"),
        (json!({"nodeGroups": [{"name": "a", "journal": {"directory": "j"}}]}), "journal.directory"),
        (json!({"nodeGroups": [{"name": "a", "journal": {"directory": "/j", "size": "1"}}]}), "journal.size"),
        (json!({"recovery": {"maxBytesPerSecond": "fast"}}), "write for example 100Mi"),
        (json!({"recovery": {"maxBytesPerSecond": "0"}}), "larger than 0"),
        (json!({"updateStrategy": {"type": "Recreate"}}), "unknown variant"),
        (json!({"seccomp": "None"}), "unknown variant"),
        (json!({"deletionPolicy": "Wipe"}), "unknown variant"),
        (json!({"storageClass": {"fsType": "btrfs"}}), "unknown variant"),
    ] {
        refused::<SheepdogCluster>(&with(change), None, word);
    }
    let mut long = cluster(least());
    long["metadata"]["name"] = json!("a".repeat(41));
    refused::<SheepdogCluster>(&long, None, "at most 40 characters");
    refused::<SheepdogCluster>(&cluster(json!({})), None, "nodeGroups");
}

#[test]
fn what_format_decided_cannot_be_changed() {
    let old = with(json!({"minCopies": 2, "tls": {"secretName": "own"}}));
    for (change, word) in [
        (json!({"ports": {"client": 7010, "peer": 7011}}), "ports cannot be changed"),
        (json!({"zones": {"nodeLabel": "rack"}}), "zones cannot be changed"),
        (json!({"dataDir": "/srv"}), "dataDir cannot be changed"),
        (json!({"downOutInterval": "1h"}), "downOutInterval is decided"),
        (json!({"strictZones": true}), "strictZones is decided"),
        (json!({"tls": {"secretName": "other"}}), "tls cannot be changed"),
        (json!({"minCopies": 1}), "minCopies is decided"),
    ] {
        let mut new = old.clone();
        for (key, value) in change.as_object().expect("an object") {
            new["spec"][key] = value.clone();
        }
        refused::<SheepdogCluster>(&new, Some(&old), word);
    }
    // And leaving it out is a change, too.
    refused::<SheepdogCluster>(&with(json!({"minCopies": 2})), Some(&old), "tls cannot be changed");
    let tls = with(json!({"tls": {"secretName": "own"}}));
    refused::<SheepdogCluster>(&tls, Some(&old), "minCopies is decided");
    // What may change.
    let mut new = old.clone();
    new["spec"]["redundancy"] = json!({"copies": 2});
    new["spec"]["paused"] = json!(true);
    new["spec"]["nodeGroups"] = json!([{"name": "default"}, {"name": "nvme", "directories": ["/mnt/n"]}]);
    accept::<SheepdogCluster>(&new, Some(&old)).expect("good");
}

#[test]
fn disks_come_and_go_but_the_home_stays() {
    let groups = |directories: &[&str], devices: &[&str]| {
        with(json!({"nodeGroups": [{"name": "a", "directories": directories, "devices": devices}]}))
    };
    let stays = "holds the identities of its sheep";
    let named = with(json!({"nodeGroups": [{"name": "a"}]}));
    let default = "/var/lib/sheepdog/main/data";
    for (old, new, good) in [
        (groups(&["/d1"], &[]), groups(&["/d1", "/d2"], &["/dev/sdb"]), true),
        (groups(&["/d1", "/d2"], &["/dev/sdb"]), groups(&["/d1"], &[]), true),
        (groups(&["/d1", "/d2"], &[]), groups(&["/d2"], &[]), false),
        (groups(&["/d1", "/d2"], &[]), groups(&["/d2", "/d1"], &[]), false),
        (groups(&["/d1"], &[]), named.clone(), false),
        (groups(&["/d1"], &["/dev/sdb"]), groups(&[], &["/dev/sdb"]), false),
        (groups(&[], &["/dev/sdb"]), groups(&[], &["/dev/sdc"]), true),
        (groups(&[], &["/dev/sdb"]), groups(&["/d1"], &["/dev/sdb"]), false),
        (groups(&[], &["/dev/sdb"]), groups(&[], &[]), false),
        (named.clone(), groups(&[], &[]), true),
        (named.clone(), groups(&[default, "/d2"], &["/dev/sdb"]), true),
        (named.clone(), groups(&["/d1"], &[]), false),
        (named, groups(&[], &["/dev/sdb"]), false),
    ] {
        match good {
            true => drop(accept::<SheepdogCluster>(&new, Some(&old)).expect("good")),
            false => refused::<SheepdogCluster>(&new, Some(&old), stays),
        }
    }
    // Another group is another matter.
    let old = groups(&["/d1"], &[]);
    let new = with(json!({"nodeGroups": [{"name": "b", "devices": ["/dev/sdb"]}]}));
    accept::<SheepdogCluster>(&new, Some(&old)).expect("good");
}

fn vdi(spec: Value) -> Value {
    json!({"apiVersion": "sheepdog.io/v1alpha1", "kind": "Vdi", "metadata": {"name": "disk", "namespace": "sheepdog"}, "spec": spec})
}

/// A Vdi's spec with these limits.
fn limited(limits: Value) -> Value {
    json!({"cluster": "main", "size": "1Gi", "limits": limits})
}

#[test]
fn limits_of_a_vdi() {
    for limits in [
        json!({}),
        json!({"iops": 0}),
        json!({"iops": 500, "iopsBurst": 0}),
        json!({"bandwidth": "0"}),
        json!({"bandwidth": "64Ki"}),
        json!({"iops": 1, "bandwidth": "50M", "bandwidthBurst": "1Gi"}),
    ] {
        let given = vdi(limited(limits.clone()));
        let taken = accept::<Vdi>(&given, None).unwrap_or_else(|e| panic!("{limits}: {e}"));
        assert_eq!(serde_json::to_value(taken.spec.limits).expect("JSON"), limits);
        // They may come, change and go.
        let without = vdi(json!({"cluster": "main", "size": "1Gi"}));
        accept::<Vdi>(&given, Some(&without)).expect("they come");
        accept::<Vdi>(&without, Some(&given)).expect("they go");
    }
}

#[test]
fn bad_vdis_are_refused() {
    let good = vdi(json!({"cluster": "main", "size": "10Gi"}));
    assert_eq!(accept::<Vdi>(&good, None).expect("good").vdi_name(), "disk");
    for (spec, word) in [
        (json!({"cluster": "main"}), "size"),
        (json!({"size": "1Gi"}), "cluster"),
        (json!({"cluster": "main", "size": "big"}), "write for example 10Gi"),
        (json!({"cluster": "main", "size": "0"}), "larger than 0"),
        (json!({"cluster": "main", "size": "-1Gi"}), "larger than 0"),
        (json!({"cluster": "main", "size": "1Gi", "redundancy": {}}), "either copies"),
        (limited(json!({"iops": -1})), "expected u32"),
        (limited(json!({"iops": "fast"})), "expected u32"),
        (limited(json!({"iopsBurst": 5})), "iopsBurst belongs to a limit"),
        (limited(json!({"iops": 0, "iopsBurst": 5})), "iopsBurst belongs to a limit"),
        (limited(json!({"bandwidth": "fast"})), "write for example 50Mi"),
        (limited(json!({"bandwidth": "65535"})), "at least 64Ki"),
        (limited(json!({"bandwidth": "-1Mi"})), "at least 64Ki"),
        (limited(json!({"bandwidthBurst": "1Mi"})), "bandwidthBurst belongs to a limit"),
        (limited(json!({"bandwidth": "1Mi", "bandwidthBurst": "-1"})), "write for example 100Mi"),
        (json!({"cluster": "main", "size": "1Gi", "vdiName": "a@b"}), "must not contain"),
        (json!({"cluster": "main", "size": "1Gi", "vdiName": "a#1"}), "must not contain"),
        (json!({"cluster": "main", "size": "1Gi", "deletionPolicy": "Keep"}), "unknown variant"),
    ] {
        refused::<Vdi>(&vdi(spec), None, word);
    }
    for (spec, word) in [
        (json!({"cluster": "main", "size": "9Gi"}), "size can only grow"),
        (json!({"cluster": "other", "size": "10Gi"}), "cluster cannot be changed"),
        (json!({"cluster": "main", "size": "10Gi", "vdiName": "x"}), "vdiName cannot be changed"),
        (json!({"cluster": "main", "size": "10Gi", "source": {"vdi": "y"}}), "source cannot be changed"),
    ] {
        refused::<Vdi>(&vdi(spec), Some(&good), word);
    }
    let grown = vdi(json!({"cluster": "main", "size": "10737418241"}));
    accept::<Vdi>(&grown, Some(&good)).expect("one byte more");
}

#[test]
fn bad_snapshots_are_refused() {
    let snapshot = |spec: Value| json!({"apiVersion": "sheepdog.io/v1alpha1", "kind": "VdiSnapshot", "metadata": {"name": "s1"}, "spec": spec});
    let good = snapshot(json!({"cluster": "main", "vdi": "disk"}));
    assert_eq!(accept::<VdiSnapshot>(&good, None).expect("good").tag(), "s1");
    for (spec, word) in [
        (json!({"cluster": "main"}), "vdi"),
        (json!({"cluster": "main", "vdi": "disk", "tag": "17"}), "must not be a number"),
        (json!({"cluster": "main", "vdi": "disk", "tag": "a@b"}), "must not be a number"),
    ] {
        refused::<VdiSnapshot>(&snapshot(spec), None, word);
    }
    for (spec, word) in [
        (json!({"cluster": "main", "vdi": "other"}), "cluster and vdi cannot be changed"),
        (json!({"cluster": "main", "vdi": "disk", "tag": "x"}), "tag cannot be changed"),
    ] {
        refused::<VdiSnapshot>(&snapshot(spec), Some(&good), word);
    }
}
