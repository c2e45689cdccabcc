//! The ring, and the search for the nearest nodes.
//!
//! Nodes whose weights are within a factor of four share a *class*: one sorted list of points. A search has a horizon, a distance up to which every class
//! is looked at; it grows until enough nodes are found within it. That is an index only: the answer is defined by distances.

use crate::Member;
use sheepdog_proto::{NodeId, PlacementKey};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Points of a node.
const POINTS: u32 = 128;
/// A key sees one in 2^6 = 64 points.
const SIGHT_BITS: u32 = 6;
/// In this lap a key sees all points. 64 laps without seeing one of 128 have a chance of 10^-56: it bounds the search, nothing else.
const LAST_LAP: usize = 63;
/// Once round.
const CIRCLE: f64 = 4_294_967_296.0;
/// Points per entry of the table of starts, about.
const STRIDE: usize = 8;
/// A class of more groups than this is never skipped before its end.
const FEW: usize = 16;

/// An immutable ring. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ring {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// By id.
    members: Vec<Member>,
    /// Number of each member's zone.
    zones: Vec<u32>,
    /// Distinct zones with a holder.
    zone_count: usize,
    /// Members with a weight.
    holders: usize,
    /// Their weights.
    total: f64,
    classes: Vec<Class>,
}

/// Points of the nodes with weights from 4^n to 4^(n+1).
#[derive(Debug)]
struct Class {
    /// (position, member), sorted.
    points: Vec<(u32, u32)>,
    /// Where the points of each equal part of the circle begin.
    starts: Vec<u32>,
    /// Leading bits of a position that choose the part.
    bits: u32,
    /// 1 / the greatest weight: no node is nearer than its way times this.
    nearest: f64,
    /// Distinct members and zones, when they are few.
    members: Vec<u32>,
    zones: Vec<u32>,
}

/// What nodes are to differ in.
#[derive(Clone, Copy, PartialEq)]
enum Distinct {
    Zones,
    Nodes,
}

/// A node that was seen.
#[derive(Clone, Copy)]
struct Found {
    distance: f64,
    member: u32,
    group: u32,
}

/// Where a key begins, and what it sees.
struct Gaze {
    start: u32,
    eye: u64,
}

impl Gaze {
    fn new(key: PlacementKey) -> Self {
        let mut bytes = [0u8; 8];
        bytes[..4].copy_from_slice(&key.family.0.to_be_bytes());
        bytes[4..].copy_from_slice(&key.index.to_be_bytes());
        let hash = xxh3_128(&bytes);
        Self { start: hash as u32, eye: (hash >> 64) as u64 }
    }

    /// The part of the hash of (key, lap, point) that is the same for all points.
    fn in_lap(&self, lap: usize) -> u64 {
        self.eye.wrapping_add((lap as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// Does a key see a point? The finalizer of MurmurHash3, of which the leading bits count.
fn sees(eye: u64, point: u32) -> bool {
    let mut x = eye ^ u64::from(point);
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x >> (64 - SIGHT_BITS) == 0
}

fn point(node: NodeId, n: u32) -> u32 {
    let mut bytes = [0u8; 20];
    bytes[..16].copy_from_slice(&node.0.to_be_bytes());
    bytes[16..].copy_from_slice(&n.to_be_bytes());
    xxh3_64(&bytes) as u32
}

impl Class {
    fn new(of: &[u32], members: &[Member], zones: &[u32]) -> Self {
        let mut all = Vec::with_capacity(of.len() * POINTS as usize);
        for m in of {
            all.extend((0..POINTS).map(|n| (point(members[*m as usize].node, n), *m)));
        }
        all.sort_unstable();
        let bits = (all.len() / STRIDE).next_power_of_two().trailing_zeros().max(1);
        let mut starts = Vec::with_capacity((1 << bits) + 1);
        let mut at = 0;
        for part in 0..1u32 << bits {
            while all.get(at).is_some_and(|(p, _)| p >> (32 - bits) < part) {
                at += 1;
            }
            starts.push(at as u32);
        }
        starts.push(all.len() as u32);
        let few = |groups: BTreeSet<u32>| {
            if groups.len() <= FEW { groups.into_iter().collect() } else { Vec::new() }
        };
        let heaviest = of.iter().map(|m| members[*m as usize].weight).max().unwrap_or(1);
        Self {
            points: all,
            starts,
            bits,
            nearest: 1.0 / f64::from(heaviest),
            members: few(of.iter().copied().collect()),
            zones: few(of.iter().map(|m| zones[*m as usize]).collect()),
        }
    }

    /// The first point at or after a position.
    fn first(&self, position: u32) -> usize {
        let part = (position >> (32 - self.bits)) as usize;
        let (from, to) = (self.starts[part] as usize, self.starts[part + 1] as usize);
        from + self.points[from..to].partition_point(|(p, _)| *p < position)
    }
}

/// One search: the nearest nodes that differ in zone, or just differ.
struct Search<'a> {
    ring: &'a Inner,
    gaze: Gaze,
    distinct: Distinct,
    want: usize,
    /// Nearest of each group, nearest group first, at most `want`.
    found: Vec<Found>,
}

impl Search<'_> {
    /// Farther than this is of no use.
    fn bound(&self, horizon: f64) -> f64 {
        if self.found.len() < self.want {
            return horizon;
        }
        self.found.last().map_or(horizon, |f| f.distance.min(horizon))
    }

    fn offer(&mut self, member: u32, way: f64) {
        let weight = self.ring.members[member as usize].weight;
        let distance = way * (1.0 / f64::from(weight));
        let group = if self.distinct == Distinct::Zones { self.ring.zones[member as usize] } else { member };
        let before = |f: &Found| (f.distance, f.member) < (distance, member);
        let at = self.found.partition_point(before);
        if self.found[..at].iter().any(|f| f.group == group) {
            return;
        }
        if let Some(i) = self.found.iter().position(|f| f.group == group) {
            self.found.remove(i);
        } else if self.found.len() == self.want {
            if at == self.want {
                return;
            }
            self.found.pop();
        }
        self.found.insert(at, Found { distance, member, group });
    }

    /// Look at the points of a class from the `at`-th on, as far as the horizon. Returns where to go on.
    fn scan(&mut self, class: &Class, first: usize, mut at: usize, horizon: f64) -> usize {
        let len = class.points.len();
        loop {
            let (lap, off) = (at / len, at % len);
            if lap > LAST_LAP {
                return at;
            }
            let behind = lap as f64 * CIRCLE;
            // Rounded up: a point too many does no harm.
            let reach = (self.bound(horizon) / class.nearest - behind) * (1.0 + 1e-9) + 1.0;
            if reach <= 0.0 {
                return at;
            }
            let reach = reach as u32;
            let eye = self.gaze.in_lap(lap);
            let (from, to) = if first + off < len { (first + off, len) } else { (first + off - len, first) };
            let mut hit = None;
            for (n, (p, member)) in class.points[from..to].iter().enumerate() {
                let way = p.wrapping_sub(self.gaze.start);
                if way > reach {
                    return at + n;
                }
                if sees(eye, *p) || lap == LAST_LAP {
                    hit = Some((n, *member, way));
                    break;
                }
            }
            let Some((n, member, way)) = hit else {
                at += to - from;
                continue;
            };
            self.offer(member, behind + f64::from(way));
            at += n + 1;
        }
    }

    fn run(&mut self) {
        let rarity = f64::from(1u32 << SIGHT_BITS) / f64::from(POINTS);
        let mut horizon = self.want as f64 * rarity * CIRCLE / self.ring.total;
        // Up to here nothing can be missing.
        let mut scanned = 0.0;
        let starts = self.ring.classes.iter().map(|c| (c.first(self.gaze.start), 0));
        let mut cursors: Vec<(usize, usize)> = starts.collect();
        loop {
            let mut more = false;
            for (class, cursor) in self.ring.classes.iter().zip(&mut cursors) {
                if cursor.1 / class.points.len() > LAST_LAP || self.exhausted(class, scanned) {
                    continue;
                }
                cursor.1 = self.scan(class, cursor.0, cursor.1, horizon);
                more = true;
            }
            let full = self.found.len() == self.want;
            if !more || full && self.found.last().is_none_or(|f| f.distance <= horizon) {
                return;
            }
            scanned = horizon;
            horizon *= 1.5;
        }
    }

    /// All that this class could give is found and final.
    fn exhausted(&self, class: &Class, scanned: f64) -> bool {
        let groups = if self.distinct == Distinct::Zones { &class.zones } else { &class.members };
        let have = |g: &u32| self.found.iter().any(|f| f.group == *g && f.distance <= scanned);
        !groups.is_empty() && groups.len() <= self.found.len() && groups.iter().all(have)
    }
}

impl Ring {
    /// Build; O(points).
    pub fn new(mut members: Vec<Member>) -> Self {
        members.sort_by_key(|m| m.node);
        let mut names: BTreeMap<&str, u32> = BTreeMap::new();
        let mut zones = Vec::with_capacity(members.len());
        let mut classes: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (i, m) in members.iter().enumerate() {
            let Some(log) = m.weight.checked_ilog2() else {
                zones.push(u32::MAX);
                continue;
            };
            let next = names.len() as u32;
            zones.push(*names.entry(&m.zone).or_insert(next));
            classes.entry(log / 2).or_default().push(i as u32);
        }
        let zone_count = names.len();
        let holders = classes.values().map(Vec::len).sum();
        let total = members.iter().map(|m| f64::from(m.weight)).sum();
        let classes = classes.values().map(|of| Class::new(of, &members, &zones)).collect();
        Self { inner: Arc::new(Inner { members, zones, zone_count, holders, total, classes }) }
    }

    /// The very same ring, not one that was built again.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Members, by id.
    pub fn members(&self) -> &[Member] {
        &self.inner.members
    }

    /// The `count` nodes nearest to the key, nearest first: in distinct zones as far as there are zones, then distinct nodes. Fewer when there are
    /// fewer nodes.
    pub fn targets(&self, key: PlacementKey, count: usize) -> Vec<NodeId> {
        let want = count.min(self.inner.zone_count);
        let mut nodes = self.search(key, Distinct::Zones, want);
        let all = count.min(self.inner.holders);
        if nodes.len() < all {
            let near = self.search(key, Distinct::Nodes, all);
            let others: Vec<u32> = near.into_iter().filter(|n| !nodes.contains(n)).collect();
            nodes.extend(others.into_iter().take(all - want));
        }
        nodes.into_iter().map(|m| self.inner.members[m as usize].node).collect()
    }

    /// Nodes for the strips of an erasure coded object, by the strip's number: the nearest `count` nodes, as `targets`, and each pair of strip and node has a score. The pairs
    /// are taken from the best down, as far as both are still free: a stable matching (Gale and Shapley, 1962), so a node that goes or comes changes the strips of few others.
    /// With fewer nodes than strips some strips have none.
    pub fn strips(&self, key: PlacementKey, count: usize) -> Vec<Option<NodeId>> {
        let nodes = self.targets(key, count);
        let mut pairs: Vec<(u64, usize, NodeId)> = Vec::with_capacity(nodes.len() * count);
        for node in &nodes {
            let mut bytes = [0u8; 25];
            bytes[..16].copy_from_slice(&node.0.to_be_bytes());
            bytes[16..20].copy_from_slice(&key.family.0.to_be_bytes());
            bytes[20..24].copy_from_slice(&key.index.to_be_bytes());
            pairs.extend((0..count).map(|strip| {
                bytes[24] = strip as u8;
                (xxh3_64(&bytes), strip, *node)
            }));
        }
        pairs.sort_unstable_by(|a, b| b.cmp(a));
        let mut out = vec![None; count];
        let mut left = nodes.len();
        let mut taken = BTreeSet::new();
        for (_, strip, node) in pairs {
            if left == 0 {
                break;
            }
            if out[strip].is_none() && taken.insert(node) {
                out[strip] = Some(node);
                left -= 1;
            }
        }
        out
    }

    fn search(&self, key: PlacementKey, distinct: Distinct, want: usize) -> Vec<u32> {
        if want == 0 {
            return Vec::new();
        }
        let found = Vec::with_capacity(want + 1);
        let mut search = Search { ring: &self.inner, gaze: Gaze::new(key), distinct, want, found };
        search.run();
        search.found.iter().map(|f| f.member).collect()
    }
}
