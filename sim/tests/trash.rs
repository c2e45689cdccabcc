//! A volume that was deleted by mistake is brought back with every byte that was acknowledged, whatever became of the sheep meanwhile. Its time over, its space is free.

mod common;

use bytes::Bytes;
use common::simulate;
use sheep::session::volume::open_image;
use sheepdog_cluster::{ClusterState, Command, Reply, Session};
use sheepdog_proto::{BLOCK_SIZE, LayerId, ObjectId};
use sheepdog_sim::world::World;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Longer than anything here takes.
const KEEP: u64 = 600_000;
const OBJECTS: u32 = 3;
const BLOCKS: u64 = 24;

type Acknowledged = Rc<RefCell<BTreeMap<u64, u8>>>;

async fn until(world: &World, so: impl Fn(&ClusterState) -> bool) {
    let mut commits = world.authority.commits();
    while !world.authority.read(&so) {
        commits.changed().await.expect("there are more");
    }
}

async fn open(world: &Rc<World>, node: usize) {
    let vdi = world.vdi;
    let opened = world.call(node, move |ctx| async move {
        let volume = open_image(&ctx.node.gateway, vdi, None).await.expect("opens");
        ctx.volumes.borrow_mut().insert(0, volume);
    });
    opened.await.expect("it runs");
}

/// Nobody has it open any more.
async fn close(world: &Rc<World>, node: usize) {
    let vdi = world.vdi;
    let closed = world.call(node, move |ctx| async move {
        let volume = ctx.volumes.borrow_mut().remove(&0).expect("it is open");
        volume.close().await;
        ctx.node.gateway.release(vdi).await.expect("nobody uses it");
    });
    closed.await.expect("it runs");
}

/// Begin to write blocks all over the volume, each once; what is acknowledged is noted.
fn write(world: &Rc<World>, node: usize) -> (Acknowledged, Vec<tokio::task::JoinHandle<()>>) {
    let done = Acknowledged::default();
    let object = u64::from(world.object);
    let places = (0..u64::from(OBJECTS)).flat_map(|o| (0..BLOCKS).map(move |b| (o, b)));
    let all = places.map(|(o, b)| {
        let (at, byte) = (o * object + b * 2 * BLOCK_SIZE as u64, (1 + (o * BLOCKS + b) % 250) as u8);
        let (world, done) = (world.clone(), done.clone());
        tokio::task::spawn_local(async move {
            let written = world.call(node, move |ctx| async move {
                let volume = ctx.volumes.borrow()[&0].clone();
                volume.write(at, Bytes::from(vec![byte; BLOCK_SIZE])).await
            });
            if let Ok(Ok(())) = written.await {
                done.borrow_mut().insert(at, byte);
            }
        })
    });
    let all = all.collect();
    (done, all)
}

async fn read(world: &Rc<World>, node: usize, at: u64) -> Vec<u8> {
    let data = world.call(node, move |ctx| async move {
        let volume = ctx.volumes.borrow()[&0].clone();
        volume.read(at, BLOCK_SIZE as u32).await
    });
    data.await.expect("it runs").expect("reads").concat()
}

fn delete(world: &World) {
    let command = Command::VdiDelete { vdi: world.vdi, snapshot: None, with_snapshots: true, at_once: false };
    assert_eq!(world.authority.commit(command), Reply::Done);
}

/// Nodes that have something of this layer.
async fn holders(world: &Rc<World>, layer: LayerId) -> usize {
    let mut found = 0;
    for node in 0..world.nodes.len() {
        let here = world.call(node, move |ctx| async move {
            let store = ctx.node.replica.store.clone().expect("a store");
            for i in 0..OBJECTS {
                if store.info(ObjectId::data(layer, i)).await.expect("a sane object").is_some() {
                    return true;
                }
            }
            false
        });
        found += usize::from(here.await.expect("it runs"));
    }
    found
}

async fn power_cut(world: &World) {
    for n in &world.nodes {
        n.kill(true).await;
    }
}

async fn one(seed: u64) -> usize {
    let world = World::new(seed).await;
    world.authority.commit(Command::SetTrash { keep: KEEP });
    let layer = world.authority.read(|s| s.vdis[&world.vdi].top).expect("a layer");
    let name = world.authority.read(|s| s.vdis[&world.vdi].name.clone());
    let client = seed as usize % world.nodes.len();
    open(&world, client).await;
    let (acknowledged, tasks) = write(&world, client);
    match seed % 3 {
        // In order: everything is written and closed, then deleted, then the power fails.
        0 => {
            for t in tasks {
                t.await.expect("ends");
            }
            close(&world, client).await;
            delete(&world);
            power_cut(&world).await;
        }
        // The power fails in the middle of it; what is left of the session is unclean when the volume is deleted.
        1 => {
            tokio::time::sleep(Duration::from_millis(5 + seed * 7 % 60)).await;
            power_cut(&world).await;
            until(&world, |s| matches!(s.vdis[&world.vdi].session, Session::Unclean { .. })).await;
            delete(&world);
        }
        // The owner dies in the middle of it, the volume is deleted, then the power fails everywhere.
        _ => {
            tokio::time::sleep(Duration::from_millis(5 + seed * 7 % 60)).await;
            world.nodes[client].kill(true).await;
            until(&world, |s| matches!(s.vdis[&world.vdi].session, Session::Unclean { .. })).await;
            delete(&world);
            power_cut(&world).await;
        }
    }
    // Its name is free, and somebody uses it.
    let size = world.authority.read(|s| s.vdis[&world.vdi].size);
    let other = Command::VdiCreate { name, uuid: 77, size, redundancy: None, object_size: None };
    assert!(matches!(world.authority.commit(other), Reply::Vdi(_)), "seed {seed}");
    world.nodes.iter().for_each(|n| n.start());
    until(&world, |s| s.nodes.values().all(|n| n.is_up() && n.synced == s.epoch)).await;
    assert!(holders(&world, layer).await > 0 || acknowledged.borrow().is_empty(), "seed {seed}");

    let restore =
        |name: &str| Command::TrashRestore { vdi: world.vdi, snapshot: None, name: Some(name.into()) };
    assert_eq!(world.authority.commit(restore("back")), Reply::Vdi(world.vdi), "seed {seed}");
    let reader = (client + 1) % world.nodes.len();
    let whole = async {
        open(&world, reader).await;
        let expected = acknowledged.borrow().clone();
        for (at, byte) in &expected {
            let found = read(&world, reader, *at).await;
            assert!(
                found.iter().all(|b| b == byte),
                "seed {seed}: block at {at} is {}, not {byte}",
                found[0]
            );
        }
        expected.len()
    };
    let compared = tokio::time::timeout(Duration::from_secs(100), whole).await;
    let compared = compared.unwrap_or_else(|_| panic!("seed {seed}: what came back cannot be read"));
    close(&world, reader).await;

    // Its time over, nothing of it is left on any disk.
    delete(&world);
    until(&world, |s| !s.vdis.contains_key(&world.vdi)).await;
    for _ in 0..600 {
        if holders(&world, layer).await == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(holders(&world, layer).await, 0, "seed {seed}: its space is not free");
    world.nodes.iter().for_each(|n| n.fs.wipe());
    compared
}

#[test]
fn what_comes_back_from_the_trash_has_every_acknowledged_byte() {
    let (mut some, mut all) = (0, 0);
    for seed in 1..=30 {
        let compared = simulate(one(seed));
        some += usize::from(compared > 0 && compared < OBJECTS as usize * BLOCKS as usize);
        all += compared;
    }
    assert!(all > 500, "only {all} blocks were ever acknowledged");
    assert!(some > 2, "the power failed in the middle of writing only {some} times");
}
