//! What is known about the objects round a claim, a pod or a snapshot at one moment. Plain values, so that the decision about them is a pure function.

use crate::words::{labels, name, namespace};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass, VolumeAttachment};
use k8s_openapi::jiff::Timestamp;
use kube::core::DynamicObject;
use sheepdog_crds::{CLUSTER, COMPONENT, SheepdogCluster, Vdi};
use std::collections::BTreeMap;

/// Label of classes: namespace of the cluster.
pub const NAMESPACE: &str = "sheepdog.io/namespace";
/// Key of a volume's node affinity: id of its cluster.
pub const TOPOLOGY: &str = "topology.csi.sheepdog.io/cluster";

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A PersistentVolumeClaim.
    Claim,
    /// A pod.
    Pod,
    /// A VolumeSnapshot.
    Snapshot,
}

/// Which one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Kind.
    pub kind: Kind,
    /// Name.
    pub name: String,
}

/// Sorts of objects that may be unreadable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Sort {
    Claims,
    Pods,
    Classes,
    Volumes,
    Attachments,
    Nodes,
    CsiNodes,
    Drivers,
    Vdis,
    Clusters,
    System,
    Workloads,
    Events,
    Snapshots,
    SnapshotContents,
    SnapshotClasses,
}

impl Sort {
    /// As people say it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Claims => "PersistentVolumeClaims",
            Self::Pods => "pods",
            Self::Classes => "StorageClasses",
            Self::Volumes => "PersistentVolumes",
            Self::Attachments => "VolumeAttachments",
            Self::Nodes => "nodes",
            Self::CsiNodes => "CSINodes",
            Self::Drivers => "CSIDrivers",
            Self::Vdis => "Vdis",
            Self::Clusters => "SheepdogClusters",
            Self::System => "Sheepdog's pods",
            Self::Workloads => "Sheepdog's Deployments and DaemonSets",
            Self::Events => "events",
            Self::Snapshots => "VolumeSnapshots",
            Self::SnapshotContents => "VolumeSnapshotContents",
            Self::SnapshotClasses => "VolumeSnapshotClasses",
        }
    }
}

/// Everything that was fetched. What is not here although its sort could be read is not there.
#[derive(Debug, Default)]
pub struct Facts {
    /// Namespace of what is asked about.
    pub namespace: String,
    /// When.
    pub now: Timestamp,
    /// Claims of the namespace that have to do with it.
    pub claims: Vec<PersistentVolumeClaim>,
    /// Pods of the namespace.
    pub pods: Vec<Pod>,
    /// All classes.
    pub classes: Vec<StorageClass>,
    /// Volumes of the claims.
    pub volumes: Vec<PersistentVolume>,
    /// Attachments of our driver.
    pub attachments: Vec<VolumeAttachment>,
    /// Nodes that have to do with it.
    pub nodes: Vec<Node>,
    /// Names of all nodes with the topology label of a cluster: its value.
    pub topology: BTreeMap<String, String>,
    /// CSINodes of the nodes.
    pub csi_nodes: Vec<CSINode>,
    /// Our CSIDriver.
    pub driver: Option<CSIDriver>,
    /// Vdi objects of the volumes.
    pub vdis: Vec<Vdi>,
    /// All clusters.
    pub clusters: Vec<SheepdogCluster>,
    /// Our own pods.
    pub system: Vec<Pod>,
    /// Our DaemonSets.
    pub daemonsets: Vec<DaemonSet>,
    /// Our Deployments.
    pub deployments: Vec<Deployment>,
    /// Events of the claims, pods and snapshots.
    pub events: Vec<Event>,
    /// VolumeSnapshots of the namespace.
    pub snapshots: Vec<DynamicObject>,
    /// Contents of the snapshots.
    pub contents: Vec<DynamicObject>,
    /// All classes of snapshots.
    pub snapshot_classes: Vec<DynamicObject>,
    /// What could not be read, and why.
    pub unread: BTreeMap<Sort, String>,
}

impl Facts {
    /// A claim of the namespace.
    pub fn claim(&self, wanted: &str) -> Option<&PersistentVolumeClaim> {
        self.claims.iter().find(|c| name(*c) == wanted)
    }
    /// A pod of the namespace.
    pub fn pod(&self, wanted: &str) -> Option<&Pod> {
        self.pods.iter().find(|p| name(*p) == wanted)
    }
    /// A volume.
    pub fn volume(&self, wanted: &str) -> Option<&PersistentVolume> {
        self.volumes.iter().find(|v| name(*v) == wanted)
    }
    /// A class.
    pub fn class(&self, wanted: &str) -> Option<&StorageClass> {
        self.classes.iter().find(|c| name(*c) == wanted)
    }
    /// A node.
    pub fn node(&self, wanted: &str) -> Option<&Node> {
        self.nodes.iter().find(|n| name(*n) == wanted)
    }
    /// Pods of ours that are this.
    pub fn component<'a>(&'a self, component: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.system.iter().filter(move |p| labels(*p).get(COMPONENT).is_some_and(|c| c == component))
    }
    /// Sheep and gateways of a cluster.
    pub fn sheep<'a>(&'a self, c: &'a SheepdogCluster) -> impl Iterator<Item = &'a Pod> {
        let of = |p: &&Pod| {
            namespace(*p) == namespace(c) && labels(*p).get(CLUSTER).is_some_and(|l| *l == name(c))
        };
        self.component("sheep").chain(self.component("gateway")).filter(of)
    }
    /// The cluster of a volume or a class.
    pub fn cluster(
        &self,
        volume: Option<&PersistentVolume>,
        class: Option<&StorageClass>,
    ) -> Option<&SheepdogCluster> {
        let id = volume.and_then(cluster_id);
        let by_id = |c: &&SheepdogCluster| {
            id.is_some() && c.status.as_ref().and_then(|s| s.cluster_id.as_deref()) == id
        };
        let by_label = |c: &&SheepdogCluster| {
            class.is_some_and(|class| {
                let l = labels(class);
                l.get(CLUSTER).is_some_and(|v| *v == name(*c))
                    && l.get(NAMESPACE).is_some_and(|v| *v == namespace(*c))
            })
        };
        // The only one there is, unless it is known to be another one.
        let may_be = |c: &&SheepdogCluster| {
            id.is_none() || c.status.as_ref().and_then(|s| s.cluster_id.as_deref()).is_none()
        };
        let only = || self.clusters.first().filter(|_| self.clusters.len() == 1).filter(may_be);
        self.clusters.iter().find(by_id).or_else(|| self.clusters.iter().find(by_label)).or_else(only)
    }
}

/// Id of the cluster that a volume says it is in.
pub fn cluster_id(pv: &PersistentVolume) -> Option<&str> {
    let terms = &pv.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?.node_selector_terms;
    let all = terms.iter().filter_map(|t| t.match_expressions.as_deref()).flatten();
    all.filter(|e| e.key == TOPOLOGY).find_map(|e| e.values.as_ref()?.first()).map(String::as_str)
}
