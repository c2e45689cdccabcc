//! Recovery comes to an end (liveness of P6): every node is up and has everything it is responsible for.
//!
//! The state alone does not say so: what it has may be of processes that are gone, which nobody has missed yet (seed 10335). So those that run are asked.

use crate::world::World;
use sheepdog_cluster::NodeState;
use sheepdog_proto::ControlIndex;
use std::rc::Rc;
use std::time::Duration;

/// Recovery that takes longer has no end.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is wrong.
pub async fn check(world: &Rc<World>) -> Vec<String> {
    if tokio::time::timeout(PATIENCE, recovered(world)).await.is_ok() {
        return Vec::new();
    }
    let mut why = vec![world.explain("recovery does not come to an end")];
    for (i, node) in world.nodes.iter().enumerate() {
        let state = world.call(i, |ctx| async move { ctx.node.replica.sync.state() });
        let state = tokio::time::timeout(Duration::from_secs(1), state).await;
        why.push(format!("node {}: {state:?}", node.id.short()));
    }
    vec![why.join("; ")]
}

async fn recovered(world: &Rc<World>) {
    loop {
        let (index, epoch) = world.authority.read(|s| (s.index, s.epoch));
        let mut whole = true;
        for node in 0..world.nodes.len() {
            whole &= is_whole(world, node, index).await;
        }
        // Looked at after they have answered: they are in the state by then, so it speaks of them.
        let complete = world.authority.read(|s| {
            let up = |state| matches!(state, NodeState::Up | NodeState::Draining);
            s.epoch == epoch && s.nodes.values().all(|n| up(n.state) && n.synced >= epoch)
        });
        if whole && complete {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The process that runs there is the one that the state knows, is heard (it has a lease), and lacks nothing.
async fn is_whole(world: &Rc<World>, node: usize, index: ControlIndex) -> bool {
    let asked = world.call(node, move |ctx| async move {
        let r = &ctx.node.replica;
        let current = r.catch_up(index).await && r.control.lease_valid() && r.is_synced();
        current && r.sync.is_whole() && !r.store.as_ref().is_some_and(|s| s.has_half_filled())
    });
    asked.await == Ok(true)
}
