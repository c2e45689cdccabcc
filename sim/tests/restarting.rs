//! A process that is replaced before anybody notices is no change of membership, and what the new one sends counts.

mod common;
#[path = "common/volume.rs"]
mod volume;

use bytes::Bytes;
use common::simulate;
use sheepdog_sim::world::World;
use std::rc::Rc;
use std::time::Duration;
use volume::open;

async fn write(world: &Rc<World>, node: usize, byte: u8) -> bool {
    let done = world.call(node, move |ctx| async move {
        let volume = ctx.volumes.borrow()[&0].clone();
        volume.write(0, Bytes::from(vec![byte; 4096])).await
    });
    matches!(tokio::time::timeout(Duration::from_secs(30), done).await, Ok(Ok(Ok(()))))
}

#[test]
fn a_gateway_that_restarts_quickly_goes_on_to_change_volumes_that_others_own() {
    let mut unnoticed = 0;
    for seed in 1..=80 {
        unnoticed += simulate(async {
            let world = World::new(seed).await;
            let owner = seed as usize % world.nodes.len();
            let gateway = (owner + 1) % world.nodes.len();
            for node in [owner, gateway] {
                open(&world, node).await;
                assert!(write(&world, node, 1).await, "seed {seed}");
            }
            let node = world.nodes[gateway].clone();
            let before = world.authority.read(|s| (s.epoch, s.nodes[&node.id].incarnation));
            node.kill(false).await;
            node.start();
            let mut commits = world.authority.commits();
            while world.authority.read(|s| s.nodes[&node.id].incarnation == before.1) {
                commits.changed().await.expect("there are more");
            }
            if world.authority.read(|s| s.epoch != before.0) {
                return 0;
            }
            open(&world, gateway).await;
            assert!(
                write(&world, gateway, 2).await,
                "seed {seed}: a write through the new process does not end"
            );
            assert_eq!(world.authority.read(|s| s.epoch), before.0, "seed {seed}");
            world.nodes.iter().for_each(|n| n.fs.wipe());
            1
        });
    }
    assert!(unnoticed > 5, "{unnoticed}");
}
