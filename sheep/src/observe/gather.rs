//! The data thread's side of being observed: questions come in, counters go out.
//!
//! Questions have a channel of their own and not the one of jobs: they are answered from the moment the disks are open, before the cluster is formatted and
//! while the daemon drains, and they do not wait behind a thousand jobs. Whoever asks waits for [`PATIENCE`] at most; a question whose asker is gone costs nothing.
//! Answering copies counters; it never looks at objects one by one.

use super::cells::OpCounts;
use crate::front::nbd::stats::{ExportStats, Op, counted_as};
use crate::node::DataNode;
use crate::peer::LinkRow;
use crate::session::cache::CacheStats;
use crate::store::{DiskStats, Store};
use crate::work::scrub::report::Tally;
use crate::work::sync::Progress;
use sheepdog_proto::VdiId;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Questions that may wait. More at a time means that nobody answers.
const QUEUE: usize = 16;
/// How long a scrape or a probe waits for the data thread.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// VDIs with series of their own: those in use first, then the busiest.
pub const MAX_VDIS: usize = 200;
/// Peers with series of their own, the deepest queues first.
pub const MAX_PEERS: usize = 200;

type Question = Box<dyn FnOnce(&Watched) + Send>;
/// What the data thread is given.
pub type Questions = mpsc::Receiver<Question>;

/// The data thread gave no answer in time.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[error("the data thread does not answer")]
pub struct Silent;

/// Asks the data thread. Cheap to clone.
#[derive(Clone)]
pub struct Asker(mpsc::Sender<Question>);

/// A pair: one half for the control runtime, the other for `node::run`.
pub fn channel() -> (Asker, Questions) {
    let (tx, rx) = mpsc::channel(QUEUE);
    (Asker(tx), rx)
}

impl Asker {
    async fn ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Watched) -> T + Send + 'static,
    ) -> Result<T, Silent> {
        let (tx, rx) = oneshot::channel();
        let question: Question = Box::new(move |w| {
            if !tx.is_closed() {
                let _ = tx.send(f(w));
            }
        });
        self.0.try_send(question).map_err(|_| Silent)?;
        match tokio::time::timeout(PATIENCE, rx).await {
            Ok(Ok(answer)) => Ok(answer),
            _ => Err(Silent),
        }
    }

    /// How long it takes to get an answer at all.
    pub async fn delay(&self) -> Result<Duration, Silent> {
        let asked = Instant::now();
        self.ask(move |_| asked.elapsed()).await
    }

    /// Everything that metrics tell.
    pub async fn report(&self) -> Result<DataReport, Silent> {
        let asked = Instant::now();
        self.ask(move |w| DataReport { delay: asked.elapsed(), ..w.report() }).await
    }

    /// What is wrong, without counters.
    pub async fn condition(&self) -> Result<DataCondition, Silent> {
        self.ask(Watched::condition).await
    }
}

/// Counters of the data thread at one moment.
#[derive(Debug, Default)]
pub struct DataReport {
    /// From question to answer.
    pub delay: Duration,
    /// Disks.
    pub disks: Vec<DiskStats>,
    /// Links to peers, at most `MAX_PEERS`.
    pub links: Vec<LinkRow>,
    /// Requests waiting on all links, and links connected.
    pub links_total: (u64, u64, u64),
    /// VDIs, at most `MAX_VDIS`.
    pub vdis: Vec<VdiReport>,
    /// VDIs that were left out.
    pub vdis_left_out: u64,
    /// Sessions owned.
    pub sessions: u64,
    /// Connections of NBD clients.
    pub nbd_connections: u64,
    /// Requests refused before they reached a volume.
    pub nbd_refused: u64,
    /// Requests of other sheep by kind.
    pub peer_ops: [(&'static str, OpCounts); 3],
    /// Requests of other sheep being worked on.
    pub peer_in_flight: u64,
    /// Catching up.
    pub recovery: RecoveryReport,
    /// Looking for damage.
    pub scrub: ScrubReport,
    /// The cache of blocks, if there is one.
    pub cache: Option<CacheStats>,
}

/// Catching up.
#[derive(Debug, Default, Clone)]
pub struct RecoveryReport {
    /// Since the process started.
    pub progress: Progress,
    /// Objects missing now.
    pub missing: u64,
    /// Objects with damaged blocks.
    pub damaged: u64,
    /// Bytes a second that background work may move beside clients, if there are any.
    pub rate: Option<u64>,
    /// Why nothing happens.
    pub blocked: Option<String>,
}

/// Scrubbing, since the process started.
#[derive(Debug, Default, Clone)]
pub struct ScrubReport {
    /// Sums over all VDIs and disks.
    pub sum: Tally,
    /// Complete passes.
    pub passes: u64,
}

/// What clients of this sheep did with one VDI.
#[derive(Debug, Default)]
pub struct VdiReport {
    /// Id.
    pub vdi: VdiId,
    /// Name now.
    pub name: String,
    /// By kind; only kinds that were asked for.
    pub ops: Vec<(&'static str, OpCounts)>,
    /// Requests being worked on.
    pub in_flight: u64,
    /// Clients attached.
    pub connections: u64,
}

/// What may be wrong with the data thread.
#[derive(Debug, Default)]
pub struct DataCondition {
    /// Sentences.
    pub complaints: Vec<String>,
    /// Catching up.
    pub recovery: RecoveryReport,
}

/// What there is to observe: grows while the daemon starts.
pub struct Watched {
    store: Option<Rc<Store>>,
    node: RefCell<Weak<DataNode>>,
}

impl Watched {
    /// Only disks so far.
    pub fn new(store: Option<Rc<Store>>) -> Rc<Self> {
        Rc::new(Self { store, node: RefCell::default() })
    }

    /// The node serves.
    pub fn begin(&self, node: &Rc<DataNode>) {
        *self.node.borrow_mut() = Rc::downgrade(node);
    }

    /// Answer until nobody can ask any more.
    pub async fn answer(self: Rc<Self>, mut questions: Questions) {
        while let Some(question) = questions.recv().await {
            question(&self);
        }
    }

    fn recovery(n: &DataNode) -> RecoveryReport {
        let sync = &n.replica.sync;
        let (missing, blocked) = sync.state();
        RecoveryReport {
            progress: sync.progress(),
            missing: missing as u64,
            damaged: sync.damaged() as u64,
            rate: sync.yielding.rate(),
            blocked,
        }
    }

    fn trash_hint(&self) -> Option<String> {
        self.node.borrow().upgrade()?.control.read(|s| s.trash_hint())
    }

    fn condition(&self) -> DataCondition {
        let mut complaints = Vec::new();
        for d in self.store.iter().flat_map(|s| s.disks()) {
            use crate::store::DiskState;
            match d.state {
                DiskState::Ok => {}
                DiskState::Full => {
                    let mut text = format!("disk {} is full: writes to it wait", d.path);
                    if let Some(hint) = self.trash_hint() {
                        text = format!("{text}; {hint}");
                    }
                    complaints.push(text);
                }
                DiskState::Failed(why) => complaints.push(format!("disk {} has failed: {why}", d.path)),
            }
        }
        let recovery = self.node.borrow().upgrade().map(|n| Self::recovery(&n)).unwrap_or_default();
        if recovery.damaged > 0 {
            complaints
                .push(format!("{} objects have damaged blocks and wait for another copy", recovery.damaged));
        }
        DataCondition { complaints, recovery }
    }

    fn report(&self) -> DataReport {
        let disks = self.store.as_ref().map(|s| s.disk_stats()).unwrap_or_default();
        let Some(n) = self.node.borrow().upgrade() else {
            return DataReport { disks, ..DataReport::default() };
        };
        let mut links = n.replica.links.rows();
        let links_total = links.iter().fold((0, 0, 0), |(depth, connected, relayed), l| {
            (depth + l.depth, connected + u64::from(l.connected), relayed + u64::from(l.through.is_some()))
        });
        if links.len() > MAX_PEERS {
            links.sort_by_key(|l| std::cmp::Reverse(l.depth));
            links.truncate(MAX_PEERS);
        }
        let peer = &n.server.stats;
        let mut report = DataReport {
            disks,
            links,
            links_total,
            sessions: n.gateway.sessions().len() as u64,
            peer_ops: [
                ("read", peer.read.counts()),
                ("write", peer.write.counts()),
                ("other", peer.other.counts()),
            ],
            peer_in_flight: peer.in_flight.get(),
            recovery: Self::recovery(&n),
            scrub: ScrubReport { sum: n.replica.scrubbing.sum(), passes: n.replica.scrubbing.passes() },
            cache: n.gateway.cache_stats(),
            ..DataReport::default()
        };
        if let Some(nbd) = n.nbd.borrow().as_ref() {
            let connections = nbd.connections();
            report.nbd_connections = connections.len() as u64;
            let mut busy: HashMap<&str, u64> = HashMap::new();
            for c in &connections {
                *busy.entry(counted_as(&c.export)).or_default() += c.in_flight as u64;
            }
            let exports = nbd.stats();
            report.nbd_refused = exports.iter().map(|(_, s)| s.refused.get()).sum();
            (report.vdis, report.vdis_left_out) = vdis(&n, &exports, &busy);
        }
        report
    }
}

type Export = (String, Rc<ExportStats>);

/// Exports by VDI: a VDI and its snapshots count together.
fn vdis(n: &DataNode, exports: &[Export], busy: &HashMap<&str, u64>) -> (Vec<VdiReport>, u64) {
    let mut by_vdi: BTreeMap<VdiId, (String, Vec<&Export>)> = BTreeMap::new();
    n.control.read(|s| {
        for export in exports {
            let base = export.0.split_once('@').map_or(export.0.as_str(), |(base, _)| base);
            // Deleted or renamed meanwhile: its counters have no name any more.
            let Some(vdi) = s.names.get(base) else { continue };
            by_vdi.entry(*vdi).or_insert_with(|| (base.to_owned(), Vec::new())).1.push(export);
        }
    });
    let weight = |exports: &[&Export]| {
        let of = |s: &ExportStats| Op::ALL.iter().map(|op| s.op(*op).count.get()).sum::<u64>();
        let connections: usize = exports.iter().map(|(_, s)| s.connections.get()).sum();
        (connections > 0, exports.iter().map(|(_, s)| of(s)).sum::<u64>())
    };
    let (shown, left_out) = choose(by_vdi.iter().map(|(vdi, (_, e))| (weight(e), *vdi)).collect());
    let report = |vdi: &VdiId| {
        let (name, exports) = by_vdi.get(vdi)?;
        let mut r = VdiReport { vdi: *vdi, name: name.clone(), ..VdiReport::default() };
        for op in Op::ALL {
            let mut sum = OpCounts::default();
            exports.iter().for_each(|(_, s)| sum.merge(&s.op(op).counts()));
            if sum.count > 0 {
                r.ops.push((op.name(), sum));
            }
        }
        r.connections = exports.iter().map(|(_, s)| s.connections.get() as u64).sum();
        r.in_flight = exports.iter().filter_map(|(n, _)| busy.get(n.as_str())).sum();
        Some(r)
    };
    (shown.iter().filter_map(report).collect(), left_out)
}

/// In use, and how many requests.
type Weight = (bool, u64);

/// The VDIs that get series, and how many do not.
fn choose(mut all: Vec<(Weight, VdiId)>) -> (Vec<VdiId>, u64) {
    all.sort_unstable_by_key(|(weight, vdi)| (std::cmp::Reverse(*weight), *vdi));
    let left_out = all.len().saturating_sub(MAX_VDIS);
    (all.into_iter().take(MAX_VDIS).map(|(_, vdi)| vdi).collect(), left_out as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vdis_in_use_come_before_busy_ones_and_the_number_is_bounded() {
        // The odd ones were busier, number 8 is in use.
        let all = (0..1000u32).map(|i| ((i == 8, u64::from(i % 2) * 10), VdiId(i))).collect();
        let (shown, left_out) = choose(all);
        assert_eq!((shown.len(), left_out), (MAX_VDIS, 1000 - MAX_VDIS as u64));
        assert_eq!(&shown[..3], [VdiId(8), VdiId(1), VdiId(3)]);
        assert_eq!(choose(vec![((false, 0), VdiId(1))]), (vec![VdiId(1)], 0));
    }

    #[tokio::test(start_paused = true)]
    async fn questions_are_bounded_in_number_and_time() {
        let (asker, questions) = channel();
        let before = tokio::time::Instant::now();
        let all = futures::future::join_all((0..QUEUE + 5).map(|_| asker.delay())).await;
        assert!(all.iter().all(|a| *a == Err(Silent)));
        assert!(before.elapsed() >= PATIENCE && before.elapsed() < PATIENCE * 2);
        // The queue is full of questions whose askers are gone: the next is refused at once, and none of the old ones hurts.
        let before = tokio::time::Instant::now();
        assert!(asker.report().await.is_err());
        assert_eq!(before.elapsed(), Duration::ZERO);
        let local = tokio::task::LocalSet::new();
        local.spawn_local(Watched::new(None).answer(questions));
        let alive = async {
            while asker.delay().await.is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            asker.report().await
        };
        let report = local.run_until(alive).await.expect("answers");
        assert!(report.disks.is_empty() && report.vdis.is_empty());
    }
}
