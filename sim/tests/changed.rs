//! What backups are told has changed is everything that has, whoever is there to say so.

mod common;
#[path = "common/small.rs"]
mod small;
#[path = "common/volume.rs"]
mod volume;

use common::simulate;
use sheep::front::admin::backend::{DataError, Image};
use sheep::node::changed;
use sheepdog_proto::VdiId;
use sheepdog_sim::world::World;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use volume::{open, write};

/// What is there of the volume, as this node finds out: offset and length of ranges that are not zeros.
async fn contents(world: &Rc<World>, node: usize, vdi: VdiId) -> Result<Vec<(u64, u64)>, DataError> {
    let found = world.call(node, move |ctx| async move {
        let (tx, mut rx) = mpsc::channel(64);
        changed::diff(ctx.node.clone(), Image { vdi, layer: None }, None, tx).await?;
        let mut out = Vec::new();
        while let Some(row) = rx.recv().await {
            out.extend((!row.zero).then_some((row.offset, row.length)));
        }
        Ok(out)
    });
    found.await.expect("it runs")
}

#[test]
fn a_copy_that_missed_something_does_not_answer_for_it() {
    for seed in 1..=10 {
        simulate(async {
            let world = World::new(seed).await;
            let vdi = small::create(&world, 2, 4096, None);
            let holders = small::targets(&world, vdi, 0);
            let (first, second) = (holders[0], holders[1]);
            let other = (0..world.nodes.len()).find(|n| *n != first && *n != second).expect("three nodes");
            open(&world, vdi, other).await;
            assert_eq!(contents(&world, other, vdi).await.expect("answers"), []);
            world.nodes[second].kill(false).await;
            assert!(write(&world, other, 1).await, "seed {seed}");
            world.nodes[first].kill(false).await;
            world.nodes[second].start();
            let early = tokio::time::timeout(Duration::from_secs(100), contents(&world, other, vdi)).await;
            match early {
                Err(_) | Ok(Err(DataError::Busy(_))) => {}
                other => panic!("seed {seed}: {other:?} from a copy that has missed a write"),
            }
            world.nodes[first].start();
            let late = tokio::time::timeout(Duration::from_secs(100), contents(&world, other, vdi)).await;
            assert_eq!(late.expect("in time").expect("answers"), [(0, 4096)], "seed {seed}");
            world.nodes.iter().for_each(|n| n.fs.wipe());
        });
    }
}
