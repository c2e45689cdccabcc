//! Limits of a volume's speed hold, change at once, and hold nobody up but who asks for more.

mod common;
#[path = "common/volume.rs"]
mod volume;

use common::simulate;
use sheepdog_cluster::{Command, Limits, Reply};
use sheepdog_sim::world::World;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;
use volume::{open, write};

fn limit(world: &World, limits: Limits) {
    assert_eq!(world.authority.commit(Command::SetLimits { vdi: world.vdi, limits }), Reply::Done);
}

/// Seconds that so many writes take, one after the other.
async fn writes(world: &Rc<World>, n: u32) -> f64 {
    let began = Instant::now();
    for _ in 0..n {
        assert!(write(world, 0, 1).await);
    }
    began.elapsed().as_secs_f64()
}

#[test]
fn requests_go_at_their_rate_and_a_change_counts_at_once() {
    simulate(async {
        let world = World::new(2).await;
        open(&world, world.vdi, 0).await;
        assert!(writes(&world, 50).await < 2.0);
        limit(&world, Limits { iops: 10, ..Limits::default() });
        tokio::time::sleep(Duration::from_secs(3)).await;
        let slow = writes(&world, 50).await;
        assert!((4.8..6.0).contains(&slow), "{slow}");
        // One that would wait for a quarter of an hour.
        limit(&world, Limits { bandwidth: 64 << 10, ..Limits::default() });
        tokio::time::sleep(Duration::from_secs(3)).await;
        let large = |world: Rc<World>| async move {
            let done = world.call(0, |ctx| async move {
                let volume = ctx.volumes.borrow()[&0].clone();
                for _ in 0..2 {
                    volume.read(0, 1 << 20).await?;
                }
                Ok::<_, sheep::volume::VolumeError>(())
            });
            done.await.expect("it runs").expect("reads");
        };
        let reading = tokio::task::spawn_local(large(world.clone()));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(!reading.is_finished());
        limit(&world, Limits::default());
        tokio::time::timeout(Duration::from_secs(3), reading).await.expect("at once").expect("ends");
        world.nodes.iter().for_each(|n| n.fs.wipe());
    });
}

#[test]
fn who_waits_holds_up_neither_a_snapshot_nor_the_next_open() {
    simulate(async {
        let world = World::new(2).await;
        open(&world, world.vdi, 0).await;
        limit(&world, Limits { iops: 1, ..Limits::default() });
        tokio::time::sleep(Duration::from_secs(3)).await;
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                let w = world.clone();
                tokio::task::spawn_local(async move { write(&w, 0, 2).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let began = Instant::now();
        let vdi = world.vdi;
        let held = world.call(0, move |ctx| async move {
            let held = ctx.node.gateway.hold(vdi, Duration::from_secs(20)).await.map(drop);
            ctx.node.gateway.let_go(vdi, Some(ctx.node.control.applied().index)).await;
            held.map_err(|e| e.to_string())
        });
        assert_eq!(held.await, Ok(Ok(())));
        // The client hangs up: what of it waits ends, and another one opens.
        let gone = world.call(0, |ctx| async move {
            let volume = ctx.volumes.borrow_mut().remove(&0).expect("open");
            volume.close().await;
        });
        gone.await.expect("it runs");
        open(&world, world.vdi, 1).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        for w in waiting {
            let _ = tokio::time::timeout(Duration::from_secs(1), w).await.expect("has ended");
        }
        world.nodes.iter().for_each(|n| n.fs.wipe());
    });
}
