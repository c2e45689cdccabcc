//! Steps about a VolumeSnapshot.

use super::facts::Sort;
use super::judge::{Judge, Step, blocked};
use super::verdict::{Cause, Code};
use crate::words::{age, finalizers, going, listing, name, shorten};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::core::DynamicObject;
use sheepdog_crds::DRIVER;

const DEFAULT: &str = "snapshot.storage.kubernetes.io/is-default-class";

fn text<'a>(o: &'a DynamicObject, path: &str) -> Option<&'a str> {
    o.data.pointer(path).and_then(|v| v.as_str()).filter(|s| !s.is_empty())
}

fn is_usable(o: &DynamicObject) -> bool {
    o.data.pointer("/status/readyToUse").and_then(serde_json::Value::as_bool) == Some(true)
}

impl<'a> Judge<'a> {
    /// Snapshots that are being taken of a claim.
    pub fn snapshots_from(&self, claim: &str) -> Vec<String> {
        let of = |s: &&DynamicObject| {
            text(s, "/spec/source/persistentVolumeClaimName") == Some(claim) && !is_usable(s)
        };
        self.f.snapshots.iter().filter(of).map(name).collect()
    }

    /// The walk for a snapshot.
    pub fn snapshot(&mut self, wanted: &str) -> Step {
        let f = self.f;
        let Some(s) = f.snapshots.iter().find(|s| name(*s) == wanted) else { return Ok(()) };
        let me = format!("volumesnapshot/{wanted}");
        if going(s) {
            return self.snapshot_held(s, &me);
        }
        if is_usable(s) {
            self.saw(format!("{me} is ready to use"));
            return Ok(());
        }
        self.saw(format!("{me} is not ready to use, for {}", age(s, f.now)));
        self.snapshot_class(s, &me)?;
        if let Some(claim) = text(s, "/spec/source/persistentVolumeClaimName") {
            self.snapshot_source(claim, &me)?;
        }
        self.serving(None, None)?;
        let content = text(s, "/status/boundVolumeSnapshotContentName");
        let said = text(s, "/status/error/message").map(|t| shorten(t, 500));
        let content = content.and_then(|c| f.contents.iter().find(|x| name(*x) == c));
        if content.is_none() && said.is_none() {
            return blocked(
                Cause::new(
                    Code::NoSnapshotController,
                    format!("nobody has taken up {me} for {}: the snapshot controller does not run, or has not got to it.", age(s, f.now)),
                )
                .say("It is a part of Kubernetes that is installed once, whatever drivers there are (kubernetes-csi/external-snapshotter).")
                .run("kubectl get pods -A | grep snapshot-controller"),
            );
        }
        self.csi_controller()?;
        let has_sidecar = |p: &k8s_openapi::api::core::v1::Pod| {
            p.spec.as_ref().is_some_and(|s| s.containers.iter().any(|c| c.name == "snapshotter"))
        };
        let pods: Vec<_> = f.component("csi-controller").collect();
        if !pods.is_empty() && !pods.iter().any(|p| has_sidecar(p)) {
            return blocked(
                Cause::new(
                    Code::NoSnapshotController,
                    format!("{me} waits: the CSI controller runs without its snapshotter, because the kinds of snapshots were not there when the chart was installed."),
                )
                .say("Upgrade the release; it looks for them again (chart value csi.sidecars.snapshotter.enabled):")
                .run("helm upgrade --reuse-values RELEASE charts/sheepdog -n NAMESPACE"),
            );
        }
        let of_content = content.and_then(|c| text(c, "/status/error/message")).map(|t| shorten(t, 500));
        if let Some(said) = said.or(of_content) {
            return blocked(
                Cause::new(Code::SnapshotFailed, format!("{me} could not be taken: {said}"))
                    .say("It is tried again by itself. What does the snapshotter say?")
                    .run(self.logs_of("csi-controller", "snapshotter")),
            );
        }
        self.doubtful()?;
        blocked(
            Cause::new(
                Code::BeingTaken,
                format!("{me} is being taken since {}, and nothing has failed so far.", age(s, f.now)),
            )
            .say("Ask again in a few seconds. If it stays so, what does the snapshotter say?")
            .run(self.logs_of("csi-controller", "snapshotter")),
        )
    }

    fn snapshot_class(&mut self, s: &DynamicObject, me: &str) -> Step {
        if !self.can_read(Sort::SnapshotClasses) {
            return Ok(());
        }
        let ours = |c: &&DynamicObject| text(c, "/driver") == Some(DRIVER);
        let classes: Vec<String> = self.f.snapshot_classes.iter().filter(ours).map(name).collect();
        let there = if classes.is_empty() {
            "There is no VolumeSnapshotClass of Sheepdog: the operator makes one where Kubernetes has the kinds of snapshots.".to_owned()
        } else {
            format!("VolumeSnapshotClasses of Sheepdog: {}.", listing(&classes))
        };
        let wrong = |sentence: String| {
            blocked(Cause::new(Code::SnapshotClass, sentence).say(there.clone()).say(
                "Delete the snapshot and make it again with one of them (spec.volumeSnapshotClassName).",
            ))
        };
        // One that was made of a content by hand needs no class.
        if text(s, "/spec/source/volumeSnapshotContentName").is_some() {
            return Ok(());
        }
        match text(s, "/spec/volumeSnapshotClassName") {
            Some(wanted) => match self.f.snapshot_classes.iter().find(|c| name(*c) == wanted) {
                None => wrong(format!("{me} wants the VolumeSnapshotClass {wanted}, which does not exist.")),
                Some(c) if text(c, "/driver") != Some(DRIVER) => wrong(format!(
                    "{me} wants the VolumeSnapshotClass {wanted}, which belongs to the driver {}, not to Sheepdog.",
                    text(c, "/driver").unwrap_or("?")
                )),
                Some(_) => Ok(()),
            },
            None => {
                let default = |c: &&DynamicObject| {
                    c.metadata.annotations.as_ref().and_then(|a| a.get(DEFAULT)).is_some_and(|v| v == "true")
                };
                match self.f.snapshot_classes.iter().filter(ours).find(default) {
                    Some(_) => Ok(()),
                    None => wrong(format!(
                        "{me} names no VolumeSnapshotClass, and none of Sheepdog is the default."
                    )),
                }
            }
        }
    }

    fn snapshot_source(&mut self, claim: &str, me: &str) -> Step {
        let Some(c): Option<&'a PersistentVolumeClaim> = self.f.claim(claim) else {
            return self.no_such_claim(claim, Some(me));
        };
        self.saw(format!("{me} is of pvc/{claim}"));
        self.deeper(|j| j.claim(c))
    }

    fn snapshot_held(&mut self, s: &DynamicObject, me: &str) -> Step {
        self.saw(format!("{me} is being deleted, its finalizers are {}", listing(finalizers(s))));
        let from = |c: &&PersistentVolumeClaim| {
            let source = c.spec.as_ref().and_then(|s| s.data_source.as_ref());
            super::claim::phase(c) != "Bound"
                && source.is_some_and(|d| d.kind == "VolumeSnapshot" && d.name == name(s))
        };
        let claims: Vec<String> = self.f.claims.iter().filter(from).map(name).collect();
        if let Some(first) = claims.first() {
            return blocked(
                Cause::new(
                    Code::SnapshotDeletionHeld,
                    format!(
                        "{me} is being deleted, and stays until claims have been made from it: {}.",
                        listing(&claims)
                    ),
                )
                .say("Why they are not Bound:")
                .run(format!("kubectl sheepdog why {}", self.here(&format!("pvc/{first}")))),
            );
        }
        self.csi_controller()?;
        let said =
            text(s, "/status/error/message").map(|t| format!(": {}", shorten(t, 500))).unwrap_or_default();
        blocked(
            Cause::new(
                Code::SnapshotDeletionHeld,
                format!(
                    "{me} is being deleted and waits for its finalizers ({}){said}.",
                    listing(finalizers(s))
                ),
            )
            .say("They are the snapshot controller's and the snapshotter's: see that both run.")
            .run("kubectl get pods -A | grep snapshot-controller")
            .run(self.logs_of("csi-controller", "snapshotter")),
        )
    }
}
