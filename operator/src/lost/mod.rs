//! A node that is lost, and volumes that move away from it without a human.
//!
//! Kubernetes leaves pods of a silent node where they are until somebody says that it is dead, because their processes might still write. Sheepdog knows better:
//! when the sheep of the node has lost its lease, nothing of that node is written any more, and detaching a volume returns only when no late request of it can take effect.
//! So when the API server *and* Sheepdog have given the node up, its pods that use our volumes are deleted, and their attachments, and Kubernetes starts them elsewhere.
//!
//! Kubernetes has given a node up when it is NotReady, which takes 50 s unless somebody has changed that, or when its kubelet has been silent for five eighths of its
//! lease, 25 s. In the second case the scheduler would still put pods there: the node gets a taint of ours until it is heard again.
//!
//! What holds: Kubernetes alone, or Sheepdog alone, is not believed; only a human's `out-of-service` taint is. Pods without our volumes are left alone.

pub mod heartbeat;
pub mod plan;

use crate::cluster::engine;
use crate::cluster::seen::{Engine, NodeSeen};
use crate::context::{Context, Failure};
use crate::names::Names;
use heartbeat::{Heartbeats, Pulse};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Taint};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use plan::{Claims, Verdict};
use serde_json::json;
use sheepdog_crds::LOST;
use sheepdog_crds::{DRIVER, SheepdogCluster};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks. While all nodes are well each costs one question to each cluster.
const ROUND: Duration = Duration::from_secs(3);
/// Until a lost node on which nothing was left to do is looked at again.
const QUIET: Duration = Duration::from_secs(20);
const PAGE: u32 = 500;
/// Where kubelets' leases are.
const LEASES: &str = "kube-node-lease";
/// Start of our volumes' names in a node's status.
const VOLUME: &str = "kubernetes.io/csi/";

/// Look until stopped.
pub async fn run(ctx: Arc<Context>, stop: CancellationToken) {
    let mut memory = Memory::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
        if let Err(error) = round(&ctx, &mut memory).await {
            tracing::warn!(%error, "lost nodes could not be looked at");
        }
    }
}

/// From one round to the next. Whoever begins without it is only slower.
#[derive(Default)]
struct Memory {
    /// Lost nodes on which nothing was left to do, and when that was.
    quiet: HashMap<String, Instant>,
    heartbeats: Heartbeats,
}

async fn round(ctx: &Context, memory: &mut Memory) -> Result<(), Failure> {
    let nodes: BTreeMap<String, NodeSeen> =
        ctx.nodes.state().iter().map(|n| (n.name_any(), NodeSeen::of(n))).collect();
    let fallen = engine::fallen(&ctx.connections).await;
    let has_fallen = |n: &NodeSeen| n.ip.as_ref().is_some_and(|ip| fallen.contains(ip));
    let doubtful = |n: &NodeSeen| plan::is_suspect(n) || plan::is_marked(n) || has_fallen(n);
    let suspects: Vec<&String> = nodes.iter().filter(|(_, n)| doubtful(n)).map(|(name, _)| name).collect();
    memory.quiet.retain(|name, at| at.elapsed() < QUIET && suspects.contains(&name));
    memory.heartbeats.keep(&suspects);
    let mut pulses = BTreeMap::new();
    for name in &suspects {
        pulses.insert(*name, pulse(ctx, name, &mut memory.heartbeats).await?);
    }
    let suspects: Vec<&String> = suspects.into_iter().filter(|n| !memory.quiet.contains_key(*n)).collect();
    if suspects.is_empty() {
        return Ok(());
    }
    let engines = engines(ctx).await?;
    for name in suspects {
        let node = &nodes[name];
        let pulse = pulses.get(name).copied().unwrap_or(Pulse::Unknown);
        let verdict = plan::judge(node, pulse == Pulse::Silent, &engines);
        let Verdict::Lost(why) = verdict else {
            tracing::debug!(node = name, ?verdict, ?pulse, "a node is doubtful");
            if plan::is_marked(node) && pulse == Pulse::Beats {
                mark(ctx, name, false).await?;
            }
            continue;
        };
        // Or the scheduler puts the pods where they were.
        let marked = node.ready && !plan::is_suspect(node) && mark(ctx, name, true).await?;
        if release(ctx, name, &why).await? == 0 && !marked {
            memory.quiet.insert(name.clone(), Instant::now());
        }
    }
    Ok(())
}

/// Is the kubelet heard?
async fn pulse(ctx: &Context, node: &str, heartbeats: &mut Heartbeats) -> Result<Pulse, Failure> {
    let lease = Api::<Lease>::namespaced(ctx.kube.clone(), LEASES).get_opt(node).await?;
    let spec = lease.and_then(|l| l.spec).unwrap_or_default();
    let good_for = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(40);
    let renewed = spec.renew_time.map(|t| t.0.to_string());
    Ok(heartbeats.look(node, renewed, Duration::from_secs(good_for), Instant::now()))
}

/// Put our taint on a node, or take it away; whether that changed anything. Somebody else's change at the same moment makes it fail: it is tried again.
async fn mark(ctx: &Context, node: &str, lost: bool) -> Result<bool, Failure> {
    let api = Api::<Node>::all(ctx.kube.clone());
    let Some(object) = api.get_opt(node).await? else { return Ok(false) };
    let before = object.spec.and_then(|s| s.taints).unwrap_or_default();
    let mut taints: Vec<Taint> = before.iter().filter(|t| t.key != LOST).cloned().collect();
    if lost {
        taints.push(Taint { key: LOST.into(), effect: "NoSchedule".into(), ..Taint::default() });
    }
    if taints.len() == before.len() {
        return Ok(false);
    }
    let version = object.metadata.resource_version;
    let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
    api.patch(node, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    tracing::info!(node, lost, "marked");
    Ok(true)
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
    Ok(done + detach(ctx, node).await? + unmounted(ctx, node).await?)
}

/// Kubernetes detaches nothing that a node's status calls in use, for six minutes; the status of a lost node is what its kubelet said last. Detaching is
/// safe all the same (the driver fences), so our volumes are struck off. A kubelet that lives says it again.
async fn unmounted(ctx: &Context, node: &str) -> Result<usize, Failure> {
    let api = Api::<Node>::all(ctx.kube.clone());
    let in_use = api.get_opt(node).await?.and_then(|n| n.status?.volumes_in_use).unwrap_or_default();
    let ours = format!("{VOLUME}{DRIVER}^");
    let rest: Vec<&String> = in_use.iter().filter(|v| !v.starts_with(&ours)).collect();
    let done = in_use.len() - rest.len();
    if done > 0 {
        let patch = json!({"status": {"volumesInUse": rest}});
        api.patch_status(node, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    }
    Ok(done)
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
