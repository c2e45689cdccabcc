//! Sheepdog's custom resources, `sheepdog.io/v1alpha1`, as Rust types; the YAML in `yaml/` is generated from them (`cargo xtask crds`).
//!
//! What a field may hold is said here once: types, defaults and CEL rules go into the schema, so the API server refuses a bad object with our sentence, and
//! [`check`] runs the same rules without a server. Rules that need the cluster (does a node match, has the engine this feature) belong to the operator.
//! Nothing here talks to anything.

// Columns and rules are attributes of one name.
#![allow(clippy::duplicated_attributes)]

pub mod check;
pub mod classes;
pub mod cluster;
pub mod daemons;
pub mod generate;
pub mod limits;
pub mod snapshot;
pub mod status;
pub mod vdi;

pub use cluster::{SheepdogCluster, SheepdogClusterSpec, SheepdogClusterStatus};
pub use limits::Limits;
pub use snapshot::{VdiSnapshot, VdiSnapshotSpec, VdiSnapshotStatus};
pub use vdi::{Vdi, VdiSpec, VdiStatus};

/// API group.
pub const GROUP: &str = "sheepdog.io";
/// The one version there is.
pub const VERSION: &str = "v1alpha1";
/// Name of the CSI driver that hands out the volumes.
pub const DRIVER: &str = "csi.sheepdog.io";
/// Label of pods and objects: what they are.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// Label of sheep and their objects: name of the cluster.
pub const CLUSTER: &str = "sheepdog.io/cluster";
/// Taint that the operator sets while a node's kubelet and sheep are both silent, though Kubernetes may still take it for ready: nothing new is put there until it is
/// heard again.
pub const LOST: &str = "sheepdog.io/lost";
/// Annotation, value `true`: let the object go although Sheepdog cannot be asked, or still uses it. What is in Sheepdog stays there.
pub const ABANDON: &str = "sheepdog.io/abandon";

/// What happens in Sheepdog when the object is deleted.
#[derive(
    serde::Serialize, serde::Deserialize, schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq,
)]
pub enum DeletionPolicy {
    /// Nothing is lost: data stays where it is.
    #[default]
    Retain,
    /// It is deleted.
    Delete,
}

/// How a volume survives the loss of disks: `copies`, or erasure coding. Exactly one of them.
#[derive(serde::Serialize, serde::Deserialize, kube::KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.copies) != has(self.erasureCoding)").message(
    "say either copies (for example 3) or erasureCoding (for example data 4, parity 2), not both and not neither"
))]
pub struct Redundancy {
    /// Full copies, each in another zone as long as there are enough zones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub copies: Option<u8>,
    /// Data and parity strips, for what has not been written for a while; what has is kept as copies, one more than there are parity strips. It needs as many sheep as there are strips.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erasure_coding: Option<ErasureCoding>,
}

impl Redundancy {
    /// So many copies.
    pub fn copies(n: u8) -> Self {
        Self { copies: Some(n), erasure_coding: None }
    }
    /// How many sheep it needs at least.
    pub fn width(&self) -> usize {
        match &self.erasure_coding {
            Some(e) => usize::from(e.data) + usize::from(e.parity),
            None => usize::from(self.copies.unwrap_or(1)),
        }
    }
}

/// D data and P parity strips.
#[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ErasureCoding {
    /// Data strips.
    #[schemars(range(min = 1, max = 16))]
    pub data: u8,
    /// Parity strips: so many losses are survived.
    #[schemars(range(min = 1, max = 15))]
    pub parity: u8,
}

/// True, for serde.
pub(crate) fn yes() -> bool {
    true
}
