//! Whoever changes the disks of nodes while they serve: takes one away, which moves what is on it to the other, brings it back, or lets it stay after all.

use crate::world::World;
use rand::Rng;
use sheep::node::disks;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Worlds in which nodes have two disks.
pub fn two(seed: u64) -> bool {
    seed % 5 == 3
}

/// Start, in such a world.
pub fn start(world: &Rc<World>) -> Option<JoinHandle<()>> {
    two(world.seed).then(|| tokio::task::spawn_local(change(world.clone())))
}

async fn change(world: Rc<World>) {
    let mut rng = world.rng(5);
    let pace = rng.random_range(200..5_000u64);
    while !world.stopping.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(rng.random_range(50..pace))).await;
        let n = rng.random_range(0..world.nodes.len());
        let (away, which) = (rng.random_bool(0.7), rng.random_range(0..2usize));
        let done = world.call(n, move |ctx| async move {
            let Some(store) = ctx.node.replica.store.clone() else { return };
            if !away {
                // Both, in whatever state they are.
                for path in crate::world::DISKS {
                    let _ = disks::plug(ctx.node.clone(), path.into()).await;
                }
                return;
            }
            let there = store.disks();
            if let Some(d) = there.get(which) {
                let _ = disks::unplug(ctx.node.clone(), d.id, false).await;
            }
        });
        let _ = tokio::time::timeout(Duration::from_secs(60), done).await;
    }
}
