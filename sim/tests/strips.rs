//! Erasure coded volumes: what was written lately becomes strips, and any loss that the parity bears is borne, whoever is lost.

mod common;
use bytes::Bytes;
use common::simulate;
use sheep::session::volume::open_image;
use sheepdog_cluster::{Command, Redundancy, Reply};
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
const PATIENCE: Duration = Duration::from_secs(600);

fn pattern(salt: u8, at: u64) -> Bytes {
    (at..at + PART)
        .map(|i| ((i / 4096) as u8).wrapping_mul(31).wrapping_add((i % 251) as u8) ^ salt)
        .collect()
}

/// Open on this node, under number 0.
async fn open(world: &Rc<World>, node: usize) {
    let vdi = world.vdi;
    let opened = world.call(node, move |ctx| async move {
        let volume = open_image(&ctx.node.gateway, vdi, None).await.expect("opens");
        ctx.volumes.borrow_mut().insert(0, volume);
    });
    opened.await.expect("it runs");
}

async fn put(world: &Rc<World>, node: usize, at: u64, data: Bytes) {
    let done = world.call(node, move |ctx| async move {
        let volume = ctx.volumes.borrow()[&0].clone();
        volume.write(at, data).await
    });
    let done = tokio::time::timeout(PATIENCE, done).await;
    done.expect("a write ends").expect("it runs").expect("is written");
}

async fn get(world: &Rc<World>, node: usize, at: u64) -> Bytes {
    let done = world.call(node, move |ctx| async move {
        let volume = ctx.volumes.borrow()[&0].clone();
        let parts = volume.read(at, PART as u32).await?;
        Ok::<_, sheep::volume::VolumeError>(parts.concat())
    });
    let done = tokio::time::timeout(PATIENCE, done).await;
    done.expect("a read ends").expect("it runs").expect("is read").into()
}

/// What is expected of the volume, and how it is looked at.
struct Disk {
    world: Rc<World>,
    parts: Vec<u8>,
}

impl Disk {
    async fn written(world: Rc<World>, node: usize) -> Self {
        open(&world, node).await;
        let parts: Vec<u8> = (0..SIZE / PART).map(|i| i as u8).collect();
        for (i, salt) in (0u64..).zip(&parts) {
            put(&world, node, i * PART, pattern(*salt, i * PART)).await;
        }
        Self { world, parts }
    }
    async fn write(&mut self, node: usize, part: usize, salt: u8) {
        let at = part as u64 * PART;
        put(&self.world, node, at, pattern(salt, at)).await;
        self.parts[part] = salt;
    }
    async fn check(&self, node: usize, what: &str) {
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
    async fn until(&self, what: &str, good: impl Fn(&[(u32, usize, usize)]) -> bool) {
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
    async fn put_away(&self, strips: usize) {
        self.until("it is not put away", |all| {
            all.iter().all(|(blocks, ..)| *blocks == 0)
                && all.iter().map(|s| s.2).sum::<usize>() == 4 * strips
        })
        .await;
    }
    async fn whole(&self, what: &str) {
        let found = everyone_synced::check(&self.world).await;
        assert!(found.is_empty(), "{what}: {found:?}");
    }
    fn end(self) {
        self.world.nodes.iter().for_each(|n| n.fs.wipe());
    }
}

#[test]
fn any_two_of_six_nodes_may_be_lost() {
    simulate(async {
        let world = World::of(4, Some((6, Redundancy::Erasure { data: 4, parity: 2 }))).await;
        let mut disk = Disk::written(world.clone(), 0).await;
        disk.put_away(6).await;
        let mut salt = 100;
        for a in 0..6 {
            for b in a + 1..6 {
                let what = format!("without {a} and {b}");
                let reader = (0..6).find(|n| *n != a && *n != b).expect("one is left");
                for n in [a, b] {
                    world.nodes[n].kill(true).await;
                }
                open(&world, reader).await;
                disk.check(reader, &what).await;
                // Some objects have lost two of their three copies: writing to them waits until the nodes are given up.
                for object in 0..4 {
                    salt += 1;
                    disk.write(reader, object * 16 + usize::from(salt) % 16, salt).await;
                }
                disk.check(reader, &format!("{what}, written")).await;
                for n in [a, b] {
                    world.nodes[n].start();
                }
                disk.whole(&what).await;
                disk.check(reader, &format!("{what}, back again")).await;
                disk.put_away(6).await;
            }
        }
        disk.end();
    });
}

#[test]
fn an_emptied_node_gets_its_strips_and_others_may_go() {
    simulate(async {
        let world = World::of(4, Some((6, Redundancy::Erasure { data: 4, parity: 2 }))).await;
        let disk = Disk::written(world.clone(), 0).await;
        disk.put_away(6).await;
        for n in 1..6 {
            world.nodes[n].kill(true).await;
            world.nodes[n].fs.wipe();
            world.nodes[n].start();
            disk.whole(&format!("{n} emptied")).await;
            disk.put_away(6).await;
        }
        for n in [1, 2] {
            world.nodes[n].kill(true).await;
        }
        open(&world, 3).await;
        disk.check(3, "all strips but the first node's were made again").await;
        disk.end();
    });
}

#[test]
fn copies_become_strips_and_strips_copies() {
    simulate(async {
        let world = World::of(4, Some((4, Redundancy::Copies(3)))).await;
        let mut disk = Disk::written(world.clone(), 0).await;
        let steps = [
            (Redundancy::Erasure { data: 2, parity: 1 }, 3),
            (Redundancy::Erasure { data: 2, parity: 2 }, 4),
            (Redundancy::Copies(2), 0),
            (Redundancy::Erasure { data: 3, parity: 1 }, 4),
            (Redundancy::Copies(3), 0),
        ];
        for (i, (redundancy, strips)) in steps.into_iter().enumerate() {
            let what = format!("{redundancy}");
            let alter = Command::AlterCopies { vdi: Some(world.vdi), redundancy };
            assert_eq!(world.authority.commit(alter), Reply::Done, "{what}");
            disk.check(0, &what).await;
            disk.write(0, i, 200 + i as u8).await;
            match strips {
                0 => {
                    let blocks = redundancy.width() as u32 * 4 * 256;
                    disk.until(&what, |all| {
                        all.iter().map(|s| s.0).sum::<u32>() == blocks
                            && all.iter().all(|(_, sealed, strips)| *sealed == 0 && *strips == 0)
                    })
                    .await;
                }
                _ => disk.put_away(strips).await,
            }
            disk.check(0, &format!("{what}, at last")).await;
        }
        disk.end();
    });
}
