//! The volume of a simulated world with known contents, and what is stored of it.
#![allow(dead_code, reason = "each test uses some of it")]

use bytes::Bytes;
use sheep::session::volume::open_image;
use sheep::store::{ObjectInfo, Store};
use sheepdog_proto::ObjectId;
use sheepdog_sim::invariants::everyone_synced;
use sheepdog_sim::world::World;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// The volume's bytes: four objects of 1 MiB.
const SIZE: u64 = 4 << 20;
/// Of one request.
const PART: u64 = 64 << 10;
/// Longer than a node that is away stays in the ring.
pub const PATIENCE: Duration = Duration::from_secs(600);

fn pattern(salt: u8, at: u64) -> Bytes {
    (at..at + PART)
        .map(|i| ((i / 4096) as u8).wrapping_mul(31).wrapping_add((i % 251) as u8) ^ salt)
        .collect()
}

/// Open on this node, under number 0.
pub async fn open(world: &Rc<World>, node: usize) {
    let vdi = world.vdi;
    let opened = world.call(node, move |ctx| async move {
        let volume = open_image(&ctx.node.gateway, vdi, None).await.expect("opens");
        ctx.volumes.borrow_mut().insert(0, volume);
    });
    opened.await.expect("it runs");
}

pub async fn put(world: &Rc<World>, node: usize, at: u64, data: Bytes) {
    let done = world.call(node, move |ctx| async move {
        let volume = ctx.volumes.borrow()[&0].clone();
        volume.write(at, data).await
    });
    let done = tokio::time::timeout(PATIENCE, done).await;
    done.expect("a write ends").expect("it runs").expect("is written");
}

pub async fn get(world: &Rc<World>, node: usize, at: u64) -> Bytes {
    let done = world.call(node, move |ctx| async move {
        let volume = ctx.volumes.borrow()[&0].clone();
        let parts = volume.read(at, PART as u32).await?;
        Ok::<_, sheep::volume::VolumeError>(parts.concat())
    });
    let done = tokio::time::timeout(PATIENCE, done).await;
    done.expect("a read ends").expect("it runs").expect("is read").into()
}

/// What is expected of the volume, and how it is looked at.
pub struct Disk {
    /// Where it is.
    pub world: Rc<World>,
    /// What is in each part of it.
    pub parts: Vec<u8>,
}

impl Disk {
    /// Opened on this node, and all of it written.
    pub async fn written(world: Rc<World>, node: usize) -> Self {
        open(&world, node).await;
        let parts: Vec<u8> = (0..SIZE / PART).map(|i| i as u8).collect();
        for (i, salt) in (0u64..).zip(&parts) {
            put(&world, node, i * PART, pattern(*salt, i * PART)).await;
        }
        Self { world, parts }
    }
    /// Some part of one of the objects (of the first, where one has all parts).
    pub fn part_of(&self, object: u32, nth: usize) -> usize {
        let per_object = (u64::from(self.world.object) / PART) as usize;
        (object as usize * per_object + nth) % self.parts.len()
    }
    /// One part, as a client of this node.
    pub async fn write(&mut self, node: usize, part: usize, salt: u8) {
        let at = part as u64 * PART;
        put(&self.world, node, at, pattern(salt, at)).await;
        self.parts[part] = salt;
    }
    /// All of it is as it was written.
    pub async fn check(&self, node: usize, what: &str) {
        for (i, salt) in (0u64..).zip(&self.parts) {
            assert!(get(&self.world, node, i * PART).await == pattern(*salt, i * PART), "{what}: part {i}");
        }
    }
    /// (Blocks of objects that are copies, objects put away, strips) of one node.
    async fn stored(&self, node: usize) -> (u32, usize, usize) {
        let counted = self.world.call(node, |ctx| async move {
            let rows = ctx.node.replica.store.as_ref().expect("a store").list(None, 10_000);
            let data = || rows.iter().filter(|r| r.oid.is_data());
            let sealed = data().filter(|r| r.sealed()).count();
            (data().map(|r| r.data_blocks).sum(), sealed, rows.len() - data().count())
        });
        counted.await.expect("it runs")
    }
    /// Until all that nodes store is so.
    pub async fn until(&self, what: &str, good: impl Fn(&[(u32, usize, usize)]) -> bool) {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            let mut all = Vec::new();
            for n in 0..self.world.nodes.len() {
                all.push(self.stored(n).await);
            }
            if good(&all) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {all:?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    /// Everything is in strips, each of them once.
    pub async fn put_away(&self, strips: usize) {
        self.until("it is not put away", |all| {
            all.iter().all(|(blocks, ..)| *blocks == 0)
                && all.iter().map(|s| s.2).sum::<usize>() == 4 * strips
        })
        .await;
    }
    /// Every node has everything, and the cluster comes to rest.
    pub async fn whole(&self, what: &str) {
        let found = everyone_synced::check(&self.world).await;
        assert!(found.is_empty(), "{what}: {found:?}");
    }
    /// With the store of a node.
    pub async fn store<T: 'static, F>(&self, node: usize, job: impl FnOnce(Rc<Store>) -> F + 'static) -> T
    where
        F: Future<Output = T> + 'static,
    {
        let done = self.world.call(node, |ctx| job(ctx.node.replica.store.clone().expect("a store")));
        done.await.expect("it runs")
    }
    /// The copy of an object that a node holds.
    pub async fn copy(&self, node: usize, oid: ObjectId) -> Option<ObjectInfo> {
        self.store(node, move |store| async move { store.info(oid).await.expect("is read") }).await
    }
    /// The volume's first object, and its holders.
    pub async fn first(&self) -> (ObjectId, Vec<usize>) {
        let mut found = None;
        let mut holders = Vec::new();
        for n in 0..self.world.nodes.len() {
            let rows = self.store(n, |store| async move { store.list(None, 100) }).await;
            if let Some(row) = rows.iter().find(|r| r.oid.is_data() && r.oid.index() == 0) {
                found = Some(row.oid);
                holders.push(n);
            }
        }
        (found.expect("somebody has it"), holders)
    }
    /// It is not needed any more.
    pub fn end(self) {
        self.world.nodes.iter().for_each(|n| n.fs.wipe());
    }
}
