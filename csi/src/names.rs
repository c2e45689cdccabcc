//! How names and ids of CSI become those of Sheepdog, and back. Pure.
//!
//! | CSI | Sheepdog |
//! |---|---|
//! | volume id | UUID of the VDI |
//! | volume name | name of the VDI, [`escape`]d |
//! | snapshot id | `UUID@NUMBER`: the VDI and the snapshot's number in it, which is never used again |
//! | snapshot name | tag, [`escape`]d |
//! | group snapshot's id and name | tag `group:NAME` on every member |

use crate::fault::{Fault, Outcome, given};
use sheepdog_client::pb::{Snapshot, Vdi};
use std::fmt::Write as _;
use uuid::Uuid;

/// Start of tags of group snapshots.
const GROUP: &str = "group:";
/// Start of tags of the short-lived snapshots that clones of volumes are made from.
const CLONE: &str = "clone:";
/// Longest name of a VDI or tag, bytes.
const MAX_NAME: usize = 255;
/// Longest name that CSI gives, bytes.
const MAX_CSI_NAME: usize = 128;

/// Attribute of a VDI: what has been done about its file system. See `guard`.
pub const ATTR_FORMAT: &str = "csi.sheepdog.io/format";
/// Attribute of a VDI: how the driver was asked to make it. See `controller::create`.
pub const ATTR_ORIGIN: &str = "csi.sheepdog.io/origin";
/// Attribute of a VDI: the claim it was made for, `NAMESPACE/NAME`, for people.
pub const ATTR_CLAIM: &str = "csi.sheepdog.io/claim";

/// Bytes that VDI names and tags cannot have, or that mean something to us, become `%XX`; so does the first digit of a name made of digits, which
/// could be taken for a snapshot's number.
pub fn escape(name: &str) -> Outcome<String> {
    given("name", name)?;
    if name.len() > MAX_CSI_NAME {
        return Err(Fault::invalid(format!(
            "the name has {} bytes, at most {MAX_CSI_NAME} are allowed",
            name.len()
        )));
    }
    let digits = name.bytes().all(|b| b.is_ascii_digit());
    let dots = name == "." || name == "..";
    let mut out = String::with_capacity(name.len());
    for (i, c) in name.char_indices() {
        let special = c.is_control() || matches!(c, '@' | '/' | '#' | ':' | '%');
        if special || (i == 0 && (digits || dots)) {
            let mut bytes = [0; 4];
            for b in c.encode_utf8(&mut bytes).bytes() {
                let _ = write!(out, "%{b:02X}");
            }
        } else {
            out.push(c);
        }
    }
    if out.len() > MAX_NAME - GROUP.len() {
        return Err(Fault::invalid(
            "the name has too many special characters: use letters, digits, \"-\" and \".\"",
        ));
    }
    Ok(out)
}

/// A volume's id; nothing when it cannot be one of ours.
pub fn volume_id(id: &str) -> Option<Uuid> {
    let parsed = Uuid::try_parse(id).ok()?;
    // One spelling only, or one volume would have several ids.
    (parsed.to_string() == id).then_some(parsed)
}

/// A volume's id, which is needed.
pub fn required_volume(id: &str) -> Outcome<Option<Uuid>> {
    given("volume id", id)?;
    Ok(volume_id(id))
}

/// A snapshot's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId {
    /// VDI.
    pub vdi: Uuid,
    /// Number in it.
    pub number: u32,
}

impl SnapshotId {
    /// Nothing when it cannot be one of ours.
    pub fn parse(id: &str) -> Option<Self> {
        let (vdi, number) = id.split_once('@')?;
        let parsed = Self { vdi: volume_id(vdi)?, number: number.parse().ok()? };
        (parsed.to_string() == id).then_some(parsed)
    }
}

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.vdi, self.number)
    }
}

/// What a tag says about a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag<'a> {
    /// One that somebody asked for, under this name; empty when it has none.
    Single(&'a str),
    /// Member of a group.
    Group(&'a str),
    /// Only there until a clone has been made of it.
    Clone,
}

/// Read a tag.
pub fn tag(tag: &str) -> Tag<'_> {
    match tag.strip_prefix(GROUP) {
        Some(group) => Tag::Group(group),
        None if tag.starts_with(CLONE) => Tag::Clone,
        None => Tag::Single(tag),
    }
}

/// Tag of the members of a group.
pub fn group_tag(group: &str) -> String {
    format!("{GROUP}{group}")
}

/// Tag of the snapshot that a clone is made from.
pub fn clone_tag(name: &str) -> String {
    format!("{CLONE}{name}")
}

/// What the admin interface takes for a snapshot: its tag where it has one, since a number may be another one's tag.
pub fn word(vdi: &Vdi, s: &Snapshot) -> Outcome<String> {
    if !s.tag.is_empty() {
        return Ok(s.tag.clone());
    }
    let number = s.id.to_string();
    if vdi.snapshots.iter().any(|other| other.tag == number) {
        return Err(Fault::precondition(format!(
            "VDI {} has a snapshot with the tag {number}, which hides the snapshot with this number: delete or clone it with dog",
            vdi.name
        )));
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_names_that_a_sheep_takes() {
        for (csi, vdi) in [
            ("pvc-1f", "pvc-1f"),
            ("a/b@c#d:e%f", "a%2Fb%40c%23d%3Ae%25f"),
            ("12", "%312"),
            ("..", "%2E."),
            ("ü\n", "ü%0A"),
        ] {
            assert_eq!(escape(csi).unwrap(), vdi);
        }
        assert!(escape("").is_err());
        assert!(escape(&"x".repeat(129)).is_err());
        assert_eq!(escape(&"x".repeat(128)).unwrap().len(), 128);
        assert!(escape(&"/".repeat(128)).is_err());
    }

    #[test]
    fn ids_have_one_spelling() {
        let id = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        assert!(volume_id(id).is_some());
        for bad in ["", "x", "67E55044-10b1-426f-9247-bb680e5fe0c8", "67e5504410b1426f9247bb680e5fe0c8"] {
            assert_eq!(volume_id(bad), None);
        }
        let s = SnapshotId::parse(&format!("{id}@7")).unwrap();
        assert_eq!((s.number, s.to_string()), (7, format!("{id}@7")));
        for bad in
            [format!("{id}@07"), format!("{id}@"), format!("{id}@-1"), id.to_owned(), format!("{id}@+7")]
        {
            assert_eq!(SnapshotId::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn tags_tell_groups_and_clones_apart() {
        assert_eq!(tag(&group_tag("g")), Tag::Group("g"));
        assert_eq!(tag(&clone_tag("g")), Tag::Clone);
        assert_eq!(tag(&escape("group:g").unwrap()), Tag::Single("group%3Ag"));
    }

    #[test]
    fn a_snapshot_is_never_mistaken_for_another() {
        let s = |id, tag: &str| Snapshot { id, tag: tag.into(), ..Default::default() };
        let v = Vdi { snapshots: vec![s(1, ""), s(2, "1"), s(3, "x")], ..Default::default() };
        assert!(word(&v, &v.snapshots[0]).is_err());
        assert_eq!(word(&v, &v.snapshots[1]).unwrap(), "1");
        assert_eq!(word(&v, &v.snapshots[2]).unwrap(), "x");
    }
}
