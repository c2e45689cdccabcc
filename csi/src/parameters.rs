//! Parameters of storage classes and of volume attributes classes. Pure. What is not known is refused: a misspelt word would be a wish that nobody hears.

use crate::capability::Fs;
use crate::fault::{Fault, Outcome};
use sheepdog_client::pb::Redundancy;
use std::collections::HashMap;

/// Keys that sidecars add when told to (`--extra-create-metadata`).
const CLAIM: &str = "csi.storage.k8s.io/pvc/name";
const NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
/// Keys of sidecars that mean nothing to us.
const SIDECARS: &str = "csi.storage.k8s.io/";
/// The key of the file system, as sidecars pass it on when they do not put it into the capability.
const FS_TYPE: &str = "csi.storage.k8s.io/fstype";

/// Every key of a storage class, with what it says; also the table of `docs/csi.md`.
pub const KEYS: [(&str, &str); 7] = [
    ("copies", "how many copies of the data, 1 to 16; the cluster's number when absent"),
    ("copyPolicy", "D:P, data and parity strips instead of copies (erasure coding), for example 4:2"),
    ("fsType", "ext4 (default) or xfs"),
    ("objectSize", "bytes of an object, a power of two, with the suffix Ki or Mi; the cluster's when absent"),
    ("flatten", "true: clones and restored snapshots copy everything in the background and then stand alone"),
    (
        "encrypted",
        "true: the node encrypts with LUKS2; needs a node stage secret with the key encryptionPassphrase",
    ),
    ("checkFilesystem", "false: no e2fsck before an ext4 volume is mounted"),
];

/// Keys of a volume attributes class.
pub const MUTABLE: [&str; 2] = ["copies", "copyPolicy"];

/// Parameters as they are meant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    /// Copies, or strips; absent: the cluster's.
    pub redundancy: Option<Redundancy>,
    /// File system where a claim names none.
    pub fs: Option<Fs>,
    /// Bytes; absent: the cluster's.
    pub object_size: Option<u32>,
    /// Clones stand alone in the end.
    pub flatten: bool,
    /// LUKS2 on the node.
    pub encrypted: bool,
    /// No e2fsck.
    pub unchecked: bool,
    /// Claim, `NAMESPACE/NAME`.
    pub claim: Option<String>,
}

impl Parameters {
    /// Check parameters and mutable parameters, which say the same when both are given.
    pub fn new(parameters: &HashMap<String, String>, mutable: &HashMap<String, String>) -> Outcome<Self> {
        let mut p = Self { redundancy: redundancy(parameters)?, ..Self::default() };
        for (key, value) in parameters {
            match key.as_str() {
                "copies" | "copyPolicy" => {}
                "fsType" | "fstype" | FS_TYPE => p.fs = Some(Fs::parse(value)?),
                "objectSize" => p.object_size = Some(bytes(key, value)?),
                "flatten" => p.flatten = flag(key, value)?,
                "encrypted" => p.encrypted = flag(key, value)?,
                "checkFilesystem" => p.unchecked = !flag(key, value)?,
                other if other.starts_with(SIDECARS) => {}
                other => return Err(unknown(other, KEYS.iter().map(|(k, _)| *k))),
            }
        }
        if let (Some(ns), Some(name)) = (parameters.get(NAMESPACE), parameters.get(CLAIM)) {
            p.claim = Some(format!("{ns}/{name}"));
        }
        // A volume attributes class is meant for the volume, a storage class for all of them.
        p.redundancy = Mutable::new(mutable)?.redundancy.or(p.redundancy);
        Ok(p)
    }
}

/// What may be changed while a volume is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mutable {
    /// Copies, or strips.
    pub redundancy: Option<Redundancy>,
}

impl Mutable {
    /// Check.
    pub fn new(parameters: &HashMap<String, String>) -> Outcome<Self> {
        if let Some(other) = parameters.keys().find(|key| !MUTABLE.contains(&key.as_str())) {
            return Err(unknown(other, MUTABLE.into_iter()));
        }
        Ok(Self { redundancy: redundancy(parameters)? })
    }
}

fn redundancy(parameters: &HashMap<String, String>) -> Outcome<Option<Redundancy>> {
    match (parameters.get("copies"), parameters.get("copyPolicy")) {
        (Some(_), Some(_)) => Err(Fault::invalid("say either copies or copyPolicy".to_owned())),
        (Some(n), None) => Ok(Some(Redundancy { copies: copies(n)?, data: 0, parity: 0 })),
        (None, Some(policy)) => strips(policy).map(Some),
        (None, None) => Ok(None),
    }
}

fn strips(value: &str) -> Outcome<Redundancy> {
    let numbers = value.split_once(':').and_then(|(d, p)| Some((d.parse().ok()?, p.parse().ok()?)));
    match numbers {
        Some((data @ 1..=16, parity @ 1..=15)) => Ok(Redundancy { copies: 0, data, parity }),
        _ => Err(Fault::invalid(format!(
            "copyPolicy \"{value}\": say D:P, data and parity strips, for example 4:2 (at most 16:15)"
        ))),
    }
}

fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Fault {
    let known: Vec<&str> = known.collect();
    Fault::invalid(format!("parameter \"{key}\" is not known: there are {}", known.join(", ")))
}

fn copies(value: &str) -> Outcome<u32> {
    match value.parse() {
        Ok(n) if (1..=16).contains(&n) => Ok(n),
        _ => Err(Fault::invalid(format!("copies \"{value}\": say a number from 1 to 16"))),
    }
}

fn flag(key: &str, value: &str) -> Outcome<bool> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Fault::invalid(format!("{key} \"{value}\": say true or false, in quotes"))),
    }
}

fn bytes(key: &str, value: &str) -> Outcome<u32> {
    let wrong = || Fault::invalid(format!("{key} \"{value}\": say a power of two such as 4Mi"));
    let (digits, unit) = match value.strip_suffix("Ki").map(|d| (d, 10)) {
        Some(both) => both,
        None => value.strip_suffix("Mi").map_or((value, 0), |d| (d, 20)),
    };
    let n: u32 = digits.parse().map_err(|_| wrong())?;
    let bytes = n.checked_mul(1 << unit).filter(|b| b.is_power_of_two());
    bytes.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn what_is_known_is_understood() {
        let p = Parameters::new(
            &map(&[
                ("copies", "3"),
                ("fsType", "xfs"),
                ("objectSize", "1Mi"),
                ("flatten", "true"),
                ("checkFilesystem", "false"),
                (CLAIM, "data"),
                (NAMESPACE, "shop"),
                ("csi.storage.k8s.io/pv/name", "pvc-1"),
            ]),
            &map(&[]),
        );
        let want = Parameters {
            redundancy: Some(Redundancy { copies: 3, data: 0, parity: 0 }),
            fs: Some(Fs::Xfs),
            object_size: Some(1 << 20),
            flatten: true,
            encrypted: false,
            unchecked: true,
            claim: Some("shop/data".into()),
        };
        assert_eq!(p, Ok(want));
        let both = Parameters::new(&map(&[("copies", "3")]), &map(&[("copyPolicy", "4:2")])).unwrap();
        assert_eq!(both.redundancy, Some(Redundancy { copies: 0, data: 4, parity: 2 }));
    }

    #[test]
    fn what_is_not_is_refused_with_what_there_is() {
        for bad in [
            ("copys", "3"),
            ("copies", "0"),
            ("copies", "x"),
            ("copies", "17"),
            ("copyPolicy", "4"),
            ("copyPolicy", "0:1"),
            ("copyPolicy", "17:1"),
            ("flatten", "yes"),
            ("encrypted", ""),
            ("objectSize", "3Mi"),
            ("objectSize", "4Gi"),
            ("objectSize", "4294967295Mi"),
            ("fsType", "zfs"),
        ] {
            let e = Parameters::new(&map(&[bad]), &map(&[])).unwrap_err();
            assert_eq!(e.kind, crate::fault::Kind::Invalid, "{bad:?}");
        }
        let e = Parameters::new(&map(&[("copys", "3")]), &map(&[])).unwrap_err();
        assert!(e.text.contains("copies, copyPolicy, fsType"), "{e}");
        assert!(Mutable::new(&map(&[("copies", "3"), ("copyPolicy", "4:2")])).is_err());
        assert!(Parameters::new(&map(&[]), &map(&[("flatten", "true")])).is_err());
        assert!(Mutable::new(&map(&[("size", "1")])).is_err());
    }
}
