//! Whoever opens a volume, or uses it, waits for others, and not for what nobody does any more.

use bytes::Bytes;
use sheep::session::volume::open_image;
use sheepdog_sim::world::World;
use std::rc::Rc;
use std::time::Duration;

fn simulate<F: Future>(scenario: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), scenario)
}

/// Within half a minute?
async fn soon<T>(answer: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(30), answer).await.ok()
}

async fn open(world: &Rc<World>, node: usize) {
    let vdi = world.vdi;
    let opened = world.call(node, move |ctx| async move {
        let volume = open_image(&ctx.node.gateway, vdi, None).await.expect("opens");
        ctx.volumes.borrow_mut().insert(0, volume);
    });
    opened.await.expect("it runs");
}

async fn write(world: &Rc<World>, node: usize) -> bool {
    let done = world.call(node, move |ctx| async move {
        let volume = ctx.volumes.borrow()[&0].clone();
        volume.write(0, Bytes::from(vec![1; 4096])).await
    });
    matches!(soon(done).await, Some(Ok(Ok(()))))
}

#[test]
fn another_gateway_is_asked_once_however_long_it_takes() {
    simulate(async {
        let world = World::new(1).await;
        open(&world, 0).await;
        // Its client is gone, and something of it goes on for a minute.
        let dying = world.call(0, |ctx| async move { ctx.volumes.borrow()[&0].abandon() });
        dying.await.expect("it runs");
        let w = world.clone();
        let opening = tokio::task::spawn_local(async move { open(&w, 1).await });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!opening.is_finished(), "nothing of a dead connection may come afterwards");
        let to = world.nodes[0].id;
        let depth = world.call(1, move |ctx| async move {
            ctx.node.replica.links.rows().iter().find(|r| r.to == to).map_or(0, |r| r.depth)
        });
        assert_eq!(depth.await, Ok(1));
        let ended = world.call(0, |ctx| async move {
            let volume = ctx.volumes.borrow_mut().remove(&0).expect("open");
            volume.close().await;
        });
        ended.await.expect("it runs");
        assert!(soon(opening).await.is_some());
        assert!(write(&world, 1).await);
        world.nodes.iter().for_each(|n| n.fs.wipe());
    });
}

#[test]
fn a_session_that_was_held_too_long_goes_on_for_others() {
    for seed in 1..=5 {
        simulate(async {
            let world = World::new(seed).await;
            for node in [0, 1] {
                open(&world, node).await;
                assert!(write(&world, node).await, "seed {seed}");
            }
            // A snapshot that is not committed in time ends the session of its owner. Nobody uses the volume there.
            let vdi = world.vdi;
            let held = world.call(0, move |ctx| async move {
                let held = ctx.node.gateway.hold(vdi, Duration::from_millis(100)).await;
                held.expect("held").expect("there is a session");
            });
            held.await.expect("it runs");
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(write(&world, 1).await, "seed {seed}: nobody owns the volume any more");
            world.nodes.iter().for_each(|n| n.fs.wipe());
        });
    }
}

#[test]
fn a_takeover_goes_on_when_who_asked_for_it_is_gone() {
    for seed in 1..=40 {
        simulate(async {
            let world = World::new(seed).await;
            for node in [0, 1, 2] {
                open(&world, node).await;
                assert!(write(&world, node).await, "seed {seed}");
            }
            let owner = world.nodes[0].clone();
            owner.kill(false).await;
            let mut commits = world.authority.commits();
            while world.authority.read(|s| s.nodes[&owner.id].is_up()) {
                commits.changed().await.expect("there are more");
            }
            // Its connection breaks, and with it ends what it asked for.
            let patience = Duration::from_millis(seed * 2);
            let read = world.call(1, move |ctx| async move {
                let volume = ctx.volumes.borrow()[&0].clone();
                let _ = tokio::time::timeout(patience, volume.read(0, 4096)).await;
            });
            read.await.expect("it runs");
            assert!(write(&world, 2).await, "seed {seed}: nobody takes over");
            world.nodes.iter().for_each(|n| n.fs.wipe());
        });
    }
}
