//! A rebuild leaves clients the room that they need.

mod common;
#[path = "common/object.rs"]
mod object;
#[path = "common/volume.rs"]
mod volume;

use common::simulate;
use object::first_object;
use sheepdog_cluster::Command;
use sheepdog_sim::world::World;
use std::rc::Rc;
use std::time::Duration;
use volume::{open, write};

/// Leave this node's disk so many per cent of it free.
async fn leave_free(world: &Rc<World>, node: usize, per_cent: u64) {
    let used = world.call(node, |ctx| async move {
        let disks = ctx.node.replica.store.as_ref().expect("a store").disks();
        disks[0].total - disks[0].free
    });
    let used = used.await.expect("it runs");
    world.nodes[node].fs.set_total(used * 100 / (100 - per_cent));
}

/// Objects that it lacks, and what it waits for.
async fn state(world: &Rc<World>, node: usize) -> (usize, Option<String>) {
    world.call(node, |ctx| async move { ctx.node.replica.sync.state() }).await.expect("it runs")
}

#[test]
fn copies_are_not_rebuilt_into_the_room_of_clients() {
    let mut tried = 0;
    for seed in 1..=40 {
        tried += simulate(async {
            let world = World::new(seed).await;
            let (_, _, holders) = first_object(&world);
            let (client, lost) = (holders[0], holders[1]);
            open(&world, world.vdi, client).await;
            assert!(write(&world, client, 1).await, "seed {seed}");
            for node in (0..world.nodes.len()).filter(|n| !holders.contains(n)) {
                // Enough for clients, and not for a whole copy more.
                leave_free(&world, node, 5).await;
            }
            // Disks look every few seconds how much is free.
            tokio::time::sleep(Duration::from_secs(10)).await;
            world.nodes[lost].kill(true).await;
            world.authority.commit(Command::NodeOut { node: world.nodes[lost].id });
            let (_, _, now) = first_object(&world);
            let Some(heir) = now.into_iter().find(|n| !holders.contains(n)) else { return 0 };
            let mut waits = None;
            for _ in 0..600 {
                waits = state(&world, heir).await.1;
                if waits.as_ref().is_some_and(|w| w.contains("for clients")) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert!(
                waits.as_ref().is_some_and(|w| w.contains("add disks or nodes")),
                "seed {seed}: {waits:?}"
            );
            assert!(write(&world, client, 2).await, "seed {seed}: clients go on");
            assert!(state(&world, heir).await.0 > 0, "seed {seed}");
            world.nodes[heir].fs.set_total(1 << 34);
            let id = world.nodes[heir].id;
            for _ in 0..600 {
                if world.authority.read(|s| s.nodes[&id].synced == s.epoch) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert_eq!(state(&world, heir).await, (0, None), "seed {seed}: room was made");
            world.nodes.iter().for_each(|n| n.fs.wipe());
            1
        });
    }
    assert!(tried > 5, "{tried}");
}
