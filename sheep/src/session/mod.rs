//! Sessions: one owner per attached VDI orders its writes (`owner`), other gateways forward to it (`attach`), front-ends see
//! volumes (`volume`). `cache` keeps blocks in memory where that is asked for.

pub mod attach;
mod attachments;
pub mod cache;
pub(crate) mod opens;
pub mod owner;
mod pace;
pub mod read;
pub(crate) mod repeats;
pub mod replicate;
mod resume;
pub mod takeover;
pub mod volume;

pub use attach::{Gateway, HoldError};
pub use owner::{Session, SessionError};
