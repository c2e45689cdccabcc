//! Background work on the data thread: catching up (`sync`), giving space back (`reclaim`).

pub mod reclaim;
pub mod sync;
