//! Sheep to sheep, data plane: links out (`link`), links in (`server`), and what a replica does when asked (`replica`).

pub mod adopt;
mod dial;
pub mod frame_io;
pub mod inventory;
pub mod link;
pub mod replica;
pub mod server;
mod strip_check;
pub(crate) mod strips;

pub use link::{Connector, Link, LinkError, LinkRow, LinkStream, Links};
pub use replica::Replica;
