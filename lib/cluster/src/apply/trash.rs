//! Deleting: into the trash, out of it again, or for good. Locks of snapshots.

use super::Outcome;
use super::lifecycle::MAX_INTERVAL;
use super::snapshot::{check_tag, find};
use crate::{
    ClusterState, CommandError, EventLevel, Millis, Reply, Session, Snapshot, SnapshotRef, Trashed, Vdi,
    VdiState,
};
use sheepdog_proto::VdiId;
use sheepdog_proto::time::timestamp;

/// Things that one entry really deletes: it is applied between two others, on every node.
const EXPIRED_AT_ONCE: usize = 64;

pub(super) fn check_trash(keep: Millis) -> Result<(), CommandError> {
    if keep > MAX_INTERVAL {
        return Err(CommandError::Invalid("the trash keeps things for at most 10 years".into()));
    }
    Ok(())
}

fn in_words(ms: Millis) -> String {
    match ms {
        ms if ms.is_multiple_of(3_600_000) => format!("{} h", ms / 3_600_000),
        ms if ms.is_multiple_of(60_000) => format!("{} min", ms / 60_000),
        ms => format!("{} s", ms.div_ceil(1000)),
    }
}

/// With the word by which it is found.
fn called(v: &Vdi, s: &Snapshot) -> String {
    let tag = if s.tag.is_empty() { s.id.to_string() } else { s.tag.clone() };
    format!("{}@{tag}", v.name)
}

fn locked(v: &Vdi, s: &Snapshot) -> CommandError {
    let until = timestamp(s.locked_until);
    CommandError::Busy(format!(
        "snapshot {} is locked until {until}: it cannot be deleted before",
        called(v, s)
    ))
}

/// The snapshot that is locked longest, of those that go where the volume goes.
fn longest_locked(v: &Vdi, now: Millis) -> Option<&Snapshot> {
    let with_it = v.snapshots.iter().filter(|s| s.trashed.is_none() && s.locked_until > now);
    with_it.max_by_key(|s| s.locked_until)
}

impl ClusterState {
    fn keep(&self) -> Millis {
        self.format.as_ref().map_or(0, |f| f.trash_keep)
    }

    pub(super) fn set_trash(&mut self, now: Millis, keep: Millis) -> Outcome {
        check_trash(keep)?;
        let Some(f) = self.format.as_mut().filter(|f| f.trash_keep != keep) else { return Ok(Reply::Done) };
        f.trash_keep = keep;
        let text = match keep {
            0 => "what is deleted from now on does not go into the trash".into(),
            keep => format!("what is deleted from now on waits in the trash for {}", in_words(keep)),
        };
        self.event(now, EventLevel::Info, text);
        Ok(Reply::Done)
    }

    pub(super) fn snapshot_lock(
        &mut self,
        now: Millis,
        id: VdiId,
        which: &SnapshotRef,
        until: Millis,
    ) -> Outcome {
        let v = self.listed_mut(id)?;
        let s = find(v, which)?;
        let (number, was) = (s.id, s.locked_until);
        if was > now && until < was {
            return Err(CommandError::Busy(format!(
                "snapshot {} is locked until {}: a lock can be extended, not shortened",
                called(v, s),
                timestamp(was)
            )));
        }
        if until <= now || until - now > MAX_INTERVAL {
            return Err(CommandError::Invalid(
                "a snapshot is locked until a time in the future, at most 10 years from now".into(),
            ));
        }
        if let Some(s) = v.snapshots.iter_mut().find(|s| s.id == number) {
            s.locked_until = until;
        }
        self.layers_revision += 1;
        Ok(Reply::Done)
    }

    pub(super) fn snapshot_delete(
        &mut self,
        now: Millis,
        id: VdiId,
        which: &SnapshotRef,
        at_once: bool,
    ) -> Outcome {
        let keep = if at_once { 0 } else { self.keep() };
        let v = self.listed_mut(id)?;
        let s = find(v, which)?;
        if s.locked_until > now {
            return Err(locked(v, s));
        }
        let number = s.id;
        match keep {
            0 => self.drop_snapshot(id, number),
            keep => {
                let t = Trashed { at: now, until: now.saturating_add(keep) };
                if let Some(s) = v.snapshots.iter_mut().find(|s| s.id == number) {
                    s.trashed = Some(t);
                }
                self.trash.insert((t.until, id, number));
            }
        }
        self.settle_vdi(id);
        Ok(Reply::Done)
    }

    /// The working image; with its snapshots, or when none is left, the whole VDI.
    pub(super) fn vdi_delete(
        &mut self,
        now: Millis,
        id: VdiId,
        with_snapshots: bool,
        at_once: bool,
    ) -> Outcome {
        let keep = if at_once { 0 } else { self.keep() };
        let v = self.listed_mut(id)?;
        if !with_snapshots {
            v.check_working()?;
        }
        if !v.attachments.is_empty() {
            return Err(CommandError::Busy(v.attached_to()));
        }
        if let Session::Open { owner, .. } = v.session {
            return Err(CommandError::Busy(format!("VDI {} is in use on node {}", v.name, owner.short())));
        }
        if let Some(l) = v.locks.first() {
            return Err(CommandError::Busy(format!("VDI {} is locked by {}", v.name, l.holder)));
        }
        let whole = with_snapshots || v.shown().next().is_none();
        let lock = longest_locked(v, now).filter(|_| whole);
        if at_once && let Some(s) = lock {
            return Err(locked(v, s));
        }
        // Whatever the cluster's time is, the trash holds what is locked at least as long as the lock does.
        let until = now.saturating_add(keep).max(lock.map_or(0, |s| s.locked_until));
        if until > now {
            let t = Trashed { at: now, until };
            let before = v.trashed();
            v.state = if whole { VdiState::InTrash(t) } else { VdiState::WorkingInTrash(t) };
            if let Some(before) = before {
                self.trash.remove(&(before.until, id, 0));
            }
            self.trash.insert((until, id, 0));
        } else if at_once || v.working().is_some() {
            self.drop_volume(id, whole);
        } else {
            // The working image went into the trash when the cluster had one.
            self.drop_snapshots(id);
        }
        self.settle_vdi(id);
        Ok(Reply::Done)
    }

    pub(super) fn vdi_restore(&mut self, id: VdiId, name: Option<&str>) -> Outcome {
        let v = self.vdi_mut(id)?;
        let (Some(t), listed, uuid) = (v.trashed(), v.is_listed(), v.uuid) else {
            return Err(CommandError::NotFound(format!("VDI {} is not in the trash", v.name)));
        };
        let (old, new) = (v.name.clone(), name.unwrap_or(&v.name).to_owned());
        if !listed || new != old {
            self.check_free_name(&new).map_err(|e| match e {
                CommandError::Exists(why) => {
                    CommandError::Exists(format!("{why}: bring it back under another name (--as)"))
                }
                e => e,
            })?;
        }
        if let Some(twin) = self.vdis.values().find(|v| v.uuid == uuid && v.id != id && v.is_listed()) {
            return Err(CommandError::Exists(format!("VDI {} has the same uuid", twin.name)));
        }
        self.trash.remove(&(t.until, id, 0));
        if listed {
            self.names.remove(&old);
        }
        let v = self.vdi_mut(id)?;
        v.state = VdiState::Here;
        v.name = new.clone();
        self.names.insert(new, id);
        self.layers_revision += 1;
        Ok(Reply::Vdi(id))
    }

    pub(super) fn snapshot_restore(&mut self, id: VdiId, number: u32, tag: Option<&str>) -> Outcome {
        let v = self.vdi_mut(id)?;
        let found = v.snapshots.iter().find(|s| s.id == number);
        let Some((s, t)) = found.and_then(|s| s.trashed.map(|t| (s, t))) else {
            return Err(CommandError::NotFound(format!(
                "VDI {} has no snapshot {number} in the trash",
                v.name
            )));
        };
        if matches!(v.state, VdiState::InTrash(_)) {
            return Err(v.is_in_trash());
        }
        let tag = tag.unwrap_or(&s.tag).to_owned();
        check_tag(&tag)?;
        if !tag.is_empty() && v.shown().any(|s| s.tag == tag) {
            return Err(CommandError::Exists(format!(
                "VDI {} has a snapshot {tag}: bring it back under another tag (--as)",
                v.name
            )));
        }
        let (listed, name) = (v.is_listed(), v.name.clone());
        if !listed {
            // Only snapshots are left of it, and all of them are here.
            self.check_free_name(&name)?;
        }
        let v = self.vdi_mut(id)?;
        if let Some(s) = v.snapshots.iter_mut().find(|s| s.id == number) {
            (s.tag, s.trashed) = (tag, None);
        }
        self.trash.remove(&(t.until, id, number));
        self.names.insert(name, id);
        self.layers_revision += 1;
        Ok(Reply::Done)
    }

    pub(super) fn trash_purge(&mut self, now: Millis, id: VdiId, snapshot: Option<u32>) -> Outcome {
        let v = self.vdi_mut(id)?;
        let there = match snapshot {
            None => v.trashed().is_some(),
            Some(n) => v.snapshots.iter().any(|s| s.id == n && s.trashed.is_some()),
        };
        if !there {
            return Err(CommandError::NotFound(match snapshot {
                None => format!("VDI {} is not in the trash", v.name),
                Some(n) => format!("VDI {} has no snapshot {n} in the trash", v.name),
            }));
        }
        if matches!(v.state, VdiState::InTrash(_))
            && snapshot.is_none()
            && let Some(s) = longest_locked(v, now)
        {
            return Err(locked(v, s));
        }
        self.really_delete(id, snapshot);
        Ok(Reply::Done)
    }

    /// What is locked is there for longer than its lock, so there is none to look at.
    pub(super) fn trash_expire(&mut self, now: Millis) -> Outcome {
        let mut gone = 0;
        while gone < EXPIRED_AT_ONCE && self.trash_is_due(now) {
            let Some((_, id, number)) = self.trash.pop_first() else { break };
            self.really_delete(id, (number != 0).then_some(number));
            gone += 1;
        }
        if gone > 0 {
            let text = match gone {
                1 => "a deleted VDI or snapshot left the trash for good".into(),
                n => format!("{n} deleted VDIs and snapshots left the trash for good"),
            };
            self.event(now, EventLevel::Info, text);
        }
        Ok(Reply::Done)
    }

    /// Something in the trash.
    fn really_delete(&mut self, id: VdiId, snapshot: Option<u32>) {
        let Some(v) = self.vdis.get(&id) else { return };
        match snapshot {
            None => self.drop_volume(id, matches!(v.state, VdiState::InTrash(_))),
            Some(n) => self.drop_snapshot(id, n),
        }
        self.settle_vdi(id);
    }

    /// Without its snapshots, or with those that are not in the trash by themselves.
    fn drop_volume(&mut self, id: VdiId, with_snapshots: bool) {
        let Some(v) = self.vdis.get_mut(&id) else { return };
        if let Some(t) = v.trashed() {
            self.trash.remove(&(t.until, id, 0));
        }
        v.state = VdiState::Here;
        v.session = Session::Closed;
        v.flattening = false;
        if let Some(top) = v.top.take() {
            self.drop_layer(top);
        }
        if with_snapshots {
            self.drop_snapshots(id);
        }
    }

    /// All that are not in the trash by themselves.
    fn drop_snapshots(&mut self, id: VdiId) {
        let Some(v) = self.vdis.get(&id) else { return };
        let all: Vec<u32> = v.snapshots.iter().filter(|s| s.trashed.is_none()).map(|s| s.id).collect();
        all.into_iter().for_each(|n| self.drop_snapshot(id, n));
    }

    fn drop_snapshot(&mut self, id: VdiId, number: u32) {
        let Some(v) = self.vdis.get_mut(&id) else { return };
        let Some(at) = v.snapshots.iter().position(|s| s.id == number) else { return };
        let s = v.snapshots.remove(at);
        if let Some(t) = s.trashed {
            self.trash.remove(&(t.until, id, number));
        }
        self.drop_layer(s.layer);
    }

    /// After something of a VDI was deleted: has it still a name, is there still anything of it?
    fn settle_vdi(&mut self, id: VdiId) {
        self.layers_revision += 1;
        let Some(v) = self.vdis.get_mut(&id) else { return };
        if let VdiState::WorkingInTrash(t) = v.state
            && v.shown().next().is_none()
        {
            v.state = VdiState::InTrash(t);
        }
        let (listed, empty) = (v.is_listed(), v.top.is_none() && v.snapshots.is_empty());
        if !listed && self.names.get(&v.name) == Some(&id) {
            self.names.remove(&v.name);
        }
        if empty {
            self.vdis.remove(&id);
        }
    }
}
