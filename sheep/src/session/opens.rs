//! Rule 6: nothing of a dead connection comes after what a later open sends, at whichever gateway that is.
//!
//! The control plane knows at which nodes a VDI is open, each with a registration. An open completes when
//! * requests of dead connections at this gateway have ended,
//! * every other registered gateway has said the same of its own, or has lost its registration because it is not up as the process that had it,
//! * and the owner has carried out to the end what it took from gateways that have lost theirs.
//!
//! A gateway that comes back without its registration (it stood still, or was cut off) is told so with its next change, here or by the owner, and drops the
//! connections: whoever is still there opens again. A client that vanished without closing its connection counts as alive until TCP says otherwise.

use super::attach::{Attached, Gateway};
use crate::volume::VolumeError;
use crate::wait::until;
use futures::future::join_all;
use sheepdog_cluster::{Command, CommandError, GatewayOpen, Reply};
use sheepdog_proto::peer::{Request, Response};
use sheepdog_proto::{AttachmentId, ControlIndex, NodeId, VdiId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// Pause before asking again.
const RETRY: Duration = Duration::from_millis(20);

/// One open, as requests carry it.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    /// Number at this gateway.
    pub id: u64,
    /// Registration of the gateway that it was made under.
    pub since: ControlIndex,
    /// Attachment it was made with.
    pub by: AttachmentId,
}

/// How far the end of an open is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Gone {
    /// Its client is there.
    #[default]
    No,
    /// Its client is gone, its requests still run.
    Dying,
    /// Over.
    Closed,
}

/// Tells whether the client of an open has hung up, also when nobody has read that far yet.
#[derive(Default)]
pub(super) struct Ear {
    pub(super) gone: Cell<Gone>,
    pub(super) hung_up: RefCell<Option<Rc<dyn Fn() -> bool>>>,
}

/// Rule 6's part of an attached VDI.
#[derive(Default)]
pub(super) struct Opens {
    /// Requests of connections that are gone.
    dying: Cell<u32>,
    died: Notify,
    ears: RefCell<Vec<Weak<Ear>>>,
    registered: Cell<Option<ControlIndex>>,
    /// One registration or its end at a time.
    registering: tokio::sync::Mutex<()>,
    /// Changes of other gateways that are carried out here, by registration.
    foreign: RefCell<BTreeMap<(NodeId, ControlIndex), u32>>,
    foreign_ended: Notify,
}

/// A change of another gateway, while it is carried out here.
pub(super) struct Foreign(Rc<Attached>, (NodeId, ControlIndex));

impl Foreign {
    pub(super) fn begin(entry: &Rc<Attached>, node: NodeId, since: ControlIndex) -> Self {
        *entry.rule.foreign.borrow_mut().entry((node, since)).or_default() += 1;
        Self(entry.clone(), (node, since))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let mut foreign = self.0.rule.foreign.borrow_mut();
        if let Some(n) = foreign.get_mut(&self.1) {
            *n -= 1;
            if *n == 0 {
                foreign.remove(&self.1);
                self.0.rule.foreign_ended.notify_waiters();
            }
        }
    }
}

impl Opens {
    pub(super) fn listen_to(&self, ear: &Rc<Ear>) {
        let mut ears = self.ears.borrow_mut();
        ears.retain(|e| e.strong_count() > 0);
        ears.push(Rc::downgrade(ear));
    }

    pub(super) fn dying(&self) -> u32 {
        self.dying.get()
    }

    pub(super) fn is_registered(&self) -> bool {
        self.registered.get().is_some()
    }

    /// A client is gone; its requests still run.
    pub(super) fn abandon(&self, ear: &Ear) {
        if ear.gone.get() == Gone::No {
            ear.gone.set(Gone::Dying);
            self.dying.set(self.dying.get() + 1);
        }
    }

    /// Its requests have ended. `false`: that was known.
    pub(super) fn bury(&self, ear: &Ear) -> bool {
        self.abandon(ear);
        if ear.gone.replace(Gone::Closed) != Gone::Dying {
            return false;
        }
        self.dying.set(self.dying.get() - 1);
        self.died.notify_waiters();
        true
    }

    /// Requests of connections that are gone have ended.
    pub(super) async fn dead_are_buried(&self) {
        let ears: Vec<_> = self.ears.borrow().iter().filter_map(Weak::upgrade).collect();
        for ear in ears {
            if ear.hung_up.borrow().as_ref().is_some_and(|f| f()) {
                self.abandon(&ear);
            }
        }
        until(&self.died, || (self.dying.get() == 0).then_some(())).await;
    }
}

impl Gateway {
    pub(super) fn is_open_at(&self, vdi: VdiId, node: NodeId, since: ControlIndex) -> bool {
        self.replica.control.read(|s| s.vdis.get(&vdi).is_some_and(|v| v.is_open_at(node, since)))
    }

    /// Nothing of a dead connection is under way here.
    pub async fn settled(&self, vdi: VdiId) {
        let entry = self.known(vdi);
        if let Some(entry) = entry {
            entry.rule.dead_are_buried().await;
        }
    }

    /// Be among the gateways of the VDI, and know all others that were before.
    pub(super) async fn register(&self, entry: &Attached) -> Result<ControlIndex, VolumeError> {
        let _turn = entry.rule.registering.lock().await;
        let control = &self.replica.control;
        let (vdi, node, incarnation) = (entry.vdi, control.me(), control.incarnation());
        loop {
            if self.is_over() {
                return Err(VolumeError::ShuttingDown);
            }
            // Also when it is registered: that it still is, is what the answer says.
            match control.propose(Command::GatewayOpen { vdi, node, incarnation }).await {
                Ok(Reply::Registered(since)) => {
                    entry.rule.registered.set(Some(since));
                    if self.is_open_at(vdi, node, since) {
                        return Ok(since);
                    }
                }
                Ok(Reply::Error(CommandError::NotFound(why))) => return Err(VolumeError::Gone(why)),
                // This process is not in the map at the moment: it says hello again.
                Ok(Reply::Error(CommandError::Fenced)) | Err(_) => {}
                Ok(other) => return Err(VolumeError::Io(format!("unexpected answer {other:?}"))),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Leave the gateways of the VDI, if nothing is open.
    pub(super) async fn unregister(&self, entry: &Attached) {
        let _turn = entry.rule.registering.lock().await;
        if entry.is_open() {
            return;
        }
        let Some(since) = entry.rule.registered.take() else { return };
        let command =
            Command::GatewayClose { vdi: entry.vdi, node: self.replica.control.me(), since, fence: false };
        // Who is registered without need is asked without need, no more.
        let _ = self.replica.control.propose(command).await;
    }

    /// Every other gateway of the VDI has nothing of dead connections under way, or nothing of it counts any more.
    pub(super) async fn others_settled(&self, vdi: VdiId) -> Result<(), VolumeError> {
        let control = &self.replica.control;
        let mut settled = BTreeSet::new();
        loop {
            let others: Vec<(NodeId, GatewayOpen)> = control.read(|s| {
                let gateways = s.vdis.get(&vdi).map(|v| &v.gateways).into_iter().flatten();
                let others = gateways.filter(|(n, g)| **n != control.me() && !settled.contains(&g.since));
                others.map(|(n, g)| (*n, *g)).collect()
            });
            if others.is_empty() {
                return Ok(());
            }
            join_all(others.iter().map(|(node, open)| self.settled_at(vdi, *node, *open))).await;
            if self.is_over() {
                return Err(VolumeError::ShuttingDown);
            }
            settled.extend(others.iter().map(|(_, open)| open.since));
        }
    }

    async fn settled_at(&self, vdi: VdiId, node: NodeId, open: GatewayOpen) {
        let ask = Request::Settled { vdi, incarnation: open.incarnation };
        self.ask_gateway(vdi, node, open, &ask).await;
    }

    /// Ask a gateway until it says yes, or has lost its registration: it does when it is not up as the process that has it. Or the daemon ends.
    pub(super) async fn ask_gateway(
        &self,
        vdi: VdiId,
        node: NodeId,
        GatewayOpen { incarnation, since }: GatewayOpen,
        ask: &Request,
    ) {
        let control = &self.replica.control;
        let is_up = || {
            let up = control
                .read(|s| s.nodes.get(&node).is_some_and(|n| n.is_up() && n.incarnation == incarnation));
            up && !self.is_over()
        };
        while self.is_open_at(vdi, node, since) && !self.is_over() {
            let done = if is_up() {
                self.replica.links.to(node).request_while(ask, is_up).await == Some(Response::Done)
            } else {
                let close = Command::GatewayClose { vdi, node, since, fence: true };
                matches!(control.propose(close).await, Ok(Reply::Done))
            };
            if done {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// As owner: what was taken from gateways that have lost their registration has been carried out.
    pub(super) async fn strangers_ended(&self, entry: &Attached) {
        let ended = || {
            let foreign = entry.rule.foreign.borrow();
            foreign.keys().all(|(node, since)| self.is_open_at(entry.vdi, *node, *since)).then_some(())
        };
        until(&entry.rule.foreign_ended, ended).await;
    }
}
