//! The CSI driver of Sheepdog, `csi.sheepdog.io`: volumes for pods.
//!
//! `controller` speaks to Sheepdog's admin interface and knows no node; `node` attaches, formats and mounts on one node, through one of the
//! backends of `attach`; `guard` decides whether a device may be formatted; `disks` does the same for the block devices of sheep; `identity` says who we are. Decisions are pure functions in
//! `capability`, `parameters`, `size`, `names`, `guard` and `fault`; everything else does I/O.
//!
//! What holds:
//! * *Kubernetes is not asked*: no request of this program needs its API server, so volumes come and go while it is away.
//! * *State is where it is true*: volumes, snapshots and attachments in the cluster, mounts and devices in the kernel. The node keeps one small file
//!   a volume, and can do without.
//! * *One operation a volume at a time*: a second one is answered `ABORTED`. An operation goes on when its caller gives up.
//! * *Nothing is formatted that is not provably blank.*

pub mod attach;
pub mod capability;
pub mod cli;
pub mod controller;
pub mod disks;
pub mod exec;
pub mod fault;
pub mod guard;
pub mod identity;
pub mod locks;
pub mod luks;
pub mod mount;
pub mod names;
pub mod node;
pub mod parameters;
pub mod preflight;
pub mod registry;
pub mod server;
pub mod sheep;
pub mod size;

/// Messages and services generated from `proto/csi.proto`.
#[allow(missing_docs, clippy::all, rustdoc::all)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// Name of the driver, as storage classes call it.
pub const DRIVER: &str = "csi.sheepdog.io";
/// Version of the driver.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
