//! Asking the other sheep: one lazy connection to each client port, and a bounded fan-out over all nodes.

use sheepdog_client::{Client, ConnectOptions, Error, ErrorKind};
use sheepdog_cluster::{Node, NodeAddr};
use sheepdog_proto::NodeId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Nodes asked at a time.
const FAN_OUT: usize = 32;
/// A node that does not answer in this time is reported as silent.
const ANSWER: Duration = Duration::from_secs(5);

/// Clients of the other sheep, made on demand.
pub(super) struct Peers {
    tls: Option<Arc<rustls::ClientConfig>>,
    clients: Mutex<HashMap<NodeId, (NodeAddr, Client)>>,
}

impl Peers {
    pub(super) fn new(tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        Self { tls, clients: Mutex::default() }
    }

    /// A client whose requests are marked as passed on.
    pub(super) fn to(&self, node: &Node) -> Result<Client, Error> {
        let mut clients = self.clients.lock().expect("no panic under this lock");
        if let Some((addr, client)) = clients.get(&node.id)
            && *addr == node.addr
        {
            return Ok(client.clone());
        }
        let host = &node.addr.host;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let mut options = ConnectOptions::new(vec![format!("{host}:{}", node.addr.client_port)]);
        options.tls = self.tls.clone();
        options.connect_timeout = Duration::from_secs(2);
        let client = Client::lazy(options)?.forwarded();
        clients.insert(node.id, (node.addr.clone(), client.clone()));
        Ok(client)
    }

    /// Ask many nodes the same; answers in the order of `nodes`.
    pub(super) async fn each<T, F, Fut>(&self, nodes: Vec<Node>, ask: F) -> Vec<(Node, Result<T, Error>)>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        use futures::StreamExt;
        let asked = nodes.into_iter().map(|node| {
            let answer = self.to(&node).map(&ask);
            async move {
                let result = match answer {
                    Ok(answer) => tokio::time::timeout(ANSWER, answer).await.unwrap_or_else(|_| {
                        Err(Error::new(ErrorKind::Cluster, format!("no answer in {ANSWER:?}")))
                    }),
                    Err(e) => Err(e),
                };
                (node, result)
            }
        });
        futures::stream::iter(asked).buffered(FAN_OUT).collect().await
    }
}
