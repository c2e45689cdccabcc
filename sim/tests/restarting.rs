//! A process that is replaced before anybody notices is no change of membership, and what the new one sends counts.

mod common;
#[path = "common/replace.rs"]
mod replace;
#[path = "common/volume.rs"]
mod volume;

use common::simulate;
use replace::unnoticed;
use sheepdog_sim::world::World;
use volume::{open, write};

#[test]
fn a_gateway_that_restarts_quickly_goes_on_to_change_volumes_that_others_own() {
    let mut quick = 0;
    for seed in 1..=80 {
        quick += simulate(async {
            let world = World::new(seed).await;
            let owner = seed as usize % world.nodes.len();
            let gateway = (owner + 1) % world.nodes.len();
            for node in [owner, gateway] {
                open(&world, world.vdi, node).await;
                assert!(write(&world, node, 1).await, "seed {seed}");
            }
            let Some(epoch) = unnoticed(&world, gateway, false).await else { return 0 };
            open(&world, world.vdi, gateway).await;
            assert!(
                write(&world, gateway, 2).await,
                "seed {seed}: a write through the new process does not end"
            );
            assert_eq!(world.authority.read(|s| s.epoch), epoch, "seed {seed}");
            world.nodes.iter().for_each(|n| n.fs.wipe());
            1
        });
    }
    assert!(quick > 5, "{quick}");
}
