//! Attachments, as the data plane enforces them.
//!
//! Every request carries the attachment under which its volume was opened. The owner of the session looks it up, in the state that it has applied, in the same step in which
//! it begins to carry a change out. So when an owner has applied the end of an attachment and everything that it began before has ended, nothing of that attachment can
//! take effect there; later owners know at least as much; and of an owner that does not answer the session ends with its lease, and the holders refuse what it still
//! sends as soon as they know that. This is what `enforced` waits for.
//!
//! Gateways look too, so that clients notice (`revoked`) and requests that wait for an owner end; nothing depends on them.

use super::attach::{Attached, Gateway};
use crate::planted::{self, Bug};
use crate::volume::VolumeError;
use crate::wait::until;
use futures::future::join_all;
use sheepdog_cluster::Denied;
use sheepdog_proto::peer::{Request, Response};
use sheepdog_proto::{AttachmentId, ControlIndex, NodeId, VdiId};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// Pause before asking again.
const RETRY: Duration = Duration::from_millis(20);

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

    /// The same, for another sheep that asks whom `ClusterState::enforcers` names.
    pub(crate) async fn enforced_here(&self, vdi: VdiId) {
        if let Some(entry) = self.known(vdi) {
            self.denied_ended(&entry).await;
        }
    }

    /// Nothing that the VDI's attachments, as they are known here, do not permit can take effect any more. Waits until that is so: for what is being written,
    /// and for those that do not answer until they have been declared down.
    ///
    /// It is enough to ask the owner in force, or the holders while there is none. Whoever opens a session later has applied everything up to that at least; a former owner had
    /// carried out everything when it closed, or was declared down. What the latter had sent to holders is settled by the takeover before anybody sees anything; what it
    /// sends from now on they refuse.
    pub async fn enforced(&self, vdi: VdiId) -> Result<(), VolumeError> {
        let control = &self.replica.control;
        let mut answered = BTreeSet::new();
        loop {
            if self.is_over() {
                return Err(VolumeError::ShuttingDown);
            }
            // Who has answered as a holder need not be asked again: every session that has been opened since began with what is known here.
            let (asked, control_index) = control.read(|s| (s.enforcers(vdi), s.index));
            let asked: Vec<_> = asked.into_iter().filter(|process| !answered.contains(process)).collect();
            let answers = asked.iter().map(|process| async move {
                self.ask_to_enforce(vdi, *process, control_index).await.then_some(*process)
            });
            let done: Vec<_> = join_all(answers).await.into_iter().flatten().collect();
            if done.len() == asked.len() {
                return Ok(());
            }
            answered.extend(done);
            tokio::time::sleep(RETRY).await;
        }
    }

    /// One of them. `false`: it has not said so, and perhaps need not.
    async fn ask_to_enforce(&self, vdi: VdiId, process: (NodeId, u64), control_index: ControlIndex) -> bool {
        let control = &self.replica.control;
        let (node, incarnation) = process;
        if process == (control.me(), control.incarnation()) {
            self.enforced_here(vdi).await;
            return true;
        }
        // A process of this node that is gone does not answer.
        if node == control.me() {
            return false;
        }
        let ask = Request::Enforced { vdi, incarnation, control_index };
        let matters = || !self.is_over() && control.read(|s| s.enforcers(vdi).contains(&process));
        self.replica.links.to(node).request_while(&ask, matters).await == Some(Response::Done)
    }
}
