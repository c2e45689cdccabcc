//! Who acts in the simulated world.

pub mod attaching;
pub mod chaos;
pub mod client;
pub mod disks;
pub mod operator;
