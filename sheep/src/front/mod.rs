//! Front-ends: one folder each, same shape, each knows only `crate::volume`.

pub mod nbd;
