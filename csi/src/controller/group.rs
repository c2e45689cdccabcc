//! Snapshots of several volumes at one instant: one step of the cluster's log, all or none.

use super::{Controller, snapshot};
use crate::csi::*;
use crate::fault::{Fault, Kind, Outcome, given};
use crate::names::{self, Tag};
use sheepdog_client::pb::{self, Vdi};
use std::collections::BTreeSet;

/// Members of a group, with their VDIs.
async fn members(c: &Controller, group: &str) -> Outcome<Vec<(Vdi, pb::Snapshot)>> {
    let all = c.sheep.all().await?;
    let mut found = Vec::new();
    for v in all {
        let member = v.snapshots.iter().find(|s| names::tag(&s.tag) == Tag::Group(group)).cloned();
        found.extend(member.map(|s| (v, s)));
    }
    Ok(found)
}

fn describe(group: &str, members: &[(Vdi, pb::Snapshot)]) -> Outcome<VolumeGroupSnapshot> {
    let snapshots = members.iter().map(|(v, s)| snapshot::describe(v, s)).collect::<Outcome<Vec<_>>>()?;
    Ok(VolumeGroupSnapshot {
        group_snapshot_id: group.into(),
        creation_time: members.first().map(|(_, s)| snapshot::time(s.created_ms)),
        ready_to_use: true,
        snapshots,
    })
}

/// Callers may say which members they know of; it has to be all of them.
fn check_members(given: &[String], members: &[(Vdi, pb::Snapshot)]) -> Outcome<()> {
    let have = members
        .iter()
        .map(|(v, s)| snapshot::describe(v, s).map(|d| d.snapshot_id))
        .collect::<Outcome<BTreeSet<String>>>()?;
    match given.iter().find(|id| !have.contains(*id)) {
        Some(id) => Err(Fault::invalid(format!("snapshot {id} is not of this group"))),
        None => Ok(()),
    }
}

pub(super) async fn create(
    c: &Controller,
    r: CreateVolumeGroupSnapshotRequest,
) -> Outcome<CreateVolumeGroupSnapshotResponse> {
    let group = names::escape(&r.name)?;
    snapshot::check_parameters(&r.parameters)?;
    let wanted: BTreeSet<String> = r.source_volume_ids.iter().cloned().collect();
    if wanted.is_empty() || wanted.contains("") || wanted.len() != r.source_volume_ids.len() {
        return Err(Fault::invalid("ids of source volumes are needed, each once"));
    }
    let this = c.clone();
    c.locks
        .run("group snapshot", [format!("group snapshot {group}")], async move {
            let mut volumes = Vec::new();
            for id in &wanted {
                volumes.push(this.sheep.the_volume(id).await?);
            }
            let mut found = members(&this, &group).await?;
            if found.is_empty() {
                let of: Vec<&Vdi> = volumes.iter().collect();
                match snapshot::take(&this, &of, &names::group_tag(&group)).await {
                    // Taken by a request whose answer was lost.
                    Err(f) if f.kind != Kind::Exists => return Err(f),
                    _ => found = members(&this, &group).await?,
                }
            }
            let have: BTreeSet<String> = found.iter().map(|(v, _)| v.uuid.clone()).collect();
            if have != wanted {
                return Err(Fault::new(
                    Kind::Exists,
                    format!("a group snapshot named {} exists, of other volumes", r.name),
                ));
            }
            tracing::info!(group, members = found.len(), "group snapshot taken");
            Ok(CreateVolumeGroupSnapshotResponse { group_snapshot: Some(describe(&group, &found)?) })
        })
        .await
}

pub(super) async fn delete(
    c: &Controller,
    r: DeleteVolumeGroupSnapshotRequest,
) -> Outcome<DeleteVolumeGroupSnapshotResponse> {
    let group = r.group_snapshot_id;
    given("group snapshot id", &group)?;
    let this = c.clone();
    c.locks
        .run("deletion", [format!("group snapshot {group}")], async move {
            let found = members(&this, &group).await?;
            // Some may be gone already: an earlier call broke off.
            for (v, s) in &found {
                snapshot::remove(&this, v, s).await?;
            }
            tracing::info!(group, members = found.len(), "group snapshot deleted");
            Ok(DeleteVolumeGroupSnapshotResponse {})
        })
        .await
}

pub(super) async fn get(
    c: &Controller,
    r: GetVolumeGroupSnapshotRequest,
) -> Outcome<GetVolumeGroupSnapshotResponse> {
    let group = r.group_snapshot_id;
    given("group snapshot id", &group)?;
    let found = members(c, &group).await?;
    if found.is_empty() {
        return Err(Fault::not_found(format!("there is no group snapshot {group}")));
    }
    check_members(&r.snapshot_ids, &found)?;
    Ok(GetVolumeGroupSnapshotResponse { group_snapshot: Some(describe(&group, &found)?) })
}
