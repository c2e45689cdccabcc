//! Erasure coded volumes: what was written lately becomes strips, and any loss that the parity bears is borne, whoever is lost.

mod common;
#[path = "common/disk.rs"]
mod disk;
use bytes::Bytes;
use common::simulate;
use disk::PATIENCE;
use disk::{Disk, open};
use sheepdog_cluster::{Command, Redundancy, Reply};
use sheepdog_proto::peer::Seal;
use sheepdog_sim::world::World;
use std::time::Duration;
use tokio::time::Instant;

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

/// Strips are kept before any copy points to them, and for how long is nobody's to know: a node that removes one too early must not find that a copy takes it all the same.
#[test]
fn a_strip_goes_only_when_no_copy_takes_it_any_more() {
    simulate(async {
        let world = World::of(4, Some((3, Redundancy::Erasure { data: 2, parity: 1 }))).await;
        let disk = Disk::written(world.clone(), 0).await;
        disk.put_away(3).await;
        let (oid, holders) = disk.first().await;
        // As in an attempt to put the object away anew that has come so far and no further.
        let copy = disk.copy(holders[0], oid).await.expect("is there");
        let now = copy.seal.expect("is put away");
        let next = Seal { digest: u64::from(copy.promised + 1) << 32 | 7, slot: (now.slot + 1) % 4, ..now };
        let strip = oid.strip_of(next.slot, 0);
        let (key, vdi, size) = (copy.key, copy.vdi, copy.object_size);
        let kept = disk.store(0, move |store| async move {
            store.put_strip(strip, key, vdi, size, next, &[], &Bytes::new()).await
        });
        kept.await.expect("is kept");
        let deadline = Instant::now() + PATIENCE;
        while disk.store(0, move |store| async move { store.has_strip(strip, next) }).await {
            assert!(Instant::now() < deadline, "a strip that nobody needs stays for ever");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        for n in holders {
            let copy = disk.copy(n, oid).await.expect("is there");
            let taken = disk.store(n, move |store| async move {
                store.seal(oid, copy.epoch, next, (&copy.cold, &copy.cold_crcs), || true).await
            });
            assert_eq!(taken.await, Ok(false), "node {n} takes a strip that is gone");
        }
        disk.check(0, "what is needed is there").await;
        disk.put_away(3).await;
        disk.end();
    });
}

/// A copy that has promised to take later strips only is made equal to one that has those of before: it takes what is in them, and is put away again with the others.
#[test]
fn a_copy_keeps_its_promise_when_it_is_filled() {
    for which in 0..2 {
        simulate(async move {
            let world = World::of(4, Some((4, Redundancy::Erasure { data: 2, parity: 1 }))).await;
            let disk = Disk::written(world.clone(), 0).await;
            disk.put_away(3).await;
            let (oid, holders) = disk.first().await;
            let n = holders[which];
            let copy = disk.copy(n, oid).await.expect("is there");
            let number = copy.promised + 5;
            let damage = world.call(n, move |ctx| async move {
                let store = ctx.node.replica.store.clone().expect("a store");
                store.remove(oid).await.expect("is removed");
                store.fill(oid, copy.key, copy.vdi, copy.object_size, Vec::new()).await.expect("is begun");
                store.promise(oid, number).await.expect("promises");
                ctx.node.replica.sync.missed(oid, copy.key.family);
            });
            damage.await.expect("it runs");
            let deadline = Instant::now() + PATIENCE;
            loop {
                let copy = disk.copy(n, oid).await.expect("is there");
                if !copy.filling {
                    assert!(copy.seal.is_none_or(|s| s.number() >= number), "{:?}", copy.seal);
                    break;
                }
                assert!(Instant::now() < deadline, "it is not filled");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            disk.put_away(3).await;
            for n in holders {
                let copy = disk.copy(n, oid).await.expect("is there");
                assert!(copy.seal.is_some_and(|s| s.number() > number), "all are put away anew");
            }
            disk.check(0, "as it was").await;
            disk.end();
        });
    }
}

/// As when a ring was forgotten before all of its strips were where the next one wants them: nobody looks for them where they are.
#[test]
fn strips_are_brought_to_where_they_belong() {
    simulate(async {
        let world = World::of(4, Some((4, Redundancy::Erasure { data: 2, parity: 1 }))).await;
        let disk = Disk::written(world.clone(), 0).await;
        disk.put_away(3).await;
        let (oid, holders) = disk.first().await;
        let copy = disk.copy(holders[0], oid).await.expect("is there");
        let seal = copy.seal.expect("is put away");
        let has = async |node: usize, role: u8| {
            let strip = oid.strip_of(seal.slot, role);
            disk.store(node, move |store| async move { store.has_strip(strip, seal) }).await
        };
        let mut places = Vec::new();
        for role in 0..3 {
            for node in 0..4 {
                if has(node, role).await {
                    places.push(node);
                }
            }
        }
        let other = (0..4).find(|n| !places.contains(n)).expect("one has none");
        // One is left where it belongs, and two are needed.
        let (key, vdi, size) = (copy.key, copy.vdi, copy.object_size);
        for role in 0..2 {
            let strip = oid.strip_of(seal.slot, role);
            let taken = disk.store(places[usize::from(role)], move |store| async move {
                let rows = 0..seal.strip_size(size) >> sheepdog_proto::BLOCK_SHIFT;
                let data = store.read_object(strip, rows).await.expect("is read").data;
                store.remove(strip).await.expect("is removed");
                data
            });
            let data = taken.await;
            let kept = disk.store(other, move |store| async move {
                let rows = 0..(data.len() >> sheepdog_proto::BLOCK_SHIFT) as u32;
                let rows = std::slice::from_ref(&rows);
                store.put_strip(strip, key, vdi, size, seal, rows, &data).await
            });
            kept.await.expect("is kept");
        }
        let deadline = Instant::now() + PATIENCE;
        for role in 0..2 {
            while !has(places[usize::from(role)], role).await || has(other, role).await {
                assert!(Instant::now() < deadline, "a strip stays where nobody looks for it");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        disk.check(0, "as it was").await;
        disk.put_away(3).await;
        disk.end();
    });
}
