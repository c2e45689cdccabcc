//! Figures of the state machine at its largest: `cargo run --profile ci -p sheepdog-cluster --example largest`.
#![allow(clippy::disallowed_types, reason = "an example may look at the clock")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Cluster, create, format, hello, node};
use sheepdog_cluster::{ClusterState, Command, NodeState, SnapshotRef};
use sheepdog_proto::VdiId;
use std::time::{Duration, Instant};

const NODES: u64 = 6_143;
const VDIS: u32 = 100_000;

fn timed<R>(what: &str, times: u32, f: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let r = f();
    let took = start.elapsed();
    println!("{what:<44} {took:>10.1?}   each {:>10.1?}", took / times.max(1));
    r
}

fn sizes(s: &ClusterState) {
    let size = |b: Result<Vec<u8>, postcard::Error>| b.map_or(0, |b| b.len());
    println!("  snapshot {} bytes:", size(postcard::to_stdvec(s)));
    println!("    nodes {}", size(postcard::to_stdvec(&s.nodes)));
    println!("    rings {} ({})", size(postcard::to_stdvec(&s.rings)), s.rings.len());
    println!("    history {} ({})", size(postcard::to_stdvec(&s.history)), s.history.len());
    println!("    VDIs {}", size(postcard::to_stdvec(&s.vdis)));
    println!("    names {}", size(postcard::to_stdvec(&s.names)));
    println!("    layers {}", size(postcard::to_stdvec(&s.layers)));
    println!("    families {}", size(postcard::to_stdvec(&s.families)));
    println!("    events {}", size(postcard::to_stdvec(&s.events)));
}

fn main() {
    let mut c = Cluster::default();
    c.ok(format(3));
    let mut slowest = Duration::ZERO;
    timed("joins", NODES as u32, || {
        for n in 0..NODES {
            let start = Instant::now();
            c.ok(Command::NodeUp(hello(n, 1)));
            slowest = slowest.max(start.elapsed());
        }
    });
    println!("  slowest join {slowest:.1?}");
    timed("VDIs created", VDIS, || {
        for v in 0..VDIS {
            c.ok(create(&format!("pvc-{v:08x}-4b1c-4d9e-8a53-0123456789ab"), u128::from(v) << 64 | 1));
        }
    });
    timed("sessions opened", VDIS, || {
        for v in 1..=VDIS {
            c.open(VdiId(v), u64::from(v) % NODES);
        }
    });
    let snap = |v: u32, g: u64| Command::Snapshot {
        vdis: vec![(VdiId(v), Some(sheepdog_proto::Generation(g)))],
        tag: "t".into(),
    };
    timed("snapshots", 10_000, || {
        for v in 1..=10_000 {
            c.ok(snap(v, u64::from(v)));
        }
    });
    timed("clones", 1_000, || {
        for v in 1..=1_000 {
            let clone = Command::Clone {
                source: VdiId(v),
                snapshot: SnapshotRef::Tag("t".into()),
                name: format!("clone-{v}"),
                uuid: u128::from(v),
                redundancy: None,
                flatten: false,
            };
            c.ok(clone);
        }
    });
    timed("snapshots deleted", 1_000, || {
        for v in 2_001..=3_000 {
            c.ok(Command::VdiDelete {
                vdi: VdiId(v),
                snapshot: Some(SnapshotRef::Id(1)),
                with_snapshots: false,
                at_once: false,
            });
        }
    });
    let layer = c.s.layers.values().find(|l| matches!(l.state, sheepdog_cluster::LayerState::Merging { .. }));
    let layer = layer.expect("a snapshot was deleted").id;
    timed("one layer merged by all nodes", NODES as u32, || {
        let epoch = c.s.epoch;
        for n in 0..NODES {
            c.ok(Command::LayerMerged { layer, node: node(n), epoch });
        }
    });
    sizes(&c.s);
    let map = timed("node map from nothing", 1, || c.s.node_map());
    timed("one more join", 1, || c.ok(Command::NodeUp(hello(NODES, 1))));
    let map = timed("node map after it", 1, || c.s.node_map_after(Some(&map)));
    timed("one node down", 1, || c.ok(Command::NodeDown { node: node(5), incarnation: 1 }));
    timed("node map after it", 1, || c.s.node_map_after(Some(&map)));
    let epoch = c.s.epoch;
    timed("all nodes synced", NODES as u32, || {
        for n in c.s.nodes.values().filter(|n| n.state == NodeState::Up).map(|n| n.id).collect::<Vec<_>>() {
            c.ok(Command::NodeSynced { node: n, incarnation: 1, epoch });
        }
    });
    let bytes = timed("encode", 1, || c.bytes());
    let back: ClusterState = timed("decode", 1, || postcard::from_bytes(&bytes).expect("decodes"));
    assert!(back == c.s);
    sizes(&c.s);
}
