//! Everything can be read through every node (P1, P4); what is read is part of the history that must be linearizable.

use crate::actors::client::{decode, registers};
use crate::oracle::history::{Kind, REGISTER};
use crate::world::World;
use sheep::session::volume::open_image;
use sheep::volume::VolumeError;
use std::rc::Rc;
use std::time::Duration;

pub async fn check(world: &Rc<World>) -> Vec<String> {
    let mut wrong = Vec::new();
    for i in 0..world.nodes.len() {
        let all = registers();
        let asks: Vec<(u64, Kind)> = all.iter().map(|r| (*r, Kind::Read(0))).collect();
        let asked =
            world.history.ask(1_000 + i as u64, &asks, format!("the last reads, through node {}", i + 1));
        let vdi = world.vdi;
        let places: Vec<u64> = all.iter().map(|r| world.place(*r)).collect();
        let read = world.call(i, move |ctx| async move {
            let volume = open_image(&ctx.node.gateway, vdi, None).await?;
            let mut data = Vec::new();
            for at in places {
                data.extend(volume.read(at, REGISTER as u32).await?.concat());
            }
            volume.close().await;
            Ok::<_, VolumeError>(data)
        });
        match tokio::time::timeout(Duration::from_secs(300), read).await {
            Ok(Ok(Ok(data))) => match decode(&data) {
                Ok(values) => world.history.answer(&asked, Some(&values)),
                Err(torn) => wrong.push(torn),
            },
            other => {
                let here = world.call(i, move |ctx| async move { ctx.node.gateway.describe(vdi) }).await;
                let mut text = format!("reading through node {}: {other:?}: {here:?}", i + 1);
                for j in 0..world.nodes.len() {
                    let d = world
                        .call(j, |ctx| async move {
                            let r = &ctx.node.replica;
                            let stats = r.store.as_ref().map(|s| s.stats());
                            format!("{:?} {stats:?} {:?}", r.links.rows(), r.sync.state())
                        })
                        .await;
                    text += &format!("\n    node {}: {d:?}", j + 1);
                }
                wrong.push(world.explain(&text));
            }
        }
    }
    wrong
}
