//! Options.

use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Runs Sheepdog on Kubernetes.
#[derive(Parser, Debug)]
#[command(name = "sheepdog-operator", version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Look after the SheepdogClusters, Vdis and VdiSnapshots of one namespace
    Run(Box<Run>),
    /// Put the seccomp profile of sheep where the kubelet looks for it (an init container does this)
    SeccompProfile {
        /// The kubelet's `seccomp` directory
        #[arg(long, value_name = "DIR")]
        root: PathBuf,
    },
}

/// Options of `run`.
#[derive(Args, Debug)]
pub struct Run {
    /// Namespace whose objects are looked after
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    pub namespace: String,
    /// Image of sheep for clusters that name none
    #[arg(long, env = "SHEEP_IMAGE", value_name = "IMAGE")]
    pub sheep_image: String,
    /// This program's own image, for the init container of sheep; without it they use the runtime's seccomp profile
    #[arg(long, env = "OPERATOR_IMAGE", value_name = "IMAGE")]
    pub operator_image: Option<String>,
    /// Image of the CSI driver, for the init container that mounts block devices of sheep; without it there are no block devices as disks
    #[arg(long, env = "CSI_IMAGE", value_name = "IMAGE")]
    pub csi_image: Option<String>,
    /// Secrets for the registry
    #[arg(long, env = "IMAGE_PULL_SECRETS", value_delimiter = ',', value_name = "NAME")]
    pub pull_secret: Vec<String>,
    /// The kubelet's directory on the nodes
    #[arg(long, env = "KUBELET_ROOT", default_value = "/var/lib/kubelet", value_name = "DIR")]
    pub kubelet_root: String,
    /// Address of metrics and health
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Name of the lease by which several operators agree who acts
    #[arg(long, default_value = "sheepdog-operator", value_name = "NAME")]
    pub lease: String,
    /// This process in the lease
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub identity: Option<String>,
    /// Delete pods of lost nodes, so that their volumes move without a human
    #[arg(long, env = "RELEASE_LOST_NODES", default_value_t = true, action = clap::ArgAction::Set)]
    pub release_lost_nodes: bool,
    /// error, warn, info, debug, trace, or a filter
    #[arg(short = 'l', long, env = "LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}
