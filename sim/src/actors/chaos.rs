//! What goes wrong: processes die, disks are lost (one at a time, while the others have everything), hosts lose power, hosts freeze, disks stop to answer, networks split, slow down and reset, the control plane loses its leader.

use crate::world::World;
use rand::Rng;
use sheepdog_cluster::ClusterState;
use sheepdog_proto::NodeId;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// Break things for a while.
pub async fn run(world: &Rc<World>, seconds: u64) {
    let mut rng = world.rng(3);
    let until = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let pace = rng.random_range(300..6_000u64);
    // In every fourth world the power of all is cut often: what was acknowledged and is not on any disk is seen only then.
    let cuts = if world.seed % 4 == 1 { 20..60 } else { 45..48 };
    let mut emptied = None;
    while tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(rng.random_range(50..pace))).await;
        world.faults.set(world.faults.get() + 1);
        let n = rng.random_range(0..world.nodes.len());
        let other = (n + rng.random_range(1..world.nodes.len())) % world.nodes.len();
        let lasts = Duration::from_millis(match rng.random_range(0..10) {
            0..6 => rng.random_range(20..3_000),
            6..9 => rng.random_range(1_000..12_000),
            _ => rng.random_range(10_000..70_000),
        });
        let w = world.clone();
        let (node, id, peer) = (w.nodes[n].clone(), w.nodes[n].id, w.nodes[other].id);
        match rng.random_range(0..100) {
            x if cuts.contains(&x) => {
                for x in &world.nodes {
                    x.kill(true).await;
                }
                for x in &w.nodes {
                    let x = x.clone();
                    let pause = Duration::from_millis(rng.random_range(100..8_000));
                    later(pause, move || x.start(), async {}).await;
                }
            }
            0..6 if world.seed % 3 == 2 && everybody_is_whole(world, &emptied) => {
                // Its disk is replaced by an empty one. All the others have everything, and are there until it is known: otherwise two copies are lost at once.
                emptied = incarnation(world, id).map(|i| (id, i));
                world.nodes[n].kill(true).await;
                node.fs.wipe();
                let known = async {
                    let mut commits = world.authority.commits();
                    let before = incarnation(world, id);
                    let stands = |s: &ClusterState| {
                        s.nodes.get(&id).is_some_and(|n| n.is_up() && Some(n.incarnation) == before)
                    };
                    while world.authority.read(stands) {
                        let _ = commits.changed().await;
                    }
                };
                known.await;
                later(lasts, move || node.start(), async {}).await;
            }
            0..30 => later(lasts, move || node.start(), world.nodes[n].kill(false)).await,
            30..48 => later(lasts, move || node.start(), world.nodes[n].kill(true)).await,
            48..51 => {
                // Its disks answer nothing for a while, maybe so long that it ends.
                node.fs.stall(Some(Path::new("/")));
                let back = move || {
                    node.fs.stall(None);
                    node.start();
                };
                later(Duration::from_millis(rng.random_range(100..60_000)), back, async {}).await;
            }
            51..60 => {
                node.pause();
                later(lasts.min(Duration::from_secs(20)), move || node.resume(), async {}).await;
            }
            60..72 => {
                // One node alone, from all the others and from the control plane.
                w.authority.cut(id, true);
                for x in &w.nodes {
                    w.net.cut(id, x.id);
                    w.net.cut(x.id, id);
                }
                let back = move || {
                    w.authority.cut(id, false);
                    for x in &w.nodes {
                        w.net.mend(id, x.id);
                        w.net.mend(x.id, id);
                    }
                };
                later(lasts, back, async {}).await;
            }
            72..78 => {
                w.authority.cut(id, true);
                later(lasts, move || w.authority.cut(id, false), async {}).await;
            }
            78..84 => {
                // One direction only, and not for long: both can reach the leader.
                w.net.cut(id, peer);
                later(lasts.min(Duration::from_secs(10)), move || w.net.mend(id, peer), async {}).await;
            }
            84..89 => {
                w.net.slow(id, peer, rng.random_range(5..300));
                later(lasts, move || w.net.mend(id, peer), async {}).await;
            }
            89..96 => w.net.reset(id, peer),
            _ => w.authority.leaderless(rng.random_range(200..6_000)),
        }
    }
}

fn incarnation(world: &World, node: NodeId) -> Option<u64> {
    world.authority.read(|s| s.nodes.get(&node).map(|n| n.incarnation))
}

/// Every node has everything it should have, also the one whose disk was emptied last (by its process then).
fn everybody_is_whole(world: &World, emptied: &Option<(NodeId, u64)>) -> bool {
    let again = emptied.is_none_or(|(node, before)| incarnation(world, node) != Some(before));
    let whole =
        |s: &ClusterState| s.rings.len() == 1 && s.nodes.values().all(|n| n.is_up() && n.synced == s.epoch);
    let runs = world.nodes.iter().all(|n| n.is_running() && !n.is_paused());
    // The state may speak of processes that are gone, and one of which nobody has heard yet is declared down.
    let known = world.authority.knows_all() && world.authority.reaches_all();
    again && runs && known && world.net.is_whole() && world.authority.read(whole)
}

/// Do it now, undo it later.
async fn later(after: Duration, undo: impl FnOnce() + 'static, now: impl Future<Output = ()>) {
    now.await;
    tokio::task::spawn_local(async move {
        tokio::time::sleep(after).await;
        undo();
    });
}
