//! Sockets for the kernel: connected, and let in by sheep. The kernel knows simple replies only.

use crate::fault::{Fault, Kind, Outcome};
use bytes::BytesMut;
use sheepdog_nbd::client::{Connected, Handshake, Step, Wishes};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// For connecting and being let in.
const PATIENCE: Duration = Duration::from_secs(30);

/// A socket to an export.
pub(super) async fn open(path: &Path, export: &str) -> Outcome<(Connected, OwnedFd)> {
    let opened = tokio::time::timeout(PATIENCE, shake(path, export)).await;
    let opened = opened.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    opened.map_err(|e| Fault::new(Kind::Unavailable, format!("open {export} at {}: {e}", path.display())))
}

async fn shake(path: &Path, export: &str) -> std::io::Result<(Connected, OwnedFd)> {
    let mut stream = UnixStream::connect(path).await?;
    let mut wishes = Wishes::attach(export);
    (wishes.structured, wishes.base_allocation) = (false, false);
    let mut handshake = Handshake::new(wishes);
    let mut input = BytesMut::new();
    loop {
        let step = handshake.step(&mut input).map_err(|e| std::io::Error::other(e.to_string()));
        stream.write_all(&handshake.take_output()).await?;
        match step? {
            Step::Progress => {}
            Step::NeedInput => {
                if stream.read_buf(&mut input).await? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            Step::Ready(facts) if input.is_empty() => {
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                return Ok((facts, stream.into()));
            }
            Step::Ready(_) | Step::StartTls | Step::Listed(_) => {
                return Err(std::io::Error::other("sheep answered what was not asked"));
            }
        }
    }
}
