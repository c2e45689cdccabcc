//! `VdiSnapshot`: one snapshot of a volume.

use crate::DeletionPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// A snapshot of a VDI: what it held at one instant between writes.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[kube(
    group = "sheepdog.io",
    version = "v1alpha1",
    kind = "VdiSnapshot",
    plural = "vdisnapshots",
    shortname = "vdisnap",
    category = "sheepdog",
    namespaced,
    cel,
    status = "VdiSnapshotStatus",
    derive = "PartialEq",
    doc = "A snapshot of a VDI: what it held at one instant between writes.",
    printcolumn(name = "Vdi", type_ = "string", json_path = ".spec.vdi"),
    printcolumn(name = "Tag", type_ = "string", json_path = ".status.tag"),
    printcolumn(name = "Taken", type_ = "string", json_path = ".status.takenAt"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    selectable = ".spec.cluster"
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.cluster == oldSelf.cluster && self.vdi == oldSelf.vdi").message(
        "cluster and vdi cannot be changed: a snapshot is of one volume. Make another VdiSnapshot"
    ),
    validation = Rule::new("has(self.tag) == has(oldSelf.tag) && (!has(self.tag) || self.tag == oldSelf.tag)").message(
        "tag cannot be changed: the snapshot is named by it. Make another VdiSnapshot"
    )
)]
pub struct VdiSnapshotSpec {
    /// Name of the SheepdogCluster, in this namespace.
    #[schemars(length(min = 1, max = 40))]
    pub cluster: String,
    /// The VDI, by its name in Sheepdog.
    #[schemars(length(min = 1, max = 255))]
    pub vdi: String,
    /// Tag of the snapshot. Default: the object's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new("!self.contains('@') && !self.contains('#') && !self.matches('^[0-9]+$')").message(
        "tag must not be a number nor contain '@' or '#': snapshots are also named by number"
    ))]
    pub tag: Option<String>,
    /// What happens to the snapshot when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

impl VdiSnapshot {
    /// Its tag in Sheepdog.
    pub fn tag(&self) -> &str {
        let own = self.metadata.name.as_deref().unwrap_or_default();
        self.spec.tag.as_deref().unwrap_or(own)
    }
}

/// What Sheepdog says about it.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VdiSnapshotStatus {
    /// Generation of the object that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Tag in Sheepdog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Number in Sheepdog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// UUID of the VDI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vdi_uuid: Option<String>,
    /// Size of the volume at that time, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// When it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<String>,
}
