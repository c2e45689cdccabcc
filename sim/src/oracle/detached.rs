//! No write of a client takes effect after its attachment was detached.
//!
//! Whether some order explains all answers is asked by `linearizable`; here is the part of it that attachments promise, so that a finding says what was broken. Values are
//! unique to their writes: what was seen to be something else after the detach had been answered, and is the detached write's value later, was written after it.

use super::history::{History, Kind, Op};

/// One line per broken promise.
pub fn check(history: &History) -> Vec<String> {
    let mut bad = Vec::new();
    for (register, ops) in history.by_register() {
        for op in &ops {
            match op.kind {
                Kind::Read(v) if op.returned.is_some() && history.is_forbidden(v) => {
                    bad.push(format!(
                        "register {register}: client {} read {v}, sent by a detached client",
                        op.client
                    ));
                }
                Kind::Write(v) if v != 0 && op.detached => {
                    if let Some(why) = came_late(op, v, &ops) {
                        bad.push(format!("register {register}: {why}"));
                    }
                }
                _ => {}
            }
        }
    }
    bad
}

fn came_late(write: &Op, value: u64, ops: &[Op]) -> Option<String> {
    let detached = write.settled?;
    let is_it = |o: &Op| o.kind == Kind::Read(value);
    let other = ops.iter().filter(|o| o.invoked > detached && !is_it(o)).filter_map(|o| o.returned).min()?;
    let late = ops.iter().find(|o| is_it(o) && o.returned.is_some() && o.invoked > other)?;
    let (by, at) = (write.client, late.invoked);
    Some(format!("{value} of client {by}, detached at {detached}, was not there at {other} and is at {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(kind: Kind, invoked: u64, returned: u64) -> Op {
        Op { client: 1, kind, invoked, returned: Some(returned), settled: None, detached: false }
    }

    #[test]
    fn a_write_that_comes_after_the_detach_is_found() {
        let write = Op { returned: None, settled: Some(5), detached: true, ..op(Kind::Write(1), 1, 0) };
        let (old, new) = (|at| op(Kind::Read(0), at, at + 1), |at| op(Kind::Read(1), at, at + 1));
        let late = |ops: &[Op]| came_late(&write, 1, ops).is_some();
        assert!(late(&[write, old(6), new(8)]));
        assert!(late(&[write, op(Kind::Write(2), 6, 7), new(8)]));
        // Before or during the detach it may have come; and what was seen all along did.
        assert!(!late(&[write, old(3), new(8)]));
        assert!(!late(&[write, new(6), new(8)]));
        assert!(!late(&[write, new(6), old(8)]));
    }
}
