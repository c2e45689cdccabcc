//! Sessions: one owner per attached VDI orders its writes (`owner`), other gateways forward to it (`attach`), front-ends see
//! volumes (`volume`).

pub mod attach;
mod attachments;
pub(crate) mod opens;
pub mod owner;
pub mod read;
pub mod replicate;
mod resume;
pub mod takeover;
pub mod volume;

pub use attach::{Gateway, HoldError};
pub use owner::{Session, SessionError};
