//! What scenarios are made of.

pub mod cluster;
pub mod csi;
pub mod debian;
pub mod files;
pub mod fio;
pub mod k8s;
pub mod measure;
pub mod nbd;
pub mod net;
pub mod proc;
pub mod qemu;
pub mod registers;
pub mod terminal;
pub mod wait;

use anyhow::{Context as _, Result, ensure};
use std::path::PathBuf;
use std::time::Duration;

/// What takes long to make is kept here, outside the tree.
pub fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(d) => PathBuf::from(d),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME")?).join(".cache"),
    };
    Ok(base.join("sheepdog-e2e"))
}

/// One scenario's surroundings: a directory, the binaries, how long to run, and where to say what was found.
#[derive(Debug)]
pub struct Lab {
    /// Everything of this scenario. Empty at the start, left behind when it fails.
    pub dir: PathBuf,
    /// Where sheep and dog are.
    pub bin: PathBuf,
    /// Archives of container images, instead of images made of the programs.
    pub images: Option<PathBuf>,
    /// Shorter and smaller.
    pub quick: bool,
}

impl Lab {
    /// An empty directory.
    pub fn new(dir: PathBuf, bin: PathBuf, images: Option<PathBuf>, quick: bool) -> Result<Self> {
        let lab = Self { dir, bin, images, quick };
        lab.remove()?;
        std::fs::create_dir_all(&lab.dir).with_context(|| format!("{}", lab.dir.display()))?;
        Ok(lab)
    }
    /// The same for a part of this one.
    pub fn part(&self, name: &str) -> Result<Self> {
        Self::new(self.dir.join(name), self.bin.clone(), self.images.clone(), self.quick)
    }
    /// Take the directory away.
    pub fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("{}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }
    /// Something that was shown to hold.
    pub fn proved(&self, what: impl AsRef<str>) {
        println!("   proved    {}", what.as_ref());
    }
    /// A number.
    pub fn measured(&self, what: &str, value: impl std::fmt::Display) {
        println!("   measured  {what}: {value}");
    }
    /// A time that a full run must keep to. A short one only tells it: it runs beside other tests, on whatever machine there is.
    pub fn within(&self, what: &str, took: Duration, bound: Duration) -> Result<()> {
        ensure!(
            self.quick || took < bound,
            "{what}: {} ms, and {} ms are allowed",
            took.as_millis(),
            bound.as_millis()
        );
        Ok(())
    }
    /// What is being done.
    pub fn step(&self, what: impl AsRef<str>) {
        println!("   ...       {}", what.as_ref());
    }
    /// One value, or a smaller one for short runs.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}
