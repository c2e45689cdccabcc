//! Steps about a claim that is not bound: its class, its cluster, who makes volumes, and what went wrong with that.

use super::facts::Sort;
use super::judge::{Judge, Step, blocked};
use super::verdict::{Cause, Code};
use crate::words::{age, ago, claims_of, going, has_ended, listing, name, seen_at, shorten};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use sheepdog_crds::DRIVER;

const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const SELECTED: &str = "volume.kubernetes.io/selected-node";

impl<'a> Judge<'a> {
    /// Why it is not bound.
    pub fn unbound(&mut self, c: &'a PersistentVolumeClaim) -> Step {
        let spec = c.spec.as_ref();
        if let Some(volume) = spec.and_then(|s| s.volume_name.as_deref()).filter(|v| !v.is_empty()) {
            return self.names_a_volume(c, volume);
        }
        let old = c.metadata.annotations.as_ref().and_then(|a| a.get(OLD_CLASS));
        let Some(class) = spec.and_then(|s| s.storage_class_name.as_ref()).or(old) else {
            return self.no_class(c);
        };
        if class.is_empty() {
            return self.by_hand(c);
        }
        let Some(class) = self.f.class(class) else { return self.no_such_class(c, class) };
        if class.provisioner != DRIVER {
            return self.other_provisioner(c, class);
        }
        self.saw(format!("StorageClass {} is of {DRIVER}", name(class)));
        self.first_consumer(c, class)?;
        self.source(c)?;
        self.serving(None, Some(class))?;
        self.csi_controller()?;
        self.provisioning(c, class)
    }

    fn no_class(&mut self, c: &PersistentVolumeClaim) -> Step {
        if !self.can_read(Sort::Classes) {
            return Ok(());
        }
        let is_default = |s: &&StorageClass| {
            s.metadata.annotations.as_ref().and_then(|a| a.get(DEFAULT)).is_some_and(|v| v == "true")
        };
        let ours = self.our_classes();
        let cause = match self.f.classes.iter().find(is_default) {
            None => {
                Cause::new(Code::NoClass, "the claim names no StorageClass, and no class is the default.")
            }
            Some(d) => Cause::new(
                Code::NoClass,
                format!(
                    "the claim names no StorageClass and has not been given the default one ({}) yet, which kube-controller-manager does.",
                    name(d)
                ),
            ),
        };
        let cause = match ours.first() {
            None => cause.say("There is no StorageClass of Sheepdog either: a SheepdogCluster makes one (docs/kubernetes.md)."),
            Some(first) => cause
                .say("Name a class:")
                .run(format!(
                    "kubectl patch pvc {} --type=merge -p '{{\"spec\":{{\"storageClassName\":\"{first}\"}}}}'",
                    self.here(&name(c))
                ))
                .say("or make it the default for claims to come:")
                .run(format!("kubectl annotate storageclass {first} {DEFAULT}=true")),
        };
        blocked(cause)
    }

    fn by_hand(&mut self, c: &PersistentVolumeClaim) -> Step {
        blocked(
            Cause::new(
                Code::WaitsForVolume,
                "the claim's storageClassName is \"\": no volume is made for it, and no PersistentVolume that fits is free.",
            )
            .say("Make a PersistentVolume by hand, or delete the claim and make it again with a class:")
            .run(format!("kubectl delete pvc {}", self.here(&name(c))))
            .run("kubectl get storageclass"),
        )
    }

    fn no_such_class(&mut self, c: &PersistentVolumeClaim, wanted: &str) -> Step {
        if !self.can_read(Sort::Classes) {
            return Ok(());
        }
        let ours = self.our_classes();
        let there = if ours.is_empty() {
            "There is no StorageClass of Sheepdog at all: a SheepdogCluster makes one (docs/kubernetes.md)."
                .to_owned()
        } else {
            format!("Classes of Sheepdog: {}.", listing(&ours))
        };
        blocked(
            Cause::new(
                Code::NoSuchClass,
                format!("the claim wants the StorageClass {wanted}, which does not exist."),
            )
            .say(there)
            .say("A claim's class cannot be changed: delete the claim and make it again with a class that exists, or make that class.")
            .run(format!("kubectl delete pvc {}", self.here(&name(c)))),
        )
    }

    fn other_provisioner(&mut self, c: &PersistentVolumeClaim, class: &StorageClass) -> Step {
        let (class_name, other) = (name(class), class.provisioner.clone());
        let said = self.event(c, "PersistentVolumeClaim", &["ProvisioningFailed", "ExternalProvisioning"]);
        let said = said.and_then(|e| e.message.clone());
        if let Some(said) = said {
            self.saw(format!("its last event: {}", shorten(&said, 300)));
        }
        blocked(
            Cause::new(
                Code::OtherProvisioner,
                format!("the claim's StorageClass {class_name} belongs to the provisioner {other}, not to Sheepdog ({DRIVER})."),
            )
            .say(format!("Ask {other} why it makes no volume; or, for a Sheepdog volume, delete the claim and make it again with one of: {}.", listing(&self.our_classes())))
            .run(format!("kubectl describe pvc {}", self.here(&name(c)))),
        )
    }

    fn our_classes(&self) -> Vec<String> {
        self.f.classes.iter().filter(|c| c.provisioner == DRIVER).map(name).collect()
    }

    /// A claim for one certain volume.
    fn names_a_volume(&mut self, c: &PersistentVolumeClaim, volume: &str) -> Step {
        if !self.can_read(Sort::Volumes) {
            return Ok(());
        }
        let me = format!("{}/{}", self.f.namespace, name(c));
        let Some(pv) = self.f.volume(volume) else {
            return blocked(
                Cause::new(
                    Code::WaitsForVolume,
                    format!("the claim names the PersistentVolume {volume}, which does not exist."),
                )
                .say("Make that PersistentVolume, or make the claim again without spec.volumeName.")
                .run("kubectl get pv"),
            );
        };
        let spec = pv.spec.as_ref();
        let owner = spec.and_then(|s| s.claim_ref.as_ref()).map(|r| {
            format!(
                "{}/{}",
                r.namespace.as_deref().unwrap_or_default(),
                r.name.as_deref().unwrap_or_default()
            )
        });
        if let Some(owner) = owner.filter(|o| *o != me) {
            return blocked(
                Cause::new(
                    Code::WaitsForVolume,
                    format!("the claim names the PersistentVolume {volume}, which belongs to the claim {owner}."),
                )
                .say("If that claim is gone for good, free the volume (its data stays):")
                .run(format!("kubectl patch pv {volume} --type=json -p '[{{\"op\":\"remove\",\"path\":\"/spec/claimRef\"}}]'")),
            );
        }
        let class = |s: Option<&String>| s.cloned().unwrap_or_default();
        let of_pv = class(spec.and_then(|s| s.storage_class_name.as_ref()));
        let of_claim = class(c.spec.as_ref().and_then(|s| s.storage_class_name.as_ref()));
        let phase = pv.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
        let why = if of_pv == of_claim {
            format!(
                "the PersistentVolume is {phase}: compare sizes, access modes and volume modes of the two"
            )
        } else {
            format!("the PersistentVolume's class is \"{of_pv}\", the claim's is \"{of_claim}\"")
        };
        blocked(
            Cause::new(
                Code::WaitsForVolume,
                format!("the claim is not bound to the PersistentVolume {volume} that it names: {why}."),
            )
            .run(format!("kubectl describe pvc {}", self.here(&name(c)))),
        )
    }

    /// Classes may want to know the pod's node first.
    fn first_consumer(&mut self, c: &'a PersistentVolumeClaim, class: &StorageClass) -> Step {
        let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
        let chosen = c.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED));
        if !waits || chosen.is_some() || !self.can_read(Sort::Pods) {
            return Ok(());
        }
        let uses = |p: &&Pod| claims_of(p).contains(&name(c)) && !has_ended(p);
        let Some(pod) = self.f.pods.iter().find(uses) else {
            return blocked(
                Cause::new(
                    Code::WaitsForPod,
                    format!("no pod uses the claim, and StorageClass {} makes volumes only when one does (WaitForFirstConsumer).", name(class)),
                )
                .say("Nothing is wrong: start a pod that uses the claim. Every node reaches every Sheepdog volume, so a class with volumeBindingMode Immediate loses nothing."),
            );
        };
        self.unscheduled(pod)
    }

    /// A clone or a restored snapshot waits for what it is made from.
    fn source(&mut self, c: &'a PersistentVolumeClaim) -> Step {
        let Some(source) = c.spec.as_ref().and_then(|s| s.data_source.as_ref()) else { return Ok(()) };
        let what = format!("{} {}", source.kind, source.name);
        let missing = |j: &Self| {
            Cause::new(
                Code::SourceNotReady,
                format!(
                    "the claim is to be made from {what}, which does not exist in namespace {}.",
                    j.f.namespace
                ),
            )
            .say("Make it, or make the claim again from something else.")
        };
        match source.kind.as_str() {
            "VolumeSnapshot" => {
                if !self.can_read(Sort::Snapshots) {
                    return Ok(());
                }
                if !self.f.snapshots.iter().any(|s| name(s) == source.name) {
                    return blocked(missing(self));
                }
                self.saw(format!("it is made from volumesnapshot/{}", source.name));
                self.deeper(|j| j.snapshot(&source.name))
            }
            "PersistentVolumeClaim" => match self.f.claim(&source.name) {
                None if self.can_read(Sort::Claims) => blocked(missing(self)),
                Some(from) => {
                    self.saw(format!("it is cloned from pvc/{}", source.name));
                    self.deeper(|j| j.claim(from))
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// What the provisioner said.
    fn provisioning(&mut self, c: &PersistentVolumeClaim, class: &StorageClass) -> Step {
        let now = self.f.now;
        let failed = self.event(c, "PersistentVolumeClaim", &["ProvisioningFailed"]);
        let when = failed.and_then(seen_at).map_or_else(String::new, |t| format!(" {} ago", ago(t, now)));
        let said = failed.and_then(|e| e.message.clone()).unwrap_or_default();
        if said.is_empty() {
            self.doubtful()?;
            let verb = if going(c) { "it is being deleted" } else { "nothing has failed so far" };
            return blocked(
                Cause::new(
                    Code::BeingProvisioned,
                    format!("the volume is being made for {}, and {verb}.", age(c, self.f.now)),
                )
                .say("Ask again in a few seconds. If it stays so, what does the provisioner say?")
                .run(self.logs_of("csi-controller", "provisioner")),
            );
        }
        let text = shorten(&said, 600);
        self.saw(format!("the provisioner said{when}: {text}"));
        blocked(classify(&text, &name(class), &self.here(&name(c))))
    }
}

/// What an error of the provisioner means.
fn classify(text: &str, class: &str, claim: &str) -> Cause {
    let has = |words: &[&str]| words.iter().any(|w| text.contains(w));
    if has(&["allowedTopologies", "copies need", "zones in a strict cluster", "too few nodes"]) {
        return Cause::new(
            Code::TooFewNodes,
            format!("the volume cannot be made, there are too few nodes or zones for it: {text}"),
        )
        .say("Add sheep in other zones, or use a class with fewer copies. What there is:")
        .run("kubectl sheepdog dog node list");
    }
    if has(&["ResourceExhausted"]) {
        return Cause::new(
            Code::NoSpace,
            format!("the volume cannot be made, there is no space for it: {text}"),
        )
        .say("Delete volumes or snapshots, or add disks or nodes. What there is:")
        .run("kubectl sheepdog dog node info");
    }
    if has(&["InvalidArgument", "OutOfRange"]) {
        return Cause::new(
            Code::InvalidParameters,
            format!("the volume cannot be made as it is asked for: {text}"),
        )
        .say(format!("Correct the claim, or the parameters of StorageClass {class} (docs/csi.md has all of them), then make the claim again."))
        .run(format!("kubectl get storageclass {class} -o yaml"));
    }
    if has(&["NotFound"]) {
        return Cause::new(
            Code::SourceNotReady,
            format!("what the volume is to be made from is not there: {text}"),
        )
        .say("Make the claim again from something that exists.");
    }
    let cause = Cause::new(Code::ProvisioningFailed, format!("the volume could not be made: {text}"));
    if has(&["Unavailable", "DeadlineExceeded", "Aborted"]) {
        return cause
            .say("It is tried again by itself. See what the cluster says:")
            .run("kubectl sheepdog status");
    }
    cause.run(format!("kubectl describe pvc {claim}"))
}
