//! The unix socket that sidecars and the kubelet talk to.

use crate::csi::controller_server::ControllerServer;
use crate::csi::group_controller_server::GroupControllerServer;
use crate::csi::identity_server::IdentityServer;
use crate::csi::node_server::NodeServer;
use crate::csi::snapshot_metadata_server::SnapshotMetadataServer;
use crate::identity::Plugin;
use anyhow::{Context as _, Result, bail};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

/// For requests under way at the end. Clients that only keep a connection are not waited for longer.
const GRACE: std::time::Duration = std::time::Duration::from_secs(5);

/// What is served.
pub struct Services {
    /// Who we are.
    pub identity: Plugin,
    /// Volumes, groups and changed blocks.
    pub controller: Option<crate::controller::Controller>,
    /// One node.
    pub node: Option<crate::node::Plugin>,
}

/// `unix:///PATH`, `unix:PATH` or a path.
pub fn socket(endpoint: &str) -> Result<PathBuf> {
    let path =
        endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    if !path.starts_with('/') {
        bail!("endpoint \"{endpoint}\": say unix:///DIRECTORY/csi.sock");
    }
    Ok(path.into())
}

/// Listen where a process before us may have listened; another kind of file is left alone.
pub fn listen(path: &Path) -> Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(m) if m.file_type().is_socket() => {
            std::fs::remove_file(path).with_context(|| format!("{}", path.display()))?;
        }
        Ok(_) => bail!("{} is there and no socket: name another endpoint", path.display()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("{}", path.display())),
    }
    UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))
}

/// Serve until the token ends; requests under way are finished.
pub async fn serve(endpoint: &str, services: Services, stop: CancellationToken) -> Result<()> {
    let path = socket(endpoint)?;
    let listener = listen(&path)?;
    tracing::info!("serving on {}", path.display());
    let mut server = tonic::transport::Server::builder().add_service(IdentityServer::new(services.identity));
    if let Some(c) = services.controller {
        server = server
            .add_service(GroupControllerServer::new(c.clone()))
            .add_service(SnapshotMetadataServer::new(c.clone()))
            .add_service(ControllerServer::new(c));
    }
    if let Some(n) = services.node {
        server = server.add_service(NodeServer::new(n));
    }
    let incoming = UnixListenerStream::new(listener);
    let served = server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let too_long = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        done = served => done?,
        () = too_long => tracing::info!("ending although clients are connected"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for good in ["unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"] {
            assert_eq!(socket(good).unwrap(), Path::new("/csi/csi.sock"));
        }
        assert!(socket("tcp://127.0.0.1:1").is_err());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        drop(listen(&path).unwrap());
        drop(listen(&path).unwrap());
        let file = dir.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        assert!(listen(&file).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    }
}
