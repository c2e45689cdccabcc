//! Who acts in the simulated world.

pub mod chaos;
pub mod client;
pub mod operator;
