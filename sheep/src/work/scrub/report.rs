//! What scrubbing has done and found here, by VDI and disk. Kept on the node's disks, so that a restart forgets nothing that people should look at, and begins no pass anew.

use serde::{Deserialize, Serialize};
use sheepdog_proto::{ObjectId, VdiId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::sync::Notify;

/// Of the form in which it is kept.
const VERSION: u8 = 1;
/// Findings that are remembered one by one.
const FINDINGS: usize = 1000;

/// Sums of one VDI on one disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Files looked at.
    pub objects: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Things found wrong.
    pub found: u64,
    /// Of these, put right.
    pub mended: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.found += other.found;
        self.mended += other.mended;
    }
}

/// Something that was wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finding {
    /// The object or strip; none: the disk itself (its index).
    pub oid: Option<ObjectId>,
    /// Its VDI; 0: none that there is.
    pub vdi: VdiId,
    /// Directory of the disk.
    pub disk: String,
    /// What was wrong, in words.
    pub text: String,
    /// When it was found, milliseconds since 1970.
    pub at: u64,
    /// It is right again.
    pub mended: bool,
    number: u64,
}

/// Everything there is to tell.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Files looked at in this pass.
    pub done: u64,
    /// Files there are.
    pub total: u64,
    /// A pass that somebody asked for is going on.
    pub hurried: bool,
    /// Complete passes.
    pub passes: u64,
    /// End of the last complete one, milliseconds since 1970.
    pub ended: Option<u64>,
    /// By VDI and disk.
    pub rows: BTreeMap<(VdiId, String), Tally>,
    /// The last ones.
    pub findings: VecDeque<Finding>,
}

/// Found, and not known to be mended.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Open {
    number: u64,
    vdi: VdiId,
    disk: String,
    since: u64,
}

/// What of it is on the disks.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// When it was written, milliseconds since 1970.
    at: u64,
    report: Report,
    open: BTreeMap<ObjectId, Open>,
    pass: Pass,
}

/// How far a pass has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pass {
    /// Go on after this.
    pub(super) at: Option<ObjectId>,
    /// It began with the first file.
    pub(super) whole: bool,
    /// Somebody asked for it.
    pub(super) hurried: bool,
}

/// Shared by the worker, those who come upon damage otherwise, and those who ask.
pub struct Scrubbing {
    /// Milliseconds since 1970.
    clock: Box<dyn Fn() -> u64>,
    report: RefCell<Report>,
    /// One for a file at most: healing it heals all that is wrong with it.
    open: RefCell<BTreeMap<ObjectId, Open>>,
    asked: Cell<bool>,
    numbers: Cell<u64>,
    sum: Cell<Tally>,
    /// Somebody asks for a pass.
    pub(super) wake: Notify,
}

impl Scrubbing {
    /// Nothing has been looked at. `clock`: milliseconds since 1970.
    pub fn new(clock: impl Fn() -> u64 + 'static) -> Self {
        Self {
            clock: Box::new(clock),
            report: RefCell::default(),
            open: RefCell::default(),
            asked: Cell::default(),
            numbers: Cell::default(),
            sum: Cell::default(),
            wake: Notify::new(),
        }
    }
    /// To be kept on a disk.
    pub(super) fn save(&self, pass: Pass) -> Vec<u8> {
        let (report, open) = (self.report.borrow().clone(), self.open.borrow().clone());
        let mut out = vec![VERSION];
        out.extend(sheepdog_proto::peer::encode(&Kept { at: (self.clock)(), report, open, pass }));
        out
    }
    /// Go on from the latest of what the disks have: how far the pass had come. What was found by now stays as well.
    pub(super) fn load<'a>(&self, kept: impl IntoIterator<Item = &'a [u8]>) -> Option<Pass> {
        let decode = |kept: &[u8]| {
            let (version, rest) = kept.split_first()?;
            (*version == VERSION).then(|| sheepdog_proto::peer::decode::<Kept>(rest).ok()).flatten()
        };
        let kept = kept.into_iter().filter_map(decode).max_by_key(|k| k.at)?;
        let numbers = kept.report.findings.iter().map(|f| f.number).max().unwrap_or_default();
        let since = self.report.replace(kept.report);
        let open = self.open.replace(kept.open);
        self.numbers.set(numbers);
        let sum = self.sum.get();
        for f in since.findings {
            match f.oid.filter(|oid| open.contains_key(oid)) {
                Some(oid) => self.damaged(oid, f.vdi, &f.disk, f.text),
                None => {
                    let number = self.found(f.oid, f.vdi, &f.disk, f.text);
                    if f.mended {
                        self.mended(number, f.vdi, &f.disk);
                    }
                }
            }
        }
        // They were counted when they were found.
        self.sum.set(sum);
        Some(kept.pass)
    }
    /// Look at everything now. One that is asked for while another goes on begins after it.
    pub fn start(&self) {
        self.asked.set(true);
        self.wake.notify_one();
    }
    /// Somebody asked, and it has not begun.
    pub fn is_asked(&self) -> bool {
        self.asked.get()
    }
    /// What there is to tell.
    pub fn report(&self) -> Report {
        self.report.borrow().clone()
    }
    /// Sums over everything, also what is gone since.
    pub fn sum(&self) -> Tally {
        self.sum.get()
    }
    /// Complete passes.
    pub fn passes(&self) -> u64 {
        self.report.borrow().passes
    }
    fn count(&self, vdi: VdiId, disk: &str, by: Tally) {
        let mut sum = self.sum.get();
        sum.add(by);
        self.sum.set(sum);
        self.report.borrow_mut().rows.entry((vdi, disk.to_owned())).or_default().add(by);
    }
    /// A pass begins from the first file on; is it one that was asked for?
    pub(super) fn begin(&self) -> bool {
        let hurried = self.asked.take();
        let mut report = self.report.borrow_mut();
        (report.done, report.hurried) = (0, hurried);
        hurried
    }
    /// Everything has been looked at; `whole`: from the first file on.
    pub(super) fn end(&self, whole: bool) {
        let mut report = self.report.borrow_mut();
        report.hurried = false;
        if whole {
            report.passes += 1;
            report.ended = Some((self.clock)());
        }
    }
    pub(super) fn looked(&self, vdi: VdiId, disk: &str, bytes: u64, total: u64) {
        let mut report = self.report.borrow_mut();
        (report.done, report.total) = (report.done + 1, total);
        drop(report);
        self.count(vdi, disk, Tally { objects: 1, bytes, ..Tally::default() });
    }
    /// A file is damaged; whoever heals it has been told.
    pub fn damaged(&self, oid: ObjectId, vdi: VdiId, disk: &str, text: String) {
        if self.open.borrow().contains_key(&oid) {
            return;
        }
        tracing::warn!(%oid, %disk, %text, "damage was found");
        let number = self.found(Some(oid), vdi, disk, text);
        let open = Open { number, vdi, disk: disk.to_owned(), since: (self.clock)() };
        self.open.borrow_mut().insert(oid, open);
        self.wake.notify_one();
    }
    /// Files that were damaged when they were last looked at.
    pub(super) fn open(&self) -> Vec<ObjectId> {
        self.open.borrow().keys().copied().collect()
    }
    /// The file is whole.
    pub(super) fn healed(&self, oid: ObjectId) {
        if let Some(open) = self.open.borrow_mut().remove(&oid) {
            self.mended(open.number, open.vdi, &open.disk);
        }
    }
    /// Nobody waits for those any more that have been open for so long: the next pass finds them again.
    pub(super) fn give_up(&self, after: Duration) {
        let now = (self.clock)();
        self.open.borrow_mut().retain(|_, open| now.saturating_sub(open.since) < after.as_millis() as u64);
    }
    /// Its number, to tell later that it is mended.
    pub(super) fn found(&self, oid: Option<ObjectId>, vdi: VdiId, disk: &str, text: String) -> u64 {
        let number = self.numbers.get() + 1;
        self.numbers.set(number);
        self.count(vdi, disk, Tally { found: 1, ..Tally::default() });
        let mut report = self.report.borrow_mut();
        if report.findings.len() == FINDINGS {
            report.findings.pop_front();
        }
        let (disk, at) = (disk.to_owned(), (self.clock)());
        report.findings.push_back(Finding { oid, vdi, disk, text, at, mended: false, number });
        number
    }
    pub(super) fn mended(&self, number: u64, vdi: VdiId, disk: &str) {
        self.count(vdi, disk, Tally { mended: 1, ..Tally::default() });
        let mut report = self.report.borrow_mut();
        if let Some(f) = report.findings.iter_mut().find(|f| f.number == number) {
            f.mended = true;
        }
    }
    /// VDIs that are gone have no rows.
    pub(super) fn keep(&self, there: impl Fn(VdiId) -> bool) {
        self.report.borrow_mut().rows.retain(|(vdi, _), _| vdi.0 == 0 || there(*vdi));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_last_findings_are_remembered_and_all_are_counted() {
        let s = Scrubbing::new(|| 7);
        for i in 0..FINDINGS as u64 + 5 {
            let n = s.found(None, VdiId(1), "/d", format!("{i}"));
            if i % 2 == 0 {
                s.mended(n, VdiId(1), "/d");
            }
        }
        let r = s.report();
        assert_eq!((r.findings.len(), r.findings[0].text.as_str()), (FINDINGS, "5"));
        assert!(r.findings.iter().all(|f| f.mended == (f.number % 2 == 1)));
        assert_eq!(s.sum(), Tally { objects: 0, bytes: 0, found: 1005, mended: 503 });
        s.keep(|_| false);
        assert!(s.report().rows.is_empty());
        assert_eq!(s.sum().found, 1005, "what was counted stays counted");
    }

    #[test]
    fn a_restart_forgets_nothing() {
        let (a, b, c) = (ObjectId(1), ObjectId(2), ObjectId(3));
        let before = Scrubbing::new(|| 1000);
        before.begin();
        before.looked(VdiId(1), "/d", 4096, 9);
        before.damaged(a, VdiId(1), "/d", "flipped".into());
        before.damaged(b, VdiId(1), "/d", "gone".into());
        before.healed(b);
        let pass = Pass { at: Some(b), whole: true, hurried: true };
        let (older, newer) = (Scrubbing::new(|| 900).save(Pass::default()), before.save(pass));

        let after = Scrubbing::new(|| 2000);
        after.damaged(c, VdiId(2), "/e", "met while starting".into());
        assert_eq!(after.load([&*newer, &*older, b"", b"\x07what"]), Some(pass));
        let r = after.report();
        let found: Vec<_> = r.findings.iter().map(|f| (f.oid, f.at, f.mended)).collect();
        assert_eq!(found, [(Some(a), 1000, false), (Some(b), 1000, true), (Some(c), 2000, false)]);
        assert_eq!(r.rows[&(VdiId(1), "/d".into())], Tally { objects: 1, bytes: 4096, found: 2, mended: 1 });
        assert_eq!((r.done, r.total), (1, 9));
        // What was not whole yet is looked at again.
        assert_eq!(after.open(), [a, c]);
        after.healed(a);
        after.healed(c);
        assert!(after.report().findings.iter().all(|f| f.mended));
        assert_eq!(Scrubbing::new(|| 1).load([]), None);
    }
}
