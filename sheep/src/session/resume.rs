//! Sessions that are this process's in the cluster's state, and of which nothing serves here.
//!
//! Whoever asked for a session may be gone before it serves: a read that began a takeover ends with its connection. One that was held too long for a snapshot ends, and so does
//! one that could not be closed for certain. The next request here opens it again; but there may be none, and to all others this node is the owner as long as it is up:
//! they would wait for it for ever. So it is looked for such sessions, and they are opened again.

use super::attach::{Attached, Gateway};
use sheepdog_cluster::Session as SessionState;
use std::rc::Rc;
use std::time::Duration;

/// How often is looked.
const LOOK: Duration = Duration::from_secs(1);

impl Gateway {
    /// Ends with the gateway.
    pub(crate) async fn resume_sessions(self: Rc<Self>) {
        loop {
            tokio::select! { biased; () = self.stop.cancelled() => return, () = tokio::time::sleep(LOOK) => {} }
            if self.is_over() {
                return;
            }
            if !self.replica.control.lease_valid() {
                continue;
            }
            for entry in self.idle_entries() {
                if self.is_mine(&entry) {
                    tokio::task::spawn_local(self.clone().resume(entry));
                }
            }
        }
    }

    fn is_mine(&self, entry: &Attached) -> bool {
        let control = &self.replica.control;
        let me = (control.me(), control.incarnation());
        control.read(|s| match s.vdis.get(&entry.vdi).map(|v| &v.session) {
            Some(SessionState::Open { owner, incarnation, .. }) => (*owner, *incarnation) == me,
            _ => false,
        })
    }

    async fn resume(self: Rc<Self>, entry: Rc<Attached>) {
        tracing::info!(vdi = %entry.vdi, "nothing serves this node's session: opening it again");
        let stop = self.stop.clone();
        let opened =
            tokio::select! { biased; () = stop.cancelled() => return, r = self.open_session(&entry) => r };
        if let Err(e) = opened {
            tracing::warn!(vdi = %entry.vdi, error = %e, "the session is not opened again");
        }
        // It may be used elsewhere only, or nowhere.
        self.settle(entry);
    }
}
