//! A process that is replaced before anybody notices is no change of membership, and what the new one sends counts.

mod common;
#[path = "common/replace.rs"]
mod replace;
#[path = "common/volume.rs"]
mod volume;

use common::simulate;
use replace::unnoticed;
use sheepdog_sim::invariants::everyone_synced;
use sheepdog_sim::world::World;
use std::time::Duration;
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

#[test]
fn recovery_has_not_ended_before_the_processes_that_run_are_known() {
    for seed in 1..=20 {
        simulate(async {
            let world = World::new(seed).await;
            open(&world, world.vdi, 0).await;
            assert!(write(&world, 0, 1).await, "seed {seed}");
            for n in &world.nodes {
                n.kill(true).await;
            }
            world.nodes.iter().for_each(|n| n.start());
            let found = everyone_synced::check(&world).await;
            assert!(found.is_empty(), "seed {seed}: {found:?}");
            for (i, n) in world.nodes.iter().enumerate() {
                let runs = world.call(i, |ctx| async move { ctx.node.control.incarnation() });
                let runs = tokio::time::timeout(Duration::from_millis(1), runs).await;
                let runs =
                    runs.expect("recovery has ended, and this process has not begun").expect("it runs");
                assert_eq!(world.authority.read(|s| s.nodes[&n.id].incarnation), runs, "seed {seed}");
            }
            world.nodes.iter().for_each(|n| n.fs.wipe());
        });
    }
}
