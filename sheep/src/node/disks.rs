//! Disks that come and go while the sheep runs.

use super::{DataNode, disk_entries};
use crate::front::admin::backend::{DataError, DataResult};
use crate::store::DiskInfo;
use crate::work::evacuate;
use sheepdog_cluster::{Command, Reply};
use sheepdog_proto::DiskId;
use std::path::Path;
use std::rc::Rc;

fn no_data() -> DataError {
    DataError::Invalid("this sheep is a gateway: it keeps no data".into())
}

/// Take a directory into use; or let a disk stay that is being emptied.
///
/// # Errors
/// It cannot be used, or the cluster does not take it, and why.
pub async fn plug(n: Rc<DataNode>, path: String) -> DataResult<DiskInfo> {
    let store = n.replica.store.as_ref().ok_or_else(no_data)?;
    let here = store.disks().into_iter().find(|d| d.path == path);
    if let Some(stays) = here.filter(|d| d.leaving.is_some()) {
        if store.is_retiring(stays.id) {
            return Err(DataError::Busy(format!(
                "the disk at {path} is empty, and the cluster is just being told to forget it: plug it again in a moment"
            )));
        }
        store.set_leaving(stays.id, None);
        return Ok(DiskInfo { leaving: None, ..stays });
    }
    let invalid = |e: crate::store::OpenError| DataError::Invalid(e.to_string());
    let me = n.control.me();
    // Before anything on it is looked at: what the cluster went on without is not compared with what is here.
    if let Some(known) = store.identity_at(Path::new(&path)).await.map_err(invalid)? {
        let gone = n.control.read(|s| {
            let mine = s.nodes.get(&me).and_then(|x| x.disks.iter().find(|d| d.id == known));
            mine.is_some_and(|d| !d.is_there())
        });
        if gone {
            return Err(DataError::Invalid(format!(
                "the cluster went on without the disk at {path}: empty that directory first, or, if it was only not mounted, start the sheep with it"
            )));
        }
    }
    let id = store.plug(Path::new(&path)).await.map_err(invalid)?;
    let info = store.disks().into_iter().find(|d| d.id == id);
    let info = info.ok_or_else(|| DataError::Failed("the disk failed at once".into()))?;
    let entry = disk_entries(std::slice::from_ref(&info)).remove(0);
    let refused = match n.control.propose(Command::DiskAdded { node: me, disk: entry }).await {
        Ok(Reply::Error(e)) => DataError::Invalid(e.to_string()),
        Ok(_) => {
            store.set_leaving(id, None);
            return Ok(DiskInfo { leaving: None, ..info });
        }
        Err(e) => DataError::Failed(e.to_string()),
    };
    let _ = store.unplug(id).await;
    Err(refused)
}

/// Begin to empty a disk; or (`force`) give up at once what is on it.
///
/// # Errors
/// There is no such disk, or the others cannot take what is on it.
pub async fn unplug(n: Rc<DataNode>, disk: DiskId, force: bool) -> DataResult<()> {
    let store = n.replica.store.as_ref().ok_or_else(no_data)?;
    if !store.disks().iter().any(|d| d.id == disk) {
        return Err(DataError::NotFound(format!("this sheep has no disk {disk}")));
    }
    if force {
        // First the map, so that writes go on without what was on it; then the disk.
        let retired = Command::DiskRetired { node: n.control.me(), disk };
        n.control.propose(retired).await.map_err(|e| DataError::Failed(e.to_string()))?;
        return store.unplug(disk).await.map_err(|e| DataError::Failed(e.to_string()));
    }
    evacuate::begin(&n.replica, disk, &n.stop).map_err(DataError::Busy)
}
