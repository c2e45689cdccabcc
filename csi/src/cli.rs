//! Command line: every option is also a variable, as pods like it.

use crate::capability::Fs;
use crate::disks::Disk;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// The CSI driver of Sheepdog
#[derive(Parser, Debug)]
#[command(name = "sheepdog-csi", version)]
pub struct Cli {
    /// What to be
    #[command(subcommand)]
    pub command: Command,
    /// What to log: a level, or a list of target=level
    #[arg(long, global = true, env = "SHEEPDOG_CSI_LOG", default_value = "info", value_name = "LEVEL")]
    pub log: String,
}

/// What to be.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// The controller: volumes, snapshots, attachments
    Controller(Controller),
    /// The plugin of one node: devices, file systems, mounts
    Node(Node),
    /// Both on one socket, for tests and single machines
    All(All),
    /// Serve volumes as files for loop devices; started once a node and left running
    FuseHost(FuseHost),
    /// Say how volumes can be attached on this node, and why not otherwise
    Preflight(Preflight),
    /// Mount the block devices of this node's sheep; blank ones get a file system (an init container of sheep does this)
    Disks(Disks),
}

/// The cluster.
#[derive(Args, Debug, Clone)]
pub struct Cluster {
    /// Sheep to talk to: HOST or HOST:PORT, several separated by commas
    #[arg(
        long,
        env = "SHEEPDOG_CSI_SHEEP",
        value_delimiter = ',',
        default_value = "127.0.0.1:7000",
        value_name = "ADDR"
    )]
    pub sheep: Vec<String>,
    /// The cluster's credentials, as `dog secret new` wrote them
    #[arg(long, env = "SHEEPDOG_CSI_SECRET_FILE", value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Socket to serve on
    #[arg(long, env = "CSI_ENDPOINT", default_value = "unix:///csi/csi.sock", value_name = "unix:///PATH")]
    pub endpoint: String,
}

/// How volumes become devices.
#[derive(Args, Debug, Clone)]
pub struct Attach {
    /// How volumes become devices; auto: what preflight finds best
    #[arg(long, env = "SHEEPDOG_CSI_BACKEND", default_value = "auto", value_name = "BACKEND")]
    pub backend: Choice,
    /// NBD socket of this node's sheep
    #[arg(long, env = "SHEEPDOG_CSI_NBD_SOCKET", default_value = "/run/sheep/nbd.sock", value_name = "PATH")]
    pub nbd_socket: PathBuf,
    /// Socket of the fuse-host
    #[arg(
        long,
        env = "SHEEPDOG_CSI_FUSE_SOCKET",
        default_value = "/run/sheepdog-csi/fuse-host.sock",
        value_name = "PATH"
    )]
    pub fuse_socket: PathBuf,
    /// Seconds that kernel NBD waits for sheep to come back before I/O fails
    #[arg(long, env = "SHEEPDOG_CSI_DEAD_CONN_TIMEOUT", default_value_t = 300, value_name = "SECONDS")]
    pub dead_conn_timeout: u64,
}

/// Backends by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// What works best
    Auto,
    /// Kernel NBD
    Nbd,
    /// FUSE and loop
    Loop,
}

/// `controller`.
#[derive(Args, Debug, Clone)]
pub struct Controller {
    /// The cluster.
    #[command(flatten)]
    pub cluster: Cluster,
}

/// What a node is.
#[derive(Args, Debug, Clone)]
pub struct Here {
    /// Name of this node, as Kubernetes calls it
    #[arg(long, env = "SHEEPDOG_CSI_NODE_ID", value_name = "NAME")]
    pub node_id: String,
    /// Where this plugin keeps what it needs after a restart
    #[arg(long, env = "SHEEPDOG_CSI_STATE_DIR", default_value = "/var/lib/sheepdog-csi", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Volumes this node takes at a time; 0: no limit
    #[arg(long, env = "SHEEPDOG_CSI_MAX_VOLUMES", default_value_t = 0, value_name = "N")]
    pub max_volumes: u32,
    /// How volumes become devices.
    #[command(flatten)]
    pub attach: Attach,
}

/// `node`.
#[derive(Args, Debug, Clone)]
pub struct Node {
    /// The cluster.
    #[command(flatten)]
    pub cluster: Cluster,
    /// The node.
    #[command(flatten)]
    pub here: Here,
}

/// `all`.
pub type All = Node;

/// `fuse-host`.
#[derive(Args, Debug, Clone)]
pub struct FuseHost {
    /// Socket that the node plugin asks on
    #[arg(
        long,
        env = "SHEEPDOG_CSI_FUSE_SOCKET",
        default_value = "/run/sheepdog-csi/fuse-host.sock",
        value_name = "PATH"
    )]
    pub socket: PathBuf,
    /// Where volumes are mounted as files
    #[arg(
        long,
        env = "SHEEPDOG_CSI_FUSE_DIR",
        default_value = "/run/sheepdog-csi/volumes",
        value_name = "DIR"
    )]
    pub dir: PathBuf,
    /// NBD socket of this node's sheep
    #[arg(long, env = "SHEEPDOG_CSI_NBD_SOCKET", default_value = "/run/sheep/nbd.sock", value_name = "PATH")]
    pub nbd_socket: PathBuf,
}

/// `preflight`.
#[derive(Args, Debug, Clone)]
pub struct Preflight {
    /// How volumes become devices.
    #[command(flatten)]
    pub attach: Attach,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `disks`.
#[derive(Args, Debug, Clone)]
pub struct Disks {
    /// Whose disks: NAMESPACE/NAME of the SheepdogCluster
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub cluster: String,
    /// This node
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node: String,
    /// File system that blank devices get
    #[arg(long, default_value = "xfs", value_parser = Fs::parse, value_name = "FS")]
    pub fs_type: Fs,
    /// Directory of all mount points; what else is mounted in it is unmounted
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// A device and its mount point in that directory; may be repeated
    #[arg(long, required = true, value_name = "DEVICE=DIR")]
    pub disk: Vec<Disk>,
    /// End with an error when not one of them can be mounted
    #[arg(long)]
    pub need_one: bool,
    /// Write here why devices were left out
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}
