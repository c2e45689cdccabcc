//! `Vdi`: one volume.

use crate::{DeletionPolicy, Limits, Redundancy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A volume of a Sheepdog cluster, made by this object, by `dog`, or by the CSI driver.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "sheepdog.io",
    version = "v1alpha1",
    kind = "Vdi",
    plural = "vdis",
    category = "sheepdog",
    namespaced,
    cel,
    status = "VdiStatus",
    derive = "PartialEq",
    doc = "A volume (VDI) of a Sheepdog cluster. Objects are also made for VDIs that dog or the CSI driver made.",
    printcolumn(name = "Size", type_ = "string", json_path = ".spec.size"),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.used"),
    printcolumn(name = "Redundancy", type_ = "string", json_path = ".status.redundancy"),
    printcolumn(name = "Limits", type_ = "string", json_path = ".status.limits", priority = "1"),
    printcolumn(name = "Attached", type_ = "string", json_path = ".status.attachedTo"),
    printcolumn(name = "Claim", type_ = "string", json_path = ".status.claim"),
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
    validation = Rule::new("self.cluster == oldSelf.cluster").message(
        "cluster cannot be changed: a volume does not move between clusters. Copy it with dog vdi export and import"
    ),
    validation = Rule::new("has(self.vdiName) == has(oldSelf.vdiName) && (!has(self.vdiName) || self.vdiName == oldSelf.vdiName)").message(
        "vdiName cannot be changed: this object would then be about another volume"
    ),
    validation = Rule::new("has(self.source) == has(oldSelf.source) && (!has(self.source) || self.source == oldSelf.source)").message(
        "source cannot be changed: it says what the volume was made from"
    ),
    validation = Rule::new("!isQuantity(self.size) || !isQuantity(oldSelf.size) || quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0").message(
        "size can only grow: shrinking throws data away. If you mean it, use dog vdi resize --shrink and then set the size here"
    )
)]
pub struct VdiSpec {
    /// Name of the SheepdogCluster, in this namespace.
    #[schemars(length(min = 1, max = 40))]
    pub cluster: String,
    /// Name of the VDI in Sheepdog. Default: the object's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new("!self.contains('@') && !self.contains('#')").message(
        "vdiName must not contain '@' or '#': they separate a VDI from its snapshots and attachments"
    ))]
    pub vdi_name: Option<String>,
    /// Size, for example 10Gi. It can grow, also while the volume is used. Rounded up to a multiple of 4 KiB.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))").message(
        "size is a quantity larger than 0: write for example 10Gi"
    ))]
    pub size: String,
    /// Redundancy. Default: the cluster's, or the source's. Changing it copies or removes data in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redundancy: Option<Redundancy>,
    /// How fast it may be used. What is not named stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Make it a clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<VdiSource>,
    /// What happens to the volume when this object is deleted. With `Retain` it is listed again, since it is still there.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

impl Vdi {
    /// Its name in Sheepdog.
    pub fn vdi_name(&self) -> &str {
        let own = self.metadata.name.as_deref().unwrap_or_default();
        self.spec.vdi_name.as_deref().unwrap_or(own)
    }
}

/// What a clone is made from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VdiSource {
    /// VDI in the same cluster, by its name in Sheepdog.
    #[schemars(length(min = 1, max = 255))]
    pub vdi: String,
    /// Tag or number of one of its snapshots. Default: as it is when the clone is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub snapshot: Option<String>,
}

/// What Sheepdog says about it.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VdiStatus {
    /// Generation of the object that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Attached.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// UUID, also the CSI volume handle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Number in Sheepdog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// Size, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// Space it takes on all disks together, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
    /// "3 copies".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redundancy: Option<String>,
    /// "500 IOPS, 50Mi/s"; absent: as fast as it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<String>,
    /// Node whose sheep owns its session; empty when nobody uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached_to: Option<String>,
    /// NAMESPACE/NAME of the PersistentVolumeClaim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// How many snapshots it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<i64>,
}
