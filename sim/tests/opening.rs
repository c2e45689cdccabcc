//! Whoever opens a volume, or uses it, waits for others, and not for what nobody does any more.

mod common;
#[path = "common/volume.rs"]
mod volume;

use bytes::Bytes;
use common::simulate;
use sheep::session::volume::open_image;
use sheepdog_cluster::{Command, Redundancy, Reply, Session};
use sheepdog_proto::PlacementKey;
use sheepdog_sim::world::World;
use std::time::Duration;
use volume::{open, write};

/// Within half a minute?
async fn soon<T>(answer: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(30), answer).await.ok()
}

#[test]
fn another_gateway_is_asked_once_however_long_it_takes() {
    simulate(async {
        let world = World::new(1).await;
        open(&world, world.vdi, 0).await;
        // Its client is gone, and something of it goes on for a minute.
        let dying = world.call(0, |ctx| async move { ctx.volumes.borrow()[&0].abandon() });
        dying.await.expect("it runs");
        let w = world.clone();
        let opening = tokio::task::spawn_local(async move { open(&w, w.vdi, 1).await });
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
        assert!(write(&world, 1, 1).await);
        world.nodes.iter().for_each(|n| n.fs.wipe());
    });
}

#[test]
fn a_session_that_was_held_too_long_goes_on_for_others() {
    for seed in 1..=5 {
        simulate(async {
            let world = World::new(seed).await;
            for node in [0, 1] {
                open(&world, world.vdi, node).await;
                assert!(write(&world, node, 1).await, "seed {seed}");
            }
            // A snapshot that is not committed in time ends the session of its owner. Nobody uses the volume there.
            let vdi = world.vdi;
            let held = world.call(0, move |ctx| async move {
                let held = ctx.node.gateway.hold(vdi, Duration::from_millis(100)).await;
                held.expect("held").expect("there is a session");
            });
            held.await.expect("it runs");
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(write(&world, 1, 1).await, "seed {seed}: nobody owns the volume any more");
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
                open(&world, world.vdi, node).await;
                assert!(write(&world, node, 1).await, "seed {seed}");
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
            assert!(write(&world, 2, 1).await, "seed {seed}: nobody takes over");
            world.nodes.iter().for_each(|n| n.fs.wipe());
        });
    }
}

#[test]
fn a_session_that_is_being_closed_shows_nobody_what_was_before() {
    let mut told = 0;
    for seed in 1..=20 {
        told += simulate(async {
            let world = World::new(seed).await;
            let create = Command::VdiCreate {
                name: "wide".into(),
                uuid: 2,
                size: 16 * u64::from(world.object),
                redundancy: Some(Redundancy::Copies(1)),
                object_size: Some(world.object),
            };
            let Reply::Vdi(vdi) = world.authority.commit(create) else { panic!("not made") };
            // An object that neither the owner (the first node) nor the second one holds.
            let elsewhere = |index: &u32| {
                let holder = world.authority.read(|s| {
                    let key = PlacementKey { family: s.vdis[&vdi].family, index: *index };
                    s.node_map().acting(key, Redundancy::Copies(1)).targets[0]
                });
                world.nodes[2..].iter().any(|n| n.id == holder)
            };
            let Some(index) = (0..16).find(elsewhere) else { return 0 };
            let at = u64::from(index) * u64::from(world.object);
            let (w, opens) = (world.clone(), world.clone());
            let open = async move |node| {
                let opened = opens.call(node, move |ctx| async move {
                    let volume = open_image(&ctx.node.gateway, vdi, None).await.expect("opens");
                    ctx.volumes.borrow_mut().insert(0, volume);
                });
                opened.await.expect("it runs");
            };
            let write = async move |node, byte| {
                let done = w.call(node, move |ctx| async move {
                    let volume = ctx.volumes.borrow()[&0].clone();
                    volume.write(at, Bytes::from(vec![byte; 4096])).await.expect("writes");
                });
                done.await.expect("it runs");
            };
            let read = |node| {
                world.call(node, move |ctx| async move {
                    let volume = ctx.volumes.borrow()[&0].clone();
                    volume.read(at, 4096).await.expect("reads").concat()[0]
                })
            };
            for node in [0, 1] {
                open(node).await;
                write(node, 1).await;
            }
            assert_eq!(read(1).await, Ok(1), "seed {seed}");

            // The owner closes its session. When that is committed neither it nor who uses it has heard of it yet.
            let closes = world.clone();
            let closing = tokio::task::spawn_local(async move {
                let close = closes.call(0, move |ctx| async move {
                    let gateway = &ctx.node.gateway;
                    gateway.close(&gateway.entry(vdi)).await;
                });
                let _ = close.await;
            });
            let mut commits = world.authority.commits();
            while world.authority.read(|s| s.vdis[&vdi].session != Session::Closed) {
                commits.changed().await.expect("there are more");
            }
            for node in &world.nodes[..2] {
                world.authority.cut(node.id, true);
            }
            let snapshot = Command::Snapshot { vdis: vec![(vdi, None)], tag: "t".into() };
            assert!(matches!(world.authority.commit(snapshot), Reply::Snapshots(_)));
            open(2).await;
            write(2, 2).await;
            let seen = tokio::time::timeout(Duration::from_secs(1), read(1)).await;
            assert!(seen.is_err() || seen == Ok(Ok(2)), "seed {seed}: {seen:?}");

            for node in &world.nodes[..2] {
                world.authority.cut(node.id, false);
            }
            assert_eq!(soon(read(1)).await, Some(Ok(2)), "seed {seed}");
            assert!(soon(closing).await.is_some());
            world.nodes.iter().for_each(|n| n.fs.wipe());
            1
        });
    }
    assert!(told > 10, "{told}");
}
