//! Who this sheep is: `DIR/node.json`, written once and extended when it joins a cluster.
//!
//! The file is JSON with a CRC-32C over its other fields, so that a half-edited copy is noticed. It is replaced by rename.

use super::state_machine::write_atomically;
use serde::{Deserialize, Serialize};
use sheepdog_proto::checksum::crc32c;
use sheepdog_proto::{ClusterId, NodeId};
use std::io;
use std::path::{Path, PathBuf};

const FILE: &str = "node.json";
const VERSION: u32 = 1;

/// What is known about oneself before anything else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// This sheep, for ever.
    pub node: NodeId,
    /// Its cluster; `None` while it waits for format.
    pub cluster: Option<ClusterId>,
    /// It was once taken in: its log may hold votes, so it never formats another cluster.
    pub member: bool,
}

/// Why the identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Disk.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Not ours or damaged.
    #[error("{path} is damaged ({what}): restore it, or empty the directory to start a new node")]
    Damaged {
        /// File.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    node: String,
    cluster: Option<String>,
    member: bool,
    crc: u32,
}

impl OnDisk {
    fn sum(&self) -> u32 {
        let cluster = self.cluster.as_deref().unwrap_or("-");
        crc32c(format!("{} {} {} {}", self.version, self.node, cluster, self.member).as_bytes())
    }
}

impl Identity {
    /// Read `dir/node.json`, or make a new node (and the directory).
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => Self::parse(&path, &bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let node = NodeId(uuid::Uuid::new_v4().as_u128());
                let new = Self { node, cluster: None, member: false };
                crate::dirs::make(dir).map_err(|source| IdentityError::Io { path, source })?;
                new.save(dir)?;
                Ok(new)
            }
            Err(source) => Err(IdentityError::Io { path, source }),
        }
    }
    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, IdentityError> {
        let bad = |what: &str| IdentityError::Damaged { path: path.to_path_buf(), what: what.to_string() };
        let d: OnDisk = serde_json::from_slice(bytes).map_err(|e| bad(&e.to_string()))?;
        if d.version != VERSION {
            return Err(bad(&format!("version {}", d.version)));
        }
        if d.crc != d.sum() {
            return Err(bad("the checksum does not match"));
        }
        let node = NodeId::parse(&d.node).filter(|n| !n.is_nil()).ok_or_else(|| bad("no node id"))?;
        let cluster = match &d.cluster {
            None => None,
            Some(c) => Some(ClusterId::parse(c).filter(|c| !c.is_nil()).ok_or_else(|| bad("no cluster id"))?),
        };
        Ok(Self { node, cluster, member: d.member })
    }
    /// Write it, durably.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let mut d = OnDisk {
            version: VERSION,
            node: self.node.to_string(),
            cluster: self.cluster.map(|c| c.to_string()),
            member: self.member,
            crc: 0,
        };
        d.crc = d.sum();
        let path = dir.join(FILE);
        let json = serde_json::to_vec_pretty(&d)
            .map_err(|e| IdentityError::Io { path: path.clone(), source: io::Error::other(e) })?;
        write_atomically(&path, &[&json, b"\n"]).map_err(|source| IdentityError::Io { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn created_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut a = Identity::load_or_create(dir.path()).unwrap();
        assert_eq!(Identity::load_or_create(dir.path()).unwrap(), a);
        a.cluster = Some(ClusterId(7));
        a.member = true;
        a.save(dir.path()).unwrap();
        assert_eq!(Identity::load_or_create(dir.path()).unwrap(), a);
    }

    #[test]
    fn an_edited_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Identity::load_or_create(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("false", "true")).unwrap();
        let e = Identity::load_or_create(dir.path()).unwrap_err().to_string();
        assert!(e.contains("checksum"), "{e}");
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(Identity::load_or_create(dir.path()), Err(IdentityError::Damaged { .. })));
    }
}
