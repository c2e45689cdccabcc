//! Snapshots.

use super::world::*;
use crate::why::facts::Facts;
use crate::why::verdict::Code;
use kube::core::DynamicObject;
use serde_json::{Value, json};

pub fn snapshot(name: &str, claim: &str, status: Value) -> DynamicObject {
    from(json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"volumeSnapshotClassName": "main", "source": {"persistentVolumeClaimName": claim}}, "status": status}))
}

fn content(status: Value) -> DynamicObject {
    from(
        json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": {"name": "content"}, "status": status}),
    )
}

fn class(name: &str, driver: &str) -> DynamicObject {
    from(
        json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass", "metadata": {"name": name}, "driver": driver}),
    )
}

fn with(status: Value, how: impl FnOnce(&mut Facts)) -> Facts {
    broken(|f| {
        f.snapshots.push(snapshot("s", "data", status));
        f.snapshot_classes.push(class("main", "csi.sheepdog.io"));
        how(f);
    })
}

#[test]
fn ready_ones_are_fine() {
    fine(&with(json!({"readyToUse": true}), |_| {}), "volumesnapshot/s");
}

#[test]
fn classes() {
    let f = with(json!({}), |f| f.snapshot_classes.clear());
    blames(&f, "volumesnapshot/s", Code::SnapshotClass, &["main, which does not exist"]);
    let f = with(json!({}), |f| f.snapshot_classes[0] = class("main", "ebs"));
    blames(&f, "volumesnapshot/s", Code::SnapshotClass, &["driver ebs"]);
    let f = with(json!({}), |f| f.snapshots[0].data["spec"]["volumeSnapshotClassName"] = Value::Null);
    blames(&f, "volumesnapshot/s", Code::SnapshotClass, &["none of Sheepdog is the default"]);
}

#[test]
fn what_it_is_of() {
    let f = with(json!({}), |f| f.claims.clear());
    blames(&f, "volumesnapshot/s", Code::NoSuchClaim, &["volumesnapshot/s uses it"]);
    let f = with(json!({}), |f| f.claims[0] = pending("data"));
    blames(&f, "volumesnapshot/s", Code::BeingProvisioned, &[]);
}

#[test]
fn who_takes_it() {
    let f = with(json!({}), |_| {});
    blames(&f, "volumesnapshot/s", Code::NoSnapshotController, &["snapshot controller does not run"]);
    let taken_up = json!({"boundVolumeSnapshotContentName": "content"});
    let f = with(taken_up.clone(), |f| {
        f.contents.push(content(json!({})));
        f.system[2].spec.as_mut().unwrap().containers.truncate(1);
    });
    blames(&f, "volumesnapshot/s", Code::NoSnapshotController, &["without its snapshotter"]);
    let f = with(taken_up.clone(), |f| f.contents.push(content(json!({}))));
    blames(&f, "volumesnapshot/s", Code::BeingTaken, &[]);
    let f = with(taken_up, |f| f.contents.push(content(json!({"error": {"message": "busy"}}))));
    blames(&f, "volumesnapshot/s", Code::SnapshotFailed, &["busy"]);
}

#[test]
fn restoring_waits_for_the_snapshot() {
    let f = with(json!({"boundVolumeSnapshotContentName": "content", "error": {"message": "busy"}}), |f| {
        let source = json!({"dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"}});
        f.claims.push(claim("restored", source, json!({"phase": "Pending"})));
        f.contents.push(content(json!({})));
    });
    blames(&f, "pvc/restored", Code::SnapshotFailed, &["busy"]);
    let f = broken(|f| {
        let source = json!({"dataSource": {"kind": "VolumeSnapshot", "name": "gone"}});
        f.claims.push(claim("restored", source, json!({"phase": "Pending"})));
    });
    blames(&f, "pvc/restored", Code::SourceNotReady, &["gone, which does not exist"]);
}

#[test]
fn a_claim_made_from_a_snapshot_of_its_own_name_is_no_circle() {
    let f = with(json!({}), |f| {
        let source = json!({"dataSource": {"kind": "VolumeSnapshot", "name": "s"}});
        f.claims[0] = claim("data", source, json!({"phase": "Pending"}));
    });
    assert!(ask(&f, "pvc/data").cause.is_some());
    let f = broken(|f| {
        let source = json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "data"}});
        f.claims[0] = claim("data", source, json!({"phase": "Pending"}));
    });
    assert!(ask(&f, "pvc/data").cause.is_some());
}

#[test]
fn deletion_that_is_held() {
    let f = with(json!({"readyToUse": true}), |f| {
        f.snapshots[0].metadata.deletion_timestamp = Some(from(json!("2026-01-01T00:00:00Z")));
        f.snapshots[0].metadata.finalizers = Some(vec!["x".into()]);
        let source = json!({"dataSource": {"kind": "VolumeSnapshot", "name": "s"}});
        f.claims.push(claim("restored", source, json!({"phase": "Pending"})));
    });
    let v = blames(&f, "volumesnapshot/s", Code::SnapshotDeletionHeld, &["restored"]);
    runs(&v, "why -n shop pvc/restored");
}
