//! A copy whose fill was cut off is neither what it was nor what it is to be: nobody reads it, and it is filled again although its node is complete and its process knows nothing of the fill.

mod common;
#[path = "common/object.rs"]
mod object;
#[path = "common/replace.rs"]
mod replace;
#[path = "common/volume.rs"]
mod volume;

use bytes::Bytes;
use common::simulate;
use object::first_object;
use replace::unnoticed;
use sheep::peer::adopt::{AdoptError, Adoption, Loses};
use sheep::store::{FillOp, WriteKind};
use sheepdog_cluster::Session;
use sheepdog_proto::ControlIndex;
use sheepdog_proto::peer::{ReadRequest, Status, Terms};
use sheepdog_sim::world::World;
use std::rc::Rc;
use std::time::Duration;
use volume::{open, write};

/// What this node's own copy says, as soon as the node vouches for it.
async fn read(world: &Rc<World>, node: usize) -> u8 {
    let (oid, key, _) = first_object(world);
    let done = world.call(node, move |ctx| async move {
        loop {
            let (top, epoch) = (oid.layer(), ctx.node.control.map().epoch);
            let request = ReadRequest { top, key, blocks: 0..1, epoch, control_index: ControlIndex(0) };
            match ctx.node.replica.read(&request).await {
                (reply, data) if reply.status == Status::Ok => return data,
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    });
    let data = tokio::time::timeout(Duration::from_secs(60), done).await.expect("in time").expect("it runs");
    assert!(data.iter().all(|b| *b == data[0]), "torn");
    data[0]
}

/// Begin to make this node's copy equal to one that has other contents, and go no further.
async fn begin_fill(world: &Rc<World>, node: usize, byte: u8) {
    let ((oid, key, _), vdi, size) = (first_object(world), world.vdi, world.object);
    let begun = world.call(node, move |ctx| async move {
        let store = ctx.node.replica.store.clone().expect("a store");
        let kind = WriteKind::Data(Bytes::from(vec![byte; 4096]));
        store.fill(oid, key, vdi, size, vec![FillOp { blocks: 0..1, kind }]).await.expect("fills");
    });
    begun.await.expect("it runs");
}

async fn is_half_filled(world: &Rc<World>, node: usize) -> bool {
    let asked = world.call(node, |ctx| async move {
        ctx.node.replica.store.as_ref().is_some_and(|s| s.list(None, 100).iter().any(|row| row.filling))
    });
    asked.await.expect("it runs")
}

#[test]
fn a_process_that_finds_a_half_filled_copy_does_not_read_it_and_fills_it_again() {
    let mut quick = 0;
    for seed in 1..=300 {
        quick += simulate(async {
            let world = World::new(seed).await;
            let (_, _, holders) = first_object(&world);
            let (owner, other) = (holders[0], holders[1]);
            open(&world, world.vdi, owner).await;
            assert!(write(&world, owner, 1).await, "seed {seed}");
            begin_fill(&world, other, 9).await;
            let Some(epoch) = unnoticed(&world, other, true).await else { return 0 };
            assert_eq!(read(&world, other).await, 1, "seed {seed}");
            for _ in 0..100 {
                if !is_half_filled(&world, other).await {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert!(!is_half_filled(&world, other).await, "seed {seed}: nobody fills it again");
            assert_eq!(world.authority.read(|s| s.epoch), epoch, "seed {seed}");
            world.nodes.iter().for_each(|n| n.fs.wipe());
            1
        });
    }
    assert!(quick > 5, "{quick}");
}

#[test]
fn a_write_has_a_half_filled_copy_repaired_instead_of_sending_it_again_for_ever() {
    for seed in 1..=10 {
        simulate(async {
            let world = World::new(seed).await;
            let (_, _, holders) = first_object(&world);
            open(&world, world.vdi, holders[0]).await;
            assert!(write(&world, holders[0], 1).await, "seed {seed}");
            begin_fill(&world, holders[1], 9).await;
            assert!(write(&world, holders[0], 2).await, "seed {seed}: the write does not end");
            assert_eq!(read(&world, holders[1]).await, 2, "seed {seed}");
            world.nodes.iter().for_each(|n| n.fs.wipe());
        });
    }
}

#[test]
fn what_a_session_has_written_since_the_source_was_chosen_is_not_taken_back() {
    simulate(async {
        let world = World::new(1).await;
        let (oid, key, holders) = first_object(&world);
        open(&world, world.vdi, holders[0]).await;
        assert!(write(&world, holders[0], 1).await);
        let (Some(generation), epoch) = world.authority.read(|s| {
            let open = match &s.vdis[&world.vdi].session {
                Session::Open { generation, .. } => Some(*generation),
                _ => None,
            };
            (open, s.epoch)
        }) else {
            panic!("nobody owns the volume");
        };
        // As if it had been looked at before the write came there.
        let removed = world.call(holders[1], move |ctx| async move {
            ctx.node.replica.store.as_ref().expect("a store").remove(oid).await
        });
        removed.await.expect("it runs").expect("is removed");
        let source = world.nodes[holders[1]].id;
        let adopted = world.call(holders[0], move |ctx| async move {
            let terms = Terms { epoch, session: None };
            let loses = Loses::Before(generation);
            ctx.node.replica.adopt(Adoption { oid, family: key.family, source, terms, loses }, None).await
        });
        let adopted = adopted.await.expect("it runs");
        assert!(matches!(adopted, Err(AdoptError::Over)), "{adopted:?}");
        assert_eq!(read(&world, holders[0]).await, 1);
        world.nodes.iter().for_each(|n| n.fs.wipe());
    });
}
