//! Whose a file system is, as its UUID says. It is written with the file system and not after it, so there is no file system of ours without it.
//!
//! ```text
//!   0..4   "shep"
//!   4..8   cluster (of its hash; the upper half of byte 6 is the version of UUIDs that anybody may fill as he likes)
//!   8..11  node (the upper two bits of byte 8 are the variant)
//!   11..16 chance
//! ```

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: [u8; 4] = *b"shep";
/// Bits of the bytes 4 to 10 that say something.
const MASK: [u8; 7] = [0xff, 0xff, 0x0f, 0xff, 0x3f, 0xff, 0xff];
const FIXED: [u8; 7] = [0, 0, 0x80, 0, 0x80, 0, 0];

/// Cluster and node of a sheep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Namespace and name of the SheepdogCluster.
    pub cluster: String,
    /// Kubernetes node.
    pub node: String,
}

/// What a UUID says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// This sheep's.
    Ours,
    /// Of the same cluster, another node.
    OtherNode,
    /// Of another cluster.
    OtherCluster,
    /// Not one of Sheepdog's.
    Nobodys,
}

impl Owner {
    fn bytes(&self) -> [u8; 7] {
        let (cluster, node) = (xxh3_64(self.cluster.as_bytes()), xxh3_64(self.node.as_bytes()));
        let (c, n) = (cluster.to_be_bytes(), node.to_be_bytes());
        let told = [c[0], c[1], c[2], c[3], n[0], n[1], n[2]];
        std::array::from_fn(|i| told[i] & MASK[i] | FIXED[i])
    }

    /// UUID for a new file system.
    pub fn new_uuid(&self) -> Uuid {
        let mut all = *Uuid::new_v4().as_bytes();
        all[..4].copy_from_slice(&MAGIC);
        all[4..11].copy_from_slice(&self.bytes());
        Uuid::from_bytes(all)
    }

    /// Whose is the file system that has this UUID?
    pub fn whose(&self, uuid: &str) -> Whose {
        let Ok(uuid) = Uuid::parse_str(uuid) else { return Whose::Nobodys };
        let (all, ours) = (uuid.as_bytes(), self.bytes());
        match (all[..4] == MAGIC, all[4..8] == ours[..4], all[8..11] == ours[4..]) {
            (false, ..) => Whose::Nobodys,
            (true, true, true) => Whose::Ours,
            (true, true, false) => Whose::OtherNode,
            (true, false, _) => Whose::OtherCluster,
        }
    }

    /// For people who look with `lsblk -f`. XFS takes 12 characters.
    pub fn label(&self) -> String {
        let name = self.cluster.rsplit('/').next().unwrap_or_default();
        format!("sd-{}", name.chars().take(9).collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(cluster: &str, node: &str) -> Owner {
        Owner { cluster: cluster.into(), node: node.into() }
    }

    #[test]
    fn a_file_system_says_whose_it_is() {
        let ours = owner("sheepdog/main", "node1");
        for _ in 0..100 {
            let uuid = ours.new_uuid();
            assert_eq!((uuid.get_version_num(), uuid.get_variant()), (8, uuid::Variant::RFC4122));
            let text = uuid.to_string();
            assert_eq!(ours.whose(&text), Whose::Ours);
            assert_eq!(owner("sheepdog/main", "node2").whose(&text), Whose::OtherNode);
            assert_eq!(owner("sheepdog/other", "node1").whose(&text), Whose::OtherCluster);
        }
        assert_ne!(ours.new_uuid(), ours.new_uuid(), "XFS mounts no two of the same UUID");
        for text in [Uuid::new_v4().to_string().as_str(), "ABCD-1234", ""] {
            assert_eq!(ours.whose(text), Whose::Nobodys);
        }
        assert_eq!(ours.label(), "sd-main");
        assert_eq!(owner("a/a-rather-long-name", "n").label().len(), 12);
    }

    /// Written on disks: it must not change.
    #[test]
    fn golden_bytes() {
        let uuid = owner("sheepdog/main", "node1").new_uuid().to_string();
        assert_eq!(uuid[..23], *"73686570-4e53-8ca6-9203");
    }
}
