//! The process: waits for its turn, watches, ends. The first signal gives the lease back.

use crate::cli::Run;
use crate::cluster::build::Installed;
use crate::context::Context;
use crate::leader::Leader;
use crate::observe::{self, Metrics};
use crate::{cluster, lost, snapshot, vdi};
use anyhow::{Context as _, bail};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Service};
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{Controller, WatchStreamExt, controller, reflector, watcher};
use kube::{Api, Client};
use sheepdog_crds::{SheepdogCluster, Vdi, VdiSnapshot};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Objects of one kind that are looked at at a time.
const AT_ONCE: u16 = 8;
/// Changes of one object within this time are one.
const TOGETHER: Duration = Duration::from_millis(300);
/// How long the first list of nodes may take.
const FIRST: Duration = Duration::from_secs(60);
/// Between two tries to reach the API server at start.
const RETRY: Duration = Duration::from_secs(2);

/// Run until a signal, or until the lease is lost.
pub async fn run(options: &Run) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let metrics = Arc::new(Metrics::default());
    let at = observe::serve(options.listen, metrics.clone(), stop.clone())
        .await
        .with_context(|| format!("cannot listen on {} (--listen)", options.listen))?;
    tracing::info!(%at, namespace = options.namespace, "sheepdog-operator {}", env!("CARGO_PKG_VERSION"));
    let kube =
        Client::try_default().await.context("no way to the API server: run in a pod, or set KUBECONFIG")?;
    let mut signal = std::pin::pin!(signal());
    tokio::select! {
        s = &mut signal => return s,
        () = api_server(&kube) => {}
    }
    metrics.set_ready();
    let me = options
        .identity
        .clone()
        .unwrap_or_else(|| format!("{}-{}", std::process::id(), uuid::Uuid::new_v4()));
    let mut leader =
        Leader::new(Api::<Lease>::namespaced(kube.clone(), &options.namespace), &options.lease, &me);
    tokio::select! {
        s = &mut signal => return s,
        () = leader.acquire() => {}
    }
    tracing::info!(me, "this operator acts");
    metrics.set_leader(true);
    let tasks = TaskTracker::new();
    let work = work(options, kube, metrics.clone(), &tasks, stop.clone());
    let ended = tokio::select! {
        s = &mut signal => s,
        why = leader.keep() => {
            // Nothing may be done any more, not even what has begun.
            bail!("{why}: ending, so that nobody acts twice");
        }
        w = work => w,
    };
    stop.cancel();
    tasks.close();
    let _ = tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await;
    metrics.set_leader(false);
    if let Err(error) = leader.release().await {
        tracing::warn!(%error, "the lease could not be given back: the next operator waits for its end");
    }
    ended
}

async fn signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
    tracing::info!("signal: ending");
    Ok(())
}

async fn api_server(kube: &Client) {
    loop {
        match kube.apiserver_version().await {
            Ok(v) => {
                tracing::info!(version = v.git_version, "API server");
                return;
            }
            Err(error) => tracing::warn!(%error, "the API server does not answer"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// All nodes, without what nobody here looks at.
fn watch_nodes(kube: &Client, tasks: &TaskTracker, stop: CancellationToken) -> Store<Node> {
    let (store, writer) = reflector::store();
    let slim = |n: &mut Node| {
        n.metadata.managed_fields = None;
        if let Some(s) = &mut n.status {
            s.images = None;
            s.volumes_attached = None;
            s.volumes_in_use = None;
            s.node_info = None;
            s.capacity = None;
            s.allocatable = None;
        }
    };
    let stream = watcher(Api::<Node>::all(kube.clone()), watcher::Config::default())
        .default_backoff()
        .modify(slim)
        .reflect(writer)
        .touched_objects();
    tasks.spawn(async move {
        let mut stream = std::pin::pin!(stream);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                event = stream.next() => match event {
                    None => return,
                    Some(Ok(_)) => {}
                    Some(Err(error)) => tracing::warn!(%error, "watching nodes"),
                },
            }
        }
    });
    store
}

async fn work(
    options: &Run,
    kube: Client,
    metrics: Arc<Metrics>,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let nodes = watch_nodes(&kube, tasks, stop.clone());
    let ready = tokio::time::timeout(FIRST, nodes.wait_until_ready()).await;
    ready.context("the nodes could not be listed: does the operator's role allow it?")??;
    let installed = Installed {
        sheep_image: options.sheep_image.clone(),
        operator_image: options.operator_image.clone().filter(|i| !i.is_empty()),
        csi_image: options.csi_image.clone().filter(|i| !i.is_empty()),
        pull_secrets: options.pull_secret.iter().filter(|s| !s.is_empty()).cloned().collect(),
        kubelet_root: options.kubelet_root.clone(),
    };
    let namespace = options.namespace.clone();
    let ctx = Arc::new(Context::new(kube.clone(), namespace.clone(), installed, nodes, metrics));
    if options.release_lost_nodes {
        tasks.spawn(lost::run(ctx.clone(), stop.clone()));
    }
    let (c, v, s) = (clusters(&ctx), vdis(&ctx), snapshots(&ctx));
    tokio::join!(c, v, s);
    bail!("a watch has ended")
}

fn config() -> controller::Config {
    controller::Config::default().concurrency(AT_ONCE).debounce(TOGETHER)
}

async fn clusters(ctx: &Arc<Context>) {
    let quiet = watcher::Config::default();
    let clusters = Controller::new(ctx.api::<SheepdogCluster>(), quiet.clone());
    // Of a pod it only matters which cluster it is of; of nodes, that labels change. What else changes is seen at the next look.
    let of_cluster = |pod: PartialObjectMeta<Pod>| {
        let labels = pod.metadata.labels.unwrap_or_default();
        let name = labels.get(crate::names::CLUSTER)?;
        Some(ObjectRef::new(name).within(pod.metadata.namespace.as_deref().unwrap_or_default()))
    };
    let pods = Api::<PartialObjectMeta<Pod>>::namespaced(ctx.kube.clone(), &ctx.namespace);
    let of_ours = watcher::Config::default().labels(crate::names::CLUSTER);
    let node_labels = watcher(Api::<PartialObjectMeta<Node>>::all(ctx.kube.clone()), quiet.clone())
        .default_backoff()
        .touched_objects()
        .predicate_filter(kube::runtime::predicates::labels, Default::default())
        .filter_map(async |n| n.ok().map(drop));
    clusters
        .with_config(config())
        .owns(ctx.api::<DaemonSet>(), quiet.clone())
        .owns(ctx.api::<ConfigMap>(), of_ours.clone())
        .owns(ctx.api::<Service>(), of_ours.clone())
        .watches(pods, of_ours, of_cluster)
        .reconcile_all_on(node_labels.boxed())
        .run(cluster::reconcile, cluster::on_error, ctx.clone())
        .for_each(async |_| {})
        .await;
}

async fn vdis(ctx: &Arc<Context>) {
    Controller::new(ctx.api::<Vdi>(), watcher::Config::default())
        .with_config(config())
        .run(vdi::reconcile, vdi::on_error, ctx.clone())
        .for_each(async |_| {})
        .await;
}

async fn snapshots(ctx: &Arc<Context>) {
    Controller::new(ctx.api::<VdiSnapshot>(), watcher::Config::default())
        .with_config(config())
        .run(snapshot::reconcile, snapshot::on_error, ctx.clone())
        .for_each(async |_| {})
        .await;
}
