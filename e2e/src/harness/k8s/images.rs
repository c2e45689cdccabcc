//! Which images there are.

use super::config::PAUSE;
use super::image::{Image, find};
use super::tools::{Tools, version};
use crate::harness::proc::run;
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};

/// A small system for test pods: sh, the usual commands of busybox, fio.
pub const BOX: &str = "sheepdog.test/box:1";

/// Programs that the CSI driver calls.
const FOR_CSI: [&str; 10] = [
    "blkid",
    "cryptsetup",
    "dumpe2fs",
    "e2fsck",
    "mkfs.ext4",
    "mkfs.xfs",
    "mount",
    "resize2fs",
    "umount",
    "xfs_growfs",
];

/// Where the archives of a scenario's images are.
#[derive(Debug)]
pub struct Store {
    fixed: PathBuf,
    own: PathBuf,
}

impl Store {
    /// Those that come with the tools are made once, those of our programs for every run.
    pub fn new(tools: &Tools, dir: &Path) -> Result<Self> {
        let me = Self { fixed: tools.bin.join("images"), own: dir.join("images") };
        std::fs::create_dir_all(&me.fixed)?;
        std::fs::create_dir_all(&me.own)?;
        Ok(me)
    }

    /// What every node needs.
    pub fn base(&self, tools: &Tools) -> Result<Vec<PathBuf>> {
        let pause = tools.program("pause");
        let pause = Image::new(PAUSE).program(text(&pause)?, Some("/pause"))?.entrypoint(&["/pause"]);
        Ok(vec![pause.archive(&self.fixed)?, test_box(tools)?.archive(&self.fixed)?])
    }

    /// CSI sidecars, the snapshot controller and a client of theirs. Those of upstream's modules go by the names of upstream's images, our own by others.
    pub fn sidecars(&self, tools: &Tools) -> Result<Vec<PathBuf>> {
        SIDECARS
            .iter()
            .map(|(name, module)| {
                let image = match module {
                    Some(m) => format!("registry.k8s.io/sig-storage/{name}:{}", version(m)?),
                    None => format!("sheepdog.test/{name}:1"),
                };
                let (program, place) = (tools.program(name), format!("/{name}"));
                Image::new(&image)
                    .program(text(&program)?, Some(&place))?
                    .entrypoint(&[&place])
                    .archive(&self.fixed)
            })
            .collect()
    }

    /// Our own images, of the programs that are there: `sheepdog/sheep`, `sheepdog/operator`, `sheepdog/csi`.
    pub fn own(&self, tools: &Tools, bin: &Path) -> Result<Vec<PathBuf>> {
        let tag = env!("CARGO_PKG_VERSION");
        let mut made = Vec::new();
        for (name, programs) in [
            ("sheep", ["sheep", "dog"].as_slice()),
            ("operator", &["sheepdog-operator"]),
            ("csi", &["sheepdog-csi"]),
        ] {
            if !programs.iter().all(|p| bin.join(p).exists()) {
                continue;
            }
            let mut image = Image::new(&format!("docker.io/sheepdog/{name}:{tag}"));
            for p in programs {
                image = image.program(text(&bin.join(p))?, Some(&format!("/usr/bin/{p}")))?;
            }
            if name == "csi" {
                for p in FOR_CSI {
                    image = image.program(text(&find(p)?)?, None)?;
                }
                // The chart's test is a script in this image.
                let busybox = tools.busybox();
                image = image.program(text(&busybox)?, Some("/usr/bin/busybox"))?;
                for p in ["sh", "dd", "df", "echo", "sha256sum", "sync"] {
                    image = image.link(&format!("/usr/bin/{p}"), "busybox");
                }
            }
            made.push(image.entrypoint(&[&format!("/usr/bin/{}", programs[0])]).archive(&self.own)?);
        }
        Ok(made)
    }
}

/// Our own images as their container files make them: archives of the names that the chart expects.
pub fn built(dir: &Path) -> Result<Vec<PathBuf>> {
    ["sheep", "operator", "csi"]
        .map(|name| {
            let path = dir.join(format!("{name}.tar"));
            ensure!(path.is_file(), "no {}: scripts/images.sh --save makes it", path.display());
            Ok(path)
        })
        .into_iter()
        .collect()
}

/// And the module of upstream.
const SIDECARS: &[(&str, Option<&str>)] = &[
    ("csi-provisioner", Some("github.com/kubernetes-csi/external-provisioner/v6")),
    ("csi-attacher", Some("github.com/kubernetes-csi/external-attacher/v4")),
    ("csi-resizer", Some("github.com/kubernetes-csi/external-resizer/v2")),
    ("csi-snapshotter", Some("github.com/kubernetes-csi/external-snapshotter/v8")),
    ("csi-snapshot-metadata", Some("github.com/kubernetes-csi/external-snapshot-metadata")),
    ("snapshot-metadata-verifier", None),
    ("snapshot-controller", Some("github.com/kubernetes-csi/external-snapshotter/v8")),
    ("csi-node-driver-registrar", None),
    ("livenessprobe", None),
];

fn test_box(tools: &Tools) -> Result<Image> {
    let busybox = tools.busybox();
    let busybox = text(&busybox)?;
    let mut image = Image::new(BOX).program(busybox, Some("/usr/bin/busybox"))?;
    for applet in run(busybox, &["--list"])?.lines().filter(|a| *a != "busybox") {
        image = image.link(&format!("/usr/bin/{applet}"), "busybox");
    }
    Ok(image.program("fio", None)?.program("mkfs.ext4", None)?.entrypoint(&["/bin/sh"]))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("path")
}
