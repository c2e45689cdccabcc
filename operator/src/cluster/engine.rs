//! Asking the sheep. Any of them answers for the whole cluster; before there is one, each is asked for itself.
//!
//! Connections are kept from one look to the next. Every question has a deadline, so a cluster that hangs delays nobody else's.

use super::build::config::address;
use super::seen::{Engine, Formatted, PodSeen};
use sheepdog_client::pb::cluster_info::Status;
use sheepdog_client::pb::node::State;
use sheepdog_client::pb::{
    ClusterInfo, ClusterInfoRequest, ListNodesRequest, NodeInfoRequest, RecoveryRequest,
};
use sheepdog_client::{Client, ConnectOptions, Credentials, Error, ErrorKind, Role};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// For one address.
const CONNECT: Duration = Duration::from_secs(2);
/// For one question.
const ANSWER: Duration = Duration::from_secs(10);
/// Sheep that are tried one after the other.
const TRIED: usize = 6;
/// Sheep that are asked at a time before format.
const AT_ONCE: usize = 32;
/// Clusters whose connections are kept.
const KEPT: usize = 64;

struct Kept {
    secret: u64,
    addrs: Vec<String>,
    client: Client,
}

/// Connections, by cluster.
#[derive(Default)]
pub struct Connections {
    kept: Mutex<HashMap<String, Kept>>,
}

impl Connections {
    /// A connection to any of these.
    pub fn to(&self, cluster: &str, secret: &str, addrs: Vec<String>) -> Result<Client, Error> {
        let hash = xxh3_64(secret.as_bytes());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(k) = kept.get(cluster).filter(|k| k.secret == hash && k.addrs == addrs) {
            return Ok(k.client.clone());
        }
        let client = connect(secret, addrs.clone())?;
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(cluster.to_owned(), Kept { secret: hash, addrs, client: client.clone() });
        Ok(client)
    }
    /// All that are kept, by cluster.
    pub fn all(&self) -> Vec<(String, Client)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().map(|(name, k)| (name.clone(), k.client.clone())).collect()
    }
    /// The next question makes a new connection.
    pub fn forget(&self, cluster: &str) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster);
    }
}

/// A connection of its own.
pub fn connect(secret: &str, addrs: Vec<String>) -> Result<Client, Error> {
    let credentials = Credentials::parse(secret)
        .map_err(|why| Error::new(ErrorKind::Usage, format!("the cluster's secret cannot be used: {why}")))?;
    let mut options = ConnectOptions::new(addrs)
        .credentials(&credentials, &Role::Other("operator".into()))
        .map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
    options.connect_timeout = CONNECT;
    Client::lazy(options)
}

async fn within<T>(asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = || Error::new(ErrorKind::Cluster, format!("no answer in {ANSWER:?}"));
    tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(|_| Err(late()))
}

/// Hosts of sheep that have lost their leases, as the clusters say whose connections are kept. One short question each.
pub async fn fallen(connections: &Connections) -> Vec<String> {
    let mut hosts = Vec::new();
    for (cluster, client) in connections.all() {
        match within(client.list_nodes(ListNodesRequest {})).await {
            Ok(list) => {
                let down = list.nodes.into_iter().filter(|n| n.state() == State::Down);
                hosts.extend(down.map(|n| n.host));
            }
            // The next one who needs the cluster makes another.
            Err(_) => connections.forget(&cluster),
        }
    }
    hosts
}

/// Addresses to try: sheep that store data first, ready ones first.
pub fn addresses(pods: &[PodSeen], port: u16) -> Vec<String> {
    let mut running: Vec<&PodSeen> = pods.iter().filter(|p| p.running && p.host.is_some()).collect();
    running.sort_by_key(|p| (p.gateway, p.deleting, !p.ready, p.node.clone()));
    running.iter().filter_map(|p| p.host.as_deref()).take(TRIED).map(|h| address(h, port)).collect()
}

/// How the cluster is, and the connection that was used.
pub async fn look(
    connections: &Connections,
    cluster: &str,
    secret: Option<&str>,
    pods: &[PodSeen],
    port: u16,
) -> (Engine, Option<Client>) {
    let (Some(secret), addrs) = (secret, addresses(pods, port)) else { return (Engine::Absent, None) };
    if addrs.is_empty() {
        let engine = match pods.iter().any(|p| p.ready) {
            true => Engine::Silent("no sheep runs".into()),
            false => Engine::Absent,
        };
        return (engine, None);
    }
    let client = match connections.to(cluster, secret, addrs) {
        Ok(c) => c,
        Err(e) => return (Engine::Silent(e.message), None),
    };
    match within(client.cluster_info(ClusterInfoRequest { history: 0 })).await {
        Ok(info) if info.status() != Status::WaitingForFormat => {
            (Engine::Formatted(Box::new(details(&client, info).await)), Some(client))
        }
        // One that waits says nothing about the others, and neither does one that does not answer.
        other => {
            connections.forget(cluster);
            let why = other.err().map(|e| e.message);
            ask_each(secret, pods, port, why).await
        }
    }
}

async fn details(client: &Client, info: ClusterInfo) -> Formatted {
    let recovery = async {
        let mut stream = client.recovery(RecoveryRequest { interval_ms: 0 }).await?;
        stream.message().await.map_err(Error::from)
    };
    let (nodes, space, recovery) = tokio::join!(
        within(client.list_nodes(ListNodesRequest {})),
        within(client.node_info(NodeInfoRequest { nodes: Vec::new() })),
        within(recovery),
    );
    Formatted {
        info,
        nodes: nodes.map(|n| n.nodes).unwrap_or_default(),
        space: space.map(|s| s.nodes).unwrap_or_default(),
        recovery: recovery.ok().flatten(),
    }
}

async fn ask_each(
    secret: &str,
    pods: &[PodSeen],
    port: u16,
    first: Option<String>,
) -> (Engine, Option<Client>) {
    use futures::StreamExt;
    let hosts: Vec<String> =
        pods.iter().filter(|p| !p.gateway && p.running).filter_map(|p| p.host.clone()).collect();
    let ask = |host: String| async move {
        let answer = async {
            let client = connect(secret, vec![address(&host, port)])?;
            let info = within(client.cluster_info(ClusterInfoRequest { history: 0 })).await?;
            Ok::<_, Error>((client, info))
        };
        let answer = answer.await;
        (host, answer)
    };
    let mut answers = futures::stream::iter(hosts.into_iter().map(ask)).buffer_unordered(AT_ONCE);
    let (mut waiting, mut silent, mut formatted) = (Vec::new(), Vec::new(), None);
    while let Some((host, answer)) = answers.next().await {
        match answer {
            Ok((_, info)) if info.status() == Status::WaitingForFormat => waiting.push(host),
            Ok(found) => formatted = Some(found),
            Err(e) => silent.push((host, e.message)),
        }
    }
    drop(answers);
    if let Some((client, info)) = formatted {
        return (Engine::Formatted(Box::new(details(&client, info).await)), Some(client));
    }
    waiting.sort();
    silent.sort();
    if waiting.is_empty() {
        let why = silent.first().map(|(_, w)| w.clone()).or(first);
        return (Engine::Silent(why.unwrap_or_else(|| "no sheep runs".into())), None);
    }
    (Engine::Unformatted { waiting, silent }, None)
}
