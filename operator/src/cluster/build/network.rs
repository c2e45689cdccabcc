//! The headless service, and how many sheep may be evicted.

use super::{BuildError, Input, owned, typed};
use crate::names::SHEEP;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::json;

/// Addresses of the sheep that store data, also of those that are not ready: a cluster that waits for format is not.
pub(super) fn service(i: &Input<'_>) -> Result<Service, BuildError> {
    let p = &i.cluster.spec.ports;
    let port = |name: &str, n: u16| json!({"name": name, "port": n, "targetPort": n, "protocol": "TCP"});
    typed(
        "Service",
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": owned(i, &i.names.service()),
            "spec": {
                "type": "ClusterIP",
                "clusterIP": "None",
                "publishNotReadyAddresses": true,
                "selector": i.names.selector(SHEEP),
                "ports": [port("client", p.client), port("peer", p.peer), port("metrics", p.metrics)],
            },
        }),
    )
}

/// One sheep at a time while every volume has all its copies, and none otherwise.
pub(super) fn budget(i: &Input<'_>) -> Result<PodDisruptionBudget, BuildError> {
    let least = i.members.groups.len().saturating_sub(i.evictable);
    typed(
        "PodDisruptionBudget",
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": owned(i, &i.names.service()),
            "spec": {"minAvailable": least, "selector": {"matchLabels": i.names.selector(SHEEP)}},
        }),
    )
}
