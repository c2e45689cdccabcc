//! Background work on the data thread: catching up (`sync`), giving space back (`reclaim`), reading everything now and then (`scrub`),
//! emptying a disk (`evacuate`), erasure coding what has not been written for a while (`seal`).

pub mod evacuate;
pub mod reclaim;
pub mod scrub;
pub mod seal;
pub mod sync;
