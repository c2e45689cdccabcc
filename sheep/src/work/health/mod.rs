//! Looking after disks: which has stopped, which has become slow, which will be full, and when.
//!
//! One that answers nothing for half a minute counts as failed, if another one of the node answers; else the process ends, so that the others go on without this node, as they do when its
//! host has died.
//!
//! What else is found is told as events, in listings and metrics. A disk that has been slow for long beside the node's others is emptied onto those, if they have room, as if somebody had
//! unplugged it: `dog node md plug` lets it stay. Where there is no other disk, people have to decide: the nodes beside this one would have to rebuild all of it.

pub mod hang;
pub mod track;

use crate::peer::Replica;
use crate::store::{DiskState, DiskStats, Store, kept_at_least};
use crate::work::evacuate;
use hang::{Hang, LOOK, LOOKS, Verdict};
use sheepdog_cluster::{Command, EventLevel};
use sheepdog_proto::DiskId;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use track::{Change, Did, Fill, Look, Space, Suspicion, WINDOW, did};

/// The worker of one node.
pub struct Health {
    /// Holder side.
    pub replica: Rc<Replica>,
    /// Stop.
    pub stop: CancellationToken,
    /// Ends the process.
    pub dead: CancellationToken,
}

/// What is known of one disk.
#[derive(Default)]
struct Known {
    last: Option<Look>,
    suspicion: Suspicion,
    space: Space,
}

fn look(d: &DiskStats) -> Look {
    let (_, journal) = d.ops.iter().find(|(op, _)| *op == "journal").copied().unwrap_or_default();
    Look { count: journal.count, nanos: journal.nanos, waiting: d.journal_records > 0 }
}

fn words(mine: Did) -> String {
    match mine {
        Did::Nothing => "it has not finished anything for minutes although writes wait".into(),
        Did::Mean(mean) => format!("a write to its journal takes {} ms", mean.as_millis()),
        Did::Little => "it was slow when it was last used".into(),
    }
}

impl Health {
    /// Run until stopped.
    pub async fn run(self) {
        let stop = self.stop.clone();
        tokio::select! { biased; () = stop.cancelled() => {} () = self.work() => {} () = self.pulse() => {} }
    }

    /// Find disks that have stopped. Ends with the process.
    async fn pulse(&self) {
        let Some(store) = self.replica.store.clone() else { return std::future::pending().await };
        let mut hang = Hang::default();
        let long = (LOOK * LOOKS).as_secs();
        loop {
            tokio::time::sleep(LOOK).await;
            match hang.look(&store.look()) {
                Verdict::Well => {}
                Verdict::Lost(disks) => {
                    let why = format!("it has not answered for {long} s");
                    disks.iter().for_each(|d| store.give_up(*d, &why));
                }
                Verdict::All => {
                    let me = self.replica.control.me();
                    let text = format!(
                        "no disk of node {} has answered for {long} s: its sheep ends, and the others go on without it",
                        me.short()
                    );
                    tracing::error!("{text}");
                    store.give_up_all(&text);
                    let told = self.replica.control.propose(Command::Note { level: EventLevel::Error, text });
                    let _ = tokio::time::timeout(LOOK, told).await;
                    self.dead.cancel();
                    return std::future::pending().await;
                }
            }
        }
    }

    async fn work(&self) {
        let Some(store) = self.replica.store.clone() else { return std::future::pending().await };
        let mut known: BTreeMap<DiskId, Known> = BTreeMap::new();
        let began = Instant::now();
        loop {
            tokio::time::sleep(WINDOW).await;
            let stats = store.disk_stats();
            known.retain(|id, _| stats.iter().any(|d| d.id == *id));
            let mut all: Vec<(DiskId, Did)> = Vec::new();
            for d in &stats {
                let now = look(d);
                let before = known.entry(d.id).or_default().last.replace(now);
                all.push((d.id, before.map_or(Did::Little, |before| did(before, now))));
            }
            for (d, (id, mine)) in stats.iter().zip(&all) {
                let Some(k) = known.get_mut(id).filter(|_| !matches!(d.state, DiskState::Failed(_))) else {
                    continue;
                };
                let others: Vec<Did> = all.iter().filter(|(o, _)| o != id).map(|(_, did)| *did).collect();
                if let Some(change) = k.suspicion.window(*mine, &others) {
                    self.suspicion(&store, d, change, *mine).await;
                }
                let room = d.total.saturating_sub(kept_at_least(d.total));
                if let Some(fill) = k.space.look(began.elapsed(), d.total.saturating_sub(d.free), room) {
                    self.fill(d, fill, k.space.full_in(room)).await;
                }
                store.set_opinion(*id, |o| o.full_in = k.space.full_in(room));
            }
        }
    }

    async fn tell(&self, level: EventLevel, d: &DiskStats, what: &str) {
        let text = format!(
            "disk {} at {} of node {} {what}",
            d.id.short(),
            d.path,
            self.replica.control.me().short()
        );
        tracing::warn!("{text}");
        let _ = self.replica.control.propose(Command::Note { level, text }).await;
    }

    async fn suspicion(&self, store: &Rc<Store>, d: &DiskStats, change: Change, mine: Did) {
        match change {
            Change::Suspect => {
                store.set_opinion(d.id, |o| o.suspect = Some(words(mine)));
                let what = format!("is suspect: {}; see dog node md info", words(mine));
                self.tell(EventLevel::Warning, d, &what).await;
            }
            Change::Sound => {
                store.set_opinion(d.id, |o| o.suspect = None);
                self.tell(EventLevel::Info, d, "is as fast as it should be again").await;
            }
            Change::Long => match evacuate::begin(&self.replica, d.id, &self.stop) {
                Ok(()) => {
                    let what = format!(
                        "has been slow for long and is being emptied; dog node md plug {} lets it stay",
                        d.path
                    );
                    self.tell(EventLevel::Warning, d, &what).await;
                }
                Err(why) => {
                    let what =
                        format!("has been slow for long: replace it; it is not emptied by itself: {why}");
                    self.tell(EventLevel::Error, d, &what).await;
                }
            },
        }
    }

    async fn fill(&self, d: &DiskStats, fill: Fill, full_in: Option<Duration>) {
        let percent = (d.total.saturating_sub(d.free)) * 100 / d.total.max(1);
        let when = full_in.map_or(String::new(), |left| {
            format!("; as it goes on it is full in {} h", left.as_secs() / 3600)
        });
        let (level, what) = match fill {
            Fill::Room => (EventLevel::Info, format!("has room again: {percent} % are used")),
            Fill::Near => (
                EventLevel::Warning,
                format!("is filling up: {percent} % are used{when}: add disks or sheep"),
            ),
            Fill::Nearer => {
                (EventLevel::Error, format!("is nearly full: {percent} % are used{when}: writes will wait"))
            }
        };
        self.tell(level, d, &what).await;
    }
}
