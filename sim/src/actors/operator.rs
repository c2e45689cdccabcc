//! An operator: takes snapshots while clients write, reads them again later, and deletes some; with one seed in five also changes how many copies the volume has, with another one
//! who is to hold how much.

use super::client::{decode, registers};
use crate::oracle::history::REGISTER;
use crate::world::{Ctx, Lost, World};
use rand::Rng;
use sheep::session::HoldError;
use sheep::session::volume::open_image;
use sheep::volume::VolumeError;
use sheepdog_cluster::{ClusterState, Command, Redundancy, Reply, Session, SnapshotRef};
use sheepdog_proto::LayerId;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// A snapshot and what was read from it first.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Frozen layer.
    pub layer: LayerId,
    /// Number within the VDI.
    pub id: u32,
    /// By register.
    pub contents: BTreeMap<u64, u64>,
}

/// Start.
pub fn start(world: &Rc<World>) -> JoinHandle<()> {
    tokio::task::spawn_local(operate(world.clone()))
}

async fn operate(world: Rc<World>) {
    let mut rng = world.rng(2);
    if rng.random_bool(0.3) {
        return;
    }
    while !world.stopping.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(rng.random_range(2_000..12_000))).await;
        let n = rng.random_range(0..world.nodes.len());
        let existing = world.taken.borrow().len();
        if existing > 2 && rng.random_bool(0.4) {
            delete(&world, n, rng.random_range(0..existing)).await;
        } else {
            take(&world, n).await;
        }
    }
}

/// Start moving data around, if this seed does.
pub fn start_moving(world: &Rc<World>) -> Option<JoinHandle<()>> {
    let copies = match world.seed % 5 {
        2 => true,
        4 => false,
        _ => return None,
    };
    (world.nodes.len() > 2).then(|| tokio::task::spawn_local(move_data(world.clone(), copies)))
}

/// Every few seconds another number of copies, or another weight of some node, or a node that is emptied, or is not any more.
async fn move_data(world: Rc<World>, copies: bool) {
    let mut rng = world.rng(4);
    while !world.stopping.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(rng.random_range(3_000..20_000))).await;
        let (n, which) = (rng.random_range(0..world.nodes.len()), rng.random_range(0..world.nodes.len()));
        let node = world.nodes[which].id;
        let command = match copies {
            true => {
                let redundancy = match crate::world::erasure_coded(world.seed) && rng.random_bool(0.5) {
                    true if world.nodes.len() > 5 => {
                        Redundancy::Erasure { data: rng.random_range(1..=4), parity: 2 }
                    }
                    true => Redundancy::Erasure { data: rng.random_range(1..=2), parity: 1 },
                    false => Redundancy::Copies(rng.random_range(2..=3)),
                };
                Command::AlterCopies { vdi: Some(world.vdi), redundancy }
            }
            false if rng.random_bool(0.3) => Command::NodeDrain { node, on: rng.random_bool(0.5) },
            false => Command::NodeWeight { node, weight: Some(rng.random_range(200..4_000)), vnodes: None },
        };
        let done = world.call(n, move |ctx| async move { ctx.node.control.propose(command).await.is_ok() });
        // Refused while others are being moved.
        let _ = tokio::time::timeout(Duration::from_secs(60), done).await;
    }
}

/// Nobody is to be emptied any more.
pub fn keep_all(world: &World) {
    for node in &world.nodes {
        world.authority.commit(Command::NodeDrain { node: node.id, on: false });
    }
}

/// Hold writes at the owner, commit at any node, let go at the owner: as the admin interface does. Where the snapshot is; `None`: it was not made, as far as is known.
async fn held(world: &Rc<World>, owner: usize, proposer: usize, tag: String) -> Option<(u32, LayerId)> {
    let vdi = world.vdi;
    let hold = async move |ctx: Rc<Ctx>| ctx.node.gateway.hold(vdi, Duration::from_secs(20)).await;
    let generation = match world.call(owner, hold).await {
        Ok(Ok(generation)) => generation,
        Ok(Err(HoldError::Elsewhere(_) | HoldError::Volume(_))) | Err(_) => return None,
    };
    let made = world.call(proposer, async move |ctx: Rc<Ctx>| {
        let control = &ctx.node.control;
        let reply = control.propose(Command::Snapshot { vdis: vec![(vdi, generation)], tag }).await.ok()?;
        let Reply::Snapshots(made) = reply else { return Some((control.applied().index, None)) };
        let id = made.first()?.1;
        let layer =
            control.read(|s| s.vdis.get(&vdi)?.snapshots.iter().find(|x| x.id == id).map(|x| x.layer));
        Some((control.applied().index, layer.map(|layer| (id, layer))))
    });
    let made = made.await.ok().flatten();
    let known = made.as_ref().map(|(index, _)| *index);
    // An owner that is gone lets go by that.
    let _ = world.call(owner, async move |ctx: Rc<Ctx>| ctx.node.gateway.let_go(vdi, known).await).await;
    made?.1
}

async fn take(world: &Rc<World>, n: usize) {
    let owner = world.authority.read(|s| match &s.vdis.get(&world.vdi)?.session {
        Session::Open { owner, .. } => Some(*owner),
        _ => None,
    });
    let owner = owner.and_then(|o| world.nodes.iter().position(|x| x.id == o)).unwrap_or(n);
    let tag = format!("t{}", world.history.fresh());
    let began = world.history.now();
    let made = held(world, owner, n, tag);
    let Ok(Some((id, layer))) = tokio::time::timeout(Duration::from_secs(60), made).await else { return };
    let ended = world.history.now();
    world.snapshots.set(world.snapshots.get() + 1);
    if let Some(contents) = read(world, layer, 20).await {
        for (register, value) in &contents {
            world.history.saw(*register, *value, began, ended);
        }
        world.taken.borrow_mut().push(Taken { layer, id, contents });
    }
}

async fn delete(world: &Rc<World>, n: usize, which: usize) {
    let t = world.taken.borrow_mut().remove(which);
    let vdi = world.vdi;
    let done = world.call(n, move |ctx| async move {
        ctx.node
            .control
            .propose(Command::VdiDelete {
                vdi,
                snapshot: Some(SnapshotRef::Id(t.id)),
                with_snapshots: false,
                at_once: false,
            })
            .await
            .is_ok()
    });
    // What became of it does not matter: nobody looks at this snapshot any more.
    let _ = tokio::time::timeout(Duration::from_secs(60), done).await;
}

/// Everything that a snapshot holds, through any node that answers.
pub async fn read(world: &Rc<World>, layer: LayerId, attempts: usize) -> Option<BTreeMap<u64, u64>> {
    let mut rng = world.rng(layer.0 as u64);
    for _ in 0..attempts {
        let n = rng.random_range(0..world.nodes.len());
        let vdi = world.vdi;
        let places: Vec<(u64, u64)> = registers().into_iter().map(|r| (r, world.place(r))).collect();
        let data = world.call(n, move |ctx| async move {
            // A snapshot is opened by its name, so by nobody who has not heard of it.
            let known = |s: &ClusterState| {
                s.vdis.get(&vdi).is_none_or(|v| v.snapshots.iter().any(|x| x.layer == layer))
            };
            let mut heard = ctx.node.control.watch();
            while !ctx.node.control.read(known) && heard.changed().await.is_ok() {}
            let volume = open_image(&ctx.node.gateway, vdi, Some(layer)).await?;
            let mut all = BTreeMap::new();
            for (r, at) in places {
                let parts = volume.read(at, REGISTER as u32).await?;
                all.insert(r, parts.concat());
            }
            volume.close().await;
            Ok::<_, VolumeError>(all)
        });
        match tokio::time::timeout(Duration::from_secs(60), data).await {
            Ok(Ok(Ok(all))) => {
                let mut contents = BTreeMap::new();
                for (r, bytes) in all {
                    match decode(&bytes) {
                        Ok(v) => {
                            contents.insert(r, v[0]);
                        }
                        Err(torn) => {
                            world.violation("whole_blocks", format!("snapshot, register {r}: {torn}"))
                        }
                    }
                }
                return Some(contents);
            }
            Ok(Ok(Err(VolumeError::ShuttingDown))) | Ok(Err(Lost)) | Err(_) => {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Ok(Ok(Err(e))) => {
                world.violation("no_client_errors", format!("reading a snapshot: {e}"));
                return None;
            }
        }
    }
    None
}
