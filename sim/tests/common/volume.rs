//! The volume of a simulated world, as a client of one of its nodes has it.

use sheep::session::volume::open_image;
use sheepdog_sim::world::World;
use std::rc::Rc;

/// Open on this node, under number 0.
pub async fn open(world: &Rc<World>, node: usize) {
    let vdi = world.vdi;
    let opened = world.call(node, move |ctx| async move {
        let volume = open_image(&ctx.node.gateway, vdi, None).await.expect("opens");
        ctx.volumes.borrow_mut().insert(0, volume);
    });
    opened.await.expect("it runs");
}
