//! Names and labels of everything that belongs to a cluster, in one place: selectors, garbage collection and people rely on them.

use sheepdog_crds::SheepdogCluster;
pub use sheepdog_crds::{CLUSTER, COMPONENT};
use std::collections::BTreeMap;

/// Field manager of everything the operator applies.
pub const MANAGER: &str = "sheepdog-operator";
/// Finalizer of a SheepdogCluster.
pub const CLUSTER_FINALIZER: &str = "sheepdog.io/cluster";
/// Finalizer of a Vdi.
pub const VDI_FINALIZER: &str = "sheepdog.io/vdi";
/// Finalizer of a VdiSnapshot.
pub const SNAPSHOT_FINALIZER: &str = "sheepdog.io/snapshot";
/// Label of cluster-wide objects: namespace of the cluster.
pub const NAMESPACE: &str = "sheepdog.io/namespace";
/// Label: node group.
pub const GROUP: &str = "sheepdog.io/group";
/// Label of Vdi objects that the operator made because the VDI exists.
pub const LISTED: &str = "sheepdog.io/listed";
/// Annotation of pods: what of the template needs a restart to take effect.
pub const REVISION: &str = "sheepdog.io/revision";
/// Key of the secret.
pub const SECRET_KEY: &str = "secret";
/// Component that stores data.
pub const SHEEP: &str = "sheep";
/// Component that stores none.
pub const GATEWAY: &str = "gateway";

/// Names of one cluster's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The cluster's name.
    pub cluster: String,
    /// Its namespace.
    pub namespace: String,
}

impl Names {
    /// Of this cluster.
    pub fn of(c: &SheepdogCluster) -> Self {
        Self {
            cluster: c.metadata.name.clone().unwrap_or_default(),
            namespace: c.metadata.namespace.clone().unwrap_or_default(),
        }
    }
    /// DaemonSet of a group.
    pub fn sheep(&self, group: &str) -> String {
        match group {
            "default" => format!("{}-sheep", self.cluster),
            other => format!("{}-sheep-{other}", self.cluster),
        }
    }
    /// DaemonSet of the gateways.
    pub fn gateway(&self) -> String {
        format!("{}-gateway", self.cluster)
    }
    /// Headless service, and PodDisruptionBudget.
    pub fn service(&self) -> String {
        format!("{}-sheep", self.cluster)
    }
    /// ConfigMap with one file of options per node.
    pub fn config(&self) -> String {
        format!("{}-nodes", self.cluster)
    }
    /// Secret with the credentials.
    pub fn secret(&self, c: &SheepdogCluster) -> String {
        c.spec.tls.as_ref().map_or_else(|| format!("{}-secret", self.cluster), |t| t.secret_name.clone())
    }
    /// StorageClass.
    pub fn storage_class(&self, c: &SheepdogCluster) -> String {
        c.spec.storage_class.name.clone().unwrap_or_else(|| self.cluster.clone())
    }
    /// VolumeSnapshotClass.
    pub fn snapshot_class(&self, c: &SheepdogCluster) -> String {
        c.spec.snapshot_class.name.clone().unwrap_or_else(|| self.cluster.clone())
    }
    /// Directory on every node.
    pub fn host_dir(&self, c: &SheepdogCluster) -> String {
        format!("{}/{}", c.spec.data_dir.trim_end_matches('/'), self.cluster)
    }
    /// Labels of everything.
    pub fn labels(&self) -> BTreeMap<String, String> {
        [
            ("app.kubernetes.io/name", "sheepdog"),
            ("app.kubernetes.io/instance", &self.cluster),
            ("app.kubernetes.io/managed-by", MANAGER),
            (CLUSTER, &self.cluster),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
    }
    /// Labels of what is not in a namespace, and so has no owner.
    pub fn wide_labels(&self) -> BTreeMap<String, String> {
        let mut l = self.labels();
        l.insert(NAMESPACE.into(), self.namespace.clone());
        l
    }
    /// What selects the pods of a component.
    pub fn selector(&self, component: &str) -> BTreeMap<String, String> {
        [(CLUSTER, self.cluster.as_str()), (COMPONENT, component)]
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    }
}
