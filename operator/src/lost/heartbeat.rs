//! Does a node's kubelet still say that it lives? Kubernetes itself waits 50 s until it calls a node NotReady; its kubelet renews a Lease every ten. Pure: only changes
//! count, by our own clock, so that clocks of nodes do not matter.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Two heartbeats were missed, and a third is late, in parts of the lease's duration: a kubelet renews four times in it.
const MISSED: f64 = 5.0 / 8.0;
/// The least that is called silence.
const LEAST: Duration = Duration::from_secs(5);
/// Not looked for that long (the API server was away, say): what was seen before says nothing.
const GAP: Duration = Duration::from_secs(12);

/// What can be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulse {
    /// It renewed its lease while it was looked at.
    Beats,
    /// It has not for too long.
    Silent,
    /// It has not been looked at for long enough.
    Unknown,
}

struct Seen {
    renewed: Option<String>,
    since: Instant,
    looked: Instant,
    beats: bool,
}

/// Leases of the nodes that are looked at.
#[derive(Default)]
pub struct Heartbeats(HashMap<String, Seen>);

impl Heartbeats {
    /// What the node's lease says now, as text, and for how long it is good.
    pub fn look(&mut self, node: &str, renewed: Option<String>, good_for: Duration, now: Instant) -> Pulse {
        let fresh = || Seen { renewed: renewed.clone(), since: now, looked: now, beats: false };
        let seen = self.0.entry(node.to_owned()).or_insert_with(fresh);
        if now.duration_since(seen.looked) > GAP {
            *seen = fresh();
        }
        seen.looked = now;
        if seen.renewed != renewed {
            (seen.renewed, seen.since, seen.beats) = (renewed, now, true);
        }
        if now.duration_since(seen.since) >= good_for.mul_f64(MISSED).max(LEAST) {
            return Pulse::Silent;
        }
        if seen.beats { Pulse::Beats } else { Pulse::Unknown }
    }

    /// Only these are looked at any more.
    pub fn keep(&mut self, nodes: &[&String]) {
        self.0.retain(|name, _| nodes.contains(&name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Duration = Duration::from_secs(40);

    #[test]
    fn silence_is_what_was_watched() {
        let mut h = Heartbeats::default();
        let start = Instant::now();
        let mut look =
            |at: u64, renewed: &str| h.look("n", Some(renewed.into()), GOOD, start + Duration::from_secs(at));
        assert_eq!(look(0, "a"), Pulse::Unknown);
        assert_eq!(look(10, "a"), Pulse::Unknown);
        assert_eq!(look(20, "b"), Pulse::Beats);
        assert_eq!(look(30, "b"), Pulse::Beats);
        assert_eq!(look(40, "b"), Pulse::Beats);
        assert_eq!(look(45, "b"), Pulse::Silent);
        assert_eq!(look(46, "c"), Pulse::Beats);
    }

    #[test]
    fn what_was_not_watched_is_not_silence() {
        let mut h = Heartbeats::default();
        let start = Instant::now();
        let mut look = |at: u64| h.look("n", Some("a".into()), GOOD, start + Duration::from_secs(at));
        assert_eq!(look(0), Pulse::Unknown);
        // The API server was away.
        assert_eq!(look(60), Pulse::Unknown);
        assert_eq!(look(70), Pulse::Unknown);
    }

    #[test]
    fn a_short_lease_is_not_taken_at_its_word() {
        let mut h = Heartbeats::default();
        let start = Instant::now();
        let mut look = |at: u64| h.look("n", None, Duration::from_secs(4), start + Duration::from_secs(at));
        assert_eq!((look(0), look(4), look(5)), (Pulse::Unknown, Pulse::Unknown, Pulse::Silent));
    }
}
