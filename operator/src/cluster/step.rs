//! What to ask the sheep for next, if anything. Pure.

use super::members::Members;
use super::seen::{Engine, Seen};
use sheepdog_client::pb;
use sheepdog_crds::{SheepdogClusterSpec, SheepdogClusterStatus};

/// Requests to the admin interface. Each may be repeated after the operator died in the middle.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Make the cluster. Always sent to the same sheep: a repeated request finds the cluster made.
    Format {
        /// Its address.
        host: String,
        /// What is asked for.
        request: pb::FormatRequest,
    },
    /// Empty a sheep, or stop that.
    Drain(pb::DrainNodeRequest),
    /// Begin to empty a disk that is to be taken out of use.
    Unplug(pb::UnplugDiskRequest),
    /// Let such a disk stay.
    Plug(pb::PlugDiskRequest),
    /// Copies of volumes that are made from now on.
    AlterCopies(pb::AlterCopiesRequest),
    /// Limits of recovery.
    SetRecovery(pb::SetRecoveryRequest),
    /// How long what is deleted can be brought back.
    SetTrash(pb::SetTrashRequest),
}

/// Why there is no cluster yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// Too few nodes match.
    TooFewNodes(String),
    /// Sheep have to start first.
    WaitingForSheep(String),
    /// There was a cluster, and the sheep do not know of it any more.
    FormatLost(String),
}

/// The next request, or what format waits for.
pub fn next(
    spec: &SheepdogClusterSpec,
    status: &SheepdogClusterStatus,
    seen: &Seen,
    m: &Members,
) -> (Vec<Step>, Option<Hold>) {
    match &seen.engine {
        Engine::Formatted(f) => (steady(spec, &f.info, m), None),
        Engine::Silent(_) => (Vec::new(), None),
        Engine::Absent => (Vec::new(), before(spec, seen, m, &[], &[])),
        Engine::Unformatted { waiting, silent } if status.cluster_id.is_some() => {
            if let Some(hold) = before(spec, seen, m, waiting, silent) {
                return (Vec::new(), Some(hold));
            }
            let text = format!(
                "all sheep wait for format, but this was cluster {}: its control log is gone from every node. Nothing is formatted over it. If the disks are there, run `dog cluster rebuild --from-disks` in a sheep's pod",
                status.cluster_id.as_deref().unwrap_or_default()
            );
            (Vec::new(), Some(Hold::FormatLost(text)))
        }
        Engine::Unformatted { waiting, silent } => {
            let hold = before(spec, seen, m, waiting, silent);
            if hold.is_some() {
                return (Vec::new(), hold);
            }
            (format(spec, seen, m).into_iter().collect(), None)
        }
    }
}

/// What must be so before a cluster may be made: every sheep that should be part of it runs, and says itself that it belongs to none. One that cannot be
/// asked might.
fn before(
    spec: &SheepdogClusterSpec,
    seen: &Seen,
    m: &Members,
    waiting: &[String],
    silent: &[(String, String)],
) -> Option<Hold> {
    let width = spec.redundancy.width();
    if m.groups.len() < width {
        return Some(Hold::TooFewNodes(format!(
            "{} of at least {width} nodes match the node groups: label more nodes, or ask for fewer copies",
            m.groups.len()
        )));
    }
    let missing: Vec<String> = m
        .groups
        .keys()
        .filter_map(|name| {
            let ip = seen.nodes.get(name).and_then(|n| n.ip.clone()).unwrap_or_default();
            if waiting.contains(&ip) {
                return None;
            }
            let said = silent.iter().find(|(host, _)| *host == ip).map(|(_, why)| why.clone());
            let pod = seen.pods.iter().find(|p| !p.gateway && p.node == *name);
            let why = match pod {
                None => "no pod yet".to_owned(),
                Some(p) => p.trouble.clone().or(said).unwrap_or_else(|| "is starting".into()),
            };
            Some(format!("{name}: {why}"))
        })
        .collect();
    (!missing.is_empty()).then(|| {
        Hold::WaitingForSheep(format!(
            "{} of {} sheep run; {}",
            m.groups.len() - missing.len(),
            m.groups.len(),
            missing.join("; ")
        ))
    })
}

fn format(spec: &SheepdogClusterSpec, seen: &Seen, m: &Members) -> Option<Step> {
    let host = m.groups.keys().find_map(|n| seen.nodes.get(n)?.ip.clone())?;
    Some(Step::Format {
        host,
        request: pb::FormatRequest {
            redundancy: Some(wire(&spec.redundancy)),
            min_copies: u32::from(spec.min_copies.unwrap_or(0)),
            strict: spec.strict_zones,
            object_size: 0,
            wait_for_nodes: u32::try_from(m.groups.len()).unwrap_or(u32::MAX),
            store: String::new(),
            trash_keep_ms: trash_keep(spec),
        },
    })
}

fn trash_keep(spec: &SheepdogClusterSpec) -> Option<u64> {
    crate::quantity::millis(&spec.trash.as_ref()?.keep)
}

/// As the admin interface says it.
pub fn wire(r: &sheepdog_crds::Redundancy) -> pb::Redundancy {
    match &r.erasure_coding {
        Some(e) => pb::Redundancy { copies: 0, data: e.data.into(), parity: e.parity.into() },
        None => pb::Redundancy { copies: r.copies.unwrap_or(0).into(), data: 0, parity: 0 },
    }
}

fn steady(spec: &SheepdogClusterSpec, info: &pb::ClusterInfo, m: &Members) -> Vec<Step> {
    let mut steps = Vec::new();
    let drain =
        |sheep: &str, cancel| Step::Drain(pb::DrainNodeRequest { node: sheep.into(), cancel, force: false });
    steps.extend(m.cancel.iter().map(|c| drain(&c.sheep, true)));
    steps.extend(m.drain.iter().map(|d| drain(&d.sheep, false)));
    let wanted = wire(&spec.redundancy);
    if wanted.copies + wanted.data > 0 && info.redundancy.as_ref().is_some_and(|r| *r != wanted) {
        steps.push(Step::AlterCopies(pb::AlterCopiesRequest { redundancy: Some(wanted) }));
    }
    if let (Some(want), Some(have)) = (&spec.recovery, &info.recovery) {
        let limit = want.max_bytes_per_second.as_deref().and_then(crate::quantity::bytes).unwrap_or(0);
        let wanted = pb::RecoverySettings {
            enabled: !want.paused,
            max_bytes_per_s: limit,
            concurrency: want.concurrency,
        };
        if wanted != *have {
            steps.push(Step::SetRecovery(pb::SetRecoveryRequest {
                enabled: Some(wanted.enabled),
                max_bytes_per_s: Some(wanted.max_bytes_per_s),
                concurrency: Some(wanted.concurrency),
            }));
        }
    }
    if let Some(keep) = trash_keep(spec).filter(|keep| *keep != info.trash_keep_ms) {
        steps.push(Step::SetTrash(pb::SetTrashRequest { keep_ms: Some(keep) }));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::super::seen::{Formatted, NodeSeen, PodSeen};
    use super::*;
    use serde_json::json;

    fn spec(more: serde_json::Value) -> SheepdogClusterSpec {
        let mut spec = json!({"nodeGroups": [{"name": "default"}], "redundancy": {"copies": 2}});
        for (k, v) in more.as_object().unwrap() {
            spec[k] = v.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    fn three(engine: Engine) -> (Seen, Members) {
        let nodes = (1..4).map(|n| {
            (format!("n{n}"), NodeSeen { ip: Some(format!("10.0.0.{n}")), ready: true, ..Default::default() })
        });
        let groups = (1..4).map(|n| (format!("n{n}"), "default".to_owned())).collect();
        (
            Seen { nodes: nodes.collect(), engine, ..Default::default() },
            Members { groups, ..Default::default() },
        )
    }

    fn waiting(hosts: &[u8], silent: &[(&str, &str)]) -> Engine {
        Engine::Unformatted {
            waiting: hosts.iter().map(|n| format!("10.0.0.{n}")).collect(),
            silent: silent.iter().map(|(h, w)| ((*h).to_owned(), (*w).to_owned())).collect(),
        }
    }

    #[test]
    fn format_once_everybody_waits_for_it() {
        let (seen, m) = three(waiting(&[1, 2, 3], &[]));
        let (steps, hold) = next(&spec(json!({"minCopies": 1})), &Default::default(), &seen, &m);
        assert_eq!(hold, None);
        let [Step::Format { host, request }] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!(host, "10.0.0.1");
        assert_eq!((request.wait_for_nodes, request.min_copies), (3, 1));
        assert_eq!(request.redundancy.as_ref().map(|r| r.copies), Some(2));
        assert_eq!(request.trash_keep_ms, None, "the engine's own");
        let (steps, _) = next(&spec(json!({"trash": {"keep": "0s"}})), &Default::default(), &seen, &m);
        let [Step::Format { request, .. }] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!(request.trash_keep_ms, Some(0));
    }

    #[test]
    fn one_that_cannot_be_asked_might_be_part_of_a_cluster() {
        let (mut seen, m) = three(waiting(&[1, 2], &[("10.0.0.3", "connection refused")]));
        seen.pods.push(PodSeen { node: "n3".into(), ..Default::default() });
        let (steps, hold) = next(&spec(json!({})), &Default::default(), &seen, &m);
        assert!(steps.is_empty());
        let Some(Hold::WaitingForSheep(text)) = hold else { panic!("{hold:?}") };
        assert_eq!(text, "2 of 3 sheep run; n3: connection refused");
    }

    #[test]
    fn too_few_nodes() {
        let (seen, mut m) = three(Engine::Absent);
        m.groups = m.groups.into_iter().take(1).collect();
        let (_, hold) = next(&spec(json!({})), &Default::default(), &seen, &m);
        assert!(matches!(hold, Some(Hold::TooFewNodes(t)) if t.contains("1 of at least 2 nodes")));
    }

    #[test]
    fn nothing_is_formatted_over_a_cluster_that_was() {
        let was = SheepdogClusterStatus { cluster_id: Some("c1".into()), ..Default::default() };
        let (seen, m) = three(waiting(&[1, 2, 3], &[]));
        let (steps, hold) = next(&spec(json!({})), &was, &seen, &m);
        assert!(steps.is_empty());
        assert!(matches!(hold, Some(Hold::FormatLost(t)) if t.contains("rebuild --from-disks")));
        let (seen, m) = three(waiting(&[1], &[]));
        assert!(matches!(next(&spec(json!({})), &was, &seen, &m).1, Some(Hold::WaitingForSheep(_))));
    }

    #[test]
    fn a_cluster_that_is_as_it_should_be_is_asked_for_nothing() {
        let mut f = Formatted::default();
        f.info.redundancy = Some(pb::Redundancy { copies: 2, ..Default::default() });
        f.info.recovery = Some(pb::RecoverySettings { enabled: true, max_bytes_per_s: 0, concurrency: 4 });
        f.info.trash_keep_ms = 86_400_000;
        let (seen, m) = three(Engine::Formatted(Box::new(f.clone())));
        let settled = spec(json!({"recovery": {"concurrency": 4}, "trash": {"keep": "24h"}}));
        assert_eq!(next(&settled, &Default::default(), &seen, &m), (vec![], None));
        let other = spec(
            json!({"redundancy": {"copies": 3}, "recovery": {"paused": true, "maxBytesPerSecond": "100Mi", "concurrency": 2}, "trash": {"keep": "7d"}}),
        );
        let (steps, _) = next(&other, &Default::default(), &seen, &m);
        let redundancy = Some(pb::Redundancy { copies: 3, ..Default::default() });
        assert_eq!(
            steps,
            vec![
                Step::AlterCopies(pb::AlterCopiesRequest { redundancy }),
                Step::SetRecovery(pb::SetRecoveryRequest {
                    enabled: Some(false),
                    max_bytes_per_s: Some(100 << 20),
                    concurrency: Some(2)
                }),
                Step::SetTrash(pb::SetTrashRequest { keep_ms: Some(604_800_000) }),
            ]
        );
        // What the spec does not mention is dog's business.
        f.info.trash_keep_ms = 5;
        f.info.recovery = Some(pb::RecoverySettings { enabled: false, max_bytes_per_s: 7, concurrency: 1 });
        let (seen, m) = three(Engine::Formatted(Box::new(f)));
        assert_eq!(next(&spec(json!({})), &Default::default(), &seen, &m), (vec![], None));
    }
}
