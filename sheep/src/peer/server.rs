//! Incoming half of a data link: one connection of one peer.
//!
//! Messages are taken in order; the synchronous part of a write happens before the next message is looked at, so the order of a link is the order of the store.
//! Answers go back as they become ready. What is in flight is bounded in bytes and number: beyond that the socket is simply not read.

use super::frame_io::{FrameError, FrameReader, Incoming, write_frames};
use super::link::LinkStream;
use super::replica::Replica;
use crate::observe::cells::OpStats;
use crate::session::Gateway;
use crate::session::opens::Open;
use crate::session::repeats::Numbered;
use crate::wait::until;
use bytes::Bytes;
use sheepdog_proto::peer::{
    self, Frame, Hello, Kind, MAX_ANSWERED, ReadRequest, Request, Response, Status, WireError, WriteReply,
    WriteRequest,
};
use sheepdog_proto::{ClusterId, NodeId, Version};
use sheepdog_volume::{Once, Seen};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Payload bytes in flight per link.
const MAX_BYTES: usize = 64 << 20;
/// Requests in flight per link.
const MAX_REQUESTS: usize = 4096;
/// How long the peer may take to greet.
const GREETING: Duration = Duration::from_secs(5);

type Answer = (Response, Vec<Bytes>);

/// Changes that one process of a node has forwarded to this one.
#[derive(Default)]
struct Sender {
    incarnation: u64,
    once: Once,
    /// Who waits for the end of one, having sent it again.
    waiting: HashMap<u64, Vec<oneshot::Sender<Answer>>>,
    /// Counts those being carried out.
    running: Rc<()>,
    /// The same of the node's earlier processes.
    earlier: Vec<std::rc::Weak<()>>,
}

/// What other sheep have asked of this one.
#[derive(Default)]
pub struct PeerStats {
    /// Reads of objects.
    pub read: OpStats,
    /// Steps of objects' logs.
    pub write: OpStats,
    /// Everything else: forwarded I/O of clients, inventories, joins.
    pub other: OpStats,
    /// Being worked on.
    pub in_flight: Cell<u64>,
}

/// Counts a request while it is being worked on.
struct InFlight {
    server: Rc<Server>,
    began: Instant,
}

impl InFlight {
    fn new(server: Rc<Server>) -> Self {
        server.stats.in_flight.set(server.stats.in_flight.get() + 1);
        Self { server, began: Instant::now() }
    }
    fn done(self, of: impl Fn(&PeerStats) -> &OpStats, bytes: usize, ok: bool) {
        of(&self.server.stats).finished(bytes as u64, self.began.elapsed(), ok);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let n = &self.server.stats.in_flight;
        n.set(n.get().saturating_sub(1));
    }
}

/// Serves data links.
pub struct Server {
    /// Counters.
    pub stats: PeerStats,
    replica: Rc<Replica>,
    gateway: Rc<Gateway>,
    cluster: ClusterId,
    stop: CancellationToken,
    /// Changes forwarded to this node: one that arrives again after a reconnect is not carried out again.
    senders: RefCell<HashMap<NodeId, Sender>>,
    /// The latest connection of each process.
    latest: RefCell<HashMap<(NodeId, u64), Latest>>,
    ended: Notify,
}

/// Number of a connection, and how to end it.
struct Latest {
    number: u64,
    over: CancellationToken,
}

struct Connection {
    out: RefCell<VecDeque<Frame>>,
    ready: Notify,
    bytes: Cell<usize>,
    requests: Cell<usize>,
    room: Notify,
}

impl Connection {
    fn answer(&self, frame: Frame, bytes: usize) {
        self.out.borrow_mut().push_back(frame);
        self.bytes.set(self.bytes.get() - bytes);
        self.requests.set(self.requests.get() - 1);
        self.ready.notify_one();
        self.room.notify_one();
    }
}

/// Somebody else was meant: this process cannot speak for it.
fn another_process() -> Answer {
    (Response::Failed(Status::Fenced, "another process of this node is there now".into()), Vec::new())
}

fn behind() -> Answer {
    (Response::Failed(Status::NoLease, "behind the control plane".into()), Vec::new())
}

impl Server {
    /// Ready to serve.
    pub fn new(
        replica: Rc<Replica>,
        gateway: Rc<Gateway>,
        cluster: ClusterId,
        stop: CancellationToken,
    ) -> Rc<Self> {
        Rc::new(Self {
            stats: PeerStats::default(),
            replica,
            gateway,
            cluster,
            stop,
            senders: RefCell::default(),
            latest: RefCell::default(),
            ended: Notify::new(),
        })
    }

    /// Serve one connection until it ends.
    pub async fn serve(self: Rc<Self>, stream: impl LinkStream + 'static) {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            r = self.connection(stream) => if let Err(e) = r {
                tracing::debug!(error = %e, "data link from a peer ended");
            }
        }
    }

    async fn connection(self: Rc<Self>, stream: impl LinkStream + 'static) -> Result<(), FrameError> {
        let (read, mut write) = tokio::io::split(stream);
        let mut reader = FrameReader::new(read);
        let first = tokio::time::timeout(GREETING, reader.greeting())
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        let hello: Hello = match first.kind {
            Kind::Hello => peer::decode(&first.meta)?,
            _ => return Err(WireError::Malformed("greeting").into()),
        };
        let me = self.replica.control.me();
        if hello.cluster != self.cluster || hello.to != me {
            return Err(std::io::Error::other(format!(
                "node {} of cluster {} looked for node {}: refused",
                hello.node, hello.cluster, hello.to
            ))
            .into());
        }
        let over = self.listen_to(&hello)?;
        let _ended = over.clone().drop_guard();
        let answer = Hello {
            cluster: self.cluster,
            node: me,
            incarnation: self.replica.control.incarnation(),
            to: NodeId::default(),
            connection: 0,
        };
        write_frames(&mut write, &[Frame::new(Kind::Hello, 0, &peer::encode(&answer), Vec::new())]).await?;
        let conn = Rc::new(Connection {
            out: RefCell::default(),
            ready: Notify::new(),
            bytes: Cell::new(0),
            requests: Cell::new(0),
            room: Notify::new(),
        });
        let reading = async {
            loop {
                while conn.bytes.get() > MAX_BYTES || conn.requests.get() > MAX_REQUESTS {
                    conn.room.notified().await;
                }
                let message = reader.next().await?;
                self.dispatch(&conn, &hello, message).await?;
            }
        };
        let writing = async {
            loop {
                let frames: Vec<Frame> = {
                    let mut out = conn.out.borrow_mut();
                    let n = out.len().min(32);
                    out.drain(..n).collect()
                };
                if frames.is_empty() {
                    conn.ready.notified().await;
                    continue;
                }
                write_frames(&mut write, &frames).await?;
            }
        };
        tokio::select! {
            biased;
            () = over.cancelled() => Ok(()),
            r = reading => r,
            r = writing => r,
        }
    }

    async fn dispatch(
        self: &Rc<Self>,
        conn: &Rc<Connection>,
        hello: &Hello,
        message: Incoming,
    ) -> Result<(), FrameError> {
        let (id, bytes) = (message.request, message.payload.len());
        conn.bytes.set(conn.bytes.get() + bytes);
        conn.requests.set(conn.requests.get() + 1);
        let conn = conn.clone();
        let replica = self.replica.clone();
        let timed = InFlight::new(self.clone());
        match message.kind {
            Kind::Write => {
                let req = WriteRequest::decode(&message.meta, bytes)?;
                if !replica.catch_up(req.control_index).await {
                    let epoch = replica.control.map().epoch;
                    let reply = WriteReply { status: Status::NoLease, version: Version::NONE, epoch };
                    conn.answer(Frame::new(Kind::WriteReply, id, &reply.encode(), Vec::new()), bytes);
                    return Ok(());
                }
                // In order: this call takes the step, the rest only waits for the disk.
                let write = replica.write(&req, message.payload);
                tokio::task::spawn_local(async move {
                    let reply = write.await;
                    replica.sync.served(timed.began.elapsed());
                    timed.done(|s| &s.write, bytes, reply.status == Status::Ok);
                    conn.answer(Frame::new(Kind::WriteReply, id, &reply.encode(), Vec::new()), bytes);
                });
            }
            Kind::Read => {
                let req = ReadRequest::decode(&message.meta)?;
                tokio::task::spawn_local(async move {
                    let (head, data) = match replica.catch_up(req.control_index).await {
                        true => replica.read(&req).await,
                        // It does not know the layers that the reader knows.
                        false => {
                            let epoch = replica.control.map().epoch;
                            let head = sheepdog_proto::peer::ReadReply {
                                status: Status::NoLease,
                                epoch,
                                absent: Vec::new(),
                            };
                            (head, Bytes::new())
                        }
                    };
                    replica.sync.served(timed.began.elapsed());
                    timed.done(|s| &s.read, data.len(), head.status == Status::Ok);
                    let payload = if head.status == Status::Ok { vec![data] } else { Vec::new() };
                    conn.answer(Frame::new(Kind::ReadReply, id, &head.encode(), payload), bytes);
                });
            }
            Kind::Request => {
                let request: Request = peer::decode(&message.meta)?;
                let this = self.clone();
                let from = (hello.node, hello.incarnation);
                tokio::task::spawn_local(async move {
                    let (response, payload) = this.request(from, request, message.payload).await;
                    let refused = matches!(response, Response::Failed(..) | Response::ForwardFailed(_));
                    let moved = bytes + payload.iter().map(Bytes::len).sum::<usize>();
                    timed.done(|s| &s.other, moved, !refused);
                    conn.answer(Frame::new(Kind::Response, id, &peer::encode(&response), payload), bytes);
                });
            }
            Kind::Hello | Kind::WriteReply | Kind::ReadReply | Kind::Response => {
                return Err(WireError::Malformed("request kind").into());
            }
        }
        Ok(())
    }

    /// From now on this connection of a process, and no earlier one: what is still on its way in those, in buffers of a kernel or of a relay, has been sent again on this
    /// one and must not come after what follows.
    fn listen_to(&self, hello: &Hello) -> Result<CancellationToken, FrameError> {
        let mut latest = self.latest.borrow_mut();
        let process = (hello.node, hello.incarnation);
        match latest.get(&process) {
            Some(l) if hello.connection <= l.number => {
                return Err(std::io::Error::other("a later connection is there already").into());
            }
            Some(l) => l.over.cancel(),
            None => {
                // Forgotten: earlier processes whose connection has ended.
                let current = self.replica.control.map().nodes.get(&hello.node).map(|n| n.incarnation);
                let stays = |(node, i): &(NodeId, u64), l: &Latest| {
                    *node != hello.node || !l.over.is_cancelled() || Some(*i) == current
                };
                latest.retain(|process, l| stays(process, l));
            }
        }
        let over = self.stop.child_token();
        latest.insert(process, Latest { number: hello.connection, over: over.clone() });
        Ok(over)
    }

    /// What is known of a sender's changes; a new process of it starts from nothing.
    fn sender<T>(&self, (node, incarnation): (NodeId, u64), f: impl FnOnce(&mut Sender) -> T) -> T {
        let mut senders = self.senders.borrow_mut();
        let sender = senders.entry(node).or_default();
        if sender.incarnation != incarnation {
            let mut earlier = std::mem::take(&mut sender.earlier);
            earlier.push(Rc::downgrade(&sender.running));
            // What the requests hold keeps it alive, not the entry.
            *sender = Sender { incarnation, earlier, ..Sender::default() };
        }
        f(sender)
    }

    /// Changes that earlier processes of a node forwarded must not come after a client has opened the VDI again there (rule 6).
    async fn earlier_ended(&self, from: (NodeId, u64)) {
        let ended = || {
            self.sender(from, |s| {
                s.earlier.retain(|e| e.strong_count() > 0);
                s.earlier.is_empty().then_some(())
            })
        };
        until(&self.ended, ended).await;
    }

    async fn request(self: &Rc<Self>, from: (NodeId, u64), request: Request, payload: Bytes) -> Answer {
        match request {
            Request::Forward { vdi, open, since, attachment: by, seq: 0, floor, io } => {
                self.gateway.heard(vdi, from, floor);
                if io == peer::Forward::Attach {
                    self.earlier_ended(from).await;
                }
                let number = Numbered { from, seq: 0 };
                self.gateway.serve_forward(number, vdi, Open { id: open, since, by }, io, payload).await
            }
            Request::Answered { incarnation, seqs } => {
                if seqs.len() > MAX_ANSWERED {
                    let why = format!("{} numbers, at most {MAX_ANSWERED} are answered", seqs.len());
                    return (Response::Failed(Status::Invalid, why), Vec::new());
                }
                if incarnation != self.replica.control.incarnation() {
                    return another_process();
                }
                self.gateway.answered(from.0, &seqs).await;
                (Response::Done, Vec::new())
            }
            Request::Repeated { vdi, incarnation, generation, control_index } => {
                if incarnation != self.replica.control.incarnation() {
                    return another_process();
                }
                // From then on nothing is sent to an earlier owner.
                if !self.replica.catch_up(control_index).await {
                    return behind();
                }
                self.gateway.has_repeated(vdi, generation).await;
                (Response::Done, Vec::new())
            }
            Request::Settled { vdi, incarnation } => {
                if incarnation != self.replica.control.incarnation() {
                    // What that process has sent may still be under way at the owner.
                    return another_process();
                }
                self.gateway.settled(vdi).await;
                (Response::Done, Vec::new())
            }
            Request::Enforced { vdi, incarnation, control_index } => {
                if incarnation != self.replica.control.incarnation() {
                    return another_process();
                }
                if !self.replica.catch_up(control_index).await {
                    return behind();
                }
                self.gateway.enforced_here(vdi).await;
                (Response::Done, Vec::new())
            }
            Request::Forward { vdi, open, since, attachment: by, seq, floor, io } => {
                let open = Open { id: open, since, by };
                let refused = || (Response::ForwardFailed(peer::ForwardError::NotOwner), Vec::new());
                let (node, incarnation) = from;
                let map = self.replica.control.map();
                // Only the process that the map knows: what an earlier one has sent is over.
                if map.nodes.get(&node).is_none_or(|n| n.incarnation != incarnation) {
                    return refused();
                }
                self.gateway.heard(vdi, from, floor);
                let (seen, waiting, running) = self.sender(from, |s| {
                    let seen = s.once.see(seq, floor);
                    let (tx, rx) = oneshot::channel();
                    if seen == Seen::Running {
                        s.waiting.entry(seq).or_default().push(tx);
                    }
                    (seen, rx, s.running.clone())
                });
                match seen {
                    Seen::Done => return (Response::Forwarded, Vec::new()),
                    Seen::Over => return refused(),
                    Seen::Running => return waiting.await.unwrap_or_else(|_| refused()),
                    Seen::New => {}
                }
                let answer = self.gateway.serve_forward(Numbered { from, seq }, vdi, open, io, payload).await;
                let waiting = {
                    let mut senders = self.senders.borrow_mut();
                    senders.get_mut(&node).filter(|s| s.incarnation == incarnation).and_then(|s| {
                        s.once.ended(seq, matches!(answer.0, Response::Forwarded));
                        s.waiting.remove(&seq)
                    })
                };
                drop(running);
                self.ended.notify_waiters();
                for waiter in waiting.unwrap_or_default() {
                    let _ = waiter.send(answer.clone());
                }
                answer
            }
            Request::Join { vdi, oid, family } => {
                let response = match self.gateway.session(vdi) {
                    None => Response::Failed(Status::NotHere, "no serving session here".into()),
                    Some(session) => match session.join(oid, family, from.0).await {
                        Ok(()) => Response::Done,
                        Err(why) => Response::Failed(Status::NotHere, why),
                    },
                };
                (response, Vec::new())
            }
            Request::PutStrip { .. } => self.replica.handle_strips(request, payload).await,
            other => self.replica.handle(other).await,
        }
    }
}
