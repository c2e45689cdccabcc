//! The table of volumes before there is one: NBD listens as soon as the process runs, and whoever connects waits until the cluster is known.

use crate::session::volume::Table;
use crate::volume::{ExportInfo, LocalFut, Volume, VolumeError, VolumeSource};
use std::rc::Rc;
use tokio::sync::watch;

/// Passes on to the table once it is there. When it never comes (the daemon ends first) requests end with `ShuttingDown`.
pub struct Later {
    table: watch::Receiver<Option<Rc<Table>>>,
}

impl Later {
    /// The source, and where the table is put.
    pub fn new() -> (watch::Sender<Option<Rc<Table>>>, Rc<Self>) {
        let (tx, table) = watch::channel(None);
        (tx, Rc::new(Self { table }))
    }
    async fn table(&self) -> Result<Rc<Table>, VolumeError> {
        let mut table = self.table.clone();
        let there = table.wait_for(Option::is_some).await.map_err(|_| VolumeError::ShuttingDown)?;
        there.clone().ok_or(VolumeError::ShuttingDown)
    }
}

impl VolumeSource for Later {
    fn list(&self) -> LocalFut<'_, Result<Vec<ExportInfo>, VolumeError>> {
        Box::pin(async move { self.table().await?.list().await })
    }
    fn info(&self, name: &str) -> LocalFut<'_, Result<ExportInfo, VolumeError>> {
        let name = name.to_owned();
        Box::pin(async move { self.table().await?.info(&name).await })
    }
    fn open(&self, name: &str) -> LocalFut<'_, Result<Rc<dyn Volume>, VolumeError>> {
        let name = name.to_owned();
        Box::pin(async move { self.table().await?.open(&name).await })
    }
}
