//! Disks that answer nothing any more, from looks at what they have under way. Pure.
//!
//! What counts is how many looks found the same request, not for how long it was there: a process that stood still for an hour has an answer to each when it goes on. When nothing shows
//! that another disk of the node answers, it is not known to be the disk: a controller, a hypervisor, or the network to a storage may have stopped, and give everything back a minute
//! later. Then the process ends and is taken for one that is away, and nothing on its disks is given up.

use crate::store::Owing;
use sheepdog_proto::DiskId;
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two looks.
pub const LOOK: Duration = Duration::from_secs(2);
/// A request found by so many looks is not answered any more. In time: what Linux waits for a SCSI disk before it begins to reset it.
pub const LOOKS: u32 = 15;
/// A disk that owes nothing for so long answers.
const ALIVE: u32 = 3;

/// What is known of one disk.
#[derive(Default)]
struct Known {
    last: Owing,
    /// Looks that found the same read, and the same batch.
    looks: (u32, u32),
}

impl Known {
    fn most(&self) -> u32 {
        self.looks.0.max(self.looks.1)
    }
}

/// All disks of a node.
#[derive(Default)]
pub struct Hang(BTreeMap<DiskId, Known>);

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Well,
    /// These answer nothing, and others do.
    Lost(Vec<DiskId>),
    /// None answers.
    All,
}

/// How many looks have found the same request, with this one.
pub fn again(was: Option<u64>, now: Option<u64>, looks: u32) -> u32 {
    if now.is_some() && was == now { looks + 1 } else { 0 }
}

impl Hang {
    /// One more look at all disks that are in use.
    pub fn look(&mut self, now: &[(DiskId, Owing)]) -> Verdict {
        self.0.retain(|id, _| now.iter().any(|(d, _)| d == id));
        for (id, owing) in now {
            let known = self.0.entry(*id).or_default();
            known.looks = (
                again(known.last.look, owing.look, known.looks.0),
                again(known.last.batch, owing.batch, known.looks.1),
            );
            known.last = *owing;
        }
        let lost: Vec<DiskId> = self.0.iter().filter(|(_, k)| k.most() >= LOOKS).map(|(id, _)| *id).collect();
        match () {
            () if lost.is_empty() => Verdict::Well,
            () if self.0.values().any(|k| k.most() < ALIVE) => Verdict::Lost(lost),
            () => Verdict::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: DiskId = DiskId(1);
    const B: DiskId = DiskId(2);

    fn owes(look: u64) -> Owing {
        Owing { look: Some(look), batch: None }
    }

    /// Verdicts of looks at which these are owed.
    fn verdicts(looks: impl IntoIterator<Item = Vec<(DiskId, Owing)>>) -> Vec<Verdict> {
        let mut hang = Hang::default();
        looks.into_iter().map(|now| hang.look(&now)).collect()
    }

    #[test]
    fn a_slow_disk_answers_each_time() {
        let slow = (0..100).map(|n| vec![(A, owes(n / 10))]);
        assert!(verdicts(slow).iter().all(|v| *v == Verdict::Well));
        let busy = (0..100).map(|n| vec![(A, Owing { look: None, batch: Some(n) })]);
        assert!(verdicts(busy).iter().all(|v| *v == Verdict::Well));
    }

    #[test]
    fn the_only_disk_stops() {
        let all = verdicts((0..=LOOKS).map(|_| vec![(A, owes(7))]));
        assert!(all[..LOOKS as usize].iter().all(|v| *v == Verdict::Well));
        assert_eq!(all[LOOKS as usize], Verdict::All);
    }

    #[test]
    fn a_journal_that_stops_is_enough() {
        let journal = Owing { look: None, batch: Some(3) };
        assert_eq!(verdicts((0..=LOOKS).map(|_| vec![(A, journal)])).last(), Some(&Verdict::All));
    }

    #[test]
    fn one_of_two_stops() {
        let looks = (0..=u64::from(LOOKS)).map(|n| vec![(A, owes(7)), (B, owes(n))]);
        assert_eq!(verdicts(looks).last(), Some(&Verdict::Lost(vec![A])));
    }

    #[test]
    fn two_that_stop_one_after_the_other_may_come_back_together() {
        let looks = (0..=u64::from(LOOKS))
            .map(|n| vec![(A, owes(7)), (B, if n < 5 { Owing::default() } else { owes(9) })]);
        assert_eq!(verdicts(looks).last(), Some(&Verdict::All));
    }
}
