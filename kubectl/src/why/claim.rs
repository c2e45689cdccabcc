//! Steps about a claim: is it being deleted, lost, bound, and to what?

use super::facts::Sort;
use super::judge::{Judge, Step, blocked};
use super::verdict::{Cause, Code};
use crate::words::{age, claims_of, finalizers, going, listing, name, node_of};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use sheepdog_crds::DRIVER;

/// Phase of a claim.
pub fn phase(c: &PersistentVolumeClaim) -> &str {
    c.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

impl<'a> Judge<'a> {
    /// Up to a volume of ours that is there. A claim of another driver that is bound ends the steps about it.
    pub fn claim(&mut self, c: &'a PersistentVolumeClaim) -> Step {
        let me = name(c);
        match phase(c) {
            "Lost" => return self.lost(c),
            "Bound" => {}
            other => {
                self.saw(format!("pvc/{me} is {other} for {}", age(c, self.f.now)));
                return self.unbound(c);
            }
        }
        let volume = c.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
        let Some(pv) = self.f.volume(&volume) else {
            if !self.can_read(Sort::Volumes) {
                self.saw(format!("pvc/{me} is bound to PersistentVolume {volume}"));
                return Ok(());
            }
            return self.lost(c);
        };
        let Some(csi) = pv.spec.as_ref().and_then(|s| s.csi.as_ref()).filter(|c| c.driver == DRIVER) else {
            self.saw(format!(
                "pvc/{me} is bound to PersistentVolume {volume}, which is not Sheepdog's: {}",
                kind_of(pv)
            ));
            return Ok(());
        };
        let class = c.spec.as_ref().and_then(|s| s.storage_class_name.clone()).unwrap_or_default();
        let cluster = self.f.cluster(Some(pv), self.f.class(&class));
        let where_ = cluster
            .map_or_else(String::new, |c| format!(" of cluster {}/{}", crate::words::namespace(c), name(c)));
        self.saw(format!(
            "pvc/{me} is bound to PersistentVolume {volume}, Sheepdog volume {}{where_}",
            csi.volume_handle
        ));
        self.vdi(&csi.volume_handle, &volume)
    }

    /// The volume of a claim, when it is bound to one of ours.
    pub fn ours(&self, c: &PersistentVolumeClaim) -> Option<&'a PersistentVolume> {
        let volume = c.spec.as_ref()?.volume_name.as_deref()?;
        let pv = self.f.volume(volume)?;
        let csi = pv.spec.as_ref()?.csi.as_ref()?;
        (phase(c) == "Bound" && csi.driver == DRIVER).then_some(pv)
    }

    fn lost(&mut self, c: &PersistentVolumeClaim) -> Step {
        let volume = c.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
        let why = match self.f.volume(&volume) {
            None => format!("its PersistentVolume {volume} has been deleted"),
            Some(pv) => {
                let to = pv.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
                let to = to.map_or_else(String::new, |r| {
                    format!(
                        "{}/{}",
                        r.namespace.as_deref().unwrap_or_default(),
                        r.name.as_deref().unwrap_or_default()
                    )
                });
                format!("its PersistentVolume {volume} is bound to another claim ({to})")
            }
        };
        blocked(
            Cause::new(Code::ClaimLost, format!("the claim has lost its volume: {why}."))
                .say("The data may still be in Sheepdog, under the name of the PersistentVolume. Look:")
                .run("kubectl sheepdog dog vdi list")
                .say(format!(
                    "If it is, make a PersistentVolume with spec.csi.driver {DRIVER} and spec.csi.volumeHandle set to the VDI's UUID, delete this claim, and make it again with spec.volumeName naming that PersistentVolume. If it is not, restore a snapshot or a backup."
                )),
        )
    }

    fn vdi(&mut self, handle: &str, volume: &str) -> Step {
        self.can_read(Sort::Vdis);
        let of = |v: &&sheepdog_crds::Vdi| v.status.as_ref().and_then(|s| s.uuid.as_deref()) == Some(handle);
        let Some(v) = self.f.vdis.iter().find(of) else { return Ok(()) };
        let status = v.status.as_ref();
        let on = status.and_then(|s| s.attached_to.as_deref()).filter(|a| !a.is_empty());
        self.saw(match on {
            Some(node) => format!("in Sheepdog the volume is attached to {node}"),
            None => "in Sheepdog the volume is attached to no node".to_owned(),
        });
        let ready = status.and_then(|s| s.conditions.iter().find(|c| c.type_ == "Ready"));
        match ready.filter(|c| c.status == "False" && matches!(c.reason.as_str(), "Deleted" | "Gone")) {
            None => Ok(()),
            Some(c) => blocked(
                Cause::new(
                    Code::VolumeGone,
                    format!("the volume is not in Sheepdog any more ({}: {}).", c.reason, c.message),
                )
                .say(
                    "Somebody deleted it past Kubernetes. If snapshots of it are left, make a volume of one:",
                )
                .run(format!("kubectl sheepdog dog vdi list -o wide | grep {volume}"))
                .say("Otherwise restore a backup into a new claim, and delete this one."),
            ),
        }
    }

    /// A claim that is being deleted and stays.
    pub fn held(&mut self, c: &PersistentVolumeClaim) -> Step {
        if !going(c) {
            return Ok(());
        }
        let me = name(c);
        self.saw(format!("pvc/{me} is being deleted, its finalizers are {}", listing(finalizers(c))));
        let has = |f: &str| finalizers(c).iter().any(|x| x == f);
        if has("kubernetes.io/pvc-protection") && self.can_read(Sort::Pods) {
            let uses = |p: &&Pod| node_of(p).is_some() && claims_of(p).contains(&me);
            let pods: Vec<String> = self.f.pods.iter().filter(uses).map(name).collect();
            if let Some(first) = pods.first() {
                return blocked(
                    Cause::new(
                        Code::ClaimDeletionHeld,
                        format!("the claim is being deleted, and stays for as long as a pod uses it: {}.", listing(&pods)),
                    )
                    .say("Delete the pods, or what makes them. A pod that has ended holds it, too. The data goes with the claim, unless its volume is retained.")
                    .run(format!("kubectl delete pod {}", self.here(first))),
                );
            }
        }
        let being_read = self.snapshots_from(&me);
        if has("snapshot.storage.kubernetes.io/pvc-as-source-protection") && !being_read.is_empty() {
            return blocked(
                Cause::new(
                    Code::ClaimDeletionHeld,
                    format!(
                        "the claim is being deleted, and stays until snapshots of it have been taken: {}.",
                        listing(&being_read)
                    ),
                )
                .say("Why they are not ready:")
                .run(format!(
                    "kubectl sheepdog why {}",
                    self.here(&format!("volumesnapshot/{}", being_read[0]))
                )),
            );
        }
        if has("provisioner.storage.kubernetes.io/cloning-protection") {
            let clones = self.clones_of(&me);
            return blocked(
                Cause::new(
                    Code::ClaimDeletionHeld,
                    format!(
                        "the claim is being deleted, and stays until clones of it are made: {}.",
                        listing(&clones)
                    ),
                )
                .say("Wait for the clones to be Bound, or delete those claims.")
                .run(format!("kubectl get pvc -n {}", self.f.namespace)),
            );
        }
        blocked(
            Cause::new(
                Code::ClaimDeletionHeld,
                format!("the claim is being deleted and waits for its finalizers: {}.", listing(finalizers(c))),
            )
            .say("Each is taken away by who set it. Those of kubernetes.io and snapshot.storage.kubernetes.io belong to the controllers of Kubernetes and of snapshots: see that they run.")
            .run(format!("kubectl describe pvc {}", self.here(&me))),
        )
    }

    fn clones_of(&self, claim: &str) -> Vec<String> {
        let from = |c: &&PersistentVolumeClaim| {
            let source = c.spec.as_ref().and_then(|s| s.data_source.as_ref());
            phase(c) != "Bound"
                && source.is_some_and(|s| s.kind == "PersistentVolumeClaim" && s.name == claim)
        };
        self.f.claims.iter().filter(from).map(name).collect()
    }
}

/// Whose a volume is, in words.
fn kind_of(pv: &PersistentVolume) -> String {
    let spec = pv.spec.as_ref();
    match spec.and_then(|s| s.csi.as_ref()) {
        Some(csi) => format!("it is of the driver {}", csi.driver),
        None => "it is of no CSI driver".into(),
    }
}
