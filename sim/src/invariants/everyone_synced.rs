//! Recovery comes to an end (liveness of P6): every node is up and has everything it is responsible for.

use crate::world::World;
use sheepdog_cluster::NodeState;
use std::rc::Rc;
use std::time::Duration;

pub async fn check(world: &Rc<World>) -> Vec<String> {
    for _ in 0..6_000 {
        let done = world.authority.read(|s| {
            s.nodes
                .values()
                .all(|n| matches!(n.state, NodeState::Up | NodeState::Draining) && n.synced >= s.epoch)
        });
        if done {
            return Vec::new();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut why = vec![world.explain("recovery does not come to an end")];
    for (i, node) in world.nodes.iter().enumerate() {
        let state = world.call(i, |ctx| async move { ctx.node.replica.sync.state() });
        let state = tokio::time::timeout(Duration::from_secs(1), state).await;
        why.push(format!("node {}: {state:?}", node.id.short()));
    }
    vec![why.join("; ")]
}
