//! Steps about a node: is it heard, does the CSI driver run there, does it have a sheep?

use super::cluster::condition;
use super::facts::Sort;
use super::judge::{Judge, Step, blocked};
use super::verdict::{Cause, Code};
use crate::words::{
    going, has_taint, is_ready, keeps_away, labels, name, namespace, node_is_ready, node_of, unready,
};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use sheepdog_crds::{COMPONENT, DRIVER, LOST, SheepdogCluster};

/// Set by a human: nothing runs there.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// What releases the volumes of a node that is not heard.
pub fn release(node: &str) -> [String; 3] {
    [
        format!(
            "As soon as the sheep of {node} has lost its lease too, the operator deletes the pods there that use Sheepdog volumes, and their attachments: volumes move by themselves, in about half a minute (docs/kubernetes.md, \"A node is lost\")."
        ),
        format!("If {node} is switched off for certain, you can say so at once:"),
        format!("kubectl taint node {node} {OUT_OF_SERVICE}=yes:NoExecute"),
    ]
}

impl Judge<'_> {
    /// Is the pod's node there and heard?
    pub fn node(&mut self, node: &str, pod: &Pod) -> Step {
        if !self.can_read(Sort::Nodes) {
            return Ok(());
        }
        let me = name(pod);
        let Some(n) = self.f.node(node) else {
            return blocked(
                Cause::new(
                    Code::NodeGone,
                    format!("pod/{me} is on node {node}, which does not exist any more."),
                )
                .say("Kubernetes deletes such pods by itself after a while; at once:")
                .run(format!("kubectl delete pod {} --force", self.here(&me))),
            );
        };
        if let Some(sentence) = silence(n) {
            let code = if node_is_ready(n) || has_taint(n, LOST) || has_taint(n, OUT_OF_SERVICE) {
                Code::NodeLost
            } else {
                Code::NodeNotReady
            };
            let [by_itself, or, taint] = release(node);
            return blocked(
                Cause::new(code, format!("pod/{me} is on {sentence}."))
                    .say(by_itself)
                    .say(or)
                    .run(taint)
                    .say("Otherwise mend the node:")
                    .run(format!("kubectl describe node {node}")),
            );
        }
        self.saw(format!("node {node} is Ready"));
        Ok(())
    }

    /// Has the kubelet of the node heard of the driver?
    pub fn registered(&mut self, node: &str) -> Step {
        if !self.can_read(Sort::CsiNodes) {
            return Ok(());
        }
        let of = self.f.csi_nodes.iter().find(|c| name(*c) == node);
        if of.is_some_and(|c| c.spec.drivers.iter().any(|d| d.name == DRIVER)) {
            self.saw(format!("CSINode {node} has {DRIVER}"));
            return Ok(());
        }
        let why = self.why_no_csi_node(node);
        let (why, fix) = why.unwrap_or_else(|| {
            (
                "its pod there runs: the registrar has not done its work yet".into(),
                self.logs_of("csi-node", "registrar"),
            )
        });
        blocked(
            Cause::new(
                Code::DriverNotRegistered,
                format!("the CSI driver {DRIVER} is not registered on node {node}: {why}."),
            )
            .say("Every node with pods that use Sheepdog volumes needs the CSI driver's node pod:")
            .run(fix),
        )
    }

    /// Is the driver's pod of the node ready?
    pub fn csi_node(&mut self, node: &str) -> Step {
        if !self.can_read(Sort::System) {
            return Ok(());
        }
        match self.why_no_csi_node(node) {
            None => {
                self.saw(format!("the CSI driver's pod on {node} is Ready"));
                Ok(())
            }
            Some((why, fix)) => blocked(
                Cause::new(
                    Code::CsiNodeNotReady,
                    format!("the CSI driver does not work on node {node}: {why}."),
                )
                .say("What is mounted stays mounted; nothing new is mounted until its pod runs:")
                .run(fix),
            ),
        }
    }

    /// What is wrong with the driver's pod on a node, and a command.
    fn why_no_csi_node(&self, node: &str) -> Option<(String, String)> {
        let here = |p: &&Pod| node_of(p) == Some(node);
        // Where the kernel has no NBD, another pod serves the devices.
        for component in ["csi-node", "csi-fuse"] {
            if let Some(p) = self.f.component(component).filter(here).min_by_key(|p| !is_ready(p)) {
                if is_ready(p) {
                    continue;
                }
                let describe = format!("kubectl describe pod -n {} {}", namespace(p), name(p));
                return Some((format!("pod/{} {}", name(p), unready(p)), describe));
            }
            if component == "csi-node" {
                return Some(self.why_no_pod(node, component));
            }
        }
        None
    }

    fn why_no_pod(&self, node: &str, component: &str) -> (String, String) {
        let is_it = |d: &&DaemonSet| labels(*d).get(COMPONENT).is_some_and(|c| c == component);
        if let Some(why) = self.f.unread.get(&Sort::Workloads).or(self.f.unread.get(&Sort::System)) {
            return (format!("why cannot be read ({why})"), self.pods_of(component));
        }
        let Some(ds) = self.f.daemonsets.iter().find(is_it) else {
            return (
                "there is no DaemonSet of it: install the chart with csi.enabled=true".into(),
                "helm list -A".into(),
            );
        };
        let (ns, set) = (namespace(ds), name(ds));
        let describe = format!("kubectl describe -n {ns} ds/{set}");
        let template = ds.spec.as_ref().and_then(|s| s.template.spec.as_ref());
        let away = self.f.node(node).zip(template).and_then(|(n, t)| keeps_away(t, n));
        match away {
            Some(why) => (format!("daemonset/{set} has no pod there, because {why}"), describe),
            None => (format!("daemonset/{set} has no pod there"), describe),
        }
    }

    /// Is the sheep, or gateway, through which the node reaches its volumes ready?
    pub fn sheep_of(&mut self, node: &str, pv: &PersistentVolume) -> Step {
        if !self.can_read(Sort::System) {
            return Ok(());
        }
        let Some(c) = self.f.cluster(Some(pv), None) else { return Ok(()) };
        let here = |p: &&Pod| node_of(p) == Some(node);
        let Some(p) = self.f.sheep(c).filter(here).min_by_key(|p| !is_ready(p)) else {
            return blocked(
                Cause::new(
                    Code::NoSheepOnNode,
                    format!(
                        "neither a sheep nor a gateway of cluster {}/{} runs on node {node}, through which its pods reach their volumes: {}.",
                        namespace(c),
                        name(c),
                        self.why_no_gateway(node, c)
                    ),
                )
                .say("Let gateways run on every node with pods that use volumes (spec.gateways of the SheepdogCluster):")
                .run(format!("kubectl edit sheepdogcluster -n {} {}", namespace(c), name(c))),
            );
        };
        if is_ready(p) {
            self.saw(format!("pod/{} on {node} is Ready", name(p)));
            return Ok(());
        }
        let mut cause = Cause::new(
            Code::SheepNotReady,
            format!(
                "the sheep of node {node}, through which its pods reach their volumes, does not serve: pod/{} {}.",
                name(p),
                unready(p)
            ),
        );
        if going(p) {
            cause = cause.say("It is being restarted: I/O waits, and goes on by itself.");
        }
        if let Some(u) = condition(c, "UpgradeBlocked").filter(|u| u.status == "True") {
            cause = cause.say(format!("An update is under way and waits: {}", u.message));
        }
        blocked(cause.run(format!("kubectl logs -n {} {} --tail=50", namespace(p), name(p))).run(format!(
            "kubectl describe pod -n {} {}",
            namespace(p),
            name(p)
        )))
    }

    fn why_no_gateway(&self, node: &str, c: &SheepdogCluster) -> String {
        if !c.spec.gateways.enabled {
            return "spec.gateways.enabled is false, and no node group has the node".into();
        }
        let set = format!("{}-gateway", name(c));
        let of = self.f.daemonsets.iter().find(|d| name(*d) == set && namespace(*d) == namespace(c));
        let template = of.and_then(|d| d.spec.as_ref()?.template.spec.as_ref());
        match self.f.node(node).zip(template).and_then(|(n, t)| keeps_away(t, n)) {
            Some(why) => format!("daemonset/{set} has no pod there, because {why}"),
            None => format!("daemonset/{set} has no pod there"),
        }
    }
}

/// Why a node must be taken for silent, in words that begin with its name.
pub fn silence(n: &Node) -> Option<String> {
    let me = format!("node {}", name(n));
    if has_taint(n, OUT_OF_SERVICE) {
        return Some(format!("{me}, which somebody has marked as out of service"));
    }
    if has_taint(n, LOST) {
        return Some(format!("{me}, which is lost: its kubelet is silent, and its sheep has lost its lease"));
    }
    (!node_is_ready(n)).then(|| format!("{me}, which is NotReady"))
}
