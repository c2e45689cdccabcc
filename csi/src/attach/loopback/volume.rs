//! One volume over one NBD connection that is made again for as long as it takes.
//!
//! ```text
//!   submit ─► queue ─► unanswered, by number ─► sheep
//!                          ▲   └─ on an answer: gone, the kernel is told
//!                          └─ on a new connection: all of it is sent again, in order
//! ```
//!
//! What holds:
//! * *In order, also across connections*: requests get a number when they come and are sent, first and again, in the order of their numbers. A gateway opens a volume
//!   only when nothing of the connection before can take effect later.
//! * *No I/O error but for what sheep says will not get better*, or after [`Handle::give_up`].
//! * *Bounded*: the kernel has a few hundred requests of at most 1 MiB under way, and the queue makes it wait beyond that.
//!
//! The task ends with [`Handle::stop`], and fails what is left.

use bytes::{Bytes, BytesMut};
use fuser::{Errno, ReplyData, ReplyEmpty, ReplyWrite};
use sheepdog_nbd::client::{Connected, Handshake, Outcome as Reply, Replies, Step, Wishes};
use sheepdog_nbd::wire::{Broken, cmd};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Requests that wait to be sent first: beyond what a loop device has under way.
const QUEUE: usize = 512;
/// Pause before the first try of a new connection; doubled up to the longest.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// For connecting and being let in. Opening waits for dead connections to settle, so it may take long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest range zeroed by one request, bytes.
const MAX_ZERO: u64 = 1 << 30;
/// Small requests are gathered up to here before they are sent, bytes.
const GATHER: usize = 128 << 10;

/// What is to be done, with how to say that it is.
pub enum What {
    /// Read.
    Read(ReplyData),
    /// Write.
    Write(Bytes, ReplyWrite),
    /// Make durable what was answered.
    Flush(ReplyEmpty),
    /// Zeros; the last part of a range carries the answer.
    Zero(Option<Arc<Mutex<Zeroing>>>),
}

/// A range that is zeroed by several requests.
pub struct Zeroing {
    left: usize,
    failed: Option<Errno>,
    reply: Option<ReplyEmpty>,
}

/// A request of the kernel.
pub struct Io {
    /// Bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// Kind and answer.
    pub what: What,
}

impl Io {
    fn command(&self) -> u16 {
        match self.what {
            What::Read(_) => cmd::READ,
            What::Write(..) => cmd::WRITE,
            What::Flush(_) => cmd::FLUSH,
            What::Zero(_) => cmd::WRITE_ZEROES,
        }
    }

    fn fail(self, e: Errno) {
        match self.what {
            What::Read(r) => r.error(e),
            What::Write(_, r) => r.error(e),
            What::Flush(r) => r.error(e),
            What::Zero(z) => zeroed(z, Some(e)),
        }
    }

    fn done(self, data: Reply) {
        match (self.what, data) {
            (What::Read(r), Reply::Data(bytes)) => r.data(&bytes),
            (What::Read(r), _) => r.error(Errno::EIO),
            (What::Write(_, r), _) => r.written(self.len),
            (What::Flush(r), _) => r.ok(),
            (What::Zero(z), _) => zeroed(z, None),
        }
    }
}

fn zeroed(z: Option<Arc<Mutex<Zeroing>>>, failed: Option<Errno>) {
    let Some(z) = z else { return };
    let mut z = z.lock().unwrap_or_else(PoisonError::into_inner);
    z.left -= 1;
    if z.failed.is_none() {
        z.failed = failed;
    }
    if z.left == 0
        && let Some(reply) = z.reply.take()
    {
        match z.failed {
            Some(e) => reply.error(e),
            None => reply.ok(),
        }
    }
}

/// What all ends of a volume share.
struct Shared {
    export: String,
    socket: PathBuf,
    size: AtomicU64,
    waiting: Mutex<Option<String>>,
    /// Requests without an answer, by number.
    unanswered: Mutex<BTreeMap<u64, Io>>,
    stop: CancellationToken,
    give_up: CancellationToken,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A volume that is served. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Io>,
}

impl Handle {
    /// Connect and start to serve. The first connection has to succeed.
    pub async fn open(socket: &Path, export: &str) -> std::io::Result<(Self, Connected)> {
        let connection = Connection::open(socket, export).await?;
        let facts = connection.facts.clone();
        let (queue, rx) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            export: export.into(),
            socket: socket.into(),
            size: AtomicU64::new(facts.size),
            waiting: Mutex::new(None),
            unanswered: Mutex::default(),
            stop: CancellationToken::new(),
            give_up: CancellationToken::new(),
        });
        tokio::spawn(serve(shared.clone(), rx, connection));
        Ok((Self { shared, queue }, facts))
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.shared.size.load(Ordering::Acquire)
    }

    /// Why I/O waits, if it does.
    pub fn waiting(&self) -> Option<String> {
        lock(&self.shared.waiting).clone()
    }

    /// Ask sheep for the size again. Never smaller: what lies beyond would be cut off under somebody's feet.
    pub async fn look_again(&self) -> std::io::Result<u64> {
        let facts = Connection::open(&self.shared.socket, &self.shared.export).await?.facts;
        self.shared.size.fetch_max(facts.size, Ordering::AcqRel);
        Ok(self.size())
    }

    /// From a thread of FUSE, which waits when the queue is full.
    pub fn submit(&self, io: Io) {
        if let Err(e) = self.queue.blocking_send(io) {
            e.0.fail(Errno::EIO);
        }
    }

    /// Zeros, in parts.
    pub fn zero(&self, offset: u64, length: u64, reply: ReplyEmpty) {
        let parts = length.div_ceil(MAX_ZERO);
        if parts == 0 {
            return reply.ok();
        }
        let z = Zeroing { left: parts as usize, failed: None, reply: Some(reply) };
        let z = Arc::new(Mutex::new(z));
        for i in 0..parts {
            let at = offset + i * MAX_ZERO;
            let len = (offset + length - at).min(MAX_ZERO) as u32;
            self.submit(Io { offset: at, len, what: What::Zero(Some(z.clone())) });
        }
    }

    /// Fail whatever waits or comes.
    pub fn give_up(&self) {
        self.shared.give_up.cancel();
    }

    /// Serve no more.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }
}

/// One connection, let in.
struct Connection {
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    input: BytesMut,
    facts: Connected,
}

fn broken(e: Broken) -> std::io::Error {
    let kind = match e {
        Broken::Refused(_) => std::io::ErrorKind::PermissionDenied,
        _ => std::io::ErrorKind::InvalidData,
    };
    std::io::Error::new(kind, e.to_string())
}

impl Connection {
    async fn open(socket: &Path, export: &str) -> std::io::Result<Self> {
        let opened = tokio::time::timeout(PATIENCE, Self::shake(socket, export)).await;
        opened.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }

    async fn shake(socket: &Path, export: &str) -> std::io::Result<Self> {
        let (mut read, mut write) = UnixStream::connect(socket).await?.into_split();
        let mut wishes = Wishes::attach(export);
        wishes.base_allocation = false;
        let mut handshake = Handshake::new(wishes);
        let mut input = BytesMut::with_capacity(64 << 10);
        loop {
            let step = handshake.step(&mut input).map_err(broken);
            let out = handshake.take_output();
            if !out.is_empty() {
                write.write_all(&out).await?;
            }
            match step? {
                Step::Progress => {}
                Step::NeedInput => {
                    if read.read_buf(&mut input).await? == 0 {
                        return Err(std::io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Step::Ready(facts) => return Ok(Self { read, write, input, facts }),
                Step::StartTls | Step::Listed(_) => {
                    return Err(std::io::Error::other("sheep answered what was not asked"));
                }
            }
        }
    }
}

/// Cookies of a connection, and what they stand for.
struct Under {
    replies: Replies,
    numbers: HashMap<u64, u64>,
}

/// The volume's task.
async fn serve(shared: Arc<Shared>, mut queue: mpsc::Receiver<Io>, first: Connection) {
    let mut next = 0;
    let mut connection = Some(first);
    let mut pause = PAUSE;
    loop {
        let c = match connection.take() {
            Some(c) => Ok(c),
            None => tokio::select! {
                () = shared.stop.cancelled() => break,
                () = shared.give_up.cancelled() => break,
                c = Connection::open(&shared.socket, &shared.export) => c,
            },
        };
        let why = match c {
            Ok(c) if c.facts.size < shared.size.load(Ordering::Acquire) => {
                std::io::Error::other(format!("the volume has {} bytes now, fewer than before", c.facts.size))
            }
            Ok(c) => {
                if lock(&shared.waiting).take().is_some() {
                    tracing::info!(export = shared.export, "connected again");
                }
                pause = PAUSE;
                tokio::select! {
                    () = shared.stop.cancelled() => break,
                    () = shared.give_up.cancelled() => break,
                    e = exchange(&shared, &mut queue, &mut next, c) => e,
                }
            }
            Err(e) => e,
        };
        let text = why.to_string();
        let before = lock(&shared.waiting).replace(text.clone());
        if before.as_ref() != Some(&text) {
            tracing::warn!(export = shared.export, "I/O waits: {text}");
        }
        tokio::select! {
            () = shared.stop.cancelled() => break,
            () = shared.give_up.cancelled() => break,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
        }
    }
    fail_everything(&shared, &mut queue).await;
}

/// Until the volume is stopped, everything fails; then what is left.
async fn fail_everything(shared: &Shared, queue: &mut mpsc::Receiver<Io>) {
    for io in std::mem::take(&mut *lock(&shared.unanswered)).into_values() {
        io.fail(Errno::EIO);
    }
    if !shared.stop.is_cancelled() {
        tracing::error!(export = shared.export, "given up: its I/O fails from now on");
        *lock(&shared.waiting) = Some("given up: the attachment is gone".into());
    }
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => break,
            io = queue.recv() => match io {
                Some(io) => io.fail(Errno::EIO),
                None => break,
            },
        }
    }
    queue.close();
    while let Ok(io) = queue.try_recv() {
        io.fail(Errno::EIO);
    }
}

/// Serve over one connection until it breaks.
async fn exchange(
    shared: &Shared,
    queue: &mut mpsc::Receiver<Io>,
    next: &mut u64,
    c: Connection,
) -> std::io::Error {
    let under = Mutex::new(Under { replies: Replies::new(c.facts.structured), numbers: HashMap::new() });
    let sent = send(shared, &under, queue, next, c.write);
    let received = receive(shared, &under, c.read, c.input);
    tokio::select! {
        Err(e) = sent => e,
        Err(e) = received => e,
        else => std::io::ErrorKind::UnexpectedEof.into(),
    }
}

/// Puts requests on the wire: those without an answer again, then new ones as they come.
async fn send(
    shared: &Shared,
    under: &Mutex<Under>,
    queue: &mut mpsc::Receiver<Io>,
    next: &mut u64,
    mut write: OwnedWriteHalf,
) -> std::io::Result<()> {
    let mut out = BytesMut::with_capacity(2 * GATHER);
    let old: Vec<u64> = lock(&shared.unanswered).keys().copied().collect();
    for number in old {
        let payload = lock(&shared.unanswered).get(&number).map(|io| submit(under, number, io, &mut out));
        put(&mut write, &mut out, payload.flatten()).await?;
    }
    loop {
        if out.is_empty() {
            let Some(io) = queue.recv().await else { return Err(std::io::ErrorKind::BrokenPipe.into()) };
            let payload = accept(shared, under, next, io, &mut out);
            put(&mut write, &mut out, payload).await?;
        }
        while out.len() < GATHER {
            let Ok(io) = queue.try_recv() else { break };
            let payload = accept(shared, under, next, io, &mut out);
            put(&mut write, &mut out, payload).await?;
        }
        write.write_all(&out).await?;
        out.clear();
    }
}

/// A new request gets its number before anything else: from then on it is sent until it is answered.
fn accept(
    shared: &Shared,
    under: &Mutex<Under>,
    next: &mut u64,
    io: Io,
    out: &mut BytesMut,
) -> Option<Bytes> {
    let number = *next;
    *next += 1;
    let mut unanswered = lock(&shared.unanswered);
    let payload = submit(under, number, &io, out);
    unanswered.insert(number, io);
    payload
}

/// Header into `out`; the payload that has to follow it.
fn submit(under: &Mutex<Under>, number: u64, io: &Io, out: &mut BytesMut) -> Option<Bytes> {
    let mut u = lock(under);
    let cookie = u.replies.submit(io.command(), 0, io.offset, io.len, out);
    u.numbers.insert(cookie, number);
    match &io.what {
        What::Write(data, _) => Some(data.clone()),
        _ => None,
    }
}

/// Small payloads are gathered, large ones go out at once.
async fn put(write: &mut OwnedWriteHalf, out: &mut BytesMut, payload: Option<Bytes>) -> std::io::Result<()> {
    let Some(payload) = payload else { return Ok(()) };
    if out.len() + payload.len() <= GATHER {
        out.extend_from_slice(&payload);
        return Ok(());
    }
    write.write_all(out).await?;
    out.clear();
    write.write_all(&payload).await
}

/// Takes answers off the wire.
async fn receive(
    shared: &Shared,
    under: &Mutex<Under>,
    mut read: OwnedReadHalf,
    mut input: BytesMut,
) -> std::io::Result<()> {
    loop {
        loop {
            let mut u = lock(under);
            let Some(done) = u.replies.receive(&mut input).map_err(broken)? else { break };
            let number = u.numbers.remove(&done.cookie);
            drop(u);
            let gone = matches!(&done.result, Err(f) if f.errno == sheepdog_nbd::Errno::Shutdown);
            if gone {
                // Not an answer: sheep ends. It stays unanswered and is sent again.
                return Err(std::io::Error::other("sheep is shutting down"));
            }
            let Some(io) = number.and_then(|n| lock(&shared.unanswered).remove(&n)) else { continue };
            match done.result {
                Ok(reply) => io.done(reply),
                Err(f) => {
                    tracing::error!(
                        export = shared.export,
                        offset = io.offset,
                        len = io.len,
                        "I/O error: {f}"
                    );
                    io.fail(errno(f.errno));
                }
            }
        }
        if read.read_buf(&mut input).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn errno(e: sheepdog_nbd::Errno) -> Errno {
    match e {
        sheepdog_nbd::Errno::Perm => Errno::EPERM,
        sheepdog_nbd::Errno::NoSpace => Errno::ENOSPC,
        sheepdog_nbd::Errno::Inval => Errno::EINVAL,
        sheepdog_nbd::Errno::NotSup => Errno::EOPNOTSUPP,
        _ => Errno::EIO,
    }
}
