//! The transmission phase of one connection: a single poll loop that reads, issues, completes and writes.
//!
//! ```text
//!   Serving ──DISC, EOF, bad packet, drain, volume gone──► Ending ──all requests done, replies sent──► over
//!      └─────────────── socket error ──────────────────────► (same, but nothing is sent any more)
//! ```
//!
//! What holds: requests run concurrently and are answered in the order they finish; the loop ends only when none is under
//! way; `held` bytes (payloads, reads under way, replies not yet sent) stay within the limits, one request excepted.

use super::Server;
use super::error::errno;
use super::inbound::{Fill, Inbound, Incoming, Verdict};
use super::outbound::Outbound;
use super::stats::{Connection, ExportStats, Op};
use crate::volume::{Extent, Volume, VolumeError, ZeroFlags};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use sheepdog_nbd::reply::{self, Descriptor};
use sheepdog_nbd::server::Agreed;
use sheepdog_nbd::{Command, Errno, Refused, RequestHeader, Terms, validate, wire};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

/// A client that closed its side but does not take the last replies is given so long.
const LINGER: Duration = Duration::from_secs(1);

/// A request on its way through the volume.
pub(super) struct Job {
    cookie: u64,
    command: Command,
    payload: Bytes,
    started: Instant,
}

/// What the volume said.
enum Answer {
    Done,
    Data(Vec<Bytes>),
    Extents(Vec<Extent>),
}

/// A request that has ended.
pub(super) struct Finished {
    cookie: u64,
    command: Command,
    started: Instant,
    answer: Result<Answer, VolumeError>,
}

/// Run one request. The only place that turns commands into volume calls.
pub(super) async fn run(volume: Rc<dyn Volume>, job: Job) -> Finished {
    let Job { cookie, command, payload, started } = job;
    let answer = match command {
        Command::Read { len: 0, .. } => Ok(Answer::Data(Vec::new())),
        Command::Read { offset, len, .. } => volume.read(offset, len).await.map(Answer::Data),
        Command::Write { len: 0, .. }
        | Command::Trim { len: 0, .. }
        | Command::WriteZeroes { len: 0, .. } => Ok(Answer::Done),
        Command::Write { offset, .. } => volume.write(offset, payload).await.map(|()| Answer::Done),
        Command::Flush => volume.flush().await.map(|()| Answer::Done),
        Command::Trim { offset, len } => volume.trim(offset, len.into()).await.map(|()| Answer::Done),
        Command::WriteZeroes { offset, len, no_hole, fast } => {
            volume.zero(offset, len.into(), ZeroFlags { no_hole, fast }).await.map(|()| Answer::Done)
        }
        Command::BlockStatus { offset, len, one } => {
            let max = if one { 1 } else { wire::MAX_EXTENTS };
            volume.block_status(offset, len.into(), max).await.map(Answer::Extents)
        }
        // A hint, and the data is as near as it gets.
        Command::Cache { .. } | Command::Disconnect => Ok(Answer::Done),
    };
    Finished { cookie, command, started, answer }
}

fn op_and_len(command: &Command) -> (Op, u32) {
    match *command {
        Command::Read { len, .. } => (Op::Read, len),
        Command::Write { len, .. } => (Op::Write, len),
        Command::Flush | Command::Disconnect => (Op::Flush, 0),
        Command::Trim { len, .. } => (Op::Trim, len),
        Command::Cache { len, .. } => (Op::Cache, len),
        Command::WriteZeroes { len, .. } => (Op::Zero, len),
        Command::BlockStatus { len, .. } => (Op::Status, len),
    }
}

/// Memory a request occupies while it is under way.
fn weight(command: &Command) -> usize {
    match *command {
        Command::Read { len, .. } | Command::Write { len, .. } => len as usize,
        _ => 0,
    }
}

enum State {
    Serving,
    /// Take no more requests; finish what is under way.
    Ending,
}

/// One attached client. `R` starts a job, `F` is what it returns.
pub(super) struct Session<'a, S, R, F> {
    stream: &'a mut S,
    server: &'a Server,
    conn: &'a Connection,
    stats: &'a ExportStats,
    volume: Rc<dyn Volume>,
    agreed: Agreed,
    inbound: Inbound,
    out: Outbound,
    start: R,
    running: FuturesUnordered<F>,
    /// Bytes of requests in `running`, and of the write being received.
    weight: usize,
    /// What the shared budget believes we hold.
    charged: usize,
    state: State,
    /// Sending makes no sense any more.
    deaf: bool,
    flushing: bool,
    linger: Option<Pin<Box<Sleep>>>,
    /// Why it ends, if that is worth a line in the log.
    trouble: Option<io::Error>,
}

impl<'a, S, R, F> Session<'a, S, R, F>
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: Fn(Rc<dyn Volume>, Job) -> F,
    F: Future<Output = Finished>,
{
    #[allow(clippy::too_many_arguments)] // all of them are the connection's, and named the same here
    pub(super) fn new(
        stream: &'a mut S,
        server: &'a Server,
        conn: &'a Connection,
        stats: &'a ExportStats,
        volume: Rc<dyn Volume>,
        agreed: Agreed,
        inbound: Inbound,
        start: R,
    ) -> Self {
        Self {
            stream,
            server,
            conn,
            stats,
            volume,
            agreed,
            inbound,
            out: Outbound::default(),
            start,
            running: FuturesUnordered::new(),
            weight: 0,
            charged: 0,
            state: State::Serving,
            deaf: false,
            flushing: false,
            linger: None,
            trouble: None,
        }
    }

    /// Serve until the end. Nothing is under way when this returns.
    pub(super) async fn run(&mut self) -> io::Result<()> {
        let drain = self.server.drain.clone();
        let mut drain = std::pin::pin!(drain.cancelled());
        let mut draining = false;
        let volume = self.volume.clone();
        let mut revoked = volume.revoked();
        let mut cut = false;
        std::future::poll_fn(|cx| {
            if !cut && revoked.as_mut().poll(cx).is_ready() {
                cut = true;
                self.cut(cx);
            }
            if !draining && drain.as_mut().poll(cx).is_ready() {
                draining = true;
                self.end(None);
            }
            self.poll(cx)
        })
        .await;
        self.trouble.take().map_or(Ok(()), Err)
    }

    fn end(&mut self, why: Option<io::Error>) {
        self.state = State::Ending;
        if self.trouble.is_none() {
            self.trouble = why;
        }
    }

    /// The client hears at once that the connection is over, also while requests are under way.
    fn cut(&mut self, cx: &mut Context<'_>) {
        self.lost(io::Error::other("the volume was detached from this client"));
        let _ = Pin::new(&mut *self.stream).poll_shutdown(cx);
    }

    fn lost(&mut self, why: io::Error) {
        self.end(Some(why));
        self.deaf = true;
        self.out.clear();
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut moved = false;
            if matches!(self.state, State::Serving) {
                moved |= self.take_requests(cx);
            }
            while let Poll::Ready(Some(finished)) = self.running.poll_next_unpin(cx) {
                self.finish(finished);
                moved = true;
            }
            moved |= self.send(cx);
            self.settle();
            if self.is_over(cx) {
                return Poll::Ready(());
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    /// Read once, then issue what is complete. True when there is reason to go round again.
    fn take_requests(&mut self, cx: &mut Context<'_>) -> bool {
        let (moved, last) = match self.inbound.poll_fill(cx, self.stream) {
            Poll::Ready(Ok(Fill::Bytes)) => (true, false),
            Poll::Ready(Ok(Fill::End)) => (true, true),
            // Full: completions make room, and they wake us.
            Poll::Ready(Ok(Fill::Full)) | Poll::Pending => (false, false),
            Poll::Ready(Err(e)) => {
                self.lost(e);
                return true;
            }
        };
        match self.issue() {
            // Held by the others' bytes, not by our own: nothing of ours will wake us.
            Ok(true) if self.has_room_itself() => self.server.budget.wait(self.conn.id, cx.waker()),
            Ok(_) => {}
            Err(e) => self.end(Some(io::Error::new(io::ErrorKind::InvalidData, e))),
        }
        if last {
            self.end(None);
        }
        moved
    }

    /// Start every request that is complete in the buffer and within limits. True when one is held back.
    fn issue(&mut self) -> Result<bool, wire::Broken> {
        let terms = Terms {
            // Asked each time: the volume may have grown.
            size: self.volume.size(),
            read_only: self.volume.read_only(),
            structured: self.agreed.structured,
            base_allocation: self.agreed.base_allocation,
        };
        loop {
            let (requests, room) = (self.running.len(), self.room());
            let mut taken = 0;
            let limit = self.server.limits.requests;
            let incoming = self.inbound.next(|h| {
                let verdict = judge(h, &terms, requests < limit, room);
                if let Verdict::Take(c) = &verdict {
                    taken = weight(c);
                }
                verdict
            })?;
            self.weight += taken;
            match incoming {
                Incoming::Request { command: Command::Disconnect, .. } => {
                    self.end(None);
                    return Ok(false);
                }
                Incoming::Request { cookie, command, payload } => {
                    let job = Job { cookie, command, payload, started: Instant::now() };
                    self.running.push((self.start)(self.volume.clone(), job));
                }
                Incoming::Refused { cookie, refused } => self.refuse(cookie, refused),
                Incoming::NeedInput => return Ok(false),
                Incoming::Held => return Ok(true),
            }
        }
    }

    fn held(&self) -> usize {
        self.weight + self.out.len()
    }

    fn has_room_itself(&self) -> bool {
        self.running.len() < self.server.limits.requests && self.held() < self.server.limits.connection_bytes
    }

    /// Bytes a further request may have. Unlimited when nothing is held, so that one request always goes.
    fn room(&self) -> usize {
        if self.held() == 0 {
            return usize::MAX;
        }
        if !self.server.budget.has_room() {
            return 0;
        }
        self.server.limits.connection_bytes.saturating_sub(self.held())
    }

    fn refuse(&mut self, cookie: u64, refused: Refused) {
        self.stats.refuse();
        self.fail(cookie, refused.errno, refused.why);
    }

    fn fail(&mut self, cookie: u64, errno: Errno, why: &str) {
        if self.agreed.structured {
            self.out.data(reply::error(cookie, errno, why));
        } else {
            self.out.head(reply::simple(cookie, Some(errno)));
        }
    }

    fn finish(&mut self, f: Finished) {
        let (op, len) = op_and_len(&f.command);
        self.weight -= weight(&f.command);
        self.stats.finished(op, len, f.started.elapsed(), f.answer.is_ok());
        self.conn.requests.set(self.conn.requests.get() + 1);
        if self.deaf {
            return;
        }
        match f.answer {
            Ok(answer) => self.answer(f.cookie, f.command, answer),
            Err(e) => match errno(&e) {
                Some(errno) => self.fail(f.cookie, errno, &e.to_string()),
                None => self.end(Some(io::Error::other(e))),
            },
        }
    }

    fn answer(&mut self, cookie: u64, command: Command, answer: Answer) {
        match (command, answer) {
            (Command::Read { offset, len, .. }, Answer::Data(parts)) => {
                if parts.iter().map(Bytes::len).sum::<usize>() != len as usize {
                    return self.fail(cookie, Errno::Io, "volume returned a short read");
                }
                self.out.head(match self.agreed.structured {
                    true if len == 0 => reply::done(cookie),
                    true => reply::data(cookie, offset, len, true),
                    false => reply::simple(cookie, None),
                });
                parts.into_iter().for_each(|p| self.out.data(p));
            }
            (Command::BlockStatus { offset, len, .. }, Answer::Extents(extents)) => {
                let runs = descriptors(offset, len, &extents);
                if runs.is_empty() {
                    return self.fail(cookie, Errno::Io, "volume returned no extents");
                }
                self.out.data(reply::block_status(cookie, &runs));
            }
            _ if self.agreed.structured => self.out.head(reply::done(cookie)),
            _ => self.out.head(reply::simple(cookie, None)),
        }
    }

    /// Send what is ready. True when something went.
    fn send(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while !self.out.is_empty() {
            match self.out.poll_send(cx, self.stream) {
                Poll::Ready(Ok(())) => (moved, self.flushing) = (true, true),
                Poll::Ready(Err(e)) => {
                    self.lost(e);
                    return true;
                }
                Poll::Pending => return moved,
            }
        }
        if self.flushing && !self.deaf {
            match Pin::new(&mut *self.stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.flushing = false,
                Poll::Ready(Err(e)) => {
                    self.lost(e);
                    return true;
                }
                Poll::Pending => {}
            }
        }
        moved
    }

    /// Bring the shared figures up to date.
    fn settle(&mut self) {
        let held = self.held();
        self.server.budget.adjust(self.charged, held);
        self.charged = held;
        self.conn.in_flight.set(self.running.len());
    }

    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if matches!(self.state, State::Serving) || !self.running.is_empty() {
            return false;
        }
        if self.deaf || (self.out.is_empty() && !self.flushing) {
            return true;
        }
        let linger = self.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        linger.as_mut().poll(cx).is_ready()
    }
}

impl<S, R, F> Drop for Session<'_, S, R, F> {
    fn drop(&mut self) {
        self.server.budget.leave(self.conn.id, self.charged);
    }
}

fn judge(h: &RequestHeader, terms: &Terms, slot: bool, room: usize) -> Verdict {
    match validate(h, terms) {
        Err(refused) if room > 0 => Verdict::Refuse(refused),
        Ok(command) if slot && weight(&command) <= room => Verdict::Take(command),
        _ => Verdict::Hold,
    }
}

fn descriptors(offset: u64, len: u32, extents: &[Extent]) -> Vec<Descriptor> {
    // Extents begin where the request does; blocks count from zero. An unaligned request gets what it asked for.
    let block = if offset.is_multiple_of(512) { 512 } else { 1 };
    let flags = |e: &Extent| {
        (if e.hole { wire::state::HOLE } else { 0 }) | (if e.zero { wire::state::ZERO } else { 0 })
    };
    reply::descriptors(extents.iter().map(|e| (e.len, flags(e))), block, len)
}
