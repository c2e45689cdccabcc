//! A process that is replaced so quickly that nobody notices.

use sheepdog_proto::Epoch;
use sheepdog_sim::world::World;

/// Kill this node's process, with `power` its host too, so that nothing refuses, and start another one. `None`: it was noticed.
pub async fn unnoticed(world: &World, node: usize, power: bool) -> Option<Epoch> {
    let node = world.nodes[node].clone();
    let before = world.authority.read(|s| (s.epoch, s.nodes[&node.id].incarnation));
    node.kill(power).await;
    node.start();
    let mut commits = world.authority.commits();
    while world.authority.read(|s| s.nodes[&node.id].incarnation == before.1) {
        commits.changed().await.expect("there are more");
    }
    world.authority.read(|s| (s.epoch == before.0).then_some(s.epoch))
}
