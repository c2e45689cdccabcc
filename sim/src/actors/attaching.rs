//! Attaching and detaching, as the admin interface does it: a command, and then the proof that it is in force.

use crate::world::World;
use rand::Rng;
use rand::rngs::SmallRng;
use sheepdog_cluster::{Access, AttachmentRef, Command, Reply};
use sheepdog_proto::AttachmentId;
use std::rc::Rc;
use std::time::Duration;

/// How long an answer is waited for before somebody else is asked.
const PATIENCE: Duration = Duration::from_secs(30);

/// Attach for a client, through this node. `None`: not now.
pub async fn attach(world: &Rc<World>, node: usize, client: u64) -> Option<AttachmentId> {
    let vdi = world.vdi;
    let command = Command::Attach { vdi, holder: format!("client {client}"), access: Access::Shared };
    let attached = world.call(node, move |ctx| async move {
        match ctx.node.control.propose(command).await {
            Ok(Reply::Attached(id)) => ctx.node.gateway.enforced(vdi).await.is_ok().then_some(id),
            _ => None,
        }
    });
    tokio::time::timeout(PATIENCE, attached).await.ok()?.ok()?
}

/// Detach, through any node, asked again until it is answered. By number: an earlier request may be carried out late, when the client has attached again.
pub async fn detach(world: &Rc<World>, id: AttachmentId, rng: &mut SmallRng) {
    let vdi = world.vdi;
    loop {
        let node = rng.random_range(0..world.nodes.len());
        let detached = world.call(node, move |ctx| async move {
            let command = Command::Detach { vdi, which: AttachmentRef::Id(id) };
            let committed = matches!(ctx.node.control.propose(command).await, Ok(Reply::Done));
            committed && ctx.node.gateway.enforced(vdi).await.is_ok()
        });
        if let Ok(Ok(true)) = tokio::time::timeout(PATIENCE, detached).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
