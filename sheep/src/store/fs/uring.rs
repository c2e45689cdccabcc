//! Disk I/O by io_uring on the data thread itself: no hand-over to another thread, so a request at depth 1 pays no wake-up.
//!
//! Requests are queued and submitted once per turn of the scheduler; the ring's descriptor is watched by the runtime and a task takes completions out. Buffers
//! belong to the slot table until their completion is seen, whatever happens to the future that waits.

use super::{File, Fs, OpenHow, Space, kernel};
use crate::buf::AlignedBuf;
use crate::store::index::{FileIndex, Index};
use crate::volume::LocalFut;
use bytes::Bytes;
use io_uring::{IoUring, opcode, squeue, types};
use sheepdog_proto::DiskId;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::{Rc, Weak};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};

/// Submission queue entries.
const ENTRIES: u32 = 256;
/// Requests the kernel works on at a time; the rest waits here.
const IN_FLIGHT: usize = 512;
/// `RWF_DSYNC` of `pwritev2(2)`.
const RWF_DSYNC: i32 = 0x2;

enum Owned {
    Read(AlignedBuf),
    Write { _parts: Vec<Bytes>, _iovecs: Vec<IoSlice<'static>> },
    None,
}

struct Slot {
    owned: Owned,
    /// The file stays open until the request is done.
    _file: Rc<OwnedFd>,
    done: oneshot::Sender<(i32, Owned)>,
}

struct Ring {
    ring: RefCell<IoUring>,
    slots: RefCell<Vec<Option<Slot>>>,
    free: RefCell<Vec<usize>>,
    queue: RefCell<VecDeque<squeue::Entry>>,
    in_flight: Cell<usize>,
    submit: Notify,
}

/// The engine. Must be made inside the data thread's runtime.
pub struct UringFs {
    ring: Rc<Ring>,
}

impl UringFs {
    /// Set the ring up.
    ///
    /// # Errors
    /// The kernel or the container's seccomp profile refuses io_uring.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(ENTRIES)
            .or_else(|_| IoUring::new(ENTRIES))?;
        // SAFETY: the ring's descriptor is open; it is only borrowed to be duplicated.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        let own = fd.try_clone_to_owned()?;
        // SAFETY: `AsyncFd` owns the duplicate for as long as it is registered.
        let watch = unsafe { AsyncFd::register(own) }?;
        let ring = Rc::new(Ring {
            ring: RefCell::new(ring),
            slots: RefCell::default(),
            free: RefCell::default(),
            queue: RefCell::default(),
            in_flight: Cell::new(0),
            submit: Notify::new(),
        });
        tokio::task::spawn_local(submitter(Rc::downgrade(&ring)));
        tokio::task::spawn_local(reaper(Rc::downgrade(&ring), watch));
        Ok(Self { ring })
    }
}

impl Ring {
    fn start(
        self: &Rc<Self>,
        file: &Rc<OwnedFd>,
        owned: Owned,
        make: impl FnOnce(&Owned, types::Fd) -> squeue::Entry,
    ) -> oneshot::Receiver<(i32, Owned)> {
        let (done, rx) = oneshot::channel();
        let entry = make(&owned, types::Fd(file.as_raw_fd()));
        let mut slots = self.slots.borrow_mut();
        let slot = Slot { owned, _file: file.clone(), done };
        let at = match self.free.borrow_mut().pop() {
            Some(at) => {
                slots[at] = Some(slot);
                at
            }
            None => {
                slots.push(Some(slot));
                slots.len() - 1
            }
        };
        self.queue.borrow_mut().push_back(entry.user_data(at as u64));
        self.submit.notify_one();
        rx
    }

    /// Hand queued requests to the kernel and take completions out.
    fn turn(&self) {
        let mut ring = self.ring.borrow_mut();
        let mut queue = self.queue.borrow_mut();
        loop {
            let mut pushed = 0;
            {
                let mut sq = ring.submission();
                while self.in_flight.get() < IN_FLIGHT && !sq.is_full() {
                    let Some(entry) = queue.pop_front() else { break };
                    // SAFETY: everything the entry points to is owned by its slot until the completion is seen.
                    if unsafe { sq.push(&entry) }.is_err() {
                        queue.push_front(entry);
                        break;
                    }
                    self.in_flight.set(self.in_flight.get() + 1);
                    pushed += 1;
                }
            }
            if pushed > 0
                && let Err(e) = ring.submit()
                && !matches!(e.raw_os_error(), Some(4 | 11 | 16))
            {
                tracing::error!(error = %e, "io_uring does not take requests");
            }
            let mut completed = 0;
            let mut cq = ring.completion();
            cq.sync();
            for c in &mut cq {
                let at = c.user_data() as usize;
                let slot = self.slots.borrow_mut().get_mut(at).and_then(Option::take);
                if let Some(slot) = slot {
                    self.free.borrow_mut().push(at);
                    self.in_flight.set(self.in_flight.get() - 1);
                    completed += 1;
                    let _ = slot.done.send((c.result(), slot.owned));
                }
            }
            if completed == 0 || queue.is_empty() {
                return;
            }
        }
    }
}

async fn submitter(ring: Weak<Ring>) {
    while let Some(r) = ring.upgrade() {
        r.turn();
        let waiting = async { r.submit.notified().await };
        waiting.await;
    }
}

async fn reaper(ring: Weak<Ring>, watch: AsyncFd<OwnedFd>) {
    loop {
        let Ok(mut ready) = watch.readable().await else { return };
        ready.clear_ready();
        let Some(ring) = ring.upgrade() else { return };
        // With cooperative task running the kernel finishes requests when we enter it.
        {
            let mut r = ring.ring.borrow_mut();
            if r.submission().taskrun() {
                // SAFETY: no pointers are passed; this only lets the kernel post completions.
                let _ = unsafe { r.submitter().enter::<()>(0, 0, 1, None) };
            }
        }
        ring.turn();
    }
}

struct UringFile {
    ring: Rc<Ring>,
    fd: Rc<OwnedFd>,
}

fn check(result: i32) -> io::Result<usize> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as usize) }
}

fn closed<T>(_: T) -> io::Error {
    io::Error::other("the I/O ring is closed")
}

impl File for UringFile {
    fn read_at(&self, offset: u64, len: usize) -> LocalFut<'static, io::Result<AlignedBuf>> {
        let (ring, fd) = (self.ring.clone(), self.fd.clone());
        let first = start_read(&ring, &fd, AlignedBuf::new(len), 0, offset);
        Box::pin(async move {
            let mut rx = first;
            let mut done = 0;
            loop {
                let (result, owned) = rx.await.map_err(closed)?;
                let Owned::Read(mut buf) = owned else { return Err(closed(())) };
                let n = check(result)?;
                done += n;
                if n == 0 {
                    buf[done..].fill(0);
                    done = len;
                }
                if done >= len {
                    return Ok(buf);
                }
                if !done.is_multiple_of(4096) {
                    // The end of the file lies inside a block.
                    buf[done..].fill(0);
                    return Ok(buf);
                }
                rx = start_read(&ring, &fd, buf, done, offset);
            }
        })
    }
    fn write_at(&self, offset: u64, parts: Vec<Bytes>, durable: bool) -> LocalFut<'static, io::Result<()>> {
        let (ring, fd) = (self.ring.clone(), self.fd.clone());
        let first = start_write(&ring, &fd, parts.clone(), offset, durable);
        Box::pin(async move {
            let (mut rx, mut parts, mut at) = (first, parts, offset);
            loop {
                let (result, _) = rx.await.map_err(closed)?;
                let mut n = check(result)?;
                let total: usize = parts.iter().map(Bytes::len).sum();
                if n >= total {
                    return Ok(());
                }
                if n == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                at += n as u64;
                while n > 0 {
                    let len = parts[0].len();
                    if n >= len {
                        parts.remove(0);
                        n -= len;
                    } else {
                        parts[0] = parts[0].slice(n..);
                        n = 0;
                    }
                }
                rx = start_write(&ring, &fd, parts.clone(), at, durable);
            }
        })
    }
    fn sync(&self) -> LocalFut<'static, io::Result<()>> {
        let rx = self.ring.start(&self.fd, Owned::None, |_, fd| {
            opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build()
        });
        Box::pin(async move { check(rx.await.map_err(closed)?.0).map(drop) })
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        kernel::punch(&self.fd, offset, len)
    }
    fn len(&self) -> io::Result<u64> {
        kernel::len(&self.fd)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        kernel::set_len(&self.fd, len)
    }
    fn lock(&self) -> io::Result<bool> {
        kernel::lock(&*self.fd)
    }
}

fn start_read(
    ring: &Rc<Ring>,
    fd: &Rc<OwnedFd>,
    mut buf: AlignedBuf,
    done: usize,
    offset: u64,
) -> oneshot::Receiver<(i32, Owned)> {
    let (ptr, len) = (buf[done..].as_mut_ptr(), buf.len() - done);
    ring.start(fd, Owned::Read(buf), move |_, fd| {
        opcode::Read::new(fd, ptr, len as u32).offset(offset + done as u64).build()
    })
}

fn start_write(
    ring: &Rc<Ring>,
    fd: &Rc<OwnedFd>,
    parts: Vec<Bytes>,
    offset: u64,
    durable: bool,
) -> oneshot::Receiver<(i32, Owned)> {
    let iovecs: Vec<IoSlice<'static>> = parts
        .iter()
        .map(|p| {
            // SAFETY: the bytes live in `parts`, which the slot owns as long as the kernel may look at them.
            IoSlice::new(unsafe { std::slice::from_raw_parts(p.as_ptr(), p.len()) })
        })
        .collect();
    let flags = if durable { RWF_DSYNC } else { 0 };
    ring.start(fd, Owned::Write { _parts: parts, _iovecs: iovecs }, move |owned, fd| {
        let Owned::Write { _iovecs: v, _parts: _ } = owned else { return opcode::Nop::new().build() };
        opcode::Writev::new(fd, v.as_ptr().cast(), v.len() as u32).offset(offset).rw_flags(flags).build()
    })
}

impl Fs for UringFs {
    fn engine(&self) -> &'static str {
        "io_uring"
    }
    fn open(&self, path: &Path, how: OpenHow) -> io::Result<Rc<dyn File>> {
        let fd = Rc::new(kernel::open(path, how)?);
        Ok(Rc::new(UringFile { ring: self.ring.clone(), fd }))
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
