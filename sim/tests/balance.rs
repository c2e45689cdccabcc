//! A disk that comes (back) gets what belongs on it, also of what was there before.

mod common;
#[path = "common/disk.rs"]
mod disk;

use common::simulate;
use disk::{Disk, PATIENCE};
use sheep::node::disks::{plug, unplug};
use sheepdog_cluster::Redundancy;
use sheepdog_sim::actors::disks::two;
use sheepdog_sim::invariants::copies_equal;
use sheepdog_sim::world::{DISKS, World};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// Objects on each disk of one node, by directory.
async fn objects(world: &Rc<World>, node: usize) -> Vec<(String, u64)> {
    let asked = world.call(node, |ctx| async move {
        let disks = ctx.node.replica.store.as_ref().expect("a store").disks();
        let mut all: Vec<_> = disks.into_iter().map(|d| (d.path, d.objects)).collect();
        all.sort();
        all
    });
    asked.await.expect("it runs")
}

#[test]
fn a_disk_that_is_plugged_gets_its_share() {
    simulate(async {
        let seed = (0..100).find(|s| two(*s) && s % 4 != 3).expect("one in some has two");
        // All objects are on every node.
        let world = World::of(seed, Some((3, Redundancy::Copies(3)))).await;
        let mut disk = Disk::written(world.clone(), 0).await;
        let before = objects(&world, 1).await;
        assert!(before.len() == 2 && before.iter().all(|(_, n)| *n > 0), "{before:?}");
        let taken = DISKS[1];
        let gone = world.call(1, move |ctx| async move {
            let disks = ctx.node.replica.store.as_ref().expect("a store").disks();
            let id = disks.iter().find(|d| d.path == taken).expect("is there").id;
            unplug(ctx.node.clone(), id, false).await
        });
        gone.await.expect("it runs").expect("is unplugged");
        let end = Instant::now() + PATIENCE;
        while objects(&world, 1).await.len() > 1 {
            assert!(Instant::now() < end, "it is not emptied");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let back = world.call(1, move |ctx| async move { plug(ctx.node.clone(), taken.into()).await });
        back.await.expect("it runs").expect("is plugged");
        let (end, mut part) = (Instant::now() + PATIENCE, 0);
        while objects(&world, 1).await != before {
            assert!(Instant::now() < end, "{:?} instead of {before:?}", objects(&world, 1).await);
            // Clients write meanwhile.
            part = (part + 5) % 64;
            disk.write(0, part, (part * 3) as u8).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        disk.whole("balanced").await;
        disk.check(0, "balanced").await;
        let found = copies_equal::check(&world).await;
        assert!(found.is_empty(), "{found:?}");
        disk.end();
    });
}
