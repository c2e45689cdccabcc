//! Steps about a pod: its claims, where it runs, and what keeps it from running.

use super::attach::uses_alone;
use super::facts::{Sort, TOPOLOGY, cluster_id};
use super::judge::{Judge, Step, blocked};
use super::verdict::{Cause, Code};
use crate::words::{
    age, claims_of, going, has_ended, is_ready, listing, modes, name, node_of, pod_condition, shorten,
    trouble, volumes_are_mounted,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};

/// A claim of a pod, and its volume.
pub type Mounted<'a> = (&'a PersistentVolumeClaim, &'a PersistentVolume);

impl<'a> Judge<'a> {
    /// A pod that was asked about.
    pub fn asked_pod(&mut self, wanted: &str) -> Step {
        let Some(pod) = self.f.pod(wanted) else { return Ok(()) };
        if has_ended(pod) {
            self.saw(format!("pod/{wanted} has ended: nothing is waited for"));
            return Ok(());
        }
        self.pod(pod)
    }

    /// The walk for one pod.
    pub fn pod(&mut self, pod: &'a Pod) -> Step {
        let me = name(pod);
        self.saw(match node_of(pod) {
            Some(node) if is_ready(pod) => format!("pod/{me} is Ready on {node}"),
            Some(node) => format!("pod/{me} is on {node}, and not Ready"),
            None => format!("pod/{me} is on no node yet"),
        });
        let mut mounted: Vec<Mounted> = Vec::new();
        for wanted in claims_of(pod) {
            let Some(claim) = self.f.claim(&wanted) else {
                self.no_such_claim(&wanted, Some(&format!("pod/{me}")))?;
                continue;
            };
            // A pod that has its volume goes on although the claim is being deleted.
            if node_of(pod).is_none() {
                self.held(claim)?;
            }
            self.claim(claim)?;
            mounted.extend(self.ours(claim).map(|pv| (claim, pv)));
        }
        let known = !self.f.unread.contains_key(&Sort::Volumes) && !self.f.unread.contains_key(&Sort::Claims);
        let volumes = match (mounted.is_empty(), known) {
            (false, _) => "its volumes are mounted; ",
            (true, true) => "it has no volume of Sheepdog; ",
            (true, false) => "",
        };
        if mounted.is_empty() && known {
            self.saw(format!("pod/{me} has no volume of Sheepdog"));
        }
        let Some(node) = node_of(pod) else { return self.unscheduled(pod) };
        self.node(node, pod)?;
        if going(pod) {
            return self.ending(pod);
        }
        if !mounted.is_empty() {
            self.volumes(pod, node, &mounted)?;
        }
        if is_ready(pod) { Ok(()) } else { self.itself(pod, volumes) }
    }

    /// From the node to the file system.
    fn volumes(&mut self, pod: &'a Pod, node: &str, mounted: &[Mounted<'a>]) -> Step {
        let begun = volumes_are_mounted(pod);
        if !begun {
            self.registered(node)?;
            for (claim, pv) in mounted {
                self.attached(claim, pv, node)?;
            }
        }
        for (_, pv) in mounted {
            self.serving(Some(pv), None)?;
            self.sheep_of(node, pv)?;
        }
        if begun {
            return Ok(());
        }
        self.csi_node(node)?;
        self.mounting(pod, node)
    }

    /// The scheduler has found no node for it.
    pub fn unscheduled(&mut self, pod: &'a Pod) -> Step {
        let me = name(pod);
        let said = match pod_condition(pod, "PodScheduled") {
            Some(("False", said)) => said.to_owned(),
            _ => String::new(),
        };
        if said.is_empty() {
            return blocked(
                Cause::new(
                    Code::Unschedulable,
                    format!("the scheduler has not looked at pod/{me} for {}.", age(pod, self.f.now)),
                )
                .say("Ask again in a few seconds. If it stays so, the scheduler does not run, or the pod names another one (spec.schedulerName).")
                .run(format!("kubectl describe pod {}", self.here(&me))),
            );
        }
        let text = shorten(&said, 500);
        self.saw(format!("the scheduler said: {text}"));
        if text.contains("volume node affinity conflict") {
            return self.affinity(pod, &text);
        }
        if text.contains("exceed max volume count") {
            return blocked(
                Cause::new(
                    Code::TooManyVolumes,
                    format!("pod/{me} finds no node that takes another volume: {text}"),
                )
                .say("Every node says how many volumes it takes (chart value csi.node.maxVolumes; 0: no limit). Raise it, or add nodes.")
                .run("kubectl get csinode -o yaml"),
            );
        }
        if text.contains("ReadWriteOncePod") {
            return self.once_pod(pod, &text);
        }
        let lost = sheepdog_crds::LOST;
        let cause = Cause::new(
            Code::Unschedulable,
            format!("no node takes pod/{me}, and that is not about its volumes: {text}"),
        )
        .run(format!("kubectl describe pod {}", self.here(&me)));
        blocked(if text.contains(lost) {
            cause.say(format!("The taint {lost} is on nodes whose kubelet and sheep are both silent. It goes when the node is heard again: switch the node on, or delete it (kubectl delete node) when it is gone for good."))
        } else {
            cause
        })
    }

    /// The volume's cluster is not on the nodes that the pod may use.
    fn affinity(&mut self, pod: &'a Pod, text: &str) -> Step {
        let claims = claims_of(pod);
        let volumes = claims.iter().filter_map(|c| self.ours(self.f.claim(c)?));
        let wanted = volumes.filter_map(|pv| Some((name(pv), cluster_id(pv)?.to_owned()))).next();
        let me = name(pod);
        let Some((volume, id)) = wanted else {
            return blocked(
                Cause::new(
                    Code::VolumeNodeAffinity,
                    format!("no node that pod/{me} may use reaches all its volumes: {text}"),
                )
                .run(format!("kubectl describe pod {}", self.here(&me))),
            );
        };
        let reach: Vec<String> =
            self.f.topology.iter().filter(|(_, v)| **v == id).map(|(n, _)| n.clone()).collect();
        if self.can_read(Sort::Nodes) {
            self.saw(format!(
                "nodes with the label {TOPOLOGY}={id}: {}",
                if reach.is_empty() { "none".into() } else { listing(&reach) }
            ));
        }
        blocked(
            Cause::new(
                Code::VolumeNodeAffinity,
                format!(
                    "no node that pod/{me} may use reaches PersistentVolume {volume}: it takes a node with the label {TOPOLOGY}={id}, which a node has once the CSI driver has registered there."
                ),
            )
            .say("If the pod's nodeSelector, affinity or tolerations leave those nodes out, change them. If the driver should run on more nodes, see why it does not:")
            .run(self.pods_of("csi-node"))
            .run(format!("kubectl get nodes -L {TOPOLOGY}")),
        )
    }

    fn once_pod(&mut self, pod: &'a Pod, text: &str) -> Step {
        let claims = claims_of(pod);
        let alone =
            |c: &&String| self.f.claim(c).is_some_and(|c| modes(c).iter().any(|m| m == "ReadWriteOncePod"));
        let claims: Vec<String> = claims.iter().filter(alone).cloned().collect();
        let other = |p: &&Pod| {
            name(*p) != name(pod)
                && !has_ended(p)
                && node_of(p).is_some()
                && claims_of(p).iter().any(|c| claims.contains(c))
        };
        let holders: Vec<String> = self.f.pods.iter().filter(other).map(name).collect();
        let me = name(pod);
        let Some(holder) = holders.first() else {
            return blocked(
                Cause::new(
                    Code::UsedByOtherPod,
                    format!("another pod has a claim of pod/{me} that only one pod may use: {text}"),
                )
                .run(format!("kubectl get pods -n {}", self.f.namespace)),
            );
        };
        blocked(
            Cause::new(
                Code::UsedByOtherPod,
                format!(
                    "pod/{holder} uses pvc/{}, which only one pod may use at a time (ReadWriteOncePod).",
                    claims.join(", pvc/")
                ),
            )
            .say("End that pod, or what makes it:")
            .run(format!("kubectl delete pod {}", self.here(holder))),
        )
    }

    /// It is being deleted on a node that is heard.
    fn ending(&mut self, pod: &Pod) -> Step {
        let me = name(pod);
        let finalizers = crate::words::finalizers(pod);
        let since = pod.metadata.deletion_timestamp.as_ref().map(|t| crate::words::ago(t.0, self.f.now));
        let since = since.unwrap_or_default();
        let cause = if finalizers.is_empty() {
            Cause::new(
                Code::PodDeletionHeld,
                format!("pod/{me} is being deleted (it should have ended {since} ago), and its node's kubelet has not said that it has ended."),
            )
            .say("Give its containers the time they were promised. Then see what the kubelet and the CSI driver of the node say; forcing it away leaves the volume mounted there.")
            .run(format!("kubectl describe pod {}", self.here(&me)))
            .run(self.pods_of("csi-node"))
        } else {
            Cause::new(
                Code::PodDeletionHeld,
                format!("pod/{me} is being deleted and waits for its finalizers: {}.", listing(finalizers)),
            )
            .say("Whoever set them has to take them away.")
            .run(format!("kubectl get pod {} -o yaml", self.here(&me)))
        };
        blocked(cause)
    }

    /// Everything below it is well.
    fn itself(&mut self, pod: &Pod, volumes: &str) -> Step {
        let me = name(pod);
        if let Some((container, why)) = trouble(pod) {
            return blocked(
                Cause::new(
                    Code::PodItself,
                    format!(
                        "it is not about storage: {volumes}container {container} of pod/{me}: {}",
                        shorten(&why, 500)
                    ),
                )
                .run(format!("kubectl logs {} -c {container}", self.here(&me))),
            );
        }
        if volumes_are_mounted(pod) {
            return blocked(
                Cause::new(
                    Code::PodItself,
                    format!("it is not about storage: {volumes}pod/{me} runs, and says itself that it is not ready."),
                )
                .say("Its readiness probe fails, or it has only begun:")
                .run(format!("kubectl describe pod {}", self.here(&me))),
            );
        }
        self.doubtful()?;
        blocked(
            Cause::new(
                Code::BeingStarted,
                format!(
                    "pod/{me} is being started since {}, and nothing has failed so far.",
                    age(pod, self.f.now)
                ),
            )
            .say("Ask again in a few seconds. If it stays so:")
            .run(format!("kubectl describe pod {}", self.here(&me))),
        )
    }

    /// Pods of the namespace that use a claim on a node.
    pub fn holders(&self, claim: &PersistentVolumeClaim, node: &str) -> Vec<&'a Pod> {
        let f = self.f;
        let here = |p: &&'a Pod| node_of(p) == Some(node) && claims_of(p).contains(&name(claim));
        // One that has ended is the kubelet's to unmount, and only in the way when nobody else is.
        let mut all: Vec<&Pod> = f.pods.iter().filter(here).filter(|p| !has_ended(p)).collect();
        all.sort_by_key(|p| (going(*p), uses_alone(claim)));
        all
    }

    /// A command that lists pods of ours.
    pub fn pods_of(&self, component: &str) -> String {
        let ns = self.f.component(component).next().map(crate::words::namespace);
        let ns = ns.or_else(|| self.f.clusters.first().map(crate::words::namespace));
        format!(
            "kubectl get pods -n {} -l {}={component} -o wide",
            ns.unwrap_or_else(|| "sheepdog".into()),
            sheepdog_crds::COMPONENT
        )
    }
}
