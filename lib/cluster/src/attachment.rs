//! Attachments: who may use a VDI, when it is not for everybody.
//!
//! A VDI without attachments is anybody's. With the first one it is changed only through one: whoever is asked to carry out a change looks here, in the state that it has
//! applied, so an attachment that is gone is worth nothing at every node that knows the position at which it went.

use crate::{ClusterState, Millis, Session, Vdi};
use serde::{Deserialize, Serialize};
use sheepdog_proto::{AttachmentId, NodeId, VdiId};

/// Attachments of one VDI: all of them are looked at when there is another, and travel with every copy of the state.
pub const MAX_ATTACHMENTS: usize = 256;
/// Bytes of a holder's name: as long as CSI allows the id of a node to be.
pub const MAX_HOLDER: usize = 256;

/// What the holder of an attachment may do, and who else.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Access {
    /// Read and write, nobody else.
    Single,
    /// Read and write, together with others of this kind.
    Shared,
    /// Only read, together with others of this kind.
    ReadOnly,
}

impl Access {
    /// In words.
    pub fn word(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Shared => "shared",
            Self::ReadOnly => "read-only",
        }
    }
}

/// Somebody's right to use a VDI.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Attachment {
    /// Id.
    pub id: AttachmentId,
    /// Node or client, in its own words; unique within the VDI.
    pub holder: String,
    /// What it may do.
    pub access: Access,
    /// When.
    pub since: Millis,
}

/// Attachments of a VDI, named in one of three ways.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum AttachmentRef {
    /// By number.
    Id(AttachmentId),
    /// By holder.
    Holder(String),
    /// All there are.
    All,
}

impl AttachmentRef {
    /// Is this one meant?
    pub fn is(&self, a: &Attachment) -> bool {
        match self {
            Self::Id(id) => a.id == *id,
            Self::Holder(holder) => a.holder == *holder,
            Self::All => true,
        }
    }
}

/// Why something may not be done to a VDI.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Denied {
    /// The asker has no attachment, or has none any more.
    #[error("{0}")]
    NotAttached(String),
    /// Its attachment is for reading.
    #[error("the volume is attached read-only")]
    ReadOnly,
}

impl ClusterState {
    /// Processes that must know this position of the log before nothing can be changed any more that the VDI's attachments do not permit.
    ///
    /// The owner of the session, if it serves: it looks the attachments up, and when it began to serve every holder had heard that it does. While nobody serves, because
    /// an owner is gone or its successor is just taking over, every holder: one that has not heard of that still takes what the former owner sends, and whatever is in a
    /// copy at the takeover stays. (The former owner may be alive and not have heard of it either, and of the attachments as little.)
    pub fn enforcers(&self, vdi: VdiId) -> Vec<(NodeId, u64)> {
        match self.vdis.get(&vdi).map(|v| &v.session) {
            None | Some(Session::Closed) => Vec::new(),
            Some(Session::Open { owner, incarnation, ready: true, .. }) => vec![(*owner, *incarnation)],
            Some(Session::Open { ready: false, .. } | Session::Unclean { .. }) => {
                let holders = self.nodes.values().filter(|n| n.is_up() && !n.gateway);
                holders.map(|n| (n.id, n.incarnation)).collect()
            }
        }
    }
}

impl Vdi {
    /// The attachment of this number.
    pub fn attachment(&self, id: AttachmentId) -> Option<&Attachment> {
        self.attachments.iter().find(|a| a.id == id)
    }

    /// May whoever opened the VDI with this attachment (`NONE`: without one) read it, or change it?
    pub fn permits(&self, by: AttachmentId, change: bool) -> Result<(), Denied> {
        if by == AttachmentId::NONE {
            return match self.attachments.first() {
                Some(_) if change => Err(Denied::NotAttached(self.attached_to())),
                _ => Ok(()),
            };
        }
        match self.attachment(by) {
            None => Err(Denied::NotAttached(format!(
                "attachment {by} of VDI {} is over: it was detached",
                self.name
            ))),
            Some(a) if change && a.access == Access::ReadOnly => Err(Denied::ReadOnly),
            Some(_) => Ok(()),
        }
    }

    /// Who has it, and what can be done about that.
    pub fn attached_to(&self) -> String {
        let mut holders: Vec<&str> = self.attachments.iter().take(3).map(|a| a.holder.as_str()).collect();
        let more = self.attachments.len() - holders.len();
        let others = format!("{more} more");
        if more > 0 {
            holders.push(&others);
        }
        let access = self.attachments.first().map_or("", |a| a.access.word());
        let (holders, name) = (holders.join(", "), &self.name);
        format!(
            "VDI {name} is attached to {holders} ({access}): `dog vdi detach {name} HOLDER` takes it away from there"
        )
    }
}
