//! The controller of `Vdi`: an object makes, grows and (when it says so) deletes its VDI. The other way round, VDIs that `dog` or the CSI driver made
//! are shown as objects by [`mirror`], which also keeps the status of all of them.
//!
//! What holds: an object that retains its VDI has no finalizer and never waits for the cluster; a VDI is never shrunk, and never deleted while it is open. An
//! object is carried out once after each change of it: whoever changes the VDI otherwise afterwards, `dog` or the CSI driver, is not fought.

pub mod mirror;
pub mod view;

use crate::cluster::step::wire;
use crate::condition::{Said, merge};
use crate::context::{Context, Failure};
use crate::names::{MANAGER, VDI_FINALIZER};
use crate::quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use serde_json::json;
use sheepdog_client::limits::{Rate, Wish};
use sheepdog_client::pb::{self, VdiRef};
use sheepdog_client::{Client, ErrorKind};
use sheepdog_crds::{ABANDON, DeletionPolicy, Vdi};
use std::sync::Arc;
use std::time::Duration;

/// After something that has to get better by itself.
const AGAIN: Duration = Duration::from_secs(5);
/// When all is well; changes come as events.
const LATER: Duration = Duration::from_secs(600);

/// Look once, and do what is to be done now.
pub async fn reconcile(v: Arc<Vdi>, ctx: Arc<Context>) -> Result<Action, Failure> {
    let started = std::time::Instant::now();
    let done = one(&v, &ctx).await;
    ctx.metrics.reconciled("Vdi", done.is_ok(), started.elapsed());
    done
}

async fn one(v: &Vdi, ctx: &Context) -> Result<Action, Failure> {
    let held = v.finalizers().iter().any(|f| f == VDI_FINALIZER);
    let deletes = v.spec.deletion_policy == DeletionPolicy::Delete;
    if v.metadata.deletion_timestamp.is_some() {
        return if held { finalize(v, ctx).await } else { Ok(Action::await_change()) };
    }
    if held != deletes {
        set_finalizer(v, ctx, deletes).await?;
    }
    if is_done(v) {
        return Ok(Action::await_change());
    }
    match carry_out(v, ctx).await {
        Ok(()) => Ok(Action::requeue(LATER)),
        Err(why) => {
            say(v, ctx, Said::new("Ready", false, reason(&why), why.to_string())).await?;
            Ok(Action::requeue(AGAIN))
        }
    }
}

/// Carried out as it is now. From then on the mirror keeps the status, and its writes are no reason to ask again.
fn is_done(v: &Vdi) -> bool {
    let Some(status) = &v.status else { return false };
    let current = |c: &Condition| c.type_ == "Ready" && c.status == "True";
    status.observed_generation == v.metadata.generation && status.conditions.iter().any(current)
}

fn reason(why: &Failure) -> &'static str {
    let Failure::Sheep(e) = why else { return "Waiting" };
    match e.kind {
        ErrorKind::Exists => "NameTaken",
        ErrorKind::Missing if e.message == GONE => "Gone",
        ErrorKind::Missing => "SourceMissing",
        ErrorKind::Full => "NoSpace",
        ErrorKind::Busy | ErrorKind::Moved => "Busy",
        ErrorKind::Usage => "Refused",
        ErrorKind::Unsupported => "Unsupported",
        ErrorKind::Denied => "Denied",
        ErrorKind::NotFormatted | ErrorKind::Cluster | ErrorKind::Unreachable => "ClusterNotReady",
        ErrorKind::Internal => "Failed",
    }
}

/// Of an object whose VDI was there.
pub(crate) const GONE: &str =
    "the VDI has been deleted in Sheepdog; an empty one is not made in its place: delete this object";
/// Sizes are multiples of this, bytes.
const UNIT: u64 = 4096;

/// The size that is asked for.
fn wanted_size(v: &Vdi) -> Result<u64, Failure> {
    let bytes = quantity::bytes(&v.spec.size).filter(|b| *b > 0);
    let rounded = bytes.and_then(|b| b.checked_next_multiple_of(UNIT));
    rounded.ok_or_else(|| Failure::Other(format!("spec.size is {}: write for example 10Gi", v.spec.size)))
}

/// The limits that are asked for.
fn wanted_limits(v: &Vdi) -> Result<Wish, Failure> {
    let Some(l) = &v.spec.limits else { return Ok(Wish::default()) };
    let bytes = |field: &str, text: &Option<String>| {
        let wrong = |t| Failure::Other(format!("spec.limits.{field} is {t}: write for example 50Mi"));
        text.as_ref().map(|t| quantity::bytes(t).ok_or_else(|| wrong(t))).transpose()
    };
    let rate = |n: Option<u64>, burst| n.map(|per_second| Rate { per_second, burst });
    Ok(Wish {
        iops: rate(l.iops.map(u64::from), l.iops_burst.map(u64::from)),
        bandwidth: rate(bytes("bandwidth", &l.bandwidth)?, bytes("bandwidthBurst", &l.bandwidth_burst)?),
    })
}

/// The VDI is as the object asks for.
fn is_as_asked(v: &Vdi, there: &pb::Vdi) -> bool {
    wanted_size(v).is_ok_and(|size| there.size >= size) && has_redundancy(v, there) && has_limits(v, there)
}

fn has_redundancy(v: &Vdi, there: &pb::Vdi) -> bool {
    v.spec.redundancy.as_ref().is_none_or(|r| there.redundancy == Some(wire(r)))
}

fn has_limits(v: &Vdi, there: &pb::Vdi) -> bool {
    wanted_limits(v).is_ok_and(|wish| wish.holds(there.limits.unwrap_or_default()))
}

async fn carry_out(v: &Vdi, ctx: &Context) -> Result<(), Failure> {
    let (size, redundancy) = (wanted_size(v)?, v.spec.redundancy.as_ref().map(wire));
    let wish = wanted_limits(v)?;
    let client = ctx.client_of(&v.spec.cluster).await?;
    let name = v.vdi_name();
    // Once it is known it is known by its id: it may have been renamed, and another one may have its name.
    let known = v.status.as_ref().and_then(|s| s.uuid.as_ref());
    let by = known.map_or_else(|| VdiRef::name(name), VdiRef::uuid);
    let there = match client.get_vdi(get(by)).await {
        Ok(vdi) => vdi,
        Err(e) if e.kind == ErrorKind::Missing && known.is_some() => {
            return Err(Failure::Sheep(sheepdog_client::Error::new(ErrorKind::Missing, GONE)));
        }
        Err(e) if e.kind == ErrorKind::Missing => {
            let made = client.create_vdi(create(v, name, size, redundancy)).await?;
            ctx.tell(v, true, "Created", format!("VDI {name} has been made in cluster {}", v.spec.cluster))
                .await;
            made
        }
        Err(e) => return Err(e.into()),
    };
    grow(v, ctx, &client, &there, size).await?;
    if let Some(r) = redundancy
        && there.redundancy.as_ref().is_some_and(|have| *have != r)
    {
        let request = pb::AlterVdiCopiesRequest { vdi: by_uuid(&there), redundancy: Some(r) };
        client.alter_vdi_copies(request).await?;
        ctx.tell(v, true, "CopiesChanged", format!("VDI {name} gets {}", view::redundancy(&r))).await;
    }
    limit(v, ctx, &client, &there, wish).await?;
    let now = client.get_vdi(get(VdiRef::uuid(&there.uuid))).await?;
    let old = v.status.clone().unwrap_or_default();
    let known = view::Known {
        used: old.used.clone(),
        claim: old.claim.clone(),
        carried_out: true,
        ..Default::default()
    };
    write_status(v, ctx, view::status(v, &now, &known, Timestamp::now())).await
}

async fn grow(v: &Vdi, ctx: &Context, client: &Client, there: &pb::Vdi, size: u64) -> Result<(), Failure> {
    if there.size >= size {
        return Ok(());
    }
    client.resize(pb::ResizeRequest { vdi: by_uuid(there), size, shrink: false }).await?;
    ctx.tell(v, true, "Resized", format!("VDI {} has {size} bytes now", there.name)).await;
    Ok(())
}

async fn limit(v: &Vdi, ctx: &Context, client: &Client, there: &pb::Vdi, wish: Wish) -> Result<(), Failure> {
    let was = there.limits.unwrap_or_default();
    if wish.holds(was) {
        return Ok(());
    }
    let limits = wish.on(was);
    client.set_limits(pb::SetLimitsRequest { vdi: by_uuid(there), limits: Some(limits) }).await?;
    let may = view::limits(&limits).unwrap_or_else(|| "as fast as it can".into());
    ctx.tell(v, true, "LimitsChanged", format!("VDI {} may be used: {may}", there.name)).await;
    Ok(())
}

fn get(vdi: VdiRef) -> pb::GetVdiRequest {
    pb::GetVdiRequest { vdi: Some(vdi), usage: false }
}

fn by_uuid(v: &pb::Vdi) -> Option<VdiRef> {
    Some(VdiRef::uuid(&v.uuid))
}

/// The object's own id is the VDI's, so that a repeated request is recognised.
fn create(v: &Vdi, name: &str, size: u64, redundancy: Option<pb::Redundancy>) -> pb::CreateVdiRequest {
    pb::CreateVdiRequest {
        name: name.into(),
        size,
        redundancy,
        object_size: 0,
        uuid: v.uid().unwrap_or_default(),
        source: v.spec.source.as_ref().map(|s| VdiRef::name(&s.vdi)),
        source_snapshot: v.spec.source.as_ref().and_then(|s| s.snapshot.clone()).unwrap_or_default(),
        flatten: false,
    }
}

async fn finalize(v: &Vdi, ctx: &Context) -> Result<Action, Failure> {
    let abandoned = v.annotations().get(ABANDON).is_some_and(|a| a == "true");
    let keep = abandoned || v.spec.deletion_policy == DeletionPolicy::Retain;
    if !keep && let Err(why) = remove(v, ctx).await {
        let text = format!(
            "{why}. To delete this object and keep the VDI: kubectl annotate vdi {} {ABANDON}=true",
            v.name_any()
        );
        say(v, ctx, Said::new("Ready", false, "DeletionHeld", text)).await?;
        return Ok(Action::requeue(AGAIN));
    }
    set_finalizer(v, ctx, false).await?;
    Ok(Action::await_change())
}

async fn remove(v: &Vdi, ctx: &Context) -> Result<(), Failure> {
    let client = ctx.client_of(&v.spec.cluster).await?;
    // By the id that we know, so that a later VDI of the same name is not deleted for this one.
    let known = v.status.as_ref().and_then(|s| s.uuid.as_ref());
    let vdi = known.map_or_else(|| VdiRef::name(v.vdi_name()), VdiRef::uuid);
    let request = pb::DeleteVdiRequest { vdi: Some(vdi), ..Default::default() };
    match client.delete_vdi(request).await {
        Ok(_) => Ok(()),
        Err(e) if e.kind == ErrorKind::Missing => Ok(()),
        Err(e) => Err(e.into()),
    }
}

async fn set_finalizer(v: &Vdi, ctx: &Context, on: bool) -> Result<(), kube::Error> {
    let mut all: Vec<String> = v.finalizers().iter().filter(|f| *f != VDI_FINALIZER).cloned().collect();
    if on {
        all.push(VDI_FINALIZER.into());
    }
    let patch = json!({"metadata": {"resourceVersion": v.resource_version(), "finalizers": all}});
    ctx.api::<Vdi>().patch(&v.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
}

async fn say(v: &Vdi, ctx: &Context, said: Said) -> Result<(), Failure> {
    let mut status = v.status.clone().unwrap_or_default();
    let before = status.conditions.iter().find(|c| c.type_ == said.kind).map(|c| c.message.clone());
    if before.as_deref() != Some(&said.message) {
        ctx.tell(v, false, said.reason, said.message.clone()).await;
    }
    status.conditions = merge(&status.conditions, &[said], v.metadata.generation, Timestamp::now());
    status.observed_generation = v.metadata.generation;
    write_status(v, ctx, status).await
}

/// Write it, if it differs.
pub(crate) async fn write_status(
    v: &Vdi,
    ctx: &Context,
    status: sheepdog_crds::VdiStatus,
) -> Result<(), Failure> {
    if v.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let patch = json!({
        "apiVersion": "sheepdog.io/v1alpha1", "kind": "Vdi", "metadata": {"name": v.name_any()}, "status": status,
    });
    let params = PatchParams::apply(MANAGER).force();
    match ctx.api::<Vdi>().patch_status(&v.name_any(), &params, &Patch::Apply(&patch)).await {
        Ok(_) => Ok(()),
        // It was deleted meanwhile.
        Err(kube::Error::Api(s)) if s.code == 404 => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// After an error of the API server.
pub fn on_error(v: Arc<Vdi>, error: &Failure, _: Arc<Context>) -> Action {
    tracing::warn!(vdi = v.name_any(), %error, "looking at a Vdi failed");
    Action::requeue(AGAIN)
}
