//! What programs need to talk to a sheep: credentials, the admin interface's messages, and an async client.
//!
//! `credentials` makes TLS identities from the cluster secret, `pb` is generated from `proto/admin.proto` (client and server side), `client`
//! connects, retries and times out, `error` says what an answer means. `dog`, and the sheep among themselves, use nothing else. `policy`,
//! `limits` and `quantity` read what people write in more than one place.

pub mod client;
pub mod credentials;
pub mod error;
pub mod limits;
pub mod policy;
pub mod quantity;

/// Messages, clients and server traits generated from `proto/admin.proto`.
#[allow(missing_docs, clippy::all)]
pub mod pb {
    tonic::include_proto!("sheepdog.admin.v1");
}

/// A VDI without data whose attributes tell the CSI driver which sheep is on which node. It is no volume: nobody attaches it, and listings for people leave it out.
pub const NODES_VDI: &str = "csi.sheepdog.io-nodes";

pub use client::{Client, ConnectOptions};
pub use credentials::{Credentials, CredentialsError, Role};
pub use error::{Error, ErrorKind};
pub use policy::Policy;
