//! The object file.
//!
//! ```text
//! 0        slot A of the metadata   M bytes (a multiple of 4 KiB, 8 KiB for a 4 MiB object)
//! M        slot B
//! 2 M      block 0, block 1, ...    sparse: absent and zero blocks take no space
//! ```
//! Metadata goes to the two slots in turn, each with a counter and a CRC-32C: a torn write leaves the other slot, and the journal has what it lacks.
//! A slot: magic, format version, counter, ids, versions, epochs, seal, then three bit maps (present, zero, dirty) and one CRC-32C per block. A block that is marked as
//! zero and not as present is *cold*: its contents are in strips of the object, which `seal` names, and its checksum is theirs.

use sheepdog_proto::checksum::crc32c;
use sheepdog_proto::peer::Seal;
use sheepdog_proto::{
    BLOCK_SHIFT, BLOCK_SIZE, BlockMap, Epoch, LayerId, MAX_OBJECT_SIZE, MIN_OBJECT_SIZE, ObjectId,
    PlacementKey, VdiId, Version,
};
use std::ops::Range;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "SHPOBJ01".
const MAGIC: u64 = u64::from_le_bytes(*b"SHPOBJ01");
/// Format version of a slot.
const FORMAT: u32 = 1;
/// Of a slot with a seal.
const FORMAT_SEALED: u32 = 2;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    magic: U64,
    counter: U64,
    oid: U64,
    version_generation: U64,
    version_seq: U64,
    epoch: U64,
    dirty_since: U64,
    dirty_last: U64,
    format: U32,
    family: U32,
    vdi: U32,
    object_size: U32,
    /// 1: filling, 2: dirty_since is set.
    flags: U32,
    seal_generation: U64,
    seal_seq: U64,
    seal_digest: U64,
    seal_slot: u8,
    seal_data: u8,
    seal_parity: u8,
    promised: U32,
    reserved: [u8; 121],
    /// Of the whole slot with this field zero.
    crc: U32,
}
const HEAD: usize = size_of::<Head>();
const _: () = assert!(HEAD == 240);

/// Metadata of one object, in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Object.
    pub oid: ObjectId,
    /// Placement key.
    pub key: PlacementKey,
    /// VDI.
    pub vdi: VdiId,
    /// Bytes.
    pub object_size: u32,
    /// Last step.
    pub version: Version,
    /// Epoch of last change.
    pub epoch: Epoch,
    /// Being filled.
    pub filling: bool,
    /// Blocks this layer has.
    pub present: BlockMap,
    /// Of these, zeros.
    pub zero: BlockMap,
    /// Changed while somebody was away.
    pub dirty: BlockMap,
    /// Epoch of the first such change.
    pub dirty_since: Option<Epoch>,
    /// Epoch of the last.
    pub dirty_last: Epoch,
    /// Of `present`, blocks whose contents are not in this file but in strips.
    pub cold: BlockMap,
    /// In which; there is one exactly when some block is cold.
    pub seal: Option<Seal>,
    /// No seal of a lower number is taken any more, whatever becomes of this one: others remove strips because of that.
    pub promised: u32,
    /// CRC-32C of every data block, cold ones too; 0 for others.
    pub crcs: Vec<u32>,
}

/// What a slot says.
#[derive(Debug, PartialEq, Eq)]
pub enum Slot {
    /// Valid, with its counter.
    Valid(u64, Box<Meta>),
    /// Never written.
    Blank,
    /// Damaged.
    Broken,
}

/// Bytes of one slot for an object size.
pub fn slot_len(object_size: u32) -> usize {
    let blocks = (object_size >> BLOCK_SHIFT) as usize;
    (HEAD + 3 * blocks / 8 + 4 * blocks).next_multiple_of(BLOCK_SIZE)
}

/// Offset of a block's data.
pub fn data_offset(object_size: u32, block: u32) -> u64 {
    2 * slot_len(object_size) as u64 + ((block as u64) << BLOCK_SHIFT)
}

/// Length of the file.
pub fn file_len(object_size: u32) -> u64 {
    data_offset(object_size, object_size >> BLOCK_SHIFT)
}

impl Meta {
    /// These blocks changed while a holder was away (`floor`: what even the least complete one has). Marks that everybody has seen by now go first.
    pub fn mark_dirty(&mut self, blocks: &[Range<u32>], epoch: Epoch, floor: Option<Epoch>) {
        let Some(floor) = floor else { return };
        if self.dirty_since.is_some() && self.dirty_last < floor {
            self.dirty = BlockMap::new(self.blocks());
            self.dirty_since = None;
        }
        for r in blocks {
            self.dirty.set(r.clone());
        }
        self.dirty_since.get_or_insert(epoch);
        self.dirty_last = epoch;
    }
    /// An object nobody has written yet.
    pub fn new(oid: ObjectId, key: PlacementKey, vdi: VdiId, object_size: u32) -> Self {
        let blocks = object_size >> BLOCK_SHIFT;
        Self {
            oid,
            key,
            vdi,
            object_size,
            version: Version::NONE,
            epoch: Epoch(0),
            filling: false,
            present: BlockMap::new(blocks),
            zero: BlockMap::new(blocks),
            dirty: BlockMap::new(blocks),
            dirty_since: None,
            dirty_last: Epoch(0),
            cold: BlockMap::new(blocks),
            seal: None,
            promised: 0,
            crcs: vec![0; blocks as usize],
        }
    }
    /// Number of blocks.
    pub fn blocks(&self) -> u32 {
        self.object_size >> BLOCK_SHIFT
    }
    /// Blocks with contents in this file.
    pub fn data(&self) -> BlockMap {
        let mut data = self.present.clone();
        data.subtract(&self.zero);
        data.subtract(&self.cold);
        data
    }
    /// Does the block have contents in this file?
    pub fn has_data(&self, block: u32) -> bool {
        self.present.get(block) && !self.zero.get(block) && !self.cold.get(block)
    }
    /// These blocks have been written, or removed: what is in strips does not count for them any more.
    pub fn warm(&mut self, blocks: Range<u32>) {
        if self.seal.is_some() {
            self.cold.clear(blocks);
            if self.cold.is_empty() {
                self.seal = None;
            }
        }
    }
    /// Checksums of cold blocks, in order.
    pub fn cold_crcs(&self) -> Vec<u32> {
        self.cold.set_runs().flatten().filter_map(|b| self.crcs.get(b as usize).copied()).collect()
    }
    /// Equal contents, equal digest, whatever the history and wherever they are.
    pub fn digest(&self) -> u64 {
        let mut h = xxhash_rust::xxh3::Xxh3::new();
        for (b, crc) in self.crcs.iter().enumerate() {
            let b = b as u32;
            let state: u32 = match (self.present.get(b), self.zero.get(b)) {
                (false, _) => 0,
                (true, true) => 1,
                (true, false) => 2,
            };
            h.update(&state.to_le_bytes());
            h.update(&(if state == 2 { *crc } else { 0 }).to_le_bytes());
        }
        h.digest()
    }
    /// Bytes of a slot.
    pub fn encode(&self, counter: u64, out: &mut [u8]) {
        out.fill(0);
        let none = Seal { version: Version::NONE, digest: 0, slot: 0, data: 0, parity: 0 };
        let seal = self.seal.unwrap_or(none);
        let head = Head {
            magic: MAGIC.into(),
            counter: counter.into(),
            oid: self.oid.0.into(),
            version_generation: self.version.generation.into(),
            version_seq: self.version.seq.into(),
            epoch: self.epoch.0.into(),
            dirty_since: self.dirty_since.unwrap_or_default().0.into(),
            dirty_last: self.dirty_last.0.into(),
            format: if self.seal.is_some() { FORMAT_SEALED } else { FORMAT }.into(),
            family: self.key.family.0.into(),
            vdi: self.vdi.0.into(),
            object_size: self.object_size.into(),
            flags: (u32::from(self.filling) | u32::from(self.dirty_since.is_some()) << 1).into(),
            seal_generation: seal.version.generation.into(),
            seal_seq: seal.version.seq.into(),
            seal_digest: seal.digest.into(),
            seal_slot: seal.slot,
            seal_data: seal.data,
            seal_parity: seal.parity,
            promised: self.promised.into(),
            reserved: [0; 121],
            crc: 0.into(),
        };
        out[..HEAD].copy_from_slice(head.as_bytes());
        let mut at = HEAD;
        let (mut present, mut zero) = (self.present.clone(), self.zero.clone());
        present.subtract(&self.cold);
        zero.union(&self.cold);
        for map in [&present, &zero, &self.dirty] {
            for w in map.words() {
                out[at..at + 8].copy_from_slice(&w.to_le_bytes());
                at += 8;
            }
        }
        for crc in &self.crcs {
            out[at..at + 4].copy_from_slice(&crc.to_le_bytes());
            at += 4;
        }
        let crc = crc32c(out);
        out[HEAD - 4..HEAD].copy_from_slice(&crc.to_le_bytes());
    }
    /// Checked parse of a slot of `oid`.
    pub fn decode(oid: ObjectId, slot: &[u8]) -> Slot {
        let Ok((head, _)) = Head::ref_from_prefix(slot) else { return Slot::Broken };
        if slot.iter().take(HEAD).all(|b| *b == 0) {
            return Slot::Blank;
        }
        let size = head.object_size.get();
        let sane = head.magic.get() == MAGIC
            && [FORMAT, FORMAT_SEALED].contains(&head.format.get())
            && head.oid.get() == oid.0
            // It goes up by one with every write of a header: near its end it was never counted.
            && head.counter.get() <= u64::MAX >> 8
            && size.is_power_of_two()
            && (MIN_OBJECT_SIZE..=MAX_OBJECT_SIZE).contains(&size)
            && slot_len(size) <= slot.len();
        if !sane {
            return Slot::Broken;
        }
        let slot = &slot[..slot_len(size)];
        let mut copy = slot.to_vec();
        copy[HEAD - 4..HEAD].fill(0);
        if crc32c(&copy) != head.crc.get() {
            return Slot::Broken;
        }
        let blocks = (size >> BLOCK_SHIFT) as usize;
        let words = |i: usize| {
            let from = HEAD + i * blocks / 8;
            let chunks = slot[from..from + blocks / 8].as_chunks::<8>().0;
            BlockMap::from_words(chunks.iter().map(|c| u64::from_le_bytes(*c)).collect())
        };
        let crcs = slot[HEAD + 3 * blocks / 8..][..4 * blocks].as_chunks::<4>().0;
        let flags = head.flags.get();
        let (mut present, mut zero) = (words(0), words(1));
        let (mut cold, mut seal) = (BlockMap::new(blocks as u32), None);
        if head.format.get() == FORMAT_SEALED {
            cold = zero.clone();
            cold.subtract(&present);
            zero.subtract(&cold);
            present.union(&cold);
            let version = Version { generation: head.seal_generation.get(), seq: head.seal_seq.get() };
            let (slot, data, parity) = (head.seal_slot, head.seal_data, head.seal_parity);
            let found = Seal { version, digest: head.seal_digest.get(), slot, data, parity };
            if cold.is_empty() || found.check().is_err() {
                return Slot::Broken;
            }
            seal = Some(found);
        }
        Slot::Valid(
            head.counter.get(),
            Box::new(Self {
                oid,
                key: PlacementKey { family: LayerId(head.family.get()), index: oid.index() },
                vdi: VdiId(head.vdi.get()),
                object_size: size,
                version: Version { generation: head.version_generation.get(), seq: head.version_seq.get() },
                epoch: Epoch(head.epoch.get()),
                filling: flags & 1 != 0,
                present,
                zero,
                cold,
                seal,
                promised: head.promised.get(),
                dirty: words(2),
                dirty_since: (flags & 2 != 0).then(|| Epoch(head.dirty_since.get())),
                dirty_last: Epoch(head.dirty_last.get()),
                crcs: crcs.iter().map(|c| u32::from_le_bytes(*c)).collect(),
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        for size in [1 << 20, 4 << 20, 64 << 20] {
            let oid = ObjectId::data(LayerId(7), 3);
            let mut m = Meta::new(oid, PlacementKey { family: LayerId(5), index: 3 }, VdiId(5), size);
            m.present.set(3..9);
            m.zero.set(4..5);
            m.dirty.set(8..9);
            m.dirty_since = Some(Epoch(9));
            m.crcs[3] = 77;
            if size > 1 << 20 {
                m.cold.set(6..8);
                m.crcs[6] = 9;
                let version = Version { generation: 2, seq: 8 };
                m.seal = Some(Seal { version, digest: 77, slot: 3, data: 16, parity: 15 });
            }
            m.version = Version { generation: 3, seq: 4 };
            m.promised = 5;
            let mut slot = vec![0; slot_len(size)];
            assert_eq!(Meta::decode(oid, &slot), Slot::Blank);
            m.encode(12, &mut slot);
            assert_eq!(Meta::decode(oid, &slot), Slot::Valid(12, Box::new(m.clone())));
            slot[HEAD + 1] ^= 1;
            assert_eq!(Meta::decode(oid, &slot), Slot::Broken);
            assert_eq!(Meta::decode(oid, &slot[..100]), Slot::Broken);
        }
        assert_eq!(slot_len(4 << 20), 8192);
    }

    #[test]
    fn digest_looks_at_contents_only() {
        let key = PlacementKey { family: LayerId(5), index: 3 };
        let mut a = Meta::new(ObjectId::data(LayerId(5), 3), key, VdiId(5), 1 << 20);
        let mut b = a.clone();
        a.version = Version { generation: 9, seq: 9 };
        assert_eq!(a.digest(), b.digest());
        b.present.set(0..1);
        assert_ne!(a.digest(), b.digest());
    }
}
