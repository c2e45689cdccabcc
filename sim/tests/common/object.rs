//! The first object of a simulated world's volume.

use sheepdog_proto::{NodeId, ObjectId, PlacementKey};
use sheepdog_sim::world::World;

/// The volume's first object, and the nodes that hold it.
pub fn first_object(world: &World) -> (ObjectId, PlacementKey, Vec<usize>) {
    let (oid, key, ids): (_, _, Vec<NodeId>) = world.authority.read(|s| {
        let v = &s.vdis[&world.vdi];
        let key = PlacementKey { family: v.family, index: 0 };
        let acting = s.node_map().acting(key, s.families[&v.family].redundancy);
        (ObjectId::data(v.top.expect("a layer"), 0), key, acting.all().collect())
    });
    let holders = ids.iter().filter_map(|id| world.nodes.iter().position(|n| n.id == *id)).collect();
    (oid, key, holders)
}
