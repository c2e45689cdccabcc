//! A cluster in a few words, for tests and examples.
#![allow(dead_code)]

use sheepdog_cluster::{
    ClusterState, Command, CommandError, DiskEntry, Entry, Format, NodeAddr, NodeHello, Redundancy, Reply,
    Timing,
};
use sheepdog_proto::{ClusterId, ControlIndex, DiskId, Generation, NodeId, VdiId};

/// Format command with these copies.
pub fn format(copies: u8) -> Command {
    Command::Format(Format {
        cluster: ClusterId(7),
        created: 1,
        redundancy: Redundancy::Copies(copies),
        min_copies: None,
        strict: false,
        object_size: 4 << 20,
        timing: Timing::default(),
        layout: None,
        trash_keep: 0,
    })
}

/// The n-th node: random-looking, like a UUID.
pub fn node(n: u64) -> NodeId {
    let x = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    NodeId((u128::from(x) << 64) | u128::from(x.rotate_left(17) ^ n))
}

/// A node that introduces itself, in its n-th life.
pub fn hello(n: u64, incarnation: u64) -> NodeHello {
    NodeHello {
        id: node(n),
        addr: NodeAddr { host: format!("10.0.{}.{}", n / 250, n % 250), client_port: 7000, peer_port: 7001 },
        zone: None,
        weight: 1000,
        vnodes: None,
        gateway: false,
        incarnation,
        disks: vec![DiskEntry {
            id: DiskId(u128::from(n) + 1),
            path: "/d".into(),
            capacity: 1 << 40,
            retired: false,
            missing: false,
        }],
        version: "1".into(),
        has_data: false,
    }
}

/// Create command.
pub fn create(name: &str, uuid: u128) -> Command {
    Command::VdiCreate { name: name.into(), uuid, size: 1 << 30, redundancy: None, object_size: None }
}

/// A state and its log.
#[derive(Default)]
pub struct Cluster {
    /// State.
    pub s: ClusterState,
    /// All that was applied.
    pub log: Vec<Entry>,
    /// Checked after every command.
    pub watch: Option<sheepdog_cluster::check::Watch>,
}

impl Cluster {
    /// Formatted, with so many nodes up.
    pub fn new(nodes: u64, copies: u8) -> Self {
        let mut c = Self { watch: Some(Default::default()), ..Self::default() };
        assert_eq!(c.run(format(copies)), Reply::Formatted(ClusterId(7)));
        for n in 0..nodes {
            c.ok(Command::NodeUp(hello(n, 1)));
        }
        c
    }
    /// Apply one command.
    pub fn run(&mut self, command: Command) -> Reply {
        let index = self.s.index.next();
        self.entry(index, Entry { now: index.0 * 10, request: 0, command })
    }
    /// Apply one entry; the invariants hold before and after.
    pub fn entry(&mut self, index: ControlIndex, entry: Entry) -> Reply {
        let reply = self.s.apply(index, &entry);
        if let Some(w) = &mut self.watch {
            let found = w.look(&self.s);
            assert_eq!(found, [], "after {entry:?} answered {reply:?}");
        }
        self.log.push(entry);
        reply
    }
    /// Apply a command that must not be refused.
    pub fn ok(&mut self, command: Command) -> Reply {
        let what = format!("{command:?}");
        let reply = self.run(command);
        assert!(!matches!(reply, Reply::Error(_)), "{what}: {reply:?}");
        reply
    }
    /// Apply a command that must be refused, and must change nothing but the position.
    pub fn refused(&mut self, command: Command) -> CommandError {
        let mut before = self.s.clone();
        let what = format!("{command:?}");
        let Reply::Error(e) = self.run(command) else { panic!("{what} was not refused") };
        before.index = self.s.index;
        assert!(before == self.s, "{what} was refused ({e}) but changed something");
        e
    }
    /// A new VDI.
    pub fn vdi(&mut self, name: &str) -> VdiId {
        let uuid = u128::from(self.s.index.0) + 1000;
        match self.ok(create(name, uuid)) {
            Reply::Vdi(id) => id,
            r => panic!("{r:?}"),
        }
    }
    /// Open and ready.
    pub fn open(&mut self, vdi: VdiId, by: u64) -> Generation {
        let incarnation = self.s.nodes[&node(by)].incarnation;
        match self.ok(Command::SessionOpen { vdi, node: node(by), incarnation }) {
            Reply::Session { generation, .. } => {
                assert_eq!(self.ok(Command::SessionReady { vdi, generation }), Reply::Done);
                generation
            }
            r => panic!("{r:?}"),
        }
    }
    /// Bytes as snapshots carry them.
    pub fn bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.s).expect("encodes")
    }
}
