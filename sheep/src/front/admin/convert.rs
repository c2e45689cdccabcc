//! Between the cluster state and the messages of the admin interface. Pure.

use super::backend::{IoCounters, Standing};
use sheepdog_client::pb;
use sheepdog_client::{Error, ErrorKind};
use sheepdog_cluster::{
    Access, Attachment, ClusterState, CommandError, EventLevel, Limits, Node, NodeState, RecoveryConfig,
    Redundancy, Reply, Session, Snapshot, Vdi,
};
use sheepdog_proto::NodeId;
use std::collections::BTreeSet;

use crate::control::ControlError;
use crate::store::DiskInfo;

/// A refusal of the state machine.
pub(crate) fn command_error(e: &CommandError) -> Error {
    let kind = match e {
        CommandError::NotFound(_) => ErrorKind::Missing,
        CommandError::Exists(_) => ErrorKind::Exists,
        CommandError::Busy(_) => ErrorKind::Busy,
        CommandError::Invalid(_) => ErrorKind::Usage,
        CommandError::NotEnough(_) => ErrorKind::Cluster,
        CommandError::Fenced => ErrorKind::Moved,
        CommandError::NotFormatted => ErrorKind::NotFormatted,
    };
    Error::new(kind, e.to_string())
}

/// A proposal without an answer.
pub(super) fn control_error(e: &ControlError) -> Error {
    let kind = match e {
        ControlError::NotFormatted => ErrorKind::NotFormatted,
        ControlError::Unavailable(_) | ControlError::ShuttingDown => ErrorKind::Cluster,
    };
    Error::new(kind, e.to_string())
}

/// The state machine's answer, or its refusal as an error.
pub(super) fn accept(reply: Result<Reply, ControlError>) -> Result<Reply, Error> {
    match reply {
        Ok(Reply::Error(e)) => Err(command_error(&e)),
        Ok(reply) => Ok(reply),
        Err(e) => Err(control_error(&e)),
    }
}

/// Redundancy as asked for; absent or all zero: the default.
pub(super) fn redundancy_in(r: Option<pb::Redundancy>) -> Result<Option<Redundancy>, Error> {
    let usage = |text: &str| Error::new(ErrorKind::Usage, text);
    let byte = |n: u32, what: &str| u8::try_from(n).map_err(|_| usage(&format!("{n} {what} are too many")));
    match r {
        None => Ok(None),
        Some(r) if r.copies > 0 && (r.data > 0 || r.parity > 0) => {
            Err(usage("say either a number of copies or a copy policy D:P"))
        }
        Some(r) if r.copies > 0 => Ok(Some(Redundancy::Copies(byte(r.copies, "copies")?))),
        Some(r) if r.data > 0 => {
            Ok(Some(Redundancy::Erasure { data: byte(r.data, "strips")?, parity: byte(r.parity, "strips")? }))
        }
        Some(_) => Ok(None),
    }
}

pub(super) fn redundancy_out(r: Redundancy) -> pb::Redundancy {
    match r {
        Redundancy::Copies(n) => pb::Redundancy { copies: n.into(), ..Default::default() },
        Redundancy::Erasure { data, parity } => {
            pb::Redundancy { copies: 0, data: data.into(), parity: parity.into() }
        }
    }
}

pub(super) fn snapshot(s: &Snapshot) -> pb::Snapshot {
    pb::Snapshot {
        id: s.id,
        tag: s.tag.clone(),
        size: s.size,
        created_ms: s.created,
        used: None,
        locked_until_ms: s.locked_until,
    }
}

pub(super) fn attachment(a: &Attachment) -> pb::Attachment {
    use pb::attachment::Access as Out;
    let access = match a.access {
        Access::Single => Out::Single,
        Access::Shared => Out::Shared,
        Access::ReadOnly => Out::ReadOnly,
    };
    pb::Attachment { id: a.id.0, holder: a.holder.clone(), access: access.into(), since_ms: a.since }
}

/// A number that means nothing is refused: it may ask for less than the least we know.
pub(super) fn access_in(number: i32) -> Result<Access, Error> {
    use pb::attachment::Access as In;
    match In::try_from(number) {
        Ok(In::Single) => Ok(Access::Single),
        Ok(In::Shared) => Ok(Access::Shared),
        Ok(In::ReadOnly) => Ok(Access::ReadOnly),
        Err(_) => {
            Err(Error::new(ErrorKind::Usage, format!("there is no access {number}: is this sheep older?")))
        }
    }
}

fn session(s: &Session) -> pb::Session {
    use pb::session::State;
    match s {
        Session::Closed => pb::Session { state: State::Closed.into(), ..Default::default() },
        Session::Open { owner, generation, ready, .. } => pb::Session {
            state: if *ready { State::Open } else { State::Opening }.into(),
            owner: owner.to_string(),
            generation: generation.0,
        },
        Session::Unclean { generation } => {
            pb::Session { state: State::Unclean.into(), generation: generation.0, ..Default::default() }
        }
    }
}

/// The snapshot that a clone still reads from.
fn parent(state: &ClusterState, v: &Vdi) -> Option<pb::Parent> {
    let newest = v.top.or_else(|| v.snapshots.last().map(|s| s.layer))?;
    let base = state.bottom(newest)?.base?;
    let source = state.vdis.get(&state.layers.get(&base)?.vdi);
    // By its id when it is in the trash: another VDI may have its name.
    let source = source.filter(|s| s.is_listed());
    let snapshot = source.and_then(|s| s.shown().find(|x| x.layer == base));
    Some(pb::Parent {
        vdi: state.layers.get(&base)?.vdi.0,
        name: source.map(|s| s.name.clone()).unwrap_or_default(),
        snapshot: snapshot.map_or(0, |s| s.id),
        tag: snapshot.map(|s| s.tag.clone()).unwrap_or_default(),
    })
}

fn limits_out(l: Limits) -> pb::Limits {
    let Limits { iops, iops_burst, bandwidth, bandwidth_burst } = l;
    pb::Limits { iops, iops_burst, bandwidth, bandwidth_burst }
}

pub(super) fn limits_in(l: Option<pb::Limits>) -> Limits {
    let pb::Limits { iops, iops_burst, bandwidth, bandwidth_burst } = l.unwrap_or_default();
    Limits { iops, iops_burst, bandwidth, bandwidth_burst }
}

pub(super) fn vdi(state: &ClusterState, v: &Vdi) -> pb::Vdi {
    let family = state.families.get(&v.family);
    pb::Vdi {
        id: v.id.0,
        uuid: uuid::Uuid::from_u128(v.uuid).to_string(),
        name: v.name.clone(),
        size: v.size,
        redundancy: state.redundancy(v.family).map(redundancy_out),
        object_size: family.map_or(0, |f| f.object_size),
        working: v.working().is_some(),
        created_ms: v.created,
        snapshots: v.shown().map(snapshot).collect(),
        attrs: v.attrs.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        locks: v
            .locks
            .iter()
            .map(|l| pb::Lock { holder: l.holder.clone(), exclusive: l.exclusive, since_ms: l.since })
            .collect(),
        session: Some(session(&v.session)),
        parent: parent(state, v),
        flattening: v.flattening,
        usage: None,
        attachments: v.attachments.iter().map(attachment).collect(),
        limits: Some(limits_out(v.limits)),
    }
}

pub(super) fn node(n: &Node, standing: &Standing) -> pb::Node {
    use pb::node::State;
    let state = match n.state {
        NodeState::Up => State::Up,
        NodeState::Draining => State::Draining,
        NodeState::Down => State::Down,
        NodeState::Out => State::Out,
    };
    pb::Node {
        id: n.id.to_string(),
        host: n.addr.host.clone(),
        client_port: n.addr.client_port.into(),
        peer_port: n.addr.peer_port.into(),
        zone: n.zone.clone().unwrap_or_default(),
        weight: n.weight,
        vnodes: n.vnodes,
        gateway: n.gateway,
        state: state.into(),
        since_ms: n.since,
        version: n.version.clone(),
        synced: n.synced.0,
        voter: standing.voters.contains(&n.id),
        leader: standing.leader == Some(n.id),
    }
}

pub(super) fn disk(d: &DiskInfo) -> pb::NodeDisk {
    let (state, reason) = super::backend::disk_state(d);
    pb::NodeDisk {
        id: d.id.to_string(),
        path: d.path.clone(),
        total: d.total,
        free: d.free,
        used: d.used,
        objects: d.objects,
        state: state.into(),
        reason,
        full_in_s: d.opinion.full_in.map(|t| t.as_secs()),
    }
}

pub(super) fn io(c: &IoCounters) -> pb::IoStat {
    pb::IoStat {
        reads: c.reads,
        writes: c.writes,
        discards: c.discards,
        flushes: c.flushes,
        read_bytes: c.read_bytes,
        write_bytes: c.write_bytes,
        read_us: c.read_us,
        write_us: c.write_us,
        errors: c.errors,
    }
}

pub(super) fn recovery(c: &RecoveryConfig) -> pb::RecoverySettings {
    pb::RecoverySettings {
        enabled: c.enabled,
        max_bytes_per_s: c.max_bytes_per_s,
        concurrency: c.concurrency,
    }
}

pub(super) fn event(e: &sheepdog_cluster::Event) -> pb::Event {
    use pb::event::Level;
    let level = match e.level {
        EventLevel::Info => Level::Info,
        EventLevel::Warning => Level::Warning,
        EventLevel::Error => Level::Error,
    };
    pb::Event { id: e.id, at_ms: e.at, level: level.into(), text: e.text.clone() }
}

/// Nodes, named in words.
fn names(ids: &[NodeId]) -> String {
    some_of(ids.iter().map(|n| n.short()).collect())
}

/// A few of them, and how many more there are.
fn some_of(mut all: Vec<String>) -> String {
    if all.len() > 5 {
        let more = all.len() - 5;
        all.truncate(5);
        all.push(format!("and {more} more"));
    }
    all.join(", ")
}

/// The cluster's condition, with reasons.
pub(super) fn condition(state: &ClusterState) -> (pb::cluster_info::Status, Vec<String>) {
    use pb::cluster_info::Status;
    let Some(format) = &state.format else {
        return (Status::WaitingForFormat, vec!["run `dog cluster format` on one of the sheep".into()]);
    };
    let holders: Vec<&Node> =
        state.nodes.values().filter(|n| !n.gateway && n.state != NodeState::Out).collect();
    let pick = |f: &dyn Fn(&Node) -> bool| -> Vec<NodeId> {
        holders.iter().filter(|n| f(n)).map(|n| n.id).collect()
    };
    let down = pick(&|n| n.state == NodeState::Down);
    let draining = pick(&|n| n.state == NodeState::Draining);
    let behind = pick(&|n| n.is_up() && n.synced < state.epoch);
    let up = holders.len() - down.len();
    let (mut status, mut reasons) = (Status::Ok, Vec::new());
    let mut degraded = |text: String| {
        status = Status::Degraded;
        reasons.push(text);
    };
    if !down.is_empty() {
        degraded(format!("down: {}", names(&down)));
    }
    if !draining.is_empty() {
        degraded(format!("being drained: {}", names(&draining)));
    }
    if !behind.is_empty() {
        degraded(format!("being filled: {}", names(&behind)));
    }
    let asked = state.families.keys().filter_map(|f| state.redundancy(*f)).chain([format.redundancy]);
    if let Some(most) = asked.max_by_key(|r| r.spread())
        && holders.len() < most.spread()
    {
        let asked = if most.spread() == 1 { "is asked for" } else { "are asked for" };
        degraded(format!("{most} {asked}, but only {} sheep store data", holders.len()));
    }
    let lost: BTreeSet<_> = state.lost.values().flat_map(|l| &l.families).collect();
    if !lost.is_empty() {
        let of = state.vdis.values().filter(|v| lost.contains(&v.family));
        status = Status::Impaired;
        reasons.push(format!(
            "volumes of one copy have lost a disk: {}. Requests for what may have been on it wait: start its sheep with the disk, \
             delete the volumes (`dog vdi delete --now`, `dog trash purge`), or accept the loss with `dog cluster recover force`",
            some_of(of.map(|v| v.called()).collect())
        ));
    }
    let min = format.min_copies.map_or((format.redundancy.width() - 1).max(1), usize::from);
    if up < min {
        status = Status::Impaired;
        reasons.push(format!("writes wait: {min} copies must be written, {up} sheep are up"));
    }
    (status, reasons)
}
