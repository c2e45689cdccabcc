//! Restarting sheep whose pods are out of date: one at a time, the next only when every volume has all its copies again. Pure.
//!
//! What is remembered between two looks is in the pods themselves, so an operator that dies in the middle goes on where it was.

use super::seen::{Engine, PodSeen};
use sheepdog_client::pb::node::State;
use sheepdog_crds::cluster::UpdateKind;
use std::collections::{BTreeMap, BTreeSet};

/// What to do about pods that are out of date.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roll {
    /// Their names.
    pub outdated: Vec<String>,
    /// The one to delete now.
    pub restart: Option<PodSeen>,
    /// What is waited for.
    pub waiting: Option<String>,
    /// Why it cannot go on by itself.
    pub blocked: Option<String>,
}

/// The revision that pods of a DaemonSet should have, by group; the gateways' has no group.
pub type Revisions = BTreeMap<Option<String>, String>;

/// Decide. `held`: pods that must not be restarted yet; `port`: the clients' port.
pub fn roll(
    kind: UpdateKind,
    pods: &[PodSeen],
    revisions: &Revisions,
    held: &BTreeSet<String>,
    engine: &Engine,
    port: u16,
) -> Roll {
    let wanted = |p: &PodSeen| revisions.get(&(!p.gateway).then(|| p.group.clone()));
    // A group that is no longer wanted has no revision: its pods are left alone until they are empty.
    let is_old = |p: &&PodSeen| !p.deleting && wanted(p).is_some_and(|r| *r != p.revision);
    let mut old: Vec<&PodSeen> = pods.iter().filter(is_old).collect();
    let mut roll = Roll { outdated: old.iter().map(|p| p.name.clone()).collect(), ..Roll::default() };
    old.retain(|p| !held.contains(&p.name));
    if old.is_empty() || kind == UpdateKind::Manual {
        return roll;
    }
    // A pod that does not run, and whose sheep the cluster does not count on, costs nothing; it may be what keeps the cluster from getting well.
    if let Some(p) = old.iter().find(|p| !p.running && !counted(p, engine, port)) {
        roll.restart = Some((*p).clone());
        return roll;
    }
    let unfinished = |p: &&PodSeen| p.deleting || (!is_old(p) && !p.ready && wanted(p).is_some());
    if let Some(p) = pods.iter().find(unfinished) {
        let formatted = matches!(engine, Engine::Formatted(_));
        match &p.trouble {
            Some(why) => roll.blocked = Some(format!("pod {} does not start: {why}", p.name)),
            // Before format nobody is ready.
            None if formatted => roll.waiting = Some(format!("pod {} is starting", p.name)),
            None => {}
        }
        if roll.blocked.is_some() || roll.waiting.is_some() {
            return roll;
        }
    }
    let leader = match engine {
        Engine::Absent | Engine::Unformatted { .. } => None,
        Engine::Silent(why) => {
            roll.blocked = Some(format!(
                "the cluster does not answer, so nobody knows what a restart would cost: {why}"
            ));
            return roll;
        }
        Engine::Formatted(f) => {
            if !f.is_well() {
                roll.blocked =
                    Some(format!("not every volume has all its copies: {}", f.info.reasons.join("; ")));
                return roll;
            }
            f.nodes.iter().find(|n| n.id == f.info.leader && !n.id.is_empty()).map(|n| n.host.clone())
        }
    };
    // Storage first, so that a bad version shows where it is watched best; the leader last of them, so that it moves once.
    old.sort_by_key(|p| (p.gateway, p.host.is_some() && p.host == leader, p.node.clone()));
    roll.restart = old.first().map(|p| (*p).clone());
    roll
}

fn counted(p: &PodSeen, engine: &Engine, port: u16) -> bool {
    match engine {
        Engine::Absent | Engine::Unformatted { .. } => false,
        Engine::Silent(_) => true,
        Engine::Formatted(f) => {
            let Some(host) = p.host.as_deref() else { return false };
            let node = if p.gateway { f.gateway_at(host, port) } else { f.sheep_at(host, port) };
            node.is_some_and(|n| matches!(n.state(), State::Up | State::Draining))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::seen::Formatted;
    use super::*;
    use sheepdog_client::pb;

    fn pod(node: &str, revision: &str) -> PodSeen {
        PodSeen {
            name: format!("sheep-{node}"),
            node: node.into(),
            host: Some(format!("10.0.0.{node}")),
            group: "default".into(),
            revision: revision.into(),
            ready: true,
            running: true,
            ..Default::default()
        }
    }

    fn well(reasons: &[&str]) -> Engine {
        let node = |n: u8| pb::Node {
            id: format!("id{n}"),
            host: format!("10.0.0.{n}"),
            client_port: 7000,
            ..Default::default()
        };
        let mut f = Formatted { nodes: (1..4).map(node).collect(), ..Default::default() };
        f.info.leader = "id1".into();
        f.info.reasons = reasons.iter().map(|r| (*r).to_owned()).collect();
        f.info.set_status(match reasons {
            [] => pb::cluster_info::Status::Ok,
            _ => pb::cluster_info::Status::Degraded,
        });
        Engine::Formatted(Box::new(f))
    }

    fn decide(pods: &[PodSeen], engine: &Engine) -> Roll {
        let revisions = [(Some("default".to_owned()), "new".to_owned()), (None, "new".to_owned())].into();
        roll(UpdateKind::RollingUpdate, pods, &revisions, &BTreeSet::new(), engine, 7000)
    }

    fn restarted(r: &Roll) -> Option<&str> {
        r.restart.as_ref().map(|p| p.node.as_str())
    }

    #[test]
    fn one_at_a_time_and_the_leader_last() {
        let mut pods = vec![pod("1", "old"), pod("2", "old"), pod("3", "old")];
        let mut order = Vec::new();
        for _ in 0..3 {
            let r = decide(&pods, &well(&[]));
            let node = restarted(&r).expect("somebody").to_owned();
            let p = pods.iter_mut().find(|p| p.node == node).unwrap();
            p.deleting = true;
            assert_eq!(restarted(&decide(&pods, &well(&[]))), None, "one is on its way");
            let p = pods.iter_mut().find(|p| p.node == node).unwrap();
            (p.deleting, p.ready, p.revision) = (false, false, "new".into());
            let r = decide(&pods, &well(&[]));
            if order.len() < 2 {
                assert!(r.restart.is_none() && r.waiting.unwrap().contains("is starting"));
            }
            pods.iter_mut().find(|p| p.node == node).unwrap().ready = true;
            order.push(node);
        }
        assert_eq!(order, ["2", "3", "1"]);
        assert_eq!(decide(&pods, &well(&[])), Roll::default());
    }

    #[test]
    fn nothing_is_restarted_while_copies_are_missing() {
        let pods = [pod("1", "old"), pod("2", "new")];
        let r = decide(&pods, &well(&["node id2 is being filled"]));
        assert!(r.restart.is_none() && r.blocked.unwrap().contains("is being filled"));
        let r = decide(&pods, &Engine::Silent("no answer".into()));
        assert!(r.restart.is_none() && r.blocked.unwrap().contains("does not answer"));
    }

    #[test]
    fn a_pod_that_cannot_start_stops_it_and_is_mended_first() {
        let mut bad = pod("2", "new");
        (bad.ready, bad.running, bad.trouble) = (false, false, Some("ImagePullBackOff".into()));
        let r = decide(&[pod("1", "old"), bad.clone()], &well(&["node id2 is down"]));
        assert!(r.restart.is_none() && r.blocked.unwrap().contains("ImagePullBackOff"));
        // A third image is there: the pod that never ran goes first, although the cluster is not well.
        bad.revision = "older".into();
        let Engine::Formatted(mut f) = well(&["node id2 is down"]) else { unreachable!() };
        f.nodes[1].set_state(State::Down);
        let r = decide(&[pod("1", "old"), bad], &Engine::Formatted(f));
        assert_eq!(restarted(&r), Some("2"));
    }

    #[test]
    fn gateways_come_last_and_manual_means_nobody() {
        let mut gateway = pod("0", "old");
        (gateway.gateway, gateway.group) = (true, String::new());
        let pods = [gateway, pod("2", "old")];
        assert_eq!(restarted(&decide(&pods, &well(&[]))), Some("2"));
        let revisions = [(Some("default".to_owned()), "new".to_owned())].into();
        let none = BTreeSet::new();
        let r = roll(UpdateKind::Manual, &pods, &revisions, &none, &well(&[]), 7000);
        assert_eq!((r.restart, r.outdated), (None, vec!["sheep-2".to_owned()]));
    }

    #[test]
    fn a_pod_that_is_held_is_out_of_date_and_stays() {
        let pods = [pod("1", "old"), pod("2", "old")];
        let revisions = [(Some("default".to_owned()), "new".to_owned())].into();
        let held = ["sheep-2".to_owned()].into();
        let r = roll(UpdateKind::RollingUpdate, &pods, &revisions, &held, &well(&[]), 7000);
        assert_eq!((restarted(&r), r.outdated.len()), (Some("1"), 2));
        let held = ["sheep-1".to_owned(), "sheep-2".to_owned()].into();
        let r = roll(UpdateKind::RollingUpdate, &pods, &revisions, &held, &well(&[]), 7000);
        assert_eq!((restarted(&r), r.outdated.len(), &r.blocked), (None, 2, &None));
    }
}
