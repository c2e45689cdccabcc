//! A whole cluster in one thread under simulated time: the real data plane (sessions, peers, store, recovery) over a simulated network, simulated disks and a
//! simulated control log, with clients, faults, and an oracle that says whether the promises were kept.
//!
//! ```text
//! actors/     who acts: clients that read and write, an operator that takes snapshots, whoever changes disks, chaos that breaks things
//! world/      what they act on: clock, network, control log, processes
//! oracle/     what was seen, and whether some order of the operations explains it
//! invariants/ the promises that are looked at once everything has healed, one named checker each
//! ```
//!
//! What is real: everything below `sheep::node::assemble`, the state machine of `sheepdog-cluster`, and the failure detector. What is simulated: TCP (ordered streams with
//! delay, cuts, resets), the disks (`MemoryFs`: loses and tears what was not synced), Raft (one log that a node may be cut off from; openraft has its own tests), time
//! (tokio's paused clock). Every choice comes from the seed, so a run can be repeated.

pub mod actors;
pub mod invariants;
pub mod oracle;
pub mod world;

use sheep::planted::{self, Bug};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// How to run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Seed of every choice.
    pub seed: u64,
    /// A bug that the run should find.
    pub bug: Option<Bug>,
    /// Simulated seconds with faults.
    pub seconds: u64,
}

/// What a run found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Broken promises: name of the checker and what it saw.
    pub violations: Vec<(&'static str, String)>,
    /// Operations of clients that finished.
    pub operations: u64,
    /// Faults that were injected.
    pub faults: u64,
    /// Snapshots that were taken.
    pub snapshots: u64,
    /// Hash over everything that clients saw and when: equal for equal seeds.
    pub fingerprint: u64,
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static HOOKED: Cell<bool> = const { Cell::new(false) };
}

/// Panics of simulated processes are violations: tokio would hide them.
fn catch_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if HOOKED.get() {
                PANICS.with(|p| p.borrow_mut().push(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// What background work waits for takes a hundredth of the usual time: between two writes to one object a few tenths of a second pass.
const HURRY: u32 = 100;

/// Run one seed.
pub fn run(options: Options) -> Report {
    catch_panics();
    planted::plant(options.bug);
    planted::hurry(HURRY);
    PANICS.with(|p| p.borrow_mut().clear());
    HOOKED.set(true);
    let report = Rc::new(RefCell::new(Report::default()));
    let finished = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true);
        // tokio wakes the waiters of a watch channel in a random order: it comes from the seed too.
        #[cfg(tokio_unstable)]
        builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&options.seed.to_le_bytes()));
        let runtime = builder.build();
        let runtime = runtime.expect("a runtime without I/O needs nothing from the system");
        let set = tokio::task::LocalSet::new();
        let (r, o) = (report.clone(), options);
        let limit = Duration::from_secs(o.seconds * 20 + 3600);
        let inside = async move { tokio::time::timeout(limit, scenario(o, r)).await.is_ok() };
        set.block_on(&runtime, inside)
    }));
    HOOKED.set(false);
    planted::plant(None);
    let mut report = report.borrow().clone();
    match finished {
        Ok(true) => {}
        Ok(false) => report.violations.push(("liveness", "the run did not come to its end".into())),
        Err(_) => report.violations.push(("no_panic", "the scenario itself panicked".into())),
    }
    for p in PANICS.with(|p| std::mem::take(&mut *p.borrow_mut())) {
        report.violations.push(("no_panic", p));
    }
    report
}

async fn scenario(options: Options, report: Rc<RefCell<Report>>) {
    let world = world::World::new(options.seed).await;
    let clients = actors::client::start(&world);
    let operator = actors::operator::start(&world);
    let altering = actors::operator::start_moving(&world);
    let disks = actors::disks::start(&world);
    actors::chaos::run(&world, options.seconds).await;
    world.heal();
    // The liveness phase: nothing is broken any more, so everything must come to an end.
    let calm = async {
        world.stopping.cancel();
        for c in clients {
            let _ = c.await;
        }
        let _ = operator.await;
        for changing in [altering, disks].into_iter().flatten() {
            let _ = changing.await;
        }
        actors::operator::keep_all(&world);
    };
    if tokio::time::timeout(Duration::from_secs(900), calm).await.is_err() {
        report.borrow_mut().violations.push(("liveness", world.explain("operations do not come to an end")));
    } else {
        let found = invariants::all(&world).await;
        report.borrow_mut().violations.extend(found);
    }
    let mut r = report.borrow_mut();
    r.operations = world.history.finished();
    r.faults = world.faults.get();
    r.snapshots = world.snapshots.get();
    r.fingerprint = world.history.fingerprint();
    r.violations.extend(world.violations.borrow_mut().drain(..));
    r.violations.extend(oracle::detached::check(&world.history).into_iter().map(|v| ("detached", v)));
    r.violations.extend(oracle::linearizable::check(&world.history).into_iter().map(|v| ("linearizable", v)));
    world.nodes.iter().for_each(|n| n.fs.wipe());
}
