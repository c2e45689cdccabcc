//! What a volume is to be used as. Pure.

use crate::csi::volume_capability::{AccessType, access_mode::Mode};
use crate::csi::{VolumeCapability, volume_capability};
use crate::fault::{Fault, Outcome};

/// File systems we make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fs {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl Fs {
    /// By name; empty: the usual one.
    pub fn parse(name: &str) -> Outcome<Self> {
        match name {
            "" | "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            other => {
                Err(Fault::invalid(format!("file system \"{other}\" is not supported: use ext4 or xfs")))
            }
        }
    }
    /// As mount and blkid call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
    /// Smallest device it can be made on, bytes.
    pub fn smallest(self) -> u64 {
        match self {
            Self::Ext4 => 4 << 20,
            Self::Xfs => 300 << 20,
        }
    }
}

/// How pods see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// As a device.
    Block,
    /// As a mounted file system.
    Mount {
        /// Which.
        fs: Fs,
        /// Further options of mount.
        options: Vec<String>,
    },
}

/// Who may have it attached at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// One node.
    Single,
    /// Several nodes that write.
    Shared,
    /// Nodes that only read.
    ReadOnly,
}

/// A capability as it is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// How pods see it.
    pub shape: Shape,
    /// Who may have it.
    pub access: Access,
    /// One pod only: a second place on the same node is refused.
    pub single_writer: bool,
}

impl Use {
    /// Check one capability. `default` is the file system where none is named.
    pub fn new(capability: Option<&VolumeCapability>, default: Fs) -> Outcome<Self> {
        let c = capability.ok_or_else(|| Fault::invalid("a volume capability is needed"))?;
        let mode = c.access_mode.as_ref().map_or(Mode::Unknown, volume_capability::AccessMode::mode);
        let shape = match &c.access_type {
            None => return Err(Fault::invalid("a volume capability is either block or mount")),
            Some(AccessType::Block(_)) => Shape::Block,
            Some(AccessType::Mount(m)) => Shape::Mount {
                fs: if m.fs_type.is_empty() { default } else { Fs::parse(&m.fs_type)? },
                options: mount_options(&m.mount_flags)?,
            },
        };
        let access = match mode {
            Mode::Unknown => return Err(Fault::invalid("a volume capability needs an access mode")),
            Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter | Mode::SingleNodeMultiWriter => {
                Access::Single
            }
            Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly => Access::ReadOnly,
            Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter if shape == Shape::Block => {
                Access::Shared
            }
            Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => {
                return Err(Fault::invalid(
                    "a file system cannot be written from several nodes at once: use volumeMode Block, or the access mode ReadWriteOnce",
                ));
            }
        };
        Ok(Self { shape, access, single_writer: mode == Mode::SingleNodeSingleWriter })
    }

    /// Check all of a request; there has to be one.
    pub fn all(capabilities: &[VolumeCapability], default: Fs) -> Outcome<Vec<Self>> {
        if capabilities.is_empty() {
            return Err(Fault::invalid("volume capabilities are needed"));
        }
        capabilities.iter().map(|c| Self::new(Some(c), default)).collect()
    }

    /// Smallest volume that can be used like this, bytes.
    pub fn smallest(&self) -> u64 {
        match &self.shape {
            Shape::Block => 0,
            Shape::Mount { fs, .. } => fs.smallest(),
        }
    }
}

/// Options of mount that a storage class may ask for: words, not what decides where and how safely a volume is mounted.
fn mount_options(flags: &[String]) -> Outcome<Vec<String>> {
    let mut options = Vec::new();
    for o in flags.iter().flat_map(|f| words(f)).map(str::trim).filter(|o| !o.is_empty()) {
        let word = o.split('=').next().unwrap_or(o);
        if o.len() > 256 || o.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(Fault::invalid(format!("mount option \"{}\" is not a word", o.escape_debug())));
        }
        if ["bind", "rbind", "move", "remount", "loop", "offset", "sizelimit", "X-mount.mkdir"]
            .contains(&word)
        {
            return Err(Fault::invalid(format!(
                "mount option \"{o}\" is not allowed: it changes what is mounted"
            )));
        }
        options.push(o.to_owned());
    }
    Ok(options)
}

/// Cut at commas, but not at those of a quoted value, as SELinux contexts have them.
fn words(flags: &str) -> Vec<&str> {
    let mut quoted = false;
    let at_comma = |c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    };
    flags.split(at_comma).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::volume_capability::{AccessMode, BlockVolume, MountVolume};
    use crate::fault::Kind;

    fn capability(fs: Option<&str>, mode: Mode, flags: &[&str]) -> VolumeCapability {
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(match fs {
                None => AccessType::Block(BlockVolume {}),
                Some(fs) => AccessType::Mount(MountVolume {
                    fs_type: fs.into(),
                    mount_flags: flags.iter().map(|f| (*f).to_owned()).collect(),
                    volume_mount_group: String::new(),
                }),
            }),
        }
    }

    #[test]
    fn modes_and_shapes() {
        let access = |fs: Option<&str>, mode| {
            Use::new(Some(&capability(fs, mode, &[])), Fs::Ext4).map(|u| u.access).map_err(|f| f.kind)
        };
        assert_eq!(access(Some(""), Mode::SingleNodeWriter), Ok(Access::Single));
        assert_eq!(access(Some("xfs"), Mode::SingleNodeMultiWriter), Ok(Access::Single));
        assert_eq!(access(None, Mode::MultiNodeMultiWriter), Ok(Access::Shared));
        assert_eq!(access(Some("ext4"), Mode::MultiNodeMultiWriter), Err(Kind::Invalid));
        assert_eq!(access(Some("ext4"), Mode::MultiNodeReaderOnly), Ok(Access::ReadOnly));
        assert_eq!(access(Some("ntfs"), Mode::SingleNodeWriter), Err(Kind::Invalid));
        assert_eq!(access(None, Mode::Unknown), Err(Kind::Invalid));
        assert_eq!(Use::new(None, Fs::Ext4).unwrap_err().kind, Kind::Invalid);
        let single = capability(None, Mode::SingleNodeSingleWriter, &[]);
        assert!(Use::new(Some(&single), Fs::Ext4).unwrap().single_writer);
        assert_eq!(Use::all(&[], Fs::Ext4).unwrap_err().kind, Kind::Invalid);
    }

    #[test]
    fn mount_options_cannot_change_what_is_mounted() {
        let options = |flags: &[&str]| {
            let c = capability(Some(""), Mode::SingleNodeWriter, flags);
            Use::new(Some(&c), Fs::Xfs).map(|u| u.shape)
        };
        let good = Shape::Mount { fs: Fs::Xfs, options: vec!["noatime".into(), "logbufs=8".into()] };
        assert_eq!(options(&["noatime,logbufs=8", ""]).unwrap(), good);
        let context = "context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
        let labelled = Shape::Mount { fs: Fs::Xfs, options: vec![context.into(), "noatime".into()] };
        assert_eq!(options(&[&format!("{context},noatime")]).unwrap(), labelled);
        for bad in ["bind", "loop=/dev/loop0", "a b", "offset=4096"] {
            assert!(options(&[bad]).is_err(), "{bad}");
        }
    }
}
