//! Who is connected, and what each export has done: plain cells of the data thread, read by whoever exports metrics.

use crate::observe::cells::add;
pub use crate::observe::cells::{LATENCY_BUCKETS, OpStats};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// Exports whose counters are kept after the last client left. Beyond it, idle ones are forgotten.
const MAX_IDLE_EXPORTS: usize = 4096;
/// Kinds of requests that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Flush.
    Flush,
    /// Trim.
    Trim,
    /// Write zeroes.
    Zero,
    /// Cache.
    Cache,
    /// Block status.
    Status,
}

impl Op {
    /// All, in the order of `ExportStats::ops`.
    pub const ALL: [Self; 7] =
        [Self::Read, Self::Write, Self::Flush, Self::Trim, Self::Zero, Self::Cache, Self::Status];

    /// Label for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::Zero => "zero",
            Self::Cache => "cache",
            Self::Status => "status",
        }
    }
}

/// Counters of one export.
#[derive(Debug, Default)]
pub struct ExportStats {
    ops: [OpStats; 7],
    /// Clients attached now.
    pub connections: Cell<usize>,
    /// Requests that were refused before they reached the volume.
    pub refused: Cell<u64>,
}

impl ExportStats {
    /// Counters of one kind.
    pub fn op(&self, op: Op) -> &OpStats {
        &self.ops[op as usize]
    }

    pub(super) fn finished(&self, op: Op, bytes: u32, took: Duration, ok: bool) {
        self.op(op).finished(u64::from(bytes), took, ok);
    }

    pub(super) fn refuse(&self) {
        add(&self.refused, 1);
    }
}

/// A connection as `stat` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionRow {
    /// Number of the connection since start.
    pub id: u64,
    /// Address, or `unix`.
    pub peer: String,
    /// Empty while the handshake goes on.
    pub export: String,
    /// The stream is encrypted.
    pub tls: bool,
    /// Requests under way.
    pub in_flight: usize,
    /// Requests answered.
    pub requests: u64,
    /// Since it was accepted.
    pub age: Duration,
}

/// What a connection tells about itself while it lives.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: u64,
    peer: String,
    pub(super) export: RefCell<String>,
    pub(super) tls: Cell<bool>,
    pub(super) in_flight: Cell<usize>,
    pub(super) requests: Cell<u64>,
    since: Instant,
    abort: RefCell<Option<AbortHandle>>,
}

/// Whose counters an export has: its name without what says as whom it is opened (`name#number`). Tags of snapshots may hold anything.
pub fn counted_as(export: &str) -> &str {
    match export.split_once('#') {
        Some((base, _)) if !export.contains('@') => base,
        _ => export,
    }
}

/// All connections and exports of a server.
#[derive(Default)]
pub(super) struct Registry {
    next: Cell<u64>,
    connections: RefCell<BTreeMap<u64, Rc<Connection>>>,
    exports: RefCell<BTreeMap<String, Rc<ExportStats>>>,
    emptied: Notify,
}

impl Registry {
    pub(super) fn add(&self, peer: String) -> Rc<Connection> {
        let id = self.next.get() + 1;
        self.next.set(id);
        let c = Rc::new(Connection {
            id,
            peer,
            export: RefCell::default(),
            tls: Cell::new(false),
            in_flight: Cell::new(0),
            requests: Cell::new(0),
            since: Instant::now(),
            abort: RefCell::new(None),
        });
        self.connections.borrow_mut().insert(id, c.clone());
        c
    }

    pub(super) fn set_abort(&self, id: u64, handle: AbortHandle) {
        if let Some(c) = self.connections.borrow().get(&id) {
            c.abort.replace(Some(handle));
        }
    }

    pub(super) fn remove(&self, id: u64) {
        let mut connections = self.connections.borrow_mut();
        connections.remove(&id);
        if connections.is_empty() {
            self.emptied.notify_waiters();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Completes when nobody is connected.
    pub(super) async fn empty(&self) {
        let emptied = self.emptied.notified();
        if self.len() > 0 {
            emptied.await;
        }
    }

    pub(super) fn abort_all(&self) -> usize {
        let all: Vec<_> = self.connections.borrow().values().cloned().collect();
        all.iter().filter_map(|c| c.abort.borrow().clone()).for_each(|a| a.abort());
        all.len()
    }

    pub(super) fn connections(&self) -> Vec<ConnectionRow> {
        let row = |c: &Rc<Connection>| ConnectionRow {
            id: c.id,
            peer: c.peer.clone(),
            export: c.export.borrow().clone(),
            tls: c.tls.get(),
            in_flight: c.in_flight.get(),
            requests: c.requests.get(),
            age: c.since.elapsed(),
        };
        self.connections.borrow().values().map(row).collect()
    }

    /// Counters of an export, for a client that attaches it.
    pub(super) fn export(&self, name: &str) -> Rc<ExportStats> {
        let mut exports = self.exports.borrow_mut();
        if exports.len() >= MAX_IDLE_EXPORTS && !exports.contains_key(name) {
            exports.retain(|_, s| s.connections.get() > 0);
        }
        exports.entry(name.to_owned()).or_default().clone()
    }

    pub(super) fn exports(&self) -> Vec<(String, Rc<ExportStats>)> {
        self.exports.borrow().iter().map(|(n, s)| (n.clone(), s.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_goes_to_its_bucket() {
        let s = ExportStats::default();
        for (micros, bucket) in
            [(0, 0), (1, 1), (2, 2), (3, 2), (1000, 10), (u64::MAX / 2000, LATENCY_BUCKETS - 1)]
        {
            let before = s.op(Op::Read).latency[bucket].get();
            s.finished(Op::Read, 4096, Duration::from_micros(micros), true);
            assert_eq!(s.op(Op::Read).latency[bucket].get(), before + 1, "{micros} us");
        }
        assert_eq!(s.op(Op::Read).bytes.get(), 6 * 4096);
        assert_eq!(s.op(Op::Read).errors.get(), 0);
    }

    #[test]
    fn idle_exports_are_forgotten_when_there_are_too_many() {
        let r = Registry::default();
        let kept = r.export("used");
        kept.connections.set(1);
        for i in 0..MAX_IDLE_EXPORTS + 10 {
            r.export(&format!("v{i}"));
        }
        assert!(r.exports().len() <= MAX_IDLE_EXPORTS);
        assert!(Rc::ptr_eq(&r.export("used"), &kept));
    }
}
