//! The controller of `SheepdogCluster`: fetch, decide (validate, members, roll, step), build, apply, status. Only fetch and apply talk to anybody; everything
//! between is pure and knows what happened before from the objects alone, so an operator that dies at any point goes on where it was.

pub mod act;
pub mod build;
pub mod disks;
pub mod engine;
pub mod fetch;
pub mod finalize;
pub mod members;
pub mod roll;
pub mod seen;
pub mod status;
pub mod step;
pub mod validate;

use crate::context::{Context, Failure};
use crate::names::{CLUSTER_FINALIZER, Names};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use seen::{Engine, Seen};
use serde_json::json;
use sheepdog_crds::SheepdogCluster;
use status::Decided;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks at a cluster on which something is going on.
const SOON: Duration = Duration::from_secs(3);
/// Between two looks at one that is as it should be.
const LATER: Duration = Duration::from_secs(20);

/// Look once, and do what is to be done now.
pub async fn reconcile(c: Arc<SheepdogCluster>, ctx: Arc<Context>) -> Result<Action, Failure> {
    let started = std::time::Instant::now();
    let done = one(&c, &ctx).await;
    ctx.metrics.reconciled("SheepdogCluster", done.is_ok(), started.elapsed());
    done
}

async fn one(c: &SheepdogCluster, ctx: &Context) -> Result<Action, Failure> {
    if c.metadata.deletion_timestamp.is_some() {
        return finalize::finalize(c, ctx).await;
    }
    let finalizers = c.finalizers();
    if !finalizers.iter().any(|f| f == CLUSTER_FINALIZER) {
        let mut all = finalizers.to_vec();
        all.push(CLUSTER_FINALIZER.into());
        set_finalizers(ctx, c, &all).await?;
    }
    let names = Names::of(c);
    let (seen, client) = fetch::fetch(c, ctx).await?;
    let old = c.status.clone().unwrap_or_default();
    let mut d = Decided { invalid: validate::validate(c), ..Decided::default() };
    d.members = members::members(&c.spec, &old, &seen);
    d.disks = disks::disks(c, &names, &seen, &d.members.leaving);
    if c.spec.paused || d.invalid.is_some() {
        d.members.drain = None;
        d.members.cancel = None;
        (d.disks.unplug, d.disks.stay) = (None, None);
    } else if let Err(e) = act::act(c, &names, ctx, &seen, client.as_ref(), &mut d).await {
        tracing::warn!(cluster = names.cluster, error = %e, "something could not be done");
        d.failed = Some(e.to_string());
    }
    let new = status::status(c, &seen, &d, Timestamp::now());
    if new != old {
        tell_changes(c, ctx, &old.conditions, &new.conditions).await;
        let patch = json!({
            "apiVersion": "sheepdog.io/v1alpha1",
            "kind": "SheepdogCluster",
            "metadata": {"name": names.cluster},
            "status": new,
        });
        let params = PatchParams::apply(crate::names::MANAGER).force();
        ctx.api::<SheepdogCluster>().patch_status(&names.cluster, &params, &Patch::Apply(&patch)).await?;
    }
    ctx.metrics.cluster(&names.cluster, &new.conditions);
    crate::vdi::mirror::mirror_if_due(c, ctx, client.as_ref(), &seen).await;
    Ok(Action::requeue(if settled(&seen, &d) { LATER } else { SOON }))
}

fn settled(seen: &Seen, d: &Decided) -> bool {
    let well = matches!(&seen.engine, Engine::Formatted(f) if f.is_well());
    let stuck = d.invalid.is_some() || matches!(d.hold, Some(step::Hold::TooFewNodes(_)));
    stuck
        || (well
            && d.failed.is_none()
            && d.members.leaving.is_empty()
            && d.disks.leaving.is_empty()
            && d.roll.restart.is_none()
            && d.roll.waiting.is_none())
}

/// Replace the finalizers of exactly this version of the object.
pub(crate) async fn set_finalizers(
    ctx: &Context,
    c: &SheepdogCluster,
    all: &[String],
) -> Result<(), kube::Error> {
    let patch = json!({"metadata": {"resourceVersion": c.resource_version(), "finalizers": all}});
    ctx.api::<SheepdogCluster>()
        .patch(&c.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map(drop)
}

/// An event for each condition whose status changed.
async fn tell_changes(
    c: &SheepdogCluster,
    ctx: &Context,
    old: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition],
    new: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition],
) {
    for n in new {
        let before = old.iter().find(|o| o.type_ == n.type_);
        if before.is_some_and(|o| o.status == n.status) || n.status == "Unknown" {
            continue;
        }
        let good = match n.type_.as_str() {
            "Available" | "QuorumHeld" => n.status == "True",
            "Progressing" | "Recovering" => true,
            _ => n.status == "False",
        };
        // What was never bad is not worth an event.
        if good && before.is_none() && n.status == "False" {
            continue;
        }
        ctx.tell(c, good, &n.reason, format!("{} is {}: {}", n.type_, n.status, n.message)).await;
    }
}

/// After an error: soon, but not at once.
pub fn on_error(c: Arc<SheepdogCluster>, error: &Failure, _: Arc<Context>) -> Action {
    tracing::warn!(cluster = c.name_any(), %error, "looking at a cluster failed");
    Action::requeue(Duration::from_secs(5))
}
