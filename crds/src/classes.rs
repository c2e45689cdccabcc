//! Options of the StorageClass and the VolumeSnapshotClass that a cluster gets.

use crate::limits::{
    BANDWIDTH, BANDWIDTH_HAS_BURST, BANDWIDTH_HAS_BURST_SAYS, BANDWIDTH_SAYS, BURST, BURST_SAYS,
    IOPS_HAS_BURST, IOPS_HAS_BURST_SAYS,
};
use crate::{DeletionPolicy, yes};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The StorageClass.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StorageClassOptions {
    /// Make one.
    #[serde(default = "yes")]
    pub create: bool,
    /// Its name. Default: the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    /// The one for claims that name none.
    #[serde(default)]
    pub default: bool,
    /// What happens to a volume whose claim is deleted.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,
    /// File system of volumes that are mounted.
    #[serde(default)]
    pub fs_type: FsType,
    /// Further parameters of the driver.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
}

impl Default for StorageClassOptions {
    fn default() -> Self {
        Self {
            create: true,
            name: None,
            default: false,
            reclaim_policy: ReclaimPolicy::default(),
            fs_type: FsType::default(),
            parameters: BTreeMap::new(),
        }
    }
}

/// As in a StorageClass.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReclaimPolicy {
    /// The volume goes with its claim.
    #[default]
    Delete,
    /// It stays.
    Retain,
}

impl ReclaimPolicy {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delete => "Delete",
            Self::Retain => "Retain",
        }
    }
}

/// File systems that the driver makes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    /// ext4.
    #[default]
    Ext4,
    /// XFS.
    Xfs,
}

impl FsType {
    /// As mount names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// A VolumeAttributesClass.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VolumeAttributesClassOptions {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')").message(
        "the name of a VolumeAttributesClass consists of lower-case letters, digits, '-' and '.', for example three-copies"
    ))]
    pub name: String,
    /// What volumes get that claims give this class.
    pub parameters: VolumeAttributes,
}

/// What can be changed of a volume through its claim, as the driver names it. What is not named stays as it is.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.copies) || has(self.copyPolicy) || has(self.iops) || has(self.bandwidth)").message(
        "parameters say nothing: write copies, copyPolicy, iops or bandwidth"
    ),
    validation = Rule::new("!has(self.copies) || !has(self.copyPolicy)").message(
        "say either copies (for example 3) or copyPolicy (for example 4:2), not both"
    ),
    validation = Rule::new(IOPS_HAS_BURST).message(IOPS_HAS_BURST_SAYS),
    validation = Rule::new(BANDWIDTH_HAS_BURST).message(BANDWIDTH_HAS_BURST_SAYS)
)]
pub struct VolumeAttributes {
    /// Full copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub copies: Option<u8>,
    /// D:P, data and parity strips instead of copies (erasure coding), for example 4:2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 5))]
    #[x_kube(validation = Rule::new("self.matches('^([1-9]|1[0-6]):([1-9]|1[0-5])$')").message(
        "copyPolicy is D:P, data and parity strips: write for example 4:2 (at most 16:15)"
    ))]
    pub copy_policy: Option<String>,
    /// Requests a second; 0 takes the limit away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub iops: Option<u32>,
    /// Requests that may go at once after a pause. Default: a second's worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub iops_burst: Option<u32>,
    /// Bytes a second, for example 50Mi; "0" takes the limit away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 24))]
    #[x_kube(validation = Rule::new(BANDWIDTH).message(BANDWIDTH_SAYS))]
    pub bandwidth: Option<String>,
    /// Bytes that may go at once after a pause, for example 100Mi. Default: a second's worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 24))]
    #[x_kube(validation = Rule::new(BURST).message(BURST_SAYS))]
    pub bandwidth_burst: Option<String>,
}

/// The VolumeSnapshotClass.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotClassOptions {
    /// Make one.
    #[serde(default = "yes")]
    pub create: bool,
    /// Its name. Default: the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    /// What happens to a snapshot in Sheepdog whose object is deleted.
    #[serde(default = "delete")]
    pub deletion_policy: DeletionPolicy,
}

impl Default for SnapshotClassOptions {
    fn default() -> Self {
        Self { create: true, name: None, deletion_policy: DeletionPolicy::Delete }
    }
}

fn delete() -> DeletionPolicy {
    DeletionPolicy::Delete
}
