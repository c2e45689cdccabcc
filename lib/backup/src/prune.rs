//! Taking away what no backup needs.

use crate::error::Error;
use crate::manifest::Manifest;
use crate::repository::{Lock, Repository};
use crate::seal::Id;
use std::collections::BTreeSet;

/// What was found and done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Backups that were taken away.
    pub backups: u64,
    /// Chunks that are needed.
    pub kept: u64,
    /// Chunks that were taken away.
    pub deleted: u64,
    /// Their stored bytes.
    pub freed: u64,
}

impl Repository {
    /// Every chunk that these backups name.
    ///
    /// # Errors
    /// An index of theirs cannot be read: then it is not known what is needed.
    pub async fn needed(&self, of: impl IntoIterator<Item = &Manifest>) -> Result<BTreeSet<Id>, Error> {
        let mut needed = BTreeSet::new();
        for m in of {
            needed.extend(m.pages.iter().flatten());
            needed.extend(self.index(m).await?.ids());
        }
        Ok(needed)
    }

    /// Take away the backups that `old` chooses of all, and every chunk that none of the others names. `dry`: only count. Everybody else is kept away: what a backup that is
    /// being made takes for there must not go.
    ///
    /// # Errors
    /// A backup that cannot be read, and as `needed`: nothing has been deleted then. `Locked`: the same, unless this program stood still meanwhile.
    pub async fn prune(
        &self,
        old: impl FnOnce(&[Manifest]) -> Vec<String>,
        dry: bool,
    ) -> Result<Pruned, Error> {
        let lock = self.lock("prune").await?;
        let swept = self.sweep(&lock, old, dry).await;
        lock.release().await?;
        swept
    }

    async fn sweep(
        &self,
        lock: &Lock,
        old: impl FnOnce(&[Manifest]) -> Vec<String>,
        dry: bool,
    ) -> Result<Pruned, Error> {
        let (all, bad) = self.backups().await?;
        if let Some(e) = bad.into_iter().next() {
            return Err(Error::Config(format!(
                "nothing is pruned while it is not known what is needed: {e}; delete that backup first"
            )));
        }
        let old = old(&all);
        let needed = self.needed(all.iter().filter(|m| !old.contains(&m.id))).await?;
        let mut done = Pruned { backups: old.len() as u64, ..Pruned::default() };
        if !dry {
            for id in &old {
                lock.holds()?;
                self.delete(id).await?;
            }
        }
        for (id, bytes) in self.chunks().await? {
            if needed.contains(&id) {
                done.kept += 1;
                continue;
            }
            if !dry {
                lock.holds()?;
                self.forget(id).await?;
            }
            done.deleted += 1;
            done.freed += bytes;
        }
        Ok(done)
    }
}
