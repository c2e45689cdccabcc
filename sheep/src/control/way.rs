//! Ways to a node: straight, or through a third sheep that reaches both. Why: `docs/design/relay.md`.

use super::link::{CallError, Link, broken, host_port};
use super::rpc::Hello;
use crate::transport::{self, LinkKind, PeerTls, SETUP_TIMEOUT, around};
use sheepdog_cluster::NodeAddr;
use sheepdog_proto::NodeId;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Nodes that tests keep apart from this one.
pub(super) type Apart = Arc<Mutex<BTreeSet<NodeId>>>;

/// How to reach a node, as far as it was known when a link was wanted.
pub(super) struct Way {
    pub node: NodeId,
    pub addr: NodeAddr,
    /// Who may be asked to pass a link on, in this order.
    pub thirds: Vec<(NodeId, NodeAddr)>,
    pub tls: PeerTls,
    pub hello: Hello,
    pub apart: Apart,
    pub tracker: TaskTracker,
    pub stop: CancellationToken,
}

impl Way {
    /// Straight, or through another sheep when that takes long. Bounded by the transport's times.
    pub async fn any(&self) -> Result<Arc<Link>, CallError> {
        // Who answers and says no is there.
        let there = |e: &CallError| e.is_refused() || matches!(e, CallError::Refused(_));
        tokio::select! {
            () = self.stop.cancelled() => Err(broken().into()),
            r = around::first(self.direct(), self.through(), there) => r,
        }
    }
    /// Straight.
    pub async fn direct(&self) -> Result<Arc<Link>, CallError> {
        if self.apart.lock().expect("no panic under this lock").contains(&self.node) {
            tokio::time::sleep(SETUP_TIMEOUT).await;
            return Err(CallError::Timeout(SETUP_TIMEOUT));
        }
        Link::open(&host_port(&self.addr), &self.tls, self.hello.clone(), &self.tracker, &self.stop).await
    }
    async fn through(&self) -> Option<Arc<Link>> {
        let wanted = host_port(&self.addr);
        for (via, at) in &self.thirds {
            let open = async {
                let client = self.tls.client.as_ref();
                let at = host_port(at);
                let stream = transport::connect_through(&at, self.node, LinkKind::Control, client).await?;
                let hello = self.hello.clone();
                Link::greet(stream, &wanted, Some(*via), hello, &self.tracker, &self.stop).await
            };
            if let Ok(Ok(link)) = tokio::time::timeout(around::EACH, open).await {
                let (to, through) = (self.node.short(), via.short());
                tracing::warn!(%to, %through, "no direct control link: going through another sheep");
                return Some(link);
            }
        }
        None
    }
}
