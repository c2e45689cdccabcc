//! What the plugin writes down of each volume that is staged: one small file, replaced as a whole. The kernel and the cluster know the rest; a lost file costs
//! nothing but the question which request a device belongs to.

use crate::attach::Request;
use crate::capability::Fs;
use crate::fault::{Fault, Outcome, io};
use crate::mount;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A volume that is staged, or is being staged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// What is attached.
    pub request: Request,
    /// Where it is staged.
    pub staging: PathBuf,
    /// Its file system; absent: a device.
    pub fs: Option<Fs>,
    /// In a LUKS2 container.
    #[serde(default)]
    pub encrypted: bool,
    /// One pod only.
    #[serde(default)]
    pub single_writer: bool,
    /// Where pods see it.
    #[serde(default)]
    pub targets: BTreeSet<PathBuf>,
}

impl Staged {
    /// A place, other than this one, where the kernel says that it still is.
    pub fn mounted_target(&self, but: Option<&Path>) -> Option<&Path> {
        let all = self.targets.iter().map(PathBuf::as_path).filter(|t| Some(*t) != but);
        all.into_iter().find(|t| matches!(mount::at(t), Ok(Some(_))))
    }
}

/// The directory of all of them.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Made when it is not there.
    pub fn new(dir: &Path) -> Outcome<Self> {
        let dir = dir.join("volumes");
        std::fs::create_dir_all(&dir).map_err(io(dir.display()))?;
        Ok(Self { dir })
    }

    fn path(&self, volume: Uuid) -> PathBuf {
        self.dir.join(format!("{volume}.json"))
    }

    /// One volume. A file that cannot be read is an error: it says that something was staged.
    pub fn get(&self, volume: Uuid) -> Outcome<Option<Staged>> {
        let path = self.path(volume);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io(path.display())(e)),
        };
        let read = serde_json::from_slice(&text);
        read.map(Some)
            .map_err(|e| Fault::internal(format!("{}: {e}: is it of another version?", path.display())))
    }

    /// Write down. Survives a power cut: the new file, or the old one.
    pub fn put(&self, s: &Staged) -> Outcome<()> {
        let path = self.path(s.request.volume);
        let text = serde_json::to_vec_pretty(s).map_err(|e| Fault::internal(e.to_string()))?;
        let write = || -> std::io::Result<()> {
            let new = path.with_extension("new");
            let mut file = std::fs::File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            std::fs::File::open(&self.dir)?.sync_all()
        };
        write().map_err(io(path.display()))
    }

    /// Forget.
    pub fn remove(&self, volume: Uuid) -> Outcome<()> {
        let path = self.path(volume);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io(path.display())(e)),
            _ => Ok(()),
        }
    }

    /// All that can be read.
    pub fn all(&self) -> Outcome<Vec<Staged>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(io(self.dir.display()))? {
            let name = entry.map_err(io(self.dir.display()))?.file_name();
            let id =
                name.to_str().and_then(|n| n.strip_suffix(".json")).and_then(|n| Uuid::parse_str(n).ok());
            let Some(id) = id else { continue };
            match self.get(id) {
                Ok(s) => found.extend(s),
                Err(f) => tracing::error!("{f}"),
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path()).unwrap();
        let volume = Uuid::new_v4();
        assert_eq!(store.get(volume).unwrap(), None);
        let mut s = Staged {
            request: Request { volume, attachment: 3, export: "v#3".into(), read_only: false },
            staging: "/staging".into(),
            fs: Some(Fs::Xfs),
            encrypted: false,
            single_writer: true,
            targets: BTreeSet::new(),
        };
        store.put(&s).unwrap();
        s.targets.insert("/target".into());
        store.put(&s).unwrap();
        assert_eq!(store.get(volume).unwrap(), Some(s.clone()));
        std::fs::write(dir.path().join("volumes/odd.json"), "?").unwrap();
        assert_eq!(store.all().unwrap(), [s]);
        store.remove(volume).unwrap();
        store.remove(volume).unwrap();
        assert_eq!(store.get(volume).unwrap(), None);
        std::fs::write(dir.path().join(format!("volumes/{volume}.json")), "?").unwrap();
        assert!(store.get(volume).is_err());
    }
}
