//! The admin front-end: gRPC on the client port, for dog, CSI, the operator, and other sheep.
//!
//! `backend` says what it needs from the daemon.

pub mod backend;

pub use backend::{AdminBackend, AdminVolume, DataError, DataPlane};

/// TEMP
pub struct Admin;
impl Admin {
    /// TEMP
    pub async fn stop(self) {}
}
/// TEMP
pub async fn serve(_at: &str, _tls: Option<std::sync::Arc<rustls::ServerConfig>>, daemon: std::sync::Arc<crate::node::backend::Daemon>) -> anyhow::Result<Admin> {
    if std::env::var("DEV_FORMAT").is_ok() {
        tokio::spawn(async move {
            if daemon.control.read(|s| s.format.is_none()) {
                let f = daemon.format_template();
                let r = daemon.format(f).await;
                tracing::info!(?r, "dev format");
                let want: usize = std::env::var("DEV_FORMAT").unwrap_or_default().parse().unwrap_or(1);
                while daemon.control.map().nodes.len() < want { tokio::time::sleep(std::time::Duration::from_millis(100)).await; }
                let r = daemon.control.propose(sheepdog_cluster::Command::VdiCreate { name: "v".into(), uuid: 1, size: 2 << 30, redundancy: None, object_size: None }).await;
                tracing::info!(?r, "dev vdi");
            }
        });
    }
    Ok(Admin)
}
