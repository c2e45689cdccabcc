//! Giving and taking attachments.

use super::Outcome;
use crate::{
    Access, Attachment, AttachmentRef, ClusterState, CommandError, MAX_ATTACHMENTS, MAX_HOLDER, Millis, Reply,
};
use sheepdog_proto::{AttachmentId, VdiId};

impl ClusterState {
    /// The same holder asks again: it gets what it has.
    pub(super) fn attach(&mut self, now: Millis, vdi: VdiId, holder: &str, access: Access) -> Outcome {
        if holder.is_empty() || holder.len() > MAX_HOLDER || holder.chars().any(char::is_control) {
            return Err(CommandError::Invalid(format!(
                "a holder has a name of 1 to {MAX_HOLDER} bytes without control characters"
            )));
        }
        let next = AttachmentId(self.last_attachment + 1);
        let v = self.vdi_mut(vdi)?;
        v.check_working()?;
        if let Some(a) = v.attachments.iter().find(|a| a.holder == holder) {
            if a.access == access {
                return Ok(Reply::Attached(a.id));
            }
            return Err(CommandError::Exists(format!(
                "VDI {} is attached to {holder} as {}, not as {}: detach it first",
                v.name,
                a.access.word(),
                access.word()
            )));
        }
        if v.attachments.iter().any(|a| access == Access::Single || a.access != access) {
            return Err(CommandError::Busy(v.attached_to()));
        }
        if v.attachments.len() >= MAX_ATTACHMENTS {
            return Err(CommandError::Busy(format!(
                "VDI {} has {MAX_ATTACHMENTS} attachments already, no more are possible",
                v.name
            )));
        }
        v.attachments.push(Attachment { id: next, holder: holder.to_owned(), access, since: now });
        self.last_attachment = next.0;
        Ok(Reply::Attached(next))
    }

    /// Nothing to detach is as good as done.
    pub(super) fn detach(&mut self, vdi: VdiId, which: &AttachmentRef) -> Outcome {
        self.vdi_mut(vdi)?.attachments.retain(|a| !which.is(a));
        Ok(Reply::Done)
    }
}
