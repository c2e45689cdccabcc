//! The CSI driver as a sidecar and the kubelet use it: its processes, and requests over its socket.

use super::Lab;
use super::cluster::Cluster;
use super::proc::Proc;
use super::wait::{PATIENCE, until};
use anyhow::{Context as _, Result, bail, ensure};
use sheepdog_csi::csi::controller_client::ControllerClient;
use sheepdog_csi::csi::identity_client::IdentityClient;
use sheepdog_csi::csi::node_client::NodeClient;
use sheepdog_csi::csi::volume_capability::{
    AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode,
};
use sheepdog_csi::csi::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Name of the only node.
pub const NODE: &str = "node-1";

/// A driver on this host: one process for controller and node, one that serves FUSE.
pub struct Driver {
    bin: PathBuf,
    dir: PathBuf,
    sheep: Vec<String>,
    nbd: PathBuf,
    options: Vec<String>,
    host: Option<Proc>,
    plugin: Option<Proc>,
    runtime: tokio::runtime::Runtime,
}

/// A volume with where it is.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Id.
    pub id: String,
    /// As the controller said it.
    pub context: HashMap<String, String>,
    /// As attaching said it.
    pub publish: HashMap<String, String>,
    /// How it is used.
    pub capability: VolumeCapability,
    /// Where it is staged.
    pub staging: PathBuf,
    /// Where a pod sees it.
    pub target: PathBuf,
}

/// Mounted with a file system, on one node.
pub fn mounted(fs: &str) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume { fs_type: fs.into(), ..Default::default() })),
    }
}

/// As a device, on one node.
pub fn device() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

impl Driver {
    /// Start both processes over a cluster; volumes go through the NBD socket of its first sheep.
    pub fn start(lab: &Lab, c: &Cluster, options: &[&str]) -> Result<Self> {
        let mut d = Self {
            bin: c.program("sheepdog-csi"),
            dir: lab.dir.join("csi"),
            sheep: (0..c.sheep.len()).map(|i| c.address(i)).collect(),
            nbd: c.nbd_socket(0),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            host: None,
            plugin: None,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        };
        std::fs::create_dir_all(&d.dir)?;
        let mut cmd = Command::new(&d.bin);
        cmd.arg("fuse-host")
            .arg("--socket")
            .arg(d.dir.join("host.sock"))
            .arg("--dir")
            .arg(d.dir.join("fuse"));
        cmd.arg("--nbd-socket").arg(&d.nbd);
        d.host = Some(Proc::start("fuse-host", cmd, &d.dir.join("host.log"))?);
        until("the fuse-host listens", PATIENCE, || Ok(d.dir.join("host.sock").exists().then_some(())))?;
        d.start_plugin()?;
        Ok(d)
    }

    /// Its socket.
    pub fn endpoint(&self) -> PathBuf {
        self.dir.join("csi.sock")
    }

    /// Start the plugin (again).
    pub fn start_plugin(&mut self) -> Result<()> {
        let mut cmd = Command::new(&self.bin);
        cmd.args(["all", "--backend", "loop", "--node-id", NODE])
            .arg("--endpoint")
            .arg(format!("unix://{}", self.endpoint().display()))
            .args(["--sheep", &self.sheep.join(",")])
            .arg("--nbd-socket")
            .arg(&self.nbd)
            .arg("--fuse-socket")
            .arg(self.dir.join("host.sock"))
            .arg("--state-dir")
            .arg(self.dir.join("state"))
            .args(&self.options);
        self.plugin = Some(Proc::start("sheepdog-csi", cmd, &self.dir.join("plugin.log"))?);
        until("the driver is ready", PATIENCE, || {
            let ready = self.ask(async |c| {
                let probe = IdentityClient::new(c).probe(ProbeRequest {}).await?;
                Ok(probe.into_inner().ready == Some(true))
            })?;
            Ok(ready.then_some(()))
        })?;
        // As the kubelet does when a plugin registers.
        self.ask(async |c| Ok(NodeClient::new(c).node_get_info(NodeGetInfoRequest {}).await?.into_inner()))?;
        Ok(())
    }

    /// kill -9 the plugin. Whatever is attached stays.
    pub fn kill_plugin(&mut self) -> Result<()> {
        self.plugin.take().context("the plugin does not run")?.kill()
    }

    /// Both end, in order: the second only because nothing is attached.
    pub fn stop(&mut self) -> Result<()> {
        for p in [self.plugin.take(), self.host.take()].into_iter().flatten() {
            let status = p.stop(PATIENCE)?;
            ensure!(status.success(), "the driver ended with {status}");
        }
        Ok(())
    }

    /// One request.
    pub fn ask<T>(&self, what: impl AsyncFnOnce(Channel) -> Result<T>) -> Result<T> {
        let path = self.endpoint();
        self.runtime.block_on(async {
            let connect = tower::service_fn(move |_: tonic::transport::Uri| {
                let path = path.clone();
                async move {
                    let stream = tokio::net::UnixStream::connect(path).await?;
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
                }
            });
            let endpoint = Endpoint::from_static("http://csi").timeout(Duration::from_secs(120));
            what(endpoint.connect_with_connector(connect).await?).await
        })
    }

    /// Make a volume.
    pub fn create(
        &self,
        name: &str,
        size: u64,
        capability: &VolumeCapability,
        source: Option<volume_content_source::Type>,
    ) -> Result<Volume> {
        self.create_of(name, size, capability, source, [&[], &[]])
    }

    /// Make a volume of a storage class and a volume attributes class with these parameters.
    pub fn create_of(
        &self,
        name: &str,
        size: u64,
        capability: &VolumeCapability,
        source: Option<volume_content_source::Type>,
        [parameters, mutable]: [&[(&str, &str)]; 2],
    ) -> Result<Volume> {
        let r = CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(CapacityRange { required_bytes: size.cast_signed(), limit_bytes: 0 }),
            volume_capabilities: vec![capability.clone()],
            volume_content_source: source.map(|t| VolumeContentSource { r#type: Some(t) }),
            parameters: words(parameters),
            mutable_parameters: words(mutable),
            ..Default::default()
        };
        let made = self.ask(async |c| Ok(ControllerClient::new(c).create_volume(r).await?.into_inner()))?;
        let made = made.volume.context("no volume in the answer")?;
        Ok(Volume {
            id: made.volume_id,
            context: made.volume_context,
            publish: HashMap::new(),
            capability: capability.clone(),
            staging: self.dir.join(format!("staging-{name}")),
            target: self.dir.join(format!("pod-{name}")),
        })
    }

    /// Give it another volume attributes class.
    pub fn modify(&self, v: &Volume, mutable: &[(&str, &str)]) -> Result<()> {
        let r = ControllerModifyVolumeRequest {
            volume_id: v.id.clone(),
            mutable_parameters: words(mutable),
            ..Default::default()
        };
        self.ask(async |c| Ok(ControllerClient::new(c).controller_modify_volume(r).await?.into_inner()))
            .map(drop)
    }

    /// Attach to the node.
    pub fn attach(&self, v: &mut Volume) -> Result<()> {
        let r = ControllerPublishVolumeRequest {
            volume_id: v.id.clone(),
            node_id: NODE.into(),
            volume_capability: Some(v.capability.clone()),
            ..Default::default()
        };
        let done = self
            .ask(async |c| Ok(ControllerClient::new(c).controller_publish_volume(r).await?.into_inner()))?;
        v.publish = done.publish_context;
        Ok(())
    }

    /// Stage and publish.
    pub fn mount(&self, v: &Volume) -> Result<()> {
        let stage = NodeStageVolumeRequest {
            volume_id: v.id.clone(),
            publish_context: v.publish.clone(),
            staging_target_path: text(&v.staging)?,
            volume_capability: Some(v.capability.clone()),
            volume_context: v.context.clone(),
            ..Default::default()
        };
        self.ask(async |c| Ok(NodeClient::new(c).node_stage_volume(stage).await?.into_inner()))?;
        self.publish(v)
    }

    /// Publish what is staged.
    pub fn publish(&self, v: &Volume) -> Result<()> {
        let publish = NodePublishVolumeRequest {
            volume_id: v.id.clone(),
            publish_context: v.publish.clone(),
            staging_target_path: text(&v.staging)?,
            target_path: text(&v.target)?,
            volume_capability: Some(v.capability.clone()),
            volume_context: v.context.clone(),
            ..Default::default()
        };
        self.ask(async |c| Ok(NodeClient::new(c).node_publish_volume(publish).await?.into_inner())).map(drop)
    }

    /// Unpublish.
    pub fn unpublish(&self, v: &Volume) -> Result<()> {
        let r = NodeUnpublishVolumeRequest { volume_id: v.id.clone(), target_path: text(&v.target)? };
        self.ask(async |c| Ok(NodeClient::new(c).node_unpublish_volume(r).await?.into_inner())).map(drop)
    }

    /// Unpublish and unstage.
    pub fn unmount(&self, v: &Volume) -> Result<()> {
        self.unpublish(v)?;
        let unstage =
            NodeUnstageVolumeRequest { volume_id: v.id.clone(), staging_target_path: text(&v.staging)? };
        self.ask(async |c| Ok(NodeClient::new(c).node_unstage_volume(unstage).await?.into_inner())).map(drop)
    }

    /// Detach from the node.
    pub fn detach(&self, v: &Volume) -> Result<()> {
        let r = ControllerUnpublishVolumeRequest {
            volume_id: v.id.clone(),
            node_id: NODE.into(),
            ..Default::default()
        };
        self.ask(async |c| Ok(ControllerClient::new(c).controller_unpublish_volume(r).await?.into_inner()))
            .map(drop)
    }

    /// Delete.
    pub fn delete(&self, v: &Volume) -> Result<()> {
        let r = DeleteVolumeRequest { volume_id: v.id.clone(), ..Default::default() };
        self.ask(async |c| Ok(ControllerClient::new(c).delete_volume(r).await?.into_inner())).map(drop)
    }

    /// Take a snapshot; its id.
    pub fn snapshot(&self, v: &Volume, name: &str) -> Result<String> {
        let r =
            CreateSnapshotRequest { source_volume_id: v.id.clone(), name: name.into(), ..Default::default() };
        let made = self.ask(async |c| Ok(ControllerClient::new(c).create_snapshot(r).await?.into_inner()))?;
        Ok(made.snapshot.context("no snapshot in the answer")?.snapshot_id)
    }

    /// Delete a snapshot.
    pub fn delete_snapshot(&self, id: &str) -> Result<()> {
        let r = DeleteSnapshotRequest { snapshot_id: id.into(), ..Default::default() };
        self.ask(async |c| Ok(ControllerClient::new(c).delete_snapshot(r).await?.into_inner())).map(drop)
    }

    /// Expand, everywhere.
    pub fn expand(&self, v: &Volume, size: u64) -> Result<()> {
        let range = Some(CapacityRange { required_bytes: size.cast_signed(), limit_bytes: 0 });
        let r = ControllerExpandVolumeRequest {
            volume_id: v.id.clone(),
            capacity_range: range,
            ..Default::default()
        };
        let done =
            self.ask(async |c| Ok(ControllerClient::new(c).controller_expand_volume(r).await?.into_inner()))?;
        ensure!(done.node_expansion_required, "the node has to grow its device");
        let r = NodeExpandVolumeRequest {
            volume_id: v.id.clone(),
            volume_path: text(&v.target)?,
            capacity_range: range,
            staging_target_path: text(&v.staging)?,
            volume_capability: Some(v.capability.clone()),
            ..Default::default()
        };
        self.ask(async |c| Ok(NodeClient::new(c).node_expand_volume(r).await?.into_inner())).map(drop)
    }

    /// Bytes of a published file system: total.
    pub fn total(&self, v: &Volume) -> Result<u64> {
        let r = NodeGetVolumeStatsRequest {
            volume_id: v.id.clone(),
            volume_path: text(&v.target)?,
            ..Default::default()
        };
        let stats =
            self.ask(async |c| Ok(NodeClient::new(c).node_get_volume_stats(r).await?.into_inner()))?;
        let bytes = stats.usage.iter().find(|u| u.unit() == volume_usage::Unit::Bytes);
        Ok(bytes.context("no bytes in the answer")?.total.cast_unsigned())
    }

    /// The loop device of a volume, by its backing file.
    pub fn loop_device(&self, v: &Volume) -> Result<PathBuf> {
        let want = self.dir.join("fuse").join(&v.id).join("disk");
        for entry in std::fs::read_dir("/sys/block")? {
            let name = entry?.file_name();
            let file = Path::new("/sys/block").join(&name).join("loop/backing_file");
            if std::fs::read_to_string(file).is_ok_and(|t| Path::new(t.trim()) == want) {
                return Ok(Path::new("/dev").join(name));
            }
        }
        bail!("no loop device over {}", want.display())
    }
}

fn words(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn text(p: &Path) -> Result<String> {
    Ok(p.to_str().context("path")?.to_owned())
}
