//! A node that is lost, and volumes that move away from it without a human.
//!
//! Kubernetes leaves pods of a silent node where they are until somebody says that it is dead, because their processes might still write. Sheepdog knows better:
//! when the sheep of the node has lost its lease, nothing of that node is written any more, and detaching a volume returns only when no late request of it can take effect.
//! So when the API server *and* Sheepdog have given the node up, its pods that use our volumes are deleted, and their attachments, and Kubernetes starts them elsewhere.
//!
//! What holds: Kubernetes alone, or Sheepdog alone, is not believed; only a human's `out-of-service` taint is. Pods without our volumes are left alone.

pub mod plan;

use crate::cluster::seen::{Engine, NodeSeen};
use crate::context::{Context, Failure};
use crate::names::Names;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Preconditions};
use plan::{Claims, Verdict};
use sheepdog_crds::{DRIVER, SheepdogCluster};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks. Costs nothing while all nodes are ready.
const ROUND: Duration = Duration::from_secs(3);
/// Until a lost node on which nothing was left to do is looked at again.
const QUIET: Duration = Duration::from_secs(20);
const PAGE: u32 = 500;

/// Look until stopped.
pub async fn run(ctx: Arc<Context>, stop: CancellationToken) {
    let mut quiet = Quiet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
        if let Err(error) = round(&ctx, &mut quiet).await {
            tracing::warn!(%error, "lost nodes could not be looked at");
        }
    }
}

/// Lost nodes on which nothing was left to do, and when that was.
type Quiet = HashMap<String, Instant>;

async fn round(ctx: &Context, quiet: &mut Quiet) -> Result<(), Failure> {
    let nodes: BTreeMap<String, NodeSeen> =
        ctx.nodes.state().iter().map(|n| (n.name_any(), NodeSeen::of(n))).collect();
    let suspects: Vec<&String> =
        nodes.iter().filter(|(_, n)| plan::is_suspect(n)).map(|(name, _)| name).collect();
    quiet.retain(|name, at| at.elapsed() < QUIET && suspects.contains(&name));
    let suspects: Vec<&String> = suspects.into_iter().filter(|n| !quiet.contains_key(*n)).collect();
    if suspects.is_empty() {
        return Ok(());
    }
    let engines = engines(ctx).await?;
    for name in suspects {
        let node = &nodes[name];
        let verdict = plan::judge(node, &engines);
        let Verdict::Lost(why) = verdict else {
            tracing::debug!(node = name, ?verdict, "a node is not ready");
            continue;
        };
        if release(ctx, name, &why).await? == 0 {
            quiet.insert(name.clone(), Instant::now());
        }
    }
    Ok(())
}

/// What each cluster of the namespace says, with its clients' port.
async fn engines(ctx: &Context) -> Result<Vec<(u16, Engine)>, Failure> {
    let mut all = Vec::new();
    for c in ctx.api::<SheepdogCluster>().list(&ListParams::default()).await? {
        let pods = ctx.pods(&c).await?;
        tracing::trace!(cluster = Names::of(&c).cluster, "asked about a node that is not ready");
        all.push((c.spec.ports.client, ctx.look(&c, &pods).await?.0));
    }
    Ok(all)
}

/// How much there was to do.
async fn release(ctx: &Context, node: &str, why: &str) -> Result<usize, Failure> {
    let pods = Api::<Pod>::all(ctx.kube.clone());
    let on_node = all_pages(&pods, &format!("spec.nodeName={node}")).await?;
    let mut claims = Claims::default();
    for pod in &on_node {
        for (namespace, claim) in plan::claims_of(pod) {
            if claims.is_known(&namespace, &claim) {
                continue;
            }
            let ours = is_ours(ctx, &namespace, &claim).await?;
            claims.note(namespace, claim, ours);
        }
    }
    let mut done = 0;
    for pod in on_node.iter().filter(|p| plan::must_go(p, &claims)) {
        done += 1;
        let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
        ctx.tell(pod, false, "NodeLost", format!("{why}; the pod is deleted so that its volumes can move"))
            .await;
        let exactly = Preconditions { uid: pod.uid(), resource_version: None };
        let now = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() }.grace_period(0);
        match Api::<Pod>::namespaced(ctx.kube.clone(), &namespace).delete(&name, &now).await {
            Ok(_) => {
                ctx.metrics.released_pods.inc();
                tracing::info!(pod = name, namespace, node, why, "deleted");
            }
            Err(kube::Error::Api(s)) if s.code == 404 || s.code == 409 => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(done + detach(ctx, node).await?)
}

/// Attachments of our volumes to that node: deleting one makes the driver detach, which fences.
async fn detach(ctx: &Context, node: &str) -> Result<usize, Failure> {
    let mut done = 0;
    let api = Api::<VolumeAttachment>::all(ctx.kube.clone());
    for a in all_pages(&api, "").await? {
        let ours = a.spec.attacher == DRIVER && a.spec.node_name == node;
        if ours && a.metadata.deletion_timestamp.is_none() {
            tracing::info!(attachment = a.name_any(), node, "deleted");
            crate::apply::delete(&api, &a.name_any()).await?;
            done += 1;
        }
    }
    Ok(done)
}

async fn is_ours(ctx: &Context, namespace: &str, claim: &str) -> Result<bool, Failure> {
    let claims = Api::<PersistentVolumeClaim>::namespaced(ctx.kube.clone(), namespace);
    let volume = claims.get_opt(claim).await?.and_then(|c| c.spec?.volume_name);
    let Some(volume) = volume else { return Ok(false) };
    let pv = Api::<PersistentVolume>::all(ctx.kube.clone()).get_opt(&volume).await?;
    Ok(pv.and_then(|v| v.spec?.csi).is_some_and(|c| c.driver == DRIVER))
}

async fn all_pages<K>(api: &Api<K>, fields: &str) -> Result<Vec<K>, kube::Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let mut params = ListParams::default().fields(fields).limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&params).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|t| !t.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}
