//! What the operator knows about one cluster at one moment: plain values, so that every decision about them is a pure function.

use k8s_openapi::api::core::v1::{ContainerState, Node, Pod, Taint, Toleration};
use sheepdog_client::pb;
use sheepdog_crds::daemons::keeps_away;
use std::collections::BTreeMap;

/// Everything.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Kubernetes nodes, by name.
    pub nodes: BTreeMap<String, NodeSeen>,
    /// Pods of this cluster.
    pub pods: Vec<PodSeen>,
    /// Which group each storage node belongs to so far, as the DaemonSets say.
    pub assigned: BTreeMap<String, String>,
    /// The cluster itself.
    pub engine: Engine,
}

/// A Kubernetes node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeSeen {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// Internal address.
    pub ip: Option<String>,
    /// The condition Ready is True.
    pub ready: bool,
}

impl NodeSeen {
    /// From the object.
    pub fn of(n: &Node) -> Self {
        let status = n.status.as_ref();
        let addresses = status.and_then(|s| s.addresses.as_deref()).unwrap_or_default();
        let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        Self {
            labels: n.metadata.labels.clone().unwrap_or_default(),
            taints: n.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default(),
            ip: addresses.iter().find(|a| a.type_ == "InternalIP").map(|a| a.address.clone()),
            ready: conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"),
        }
    }
    /// Takes pods with these tolerations.
    pub fn takes(&self, tolerations: &[Toleration]) -> bool {
        keeps_away(&self.taints, tolerations).is_none()
    }
}

/// A pod of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodSeen {
    /// Name.
    pub name: String,
    /// Its unique id, so that a later pod of the same name is not deleted for it.
    pub uid: String,
    /// Node it runs on.
    pub node: String,
    /// Address of that node.
    pub host: Option<String>,
    /// Stores no data.
    pub gateway: bool,
    /// Node group.
    pub group: String,
    /// What it was made from.
    pub revision: String,
    /// Ready.
    pub ready: bool,
    /// A container of it runs.
    pub running: bool,
    /// Being deleted.
    pub deleting: bool,
    /// Why a container does not start, in words.
    pub trouble: Option<String>,
    /// Directories that its sheep was told of as disks.
    pub disks: Vec<String>,
    /// Block devices that could not be mounted, and why: `device: sentence`.
    pub left_out: Vec<String>,
}

impl PodSeen {
    /// From the object.
    pub fn of(p: &Pod) -> Self {
        use crate::names::{COMPONENT, GATEWAY, GROUP, REVISION};
        let label = |k: &str| p.metadata.labels.as_ref().and_then(|l| l.get(k)).cloned().unwrap_or_default();
        let notes = p.metadata.annotations.as_ref();
        let status = p.status.as_ref();
        let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let init = status.and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
        let main = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
        let waiting =
            init.iter().chain(main).find_map(|c| c.state.as_ref()?.waiting.as_ref()).and_then(|w| {
                let reason =
                    w.reason.clone().filter(|r| r != "PodInitializing" && r != "ContainerCreating")?;
                Some(match &w.message {
                    Some(m) => format!("{reason}: {m}"),
                    None => reason,
                })
            });
        // While it fails the last try counts.
        let report = init.iter().filter(|c| c.name == super::build::disks::INIT).find_map(|c| {
            let ended = |s: &Option<ContainerState>| s.as_ref()?.terminated.as_ref()?.message.clone();
            ended(&c.state).or_else(|| ended(&c.last_state))
        });
        let left_out: Vec<String> = report.iter().flat_map(|r| r.lines()).map(str::to_owned).collect();
        let waiting = waiting.map(|w| match left_out.first() {
            Some(why) => format!("{w}; {why}"),
            None => w,
        });
        let containers = p.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default();
        let variables = containers.iter().filter(|c| c.name == "sheep").flat_map(|c| c.env.iter().flatten());
        let dirs = variables.filter(|v| v.name == "SHEEP_DIR").find_map(|v| v.value.as_deref());
        let unschedulable = conditions
            .iter()
            .find(|c| c.type_ == "PodScheduled" && c.status == "False")
            .and_then(|c| c.message.clone());
        Self {
            name: p.metadata.name.clone().unwrap_or_default(),
            uid: p.metadata.uid.clone().unwrap_or_default(),
            node: p.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default(),
            host: status.and_then(|s| s.host_ip.clone()).filter(|h| !h.is_empty()),
            gateway: label(COMPONENT) == GATEWAY,
            group: label(GROUP),
            revision: notes.and_then(|n| n.get(REVISION)).cloned().unwrap_or_default(),
            ready: conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"),
            running: main.iter().any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some())),
            deleting: p.metadata.deletion_timestamp.is_some(),
            trouble: waiting.or(unschedulable),
            disks: dirs.into_iter().flat_map(|d| d.split(',')).map(str::to_owned).collect(),
            left_out,
        }
    }
}

/// What the sheep say.
#[derive(Debug, Clone, Default)]
pub enum Engine {
    /// No sheep runs yet, or there are no credentials yet.
    #[default]
    Absent,
    /// Sheep should be there and do not answer.
    Silent(String),
    /// They answer, and none of them is part of a formatted cluster.
    Unformatted {
        /// Addresses (`host`) of those that answered that they wait.
        waiting: Vec<String>,
        /// Those that did not answer, and why.
        silent: Vec<(String, String)>,
    },
    /// A cluster.
    Formatted(Box<Formatted>),
}

/// A formatted cluster.
#[derive(Debug, Clone, Default)]
pub struct Formatted {
    /// At a glance.
    pub info: pb::ClusterInfo,
    /// Nodes.
    pub nodes: Vec<pb::Node>,
    /// Their space; empty when it could not be had.
    pub space: Vec<pb::NodeSpace>,
    /// What moves.
    pub recovery: Option<pb::RecoveryReply>,
}

impl Formatted {
    /// The sheep with data at this address; one that is in use before one that was taken out.
    pub fn sheep_at(&self, host: &str, port: u16) -> Option<&pb::Node> {
        self.at(host, port, false)
    }
    /// The gateway at this address.
    pub fn gateway_at(&self, host: &str, port: u16) -> Option<&pb::Node> {
        self.at(host, port, true)
    }
    fn at(&self, host: &str, port: u16, gateway: bool) -> Option<&pb::Node> {
        let here = |n: &&pb::Node| n.host == host && n.client_port == u32::from(port) && n.gateway == gateway;
        // An address may have had several sheep over time: the one that is in the map counts, then the newest.
        self.nodes.iter().filter(here).max_by_key(|n| (n.state() != pb::node::State::Out, n.since_ms))
    }
    /// Every volume has all its copies, and nobody complains.
    pub fn is_well(&self) -> bool {
        self.info.status() == pb::cluster_info::Status::Ok && self.info.reasons.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, effect: &str) -> Taint {
        Taint { key: key.into(), effect: effect.into(), ..Default::default() }
    }

    #[test]
    fn taints_keep_pods_away_unless_they_pass() {
        let with = |taints: Vec<Taint>| NodeSeen { taints, ..Default::default() };
        let control = with(vec![taint("node-role.kubernetes.io/control-plane", "NoSchedule")]);
        assert!(!control.takes(&[]));
        let all = Toleration { operator: Some("Exists".into()), ..Default::default() };
        assert!(control.takes(std::slice::from_ref(&all)));
        let key = Toleration {
            key: Some("node-role.kubernetes.io/control-plane".into()),
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            ..Default::default()
        };
        assert!(!control.takes(&[key]));
        assert!(with(vec![taint("node.kubernetes.io/not-ready", "NoExecute")]).takes(&[]));
        assert!(with(vec![taint("x", "PreferNoSchedule")]).takes(&[]));
        assert!(!with(vec![taint("node.kubernetes.io/out-of-service", "NoExecute")]).takes(&[]));
    }

    #[test]
    fn a_sheep_in_the_map_counts_before_one_that_is_out() {
        let node = |id: &str, state: pb::node::State, since_ms| pb::Node {
            id: id.into(),
            host: "10.0.0.1".into(),
            client_port: 7000,
            state: state.into(),
            since_ms,
            ..Default::default()
        };
        let f = Formatted {
            nodes: vec![node("new", pb::node::State::Up, 1), node("old", pb::node::State::Out, 9)],
            ..Default::default()
        };
        assert_eq!(f.sheep_at("10.0.0.1", 7000).map(|n| n.id.as_str()), Some("new"));
        assert!(f.sheep_at("10.0.0.1", 7010).is_none() && f.gateway_at("10.0.0.1", 7000).is_none());
    }
}
