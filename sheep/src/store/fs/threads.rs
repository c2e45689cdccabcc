//! Disk I/O by a pool of threads: for hosts that refuse io_uring (many container run-times do). About six times the CPU per request.

use super::{File, Fs, OpenHow, Space, kernel};
use crate::buf::AlignedBuf;
use crate::store::index::{FileIndex, Index};
use crate::volume::LocalFut;
use bytes::Bytes;
use sheepdog_proto::DiskId;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// The engine.
#[derive(Debug, Default)]
pub struct ThreadsFs;

struct ThreadFile(Arc<std::fs::File>);

async fn run<T: Send + 'static>(f: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(f).await.map_err(io::Error::other)?
}

impl File for ThreadFile {
    fn read_at(&self, offset: u64, len: usize) -> LocalFut<'static, io::Result<AlignedBuf>> {
        let file = self.0.clone();
        Box::pin(run(move || {
            let mut buf = AlignedBuf::new(len);
            let mut done = 0;
            while done < len {
                match file.read_at(&mut buf[done..], offset + done as u64) {
                    Ok(0) => {
                        buf[done..].fill(0);
                        break;
                    }
                    Ok(n) => done += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(buf)
        }))
    }
    fn write_at(&self, offset: u64, parts: Vec<Bytes>, durable: bool) -> LocalFut<'static, io::Result<()>> {
        let file = self.0.clone();
        Box::pin(run(move || {
            let mut at = offset;
            for p in &parts {
                file.write_all_at(p, at)?;
                at += p.len() as u64;
            }
            if durable { file.sync_data() } else { Ok(()) }
        }))
    }
    fn sync(&self) -> LocalFut<'static, io::Result<()>> {
        let file = self.0.clone();
        Box::pin(run(move || file.sync_data()))
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        use rustix::fs::FallocateFlags as F;
        Ok(rustix::fs::fallocate(&*self.0, F::PUNCH_HOLE | F::KEEP_SIZE, offset, len)?)
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn lock(&self) -> io::Result<bool> {
        kernel::lock(&*self.0)
    }
}

impl Fs for ThreadsFs {
    fn engine(&self) -> &'static str {
        "threads"
    }
    fn open(&self, path: &Path, how: OpenHow) -> io::Result<Rc<dyn File>> {
        let fd: OwnedFd = kernel::open(path, how)?;
        Ok(Rc::new(ThreadFile(Arc::new(fd.into()))))
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        kernel::unlink(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }
    fn mkdir(&self, path: &Path) -> io::Result<()> {
        crate::dirs::make(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        kernel::list(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        crate::dirs::sync(path)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        kernel::space(path)
    }
    fn file_id(&self, path: &Path) -> io::Result<u64> {
        kernel::file_id(path)
    }
    fn index(&self, path: &Path, disk: DiskId) -> LocalFut<'static, io::Result<Rc<dyn Index>>> {
        FileIndex::open(path, disk)
    }
}
