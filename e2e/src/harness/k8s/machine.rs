//! A node that is a machine: Debian with Debian's kernel under QEMU, for what needs modules that the kernel of test machines lacks (NBD, dm-crypt).
//!
//! Nothing of this machine's is emulated but a processor: it hangs on the same switch as the other nodes, by a tap device in the control plane's space,
//! in which QEMU runs, too, and with which both end. What it needs comes on a second disk, made for every run.

use super::Plan;
use super::config::{self, Layout};
use super::control::{ADDRESS, Control, node_address, node_pods, port};
use super::node::Node;
use super::pki::Pki;
use super::tools::Tools;
use crate::harness::debian::{Recipe, System};
use crate::harness::files::ext4;
use crate::harness::proc::{Proc, run};
use anyhow::{Context as _, Result, bail};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Debian's current kernel, with what a node has.
const NODE: Recipe = Recipe {
    name: "trixie-node-1",
    suite: "trixie",
    packages: &["e2fsprogs", "xfsprogs", "cryptsetup-bin", "udev", "kmod", "iproute2", "nftables", "runc"],
    init: include_str!("machine.sh"),
};
/// Where the second disk is mounted.
const LAB: &str = "/lab";
/// Where containerd has its images.
const CONTAINERD: &str = "var/lib/containerd";
/// Programs of a node.
const PROGRAMS: [&str; 9] = [
    "kubelet",
    "kube-proxy",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "bridge",
    "loopback",
    "host-local",
    "portmap",
];
const MEMORY: u32 = 2048;
/// With two, QEMU 7.2 now and then runs into what the other processor is just replacing in the kernel's code, and the kernel ends.
const PROCESSORS: u32 = 1;
/// Sizes of its disks, most of which are holes.
const ROOT_SIZE: u64 = 2 << 30;
const LAB_SIZE: u64 = 8 << 30;
/// Until it is Ready. Everything is slow under emulation.
pub const BOOT: Duration = Duration::from_secs(480);

/// See the module.
#[derive(Debug)]
pub struct Machine {
    /// As Kubernetes knows it.
    pub name: String,
    index: usize,
    dir: PathBuf,
    system: System,
    qemu: Option<Proc>,
}

impl Machine {
    /// Make its disks. It gets the containerd of a node that has all images and no pods yet: importing them would take minutes. `all` is the number of
    /// nodes, itself included.
    pub fn new(tools: &Tools, pki: &Pki, like: &Node, index: usize, all: usize, plan: &Plan) -> Result<Self> {
        let name = format!("node{index}");
        let me = Self { system: System::get(&NODE)?, dir: like.beside(&name)?, index, name, qemu: None };
        let lab = me.dir.join("lab");
        std::fs::create_dir_all(lab.join("bin"))?;
        for p in PROGRAMS {
            place(&tools.program(p), &lab.join("bin").join(p))?;
        }
        let (from, to) = (like.file(CONTAINERD), lab.join("containerd"));
        run("cp", &["--archive", "--link", &from, to.to_str().context("path")?])?;
        me.configure(pki, &lab, all, plan)?;
        ext4(&lab, &me.file("lab.img"), LAB_SIZE)?;
        std::fs::remove_dir_all(&lab)?;
        me.system.image(&me.file("root.img"), ROOT_SIZE)?;
        Ok(me)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn configure(&self, pki: &Pki, lab: &Path, all: usize, plan: &Plan) -> Result<()> {
        let server = format!("https://{ADDRESS}:6443");
        let user = format!("system:node:{}", self.name);
        let proxy = format!("{}-proxy", self.name);
        pki.kubeconfig(&self.name, &user, "system:nodes", &server)?;
        pki.kubeconfig(&proxy, "system:kube-proxy", "", &server)?;
        place(Path::new(&pki.path("ca.crt")), &lab.join("ca.crt"))?;
        for user in [&self.name, &proxy] {
            for kind in ["crt", "key"] {
                let file = format!("{user}.{kind}");
                place(Path::new(&pki.path(&file)), &lab.join(&file))?;
            }
            let file = format!("{user}.kubeconfig");
            let text = std::fs::read_to_string(pki.path(&file))?.replace(&pki.path(""), &format!("{LAB}/"));
            std::fs::write(lab.join(file), text)?;
        }
        let (address, kubeconfig) = (node_address(self.index), format!("{LAB}/{}.kubeconfig", self.name));
        let layout = Layout {
            name: &self.name,
            index: self.index,
            dir: LAB,
            ca: &format!("{LAB}/ca.crt"),
            proxy: &format!("{LAB}/{proxy}.kubeconfig"),
            bin: &format!("{LAB}/bin"),
            runc: "/usr/sbin/runc",
            cgroup: "/",
        };
        config::write(lab, &layout, plan)?;
        let options = config::kubelet_options(&layout, &kubeconfig, &address);
        std::fs::write(lab.join("kubelet.options"), options.join("\n"))?;
        let mut network = format!(
            "echo {} >/proc/sys/kernel/hostname; ip link set lo up; ip addr add {address}/24 dev eth0; ip link set eth0 up
ip route add default via {ADDRESS}; echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables\n",
            self.name
        );
        for i in (0..all).filter(|i| *i != self.index) {
            writeln!(network, "ip route add {} via {}", node_pods(i), node_address(i))?;
        }
        Ok(std::fs::write(lab.join("network"), network)?)
    }

    /// Switch it on.
    pub fn boot(&mut self, control: &Control) -> Result<()> {
        let port = port(self.index);
        control.space.net(&format!(
            "ip tuntap add {port} mode tap; ip link set {port} master switch; ip link set {port} up"
        ))?;
        let disk =
            |name: &str| format!("file={},format=raw,if=virtio,cache=unsafe", self.file(name).display());
        let mut cmd = Command::new("qemu-system-x86_64");
        cmd.args(self.system.machine(&self.name, MEMORY, PROCESSORS))
            .args(["-drive", &disk("root.img"), "-drive", &disk("lab.img")])
            .args(["-netdev", &format!("tap,id=n,ifname={port},script=no,downscript=no")])
            .args(["-device", &format!("virtio-net-pci,netdev=n,mac=52:54:00:7b:00:{:02x}", 10 + self.index)])
            .args(["-device", "virtio-rng-pci"])
            .args(["-serial", &format!("file:{}", self.file("serial").display())]);
        self.qemu = Some(control.space.start(&self.name, cmd, &self.file("qemu.log"))?);
        Ok(())
    }

    /// The end of what it said on its serial line.
    pub fn said(&self) -> String {
        let all = std::fs::read(self.file("serial")).unwrap_or_default();
        let text = String::from_utf8_lossy(&all);
        let lines: Vec<&str> = text.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }

    /// It runs, if it was switched on.
    pub fn alive(&mut self) -> Result<()> {
        if let Some(q) = &mut self.qemu
            && !q.running()?
        {
            let log = std::fs::read_to_string(self.file("qemu.log")).unwrap_or_default();
            bail!("QEMU of {} has ended: {log}; the machine said: {}", self.name, self.said());
        }
        Ok(())
    }

    /// Power cut.
    pub fn cut_power(&mut self) -> Result<()> {
        self.qemu.take().map_or(Ok(()), Proc::kill)
    }
}

/// The same file at another place: one more name for it where that can be had.
fn place(from: &Path, to: &Path) -> Result<()> {
    if std::fs::hard_link(from, to).is_err() {
        std::fs::copy(from, to).with_context(|| format!("{}", from.display()))?;
    }
    Ok(())
}
