//! Scrubbing: whatever is damaged on a disk, in whatever way, is found, named and mended, and nothing is made worse by it, while clients write.

mod common;
#[path = "common/disk.rs"]
mod disk;

use common::simulate;
use disk::{Disk, open};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use sheep::store::ObjectSummary;
use sheep::store::fs::Fs;
use sheep::store::fs::memory::Kept;
use sheep::work::scrub::report::Report;
use sheepdog_cluster::Redundancy;
use sheepdog_proto::ObjectId;
use sheepdog_sim::invariants::copies_equal;
use sheepdog_sim::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// No pass, and no healing, takes longer.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Files of objects and strips of one node.
fn files(world: &World, node: usize) -> Vec<PathBuf> {
    let of_object = |p: &PathBuf| p.components().any(|c| c.as_os_str() == "obj");
    world.nodes[node].fs.paths().into_iter().filter(of_object).collect()
}

fn oid_of(file: &Path) -> ObjectId {
    file.file_name().and_then(|n| ObjectId::parse(&n.to_string_lossy())).expect("named as its object")
}

/// Everything that is known of one node's disks.
async fn report(world: &Rc<World>, node: usize) -> Report {
    let asked = world.call(node, |ctx| async move { ctx.node.replica.scrubbing.report() });
    asked.await.expect("it runs")
}

/// Damage, and what has to be told of it.
#[derive(Default)]
struct Damage {
    /// On each node.
    objects: BTreeMap<usize, BTreeSet<ObjectId>>,
    indexes: BTreeMap<usize, usize>,
    /// What each node had then.
    rows: BTreeMap<usize, Vec<ObjectSummary>>,
    /// Each thing that was done.
    faults: Vec<String>,
}

/// Files as they were in earlier rounds.
type Older = BTreeMap<(usize, PathBuf), Kept>;

impl Damage {
    /// One fault somewhere on the node, in a file that has none yet, and not of the object that is being written: a fault that is written over is none.
    fn add(&mut self, world: &World, node: usize, busy: u32, older: &Older, rng: &mut SmallRng) {
        let fs = &world.nodes[node].fs;
        let done = self.objects.entry(node).or_default();
        // A file of what has just been removed goes by itself.
        let known: BTreeSet<ObjectId> = self.rows[&node].iter().map(|row| row.oid).collect();
        let good = |o: ObjectId| known.contains(&o) && !done.contains(&o) && o.index() != busy;
        let whole: Vec<PathBuf> = files(world, node).into_iter().filter(|f| good(oid_of(f))).collect();
        let Some(file) = whole.choose(rng) else { return };
        let oid = oid_of(file);
        let kind = rng.random_range(0..10);
        match kind {
            0..=3 => {
                let Some(at) = fs.somewhere(file, rng.random()) else { return };
                assert!(fs.flip(file, at, rng.random_range(0..8)));
            }
            4 | 5 => fs.unlink(file).expect("unlinks"),
            6 | 7 => {
                let Some(other) = whole.choose(rng).filter(|other| *other != file) else { return };
                assert!(fs.swap(file, other));
                done.insert(oid_of(other));
            }
            8 => {
                let now = fs.keep(file);
                let Some(old) = older.get(&(node, file.clone())).filter(|old| Some(*old) != now.as_ref())
                else {
                    return;
                };
                fs.restore(file, old.clone());
            }
            _ => {
                let stray = ObjectId::data(oid.layer(), 700 + rng.random_range(0..200));
                fs.restore(&file.with_file_name(stray.to_string()), fs.keep(file).expect("there"));
                done.insert(stray);
                self.faults.push(format!("node {node}: stray {stray}"));
                return;
            }
        }
        done.insert(oid);
        self.faults.push(format!("node {node}: kind {kind} in {oid}"));
    }
    fn add_index(&mut self, world: &World, node: usize, salt: u64) {
        let index = world.nodes[node].fs.paths();
        let journal = index.iter().find(|p| p.ends_with("journal")).expect("a disk");
        if world.nodes[node].fs.damage_index(&journal.with_file_name("index.redb"), salt) {
            *self.indexes.entry(node).or_default() += 1;
            self.faults.push(format!("node {node}: index"));
        }
    }
    /// All of it has been named and mended since there were so many findings.
    async fn is_mended(&self, world: &Rc<World>, (before, passes): (&[u64], &[u64])) -> Result<(), String> {
        for (node, objects) in &self.objects {
            let report = report(world, *node).await;
            let found: u64 = report.rows.values().map(|t| t.found).sum();
            let new = (found - before[*node]) as usize;
            let last = report.findings.iter().rev().take(new);
            let mended: BTreeSet<ObjectId> =
                last.clone().filter(|f| f.mended).filter_map(|f| f.oid).collect();
            let mut left = objects.clone();
            left.retain(|o| !mended.contains(o));
            // A strip that was not needed any more went, and the header of an object that was put away was written over, before anybody looked.
            let rows = self.rows[node].clone();
            let gone = world.call(*node, move |ctx| async move {
                let store = ctx.node.replica.store.clone().expect("a store");
                let same = |o: &ObjectId| {
                    let then = rows.iter().find(|row| row.oid == *o);
                    let now = store.row(*o).map(|(row, _)| row);
                    then.is_none_or(|then| {
                        now.is_some_and(|now| (now.version, now.seal) == (then.version, then.seal))
                    })
                };
                left.retain(same);
                left
            });
            let left = gone.await.expect("it runs");
            if let Some(oid) = left.first() {
                return Err(format!(
                    "node {node} has not mended {oid}: {:?}",
                    report.findings.iter().rev().take(20).collect::<Vec<_>>()
                ));
            }
            // A row that was written anew meanwhile, as that of a mended object, is right without anybody's having noticed.
            if !self.indexes.is_empty() && report.passes <= passes[*node] {
                return Err(format!("node {node} has not looked at everything"));
            }
            let sound = world.call(*node, |ctx| async move {
                let store = ctx.node.replica.store.clone().expect("a store");
                let mut sound = true;
                for disk in store.disks() {
                    sound &= store.check_index(disk.id).await == Ok(false);
                }
                sound
            });
            if !sound.await.expect("it runs") {
                return Err(format!("the index of node {node} is wrong"));
            }
        }
        Ok(())
    }
}

/// Rounds of so many faults on each of `at_once` nodes, while a client writes.
async fn rounds(
    seed: u64,
    nodes: usize,
    redundancy: Redundancy,
    (rounds, each, at_once): (usize, usize, usize),
) -> usize {
    let world = World::of(seed, Some((nodes, redundancy))).await;
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut disk = Disk::written(world.clone(), 0).await;
    let mut older = Older::new();
    let mut faults = 0;
    for round in 0..rounds {
        let what = format!("{redundancy}, seed {seed}, round {round}");
        // Some of it is in strips by now, some is not.
        tokio::time::sleep(Duration::from_secs(rng.random_range(5..60))).await;
        let mut damage = Damage::default();
        let busy = rng.random_range(0..4u32);
        let mut all: Vec<usize> = (0..nodes).collect();
        let (mut before, mut passes) = (vec![0; nodes], vec![0; nodes]);
        for n in 0..nodes {
            let mut report = report(&world, n).await;
            // What is found in a file before all that was found in it is mended is the same finding.
            while !report.findings.iter().all(|f| f.mended) {
                tokio::time::sleep(Duration::from_secs(1)).await;
                report = self::report(&world, n).await;
            }
            before[n] = report.rows.values().map(|t| t.found).sum();
            passes[n] = report.passes;
        }
        for _ in 0..at_once {
            let node = all.swap_remove(rng.random_range(0..all.len()));
            let rows = world.call(node, |ctx| async move {
                ctx.node.replica.store.as_ref().expect("a store").list(None, 10_000)
            });
            damage.rows.insert(node, rows.await.expect("it runs"));
            for _ in 0..each {
                damage.add(&world, node, busy, &older, &mut rng);
            }
            if rng.random_bool(0.3) {
                damage.add_index(&world, node, rng.random());
            }
        }
        faults += damage.faults.len();
        for n in 0..nodes {
            world.call(n, |ctx| async move { ctx.node.replica.scrubbing.start() }).await.expect("it runs");
        }
        for _ in 0..4 {
            disk.write(0, disk.part_of(busy, rng.random_range(0..16)), rng.random()).await;
        }
        let deadline = Instant::now() + PATIENCE;
        while let Err(why) = damage.is_mended(&world, (&before, &passes)).await {
            assert!(Instant::now() < deadline, "{what}: {why}; {:?}", damage.faults);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        disk.check(0, &what).await;
        disk.whole(&what).await;
        let found = copies_equal::check(&world).await;
        assert!(found.is_empty(), "{what}: {found:?}");
        for n in 0..nodes {
            let fs = &world.nodes[n].fs;
            for file in files(&world, n) {
                if let Some(kept) = fs.keep(&file).filter(|_| rng.random_bool(0.5)) {
                    older.insert((n, file), kept);
                }
            }
        }
    }
    // Nothing that was mended comes back with the processes.
    for node in &world.nodes {
        node.kill(true).await;
    }
    for node in &world.nodes {
        node.start();
    }
    disk.whole("started again").await;
    open(&world, 0).await;
    disk.check(0, "started again").await;
    disk.end();
    faults
}

#[test]
fn a_thousand_faults_are_found_and_mended() {
    let mut faults = 0;
    let four_two = Redundancy::Erasure { data: 4, parity: 2 };
    let two_one = Redundancy::Erasure { data: 2, parity: 1 };
    for (seed, nodes, redundancy, at_once) in [
        (1, 6, four_two, 2),
        (2, 6, four_two, 2),
        (3, 4, two_one, 1),
        (4, 3, Redundancy::Copies(3), 2),
        (5, 4, Redundancy::Copies(2), 1),
    ] {
        faults += simulate(rounds(seed, nodes, redundancy, (36, 8, at_once)));
    }
    assert!(faults >= 1000, "{faults}");
}
