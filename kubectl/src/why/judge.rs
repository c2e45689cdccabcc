//! The walk from a claim, a pod or a snapshot to the first thing that blocks it. Pure: every step looks at [`Facts`], writes down what it saw, and ends the walk
//! with a [`Cause`] or lets it go on.
//!
//! ```text
//!   pod ─► claims: there? deleted? bound? (class, cluster, CSI controller, events) ─► PersistentVolume ─► Vdi
//!       ─► scheduled? ─► node ─► CSINode ─► VolumeAttachment (who else has it?) ─► cluster ─► sheep and CSI pod of the node ─► mounting ─► the pod itself
//! ```

use super::facts::{Facts, Kind, Sort, Target};
use super::verdict::{Cause, Code, Verdict};
use crate::words::name;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim};
use kube::Resource;

/// How a step ends: the walk goes on, or this blocks.
pub type Step = Result<(), Box<Cause>>;

/// One walk.
pub struct Judge<'a> {
    /// What is known.
    pub f: &'a Facts,
    facts: Vec<String>,
    unread: Vec<String>,
    depth: u8,
}

/// A claim made from a snapshot of a claim made from a snapshot, and no further: a name may come round again.
const DEPTH: u8 = 3;

/// Decide.
pub fn judge(f: &Facts, target: &Target) -> Verdict {
    let mut j = Judge { f, facts: Vec::new(), unread: Vec::new(), depth: 0 };
    let (about, step) = match target.kind {
        Kind::Claim => (format!("pvc/{}", target.name), j.asked_claim(&target.name)),
        Kind::Pod => (format!("pod/{}", target.name), j.asked_pod(&target.name)),
        Kind::Snapshot => (format!("volumesnapshot/{}", target.name), j.snapshot(&target.name)),
    };
    Verdict {
        about,
        namespace: f.namespace.clone(),
        cause: step.err().map(|c| *c),
        facts: j.facts,
        unread: j.unread,
    }
}

/// End the walk.
pub fn blocked(cause: Cause) -> Step {
    Err(Box::new(cause))
}

impl Judge<'_> {
    /// Write down what was seen, once.
    pub fn saw(&mut self, fact: impl Into<String>) {
        let fact = fact.into();
        if !self.facts.contains(&fact) {
            self.facts.push(fact);
        }
    }

    /// Can this sort of object be trusted to be complete? If not, that is said in the end.
    pub fn can_read(&mut self, sort: Sort) -> bool {
        let Some(why) = self.f.unread.get(&sort) else { return true };
        let line = format!("{}: {why}", sort.word());
        if !self.unread.contains(&line) {
            self.unread.push(line);
        }
        false
    }

    /// Look at what something is made from.
    pub fn deeper(&mut self, step: impl FnOnce(&mut Self) -> Step) -> Step {
        if self.depth >= DEPTH {
            return Ok(());
        }
        self.depth += 1;
        let ended = step(self);
        self.depth -= 1;
        ended
    }

    /// `-n NAMESPACE NAME`, for commands.
    pub fn here(&self, object: &str) -> String {
        format!("-n {} {object}", self.f.namespace)
    }

    /// The latest event about an object with one of these reasons.
    pub fn event(&mut self, of: &impl Resource, kind: &str, reasons: &[&str]) -> Option<&Event> {
        self.can_read(Sort::Events);
        let uid = of.meta().uid.as_deref();
        let about = |e: &&Event| {
            let o = &e.involved_object;
            let same = o.kind.as_deref() == Some(kind) && o.name.as_deref() == of.meta().name.as_deref();
            // Of an earlier object of that name there may be events, too.
            let known = o.uid.as_deref().filter(|u| !u.is_empty());
            same && (known.is_none() || uid.is_none() || known == uid)
        };
        let wanted = |e: &&Event| e.reason.as_deref().is_some_and(|r| reasons.contains(&r));
        self.f.events.iter().filter(about).filter(wanted).max_by_key(|e| crate::words::seen_at(e))
    }

    fn asked_claim(&mut self, wanted: &str) -> Step {
        let Some(claim) = self.f.claim(wanted) else { return self.no_such_claim(wanted, None) };
        self.held(claim)?;
        self.claim(claim)?;
        if self.ours(claim).is_none() {
            return Ok(());
        }
        self.users(claim)?;
        self.growing(claim)
    }

    /// Pods that use a claim: the first of them that something blocks.
    fn users(&mut self, claim: &PersistentVolumeClaim) -> Step {
        if !self.can_read(Sort::Pods) {
            return Ok(());
        }
        let uses = |p: &&k8s_openapi::api::core::v1::Pod| {
            crate::words::claims_of(p).contains(&name(claim)) && !crate::words::has_ended(p)
        };
        let pods: Vec<_> = self.f.pods.iter().filter(uses).collect();
        if pods.is_empty() {
            self.saw(format!("no pod uses pvc/{}", name(claim)));
        }
        pods.into_iter().try_for_each(|p| self.pod(p))
    }

    /// A claim that is named and not there.
    pub fn no_such_claim(&mut self, wanted: &str, by: Option<&str>) -> Step {
        if !self.can_read(Sort::Claims) {
            return Ok(());
        }
        let who = by.map_or_else(String::new, |p| format!("{p} uses it, but "));
        blocked(
            Cause::new(
                Code::NoSuchClaim,
                format!("{who}there is no PersistentVolumeClaim {wanted} in namespace {}.", self.f.namespace),
            )
            .say("Make the claim, or correct the name or the namespace. These are there:")
            .run(format!("kubectl get pvc -n {}", self.f.namespace)),
        )
    }
}
