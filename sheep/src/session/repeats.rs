//! Nobody is told of a change that may be carried out once more.
//!
//! A gateway repeats what an owner did not answer, if need be at the next owner, and neither of them can tell whether it has been carried out before. That does no harm as long as nobody has
//! seen its effect: then it counts as happening when it is repeated, whatever others have written in between. So two things wait, reads and snapshots:
//!
//! * at the owner, for what it has carried out for other gateways until these have its answers (`Unconfirmed`), and for changes of several steps, its own too, until the last step
//!   is done (`changes_ended`): those that are done would be done again with the others;
//! * after an opening, for what gateways had sent to earlier owners until it is answered (`Unanswered`, asked for by `repeated`).
//!
//! Changes wait for nothing here. A gateway that is not up does not hold anybody up: it loses its registration, and with that what it still sends is refused.
//! See `docs/design/forwarding.md`.

use super::attach::{Attached, Gateway, Io, IoDone, run};
use super::opens::Open;
use super::owner::{Session, SessionError};
use crate::planted::{self, Bug};
use crate::wait::until;
use futures::future::join_all;
use sheepdog_cluster::GatewayOpen;
use sheepdog_proto::peer::{MAX_ANSWERED, Request};
use sheepdog_proto::{ControlIndex, Generation, NodeId, VdiId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use tokio::sync::Notify;

/// A process of a node.
type Process = (NodeId, u64);

/// Changes from this gateway's clients, from when they are first sent to an owner until they are answered or given up: the generation of that owner.
#[derive(Default)]
pub(super) struct Unanswered {
    next: Cell<u64>,
    sent: RefCell<BTreeMap<u64, Generation>>,
    ended: Notify,
}

impl Unanswered {
    /// Nothing of them was sent to an owner before this one.
    async fn none_before(&self, generation: Generation) {
        until(&self.ended, || self.is_none_before(generation).then_some(())).await;
    }
    fn is_none_before(&self, generation: Generation) -> bool {
        self.sent.borrow().values().all(|g| *g >= generation)
    }
}

/// One of them.
pub(super) struct Sending<'a> {
    of: &'a Attached,
    number: Option<u64>,
}

impl<'a> Sending<'a> {
    pub(super) fn new(of: &'a Attached) -> Self {
        Self { of, number: None }
    }
    /// It is about to be sent to the owner of this generation.
    pub(super) fn to(&mut self, generation: Generation) {
        if self.number.is_none() {
            let unanswered = &self.of.unanswered;
            let number = unanswered.next.get();
            unanswered.next.set(number + 1);
            unanswered.sent.borrow_mut().insert(number, generation);
            self.number = Some(number);
        }
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.of.unanswered.sent.borrow_mut().remove(&number);
            self.of.unanswered.ended.notify_waiters();
        }
    }
}

/// A change that is or was carried out here for another gateway.
struct Foreign {
    from: Process,
    /// Registration of the gateway.
    since: ControlIndex,
    /// Number of the change at its sender.
    seq: u64,
    bytes: Range<u64>,
    /// It has been carried out, its answer is on its way.
    done: bool,
}

/// Those of which nobody knows yet that their gateway has the answer.
#[derive(Default)]
pub(super) struct Unconfirmed {
    list: RefCell<Vec<Foreign>>,
}

/// Of a change that arrived: who sent it and as what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbered {
    /// Sender.
    pub(crate) from: Process,
    /// Its number there.
    pub(crate) seq: u64,
}

impl Unconfirmed {
    pub(super) fn begin(&self, Numbered { from, seq }: Numbered, open: Open, bytes: Range<u64>) {
        self.list.borrow_mut().push(Foreign { from, since: open.since, seq, bytes, done: false });
    }

    /// It has ended. One that failed is not sent again, or ended together with its session.
    pub(super) fn ended(&self, Numbered { from, seq }: Numbered, ok: bool) {
        let mut list = self.list.borrow_mut();
        if let Some(at) = list.iter().position(|f| (f.from, f.seq) == (from, seq)) {
            match ok {
                true => list[at].done = true,
                false => drop(list.swap_remove(at)),
            }
        }
    }

    /// The sender has every answer below `floor`.
    fn heard(&self, from: Process, floor: u64) {
        self.list.borrow_mut().retain(|f| f.from != from || f.seq >= floor);
    }

    fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }
}

impl Gateway {
    /// Carry a request out as owner. What it tells of is certain.
    pub(super) async fn carry_out(
        &self,
        entry: &Attached,
        session: &Rc<Session>,
        io: &Io,
    ) -> Result<IoDone, SessionError> {
        let done = run(session, io).await?;
        let looks = matches!(io, Io::Read { layer: None, .. } | Io::Status { layer: None, .. });
        let bytes = io.bytes();
        if !looks
            || (session.is_repeated() && entry.unconfirmed.is_empty() && !session.is_changing(&bytes))
            || planted::is(Bug::UncertainRead)
        {
            return Ok(done);
        }
        // What it may have seen had begun by now.
        let certain = async {
            session.changes_ended(&bytes).await;
            session.repeated().await;
            self.confirmed(entry, |f| f.bytes.start < bytes.end && bytes.start < f.bytes.end).await;
            Ok(done)
        };
        session.alive(certain).await
    }

    /// Everything that was carried out for other gateways has been answered there. For a session whose requests are kept back.
    pub(super) async fn all_confirmed(&self, entry: &Attached) {
        self.confirmed(entry, |f| f.done).await;
    }

    /// As many changes as one question can be about are unconfirmed: their senders are asked, so that the list stays short.
    pub(super) async fn room_for_one(&self, entry: &Attached) {
        while entry.unconfirmed.list.borrow().len() >= MAX_ANSWERED {
            self.confirmed(entry, |_| true).await;
        }
    }

    /// A sender's word, with whatever it sends.
    pub(crate) fn heard(&self, vdi: VdiId, from: Process, floor: u64) {
        if let Some(entry) = self.known(vdi) {
            entry.unconfirmed.heard(from, floor);
        }
    }

    /// These changes are answered at their gateways, or will never be carried out again.
    async fn confirmed(&self, entry: &Attached, which: impl Fn(&Foreign) -> bool) {
        let mut asked: BTreeMap<(Process, ControlIndex), Vec<u64>> = BTreeMap::new();
        for f in entry.unconfirmed.list.borrow().iter().filter(|f| which(f)) {
            asked.entry((f.from, f.since)).or_default().push(f.seq);
        }
        let asking = asked.into_iter().map(|((from, since), seqs)| async move {
            let (node, incarnation) = from;
            let ask = Request::Answered { incarnation, seqs: seqs.clone() };
            self.ask_gateway(entry.vdi, node, GatewayOpen { incarnation, since }, &ask).await;
            entry.unconfirmed.list.borrow_mut().retain(|f| f.from != from || !seqs.contains(&f.seq));
        });
        join_all(asking).await;
    }

    /// What this gateway sent to `owner` under these numbers is answered, and will not be sent there again.
    pub(crate) async fn answered(&self, owner: NodeId, seqs: &[u64]) {
        let open = || {
            let sent = self.sent.borrow();
            sent.get(&owner).is_some_and(|numbers| seqs.iter().any(|s| numbers.is_open(*s)))
        };
        until(&self.got_answer, || (!open()).then_some(())).await;
    }

    /// Nothing that this gateway had sent to owners before this generation is unanswered.
    pub(crate) async fn has_repeated(&self, vdi: VdiId, generation: Generation) {
        if let Some(entry) = self.known(vdi) {
            entry.unanswered.none_before(generation).await;
        }
    }

    /// The session begins to serve: find out when everything that gateways had sent to earlier owners is answered.
    pub(super) fn ask_for_repeats(self: &Rc<Self>, entry: &Rc<Attached>, session: &Rc<Session>) {
        let control = &self.replica.control;
        let (others, control_index) = control.read(|s| {
            let gateways = s.vdis.get(&entry.vdi).map(|v| &v.gateways).into_iter().flatten();
            let others = gateways.filter(|(n, _)| **n != control.me());
            (others.map(|(n, g)| (*n, *g)).collect::<Vec<_>>(), s.index)
        });
        let generation = session.generation;
        if others.is_empty() && entry.unanswered.is_none_before(generation) {
            session.all_repeated();
            return;
        }
        let (this, entry, session) = (self.clone(), entry.clone(), session.clone());
        let all = async move {
            let vdi = entry.vdi;
            let asking = others.iter().map(|(node, open)| {
                let this = &this;
                let incarnation = open.incarnation;
                let ask = Request::Repeated { vdi, incarnation, generation, control_index };
                async move { this.ask_gateway(vdi, *node, *open, &ask).await }
            });
            let told = async {
                tokio::join!(join_all(asking), entry.unanswered.none_before(generation));
                Ok(())
            };
            if session.alive(told).await.is_ok() {
                session.all_repeated();
            }
        };
        tokio::task::spawn_local(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_proto::AttachmentId;

    fn process(n: u8) -> Process {
        (NodeId(u128::from(n)), 1)
    }

    #[test]
    fn what_is_unconfirmed_goes_with_its_senders_word_only() {
        let open = Open { id: 1, since: ControlIndex(1), by: AttachmentId::NONE };
        let list = Unconfirmed::default();
        for seq in 1..=3 {
            list.begin(Numbered { from: process(1), seq }, open, 0..4096);
        }
        list.begin(Numbered { from: process(2), seq: 1 }, open, 0..4096);
        list.ended(Numbered { from: process(1), seq: 1 }, true);
        list.ended(Numbered { from: process(1), seq: 2 }, false);
        let left = || list.list.borrow().iter().map(|f| (f.from.0, f.seq, f.done)).collect::<Vec<_>>();
        assert_eq!(left().len(), 3, "one failed: it is not sent again");
        assert!(left().contains(&(process(1).0, 1, true)), "carried out is not confirmed");
        list.heard((process(1).0, 2), 9);
        assert_eq!(left().len(), 3, "another process of that node");
        list.heard(process(1), 3);
        assert_eq!(left(), [(process(2).0, 1, false), (process(1).0, 3, false)]);
    }
}
