//! What the two kernel engines share: operations on names.

use super::{OpenHow, Space};
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Open; falls back to buffered I/O where direct is refused (tmpfs, some overlays).
pub(super) fn open(path: &Path, how: OpenHow) -> io::Result<OwnedFd> {
    let mut flags = OFlags::RDWR | OFlags::CLOEXEC;
    if how.create {
        flags |= OFlags::CREATE;
    }
    let mode = Mode::from_raw_mode(0o600);
    if how.direct {
        match rustix::fs::open(path, flags | OFlags::DIRECT, mode) {
            Err(rustix::io::Errno::INVAL) => {}
            other => return Ok(other?),
        }
    }
    Ok(rustix::fs::open(path, flags, mode)?)
}

pub(super) fn unlink(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn list(path: &Path) -> io::Result<Vec<String>> {
    match std::fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
        Ok(dir) => dir.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned())).collect(),
    }
}

pub(super) fn space(path: &Path) -> io::Result<Space> {
    let s = rustix::fs::statvfs(path)?;
    Ok(Space { total: s.f_blocks * s.f_frsize, free: s.f_bavail * s.f_frsize })
}

pub(super) fn file_id(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let m = std::fs::metadata(path)?;
    Ok(m.ino() ^ m.dev().rotate_left(32))
}

pub(super) fn punch(fd: &OwnedFd, offset: u64, len: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags as F;
    Ok(rustix::fs::fallocate(fd, F::PUNCH_HOLE | F::KEEP_SIZE, offset, len)?)
}

pub(super) fn len(fd: &OwnedFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(fd)?.st_size as u64)
}

pub(super) fn set_len(fd: &OwnedFd, len: u64) -> io::Result<()> {
    Ok(rustix::fs::ftruncate(fd, len)?)
}

/// The lock belongs to the open file, which requests that the kernel works on hold as well. File systems that know no locks are as good as locked.
pub(super) fn lock(fd: impl std::os::fd::AsFd) -> io::Result<bool> {
    use rustix::io::Errno;
    match rustix::fs::flock(fd, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) | Err(Errno::NOTSUP | Errno::NOSYS | Errno::NOLCK) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
