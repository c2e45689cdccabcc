//! The layer of a deleted snapshot is merged into the next one by every node on its own. No copy loses by that what others have, wherever it came from.

mod common;

use bytes::Bytes;
use common::simulate;
use sheep::session::volume::open_image;
use sheepdog_cluster::{Acting, ClusterState, Command, Redundancy, Reply, SnapshotRef};
use sheepdog_proto::{BLOCK_SIZE, LayerId, NodeId, PlacementKey};
use sheepdog_sim::world::World;
use std::rc::Rc;
use std::time::Duration;

const OBJECTS: u32 = 4;

/// Some blocks of every object, through the first node; then nobody has the volume open.
async fn write(world: &Rc<World>, blocks: impl Iterator<Item = u32> + Clone + 'static, byte: u8) {
    let (vdi, object) = (world.vdi, u64::from(world.object));
    let done = world.call(0, move |ctx| async move {
        let volume = open_image(&ctx.node.gateway, vdi, None).await.expect("opens");
        for i in 0..u64::from(OBJECTS) {
            for block in blocks.clone() {
                let data = Bytes::from(vec![byte; BLOCK_SIZE]);
                volume.write(i * object + u64::from(block) * BLOCK_SIZE as u64, data).await.expect("writes");
            }
        }
        volume.close().await;
        ctx.node.gateway.release(vdi).await.expect("nobody uses it");
    });
    done.await.expect("it runs");
}

/// Freeze what there is; its layer.
fn snapshot(world: &World, tag: &str) -> LayerId {
    let reply = world.authority.commit(Command::Snapshot { vdis: vec![(world.vdi, None)], tag: tag.into() });
    assert!(matches!(reply, Reply::Snapshots(_)), "{reply:?}");
    let layer = |s: &ClusterState| s.vdis[&world.vdi].snapshots.last().map(|x| x.layer);
    world.authority.read(layer).expect("a layer")
}

async fn until(world: &World, so: impl Fn(&ClusterState) -> bool) {
    let mut commits = world.authority.commits();
    while !world.authority.read(&so) {
        commits.changed().await.expect("there are more");
    }
}

fn key(world: &World, index: u32) -> PlacementKey {
    PlacementKey { family: world.authority.read(|s| s.vdis[&world.vdi].family), index }
}

fn acting(world: &World, index: u32) -> Acting {
    let key = key(world, index);
    world.authority.read(|s| s.node_map().acting(key, s.families[&key.family].redundancy))
}

/// Blocks that the lower layer has: many runs, so that it takes longer to fetch than what is above it.
fn lower_blocks() -> std::iter::StepBy<std::ops::Range<u32>> {
    (0..20).step_by(2)
}

/// A node's copy has all of them.
async fn has(world: &World, node: NodeId, layer: LayerId, index: u32) -> bool {
    let key = key(world, index);
    let at = world.nodes.iter().position(|n| n.id == node).expect("a node");
    let block = world.call(at, move |ctx| async move {
        let store = ctx.node.replica.store.clone().expect("a store");
        let read = store.read(&[layer], key, 0..20).await.expect("a sane object").data;
        lower_blocks().all(|b| read[b as usize * BLOCK_SIZE] == 1)
    });
    block.await.expect("it runs")
}

/// Everybody is complete, and nothing is left of the lower layer.
async fn merged(world: &World, lower: LayerId) {
    let whole = |s: &ClusterState| s.nodes.values().all(|n| n.is_up() && n.synced == s.epoch);
    until(world, |s| whole(s) && !s.layers.contains_key(&lower)).await;
}

#[test]
fn a_holder_that_comes_while_layers_merge_has_what_was_merged() {
    let mut came = 0;
    for seed in 1..=60 {
        came += simulate(async {
            let world = World::new(seed).await;
            if world.authority.read(|s| s.redundancy(s.vdis[&world.vdi].family))
                != Some(Redundancy::Copies(2))
            {
                return 0;
            }
            write(&world, lower_blocks(), 1).await;
            let lower = snapshot(&world, "one");
            write(&world, 1..2, 2).await;
            let upper = snapshot(&world, "two");
            let before: Vec<Acting> = (0..OBJECTS).map(|i| acting(&world, i)).collect();
            // All but one have merged when it is back. It has to merge as well, and meanwhile others fill their new copies from it.
            let late = world.nodes[seed as usize % world.nodes.len()].clone();
            late.kill(false).await;
            until(&world, |s| !s.nodes[&late.id].is_up()).await;
            let delete = Command::VdiDelete {
                vdi: world.vdi,
                snapshot: Some(SnapshotRef::Tag("one".into())),
                with_snapshots: false,
                at_once: false,
            };
            world.authority.commit(delete);
            tokio::time::sleep(Duration::from_secs(3)).await;
            late.start();
            until(&world, |s| s.nodes.values().all(|n| n.synced == s.epoch)).await;
            let three = Command::AlterCopies { vdi: Some(world.vdi), redundancy: Redundancy::Copies(3) };
            world.authority.commit(three);
            merged(&world, lower).await;
            let mut came = 0;
            for (i, before) in (0..OBJECTS).zip(before) {
                for node in acting(&world, i).all() {
                    came += usize::from(!before.all().any(|n| n == node));
                    assert!(has(&world, node, upper, i).await, "seed {seed}: object {i} on {node}");
                }
            }
            world.nodes.iter().for_each(|n| n.fs.wipe());
            came
        });
    }
    assert!(came > 20, "{came}");
}
