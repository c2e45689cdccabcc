//! Applying entries: one file per subject. Nothing here may panic, whatever an entry says.

mod attachment;
mod lifecycle;
mod node;
mod session;
mod snapshot;
mod trash;
mod vdi;

use crate::{ClusterState, Command, CommandError, Entry, Event, EventLevel, Millis, Reply};
use sheepdog_proto::{ControlIndex, LayerId, MAX_LAYER_ID};

/// Answers remembered for requests that are proposed again.
const RECENT: usize = 4096;
/// Events kept.
const EVENTS: usize = 1000;

/// Bytes of a text for people that are kept.
const MAX_TEXT: usize = 1 << 10;

/// The beginning of a text for people.
pub(crate) fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

type Outcome = Result<Reply, CommandError>;

impl ClusterState {
    /// Apply one committed entry. Never panics, whatever the entry says.
    pub fn apply(&mut self, index: ControlIndex, entry: &Entry) -> Reply {
        self.index = index;
        if entry.request != 0
            && let Some((_, reply)) = self.recent.iter().rev().find(|(r, _)| *r == entry.request)
        {
            return reply.clone();
        }
        let reply = self.run(entry.now, &entry.command).unwrap_or_else(Reply::Error);
        if entry.request != 0 {
            self.recent.push_back((entry.request, reply.clone()));
            if self.recent.len() > RECENT {
                self.recent.pop_front();
            }
        }
        reply
    }

    fn run(&mut self, now: Millis, command: &Command) -> Outcome {
        use Command as C;
        match command {
            C::Format(format) => return self.format(now, format),
            C::Restore(state) => return self.restore(now, state),
            _ if self.format.is_none() => return Err(CommandError::NotFormatted),
            _ => {}
        }
        match command {
            C::Format(_) | C::Restore(_) => Ok(Reply::Done),
            C::NodeUp(hello) => self.node_up(now, hello),
            C::NodeDown { node, incarnation } => self.node_down(now, *node, *incarnation),
            C::NodeOut { node } => self.node_out(now, *node),
            C::NodeDrain { node, on } => self.node_drain(now, *node, *on),
            C::NodeSynced { node, incarnation, epoch } => self.node_synced(now, *node, *incarnation, *epoch),
            C::NodeWeight { node, weight, vnodes } => self.node_weight(now, *node, *weight, *vnodes),
            C::DiskRetired { node, disk } => self.disk_retired(now, *node, *disk),
            C::DiskAdded { node, disk } => self.disk_added(now, *node, disk),
            C::DiskEmptied { node, incarnation, disk } => self.disk_emptied(now, *node, *incarnation, *disk),
            C::VdiCreate { name, uuid, size, redundancy, object_size } => {
                self.vdi_create(now, name, *uuid, *size, *redundancy, *object_size)
            }
            C::VdiDelete { vdi, snapshot: Some(which), with_snapshots: _, at_once } => {
                self.snapshot_delete(now, *vdi, which, *at_once)
            }
            C::VdiDelete { vdi, snapshot: None, with_snapshots, at_once } => {
                self.vdi_delete(now, *vdi, *with_snapshots, *at_once)
            }
            C::TrashRestore { vdi, snapshot: Some(n), name } => {
                self.snapshot_restore(*vdi, *n, name.as_deref())
            }
            C::TrashRestore { vdi, snapshot: None, name } => self.vdi_restore(*vdi, name.as_deref()),
            C::TrashPurge { vdi, snapshot } => self.trash_purge(now, *vdi, *snapshot),
            C::TrashExpire => self.trash_expire(now),
            C::SetTrash { keep } => self.set_trash(now, *keep),
            C::SnapshotLock { vdi, snapshot, until } => self.snapshot_lock(now, *vdi, snapshot, *until),
            C::VdiRename { vdi, name } => self.vdi_rename(*vdi, name),
            C::VdiResize { vdi, size, generation } => self.vdi_resize(*vdi, *size, *generation),
            C::Snapshot { vdis, tag } => self.snapshot(now, vdis, tag),
            C::Clone { source, snapshot, name, uuid, redundancy, flatten } => {
                self.clone_vdi(now, *source, snapshot, name, *uuid, *redundancy, *flatten)
            }
            C::FlattenStart { vdi } => self.flatten_start(*vdi),
            C::FlattenDone { vdi, generation } => self.flatten_done(*vdi, *generation),
            C::Rollback { vdi, snapshot, generation } => self.rollback(now, *vdi, snapshot, *generation),
            C::AlterCopies { vdi, redundancy } => self.alter_copies(now, *vdi, *redundancy),
            C::SetLimits { vdi, limits } => self.set_limits(*vdi, *limits),
            C::SetAttr { vdi, key, value, exclusive } => {
                self.set_attr(*vdi, key, value.as_deref(), *exclusive)
            }
            C::Lock { vdi, holder, exclusive } => self.lock(now, *vdi, holder, *exclusive),
            C::Unlock { vdi, holder } => self.unlock(*vdi, holder.as_deref()),
            C::SessionOpen { vdi, node, incarnation } => self.session_open(*vdi, *node, *incarnation),
            C::SessionReady { vdi, generation } => self.session_ready(*vdi, *generation),
            C::SessionClose { vdi, generation } => self.session_close(*vdi, *generation),
            C::GatewayOpen { vdi, node, incarnation } => self.gateway_open(*vdi, *node, *incarnation),
            C::GatewayClose { vdi, node, since, fence } => self.gateway_close(*vdi, *node, *since, *fence),
            C::Attach { vdi, holder, access } => self.attach(now, *vdi, holder, *access),
            C::Detach { vdi, which } => self.detach(*vdi, which),
            C::LayerMerged { layer, node, epoch } => self.layer_merged(*layer, *node, *epoch),
            C::Recovery { enabled, max_bytes_per_s, concurrency } => {
                self.set_recovery(now, *enabled, *max_bytes_per_s, *concurrency)
            }
            C::SetTiming(timing) => self.set_timing(*timing),
            C::Shutdown => {
                self.shutdowns += 1;
                self.event(now, EventLevel::Info, "an operator shut the cluster down".into());
                Ok(Reply::Done)
            }
            C::Force { reason } => self.force(now, reason),
            C::Nothing => Ok(Reply::Done),
            C::Note { level, text } => {
                self.event(now, *level, text.clone());
                Ok(Reply::Done)
            }
        }
    }

    pub(crate) fn event(&mut self, at: Millis, level: EventLevel, text: String) {
        let text = if text.len() > MAX_TEXT { clip(&text).to_owned() } else { text };
        self.events.push_back(Event { id: self.next_event, at, level, text });
        self.next_event += 1;
        while self.events.len() > EVENTS {
            self.events.pop_front();
        }
    }

    /// The next id for a layer or VDI; never given twice.
    pub(crate) fn take_id(&mut self) -> Result<LayerId, CommandError> {
        if self.last_id >= MAX_LAYER_ID {
            return Err(CommandError::Invalid(
                "all 16,777,215 volume and snapshot ids were used: make a new cluster and copy the volumes over".into(),
            ));
        }
        self.last_id += 1;
        Ok(LayerId(self.last_id))
    }
}
