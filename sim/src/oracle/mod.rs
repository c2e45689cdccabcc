//! What clients saw, and whether it can be explained.

pub mod history;
pub mod linearizable;
