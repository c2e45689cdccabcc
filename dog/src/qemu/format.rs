//! Formats of image files, and how they are told from contents.

use std::path::Path;

/// A format, as `qemu-img` knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The bytes of the disk, nothing else
    Raw,
    /// QEMU
    Qcow2,
    /// QEMU, version 1 of it
    Qcow,
    /// QEMU, enhanced disk
    Qed,
    /// VMware
    Vmdk,
    /// VirtualBox
    Vdi,
    /// Hyper-V
    Vhdx,
    /// Virtual PC, Azure (VHD)
    Vpc,
    /// Parallels
    Parallels,
}

/// Bytes at the beginning and at the end of a file that `detect` wants to see.
pub const LOOK: usize = 512;

impl Format {
    /// What `qemu-img` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Qcow => "qcow",
            Self::Qed => "qed",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhdx => "vhdx",
            Self::Vpc => "vpc",
            Self::Parallels => "parallels",
        }
    }

    /// Bytes that a file has at least that begins so, where `qemu-img check` does not look.
    pub(super) fn needs(self, head: &[u8]) -> Option<u64> {
        let le32 = |at: usize| bytes(head, at).map(u32::from_le_bytes).map(u64::from);
        match self {
            // Where data begins, the size of a block, how many are there.
            Self::Vdi => le32(388)?.checked_mul(le32(376)?)?.checked_add(le32(344)?),
            _ => None,
        }
    }

    /// What else than itself a file names that begins so, as far as its head tells.
    pub(super) fn others(self, head: &[u8]) -> Option<&'static str> {
        let be64 = |at: usize| bytes(head, at).map_or(0, u64::from_be_bytes);
        let le64 = |at: usize| bytes(head, at).map_or(0, u64::from_le_bytes);
        let version = bytes(head, 4).map_or(0, u32::from_be_bytes);
        match self {
            Self::Qcow | Self::Qcow2 if be64(8) != 0 => Some("a backing file"),
            // Incompatible feature 2; before version 3 there is no such field.
            Self::Qcow2 if version >= 3 && be64(72) & 4 != 0 => Some("a file with its data"),
            Self::Qed if le64(16) & 1 != 0 => Some("a backing file"),
            Self::Vmdk if !head.starts_with(b"KDMV") && !head.starts_with(b"COWD") => {
                Some("files with its data")
            }
            // No capacity: what is in it is a text that names them.
            Self::Vmdk if head.starts_with(b"KDMV") && le64(12) == 0 => Some("files with its data"),
            _ => None,
        }
    }
}

fn bytes<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..at + N)?.try_into().ok()
}

/// The format of a file with this beginning and end (`LOOK` bytes, or all of it). `None`: it looks like none of those, and is raw.
pub fn detect(head: &[u8], tail: &[u8]) -> Option<Format> {
    let version = bytes(head, 4).map_or(0, u32::from_be_bytes);
    let begins = |magic: &[u8]| head.starts_with(magic);
    match () {
        () if begins(b"QFI\xfb") => Some(if version == 1 { Format::Qcow } else { Format::Qcow2 }),
        () if begins(b"QED\0") => Some(Format::Qed),
        () if begins(b"KDMV") || begins(b"COWD") => Some(Format::Vmdk),
        () if is_descriptor(head) => Some(Format::Vmdk),
        () if begins(b"vhdxfile") => Some(Format::Vhdx),
        () if begins(b"WithoutFreeSpace") || begins(b"WithouFreSpacExt") => Some(Format::Parallels),
        () if bytes(head, 64).map(u32::from_le_bytes) == Some(0xbeda_107f) => Some(Format::Vdi),
        // A disk that grows has its footer at both ends, a fixed one only behind its data.
        () if begins(b"conectix") || (tail.len() == LOOK && tail.starts_with(b"conectix")) => {
            Some(Format::Vpc)
        }
        () => None,
    }
}

/// A text, after comments and empty lines, that says which version of VMware's descriptor it is.
fn is_descriptor(head: &[u8]) -> bool {
    let mut lines = head.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
    head.starts_with(b"# Disk DescriptorFile")
        || lines
            .find(|l| !l.is_empty() && !l.starts_with(b"#"))
            .is_some_and(|l| l.to_ascii_lowercase().starts_with(b"version="))
}

/// What else than itself a file names, by what `qemu-img info` says of it.
pub(super) fn others_of(info: &serde_json::Value, path: &Path) -> Option<String> {
    let data = &info["format-specific"]["data"];
    let named = |v: &serde_json::Value| v.as_str().filter(|s| !s.is_empty()).map(str::to_owned);
    for key in ["full-backing-filename", "backing-filename"] {
        if let Some(name) = named(&info[key]) {
            return Some(format!("the backing file {name}"));
        }
    }
    if let Some(name) = named(&data["data-file"]) {
        return Some(format!("the data file {name}"));
    }
    let extents = data["extents"].as_array().map(Vec::as_slice).unwrap_or_default();
    let other = extents.iter().filter_map(|e| named(&e["filename"])).find(|name| Path::new(name) != path);
    other.map(|name| format!("the extent {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut out = vec![0; LOOK];
        for (at, bytes) in parts {
            out[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        out
    }

    #[test]
    fn formats_are_told_by_their_magic_numbers() {
        let plain = vec![0; LOOK];
        for (beginning, end, format) in [
            (head(&[(0, b"QFI\xfb\0\0\0\x03")]), &plain, Some(Format::Qcow2)),
            (head(&[(0, b"QFI\xfb\0\0\0\x01")]), &plain, Some(Format::Qcow)),
            (head(&[(0, b"KDMV")]), &plain, Some(Format::Vmdk)),
            (head(&[(0, b"# Disk DescriptorFile\nversion=1\n")]), &plain, Some(Format::Vmdk)),
            (head(&[(0, b"# anything\n\n version=1\n")]), &plain, Some(Format::Vmdk)),
            (head(&[(0, b"vhdxfile")]), &plain, Some(Format::Vhdx)),
            (head(&[(64, &0xbeda_107fu32.to_le_bytes())]), &plain, Some(Format::Vdi)),
            (plain.clone(), &head(&[(0, b"conectix")]), Some(Format::Vpc)),
            (head(&[(0, b"LUKS\xba\xbe")]), &plain, None),
            (head(&[(510, b"\x55\xaa")]), &plain, None),
            (plain.clone(), &plain, None),
            (b"QFI".to_vec(), &vec![], None),
            (Vec::new(), &vec![], None),
        ] {
            assert_eq!(detect(&beginning, end), format);
        }
    }

    #[test]
    fn what_a_head_names_is_seen() {
        let qcow2 = |more: &[(usize, &[u8])]| {
            let mut h = head(&[(0, b"QFI\xfb\0\0\0\x03")]);
            more.iter().for_each(|(at, b)| h[*at..at + b.len()].copy_from_slice(b));
            h
        };
        assert_eq!(Format::Qcow2.others(&qcow2(&[])), None);
        assert_eq!(Format::Qcow2.others(&qcow2(&[(15, &[1])])), Some("a backing file"));
        assert_eq!(Format::Qcow2.others(&qcow2(&[(79, &[4])])), Some("a file with its data"));
        assert_eq!(
            Format::Qcow2.others(&qcow2(&[(7, &[2]), (79, &[4])])),
            None,
            "version 2 has no such field"
        );
        assert_eq!(Format::Qed.others(&head(&[(0, b"QED\0"), (16, &[1])])), Some("a backing file"));
        assert_eq!(Format::Vmdk.others(&head(&[(0, b"KDMV"), (12, &[1])])), None);
        assert!(Format::Vmdk.others(&head(&[(0, b"KDMV")])).is_some());
        assert!(Format::Vmdk.others(&head(&[(0, b"# Disk DescriptorFile")])).is_some());
        assert_eq!(Format::Qcow2.others(b"QFI\xfb"), None, "qemu-img will refuse it");
    }

    #[test]
    fn what_qemu_img_names_is_seen() {
        let own = Path::new("/a/disk");
        for (info, named) in [
            (serde_json::json!({"virtual-size": 5}), None),
            (serde_json::json!({"backing-filename": "/etc/x"}), Some("the backing file /etc/x")),
            (serde_json::json!({"format-specific": {"data": {"data-file": "y"}}}), Some("the data file y")),
            (serde_json::json!({"format-specific": {"data": {"extents": [{"filename": "/a/disk"}]}}}), None),
            (
                serde_json::json!({"format-specific": {"data": {"extents": [{"filename": "/a/disk"}, {"filename": "/etc/z"}]}}}),
                Some("the extent /etc/z"),
            ),
        ] {
            assert_eq!(others_of(&info, own).as_deref(), named, "{info}");
        }
    }
}
