//! Pods: nodes, attachments, mounts.

use super::world::*;
use crate::why::facts::Facts;
use crate::why::verdict::Code;
use serde_json::json;

/// A second pod on n1 with the claim that pod/app has on n0.
fn two(f: &mut Facts) {
    f.pods.push(waiting("second", "data", "n1"));
    f.events.push(event("Pod", "second", "FailedAttachVolume", "Multi-Attach error for volume \"pvc-data\""));
}

#[test]
fn attached_elsewhere() {
    let f = broken(two);
    let v = blames(&f, "pod/second", Code::AttachedElsewhere, &["node n1", "node n0", "pod/app uses it"]);
    runs(&v, "kubectl delete pod -n shop app");
    // Asked about the claim it is the same: one of its pods waits.
    blames(&f, "pvc/data", Code::AttachedElsewhere, &["pod/app uses it"]);
    fine(&f, "pod/app");
}

#[test]
fn many_nodes_may_share() {
    let f = broken(|f| {
        two(f);
        f.claims[0].spec.as_mut().unwrap().access_modes = Some(vec!["ReadWriteMany".into()]);
        f.attachments.push(attachment("pvc-data", "n1", json!({"attached": true})));
        f.pods[1] = running("second", "data", "n1");
    });
    fine(&f, "pod/second");
}

#[test]
fn attached_to_a_node_that_is_not_heard() {
    let f = broken(|f| {
        two(f);
        f.nodes[0] = node("n0", false, None);
    });
    let v = blames(&f, "pod/second", Code::AttachedElsewhere, &["node n0, which is NotReady"]);
    runs(&v, "kubectl taint node n0 node.kubernetes.io/out-of-service=yes:NoExecute");
    assert!(v.text().contains("the operator deletes the pods there"));
    let f = broken(|f| {
        two(f);
        f.nodes[0] = node("n0", true, Some("sheepdog.io/lost"));
    });
    blames(&f, "pod/second", Code::AttachedElsewhere, &["n0, which is lost"]);
    let f = broken(|f| {
        two(f);
        f.nodes.remove(0);
    });
    let v = blames(&f, "pod/second", Code::AttachedElsewhere, &["does not exist any more"]);
    runs(&v, "kubectl delete volumeattachment va-pvc-data-n0");
}

#[test]
fn attached_elsewhere_and_on_its_way() {
    let f = broken(|f| {
        two(f);
        f.pods[0].metadata.deletion_timestamp = Some(from(json!("2026-01-01T00:00:00Z")));
    });
    let v = blames(&f, "pod/second", Code::AttachedElsewhere, &["is being deleted"]);
    runs(&v, "why -n shop pod/app");
    let f = broken(|f| {
        two(f);
        f.pods.remove(0);
        f.nodes[0].status.as_mut().unwrap().volumes_in_use =
            Some(vec!["kubernetes.io/csi/csi.sheepdog.io^uuid-pvc-data".into()]);
    });
    blames(&f, "pod/second", Code::AttachedElsewhere, &["has not unmounted it yet"]);
    let f = broken(|f| {
        two(f);
        f.pods.remove(0);
    });
    blames(&f, "pod/second", Code::AttachedElsewhere, &["about to be detached"]);
    let f = broken(|f| {
        two(f);
        f.pods.remove(0);
        f.attachments[0] =
            attachment("pvc-data", "n0", json!({"attached": true, "detachError": {"message": "no answer"}}));
        f.attachments[0].metadata.deletion_timestamp = Some(from(json!("2026-01-01T00:00:00Z")));
    });
    blames(&f, "pod/second", Code::BeingDetached, &["no answer"]);
}

#[test]
fn attaching_fails() {
    let wanted = |f: &mut Facts, status| {
        f.pods[0] = waiting("app", "data", "n0");
        f.attachments[0] = attachment("pvc-data", "n0", status);
    };
    let error = |text: &str| json!({"attached": false, "attachError": {"message": text}});
    let f =
        broken(|f| wanted(f, error("rpc error: node n0 has 9 volumes attached and takes no more than 9")));
    blames(&f, "pod/app", Code::AttachFailed, &["takes no more than 9"]);
    let f =
        broken(|f| wanted(f, error("volume u is attached to node n7: it has to be detached there first")));
    let v = blames(&f, "pod/app", Code::AttachFailed, &["n7"]);
    runs(&v, "dog vdi detach pvc-data");
    let f = broken(|f| wanted(f, json!({"attached": false})));
    blames(&f, "pod/app", Code::BeingAttached, &["100 s"]);
    let f = broken(|f| {
        wanted(f, json!({"attached": false}));
        f.attachments.clear();
    });
    blames(&f, "pod/app", Code::BeingAttached, &["has not asked"]);
    // Why nobody attaches comes first.
    let f = broken(|f| {
        wanted(f, error("rpc error: code = Unavailable"));
        f.clusters[0] = cluster("False", "Impaired", "no leader");
    });
    blames(&f, "pod/app", Code::ClusterNotAvailable, &["no leader"]);
}

#[test]
fn the_driver_is_not_on_the_node() {
    let gone = |f: &mut Facts| {
        f.pods[0] = waiting("app", "data", "n0");
        f.csi_nodes.remove(0);
        f.system.retain(|p| crate::words::name(p) != "csi-node-0");
    };
    let f = broken(|f| {
        gone(f);
        f.daemonsets[0].spec.as_mut().unwrap().template.spec.as_mut().unwrap().node_selector =
            Some([("disk".to_owned(), "ssd".to_owned())].into());
    });
    let v = blames(&f, "pod/app", Code::DriverNotRegistered, &["node n0", "label disk=ssd"]);
    runs(&v, "kubectl describe -n sd ds/csi-node");
    let f = broken(|f| {
        gone(f);
        f.nodes[0] = node("n0", true, Some("gpu"));
    });
    blames(&f, "pod/app", Code::DriverNotRegistered, &["taint gpu:NoSchedule"]);
    let f = broken(|f| {
        gone(f);
        f.daemonsets.clear();
    });
    blames(&f, "pod/app", Code::DriverNotRegistered, &["no DaemonSet"]);
    let f = broken(|f| {
        gone(f);
        f.system.push(system("csi-node-0", "csi-node", "n0", false));
    });
    blames(&f, "pod/app", Code::DriverNotRegistered, &["pod/csi-node-0 is not ready"]);
    let f = broken(|f| {
        f.pods[0] = waiting("app", "data", "n0");
        f.csi_nodes.remove(0);
    });
    blames(&f, "pod/app", Code::DriverNotRegistered, &["registrar has not done its work"]);
}

#[test]
fn the_nodes_own_pods() {
    let f = broken(|f| {
        f.pods[0] = waiting("app", "data", "n0");
        f.system[3] = system("csi-node-0", "csi-node", "n0", false);
    });
    blames(&f, "pod/app", Code::CsiNodeNotReady, &["csi-node-0 is not ready"]);
    let f = broken(|f| {
        f.pods[0] = waiting("app", "data", "n0");
        f.system.push(system("csi-fuse-0", "csi-fuse", "n0", false));
    });
    blames(&f, "pod/app", Code::CsiNodeNotReady, &["csi-fuse-0"]);
    // A running pod's I/O waits for the sheep of its node.
    let f = broken(|f| f.system[0] = system("main-sheep-0", "sheep", "n0", false));
    let v = blames(&f, "pod/app", Code::SheepNotReady, &["main-sheep-0 is not ready"]);
    runs(&v, "kubectl logs -n sd main-sheep-0");
    let f = broken(|f| {
        f.system.remove(0);
        f.clusters[0].spec.gateways.enabled = false;
    });
    blames(&f, "pod/app", Code::NoSheepOnNode, &["gateways.enabled is false"]);
    // While one is replaced by another the ready one counts.
    let f = broken(|f| f.system.push(system("main-sheep-9", "sheep", "n0", false)));
    fine(&f, "pod/app");
}

#[test]
fn the_node_of_the_pod() {
    let f = broken(|f| f.nodes[0] = node("n0", false, None));
    let v = blames(&f, "pod/app", Code::NodeNotReady, &["n0, which is NotReady"]);
    runs(&v, "kubectl taint node n0");
    let f = broken(|f| f.nodes[0] = node("n0", true, Some("sheepdog.io/lost")));
    blames(&f, "pod/app", Code::NodeLost, &["lost"]);
    let f = broken(|f| {
        f.nodes.remove(0);
    });
    blames(&f, "pod/app", Code::NodeGone, &["does not exist any more"]);
}

#[test]
fn no_node_takes_it() {
    let f = broken(|f| {
        f.pods[0] = unscheduled(
            "app",
            "data",
            "0/2 nodes are available: 2 node(s) had volume node affinity conflict.",
        )
    });
    let v = blames(&f, "pod/app", Code::VolumeNodeAffinity, &["pvc-data", ID]);
    assert!(v.text().contains("n0, n1"));
    let f = broken(|f| f.pods[0] = unscheduled("app", "data", "2 node(s) exceed max volume count"));
    blames(&f, "pod/app", Code::TooManyVolumes, &[]);
    let f = broken(|f| {
        f.pods[0] = unscheduled(
            "app",
            "data",
            "2 Insufficient memory, 1 node(s) had untolerated taint {sheepdog.io/lost: }",
        )
    });
    let v = blames(&f, "pod/app", Code::Unschedulable, &["not about its volumes"]);
    assert!(v.text().contains("goes when the node is heard again"));
    let f = broken(|f| {
        f.pods.push(unscheduled(
            "second",
            "data",
            "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
        ));
        f.claims[0].spec.as_mut().unwrap().access_modes = Some(vec!["ReadWriteOncePod".into()]);
    });
    let v = blames(&f, "pod/second", Code::UsedByOtherPod, &["pod/app uses pvc/data"]);
    runs(&v, "kubectl delete pod -n shop app");
}

#[test]
fn what_the_kubelet_said() {
    let prefix = "MountVolume.MountDevice failed for volume \"pvc-data\" : rpc error: code = FailedPrecondition desc = stage volume u: ";
    for (said, code) in [
        ("the device holds xfs, and ext4 is wanted: it is never formatted over", Code::ForeignData),
        (
            "it was formatted with ext4, but the device shows no signature: nothing is done to it",
            Code::ForeignData,
        ),
        ("e2fsck found damage that it does not repair by itself (exit code 4): x", Code::FileSystemDamaged),
        ("the passphrase in the secret does not open this volume", Code::WrongPassphrase),
        (
            "the volume is encrypted and needs a secret with the key encryptionPassphrase: set ...",
            Code::SecretMissing,
        ),
        ("failed to get NodeStageSecretRef shop/luks: secrets \"luks\" not found", Code::SecretMissing),
        ("the fuse-host does not answer at /run/x: refused", Code::CsiNodeNotReady),
        ("something new", Code::MountFailed),
    ] {
        let f = broken(|f| {
            f.pods[0] = waiting("app", "data", "n0");
            f.events.push(event("Pod", "app", "FailedMount", &format!("{prefix}{said}")));
        });
        let v = blames(&f, "pod/app", code, &[said]);
        if code == Code::ForeignData {
            runs(&v, "dog vdi snapshot pvc-data -s as-found");
        }
    }
    let f = broken(|f| {
        f.pods[0] = waiting("app", "data", "n0");
        f.events.push(event(
            "Pod",
            "app",
            "FailedMount",
            "MountVolume.SetUp failed for volume \"conf\" : configmap \"conf\" not found",
        ));
    });
    blames(&f, "pod/app", Code::PodItself, &["not about Sheepdog", "conf"]);
    // What failed before a container was made, or before the volume was attached, is over.
    let f = broken(|f| {
        f.pods[0] = waiting("app", "data", "n0");
        f.events.push(event("Pod", "app", "FailedMount", "something old"));
        let mut later = event("Pod", "app", "Pulling", "an image");
        later.last_timestamp = Some(from(json!("2026-01-01T00:00:30Z")));
        f.events.push(later);
        f.events.push(event("Pod", "app", "FailedAttachVolume", "Multi-Attach error"));
    });
    blames(&f, "pod/app", Code::BeingStarted, &[]);
    // Once it runs, what was said before does not matter.
    let f = broken(|f| f.events.push(event("Pod", "app", "FailedMount", "something old")));
    fine(&f, "pod/app");
}

#[test]
fn the_pod_itself() {
    let state = |state: serde_json::Value| {
        broken(|f| {
            f.pods[0].status = from(
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}],
                "containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 3, "state": state}]}),
            );
        })
    };
    let crashing = state(json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}));
    let v = blames(&crashing, "pod/app", Code::PodItself, &["its volumes are mounted", "CrashLoopBackOff"]);
    runs(&v, "kubectl logs -n shop app -c app");
    blames(&state(json!({"running": {}})), "pod/app", Code::PodItself, &["not ready"]);
    let f = broken(|f| f.pods[0] = waiting("app", "data", "n0"));
    blames(&f, "pod/app", Code::BeingStarted, &["nothing has failed so far"]);
    let f = broken(|f| f.pods[0].status.as_mut().unwrap().phase = Some("Succeeded".into()));
    fine(&f, "pod/app");
}

#[test]
fn a_pod_that_does_not_end() {
    let f = broken(|f| f.pods[0].metadata.deletion_timestamp = Some(from(json!("2026-01-01T00:00:00Z"))));
    blames(&f, "pod/app", Code::PodDeletionHeld, &["100 s ago", "kubelet has not said"]);
    let f = broken(|f| {
        f.pods[0].metadata.deletion_timestamp = Some(from(json!("2026-01-01T00:00:00Z")));
        f.pods[0].metadata.finalizers = Some(vec!["example.com/x".into()]);
    });
    blames(&f, "pod/app", Code::PodDeletionHeld, &["example.com/x"]);
}

#[test]
fn a_pod_without_our_volumes_is_not_ours() {
    let f = broken(|f| {
        f.pods[0].spec.as_mut().unwrap().volumes = None;
        f.clusters[0] = cluster("False", "Impaired", "no leader");
        f.csi_nodes.clear();
    });
    fine(&f, "pod/app");
}
