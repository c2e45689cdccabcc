//! What the three services share: finding things, proposing, holding VDIs at their owners, streams.
//!
//! `Admin` is one per process. Streams run in tasks of its tracker; they end when the caller goes away or the server stops.

use super::backend::{AdminBackend, DataPlane, Image};
use super::convert::{accept, command_error};
use super::peers::Peers;
use crate::control::Control;
use sheepdog_client::client::FORWARDED_KEY;
use sheepdog_client::pb::{HoldRequest, VdiRef, vdi_ref};
use sheepdog_client::{Error, ErrorKind};
use sheepdog_cluster::{Command, CommandError, Node, NodeState, Reply, Session, Vdi};
use sheepdog_proto::{ControlIndex, Generation, LayerId, NodeId, VdiId};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Response, Status};

/// A stream of answers.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Messages of a stream made before the caller has taken them.
const STREAM_DEPTH: usize = 16;
/// Streams at a time.
const MAX_STREAMS: usize = 256;
/// A hold ends by itself after this long.
const HOLD: Duration = Duration::from_secs(10);
/// Times a change is tried again because the session moved.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Admin {
    pub(super) backend: Arc<dyn AdminBackend>,
    pub(super) peers: Peers,
    pub(super) stop: CancellationToken,
    pub(super) tracker: TaskTracker,
    streams: Arc<Semaphore>,
}

pub(super) fn missing(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Missing, text)
}

pub(super) fn usage(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, text)
}

/// Was this request passed on by another sheep?
pub(super) fn is_forwarded<T>(request: &tonic::Request<T>) -> bool {
    request.metadata().contains_key(FORWARDED_KEY)
}

/// Where a stream's messages go.
pub(super) struct Sink<T>(mpsc::Sender<Result<T, Status>>);

impl<T> Sink<T> {
    /// False: nobody listens any more.
    pub(super) async fn send(&self, message: T) -> bool {
        self.0.send(Ok(message)).await.is_ok()
    }
}

impl Admin {
    pub(super) fn new(backend: Arc<dyn AdminBackend>, stop: CancellationToken, tracker: TaskTracker) -> Self {
        let peers = Peers::new(backend.client_tls());
        Self { backend, peers, stop, tracker, streams: Arc::new(Semaphore::new(MAX_STREAMS)) }
    }
    pub(super) fn control(&self) -> &Control {
        self.backend.control()
    }
    pub(super) fn data(&self) -> &Arc<dyn DataPlane> {
        self.backend.data()
    }
    pub(super) fn me(&self) -> NodeId {
        self.control().me()
    }

    /// Propose; a refusal is an error.
    pub(super) async fn propose(&self, command: Command) -> Result<Reply, Error> {
        accept(self.control().propose(command).await)
    }

    /// Look at a VDI. Before format the error says so.
    pub(super) fn with_vdi<R>(
        &self,
        which: &Option<VdiRef>,
        f: impl FnOnce(&sheepdog_cluster::ClusterState, &Vdi) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let by = which.as_ref().and_then(|r| r.by.as_ref()).ok_or_else(|| usage("no VDI was named"))?;
        self.control().read(|s| {
            if s.format.is_none() {
                return Err(command_error(&CommandError::NotFormatted));
            }
            let found = match by {
                vdi_ref::By::Name(name) => s.names.get(name).and_then(|id| s.vdis.get(id)),
                vdi_ref::By::Id(id) => s.vdis.get(&VdiId(*id)),
                vdi_ref::By::Uuid(text) => {
                    let uuid = uuid::Uuid::parse_str(text)
                        .map_err(|_| usage(format!("\"{text}\" is not a uuid")))?;
                    s.vdis.values().find(|v| v.uuid == uuid.as_u128() && v.is_listed())
                }
            };
            let v = found.filter(|v| v.is_listed()).ok_or_else(|| match by {
                vdi_ref::By::Name(name) if super::trash::holds(s, name) => missing(format!(
                    "there is no VDI named {name}, but one in the trash: `dog trash restore {name}` brings it back"
                )),
                vdi_ref::By::Id(id) if s.vdis.contains_key(&VdiId(*id)) => {
                    missing(format!("VDI {id:06x} is in the trash: `dog trash restore {id:06x}` brings it back"))
                }
                vdi_ref::By::Name(name) => {
                    missing(format!("there is no VDI named {name}: see `dog vdi list`"))
                }
                vdi_ref::By::Id(id) => missing(format!("there is no VDI with id {:06x}", id)),
                vdi_ref::By::Uuid(uuid) => missing(format!("there is no VDI with uuid {uuid}")),
            })?;
            f(s, v)
        })
    }

    pub(super) fn vdi_id(&self, which: &Option<VdiRef>) -> Result<VdiId, Error> {
        self.with_vdi(which, |_, v| Ok(v.id))
    }

    /// The image that a VDI and a snapshot's number or tag (or nothing) mean, and its size.
    pub(super) fn image(&self, which: &Option<VdiRef>, snapshot: &str) -> Result<(Image, u64), Error> {
        self.with_vdi(which, |_, v| {
            if snapshot.is_empty() {
                if v.working().is_none() {
                    return Err(missing(format!("VDI {} has only snapshots left: name one of them", v.name)));
                }
                return Ok((Image { vdi: v.id, layer: None }, v.size));
            }
            let s = find_snapshot(v, snapshot)?;
            Ok((Image { vdi: v.id, layer: Some(s.layer) }, s.size))
        })
    }

    /// Newest layer of an image.
    pub(super) fn top_layer(&self, image: Image) -> Result<LayerId, Error> {
        match image.layer {
            Some(layer) => Ok(layer),
            None => self
                .control()
                .read(|s| s.vdis.get(&image.vdi).and_then(|v| v.top))
                .ok_or_else(|| missing("the VDI was deleted")),
        }
    }

    /// The node that is meant by an id, its first digits, or `host:port`; empty: this one.
    pub(super) fn find_node(&self, which: &str) -> Result<Node, Error> {
        let me = self.me();
        self.control().read(|s| {
            if s.format.is_none() {
                return Err(command_error(&CommandError::NotFormatted));
            }
            if which.is_empty() {
                return s.nodes.get(&me).cloned().ok_or_else(|| missing("this sheep is not a member yet"));
            }
            let wanted = which.to_ascii_lowercase();
            let named = |n: &&Node| {
                let addr = format!("{}:{}", n.addr.host, n.addr.client_port);
                n.id.to_string().starts_with(&wanted)
                    || n.id.to_string().replace('-', "").starts_with(&wanted)
                    || addr == which
            };
            let mut found = s.nodes.values().filter(named);
            match (found.next(), found.next()) {
                (Some(n), None) => Ok(n.clone()),
                (None, _) => Err(missing(format!("there is no node {which}: see `dog node list`"))),
                (Some(a), Some(b)) => Err(usage(format!(
                    "{which} could be {} or {}: give more digits of its id",
                    a.id.short(),
                    b.id.short()
                ))),
            }
        })
    }

    /// Nodes worth asking: up, or those named.
    pub(super) fn nodes_to_ask(&self, named: &[String]) -> Result<Vec<Node>, Error> {
        if named.is_empty() {
            return Ok(self
                .control()
                .read(|s| s.nodes.values().filter(|n| n.state != NodeState::Out).cloned().collect()));
        }
        named.iter().map(|n| self.find_node(n)).collect()
    }

    /// The other nodes that are up.
    pub(super) fn others_up(&self) -> Vec<Node> {
        let me = self.me();
        self.control().read(|s| s.nodes.values().filter(|n| n.id != me && n.is_up()).cloned().collect())
    }

    /// Who owns the session of a VDI.
    pub(super) fn owner(&self, vdi: VdiId) -> Option<Node> {
        self.control().read(|s| match s.vdis.get(&vdi)?.session {
            Session::Open { owner, .. } => s.nodes.get(&owner).cloned(),
            _ => None,
        })
    }

    /// Run a change again while sessions move under it.
    pub(super) async fn settle<T, F: Future<Output = Result<T, Error>>>(
        &self,
        mut change: impl FnMut() -> F,
    ) -> Result<T, Error> {
        let mut left = TRIES;
        loop {
            match change().await {
                Err(e) if e.kind == ErrorKind::Moved && left > 0 => left -= 1,
                other => return other,
            }
            tokio::select! {
                () = self.stop.cancelled() => return Err(Error::new(ErrorKind::Cluster, "shutting down")),
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Hold VDIs at their owners, run `change` with the sessions' generations, let them go.
    pub(super) async fn held<T, F: Future<Output = Result<T, Error>>>(
        &self,
        vdis: Vec<VdiId>,
        change: impl FnOnce(BTreeMap<VdiId, Option<Generation>>) -> F,
    ) -> Result<T, Error> {
        // In ascending order everywhere, so that two group snapshots cannot wait for each other.
        let mut sorted = vdis;
        sorted.sort_unstable();
        sorted.dedup();
        let mut held = Vec::new();
        let mut generations = BTreeMap::new();
        let mut failed = None;
        for vdi in sorted {
            let owner = self.owner(vdi).filter(|n| n.id != self.me());
            match self.hold_one(vdi, owner.as_ref()).await {
                Ok(generation) => {
                    generations.insert(vdi, generation);
                    held.push((vdi, owner));
                }
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        let result = match failed {
            Some(e) => Err(e),
            None => change(generations).await,
        };
        // Without an answer it may still be carried out.
        let certain = result.as_ref().err().is_none_or(|e| e.kind != ErrorKind::Cluster);
        let known = certain.then(|| self.control().applied().index);
        for (vdi, owner) in held.into_iter().rev() {
            self.let_go(vdi, owner.as_ref(), known).await;
        }
        result
    }

    async fn hold_one(&self, vdi: VdiId, owner: Option<&Node>) -> Result<Option<Generation>, Error> {
        let Some(owner) = owner else {
            return Ok(self.data().hold(vdi, HOLD).await?);
        };
        let request =
            HoldRequest { vdis: vec![vdi.0], hold: true, timeout_ms: HOLD.as_millis() as u32, known: None };
        let reply = self.peers.to(owner)?.hold(request).await.map_err(|e| match e.kind {
            // It died or is dying: the session will be someone else's.
            ErrorKind::Unreachable => Error::new(ErrorKind::Moved, e.message),
            _ => e,
        })?;
        Ok(reply.held.first().and_then(|h| h.generation).map(Generation))
    }

    async fn let_go(&self, vdi: VdiId, owner: Option<&Node>, known: Option<ControlIndex>) {
        let Some(owner) = owner else { return self.data().let_go(vdi, known).await };
        let request =
            HoldRequest { vdis: vec![vdi.0], hold: false, timeout_ms: 0, known: known.map(|i| i.0) };
        let told = match self.peers.to(owner) {
            Ok(client) => client.hold(request).await.map(|_| ()),
            Err(e) => Err(e),
        };
        if let Err(error) = told {
            tracing::warn!(vdi = %vdi.hex(), %error, "a held VDI was not let go: its owner does so after its timeout");
        }
    }

    /// Make sure that nobody uses a VDI and no session is open; or the sheep that owns it, to be asked instead.
    pub(super) async fn release(&self, vdi: VdiId) -> Result<Option<sheepdog_client::Client>, Error> {
        match self.owner(vdi) {
            None => Ok(None),
            Some(n) if n.id == self.me() => {
                self.data().release(vdi).await?;
                Ok(None)
            }
            Some(n) => Ok(Some(self.peers.to(&n)?)),
        }
    }

    /// Answer with a stream that `run` fills. An error of `run` ends the stream.
    pub(super) fn stream<T, F>(
        self: &Arc<Self>,
        run: impl FnOnce(Arc<Self>, Sink<T>) -> F,
    ) -> Result<Response<Answers<T>>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let permit = self.streams.clone().try_acquire_owned().map_err(|_| {
            Error::new(
                ErrorKind::Busy,
                format!("{MAX_STREAMS} long requests are running on this sheep: ask another one"),
            )
        })?;
        let (tx, rx) = mpsc::channel(STREAM_DEPTH);
        let work = run(self.clone(), Sink(tx.clone()));
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            let _permit = permit;
            let done = tokio::select! {
                r = work => r,
                () = tx.closed() => return,
                () = stop.cancelled() => Err(Error::new(ErrorKind::Cluster, "this sheep is shutting down")),
            };
            if let Err(e) = done {
                let _ = tx.send(Err(e.into())).await;
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(rx))))
    }

    /// Send a report every `interval_ms`, or once when that is 0.
    pub(super) async fn repeat<T, F>(
        &self,
        interval_ms: u32,
        sink: &Sink<T>,
        mut report: impl FnMut() -> F,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<(T, bool), Error>>,
    {
        loop {
            let (message, last) = report().await?;
            if !sink.send(message).await || last || interval_ms == 0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(interval_ms.max(100).into())).await;
        }
    }
}

/// A snapshot by tag, or by number.
pub(super) fn find_snapshot<'a>(v: &'a Vdi, which: &str) -> Result<&'a sheepdog_cluster::Snapshot, Error> {
    let by_tag = v.shown().find(|s| s.tag == which);
    let by_id = || v.shown().find(|s| which.parse() == Ok(s.id));
    by_tag.or_else(by_id).ok_or_else(|| {
        missing(format!("VDI {} has no snapshot {which}: see `dog vdi list {}`", v.name, v.name))
    })
}
