//! Who is dead, and when it may be said: decisions only, every time is an argument.
//!
//! Two kinds of evidence. *Silence*: the last lease a node was granted has certainly run out, by the leader's own boot-time clock plus a
//! quarter, because clocks run at slightly different rates. *Proof*: its port refuses, or another process answers there; then nobody serves under the old lease
//! and nothing needs to be waited for.
//!
//! A new leader does not know what its predecessor granted: it counts every node as granted at the moment it began to lead. Raft's own
//! election delay had passed since the predecessor was last heard by a majority, so a little of that (an eighth of a lease at most) is given back.
//!
//! Invariant: `tick` never names a node before `granted_until(node) + lease / 4` nor before `leading_since + lease * 5/4`.

use sheepdog_cluster::{Millis, NodeState, Timing};
use sheepdog_proto::NodeId;
use std::collections::BTreeMap;

/// A node as the state machine sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watched {
    /// Node.
    pub node: NodeId,
    /// Process.
    pub incarnation: u64,
    /// State.
    pub state: NodeState,
    /// Wall-clock time of the last change, as in `Node::since`.
    pub since: Millis,
    /// Draining and nothing is left on it: it is granted no lease any more.
    pub settled: bool,
}

/// What to propose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// `Command::NodeDown`.
    Down {
        /// Node.
        node: NodeId,
        /// Process.
        incarnation: u64,
    },
    /// `Command::NodeOut`.
    Out {
        /// Node.
        node: NodeId,
    },
}

/// What a probe of a node's peer port found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe {
    /// Connection refused.
    Refused,
    /// This process of this node answered.
    Answered {
        /// Process.
        incarnation: u64,
    },
    /// Neither: no evidence.
    Unclear,
}

/// One leader's memory. Times are boot-time milliseconds unless they are called wall.
#[derive(Default)]
pub struct Detector {
    leading_since: Option<u64>,
    looked: Option<u64>,
    /// End of the latest lease of each node, whichever process has it: a predecessor may still be serving.
    granted: BTreeMap<NodeId, u64>,
}

/// A leader waits at least this long (or the out-interval, if shorter) before it declares nodes out: after a power cut of
/// everything the slower hosts get time to boot.
const OUT_GRACE: u64 = 60_000;

fn margin(t: &Timing) -> u64 {
    t.lease / 4
}

impl Detector {
    /// Leadership begins. `quiet` is how long raft had certainly not heard the predecessor, in milliseconds.
    pub fn lead(&mut self, now: u64, quiet: u64, timing: &Timing) {
        self.leading_since = Some(now.saturating_sub(quiet.min(timing.lease / 8)));
        self.granted.clear();
    }
    /// The leader looks around, as it does several times per lease. One that stood still itself for half a lease or longer has heard nobody meanwhile, and begins
    /// anew.
    pub fn look(&mut self, now: u64, timing: &Timing) {
        let last = self.looked.replace(now).unwrap_or(now);
        if self.leads() && now.saturating_sub(last) > timing.lease / 2 {
            self.leading_since = Some(now);
        }
    }
    /// Leadership ends.
    pub fn follow(&mut self) {
        self.looked = None;
        self.leading_since = None;
        self.granted.clear();
    }
    /// Leading?
    pub fn leads(&self) -> bool {
        self.leading_since.is_some()
    }
    /// A lease until `until` is about to be sent to a node. Also called when a process comes up, to give it time to ask.
    pub fn grant(&mut self, node: NodeId, until: u64) {
        let g = self.granted.entry(node).or_insert(until);
        *g = until.max(*g);
    }
    /// From when on a process may be called silent; `None` while not leading.
    fn silent_at(&self, n: &Watched, t: &Timing) -> Option<u64> {
        let began = self.leading_since? + t.lease;
        let until = self.granted.get(&n.node).copied().unwrap_or(0);
        Some(began.max(until) + margin(t))
    }
    fn out_at(&self, n: &Watched, now: u64, wall: Millis, t: &Timing) -> Option<u64> {
        let waited = wall.saturating_sub(n.since);
        let by_interval = now + t.down_out.saturating_sub(waited);
        Some(by_interval.max(self.leading_since? + t.down_out.min(OUT_GRACE)))
    }
    /// What is due now, and when to ask again (at the latest). `quiet`: a clean shutdown was ordered, nobody is declared anything.
    pub fn tick(
        &mut self,
        now: u64,
        wall: Millis,
        t: &Timing,
        nodes: &[Watched],
        quiet: bool,
    ) -> (Vec<Decision>, Option<u64>) {
        if quiet || !self.leads() {
            return (Vec::new(), None);
        }
        self.granted.retain(|id, _| nodes.iter().any(|n| n.node == *id));
        let mut due = Vec::new();
        let mut next: Option<u64> = None;
        for n in nodes {
            let (at, what) = match n.state {
                // It lives, and serves as long as its last lease lasts: being out ends its sessions, so others must not begin before. It gets no new one.
                NodeState::Draining if n.settled => (self.silent_at(n, t), Decision::Out { node: n.node }),
                NodeState::Up | NodeState::Draining => {
                    // A process that has just come up gets as long to ask for its first lease as one that had one.
                    let up_for = wall.saturating_sub(n.since);
                    let fresh = (now + t.lease + margin(t)).saturating_sub(up_for);
                    let at = self.silent_at(n, t).map(|at| at.max(fresh));
                    (at, Decision::Down { node: n.node, incarnation: n.incarnation })
                }
                NodeState::Down => (self.out_at(n, now, wall, t), Decision::Out { node: n.node }),
                NodeState::Out => (None, Decision::Out { node: n.node }),
            };
            match at {
                Some(at) if at <= now => due.push(what),
                Some(at) => next = Some(next.map_or(at, |x| x.min(at))),
                None => {}
            }
        }
        (due, next)
    }
    /// What a probe proves about a process that the state machine has as `n`. Good only for an address at which that very process
    /// was met before: a refused connection to a wrong address proves nothing.
    pub fn judge(n: &Watched, probe: Probe, quiet: bool) -> Option<Decision> {
        let serving = matches!(n.state, NodeState::Up | NodeState::Draining);
        let dead = match probe {
            Probe::Refused => true,
            Probe::Answered { incarnation } => incarnation != n.incarnation,
            Probe::Unclear => false,
        };
        (serving && dead && !quiet).then_some(Decision::Down { node: n.node, incarnation: n.incarnation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Timing = Timing { heartbeat: 1_000, lease: 4_000, down_out: 600_000 };
    const A: NodeId = NodeId(1);

    fn up(incarnation: u64) -> Watched {
        Watched { node: A, incarnation, state: NodeState::Up, since: 0, settled: false }
    }
    fn down_a(incarnation: u64) -> Vec<Decision> {
        vec![Decision::Down { node: A, incarnation }]
    }

    #[test]
    fn a_follower_decides_nothing() {
        let mut d = Detector::default();
        assert_eq!(d.tick(1 << 40, 1 << 40, &T, &[up(1)], false), (vec![], None));
    }

    #[test]
    fn a_new_leader_waits_a_whole_lease_and_a_quarter() {
        let mut d = Detector::default();
        d.lead(10_000, 0, &T);
        assert_eq!(d.tick(14_999, 1 << 40, &T, &[up(1)], false), (vec![], Some(15_000)));
        assert_eq!(d.tick(15_000, 1 << 40, &T, &[up(1)], false).0, down_a(1));
    }

    #[test]
    fn the_predecessors_silence_counts_for_an_eighth_at_most() {
        let mut d = Detector::default();
        d.lead(10_000, 60_000, &T);
        assert_eq!(d.tick(14_499, 1 << 40, &T, &[up(1)], false), (vec![], Some(14_500)));
    }

    #[test]
    fn every_grant_is_waited_for() {
        let mut d = Detector::default();
        d.lead(0, 0, &T);
        d.grant(A, 20_000);
        d.grant(A, 12_000);
        assert_eq!(d.tick(20_999, 1 << 40, &T, &[up(1)], false), (vec![], Some(21_000)));
        assert_eq!(d.tick(21_000, 1 << 40, &T, &[up(1)], false).0, down_a(1));
    }

    #[test]
    fn a_process_that_came_up_gets_time_to_ask() {
        let mut d = Detector::default();
        d.lead(0, 0, &T);
        d.grant(A, 5_000);
        let back = Watched { since: 1_000_000, ..up(2) };
        assert_eq!(d.tick(60_000, 1_000_500, &T, &[back], false), (vec![], Some(64_500)));
    }

    #[test]
    fn leading_again_forgets_nothing_that_matters() {
        let mut d = Detector::default();
        d.lead(0, 0, &T);
        d.grant(A, 9_000);
        d.follow();
        d.lead(30_000, 0, &T);
        assert_eq!(d.tick(30_001, 1 << 40, &T, &[up(1)], false).0, vec![]);
    }

    #[test]
    fn a_leader_that_stood_still_calls_nobody_silent() {
        let mut d = Detector::default();
        d.lead(0, 0, &T);
        d.look(0, &T);
        d.grant(A, 4_500);
        d.look(500, &T);
        assert_eq!(d.tick(500, 1 << 40, &T, &[up(1)], false).0, vec![]);
        d.look(8_500, &T);
        assert_eq!(d.tick(8_500, 1 << 40, &T, &[up(1)], false), (vec![], Some(13_500)));
        // It looks again as often as it should, and A is silent indeed.
        for now in (9_000..13_500).step_by(500) {
            d.look(now, &T);
            assert_eq!(d.tick(now, 1 << 40, &T, &[up(1)], false).0, vec![]);
        }
        d.look(13_500, &T);
        assert_eq!(d.tick(13_500, 1 << 40, &T, &[up(1)], false).0, down_a(1));
    }

    #[test]
    fn a_clean_shutdown_keeps_it_quiet() {
        let mut d = Detector::default();
        d.lead(0, 0, &T);
        assert_eq!(d.tick(1 << 40, 1 << 40, &T, &[up(1)], true), (vec![], None));
        assert_eq!(Detector::judge(&up(1), Probe::Refused, true), None);
    }

    #[test]
    fn down_becomes_out_after_the_interval_by_the_wall_clock() {
        let mut d = Detector::default();
        d.lead(0, 0, &T);
        let n = Watched { state: NodeState::Down, since: 1_000_000, ..up(1) };
        assert_eq!(d.tick(100_000, 1_500_000, &T, &[n], false), (vec![], Some(200_000)));
        assert_eq!(d.tick(200_000, 1_600_000, &T, &[n], false).0, vec![Decision::Out { node: A }]);
    }

    #[test]
    fn after_a_power_cut_the_slow_ones_get_a_minute() {
        let mut d = Detector::default();
        d.lead(0, 0, &T);
        let n = Watched { state: NodeState::Down, since: 0, ..up(1) };
        assert_eq!(d.tick(59_999, 1 << 40, &T, &[n], false), (vec![], Some(60_000)));
        assert_eq!(d.tick(60_000, 1 << 40, &T, &[n], false).0, vec![Decision::Out { node: A }]);
    }

    #[test]
    fn a_settled_drain_goes_out_when_its_lease_has_run_out_and_an_unsettled_one_stays() {
        let mut d = Detector::default();
        d.lead(0, 0, &T);
        d.grant(A, 20_000);
        let mut n = Watched { state: NodeState::Draining, ..up(1) };
        assert_eq!(d.tick(1, 1, &T, &[n], false).0, vec![]);
        n.settled = true;
        assert_eq!(d.tick(20_999, 20_999, &T, &[n], false), (vec![], Some(21_000)));
        assert_eq!(d.tick(21_000, 21_000, &T, &[n], false).0, vec![Decision::Out { node: A }]);
    }

    #[test]
    fn only_proof_kills_at_once() {
        assert_eq!(Detector::judge(&up(5), Probe::Refused, false), Some(down_a(5)[0]));
        assert_eq!(Detector::judge(&up(5), Probe::Answered { incarnation: 6 }, false), Some(down_a(5)[0]));
        assert_eq!(Detector::judge(&up(5), Probe::Answered { incarnation: 5 }, false), None);
        assert_eq!(Detector::judge(&up(5), Probe::Unclear, false), None);
        let down = Watched { state: NodeState::Down, ..up(5) };
        assert_eq!(Detector::judge(&down, Probe::Refused, false), None);
    }
}
