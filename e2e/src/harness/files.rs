//! File systems full of files whose contents are known.

use super::proc::run;
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// Random bytes that are the same for the same seed.
#[derive(Debug)]
pub struct Noise(u64);

impl Noise {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// Fill a buffer.
    pub fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let bytes = self.number().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// Name of each file and its SHA-256.
pub type Sums = BTreeMap<String, String>;

/// A folder with so many bytes in files of many sizes, some of the system's own among them.
pub fn folder(path: &Path, bytes: u64) -> Result<Sums> {
    let mut noise = Noise::new(bytes);
    let mut left = bytes;
    let mut n = 0;
    while left > 0 {
        // 1 byte to 32 MiB, small ones most often.
        let size = (1 << (noise.number() % 26)).min(left) | (noise.number() % 4096).min(left);
        let sub = path.join(format!("d{}", n % 17));
        std::fs::create_dir_all(&sub)?;
        let mut out = BufWriter::new(File::create(sub.join(format!("f{n}")))?);
        let mut buf = vec![0; 64 << 10];
        let mut rest = size;
        while rest > 0 {
            let len = rest.min(buf.len() as u64) as usize;
            noise.fill(&mut buf[..len]);
            out.write_all(&buf[..len])?;
            rest -= len as u64;
        }
        out.flush()?;
        left = left.saturating_sub(size);
        n += 1;
    }
    sums(path)
}

/// SHA-256 of every file below.
pub fn sums(path: &Path) -> Result<Sums> {
    let dir = path.to_str().context("path")?;
    let script = "cd \"$1\" && find . -path ./lost+found -prune -o -type f -print0 | xargs -0 -r sha256sum";
    let text = run("sh", &["-c", script, "sh", dir])?;
    let line = |l: &str| l.split_once("  ").map(|(sum, name)| (name.to_owned(), sum.to_owned()));
    Ok(text.lines().filter_map(line).collect())
}

/// An ext4 image with the folder's files.
pub fn ext4(folder: &Path, image: &Path, bytes: u64) -> Result<()> {
    let (folder, path) = (folder.to_str().context("path")?, image.to_str().context("path")?);
    run("mkfs.ext4", &["-q", "-F", "-d", folder, path, &format!("{}k", bytes >> 10)]).map(drop)
}

/// The image is a sound file system with exactly these files. Read with debugfs, which needs no mount.
pub fn holds(image: &Path, want: &Sums, scratch: &Path) -> Result<()> {
    let path = image.to_str().context("path")?;
    run("e2fsck", &["-fn", path])?;
    let out: PathBuf = scratch.join("extracted");
    if out.exists() {
        std::fs::remove_dir_all(&out)?;
    }
    std::fs::create_dir_all(&out)?;
    run("debugfs", &["-R", &format!("rdump / {}", out.display()), path])?;
    let got = sums(&out)?;
    std::fs::remove_dir_all(&out)?;
    let differing: Vec<&String> =
        want.iter().filter(|(name, sum)| got.get(*name) != Some(sum)).map(|(name, _)| name).collect();
    ensure!(
        differing.is_empty() && got.len() == want.len(),
        "{} files differ (first: {:?}), {} of {} files there",
        differing.len(),
        differing.first(),
        got.len(),
        want.len()
    );
    Ok(())
}
