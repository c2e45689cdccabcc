//! A detach holds whatever its answerer, the former owner and the holders have heard of by then.

mod common;

use bytes::Bytes;
use common::simulate;
use sheep::session::volume::{open_attached, open_image};
use sheepdog_cluster::{Access, AttachmentRef, Command, Reply, Session};
use sheepdog_proto::PlacementKey;
use sheepdog_sim::world::World;
use std::rc::Rc;
use std::time::Duration;

/// Attach and open a volume on a node, which becomes its owner.
async fn attach(world: &Rc<World>, node: usize) {
    let vdi = world.vdi;
    let opened = world.call(node, move |ctx| async move {
        let command = Command::Attach { vdi, holder: "first".into(), access: Access::Single };
        let Ok(Reply::Attached(id)) = ctx.node.control.propose(command).await else { panic!("not attached") };
        ctx.node.gateway.enforced(vdi).await.expect("in force");
        let volume = open_attached(&ctx.node.gateway, vdi, id).await.expect("opens");
        ctx.volumes.borrow_mut().insert(0, volume);
    });
    opened.await.expect("it runs");
}

/// Take it away, as an orchestrator does whose machine is elsewhere.
async fn detach(world: &Rc<World>, node: usize) {
    let vdi = world.vdi;
    let detached = world.call(node, move |ctx| async move {
        let command = Command::Detach { vdi, which: AttachmentRef::All };
        assert!(matches!(ctx.node.control.propose(command).await, Ok(Reply::Done)), "not detached");
        ctx.node.gateway.enforced(vdi).await.expect("in force");
    });
    detached.await.expect("it runs");
}

async fn write(world: &Rc<World>, node: usize, byte: u8) -> bool {
    let done = world.call(node, move |ctx| async move {
        let volume = ctx.volumes.borrow()[&0].clone();
        volume.write(0, Bytes::from(vec![byte; 4096])).await
    });
    matches!(tokio::time::timeout(Duration::from_secs(2), done).await, Ok(Ok(Ok(()))))
}

async fn read(world: &Rc<World>, node: usize) -> u8 {
    let vdi = world.vdi;
    let done = world.call(node, move |ctx| async move {
        let volume = open_image(&ctx.node.gateway, vdi, None).await.expect("opens");
        volume.read(0, 4096).await.expect("reads").concat()[0]
    });
    done.await.expect("it runs")
}

#[test]
fn a_holder_that_has_not_heard_that_the_owner_is_gone_takes_nothing_of_it_after_a_detach() {
    let mut early = 0;
    for seed in 1..=20 {
        early += simulate(async {
            let world = World::new(seed).await;
            let (owner, vdi) = (seed as usize % world.nodes.len(), world.vdi);
            let holders = world.authority.read(|s| {
                let family = s.vdis[&vdi].family;
                let key = PlacementKey { family, index: 0 };
                s.node_map().acting(key, s.families[&family].redundancy).targets
            });
            let place = |id| world.nodes.iter().position(|n| n.id == id).expect("a node");
            let late = holders.into_iter().map(place).find(|n| *n != owner).expect("two copies");
            let other = (0..world.nodes.len()).find(|n| *n != owner && *n != late).expect("three nodes");
            attach(&world, owner).await;
            assert!(write(&world, owner, 1).await, "seed {seed}");
            // The owner is cut off from the control plane and from nothing else, until it is declared down. In this very moment a holder is, too.
            world.authority.cut(world.nodes[owner].id, true);
            let mut commits = world.authority.commits();
            while world.authority.read(|s| matches!(s.vdis[&vdi].session, Session::Open { .. })) {
                commits.changed().await.expect("there are more");
            }
            world.authority.cut(world.nodes[late].id, true);
            let began = tokio::time::Instant::now();
            let (w, mended) = (world.clone(), Duration::from_secs(2));
            tokio::task::spawn_local(async move {
                tokio::time::sleep(mended).await;
                w.authority.cut(w.nodes[late].id, false);
            });
            detach(&world, other).await;
            let early = began.elapsed() < mended;
            // From now on nothing that was the first one's takes effect.
            assert!(!write(&world, owner, 2).await, "seed {seed}: a write was acknowledged after the detach");
            world.heal();
            assert_eq!(read(&world, other).await, 1, "seed {seed}: a write after the detach took effect");
            world.nodes.iter().for_each(|n| n.fs.wipe());
            usize::from(early)
        });
    }
    assert_eq!(early, 0, "nobody can know that it holds while a holder has not heard of it");
}
