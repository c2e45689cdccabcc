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

/// Some sockets to one export.
pub(super) async fn open(path: &Path, export: &str, count: usize) -> Outcome<(Connected, Vec<OwnedFd>)> {
    let opened = tokio::time::timeout(PATIENCE, async {
        let (facts, first) = shake(path, export).await?;
        let mut sockets = vec![first];
        while sockets.len() < count {
            sockets.push(shake(path, export).await?.1);
        }
        Ok::<_, std::io::Error>((facts, sockets))
    });
    let opened = opened.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
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

/// Has the other side closed it?
pub(super) fn has_ended(socket: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let polled = poll(&mut fds, Some(&now));
    let ended = PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP | PollFlags::NVAL;
    polled.is_ok() && fds[0].revents().intersects(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_noticed_without_reading() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let fd: OwnedFd = a.into();
        assert!(!has_ended(&fd));
        std::io::Write::write_all(&mut &b, b"data").unwrap();
        assert!(!has_ended(&fd));
        drop(b);
        assert!(has_ended(&fd));
    }
}
