//! What a gateway may still send once more, nobody has been told of; and nobody waits for it for ever.

mod common;
#[path = "common/small.rs"]
mod small;
#[path = "common/volume.rs"]
mod volume;

use bytes::Bytes;
use common::simulate;
use sheep::planted::{self, Bug};
use sheepdog_cluster::Session;
use sheepdog_proto::VdiId;
use sheepdog_sim::world::{Lost, World};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;
use volume::{open, write};

/// Milliseconds that something is on its way. Two of it are less than a new connection may take.
const LONG: u64 = 1_500;

/// A volume of one object, open at three nodes.
struct Case {
    world: Rc<World>,
    vdi: VdiId,
    /// Holds a copy and owns the session.
    owner: usize,
    /// Holds none.
    writer: usize,
    /// Holds the other copy.
    other: usize,
}

impl Case {
    async fn new(seed: u64) -> Self {
        let world = World::new(seed).await;
        let vdi = small::create(&world, 2, 4096, None);
        let targets = small::targets(&world, vdi, 0);
        let holds = |n: &usize| targets.contains(n);
        let (with, without): (Vec<_>, Vec<_>) = (0..world.nodes.len()).partition(holds);
        let case = Self { vdi, owner: with[0], writer: without[0], other: with[1], world };
        for node in [case.owner, case.writer, case.other] {
            open(&case.world, vdi, node).await;
        }
        assert!(write(&case.world, case.owner, 1).await);
        case
    }

    /// A 2 has been carried out, and its gateway does not know: the answer is on its way.
    async fn unanswered(seed: u64) -> (Self, JoinHandle<bool>) {
        let case = Self::new(seed).await;
        case.slow(case.owner, case.writer);
        let (world, writer) = (case.world.clone(), case.writer);
        let writing = tokio::task::spawn_local(async move { write(&world, writer, 2).await });
        tokio::time::sleep(Duration::from_millis(LONG / 3)).await;
        assert!(!writing.is_finished(), "seed {seed}");
        (case, writing)
    }

    /// From one node to another everything takes longer; not the other way round.
    fn slow(&self, from: usize, to: usize) {
        self.world.net.slow(self.world.nodes[from].id, self.world.nodes[to].id, LONG);
    }

    async fn read(&self, node: usize) -> Result<u8, Lost> {
        let read = self.world.call(node, |ctx| async move {
            let volume = ctx.volumes.borrow()[&0].clone();
            volume.read(0, 4096).await
        });
        Ok(read.await?.expect("reads").concat()[0])
    }

    /// Who has the session when its owner is gone.
    async fn next_owner(&self) -> usize {
        let gone = self.world.nodes[self.owner].id;
        let mut commits = self.world.authority.commits();
        loop {
            let session = self.world.authority.read(|s| s.vdis[&self.vdi].session.clone());
            match session {
                Session::Open { owner, ready: true, .. } if owner != gone => {
                    return self.world.nodes.iter().position(|n| n.id == owner).expect("a node");
                }
                _ => commits.changed().await.expect("there are more"),
            }
        }
    }

    fn end(&self) {
        self.world.nodes.iter().for_each(|n| n.fs.wipe());
    }
}

/// What is answered at once.
async fn at_once<T>(answer: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_millis(LONG / 3), answer).await.ok()
}

#[test]
fn a_change_is_seen_when_its_gateway_has_the_answer() {
    for seed in 1..=10 {
        simulate(async {
            let (c, writing) = Case::unanswered(seed).await;
            assert_eq!(at_once(c.read(c.owner)).await, None, "seed {seed}");
            assert_eq!(c.read(c.owner).await, Ok(2), "seed {seed}");
            assert!(writing.await.expect("ends"), "seed {seed}");
            c.end();
        });
    }
}

#[test]
fn without_that_it_would_be_seen_before() {
    planted::plant(Some(Bug::UncertainRead));
    simulate(async {
        let (c, _writing) = Case::unanswered(1).await;
        assert_eq!(at_once(c.read(c.owner)).await, Some(Ok(2)));
        c.end();
    });
    planted::plant(None);
}

#[test]
fn the_next_owner_tells_of_nothing_that_will_be_repeated() {
    let mut told = 0;
    for seed in 1..=30 {
        told += simulate(async {
            let (c, writing) = Case::unanswered(seed).await;
            // What the writer sends again is on its way for a while, too.
            c.slow(c.writer, c.other);
            c.world.nodes[c.owner].kill(false).await;
            let (w, other) = (c.world.clone(), c.other);
            let writes = tokio::task::spawn_local(async move { write(&w, other, 3).await });
            if c.next_owner().await != c.other {
                return 0;
            }
            assert!(
                writes.await.expect("ends") && !writing.is_finished(),
                "seed {seed}: changes do not wait"
            );
            let seen = c.read(c.other).await;
            assert!(writing.is_finished(), "seed {seed}: {seen:?} is seen before what is repeated");
            assert_eq!(c.read(c.other).await, Ok(2), "seed {seed}: it counts as having happened later");
            c.end();
            1
        });
    }
    assert!(told > 3, "{told}");
}

#[test]
fn a_gateway_that_does_not_react_holds_nobody_up() {
    for seed in 1..=10 {
        simulate(async {
            let (c, writing) = Case::unanswered(seed).await;
            c.world.nodes[c.writer].pause();
            let seen = tokio::time::timeout(Duration::from_secs(10), c.read(c.owner)).await;
            assert_eq!(seen, Ok(Ok(2)), "seed {seed}");
            assert!(write(&c.world, c.other, 3).await, "seed {seed}");
            c.world.nodes[c.writer].resume();
            c.world.heal();
            let _ = writing.await;
            assert_eq!(c.read(c.other).await, Ok(3), "seed {seed}: it was repeated");
            c.end();
        });
    }
}

#[test]
fn a_snapshot_has_nothing_that_may_be_repeated() {
    for seed in 1..=10 {
        simulate(async {
            let (c, writing) = Case::unanswered(seed).await;
            let hold = |patience| {
                let vdi = c.vdi;
                c.world.call(c.owner, move |ctx| async move {
                    ctx.node.gateway.hold(vdi, patience).await.map(drop).map_err(|e| e.to_string())
                })
            };
            let early = hold(Duration::from_millis(LONG / 3)).await.expect("it runs");
            assert!(early.is_err_and(|e| e.contains("try again")), "seed {seed}");
            assert_eq!(hold(Duration::from_secs(10)).await, Ok(Ok(())), "seed {seed}");
            assert!(writing.await.expect("ends"), "seed {seed}");
            c.end();
        });
    }
}

#[test]
fn of_a_change_nothing_is_seen_before_all_of_it_is_done() {
    const BORDER: u64 = 1 << 20;
    let mut seen = 0;
    for seed in 1..=30 {
        seen += simulate(async {
            let world = World::new(seed).await;
            let vdi = small::create(&world, 2, 2 * BORDER, Some(BORDER as u32));
            // The owner holds a copy of the first object; who is far away holds one of the second only.
            let (first, second) = (small::targets(&world, vdi, 0), small::targets(&world, vdi, 1));
            let owner = first[0];
            let Some(far) = second.into_iter().find(|n| !first.contains(n)) else { return 0 };
            let write = |byte: u8| {
                world.call(owner, move |ctx| async move {
                    let volume = ctx.volumes.borrow()[&0].clone();
                    volume.write(BORDER - 4096, Bytes::from(vec![byte; 8192])).await
                })
            };
            let read = || {
                world.call(owner, |ctx| async move {
                    let volume = ctx.volumes.borrow()[&0].clone();
                    volume.read(BORDER - 4096, 4096).await.map(|d| d.concat()[0])
                })
            };
            open(&world, vdi, owner).await;
            assert_eq!(write(1).await, Ok(Ok(())), "seed {seed}");
            world.net.slow(world.nodes[owner].id, world.nodes[far].id, LONG);
            let writing = write(2);
            tokio::pin!(writing);
            assert_eq!(at_once(writing.as_mut()).await, None, "seed {seed}");
            assert_eq!(at_once(read()).await, None, "seed {seed}: half of it would be done again");
            assert_eq!(writing.await, Ok(Ok(())), "seed {seed}");
            assert_eq!(read().await, Ok(Ok(2)), "seed {seed}");
            world.nodes.iter().for_each(|n| n.fs.wipe());
            1
        });
    }
    assert!(seen > 3, "{seen}");
}
