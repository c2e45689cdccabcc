//! Strips that nobody needs are removed, and those that are not where they belong brought there, by the node that keeps them.
//!
//! A strip may be there long before a copy points to it, and a copy may get it from another copy at any moment. So it is not enough that no copy needs it now: every copy, on a node that is up
//! and complete, has promised to take none with its number any more (`Request::Seals`). What one has promised stays, so they need not be asked at one moment, and it does not
//! matter what else is under way.

use super::seal::{Round, Sealer};
use crate::peer::strips::{ASKED, Sealed};
use crate::planted;
use crate::store::{ObjectSummary, Store};
use sheepdog_cluster::NodeMap;
use sheepdog_proto::peer::{Needs, Seal, Status};
use sheepdog_proto::{BLOCK_SHIFT, LayerId, NodeId, ObjectId};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// How often strips are looked at.
pub(super) const SWEEP: Duration = Duration::from_secs(60);

impl Sealer {
    /// Remove strips that nobody needs, and those that belong elsewhere and are there; `true`: all were looked at.
    pub(super) async fn sweep(&self, store: &Rc<Store>, round: &mut Round) -> bool {
        let map = self.replica.control.map();
        let mut after = Some(ObjectId(u64::MAX >> 1));
        loop {
            let page = store.list(after, ASKED);
            if let Err(why) = self.sweep_page(store, &page, &map, round).await {
                tracing::debug!(%why, "sweep");
                if self.replica.control.map().epoch != map.epoch {
                    return false;
                }
            }
            match page.last() {
                Some(last) if page.len() == ASKED => after = Some(last.oid),
                _ => break,
            }
            tokio::task::yield_now().await;
        }
        round.unneeded.retain(|oid, _| store.row(*oid).is_some());
        round.mixed.retain(|oid| store.row(*oid).is_some());
        true
    }

    async fn sweep_page(
        &self,
        store: &Rc<Store>,
        page: &[ObjectSummary],
        map: &NodeMap,
        round: &mut Round,
    ) -> Result<(), String> {
        let r = &self.replica;
        let whole = |n: &NodeId| map.nodes.get(n).is_some_and(|v| v.is_up() && v.synced >= map.epoch);
        // Who says something about which objects: each node is asked once.
        let mut asked: BTreeMap<NodeId, Vec<(ObjectId, LayerId, u32)>> = BTreeMap::new();
        let mut strips = Vec::new();
        for row in page {
            // Those of deleted layers go with `reclaim`.
            let known = r.control.read(|s| s.layers.contains_key(&row.oid.layer()));
            let Some(made_with) = r.redundancy(row.key.family).filter(|_| known) else { continue };
            let holders: Vec<NodeId> = map.acting(row.key, made_with).all().collect();
            if !holders.iter().all(whole) {
                continue;
            }
            for node in &holders {
                let of = asked.entry(*node).or_default();
                let this = (row.oid.whole(), row.key.family, 0);
                if of.last() != Some(&this) {
                    of.push(this);
                }
            }
            strips.push((row, holders));
        }
        let mut said: HashMap<ObjectId, Vec<Needs>> = HashMap::new();
        for (node, objects) in asked {
            let answers = r.seals(&[node], &objects, map.epoch).await?;
            for ((oid, ..), answer) in objects.iter().zip(answers.into_iter().flatten()) {
                said.entry(*oid).or_default().push(answer);
            }
        }
        for (row, holders) in strips {
            let said = said.get(&row.oid.whole()).map_or(&[][..], Vec::as_slice);
            if said.len() < holders.len() {
                continue;
            }
            let first = &said[0];
            let same = |needs: &Needs| needs.seal == first.seal || needs.stat.version != first.stat.version;
            if holders.first() == Some(&r.control.me()) && !said.iter().all(same) {
                round.mixed.insert(row.oid.whole());
            }
            if let Err(why) = self.sweep_one(store, row, (&holders, said), map, round).await {
                tracing::debug!(oid = %row.oid, %why, "sweep");
            }
        }
        Ok(())
    }

    /// `said`: what all holders of its object say.
    async fn sweep_one(
        &self,
        store: &Rc<Store>,
        row: &ObjectSummary,
        (holders, said): (&[NodeId], &[Needs]),
        map: &NodeMap,
        round: &mut Round,
    ) -> Result<(), String> {
        let r = &self.replica;
        let Some((_, role)) = row.oid.strip() else { return Ok(()) };
        let mut use_of = verdict(row, said);
        if use_of != Use::Perhaps {
            round.unneeded.remove(&row.oid);
        }
        match use_of {
            Use::Unknown | Use::Never => {}
            Use::Needed(seal) => {
                let mine =
                    map.strip_targets(row.key, seal.strips()).get(usize::from(role)).copied().flatten();
                let Some(node) = mine.filter(|n| *n != r.control.me()) else { return Ok(()) };
                // What is being moved, nodes get themselves.
                if map.rings.len() != 1 {
                    return Err("not where it belongs yet".into());
                }
                if r.has_strips(node, vec![(row.oid, seal)]).await? != [true] {
                    self.bring(store, row, seal, node).await?;
                }
                use_of = Use::Never;
            }
            Use::Perhaps => {
                let (digest, now) = (row.epoch.0, Instant::now());
                let since = round.unneeded.entry(row.oid).or_insert((digest, now));
                if since.0 != digest {
                    *since = (digest, now);
                }
                // Its object is being put away just now, most likely. What nobody has taken for so long nobody shall take.
                if now - since.1 < planted::pace(SWEEP) {
                    return Ok(());
                }
                let number = Seal::number_in(row.epoch.0).checked_add(1).ok_or("not a strip's number")?;
                let object = (row.oid.whole(), row.key.family, number);
                let said = r.seals(holders, &[object], map.epoch).await?;
                use_of = verdict(row, &said.into_iter().flatten().collect::<Vec<_>>());
            }
        }
        if use_of != Use::Never {
            return Ok(());
        }
        tracing::trace!(me = %r.control.me().short(), oid = %row.oid, "strip is not needed");
        // By another map it may belong here, or others are to be asked.
        let still = || r.control.map().epoch == map.epoch;
        store.remove_strip(row, still).await.map_err(|e| e.to_string())
    }

    /// Have the node keep the strip whose place it is, instead of this one.
    async fn bring(
        &self,
        store: &Rc<Store>,
        row: &ObjectSummary,
        seal: Seal,
        node: NodeId,
    ) -> Result<(), String> {
        let r = &self.replica;
        let known = r.control.read(|s| s.families.get(&row.key.family).map(|f| f.object_size));
        let (Some((_, role)), Some(object_size)) = (row.oid.strip(), known) else { return Ok(()) };
        let of = Sealed { oid: row.oid.whole(), family: row.key.family, object_size, seal };
        let rows = 0..of.shape().rows();
        r.sync.throttle((rows.len() << BLOCK_SHIFT) as u64).await;
        let strip = store.read_object(row.oid, rows).await.map_err(|e| e.to_string())?;
        r.send_strip(node, of, role, row.vdi, &strip.data).await
    }
}

/// Whether a strip is of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Not every copy can say.
    Unknown,
    /// Contents of this seal are in it.
    Needed(Seal),
    /// No copy needs it now.
    Perhaps,
    /// No copy needs it, and none ever will.
    Never,
}

/// What all holders of its object say of a strip. They need not say it at the same moment: what one has promised stays, so none gets it from another one in between.
fn verdict(row: &ObjectSummary, said: &[Needs]) -> Use {
    if said.is_empty() || said.iter().any(|needs| needs.stat.status != Status::Ok) {
        return Use::Unknown;
    }
    let slot = row.oid.strip().map(|(slot, _)| slot);
    let this = |s: &Seal| (Some(s.slot), s.version, s.digest) == (slot, row.version, row.epoch.0);
    if let Some(seal) = said.iter().find_map(|needs| needs.seal.filter(this)) {
        return Use::Needed(seal);
    }
    let number = Seal::number_in(row.epoch.0);
    // Of what is half made nobody was told; and where there is no object, there is nothing that could need it.
    let gone = row.filling || said.iter().all(|needs| !needs.here);
    match gone || said.iter().all(|needs| needs.promises(number.saturating_add(1))) {
        true => Use::Never,
        false => Use::Perhaps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_proto::peer::ObjectStat;
    use sheepdog_proto::{Epoch, PlacementKey, VdiId, Version};

    const SEAL: Seal = Seal { version: Version::NONE, digest: 1, slot: 0, data: 4, parity: 2 };

    fn needs(seal: Option<Seal>, promised: Option<u32>) -> Needs {
        let (status, epoch) = (Status::Ok, Epoch(1));
        let stat = ObjectStat { status, version: Version::NONE, epoch, promised: promised.unwrap_or(0) };
        Needs { stat, here: promised.is_some(), seal }
    }

    #[test]
    fn a_strip_is_of_no_use_when_every_copy_has_promised_so() {
        let seal = |number: u64| Seal { digest: number << 32 | 7, ..SEAL };
        let strip = ObjectSummary {
            oid: ObjectId::data(LayerId(1), 2).strip_of(0, 3),
            epoch: Epoch(seal(4).digest),
            key: PlacementKey { family: LayerId(1), index: 2 },
            vdi: VdiId(1),
            object_size: 1 << 20,
            version: Version::NONE,
            filling: false,
            data_blocks: 1,
            seal: None,
            promised: 0,
        };
        let later = needs(Some(seal(5)), Some(5));
        assert_eq!(verdict(&strip, &[later, needs(None, Some(6))]), Use::Never);
        assert_eq!(verdict(&strip, &[later, needs(Some(seal(4)), Some(5))]), Use::Needed(seal(4)));
        // It is being put away: the copies have promised to take no earlier one.
        assert_eq!(verdict(&strip, &[needs(Some(seal(3)), Some(4)); 2]), Use::Perhaps);
        // Another copy that is hot, or there for the first time, may take it from somebody yet.
        assert_eq!(verdict(&strip, &[later, needs(None, Some(0))]), Use::Perhaps);
        assert_eq!(verdict(&strip, &[later, needs(None, None)]), Use::Perhaps);
        let mut away = later;
        away.stat.status = Status::NotHere;
        assert_eq!(verdict(&strip, &[later, away]), Use::Unknown);
        assert_eq!(verdict(&strip, &[]), Use::Unknown);
        assert_eq!(verdict(&strip, &[needs(None, None); 2]), Use::Never, "its object is nowhere");
        let half = ObjectSummary { filling: true, epoch: Epoch(0), ..strip };
        assert_eq!(verdict(&half, &[needs(None, Some(0)); 2]), Use::Never);
    }
}
