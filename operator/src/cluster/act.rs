//! Makes it so: objects are applied, sheep are asked for the next step, a pod that is out of date is deleted. Everything here may be repeated.

use super::build::{self, Desired, Input, classes};
use super::roll::{self, Revisions};
use super::seen::{Engine, Seen};
use super::status::Decided;
use super::step::{self, Step};
use crate::apply::delete;
use crate::context::{Context, Failure};
use crate::names::{CLUSTER, COMPONENT, GATEWAY, GROUP, NAMESPACE, Names, REVISION, SECRET_KEY};
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams, Preconditions};
use sheepdog_client::{Client, Credentials, ErrorKind};
use sheepdog_crds::SheepdogCluster;

/// Do what is to be done now. What was decided on the way goes into `d`.
pub async fn act(
    c: &SheepdogCluster,
    names: &Names,
    ctx: &Context,
    seen: &Seen,
    client: Option<&Client>,
    d: &mut Decided,
) -> Result<(), Failure> {
    secret(c, names, ctx).await?;
    if ctx.installed.csi_image.is_none() && c.spec.node_groups.iter().any(|g| !g.devices.is_empty()) {
        return Err(Failure::Other(
            "block devices as disks need the image of the CSI driver: start the operator with --csi-image"
                .into(),
        ));
    }
    let well = matches!(&seen.engine, Engine::Formatted(f) if f.is_well());
    let desired = build::desired(&Input {
        cluster: c,
        names,
        installed: &ctx.installed,
        nodes: &seen.nodes,
        members: &d.members,
        evictable: usize::from(well),
    })?;
    let (steps, hold) = step::next(&c.spec, &c.status.clone().unwrap_or_default(), seen, &d.members);
    d.hold = hold;
    let revisions = revisions(&desired);
    let (kind, port) = (c.spec.update_strategy.kind, c.spec.ports.client);
    d.roll = roll::roll(kind, &seen.pods, &revisions, &d.disks.held, &seen.engine, port);
    objects(c, names, ctx, &desired, d).await?;
    wide(c, names, ctx).await?;
    for step in steps {
        take(c, ctx, client, step).await?;
    }
    if let Some(pod) = &d.roll.restart {
        ctx.tell(c, true, "Restarting", format!("pod {} on {} is out of date", pod.name, pod.node)).await;
        let exactly = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
        let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() };
        match ctx.api::<Pod>().delete(&pod.name, &params).await {
            // It has gone, or a new one has taken its place.
            Err(kube::Error::Api(s)) if s.code == 404 || s.code == 409 => {}
            other => drop(other?),
        }
    }
    attributes(c, names, ctx).await?;
    if let Some(r) = d.disks.stay.clone() {
        take(c, ctx, client, Step::Plug(r)).await?;
    }
    match d.disks.unplug.clone().filter(|_| d.roll.restart.is_none() && d.roll.waiting.is_none()) {
        Some(r) => take(c, ctx, client, Step::Unplug(r)).await,
        None => Ok(()),
    }
}

fn revisions(desired: &Desired) -> Revisions {
    let of = |ds: &DaemonSet| {
        let notes = ds.spec.as_ref()?.template.metadata.as_ref()?.annotations.as_ref()?;
        let gateway = ds.labels().get(COMPONENT).is_some_and(|v| v == GATEWAY);
        let group = (!gateway).then(|| ds.labels().get(GROUP).cloned().unwrap_or_default());
        Some((group, notes.get(REVISION)?.clone()))
    };
    desired.daemonsets.iter().filter_map(of).collect()
}

/// The cluster's credentials are made once, and never replaced: sheep with different ones do not speak to each other.
async fn secret(c: &SheepdogCluster, names: &Names, ctx: &Context) -> Result<(), Failure> {
    let name = names.secret(c);
    let api = ctx.api::<Secret>();
    if let Some(there) = api.get_opt(&name).await? {
        let text = there.data.as_ref().and_then(|d| d.get(SECRET_KEY));
        let text = text.map(|b| String::from_utf8_lossy(&b.0).into_owned()).unwrap_or_default();
        return match Credentials::parse(&text) {
            Ok(_) => Ok(()),
            Err(why) => Err(Failure::Other(format!(
                "secret {name}, key {SECRET_KEY}: {why}: it must hold what `dog secret new` wrote"
            ))),
        };
    }
    if c.spec.tls.is_some() {
        return Err(Failure::Other(format!(
            "secret {name} is not there: make it with `dog secret new -f FILE` and `kubectl create secret generic {name} --from-file={SECRET_KEY}=FILE`"
        )));
    }
    if c.status.as_ref().is_some_and(|s| s.cluster_id.is_some()) {
        return Err(Failure::Other(format!(
            "secret {name} has been deleted: restore it from your copy. A new one is not made, because running sheep would not take it. Without a copy: `kubectl exec` into a running sheep and save /etc/sheepdog/credentials/{SECRET_KEY}"
        )));
    }
    let made = Credentials::generate().map_err(|e| Failure::Other(e.to_string()))?;
    // It has no owner: it outlives the SheepdogCluster, as the data on the nodes does.
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(names.namespace.clone()),
            labels: Some(names.labels()),
            ..Default::default()
        },
        type_: Some("Opaque".into()),
        data: Some([(SECRET_KEY.to_owned(), ByteString(made.to_text().into_bytes()))].into()),
        ..Default::default()
    };
    match api.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            ctx.tell(c, true, "SecretCreated", format!("credentials are in secret {name}: keep a copy")).await
        }
        Err(kube::Error::Api(s)) if s.code == 409 => {}
        Err(e) => return Err(e.into()),
    }
    Ok(())
}

async fn objects(
    c: &SheepdogCluster,
    names: &Names,
    ctx: &Context,
    desired: &Desired,
    d: &Decided,
) -> Result<(), Failure> {
    ctx.applier.apply(&desired.config).await?;
    ctx.applier.apply(&desired.service).await?;
    ctx.applier.apply(&desired.budget).await?;
    for set in &desired.daemonsets {
        ctx.applier.apply(set).await?;
    }
    let api = ctx.api::<DaemonSet>();
    let labels = format!("{CLUSTER}={},{COMPONENT}", names.cluster);
    for set in api.list(&ListParams::default().labels(&labels)).await? {
        let name = set.name_any();
        if desired.daemonsets.iter().any(|s| s.name_any() == name) {
            continue;
        }
        // A group that is not in the spec any more keeps its sheep until they are empty.
        let group = set.labels().get(GROUP);
        if group.is_some_and(|g| d.members.groups.values().any(|v| v == g)) {
            continue;
        }
        ctx.tell(c, true, "Removed", format!("DaemonSet {name} has no nodes any more")).await;
        delete(&api, &name).await?;
    }
    Ok(())
}

/// Objects without a namespace.
async fn wide(c: &SheepdogCluster, names: &Names, ctx: &Context) -> Result<(), Failure> {
    let api = Api::<StorageClass>::all(ctx.kube.clone());
    if let Some(class) = classes::storage_class(c, names)? {
        let name = class.name_any();
        match api.get_opt(&name).await? {
            Some(there) if !is_ours(there.labels(), names) => {
                return Err(Failure::Other(format!(
                    "there is a StorageClass {name} that is not this cluster's: set spec.storageClass.name, or create: false"
                )));
            }
            // Parameters cannot be changed; volumes do not look at their class again.
            Some(there) if classes::must_be_replaced(&there, &class) => {
                delete(&api, &name).await?;
                ctx.applier.forget();
                ctx.tell(
                    c,
                    true,
                    "StorageClassReplaced",
                    format!("StorageClass {name} has other parameters now"),
                )
                .await;
            }
            _ => {}
        }
        ctx.applier.apply_wide(&class).await?;
        if ctx.has_kind("cdi.kubevirt.io/v1beta1", "StorageProfile").await? {
            let profile = classes::storage_profile(c, names);
            ctx.applier.apply_dynamic(&profile, &classes::storage_profile_kind()).await?;
        }
    }
    if let Some(class) = classes::snapshot_class(c, names)
        && ctx.has_kind("snapshot.storage.k8s.io/v1", "VolumeSnapshotClass").await?
    {
        let kind = classes::snapshot_class_kind();
        let api = Api::<kube::core::DynamicObject>::all_with(ctx.kube.clone(), &kind);
        let name = class.name_any();
        if api.get_opt(&name).await?.is_some_and(|there| !is_ours(there.labels(), names)) {
            return Err(Failure::Other(format!(
                "there is a VolumeSnapshotClass {name} that is not this cluster's: set spec.snapshotClass.name, or create: false"
            )));
        }
        ctx.applier.apply_dynamic(&class, &kind).await?;
    }
    Ok(())
}

/// VolumeAttributesClasses: what is listed and nothing else of ours.
async fn attributes(c: &SheepdogCluster, names: &Names, ctx: &Context) -> Result<(), Failure> {
    let kind = classes::attributes_class_kind();
    let wanted = classes::attributes_classes(c, names);
    if !ctx.has_kind("storage.k8s.io/v1", &kind.kind).await? {
        let text =
            "spec.volumeAttributesClasses: this Kubernetes has none, it is older than 1.34: leave it out";
        return if wanted.is_empty() { Ok(()) } else { Err(Failure::Other(text.into())) };
    }
    let api = Api::<kube::core::DynamicObject>::all_with(ctx.kube.clone(), &kind);
    for class in &wanted {
        let name = class.name_any();
        let there = api.get_opt(&name).await?;
        if there.as_ref().is_some_and(|there| !is_ours(there.labels(), names)) {
            return Err(Failure::Other(format!(
                "there is a VolumeAttributesClass {name} that is not this cluster's: give that of spec.volumeAttributesClasses another name"
            )));
        }
        if there.is_some_and(|there| there.data["parameters"] != class.data["parameters"]) {
            return Err(Failure::Other(format!(
                "VolumeAttributesClass {name} has other parameters, which cannot be changed: list another one with another name"
            )));
        }
        ctx.applier.apply_dynamic(class, &kind).await?;
    }
    let labels = format!("{CLUSTER}={},{NAMESPACE}={}", names.cluster, names.namespace);
    for there in api.list(&ListParams::default().labels(&labels)).await? {
        let name = there.name_any();
        if !wanted.iter().any(|w| w.name_any() == name) && there.metadata.deletion_timestamp.is_none() {
            // Kubernetes keeps it as long as a claim has it.
            delete(&api, &name).await?;
        }
    }
    Ok(())
}

/// Made for this cluster, and no other.
pub(super) fn is_ours(labels: &std::collections::BTreeMap<String, String>, names: &Names) -> bool {
    labels.get(CLUSTER) == Some(&names.cluster) && labels.get(NAMESPACE) == Some(&names.namespace)
}

async fn take(
    c: &SheepdogCluster,
    ctx: &Context,
    client: Option<&Client>,
    step: Step,
) -> Result<(), Failure> {
    if let Step::Format { host, request } = step {
        return format(c, ctx, &host, request).await;
    }
    let Some(client) = client else { return Ok(()) };
    match step {
        Step::Format { .. } => {}
        Step::Drain(r) => {
            let (reason, what) =
                if r.cancel { ("DrainCancelled", "stays") } else { ("Draining", "is being emptied") };
            client.drain_node(r.clone()).await?;
            ctx.tell(c, true, reason, format!("sheep {} {what}", r.node)).await;
        }
        Step::Unplug(r) => {
            client.unplug_disk(r.clone()).await?;
            let text =
                format!("disk {} of sheep {} is being emptied onto the sheep's other disks", r.disk, r.node);
            ctx.tell(c, true, "RemovingDisk", text).await;
        }
        Step::Plug(r) => {
            client.plug_disk(r.clone()).await?;
            let text = format!("the disk at {} of sheep {} stays: the object names it again", r.path, r.node);
            ctx.tell(c, true, "DiskStays", text).await;
        }
        Step::AlterCopies(r) => {
            client.alter_copies(r).await?;
            ctx.tell(c, true, "CopiesChanged", "new volumes are made as spec.redundancy says").await;
        }
        Step::SetRecovery(r) => {
            client.set_recovery(r).await?;
            ctx.tell(c, true, "RecoveryChanged", "recovery is limited as spec.recovery says").await;
        }
        Step::SetTrash(r) => match client.set_trash(r).await {
            Ok(_) => {
                let text = "what is deleted from now on is kept as long as spec.trash says";
                ctx.tell(c, true, "TrashChanged", text).await;
            }
            // Sheep of a version that has no trash: their update, which comes after this, must not wait for it.
            Err(e) if e.kind == ErrorKind::Unsupported => {}
            Err(e) => return Err(e.into()),
        },
    }
    Ok(())
}

async fn format(
    c: &SheepdogCluster,
    ctx: &Context,
    host: &str,
    request: sheepdog_client::pb::FormatRequest,
) -> Result<(), Failure> {
    let secret = ctx.secret(c).await?.ok_or_else(|| Failure::Other("the secret is gone".into()))?;
    let at = build::config::address(host, c.spec.ports.client);
    let client = super::engine::connect(&secret, vec![at])?;
    match client.format(request).await {
        Ok(info) => {
            ctx.tell(c, true, "Formatted", format!("cluster {} has been made", info.id)).await;
            Ok(())
        }
        // Made by an operator that died before it heard of it.
        Err(e) if e.kind == ErrorKind::Exists => Ok(()),
        Err(e) => Err(e.into()),
    }
}
