//! Numbers that users, wire and disk agree on. Changing one of the sizes is a format change.

/// Unit of checksums, presence, recovery and the smallest write a replica sees, in bytes.
pub const BLOCK_SIZE: usize = 4096;
/// `log2(BLOCK_SIZE)`.
pub const BLOCK_SHIFT: u32 = 12;
/// Object size a VDI gets unless told otherwise, in bytes.
pub const DEFAULT_OBJECT_SIZE: u32 = 4 << 20;
/// Smallest object size, in bytes.
pub const MIN_OBJECT_SIZE: u32 = 1 << 20;
/// Largest object size, in bytes.
pub const MAX_OBJECT_SIZE: u32 = 64 << 20;
/// Most blocks an object can have.
pub const MAX_OBJECT_BLOCKS: u32 = MAX_OBJECT_SIZE >> BLOCK_SHIFT;
/// Largest payload of one peer message, in bytes: one NBD request at its largest never needs more per object.
pub const MAX_PAYLOAD: usize = 4 << 20;
/// Largest encoded metadata part of one peer message, in bytes.
pub const MAX_META: usize = 8 << 20;
/// Layer and VDI ids are 24 bit.
pub const MAX_LAYER_ID: u32 = (1 << 24) - 1;
/// Most sheep in a cluster.
pub const MAX_NODES: usize = 6144;
/// Virtual nodes per unit of weight.
pub const DEFAULT_VNODES: u32 = 128;
/// Copies a new VDI gets unless the cluster was formatted otherwise.
pub const DEFAULT_COPIES: u8 = 3;
/// Most copies of an object.
pub const MAX_COPIES: u8 = 16;
/// Smallest limit of bytes a second that a volume may have: a request of 1 MiB takes 16 s.
pub const MIN_BANDWIDTH: u64 = 64 << 10;
/// Client and admin port.
pub const DEFAULT_PORT: u16 = 7000;
/// The peer port is the client port plus this.
pub const DEFAULT_PEER_PORT_OFFSET: u16 = 1;
/// NBD port.
pub const DEFAULT_NBD_PORT: u16 = 10809;

const _: () = assert!(BLOCK_SIZE == 1 << BLOCK_SHIFT);
const _: () = assert!(MAX_PAYLOAD >= DEFAULT_OBJECT_SIZE as usize);
