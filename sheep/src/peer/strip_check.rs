//! Strips of an object compared with each other, and with the checksums that its copies have of what is in them.
//!
//! A strip that is missing or that cannot be read is made of the others. When all can be read and do not fit together, checksums of contents say who is right: data strips that do not
//! match them are made from others, and parity is what the data makes it.

use super::replica::Replica;
use super::strips::{Sealed, matches};
use bytes::Bytes;
use sheepdog_erasure::Codec;
use sheepdog_proto::peer::{PullHead, Request, Response, Status};
use sheepdog_proto::{BLOCK_SHIFT, BLOCK_SIZE, NodeId, VdiId};
use std::rc::Rc;

/// A strip that is not as it should be.
pub(crate) struct BadStrip {
    /// Where it should be.
    pub node: NodeId,
    /// Its number.
    pub role: u8,
    /// What is wrong.
    pub text: String,
    cure: Cure,
}

enum Cure {
    /// Nothing that can be done from here.
    None,
    /// Its own node has found it by now, and makes it again.
    Itself,
    /// It is not there, so it can be put there.
    Give,
    /// This takes its place.
    Replace(Vec<u8>),
}

impl BadStrip {
    /// Does its own node tell of it, too?
    pub(crate) fn is_told(&self) -> bool {
        matches!(self.cure, Cure::Itself)
    }
}

/// All strips of an object, by number; those that are wrong or not there are none.
type Strips = Vec<Option<Bytes>>;

/// The block at this row is what the object's copies say it is, as far as they say.
fn fits(of: Sealed, head: &PullHead, role: u8, strip: &[u8]) -> bool {
    let blocks = of.shape().blocks_of(role);
    let known = head.cold.set_runs().flatten().zip(&head.cold_crcs);
    known.filter(|(b, _)| blocks.contains(b)).all(|(b, crc)| {
        let at = ((b - blocks.start) as usize) << BLOCK_SHIFT;
        strip.get(at..at + BLOCK_SIZE).is_some_and(|block| matches(block, &[*crc]))
    })
}

/// All strips as they should be; `None`: too few of them are right.
fn right(of: Sealed, head: &PullHead, strips: &Strips) -> Result<Option<Vec<Vec<u8>>>, String> {
    let codec = Codec::new(of.seal.data, of.seal.parity).map_err(|e| e.to_string())?;
    let need = usize::from(of.seal.data);
    let mut known: Vec<Option<&[u8]>> = strips.iter().map(Option::as_deref).collect();
    for role in 0..of.seal.data {
        let slot = &mut known[usize::from(role)];
        *slot = slot.filter(|strip| fits(of, head, role, strip));
    }
    let lost: Vec<usize> = (0..need).filter(|r| known[*r].is_none()).collect();
    if known.iter().flatten().count() < need {
        return Ok(None);
    }
    let made = match lost.is_empty() {
        true => Vec::new(),
        false => codec.rebuild(&known, &lost).map_err(|e| e.to_string())?,
    };
    let mut made = lost.into_iter().zip(made).collect::<std::collections::BTreeMap<_, _>>();
    if !made.iter().all(|(role, strip)| fits(of, head, *role as u8, strip)) {
        return Ok(None);
    }
    let mut all: Vec<Vec<u8>> = (0..need)
        .map(|r| made.remove(&r).or_else(|| known[r].map(<[u8]>::to_vec)).unwrap_or_default())
        .collect();
    let data: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    let parity = codec.encode(&data).map_err(|e| e.to_string())?;
    all.extend(parity);
    Ok(Some(all))
}

impl Replica {
    /// Read all strips of an object where they should be, and compare them with each other: what is wrong with which.
    pub(crate) async fn check_strips(self: &Rc<Self>, of: Sealed) -> Result<Vec<BadStrip>, String> {
        let codec = Codec::new(of.seal.data, of.seal.parity).map_err(|e| e.to_string())?;
        let map = self.control.map();
        let rows = 0..of.shape().rows();
        let places = map.strip_targets(of.key(), of.seal.strips());
        let mut strips: Strips = vec![None; places.len()];
        let mut bad = Vec::new();
        for (role, node) in (0u8..).zip(&places) {
            let mut wrong = |text: &str, cure| {
                bad.push(BadStrip { node: node.unwrap_or_default(), role, text: text.into(), cure });
            };
            let Some(at) = *node else {
                wrong("has no place: add sheep", Cure::None);
                continue;
            };
            let request = Request::GetStrip { oid: of.strip(role), seal: of.seal, rows: rows.clone() };
            match self.ask_strips(at, request, Bytes::new()).await {
                Ok((Response::Strip, data)) if data.len() == rows.len() << BLOCK_SHIFT => {
                    strips[usize::from(role)] = Some(data);
                }
                Ok((Response::Failed(Status::NotHere, _), _)) => {
                    wrong("is not where it should be", Cure::Give);
                }
                Ok((Response::Failed(Status::Corrupt, _), _)) => {
                    wrong("is damaged: its node makes it again", Cure::Itself);
                }
                Ok((Response::Failed(_, why), _)) => wrong(&why, Cure::None),
                Ok(_) => wrong("unexpected answer", Cure::None),
                Err(why) => wrong(&format!("cannot be reached: {why}"), Cure::None),
            }
        }
        // Any D give back the others: the first of them are what the rest is compared with.
        let need = usize::from(of.seal.data);
        let there: Vec<usize> = (0..strips.len()).filter(|r| strips[*r].is_some()).collect();
        let Some((first, rest)) = there.split_at_checked(need) else { return Ok(bad) };
        let known: Vec<Option<&[u8]>> =
            (0..strips.len()).map(|r| strips[r].as_deref().filter(|_| first.contains(&r))).collect();
        let made = match rest.is_empty() {
            true => return Ok(bad),
            false => codec.rebuild(&known, rest).map_err(|e| e.to_string())?,
        };
        if rest.iter().zip(&made).all(|(r, made)| strips[*r].as_deref() == Some(made)) {
            return Ok(bad);
        }
        let right = match self.head_of(of).await {
            Some(head) => right(of, &head, &strips)?,
            None => None,
        };
        for role in there {
            let node = places.get(role).copied().flatten().unwrap_or_default();
            let (text, cure) = match &right {
                None => ("does not fit the others, and too few of them fit the checksums", Cure::None),
                Some(right) if strips[role].as_deref() == Some(&right[role]) => continue,
                Some(right) => ("does not fit the others", Cure::Replace(right[role].clone())),
            };
            bad.push(BadStrip { node, role: role as u8, text: text.into(), cure });
        }
        Ok(bad)
    }

    /// What a copy of the object says of what is in these strips.
    async fn head_of(self: &Rc<Self>, of: Sealed) -> Option<Box<PullHead>> {
        let map = self.control.map();
        let redundancy = self.redundancy(of.family)?;
        for node in map.acting(of.key(), redundancy).targets {
            let control_index = self.control.applied().index;
            let request = Request::PullHead { oid: of.oid, family: of.family, control_index };
            if let Ok(Response::Head(Some(head))) = self.ask(node, &request).await
                && head.check().is_ok()
                && head.seal == Some(of.seal)
            {
                return Some(head);
            }
        }
        None
    }

    /// Put a strip right, if that can be done from here.
    pub(crate) async fn mend_strip(
        self: &Rc<Self>,
        of: Sealed,
        bad: &BadStrip,
        vdi: VdiId,
    ) -> Result<(), String> {
        match &bad.cure {
            Cure::None | Cure::Itself => Err("not from here".into()),
            Cure::Give => self.give_strip(bad.node, of, bad.role, vdi).await,
            Cure::Replace(strip) => self.put_strip_at(bad.node, of, bad.role, vdi, strip, true).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_proto::checksum::crc32c;
    use sheepdog_proto::peer::Seal;
    use sheepdog_proto::{BlockMap, Epoch, LayerId, ObjectId, Version};

    const SIZE: u32 = 1 << 20;

    /// An object in 4:2, its strips, and what its copies say of it.
    fn object() -> (Sealed, PullHead, Strips) {
        let seal = Seal { version: Version::NONE, digest: 1, slot: 0, data: 4, parity: 2 };
        let of = Sealed { oid: ObjectId::data(LayerId(1), 0), family: LayerId(1), object_size: SIZE, seal };
        let contents: Vec<u8> = (0..SIZE).map(|i| (i / 4096) as u8 ^ (i % 253) as u8).collect();
        let codec = Codec::new(4, 2).expect("a code");
        let data: Vec<&[u8]> = contents.chunks_exact((SIZE / 4) as usize).collect();
        let parity = codec.encode(&data).expect("encodes");
        let strips = data.iter().copied().chain(parity.iter().map(Vec::as_slice));
        let mut cold = BlockMap::new(SIZE >> BLOCK_SHIFT);
        cold.set(0..SIZE >> BLOCK_SHIFT);
        let head = PullHead {
            version: Version::NONE,
            epoch: Epoch(1),
            vdi: VdiId(1),
            object_size: SIZE,
            present: cold.clone(),
            zero: BlockMap::new(SIZE >> BLOCK_SHIFT),
            dirty: BlockMap::new(SIZE >> BLOCK_SHIFT),
            dirty_since: None,
            tail: None,
            digest: 0,
            cold_crcs: contents.chunks_exact(BLOCK_SIZE).map(crc32c).collect(),
            cold,
            seal: Some(seal),
            promised: 1,
        };
        let strips = strips.map(|s| Some(Bytes::copy_from_slice(s))).collect();
        (of, head, strips)
    }

    fn spoil(strips: &mut Strips, role: usize, at: usize) {
        let mut strip = strips[role].take().expect("there").to_vec();
        strip[at] ^= 1;
        strips[role] = Some(strip.into());
    }

    #[test]
    fn checksums_say_which_strips_are_right() {
        let (of, head, whole) = object();
        let good: Vec<Vec<u8>> = whole.iter().flatten().map(|b| b.to_vec()).collect();
        assert_eq!(right(of, &head, &whole), Ok(Some(good.clone())));
        for (a, b) in [(0, 1), (0, 5), (3, 4)] {
            let mut strips = whole.clone();
            spoil(&mut strips, a, 5000);
            if b < 4 {
                spoil(&mut strips, b, 70_000);
                assert_eq!(right(of, &head, &strips), Ok(Some(good.clone())), "{a} and {b}");
            } else {
                strips[b] = None;
                assert_eq!(right(of, &head, &strips), Ok(Some(good.clone())), "{a} wrong, {b} gone");
            }
        }
        let mut strips = whole.clone();
        spoil(&mut strips, 4, 9);
        spoil(&mut strips, 5, 9);
        assert_eq!(right(of, &head, &strips), Ok(Some(good.clone())), "parity is what the data makes it");
    }

    #[test]
    fn nothing_is_made_of_strips_that_do_not_fit_the_checksums() {
        let (of, head, whole) = object();
        let mut strips = whole.clone();
        spoil(&mut strips, 0, 0);
        spoil(&mut strips, 4, 0);
        spoil(&mut strips, 5, 0);
        assert_eq!(right(of, &head, &strips), Ok(None), "made from a wrong parity it does not fit");
        let mut strips = whole;
        (strips[0], strips[1]) = (None, None);
        spoil(&mut strips, 2, 0);
        assert_eq!(right(of, &head, &strips), Ok(None), "too few");
    }

    #[test]
    fn what_is_written_since_is_not_compared() {
        let (of, mut head, mut strips) = object();
        head.cold.clear(1..2);
        head.cold_crcs.remove(1);
        spoil(&mut strips, 0, BLOCK_SIZE + 7);
        let all = right(of, &head, &strips).expect("a code").expect("enough");
        assert_eq!(
            Some(all[0].as_slice()),
            strips[0].as_deref(),
            "data that nobody knows the checksum of stays"
        );
        assert_ne!(Some(all[4].as_slice()), strips[4].as_deref());
    }
}
