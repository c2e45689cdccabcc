//! What the actors act on.

pub mod authority;
pub mod clock;
pub mod net;
pub mod node;

use crate::oracle::history::{History, REGISTER};
use authority::Authority;
use net::Net;
pub use node::Ctx;
pub use node::DISKS;
use node::{Host, Node};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sheepdog_cluster::{Command, Format, Redundancy, Reply, Timing};
use sheepdog_proto::{ClusterId, NodeId, VdiId};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Bytes of an object in most runs: one of its headers is one page.
const SMALL: u32 = 1 << 20;
/// Bytes of an object in the others, one in four: a header has two pages, so it can be torn.
const LARGE: u32 = 4 << 20;
/// Objects of the volume.
const OBJECTS: u64 = 4;
/// Registers at the beginning of an object that are at its beginning whatever its size; the others are at its end.
const FRONT: u64 = 220;
/// The cluster.
pub const CLUSTER: ClusterId = ClusterId(7);

/// The process that was asked is gone: nobody knows what became of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

/// Everything.
pub struct World {
    /// Seed of the run.
    pub seed: u64,
    /// How many clients there are.
    pub clients: Cell<u64>,
    /// Network.
    pub net: Rc<Net>,
    /// Control log.
    pub authority: Arc<Authority>,
    /// Nodes.
    pub nodes: Vec<Rc<Node>>,
    /// The volume.
    pub vdi: VdiId,
    /// Bytes of an object.
    pub object: u32,
    /// What clients saw.
    pub history: History,
    /// Violations seen on the way.
    pub violations: RefCell<Vec<(&'static str, String)>>,
    /// The faults are over: finish.
    pub stopping: CancellationToken,
    /// Injected faults.
    pub faults: Cell<u64>,
    /// Taken snapshots.
    pub snapshots: Cell<u64>,
    /// Snapshots that exist, with what they hold.
    pub taken: RefCell<Vec<crate::actors::operator::Taken>>,
}

/// Is the volume of this seed's world erasure coded?
pub fn erasure_coded(seed: u64) -> bool {
    seed % 7 == 3
}

impl World {
    /// A formatted cluster with one volume.
    pub async fn new(seed: u64) -> Rc<Self> {
        Self::of(seed, None).await
    }

    /// The same with so many nodes, and this redundancy.
    pub async fn of(seed: u64, wanted: Option<(usize, Redundancy)>) -> Rc<Self> {
        clock::start();
        let mut rng = SmallRng::seed_from_u64(seed);
        let object = if seed % 4 == 3 { LARGE } else { SMALL };
        let n = rng.random_range(3..=5usize);
        let copies = rng.random_range(2..=3u8).min(n as u8);
        // A third of them needs six nodes.
        let wide = erasure_coded(seed) && seed.is_multiple_of(3);
        let n = if wide { 6 } else { n };
        let redundancy = match erasure_coded(seed) {
            true if wide => Redundancy::Erasure { data: 4, parity: 2 },
            true if n > 3 && seed.is_multiple_of(2) => Redundancy::Erasure { data: 2, parity: 2 },
            true => Redundancy::Erasure { data: 2, parity: 1 },
            false => Redundancy::Copies(copies),
        };
        let (n, redundancy) = wanted.unwrap_or((n, redundancy));
        let authority = Authority::new(rng.random());
        let net = Net::new(rng.random());
        let format = Format {
            cluster: CLUSTER,
            created: clock::millis(),
            redundancy,
            min_copies: None,
            strict: false,
            object_size: object,
            timing: Timing { heartbeat: 1_000, lease: 4_000, down_out: rng.random_range(15_000..60_000) },
            layout: None,
            trash_keep: 0,
        };
        authority.commit(Command::Format(format));
        tokio::task::spawn_local(authority.clone().lead());
        // Where the power is cut often (see `chaos`) disks are slower than the network.
        let latency = if seed % 4 == 1 { 2_000..20_000 } else { 50..1_500 };
        let disks = if crate::actors::disks::two(seed) { 2 } else { 1 };
        // Less than the volume, so that blocks come and go.
        let cache = (seed % 3 == 1).then_some(OBJECTS * u64::from(object) / 4);
        let host = Host { disks, latency, cache };
        let nodes: Vec<Rc<Node>> = (0..n)
            .map(|i| {
                Node::new(
                    NodeId((i as u128 + 1) << 124),
                    rng.random(),
                    host.clone(),
                    net.clone(),
                    authority.clone(),
                )
            })
            .collect();
        for node in &nodes {
            node.start();
        }
        while authority.read(|s| s.nodes.values().filter(|n| n.synced == s.epoch).count() < nodes.len()) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let create = Command::VdiCreate {
            name: "disk".into(),
            uuid: 1,
            size: OBJECTS * u64::from(object),
            redundancy: None,
            object_size: Some(object),
        };
        let Reply::Vdi(vdi) = authority.commit(create) else { panic!("the volume cannot be made") };
        Rc::new(Self {
            seed,
            clients: Cell::new(1),
            net,
            authority,
            nodes,
            vdi,
            object,
            history: History::default(),
            violations: RefCell::default(),
            stopping: CancellationToken::new(),
            faults: Cell::new(0),
            snapshots: Cell::new(0),
            taken: RefCell::default(),
        })
    }
    /// A generator for one actor.
    pub fn rng(&self, actor: u64) -> SmallRng {
        SmallRng::seed_from_u64(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ actor)
    }
    /// In some worlds clients attach the volume before they open it.
    pub fn attaches(&self) -> bool {
        matches!(self.seed % 7, 1 | 4)
    }
    /// In some worlds clients change the same blocks.
    pub fn shares(&self) -> bool {
        self.seed % 11 < 4
    }
    /// Byte of the volume where a register is. They are numbered as in small objects: what is at an edge of one is at the same edge of a large one, and
    /// neighbours stay neighbours (nobody uses those between front and back).
    pub fn place(&self, register: u64) -> u64 {
        let per_object = u64::from(SMALL) / REGISTER;
        let (index, at) = (register / per_object, register % per_object);
        let from_end = u64::from(self.object) - (per_object - at) * REGISTER;
        index * u64::from(self.object) + if at < FRONT { at * REGISTER } else { from_end }
    }
    /// Registers of the volume.
    pub fn registers() -> u64 {
        OBJECTS * u64::from(SMALL) / REGISTER
    }
    /// Note a broken promise.
    pub fn violation(&self, name: &'static str, what: String) {
        self.violations.borrow_mut().push((name, what));
    }
    /// Everything works from now on.
    pub fn heal(&self) {
        self.net.heal();
        self.authority.heal();
        for n in &self.nodes {
            n.resume();
            n.fs.stall(None);
            n.start();
        }
    }
    /// Run something inside a node's process.
    pub async fn call<T: 'static, F>(
        &self,
        node: usize,
        job: impl FnOnce(Rc<Ctx>) -> F + 'static,
    ) -> Result<T, Lost>
    where
        F: Future<Output = T> + 'static,
    {
        self.nodes[node].call(job).await
    }
    /// A state of affairs, for a violation's text.
    pub fn explain(&self, what: &str) -> String {
        let nodes = self.authority.read(|s| {
            s.nodes
                .values()
                .map(|n| format!("{} {:?} synced {:?}", n.id.short(), n.state, n.synced))
                .collect::<Vec<_>>()
        });
        let (epoch, session) =
            self.authority.read(|s| (s.epoch, s.vdis.get(&self.vdi).map(|v| v.session.clone())));
        format!(
            "{what}; epoch {epoch:?}, session {session:?}, nodes {nodes:?}, waiting {:?}",
            self.history.waiting()
        )
    }
}
