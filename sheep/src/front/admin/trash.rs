//! What was deleted and can still be brought back; locks of snapshots.

use super::convert::{command_error, snapshot as to_pb};
use super::service::{Admin, find_snapshot, missing, usage};
use futures::future::BoxFuture;
use sheepdog_client::pb::*;
use sheepdog_client::{Client, Error};
use sheepdog_cluster::{
    ClusterState, Command, CommandError, SnapshotRef, TrashItem as Row, TrashKey, VdiState,
};
use sheepdog_proto::{LayerId, VdiId};
use std::collections::BTreeMap;

/// Things of one page unless asked otherwise, and at most.
const PAGE: usize = 500;
const MAX_PAGE: usize = 2_000;

/// Is there a deleted VDI of this name?
pub(super) fn holds(s: &ClusterState, name: &str) -> bool {
    s.trash_from((0, VdiId(0), 0)).any(|(_, t)| t.snapshot.is_none() && t.vdi.name == name)
}

/// 0 means the volume itself.
fn number(n: u32) -> Option<u32> {
    (n != 0).then_some(n)
}

/// The layers of something in the trash.
fn layers(t: &Row<'_>) -> Vec<LayerId> {
    match (t.snapshot, t.vdi.state) {
        (Some(s), _) => vec![s.layer],
        (None, VdiState::InTrash(_)) => {
            let with_it = t.vdi.snapshots.iter().filter(|s| s.trashed.is_none()).map(|s| s.layer);
            with_it.chain(t.vdi.top).collect()
        }
        (None, _) => t.vdi.top.into_iter().collect(),
    }
}

fn item(t: &Row<'_>, usage: Option<&BTreeMap<LayerId, u64>>) -> TrashItem {
    let whole = t.snapshot.is_none() && matches!(t.vdi.state, VdiState::InTrash(_));
    let with_it = t.vdi.snapshots.iter().filter(|s| whole && s.trashed.is_none()).count();
    TrashItem {
        vdi: t.vdi.id.0,
        snapshot: t.snapshot.map_or(0, |s| s.id),
        name: t.vdi.name.clone(),
        tag: t.snapshot.map(|s| s.tag.clone()).unwrap_or_default(),
        size: t.snapshot.map_or(t.vdi.size, |s| s.size),
        deleted_ms: t.trashed.at,
        until_ms: t.trashed.until,
        used: usage.map(|u| layers(t).iter().filter_map(|l| u.get(l)).sum()),
        snapshots: with_it as u32,
        locked_until_ms: if whole { t.vdi.locked_until() } else { 0 },
    }
}

/// A page ends at a position, so that nothing is left out when others leave meanwhile.
fn token((until, vdi, snapshot): TrashKey) -> String {
    format!("{until}.{}.{snapshot}", vdi.0)
}

fn position(token: &str) -> Option<TrashKey> {
    let mut parts = token.splitn(3, '.');
    let key = (parts.next()?.parse().ok()?, VdiId(parts.next()?.parse().ok()?), parts.next()?.parse().ok()?);
    Some(key)
}

impl Admin {
    pub(super) async fn list_trash(
        &self,
        r: ListTrashRequest,
        forwarded: bool,
    ) -> Result<ListTrashReply, Error> {
        let from = match r.page_token.as_str() {
            "" => (0, VdiId(0), 0),
            text => position(text).ok_or_else(|| usage("that is no page of the trash"))?,
        };
        let limit = match r.page_size as usize {
            0 => PAGE,
            n => n.min(MAX_PAGE),
        };
        let mine = match r.usage {
            false => None,
            true => match self.data().usage().await {
                // A listing without the numbers is better than none.
                Err(super::DataError::Unsupported(_)) => None,
                mine => Some(mine?),
            },
        };
        let mut reply = self.control().read(|s| {
            if s.format.is_none() {
                return Err(command_error(&CommandError::NotFormatted));
            }
            let mut rows = s.trash_from(from);
            let items = rows.by_ref().take(limit).map(|(_, t)| item(&t, mine.as_ref())).collect();
            let next_page_token = rows.next().map(|(key, _)| token(key)).unwrap_or_default();
            Ok(ListTrashReply { items, next_page_token, missing_nodes: Vec::new() })
        })?;
        if !r.usage || forwarded || reply.items.is_empty() {
            return Ok(reply);
        }
        let ask = |c: Client| -> BoxFuture<'static, Result<ListTrashReply, Error>> {
            let r = r.clone();
            Box::pin(async move { c.list_trash(r).await })
        };
        for (node, answer) in self.peers.each(self.others_up(), ask).await {
            match answer {
                Ok(theirs) => add(&mut reply.items, &theirs.items),
                Err(_) => reply.missing_nodes.push(node.id.to_string()),
            }
        }
        Ok(reply)
    }

    pub(super) async fn restore_trash(&self, r: RestoreTrashRequest) -> Result<(), Error> {
        let name = (!r.name.is_empty()).then_some(r.name);
        let command = Command::TrashRestore { vdi: VdiId(r.vdi), snapshot: number(r.snapshot), name };
        self.propose(command).await.map(drop)
    }

    pub(super) async fn purge_trash(&self, r: &PurgeTrashRequest) -> Result<(), Error> {
        let command = Command::TrashPurge { vdi: VdiId(r.vdi), snapshot: number(r.snapshot) };
        self.propose(command).await.map(drop)
    }

    pub(super) async fn lock_snapshot(&self, r: &LockSnapshotRequest) -> Result<Snapshot, Error> {
        use lock_snapshot_request::Until;
        let (vdi, number) =
            self.with_vdi(&r.vdi, |_, v| find_snapshot(v, &r.snapshot).map(|s| (v.id, s.id)))?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let until = match r.until {
            Some(Until::UntilMs(at)) => at,
            Some(Until::ForMs(ms)) => now.map_or(0, |d| d.as_millis() as u64).saturating_add(ms),
            None => return Err(usage("say until when the snapshot is to be locked")),
        };
        self.propose(Command::SnapshotLock { vdi, snapshot: SnapshotRef::Id(number), until }).await?;
        self.with_vdi(&Some(VdiRef::id(vdi.0)), |_, v| {
            let found = v.shown().find(|s| s.id == number);
            found.map(to_pb).ok_or_else(|| missing("the snapshot was deleted"))
        })
    }

    /// When what has just been deleted leaves the trash; 0: it is gone.
    pub(super) fn trashed_until(&self, vdi: VdiId, snapshot: u32) -> u64 {
        self.control().read(|s| {
            let Some(v) = s.vdis.get(&vdi) else { return 0 };
            let trashed = match number(snapshot) {
                None => v.trashed(),
                Some(n) => v.snapshots.iter().find(|s| s.id == n).and_then(|s| s.trashed),
            };
            trashed.map_or(0, |t| t.until)
        })
    }
}

/// What another node's disks hold of it.
fn add(items: &mut [TrashItem], theirs: &[TrashItem]) {
    let used: BTreeMap<(u32, u32), u64> =
        theirs.iter().map(|t| ((t.vdi, t.snapshot), t.used.unwrap_or(0))).collect();
    for i in items {
        let more = used.get(&(i.vdi, i.snapshot)).copied().unwrap_or(0);
        i.used = i.used.map(|u| u + more).or(Some(more));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_begin_where_the_last_one_ended() {
        let key = (1_700_000_000_000, VdiId(7), 3);
        assert_eq!(position(&token(key)), Some(key));
        for odd in ["x", "1", "1.2", "1.2.x", "1.2.3.4"] {
            assert_eq!(position(odd), None, "{odd}");
        }
    }
}
