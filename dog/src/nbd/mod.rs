//! One image served over NBD by this process: to `qemu-img` on a private socket, or to clients of a backup.
//!
//! ```text
//! listen    where: a unix socket, or loopback
//! session   one connection: handshake, then requests that run side by side
//! image     what is served: a trait, and an image of the cluster as one
//! ```
//!
//! The protocol is `sheepdog_nbd`'s. What holds: at most `CLIENTS` connections, each with `REQUESTS` requests and `BYTES` bytes under way; a request goes to the image only
//! through `validate`; what was acknowledged is as durable as the image makes it, so FLUSH and FUA have nothing to add.

mod image;
mod listen;
mod session;

pub use image::{Answer, ClusterImage, Fault, Image, runs_of};
pub use listen::{Address, Listener};

use crate::failure::Failure;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Connections at a time; further ones are closed at once.
const CLIENTS: usize = 64;
/// Requests of a connection under way.
const REQUESTS: usize = 64;
/// Bytes of these: two of the largest there are.
const BYTES: usize = 2 * sheepdog_nbd::wire::MAX_REQUEST as usize;

/// Serve `image` under `name` (and under no name) until the future is dropped, which ends every connection. `clients` has the number of connections.
pub async fn serve(
    listener: &Listener,
    name: &str,
    image: Arc<dyn Image>,
    clients: &watch::Sender<usize>,
) -> Failure {
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(stream) if sessions.len() < CLIENTS => {
                    sessions.spawn(session::run(stream, name.to_owned(), image.clone()));
                }
                Ok(_) => eprintln!("dog: a client was sent away: {CLIENTS} are connected"),
                Err(e) => return Failure::io(listener, &e).hint("the limit of open files may be too low: ulimit -n"),
            },
            Some(ended) = sessions.join_next() => match ended {
                Ok(Err(e)) => eprintln!("dog: a client's connection ended: {e}"),
                Ok(Ok(())) => {}
                Err(e) => eprintln!("dog: a client's connection ended: {e}"),
            },
        }
        clients.send_replace(sessions.len());
    }
}
