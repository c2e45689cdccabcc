//! Steps about mounting: what the kubelet's events say.

use super::facts::Sort;
use super::judge::{Judge, Step, blocked};
use super::verdict::{Cause, Code};
use crate::words::{ago, claims_of, name, seen_at, shorten};
use k8s_openapi::api::core::v1::Pod;

impl Judge<'_> {
    /// Did the kubelet say why it does not mount?
    pub fn mounting(&mut self, pod: &Pod, node: &str) -> Step {
        // An attachment that is there makes what failed before it an old story; so does a container that is being made.
        let unattached = self.f.unread.contains_key(&Sort::Attachments);
        let failed = ["FailedMount", "FailedMapVolume", "FailedAttachVolume"];
        let failed = if unattached { &failed[..] } else { &failed[..2] };
        let after = self.event(pod, "Pod", &["Pulling", "Pulled", "Created", "Started"]).and_then(seen_at);
        let now = self.f.now;
        let said = self.event(pod, "Pod", failed).filter(|e| seen_at(e) >= after).and_then(|e| {
            let when = seen_at(e).map_or_else(String::new, |t| format!(" {} ago", ago(t, now)));
            Some((e.message.clone()?, when))
        });
        let Some((said, when)) = said else { return Ok(()) };
        let text = shorten(&said, 700);
        self.saw(format!("the kubelet of {node} said{when}: {text}"));
        if !self.about_us(pod, &text) {
            return blocked(
                Cause::new(
                    Code::PodItself,
                    format!(
                        "it is not about Sheepdog: another volume of pod/{} cannot be mounted: {text}",
                        name(pod)
                    ),
                )
                .run(format!("kubectl describe pod {}", self.here(&name(pod)))),
            );
        }
        blocked(self.classify(&text, pod, node))
    }

    /// Is that event about a volume of ours? One that names none may be.
    fn about_us(&self, pod: &Pod, text: &str) -> bool {
        let volumes = claims_of(pod);
        let ours = volumes.iter().filter_map(|c| self.ours(self.f.claim(c)?));
        let mut named = ours.map(name);
        let other =
            ["configmap \"", "secret \"", "references non-existent config key", "hostPath type check failed"];
        let of_kubelet = other.iter().any(|o| text.contains(o)) && !text.contains("stage");
        text.contains(sheepdog_crds::DRIVER)
            || named.any(|n| text.contains(&n))
            || (!of_kubelet && !text.contains("SetUp failed for volume"))
    }

    /// What an error of the driver means.
    fn classify(&self, text: &str, pod: &Pod, node: &str) -> Cause {
        let has = |words: &[&str]| words.iter().any(|w| text.contains(w));
        let me = format!("pod/{} on {node}", name(pod));
        let volume = self.volume_in(text, pod);
        let cause = |code, what: &str| Cause::new(code, format!("{what}: {text}"));
        if has(&[
            "is never formatted over",
            "signatures that are not clear",
            "shows no signature",
            "does not begin and end with zeros",
        ]) {
            return cause(Code::ForeignData, &format!("the volume of {me} holds something else than the file system that is asked for, and is not formatted over it"))
                .say("If the data matters, use the volume as what it is: another csi.storage.k8s.io/fstype, or volumeMode Block. If it does not, delete the claim and make a new one.")
                .say("A snapshot first loses nothing:")
                .run(format!("kubectl sheepdog dog vdi snapshot {volume} -s as-found"));
        }
        if has(&["e2fsck found damage", "xfs_repair", "Structure needs cleaning"]) {
            return cause(Code::FileSystemDamaged, &format!("the file system of the volume of {me} is damaged"))
                .say("Take a snapshot, then repair it by hand: a pod with the volume as a device (volumeMode Block of a clone), and fsck in it. Or restore a snapshot.")
                .run(format!("kubectl sheepdog dog vdi snapshot {volume} -s as-found"))
                .say("Are its copies alike?")
                .run(format!("kubectl sheepdog dog vdi check {volume}"));
        }
        if has(&["passphrase in the secret does not open"]) {
            return cause(Code::WrongPassphrase, &format!("the passphrase for the encrypted volume of {me} is wrong"))
                .say("The volume was made with another encryptionPassphrase. Put the former one into the secret that the StorageClass names; the data cannot be read without it.");
        }
        let secret =
            has(&["failed to get secret", "failed to get NodeStageSecretRef", "fetching NodeStageSecretRef"])
                || (has(&["secret"]) && has(&["not found", "forbidden"]));
        if secret || has(&["encryptionPassphrase"]) {
            return cause(Code::SecretMissing, &format!("the secret for the encrypted volume of {me} is missing, or lacks its key"))
                .say("The StorageClass names it (csi.storage.k8s.io/node-stage-secret-name and -namespace); it needs the key encryptionPassphrase (docs/csi.md).");
        }
        if has(&["not found in the list of registered CSI drivers"]) {
            return cause(
                Code::DriverNotRegistered,
                &format!("the kubelet of {node} does not know the CSI driver"),
            )
            .say("The driver's pod there registers it when it starts:")
            .run(self.pods_of("csi-node"));
        }
        if has(&["fuse-host does not answer", "fuse-host has not answered"]) {
            return cause(
                Code::CsiNodeNotReady,
                &format!(
                    "the pod that serves devices on {node}, where the kernel has no NBD, does not answer"
                ),
            )
            .run(self.pods_of("csi-fuse"));
        }
        cause(Code::MountFailed, &format!("the volume of {me} cannot be mounted"))
            .say("It is tried again by itself. What does the driver say on that node?")
            .run(self.driver_logs(node))
    }

    /// The volume of the pod that a text names; volumes that the driver made have that name in Sheepdog, too.
    fn volume_in(&self, text: &str, pod: &Pod) -> String {
        let volumes = claims_of(pod);
        let mut ours = volumes.iter().filter_map(|c| self.ours(self.f.claim(c)?)).map(name);
        ours.find(|n| text.contains(n)).unwrap_or_else(|| "NAME".into())
    }

    /// The logs of the driver's pod of a node.
    fn driver_logs(&self, node: &str) -> String {
        let here = |p: &&Pod| crate::words::node_of(p) == Some(node);
        match self.f.component("csi-node").find(here) {
            Some(p) => format!("kubectl logs -n {} {} -c csi --tail=50", crate::words::namespace(p), name(p)),
            None => self.pods_of("csi-node"),
        }
    }
}
