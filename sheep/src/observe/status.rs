//! Is this sheep well, and if not, why: decided from what control plane and data thread tell.

use super::gather::{DataCondition, Silent};
use crate::control::plane::ControlPlane;
use crate::control::{Control, boottime_millis};
use sheepdog_cluster::NodeState;
use std::time::Duration;

/// The control plane as this node knows it.
#[derive(Debug, Default, Clone)]
pub struct ControlReport {
    /// This node.
    pub node: String,
    /// Cluster, empty before format.
    pub cluster: String,
    /// Failure zone.
    pub zone: String,
    /// The cluster is formatted.
    pub formatted: bool,
    /// Cluster whose data was on the disks at the start.
    pub remembers: Option<String>,
    /// Keeps no data.
    pub gateway: bool,
    /// This process counts as serving.
    pub up: bool,
    /// `up`, `draining`, `down`, `out`, `unknown`.
    pub state: &'static str,
    /// Epoch of the map.
    pub epoch: u64,
    /// Complete up to here.
    pub synced: u64,
    /// The lease is good for so long.
    pub lease: Duration,
    /// Nodes by state.
    pub nodes: [(&'static str, u64); 4],
    /// Working VDIs.
    pub vdis: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Things in the trash.
    pub trash: u64,
    /// Sizes of the VDIs among them, bytes.
    pub trash_size: u64,
    /// This node leads.
    pub leading: bool,
    /// Somebody leads.
    pub leader_known: bool,
    /// This node votes.
    pub voter: bool,
    /// Voters.
    pub voters: u64,
    /// Raft's term.
    pub term: u64,
    /// Newest log entry.
    pub last_log: Option<u64>,
    /// Newest applied entry.
    pub last_applied: Option<u64>,
    /// Control links from here that go through a third sheep.
    pub relayed: u64,
    /// Position of the state.
    pub applied: u64,
}

fn word(state: NodeState) -> &'static str {
    match state {
        NodeState::Up => "up",
        NodeState::Draining => "draining",
        NodeState::Down => "down",
        NodeState::Out => "out",
    }
}

impl ControlReport {
    /// Of the state alone.
    pub fn of(control: &Control) -> Self {
        let (me, incarnation) = (control.me(), control.incarnation());
        let mut r = control.read(|s| {
            let mut nodes = [NodeState::Up, NodeState::Draining, NodeState::Down, NodeState::Out]
                .map(|state| (word(state), 0));
            for n in s.nodes.values() {
                nodes.iter_mut().filter(|(w, _)| *w == word(n.state)).for_each(|(_, count)| *count += 1);
            }
            let mine = s.nodes.get(&me);
            Self {
                node: me.to_string(),
                cluster: s.format.as_ref().map(|f| f.cluster.to_string()).unwrap_or_default(),
                zone: mine.and_then(|n| n.zone.clone()).unwrap_or_default(),
                formatted: s.format.is_some(),
                gateway: mine.is_some_and(|n| n.gateway),
                up: mine.is_some_and(|n| n.is_up() && n.incarnation == incarnation),
                state: mine.map_or("unknown", |n| word(n.state)),
                epoch: s.epoch.0,
                synced: mine.map_or(0, |n| n.synced.0),
                nodes,
                vdis: s.vdis.values().filter(|v| v.working().is_some()).count() as u64,
                snapshots: s.vdis.values().map(|v| v.shown().count() as u64).sum(),
                trash: s.trash.len() as u64,
                trash_size: s.trash_size(),
                applied: s.index.0,
                ..Self::default()
            }
        });
        r.lease = Duration::from_millis(control.lease().until().saturating_sub(boottime_millis()));
        r
    }

    /// With raft's part.
    pub fn with_raft(control: &Control, plane: &ControlPlane) -> Self {
        let s = plane.status();
        Self {
            leading: s.leading,
            leader_known: s.leader.is_some(),
            remembers: s.remembers.map(|c| c.to_string()),
            voter: s.voter,
            voters: s.voters.len() as u64,
            term: s.term,
            last_log: s.last_log,
            last_applied: s.last_applied,
            relayed: s.relayed as u64,
            ..Self::of(control)
        }
    }
}

/// Why this process does not serve as it should, in sentences; empty: it does. The first ones matter most.
pub fn complaints(c: &ControlReport, data: &Result<DataCondition, Silent>) -> Vec<String> {
    let mut out = Vec::new();
    if let (false, Some(cluster)) = (c.formatted, &c.remembers) {
        out.push(format!(
            "waiting: the disks hold data of cluster {cluster}. It is found again when a sheep of it runs; if it is lost everywhere, run `dog cluster \
             rebuild --from-disks` on one of the sheep"
        ));
    } else if !c.formatted {
        out.push("waiting for format: run `dog cluster format` on one of the sheep".into());
    } else if c.lease.is_zero() {
        out.push("no lease: the majority of voters is out of reach, I/O waits".into());
    } else if !c.up {
        out.push("the cluster does not count this process as up".into());
    }
    match data {
        Err(silent) => out.push(silent.to_string()),
        Ok(d) => out.extend(d.complaints.iter().cloned()),
    }
    out
}

/// Why this sheep should not be counted on yet: not serving, or not complete.
pub fn unready(c: &ControlReport, data: &Result<DataCondition, Silent>) -> Vec<String> {
    let mut out = Vec::new();
    if !c.formatted || c.lease.is_zero() || !c.up {
        out.extend(complaints(c, &Ok(DataCondition::default())));
    }
    if let Err(silent) = data {
        out.push(silent.to_string());
    }
    if c.formatted && c.up && !c.gateway && c.synced < c.epoch {
        out.push(behind(c, data.as_ref().ok()));
    }
    out
}

/// What a node that is being filled waits for.
pub fn behind(c: &ControlReport, data: Option<&DataCondition>) -> String {
    let mut text = format!("catching up: complete to epoch {} of {}", c.synced, c.epoch);
    if let Some(d) = data {
        match &d.recovery.blocked {
            Some(why) => text.push_str(&format!(", waiting: {why}")),
            None => text.push_str(&format!(", {} objects to fetch", d.recovery.missing)),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_told() {
        let well = ControlReport {
            formatted: true,
            up: true,
            epoch: 3,
            synced: 3,
            lease: Duration::from_secs(1),
            ..ControlReport::default()
        };
        let fine = || Ok(DataCondition::default());
        assert!(unready(&well, &fine()).is_empty() && complaints(&well, &fine()).is_empty());
        for (c, data, word) in [
            (ControlReport { formatted: false, ..well.clone() }, fine(), "waiting for format"),
            (
                ControlReport { formatted: false, remembers: Some("7".into()), ..well.clone() },
                fine(),
                "data of cluster 7",
            ),
            (ControlReport { lease: Duration::ZERO, ..well.clone() }, fine(), "no lease"),
            (ControlReport { up: false, ..well.clone() }, fine(), "as up"),
            (ControlReport { synced: 2, ..well.clone() }, fine(), "epoch 2 of 3, 0 objects"),
            (well.clone(), Err(Silent), "data thread"),
        ] {
            let reasons = unready(&c, &data);
            assert!(reasons.len() == 1 && reasons[0].contains(word), "{word}: {reasons:?}");
        }
        assert!(unready(&ControlReport { synced: 2, gateway: true, ..well.clone() }, &fine()).is_empty());
        let full = DataCondition { complaints: vec!["disk /d is full".into()], ..DataCondition::default() };
        assert_eq!(complaints(&well, &Ok(full)), ["disk /d is full"]);
    }
}
