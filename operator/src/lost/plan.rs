//! Is a node lost, and which of its pods have to go? Pure.

use crate::cluster::seen::{Engine, NodeSeen};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use sheepdog_client::pb::node::State;
use sheepdog_crds::LOST;
use std::collections::HashMap;

/// Set by a human, or by a program that has switched the node off: Kubernetes' own sign that nothing of it runs.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// What to think of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is gone; why, in words.
    Lost(String),
    /// Kubernetes does not hear it, but Sheepdog does: its pods work.
    Alive,
    /// Nobody can say.
    Unknown(String),
}

/// Worth asking Sheepdog about?
pub fn is_suspect(n: &NodeSeen) -> bool {
    !n.ready || has_taint(n)
}

fn has_taint(n: &NodeSeen) -> bool {
    n.taints.iter().any(|t| t.key == OUT_OF_SERVICE)
}

/// Bears our own taint.
pub fn is_marked(n: &NodeSeen) -> bool {
    n.taints.iter().any(|t| t.key == LOST)
}

/// Decide, with what every cluster (and its clients' port) says, and whether the node's kubelet is silent. All clusters that know a sheep on the node must have given
/// it up.
pub fn judge(n: &NodeSeen, silent: bool, engines: &[(u16, Engine)]) -> Verdict {
    if has_taint(n) {
        return Verdict::Lost(format!("the node has the taint {OUT_OF_SERVICE}"));
    }
    if n.ready && !silent {
        return Verdict::Alive;
    }
    let Some(ip) = n.ip.as_deref() else { return Verdict::Unknown("the node has no address".into()) };
    let mut given_up = false;
    for (port, engine) in engines {
        let f = match engine {
            Engine::Formatted(f) => f,
            Engine::Absent | Engine::Unformatted { .. } => continue,
            Engine::Silent(why) => return Verdict::Unknown(format!("the sheep cannot be asked: {why}")),
        };
        // A list that could not be had says nothing.
        if f.nodes.is_empty() {
            return Verdict::Unknown("the sheep did not list their nodes".into());
        }
        let here: Vec<_> = [f.sheep_at(ip, *port), f.gateway_at(ip, *port)].into_iter().flatten().collect();
        if here.iter().any(|s| matches!(s.state(), State::Up | State::Draining)) {
            return Verdict::Alive;
        }
        given_up |= !here.is_empty();
    }
    if given_up {
        let kubelet = if n.ready { "its kubelet is silent" } else { "it is not ready" };
        Verdict::Lost(format!("the node is lost: {kubelet}, and its sheep has lost its lease"))
    } else {
        Verdict::Unknown("no cluster knows a sheep on this node".into())
    }
}

/// Which claims are bound to volumes of our driver.
#[derive(Debug, Default)]
pub struct Claims(HashMap<(String, String), bool>);

impl Claims {
    /// Has it been looked up?
    pub fn is_known(&self, namespace: &str, claim: &str) -> bool {
        self.0.contains_key(&(namespace.to_owned(), claim.to_owned()))
    }
    /// It has.
    pub fn note(&mut self, namespace: String, claim: String, ours: bool) {
        self.0.insert((namespace, claim), ours);
    }
}

/// Claims that a pod uses, also those made for it.
pub fn claims_of(pod: &Pod) -> Vec<(String, String)> {
    let namespace = pod.namespace().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let claim = |v: &k8s_openapi::api::core::v1::Volume| match (&v.persistent_volume_claim, &v.ephemeral) {
        (Some(c), _) => Some(c.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name_any(), v.name)),
        (None, None) => None,
    };
    volumes.iter().filter_map(claim).map(|c| (namespace.clone(), c)).collect()
}

/// Does it keep one of our volumes from moving?
pub fn must_go(pod: &Pod, claims: &Claims) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    let over = phase == "Succeeded" || phase == "Failed";
    !over && claims_of(pod).iter().any(|c| claims.0.get(c).copied().unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::seen::Formatted;
    use k8s_openapi::api::core::v1::Taint;
    use serde_json::json;
    use sheepdog_client::pb;

    fn node(ready: bool) -> NodeSeen {
        NodeSeen { ready, ip: Some("10.0.0.1".into()), ..Default::default() }
    }

    fn engine(state: State, gateway: bool) -> (u16, Engine) {
        let n = pb::Node {
            host: "10.0.0.1".into(),
            client_port: 7000,
            gateway,
            state: state.into(),
            ..Default::default()
        };
        (7000, Engine::Formatted(Box::new(Formatted { nodes: vec![n], ..Default::default() })))
    }

    #[test]
    fn both_must_have_given_it_up() {
        let lost = |v: Verdict| matches!(v, Verdict::Lost(_));
        for gateway in [false, true] {
            assert!(lost(judge(&node(false), false, &[engine(State::Down, gateway)])));
            assert!(lost(judge(&node(false), false, &[engine(State::Out, gateway)])));
            assert_eq!(judge(&node(true), false, &[engine(State::Down, gateway)]), Verdict::Alive);
            assert_eq!(judge(&node(false), false, &[engine(State::Up, gateway)]), Verdict::Alive);
        }
        // Kubernetes has not noticed yet, and its kubelet is silent.
        assert!(lost(judge(&node(true), true, &[engine(State::Down, false)])));
        assert_eq!(judge(&node(true), true, &[engine(State::Up, false)]), Verdict::Alive);
        // A second cluster that still hears its sheep there.
        let both = [engine(State::Down, false), engine(State::Up, true)];
        assert_eq!(judge(&node(false), false, &both), Verdict::Alive);
    }

    #[test]
    fn nobody_is_believed_who_cannot_be_asked() {
        for engines in [
            vec![],
            vec![(7000, Engine::Silent("x".into()))],
            vec![engine(State::Down, false), (7000, Engine::Silent("x".into()))],
            vec![(7000, Engine::Formatted(Box::default()))],
            vec![(7010, engine(State::Down, false).1)],
        ] {
            assert!(matches!(judge(&node(false), false, &engines), Verdict::Unknown(_)), "{engines:?}");
        }
    }

    #[test]
    fn the_taint_is_believed() {
        let mut n = node(true);
        n.taints =
            vec![Taint { key: OUT_OF_SERVICE.into(), effect: "NoExecute".into(), ..Default::default() }];
        assert!(is_suspect(&n) && matches!(judge(&n, false, &[]), Verdict::Lost(_)));
        assert!(is_suspect(&node(false)) && !is_suspect(&node(true)));
    }

    #[test]
    fn only_pods_with_our_volumes_go() {
        let pod = |phase: &str, volumes: serde_json::Value| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "ns"},
                "spec": {"containers": [], "volumes": volumes},
                "status": {"phase": phase},
            }))
            .unwrap()
        };
        let mut claims = Claims::default();
        claims.note("ns".into(), "data".into(), true);
        claims.note("ns".into(), "p-scratch".into(), true);
        claims.note("ns".into(), "other".into(), false);
        let ours = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
        let scratch = json!([{"name": "scratch", "ephemeral": {}}]);
        let other = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "other"}}, {"name": "e", "emptyDir": {}}]);
        assert!(must_go(&pod("Running", ours.clone()), &claims));
        assert!(must_go(&pod("Running", scratch), &claims));
        assert!(!must_go(&pod("Running", other), &claims));
        assert!(!must_go(&pod("Succeeded", ours), &claims));
    }
}
