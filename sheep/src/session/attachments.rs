//! Attachments, as the data plane enforces them.
//!
//! Every request carries the attachment under which its volume was opened. The owner of the session looks it up, in the state that it has applied, in the same step in which
//! it begins to carry a change out. So when an owner has applied the end of an attachment and everything that it began before has ended, nothing of that attachment can
//! take effect there; later owners know at least as much; and of an owner that does not answer the session ends with its lease. That is what `enforced` waits for.
//!
//! Gateways look too, so that clients notice (`revoked`) and requests that wait for an owner end; nothing depends on them.

use super::attach::{Attached, Gateway};
use crate::planted::{self, Bug};
use crate::volume::VolumeError;
use crate::wait::until;
use sheepdog_cluster::{Denied, Session as SessionState};
use sheepdog_proto::peer::{Request, Response};
use sheepdog_proto::{AttachmentId, NodeId, VdiId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// Pause before asking again.
const RETRY: Duration = Duration::from_millis(20);
/// How long an answer is waited for before it is looked whether that owner is still one.
const ANSWER: Duration = Duration::from_secs(1);

/// Changes of a VDI that are carried out here, by attachment.
#[derive(Default)]
pub(super) struct CarriedOut {
    count: RefCell<BTreeMap<AttachmentId, u32>>,
    ended: Notify,
}

/// One of them.
pub(super) struct Carrying(Rc<Attached>, AttachmentId);

impl Carrying {
    pub(super) fn begin(entry: &Rc<Attached>, by: AttachmentId) -> Self {
        *entry.carried_out.count.borrow_mut().entry(by).or_default() += 1;
        Self(entry.clone(), by)
    }
}

impl Drop for Carrying {
    fn drop(&mut self) {
        let mut count = self.0.carried_out.count.borrow_mut();
        if let Some(n) = count.get_mut(&self.1) {
            *n -= 1;
            if *n == 0 {
                count.remove(&self.1);
                self.0.carried_out.ended.notify_waiters();
            }
        }
    }
}

fn error(denied: Denied) -> VolumeError {
    match denied {
        Denied::NotAttached(why) => VolumeError::NotAttached(why),
        Denied::ReadOnly => VolumeError::ReadOnly,
    }
}

impl Gateway {
    /// May whoever opened the VDI with this attachment read it, or change it? As far as this node knows; a VDI that is gone says so elsewhere.
    pub(super) fn permits(&self, vdi: VdiId, by: AttachmentId, change: bool) -> Result<(), VolumeError> {
        // Whoever reads without an attachment always may.
        if !change && by == AttachmentId::NONE || change && planted::is(Bug::LateDetached) {
            return Ok(());
        }
        let looked =
            self.replica.control.read(|s| s.vdis.get(&vdi).map_or(Ok(()), |v| v.permits(by, change)));
        looked.map_err(error)
    }

    /// Completes when whoever opened the VDI so may not go on with it.
    pub(super) async fn revoked(&self, vdi: VdiId, by: AttachmentId, change: bool) {
        let mut watch = self.replica.control.watch();
        loop {
            watch.borrow_and_update();
            match self.permits(vdi, by, change) {
                Err(VolumeError::NotAttached(_)) => return,
                // The sender lives in `control`.
                _ => {
                    let _ = watch.changed().await;
                }
            }
        }
    }

    /// As owner: every change that is not permitted any more has been carried out. None begins from now on.
    async fn denied_ended(&self, entry: &Attached) {
        let ended = || {
            let count = entry.carried_out.count.borrow();
            count.keys().all(|by| self.permits(entry.vdi, *by, true).is_ok()).then_some(())
        };
        until(&entry.carried_out.ended, ended).await;
    }

    /// The same, for another sheep that knows who owns the session.
    pub(crate) async fn enforced_here(&self, vdi: VdiId) {
        if let Some(entry) = self.known(vdi) {
            self.denied_ended(&entry).await;
        }
    }

    /// Nothing that the VDI's attachments, as they are known here, do not permit can take effect any more. Waits until that is so: for what is being written,
    /// and for an owner that does not answer until it has been declared down.
    ///
    /// It is enough to ask the owner in force. Whoever opens a session later has applied everything up to that at least; a former owner had carried out everything when it
    /// closed, or was declared down. What the latter had sent to holders is settled by the takeover before anybody sees anything.
    pub async fn enforced(&self, vdi: VdiId) -> Result<(), VolumeError> {
        let control = &self.replica.control;
        let control_index = control.applied().index;
        let me = (control.me(), control.incarnation());
        loop {
            if self.is_over() {
                return Err(VolumeError::ShuttingDown);
            }
            let owner: Option<(NodeId, u64)> = control.read(|s| match &s.vdis.get(&vdi)?.session {
                SessionState::Open { owner, incarnation, .. } => Some((*owner, *incarnation)),
                SessionState::Closed | SessionState::Unclean { .. } => None,
            });
            let Some((node, incarnation)) = owner else { return Ok(()) };
            if (node, incarnation) == me {
                self.enforced_here(vdi).await;
                return Ok(());
            }
            // A process of this node that is gone does not answer.
            if node != me.0 {
                let ask = Request::Enforced { vdi, incarnation, control_index };
                let link = self.replica.links.to(node);
                let answer = tokio::time::timeout(ANSWER, link.request(&ask, Vec::new())).await;
                if let Ok(Ok((Response::Done, _))) = answer {
                    return Ok(());
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}
