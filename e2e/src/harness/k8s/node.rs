//! A node: containerd, kubelet and kube-proxy in a space of their own, with a disk of its own.

use super::config::{self, Layout};
use super::control::{ADDRESS, Control, node_address, node_pods, port};
use super::pki::Pki;
use super::space::Space;
use super::tools::Tools;
use super::{Plan, cgroups};
use crate::harness::proc::Proc;
use crate::harness::wait::{PATIENCE, until};
use anyhow::{Context as _, Result, bail};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Directories that are the node's own, whatever this machine has there: manifests with the usual paths work as they are.
pub const OWN: [&str; 7] = [
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/cni",
    "/var/lib/sheepdog",
    "/var/lib/sheepdog-csi",
    "/var/log/pods",
    "/var/log/containers",
];
/// Where the CSI driver has its volumes' files.
const VOLUMES: &str = "/run/sheepdog-csi/";
/// Loop devices and their files.
pub const LOOPS: [&str; 4] = ["--list", "--noheadings", "--output", "NAME,BACK-FILE"];

/// One node. Its directory is its disk: what is in it outlives a power cut.
#[derive(Debug)]
pub struct Node {
    /// As Kubernetes knows it.
    pub name: String,
    index: usize,
    dir: PathBuf,
    kubeconfigs: [String; 2],
    ca: String,
    tools: [PathBuf; 2],
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    // In this order they end.
    kubelet: Option<Proc>,
    proxy: Proc,
    containerd: Proc,
    space: Space,
    /// Where this start's part of containerd's log begins.
    log_from: usize,
}

impl Node {
    /// Files of a new node.
    pub fn new(tools: &Tools, pki: &Pki, dir: &Path, index: usize, plan: &Plan) -> Result<Self> {
        let name = format!("node{index}");
        let dir = dir.join(&name);
        for own in OWN {
            std::fs::create_dir_all(dir.join(own.trim_start_matches('/')))?;
        }
        let server = format!("https://{ADDRESS}:6443");
        let user = format!("system:node:{name}");
        let kubelet = pki.kubeconfig(&name, &user, "system:nodes", &server)?;
        let proxy = pki.kubeconfig(&format!("{name}-proxy"), "system:kube-proxy", "", &server)?;
        let node = Self {
            name,
            index,
            dir,
            kubeconfigs: [kubelet, proxy],
            ca: pki.path("ca.crt"),
            tools: [tools.bin.clone(), tools.runc()],
            running: None,
        };
        node.layout(|l| config::write(&node.dir, l, plan))?;
        Ok(node)
    }

    /// A path on its disk, or of its other files.
    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// The directory of a node of another name.
    pub fn beside(&self, name: &str) -> Result<PathBuf> {
        Ok(self.dir.parent().context("parent")?.join(name))
    }

    fn layout<T>(&self, f: impl FnOnce(&Layout<'_>) -> Result<T>) -> Result<T> {
        let text = |p: &Path| p.to_str().map(str::to_owned).context("path");
        f(&Layout {
            name: &self.name,
            index: self.index,
            dir: &text(&self.dir)?,
            ca: &self.ca,
            proxy: &self.kubeconfigs[1],
            bin: &text(&self.tools[0])?,
            runc: &text(&self.tools[1])?,
            cgroup: &cgroups::path(&self.name),
        })
    }

    /// Switch it on: network, containerd and kube-proxy. `others` are the nodes whose pods it must find.
    pub fn boot(&mut self, control: &Control, others: usize) -> Result<()> {
        cgroups::make(&self.name)?;
        let mut mounts = String::from("mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/lock;");
        for own in OWN {
            let _ = write!(mounts, "mount --bind '{}' {own};", self.file(own.trim_start_matches('/')));
        }
        // Pods see what is mounted below their directories later, and the node what a driver's pod mounts.
        mounts += "mount --make-rshared /";
        let space = Space::new(&self.name, &mounts, &self.dir)?;
        let port = port(self.index);
        control.space.net(&format!(
            "ip link add {port} type veth peer name eth0 netns {}; ip link set {port} master switch; ip link set {port} up",
            space.pid()
        ))?;
        let mut network = format!(
            "ip link set lo up; ip addr add {}/24 dev eth0; ip link set eth0 up; ip route add default via {ADDRESS};",
            node_address(self.index)
        );
        for i in (0..others).filter(|i| *i != self.index) {
            let _ = write!(network, "ip route add {} via {};", node_pods(i), node_address(i));
        }
        space.net(&network)?;
        space.run(Path::new("/bin/sh"), &["-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])?;
        let log_from = self.log("containerd").len();
        let containerd = self.daemon(&space, "containerd", &["--config", &self.file("containerd.toml")])?;
        let proxy = self.daemon(&space, "kube-proxy", &["--config", &self.file("proxy.json")])?;
        self.running = Some(Running { kubelet: None, proxy, containerd, space, log_from });
        Ok(())
    }

    fn daemon(&self, space: &Space, name: &str, options: &[&str]) -> Result<Proc> {
        let mut cmd = Command::new(self.tools[0].join(name));
        // The shim and the CNI plugins are found beside containerd.
        let path = std::env::var("PATH").unwrap_or_default();
        cmd.args(options).env("PATH", format!("{}:{path}:/usr/sbin:/sbin", self.tools[0].display()));
        space.start(name, cmd, &self.dir.join(format!("{name}.log")))
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(format!("{name}.log"))).unwrap_or_default()
    }

    fn running(&self) -> Result<&Running> {
        self.running.as_ref().with_context(|| format!("{} is off", self.name))
    }

    /// Its first process's id, as seen from outside.
    pub fn space(&self) -> Result<&Space> {
        Ok(&self.running()?.space)
    }

    /// Put the images of an archive in its store.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let ctr = self.tools[0].join("ctr");
        let space = self.space()?;
        until(&format!("containerd of {}", self.name), PATIENCE, || space.run(&ctr, &["version"]).map(Some))?;
        let path = archive.to_str().context("path")?;
        // Once unpacked a layer is not needed any more: half the space.
        let import =
            ["--namespace", "k8s.io", "images", "import", "--local", "--discard-unpacked-layers", path];
        space.run(&ctr, &import)?;
        Ok(())
    }

    /// Give one of its images another name as well.
    pub fn tag(&self, image: &str, name: &str) -> Result<()> {
        let args = ["--namespace", "k8s.io", "images", "tag", "--force", image, name];
        self.space()?.run(&self.tools[0].join("ctr"), &args).map(drop)
    }

    /// Start the kubelet (again).
    pub fn start_kubelet(&mut self) -> Result<()> {
        let address = node_address(self.index);
        let options = self.layout(|l| Ok(config::kubelet_options(l, &self.kubeconfigs[0], &address)))?;
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        // A kubelet ends when it comes too early, and here nobody starts it again.
        let from = self.running()?.log_from;
        until(&format!("containerd of {} has started", self.name), PATIENCE, || {
            let log = self.log("containerd");
            Ok(log.get(from..).is_some_and(|l| l.contains("containerd successfully booted")).then_some(()))
        })?;
        let kubelet = self.daemon(&self.running()?.space, "kubelet", &options)?;
        if let Some(r) = &mut self.running {
            r.kubelet = Some(kubelet);
        }
        Ok(())
    }

    /// Kill the kubelet alone: its containers go on.
    pub fn kill_kubelet(&mut self) -> Result<()> {
        let r = self.running.as_mut().with_context(|| format!("{} is off", self.name))?;
        r.kubelet.take().with_context(|| format!("{} runs no kubelet", self.name))?.kill()
    }

    /// Its cable is pulled, or put back.
    pub fn cable(&self, control: &Control, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        control.space.net(&format!("ip link set {} {state}", port(self.index))).map(drop)
    }

    /// Power cut: everything on it is killed at once. The disk stays.
    pub fn cut_power(&mut self) -> Result<()> {
        let Some(r) = self.running.take() else { return Ok(()) };
        // Of a machine nothing would be left; here the kernel is shared. Seen from the node its own volumes have a path, others have none.
        let loops =
            loops(&r.space.run(Path::new("/sbin/losetup"), &LOOPS)?, |file| file.starts_with(VOLUMES));
        let started = r.kubelet.into_iter().chain([r.proxy, r.containerd]).collect();
        r.space.kill(started)?;
        free(&loops)
    }

    /// Nothing of ours has died.
    pub fn alive(&mut self) -> Result<()> {
        let Some(r) = &mut self.running else { return Ok(()) };
        let own = [
            ("kube-proxy", Some(&mut r.proxy)),
            ("containerd", Some(&mut r.containerd)),
            ("kubelet", r.kubelet.as_mut()),
        ];
        for (name, p) in own {
            if let Some(p) = p
                && !p.running()?
            {
                let log = self.dir.join(format!("{name}.log"));
                bail!("{name} of {} has ended: see {}", self.name, log.display());
            }
        }
        Ok(())
    }
}

/// Devices whose files are meant, of what `losetup` said.
pub fn loops(said: &str, meant: impl Fn(&str) -> bool) -> Vec<String> {
    let devices = said.lines().filter_map(|l| l.trim().split_once(char::is_whitespace));
    devices.filter(|(_, file)| meant(file.trim())).map(|(device, _)| device.to_owned()).collect()
}

/// Detach them: at once, or when the last one who has them open lets go. One that has gone by itself is as good.
pub fn free(devices: &[String]) -> Result<()> {
    use crate::harness::proc::run;
    for device in devices {
        if let Err(e) = run("losetup", &["--detach", device])
            && loops(&run("losetup", &LOOPS)?, |_| true).contains(device)
        {
            return Err(e);
        }
    }
    Ok(())
}
