//! Is there an order of the operations on each register that explains every answer? (P2)
//!
//! Just-in-time linearization (Wing and Gong's search in the form of Lowe, "Testing for linearizability", 2017): walk through invocations and answers in order of time and
//! keep every configuration that is still possible, a configuration being the register's value and which of the pending operations have taken effect. An answer
//! throws away the configurations in which its operation has not; if none is left there is no such order.

use super::history::{History, Kind, Op};
use std::collections::{BTreeMap, BTreeSet};

/// More configurations than this: the register is given up, and reported, because silence would look like success.
const MOST: usize = 200_000;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Config {
    value: u64,
    done: BTreeSet<usize>,
}

#[derive(Clone, Copy)]
enum Event {
    Invoke(usize),
    Return(usize),
    /// Took effect by now, or never.
    Settle(usize),
}

/// All registers. One line per register that cannot be explained.
pub fn check(history: &History) -> Vec<String> {
    let mut bad = Vec::new();
    for (register, ops) in history.by_register() {
        if let Err(why) = register_ok(&ops) {
            bad.push(format!("register {register}: {why}"));
        }
    }
    bad
}

/// One register that begins as 0.
pub fn register_ok(ops: &[Op]) -> Result<(), String> {
    let mut events: BTreeMap<(u64, u8, usize), Event> = BTreeMap::new();
    for (i, op) in ops.iter().enumerate() {
        // A read without an answer says nothing.
        if op.returned.is_none() && matches!(op.kind, Kind::Read(_)) {
            continue;
        }
        events.insert((op.invoked, 0, i), Event::Invoke(i));
        if let Some(t) = op.returned {
            events.insert((t, 1, i), Event::Return(i));
        } else if let Some(t) = op.settled {
            events.insert((t, 1, i), Event::Settle(i));
        }
    }
    let mut pending: BTreeSet<usize> = BTreeSet::new();
    let mut configs = BTreeSet::from([Config { value: 0, done: BTreeSet::new() }]);
    for event in events.into_values() {
        match event {
            Event::Invoke(i) => {
                pending.insert(i);
            }
            Event::Return(i) => {
                configs = with_effect(configs, &pending, ops, i)?;
                pending.remove(&i);
                if configs.is_empty() {
                    return Err(explain(ops, i));
                }
            }
            Event::Settle(i) => {
                // Both are possible: it has happened, in some order with the others, or it never will.
                let happened = with_effect(configs.clone(), &pending, ops, i)?;
                for mut c in configs.clone() {
                    c.done.remove(&i);
                    configs.insert(c);
                }
                configs.retain(|c| !c.done.contains(&i));
                configs.extend(happened);
                pending.remove(&i);
            }
        }
    }
    Ok(())
}

/// Configurations in which `i` has taken effect, directly or after some of the pending ones; `i` is forgotten in them.
fn with_effect(
    configs: BTreeSet<Config>,
    pending: &BTreeSet<usize>,
    ops: &[Op],
    i: usize,
) -> Result<BTreeSet<Config>, String> {
    let mut out = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut todo: Vec<Config> = configs.into_iter().collect();
    while let Some(c) = todo.pop() {
        if c.done.contains(&i) {
            let mut done = c.done.clone();
            done.remove(&i);
            out.insert(Config { value: c.value, done });
            continue;
        }
        if seen.len() > MOST {
            return Err("too many possible orders to look at".into());
        }
        if !seen.insert(c.clone()) {
            continue;
        }
        for &p in pending {
            if c.done.contains(&p) {
                continue;
            }
            let value = match ops[p].kind {
                Kind::Write(v) => v,
                Kind::Read(v) if v == c.value => v,
                Kind::Read(_) => continue,
            };
            let mut done = c.done.clone();
            done.insert(p);
            todo.push(Config { value, done });
        }
    }
    Ok(out)
}

fn explain(ops: &[Op], i: usize) -> String {
    let op = &ops[i];
    let mut near: Vec<&Op> = ops.iter().filter(|o| o.invoked <= op.returned.unwrap_or(u64::MAX)).collect();
    near.sort_by_key(|o| o.invoked);
    let last: Vec<String> = near
        .iter()
        .rev()
        .take(12)
        .rev()
        .map(|o| format!("{:?} c{} [{}..{:?}|{:?}]", o.kind, o.client, o.invoked, o.returned, o.settled))
        .collect();
    format!("no order explains {:?} of client {}; before it: {}", op.kind, op.client, last.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(kind: Kind, invoked: u64, returned: Option<u64>) -> Op {
        Op { client: 1, kind, invoked, returned, settled: None, detached: false }
    }

    #[test]
    fn a_flip_back_is_found() {
        let w1 = op(Kind::Write(1), 1, Some(2));
        let w2 = op(Kind::Write(2), 3, Some(4));
        assert!(register_ok(&[w1, w2, op(Kind::Read(2), 5, Some(6))]).is_ok());
        assert!(register_ok(&[w1, w2, op(Kind::Read(1), 5, Some(6))]).is_err());
        assert!(register_ok(&[w1, w2, op(Kind::Read(1), 3, Some(6))]).is_ok());
    }

    #[test]
    fn two_readers_must_agree_on_an_order() {
        let w = op(Kind::Write(1), 1, Some(10));
        let (new, old) = (op(Kind::Read(1), 2, Some(3)), op(Kind::Read(0), 4, Some(5)));
        assert!(register_ok(&[w, new]).is_ok());
        assert!(register_ok(&[w, new, old]).is_err());
    }

    #[test]
    fn a_lost_write_may_come_late_but_not_after_it_was_settled() {
        let lost = Op { settled: Some(5), ..op(Kind::Write(1), 1, None) };
        let before = op(Kind::Read(0), 2, Some(3));
        assert!(register_ok(&[lost, before, op(Kind::Read(1), 6, Some(7))]).is_ok());
        let still = op(Kind::Read(0), 6, Some(7));
        assert!(register_ok(&[lost, before, still]).is_ok());
        assert!(register_ok(&[lost, still, op(Kind::Read(1), 8, Some(9))]).is_err());
    }

    #[test]
    fn a_write_that_was_acknowledged_is_not_forgotten() {
        let w = op(Kind::Write(1), 1, Some(2));
        assert!(register_ok(&[w, op(Kind::Read(0), 3, Some(4))]).is_err());
    }
}
