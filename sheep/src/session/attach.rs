//! The gateway side: VDIs open on this node, whether this node owns their session or another does.
//!
//! Every request goes to whoever owns the session now; when that changes (a death, a hand-over, a restart) it is sent again to the next
//! owner, so front-ends never see it. A session nobody uses here but others do is handed over; one that nobody uses is closed.

use super::attachments::{CarriedOut, Carrying};
use super::cache::{Cache, CacheStats};
use super::opens::{Foreign, Open, Opens};
use super::owner::{Session, SessionError};
use super::pace::Pace;
use super::read::{read_through, status_through};
use super::repeats::{Numbered, Sending, Unanswered, Unconfirmed};
use crate::peer::{LinkError, Replica};
use crate::planted::{self, Bug};
use crate::volume::{Extent, VolumeError};
use crate::wait::until;
use bytes::Bytes;
use sheepdog_cluster::{Command, CommandError, Reply, Session as SessionState};
use sheepdog_proto::peer::{BlockState, Forward, ForwardError, Request, Response};
use sheepdog_proto::{
    AttachmentId, BLOCK_SHIFT, ControlIndex, Generation, LayerId, NodeId, PlacementKey, VdiId,
};
use sheepdog_volume::{Turns, Watermark, pieces};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a session nobody uses stays open: a client that reconnects finds it.
const LINGER: Duration = Duration::from_millis(1_000);
/// Pause before looking again who owns a session.
const RETRY: Duration = Duration::from_millis(20);
/// Bytes of one forwarded request at most.
pub(crate) const MAX_FORWARD: u64 = 1 << 20;
/// A drain for hand-over or close that takes longer is given up for now.
const DRAIN: Duration = Duration::from_secs(30);

/// One request, small enough to be forwarded.
#[derive(Debug, Clone)]
pub enum Io {
    /// Bytes of the working layer or a frozen one.
    Read {
        /// Layer.
        layer: Option<LayerId>,
        /// Offset.
        offset: u64,
        /// Length.
        len: u32,
    },
    /// Bytes.
    Write {
        /// Offset.
        offset: u64,
        /// Data.
        data: Bytes,
    },
    /// Zeros.
    Zero {
        /// Offset.
        offset: u64,
        /// Length.
        len: u64,
        /// Space may go.
        discard: bool,
    },
    /// Extents.
    Status {
        /// Layer.
        layer: Option<LayerId>,
        /// Offset.
        offset: u64,
        /// Length.
        len: u64,
        /// At most.
        max: usize,
    },
}

impl Io {
    fn changes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Zero { .. })
    }

    /// For people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Zero { .. } => "zero",
            Self::Status { .. } => "status",
        }
    }
    /// What of the volume it is about.
    pub(super) fn bytes(&self) -> Range<u64> {
        let (offset, len) = match self {
            Self::Read { offset, len, .. } => (*offset, u64::from(*len)),
            Self::Write { offset, data } => (*offset, data.len() as u64),
            Self::Zero { offset, len, .. } | Self::Status { offset, len, .. } => (*offset, *len),
        };
        offset..offset.saturating_add(len)
    }
}

/// Its outcome.
#[derive(Debug, Clone)]
pub enum IoDone {
    /// Read.
    Data(Vec<Bytes>),
    /// Write, zero.
    Done,
    /// Status.
    Extents(Vec<Extent>),
}

/// A VDI that is open here or whose session is.
pub struct Attached {
    /// VDI.
    pub vdi: VdiId,
    session: RefCell<Option<Rc<Session>>>,
    /// One opening or closing at a time.
    turn: tokio::sync::Mutex<()>,
    opens: Cell<u32>,
    remote: RefCell<BTreeSet<(NodeId, u64)>>,
    pub(super) rule: Opens,
    pub(super) carried_out: CarriedOut,
    held: RefCell<Option<Held>>,
    /// Changes from here that are under way.
    turns: RefCell<Turns>,
    turned: tokio::sync::Notify,
    pub(super) unanswered: Unanswered,
    pub(super) unconfirmed: Unconfirmed,
    pub(super) pace: Pace,
}

impl Attached {
    /// Somebody has it open here.
    pub(super) fn is_open(&self) -> bool {
        self.opens.get() > 0
    }
}

/// A session whose requests are kept back. Ends by itself.
struct Held {
    _guard: tokio::sync::OwnedRwLockWriteGuard<()>,
    session: Rc<Session>,
    timer: tokio::task::JoinHandle<()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

enum Owner {
    Here(Rc<Session>),
    There(NodeId, Generation),
}

impl Owner {
    fn generation(&self) -> Generation {
        match self {
            Self::Here(session) => session.generation,
            Self::There(_, generation) => *generation,
        }
    }
}

/// Why a VDI cannot be held here.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HoldError {
    /// Another node owns the session.
    #[error("the session is on another node")]
    Elsewhere(NodeId),
    /// Something else.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// A forwarded change on its way.
struct Forwarded<'a> {
    gateway: &'a Gateway,
    node: NodeId,
    seq: u64,
    floor: u64,
}

impl<'a> Forwarded<'a> {
    fn new(gateway: &'a Gateway, node: NodeId) -> Self {
        let mut sent = gateway.sent.borrow_mut();
        let numbers = sent.entry(node).or_default();
        let seq = numbers.assign();
        Self { gateway, node, seq, floor: numbers.value() + 1 }
    }
}

impl Drop for Forwarded<'_> {
    fn drop(&mut self) {
        if let Some(numbers) = self.gateway.sent.borrow_mut().get_mut(&self.node) {
            numbers.complete(self.seq);
        }
        self.gateway.got_answer.notify_waiters();
    }
}

/// All attached VDIs of this node.
pub struct Gateway {
    pub(crate) replica: Rc<Replica>,
    attached: RefCell<BTreeMap<VdiId, Rc<Attached>>>,
    next_open: Cell<u64>,
    /// Numbers of changes forwarded to each node.
    pub(super) sent: RefCell<BTreeMap<NodeId, Watermark>>,
    pub(super) got_answer: tokio::sync::Notify,
    pub(super) stop: CancellationToken,
    closing: Cell<bool>,
    cache: Option<Rc<Cache>>,
}

impl Gateway {
    /// Nothing attached. Sessions keep what is read and written in `cache`.
    pub fn new(replica: Rc<Replica>, cache: Option<Rc<Cache>>, stop: CancellationToken) -> Rc<Self> {
        Rc::new(Self {
            replica,
            attached: RefCell::default(),
            next_open: Cell::new(1),
            sent: RefCell::default(),
            got_answer: tokio::sync::Notify::new(),
            stop,
            closing: Cell::new(false),
            cache,
        })
    }

    /// The daemon is ending, or has.
    pub(crate) fn is_over(&self) -> bool {
        self.closing.get() || self.stop.is_cancelled()
    }

    /// What the cache does, if there is one.
    pub fn cache_stats(&self) -> Option<CacheStats> {
        self.cache.as_ref().map(|c| c.stats())
    }

    /// The entry of a VDI that was open here.
    pub(super) fn known(&self, vdi: VdiId) -> Option<Rc<Attached>> {
        self.attached.borrow().get(&vdi).cloned()
    }

    /// The entry of a VDI.
    pub fn entry(&self, vdi: VdiId) -> Rc<Attached> {
        self.attached
            .borrow_mut()
            .entry(vdi)
            .or_insert_with(|| {
                Rc::new(Attached {
                    vdi,
                    session: RefCell::default(),
                    turn: tokio::sync::Mutex::default(),
                    opens: Cell::new(0),
                    remote: RefCell::default(),
                    rule: Opens::default(),
                    carried_out: CarriedOut::default(),
                    held: RefCell::default(),
                    turns: RefCell::default(),
                    turned: tokio::sync::Notify::new(),
                    unanswered: Unanswered::default(),
                    unconfirmed: Unconfirmed::default(),
                    pace: Pace::new(),
                })
            })
            .clone()
    }

    /// Entries of VDIs of which no session serves here, and nobody is opening or closing one.
    pub(super) fn idle_entries(&self) -> Vec<Rc<Attached>> {
        let attached = self.attached.borrow();
        let idle = |e: &&Rc<Attached>| {
            e.session.borrow().as_ref().is_none_or(|s| s.is_dead()) && e.turn.try_lock().is_ok()
        };
        attached.values().filter(idle).cloned().collect()
    }

    /// The serving session of a VDI, if this node has it.
    pub fn session(&self, vdi: VdiId) -> Option<Rc<Session>> {
        let attached = self.attached.borrow();
        let session = attached.get(&vdi)?.session.borrow().clone();
        session.filter(|s| !s.is_dead())
    }

    /// What a VDI's requests could be waiting for here, for support.
    pub fn describe(&self, vdi: VdiId) -> String {
        let entry = self.entry(vdi);
        let session = match &*entry.session.borrow() {
            None => "none".to_owned(),
            Some(s) if s.is_dead() => "dead".to_owned(),
            Some(s) => s.describe(),
        };
        format!(
            "opens {}, dying {}, held {}, turn {}, {:?}, session {session}",
            entry.opens.get(),
            entry.rule.dying(),
            entry.held.borrow().is_some(),
            entry.turn.try_lock().is_ok(),
            entry.turns.borrow(),
        )
    }

    /// Count an open, if the VDI's attachments permit it (`change`: only to somebody who may change it); pairs with `detach`.
    pub async fn attach(
        self: &Rc<Self>,
        vdi: VdiId,
        by: AttachmentId,
        change: bool,
    ) -> Result<(Rc<Attached>, Open), VolumeError> {
        let entry = self.entry(vdi);
        let id = self.next_open.get();
        self.next_open.set(id + 1);
        entry.opens.set(entry.opens.get() + 1);
        match self.settled_open(&entry, id, by, change).await {
            Ok(open) => Ok((entry, open)),
            Err(e) => {
                entry.opens.set(entry.opens.get() - 1);
                self.settle(entry);
                Err(e)
            }
        }
    }

    /// Rule 6: see `opens`.
    async fn settled_open(
        self: &Rc<Self>,
        entry: &Rc<Attached>,
        id: u64,
        by: AttachmentId,
        change: bool,
    ) -> Result<Open, VolumeError> {
        entry.rule.dead_are_buried().await;
        let since = self.register(entry).await?;
        // Here this node knows what was committed before the client asked.
        self.permits(entry.vdi, by, change)?;
        self.others_settled(entry.vdi).await?;
        loop {
            match self.owner(entry).await? {
                Owner::Here(_) => {
                    self.strangers_ended(entry).await;
                    return Ok(Open { id, since, by });
                }
                Owner::There(node, _) => {
                    // The owner must know who has lost his registration until now.
                    let known = self.replica.control.applied().index;
                    let request = telling(entry.vdi, Open { id, since: known, by }, Forward::Attach);
                    match self.replica.links.to(node).request(&request, Vec::new()).await {
                        Ok((Response::Forwarded, _)) => return Ok(Open { id, since, by }),
                        Ok((Response::ForwardFailed(ForwardError::Gone(why)), _)) => {
                            return Err(VolumeError::Gone(why));
                        }
                        _ => tokio::time::sleep(RETRY).await,
                    }
                }
            }
        }
    }

    /// The open is over.
    pub fn detach(self: &Rc<Self>, entry: Rc<Attached>, open: Open) {
        entry.opens.set(entry.opens.get() - 1);
        if let Some(node) = self.remote_owner(entry.vdi) {
            let link = self.replica.links.to(node);
            let request = telling(entry.vdi, open, Forward::Detach);
            tokio::task::spawn_local(async move {
                let _ = link.request(&request, Vec::new()).await;
            });
        }
        self.settle(entry);
    }

    fn remote_owner(&self, vdi: VdiId) -> Option<NodeId> {
        self.replica.control.read(|s| match &s.vdis.get(&vdi)?.session {
            SessionState::Open { owner, .. } if *owner != self.replica.control.me() => Some(*owner),
            _ => None,
        })
    }

    /// Close or hand over a session this node no longer needs, and its registration.
    pub(super) fn settle(self: &Rc<Self>, entry: Rc<Attached>) {
        if entry.is_open() || (entry.session.borrow().is_none() && !entry.rule.is_registered()) {
            return;
        }
        let this = self.clone();
        tokio::task::spawn_local(async move {
            if entry.remote.borrow().is_empty() {
                tokio::select! { () = tokio::time::sleep(LINGER) => {} () = this.stop.cancelled() => {} }
            }
            if !entry.is_open() {
                this.close(&entry).await;
                this.unregister(&entry).await;
            }
        });
    }

    /// Drain and close the session, if this node has it. It ends before that is committed: then another node may write at once, and this one, which may hear of it late, would not
    /// know what is in flight there, nor of new layers.
    pub async fn close(&self, entry: &Rc<Attached>) {
        let _turn = entry.turn.lock().await;
        let Some(session) = entry.session.borrow().clone() else { return };
        if session.is_dead() {
            *entry.session.borrow_mut() = None;
            return;
        }
        let Ok(_held) = tokio::time::timeout(DRAIN, session.quiesce()).await else { return };
        session.kill();
        *entry.session.borrow_mut() = None;
        let command = Command::SessionClose { vdi: entry.vdi, generation: session.generation };
        match self.replica.control.propose(command).await {
            Ok(_) => entry.remote.borrow_mut().clear(),
            // It may still be committed.
            Err(e) => tracing::warn!(vdi = %entry.vdi, error = %e, "the session could not be closed"),
        }
    }

    /// Keep new writes of a VDI back and let those in flight finish. The session's generation, or `None` without a session anywhere.
    ///
    /// A hold that is not let go in time kills the session: whatever was to be committed under this generation is then refused, and the
    /// next request opens a new one.
    pub async fn hold(
        self: &Rc<Self>,
        vdi: VdiId,
        timeout: Duration,
    ) -> Result<Option<Generation>, HoldError> {
        let entry = self.entry(vdi);
        let session = match self.session(vdi) {
            Some(s) => s,
            None => {
                let state = self.replica.control.read(|s| s.vdis.get(&vdi).map(|v| v.session.clone()));
                match state {
                    None => return Err(VolumeError::Gone("there is no such VDI".into()).into()),
                    Some(SessionState::Closed) => return Ok(None),
                    Some(SessionState::Open { owner, .. }) if owner != self.replica.control.me() => {
                        return Err(HoldError::Elsewhere(owner));
                    }
                    Some(_) => match self.owner(&entry).await? {
                        Owner::Here(s) => s,
                        Owner::There(node, _) => return Err(HoldError::Elsewhere(node)),
                    },
                }
            }
        };
        if entry.held.borrow().is_some() {
            return Err(VolumeError::Busy("the VDI is being snapshot or resized already".into()).into());
        }
        // A snapshot is a read of everything.
        let certain = async {
            session.repeated().await;
            let guard = session.quiesce().await;
            self.all_confirmed(&entry).await;
            guard
        };
        let guard = tokio::time::timeout(timeout, certain).await.map_err(|_| {
            VolumeError::Busy("writes of this VDI are waiting for sheep to come back: try again later".into())
        })?;
        let (late, forgotten) = (entry.clone(), session.clone());
        let timer = tokio::task::spawn_local(async move {
            tokio::time::sleep(timeout).await;
            forgotten.kill();
            // The timer is part of what is dropped here, so it must not abort itself before the end.
            let held = late.held.borrow_mut().take();
            drop(held);
        });
        let generation = session.generation;
        *entry.held.borrow_mut() = Some(Held { _guard: guard, session, timer });
        Ok(Some(generation))
    }

    /// Let writes go on. `known`: a position of the state at which it was decided what became of the change that they were held for. This node has to know as much first: writes that go
    /// on under the layers of before would go into what is frozen by then. `None`: it is not known, and may be carried out later; the session ends, so that it will be refused.
    pub async fn let_go(&self, vdi: VdiId, known: Option<ControlIndex>) {
        let entry = self.entry(vdi);
        let Some(session) = entry.held.borrow().as_ref().map(|h| h.session.clone()) else { return };
        match known {
            Some(_) if planted::is(Bug::EarlyLetGo) => {}
            // The hold's own end ends this, too.
            Some(known) => {
                let waited = async {
                    self.replica.control.wait_index(known).await;
                    Ok(())
                };
                let _ = session.alive(waited).await;
            }
            None => session.kill(),
        }
        session.refresh();
        // It may have ended by itself, and another one may have begun.
        let ours = entry.held.borrow().as_ref().is_some_and(|h| Rc::ptr_eq(&h.session, &session));
        let held = ours.then(|| entry.held.borrow_mut().take());
        drop(held);
    }

    /// Close a session that nobody uses.
    pub async fn release(self: &Rc<Self>, vdi: VdiId) -> Result<(), VolumeError> {
        let entry = self.entry(vdi);
        if entry.opens.get() > 0 || !entry.remote.borrow().is_empty() {
            return Err(VolumeError::Busy("the VDI is attached: detach it first".into()));
        }
        self.close(&entry).await;
        Ok(())
    }

    /// (VDI, local opens, generation) of every session this node owns.
    pub fn sessions(&self) -> Vec<(VdiId, u32)> {
        let attached = self.attached.borrow();
        attached
            .values()
            .filter(|e| e.session.borrow().as_ref().is_some_and(|s| !s.is_dead()))
            .map(|e| (e.vdi, e.opens.get()))
            .collect()
    }

    /// Close everything (orderly end).
    pub async fn close_all(&self) {
        self.closing.set(true);
        let all: Vec<_> = self.attached.borrow().values().cloned().collect();
        let end = |e| async move {
            self.close(e).await;
            self.unregister(e).await;
        };
        futures::future::join_all(all.iter().map(end)).await;
    }

    /// Who owns the session; opens it when nobody does. Waits while that is being decided.
    async fn owner(self: &Rc<Self>, entry: &Rc<Attached>) -> Result<Owner, VolumeError> {
        let mut sure = false;
        loop {
            if let Some(s) = entry.session.borrow().as_ref().filter(|s| !s.is_dead()) {
                return Ok(Owner::Here(s.clone()));
            }
            if self.closing.get() || self.stop.is_cancelled() {
                return Err(VolumeError::ShuttingDown);
            }
            let control = &self.replica.control;
            let mut watch = control.watch();
            watch.borrow_and_update();
            let me = (control.me(), control.incarnation());
            let state = control.read(|s| {
                s.vdis.get(&entry.vdi).filter(|v| v.working().is_some()).map(|v| v.session.clone())
            });
            match state {
                // A process that has just started does not know everything yet.
                None if !sure => {
                    control.barrier().await;
                    sure = true;
                }
                None => return Err(VolumeError::Gone("the VDI was deleted".into())),
                Some(SessionState::Open { owner, incarnation, generation, ready, .. })
                    if (owner, incarnation) != me =>
                {
                    let up = control.map().nodes.get(&owner).is_some_and(|n| n.is_up());
                    if ready && up {
                        return Ok(Owner::There(owner, generation));
                    }
                    let _ = tokio::time::timeout(Duration::from_millis(500), watch.changed()).await;
                }
                Some(_) => {
                    if !control.lease_valid() {
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                    self.open_session(entry).await?;
                }
            }
        }
    }

    pub(super) async fn open_session(self: &Rc<Self>, entry: &Rc<Attached>) -> Result<(), VolumeError> {
        let _turn = entry.turn.lock().await;
        if entry.session.borrow().as_ref().is_some_and(|s| !s.is_dead()) {
            return Ok(());
        }
        let control = &self.replica.control;
        let command =
            Command::SessionOpen { vdi: entry.vdi, node: control.me(), incarnation: control.incarnation() };
        let (generation, reconcile) = match control.propose(command).await {
            Ok(Reply::Session { generation, reconcile }) => (generation, reconcile),
            Ok(Reply::Owned { .. }) => return Ok(()),
            Ok(Reply::Error(CommandError::NotFound(why))) => return Err(VolumeError::Gone(why)),
            // This node is not in the map at the moment, or this process is not: it says hello again.
            Ok(Reply::Error(CommandError::Fenced)) => {
                tokio::time::sleep(RETRY).await;
                return Ok(());
            }
            Ok(Reply::Error(e)) => return Err(VolumeError::Busy(e.to_string())),
            Ok(other) => return Err(VolumeError::Io(format!("unexpected answer {other:?}"))),
            Err(e) => {
                tracing::debug!(error = %e, "session open");
                tokio::time::sleep(RETRY).await;
                return Ok(());
            }
        };
        let cache = self.cache.clone();
        let Some(session) = Session::new(self.replica.clone(), entry.vdi, generation, cache, &self.stop)
        else {
            return Err(VolumeError::Gone("the VDI was deleted".into()));
        };
        if reconcile && session.take_over().await.is_err() {
            session.kill();
            return Ok(());
        }
        match control.propose(Command::SessionReady { vdi: entry.vdi, generation }).await {
            Ok(Reply::Done) => {
                self.ask_for_repeats(entry, &session);
                *entry.session.borrow_mut() = Some(session);
            }
            other => {
                tracing::debug!(?other, "session ready");
                session.kill();
            }
        }
        Ok(())
    }

    /// The same for a change: those of this gateway that overlap go one after the other.
    pub async fn submit_change(
        self: &Rc<Self>,
        entry: &Rc<Attached>,
        open: Open,
        io: &Io,
    ) -> Result<IoDone, VolumeError> {
        let turn = entry.turns.borrow_mut().enter(io.bytes());
        until(&entry.turned, || entry.turns.borrow().may_go(turn).then_some(())).await;
        let result = self.submit(entry, open, io).await;
        entry.turns.borrow_mut().leave(turn);
        entry.turned.notify_waiters();
        result
    }

    /// Run one request at whoever owns the session.
    pub async fn submit(
        self: &Rc<Self>,
        entry: &Rc<Attached>,
        open: Open,
        io: &Io,
    ) -> Result<IoDone, VolumeError> {
        let mut sending = Sending::new(entry);
        loop {
            let owner = self.owner(entry).await?;
            self.permits(entry.vdi, open.by, io.changes())?;
            if io.changes() {
                sending.to(owner.generation());
            }
            let result = match owner {
                // An owner looks for itself; see `serve_forward` for others.
                Owner::Here(_)
                    if io.changes() && !self.is_open_at(entry.vdi, self.replica.control.me(), open.since) =>
                {
                    return Err(VolumeError::Fenced);
                }
                Owner::Here(session) => {
                    let _carrying = io.changes().then(|| Carrying::begin(entry, open.by));
                    self.carry_out(entry, &session, io).await
                }
                Owner::There(node, _) => self.forward(node, entry.vdi, open, io).await,
            };
            match result {
                Ok(done) => return Ok(done),
                Err(SessionError::Volume(e)) => return Err(e),
                Err(SessionError::NotOwner) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    async fn forward(&self, node: NodeId, vdi: VdiId, open: Open, io: &Io) -> Result<IoDone, SessionError> {
        let mut payload = Vec::new();
        let forward = match io {
            Io::Read { layer, offset, len } => Forward::Read { layer: *layer, offset: *offset, len: *len },
            Io::Write { offset, data } => {
                payload.push(data.clone());
                Forward::Write { offset: *offset }
            }
            Io::Zero { offset, len, discard: true } => Forward::Trim { offset: *offset, len: *len },
            Io::Zero { offset, len, discard: false } => Forward::Zero { offset: *offset, len: *len },
            Io::Status { layer, offset, len, max } => {
                Forward::BlockStatus { layer: *layer, offset: *offset, len: *len, max: *max as u32 }
            }
        };
        let number = io.changes().then(|| Forwarded::new(self, node));
        let heard = || self.sent.borrow().get(&node).map_or(0, |numbers| numbers.value() + 1);
        let (seq, floor) = number.as_ref().map_or_else(|| (0, heard()), |n| (n.seq, n.floor));
        let Open { id, since, by } = open;
        let request = Request::Forward { vdi, open: id, since, attachment: by, seq, floor, io: forward };
        match self.replica.links.to(node).request(&request, payload).await {
            Ok((Response::Forwarded, data)) => Ok(match io {
                Io::Read { .. } => IoDone::Data(vec![data]),
                _ => IoDone::Done,
            }),
            Ok((Response::Extents(e), _)) => Ok(IoDone::Extents(
                e.into_iter().map(|(len, hole, zero)| Extent { len, hole, zero }).collect(),
            )),
            Ok((Response::ForwardFailed(e), _)) => Err(match e {
                ForwardError::NotOwner | ForwardError::ShuttingDown => SessionError::NotOwner,
                ForwardError::OutOfRange => VolumeError::OutOfRange.into(),
                ForwardError::ReadOnly => VolumeError::ReadOnly.into(),
                ForwardError::Gone(why) => VolumeError::Gone(why).into(),
                ForwardError::Fenced => VolumeError::Fenced.into(),
                ForwardError::NotAttached(why) => VolumeError::NotAttached(why).into(),
                ForwardError::Io(why) => VolumeError::Io(why).into(),
            }),
            Ok(_) => Err(VolumeError::Io("the owner answered nonsense".into()).into()),
            Err(LinkError::ShuttingDown) => Err(VolumeError::ShuttingDown.into()),
            Err(_) => Err(SessionError::NotOwner),
        }
    }

    /// A request that another gateway forwarded to us, a change under this number.
    pub(crate) async fn serve_forward(
        self: &Rc<Self>,
        number: Numbered,
        vdi: VdiId,
        open: Open,
        io: Forward,
        payload: Bytes,
    ) -> (Response, Vec<Bytes>) {
        let failed = |e| (Response::ForwardFailed(e), Vec::new());
        // What the sender knows of registrations, we must know.
        if self.replica.control.applied().index < open.since && !self.replica.catch_up(open.since).await {
            return failed(ForwardError::NotOwner);
        }
        let Some(session) = self.session(vdi) else { return failed(ForwardError::NotOwner) };
        let entry = self.entry(vdi);
        let (from, _) = number.from;
        let io = match io {
            Forward::Attach => {
                entry.rule.dead_are_buried().await;
                self.strangers_ended(&entry).await;
                entry.remote.borrow_mut().insert((from, open.id));
                // Nobody here needs it: let it move to where it is used.
                self.settle(entry);
                return (Response::Forwarded, Vec::new());
            }
            Forward::Detach => {
                entry.remote.borrow_mut().remove(&(from, open.id));
                self.settle(entry);
                return (Response::Forwarded, Vec::new());
            }
            Forward::Read { layer, offset, len } if len as u64 <= MAX_FORWARD => {
                Io::Read { layer, offset, len }
            }
            Forward::Read { .. } => return failed(ForwardError::OutOfRange),
            Forward::Write { offset } => Io::Write { offset, data: payload },
            Forward::Zero { offset, len } => Io::Zero { offset, len, discard: false },
            Forward::Trim { offset, len } => Io::Zero { offset, len, discard: true },
            Forward::BlockStatus { layer, offset, len, max } => {
                Io::Status { layer, offset, len, max: (max as usize).min(4096) }
            }
        };
        if io.changes() {
            self.room_for_one(&entry).await;
        }
        let running = match self.permits(vdi, open.by, io.changes()) {
            // Given after what this node knows.
            Err(_) if self.replica.control.read(|s| open.by.0 > s.last_attachment) => {
                return failed(ForwardError::NotOwner);
            }
            Err(e) => return failed(forward_error(e)),
            Ok(()) if !io.changes() => None,
            Ok(()) if !self.is_open_at(vdi, from, open.since) => return failed(ForwardError::Fenced),
            Ok(()) => Some((Foreign::begin(&entry, from, open.since), Carrying::begin(&entry, open.by))),
        };
        if io.changes() {
            entry.unconfirmed.begin(number, open, io.bytes());
        }
        let done = self.carry_out(&entry, &session, &io).await;
        if io.changes() {
            entry.unconfirmed.ended(number, done.is_ok());
        }
        drop(running);
        match done {
            Ok(IoDone::Data(parts)) => (Response::Forwarded, parts),
            Ok(IoDone::Done) => (Response::Forwarded, Vec::new()),
            Ok(IoDone::Extents(e)) => {
                (Response::Extents(e.into_iter().map(|x| (x.len, x.hole, x.zero)).collect()), Vec::new())
            }
            Err(SessionError::NotOwner) => failed(ForwardError::NotOwner),
            Err(SessionError::Volume(e)) => failed(forward_error(e)),
        }
    }

    /// Frozen layers need no session: any copy will do.
    pub(crate) async fn read_frozen(
        &self,
        layer: LayerId,
        offset: u64,
        len: u32,
    ) -> Result<Vec<Bytes>, VolumeError> {
        if self.shape(layer).is_err() {
            // A process that has just started does not know everything yet.
            self.replica.control.barrier().await;
        }
        let (family, object_size) = self.shape(layer)?;
        let mut out = Vec::new();
        for p in pieces(offset, len as u64, object_size) {
            let mut first = p.blocks.start;
            while first < p.blocks.end {
                let end = (first + 256).min(p.blocks.end);
                let base = ((first - p.blocks.start) as usize) << BLOCK_SHIFT;
                let key = PlacementKey { family, index: p.index };
                let data = read_through(&self.replica, layer, key, first..end).await?;
                let from = p.bytes.start.max(base) - base;
                let to = p.bytes.end.min(base + data.len()) - base;
                out.push(data.slice(from..to));
                first = end;
            }
        }
        Ok(out)
    }

    fn shape(&self, layer: LayerId) -> Result<(LayerId, u32), VolumeError> {
        self.replica
            .control
            .read(|s| {
                let family = s.layers.get(&layer)?.family;
                Some((family, s.families.get(&family)?.object_size))
            })
            .ok_or_else(|| VolumeError::Gone("the snapshot was deleted".into()))
    }

    /// Extents of a layer.
    pub(crate) async fn extents(
        &self,
        layer: LayerId,
        offset: u64,
        len: u64,
        max: usize,
    ) -> Result<Vec<Extent>, VolumeError> {
        let (family, object_size) = self.shape(layer)?;
        extents(&self.replica, layer, family, object_size, offset, len, max).await
    }
}

/// What an owner is told of an open itself.
fn telling(vdi: VdiId, open: Open, io: Forward) -> Request {
    let Open { id, since, by } = open;
    Request::Forward { vdi, open: id, since, attachment: by, seq: 0, floor: 0, io }
}

fn forward_error(e: VolumeError) -> ForwardError {
    match e {
        VolumeError::OutOfRange => ForwardError::OutOfRange,
        VolumeError::ReadOnly => ForwardError::ReadOnly,
        VolumeError::ShuttingDown => ForwardError::ShuttingDown,
        VolumeError::Gone(why) => ForwardError::Gone(why),
        VolumeError::Fenced => ForwardError::Fenced,
        VolumeError::NotAttached(why) => ForwardError::NotAttached(why),
        other => ForwardError::Io(other.to_string()),
    }
}

pub(super) async fn run(session: &Rc<Session>, io: &Io) -> Result<IoDone, SessionError> {
    match io {
        Io::Read { layer, offset, len } => session.read(*layer, *offset, *len).await.map(IoDone::Data),
        Io::Write { offset, data } => session.write(*offset, data.clone()).await.map(|()| IoDone::Done),
        Io::Zero { offset, len, discard } => {
            session.zero(*offset, *len, *discard).await.map(|()| IoDone::Done)
        }
        Io::Status { layer, offset, len, max } => {
            let of = layer.unwrap_or(session.top());
            let r = &session.replica;
            let found = extents(r, of, session.family, session.object_size, *offset, *len, *max).await?;
            if layer.is_none() {
                // As for reads: was it the session's volume, and its layer?
                session.refresh();
                if session.is_dead() || session.top() != of {
                    return Err(SessionError::NotOwner);
                }
            }
            Ok(IoDone::Extents(found))
        }
    }
}

async fn extents(
    r: &Rc<Replica>,
    layer: LayerId,
    family: LayerId,
    object_size: u32,
    offset: u64,
    len: u64,
    max: usize,
) -> Result<Vec<Extent>, VolumeError> {
    let mut out: Vec<Extent> = Vec::new();
    for p in pieces(offset, len, object_size) {
        let key = PlacementKey { family, index: p.index };
        let runs = status_through(r, layer, key, p.blocks.clone()).await?;
        for (run, state) in runs {
            let from = (((run.start - p.blocks.start) as usize) << BLOCK_SHIFT).max(p.bytes.start);
            let to = (((run.end - p.blocks.start) as usize) << BLOCK_SHIFT).min(p.bytes.end);
            let (hole, zero) = match state {
                BlockState::Data => (false, false),
                BlockState::Zero | BlockState::Absent => (true, true),
            };
            let len = (to - from) as u64;
            let full = out.len() == max;
            match out.last_mut() {
                Some(last) if last.hole == hole && last.zero == zero => last.len += len,
                _ if full => return Ok(out),
                _ => out.push(Extent { len, hole, zero }),
            }
        }
    }
    Ok(out)
}

impl crate::work::sync::Joiner for Gateway {
    fn join(
        &self,
        vdi: VdiId,
        oid: sheepdog_proto::ObjectId,
        family: LayerId,
        from: NodeId,
    ) -> crate::volume::LocalFut<'_, Result<bool, String>> {
        Box::pin(async move {
            match self.session(vdi) {
                Some(session) => session.join(oid, family, from).await.map(|()| true),
                None => Ok(false),
            }
        })
    }
}
