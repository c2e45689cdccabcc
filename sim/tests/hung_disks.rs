//! Disks that answer nothing any more, and return no error: the node goes on without one of several, and out of the way when none is left.

mod common;
#[path = "common/disk.rs"]
mod disk;
#[path = "common/object.rs"]
mod object;

use bytes::Bytes;
use common::simulate;
use disk::Disk;
use object::first_object;
use sheep::planted::{self, Bug};
use sheepdog_cluster::Redundancy;
use sheepdog_sim::actors::disks::two;
use sheepdog_sim::invariants::copies_equal;
use sheepdog_sim::world::{DISKS, World};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// By then a disk that has stopped is nobody's trouble any more: half a minute until it counts as such, and the failure detector's time.
const SOON: Duration = Duration::from_secs(45);

/// Seeds of worlds whose nodes have one disk each.
fn with_one_disk() -> impl Iterator<Item = u64> {
    (0..40).filter(|s| !two(*s) && s % 4 != 3)
}

/// Write for a while through one node; the longest that one write took.
async fn use_for(disk: &mut Disk, node: usize, time: Duration) -> Duration {
    let (end, mut part, mut longest) = (Instant::now() + time, 0, Duration::ZERO);
    while Instant::now() < end {
        part = (part + 5) % 64;
        let began = Instant::now();
        disk.write(node, part, (part * 3) as u8).await;
        longest = longest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    longest
}

async fn same_everywhere(world: &Rc<World>, disk: &Disk) {
    disk.whole("hung").await;
    disk.check(0, "hung").await;
    let found = copies_equal::check(world).await;
    assert!(found.is_empty(), "{found:?}");
}

fn told(world: &World, what: &str) -> bool {
    world.authority.read(|s| s.events.iter().any(|e| e.text.contains(what)))
}

#[test]
fn the_only_disk_of_a_node() {
    simulate(async {
        let seed = with_one_disk().next().expect("most have one");
        let world = World::of(seed, Some((3, Redundancy::Copies(3)))).await;
        let mut disk = Disk::written(world.clone(), 0).await;
        world.nodes[1].fs.stall(Some(Path::new("/")));
        let longest = use_for(&mut disk, 0, Duration::from_secs(120)).await;
        assert!(longest < SOON, "a write waited for {longest:?}");
        assert!(!world.nodes[1].is_running(), "it ends");
        assert!(told(&world, "no disk of node"));
        assert!(!told(&world, "failed"), "nothing on its disk is given up");
        // The disk answers again, and the sheep is started again.
        world.nodes[1].fs.stall(None);
        world.nodes[1].start();
        use_for(&mut disk, 0, Duration::from_secs(60)).await;
        same_everywhere(&world, &disk).await;
        disk.end();
    });
}

#[test]
fn the_only_disk_of_the_owner() {
    simulate(async {
        let seed = with_one_disk().next().expect("most have one");
        let world = World::of(seed, Some((3, Redundancy::Copies(3)))).await;
        let mut disk = Disk::written(world.clone(), 0).await;
        // The session is used from node 2 as well, and node 0 owns it.
        disk::open(&world, 2).await;
        world.nodes[0].fs.stall(Some(Path::new("/")));
        let longest = use_for(&mut disk, 2, Duration::from_secs(120)).await;
        assert!(longest < SOON, "a write waited for {longest:?}");
        assert!(!world.nodes[0].is_running(), "it ends");
        world.nodes[0].fs.stall(None);
        world.nodes[0].start();
        use_for(&mut disk, 2, Duration::from_secs(60)).await;
        disk::open(&world, 0).await;
        same_everywhere(&world, &disk).await;
        disk.end();
    });
}

#[test]
fn one_of_two() {
    simulate(async {
        let seed = (0..100).find(|s| two(*s) && s % 4 != 3).expect("one in some has two");
        let world = World::of(seed, Some((3, Redundancy::Copies(2)))).await;
        let mut disk = Disk::written(world.clone(), 0).await;
        world.nodes[1].fs.stall(Some(Path::new(DISKS[1])));
        let longest = use_for(&mut disk, 0, Duration::from_secs(180)).await;
        assert!(longest < SOON, "a write waited for {longest:?}");
        assert!(world.nodes[1].is_running(), "it goes on");
        let left = world.call(1, |ctx| async move {
            let disks = ctx.node.replica.store.as_ref().expect("a store").disks();
            disks.into_iter().map(|d| d.path).collect::<Vec<_>>()
        });
        assert_eq!(left.await.expect("it runs"), [DISKS[0]]);
        assert!(told(&world, "it has not answered for 30 s"));
        same_everywhere(&world, &disk).await;
        disk.end();
    });
}

/// A write is on its way to two copies, of which one is on a disk that does not answer, when its owner dies. What the next session says is in the volume; and what is, when the other
/// copy has gone first, and the disk has lost what never reached it.
async fn said_and_left(seed: u64) -> (Bytes, Bytes) {
    let world = World::of(seed, Some((3, Redundancy::Copies(2)))).await;
    let (_, _, holders) = first_object(&world);
    let [first, slow] = holders[..] else { panic!("two copies: {holders:?}") };
    let owner = 3 - first - slow;
    let disk = Disk::written(world.clone(), owner).await;
    let node = |n: usize| world.nodes[n].clone();
    node(slow).fs.stall(Some(Path::new("/")));
    let write = world.call(owner, async move |ctx| {
        let volume = ctx.volumes.borrow()[&0].clone();
        volume.write(0, vec![0xA5; 4096].into()).await
    });
    let write = tokio::time::timeout(Duration::from_secs(1), write).await;
    assert!(write.is_err(), "it waits for both copies");
    node(owner).kill(false).await;
    let w = world.clone();
    let mut read = tokio::task::spawn_local(async move {
        disk::open(&w, first).await;
        disk::get(&w, first, 0).await
    });
    let said = match tokio::time::timeout(Duration::from_secs(10), &mut read).await {
        Ok(early) => early,
        Err(_) => {
            node(slow).fs.stall(None);
            read.await
        }
    };
    // One after the other, each until the others know it.
    for n in [first, slow] {
        node(n).kill(true).await;
        tokio::time::sleep(Duration::from_secs(7)).await;
    }
    node(slow).fs.stall(None);
    world.nodes.iter().for_each(|n| n.start());
    disk::open(&world, slow).await;
    let left = disk::get(&world, slow, 0).await;
    disk.end();
    (said.expect("is read").slice(..4096), left.slice(..4096))
}

/// What a power cut leaves of what was on its way to a disk is a matter of luck.
fn tries() -> impl Iterator<Item = (Bytes, Bytes)> {
    with_one_disk().map(|seed| simulate(said_and_left(seed)))
}

#[test]
fn what_was_read_after_a_takeover_stays() {
    assert!(tries().all(|(said, left)| said == left), "a reader has seen it");
}

#[test]
fn a_takeover_that_does_not_wait_for_the_disk_is_found() {
    planted::plant(Some(Bug::HastyFence));
    let found = tries().any(|(said, left)| said[0] == 0xA5 && left[0] != 0xA5);
    planted::plant(None);
    assert!(found, "this shows nothing");
}
