//! Everything that a decision about a cluster needs, read at one time.

use super::build::daemonset::named_nodes;
use super::seen::{NodeSeen, Seen};
use crate::context::{Context, Failure};
use crate::names::{CLUSTER, COMPONENT, GROUP, Names, SHEEP};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::ResourceExt;
use kube::api::ListParams;
use sheepdog_client::Client;
use sheepdog_crds::SheepdogCluster;
use std::collections::BTreeMap;

/// Read it, with a connection to the cluster when there is one.
pub async fn fetch(c: &SheepdogCluster, ctx: &Context) -> Result<(Seen, Option<Client>), Failure> {
    let nodes = ctx.nodes.state();
    let nodes: BTreeMap<String, NodeSeen> = nodes
        .iter()
        .filter(|n| n.metadata.deletion_timestamp.is_none())
        .map(|n| (n.name_any(), NodeSeen::of(n)))
        .collect();
    let labels = format!("{CLUSTER}={},{COMPONENT}={SHEEP}", Names::of(c).cluster);
    let sets = ctx.api::<DaemonSet>().list(&ListParams::default().labels(&labels)).await?;
    let mut assigned = BTreeMap::new();
    for set in &sets {
        let group = set.labels().get(GROUP).cloned().unwrap_or_default();
        assigned.extend(named_nodes(set).into_iter().map(|n| (n, group.clone())));
    }
    let pods = ctx.pods(c).await?;
    let (engine, client) = ctx.look(c, &pods).await?;
    Ok((Seen { nodes, pods, assigned, engine }, client))
}
