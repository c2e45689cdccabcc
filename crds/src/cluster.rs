//! `SheepdogCluster`: which nodes store what, how redundantly, and how it is run.

pub use crate::classes::{
    FsType, ReclaimPolicy, SnapshotClassOptions, StorageClassOptions, VolumeAttributesClassOptions,
};
pub use crate::status::{NodeStatus, SheepdogClusterStatus};
use crate::{DeletionPolicy, Redundancy, yes};
use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where the sheep of a group have their identities does not change while the group is there: they would come up as others. The cluster's name is part of
/// the default, and no rule can ask for it at a price that the API server allows.
const HOME_STAYS: &str = "self.nodeGroups.all(new, !oldSelf.nodeGroups.exists(old, old.name == new.name && !(\
    has(old.directories) && old.directories.size() > 0 \
    ? has(new.directories) && new.directories.size() > 0 && new.directories[0] == old.directories[0] \
    : has(old.devices) && old.devices.size() > 0 \
    ? (!has(new.directories) || new.directories.size() == 0) && has(new.devices) && new.devices.size() > 0 \
    : has(new.directories) && new.directories.size() > 0 \
    ? new.directories[0].startsWith(self.dataDir + '/') && new.directories[0].endsWith('/data') \
    : !has(new.devices) || new.devices.size() == 0)))";

/// A Sheepdog cluster: sheep on the chosen nodes, gateways on the others.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "sheepdog.io",
    version = "v1alpha1",
    kind = "SheepdogCluster",
    plural = "sheepdogclusters",
    shortname = "sdc",
    category = "sheepdog",
    namespaced,
    cel,
    status = "SheepdogClusterStatus",
    derive = "PartialEq",
    doc = "A Sheepdog cluster: sheep that store data on the chosen nodes, gateways on the others.",
    validation = Rule::new("self.metadata.name.size() <= 40").message(
        "the name of a SheepdogCluster has at most 40 characters: names of its DaemonSets are made from it"
    ),
    printcolumn(name = "Available", type_ = "string", json_path = ".status.conditions[?(@.type==\"Available\")].status"),
    printcolumn(name = "Sheep", type_ = "string", json_path = ".status.sheep"),
    printcolumn(name = "Gateways", type_ = "string", json_path = ".status.gateways", priority = "1"),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.usage"),
    printcolumn(name = "Recovery", type_ = "string", json_path = ".status.recovery"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Available\")].message", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.ports == oldSelf.ports").message(
        "ports cannot be changed: all sheep would have to change at once. Delete the SheepdogCluster (its data stays) and create it with the new ports"
    ),
    validation = Rule::new("self.zones == oldSelf.zones").message(
        "zones cannot be changed: every object would move. Drain node by node into a new cluster instead"
    ),
    validation = Rule::new("self.dataDir == oldSelf.dataDir").message(
        "dataDir cannot be changed: the sheep would start empty. Delete the SheepdogCluster (its data stays), move the directories on all nodes, and create it again"
    ),
    validation = Rule::new("self.downOutInterval == oldSelf.downOutInterval").message(
        "downOutInterval is decided when the cluster is formatted and cannot be changed"
    ),
    validation = Rule::new("self.strictZones == oldSelf.strictZones").message(
        "strictZones is decided when the cluster is formatted and cannot be changed"
    ),
    validation = Rule::new("has(self.tls) == has(oldSelf.tls) && (!has(self.tls) || self.tls == oldSelf.tls)").message(
        "tls cannot be changed: sheep with different secrets do not speak to each other. To change the secret, see \"Secrets\" in docs/operations.md"
    ),
    validation = Rule::new("!has(self.minCopies) || !has(self.redundancy.copies) || self.minCopies <= self.redundancy.copies").message(
        "minCopies must not be larger than redundancy.copies: no write could ever be acknowledged"
    ),
    validation = Rule::new("has(self.minCopies) == has(oldSelf.minCopies) && (!has(self.minCopies) || self.minCopies == oldSelf.minCopies)").message(
        "minCopies is decided when the cluster is formatted and cannot be changed"
    ),
    validation = Rule::new(HOME_STAYS).message(
        "the first directory of a node group holds the identities of its sheep and stays the first (CLUSTER/data under dataDir where a group named none; groups of devices only keep them under dataDir and take no directories): add disks behind it, or make another group and drain this one"
    )
)]
pub struct SheepdogClusterSpec {
    /// Image of the sheep, with `sheep` and `dog`. Default: the one the operator was installed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// When the image is pulled.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,
    /// Names of secrets for the registry, in this namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 253)))]
    pub image_pull_secrets: Vec<String>,
    /// Groups of nodes that store data. A node that matches several belongs to the first of them.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub node_groups: Vec<NodeGroup>,
    /// Sheep without data on all other nodes, so that pods there reach their volumes.
    #[serde(default)]
    pub gateways: Gateways,
    /// Redundancy of volumes that do not ask for something else.
    #[serde(default = "three")]
    pub redundancy: Redundancy,
    /// Copies that must have a write before it is acknowledged. Default: copies - 1, at least 1. Decided at format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub min_copies: Option<u8>,
    /// Refuse volumes whose copies cannot all lie in different zones. Decided at format.
    #[serde(default)]
    pub strict_zones: bool,
    /// Ports on the hosts' network.
    #[serde(default)]
    pub ports: Ports,
    /// What fails together.
    #[serde(default)]
    pub zones: Zones,
    /// Directory on every node for what belongs to this cluster; a directory with the cluster's name is made in it.
    #[serde(default = "data_dir")]
    #[schemars(length(min = 2, max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^/[A-Za-z0-9._/-]+$') && !self.contains('..')").message(
        "dataDir must be an absolute path without spaces, commas and '..', for example /var/lib/sheepdog"
    ))]
    pub data_dir: String,
    /// The cluster's secret. Default: made by the operator and kept in the secret NAME-secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// How long a sheep may be down before its data is rebuilt elsewhere. Decided at format.
    #[serde(default = "ten_minutes")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,8}(s|m|h|d)$')").message(
        "downOutInterval is a time: write for example 30s, 10m, 2h or 1d"
    ))]
    pub down_out_interval: String,
    /// Limits of moving data. Absent: as `dog node recovery throttle` and `dog cluster recover` have set them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// What happens to deleted volumes and snapshots. Absent: as `dog cluster trash` has set it, at first 24 hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trash: Option<Trash>,
    /// CPU and memory of each sheep that stores data; a group may say its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Memory of each sheep, gateways too, in which it keeps blocks of the volumes that are used through it, for example 1Gi. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 24))]
    #[x_kube(validation = Rule::new(
        "isQuantity(self) && quantity(self).compareTo(quantity('1Mi')) >= 0 && quantity(self).compareTo(quantity('64Ti')) <= 0"
    ).message("cache is a size from 1Mi to 64Ti: write for example 1Gi; leave it out for no cache"))]
    pub cache: Option<String>,
    /// Priority class of the pods. Default: `system-node-critical`, since pods on the node wait for their volumes without it.
    #[serde(default = "node_critical")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: String,
    /// System calls that sheep may use.
    #[serde(default)]
    pub seccomp: Seccomp,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter like `info,sheep::peer=debug`.
    #[serde(default = "info")]
    #[schemars(length(min = 1, max = 256))]
    pub log_level: String,
    /// How a new image or new options reach the sheep.
    #[serde(default)]
    pub update_strategy: UpdateStrategy,
    /// The StorageClass that is made for this cluster.
    #[serde(default)]
    pub storage_class: StorageClassOptions,
    /// The VolumeSnapshotClass that is made for this cluster where Kubernetes has snapshots.
    #[serde(default)]
    pub snapshot_class: SnapshotClassOptions,
    /// VolumeAttributesClasses that are made, by which redundancy and limits of a volume are changed through its claim (Kubernetes 1.34 or later).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub volume_attributes_classes: Vec<VolumeAttributesClassOptions>,
    /// Show every VDI of the cluster as a `Vdi` object, whoever made it.
    #[serde(default = "yes")]
    pub list_vdis: bool,
    /// What happens to the cluster's secret when this object is deleted. Directories on nodes are never touched.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// The operator only watches: nothing is created, changed, restarted or drained.
    #[serde(default)]
    pub paused: bool,
}

/// As in a pod.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImagePullPolicy {
    /// Always.
    Always,
    /// If it is not on the node.
    #[default]
    IfNotPresent,
    /// Never.
    Never,
}

impl ImagePullPolicy {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Nodes that store data, all in the same way.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeGroup {
    /// Name. The sheep of the group `default` belong to the DaemonSet CLUSTER-sheep, those of others to CLUSTER-sheep-NAME.
    #[serde(default = "default_group")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message(
        "the name of a node group consists of lower-case letters, digits and '-', for example nvme"
    ))]
    pub name: String,
    /// Labels that a node must have. Empty: every node that schedules ordinary pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that are borne.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Directories on the node, one per disk, each on a file system of its own (XFS or ext4). They must exist. Default: one, CLUSTER/data under dataDir.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 2, max = 256)))]
    #[x_kube(
        validation = Rule::new("self.all(d, d.matches('^/[A-Za-z0-9._/-]+$') && !d.contains('..'))").message(
            "a directory must be an absolute path without spaces, commas and '..', for example /mnt/disk1"
        ),
        validation = Rule::new("self.all(d, self.exists_one(e, e == d))").message(
            "a directory is named twice: every disk is a directory of its own"
        )
    )]
    pub directories: Vec<String>,
    /// Block devices on the node, one per disk, best by names that stay: /dev/disk/by-id/... or /dev/disk/by-path/... A blank one gets a file system; one that holds anything else is refused and left as it is. One that
    /// is not there is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 6, max = 256)))]
    #[x_kube(
        validation = Rule::new("self.all(d, d.matches('^/dev/[A-Za-z0-9._:+@/-]+$') && !d.contains('..'))").message(
            "a device must be a path below /dev without spaces, commas and '..', for example /dev/disk/by-id/nvme-SERIAL"
        ),
        validation = Rule::new("self.all(d, self.exists_one(e, e == d))").message(
            "a device is named twice: every disk is a device of its own"
        )
    )]
    pub devices: Vec<String>,
    /// File system that blank devices get.
    #[serde(default = "xfs")]
    pub device_fs_type: FsType,
    /// The journals of these sheep on a device of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<Journal>,
    /// A fixed number of virtual nodes for each of these sheep. Default: 128 per TiB of its disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536))]
    pub vnodes: Option<u32>,
    /// CPU and memory of these sheep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

/// Where journals lie.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Journal {
    /// Directory on the node. A disk cannot be opened without its journal: a journal device that is lost loses the disks whose journal was on it.
    #[schemars(length(min = 2, max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^/[A-Za-z0-9._/-]+$') && !self.contains('..')").message(
        "journal.directory must be an absolute path without spaces, commas and '..', for example /mnt/nvme/journal"
    ))]
    pub directory: String,
    /// Size of each disk's journal.
    #[serde(default = "journal_size")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,8}(Mi|Gi)$')").message(
        "journal.size is a size from 32Mi to 1024Gi: write for example 512Mi or 4Gi"
    ))]
    pub size: String,
}

/// Sheep without data.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Gateways {
    /// Run them.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Labels that a node must have. Empty: every node that stores no data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that are borne. Empty: all, since pods with volumes may run anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// CPU and memory of each gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

impl Default for Gateways {
    fn default() -> Self {
        Self { enabled: true, node_selector: BTreeMap::new(), tolerations: Vec::new(), resources: None }
    }
}

/// Ports on the hosts' network.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "self.client != self.peer && self.client != self.metrics && self.peer != self.metrics && (!has(self.nbd) || !(self.nbd in [self.client, self.peer, self.metrics]))"
).message("every port of a sheep must be a port of its own"),
validation = Rule::new("self.peer > self.client").message(
    "ports.peer must be larger than ports.client: sheep take it as an offset"
))]
pub struct Ports {
    /// Clients and administration.
    #[serde(default = "client_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub client: u16,
    /// Between sheep.
    #[serde(default = "peer_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub peer: u16,
    /// Metrics and health, plain HTTP.
    #[serde(default = "metrics_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub metrics: u16,
    /// NBD over TCP with TLS for clients outside of Kubernetes. Absent: only the unix socket on each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub nbd: Option<u16>,
}

impl Default for Ports {
    fn default() -> Self {
        Self { client: client_port(), peer: peer_port(), metrics: metrics_port(), nbd: None }
    }
}

/// What fails together.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Zones {
    /// Label of nodes whose value is the zone. A node without the label is a zone of its own.
    #[serde(default = "zone_label")]
    #[schemars(length(min = 1, max = 317))]
    pub node_label: String,
}

impl Default for Zones {
    fn default() -> Self {
        Self { node_label: zone_label() }
    }
}

/// Credentials.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Secret in this namespace; its key `secret` holds what `dog secret new` writes.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// Limits of moving data; they hold for the whole cluster, per node.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Recovery {
    /// Move and fill nothing, for maintenance.
    #[serde(default)]
    pub paused: bool,
    /// Bytes a second, per node, for example 100Mi. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 24))]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))").message(
        "recovery.maxBytesPerSecond is a quantity larger than 0: write for example 100Mi; leave it out for no limit"
    ))]
    pub max_bytes_per_second: Option<String>,
    /// Objects at a time, per node.
    #[serde(default = "four")]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: u32,
}

/// Where deleted volumes and snapshots wait.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Trash {
    /// How long what is deleted from now on can be brought back, for example 24h, at most 3650d; 0s: not at all.
    #[schemars(length(min = 2, max = 10))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,9}(s|m|h|d)$')").message(
        "trash.keep is a time: write for example 24h or 7d; 0s deletes at once"
    ))]
    pub keep: String,
}

/// System calls.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// The runtime's default profile and io_uring; the profile is put on the node by an init container.
    #[default]
    IoUring,
    /// The runtime's default profile, which most runtimes ship without io_uring: disk I/O then costs several times the CPU.
    RuntimeDefault,
    /// No profile.
    Unconfined,
}

/// How changes reach the sheep.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct UpdateStrategy {
    /// Who restarts the sheep.
    #[serde(default, rename = "type")]
    pub kind: UpdateKind,
}

/// Who restarts the sheep.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpdateKind {
    /// The operator, one at a time, the next one only when every volume has all its copies again.
    #[default]
    RollingUpdate,
    /// Nobody: delete the pods yourself. The condition Progressing names those that are out of date.
    Manual,
}

fn xfs() -> FsType {
    FsType::Xfs
}
fn three() -> Redundancy {
    Redundancy::copies(3)
}
fn data_dir() -> String {
    "/var/lib/sheepdog".into()
}
fn ten_minutes() -> String {
    "10m".into()
}
fn node_critical() -> String {
    "system-node-critical".into()
}
fn info() -> String {
    "info".into()
}
fn default_group() -> String {
    "default".into()
}
fn journal_size() -> String {
    "512Mi".into()
}
fn client_port() -> u16 {
    7000
}
fn peer_port() -> u16 {
    7001
}
fn metrics_port() -> u16 {
    9700
}
fn zone_label() -> String {
    "topology.kubernetes.io/zone".into()
}
fn four() -> u32 {
    4
}
