//! Background work on the data thread: catching up (`sync`), giving space back (`reclaim`), reading everything now and then (`scrub`),
//! emptying a disk (`evacuate`).

pub mod evacuate;
pub mod reclaim;
pub mod scrub;
pub mod sync;
