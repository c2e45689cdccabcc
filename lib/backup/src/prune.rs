//! Taking away what no backup needs.

use crate::error::Error;
use crate::repository::Repository;
use crate::seal::Id;
use std::collections::BTreeSet;

/// What was found and done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Chunks that are needed.
    pub kept: u64,
    /// Chunks that were taken away.
    pub deleted: u64,
    /// Their stored bytes.
    pub freed: u64,
}

impl Repository {
    /// Every chunk that the backups there name.
    ///
    /// # Errors
    /// One of them, or an index, cannot be read: then it is not known what is needed.
    pub async fn needed(&self) -> Result<BTreeSet<Id>, Error> {
        let (all, bad) = self.backups().await?;
        if let Some(e) = bad.into_iter().next() {
            return Err(Error::Config(format!(
                "nothing is pruned while it is not known what is needed: {e}; delete that backup first"
            )));
        }
        let mut needed = BTreeSet::new();
        for m in &all {
            needed.extend(m.pages.iter().flatten());
            needed.extend(self.index(m).await?.ids());
        }
        Ok(needed)
    }

    /// Mark and sweep, with everybody else kept away: what a backup that is being made takes for there must not go. `dry`: only count.
    ///
    /// # Errors
    /// `Locked`, and as `needed`.
    pub async fn prune(&self, dry: bool) -> Result<Pruned, Error> {
        let lock = self.lock("prune").await?;
        let swept = self.sweep(dry).await;
        lock.release().await?;
        swept
    }

    async fn sweep(&self, dry: bool) -> Result<Pruned, Error> {
        let needed = self.needed().await?;
        let mut done = Pruned::default();
        for (id, bytes) in self.chunks().await? {
            if needed.contains(&id) {
                done.kept += 1;
                continue;
            }
            if !dry {
                self.forget(id).await?;
            }
            done.deleted += 1;
            done.freed += bytes;
        }
        Ok(done)
    }
}
