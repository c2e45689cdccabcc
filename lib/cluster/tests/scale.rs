//! The largest cluster: 6,144 nodes and 100,000 volumes. What it costs is counted in bytes and rings; `--example largest` prints times.

mod common;

use common::{Cluster, create, format, hello, node};
use sheepdog_cluster::{ClusterState, Command, NodeHello, Reply, SnapshotRef};
use sheepdog_proto::{Epoch, MAX_NODES, VdiId};

const NODES: u64 = MAX_NODES as u64;
const VDIS: u32 = 100_000;

/// All nodes but one, all volumes with a session each, a snapshot of every tenth.
fn largest() -> Cluster {
    let mut c = Cluster::default();
    c.ok(format(3));
    for n in 0..NODES - 1 {
        c.ok(Command::NodeUp(hello(n, 1)));
    }
    for v in 1..=VDIS {
        let name = format!("pvc-{v:08x}-4b1c-4d9e-8a53-0123456789ab");
        assert_eq!(c.run(create(&name, u128::from(v) << 100)), Reply::Vdi(VdiId(v)));
    }
    for v in 1..=VDIS {
        let g = c.open(VdiId(v), u64::from(v) % (NODES - 1));
        if v % 10 == 0 {
            c.ok(Command::Snapshot { vdis: vec![(VdiId(v), Some(g))], tag: "daily".into() });
        }
    }
    c
}

#[test]
fn the_largest_state_is_compact_and_changes_cost_little() {
    let mut c = largest();
    let bytes = c.bytes();
    assert!(bytes.len() < 32 << 20, "{} bytes", bytes.len());
    let back: ClusterState = postcard::from_bytes(&bytes).expect("decodes");
    assert!(back == c.s);
    assert_eq!(sheepdog_cluster::check::check(&c.s), []);

    // The last node joins: one ring more, of which the map builds nothing else.
    let map = c.s.node_map();
    assert_eq!(c.run(Command::NodeUp(hello(NODES - 1, 1))), Reply::Epoch(Epoch(NODES + 2)));
    let joined = c.s.node_map_after(Some(&map));
    assert_eq!((map.rings.len(), joined.rings.len()), (1, 2));
    assert!(map.rings[0].1.is(&joined.rings[0].1));
    let more = c.bytes().len() - bytes.len();
    assert!(more < 1 << 20, "a join adds {more} bytes");

    // A node goes and comes: no ring is built, and history does not list everybody again.
    let before = c.bytes().len();
    for life in 1..=100 {
        c.ok(Command::NodeDown { node: node(7), incarnation: life });
        c.ok(Command::NodeUp(NodeHello { has_data: true, ..hello(7, life + 1) }));
    }
    let later = c.s.node_map_after(Some(&joined));
    assert_eq!(later.rings.len(), 2);
    assert!(later.rings.iter().zip(&joined.rings).all(|(a, b)| a.1.is(&b.1)));
    let more = c.bytes().len() - before;
    assert!(more < 200 * 256, "200 epochs add {more} bytes");

    // Everybody has what the new ring gives it: the old one is forgotten.
    let epoch = c.s.epoch;
    for n in 0..NODES {
        let incarnation = c.s.nodes[&node(n)].incarnation;
        c.ok(Command::NodeSynced { node: node(n), incarnation, epoch });
    }
    assert_eq!(c.s.rings.len(), 1);

    // A deleted snapshot is merged when the last of all has reported, and then it is gone without a trace.
    let layers = c.s.layers.len();
    c.ok(Command::VdiDelete {
        vdi: VdiId(10),
        snapshot: Some(SnapshotRef::Tag("daily".into())),
        with_snapshots: false,
        at_once: false,
    });
    for n in 0..NODES {
        assert_eq!(c.s.layers.len(), layers);
        let epoch = c.s.epoch;
        c.ok(Command::LayerMerged { layer: sheepdog_proto::LayerId(10), node: node(n), epoch });
    }
    assert_eq!(c.s.layers.len(), layers - 1);
    assert_eq!(sheepdog_cluster::check::check(&c.s), []);
}
