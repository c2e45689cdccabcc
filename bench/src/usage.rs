//! CPU time: of chosen processes, and of the whole machine.

use anyhow::{Context as _, Result};
use std::time::Instant;

/// CPU time so far, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    at: Instant,
    servers: f64,
    children: f64,
    machine: f64,
}

/// CPU time between two of them.
#[derive(Debug, Clone, Copy)]
pub struct Spent {
    pub wall: f64,
    pub servers: f64,
    /// Of programs that this one ran to their end: fio, with all its threads.
    pub children: f64,
    pub machine: f64,
}

impl Snapshot {
    pub fn since(&self, before: &Self) -> Spent {
        Spent {
            wall: self.at.duration_since(before.at).as_secs_f64(),
            servers: self.servers - before.servers,
            children: self.children - before.children,
            machine: self.machine - before.machine,
        }
    }
}

/// Now.
pub fn snapshot(pids: &[u32]) -> Result<Snapshot> {
    let tick = rustix::param::clock_ticks_per_second() as f64;
    let mut servers = 0;
    for pid in pids {
        let path = format!("/proc/{pid}/stat");
        let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        servers += process_ticks(&stat, OWN).with_context(|| path)?;
    }
    let children =
        process_ticks(&std::fs::read_to_string("/proc/self/stat")?, CHILDREN).context("own stat")?;
    let machine = machine_ticks(&std::fs::read_to_string("/proc/stat")?).context("/proc/stat")?;
    let seconds = |ticks: u64| ticks as f64 / tick;
    Ok(Snapshot {
        at: Instant::now(),
        servers: seconds(servers),
        children: seconds(children),
        machine: seconds(machine),
    })
}

/// Where utime and stime are, counted from the state: of all threads, those included that have ended.
const OWN: usize = 11;
/// Where cutime and cstime are: of processes that have ended and were waited for.
const CHILDREN: usize = 13;

fn process_ticks(stat: &str, first: usize) -> Option<u64> {
    // The name is in parentheses and may hold anything; the state follows it.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(first);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Everything but idle and waiting for I/O.
fn machine_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|f| f.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields[..] else { return None };
    Some(user + nice + system + irq + softirq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_an_odd_name() {
        let stat = "4242 (a) b (c) S 1 4242 4242 0 -1 4194560 88 0 0 0 170 35 9 9 20 0 4 0 100 1000 10";
        assert_eq!(process_ticks(stat, OWN), Some(205));
        assert_eq!(process_ticks(stat, CHILDREN), Some(18));
        assert_eq!(process_ticks("4242 (x) S 1", OWN), None);
    }

    #[test]
    fn the_machine() {
        let stat = "cpu  10 2 30 4000 50 6 7 8 0 0\ncpu0 5 1 15 2000 25 3 3 4 0 0\n";
        assert_eq!(machine_ticks(stat), Some(55));
    }
}
