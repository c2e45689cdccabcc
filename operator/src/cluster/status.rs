//! From what was seen and decided to the status that people and `kubectl wait` read. Pure.

use super::disks::Disks;
use super::members::Members;
use super::roll::Roll;
use super::seen::{Engine, Formatted, Seen};
use super::step::Hold;
use crate::condition::{Said, merge};
use crate::names::Names;
use crate::quantity::human;
use k8s_openapi::jiff::Timestamp;
use sheepdog_client::pb;
use sheepdog_client::pb::cluster_info::Status as Health;
use sheepdog_client::pb::node::State;
use sheepdog_crds::cluster::{NodeStatus, UpdateKind};
use sheepdog_crds::{SheepdogCluster, SheepdogClusterStatus};

/// Nodes that are listed.
const NODES: usize = 200;
/// Less than this part of the space free, in percent, is low: a lost sheep's data must fit on the others.
const LOW_PERCENT: u64 = 20;

/// What was decided.
#[derive(Debug, Default)]
pub struct Decided {
    /// Who stores data.
    pub members: Members,
    /// Disks that leave, and those in trouble.
    pub disks: Disks,
    /// Why there is no cluster yet.
    pub hold: Option<Hold>,
    /// Restarts.
    pub roll: Roll,
    /// The spec asks for what cannot be: reason and sentence.
    pub invalid: Option<(&'static str, String)>,
    /// Something that had to be done failed: a sentence.
    pub failed: Option<String>,
}

/// The new status.
pub fn status(c: &SheepdogCluster, seen: &Seen, d: &Decided, now: Timestamp) -> SheepdogClusterStatus {
    let old = c.status.clone().unwrap_or_default();
    let said = [
        available(seen, d),
        progressing(c, seen, d),
        degraded(seen),
        quorum(seen),
        recovering(seen),
        capacity(seen),
        disk_trouble(seen, d),
        upgrade(d),
    ];
    let generation = c.metadata.generation;
    let mut s = SheepdogClusterStatus {
        conditions: merge(&old.conditions, &said, generation, now),
        observed_generation: generation,
        secret_name: Some(Names::of(c).secret(c)),
        nodes: nodes(c, seen, &d.members),
        draining: draining(&old.draining, seen, d, c.spec.ports.client),
        ..old
    };
    let port = c.spec.ports.client;
    let total = d.members.groups.len();
    if let Engine::Formatted(f) = &seen.engine {
        let host = |name: &String| seen.nodes.get(name).and_then(|n| n.ip.as_deref());
        let up = |name: &&String| {
            host(name)
                .and_then(|h| f.sheep_at(h, port))
                .is_some_and(|n| matches!(n.state(), State::Up | State::Draining))
        };
        s.cluster_id = Some(f.info.id.clone());
        s.sheep = Some(format!("{}/{total}", d.members.groups.keys().filter(up).count()));
        s.epoch = i64::try_from(f.info.epoch).ok();
        s.vdis = i64::try_from(f.info.vdis).ok();
        s.version = Some(versions(f));
        let pods = seen.pods.iter().filter(|p| p.gateway && !p.deleting);
        let gateway_up = |host: &str| f.gateway_at(host, port).is_some_and(|n| n.state() == State::Up);
        let (mut wanted, mut gateways) = (0, 0);
        for p in pods {
            wanted += 1;
            gateways += usize::from(p.host.as_deref().is_some_and(gateway_up));
        }
        s.gateways = Some(format!("{gateways}/{wanted}"));
        if let Some((total, free)) = space(f) {
            s.usage = Some(format!("{} of {}", human(total - free), human(total)));
            s.capacity_bytes = i64::try_from(total).ok();
            s.free_bytes = i64::try_from(free).ok();
        }
        s.recovery = Some(f.recovery.as_ref().map_or_else(|| "unknown".into(), moving));
    } else {
        let running = seen.pods.iter().filter(|p| !p.gateway && p.running).count();
        s.sheep = Some(format!("{running}/{total}"));
    }
    s
}

fn available(seen: &Seen, d: &Decided) -> Said {
    let no = |reason, text: &str| Said::new("Available", false, reason, text);
    if let (Some((reason, text)), false) = (&d.invalid, matches!(seen.engine, Engine::Formatted(_))) {
        return no(reason, text);
    }
    match (&seen.engine, &d.hold) {
        (_, Some(Hold::TooFewNodes(t))) => no("TooFewNodes", t),
        (_, Some(Hold::WaitingForSheep(t))) => no("WaitingForSheep", t),
        (_, Some(Hold::FormatLost(t))) => no("FormatLost", t),
        (Engine::Absent, None) => no("Starting", "no sheep runs yet"),
        (Engine::Unformatted { .. }, None) => no("Formatting", "all sheep run, the cluster is being made"),
        (Engine::Silent(why), None) => Said::new(
            "Available",
            None,
            "Unreachable",
            format!("the operator cannot ask the sheep; volumes may work nevertheless: {why}"),
        ),
        (Engine::Formatted(f), None) => match f.info.status() {
            Health::Impaired => no("Impaired", &join(&f.info.reasons)),
            Health::WaitingForFormat => no("Formatting", "the cluster is being made"),
            Health::Ok | Health::Degraded => Said::new(
                "Available",
                true,
                "Serving",
                format!("{} of {} sheep are up", f.info.nodes_up, f.info.nodes_total),
            ),
        },
    }
}

fn progressing(c: &SheepdogCluster, seen: &Seen, d: &Decided) -> Said {
    let yes = |reason, text: String| Said::new("Progressing", true, reason, text);
    let no = |reason, text: String| Said::new("Progressing", false, reason, text);
    if c.spec.paused {
        return no("Paused", "spec.paused is true: the operator only watches".into());
    }
    if let Some((reason, text)) = &d.invalid {
        return no(reason, text.clone());
    }
    if let Some(why) = &d.failed {
        return no("Failed", why.clone());
    }
    if let Some(why) = &d.members.blocked {
        return no("ScaleDownBlocked", why.clone());
    }
    if !matches!(seen.engine, Engine::Formatted(_)) {
        return yes("Starting", "the cluster is being brought up".into());
    }
    if !d.members.leaving.is_empty() {
        return yes("ScalingDown", format!("being emptied: {}", d.members.leaving.join(", ")));
    }
    if let Some(text) = removing(&d.disks) {
        let stuck = d.disks.unplug.is_none() && d.disks.waiting.is_none();
        return if stuck { no("DiskRemovalBlocked", text) } else { yes("RemovingDisks", text) };
    }
    if !d.roll.outdated.is_empty() {
        let names = d.roll.outdated.join(", ");
        if c.spec.update_strategy.kind == UpdateKind::Manual {
            return no("OutOfDate", format!("delete these pods one by one to update them: {names}"));
        }
        return yes("Updating", format!("{} pods are out of date: {names}", d.roll.outdated.len()));
    }
    if let Some(w) = &d.roll.waiting {
        return yes("Starting", w.clone());
    }
    no("Done", "everything is as the spec says".into())
}

fn degraded(seen: &Seen) -> Said {
    match &seen.engine {
        Engine::Formatted(f) if f.is_well() => {
            Said::new("Degraded", false, "Redundant", "every volume has all its copies")
        }
        Engine::Formatted(f) => Said::new("Degraded", true, "Reduced", join(&f.info.reasons)),
        Engine::Silent(why) => Said::new("Degraded", None, "Unreachable", why.clone()),
        Engine::Absent | Engine::Unformatted { .. } => {
            Said::new("Degraded", None, "NotFormatted", "there is no cluster yet")
        }
    }
}

fn quorum(seen: &Seen) -> Said {
    match &seen.engine {
        Engine::Formatted(f) if !f.info.leader.is_empty() => Said::new(
            "QuorumHeld",
            true,
            "LeaderKnown",
            format!("{} voters, epoch {}", f.info.voters.len(), f.info.epoch),
        ),
        Engine::Formatted(_) => {
            Said::new("QuorumHeld", false, "NoLeader", "nothing can be decided: too few voters are up")
        }
        Engine::Silent(why) => Said::new("QuorumHeld", None, "Unreachable", why.clone()),
        Engine::Absent | Engine::Unformatted { .. } => {
            Said::new("QuorumHeld", None, "NotFormatted", "there is no cluster yet")
        }
    }
}

fn recovering(seen: &Seen) -> Said {
    match &seen.engine {
        Engine::Formatted(f) => match &f.recovery {
            Some(r) if r.idle => Said::new("Recovering", false, "Idle", "nothing is being moved"),
            Some(r) => Said::new("Recovering", true, "Moving", moving(r)),
            None => Said::new("Recovering", None, "Unknown", "the sheep did not say"),
        },
        _ => Said::new("Recovering", None, "Unreachable", "the cluster cannot be asked"),
    }
}

fn moving(r: &pb::RecoveryReply) -> String {
    if r.idle {
        return "idle".into();
    }
    let busy: Vec<&pb::NodeRecovery> = r.nodes.iter().filter(|n| !n.complete).collect();
    let (done, total) =
        busy.iter().fold((0, 0), |(d, t), n| (d + n.objects_done, t + n.objects_total.max(n.objects_done)));
    let waits: Vec<&str> =
        busy.iter().map(|n| n.waiting.as_str()).filter(|w| !w.is_empty()).take(3).collect();
    let mut text = format!("{done}/{total} objects");
    if r.settings.as_ref().is_some_and(|s| !s.enabled) {
        text = format!("paused, {text}");
    }
    if !waits.is_empty() {
        text = format!("{text}; waits for: {}", waits.join("; "));
    }
    text
}

fn space(f: &Formatted) -> Option<(u64, u64)> {
    let sum = |part: fn(&pb::NodeSpace) -> u64| f.space.iter().map(part).sum::<u64>();
    let total = sum(|s| s.total);
    (total > 0).then(|| (total, sum(|s| s.free).min(total)))
}

fn capacity(seen: &Seen) -> Said {
    let Engine::Formatted(f) = &seen.engine else {
        return Said::new("CapacityLow", None, "Unreachable", "the cluster cannot be asked");
    };
    let full: Vec<String> = f
        .space
        .iter()
        .flat_map(|s| s.disks.iter().map(move |d| (s, d)))
        .filter(|(_, d)| d.state() == pb::node_disk::State::Full)
        .map(|(s, d)| format!("{} on {}", d.path, s.node.as_ref().map_or("?", |n| n.host.as_str())))
        .collect();
    if !full.is_empty() {
        let text =
            format!("full, so that writes wait: {}. Delete volumes, or add disks or sheep", full.join(", "));
        return Said::new("CapacityLow", true, "DiskFull", text);
    }
    match space(f) {
        None => Said::new("CapacityLow", None, "Unknown", "the sheep did not say"),
        Some((total, free)) => {
            let percent = free.saturating_mul(100) / total;
            let low = percent < LOW_PERCENT;
            let reason = if low { "AlmostFull" } else { "Enough" };
            Said::new("CapacityLow", low, reason, format!("{percent} % of {} is free", human(total)))
        }
    }
}

fn removing(d: &Disks) -> Option<String> {
    let mut text = format!("disks that leave, one at a time: {}", d.leaving.join("; "));
    if let Some(why) = &d.waiting {
        text = format!("{text}. The next one when every volume has all its copies: {why}");
    }
    if let Some(why) = &d.blocked {
        text = format!("{text}. But {why}");
    }
    (!d.leaving.is_empty()).then_some(text)
}

fn disk_trouble(seen: &Seen, d: &Decided) -> Said {
    if !d.disks.troubles.is_empty() {
        return Said::new("DiskTrouble", true, "NotInUse", d.disks.troubles.join("; "));
    }
    match &seen.engine {
        Engine::Silent(why) => Said::new("DiskTrouble", None, "Unreachable", why.clone()),
        _ => Said::new("DiskTrouble", false, "InUse", "no disk is known to be in trouble"),
    }
}

fn upgrade(d: &Decided) -> Said {
    match &d.roll.blocked {
        Some(why) => Said::new("UpgradeBlocked", true, "Waiting", why.clone()),
        None => Said::new("UpgradeBlocked", false, "Free", "no restart is held back"),
    }
}

fn join(reasons: &[String]) -> String {
    if reasons.is_empty() { "no reason was given".into() } else { reasons.join("; ") }
}

fn versions(f: &Formatted) -> String {
    let mut all: Vec<&str> =
        f.nodes.iter().filter(|n| n.state() != State::Out).map(|n| n.version.as_str()).collect();
    all.sort_unstable();
    all.dedup();
    all.join(", ")
}

/// Nodes that we empty, until their sheep is out.
fn draining(old: &[String], seen: &Seen, d: &Decided, port: u16) -> Vec<String> {
    let mut all: Vec<String> = old.iter().chain(d.members.drain.iter().map(|m| &m.node)).cloned().collect();
    all.retain(|n| d.members.leaving.contains(n) || still_draining(n, seen, port));
    all.sort();
    all.dedup();
    all
}

fn still_draining(name: &String, seen: &Seen, port: u16) -> bool {
    let Engine::Formatted(f) = &seen.engine else { return true };
    let ip = seen.nodes.get(name).and_then(|n| n.ip.as_deref());
    ip.and_then(|ip| f.sheep_at(ip, port)).is_some_and(|n| n.state() == State::Draining)
}

fn nodes(c: &SheepdogCluster, seen: &Seen, m: &Members) -> Vec<NodeStatus> {
    m.groups.iter().take(NODES).map(|(name, group)| node(c, seen, name, group)).collect()
}

fn node(c: &SheepdogCluster, seen: &Seen, name: &str, group: &str) -> NodeStatus {
    let ip = seen.nodes.get(name).and_then(|n| n.ip.as_deref()).unwrap_or_default();
    let mut row = NodeStatus { name: name.into(), group: group.into(), ..Default::default() };
    row.zone = seen.nodes.get(name).and_then(|n| n.labels.get(&c.spec.zones.node_label)).cloned();
    match &seen.engine {
        Engine::Formatted(f) => match f.sheep_at(ip, c.spec.ports.client) {
            Some(n) => {
                row.sheep = Some(n.id.clone());
                row.zone = Some(n.zone.clone()).filter(|z| !z.is_empty());
                row.state = match n.state() {
                    State::Up => "up",
                    State::Draining => "draining",
                    State::Down => "down",
                    State::Out => "out",
                }
                .into();
            }
            None => row.state = "joining".into(),
        },
        Engine::Unformatted { waiting, .. } if waiting.iter().any(|w| w == ip) => {
            row.state = "waiting".into()
        }
        Engine::Silent(_) => row.state = "unknown".into(),
        _ => row.state = "starting".into(),
    }
    row
}
