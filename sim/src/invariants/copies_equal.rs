//! All copies of all objects are there and equal (P1), by the product's own check with every block read.

use crate::world::World;
use sheep::front::admin::backend::Image;
use sheep::node::check;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

pub async fn check(world: &Rc<World>) -> Vec<String> {
    let vdi = world.vdi;
    let run = world.call(0, move |ctx| async move {
        let (tx, mut rx) = mpsc::channel(64);
        let work = check::check(ctx.node.clone(), Image { vdi, layer: None }, false, tx);
        let collect = async {
            let mut findings = Vec::new();
            while let Some(step) = rx.recv().await {
                findings.extend(step.finding.map(|f| format!("{f:?}")));
            }
            findings
        };
        let (done, mut findings) = tokio::join!(work, collect);
        if let Err(e) = done {
            findings.push(format!("the check failed: {e}"));
        }
        findings
    });
    match tokio::time::timeout(Duration::from_secs(300), run).await {
        Ok(Ok(findings)) => findings,
        other => vec![world.explain(&format!("the check does not end: {other:?}"))],
    }
}
