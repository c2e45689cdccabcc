//! How a data link gets its connection: directly, or through a third sheep when the direct way is closed although the map says that the peer is up.

use super::link::{Connector, LinkStream};
use crate::control::Control;
use sheepdog_cluster::NodeAddr;
use sheepdog_proto::NodeId;
use std::io;
use std::time::Duration;

/// How long one way may take.
const LIMIT: Duration = Duration::from_secs(3);
/// A direct connection that takes longer gets company.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long one third sheep gets.
const AROUND_LIMIT: Duration = Duration::from_millis(1_500);
/// So many third sheep are asked per try; the next try begins with others.
const AROUND: usize = 3;
/// Between two looks whether the direct way is open again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// A connection that has not greeted yet.
pub(super) struct Dialed {
    pub stream: Box<dyn LinkStream>,
    /// The sheep in between.
    pub through: Option<NodeId>,
}

/// Connect to `to`. `turn` is different in each try.
///
/// # Errors
///
/// Those of the direct way: a refused connection means that the peer's process is not there, and nobody can help.
pub(super) async fn dial(
    connector: &dyn Connector,
    control: &Control,
    (to, addr): (NodeId, &NodeAddr),
    turn: usize,
) -> io::Result<Dialed> {
    let direct = straight(connector, to, addr);
    let around = async {
        tokio::time::sleep(PATIENCE).await;
        around(connector, control, (to, addr), turn).await
    };
    tokio::pin!(direct, around);
    let (mut failed, mut nobody) = (None, false);
    loop {
        tokio::select! {
            biased;
            r = &mut direct, if failed.is_none() => match r {
                Ok(stream) => return Ok(Dialed { stream, through: None }),
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return Err(e),
                Err(e) => failed = Some(e),
            },
            r = &mut around, if !nobody => match r {
                Some(dialed) => return Ok(dialed),
                None => nobody = true,
            },
        }
        if nobody && let Some(e) = failed {
            return Err(e);
        }
    }
}

/// The direct way alone.
pub(super) async fn straight(
    connector: &dyn Connector,
    to: NodeId,
    addr: &NodeAddr,
) -> io::Result<Box<dyn LinkStream>> {
    let connect = connector.connect(to, addr, None);
    tokio::time::timeout(LIMIT, connect).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn around(
    connector: &dyn Connector,
    control: &Control,
    (to, addr): (NodeId, &NodeAddr),
    turn: usize,
) -> Option<Dialed> {
    let map = control.map();
    let others = |(id, _): &(&NodeId, _)| **id != to && **id != control.me();
    let thirds: Vec<(NodeId, NodeAddr)> = map
        .nodes
        .iter()
        .filter(others)
        .filter(|(_, n)| n.is_up())
        .map(|(id, n)| (*id, n.addr.clone()))
        .collect();
    for i in 0..thirds.len().min(AROUND) {
        let (via, via_addr) = &thirds[(turn * AROUND + i) % thirds.len()];
        let connect = connector.connect(to, addr, Some((*via, via_addr)));
        if let Ok(Ok(stream)) = tokio::time::timeout(AROUND_LIMIT, connect).await {
            tracing::warn!(to = %to.short(), through = %via.short(), "no direct connection: going through another sheep");
            return Some(Dialed { stream, through: Some(*via) });
        }
    }
    None
}
