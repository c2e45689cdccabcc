//! Where the disks of a group are on its nodes. The order is the one in which sheep are told of them, and it is the same for every node.

use super::Input;
use crate::names::Names;
use serde_json::{Value, json};
use sheepdog_crds::SheepdogCluster;
use sheepdog_crds::cluster::NodeGroup;
use xxhash_rust::xxh3::xxh3_64;

/// Name of the init container that mounts devices.
pub const INIT: &str = "disks";

/// Directory of the mount points of devices.
pub(super) fn mounts(c: &SheepdogCluster, names: &Names) -> String {
    format!("{}/disks", names.host_dir(c))
}

/// Where a device is mounted: it can be told from the name, and no two devices have the same.
fn mount_point(c: &SheepdogCluster, names: &Names, device: &str) -> String {
    let last = device.rsplit('/').next().unwrap_or_default();
    // Sheep are told of directories in a list with commas; anything but these is odd in a path.
    let plain: String = last
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
        .take(64)
        .collect();
    format!("{}/{plain}-{:08x}", mounts(c, names), xxh3_64(device.as_bytes()) >> 32)
}

/// Directory for the identities of the sheep, where it is none of their disks: that of the devices could be taken away.
pub(super) fn home(c: &SheepdogCluster, names: &Names, group: &NodeGroup) -> Option<String> {
    let apart = group.directories.is_empty() && !group.devices.is_empty();
    apart.then(|| format!("{}/home", names.host_dir(c)))
}

/// Directories on the host, with the kind that the kubelet expects there.
pub(super) fn directories(
    c: &SheepdogCluster,
    names: &Names,
    group: &NodeGroup,
) -> Vec<(String, &'static str)> {
    if group.directories.is_empty() && group.devices.is_empty() {
        return vec![(format!("{}/data", names.host_dir(c)), "DirectoryOrCreate")];
    }
    // Never created: a file system that is not mounted would be taken for an empty disk.
    group.directories.iter().map(|d| (d.clone(), "Directory")).collect()
}

/// Every disk, as the sheep of the group know it.
pub fn paths(c: &SheepdogCluster, names: &Names, group: &NodeGroup) -> Vec<String> {
    let directories = directories(c, names, group).into_iter().map(|(d, _)| d);
    directories.chain(group.devices.iter().map(|d| mount_point(c, names, d))).collect()
}

/// For people: a device by its name, a directory as it is.
pub fn told(c: &SheepdogCluster, names: &Names, path: &str) -> String {
    let devices = c.spec.node_groups.iter().flat_map(|g| &g.devices);
    devices.into_iter().find(|d| mount_point(c, names, d) == path).cloned().unwrap_or_else(|| path.to_owned())
}

/// The container that mounts devices before the sheep starts, with the volumes that it alone needs. What it mounts stays mounted on the host when it has ended.
pub(super) fn init(i: &Input<'_>, group: &NodeGroup) -> Option<(Value, Value)> {
    let image = i.installed.csi_image.as_ref().filter(|_| !group.devices.is_empty())?;
    let (c, dir) = (i.cluster, mounts(i.cluster, i.names));
    let mut args = vec![
        "disks".to_owned(),
        format!("--cluster={}/{}", i.names.namespace, i.names.cluster),
        format!("--fs-type={}", group.device_fs_type.as_str()),
        format!("--dir={dir}"),
        "--report=/termination-log".into(),
    ];
    args.extend(group.directories.is_empty().then(|| "--need-one".to_owned()));
    args.extend(group.devices.iter().map(|d| format!("--disk={d}={}", mount_point(c, i.names, d))));
    let container = json!({
        "name": INIT,
        "image": image,
        "imagePullPolicy": c.spec.image_pull_policy.as_str(),
        "command": ["sheepdog-csi"],
        "args": args,
        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "resources": {"requests": {"cpu": "5m", "memory": "16Mi"}, "limits": {"memory": "512Mi"}},
        // Nothing else may mount, and let the host see it.
        "securityContext": {"privileged": true, "runAsUser": 0},
        "volumeMounts": [
            {"name": "disks", "mountPath": dir, "mountPropagation": "Bidirectional"},
            {"name": "dev", "mountPath": "/dev"},
        ],
        // Not below /dev, which is the host's.
        "terminationMessagePath": "/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    Some((container, json!({"name": "dev", "hostPath": {"path": "/dev", "type": "Directory"}})))
}
