//! Debian systems for QEMU: made by debootstrap once, kept in the user's cache directory, booted into a script of ours.

use super::proc::run;
use anyhow::{Context as _, Result, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// How a system is made.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    /// Name in the cache: a new recipe gets a new one.
    pub name: &'static str,
    /// Release of Debian.
    pub suite: &'static str,
    /// What it has beside the smallest system and a kernel.
    pub packages: &'static [&'static str],
    /// Its first process, for a shell.
    pub init: &'static str,
}

/// Kernel, initial RAM disk, and the system as a folder.
#[derive(Debug)]
pub struct System {
    kernel: PathBuf,
    initrd: PathBuf,
    root: PathBuf,
    init: &'static str,
}

impl System {
    /// From the cache, or by debootstrap.
    pub fn get(recipe: &Recipe) -> Result<Self> {
        let base = super::cache()?;
        let root = base.join(recipe.name);
        if !root.exists() {
            std::fs::create_dir_all(&base)?;
            build(recipe, &base.join(format!("{}.new", recipe.name)), &root)?;
        }
        let boot = root.join("boot");
        let find = |prefix: &str| -> Result<PathBuf> {
            for entry in std::fs::read_dir(&boot)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(prefix) {
                    return Ok(entry.path());
                }
            }
            bail!("no {prefix}* in {}: remove {}", boot.display(), root.display())
        };
        Ok(Self { kernel: find("vmlinuz-")?, initrd: find("initrd.img-")?, root, init: recipe.init })
    }

    /// An ext4 image of it that boots into the script.
    pub fn image(&self, path: &Path, bytes: u64) -> Result<()> {
        let init = self.root.join("sbin/e2e-init");
        std::fs::write(&init, self.init)?;
        run("chmod", &["755", init.to_str().context("path")?])?;
        super::files::ext4(&self.root, path, bytes)
    }

    /// Options of QEMU for an emulated machine that boots it from its first virtio disk, with so many MiB of memory and processors.
    pub fn machine(&self, name: &str, memory: u32, processors: u32) -> Vec<OsString> {
        let (memory, processors) = (format!("{memory}M"), processors.to_string());
        let plain = [
            ["-name", name],
            ["-accel", "tcg,thread=multi"],
            ["-machine", "q35"],
            // QEMU 7.2 emulates the instruction of 16 bytes wrongly, and kernels from 6.3 on use it.
            ["-cpu", "max,cx16=off"],
            ["-smp", &processors],
            ["-m", &memory],
            ["-display", "none"],
            [
                "-append",
                "console=ttyS0 root=/dev/vda rw init=/sbin/e2e-init quiet panic=-1 loglevel=4 net.ifnames=0",
            ],
        ];
        let mut all: Vec<OsString> = plain.iter().flatten().map(OsString::from).collect();
        all.extend(["-nodefaults", "-no-user-config", "-no-reboot", "-kernel"].map(OsString::from));
        all.extend([self.kernel.clone().into(), "-initrd".into(), self.initrd.clone().into()]);
        all
    }
}

fn build(recipe: &Recipe, new: &Path, root: &Path) -> Result<()> {
    // debootstrap gives up on what an interrupted run left.
    if new.exists() {
        std::fs::remove_dir_all(new)?;
    }
    let dir = new.to_str().context("path")?;
    let all = ["linux-image-cloud-amd64", "initramfs-tools"].iter().chain(recipe.packages).copied();
    let packages = format!("--include={}", all.collect::<Vec<_>>().join(","));
    let from = "http://deb.debian.org/debian";
    run("debootstrap", &["--variant=minbase", &packages, recipe.suite, dir, from])?;
    // A small initial RAM disk: only what finds the disk.
    let tools = new.join("etc/initramfs-tools");
    std::fs::write(tools.join("modules"), "virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n")?;
    let conf = std::fs::read_to_string(tools.join("initramfs.conf"))?.replace("MODULES=most", "MODULES=list");
    std::fs::write(tools.join("initramfs.conf"), conf)?;
    run("chroot", &[dir, "update-initramfs", "-u", "-k", "all"])?;
    run("sh", &["-c", "rm -f \"$1\"/var/cache/apt/archives/*.deb", "sh", dir])?;
    std::fs::rename(new, root)?;
    Ok(())
}
