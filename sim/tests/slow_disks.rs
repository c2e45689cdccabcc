//! A disk that has become slow is noticed beside its node's others, told, and emptied onto them while clients write.

mod common;
#[path = "common/disk.rs"]
mod disk;

use common::simulate;
use disk::Disk;
use sheepdog_cluster::Redundancy;
use sheepdog_sim::actors::disks::two;
use sheepdog_sim::invariants::copies_equal;
use sheepdog_sim::world::{DISKS, World};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// (Directory, is it suspect) of one node's disks.
async fn disks(world: &Rc<World>, node: usize) -> Vec<(String, bool)> {
    let asked = world.call(node, |ctx| async move {
        let disks = ctx.node.replica.store.as_ref().expect("a store").disks();
        disks.into_iter().map(|d| (d.path, d.opinion.suspect.is_some())).collect()
    });
    asked.await.expect("it runs")
}

#[test]
fn it_is_told_and_emptied() {
    simulate(async {
        let seed = (0..100).find(|s| two(*s) && s % 4 != 3).expect("one in some has two");
        let world = World::of(seed, Some((3, Redundancy::Copies(2)))).await;
        let mut disk = Disk::written(world.clone(), 0).await;
        let before = disks(&world, 1).await;
        assert_eq!((before.len(), before.iter().any(|d| d.1)), (2, false));
        let slow = DISKS[1];
        world.nodes[1].fs.set_slow(Path::new(slow), Duration::from_millis(300));
        let (end, mut suspected, mut part) = (Instant::now() + Duration::from_secs(3 * 3600), false, 0);
        loop {
            let now = disks(&world, 1).await;
            suspected |= now.iter().any(|(path, suspect)| path == slow && *suspect);
            assert!(
                now.iter().all(|(path, suspect)| path == slow || !suspect),
                "the other one is sound: {now:?}"
            );
            if now.len() == 1 {
                break;
            }
            assert!(Instant::now() < end, "it is not emptied: {now:?}");
            for _ in 0..16 {
                part = (part + 5) % 64;
                disk.write(0, part, (part * 3) as u8).await;
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        assert!(suspected);
        assert!(disks(&world, 0).await.len() == 2 && disks(&world, 2).await.len() == 2);
        disk.whole("emptied").await;
        disk.check(0, "emptied").await;
        let found = copies_equal::check(&world).await;
        assert!(found.is_empty(), "{found:?}");
        let events = world.authority.read(|s| s.events.iter().map(|e| e.text.clone()).collect::<Vec<_>>());
        assert!(events.iter().any(|e| e.contains("is suspect") && e.contains(slow)), "{events:?}");
        assert!(events.iter().any(|e| e.contains("is being emptied")), "{events:?}");
        disk.end();
    });
}
