//! One file of options for each node: its zone and whom to ask for the cluster. A sheep does not start before its node has one, so none ever
//! starts in a wrong zone; and it needs neither DNS nor the API server.

use super::{BuildError, Input, owned, typed};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;
use std::collections::BTreeMap;

/// Sheep that a new one is told of. Any one of them is enough; a cluster may have thousands.
const SEEDS: usize = 8;

/// The ConfigMap; one key per node.
pub(super) fn config_map(i: &Input<'_>) -> Result<ConfigMap, BuildError> {
    typed(
        "ConfigMap",
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": owned(i, &i.names.config()), "data": files(i)}),
    )
}

fn files(i: &Input<'_>) -> BTreeMap<String, String> {
    let spec = &i.cluster.spec;
    let staying = i.members.groups.keys().filter(|n| !i.members.leaving.contains(n));
    let seeds: Vec<(&String, &String)> =
        staying.filter_map(|n| Some((n, i.nodes.get(n)?.ip.as_ref()?))).take(SEEDS + 1).collect();
    let gateway = |name: &String| spec.gateways.enabled && !i.members.groups.contains_key(name);
    i.nodes
        .iter()
        .filter(|(name, _)| i.members.groups.contains_key(*name) || gateway(name))
        .map(|(name, node)| {
            let others = seeds.iter().filter(|(n, _)| *n != name).take(SEEDS);
            let others: Vec<String> =
                others.map(|(_, ip)| format!("\"{}\"", address(ip, spec.ports.peer))).collect();
            let mut text = String::new();
            if let Some(zone) = node.labels.get(&spec.zones.node_label).filter(|z| !z.is_empty()) {
                text.push_str(&format!("zone = \"{zone}\"\n"));
            }
            text.push_str(&format!("seed = [{}]\n", others.join(", ")));
            (name.clone(), text)
        })
        .collect()
}

/// `host:port`, with brackets where a host has colons.
pub fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
