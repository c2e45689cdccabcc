//! Emptying a disk that is to be taken away, onto the other disks of this node: no object has one copy less meanwhile, and nothing is asked of other nodes.
//!
//! One object at a time, within the recovery budget. What cannot be moved yet (damaged, and not healed yet; no room) is tried again. When nothing is left the disk is taken
//! out of the committed map and out of use; the other nodes need not look at anything. A sheep that ends before that uses the disk again when it is back.

use crate::peer::Replica;
use crate::store::{DiskInfo, DiskState, Store};
use sheepdog_cluster::{Command, Reply};
use sheepdog_proto::DiskId;
use std::rc::Rc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Objects looked at at a time.
const PAGE: usize = 256;
/// Before what could not be moved is tried again, or the control plane asked again.
const PAUSE: Duration = Duration::from_secs(2);
/// Room that objects take beyond their data, and that a disk keeps, about.
const EXTRA: u64 = 64 << 20;
/// So many that cannot be moved end a round.
const ENOUGH: usize = 64;

/// One disk.
pub struct Evacuation {
    /// Holder side.
    pub replica: Rc<Replica>,
    /// Which.
    pub disk: DiskId,
    /// Stop.
    pub stop: CancellationToken,
}

/// Begin to empty a disk onto the node's others. Nothing to do when that goes on already.
///
/// # Errors
/// There is no such disk, or the others cannot take what is on it: in words.
pub fn begin(replica: &Rc<Replica>, disk: DiskId, stop: &CancellationToken) -> Result<(), String> {
    let store = replica.store.as_ref().ok_or("this sheep is a gateway: it keeps no data")?;
    let (it, others): (Vec<_>, Vec<_>) = store.disks().into_iter().partition(|d| d.id == disk);
    let Some(it) = it.into_iter().next() else { return Err(format!("this sheep has no disk {disk}")) };
    if it.leaving.is_some() {
        return Ok(());
    }
    let staying = |d: &&DiskInfo| d.leaving.is_none() && d.state == DiskState::Ok;
    let mut staying = others.iter().filter(staying).peekable();
    if staying.peek().is_none() {
        return Err("no other disk of this sheep could take what is on it: plug one first, drain the node, or say --force".into());
    }
    let free: u64 = staying.map(|d| d.free.saturating_sub(EXTRA)).sum();
    if free < it.used + it.used / 10 {
        return Err(format!(
            "it holds {} MiB, and the sheep's other disks have room for {} MiB: plug one first, or drain the node",
            it.used >> 20,
            free >> 20
        ));
    }
    store.set_leaving(disk, Some(String::new()));
    let evacuation = Evacuation { replica: replica.clone(), disk, stop: stop.clone() };
    tokio::task::spawn_local(evacuation.run());
    Ok(())
}

impl Evacuation {
    /// Run until the disk is out of use, or stays after all.
    pub async fn run(self) {
        let Some(store) = self.replica.store.clone() else { return };
        tracing::info!(disk = %self.disk.short(), "the disk is being emptied");
        let mut said = String::new();
        while self.goes_on(&store) {
            match self.round(&store).await {
                Ok(true) if self.retire(&store).await => return,
                // Something has come meanwhile, or stays although nothing went wrong.
                Ok(_) => self.pause().await,
                Err(why) => {
                    if why != said {
                        tracing::warn!(disk = %self.disk.short(), why, "the disk cannot be emptied yet");
                        said.clone_from(&why);
                    }
                    if self.goes_on(&store) {
                        store.set_leaving(self.disk, Some(why));
                    }
                    self.pause().await;
                }
            }
        }
    }

    /// A move is never broken off in the middle, so this is asked between two.
    fn goes_on(&self, store: &Store) -> bool {
        !self.stop.is_cancelled() && store.is_leaving(self.disk)
    }

    async fn pause(&self) {
        tokio::select! { biased; () = self.stop.cancelled() => {} () = tokio::time::sleep(PAUSE) => {} }
    }

    /// Move everything once. `true`: nothing is left.
    async fn round(&self, store: &Store) -> Result<bool, String> {
        let (mut after, mut failed, mut first) = (None, 0, None);
        loop {
            let page = store.objects_on(self.disk, after, PAGE);
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            for (oid, bytes) in page {
                self.replica.sync.throttle(bytes).await;
                if !self.goes_on(store) {
                    return Ok(false);
                }
                if let Err(e) = store.relocate(oid, self.disk).await {
                    failed += 1;
                    let why = first.get_or_insert_with(|| e.to_string());
                    if failed == ENOUGH {
                        // No room, say.
                        return Err(format!("{failed} objects and more cannot be moved: {why}"));
                    }
                }
            }
        }
        match first {
            Some(why) => Err(format!("{failed} objects cannot be moved: {why}")),
            None => Ok(store.objects_on(self.disk, None, 1).is_empty()),
        }
    }

    /// Nothing is on it: out of the map, then out of use. `false`: something is on it.
    async fn retire(&self, store: &Store) -> bool {
        if let Err(e) = store.swept(self.disk).await {
            tracing::warn!(disk = %self.disk.short(), error = %e, "the disk failed while it was being emptied");
            return true;
        }
        // It may have been told to stay, and been used, while that was waited for.
        if !self.goes_on(store) || !store.objects_on(self.disk, None, 1).is_empty() {
            return false;
        }
        store.set_retiring(self.disk, true);
        let control = &self.replica.control;
        let gone =
            Command::DiskEmptied { node: control.me(), incarnation: control.incarnation(), disk: self.disk };
        match self.propose(store, gone).await {
            None => return true,
            Some(Reply::Error(e)) => {
                tracing::warn!(disk = %self.disk.short(), error = %e, "the disk is empty and stays in use");
            }
            Some(_) if store.can_do_without(self.disk) => {
                let _ = store.unplug(self.disk).await;
                tracing::info!(disk = %self.disk.short(), "the disk is empty and out of use");
                return true;
            }
            Some(_) => {
                // It became the last one meanwhile: it stays as soon as the map has it again.
                let all = store.disks();
                let Some(info) = all.iter().find(|d| d.id == self.disk) else { return true };
                let disk = crate::node::disk_entries(std::slice::from_ref(info)).remove(0);
                if self.propose(store, Command::DiskAdded { node: control.me(), disk }).await.is_none() {
                    return true;
                }
                tracing::warn!(disk = %self.disk.short(), "the disk was emptied and is the only one left: it stays in use");
            }
        }
        store.set_leaving(self.disk, None);
        store.set_retiring(self.disk, false);
        true
    }

    /// Until it is known what became of it. `None`: the sheep ends, or the disk has failed.
    async fn propose(&self, store: &Store, command: Command) -> Option<Reply> {
        while self.goes_on(store) {
            match self.replica.control.propose(command.clone()).await {
                Ok(reply) => return Some(reply),
                Err(e) => {
                    store.set_leaving(self.disk, Some(format!("the control plane does not answer: {e}")));
                    self.pause().await;
                }
            }
        }
        None
    }
}
