//! How a data link gets its connection: directly, or through a third sheep when the direct way is closed although the map says that the peer is up.

use super::link::{Connector, LinkStream};
use crate::control::Control;
use crate::transport::around;
use sheepdog_cluster::NodeAddr;
use sheepdog_proto::NodeId;
use std::io;
use std::time::Duration;

/// How long one way may take.
const LIMIT: Duration = Duration::from_secs(3);

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
    let direct = async {
        let stream = straight(connector, to, addr).await?;
        Ok(Dialed { stream, through: None })
    };
    let refused = |e: &io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
    around::first(direct, through(connector, control, (to, addr), turn), refused).await
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

async fn through(
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
    for i in 0..thirds.len().min(around::MOST) {
        let (via, via_addr) = &thirds[(turn * around::MOST + i) % thirds.len()];
        let connect = connector.connect(to, addr, Some((*via, via_addr)));
        if let Ok(Ok(stream)) = tokio::time::timeout(around::EACH, connect).await {
            tracing::warn!(to = %to.short(), through = %via.short(), "no direct connection: going through another sheep");
            return Some(Dialed { stream, through: Some(*via) });
        }
    }
    None
}
