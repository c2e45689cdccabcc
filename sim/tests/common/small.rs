//! A further volume of a simulated world, and who holds its objects.

use sheepdog_cluster::{Command, Redundancy, Reply};
use sheepdog_proto::{NodeId, PlacementKey, VdiId};
use sheepdog_sim::world::World;

/// Make it, with this many copies.
pub fn create(world: &World, copies: u8, size: u64, object_size: Option<u32>) -> VdiId {
    let redundancy = Some(Redundancy::Copies(copies));
    let create = Command::VdiCreate { name: "small".into(), uuid: 2, size, redundancy, object_size };
    let Reply::Vdi(vdi) = world.authority.commit(create) else { panic!("not made") };
    vdi
}

/// Where one of its objects belongs now, in the order of the ring.
pub fn targets(world: &World, vdi: VdiId, index: u32) -> Vec<usize> {
    let ids: Vec<NodeId> = world.authority.read(|s| {
        let family = s.vdis[&vdi].family;
        s.node_map().acting(PlacementKey { family, index }, s.families[&family].redundancy).targets
    });
    ids.iter().filter_map(|id| world.nodes.iter().position(|n| n.id == *id)).collect()
}
