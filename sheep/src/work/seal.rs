//! Erasure coding: what has not been written for a while is put away in strips. (Those that nobody needs any more are removed by `sweep`.)
//!
//! The first holder of an object sees to it. It looks at everything that all copies agree on, makes the strips, has each kept by its node, and when all are on stable storage
//! asks the holders one by one, itself last, to give up what is in them. A holder does that only if its copy is still at the version that the strips were made of. Whatever
//! is cut short is begun again by whoever is the first holder then.
//!
//! Every attempt to seal an object has a number of its own, and before its strips are sent anywhere all copies promise to take none of a lower number any more.
//!
//! Nothing is sealed while anything is being moved or anybody is away, so strips are where the map says, all of them. What becomes of them later (nodes that go, disks that are
//! lost) is for each node to make good: `sync`.
//!
//! Volumes that are not erasure coded any more get their contents back here, too.

use super::sweep::SWEEP;
use crate::peer::Replica;
use crate::peer::strips::{ASKED, Sealed};
use crate::planted::{self, Bug};
use crate::store::{ObjectSummary, Store};
use futures::stream::{FuturesUnordered, StreamExt};
use sheepdog_cluster::{LayerState, NodeMap, Redundancy};
use sheepdog_erasure::Codec;
use sheepdog_proto::peer::{Needs, Seal, Status};
use sheepdog_proto::{BLOCK_SHIFT, BlockMap, Epoch, NodeId, ObjectId, Version};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often objects are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// An object is put away when it has not been written for so long.
const IDLE: Duration = Duration::from_secs(15);
/// Of an object's blocks so many must be here as copies, one in this: less is not worth reading all the rest.
const SHARE: u32 = 16;
/// Objects looked at before others get a turn.
const PAGE: usize = 256;
/// Objects that something may have to be done about, of each look: the rest is for the next one.
const MOST: u32 = 1000;
/// Blocks read at a time.
const CHUNK: u32 = 256;

/// The worker of one node.
pub struct Sealer {
    /// Holder side.
    pub replica: Rc<Replica>,
    /// Stop.
    pub stop: CancellationToken,
}

/// Where an object stood when it was last looked at.
struct Seen {
    version: Version,
    since: Instant,
    /// Nothing was to be done about it in this epoch, with this seal.
    rests: Option<(Epoch, Option<Seal>)>,
    /// In which pass over all objects it was seen.
    pass: u64,
}

/// How far the looking has come.
#[derive(Default)]
pub(super) struct Round {
    seen: HashMap<ObjectId, Seen>,
    /// Copies of these were found to need different strips: an attempt to seal them was cut short, and this node's own copy does not show it.
    pub(super) mixed: BTreeSet<ObjectId>,
    /// Strips that no copy needs and some may take yet: their digests, and since when.
    pub(super) unneeded: HashMap<ObjectId, (u64, Instant)>,
    /// Go on after this.
    at: Option<ObjectId>,
    pass: u64,
}

/// What is to be done about an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Todo {
    Nothing,
    /// Put it away in so many data and parity strips.
    Seal(u8, u8),
    /// Bring its contents back.
    Thaw,
}

/// So many blocks of the object as copies are worth it.
fn least(row: &ObjectSummary) -> u32 {
    if planted::hurried() { 1 } else { ((row.object_size >> BLOCK_SHIFT) / SHARE).max(1) }
}

/// `mixed`: its copies need different strips.
fn todo(row: &ObjectSummary, redundancy: Redundancy, mixed: bool) -> Todo {
    match redundancy {
        Redundancy::Copies(_) if row.sealed() => Todo::Thaw,
        Redundancy::Copies(_) => Todo::Nothing,
        Redundancy::Erasure { data, parity } => {
            let other_code = row.seal.is_some_and(|s| (s.data, s.parity) != (data, parity));
            match mixed || other_code || row.data_blocks >= least(row) {
                true => Todo::Seal(data, parity),
                false => Todo::Nothing,
            }
        }
    }
}

impl Sealer {
    /// Run until stopped.
    pub async fn run(self) {
        let stop = self.stop.clone();
        tokio::select! { biased; () = stop.cancelled() => {} () = self.work() => {} }
    }

    async fn work(&self) {
        let Some(store) = self.replica.store.clone() else { return };
        let mut round = Round::default();
        let mut swept: Option<(Instant, Epoch)> = None;
        let mut watch = self.replica.control.watch();
        loop {
            // Where nothing is erasure coded, or has been, nothing is looked at.
            if !self.replica.control.read(|s| s.has_strips()) && !store.has_strips() {
                round = Round::default();
                if watch.changed().await.is_err() {
                    return;
                }
                tokio::time::sleep(planted::pace(LOOK)).await;
                continue;
            }
            tokio::time::sleep(planted::pace(LOOK)).await;
            let control = &self.replica.control;
            if !control.lease_valid() || !self.replica.is_synced() || !control.read(|s| s.recovery.enabled) {
                continue;
            }
            self.round(&store, &mut round).await;
            let epoch = control.map().epoch;
            if swept.is_some_and(|(at, e)| at.elapsed() < planted::pace(SWEEP) && e == epoch) {
                continue;
            }
            if let Err(why) = self.replace_lost(&store).await {
                tracing::debug!(%why, "looking for lost strips");
            }
            if self.sweep(&store, &mut round).await {
                swept = Some((Instant::now(), epoch));
            }
        }
    }

    /// Look at some objects more, from where it was left off.
    async fn round(&self, store: &Rc<Store>, round: &mut Round) {
        let r = &self.replica;
        let now = Instant::now();
        let mut left = MOST;
        loop {
            let page = store.list(round.at, PAGE);
            for row in page.iter().filter(|row| row.oid.is_data()) {
                round.at = Some(row.oid);
                let Some(made_with) = r.redundancy(row.key.family).filter(|_| !row.filling) else { continue };
                let epoch = r.control.map().epoch;
                let redundancy = r.control.map().redundancy(row.key.family, made_with);
                let what = todo(row, redundancy, round.mixed.contains(&row.oid));
                if what == Todo::Nothing {
                    continue;
                }
                let pass = round.pass;
                let fresh = || Seen { version: row.version, since: now, rests: None, pass };
                let seen = round.seen.entry(row.oid).or_insert_with(fresh);
                if seen.version != row.version {
                    *seen = fresh();
                }
                seen.pass = pass;
                if seen.rests == Some((epoch, row.seal)) || now - seen.since < planted::pace(IDLE) {
                    continue;
                }
                left -= 1;
                let result = match what {
                    Todo::Seal(data, parity) => self.consider(store, row, data, parity).await,
                    _ => r.thaw(row.oid, row.key.family).await.map(|()| false),
                };
                match result {
                    Ok(true) => seen.rests = Some((epoch, row.seal)),
                    Ok(false) => drop(round.mixed.remove(&row.oid)),
                    Err(why) => tracing::debug!(oid = %row.oid, ?what, %why, "strips"),
                }
                if left == 0 {
                    return;
                }
            }
            // Strips come last.
            if page.len() < PAGE || page.last().is_none_or(|last| !last.oid.is_data()) {
                let pass = round.pass;
                round.seen.retain(|_, s| s.pass == pass);
                (round.at, round.pass) = (None, pass + 1);
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Everybody who has to do with the object is there, and nothing is being moved: (holders, nodes of the strips).
    fn everybody(
        &self,
        map: &NodeMap,
        row: &ObjectSummary,
        strips: u8,
    ) -> Option<(Vec<NodeId>, Vec<NodeId>)> {
        if map.rings.len() != 1 {
            return None;
        }
        let whole = |n: &NodeId| map.nodes.get(n).is_some_and(|v| v.is_up() && v.synced >= map.epoch);
        let made_with = self.replica.redundancy(row.key.family)?;
        let holders = map.acting(row.key, made_with).targets;
        let places: Vec<NodeId> = map.strip_targets(row.key, strips).into_iter().collect::<Option<_>>()?;
        (holders.iter().chain(&places).all(whole)
            && holders.len() >= map.redundancy(row.key.family, made_with).width())
        .then_some((holders, places))
    }

    /// Put an object away, if that is for this node to do and worth it. `true`: nothing is to be done about it as long as it and the map stay.
    async fn consider(
        &self,
        store: &Rc<Store>,
        row: &ObjectSummary,
        data: u8,
        parity: u8,
    ) -> Result<bool, String> {
        let r = &self.replica;
        let map = r.control.map();
        let Some((holders, places)) = self.everybody(&map, row, data + parity) else { return Ok(false) };
        if holders.first() != Some(&r.control.me()) {
            return Ok(true);
        }
        // What is being merged into another layer needs no strips.
        let lasts = r.control.read(|s| {
            s.layers.get(&row.oid.layer()).is_some_and(|l| !matches!(l.state, LayerState::Merging { .. }))
        });
        if lasts {
            self.put_away(store, row, (data, parity), &map, &holders, &places).await?;
        }
        Ok(false)
    }

    async fn put_away(
        &self,
        store: &Rc<Store>,
        row: &ObjectSummary,
        (data, parity): (u8, u8),
        map: &NodeMap,
        holders: &[NodeId],
        places: &[NodeId],
    ) -> Result<(), String> {
        let r = &self.replica;
        let (oid, family) = (row.oid, row.key.family);
        let text = |e: crate::store::StoreError| e.to_string();
        let said = r.seals(holders, &[(oid, family, 0)], map.epoch).await?;
        let number = equal(&said, row.version)?.checked_add(1).ok_or("it was sealed too often")?;
        let Some(info) = store.info(oid).await.map_err(text)? else { return Ok(()) };
        if info.version != row.version || info.filling {
            return Err("it was written meanwhile".into());
        }
        let mut blocks = info.present.clone();
        blocks.subtract(&info.zero);
        let put_away = info.seal.is_some_and(|s| (s.data, s.parity) == (data, parity)) && blocks == info.cold;
        if put_away && said.iter().flatten().all(|needs| needs.seal == info.seal) {
            return Ok(());
        }
        let (contents, crcs) = self.contents(store, row, &blocks).await?;
        let now = store.info(oid).await.map_err(text)?;
        if now.is_none_or(|n| n.version != row.version || n.present != info.present || n.zero != info.zero) {
            return Err("it was written meanwhile".into());
        }
        // From here on none of them takes strips of before, so what is not needed now may be replaced.
        let said = r.seals(holders, &[(oid, family, number)], map.epoch).await?;
        equal(&said, row.version)?;
        if said.iter().flatten().any(|needs| !needs.here || needs.stat.promised != number) {
            return Err("another attempt was begun meanwhile".into());
        }
        let used: Vec<u8> = said.iter().flatten().filter_map(|needs| needs.seal.map(|s| s.slot)).collect();
        let slot = (0..4).find(|s| !used.contains(s)).ok_or("too many seals of one object")?;
        let digest = u64::from(number) << 32 | u64::from(hash(slot, (data, parity), &blocks, &crcs));
        let seal = Seal { version: row.version, digest, slot, data, parity };
        let of = Sealed { oid, family, object_size: row.object_size, seal };
        let strips = encode(of, &contents)?;
        drop(contents);
        r.sync.throttle(strips.iter().map(|s| s.len() as u64).sum()).await;
        let mut sending: FuturesUnordered<_> = (0u8..)
            .zip(strips.iter().zip(places))
            .map(|(role, (strip, node))| r.send_strip(*node, of, role, row.vdi, strip))
            .collect();
        while let Some(sent) = sending.next().await {
            if !planted::is(Bug::HastySeal) {
                sent?;
            } else {
                break;
            }
        }
        drop(sending);
        let me = r.control.me();
        // This node last: as long as its own copy is not sealed it begins again.
        for node in holders.iter().filter(|n| **n != me).chain([&me]) {
            r.ask_to_seal(*node, of, &blocks, &crcs, map.epoch).await?;
        }
        tracing::debug!(%oid, version = %seal.version, blocks = blocks.count(), "put away in strips");
        Ok(())
    }

    /// The object's own contents (zeros elsewhere), and the checksums of its blocks.
    async fn contents(
        &self,
        store: &Rc<Store>,
        row: &ObjectSummary,
        blocks: &BlockMap,
    ) -> Result<(Vec<u8>, Vec<u32>), String> {
        let mut all = vec![0u8; row.object_size as usize];
        let mut crcs = Vec::with_capacity(blocks.count() as usize);
        for run in blocks.set_runs() {
            let mut first = run.start;
            while first < run.end {
                let chunk = first..(first + CHUNK).min(run.end);
                first = chunk.end;
                let look = || store.read_object(row.oid, chunk.clone());
                let read = self.replica.with_cold(row.key.family, chunk.start, look).await;
                let read = read.map_err(|e| e.to_string())?;
                if !read.absent.is_empty() {
                    return Err("it was written meanwhile".into());
                }
                let at = (chunk.start as usize) << BLOCK_SHIFT;
                all[at..at + read.data.len()].copy_from_slice(&read.data);
                crcs.extend(read.data.chunks_exact(1 << BLOCK_SHIFT).map(sheepdog_proto::checksum::crc32c));
            }
        }
        Ok((all, crcs))
    }

    /// Strips of objects that this node is the first holder of and that are not where they should be are made again: nothing tells of a file that is lost.
    async fn replace_lost(&self, store: &Rc<Store>) -> Result<(), String> {
        let r = &self.replica;
        let map = r.control.map();
        let mut after = None;
        loop {
            let page = store.list(after, ASKED);
            let mut asked: BTreeMap<NodeId, Vec<(Sealed, u8, &ObjectSummary)>> = BTreeMap::new();
            for row in page.iter().filter(|row| row.oid.is_data() && row.sealed() && !row.filling) {
                let Some(seal) = row.seal else { continue };
                let Some((holders, places)) = self.everybody(&map, row, seal.strips()) else { continue };
                if holders.first() != Some(&r.control.me()) {
                    continue;
                }
                let of = Sealed { oid: row.oid, family: row.key.family, object_size: row.object_size, seal };
                for (role, node) in (0u8..).zip(places) {
                    asked.entry(node).or_default().push((of, role, row));
                }
            }
            for (node, strips) in asked {
                for (of, role, row) in r.lacking(node, strips, |(of, role, _)| (*of, *role)).await? {
                    // Put away anew since it was asked for.
                    let now = store.row(row.oid).and_then(|(row, _)| row.seal);
                    if now != Some(of.seal) || r.control.map().epoch != map.epoch {
                        continue;
                    }
                    r.give_strip(node, of, role, row.vdi).await?;
                    tracing::warn!(oid = %of.strip(role), node = %node.short(), "a lost strip was made again");
                }
            }
            match page.last() {
                Some(last) if page.len() == ASKED && last.oid.is_data() => after = Some(last.oid),
                _ => return Ok(()),
            }
            tokio::task::yield_now().await;
        }
    }
}

/// The copies are whole and equal, as far as versions tell: the highest number that one of them has promised.
fn equal(said: &[Vec<Needs>], version: Version) -> Result<u32, String> {
    let mut all = said.iter().flatten();
    if !all.all(|needs| needs.stat.status == Status::Ok && needs.stat.version == version) {
        return Err("the copies are not equal yet".into());
    }
    Ok(said.iter().flatten().map(|needs| needs.stat.promised).max().unwrap_or(0))
}

/// What is in the strips, by which code, and under which names, in short.
fn hash(slot: u8, (data, parity): (u8, u8), blocks: &BlockMap, crcs: &[u32]) -> u32 {
    let mut h = xxhash_rust::xxh3::Xxh3::new();
    h.update(&[slot, data, parity]);
    for w in blocks.words() {
        h.update(&w.to_le_bytes());
    }
    for crc in crcs {
        h.update(&crc.to_le_bytes());
    }
    h.digest() as u32
}

/// All strips of an object's contents.
fn encode(of: Sealed, contents: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let shape = of.shape();
    let len = (shape.rows() as usize) << BLOCK_SHIFT;
    let mut strips: Vec<Vec<u8>> = (0..of.seal.data)
        .map(|role| {
            let blocks = shape.blocks_of(role);
            let bytes = (blocks.start as usize) << BLOCK_SHIFT..(blocks.end as usize) << BLOCK_SHIFT;
            let mut strip = contents.get(bytes).unwrap_or_default().to_vec();
            strip.resize(len, 0);
            strip
        })
        .collect();
    let codec = Codec::new(of.seal.data, of.seal.parity).map_err(|e| e.to_string())?;
    let data: Vec<&[u8]> = strips.iter().map(Vec::as_slice).collect();
    let parity = codec.encode(&data).map_err(|e| e.to_string())?;
    strips.extend(parity);
    Ok(strips)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_proto::{LayerId, PlacementKey, VdiId};

    const SEAL: Seal = Seal { version: Version::NONE, digest: 1, slot: 0, data: 4, parity: 2 };

    fn row(data_blocks: u32, sealed: bool) -> ObjectSummary {
        ObjectSummary {
            oid: ObjectId::data(LayerId(1), 2),
            key: PlacementKey { family: LayerId(1), index: 2 },
            vdi: VdiId(1),
            object_size: 4 << 20,
            version: Version { generation: 1, seq: 1 },
            epoch: Epoch(1),
            filling: false,
            data_blocks,
            seal: sealed.then_some(SEAL),
            promised: 0,
        }
    }

    #[test]
    fn what_is_worth_it() {
        let ec = Redundancy::Erasure { data: 4, parity: 2 };
        assert_eq!(todo(&row(63, false), ec, false), Todo::Nothing);
        assert_eq!(todo(&row(64, false), ec, false), Todo::Seal(4, 2));
        assert_eq!(todo(&row(63, true), ec, false), Todo::Nothing);
        assert_eq!(todo(&row(64, true), ec, false), Todo::Seal(4, 2));
        assert_eq!(todo(&row(0, true), ec, true), Todo::Seal(4, 2), "an attempt was cut short");
        assert_eq!(todo(&row(0, true), Redundancy::Erasure { data: 2, parity: 1 }, false), Todo::Seal(2, 1));
        assert_eq!(todo(&row(1024, false), Redundancy::Copies(3), false), Todo::Nothing);
        assert_eq!(todo(&row(0, true), Redundancy::Copies(3), false), Todo::Thaw);
    }

    #[test]
    fn strips_are_as_long_as_each_other() {
        let seal = Seal { version: Version::NONE, digest: 0, slot: 0, data: 3, parity: 2 };
        let of =
            Sealed { oid: ObjectId::data(LayerId(1), 0), family: LayerId(1), object_size: 1 << 20, seal };
        let contents: Vec<u8> = (0..1u32 << 20).map(|i| (i / 4096) as u8).collect();
        let strips = encode(of, &contents).expect("encodes");
        assert_eq!(strips.len(), 5);
        assert!(strips.iter().all(|s| s.len() == 86 << BLOCK_SHIFT));
        assert_eq!(strips[1][0], 86);
        assert_eq!(strips[2][84 << BLOCK_SHIFT..], [0; 2 << BLOCK_SHIFT]);
    }
}
