//! The client's side: handshake, then requests and replies.

mod handshake;
mod replies;

pub use handshake::{Connected, Goal, Handshake, Step, Wishes};
pub use replies::{Completion, Extent, Failed, Outcome, Replies};
