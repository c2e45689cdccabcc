//! Claims.

use super::world::*;
use crate::why::verdict::Code;
use serde_json::json;

#[test]
fn a_claim_that_is_not_there() {
    blames(&well(), "pvc/none", Code::NoSuchClaim, &["none", "shop"]);
    let f = broken(|f| f.pods[0] = waiting("app", "gone", "n0"));
    blames(&f, "pod/app", Code::NoSuchClaim, &["pod/app uses it", "gone"]);
}

#[test]
fn without_a_class() {
    let classless = || claim("data", json!({"storageClassName": null}), json!({"phase": "Pending"}));
    let f = broken(|f| f.claims[0] = classless());
    let v = blames(&f, "pvc/data", Code::NoClass, &["no class is the default"]);
    runs(&v, "\"storageClassName\":\"main\"");
    let f = broken(|f| {
        f.claims[0] = classless();
        f.classes[0].metadata.annotations =
            Some([("storageclass.kubernetes.io/is-default-class".to_owned(), "true".to_owned())].into());
    });
    blames(&f, "pvc/data", Code::NoClass, &["has not been given the default one (main)"]);
    let f =
        broken(|f| f.claims[0] = claim("data", json!({"storageClassName": ""}), json!({"phase": "Pending"})));
    blames(&f, "pvc/data", Code::WaitsForVolume, &["no volume is made for it"]);
}

#[test]
fn a_class_that_does_not_exist() {
    let f = broken(|f| {
        f.claims[0] = claim("data", json!({"storageClassName": "fast"}), json!({"phase": "Pending"}))
    });
    let v = blames(&f, "pvc/data", Code::NoSuchClass, &["fast, which does not exist"]);
    assert!(v.text().contains("Classes of Sheepdog: main."));
    // The same for a pod that waits for it.
    let f = broken(|f| {
        f.claims[0] = claim("data", json!({"storageClassName": "fast"}), json!({"phase": "Pending"}));
        f.pods[0] = unscheduled(
            "app",
            "data",
            "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
        );
    });
    blames(&f, "pod/app", Code::NoSuchClass, &["fast"]);
}

#[test]
fn another_provisioner() {
    let f = broken(|f| {
        f.classes.push(from(json!({"metadata": {"name": "disks"}, "provisioner": "ebs.csi.aws.com"})));
        f.claims[0] = claim("data", json!({"storageClassName": "disks"}), json!({"phase": "Pending"}));
    });
    blames(&f, "pvc/data", Code::OtherProvisioner, &["disks", "ebs.csi.aws.com", "not to Sheepdog"]);
    // Bound to somebody else's: nothing of ours.
    let f = broken(|f| {
        f.volumes[0] = from(
            json!({"metadata": {"name": "pvc-data"}, "spec": {"csi": {"driver": "ebs.csi.aws.com", "volumeHandle": "v"}}}),
        );
    });
    fine(&f, "pvc/data");
    assert!(ask(&f, "pvc/data").text().contains("not Sheepdog's"));
}

#[test]
fn wait_for_first_consumer() {
    let late = |f: &mut crate::why::facts::Facts| {
        f.classes[0].volume_binding_mode = Some("WaitForFirstConsumer".into());
        f.claims[0] = pending("data");
    };
    let f = broken(|f| {
        late(f);
        f.pods.clear();
    });
    blames(&f, "pvc/data", Code::WaitsForPod, &["no pod uses the claim"]);
    let f = broken(|f| {
        late(f);
        f.pods[0] = unscheduled("app", "data", "0/2 nodes are available: 2 Insufficient cpu.");
    });
    blames(&f, "pvc/data", Code::Unschedulable, &["Insufficient cpu"]);
}

#[test]
fn the_cluster_comes_before_what_it_causes() {
    let f = broken(|f| {
        f.claims[0] = pending("data");
        f.clusters[0] = cluster("False", "TooFewNodes", "2 of 3 sheep");
        f.events.push(event(
            "PersistentVolumeClaim",
            "data",
            "ProvisioningFailed",
            "rpc error: code = Unavailable",
        ));
    });
    let v = blames(&f, "pvc/data", Code::ClusterNotAvailable, &["TooFewNodes", "2 of 3 sheep"]);
    runs(&v, "kubectl sheepdog status -n sd main");
    let f = broken(|f| {
        f.claims[0] = pending("data");
        f.clusters.clear();
    });
    blames(&f, "pvc/data", Code::NoCluster, &["no SheepdogCluster"]);
    let f = broken(|f| {
        f.claims[0] = pending("data");
        f.clusters[0].status = None;
    });
    blames(&f, "pvc/data", Code::ClusterNotAvailable, &["no operator has looked"]);
}

#[test]
fn a_volume_of_another_cluster() {
    let f = broken(|f| f.clusters[0].status.as_mut().unwrap().cluster_id = Some("another".into()));
    blames(&f, "pod/app", Code::NoCluster, &[ID]);
}

#[test]
fn a_cluster_that_cannot_be_asked_is_blamed_last() {
    let f = broken(|f| {
        f.claims[0] = pending("data");
        f.clusters[0] = cluster("Unknown", "Unreachable", "connect: refused");
    });
    blames(&f, "pvc/data", Code::ClusterNotAvailable, &["Unreachable"]);
    // What works is not blamed on it.
    let f = broken(|f| f.clusters[0] = cluster("Unknown", "Unreachable", "connect: refused"));
    fine(&f, "pod/app");
}

#[test]
fn no_csi_controller() {
    let without = |f: &mut crate::why::facts::Facts| {
        f.claims[0] = pending("data");
        f.system.retain(|p| crate::words::name(p) != "csi-controller-0");
    };
    let f = broken(|f| {
        without(f);
        f.system.push(from(json!({"metadata": {"name": "csi-controller-0", "namespace": "sd", "labels": {"app.kubernetes.io/component": "csi-controller"}},
            "spec": {"nodeName": "n0", "containers": []},
            "status": {"containerStatuses": [{"name": "csi", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]}})));
    });
    blames(&f, "pvc/data", Code::NoCsiController, &["container csi: ImagePullBackOff: no such image"]);
    let f = broken(|f| {
        without(f);
        f.deployments.push(from(json!({"metadata": {"name": "x-csi-controller", "namespace": "sd",
            "labels": {"app.kubernetes.io/component": "csi-controller"}}, "spec": {"replicas": 0, "selector": {}, "template": {}}})));
    });
    let v = blames(&f, "pvc/data", Code::NoCsiController, &["scaled to 0"]);
    runs(&v, "kubectl scale -n sd deployment/x-csi-controller --replicas=2");
    let f = broken(|f| {
        without(f);
        f.driver = None;
    });
    blames(&f, "pvc/data", Code::DriverNotInstalled, &["not installed"]);
}

#[test]
fn what_the_provisioner_said() {
    for (said, code) in [
        ("failed to provision: rpc error: code = ResourceExhausted desc = no space is left", Code::NoSpace),
        (
            "rpc error: code = ResourceExhausted desc = none of the nodes that are allowed runs a sheep of cluster c: check allowedTopologies of the storage class",
            Code::TooFewNodes,
        ),
        (
            "rpc error: code = Unavailable desc = 3 copies need 3 zones in a strict cluster, there are 2",
            Code::TooFewNodes,
        ),
        (
            "rpc error: code = InvalidArgument desc = parameter \"copys\" is not known: there are copies, fsType",
            Code::InvalidParameters,
        ),
        ("rpc error: code = NotFound desc = there is no snapshot x@1", Code::SourceNotReady),
        ("rpc error: code = DeadlineExceeded desc = context deadline exceeded", Code::ProvisioningFailed),
        ("something new", Code::ProvisioningFailed),
    ] {
        let f = broken(|f| {
            f.claims[0] = pending("data");
            f.events.push(event("PersistentVolumeClaim", "data", "ProvisioningFailed", said));
        });
        blames(&f, "pvc/data", code, &[said]);
    }
    let f = broken(|f| f.claims[0] = pending("data"));
    blames(&f, "pvc/data", Code::BeingProvisioned, &["100 s"]);
}

#[test]
fn events_of_an_earlier_claim_of_that_name_do_not_count() {
    let f = broken(|f| {
        f.claims[0] = pending("data");
        let mut e = event("PersistentVolumeClaim", "data", "ProvisioningFailed", "code = ResourceExhausted");
        e.involved_object.uid = Some("of-yesterday".into());
        f.events.push(e);
    });
    blames(&f, "pvc/data", Code::BeingProvisioned, &[]);
}

#[test]
fn a_full_disk() {
    let f = broken(|f| {
        let status = f.clusters[0].status.as_mut().unwrap();
        status.conditions.push(from(json!({"type": "CapacityLow", "status": "True", "reason": "DiskFull",
            "message": "full, so that writes wait: /data on 10.0.0.1", "lastTransitionTime": "2026-01-01T00:00:00Z"})));
    });
    blames(&f, "pod/app", Code::NoSpace, &["/data on 10.0.0.1"]);
}

#[test]
fn lost_claims() {
    let f = broken(|f| f.volumes.clear());
    blames(&f, "pvc/data", Code::ClaimLost, &["pvc-data has been deleted"]);
    let f = broken(|f| {
        f.claims[0].status = from(json!({"phase": "Lost"}));
        f.volumes[0].spec.as_mut().unwrap().claim_ref = Some(from(json!({"namespace": "b", "name": "c"})));
    });
    blames(&f, "pvc/data", Code::ClaimLost, &["b/c"]);
}

#[test]
fn a_volume_that_was_named() {
    let wants = || claim("data", json!({"volumeName": "mine"}), json!({"phase": "Pending"}));
    let f = broken(|f| f.claims[0] = wants());
    blames(&f, "pvc/data", Code::WaitsForVolume, &["mine, which does not exist"]);
    let f = broken(|f| {
        f.claims[0] = wants();
        f.volumes.push(volume("mine"));
    });
    let v = blames(&f, "pvc/data", Code::WaitsForVolume, &["belongs to the claim shop/mine"]);
    runs(&v, "kubectl patch pv mine");
}

#[test]
fn a_vdi_that_is_gone() {
    let f = broken(|f| {
        f.vdis.push(from(json!({"apiVersion": "sheepdog.io/v1alpha1", "kind": "Vdi", "metadata": {"name": "v"}, "spec": {"cluster": "main", "size": "1Gi"},
            "status": {"uuid": "uuid-pvc-data", "conditions": [{"type": "Ready", "status": "False", "reason": "Deleted", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})));
    });
    blames(&f, "pvc/data", Code::VolumeGone, &["Deleted"]);
}

#[test]
fn deletion_that_is_held() {
    let going = |f: &mut crate::why::facts::Facts, finalizer: &str| {
        f.claims[0].metadata.deletion_timestamp = Some(from(json!("2026-01-01T00:00:00Z")));
        f.claims[0].metadata.finalizers = Some(vec![finalizer.into()]);
    };
    let f = broken(|f| going(f, "kubernetes.io/pvc-protection"));
    let v = blames(&f, "pvc/data", Code::ClaimDeletionHeld, &["a pod uses it: app"]);
    runs(&v, "kubectl delete pod -n shop app");
    // The pod itself works on.
    fine(&f, "pod/app");
    let f = broken(|f| {
        going(f, "kubernetes.io/pvc-protection");
        f.pods[0] = unscheduled("app", "data", "persistentvolumeclaim \"data\" is being deleted");
    });
    blames(&f, "pod/app", Code::ClaimDeletionHeld, &[]);
    let f = broken(|f| {
        going(f, "snapshot.storage.kubernetes.io/pvc-as-source-protection");
        f.snapshots.push(super::snapshots::snapshot("s", "data", json!({"readyToUse": false})));
    });
    let v = blames(&f, "pvc/data", Code::ClaimDeletionHeld, &["snapshots of it have been taken: s"]);
    runs(&v, "why -n shop volumesnapshot/s");
    let f = broken(|f| going(f, "example.com/mine"));
    blames(&f, "pvc/data", Code::ClaimDeletionHeld, &["example.com/mine"]);
}

#[test]
fn growing() {
    let asks = |f: &mut crate::why::facts::Facts, status: serde_json::Value| {
        let mut s = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
        for (k, v) in status.as_object().unwrap() {
            s[k] = v.clone();
        }
        f.claims[0] = claim(
            "data",
            json!({"volumeName": "pvc-data", "resources": {"requests": {"storage": "2Gi"}}}),
            s,
        );
    };
    let pending = json!({"conditions": [{"type": "FileSystemResizePending", "status": "True"}]});
    let f = broken(|f| asks(f, pending.clone()));
    blames(&f, "pvc/data", Code::BeingGrown, &["kubelet of n0", "pod/app"]);
    let f = broken(|f| {
        asks(f, pending.clone());
        f.pods.clear();
    });
    blames(&f, "pvc/data", Code::WaitsForMount, &["from 1Gi to 2Gi", "when a pod uses it next"]);
    let f = broken(|f| asks(f, json!({})));
    blames(&f, "pvc/data", Code::BeingGrown, &["resizer has not done its part"]);
    let f = broken(|f| {
        asks(f, json!({}));
        f.events.push(event(
            "PersistentVolumeClaim",
            "data",
            "VolumeResizeFailed",
            "code = ResourceExhausted",
        ));
    });
    blames(&f, "pvc/data", Code::GrowFailed, &["ResourceExhausted"]);
    let f = broken(|f| {
        asks(
            f,
            json!({"conditions": [{"type": "ControllerResizeError", "status": "True", "message": "too large"}]}),
        );
    });
    blames(&f, "pvc/data", Code::GrowFailed, &["too large"]);
    // The pod goes on.
    let f = broken(|f| asks(f, json!({})));
    fine(&f, "pod/app");
    // What is rounded up by the driver is not asked for any more.
    let f =
        broken(|f| f.claims[0].status = from(json!({"phase": "Bound", "capacity": {"storage": "1028Mi"}})));
    fine(&f, "pvc/data");
}

#[test]
fn quantities() {
    use crate::why::grow::bytes;
    assert_eq!(bytes("1Gi"), Some(1 << 30));
    assert_eq!(bytes("5G"), Some(5_000_000_000));
    assert_eq!(bytes("7"), Some(7));
    for odd in ["", "Gi", "1.5Gi", "1e3", "-1"] {
        assert_eq!(bytes(odd), None, "{odd}");
    }
}
