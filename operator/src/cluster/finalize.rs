//! The end of a `SheepdogCluster`. Nothing is lost by surprise: sheep stop, directories on nodes and (unless told otherwise) the credentials stay, so the same
//! object made again finds everything. While a volume is in use, or the cluster cannot be asked, the end waits; an annotation overrides.

use super::act::is_ours;
use super::build::classes;
use super::seen::Engine;
use crate::apply::delete;
use crate::condition::{Said, merge};
use crate::context::{Context, Failure};
use crate::names::{CLUSTER, CLUSTER_FINALIZER, MANAGER, NAMESPACE, Names};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::controller::Action;
use serde_json::json;
use sheepdog_client::NODES_VDI;
use sheepdog_client::pb::{Vdi, session};
use sheepdog_crds::{ABANDON, DeletionPolicy, SheepdogCluster};
use std::time::Duration;

/// Between two looks while the end waits.
const AGAIN: Duration = Duration::from_secs(5);
/// Volumes that a message names.
const NAMED: usize = 5;

/// End it, or say why not yet.
pub async fn finalize(c: &SheepdogCluster, ctx: &Context) -> Result<Action, Failure> {
    if !c.finalizers().iter().any(|f| f == CLUSTER_FINALIZER) {
        return Ok(Action::await_change());
    }
    let names = Names::of(c);
    let abandoned = c.annotations().get(ABANDON).is_some_and(|v| v == "true");
    if !abandoned && let Some(why) = held(c, ctx).await? {
        tracing::info!(cluster = names.cluster, why, "the deletion waits");
        say(c, ctx, &why).await?;
        return Ok(Action::requeue(AGAIN));
    }
    wide(c, &names, ctx).await?;
    // Only what the operator made itself: the secret named in spec.tls is its maker's.
    if c.spec.deletion_policy == DeletionPolicy::Delete && c.spec.tls.is_none() && !abandoned {
        delete(&ctx.api::<Secret>(), &names.secret(c)).await?;
    }
    ctx.connections.forget(&format!("{}/{}", ctx.namespace, names.cluster));
    ctx.metrics.forget(&names.cluster);
    let rest: Vec<String> = c.finalizers().iter().filter(|f| *f != CLUSTER_FINALIZER).cloned().collect();
    super::set_finalizers(ctx, c, &rest).await?;
    Ok(Action::await_change())
}

/// Why the end has to wait.
async fn held(c: &SheepdogCluster, ctx: &Context) -> Result<Option<String>, Failure> {
    let pods = ctx.pods(c).await?;
    let (engine, client) = ctx.look(c, &pods).await?;
    let was_formatted = c.status.as_ref().is_some_and(|s| s.cluster_id.is_some());
    let annotate = format!("kubectl annotate sheepdogcluster {} {ABANDON}=true", c.name_any());
    match (engine, client) {
        (Engine::Formatted(_), Some(client)) => {
            let mut vdis = client.all_vdis("", false).await?;
            vdis.retain(|v| v.name != NODES_VDI);
            Ok(in_the_way(&vdis, c.spec.deletion_policy)
                .map(|why| format!("{why}. To stop the sheep all the same: {annotate}")))
        }
        _ if !was_formatted => Ok(None),
        (Engine::Silent(why), _) => Ok(Some(format!(
            "the sheep cannot be asked whether volumes are in use ({why}). To let go all the same: {annotate}"
        ))),
        _ => Ok(Some(format!(
            "the sheep do not know of their cluster any more. To let go all the same: {annotate}"
        ))),
    }
}

fn in_the_way(vdis: &[Vdi], policy: DeletionPolicy) -> Option<String> {
    let is_open = |v: &&Vdi| {
        let session = v.session.as_ref().is_some_and(|s| s.state() == session::State::Open);
        session || !v.locks.is_empty() || !v.attachments.is_empty()
    };
    let open: Vec<&Vdi> = vdis.iter().filter(is_open).collect();
    let list = |what: &str, vdis: &[&Vdi]| {
        let named: Vec<&str> = vdis.iter().take(NAMED).map(|v| v.name.as_str()).collect();
        let more = if vdis.len() > NAMED { ", ..." } else { "" };
        format!("{} {what}: {}{more}", vdis.len(), named.join(", "))
    };
    if !open.is_empty() {
        return Some(list("volumes are in use", &open));
    }
    if policy == DeletionPolicy::Delete && !vdis.is_empty() {
        let all: Vec<&Vdi> = vdis.iter().collect();
        return Some(list(
            "volumes are there, and deletionPolicy Delete would throw away their credentials",
            &all,
        ));
    }
    None
}

async fn say(c: &SheepdogCluster, ctx: &Context, why: &str) -> Result<(), Failure> {
    let old = c.status.clone().unwrap_or_default();
    let said = [Said::new("Progressing", false, "DeletionHeld", why)];
    let mut new = old.clone();
    new.conditions = merge(&old.conditions, &said, c.metadata.generation, Timestamp::now());
    if new != old {
        ctx.tell(c, false, "DeletionHeld", why).await;
        let patch = json!({
            "apiVersion": "sheepdog.io/v1alpha1", "kind": "SheepdogCluster",
            "metadata": {"name": c.name_any()}, "status": new,
        });
        let params = PatchParams::apply(MANAGER).force();
        ctx.api::<SheepdogCluster>().patch_status(&c.name_any(), &params, &Patch::Apply(&patch)).await?;
    }
    Ok(())
}

async fn wide(c: &SheepdogCluster, names: &Names, ctx: &Context) -> Result<(), Failure> {
    let api = Api::<StorageClass>::all(ctx.kube.clone());
    let name = names.storage_class(c);
    if api.get_opt(&name).await?.is_some_and(|there| is_ours(there.labels(), names)) {
        delete(&api, &name).await?;
    }
    if ctx.has_kind("snapshot.storage.k8s.io/v1", "VolumeSnapshotClass").await? {
        let kind = classes::snapshot_class_kind();
        let api = Api::<kube::core::DynamicObject>::all_with(ctx.kube.clone(), &kind);
        let name = names.snapshot_class(c);
        if api.get_opt(&name).await?.is_some_and(|there| is_ours(there.labels(), names)) {
            delete(&api, &name).await?;
        }
    }
    let kind = classes::attributes_class_kind();
    if ctx.has_kind("storage.k8s.io/v1", &kind.kind).await? {
        let api = Api::<kube::core::DynamicObject>::all_with(ctx.kube.clone(), &kind);
        let labels = format!("{CLUSTER}={},{NAMESPACE}={}", names.cluster, names.namespace);
        for there in api.list(&ListParams::default().labels(&labels)).await? {
            delete(&api, &there.name_any()).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_client::pb::{Attachment, Session};

    fn vdi(name: &str, state: session::State) -> Vdi {
        let session = Session { state: state.into(), ..Default::default() };
        Vdi { name: name.into(), session: Some(session), ..Default::default() }
    }

    #[test]
    fn volumes_in_use_hold_it_and_others_only_when_credentials_would_go() {
        use session::State::{Closed, Open};
        assert_eq!(in_the_way(&[], DeletionPolicy::Delete), None);
        assert_eq!(in_the_way(&[vdi("a", Closed)], DeletionPolicy::Retain), None);
        let why = in_the_way(&[vdi("a", Closed)], DeletionPolicy::Delete).unwrap();
        assert!(why.contains("1 volumes are there") && why.contains('a'), "{why}");
        let attached = Vdi { attachments: vec![Attachment::default()], ..vdi("a", Closed) };
        assert!(in_the_way(&[attached], DeletionPolicy::Retain).is_some());
        let many: Vec<Vdi> = (0..7).map(|i| vdi(&format!("v{i}"), Open)).collect();
        let why = in_the_way(&many, DeletionPolicy::Retain).unwrap();
        assert_eq!(why, "7 volumes are in use: v0, v1, v2, v3, v4, ...");
    }
}
