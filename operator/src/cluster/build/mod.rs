//! From what is wanted to the objects that say so. Pure: the same arguments give the same objects.

pub mod classes;
pub mod config;
pub mod daemonset;
pub mod disks;
pub mod network;

use super::members::Members;
use super::seen::NodeSeen;
use crate::names::Names;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use sheepdog_crds::SheepdogCluster;
use std::collections::BTreeMap;

/// What the operator was installed with.
#[derive(Debug, Clone, Default)]
pub struct Installed {
    /// Image of the sheep, unless a cluster names its own.
    pub sheep_image: String,
    /// The operator's own image, for the init container that puts the seccomp profile on the node. Without it the runtime's profile is used.
    pub operator_image: Option<String>,
    /// Image of the CSI driver: its programs make and mount file systems, for block devices as disks. Without it there are none.
    pub csi_image: Option<String>,
    /// Secrets for the registry, as the chart has them.
    pub pull_secrets: Vec<String>,
    /// The kubelet's directory.
    pub kubelet_root: String,
}

/// What an object is built from.
pub struct Input<'a> {
    /// The object.
    pub cluster: &'a SheepdogCluster,
    /// Names.
    pub names: &'a Names,
    /// Of the installation.
    pub installed: &'a Installed,
    /// Kubernetes nodes.
    pub nodes: &'a BTreeMap<String, NodeSeen>,
    /// Who stores data.
    pub members: &'a Members,
    /// Sheep that may be evicted at the moment.
    pub evictable: usize,
}

/// Everything in the cluster's namespace.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// Options of each node.
    pub config: ConfigMap,
    /// Addresses of the sheep.
    pub service: Service,
    /// How many sheep may be evicted.
    pub budget: PodDisruptionBudget,
    /// One per group that has nodes, and one for the gateways.
    pub daemonsets: Vec<DaemonSet>,
}

/// An object that the API's types do not take: a bug.
#[derive(Debug, thiserror::Error)]
#[error("cannot build a {what}: {source}")]
pub struct BuildError {
    what: &'static str,
    source: serde_json::Error,
}

/// JSON as the API's type.
pub(crate) fn typed<K: serde::de::DeserializeOwned>(
    what: &'static str,
    value: Value,
) -> Result<K, BuildError> {
    serde_json::from_value(value).map_err(|source| BuildError { what, source })
}

/// Build all of it.
pub fn desired(i: &Input<'_>) -> Result<Desired, BuildError> {
    let mut daemonsets = Vec::new();
    for group in &i.cluster.spec.node_groups {
        let nodes: Vec<&str> =
            i.members.groups.iter().filter(|(_, g)| **g == group.name).map(|(n, _)| n.as_str()).collect();
        if !nodes.is_empty() {
            daemonsets.push(daemonset::sheep(i, group, &nodes)?);
        }
    }
    if i.cluster.spec.gateways.enabled {
        daemonsets.push(daemonset::gateways(i)?);
    }
    Ok(Desired {
        config: config::config_map(i)?,
        service: network::service(i)?,
        budget: network::budget(i)?,
        daemonsets,
    })
}

/// Metadata of an object that goes with the cluster.
pub(crate) fn owned(i: &Input<'_>, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": i.names.namespace,
        "labels": i.names.labels(),
        "ownerReferences": [{
            "apiVersion": SheepdogCluster::api_version(&()),
            "kind": SheepdogCluster::kind(&()),
            "name": i.names.cluster,
            "uid": i.cluster.uid().unwrap_or_default(),
            "controller": true,
            "blockOwnerDeletion": true,
        }],
    })
}
