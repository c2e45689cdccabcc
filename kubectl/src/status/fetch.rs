//! Reads what a status is made of.

use crate::connect::Connected;
use crate::read::{self, Trouble};
use crate::words::namespace;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttachment};
use kube::Api;
use kube::api::ListParams;
use sheepdog_crds::{SheepdogCluster, Vdi};
use std::collections::BTreeSet;

/// What was read.
#[derive(Debug, Default)]
pub struct Seen {
    /// Our pods.
    pub pods: Vec<Pod>,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// Vdi objects of the clusters' namespaces.
    pub vdis: Vec<Vdi>,
    /// All claims.
    pub claims: Vec<PersistentVolumeClaim>,
    /// All volumes.
    pub volumes: Vec<PersistentVolume>,
    /// All attachments.
    pub attachments: Vec<VolumeAttachment>,
    /// All classes.
    pub classes: Vec<StorageClass>,
    /// What could not be read, and why.
    pub unread: Vec<String>,
}

/// Read all of it; what cannot be read is noted.
pub async fn fetch(c: &Connected, clusters: &[SheepdogCluster]) -> Seen {
    let all = ListParams::default;
    let client = || c.client.clone();
    let (pods, nodes) = (Api::<Pod>::all(client()), Api::<Node>::all(client()));
    let (claims, volumes) =
        (Api::<PersistentVolumeClaim>::all(client()), Api::<PersistentVolume>::all(client()));
    let (attachments, classes) = (Api::<VolumeAttachment>::all(client()), Api::<StorageClass>::all(client()));
    let ours = all().labels("app.kubernetes.io/name=sheepdog");
    let read = tokio::join!(
        read::list(&pods, ours.clone()),
        read::list(&nodes, all()),
        read::list(&claims, all()),
        read::list(&volumes, all()),
        read::list(&attachments, all()),
        read::list(&classes, all()),
    );
    let mut s = Seen::default();
    let namespaces: BTreeSet<String> = clusters.iter().map(namespace).collect();
    s.pods = match read.0 {
        // Those of the clusters' own namespaces may be readable.
        Err(Trouble::Forbidden(_)) => {
            let mut some = Vec::new();
            for ns in &namespaces {
                let api = Api::<Pod>::namespaced(client(), ns);
                some.extend(s.note(&format!("pods of {ns}"), read::list(&api, ours.clone()).await));
            }
            some
        }
        other => s.note("pods", other),
    };
    s.nodes = s.note("nodes", read.1);
    s.claims = s.note("PersistentVolumeClaims", read.2);
    s.volumes = s.note("PersistentVolumes", read.3);
    s.attachments = s.note("VolumeAttachments", read.4);
    s.classes = s.note("StorageClasses", read.5);
    for ns in &namespaces {
        let api = Api::<Vdi>::namespaced(client(), ns);
        let some = s.note(&format!("Vdis of {ns}"), read::list(&api, all()).await);
        s.vdis.extend(some);
    }
    s
}

impl Seen {
    fn note<T: Default>(&mut self, what: &str, read: Result<T, Trouble>) -> T {
        read.unwrap_or_else(|why| {
            self.unread.push(format!("{what}: {why}"));
            T::default()
        })
    }
}
