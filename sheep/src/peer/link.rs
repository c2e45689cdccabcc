//! Outgoing half of a data link: calls to one peer, in order, across reconnects.
//!
//! A request stays in `pending` until it is answered. When the connection breaks it is sent again on the next one, in the
//! original order; the other side carries out a forwarded change once, and everything else may be carried out again. Only the committed map ends the waiting: when it says that the peer is down or out, every pending call fails with
//! `LinkError::Down`. So a restart of the peer, or a cut cable, is a pause and not an error.
//!
//! One task per peer (owned by `Links`) connects on demand, writes, reads and reconnects. When the direct way is closed, `dial` finds one through a third sheep; the
//! direct one is taken again as soon as it is open. Connections of one process are numbered, and the peer listens to the latest only: what is still on its way in an
//! older one comes to nothing.

use super::dial::{Dialed, dial, straight};
use super::frame_io::{FrameError, FrameReader, Incoming, write_frames};
use crate::control::Control;
use crate::transport::around;
use crate::volume::LocalFut;
use bytes::Bytes;
use sheepdog_cluster::NodeAddr;
use sheepdog_proto::peer::{self, Frame, Hello, Kind, Request, Response};
use sheepdog_proto::{ClusterId, NodeId};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

/// How long greeting may take.
const GREET_TIMEOUT: Duration = Duration::from_secs(3);
/// First and largest pause between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(300));
/// How often it is looked whether an answer still matters.
const LOOK: Duration = Duration::from_secs(1);
/// Frames handed to one vectored write.
const BATCH: usize = 32;

/// A connected byte stream of the data thread.
pub trait LinkStream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> LinkStream for T {}

/// Makes streams to peers: TCP with or without TLS, or the simulator's network.
pub trait Connector {
    /// Connect to a peer's data port, by way of another node's peer port if one is given. Does not greet.
    fn connect<'a>(
        &'a self,
        node: NodeId,
        addr: &'a NodeAddr,
        via: Option<(NodeId, &'a NodeAddr)>,
    ) -> LocalFut<'a, std::io::Result<Box<dyn LinkStream>>>;
}

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The committed map says the peer is not up.
    #[error("peer is down")]
    Down,
    /// This daemon is stopping.
    #[error("shutting down")]
    ShuttingDown,
    /// The peer answered nonsense.
    #[error("peer broke the protocol")]
    Protocol,
}

struct Pending {
    frame: Frame,
    reply: oneshot::Sender<Result<Incoming, LinkError>>,
}

#[derive(Default)]
struct State {
    next: u64,
    unsent: VecDeque<u64>,
    pending: BTreeMap<u64, Pending>,
    connected: bool,
    through: Option<NodeId>,
    /// Number of the latest connection.
    connection: u64,
}

struct Inner {
    to: NodeId,
    state: RefCell<State>,
    work: Notify,
}

/// Calls to one peer.
#[derive(Clone)]
pub struct Link {
    inner: Rc<Inner>,
}

impl Link {
    /// Send; the future resolves with the reply. The request goes on even if the future is dropped.
    pub fn call(
        &self,
        kind: Kind,
        meta: &[u8],
        payload: Vec<Bytes>,
    ) -> impl Future<Output = Result<Incoming, LinkError>> + use<> {
        let (tx, rx) = oneshot::channel();
        {
            let mut s = self.inner.state.borrow_mut();
            s.next += 1;
            let id = s.next;
            let frame = Frame::new(kind, id, meta, payload);
            s.unsent.push_back(id);
            s.pending.insert(id, Pending { frame, reply: tx });
        }
        self.inner.work.notify_one();
        async move { rx.await.unwrap_or(Err(LinkError::ShuttingDown)) }
    }

    /// A cold request and its decoded answer with payload.
    pub async fn request(
        &self,
        request: &Request,
        payload: Vec<Bytes>,
    ) -> Result<(Response, Bytes), LinkError> {
        let reply = self.call(Kind::Request, &peer::encode(request), payload).await?;
        if reply.kind != Kind::Response {
            return Err(LinkError::Protocol);
        }
        Ok((peer::decode(&reply.meta).map_err(|_| LinkError::Protocol)?, reply.payload))
    }

    /// The same for an answer that may be long in coming, as long as it matters: that is looked at now and then. Asked once, because what is not answered stays here and
    /// with the peer, which takes only so much at a time. `None`: it does not matter any more, or there was none.
    pub async fn request_while(&self, request: &Request, matters: impl Fn() -> bool) -> Option<Response> {
        let answer = self.request(request, Vec::new());
        tokio::pin!(answer);
        loop {
            match tokio::time::timeout(LOOK, &mut answer).await {
                Ok(answer) => return answer.ok().map(|(response, _)| response),
                Err(_) if matters() => {}
                Err(_) => return None,
            }
        }
    }

    /// Requests waiting for an answer.
    pub fn depth(&self) -> usize {
        self.inner.state.borrow().pending.len()
    }
}

/// One link, for metrics.
#[derive(Debug, Clone, Copy)]
pub struct LinkRow {
    /// Peer.
    pub to: NodeId,
    /// Requests waiting for an answer.
    pub depth: u64,
    /// There is a connection.
    pub connected: bool,
    /// It goes through this sheep.
    pub through: Option<NodeId>,
}

/// All outgoing links of this daemon.
pub struct Links {
    control: Control,
    cluster: ClusterId,
    connector: Rc<dyn Connector>,
    links: RefCell<BTreeMap<NodeId, Link>>,
    stop: CancellationToken,
}

impl Links {
    /// No connection is made before the first call.
    pub fn new(
        control: Control,
        cluster: ClusterId,
        connector: Rc<dyn Connector>,
        stop: CancellationToken,
    ) -> Self {
        Self { control, cluster, connector, links: RefCell::default(), stop }
    }

    /// Every link that was ever used.
    pub fn rows(&self) -> Vec<LinkRow> {
        let row = |(to, link): (&NodeId, &Link)| {
            let s = link.inner.state.borrow();
            LinkRow { to: *to, depth: s.pending.len() as u64, connected: s.connected, through: s.through }
        };
        self.links.borrow().iter().map(row).collect()
    }

    /// The link to a peer.
    pub fn to(&self, node: NodeId) -> Link {
        self.links
            .borrow_mut()
            .entry(node)
            .or_insert_with(|| {
                let link = Link {
                    inner: Rc::new(Inner { to: node, state: RefCell::default(), work: Notify::new() }),
                };
                let run = Runner {
                    link: link.inner.clone(),
                    control: self.control.clone(),
                    cluster: self.cluster,
                    connector: self.connector.clone(),
                    stop: self.stop.clone(),
                };
                tokio::task::spawn_local(run.run());
                link
            })
            .clone()
    }
}

struct Runner {
    link: Rc<Inner>,
    control: Control,
    cluster: ClusterId,
    connector: Rc<dyn Connector>,
    stop: CancellationToken,
}

enum Ended {
    Stop,
    Down,
    Broken,
    /// The direct way is open again.
    Direct,
}

impl Runner {
    async fn run(self) {
        let stop = self.stop.clone();
        let mut backoff = BACKOFF.0;
        loop {
            if stop.is_cancelled() {
                break;
            }
            if self.link.state.borrow().pending.is_empty() {
                tokio::select! { biased; () = stop.cancelled() => break, () = self.link.work.notified() => {} }
                continue;
            }
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => Ended::Stop,
                () = self.until_down(self.link.to) => Ended::Down,
                r = self.connection() => match r {
                    Ok(()) => Ended::Direct,
                    Err(e) => { tracing::debug!(peer = %self.link.to.short(), error = %e, "data link"); Ended::Broken }
                },
            };
            let was_connected = {
                let mut s = self.link.state.borrow_mut();
                s.through = None;
                std::mem::take(&mut s.connected)
            };
            match ended {
                Ended::Stop => break,
                Ended::Down => self.fail_all(LinkError::Down),
                Ended::Direct => backoff = BACKOFF.0,
                Ended::Broken => {
                    self.control.suspect(self.link.to);
                    if was_connected {
                        backoff = BACKOFF.0;
                    }
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => break,
                        () = self.until_down(self.link.to) => self.fail_all(LinkError::Down),
                        () = tokio::time::sleep(backoff) => {}
                    }
                    backoff = (backoff * 2).min(BACKOFF.1);
                }
            }
        }
        self.fail_all(LinkError::ShuttingDown);
    }

    fn fail_all(&self, error: LinkError) {
        let pending = {
            let mut s = self.link.state.borrow_mut();
            s.unsent.clear();
            std::mem::take(&mut s.pending)
        };
        for p in pending.into_values() {
            let _ = p.reply.send(Err(error));
        }
    }

    async fn until_down(&self, node: NodeId) {
        let mut watch = self.control.watch();
        loop {
            watch.borrow_and_update();
            if !self.control.map().nodes.get(&node).is_some_and(|n| n.is_up()) {
                return;
            }
            if watch.changed().await.is_err() {
                return;
            }
        }
    }

    async fn connection(&self) -> Result<(), FrameError> {
        let addr = self.control.map().nodes.get(&self.link.to).map(|n| n.addr.clone());
        let Some(addr) = addr else {
            return Err(std::io::Error::new(std::io::ErrorKind::NotFound, "not in the map").into());
        };
        let number = {
            let mut s = self.link.state.borrow_mut();
            s.connection += 1;
            s.connection
        };
        let Dialed { mut stream, through } =
            dial(self.connector.as_ref(), &self.control, (self.link.to, &addr), number as usize).await?;
        let greet = async {
            let hello = Hello {
                cluster: self.cluster,
                node: self.control.me(),
                incarnation: self.control.incarnation(),
                to: self.link.to,
                connection: number,
            };
            let frame = Frame::new(Kind::Hello, 0, &peer::encode(&hello), Vec::new());
            write_frames(&mut stream, &[frame]).await?;
            let (read, write) = tokio::io::split(stream);
            let mut reader = FrameReader::new(read);
            let answer = reader.next().await?;
            let answer: Hello = match answer.kind {
                Kind::Hello => peer::decode(&answer.meta)?,
                _ => return Err(FrameError::Wire(sheepdog_proto::peer::WireError::Malformed("greeting"))),
            };
            if answer.node != self.link.to || answer.cluster != self.cluster {
                return Err(FrameError::Io(std::io::Error::other(format!(
                    "{}:{} is node {} now, not {}",
                    addr.host, addr.peer_port, answer.node, self.link.to
                ))));
            }
            Ok((reader, write))
        };
        let (mut reader, mut writer) = tokio::time::timeout(GREET_TIMEOUT, greet)
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        {
            let mut s = self.link.state.borrow_mut();
            s.connected = true;
            s.through = through;
            // Everything unanswered goes again, oldest first.
            let all: VecDeque<u64> = s.pending.keys().copied().collect();
            s.unsent = all;
        }
        let write = async {
            loop {
                let batch = self.next_batch();
                if batch.is_empty() {
                    self.link.work.notified().await;
                    continue;
                }
                write_frames(&mut writer, &batch).await?;
            }
        };
        let read = async {
            loop {
                let message = reader.next().await?;
                let pending = self.link.state.borrow_mut().pending.remove(&message.request);
                if let Some(p) = pending {
                    let _ = p.reply.send(Ok(message));
                }
            }
        };
        tokio::select! {
            biased;
            r = read => r,
            r = write => r,
            () = self.direct_again(&addr), if through.is_some() => Ok(()),
            // One that stands still holds on to what it should pass on, and its sockets stay open.
            () = self.until_down(through.unwrap_or_default()), if through.is_some() => {
                Err(std::io::Error::other("the sheep in between is down").into())
            }
        }
    }

    /// Completes when the direct way is open.
    async fn direct_again(&self, addr: &NodeAddr) {
        loop {
            tokio::time::sleep(around::LOOK_AGAIN).await;
            if straight(self.connector.as_ref(), self.link.to, addr).await.is_ok() {
                tracing::info!(to = %self.link.to.short(), "the direct connection is open again");
                return;
            }
        }
    }

    fn next_batch(&self) -> Vec<Frame> {
        let mut s = self.link.state.borrow_mut();
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            let Some(id) = s.unsent.pop_front() else { break };
            if let Some(p) = s.pending.get(&id) {
                batch.push(p.frame.clone());
            }
        }
        batch
    }
}
