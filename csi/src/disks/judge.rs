//! May a device become a disk of this sheep? Pure; the same care as with volumes (`guard`), and more: nobody else keeps a record of this device, so what
//! is not ours must be blank in every way that we can look at.

use super::mark::{Owner, Whose};
use crate::capability::Fs;
use crate::guard::Probe;

/// Smaller ones are a mistake: a journal alone takes 256 MiB.
const SMALLEST: u64 = 1 << 30;

/// What was found out about a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Bytes.
    pub size: u64,
    /// Who has it in use, in words.
    pub busy: Option<String>,
    /// Signatures.
    pub probe: Probe,
    /// UUID of the file system.
    pub uuid: Option<String>,
    /// The first and the last MiB are zeros.
    pub ends_are_zeros: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Mount the file system that is there: it is ours.
    Mount(Fs),
    /// Make one, then mount it.
    Make,
    /// Neither: what was found, and how to clear it.
    LeaveOut(String),
}

/// Decide.
pub fn judge(owner: &Owner, device: &str, look: &Look) -> Verdict {
    let clear = format!(
        "it is left as it is. If nobody needs what is on it: `wipefs --all {device}` on {}, zeros over its first and last MiB (docs/kubernetes.md, \"Disks\"), and delete the sheep's pod",
        owner.node
    );
    let refuse = |found: &str| Verdict::LeaveOut(format!("{found}: {clear}"));
    if let Some(busy) = &look.busy {
        return Verdict::LeaveOut(format!("it is in use ({busy}): name another device, or let go of it"));
    }
    match (&look.probe, look.uuid.as_deref().map_or(Whose::Nobodys, |u| owner.whose(u))) {
        (Probe::Found(t), Whose::Ours) => match [Fs::Ext4, Fs::Xfs].into_iter().find(|fs| fs.name() == t) {
            Some(fs) => Verdict::Mount(fs),
            None => refuse(&format!("it holds {t} with a mark of ours, which we never made")),
        },
        (Probe::Found(t), Whose::OtherNode) => {
            refuse(&format!("it holds {t}, a disk of another node of this Sheepdog cluster"))
        }
        (Probe::Found(t), Whose::OtherCluster) => {
            refuse(&format!("it holds {t}, a disk of another Sheepdog cluster"))
        }
        (Probe::Found(t), Whose::Nobodys) => refuse(&format!("it holds {t}")),
        (Probe::Unclear(what), _) => refuse(&format!("it shows signatures that are not clear ({what})")),
        (Probe::Nothing, _) if !look.ends_are_zeros => refuse(
            "it shows no file system that we know, but does not begin and end with a MiB of zeros, so it may hold something",
        ),
        (Probe::Nothing, _) if look.size < SMALLEST => {
            Verdict::LeaveOut(format!("it has {} MiB: a disk has at least 1 GiB", look.size >> 20))
        }
        (Probe::Nothing, _) => Verdict::Make,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Owner {
        Owner { cluster: "sheepdog/main".into(), node: "node1".into() }
    }

    fn blank() -> Look {
        Look { size: 4 << 30, busy: None, probe: Probe::Nothing, uuid: None, ends_are_zeros: true }
    }

    fn refused(look: Look, words: &[&str]) {
        match judge(&ours(), "/dev/sdb", &look) {
            Verdict::LeaveOut(text) => {
                assert!(words.iter().all(|w| text.contains(w)), "{text}");
            }
            other => panic!("{look:?}: {other:?}"),
        }
    }

    #[test]
    fn only_what_is_blank_in_every_way_is_formatted() {
        assert_eq!(judge(&ours(), "/dev/sdb", &blank()), Verdict::Make);
        let found = |t: &str| Look { probe: Probe::Found(t.into()), ..blank() };
        refused(found("ext4"), &["holds ext4", "wipefs --all /dev/sdb", "node1"]);
        refused(found("LVM2_member"), &["LVM2_member", "wipefs"]);
        refused(found("a partition table (gpt)"), &["partition table (gpt)", "wipefs"]);
        refused(Look { probe: Probe::Unclear("several".into()), ..blank() }, &["not clear (several)"]);
        refused(Look { ends_are_zeros: false, ..blank() }, &["MiB of zeros", "wipefs"]);
        refused(Look { busy: Some("mounted at /home".into()), ..blank() }, &["mounted at /home"]);
        refused(Look { size: 64 << 20, ..blank() }, &["64 MiB"]);
    }

    #[test]
    fn ours_is_mounted_and_nobody_elses() {
        let uuid = |o: &Owner| Some(o.new_uuid().to_string());
        let made =
            Look { probe: Probe::Found("xfs".into()), uuid: uuid(&ours()), ends_are_zeros: false, ..blank() };
        assert_eq!(judge(&ours(), "/dev/sdb", &made), Verdict::Mount(Fs::Xfs));
        let other = Owner { node: "node2".into(), ..ours() };
        refused(Look { uuid: uuid(&other), ..made.clone() }, &["another node", "wipefs"]);
        let other = Owner { cluster: "x/main".into(), ..ours() };
        refused(Look { uuid: uuid(&other), ..made.clone() }, &["another Sheepdog cluster"]);
        refused(Look { probe: Probe::Found("btrfs".into()), ..made.clone() }, &["never made"]);
        // A mark says nothing where there is no file system.
        refused(Look { probe: Probe::Nothing, ..made }, &["MiB of zeros"]);
    }

    #[test]
    fn whatever_is_seen_making_one_takes_all_witnesses() {
        let probes = [Probe::Nothing, Probe::Found("xfs".into()), Probe::Unclear("x".into())];
        let uuids = [None, Some(ours().new_uuid().to_string()), Some("1234".into())];
        for (probe, uuid) in probes.iter().flat_map(|p| uuids.iter().map(move |u| (p, u))) {
            for bits in 0..8 {
                let look = Look {
                    size: if bits & 1 != 0 { 4 << 30 } else { 1 << 20 },
                    busy: (bits & 2 != 0).then(|| "x".into()),
                    ends_are_zeros: bits & 4 != 0,
                    probe: probe.clone(),
                    uuid: uuid.clone(),
                };
                if judge(&ours(), "/dev/sdb", &look) == Verdict::Make {
                    assert!(look.busy.is_none() && look.ends_are_zeros && look.probe == Probe::Nothing);
                }
            }
        }
    }
}
