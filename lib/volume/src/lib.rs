//! The arithmetic of a volume, pure: byte ranges to objects and blocks, the order of overlapping requests, the commit watermark, at most once, limits of speed.

pub mod limit;
pub mod once;
pub mod order;
pub mod range;
pub mod turns;
pub mod watermark;

pub use limit::{Limiter, Rate};
pub use once::{Once, Seen};
pub use order::RangeLocks;
pub use range::{Piece, pieces};
pub use turns::{Turn, Turns};
pub use watermark::Watermark;
