//! The controller of `VdiSnapshot`: an object takes its snapshot once, and (when it says so) deletes it.
//!
//! What holds: a snapshot that was taken and is gone is not taken again: it would not be of that instant.

use crate::condition::{Said, merge};
use crate::context::{Context, Failure};
use crate::names::{MANAGER, SNAPSHOT_FINALIZER};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use serde_json::json;
use sheepdog_client::ErrorKind;
use sheepdog_client::pb::{self, VdiRef};
use sheepdog_crds::{ABANDON, DeletionPolicy, VdiSnapshot, VdiSnapshotStatus};
use std::sync::Arc;
use std::time::Duration;

const AGAIN: Duration = Duration::from_secs(5);
const LATER: Duration = Duration::from_secs(300);

/// Look once, and do what is to be done now.
pub async fn reconcile(s: Arc<VdiSnapshot>, ctx: Arc<Context>) -> Result<Action, Failure> {
    let started = std::time::Instant::now();
    let done = one(&s, &ctx).await;
    ctx.metrics.reconciled("VdiSnapshot", done.is_ok(), started.elapsed());
    done
}

async fn one(s: &VdiSnapshot, ctx: &Context) -> Result<Action, Failure> {
    let held = s.finalizers().iter().any(|f| f == SNAPSHOT_FINALIZER);
    let deletes = s.spec.deletion_policy == DeletionPolicy::Delete;
    if s.metadata.deletion_timestamp.is_some() {
        return if held { finalize(s, ctx).await } else { Ok(Action::await_change()) };
    }
    if held != deletes {
        set_finalizer(s, ctx, deletes).await?;
    }
    match take(s, ctx).await {
        Ok(status) => {
            write_status(s, ctx, status).await?;
            Ok(Action::requeue(LATER))
        }
        Err(why) => {
            say(s, ctx, Said::new("Ready", false, "Waiting", why.to_string())).await?;
            Ok(Action::requeue(AGAIN))
        }
    }
}

async fn take(s: &VdiSnapshot, ctx: &Context) -> Result<VdiSnapshotStatus, Failure> {
    let client = ctx.client_of(&s.spec.cluster).await?;
    let old = s.status.clone().unwrap_or_default();
    // Once taken it is known by the VDI's id, since names of VDIs change hands.
    let vdi = old.vdi_uuid.as_ref().map_or_else(|| VdiRef::name(&s.spec.vdi), VdiRef::uuid);
    let get = pb::GetVdiRequest { vdi: Some(vdi.clone()), usage: false };
    let found = match client.get_vdi(get.clone()).await {
        Ok(v) => Some(v),
        Err(e) if e.kind == ErrorKind::Missing && old.id.is_some() => None,
        Err(e) => return Err(e.into()),
    };
    let there = |v: &pb::Vdi| v.snapshots.iter().find(|x| x.tag == s.tag()).cloned();
    if let Some((v, snapshot)) = found.as_ref().and_then(|v| Some((v, there(v)?))) {
        return Ok(done(s, v, &snapshot, Timestamp::now()));
    }
    if old.id.is_some() {
        let text = "the snapshot has been deleted in Sheepdog; it is not taken again, since it would be of another instant";
        return Ok(with(s, old, Said::new("Ready", false, "Gone", text), Timestamp::now()));
    }
    let request = pb::SnapshotRequest { vdis: vec![vdi], tag: s.tag().into() };
    match client.snapshot(request).await {
        Ok(_) => {
            ctx.tell(s, true, "Taken", format!("snapshot {} of VDI {}", s.tag(), s.spec.vdi)).await;
        }
        // Taken by an operator that died before it heard of it.
        Err(e) if e.kind == ErrorKind::Exists => {}
        Err(e) => return Err(e.into()),
    }
    let v = client.get_vdi(get).await?;
    let snapshot = there(&v).ok_or_else(|| Failure::Other("the snapshot is not listed yet".into()))?;
    Ok(done(s, &v, &snapshot, Timestamp::now()))
}

fn done(s: &VdiSnapshot, v: &pb::Vdi, snapshot: &pb::Snapshot, now: Timestamp) -> VdiSnapshotStatus {
    let taken = i64::try_from(snapshot.created_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let status = VdiSnapshotStatus {
        tag: Some(snapshot.tag.clone()),
        id: Some(snapshot.id),
        vdi_uuid: Some(v.uuid.clone()),
        size_bytes: i64::try_from(snapshot.size).ok(),
        taken_at: taken.map(|t| t.to_string()),
        ..s.status.clone().unwrap_or_default()
    };
    with(s, status, Said::new("Ready", true, "Taken", "the snapshot can be used"), now)
}

fn with(s: &VdiSnapshot, mut status: VdiSnapshotStatus, said: Said, now: Timestamp) -> VdiSnapshotStatus {
    status.conditions = merge(&status.conditions, &[said], s.metadata.generation, now);
    status.observed_generation = s.metadata.generation;
    status
}

async fn finalize(s: &VdiSnapshot, ctx: &Context) -> Result<Action, Failure> {
    let keep = s.annotations().get(ABANDON).is_some_and(|a| a == "true")
        || s.spec.deletion_policy == DeletionPolicy::Retain;
    if !keep && let Err(why) = remove(s, ctx).await {
        let text = format!(
            "{why}. To delete this object and keep the snapshot: kubectl annotate vdisnapshot {} {ABANDON}=true",
            s.name_any()
        );
        say(s, ctx, Said::new("Ready", false, "DeletionHeld", text)).await?;
        return Ok(Action::requeue(AGAIN));
    }
    set_finalizer(s, ctx, false).await?;
    Ok(Action::await_change())
}

async fn remove(s: &VdiSnapshot, ctx: &Context) -> Result<(), Failure> {
    // Nothing was taken for this object, so there is nothing of it to delete.
    let Some(uuid) = s.status.as_ref().and_then(|st| st.vdi_uuid.as_ref()) else { return Ok(()) };
    let client = ctx.client_of(&s.spec.cluster).await?;
    let request = pb::DeleteVdiRequest {
        vdi: Some(VdiRef::uuid(uuid)),
        snapshot: s.tag().into(),
        ..Default::default()
    };
    match client.delete_vdi(request).await {
        Ok(_) => Ok(()),
        Err(e) if e.kind == ErrorKind::Missing => Ok(()),
        Err(e) => Err(e.into()),
    }
}

async fn set_finalizer(s: &VdiSnapshot, ctx: &Context, on: bool) -> Result<(), kube::Error> {
    let mut all: Vec<String> = s.finalizers().iter().filter(|f| *f != SNAPSHOT_FINALIZER).cloned().collect();
    if on {
        all.push(SNAPSHOT_FINALIZER.into());
    }
    let patch = json!({"metadata": {"resourceVersion": s.resource_version(), "finalizers": all}});
    ctx.api::<VdiSnapshot>()
        .patch(&s.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map(drop)
}

async fn say(s: &VdiSnapshot, ctx: &Context, said: Said) -> Result<(), Failure> {
    let old = s.status.clone().unwrap_or_default();
    let before = old.conditions.iter().find(|c| c.type_ == said.kind).map(|c| c.message.clone());
    if before.as_deref() != Some(&said.message) {
        ctx.tell(s, false, said.reason, said.message.clone()).await;
    }
    write_status(s, ctx, with(s, old, said, Timestamp::now())).await
}

async fn write_status(s: &VdiSnapshot, ctx: &Context, status: VdiSnapshotStatus) -> Result<(), Failure> {
    if s.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let patch = json!({
        "apiVersion": "sheepdog.io/v1alpha1", "kind": "VdiSnapshot", "metadata": {"name": s.name_any()}, "status": status,
    });
    let params = PatchParams::apply(MANAGER).force();
    match ctx.api::<VdiSnapshot>().patch_status(&s.name_any(), &params, &Patch::Apply(&patch)).await {
        Ok(_) => Ok(()),
        // It was deleted meanwhile.
        Err(kube::Error::Api(e)) if e.code == 404 => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// After an error of the API server.
pub fn on_error(s: Arc<VdiSnapshot>, error: &Failure, _: Arc<Context>) -> Action {
    tracing::warn!(snapshot = s.name_any(), %error, "looking at a VdiSnapshot failed");
    Action::requeue(AGAIN)
}
