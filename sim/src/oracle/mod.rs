//! What clients saw, and whether it can be explained.

pub mod detached;
pub mod history;
pub mod linearizable;
