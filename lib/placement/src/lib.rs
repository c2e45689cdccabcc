//! Which nodes hold an object: a ring of virtual nodes, each key seeing one in 64 of them; distinct zones first.
//!
//! Every node has 128 points on a circle of 2^64. A key starts at one place of the circle and goes round, over and over; at each point a
//! hash of (key, lap, point) decides whether it sees it. How far it is to the first point of a node that it sees, divided by the
//! node's weight, is the node's *distance* from the key. The nearest nodes, one per zone, hold the object.
//!
//! A node's distance depends on the key and on that node only. So a node that joins takes copies from others and nothing else moves,
//! a node that leaves gives only its own, and a change of weight moves only what that node gains or loses. Because each key sees other points, a node is
//! as evenly met as if it had thousands of them. `docs/design/placement.md` has the figures.
//!
//! Frozen for ever: hashes, constants and tie-breaking. Another result would move everybody's data.

pub mod check;
mod ring;

pub use ring::Ring;
use sheepdog_proto::NodeId;

/// One member of a ring.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Node.
    pub node: NodeId,
    /// Failure zone.
    pub zone: String,
    /// Its part of the data is in proportion to this, in whatever unit (0 = holds nothing).
    pub weight: u32,
}
