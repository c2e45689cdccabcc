//! Snapshots of one volume. They are there as soon as the call is answered.

use super::Controller;
use crate::csi::*;
use crate::fault::{Fault, Kind, Outcome, given};
use crate::names::{self, SnapshotId, Tag};
use crate::sheep::id_of;
use crate::size::signed;
use sheepdog_client::pb::session::State;
use sheepdog_client::pb::{self, DeleteVdiRequest, SnapshotRequest, Vdi, VdiRef};
use sheepdog_client::{Error, ErrorKind};
use std::collections::HashMap;

/// Parameters of snapshot classes: none of ours.
pub(super) fn check_parameters(parameters: &HashMap<String, String>) -> Outcome<()> {
    match parameters.keys().find(|k| !k.starts_with("csi.storage.k8s.io/")) {
        Some(key) => {
            Err(Fault::invalid(format!("snapshot parameter \"{key}\" is not known: there are none")))
        }
        None => Ok(()),
    }
}

/// A snapshot as CSI tells of it.
pub(super) fn describe(v: &Vdi, s: &pb::Snapshot) -> Outcome<Snapshot> {
    let vdi = id_of(v)?;
    let group = match names::tag(&s.tag) {
        Tag::Group(g) => g.to_owned(),
        Tag::Single(_) | Tag::Clone => String::new(),
    };
    Ok(Snapshot {
        size_bytes: signed(s.size),
        snapshot_id: SnapshotId { vdi, number: s.id }.to_string(),
        source_volume_id: v.uuid.clone(),
        creation_time: Some(time(s.created_ms)),
        ready_to_use: true,
        group_snapshot_id: group,
    })
}

/// Milliseconds since the epoch, as protobuf says it.
pub(super) fn time(ms: u64) -> prost_types::Timestamp {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    prost_types::Timestamp { seconds, nanos: (ms % 1000) as i32 * 1_000_000 }
}

/// Take a snapshot of one or several VDIs at one instant. One whose owner died is opened first: only then is it known what it holds.
pub(super) async fn take(c: &Controller, of: &[&Vdi], tag: &str) -> Outcome<pb::SnapshotReply> {
    let vdis = of.iter().map(|v| VdiRef::id(v.id)).collect();
    let request = SnapshotRequest { vdis, tag: tag.into() };
    let mut tries = 3;
    loop {
        tries -= 1;
        match c.sheep.client().snapshot(request.clone()).await {
            Ok(made) => return Ok(made),
            Err(Error { kind: ErrorKind::Busy, message }) if tries > 0 => {
                let mut settled = false;
                for v in of {
                    let id = id_of(v)?;
                    let now = c.sheep.any(id).await?;
                    if now.and_then(|v| v.session).is_some_and(|s| s.state() == State::Unclean) {
                        c.sheep.settle(v.id).await?;
                        settled = true;
                    }
                }
                if !settled {
                    return Err(Fault::precondition(message));
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
}

pub(super) async fn create(c: &Controller, r: CreateSnapshotRequest) -> Outcome<CreateSnapshotResponse> {
    let tag = names::escape(&r.name)?;
    given("source volume id", &r.source_volume_id)?;
    check_parameters(&r.parameters)?;
    let this = c.clone();
    c.locks
        .run("snapshot", [format!("snapshot {tag}")], async move {
            let v = this.sheep.the_volume(&r.source_volume_id).await?;
            let made = |v: &Vdi| v.snapshots.iter().find(|s| s.tag == tag).map(|s| describe(v, s));
            if let Some(snapshot) = made(&v) {
                return Ok(CreateSnapshotResponse { snapshot: Some(snapshot?) });
            }
            let all = this.sheep.all().await?;
            if let Some(other) = all.iter().find(|v| made(v).is_some()) {
                return Err(Fault::new(
                    Kind::Exists,
                    format!("a snapshot named {} exists, of volume {}", r.name, other.uuid),
                ));
            }
            match take(&this, &[&v], &tag).await {
                // Taken by a request whose answer was lost.
                Err(f) if f.kind != Kind::Exists => return Err(f),
                _ => {}
            }
            let v = this.sheep.the_volume(&r.source_volume_id).await?;
            let snapshot = made(&v).unwrap_or_else(|| {
                Err(Fault::new(Kind::Aborted, "the snapshot was deleted while it was made: try again"))
            })?;
            tracing::info!(snapshot = snapshot.snapshot_id, name = r.name, "snapshot taken");
            Ok(CreateSnapshotResponse { snapshot: Some(snapshot) })
        })
        .await
}

/// A snapshot that users know of.
async fn find(c: &Controller, id: &str) -> Outcome<Option<(Vdi, pb::Snapshot)>> {
    let Some(id) = SnapshotId::parse(id) else { return Ok(None) };
    let Some(v) = c.sheep.any(id.vdi).await? else { return Ok(None) };
    let found = v.snapshots.iter().find(|s| s.id == id.number && names::tag(&s.tag) != Tag::Clone).cloned();
    Ok(found.map(|s| (v, s)))
}

/// A snapshot that has to be there.
pub(super) async fn the(c: &Controller, id: &str) -> Outcome<(Vdi, pb::Snapshot)> {
    given("snapshot id", id)?;
    find(c, id).await?.ok_or_else(|| Fault::not_found(format!("there is no snapshot {id}")))
}

pub(super) async fn get(c: &Controller, id: &str) -> Outcome<GetSnapshotResponse> {
    let (v, s) = the(c, id).await?;
    Ok(GetSnapshotResponse { snapshot: Some(describe(&v, &s)?) })
}

pub(super) async fn delete(c: &Controller, id: String) -> Outcome<DeleteSnapshotResponse> {
    given("snapshot id", &id)?;
    let this = c.clone();
    c.locks
        .run("deletion", [format!("snapshot {id}")], async move {
            let Some((v, s)) = find(&this, &id).await? else { return Ok(DeleteSnapshotResponse {}) };
            if let Tag::Group(group) = names::tag(&s.tag) {
                return Err(Fault::invalid(format!(
                    "snapshot {id} belongs to the group snapshot {group}: delete that"
                )));
            }
            remove(&this, &v, &s).await?;
            tracing::info!(snapshot = id, "snapshot deleted");
            Ok(DeleteSnapshotResponse {})
        })
        .await
}

/// Delete one; done when it is not there.
pub(super) async fn remove(c: &Controller, v: &Vdi, s: &pb::Snapshot) -> Outcome<()> {
    let snapshot = names::word(v, s)?;
    let request = DeleteVdiRequest { vdi: Some(VdiRef::id(v.id)), snapshot, ..Default::default() };
    match c.sheep.client().delete_vdi(request).await {
        Err(e) if e.kind != ErrorKind::Missing => Err(e.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let t = time(1_700_000_000_123);
        assert_eq!((t.seconds, t.nanos), (1_700_000_000, 123_000_000));
    }

    #[test]
    fn members_of_groups_name_their_group() {
        let uuid = uuid::Uuid::nil().to_string();
        let v = Vdi { uuid: uuid.clone(), ..Default::default() };
        let s = pb::Snapshot { id: 4, tag: names::group_tag("g"), size: 7, ..Default::default() };
        let d = describe(&v, &s).unwrap();
        assert_eq!((d.group_snapshot_id.as_str(), d.snapshot_id), ("g", format!("{uuid}@4")));
        assert!(check_parameters(&HashMap::from([("x".into(), "y".into())])).is_err());
    }
}
