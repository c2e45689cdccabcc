//! What clients asked and what they were told, in the order in which it happened.
//!
//! A register is half a block (2 KiB): a read of a block looks at two of them, and a write of one half must not touch the other. A value is unique to the write that wrote
//! it; 0 is what zeroing and discarding leave behind.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a register.
pub const REGISTER: u64 = 2048;

/// What was done to a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It had this value.
    Read(u64),
    /// It got this value.
    Write(u64),
}

/// One operation on one register. Times are positions in the history.
#[derive(Debug, Clone, Copy)]
pub struct Op {
    /// Who.
    pub client: u64,
    /// What. A read's value is known when it has returned.
    pub kind: Kind,
    /// When it was asked.
    pub invoked: u64,
    /// When it was answered.
    pub returned: Option<u64>,
    /// No answer came, and it cannot take effect after this.
    pub settled: Option<u64>,
    /// It was the end of its client's attachment that settled it.
    pub detached: bool,
}

/// All operations.
#[derive(Default)]
pub struct History {
    clock: Cell<u64>,
    ops: RefCell<Vec<(u64, Op)>>,
    done: Cell<u64>,
    hash: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, String>>,
    next: Cell<u64>,
    forbidden: RefCell<BTreeSet<u64>>,
}

/// Names operations of one request.
#[derive(Debug, Clone)]
pub struct Asked {
    ops: std::ops::Range<usize>,
    number: u64,
}

impl History {
    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }
    fn mix(&self, x: u64) {
        let h = (self.hash.get() ^ x).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(29);
        self.hash.set(h);
    }
    /// Now, as a position.
    pub fn now(&self) -> u64 {
        self.tick()
    }
    /// A value that nobody has used.
    pub fn fresh(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }
    /// A request begins.
    pub fn ask(&self, client: u64, registers: &[(u64, Kind)], what: impl Into<String>) -> Asked {
        let invoked = self.tick();
        let mut ops = self.ops.borrow_mut();
        let first = ops.len();
        for (register, kind) in registers {
            let (returned, settled) = (None, None);
            ops.push((*register, Op { client, kind: *kind, invoked, returned, settled, detached: false }));
            self.mix(*register);
        }
        self.waiting.borrow_mut().insert(invoked, what.into());
        Asked { ops: first..ops.len(), number: invoked }
    }
    /// It was answered; `values` for reads, one per register.
    pub fn answer(&self, asked: &Asked, values: Option<&[u64]>) {
        let returned = self.tick();
        self.mix(returned);
        let mut ops = self.ops.borrow_mut();
        for (n, (_, op)) in ops[asked.ops.clone()].iter_mut().enumerate() {
            op.returned = Some(returned);
            if let (Kind::Read(v), Some(values)) = (&mut op.kind, values) {
                *v = values[n];
                self.mix(values[n]);
            }
        }
        self.done.set(self.done.get() + 1);
        self.waiting.borrow_mut().remove(&asked.number);
    }
    /// Nobody knows what became of it.
    pub fn lost(&self, asked: &Asked) {
        self.waiting.borrow_mut().remove(&asked.number);
    }
    /// Whatever this client asked and got no answer to has happened by now or never will.
    pub fn settle(&self, client: u64) {
        self.settle_by(client, false);
    }
    /// The same, because it has lost its attachment.
    pub fn detached(&self, client: u64) {
        self.settle_by(client, true);
    }
    fn settle_by(&self, client: u64, detached: bool) {
        let now = self.tick();
        for (_, op) in self.ops.borrow_mut().iter_mut() {
            if op.client == client && op.returned.is_none() && op.settled.is_none() {
                (op.settled, op.detached) = (Some(now), detached);
            }
        }
    }
    /// A value that nobody may ever read, because whoever writes it has no right to.
    pub fn forbidden(&self) -> u64 {
        let value = self.fresh();
        self.forbidden.borrow_mut().insert(value);
        value
    }
    /// May it not be read?
    pub fn is_forbidden(&self, value: u64) -> bool {
        self.forbidden.borrow().contains(&value)
    }
    /// A read that is known to have happened between two positions.
    pub fn saw(&self, register: u64, value: u64, invoked: u64, returned: u64) {
        let (kind, returned) = (Kind::Read(value), Some(returned));
        let op = Op { client: 0, kind, invoked, returned, settled: None, detached: false };
        self.ops.borrow_mut().push((register, op));
    }
    /// Answered requests.
    pub fn finished(&self) -> u64 {
        self.done.get()
    }
    /// Hash of everything.
    pub fn fingerprint(&self) -> u64 {
        self.hash.get()
    }
    /// Requests without an answer.
    pub fn waiting(&self) -> Vec<String> {
        self.waiting.borrow().values().cloned().collect()
    }
    /// By register.
    pub fn by_register(&self) -> BTreeMap<u64, Vec<Op>> {
        let mut all: BTreeMap<u64, Vec<Op>> = BTreeMap::new();
        for (register, op) in self.ops.borrow().iter() {
            all.entry(*register).or_default().push(*op);
        }
        all
    }
}
