//! Random commands, sensible and not: the invariants hold after every one, and every state machine that applies the same log has the same bytes.

mod common;

use common::{Cluster, hello, node};
use sheepdog_cluster::{
    Access, AttachmentRef, ClusterState, Command, DiskEntry, Entry, EventLevel, NodeHello, NodeMap,
    Redundancy, Reply, SnapshotRef,
};
use sheepdog_proto::{AttachmentId, ControlIndex, DiskId, Epoch, Generation, LayerId, VdiId};

/// xorshift64*: the same numbers for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n.max(1)
    }
    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
    fn of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[self.below(all.len() as u64) as usize])
    }
}

const NODES: u64 = 6;

fn some_vdi(d: &mut Dice, s: &ClusterState) -> VdiId {
    let all: Vec<VdiId> = s.vdis.keys().copied().collect();
    if d.chance(20) { VdiId(d.below(50) as u32) } else { d.of(&all).unwrap_or(VdiId(1)) }
}

fn some_snapshot(d: &mut Dice, s: &ClusterState, v: VdiId) -> SnapshotRef {
    let ids: Vec<u32> = s.vdis.get(&v).map_or(Vec::new(), |v| v.snapshots.iter().map(|x| x.id).collect());
    let id = d.of(&ids).unwrap_or(1);
    if d.chance(4) { SnapshotRef::Tag(format!("t{}", d.below(6))) } else { SnapshotRef::Id(id) }
}

/// Mostly what its session would say.
fn some_generation(d: &mut Dice, s: &ClusterState, v: VdiId) -> Option<Generation> {
    use sheepdog_cluster::Session;
    if d.chance(15) {
        return d.chance(2).then(|| Generation(d.below(s.last_generation + 2)));
    }
    match s.vdis.get(&v).map(|v| &v.session) {
        Some(Session::Open { generation, .. }) => Some(*generation),
        _ => None,
    }
}

fn member(d: &mut Dice, s: &ClusterState) -> (u64, u64) {
    let n = d.below(NODES);
    let incarnation = s.nodes.get(&node(n)).map_or(1, |n| n.incarnation);
    (n, if d.chance(15) { incarnation + 1 } else { incarnation })
}

fn membership(d: &mut Dice, s: &ClusterState) -> Command {
    let (n, incarnation) = member(d, s);
    let id = node(n);
    match d.below(16) {
        0..=3 => Command::NodeUp(NodeHello {
            zone: (n % 3 != 0).then(|| format!("z{}", n % 2)),
            weight: if d.chance(8) { 500 + d.below(2_000) as u32 } else { 1_000 },
            gateway: n == 5,
            disks: vec![DiskEntry {
                id: DiskId(u128::from(n) * 10 + u128::from(d.below(12) / 11)),
                path: "/d".into(),
                capacity: 1,
                retired: false,
                missing: false,
            }],
            has_data: !d.chance(6),
            ..hello(n, incarnation + d.below(2))
        }),
        4..=5 => Command::NodeDown { node: id, incarnation },
        6 => Command::NodeOut { node: id },
        7 => Command::NodeDrain { node: id, on: d.chance(2) },
        8..=12 => {
            let epoch = Epoch(s.epoch.0.saturating_sub(d.below(3)) + d.below(8) / 7);
            Command::NodeSynced { node: id, incarnation, epoch }
        }
        13 => Command::NodeWeight {
            node: id,
            weight: d.chance(2).then(|| d.below(4_000) as u32),
            vnodes: d.chance(2).then(|| d.below(70_000) as u32),
        },
        14 => Command::DiskRetired { node: id, disk: DiskId(u128::from(n) * 10) },
        _ => match d.below(12) {
            0 => Command::Force { reason: "dice".into() },
            1 => Command::Shutdown,
            3 => Command::DiskEmptied { node: id, incarnation: d.below(4), disk: DiskId(u128::from(n) * 10) },
            2 => Command::Note { level: EventLevel::Info, text: "dice".into() },
            _ => Command::DiskAdded {
                node: id,
                disk: DiskEntry {
                    id: DiskId(u128::from(n) * 10 + 2),
                    path: "/e".into(),
                    capacity: 1,
                    retired: false,
                    missing: false,
                },
            },
        },
    }
}

fn volumes(d: &mut Dice, s: &ClusterState) -> Command {
    let v = some_vdi(d, s);
    let name = format!("v{}", d.below(14));
    let uuid = u128::from(s.index.0) + 1;
    let (n, incarnation) = member(d, s);
    match d.below(40) {
        34..=37 => {
            let access = d.of(&[Access::Single, Access::Shared, Access::Shared, Access::ReadOnly]);
            let holder = format!("n{}", d.below(4));
            Command::Attach { vdi: v, holder, access: access.unwrap_or(Access::Single) }
        }
        38..=39 => {
            let which = match d.below(4) {
                0 => AttachmentRef::All,
                1 => AttachmentRef::Id(AttachmentId(d.below(s.last_attachment + 2))),
                _ => AttachmentRef::Holder(format!("n{}", d.below(4))),
            };
            Command::Detach { vdi: v, which }
        }
        30..=31 => Command::GatewayOpen { vdi: v, node: node(n), incarnation },
        32..=33 => {
            let open = s.vdis.get(&v).and_then(|v| v.gateways.get(&node(n)));
            let since = open.map_or(s.index, |g| g.since);
            Command::GatewayClose { vdi: v, node: node(n), since, fence: d.chance(2) }
        }
        0..=3 => Command::VdiCreate {
            name,
            uuid: if d.chance(10) { 5 } else { uuid },
            size: d.below(4) << 20,
            redundancy: d.chance(3).then(|| Redundancy::Copies(d.below(5) as u8)),
            object_size: None,
        },
        4 => Command::VdiDelete { vdi: v, snapshot: None, with_snapshots: d.chance(3), at_once: d.chance(3) },
        5..=9 => Command::VdiDelete {
            vdi: v,
            snapshot: Some(some_snapshot(d, s, v)),
            with_snapshots: false,
            at_once: d.chance(3),
        },
        10 => Command::VdiRename { vdi: v, name },
        11 => Command::VdiResize { vdi: v, size: d.below(9) << 9, generation: some_generation(d, s, v) },
        12..=15 => {
            let more = some_vdi(d, s);
            let mut vdis = vec![(v, some_generation(d, s, v))];
            if d.chance(3) {
                vdis.push((more, some_generation(d, s, more)));
            }
            Command::Snapshot {
                vdis,
                tag: if d.chance(3) { String::new() } else { format!("t{}", d.below(6)) },
            }
        }
        16..=17 => Command::Clone {
            source: v,
            snapshot: some_snapshot(d, s, v),
            name,
            uuid,
            redundancy: None,
            flatten: d.chance(3),
        },
        18 => Command::FlattenStart { vdi: v },
        19 => Command::FlattenDone { vdi: v, generation: some_generation(d, s, v).unwrap_or(Generation(0)) },
        20 => Command::Rollback {
            vdi: v,
            snapshot: some_snapshot(d, s, v),
            generation: some_generation(d, s, v),
        },
        21 => Command::SetAttr {
            vdi: v,
            key: format!("k{}", d.below(3)),
            value: d.chance(2).then(|| vec![1]),
            exclusive: d.chance(2),
        },
        22 => Command::Lock { vdi: v, holder: format!("h{}", d.below(3)), exclusive: d.chance(2) },
        23 => Command::Unlock { vdi: v, holder: d.chance(2).then(|| format!("h{}", d.below(3))) },
        24..=26 => Command::SessionOpen { vdi: v, node: node(n), incarnation },
        27..=28 => {
            Command::SessionReady { vdi: v, generation: some_generation(d, s, v).unwrap_or(Generation(0)) }
        }
        _ => Command::SessionClose { vdi: v, generation: some_generation(d, s, v).unwrap_or(Generation(0)) },
    }
}

/// The clock of these runs is the position: tens of entries are a long time.
fn trash(d: &mut Dice, s: &ClusterState) -> Command {
    let held: Vec<_> = s.trash.iter().copied().collect();
    let (_, vdi, number) = d.of(&held).unwrap_or((0, some_vdi(d, s), d.below(3) as u32));
    let number = if d.chance(10) { d.below(4) as u32 } else { number };
    let snapshot = (number != 0).then_some(number);
    match d.below(10) {
        0..=3 => Command::TrashRestore {
            vdi,
            snapshot,
            name: d.chance(2).then(|| format!("{}{}", if number == 0 { "v" } else { "t" }, d.below(14))),
        },
        4 => Command::TrashPurge { vdi, snapshot },
        5..=6 => Command::TrashExpire,
        7 => Command::SetTrash { keep: d.below(3) * 60 },
        _ => {
            let v = some_vdi(d, s);
            let until = (s.index.0 + d.below(100)).saturating_sub(10);
            Command::SnapshotLock { vdi: v, snapshot: some_snapshot(d, s, v), until }
        }
    }
}

fn any_command(d: &mut Dice, s: &ClusterState) -> Command {
    match d.below(10) {
        0..=1 => membership(d, s),
        4 if d.chance(2) => trash(d, s),
        2..=3 => {
            let merging = |l: &&sheepdog_cluster::Layer| {
                matches!(l.state, sheepdog_cluster::LayerState::Merging { .. })
            };
            let all: Vec<LayerId> = s.layers.values().filter(merging).map(|l| l.id).collect();
            let layer = d.of(&all).unwrap_or(LayerId(1));
            let epoch = Epoch(s.epoch.0 - u64::from(d.chance(10)));
            Command::LayerMerged { layer, node: node(d.below(NODES)), epoch }
        }
        _ => volumes(d, s),
    }
}

fn run(seed: u64, steps: u32) {
    let mut d = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut c = Cluster::new(4, 2);
    let mut refused = 0;
    let mut map = c.s.node_map();
    for _ in 0..steps {
        let command = any_command(&mut d, &c.s);
        let request = if d.chance(3) { u128::from(d.0) } else { 0 };
        let entry = Entry { now: c.s.index.0, request, command };
        let reply = c.entry(c.s.index.next(), entry.clone());
        refused += u32::from(matches!(reply, Reply::Error(_)));
        if request != 0 && d.chance(3) {
            // A lost answer: the same entry again gives the same answer and changes nothing but the position.
            let before = c.s.clone();
            assert_eq!(c.entry(c.s.index.next(), entry), reply, "seed {seed}");
            assert!(ClusterState { index: c.s.index, ..before } == c.s, "seed {seed}");
        }
        // Whoever keeps a map as long as it says that it is right has the right one.
        if !map.is_of(&c.s) {
            map = c.s.node_map_after(Some(&map));
        }
        let fresh = c.s.node_map_after(Some(&map));
        let of = |m: &NodeMap| {
            let rings: Vec<_> = m.rings.iter().map(|(epoch, r)| (*epoch, r.members().to_vec())).collect();
            // Families that were deleted may still be in it: nobody asks for them.
            let lost: Vec<_> =
                m.lost.iter().map(|(disk, l)| (*disk, l.epoch, l.outdated, l.rewound)).collect();
            (m.epoch, m.nodes.clone(), m.away.clone(), m.altered.clone(), lost, rings)
        };
        assert_eq!(of(&map), of(&fresh), "seed {seed}");
        if d.chance(200) {
            let back: ClusterState = postcard::from_bytes(&c.bytes()).expect("decodes");
            assert!(back == c.s, "seed {seed}");
            c.s = back;
        }
    }
    assert!(refused > steps / 20 && refused < steps * 9 / 10, "seed {seed}: {refused} of {steps} refused");
    let mut other = ClusterState::default();
    for (i, entry) in c.log.iter().enumerate() {
        other.apply(ControlIndex(i as u64 + 1), entry);
    }
    assert_eq!(postcard::to_stdvec(&other).expect("encodes"), c.bytes(), "seed {seed}");
}

#[test]
fn invariants_hold_whatever_is_asked() {
    for seed in 1..=150 {
        run(seed, 700);
    }
}
