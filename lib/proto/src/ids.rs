//! Names of things. Newtypes, so that an epoch is never taken for a generation.

use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
        pub struct $name(pub u128);

        impl $name {
            /// From the text form that `Display` prints.
            pub fn parse(s: &str) -> Option<Self> {
                Uuid::parse_str(s).ok().map(|u| Self(u.as_u128()))
            }
            /// True for the all-zero id, which names nothing.
            pub fn is_nil(self) -> bool {
                self.0 == 0
            }
            /// First eight hex digits, for people.
            pub fn short(self) -> String {
                format!("{:08x}", (self.0 >> 96) as u32)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", Uuid::from_u128(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }
    };
}

uuid_id!(
    /// A sheep. Written on its disk, never derived from an address.
    NodeId
);
uuid_id!(
    /// A cluster. Written on every disk; a disk of another cluster is refused.
    ClusterId
);
uuid_id!(
    /// One disk (directory) of a sheep.
    DiskId
);

macro_rules! int_id {
    ($(#[$doc:meta])* $name:ident, $int:ty, $tag:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
        pub struct $name(pub $int);
        impl $name {
            /// The one after this.
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($tag, "{}"), self.0)
            }
        }
    };
}

int_id!(
    /// Version of the node map: every change of membership, state or weight makes a new one. 0 is before format.
    Epoch, u64, "e");
int_id!(
    /// A session's generation: one counter for the whole cluster, committed before it is used.
    Generation, u64, "g");
int_id!(
    /// A layer, and also a VDI (which is named by its first layer). 24 bit, from a counter, never used again.
    LayerId, u32, "l");
int_id!(
    /// A VDI: equal to the number of its first layer, stays the same through snapshots and rollback.
    VdiId, u32, "v");
int_id!(
    /// Somebody's right to use a VDI: from one counter for the whole cluster, never used again. 0 names none.
    AttachmentId, u64, "a");
int_id!(
    /// Position in the control plane's log. "At least this index" means "knows everything up to here".
    ControlIndex, u64, "i");

impl AttachmentId {
    /// No attachment.
    pub const NONE: Self = Self(0);
}

impl LayerId {
    /// Six hex digits, as in object names.
    pub fn hex(self) -> String {
        format!("{:06x}", self.0)
    }
}
impl VdiId {
    /// Six hex digits, as users see it.
    pub fn hex(self) -> String {
        format!("{:06x}", self.0)
    }
}

/// Name of an object: 8 bit type, 24 bit layer, 32 bit index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct ObjectId(pub u64);

/// Bit of the type byte.
const STRIP: u64 = 0x80;

impl ObjectId {
    /// A data object of a layer.
    pub fn data(layer: LayerId, index: u32) -> Self {
        Self(((layer.0 as u64 & 0xff_ffff) << 32) | index as u64)
    }
    /// A strip of an object whose contents were erasure coded. `slot` (0 to 3) tells seals of one object apart, `role` (0 to 31) is the number of the strip.
    pub fn strip_of(self, slot: u8, role: u8) -> Self {
        let kind = STRIP | u64::from(slot & 3) << 5 | u64::from(role & 31);
        Self(kind << 56 | self.0 & ((1 << 56) - 1))
    }
    /// Slot and role, if it is a strip.
    pub fn strip(self) -> Option<(u8, u8)> {
        let kind = self.kind();
        (u64::from(kind) & STRIP != 0).then_some((kind >> 5 & 3, kind & 31))
    }
    /// The object that a strip belongs to; a data object itself.
    pub fn whole(self) -> Self {
        Self(self.0 & ((1 << 56) - 1))
    }
    /// A data object, not a strip of one.
    pub fn is_data(self) -> bool {
        self.kind() == 0
    }
    /// Type byte: 0 is data; from 128 on a strip: 128 + 32 x slot + role.
    pub fn kind(self) -> u8 {
        (self.0 >> 56) as u8
    }
    /// Layer it belongs to.
    pub fn layer(self) -> LayerId {
        LayerId((self.0 >> 32) as u32 & 0xff_ffff)
    }
    /// Position in the VDI: byte offset / object size.
    pub fn index(self) -> u32 {
        self.0 as u32
    }
    /// From 16 hex digits.
    pub fn parse(s: &str) -> Option<Self> {
        (s.len() == 16).then(|| u64::from_str_radix(s, 16).ok().map(Self)).flatten()
    }
}
impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "o{:06x}.{:x}", self.layer().0, self.index())?;
        self.strip().map_or(Ok(()), |(slot, role)| write!(f, "/{slot}.{role}"))
    }
}

/// Place of a write in its object's log: the generation of the session that ordered it, then its number in the session.
/// `Version::NONE` is "never written".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Version {
    /// Session generation.
    pub generation: u64,
    /// Sequence in the session, from 1.
    pub seq: u64,
}

impl Version {
    /// Before the first write.
    pub const NONE: Self = Self { generation: 0, seq: 0 };
    /// Plain constructor.
    pub fn new(generation: Generation, seq: u64) -> Self {
        Self { generation: generation.0, seq }
    }
}
impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.seq)
    }
}
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.seq)
    }
}

/// Where an object's copies live is decided by this key: every layer of one chain shares the family, so
/// all layers of an object lie on the same nodes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct PlacementKey {
    /// Root layer of the chain.
    pub family: LayerId,
    /// Object index.
    pub index: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_id_packs() {
        let o = ObjectId::data(LayerId(0xabcdef), 0xffff_fff1);
        assert_eq!((o.kind(), o.layer(), o.index()), (0, LayerId(0xabcdef), 0xffff_fff1));
        assert_eq!(ObjectId::parse(&o.to_string()), Some(o));
        assert_eq!(ObjectId::parse("12"), None);
        let strip = o.strip_of(3, 30);
        assert_eq!((strip.strip(), strip.whole(), strip.layer()), (Some((3, 30)), o, o.layer()));
        assert!(o.is_data() && o.strip().is_none() && !strip.is_data());
        assert_eq!(strip.to_string(), "feabcdeffffffff1");
    }

    #[test]
    fn versions_order_by_generation_first() {
        let v = |g, s| Version { generation: g, seq: s };
        assert!(v(1, 900) < v(2, 1));
        assert!(Version::NONE < v(1, 1));
    }
}
