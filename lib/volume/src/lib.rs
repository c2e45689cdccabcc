//! The arithmetic of a volume, pure: byte ranges to objects and blocks, the order of overlapping requests, the commit watermark.

pub mod order;
pub mod range;
pub mod watermark;

pub use order::RangeLocks;
pub use range::{Piece, pieces};
pub use watermark::Watermark;
