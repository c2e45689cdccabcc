//! Listings, in pages. A token is the place after which the next page begins, so volumes may come and go between pages.

use super::{Controller, create, publish, snapshot};
use crate::csi::*;
use crate::fault::{Fault, Kind, Outcome};
use crate::names::{self, SnapshotId, Tag};
use crate::registry;
use sheepdog_client::pb::{ListVdisRequest, Vdi};

/// Entries of a page unless asked for fewer.
const PAGE: usize = 1000;
/// Start of tokens.
const TOKEN: &str = "after:";

fn page_size(max_entries: i32) -> Outcome<usize> {
    match usize::try_from(max_entries) {
        Err(_) => Err(Fault::invalid("max_entries is not negative")),
        Ok(0) => Ok(PAGE),
        Ok(n) => Ok(n.min(PAGE)),
    }
}

fn place(token: &str) -> Outcome<&str> {
    if token.is_empty() {
        return Ok("");
    }
    token.strip_prefix(TOKEN).filter(|t| !t.is_empty()).ok_or_else(|| {
        Fault::new(Kind::Aborted, format!("the token \"{token}\" is not one of ours: begin again"))
    })
}

/// Volumes, as opposed to what else is in the table.
fn is_volume(v: &Vdi) -> bool {
    v.working && v.name != registry::NAME
}

pub(super) async fn volumes(c: &Controller, r: ListVolumesRequest) -> Outcome<ListVolumesResponse> {
    use list_volumes_response::{Entry, VolumeStatus};
    let want = page_size(r.max_entries)?;
    let mut after = place(&r.starting_token)?.to_owned();
    let mut found: Vec<Vdi> = Vec::new();
    let mut more = true;
    while more && found.len() <= want {
        let request = ListVdisRequest { page_size: want as u32 + 1, page_token: after, ..Default::default() };
        let page = c.sheep.client().list_vdis(request).await?;
        after = page.next_page_token;
        more = !after.is_empty();
        found.extend(page.vdis.into_iter().filter(is_volume));
    }
    let left = found.len() > want;
    found.truncate(want);
    let next_token = match found.last() {
        Some(last) if left => format!("{TOKEN}{}", last.name),
        _ => String::new(),
    };
    let mut entries = Vec::with_capacity(found.len());
    for v in &found {
        let status = VolumeStatus { published_node_ids: publish::nodes(v), volume_condition: None };
        entries.push(Entry { volume: Some(create::describe(c, v).await?), status: Some(status) });
    }
    Ok(ListVolumesResponse { entries, next_token })
}

pub(super) async fn snapshots(c: &Controller, r: ListSnapshotsRequest) -> Outcome<ListSnapshotsResponse> {
    use list_snapshots_response::Entry;
    let want = page_size(r.max_entries)?;
    let after = match place(&r.starting_token)? {
        "" => None,
        token => Some(SnapshotId::parse(token).ok_or_else(|| {
            Fault::new(Kind::Aborted, format!("the token \"{token}\" is not one of ours: begin again"))
        })?),
    };
    // An id that cannot be is that of no snapshot, which is no error here.
    let only = match r.snapshot_id.as_str() {
        "" => None,
        id => match SnapshotId::parse(id) {
            Some(id) => Some(id),
            None => return Ok(ListSnapshotsResponse::default()),
        },
    };
    let source = match r.source_volume_id.as_str() {
        "" => only.map(|s| s.vdi),
        id => match names::volume_id(id) {
            Some(id) => Some(id),
            None => return Ok(ListSnapshotsResponse::default()),
        },
    };
    let vdis = match source {
        Some(id) => c.sheep.any(id).await?.into_iter().collect(),
        None => c.sheep.all().await?,
    };
    let mut all = Vec::new();
    for v in &vdis {
        let Some(vdi) = names::volume_id(&v.uuid) else { continue };
        for s in v.snapshots.iter().filter(|s| names::tag(&s.tag) != Tag::Clone) {
            let id = SnapshotId { vdi, number: s.id };
            if only.is_none_or(|o| o == id) && after.is_none_or(|a| id > a) {
                all.push((id, v, s));
            }
        }
    }
    all.sort_by_key(|(id, ..)| *id);
    let left = all.len() > want;
    all.truncate(want);
    let next_token = match all.last() {
        Some((id, ..)) if left => format!("{TOKEN}{id}"),
        _ => String::new(),
    };
    let entry = |(_, v, s)| snapshot::describe(v, s).map(|s| Entry { snapshot: Some(s) });
    let entries = all.into_iter().map(entry).collect::<Outcome<Vec<_>>>()?;
    Ok(ListSnapshotsResponse { entries, next_token })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_tokens() {
        assert_eq!(page_size(-1).unwrap_err().kind, Kind::Invalid);
        assert_eq!(
            (page_size(0).unwrap(), page_size(3).unwrap(), page_size(i32::MAX).unwrap()),
            (PAGE, 3, PAGE)
        );
        assert_eq!((place("").unwrap(), place("after:x").unwrap()), ("", "x"));
        for bad in ["invalid-token", "after:", "x"] {
            assert_eq!(place(bad).unwrap_err().kind, Kind::Aborted);
        }
    }

    #[test]
    fn what_is_a_volume() {
        let v = |name: &str, working| Vdi { name: name.into(), working, ..Default::default() };
        assert!(is_volume(&v("pvc-1", true)));
        assert!(!is_volume(&v("pvc-1", false)));
        assert!(!is_volume(&v(registry::NAME, true)));
    }
}
