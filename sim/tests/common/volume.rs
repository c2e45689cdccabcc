//! The volume of a simulated world, as a client of one of its nodes has it.

use bytes::Bytes;
use sheep::session::volume::open_image;
use sheepdog_proto::VdiId;
use sheepdog_sim::world::World;
use std::rc::Rc;
use std::time::Duration;

/// Nothing takes longer that is not stuck.
const PATIENCE: Duration = Duration::from_secs(30);

/// Open on this node, under number 0.
pub async fn open(world: &Rc<World>, vdi: VdiId, node: usize) {
    let opened = world.call(node, move |ctx| async move {
        let volume = open_image(&ctx.node.gateway, vdi, None).await.expect("opens");
        ctx.volumes.borrow_mut().insert(0, volume);
    });
    opened.await.expect("it runs");
}

/// Fill the first block with this, as the client that opened it there. Was it acknowledged in time?
pub async fn write(world: &Rc<World>, node: usize, byte: u8) -> bool {
    let done = world.call(node, move |ctx| async move {
        let volume = ctx.volumes.borrow()[&0].clone();
        volume.write(0, Bytes::from(vec![byte; 4096])).await
    });
    matches!(tokio::time::timeout(PATIENCE, done).await, Ok(Ok(Ok(()))))
}
