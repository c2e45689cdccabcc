//! Steps about attachments: does the pod's node have the volume, and who has it otherwise?

use super::facts::Sort;
use super::judge::{Judge, Step, blocked};
use super::node::{release, silence};
use super::verdict::{Cause, Code};
use crate::words::{age, going, modes, name, shorten};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use sheepdog_crds::DRIVER;

/// May only one node have it at a time?
pub fn uses_alone(c: &PersistentVolumeClaim) -> bool {
    modes(c).iter().all(|m| m == "ReadWriteOnce" || m == "ReadWriteOncePod")
}

fn is_attached(a: &VolumeAttachment) -> bool {
    a.status.as_ref().is_some_and(|s| s.attached)
}

fn attach_error(a: &VolumeAttachment) -> Option<String> {
    let e = a.status.as_ref()?.attach_error.as_ref()?;
    Some(shorten(e.message.as_deref().unwrap_or_default(), 500)).filter(|t| !t.is_empty())
}

fn detach_error(a: &VolumeAttachment) -> Option<String> {
    let e = a.status.as_ref()?.detach_error.as_ref()?;
    Some(shorten(e.message.as_deref().unwrap_or_default(), 500)).filter(|t| !t.is_empty())
}

/// Volume and claim of one step.
struct Wanted<'a> {
    claim: &'a PersistentVolumeClaim,
    pv: &'a PersistentVolume,
    node: &'a str,
}

impl<'a> Judge<'a> {
    /// Is the volume attached to the pod's node?
    pub fn attached(
        &mut self,
        claim: &'a PersistentVolumeClaim,
        pv: &'a PersistentVolume,
        node: &str,
    ) -> Step {
        if !self.can_read(Sort::Attachments) {
            return Ok(());
        }
        let (volume, me) = (name(pv), name(claim));
        let of = |a: &&'a VolumeAttachment| {
            a.spec.attacher == DRIVER
                && a.spec.source.persistent_volume_name.as_deref() == Some(volume.as_str())
        };
        let all: Vec<&VolumeAttachment> = self.f.attachments.iter().filter(of).collect();
        let mine = all.iter().find(|a| a.spec.node_name == node).copied();
        let w = Wanted { claim, pv, node };
        match mine {
            Some(a) if going(a) => {
                self.saw(format!("VolumeAttachment {} of pvc/{me} to {node} is being deleted", name(a)));
                return self.detaching(a, &me);
            }
            Some(a) if is_attached(a) => {
                self.saw(format!("pvc/{me} is attached to {node}"));
                return Ok(());
            }
            _ => {}
        }
        let other = all.iter().find(|a| a.spec.node_name != node).copied();
        if let Some(other) = other.filter(|_| uses_alone(claim)) {
            return self.elsewhere(&w, other);
        }
        self.serving(Some(pv), None)?;
        self.csi_controller()?;
        match mine {
            Some(a) => self.attaching(&w, a),
            None => {
                self.saw(format!("there is no VolumeAttachment of pvc/{me} to {node}"));
                self.doubtful()?;
                blocked(
                    Cause::new(
                        Code::BeingAttached,
                        format!("pvc/{me} has not been attached to node {node} yet: kube-controller-manager has not asked for it."),
                    )
                    .say("Ask again in a few seconds. If it stays so, see the pod's events:")
                    .run(format!("kubectl get events -n {} --field-selector reason=FailedAttachVolume", self.f.namespace)),
                )
            }
        }
    }

    fn attaching(&mut self, w: &Wanted<'_>, a: &VolumeAttachment) -> Step {
        let (me, node) = (name(w.claim), w.node);
        let Some(said) = attach_error(a) else {
            self.doubtful()?;
            return blocked(
                Cause::new(
                    Code::BeingAttached,
                    format!(
                        "pvc/{me} is being attached to node {node} since {}, and nothing has failed so far.",
                        age(a, self.f.now)
                    ),
                )
                .say("Ask again in a few seconds. If it stays so, what does the attacher say?")
                .run(self.logs_of("csi-controller", "attacher")),
            );
        };
        let cause =
            Cause::new(Code::AttachFailed, format!("pvc/{me} cannot be attached to node {node}: {said}"));
        blocked(if said.contains("has not registered with the cluster") {
            cause
                .say("The driver's pod on that node registers with the cluster when it starts:")
                .run(self.pods_of("csi-node"))
        } else if said.contains("there is no volume") {
            cause
                .say("The volume is not in Sheepdog any more. What there is:")
                .run("kubectl sheepdog dog vdi list")
        } else if said.contains("is attached to node") {
            cause
                .say("Sheepdog has it attached to a node to which Kubernetes has no VolumeAttachment of it. If nothing uses it there, take that attachment away; it is fenced, so that nothing is written late:")
                .run(format!("kubectl sheepdog dog vdi list -o wide | grep {}", name(w.pv)))
                .run(format!("kubectl sheepdog dog vdi detach {} HOLDER", name(w.pv)))
        } else {
            cause
                .say("It is tried again by itself. See what the controller says:")
                .run(self.logs_of("csi-controller", "csi"))
        })
    }

    /// Its own attachment has to go first, from a time before.
    fn detaching(&mut self, a: &VolumeAttachment, claim: &str) -> Step {
        let node = &a.spec.node_name;
        if let Some(said) = detach_error(a) {
            return blocked(
                Cause::new(
                    Code::BeingDetached,
                    format!("pvc/{claim} cannot be detached from node {node}: {said}"),
                )
                .say("It is tried again by itself. See what the controller says:")
                .run(self.logs_of("csi-controller", "attacher")),
            );
        }
        self.csi_controller()?;
        blocked(
            Cause::new(
                Code::BeingDetached,
                format!("pvc/{claim} is being detached from node {node}, and is attached again after that."),
            )
            .say("Ask again in a few seconds. If it stays so, what does the attacher say?")
            .run(self.logs_of("csi-controller", "attacher")),
        )
    }

    /// Another node has what only one may have.
    fn elsewhere(&mut self, w: &Wanted<'_>, other: &VolumeAttachment) -> Step {
        let (me, there, node) = (name(w.claim), other.spec.node_name.clone(), w.node);
        self.saw(format!(
            "VolumeAttachment {} has pvc/{me} on node {there}, and it is {}, for one node at a time",
            name(other),
            modes(w.claim).join(", ")
        ));
        let holders = self.holders(w.claim, &there);
        let by = match holders.first() {
            Some(p) if going(*p) => format!(", where pod/{} uses it and is being deleted", name(*p)),
            Some(p) => format!(", where pod/{} uses it", name(*p)),
            None => String::new(),
        };
        let first = format!("pvc/{me} is wanted on node {node} and attached to node {there}{by}");
        let cause = |rest: &str| Cause::new(Code::AttachedElsewhere, format!("{first}{rest}."));
        let n = self.f.node(&there);
        if n.is_none() && self.can_read(Sort::Nodes) {
            return blocked(
                cause("; that node does not exist any more")
                    .say("kube-controller-manager detaches it within about six minutes. If the machine is switched off for certain, at once (it is fenced, so that nothing is written late):")
                    .run(format!("kubectl delete volumeattachment {}", name(other))),
            );
        }
        if let Some(quiet) = n.and_then(silence) {
            let [by_itself, or, taint] = release(&there);
            return blocked(cause(&format!("; that is {quiet}")).say(by_itself).say(or).run(taint));
        }
        if let Some(holder) = holders.first() {
            let pod = name(*holder);
            if going(*holder) {
                return blocked(
                    cause("")
                        .say("It is released when that pod has ended. If that takes long:")
                        .run(format!("kubectl sheepdog why {}", self.here(&format!("pod/{pod}")))),
                );
            }
            return blocked(
                cause(", and a ReadWriteOnce volume is on one node at a time")
                    .say("End that pod, or what makes it (a Deployment needs strategy Recreate to move such a volume):")
                    .run(format!("kubectl delete pod {}", self.here(&pod)))
                    .say(format!("or put both pods on {there}: pods of one node may share it. For several nodes make a claim with ReadWriteMany and volumeMode Block.")),
            );
        }
        if going(other) {
            return self.detaching(other, &me);
        }
        let handle =
            w.pv.spec
                .as_ref()
                .and_then(|s| s.csi.as_ref())
                .map(|c| c.volume_handle.as_str())
                .unwrap_or_default();
        let in_use = n.and_then(|n| n.status.as_ref()?.volumes_in_use.as_ref());
        let in_use = in_use
            .is_some_and(|all| all.iter().any(|v| *v == format!("kubernetes.io/csi/{DRIVER}^{handle}")));
        if in_use {
            self.saw(format!("the kubelet of {there} says that the volume is in use (status.volumesInUse)"));
            return blocked(
                cause("; no pod uses it there any more, and its kubelet has not unmounted it yet")
                    .say("Ask again in a few seconds. If it stays so, what does the driver say on that node?")
                    .run(self.pods_of("csi-node"))
                    .run(self.logs_of("csi-node", "csi")),
            );
        }
        self.csi_controller()?;
        blocked(
            cause("; no pod uses it there any more, and it is about to be detached")
                .say("Ask again in a few seconds. If it stays so, what does the attacher say?")
                .run(self.logs_of("csi-controller", "attacher")),
        )
    }
}
