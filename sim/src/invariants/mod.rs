//! Promises that are looked at when everything has healed. Each returns what is wrong.

pub mod copies_equal;
pub mod everyone_synced;
mod snapshots_unchanged;
mod volume_readable;

use crate::world::World;
use std::rc::Rc;

/// All of them, in an order in which the later ones may rely on the earlier.
pub async fn all(world: &Rc<World>) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let named = |name: &'static str, what: Vec<String>| what.into_iter().map(move |w| (name, w));
    found.extend(named("everyone_synced", everyone_synced::check(world).await));
    if found.is_empty() {
        found.extend(named("volume_readable", volume_readable::check(world).await));
        found.extend(named("copies_equal", copies_equal::check(world).await));
        found.extend(named("snapshots_unchanged", snapshots_unchanged::check(world).await));
    }
    found
}
