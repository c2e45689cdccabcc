//! Configuration of the programs that every node runs, whatever it is made of.

use super::Plan;
use super::control::{ADDRESS, PODS, node_pods};
use anyhow::{Context as _, Result};
use serde_json::json;
use std::path::Path;

/// Where containerd answers.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
/// What the pause image is called.
pub const PAUSE: &str = "sheepdog.test/pause:1";

/// Where things are, as the node sees them.
#[derive(Debug)]
pub struct Layout<'a> {
    /// Name and number of the node.
    pub name: &'a str,
    /// Its number.
    pub index: usize,
    /// The configuration itself.
    pub dir: &'a str,
    /// The cluster's certificate.
    pub ca: &'a str,
    /// How kube-proxy finds the API server.
    pub proxy: &'a str,
    /// Programs that were built.
    pub bin: &'a str,
    /// runc.
    pub runc: &'a str,
    /// Control group under which it has its own.
    pub cgroup: &'a str,
}

/// Write `cni/10-lab.conflist`, `kubelet.json`, `proxy.json` and `containerd.toml` to a directory.
pub fn write(to: &Path, l: &Layout<'_>, plan: &Plan) -> Result<()> {
    std::fs::create_dir_all(to.join("cni"))?;
    let write = |name: &str, value: &serde_json::Value| {
        std::fs::write(to.join(name), serde_json::to_string_pretty(value)?).context(name.to_owned())
    };
    write(
        "cni/10-lab.conflist",
        &json!({"cniVersion": "1.0.0", "name": "lab", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": node_pods(l.index)}]],
                      "dataDir": "/run/cni"}},
            {"type": "portmap", "capabilities": {"portMappings": true}}]}),
    )?;
    write(
        "kubelet.json",
        &json!({"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true},
                               "x509": {"clientCAFile": l.ca}},
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
            "clusterDNS": [ADDRESS], "clusterDomain": "cluster.local", "resolvConf": "",
            "cgroupDriver": "cgroupfs", "cgroupRoot": l.cgroup, "failCgroupV1": false,
            "enforceNodeAllocatable": [], "failSwapOn": false,
            // Without CAP_SYS_RESOURCE nothing may lower it.
            "oomScoreAdj": 0,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%",
                             "nodefs.inodesFree": "1%", "imagefs.inodesFree": "1%"},
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
            "nodeLeaseDurationSeconds": plan.lease.as_secs(),
            "nodeStatusUpdateFrequency": "2s", "nodeStatusReportFrequency": "1m",
            "registerNode": true, "maxPods": 110}),
    )?;
    write(
        "proxy.json",
        &json!({"kind": "KubeProxyConfiguration", "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "mode": "nftables", "clusterCIDR": PODS, "hostnameOverride": l.name,
            "clientConnection": {"kubeconfig": l.proxy},
            // Those of the whole machine stay as they are.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}}),
    )?;
    let containerd = format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
  address = "{SOCKET}"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE}"

[plugins."io.containerd.cri.v1.runtime"]
  # As for the kubelet: without CAP_SYS_RESOURCE runc could not lower it, and the pod would not start.
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["{bin}"]
  conf_dir = "{dir}/cni"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "{runc}"
  SystemdCgroup = false
"#,
        bin = l.bin,
        dir = l.dir,
        runc = l.runc,
    );
    std::fs::write(to.join("containerd.toml"), containerd)?;
    Ok(())
}

/// Options of a kubelet whose configuration is in that directory.
pub fn kubelet_options(l: &Layout<'_>, kubeconfig: &str, address: &str) -> Vec<String> {
    vec![
        format!("--config={}/kubelet.json", l.dir),
        format!("--kubeconfig={kubeconfig}"),
        format!("--hostname-override={}", l.name),
        format!("--node-ip={address}"),
        format!("--node-labels=topology.kubernetes.io/zone=zone{}", l.index),
    ]
}
