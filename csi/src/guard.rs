//! May this device be formatted? Only when it is provably blank. Probing a device is no proof: what cannot be read looks like nothing. So four
//! witnesses have to agree: the volume's own record of what was done to it, the cluster's map of what was ever written, the device's
//! first and last MiB, and a probe for signatures.
//!
//! ```text
//!   record         probe finds    verdict
//!   none, blank    nothing        make, if the map is empty and both ends are zeros; otherwise refuse
//!   none, blank    what we want   use (somebody brought an image)
//!   making         nothing, same  make again: nobody has mounted it, `made` is written before that
//!   made           what we want   use
//!   made           nothing        refuse: something is badly wrong
//!   any            anything else  refuse
//! ```

use crate::capability::Fs;
use crate::exec;
use crate::fault::{Fault, Outcome, io};
use crate::names::ATTR_FORMAT;
use serde::{Deserialize, Serialize};
use sheepdog_client::pb::Vdi;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// How much of each end of a device is looked at, bytes.
const END: u64 = 1 << 20;
/// How far clocks of nodes may be apart, milliseconds.
const SKEW: u64 = 300_000;

/// What was done to a volume, as its attribute says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Format {
    /// Made from something blank.
    Blank,
    /// A file system is being made; nobody has mounted it.
    Making(What),
    /// A file system was made.
    Made(What),
}

/// Which file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct What {
    /// File system.
    pub fs: Fs,
    /// In a LUKS2 container.
    #[serde(default)]
    pub encrypted: bool,
    /// Since when, milliseconds since the Unix epoch.
    pub since_ms: u64,
}

impl Format {
    /// Of a volume. A record that cannot be read is an error: it might say `made`.
    pub fn of(v: &Vdi) -> Outcome<Option<Self>> {
        let Some(text) = v.attrs.get(ATTR_FORMAT) else { return Ok(None) };
        let read = serde_json::from_slice(text).map_err(|e| {
            Fault::precondition(format!(
                "attribute {ATTR_FORMAT} of volume {} cannot be read ({e}): is this an older version of the driver?",
                v.uuid
            ))
        });
        read.map(Some)
    }

    /// As the attribute's value.
    pub fn to_text(&self) -> Outcome<String> {
        serde_json::to_string(self).map_err(|e| Fault::internal(e.to_string()))
    }

    /// Was it made, certainly before that time?
    pub fn is_made_before(&self, ms: u64) -> bool {
        matches!(self, Self::Made(w) if w.since_ms.saturating_add(SKEW) < ms)
    }
}

/// What a probe for signatures found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Nothing, and the device could be read.
    Nothing,
    /// This type.
    Found(String),
    /// Several, or something that is not clear.
    Unclear(String),
}

/// What the witnesses say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witnesses {
    /// The volume's record.
    pub record: Option<Format>,
    /// Nothing was ever written, says the cluster.
    pub never_written: bool,
    /// Both ends of the device are zeros.
    pub ends_are_zeros: bool,
    /// Signatures.
    pub probe: Probe,
    /// It may only be read.
    pub read_only: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Make the file system.
    Make,
    /// Mount what is there.
    Use,
    /// Neither, for this reason.
    Refuse(String),
}

/// See the table in the module. `signature` is what the probe calls what is wanted.
pub fn judge(signature: &str, w: &Witnesses) -> Verdict {
    let refuse = |why: String| Verdict::Refuse(why);
    let make = || {
        if w.read_only {
            return refuse(
                "it has no file system, and it is attached read-only: use it read-write once".into(),
            );
        }
        Verdict::Make
    };
    match (&w.probe, &w.record) {
        (Probe::Unclear(what), _) => {
            refuse(format!("the device shows signatures that are not clear ({what}): look at it by hand"))
        }
        (Probe::Found(t), _) if t != signature => {
            refuse(format!("the device holds {t}, and {signature} is wanted: it is never formatted over"))
        }
        (Probe::Found(_), Some(Format::Making(_))) if !w.read_only => Verdict::Make,
        (Probe::Found(_), _) => Verdict::Use,
        (Probe::Nothing, Some(Format::Made(what))) => refuse(format!(
            "it was formatted with {}, but the device shows no signature: nothing is done to it, restore a snapshot or look at it by hand",
            what.fs.name()
        )),
        (Probe::Nothing, Some(Format::Making(_))) => make(),
        (Probe::Nothing, None | Some(Format::Blank)) if !w.never_written => refuse(
            "data was written to it, but the device shows no file system that we know: it is never formatted over".into(),
        ),
        (Probe::Nothing, None | Some(Format::Blank)) if !w.ends_are_zeros => {
            refuse("the device does not begin and end with zeros although nothing was written to it".into())
        }
        (Probe::Nothing, None | Some(Format::Blank)) => make(),
    }
}

/// Look for signatures.
pub async fn probe(device: &Path) -> Outcome<Probe> {
    Ok(signatures(device).await?.0)
}

/// The same, with the UUID of a file system.
pub async fn signatures(device: &Path) -> Outcome<(Probe, Option<String>)> {
    let device = device.to_str().ok_or_else(|| Fault::internal("a device with an odd name"))?;
    // `-p`: look at the device and at no cache.
    let args = ["-p", "-s", "TYPE", "-s", "PTTYPE", "-s", "UUID", "-o", "export", device];
    let ended = exec::run("blkid", &args, exec::SHORT).await?;
    let probe = read_probe(ended.code, &ended.stdout).ok_or_else(|| exec::failed("blkid", &args, &ended))?;
    let uuid = ended.stdout.lines().find_map(|l| l.strip_prefix("UUID="));
    Ok((probe, uuid.map(str::to_owned)))
}

/// Exit code 2 also means that the device could not be read: the caller has read it.
fn read_probe(code: i32, stdout: &str) -> Option<Probe> {
    let value =
        |key: &str| stdout.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned);
    match (code, value("TYPE"), value("PTTYPE")) {
        (0, Some(t), None) => Some(Probe::Found(t)),
        (0, Some(t), Some(p)) => Some(Probe::Unclear(format!("{t}, partition table {p}"))),
        (0, None, Some(p)) => Some(Probe::Found(format!("a partition table ({p})"))),
        (2, ..) => Some(Probe::Nothing),
        (8, ..) => Some(Probe::Unclear("several".into())),
        _ => None,
    }
}

/// Read both ends of a device; an error is an error and not a blank device.
pub async fn ends_are_zeros(device: &Path) -> Outcome<bool> {
    let device = device.to_owned();
    let read = tokio::task::spawn_blocking(move || both_ends(&device));
    let limited = tokio::time::timeout(exec::SHORT, read).await;
    let joined = limited.map_err(|_| Fault::internal("the device does not answer"))?;
    joined.map_err(|e| Fault::internal(e.to_string()))?
}

fn both_ends(device: &Path) -> Outcome<bool> {
    let what = || format!("read {}", device.display());
    let mut file = std::fs::File::open(device).map_err(io(what()))?;
    let size = file.seek(SeekFrom::End(0)).map_err(io(what()))?;
    if size == 0 {
        return Err(Fault::internal(format!("{} has no size", device.display())));
    }
    for start in [0, size.saturating_sub(END)] {
        let mut bytes = vec![0; END.min(size) as usize];
        file.seek(SeekFrom::Start(start)).map_err(io(what()))?;
        file.read_exact(&mut bytes).map_err(io(what()))?;
        if bytes.iter().any(|b| *b != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHAT: What = What { fs: Fs::Ext4, encrypted: false, since_ms: 1_000_000 };

    fn blank() -> Witnesses {
        Witnesses {
            record: None,
            never_written: true,
            ends_are_zeros: true,
            probe: Probe::Nothing,
            read_only: false,
        }
    }

    #[test]
    fn only_what_is_provably_blank_is_formatted() {
        let makes = |w: &Witnesses| judge("ext4", w) == Verdict::Make;
        assert!(makes(&blank()));
        assert!(makes(&Witnesses { record: Some(Format::Blank), ..blank() }));
        // Any witness alone is enough to stop it.
        assert!(!makes(&Witnesses { never_written: false, ..blank() }));
        assert!(!makes(&Witnesses { ends_are_zeros: false, ..blank() }));
        assert!(!makes(&Witnesses { read_only: true, ..blank() }));
        assert!(!makes(&Witnesses { record: Some(Format::Made(WHAT)), ..blank() }));
        for t in ["xfs", "ext4", "LVM2_member", "crypto_LUKS"] {
            assert!(!makes(&Witnesses { probe: Probe::Found(t.into()), ..blank() }));
        }
        assert!(!makes(&Witnesses { probe: Probe::Unclear("x".into()), ..blank() }));
    }

    #[test]
    fn every_combination_keeps_data_that_may_be_somebodys() {
        let records = [None, Some(Format::Blank), Some(Format::Making(WHAT)), Some(Format::Made(WHAT))];
        let probes = [
            Probe::Nothing,
            Probe::Found("ext4".into()),
            Probe::Found("xfs".into()),
            Probe::Unclear("x".into()),
        ];
        for record in &records {
            for probe in &probes {
                for bits in 0..8 {
                    let w = Witnesses {
                        record: record.clone(),
                        probe: probe.clone(),
                        never_written: bits & 1 != 0,
                        ends_are_zeros: bits & 2 != 0,
                        read_only: bits & 4 != 0,
                    };
                    if judge("ext4", &w) != Verdict::Make {
                        continue;
                    }
                    let ours = matches!(w.record, Some(Format::Making(_)));
                    let empty = w.never_written && w.ends_are_zeros && w.probe == Probe::Nothing;
                    assert!((ours || empty) && !w.read_only, "{w:?}");
                    assert!(!matches!(w.record, Some(Format::Made(_))), "{w:?}");
                }
            }
        }
    }

    #[test]
    fn what_was_made_is_used() {
        let w = Witnesses {
            record: Some(Format::Made(WHAT)),
            never_written: false,
            ends_are_zeros: false,
            probe: Probe::Found("ext4".into()),
            read_only: true,
        };
        assert_eq!(judge("ext4", &w), Verdict::Use);
        assert!(matches!(judge("xfs", &w), Verdict::Refuse(_)));
        let broken_off = Witnesses { record: Some(Format::Making(WHAT)), read_only: false, ..w };
        assert_eq!(judge("ext4", &broken_off), Verdict::Make);
    }

    #[test]
    fn what_blkid_says() {
        assert_eq!(read_probe(0, "DEVNAME=/dev/x\nTYPE=ext4\n"), Some(Probe::Found("ext4".into())));
        assert_eq!(read_probe(2, ""), Some(Probe::Nothing));
        assert!(matches!(read_probe(8, ""), Some(Probe::Unclear(_))));
        assert!(matches!(read_probe(0, "TYPE=ext4\nPTTYPE=gpt\n"), Some(Probe::Unclear(_))));
        assert!(matches!(read_probe(0, "PTTYPE=gpt\n"), Some(Probe::Found(_))));
        assert_eq!(read_probe(4, ""), None);
        assert_eq!(read_probe(0, ""), None);
    }

    #[test]
    fn records_read_back_and_odd_ones_are_errors() {
        let with = |text: &str| Vdi {
            attrs: std::collections::HashMap::from([(ATTR_FORMAT.into(), text.as_bytes().to_vec())]),
            ..Default::default()
        };
        for f in [Format::Blank, Format::Making(WHAT), Format::Made(WHAT)] {
            assert_eq!(Format::of(&with(&f.to_text().unwrap())).unwrap(), Some(f));
        }
        assert!(Format::of(&with("?")).is_err());
        assert!(Format::of(&with(r#"{"state":"burnt"}"#)).is_err());
        assert_eq!(Format::of(&Vdi::default()).unwrap(), None);
        assert!(Format::Made(WHAT).is_made_before(2_000_000));
        assert!(!Format::Made(WHAT).is_made_before(1_100_000));
        assert!(!Format::Making(WHAT).is_made_before(2_000_000));
    }

    #[tokio::test]
    async fn file_systems_are_made_and_found() {
        let dir = tempfile::tempdir().unwrap();
        for fs in [Fs::Ext4, Fs::Xfs] {
            let path = dir.path().join(fs.name());
            std::fs::File::create(&path).unwrap().set_len(fs.smallest()).unwrap();
            assert_eq!(probe(&path).await.unwrap(), Probe::Nothing);
            crate::mount::make(fs, &path).await.unwrap();
            assert_eq!(probe(&path).await.unwrap(), Probe::Found(fs.name().into()));
            crate::mount::check(fs, &path).await.unwrap();
        }
    }

    #[test]
    fn ends_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        std::fs::write(&path, vec![0; 3 << 20]).unwrap();
        assert!(both_ends(&path).unwrap());
        let mut bytes = vec![0; 3 << 20];
        *bytes.last_mut().unwrap() = 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(!both_ends(&path).unwrap());
        std::fs::write(&path, "").unwrap();
        assert!(both_ends(&path).is_err());
        assert!(both_ends(&dir.path().join("none")).is_err());
    }
}
