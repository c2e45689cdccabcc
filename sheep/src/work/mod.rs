//! Background work on the data thread: catching up (`sync`), giving space back (`reclaim`), reading everything now and then (`scrub`),
//! emptying a disk (`evacuate`), balance among disks (`balance`), looking after disks (`health`), erasure coding what has not been written for a while (`seal`) and removing strips that nobody needs (`sweep`).
//! All of it goes as fast as clients permit (`yielding`).

pub mod balance;
pub mod evacuate;
pub mod health;
pub mod reclaim;
pub mod scrub;
pub mod seal;
mod sweep;
pub mod sync;
pub mod yielding;
