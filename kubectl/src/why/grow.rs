//! Steps about a claim that asks for more than it has.

use super::facts::Sort;
use super::judge::{Judge, Step, blocked};
use super::verdict::{Cause, Code};
use crate::words::{claims_of, has_ended, name, node_of, shorten};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

impl Judge<'_> {
    /// Is it being expanded?
    pub fn growing(&mut self, c: &PersistentVolumeClaim) -> Step {
        let asked = c
            .spec
            .as_ref()
            .and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage"))
            .map(|q| q.0.clone());
        let status = c.status.as_ref();
        let has = status.and_then(|s| s.capacity.as_ref()?.get("storage")).map(|q| q.0.clone());
        let stage = status
            .and_then(|s| s.allocated_resource_statuses.as_ref()?.get("storage"))
            .cloned()
            .unwrap_or_default();
        let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let find = |kind: &str| conditions.iter().find(|c| c.type_ == kind && c.status == "True");
        let me = name(c);
        let (asked, has) = (asked.unwrap_or_default(), has.unwrap_or_default());
        let from_to = format!("pvc/{me} grows from {has} to {asked}");
        for kind in ["ControllerResizeError", "NodeResizeError"] {
            if let Some(e) = find(kind) {
                self.saw(format!("pvc/{me} has the condition {kind}"));
                let said = shorten(e.message.as_deref().unwrap_or_default(), 500);
                return blocked(self.grow_failed(&from_to, &said));
            }
        }
        let pending = find("FileSystemResizePending").is_some() || stage.starts_with("NodeResize");
        let resizing = find("Resizing").is_some() || !stage.is_empty();
        if !pending
            && !resizing
            && (asked == has || asked.is_empty() || has.is_empty() || !self.is_more(&asked, &has))
        {
            return Ok(());
        }
        let failed =
            self.event(c, "PersistentVolumeClaim", &["VolumeResizeFailed"]).and_then(|e| e.message.clone());
        if let Some(said) = failed.filter(|_| !pending || stage.ends_with("Infeasible")) {
            let said = shorten(&said, 500);
            self.saw(format!("the resizer said: {said}"));
            return blocked(self.grow_failed(&from_to, &said));
        }
        if !pending {
            self.saw(format!("pvc/{me} asks for {asked} and has {has}"));
            self.serving(self.ours(c), None)?;
            self.csi_controller()?;
            return blocked(
                Cause::new(
                    Code::BeingGrown,
                    format!("{from_to}, and the resizer has not done its part yet."),
                )
                .say("Ask again in a few seconds. If it stays so, what does it say?")
                .run(self.logs_of("csi-controller", "resizer")),
            );
        }
        self.saw(format!("pvc/{me} has grown in Sheepdog, its file system has not"));
        if !self.can_read(Sort::Pods) {
            return Ok(());
        }
        let uses = |p: &&Pod| claims_of(p).contains(&me) && !has_ended(p) && node_of(p).is_some();
        let Some(pod) = self.f.pods.iter().find(uses) else {
            return blocked(
                Cause::new(
                    Code::WaitsForMount,
                    format!("{from_to}: the volume has, and its file system grows when a pod uses it next (FileSystemResizePending)."),
                )
                .say("Nothing is wrong: start a pod that uses the claim."),
            );
        };
        let node = node_of(pod).unwrap_or_default();
        let said = self
            .event(pod, "Pod", &["FileSystemResizeFailed", "VolumeResizeFailed"])
            .and_then(|e| e.message.clone());
        if let Some(said) = said {
            return blocked(self.grow_failed(&from_to, &shorten(&said, 500)));
        }
        blocked(
            Cause::new(
                Code::BeingGrown,
                format!("{from_to}: the volume has, and the kubelet of {node}, where pod/{} uses it, has not let the file system grow yet.", name(pod)),
            )
            .say("A kubelet looks every minute or two. Where the driver's container lacks CAP_SYS_RESOURCE, ext4 grows when the pod is started again.")
            .run(format!("kubectl describe pod {}", self.here(&name(pod)))),
        )
    }

    /// Sizes that cannot be read are not compared.
    fn is_more(&self, asked: &str, has: &str) -> bool {
        bytes(asked).zip(bytes(has)).is_some_and(|(a, h)| a > h)
    }

    fn grow_failed(&self, from_to: &str, said: &str) -> Cause {
        let cause = Cause::new(Code::GrowFailed, format!("{from_to}, which failed: {said}"));
        if said.contains("ResourceExhausted") || said.contains("OutOfRange") {
            return cause
                .say("Ask for less, or make room. What there is:")
                .run("kubectl sheepdog dog node info");
        }
        cause
            .say("It is tried again by itself. What does the resizer say?")
            .run(self.logs_of("csi-controller", "resizer"))
    }
}

/// A quantity of bytes.
pub fn bytes(text: &str) -> Option<u128> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let n: u128 = digits.parse().ok()?;
    let factor: u128 = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        _ => return None,
    };
    n.checked_mul(factor)
}
