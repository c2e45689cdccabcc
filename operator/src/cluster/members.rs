//! Which nodes store data, and in which group. Pure.
//!
//! What holds: a node that has joined leaves only when its labels say so, and only after its data has left it (or it never had any); a taint, a
//! NotReady, or an engine that cannot be asked takes nobody out. A node that changes its group is emptied first: the groups' directories differ.

use super::seen::{Engine, Formatted, Seen};
use sheepdog_client::pb::node::State;
use sheepdog_crds::{SheepdogClusterSpec, SheepdogClusterStatus};
use std::collections::BTreeMap;

/// The outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// Group of every node that runs a sheep with data from now on.
    pub groups: BTreeMap<String, String>,
    /// Of these, nodes that have left their group and still have data.
    pub leaving: Vec<String>,
    /// Of `leaving`, the one to start emptying now.
    pub drain: Option<Move>,
    /// A node that is back in its group while it is being emptied.
    pub cancel: Option<Move>,
    /// Why nothing of `leaving` is being emptied, although it should.
    pub blocked: Option<String>,
}

/// A node whose sheep is told to drain, or to stop draining.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Kubernetes node.
    pub node: String,
    /// Id of its sheep.
    pub sheep: String,
}

impl Members {
    /// Nodes that are meant to stay.
    pub fn staying(&self) -> usize {
        self.groups.len() - self.leaving.len()
    }
}

/// Decide, with what the status says of earlier: whether there was a cluster, and which nodes this operator has begun to empty.
pub fn members(spec: &SheepdogClusterSpec, status: &SheepdogClusterStatus, seen: &Seen) -> Members {
    let mut m = Members::default();
    let was_formatted = status.cluster_id.is_some();
    let port = spec.ports.client;
    let selected = |group: &str, labels| {
        spec.node_groups.iter().any(|g| g.name == group && selects(&g.node_selector, labels))
    };
    for (name, node) in &seen.nodes {
        match seen.assigned.get(name) {
            Some(group) if selected(group, &node.labels) => {
                m.groups.insert(name.clone(), group.clone());
            }
            Some(group) if has_data(seen, node.ip.as_deref(), port, was_formatted) => {
                m.groups.insert(name.clone(), group.clone());
                m.leaving.push(name.clone());
            }
            // Empty, or never part of it: gone, and free to join another group next time.
            Some(_) => {}
            None => {
                let group = spec.node_groups.iter().find(|g| selects(&g.node_selector, &node.labels));
                if let Some(g) = group.filter(|g| node.takes(&g.tolerations) && node.ip.is_some()) {
                    m.groups.insert(name.clone(), g.name.clone());
                }
            }
        }
    }
    if let Engine::Formatted(f) = &seen.engine {
        moves(&mut m, spec, seen, f, &status.draining);
    }
    m
}

fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// Might the sheep there hold something that is nowhere else? When it cannot be asked: yes.
fn has_data(seen: &Seen, ip: Option<&str>, port: u16, was_formatted: bool) -> bool {
    match (&seen.engine, ip) {
        (Engine::Absent | Engine::Silent(_), _) => true,
        (Engine::Unformatted { .. }, _) => was_formatted,
        (Engine::Formatted(f), Some(ip)) => f.sheep_at(ip, port).is_some_and(|n| n.state() != State::Out),
        (Engine::Formatted(_), None) => true,
    }
}

fn moves(m: &mut Members, spec: &SheepdogClusterSpec, seen: &Seen, f: &Formatted, ours: &[String]) {
    let port = spec.ports.client;
    let sheep = |name: &String| {
        let ip = seen.nodes.get(name)?.ip.as_deref()?;
        f.sheep_at(ip, port)
    };
    m.cancel = m.groups.keys().find_map(|name| {
        let n = sheep(name).filter(|n| n.state() == State::Draining)?;
        let back = ours.contains(name) && !m.leaving.contains(name);
        back.then(|| Move { node: name.clone(), sheep: n.id.clone() })
    });
    if f.nodes.iter().any(|n| n.state() == State::Draining) || m.leaving.is_empty() {
        return;
    }
    let width = spec.redundancy.width();
    let staying = m.groups.keys().filter(|n| !m.leaving.contains(n));
    let up = staying.filter(|n| sheep(n).is_some_and(|n| n.state() == State::Up)).count();
    if up < width {
        m.blocked = Some(format!(
            "{} left the cluster's node groups, but only {up} sheep would remain and {width} are needed: add nodes, or give the labels back",
            m.leaving.join(", ")
        ));
        return;
    }
    if !f.is_well() {
        m.blocked = Some(format!(
            "{} will be emptied when the cluster is well again: {}",
            m.leaving.join(", "),
            f.info.reasons.join("; ")
        ));
        return;
    }
    m.drain = m.leaving.iter().find_map(|name| {
        let n = sheep(name).filter(|n| n.state() == State::Up)?;
        Some(Move { node: name.clone(), sheep: n.id.clone() })
    });
}

#[cfg(test)]
mod tests {
    use super::super::seen::NodeSeen;
    use super::*;
    use serde_json::json;
    use sheepdog_client::pb;

    fn spec() -> SheepdogClusterSpec {
        serde_json::from_value(json!({
            "nodeGroups": [
                {"name": "fast", "nodeSelector": {"disk": "nvme"}},
                {"name": "default", "nodeSelector": {"storage": "yes"}},
            ],
            "redundancy": {"copies": 2},
        }))
        .unwrap()
    }

    fn node(n: usize, labels: &[(&str, &str)]) -> (String, NodeSeen) {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let ip = Some(format!("10.0.0.{n}"));
        (format!("n{n}"), NodeSeen { labels, ip, ready: true, ..Default::default() })
    }

    fn seen(nodes: Vec<(String, NodeSeen)>, states: &[(usize, State)]) -> Seen {
        let sheep = states.iter().map(|(n, state)| pb::Node {
            id: format!("id{n}"),
            host: format!("10.0.0.{n}"),
            client_port: 7000,
            state: (*state).into(),
            ..Default::default()
        });
        let mut f = Formatted { nodes: sheep.collect(), ..Default::default() };
        f.info.set_status(pb::cluster_info::Status::Ok);
        Seen {
            nodes: nodes.into_iter().collect(),
            engine: Engine::Formatted(Box::new(f)),
            ..Default::default()
        }
    }

    fn assigned(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(n, g)| ((*n).to_owned(), (*g).to_owned())).collect()
    }

    const YES: &[(&str, &str)] = &[("storage", "yes")];

    #[test]
    fn the_first_group_that_matches_and_only_nodes_that_take_pods() {
        let mut tainted = node(3, YES);
        tainted.1.taints = vec![k8s_openapi::api::core::v1::Taint {
            key: "dedicated".into(),
            effect: "NoSchedule".into(),
            ..Default::default()
        }];
        let nodes =
            vec![node(1, &[("storage", "yes"), ("disk", "nvme")]), node(2, YES), tainted, node(4, &[])];
        let s = Seen { nodes: nodes.into_iter().collect(), ..Default::default() };
        let m = members(&spec(), &Default::default(), &s);
        assert_eq!(m.groups, assigned(&[("n1", "fast"), ("n2", "default")]));
        assert!(m.leaving.is_empty() && m.drain.is_none());
    }

    #[test]
    fn a_node_without_its_label_is_emptied_before_it_goes() {
        let nodes = || vec![node(1, YES), node(2, YES), node(3, &[])];
        let all = assigned(&[("n1", "default"), ("n2", "default"), ("n3", "default")]);
        let mut s = seen(nodes(), &[(1, State::Up), (2, State::Up), (3, State::Up)]);
        s.assigned = all.clone();
        let m = members(&spec(), &Default::default(), &s);
        assert_eq!((m.groups.clone(), m.leaving.clone()), (all.clone(), vec!["n3".to_owned()]));
        assert_eq!(m.drain, Some(Move { node: "n3".into(), sheep: "id3".into() }));
        // Meanwhile it stays, and nobody else is drained.
        let mut s = seen(nodes(), &[(1, State::Up), (2, State::Up), (3, State::Draining)]);
        s.assigned = all.clone();
        let m = members(&spec(), &Default::default(), &s);
        assert_eq!((m.groups.len(), m.drain), (3, None));
        // When it is empty it goes.
        let mut s = seen(nodes(), &[(1, State::Up), (2, State::Up), (3, State::Out)]);
        s.assigned = all;
        let m = members(&spec(), &Default::default(), &s);
        assert_eq!((m.groups.len(), m.leaving.len()), (2, 0));
    }

    #[test]
    fn nobody_goes_while_the_cluster_cannot_be_asked() {
        let status = |id: Option<&str>| SheepdogClusterStatus {
            cluster_id: id.map(str::to_owned),
            ..Default::default()
        };
        let waiting = Engine::Unformatted { waiting: vec!["10.0.0.1".into()], silent: vec![] };
        for (engine, status, stays) in [
            (Engine::Silent("down".into()), status(None), true),
            (Engine::Absent, status(None), true),
            (waiting.clone(), status(Some("x")), true),
            (waiting, status(None), false),
        ] {
            let s = Seen {
                nodes: [node(1, &[])].into_iter().collect(),
                assigned: assigned(&[("n1", "default")]),
                engine,
                ..Default::default()
            };
            assert_eq!(members(&spec(), &status, &s).groups.len() == 1, stays);
        }
    }

    #[test]
    fn taints_take_nobody_out() {
        let mut dead = node(1, YES);
        dead.1.ready = false;
        dead.1.taints = vec![k8s_openapi::api::core::v1::Taint {
            key: "node.kubernetes.io/out-of-service".into(),
            effect: "NoExecute".into(),
            ..Default::default()
        }];
        let mut s = seen(vec![dead], &[(1, State::Down)]);
        s.assigned = assigned(&[("n1", "default")]);
        let m = members(&spec(), &Default::default(), &s);
        assert_eq!((m.groups.len(), m.leaving.len()), (1, 0));
    }

    #[test]
    fn the_last_copies_are_not_drained() {
        let mut s = seen(vec![node(1, YES), node(2, &[])], &[(1, State::Up), (2, State::Up)]);
        s.assigned = assigned(&[("n1", "default"), ("n2", "default")]);
        let m = members(&spec(), &Default::default(), &s);
        assert!(
            m.drain.is_none() && m.blocked.unwrap().contains("only 1 sheep would remain and 2 are needed")
        );
    }

    #[test]
    fn a_label_given_back_cancels_only_what_we_began() {
        let mut s = seen(vec![node(1, YES), node(2, YES)], &[(1, State::Draining), (2, State::Up)]);
        s.assigned = assigned(&[("n1", "default"), ("n2", "default")]);
        assert_eq!(members(&spec(), &Default::default(), &s).cancel, None);
        let ours = SheepdogClusterStatus { draining: vec!["n1".into()], ..Default::default() };
        let m = members(&spec(), &ours, &s);
        assert_eq!(m.cancel, Some(Move { node: "n1".into(), sheep: "id1".into() }));
    }

    #[test]
    fn a_node_that_changes_its_group_is_emptied_first() {
        let nvme = || vec![node(1, &[("disk", "nvme")]), node(2, YES), node(3, YES)];
        let was = assigned(&[("n1", "default"), ("n2", "default"), ("n3", "default")]);
        let mut s = seen(nvme(), &[(1, State::Up), (2, State::Up), (3, State::Up)]);
        s.assigned = was.clone();
        let m = members(&spec(), &Default::default(), &s);
        assert_eq!((m.groups["n1"].as_str(), m.leaving.len()), ("default", 1));
        let mut s = seen(nvme(), &[(1, State::Out), (2, State::Up), (3, State::Up)]);
        s.assigned = was;
        assert!(!members(&spec(), &Default::default(), &s).groups.contains_key("n1"));
        s.assigned.remove("n1");
        assert_eq!(members(&spec(), &Default::default(), &s).groups["n1"], "fast");
    }
}
