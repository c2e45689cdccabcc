//! Which nodes take pods of a DaemonSet, as Kubernetes decides it: for whoever has to say beforehand where sheep will run.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// Taints that Kubernetes sets while something is wrong with a node; pods of DaemonSets bear them by themselves.
const PASSING: [&str; 7] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/network-unavailable",
];

/// The first of a node's taints that keeps pods with these tolerations away.
pub fn keeps_away<'a>(taints: &'a [Taint], tolerations: &[Toleration]) -> Option<&'a Taint> {
    let hard = |t: &&Taint| t.effect != "PreferNoSchedule" && !PASSING.contains(&t.key.as_str());
    taints.iter().filter(hard).find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
}

fn tolerates(t: &Toleration, taint: &Taint) -> bool {
    let effect = t.effect.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = t.key.as_deref().unwrap_or_default();
    if key.is_empty() {
        return t.operator.as_deref() == Some("Exists");
    }
    let value = taint.value.as_deref().unwrap_or_default();
    key == taint.key
        && (t.operator.as_deref() == Some("Exists") || t.value.as_deref().unwrap_or_default() == value)
}
