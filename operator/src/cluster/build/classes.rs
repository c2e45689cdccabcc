//! Objects without a namespace: StorageClass, VolumeSnapshotClass, KubeVirt's StorageProfile. They have no owner, so they carry the cluster's labels.

use super::{BuildError, typed};
use crate::names::Names;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::json;
use sheepdog_crds::{DRIVER, DeletionPolicy, SheepdogCluster};
use std::collections::BTreeMap;

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// The StorageClass, if one is wanted.
pub fn storage_class(c: &SheepdogCluster, names: &Names) -> Result<Option<StorageClass>, BuildError> {
    let options = &c.spec.storage_class;
    if !options.create {
        return Ok(None);
    }
    let mut parameters = options.parameters.clone();
    parameters.entry("csi.storage.k8s.io/fstype".into()).or_insert_with(|| options.fs_type.as_str().into());
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": names.storage_class(c),
            "labels": names.wide_labels(),
            "annotations": {(DEFAULT_CLASS): options.default.to_string()},
        },
        "provisioner": DRIVER,
        "parameters": parameters,
        "reclaimPolicy": options.reclaim_policy.as_str(),
        "allowVolumeExpansion": true,
        // Every node reaches every volume: nothing is gained by waiting for the pod.
        "volumeBindingMode": "Immediate",
    });
    typed("StorageClass", class).map(Some)
}

/// What differs cannot be changed in place.
pub fn must_be_replaced(there: &StorageClass, wanted: &StorageClass) -> bool {
    there.provisioner != wanted.provisioner
        || there.parameters != wanted.parameters
        || there.reclaim_policy != wanted.reclaim_policy
        || there.volume_binding_mode != wanted.volume_binding_mode
}

/// `snapshot.storage.k8s.io/v1` VolumeSnapshotClass.
pub fn snapshot_class_kind() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshotClass"),
        "volumesnapshotclasses",
    )
}

/// The VolumeSnapshotClass, if one is wanted.
pub fn snapshot_class(c: &SheepdogCluster, names: &Names) -> Option<DynamicObject> {
    let options = &c.spec.snapshot_class;
    let policy = match options.deletion_policy {
        DeletionPolicy::Retain => "Retain",
        DeletionPolicy::Delete => "Delete",
    };
    options.create.then(|| {
        let mut o = DynamicObject::new(&names.snapshot_class(c), &snapshot_class_kind());
        o.metadata.labels = Some(names.wide_labels());
        o.data(json!({"driver": DRIVER, "deletionPolicy": policy}))
    })
}

/// `storage.k8s.io/v1` VolumeAttributesClass; not every Kubernetes that we run on has it.
pub fn attributes_class_kind() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("storage.k8s.io", "v1", "VolumeAttributesClass"),
        "volumeattributesclasses",
    )
}

/// The VolumeAttributesClasses that are wanted.
pub fn attributes_classes(c: &SheepdogCluster, names: &Names) -> Vec<DynamicObject> {
    let one = |o: &sheepdog_crds::cluster::VolumeAttributesClassOptions| {
        let p = &o.parameters;
        let all = [
            ("copies", p.copies.map(|n| n.to_string())),
            ("copyPolicy", p.copy_policy.clone()),
            ("iops", p.iops.map(|n| n.to_string())),
            ("iopsBurst", p.iops_burst.map(|n| n.to_string())),
            ("bandwidth", p.bandwidth.clone()),
            ("bandwidthBurst", p.bandwidth_burst.clone()),
        ];
        let parameters: BTreeMap<&str, String> = all.into_iter().filter_map(|(k, v)| Some((k, v?))).collect();
        let mut class = DynamicObject::new(&o.name, &attributes_class_kind());
        class.metadata.labels = Some(names.wide_labels());
        class.data(json!({"driverName": DRIVER, "parameters": parameters}))
    };
    c.spec.volume_attributes_classes.iter().map(one).collect()
}

/// `cdi.kubevirt.io/v1beta1` StorageProfile.
pub fn storage_profile_kind() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("cdi.kubevirt.io", "v1beta1", "StorageProfile"),
        "storageprofiles",
    )
}

/// What KubeVirt should know of our class: block volumes that two nodes may open, which live migration needs, come first.
pub fn storage_profile(c: &SheepdogCluster, names: &Names) -> DynamicObject {
    let set = |access: &str, mode: &str| json!({"accessModes": [access], "volumeMode": mode});
    let mut spec = json!({
        "claimPropertySets": [
            set("ReadWriteMany", "Block"), set("ReadWriteOnce", "Block"), set("ReadWriteOnce", "Filesystem"),
        ],
        "cloneStrategy": "csi-clone",
        "dataImportCronSourceFormat": "snapshot",
    });
    if c.spec.snapshot_class.create {
        spec["snapshotClass"] = json!(names.snapshot_class(c));
    }
    DynamicObject::new(&names.storage_class(c), &storage_profile_kind()).data(json!({"spec": spec}))
}
