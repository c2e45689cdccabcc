//! Reads what has to do with a claim, a pod or a snapshot. Follows every reference that the steps follow, and decides nothing.

use super::facts::{Facts, Kind, Sort, TOPOLOGY, Target};
use crate::connect::Connected;
use crate::failure::Failure;
use crate::read::{self, Trouble};
use crate::words::{claims_of, has_ended, labels, name, namespace, node_of};
use futures::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass, VolumeAttachment};
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use sheepdog_crds::{DRIVER, SheepdogCluster, Vdi};
use std::collections::BTreeSet;
use std::fmt::Debug;

/// All our pods, DaemonSets and Deployments have it.
const OURS: &str = "app.kubernetes.io/name=sheepdog";
/// Claims, pods and nodes whose details are read: more are not needed to find a first cause.
const MOST: usize = 50;
/// Requests under way at a time.
const AT_ONCE: usize = 8;

/// A kind of the snapshot controller's.
pub fn snapshot_kind(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", kind), plural)
}

struct Fetch<'a> {
    c: &'a Connected,
    f: Facts,
}

/// Everything.
pub async fn fetch(c: &Connected, ns: &str, target: &Target) -> Result<Facts, Failure> {
    let f = Facts { namespace: ns.to_owned(), now: Timestamp::now(), ..Facts::default() };
    let mut me = Fetch { c, f };
    me.target(target).await?;
    me.lists(target).await;
    let claims = me.claims(target);
    me.volumes(&claims).await;
    me.nodes(&claims, target).await;
    me.vdis().await;
    me.events(&claims, target).await;
    Ok(me.f)
}

impl Fetch<'_> {
    fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.c.client.clone())
    }

    fn here<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.c.client.clone(), &self.f.namespace)
    }

    fn note<T: Default>(&mut self, sort: Sort, read: Result<T, Trouble>) -> T {
        read.unwrap_or_else(|why| {
            self.f.unread.insert(sort, why.to_string());
            T::default()
        })
    }

    /// Kinds that need not be there: none of them is all there are.
    fn optional<T: Default>(&mut self, sort: Sort, read: Result<T, Trouble>) -> T {
        match read {
            Err(Trouble::NoSuchKind) => T::default(),
            other => self.note(sort, other),
        }
    }

    /// It has to be there, or there is no question.
    async fn target(&self, t: &Target) -> Result<(), Failure> {
        let ns = &self.f.namespace;
        let (what, found) = match t.kind {
            Kind::Claim => (
                "PersistentVolumeClaim",
                read::get(&self.here::<PersistentVolumeClaim>(), &t.name).await.map(|o| o.is_some()),
            ),
            Kind::Pod => ("pod", read::get(&self.here::<Pod>(), &t.name).await.map(|o| o.is_some())),
            Kind::Snapshot => {
                let kind = snapshot_kind("VolumeSnapshot", "volumesnapshots");
                let api = Api::<DynamicObject>::namespaced_with(self.c.client.clone(), ns, &kind);
                ("VolumeSnapshot", read::get(&api, &t.name).await.map(|o| o.is_some()))
            }
        };
        match found {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::new(format!("there is no {what} {} in namespace {ns}", t.name))
                .hint("-n NAMESPACE says where to look; so does the namespace of your context")),
            Err(Trouble::NoSuchKind) if t.kind == Kind::Snapshot => Err(Failure::new(
                "Kubernetes does not know VolumeSnapshots here: the kinds of the snapshot controller are not installed",
            )),
            Err(e) => Err(Failure::of(&format!("{what} {} cannot be read", t.name), &e)),
        }
    }

    async fn lists(&mut self, target: &Target) {
        let all = ListParams::default;
        let ours = || ListParams::default().labels(OURS);
        let snapshots = snapshot_kind("VolumeSnapshot", "volumesnapshots");
        let snapshots =
            Api::<DynamicObject>::namespaced_with(self.c.client.clone(), &self.f.namespace, &snapshots);
        let (claim_api, pod_api) = (self.here::<PersistentVolumeClaim>(), self.here::<Pod>());
        let (class_api, attachment_api) = (self.all::<StorageClass>(), self.all::<VolumeAttachment>());
        let (system_api, set_api) = (self.all::<Pod>(), self.all::<DaemonSet>());
        let (deployment_api, cluster_api) = (self.all::<Deployment>(), self.all::<SheepdogCluster>());
        let driver_api = self.all::<CSIDriver>();
        let (claims, pods, classes, attachments, system, sets, deployments, clusters, driver, snapshots) = tokio::join!(
            read::list(&claim_api, all()),
            read::list(&pod_api, all()),
            read::list(&class_api, all()),
            read::list(&attachment_api, all()),
            read::list(&system_api, ours()),
            read::list(&set_api, ours()),
            read::list(&deployment_api, ours()),
            read::list(&cluster_api, all()),
            read::get(&driver_api, DRIVER),
            read::list(&snapshots, all()),
        );
        self.f.claims = self.note(Sort::Claims, claims);
        self.f.pods = self.note(Sort::Pods, pods);
        self.f.classes = self.note(Sort::Classes, classes);
        self.f.attachments = self.note(Sort::Attachments, attachments);
        self.f.system = self.note(Sort::System, system);
        self.f.daemonsets = self.note(Sort::Workloads, sets);
        self.f.deployments = self.note(Sort::Workloads, deployments);
        self.f.clusters = self.optional(Sort::Clusters, clusters);
        self.f.driver = self.note(Sort::Drivers, driver);
        self.f.snapshots = self.optional(Sort::Snapshots, snapshots);
        if target.kind == Kind::Snapshot
            || self.f.claims.iter().any(|c| source_of(c, "VolumeSnapshot").is_some())
        {
            self.snapshot_details().await;
        }
    }

    async fn snapshot_details(&mut self) {
        let client = &self.c.client;
        let classes = snapshot_kind("VolumeSnapshotClass", "volumesnapshotclasses");
        let classes = Api::<DynamicObject>::all_with(client.clone(), &classes);
        let classes = read::list(&classes, ListParams::default()).await;
        self.f.snapshot_classes = self.optional(Sort::SnapshotClasses, classes);
        let contents = snapshot_kind("VolumeSnapshotContent", "volumesnapshotcontents");
        let contents = Api::<DynamicObject>::all_with(client.clone(), &contents);
        let names = self.f.snapshots.iter().filter_map(|s| {
            s.data
                .pointer("/status/boundVolumeSnapshotContentName")
                .and_then(|v| v.as_str())
                .map(str::to_owned)
        });
        let names: BTreeSet<String> = names.take(MOST).collect();
        let (found, trouble) = each(&contents, &names).await;
        self.f.contents = found;
        if let Some(why) = trouble {
            self.f.unread.insert(Sort::SnapshotContents, why.to_string());
        }
    }

    /// Pods whose fate is looked at.
    fn pods(&self, target: &Target) -> Vec<&Pod> {
        let wanted = |p: &&Pod| match target.kind {
            Kind::Pod => name(*p) == target.name,
            Kind::Claim => claims_of(p).contains(&target.name) && !has_ended(p),
            Kind::Snapshot => false,
        };
        self.f.pods.iter().filter(wanted).take(MOST).collect()
    }

    /// Claims that are looked at: those of the pods, and what they are made from.
    fn claims(&self, target: &Target) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = self.pods(target).into_iter().flat_map(claims_of).collect();
        match target.kind {
            Kind::Claim => {
                names.insert(target.name.clone());
            }
            Kind::Snapshot => names.extend(self.snapshot_source(&target.name)),
            Kind::Pod => {}
        }
        // As deep as the steps go.
        for _ in 0..3 {
            let more: Vec<String> = names
                .iter()
                .filter_map(|n| self.f.claim(n))
                .flat_map(|c| {
                    let cloned = source_of(c, "PersistentVolumeClaim");
                    let restored = source_of(c, "VolumeSnapshot").and_then(|s| self.snapshot_source(&s));
                    [cloned, restored]
                })
                .flatten()
                .collect();
            names.extend(more);
        }
        names
    }

    fn snapshot_source(&self, snapshot: &str) -> Option<String> {
        let s = self.f.snapshots.iter().find(|s| name(*s) == snapshot)?;
        s.data.pointer("/spec/source/persistentVolumeClaimName")?.as_str().map(str::to_owned)
    }

    async fn volumes(&mut self, claims: &BTreeSet<String>) {
        let of = |c: &String| self.f.claim(c)?.spec.as_ref()?.volume_name.clone().filter(|v| !v.is_empty());
        let names: BTreeSet<String> = claims.iter().filter_map(of).take(MOST).collect();
        let (found, trouble) = each(&self.all::<PersistentVolume>(), &names).await;
        self.f.volumes = found;
        if let Some(why) = trouble {
            self.f.unread.insert(Sort::Volumes, why.to_string());
        }
        self.f.attachments.retain(|a| a.spec.attacher == DRIVER);
    }

    /// Nodes of the pods, and those that have the volumes.
    async fn nodes(&mut self, claims: &BTreeSet<String>, target: &Target) {
        let volumes: BTreeSet<String> = self.f.volumes.iter().map(name).collect();
        let has = |a: &&VolumeAttachment| {
            a.spec.source.persistent_volume_name.as_ref().is_some_and(|v| volumes.contains(v))
        };
        let attached = self.f.attachments.iter().filter(has).map(|a| a.spec.node_name.clone());
        let uses = |p: &&Pod| claims_of(p).iter().any(|c| claims.contains(c));
        let subjects = self.pods(target);
        let running = self.f.pods.iter().filter(uses).chain(subjects.iter().copied());
        let running = running.filter_map(|p| node_of(p).map(str::to_owned));
        let names: BTreeSet<String> = attached.chain(running).take(MOST).collect();
        let waiting = subjects.iter().any(|p| node_of(p).is_none());
        let (node_api, csi_api) = (self.all::<Node>(), self.all::<CSINode>());
        let ((nodes, trouble), (csi_nodes, csi_trouble)) =
            tokio::join!(each(&node_api, &names), each(&csi_api, &names));
        (self.f.nodes, self.f.csi_nodes) = (nodes, csi_nodes);
        if let Some(why) = trouble {
            self.f.unread.insert(Sort::Nodes, why.to_string());
        }
        if let Some(why) = csi_trouble {
            self.f.unread.insert(Sort::CsiNodes, why.to_string());
        }
        if waiting {
            let with = ListParams::default().labels(TOPOLOGY);
            match read::limited(node_api.list_metadata(&with)).await {
                Ok(all) => {
                    let of = |n: &kube::core::PartialObjectMeta<Node>| {
                        Some((name(n), labels(n).get(TOPOLOGY)?.clone()))
                    };
                    self.f.topology = all.items.iter().filter_map(of).collect();
                }
                Err(why) => {
                    self.f.unread.insert(Sort::Nodes, why.to_string());
                }
            }
        }
    }

    /// Volumes that the CSI driver made are shown under the PersistentVolume's name; others by their UUID.
    async fn vdis(&mut self) {
        let ours = |pv: &&PersistentVolume| {
            pv.spec.as_ref().and_then(|s| s.csi.as_ref()).is_some_and(|c| c.driver == DRIVER)
        };
        let wanted: Vec<(String, String, String)> = self
            .f
            .volumes
            .iter()
            .filter(ours)
            .filter_map(|pv| {
                let ns = namespace(self.f.cluster(Some(pv), None)?);
                Some((ns, name(pv), pv.spec.as_ref()?.csi.as_ref()?.volume_handle.clone()))
            })
            .collect();
        let mut listed = BTreeSet::new();
        for (ns, volume, handle) in wanted {
            let is_it = |v: &Vdi| v.status.as_ref().and_then(|s| s.uuid.as_deref()) == Some(handle.as_str());
            let api = Api::<Vdi>::namespaced(self.c.client.clone(), &ns);
            match read::get(&api, &volume).await {
                Ok(Some(v)) if is_it(&v) => self.f.vdis.push(v),
                Ok(_) if listed.insert(ns.clone()) => {
                    let all = read::list(&api, ListParams::default()).await;
                    let all = self.optional(Sort::Vdis, all);
                    self.f.vdis.extend(all);
                }
                Ok(_) => {}
                Err(Trouble::NoSuchKind) => {}
                Err(why) => {
                    self.f.unread.insert(Sort::Vdis, why.to_string());
                }
            }
        }
    }

    async fn events(&mut self, claims: &BTreeSet<String>, target: &Target) {
        let pods = self.pods(target).into_iter().map(|p| ("Pod", name(p)));
        let claims = claims.iter().map(|c| ("PersistentVolumeClaim", c.clone()));
        let about: Vec<String> = pods
            .chain(claims)
            .take(MOST)
            .map(|(kind, name)| format!("involvedObject.kind={kind},involvedObject.name={name}"))
            .collect();
        let api = self.here::<Event>();
        let asking = about.iter().map(|fields| read::list(&api, ListParams::default().fields(fields)));
        let answers: Vec<_> = futures::stream::iter(asking).buffered(AT_ONCE).collect().await;
        for answer in answers {
            let some = self.note(Sort::Events, answer);
            self.f.events.extend(some);
        }
    }
}

/// What a claim is made from, when it is of this kind.
fn source_of(c: &PersistentVolumeClaim, kind: &str) -> Option<String> {
    let source = c.spec.as_ref()?.data_source.as_ref()?;
    (source.kind == kind).then(|| source.name.clone())
}

/// Objects by name; those that are not there are left out.
async fn each<K>(api: &Api<K>, names: &BTreeSet<String>) -> (Vec<K>, Option<Trouble>)
where
    K: Clone + Debug + DeserializeOwned,
{
    let asking = names.iter().map(|n| read::get(api, n));
    let answers: Vec<_> = futures::stream::iter(asking).buffered(AT_ONCE).collect().await;
    let (mut found, mut trouble) = (Vec::new(), None);
    for answer in answers {
        match answer {
            Ok(one) => found.extend(one),
            Err(why) => trouble = Some(why),
        }
    }
    (found, trouble)
}
