//! Steps about the cluster, and about the pods that make and attach its volumes.

use super::facts::{Sort, cluster_id};
use super::judge::{Judge, Step, blocked};
use super::verdict::{Cause, Code};
use crate::words::{going, is_ready, labels, name, namespace, unready};
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use sheepdog_crds::{COMPONENT, DRIVER, SheepdogCluster};

/// A condition of a cluster.
pub fn condition<'a>(c: &'a SheepdogCluster, kind: &str) -> Option<&'a Condition> {
    c.status.as_ref()?.conditions.iter().find(|c| c.type_ == kind)
}

impl Judge<'_> {
    /// Is the cluster of this volume, or class, there and Available?
    pub fn serving(&mut self, volume: Option<&PersistentVolume>, class: Option<&StorageClass>) -> Step {
        if !self.can_read(Sort::Clusters) {
            return Ok(());
        }
        let Some(c) = self.f.cluster(volume, class) else { return self.no_cluster(volume) };
        let (me, ns) = (name(c), namespace(c));
        let show = format!("kubectl sheepdog status -n {ns} {me}");
        if going(c) {
            self.saw(format!("SheepdogCluster {ns}/{me} is being deleted"));
        }
        let Some(available) = condition(c, "Available") else {
            return blocked(
                Cause::new(
                    Code::ClusterNotAvailable,
                    format!("no operator has looked at SheepdogCluster {ns}/{me} yet."),
                )
                .say("Does the operator run?")
                .run(format!("kubectl get pods -A -l {COMPONENT}=operator")),
            );
        };
        if available.status == "False" {
            return blocked(self.unavailable(c, available, &show));
        }
        let sheep = c.status.as_ref().and_then(|s| s.sheep.clone()).unwrap_or_default();
        self.saw(format!(
            "SheepdogCluster {ns}/{me}: Available is {} ({}), sheep {sheep}",
            available.status, available.message
        ));
        for kind in ["Degraded", "CapacityLow"] {
            if let Some(bad) = condition(c, kind).filter(|x| x.status == "True") {
                self.saw(format!("SheepdogCluster {ns}/{me}: {kind}, {}: {}", bad.reason, bad.message));
            }
        }
        match condition(c, "CapacityLow").filter(|x| x.status == "True" && x.reason == "DiskFull") {
            None => Ok(()),
            Some(full) => blocked(
                Cause::new(
                    Code::NoSpace,
                    format!(
                        "a disk of SheepdogCluster {ns}/{me} is full, so that writes wait: {}",
                        full.message
                    ),
                )
                .say("Delete volumes or snapshots, or add disks or nodes. Writes go on by themselves then.")
                .run("kubectl sheepdog dog node md info"),
            ),
        }
    }

    fn no_cluster(&mut self, volume: Option<&PersistentVolume>) -> Step {
        let cause = match volume.and_then(cluster_id) {
            Some(id) => Cause::new(
                Code::NoCluster,
                format!("its volume is in the cluster with the id {id}, and no SheepdogCluster has it."),
            ),
            None if self.f.clusters.is_empty() => Cause::new(Code::NoCluster, "there is no SheepdogCluster."),
            None => {
                self.saw("it cannot be told which of the SheepdogClusters has it");
                return Ok(());
            }
        };
        blocked(cause.say("Make one (docs/kubernetes.md, \"Quick start\"). One that was deleted finds its volumes when it is made again under its name in its namespace."))
    }

    fn unavailable(&self, c: &SheepdogCluster, why: &Condition, show: &str) -> Cause {
        let cause = Cause::new(
            Code::ClusterNotAvailable,
            format!(
                "SheepdogCluster {}/{} is not available, {}: {}",
                namespace(c),
                name(c),
                why.reason,
                why.message
            ),
        );
        let mut cause = match why.reason.as_str() {
            "TooFewNodes" => cause.say("Give more nodes the labels of a node group, or lower redundancy.copies."),
            "FormatLost" => cause.say("Do not format: the data is on the disks. docs/operations.md, \"Recovery\", says how the cluster is rebuilt from them."),
            _ => cause,
        };
        for pod in self.f.sheep(c).filter(|p| !is_ready(p)).take(3) {
            cause = cause.say(format!("pod/{} {}", name(pod), unready(pod)));
        }
        cause.say("See the whole cluster:").run(show)
    }

    /// The operator could not ask the sheep, and nothing else explains why it takes so long.
    pub fn doubtful(&mut self) -> Step {
        let Some(c) = self.f.cluster(None, None) else { return Ok(()) };
        match condition(c, "Available").filter(|a| a.status == "Unknown") {
            None => Ok(()),
            Some(a) => {
                let show = format!("kubectl sheepdog status -n {} {}", namespace(c), name(c));
                blocked(self.unavailable(c, a, &show))
            }
        }
    }

    /// Does somebody make and attach volumes?
    pub fn csi_controller(&mut self) -> Step {
        if !self.can_read(Sort::Drivers) || !self.can_read(Sort::System) {
            return Ok(());
        }
        let pods: Vec<_> = self.f.component("csi-controller").collect();
        if let Some(ready) = pods.iter().find(|p| is_ready(p)) {
            self.saw(format!("the CSI controller runs (pod/{})", name(*ready)));
            return Ok(());
        }
        if self.f.driver.is_none() && pods.is_empty() {
            return blocked(
                Cause::new(
                    Code::DriverNotInstalled,
                    format!(
                        "the CSI driver is not installed: there is no CSIDriver {DRIVER}, and no pod of it."
                    ),
                )
                .say("Install the chart with csi.enabled=true (docs/kubernetes.md)."),
            );
        }
        let is_it = |d: &&k8s_openapi::api::apps::v1::Deployment| {
            labels(*d).get(COMPONENT).is_some_and(|c| c == "csi-controller")
        };
        let of = self.f.deployments.iter().find(is_it);
        let wanted = of.and_then(|d| d.spec.as_ref()?.replicas);
        let why = match (of, wanted, pods.first()) {
            (Some(d), Some(0), _) => format!("deployment/{} is scaled to 0", name(d)),
            (_, _, Some(p)) => format!("pod/{} {}", name(*p), unready(p)),
            (Some(d), _, None) => format!("deployment/{} has no pod", name(d)),
            (None, _, None) => "there is no Deployment of it".to_owned(),
        };
        let cause = Cause::new(
            Code::NoCsiController,
            format!("no CSI controller runs, so that volumes are neither made nor attached: {why}."),
        );
        blocked(match (of, wanted) {
            (Some(d), Some(0)) => cause
                .run(format!("kubectl scale -n {} deployment/{} --replicas=2", namespace(d), name(d))),
            (Some(d), _) => cause
                .say("It waits for the cluster's secret, which is made with the SheepdogCluster; otherwise see its pods:")
                .run(format!("kubectl describe -n {} deployment/{}", namespace(d), name(d)))
                .run(format!("kubectl get pods -n {} -l {COMPONENT}=csi-controller", namespace(d))),
            (None, _) => cause.say("Install the chart with csi.enabled=true (docs/kubernetes.md)."),
        })
    }

    /// A command that shows the logs of a container of ours.
    pub fn logs_of(&self, component: &str, container: &str) -> String {
        let ns = self.f.component(component).next().map_or_else(|| "sheepdog".into(), namespace);
        format!("kubectl logs -n {ns} -l {COMPONENT}={component} -c {container} --tail=50")
    }
}
