//! Front-ends: one folder each, same shape, each knows only `crate::volume`.

pub mod admin;
pub mod nbd;
