//! Format, restore, switches.

use super::trash::check_trash;
use super::{Outcome, clip};
use crate::{
    ClusterState, CommandError, EventLevel, Format, Millis, NodeState, Redundancy, Reply, Session, Timing,
};
use sheepdog_proto::{Epoch, Generation, MAX_OBJECT_SIZE, MIN_OBJECT_SIZE, NodeId};

pub(super) fn check_object_size(size: u32) -> Result<(), CommandError> {
    if size.is_power_of_two() && (MIN_OBJECT_SIZE..=MAX_OBJECT_SIZE).contains(&size) {
        return Ok(());
    }
    Err(CommandError::Invalid("the object size must be a power of two from 1M to 64M".into()))
}

pub(super) fn check_redundancy(r: Redundancy) -> Result<(), CommandError> {
    match r {
        Redundancy::Copies(1..=16) => Ok(()),
        Redundancy::Copies(_) => Err(CommandError::Invalid("the number of copies must be 1 to 16".into())),
        Redundancy::Erasure { data: 1..=16, parity: 1..=15 } => Ok(()),
        Redundancy::Erasure { data, parity } => Err(CommandError::Invalid(format!(
            "{data}:{parity} is no erasure code: data strips are 1 to 16, parity strips 1 to 15"
        ))),
    }
}

/// Longest interval, milliseconds: 10 years. Sums of a few of them and a clock never overflow.
pub(super) const MAX_INTERVAL: u64 = 3_650 * 86_400_000;

/// Counters go up by one at a time and never get this far.
const MAX_COUNTER: u64 = u64::MAX >> 8;

fn check_timing(t: Timing) -> Result<(), CommandError> {
    if t.heartbeat == 0 || t.lease / 2 < t.heartbeat || t.down_out < t.lease || t.down_out > MAX_INTERVAL {
        return Err(CommandError::Invalid(
            "the lease must be at least two heartbeats, the down-out interval at least a lease and at most 10 years".into(),
        ));
    }
    Ok(())
}

impl ClusterState {
    pub(super) fn format(&mut self, now: Millis, format: &Format) -> Outcome {
        if let Some(f) = &self.format {
            return if f.cluster == format.cluster {
                Ok(Reply::Formatted(f.cluster))
            } else {
                Err(CommandError::Exists("the cluster is formatted already".into()))
            };
        }
        check_object_size(format.object_size)?;
        check_redundancy(format.redundancy)?;
        super::vdi::check_strips(format.redundancy, format.object_size)?;
        check_timing(format.timing)?;
        check_trash(format.trash_keep)?;
        if format.min_copies.is_some_and(|m| m == 0 || m as usize > format.redundancy.width()) {
            return Err(CommandError::Invalid(
                "min copies must be at least 1 and at most the number of copies".into(),
            ));
        }
        self.format = Some(format.clone());
        self.epoch = Epoch(1);
        self.recovery = crate::RecoveryConfig::default();
        self.ring_changed(now, "the cluster was formatted".into());
        self.event(now, EventLevel::Info, "the cluster was formatted".into());
        Ok(Reply::Formatted(format.cluster))
    }

    pub(super) fn restore(&mut self, now: Millis, state: &ClusterState) -> Outcome {
        if !self.vdis.is_empty() {
            return Err(CommandError::Exists(
                "this cluster has volumes: rebuild only into an empty one".into(),
            ));
        }
        let Some(format) = &state.format else {
            return Err(CommandError::Invalid("the state found on the disks was never formatted".into()));
        };
        let counters = [
            state.last_generation,
            state.last_attachment,
            state.epoch.0,
            state.layers_revision,
            state.next_event,
        ];
        if counters.iter().any(|n| *n > MAX_COUNTER) {
            return Err(CommandError::Invalid("the state found on the disks is damaged".into()));
        }
        let index = self.index;
        let recent = std::mem::take(&mut self.recent);
        let mut new = state.clone();
        new.format = Some(format.clone());
        for n in new.nodes.values_mut().filter(|n| n.state != NodeState::Out) {
            n.state = NodeState::Down;
            n.since = now;
        }
        for v in new.vdis.values_mut() {
            if v.session != Session::Closed {
                v.session = Session::Unclean { generation: v.generation };
                v.gateways.clear();
            }
        }
        *self = new;
        self.index = index;
        self.recent = recent;
        // Commits after the snapshot that was found may have given out more of these.
        self.last_generation += 1 << 20;
        self.last_attachment += 1 << 20;
        self.last_id = self.last_id.saturating_add(1024).min(sheepdog_proto::MAX_LAYER_ID);
        for v in self.vdis.values_mut() {
            v.generation = Generation(v.generation.0);
        }
        self.epoch = Epoch(self.epoch.0 + 1024);
        self.ring_changed(now, "the control plane was rebuilt from disks".into());
        self.forced.push("the control plane was rebuilt from the snapshots on the data disks".into());
        self.event(now, EventLevel::Warning, "the control plane was rebuilt from disks".into());
        Ok(Reply::Done)
    }

    pub(super) fn set_recovery(
        &mut self,
        now: Millis,
        enabled: Option<bool>,
        max_bytes_per_s: Option<u64>,
        concurrency: Option<u32>,
    ) -> Outcome {
        if concurrency.is_some_and(|c| !(1..=64).contains(&c)) {
            return Err(CommandError::Invalid("recovery works on 1 to 64 objects at a time".into()));
        }
        if let Some(on) = enabled
            && on != self.recovery.enabled
        {
            self.recovery.enabled = on;
            let text = if on { "recovery was resumed" } else { "recovery was paused" };
            self.event(now, EventLevel::Info, text.into());
        }
        self.recovery.max_bytes_per_s = max_bytes_per_s.unwrap_or(self.recovery.max_bytes_per_s);
        self.recovery.concurrency = concurrency.unwrap_or(self.recovery.concurrency);
        Ok(Reply::Done)
    }

    pub(super) fn set_timing(&mut self, timing: Timing) -> Outcome {
        check_timing(timing)?;
        if let Some(f) = &mut self.format {
            f.timing = timing;
        }
        Ok(Reply::Done)
    }

    pub(super) fn force(&mut self, now: Millis, reason: &str) -> Outcome {
        self.forced.push(clip(reason).to_owned());
        let epoch = self.epoch;
        for n in self.nodes.values_mut().filter(|n| matches!(n.state, NodeState::Up | NodeState::Draining)) {
            n.complete_to(epoch);
            n.up_since = n.up_since.min(epoch);
        }
        for n in self.nodes.values_mut() {
            (n.down_at, n.lost_at) = (Epoch(0), Epoch(0));
        }
        for n in self.nodes.values_mut().filter(|n| !n.is_up()) {
            n.complete_to_nothing();
        }
        self.lost.clear();
        let up: Vec<NodeId> = self.nodes.values().filter(|n| n.is_up()).map(|n| n.id).collect();
        up.into_iter().for_each(|n| self.disks_settled(n));
        self.settle();
        self.event(now, EventLevel::Error, format!("an operator accepted loss: {reason}"));
        Ok(Reply::Epoch(self.epoch))
    }
}
