//! How a VDI looks as a `Vdi` object. Pure.

use crate::condition::{Said, merge};
use crate::names::{CLUSTER, LISTED};
use crate::quantity;
use k8s_openapi::jiff::Timestamp;
use sheepdog_client::pb::{self, session::State};
use sheepdog_crds::{DeletionPolicy, Vdi, VdiSpec, VdiStatus};
use std::collections::BTreeMap;

/// What is known about a VDI besides what the cluster says of it.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Space it takes, for people.
    pub used: Option<String>,
    /// NAMESPACE/NAME of its claim.
    pub claim: Option<String>,
    /// Kubernetes node of each sheep.
    pub hosts: BTreeMap<String, String>,
    /// The object has been carried out as it is now, or asks for nothing that is not there. Until then it is not said to be ready: nobody would carry it out any more.
    pub carried_out: bool,
}

/// Its status.
pub fn status(object: &Vdi, v: &pb::Vdi, known: &Known, now: Timestamp) -> VdiStatus {
    let old = object.status.clone().unwrap_or_default();
    let session = v.session.as_ref();
    let open = session.is_some_and(|s| s.state() == State::Open);
    let owner = session.filter(|_| open).map(|s| {
        let short: String = s.owner.chars().take(8).collect();
        known.hosts.get(&s.owner).cloned().unwrap_or(short)
    });
    let ready = match (v.working, v.size >= quantity::bytes(&object.spec.size).unwrap_or(0)) {
        (false, _) => {
            let text = "the volume has been deleted, only snapshots of it are left";
            Some(Said::new("Ready", false, "Deleted", text))
        }
        (true, false) => Some(Said::new("Ready", false, "Resizing", "the volume is smaller than spec.size")),
        (true, true) => {
            known.carried_out.then(|| Said::new("Ready", true, "Ready", "the volume can be used"))
        }
    };
    let holders: Vec<&str> = v.attachments.iter().map(|a| a.holder.as_str()).collect();
    let holders = holders.join(", ");
    let attached = match session.map(pb::Session::state) {
        _ if !holders.is_empty() => {
            let by = owner.as_deref().map(|o| format!("; owned on {o}")).unwrap_or_default();
            Said::new("Attached", true, "Attached", format!("attached to {holders}{by}"))
        }
        Some(State::Open) => {
            Said::new("Attached", true, "Open", format!("owned on {}", owner.as_deref().unwrap_or("?")))
        }
        Some(State::Opening) => Said::new("Attached", true, "Opening", "being opened"),
        Some(State::Unclean) => Said::new(
            "Attached",
            false,
            "Unclean",
            "its owner died while it was open; the next open compares the copies",
        ),
        Some(State::Closed) | None => Said::new("Attached", false, "Closed", "nobody has it open"),
    };
    let said: Vec<Said> = ready.into_iter().chain([attached]).collect();
    VdiStatus {
        observed_generation: if known.carried_out {
            object.metadata.generation
        } else {
            old.observed_generation
        },
        conditions: merge(&old.conditions, &said, object.metadata.generation, now),
        uuid: Some(v.uuid.clone()),
        id: Some(v.id),
        size_bytes: i64::try_from(v.size).ok(),
        used: known.used.clone(),
        redundancy: v.redundancy.as_ref().map(redundancy),
        limits: v.limits.as_ref().and_then(limits),
        attached_to: Some(holders).filter(|h| !h.is_empty()).or(owner),
        claim: known.claim.clone(),
        snapshots: i64::try_from(v.snapshots.len()).ok(),
    }
}

pub(super) fn redundancy(r: &pb::Redundancy) -> String {
    match (r.copies, r.data) {
        (1, 0) => "1 copy".into(),
        (n, 0) => format!("{n} copies"),
        (_, d) => format!("{d}:{}", r.parity),
    }
}

/// Limits as they are, for people; None: as fast as it can. A burst of a second's worth goes without saying.
pub(super) fn limits(l: &pb::Limits) -> Option<String> {
    let one = |rate: u64, burst: u64, unit: &str, show: fn(u64) -> String| {
        let more = if burst == rate { String::new() } else { format!(" (burst {})", show(burst)) };
        (rate > 0).then(|| format!("{}{unit}{more}", show(rate)))
    };
    let iops = one(l.iops, l.iops_burst, " IOPS", |n| n.to_string());
    let bandwidth = one(l.bandwidth, l.bandwidth_burst, "/s", quantity::exact);
    let all: Vec<String> = iops.into_iter().chain(bandwidth).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// An object for a VDI that has none.
pub fn listed(cluster: &str, namespace: &str, name: &str, v: &pb::Vdi) -> Vdi {
    let spec = VdiSpec {
        cluster: cluster.into(),
        vdi_name: (v.name != name).then(|| v.name.clone()),
        size: quantity::exact(v.size),
        redundancy: None,
        limits: None,
        source: None,
        // Whoever made the VDI decides about it: this object only shows it.
        deletion_policy: DeletionPolicy::Retain,
    };
    let mut object = Vdi::new(name, spec);
    object.metadata.namespace = Some(namespace.into());
    object.metadata.labels =
        Some([(CLUSTER.to_owned(), cluster.to_owned()), (LISTED.to_owned(), "true".to_owned())].into());
    object
}

/// Names of objects are lower-case letters, digits, '-' and '.'; those of VDIs are anything.
pub fn object_name(v: &pb::Vdi, is_taken: impl Fn(&str) -> bool) -> String {
    let fits = |s: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        s.len() <= 200
            && edge(s.chars().next())
            && edge(s.chars().last())
            && s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    if fits(&v.name) && !is_taken(&v.name) {
        return v.name.clone();
    }
    let plain: String = v
        .name
        .chars()
        .take(150)
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    let plain = plain.trim_matches('-');
    let id: String =
        v.uuid.chars().filter(char::is_ascii_hexdigit).take(12).collect::<String>().to_lowercase();
    if plain.is_empty() { format!("vdi-{id}") } else { format!("{plain}-{id}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vdi(name: &str) -> pb::Vdi {
        pb::Vdi {
            name: name.into(),
            uuid: "6F9619FF-8B86-D011-B42D-00CF4FC964FF".into(),
            size: 1 << 30,
            working: true,
            redundancy: Some(pb::Redundancy { copies: 3, ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn names_fit_kubernetes_and_stay_apart() {
        let free = |_: &str| false;
        assert_eq!(object_name(&vdi("pvc-1"), free), "pvc-1");
        assert_eq!(object_name(&vdi("pvc-1"), |_| true), "pvc-1-6f9619ff8b86");
        assert_eq!(object_name(&vdi("Alpine Linux"), free), "alpine-linux-6f9619ff8b86");
        assert_eq!(object_name(&vdi("あ"), free), "vdi-6f9619ff8b86");
        assert_eq!(object_name(&vdi("-x"), free), "x-6f9619ff8b86");
        assert!(object_name(&vdi(&"a".repeat(255)), free).len() <= 200);
    }

    #[test]
    fn a_listed_object_passes_the_schema() {
        let object = listed("main", "sheepdog", "disk", &vdi("disk"));
        let json = serde_json::to_value(&object).unwrap();
        let back: Vdi = sheepdog_crds::check::accept(&json, None).unwrap();
        assert_eq!((back.vdi_name(), back.spec.size.as_str()), ("disk", "1Gi"));
        assert_eq!(listed("main", "s", "a-b", &vdi("A B")).vdi_name(), "A B");
    }

    /// What the schema takes is what sheep take.
    #[test]
    fn the_least_bandwidth_is_the_engines() {
        let mut object = listed("main", "sheepdog", "disk", &vdi("disk"));
        let least = sheepdog_client::limits::MIN_BANDWIDTH;
        for (bytes, good) in [(0, true), (1, false), (least - 1, false), (least, true)] {
            let bandwidth = Some(bytes.to_string());
            object.spec.limits = Some(sheepdog_crds::Limits { bandwidth, ..Default::default() });
            let taken = sheepdog_crds::check::accept::<Vdi>(&serde_json::to_value(&object).unwrap(), None);
            assert_eq!(taken.is_ok(), good, "{bytes}");
        }
    }

    #[test]
    fn limits_for_people() {
        let of = |iops, iops_burst, bandwidth, bandwidth_burst| {
            limits(&pb::Limits { iops, iops_burst, bandwidth, bandwidth_burst })
        };
        assert_eq!(of(0, 0, 0, 0), None);
        assert_eq!(of(500, 500, 0, 0).as_deref(), Some("500 IOPS"));
        assert_eq!(of(0, 0, 50 << 20, 0).as_deref(), Some("50Mi/s (burst 0)"));
        assert_eq!(
            of(500, 900, 50_000_000, 1 << 30).as_deref(),
            Some("500 IOPS (burst 900), 50000000/s (burst 1Gi)")
        );
    }

    /// Whoever looks only must not make it look carried out: nobody would do it any more.
    #[test]
    fn an_object_that_is_not_carried_out_does_not_become_ready() {
        let v = vdi("disk");
        let mut object = listed("main", "sheepdog", "disk", &v);
        object.metadata.generation = Some(2);
        let refused = Said::new("Ready", false, "Refused", "no");
        let at = Timestamp::from_second(1).unwrap();
        object.status = Some(VdiStatus {
            observed_generation: Some(1),
            conditions: merge(&[], &[refused], Some(1), at),
            ..Default::default()
        });
        let s = status(&object, &v, &Known::default(), at);
        assert_eq!(s.observed_generation, Some(1));
        assert!(s.conditions.iter().any(|c| c.reason == "Refused") && s.size_bytes == Some(1 << 30));
        let s = status(&object, &v, &Known { carried_out: true, ..Default::default() }, at);
        assert_eq!(s.observed_generation, Some(2));
        assert!(crate::condition::holds(&s.conditions, "Ready"));
    }

    #[test]
    fn who_has_it_open() {
        let mut v = vdi("disk");
        let object = listed("main", "sheepdog", "disk", &v);
        let known = Known {
            hosts: [("id1".to_owned(), "node1".to_owned())].into(),
            carried_out: true,
            ..Default::default()
        };
        let at = Timestamp::from_second(1).unwrap();
        let s = status(&object, &v, &known, at);
        assert_eq!((s.attached_to.as_deref(), s.redundancy.as_deref()), (None, Some("3 copies")));
        assert!(crate::condition::holds(&s.conditions, "Ready"));
        let mut session = pb::Session { owner: "id1".into(), ..Default::default() };
        session.set_state(State::Open);
        v.session = Some(session);
        let s = status(&object, &v, &known, at);
        assert_eq!(s.attached_to.as_deref(), Some("node1"));
        assert!(crate::condition::holds(&s.conditions, "Attached"));
        v.working = false;
        assert!(!crate::condition::holds(&status(&object, &v, &known, at).conditions, "Ready"));
    }
}
