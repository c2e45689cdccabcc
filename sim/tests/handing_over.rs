//! When data has moved, a node that holds something no more does not answer for it, whether it or who asks has heard of that or not.

mod common;
#[path = "common/small.rs"]
mod small;

use bytes::Bytes;
use common::simulate;
use sheep::session::volume::open_image;
use sheep::store::{WriteKind, WriteOp, WriteOutcome};
use sheepdog_cluster::{ClusterState, Command, Session};
use sheepdog_proto::{Generation, NodeId, ObjectId, PlacementKey, VdiId, Version};
use sheepdog_sim::world::World;
use std::rc::Rc;
use std::time::Duration;

/// A volume, and who holds its only object.
struct Case {
    world: Rc<World>,
    vdi: VdiId,
}

impl Case {
    /// Open on every node; the first of them is the owner, and has written.
    async fn new(seed: u64, copies: u8, owner: usize) -> Self {
        let case = Self::opened(seed, copies, owner).await;
        case.write(owner % case.world.nodes.len(), 1).await;
        case
    }

    /// Open on every node, and nothing written.
    async fn opened(seed: u64, copies: u8, owner: usize) -> Self {
        let world = World::new(seed).await;
        let vdi = small::create(&world, copies, 4096, None);
        let owner = owner % world.nodes.len();
        for i in 0..world.nodes.len() {
            let opened = world.call((owner + i) % world.nodes.len(), move |ctx| async move {
                let volume = open_image(&ctx.node.gateway, vdi, None).await.expect("opens");
                ctx.volumes.borrow_mut().insert(0, volume);
            });
            opened.await.expect("it runs");
        }
        Self { world, vdi }
    }

    fn targets(&self) -> Vec<usize> {
        small::targets(&self.world, self.vdi, 0)
    }

    /// Who orders the writes now.
    fn owner(&self) -> usize {
        let session = self.world.authority.read(|s| s.vdis[&self.vdi].session.clone());
        let Session::Open { owner, .. } = session else { panic!("{session:?}") };
        self.world.nodes.iter().position(|n| n.id == owner).expect("a node")
    }

    /// Another weight for the first holder, so that it is no holder any more.
    fn move_away(&self) -> usize {
        let first = self.targets()[0];
        for weight in [500, 200, 50, 10, 1] {
            let node = self.world.nodes[first].id;
            self.world.authority.commit(Command::NodeWeight { node, weight: Some(weight), vnodes: None });
            if !self.targets().contains(&first) {
                break;
            }
        }
        first
    }

    async fn write(&self, node: usize, byte: u8) {
        let done = self.world.call(node, move |ctx| async move {
            let volume = ctx.volumes.borrow()[&0].clone();
            volume.write(0, Bytes::from(vec![byte; 4096])).await
        });
        done.await.expect("it runs").expect("writes");
    }

    async fn read(&self, node: usize) -> u8 {
        let done = self.world.call(node, move |ctx| async move {
            let volume = ctx.volumes.borrow()[&0].clone();
            volume.read(0, 4096).await
        });
        done.await.expect("it runs").expect("reads").concat()[0]
    }

    async fn has(&self, node: usize) -> Option<Version> {
        let layer = self.world.authority.read(|s| s.vdis[&self.vdi].top).expect("a layer");
        let info = self.world.call(node, move |ctx| async move {
            let store = ctx.node.replica.store.clone().expect("a store");
            store.info(ObjectId::data(layer, 0)).await
        });
        info.await.expect("it runs").expect("a sane object").map(|i| i.version)
    }

    /// Until something is so in the control log.
    async fn until(&self, so: impl Fn(&ClusterState) -> bool) {
        let mut commits = self.world.authority.commits();
        while !self.world.authority.read(&so) {
            commits.changed().await.expect("there are more");
        }
    }

    /// A step of a session that is over, which came to nobody else and was never answered.
    async fn leave(&self, node: usize) {
        let vdi = self.vdi;
        let (layer, family, object_size, epoch) = self.world.authority.read(|s| {
            let v = &s.vdis[&vdi];
            (v.top.expect("a layer"), v.family, s.families[&v.family].object_size, s.epoch)
        });
        let op = WriteOp {
            oid: ObjectId::data(layer, 0),
            key: PlacementKey { family, index: 0 },
            vdi,
            object_size,
            version: Version::new(Generation(0), 1),
            prev: Version::NONE,
            epoch,
            degraded: None,
            watermark: 0,
            blocks: 0..1,
            kind: WriteKind::Data(Bytes::from(vec![9; 4096])),
        };
        let done = self.world.call(node, move |ctx| async move {
            ctx.node.replica.store.clone().expect("a store").write(op).await
        });
        assert_eq!(done.await.expect("it runs").expect("writes"), WriteOutcome::Done);
    }

    async fn kill(&self, node: usize) {
        self.world.nodes[node].kill(false).await;
        let id = self.world.nodes[node].id;
        self.until(|s| !s.nodes[&id].is_up()).await;
    }

    async fn settled(&self) {
        self.until(|s| s.rings.len() == 1).await;
    }
}

/// Waits for no one who cannot say.
async fn soon<T>(answer: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(1), answer).await.ok()
}

#[test]
fn a_former_holder_that_has_not_heard_of_it_does_not_answer() {
    let mut told = 0;
    for seed in 1..=30 {
        told += simulate(async {
            let c = Case::new(seed, 2, seed as usize).await;
            let former = c.move_away();
            c.settled().await;
            // In this very moment it is cut off from the control plane. Its lease is good for some seconds.
            c.world.authority.cut(c.world.nodes[former].id, true);
            c.write(c.owner(), 2).await;
            let seen = soon(c.read(former)).await;
            assert!(seen.is_none_or(|byte| byte == 2), "seed {seed}: what was there before");
            c.world.nodes.iter().for_each(|n| n.fs.wipe());
            usize::from(seen.is_some())
        });
    }
    assert!(told > 10, "{told}");
}

#[test]
fn nobody_takes_what_a_former_holder_has_no_more_for_never_written() {
    let mut told = 0;
    for seed in 1..=30 {
        told += simulate(async {
            let c = Case::new(seed, 1, seed as usize).await;
            let former = c.move_away();
            let owner = seed as usize % c.world.nodes.len();
            if owner == former || c.targets().contains(&owner) {
                return 0;
            }
            // The owner is complete, and does not hear that the new holder is, too.
            let (id, new) = (c.world.nodes[owner].id, c.world.nodes[c.targets()[0]].id);
            let mut commits = c.world.authority.commits();
            loop {
                let complete = |n: &NodeId| c.world.authority.read(|s| s.nodes[n].synced == s.epoch);
                if complete(&new) {
                    return 0;
                }
                if complete(&id) {
                    break;
                }
                commits.changed().await.expect("there are more");
            }
            c.world.authority.cut(id, true);
            let gone = async {
                while c.has(former).await.is_some() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            if tokio::time::timeout(Duration::from_secs(3), gone).await.is_err() {
                return 0;
            }
            let seen = soon(c.read(owner)).await;
            assert!(seen.is_none_or(|byte| byte == 1), "seed {seed}: zeros");
            c.world.nodes.iter().for_each(|n| n.fs.wipe());
            usize::from(seen.is_some())
        });
    }
    assert!(told > 3, "{told}");
}

#[test]
fn what_a_former_holder_still_has_is_not_taken_for_the_latest() {
    for seed in 1..=30 {
        simulate(async {
            let c = Case::new(seed, 2, seed as usize).await;
            let former = c.move_away();
            if c.targets().contains(&former) {
                return;
            }
            c.write(former, 3).await;
            c.settled().await;
            let holders = c.targets();
            // While one is away the former holder keeps its copy, and gets no steps.
            c.kill(holders[0]).await;
            c.write(former, 2).await;
            let latest = c.has(holders[1]).await;
            c.kill(holders[1]).await;
            // Who has the latest cannot complete itself for a while: it does not say that it is whole.
            let id = |n: usize| c.world.nodes[n].id;
            c.world.net.cut(id(holders[1]), id(former));
            for holder in &holders {
                c.world.nodes[*holder].start();
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            c.world.net.mend(id(holders[1]), id(former));
            c.until(|s| s.nodes.values().all(|n| n.synced == s.epoch)).await;
            for holder in holders {
                assert_eq!(c.has(holder).await, latest, "seed {seed}");
            }
            assert_eq!(c.read(former).await, 2, "seed {seed}");
            c.world.nodes.iter().for_each(|n| n.fs.wipe());
        });
    }
}

#[test]
fn what_a_former_holder_has_alone_does_not_come_back_with_it() {
    let mut told = 0;
    for seed in 1..=30 {
        told += simulate(async {
            let c = Case::opened(seed, 2, seed as usize).await;
            let former = c.move_away();
            if c.targets().contains(&former) {
                return 0;
            }
            c.settled().await;
            c.leave(former).await;
            let node = c.world.nodes[former].id;
            c.world.authority.commit(Command::NodeWeight { node, weight: Some(1000), vnodes: None });
            assert!(c.targets().contains(&former), "seed {seed}");
            c.until(|s| s.nodes.values().all(|n| n.synced == s.epoch)).await;
            for n in c.targets() {
                assert_eq!(c.has(n).await, None, "seed {seed}");
            }
            assert_eq!(c.read(former).await, 0, "seed {seed}");
            c.world.nodes.iter().for_each(|n| n.fs.wipe());
            1
        });
    }
    assert!(told > 5, "{told}");
}
