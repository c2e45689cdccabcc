//! What every controller shares: clients, what was installed, counters.

use crate::apply::Applier;
use crate::cluster::build::Installed;
use crate::cluster::engine::Connections;
use crate::names::{CLUSTER, COMPONENT, MANAGER, Names, SECRET_KEY};
use crate::observe::Metrics;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use kube::api::{Api, ListParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::Store;
use kube::{Client, Resource};
use sheepdog_crds::SheepdogCluster;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Pods of one page.
const PAGE: u32 = 500;
/// How long an answer about which kinds the API server has is believed.
const KINDS: Duration = Duration::from_secs(300);

/// Why something was not done. The text says what failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The API server.
    #[error("Kubernetes: {0}")]
    Kube(#[from] kube::Error),
    /// A sheep.
    #[error("{0}")]
    Sheep(#[from] sheepdog_client::Error),
    /// A bug of ours.
    #[error(transparent)]
    Build(#[from] crate::cluster::build::BuildError),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// See the module.
pub struct Context {
    /// Kubernetes.
    pub kube: Client,
    /// The one namespace whose objects are ours.
    pub namespace: String,
    /// Of the installation.
    pub installed: Installed,
    /// Applies objects.
    pub applier: Applier,
    /// Sheep.
    pub connections: Connections,
    /// Kubernetes nodes.
    pub nodes: Store<Node>,
    /// Events.
    pub recorder: Recorder,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// When VDIs were last listed.
    pub rounds: crate::vdi::mirror::Rounds,
    kinds: Mutex<HashMap<String, (bool, Instant)>>,
}

impl Context {
    /// All parts.
    pub fn new(
        kube: Client,
        namespace: String,
        installed: Installed,
        nodes: Store<Node>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let instance = std::env::var("POD_NAME").ok();
        let reporter = Reporter { controller: MANAGER.into(), instance };
        Self {
            applier: Applier::new(kube.clone()),
            recorder: Recorder::new(kube.clone(), reporter),
            connections: Connections::default(),
            rounds: crate::vdi::mirror::Rounds::default(),
            kinds: Mutex::default(),
            kube,
            namespace,
            installed,
            nodes,
            metrics,
        }
    }

    /// Objects of the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.kube.clone(), &self.namespace)
    }

    /// Say something on the object that a person looks at. An event that cannot be written is no reason to fail.
    pub async fn tell<K>(&self, object: &K, good: bool, reason: &str, note: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        let event = Event {
            type_: if good { EventType::Normal } else { EventType::Warning },
            reason: reason.into(),
            note: Some(note.into().chars().take(1_000).collect()),
            action: reason.into(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            tracing::debug!(%error, reason, "an event could not be written");
        }
    }

    /// Does the API server have this kind?
    pub async fn has_kind(&self, group_version: &str, kind: &str) -> Result<bool, kube::Error> {
        let key = format!("{group_version}/{kind}");
        {
            let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((there, _)) = kinds.get(&key).filter(|(_, at)| at.elapsed() < KINDS) {
                return Ok(*there);
            }
        }
        let there = match self.kube.list_api_group_resources(group_version).await {
            Ok(list) => list.resources.iter().any(|r| r.kind == kind),
            Err(kube::Error::Api(s)) if s.code == 404 => false,
            Err(e) => return Err(e),
        };
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner).insert(key, (there, Instant::now()));
        Ok(there)
    }

    /// The cluster's credentials, if the secret is there and has them.
    pub async fn secret(&self, c: &SheepdogCluster) -> Result<Option<String>, kube::Error> {
        let secret = self.api::<Secret>().get_opt(&Names::of(c).secret(c)).await?;
        let data = secret.and_then(|s| s.data).and_then(|mut d| d.remove(SECRET_KEY));
        Ok(data.and_then(|b| String::from_utf8(b.0).ok()))
    }

    /// Pods of a cluster, all pages.
    pub async fn pods(&self, c: &SheepdogCluster) -> Result<Vec<crate::cluster::seen::PodSeen>, kube::Error> {
        let labels = format!("{CLUSTER}={},{COMPONENT}", Names::of(c).cluster);
        let mut params = ListParams::default().labels(&labels).limit(PAGE);
        let mut pods = Vec::new();
        loop {
            let page = self.api::<Pod>().list(&params).await?;
            pods.extend(page.items.iter().map(crate::cluster::seen::PodSeen::of));
            match page.metadata.continue_.filter(|t| !t.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(pods),
            }
        }
    }

    /// How a cluster is, and a connection to it when it is formatted.
    pub async fn look(
        &self,
        c: &SheepdogCluster,
        pods: &[crate::cluster::seen::PodSeen],
    ) -> Result<(crate::cluster::seen::Engine, Option<sheepdog_client::Client>), Failure> {
        let secret = self.secret(c).await?;
        let key = format!("{}/{}", self.namespace, Names::of(c).cluster);
        let port = c.spec.ports.client;
        let seen = crate::cluster::engine::look(&self.connections, &key, secret.as_deref(), pods, port).await;
        Ok(seen)
    }

    /// A connection to a cluster by its name, for objects that name one.
    pub async fn client_of(&self, cluster: &str) -> Result<sheepdog_client::Client, Failure> {
        let missing = |text: String| Failure::Other(text);
        let c = self.api::<SheepdogCluster>().get_opt(cluster).await?;
        let c =
            c.ok_or_else(|| missing(format!("there is no SheepdogCluster {cluster} in this namespace")))?;
        let secret = self.secret(&c).await?;
        let secret = secret
            .ok_or_else(|| missing(format!("the secret of SheepdogCluster {cluster} is not there yet")))?;
        let pods = self.pods(&c).await?;
        let addrs = crate::cluster::engine::addresses(&pods, c.spec.ports.client);
        if addrs.is_empty() {
            return Err(missing(format!("no sheep of SheepdogCluster {cluster} runs")));
        }
        Ok(self.connections.to(&format!("{}/{cluster}", self.namespace), &secret, addrs)?)
    }
}
