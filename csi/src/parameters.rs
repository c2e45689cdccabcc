//! Parameters of storage classes and of volume attributes classes. Pure. What is not known is refused: a misspelt word would be a wish that nobody hears.

use crate::capability::Fs;
use crate::fault::{Fault, Outcome};
use sheepdog_client::limits::{MIN_BANDWIDTH, Rate, Wish};
use sheepdog_client::pb::Redundancy;
use sheepdog_client::{Policy, quantity};
use std::collections::HashMap;

/// Keys that sidecars add when told to (`--extra-create-metadata`).
const CLAIM: &str = "csi.storage.k8s.io/pvc/name";
const NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
/// Keys of sidecars that mean nothing to us.
const SIDECARS: &str = "csi.storage.k8s.io/";
/// The key of the file system, as sidecars pass it on when they do not put it into the capability.
const FS_TYPE: &str = "csi.storage.k8s.io/fstype";

/// Every key of a storage class, with what it says; also the table of `docs/csi.md`.
pub const KEYS: [(&str, &str); 11] = [
    ("copies", "how many copies of the data, 1 to 16; the cluster's number when absent"),
    ("copyPolicy", "D:P, data and parity strips instead of copies (erasure coding), for example 4:2"),
    ("iops", "requests a second, for example 500; 0 or none: as many as there are"),
    ("iopsBurst", "requests that may go at once after a pause; a second's worth when absent"),
    ("bandwidth", "bytes a second, for example 50Mi, at least 64Ki; 0 or none: as many as there are"),
    ("bandwidthBurst", "bytes that may go at once after a pause; a second's worth when absent"),
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
pub const MUTABLE: [&str; 6] = ["copies", "copyPolicy", "iops", "iopsBurst", "bandwidth", "bandwidthBurst"];

/// Parameters as they are meant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    /// Copies, or strips; absent: the cluster's.
    pub redundancy: Option<Redundancy>,
    /// How fast it may be used.
    pub limits: Wish,
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
        let (redundancy, limits) = (redundancy(parameters)?, limits(parameters)?);
        let mut p = Self { redundancy, limits, ..Self::default() };
        for (key, value) in parameters {
            match key.as_str() {
                read if MUTABLE.contains(&read) => {}
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
        let own = Mutable::new(mutable)?;
        p.redundancy = own.redundancy.or(p.redundancy);
        p.limits = own.limits.or(p.limits);
        Ok(p)
    }
}

/// What may be changed while a volume is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mutable {
    /// Copies, or strips.
    pub redundancy: Option<Redundancy>,
    /// How fast it may be used. What is not named stays as it is.
    pub limits: Wish,
}

impl Mutable {
    /// Check.
    pub fn new(parameters: &HashMap<String, String>) -> Outcome<Self> {
        if let Some(other) = parameters.keys().find(|key| !MUTABLE.contains(&key.as_str())) {
            return Err(unknown(other, MUTABLE.into_iter()));
        }
        Ok(Self { redundancy: redundancy(parameters)?, limits: limits(parameters)? })
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
    let policy: Result<Policy, _> = value.parse();
    policy.map(Redundancy::from).map_err(|why| Fault::invalid(format!("copyPolicy \"{value}\": {why}")))
}

fn limits(parameters: &HashMap<String, String>) -> Outcome<Wish> {
    let requests = |text: &str| text.parse().ok();
    let iops = rate(parameters, ["iops", "iopsBurst"], requests, "a whole number, for example 500")?;
    let bytes = "a number of bytes, for example 50Mi";
    let bandwidth = rate(parameters, ["bandwidth", "bandwidthBurst"], quantity::bytes, bytes)?;
    if bandwidth.is_some_and(|r| (1..MIN_BANDWIDTH).contains(&r.per_second)) {
        return Err(Fault::invalid(format!(
            "bandwidth: so little looks like a fault to whoever uses the volume: say at least {}Ki, or 0 for no limit",
            MIN_BANDWIDTH >> 10
        )));
    }
    Ok(Wish { iops, bandwidth })
}

/// A limit, with its burst.
fn rate(
    parameters: &HashMap<String, String>,
    [limit, burst]: [&str; 2],
    read: impl Fn(&str) -> Option<u64>,
    what: &str,
) -> Outcome<Option<Rate>> {
    let number = |key: &str, or: &str| {
        let wrong = |value: &str| Fault::invalid(format!("{key} \"{value}\": say {what}{or}"));
        parameters.get(key).map(|value| read(value).ok_or_else(|| wrong(value))).transpose()
    };
    let per_second = match parameters.get(limit).map(String::as_str) {
        Some("none") => Some(0),
        _ => number(limit, "; 0 or none takes the limit away")?,
    };
    match (per_second, number(burst, "")?) {
        (None | Some(0), Some(_)) => {
            Err(Fault::invalid(format!("{burst} belongs to a limit: say {limit}, too, and more than 0")))
        }
        (per_second, burst) => Ok(per_second.map(|per_second| Rate { per_second, burst })),
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

    fn rate_of(per_second: u64, burst: Option<u64>) -> Option<Rate> {
        Some(Rate { per_second, burst })
    }

    #[test]
    fn what_is_known_is_understood() {
        let p = Parameters::new(
            &map(&[
                ("copies", "3"),
                ("iops", "500"),
                ("bandwidth", "50M"),
                ("bandwidthBurst", "1.5Gi"),
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
            limits: Wish { iops: rate_of(500, None), bandwidth: rate_of(50_000_000, Some(3 << 29)) },
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

    /// A class that says nothing of a limit leaves it as it is, one that says 0 or none takes it away.
    #[test]
    fn limits_are_named_or_stay() {
        let of = |pairs: &[(&str, &str)]| Mutable::new(&map(pairs)).map(|m| m.limits);
        assert_eq!(of(&[("copies", "3")]), Ok(Wish::default()));
        let iops = |rate| Ok(Wish { iops: rate, bandwidth: None });
        assert_eq!(of(&[("iops", "500"), ("iopsBurst", "2000")]), iops(rate_of(500, Some(2000))));
        assert_eq!(of(&[("iops", "none")]), iops(rate_of(0, None)));
        let bandwidth = |rate| Ok(Wish { iops: None, bandwidth: rate });
        assert_eq!(of(&[("bandwidth", "0")]), bandwidth(rate_of(0, None)));
        assert_eq!(of(&[("bandwidth", "none")]), of(&[("bandwidth", "0")]));
        assert_eq!(of(&[("bandwidth", "64Ki")]), bandwidth(rate_of(MIN_BANDWIDTH, None)));
        // What the claim's own class names goes before what the storage class says, each limit with its burst.
        let both = Parameters::new(
            &map(&[("iops", "500"), ("iopsBurst", "900"), ("bandwidth", "50Mi")]),
            &map(&[("iops", "1000")]),
        );
        let want = Wish { iops: rate_of(1000, None), bandwidth: rate_of(50 << 20, None) };
        assert_eq!(both.map(|p| p.limits), Ok(want));
    }

    #[test]
    fn bad_limits_are_refused_with_what_to_say() {
        for (pairs, words) in [
            (&[("iops", "fast")][..], &["iops \"fast\"", "for example 500", "0 or none"][..]),
            (&[("iops", "1k")], &["iops \"1k\"", "whole number"]),
            (&[("iops", "-1")], &["whole number"]),
            (&[("iops", "")], &["whole number"]),
            (&[("iops", "5"), ("iopsBurst", "none")], &["iopsBurst \"none\"", "whole number"]),
            (&[("iopsBurst", "5")], &["iopsBurst belongs to a limit", "say iops"]),
            (&[("iops", "none"), ("iopsBurst", "5")], &["iopsBurst belongs to a limit"]),
            (&[("bandwidth", "50 Mi")], &["bandwidth \"50 Mi\"", "for example 50Mi", "0 or none"]),
            (&[("bandwidth", "-1Mi")], &["a number of bytes"]),
            (&[("bandwidth", "63Ki")], &["at least 64Ki"]),
            (&[("bandwidth", "100m")], &["at least 64Ki"]),
            (&[("bandwidth", "0"), ("bandwidthBurst", "1Mi")], &["bandwidthBurst belongs", "say bandwidth"]),
            (&[("bandwidth", "1Mi"), ("bandwidthBurst", "x")], &["bandwidthBurst \"x\"", "50Mi"]),
            (&[("iopsburst", "5")], &["not known", "iopsBurst, bandwidth, bandwidthBurst"]),
        ] {
            for e in [
                Mutable::new(&map(pairs)).unwrap_err(),
                Parameters::new(&map(pairs), &map(&[])).unwrap_err(),
                Parameters::new(&map(&[]), &map(pairs)).unwrap_err(),
            ] {
                assert_eq!(e.kind, crate::fault::Kind::Invalid, "{pairs:?}");
                assert!(words.iter().all(|w| e.text.contains(w)), "{pairs:?}: {e}");
            }
        }
    }

    /// The table for people is this one.
    #[test]
    fn every_key_is_in_the_documents() {
        let text = include_str!("../../docs/csi.md");
        for (key, _) in KEYS {
            assert!(text.contains(&format!("\n| `{key}` |")), "{key}");
        }
        let changeable = text.lines().find(|l| l.starts_with("A volume attributes class knows")).unwrap();
        for key in MUTABLE {
            assert!(changeable.contains(&format!("`{key}`")), "{key}");
        }
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
        assert!(e.text.contains("bandwidth, bandwidthBurst, fsType"), "{e}");
        assert!(Mutable::new(&map(&[("copies", "3"), ("copyPolicy", "4:2")])).is_err());
        assert!(Parameters::new(&map(&[]), &map(&[("flatten", "true")])).is_err());
        assert!(Mutable::new(&map(&[("size", "1")])).is_err());
    }
}
