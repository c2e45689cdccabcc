//! The trash: what was deleted and can still be brought back.
//!
//! A deleted thing stays where it is: its layers are those of a volume or snapshot like any other, so that copies are made, compared and moved as ever. It is only not
//! listed, and its name is free. When its time is over the leader has it really deleted.

use crate::{ClusterState, CommandError, Millis, Snapshot, Vdi};
use serde::{Deserialize, Serialize};
use sheepdog_proto::{LayerId, VdiId};

/// How long deleted things wait unless the cluster is told otherwise: a day.
pub const TRASH_KEEP: Millis = 24 * 3_600_000;

/// Something in the trash: (until, VDI, snapshot or 0 for the volume itself).
pub type TrashKey = (Millis, VdiId, u32);

/// For how long something is in the trash.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Trashed {
    /// When it was deleted.
    pub at: Millis,
    /// From then on it may be really deleted.
    pub until: Millis,
}

/// Where a VDI is in its life.
///
/// ```text
/// Here --delete, snapshots stay--> WorkingInTrash --the last snapshot is deleted--> InTrash
///   ^ \----------delete----------------------------------------------------------------^
///   '--restore-- (either)                      (either) --purge, expire--> Here without a working layer, or gone
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum VdiState {
    /// It can be used.
    Here,
    /// Its working image was deleted, some of its snapshots were not.
    WorkingInTrash(Trashed),
    /// It was deleted, with the snapshots that are not in the trash by themselves.
    InTrash(Trashed),
}

/// A row of the trash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrashItem<'a> {
    /// Of this VDI.
    pub vdi: &'a Vdi,
    /// `None`: the volume itself.
    pub snapshot: Option<&'a Snapshot>,
    /// For how long.
    pub trashed: Trashed,
}

impl Vdi {
    /// The working layer, if it can be used.
    pub fn working(&self) -> Option<LayerId> {
        self.top.filter(|_| self.state == VdiState::Here)
    }

    /// The snapshots that can be used.
    pub fn shown(&self) -> impl Iterator<Item = &Snapshot> {
        let gone = matches!(self.state, VdiState::InTrash(_));
        self.snapshots.iter().filter(move |s| !gone && s.trashed.is_none())
    }

    /// Something of it can be used; then it has its name.
    pub fn is_listed(&self) -> bool {
        self.working().is_some() || self.shown().next().is_some()
    }

    /// Is its working image, or all of it, in the trash?
    pub fn trashed(&self) -> Option<Trashed> {
        match self.state {
            VdiState::Here => None,
            VdiState::WorkingInTrash(t) | VdiState::InTrash(t) => Some(t),
        }
    }

    /// For sentences: somebody who looks for it in a list does not find what is in the trash.
    pub fn called(&self) -> String {
        if self.is_listed() { self.name.clone() } else { format!("{} (in the trash)", self.name) }
    }

    /// The end of the longest lock of the snapshots that go where the volume goes. 0: there is none.
    pub fn locked_until(&self) -> Millis {
        let with_it = self.snapshots.iter().filter(|s| s.trashed.is_none());
        with_it.map(|s| s.locked_until).max().unwrap_or(0)
    }

    pub(crate) fn check_working(&self) -> Result<LayerId, CommandError> {
        self.working().ok_or_else(|| match self.state {
            VdiState::Here if self.is_listed() => {
                CommandError::NotFound(format!("VDI {} has only snapshots left", self.name))
            }
            _ => self.is_in_trash(),
        })
    }

    pub(crate) fn is_in_trash(&self) -> CommandError {
        let (name, id) = (&self.name, self.id.hex());
        if self.trashed().is_none() {
            return CommandError::NotFound(format!(
                "of VDI {name} only snapshots in the trash are left: `dog trash restore {id}@NUMBER` brings one back (`dog trash list`)"
            ));
        }
        CommandError::NotFound(format!(
            "VDI {name} was deleted and is in the trash: `dog trash restore {id}` brings it back"
        ))
    }
}

impl ClusterState {
    /// What is in the trash, first what leaves it first; from this position on.
    pub fn trash_from(&self, from: TrashKey) -> impl Iterator<Item = (TrashKey, TrashItem<'_>)> {
        self.trash.range(from..).filter_map(|key| {
            let vdi = self.vdis.get(&key.1)?;
            let snapshot = match key.2 {
                0 => None,
                n => Some(vdi.snapshots.iter().find(|s| s.id == n)?),
            };
            let trashed = snapshot.map_or(vdi.trashed(), |s| s.trashed)?;
            Some((*key, TrashItem { vdi, snapshot, trashed }))
        })
    }

    /// Has something been in the trash for its time?
    pub fn trash_is_due(&self, now: Millis) -> bool {
        self.trash.first().is_some_and(|(until, ..)| *until <= now)
    }

    /// Sizes of the volumes in the trash together, as their users saw them. (What the trash takes on disks only the disks know.)
    pub fn trash_size(&self) -> u64 {
        let volumes = self.trash_from((0, VdiId(0), 0)).filter(|(_, t)| t.snapshot.is_none());
        volumes.fold(0, |sum, (_, t)| sum.saturating_add(t.vdi.size))
    }

    /// What to do about full disks, if that is why.
    pub fn trash_hint(&self) -> Option<String> {
        let held = match self.trash.len() {
            0 => return None,
            1 => "one deleted VDI or snapshot".to_owned(),
            n => format!("{n} deleted VDIs and snapshots"),
        };
        Some(format!(
            "the trash holds {held}: `dog trash purge` frees their space at once (`dog trash list`)"
        ))
    }
}
