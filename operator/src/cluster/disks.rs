//! Disks that leave their sheep because the object does not name them any more, and disks that are in trouble. Pure.
//!
//! New disks need nothing but the restart that brings them (`roll`). One that leaves is unplugged first, while its sheep runs: what it holds moves
//! to the sheep's other disks. One disk at a time in the whole cluster, and only when every volume has all its copies; the pod is restarted without the
//! disk only when it is out of use. One that the object names again before that stays. What has been done is seen from pods and sheep, so an operator that dies goes on where it was.

use super::build::disks::{paths, told};
use super::seen::{Engine, Formatted, PodSeen, Seen};
use crate::names::Names;
use crate::quantity::human;
use sheepdog_client::pb::node::State;
use sheepdog_client::pb::{NodeDisk, PlugDiskRequest, UnplugDiskRequest, node_disk};
use sheepdog_crds::SheepdogCluster;
use std::collections::BTreeSet;

/// What comes with objects: metadata, journal entries that were not in the files yet.
const EXTRA: u64 = 64 << 20;

/// The outcome.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Disks {
    /// Disks that have left the object and are in use: `node: disk`.
    pub leaving: Vec<String>,
    /// Of these, the one to take out of use now.
    pub unplug: Option<UnplugDiskRequest>,
    /// One that was being taken out of use and is wanted again.
    pub stay: Option<PlugDiskRequest>,
    /// Pods that must not be restarted yet: they would start without a disk that is in use.
    pub held: BTreeSet<String>,
    /// What is waited for before the next one.
    pub waiting: Option<String>,
    /// Why one cannot be taken out of use, and what to do.
    pub blocked: Option<String>,
    /// Disks that the object names and that are not in use: `node: disk: why`.
    pub troubles: Vec<String>,
}

/// Is it in use at its sheep?
fn in_use(d: &NodeDisk) -> bool {
    use node_disk::State::{Full, Leaving, Ok, Suspect};
    matches!(d.state(), Ok | Full | Leaving | Suspect)
}

/// Decide. `leaving_nodes` are being emptied as a whole.
pub fn disks(c: &SheepdogCluster, names: &Names, seen: &Seen, leaving_nodes: &[String]) -> Disks {
    let mut d = Disks::default();
    let mut pods: Vec<&PodSeen> = seen.pods.iter().filter(|p| !p.gateway && !p.deleting).collect();
    pods.sort_by_key(|p| &p.node);
    for pod in pods {
        let Some(group) = c.spec.node_groups.iter().find(|g| g.name == pod.group) else { continue };
        let wanted = paths(c, names, group);
        d.troubles.extend(pod.left_out.iter().map(|why| format!("{}: {why}", pod.node)));
        let gone: Vec<&String> = pod.disks.iter().filter(|p| !wanted.contains(p)).collect();
        let look = Look { c, names, pod, wanted: &wanted };
        match &seen.engine {
            Engine::Absent | Engine::Unformatted { .. } => {}
            Engine::Silent(_) if gone.is_empty() => {}
            Engine::Silent(why) => {
                d.held.insert(pod.name.clone());
                d.leaving.extend(gone.iter().map(|path| look.told(path)));
                d.blocked = Some(format!(
                    "disks are taken away when the cluster can be asked what is on them: {why}"
                ));
            }
            Engine::Formatted(f) => {
                look.troubles(f, &mut d);
                look.stays(f, &mut d);
                if !leaving_nodes.contains(&pod.node) {
                    gone.iter().for_each(|path| look.leaves(f, path, &mut d));
                }
            }
        }
    }
    if d.waiting.is_some() {
        d.unplug = None;
    }
    d
}

struct Look<'a> {
    c: &'a SheepdogCluster,
    names: &'a Names,
    pod: &'a PodSeen,
    wanted: &'a [String],
}

impl Look<'_> {
    fn told(&self, path: &str) -> String {
        format!("{}: {}", self.pod.node, told(self.c, self.names, path))
    }

    /// The sheep's id and its disks, while it is up.
    fn sheep<'f>(&self, f: &'f Formatted) -> Option<(&'f str, Option<&'f [NodeDisk]>)> {
        let node = f.sheep_at(self.pod.host.as_deref()?, self.c.spec.ports.client)?;
        if !matches!(node.state(), State::Up | State::Draining) {
            return None;
        }
        let row = f.space.iter().find(|s| s.node.as_ref().is_some_and(|n| n.id == node.id));
        let disks = row.filter(|s| s.error.is_empty()).map(|s| s.disks.as_slice());
        Some((&node.id, disks))
    }

    fn leaves(&self, f: &Formatted, path: &str, d: &mut Disks) {
        // A sheep that is down uses nothing; starting without the disk is how it comes back.
        let Some((sheep, disks)) = self.sheep(f) else { return };
        let Some(disks) = disks else {
            d.held.insert(self.pod.name.clone());
            d.leaving.push(self.told(path));
            d.blocked
                .get_or_insert(format!("the sheep on {} does not say what is on its disks", self.pod.node));
            return;
        };
        let Some(disk) = disks.iter().find(|x| x.path == path && in_use(x)) else { return };
        d.held.insert(self.pod.name.clone());
        d.leaving.push(self.told(path));
        let staying: Vec<&NodeDisk> =
            disks.iter().filter(|x| in_use(x) && self.wanted.contains(&x.path)).collect();
        let room: u64 = staying.iter().map(|x| x.free).sum();
        if disk.state() == node_disk::State::Leaving {
            let why = if disk.reason.is_empty() { String::new() } else { format!(": {}", disk.reason) };
            d.waiting = Some(format!(
                "{} is being emptied onto the other disks there, {} are left{why}",
                self.told(path),
                human(disk.used)
            ));
            return;
        }
        let why = if staying.is_empty() {
            Some(format!(
                "{} is the only disk of its sheep: add another one first, and take it away when that is in use; or drain the node",
                self.told(path)
            ))
        } else if room < disk.used.saturating_add(disk.used / 10).saturating_add(EXTRA) {
            Some(format!(
                "{} holds {}, and the other disks there have {} free: add one first, or drain the node",
                self.told(path),
                human(disk.used),
                human(room)
            ))
        } else {
            None
        };
        match why {
            Some(why) => drop(d.blocked.get_or_insert(why)),
            None if !f.is_well() => {
                d.waiting =
                    Some(format!("not every volume has all its copies: {}", f.info.reasons.join("; ")));
            }
            None if d.unplug.is_none() => {
                d.unplug =
                    Some(UnplugDiskRequest { node: sheep.to_owned(), disk: disk.id.clone(), force: false });
            }
            None => {}
        }
    }

    /// Taken out of the object, and back into it before it was empty.
    fn stays(&self, f: &Formatted, d: &mut Disks) {
        let Some((sheep, Some(disks))) = self.sheep(f) else { return };
        let leaving = |x: &&NodeDisk| x.state() == node_disk::State::Leaving;
        if let Some(disk) = disks.iter().filter(leaving).find(|x| self.wanted.contains(&x.path)) {
            d.stay.get_or_insert(PlugDiskRequest { node: sheep.to_owned(), path: disk.path.clone() });
        }
    }

    fn troubles(&self, f: &Formatted, d: &mut Disks) {
        let Some((_, Some(disks))) = self.sheep(f) else { return };
        let ours = |x: &&NodeDisk| self.wanted.contains(&x.path) && self.pod.disks.contains(&x.path);
        for lost in disks.iter().filter(|x| !in_use(x)).filter(ours) {
            let again = disks.iter().any(|x| in_use(x) && x.path == lost.path);
            if !again && lost.reason.is_empty() {
                // The sheep would not start with it.
                d.held.insert(self.pod.name.clone());
            }
            // What the init container says of it says more.
            let known =
                self.pod.left_out.iter().any(|l| l.starts_with(&told(self.c, self.names, &lost.path)));
            if !again && !known {
                let why = if lost.reason.is_empty() { "it has failed" } else { &lost.reason };
                d.troubles.push(format!(
                    "{}: {why}. Replace it, or take it out of the object (docs/kubernetes.md, \"Disks\")",
                    self.told(&lost.path)
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use sheepdog_client::pb::{self, cluster_info::Status};

    fn cluster(directories: &[&str], devices: &[&str]) -> SheepdogCluster {
        serde_json::from_value(json!({
            "apiVersion": "sheepdog.io/v1alpha1", "kind": "SheepdogCluster",
            "metadata": {"name": "c", "namespace": "ns"},
            "spec": {"nodeGroups": [{"directories": directories, "devices": devices}]},
        }))
        .unwrap()
    }

    fn disk(path: &str, state: node_disk::State, used: u64) -> NodeDisk {
        NodeDisk {
            id: format!("id-{path}"),
            path: path.into(),
            total: 100 << 30,
            free: 50 << 30,
            used,
            state: state.into(),
            ..Default::default()
        }
    }

    /// Two nodes whose pods and sheep have these disks.
    fn seen(disks: &[NodeDisk], reasons: &[&str]) -> Seen {
        let mut f = Formatted::default();
        f.info.set_status(if reasons.is_empty() { Status::Ok } else { Status::Degraded });
        f.info.reasons = reasons.iter().map(|r| (*r).to_owned()).collect();
        let mut seen = Seen::default();
        for n in ["1", "2"] {
            let host = format!("10.0.0.{n}");
            let node = pb::Node {
                id: format!("id{n}"),
                host: host.clone(),
                client_port: 7000,
                state: State::Up.into(),
                ..Default::default()
            };
            f.space.push(pb::NodeSpace {
                node: Some(node.clone()),
                disks: disks.to_vec(),
                ..Default::default()
            });
            f.nodes.push(node);
            seen.pods.push(PodSeen {
                name: format!("pod{n}"),
                node: format!("n{n}"),
                host: Some(host),
                group: "default".into(),
                disks: disks.iter().map(|d| d.path.clone()).collect(),
                ready: true,
                running: true,
                ..Default::default()
            });
        }
        seen.engine = Engine::Formatted(Box::new(f));
        seen
    }

    fn plan(c: &SheepdogCluster, seen: &Seen) -> Disks {
        disks(c, &Names::of(c), seen, &[])
    }

    const OK: node_disk::State = node_disk::State::Ok;

    #[test]
    fn nothing_leaves_nothing_is_done() {
        let s = seen(&[disk("/a", OK, 0), disk("/b", OK, 0)], &[]);
        assert_eq!(plan(&cluster(&["/a", "/b"], &[]), &s), Disks::default());
        // A new one only needs a restart.
        assert_eq!(plan(&cluster(&["/a", "/b", "/c"], &["/dev/sdb"]), &s), Disks::default());
    }

    #[test]
    fn one_disk_at_a_time_and_no_restart_before_it_is_out_of_use() {
        let mut s = seen(&[disk("/a", OK, 0), disk("/b", OK, 1 << 30)], &[]);
        let c = cluster(&["/a"], &[]);
        let d = plan(&c, &s);
        assert_eq!(d.leaving, ["n1: /b", "n2: /b"]);
        assert_eq!(
            d.unplug,
            Some(UnplugDiskRequest { node: "id1".into(), disk: "id-/b".into(), force: false })
        );
        assert_eq!(d.held, ["pod1".to_owned(), "pod2".to_owned()].into());
        // While the first is being emptied the second waits.
        let Engine::Formatted(f) = &mut s.engine else { unreachable!() };
        f.space[0].disks[1].set_state(node_disk::State::Leaving);
        let d = plan(&c, &s);
        assert_eq!((d.unplug, d.held), (None, ["pod1".to_owned(), "pod2".to_owned()].into()));
        assert!(d.waiting.unwrap().contains("n1: /b is being emptied"));
        // Unless it is wanted again.
        let d = plan(&cluster(&["/a", "/b"], &[]), &s);
        assert_eq!(d.stay, Some(PlugDiskRequest { node: "id1".into(), path: "/b".into() }));
        assert!(d.leaving.is_empty() && d.unplug.is_none(), "{d:?}");
        // It is out of use on the first node, and not everything has its copies again.
        let Engine::Formatted(f) = &mut s.engine else { unreachable!() };
        f.space[0].disks.remove(1);
        f.info.reasons = vec!["node id1 is being filled".into()];
        let d = plan(&c, &s);
        assert_eq!((d.unplug, d.held), (None, ["pod2".to_owned()].into()));
        assert!(d.blocked.is_none() && d.waiting.unwrap().contains("is being filled"));
        assert!(d.troubles.is_empty(), "nobody wants it any more");
    }

    #[test]
    fn what_must_not_go_is_said() {
        let full = disk("/b", OK, 60 << 30);
        for (s, c, word) in [
            (seen(&[disk("/a", OK, 0)], &[]), cluster(&["/b"], &[]), "only disk of its sheep"),
            (seen(&[disk("/a", OK, 0), full], &[]), cluster(&["/a"], &[]), "have 50"),
        ] {
            let d = plan(&c, &s);
            assert!(d.unplug.is_none() && d.held.len() == 2, "{d:?}");
            assert!(d.blocked.as_ref().unwrap().contains(word), "{d:?}");
        }
        let mut s = seen(&[disk("/a", OK, 0), disk("/b", OK, 0)], &[]);
        s.engine = Engine::Silent("no answer".into());
        let d = plan(&cluster(&["/a"], &[]), &s);
        assert!(d.unplug.is_none() && d.held.len() == 2 && d.blocked.unwrap().contains("no answer"));
    }

    #[test]
    fn a_disk_that_is_not_in_use_holds_nothing() {
        // It failed, and the sheep retired it: the pod may be restarted without it.
        let s = seen(&[disk("/a", OK, 0), disk("/b", node_disk::State::Retired, 0)], &[]);
        assert_eq!(plan(&cluster(&["/a"], &[]), &s), Disks::default());
        // While it is wanted it is a trouble.
        let d = plan(&cluster(&["/a", "/b"], &[]), &s);
        assert!(d.troubles.len() == 2 && d.troubles[0].contains("n1: /b: it has failed"), "{d:?}");
        assert_eq!(d.held.len(), 2, "its sheep would not start with it");
        // One that was taken away and is named again comes with the restart.
        let mut s = s;
        s.pods.iter_mut().for_each(|p| p.disks.truncate(1));
        assert_eq!(plan(&cluster(&["/a", "/b"], &[]), &s), Disks::default());
        // A sheep that is down starts without it.
        let mut s = seen(&[disk("/a", OK, 0), disk("/b", OK, 0)], &["node id1 is down"]);
        let Engine::Formatted(f) = &mut s.engine else { unreachable!() };
        f.nodes[0].set_state(State::Down);
        assert_eq!(plan(&cluster(&["/a"], &[]), &s).held, ["pod2".to_owned()].into());
        // Nodes that are emptied as a whole need no more.
        let c = cluster(&["/a"], &[]);
        assert!(disks(&c, &Names::of(&c), &s, &["n2".into()]).held.is_empty());
    }

    #[test]
    fn devices_go_by_their_names() {
        let c = cluster(&["/a"], &["/dev/disk/by-id/x"]);
        let at = paths(&c, &Names::of(&c), &c.spec.node_groups[0])[1].clone();
        assert!(at.starts_with("/var/lib/sheepdog/c/disks/x-"), "{at}");
        let mut s = seen(&[disk("/a", OK, 0), disk(&at, node_disk::State::Retired, 0)], &[]);
        s.pods[0].left_out = vec!["/dev/disk/by-id/x: there is no such device".into()];
        let d = plan(&c, &s);
        assert_eq!(d.troubles[0], "n1: /dev/disk/by-id/x: there is no such device");
        assert!(
            d.troubles.len() == 2 && d.troubles[1].contains("n2: /dev/disk/by-id/x: it has failed"),
            "{d:?}"
        );
    }
}
