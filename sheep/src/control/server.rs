//! Control links that others opened: hello, then requests, each answered in its own task.
//!
//! At most `IN_FLIGHT` requests of one link are worked on; then reading stops. At most `MAX_LINKS` are open, `MAX_LINKS_OF_ONE` of one node. A link ends with its connection or with the control plane.

use super::core::{Core, Incoming, Outgoing};
use super::link::write_frames;
use super::raft_types::Snapshot;
use super::rpc::{
    self, Hello, Kind, MAX_HELLO, MAX_SNAPSHOT, PART, Request, Response, SnapshotPart, WatchReply, Welcome,
};
use crate::transport::{SETUP_TIMEOUT, Stream};
use openraft::EntryPayload;
use sheepdog_proto::checksum::crc32c;
use sheepdog_proto::{ControlIndex, NodeId};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, mpsc};

const IN_FLIGHT: usize = 256;
/// Links open at a time: every node of the largest cluster (6,144) has one to the leader, and some open another to probe.
const MAX_LINKS: usize = 8_192;
/// Links of one node: one that is kept, and beside it some that probe, ask as seeds are asked, or belong to a process that has died.
const MAX_LINKS_OF_ONE: usize = 32;
/// Between two lines in the log about links that were refused.
const TELL: Duration = Duration::from_secs(10);
/// Snapshots being received at a time: one leader's, and perhaps its predecessor's.
const MAX_INCOMING: usize = 2;
/// An idle watcher is answered with nothing after this long, so that a dead one is noticed.
/// A watcher whose voter stands still has to notice, and ask another one, well before that voter is declared down.
const WATCH_HOLD: Duration = Duration::from_secs(1);
/// Bytes of entries per answer to a watcher.
const WATCH_BYTES: usize = 1 << 20;
/// A state made for watchers is kept this long for the next one.
const OUTGOING_KEEP: Duration = Duration::from_secs(30);

/// The links that are open now, and from whom.
#[derive(Default)]
struct Open {
    count: Mutex<(usize, BTreeMap<NodeId, usize>)>,
    told: Mutex<Option<Instant>>,
}

/// A link among them; `node` once it has said hello.
struct Place {
    open: Arc<Open>,
    node: Option<NodeId>,
}

impl Open {
    fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut count = self.count.lock().expect("no panic under this lock");
        if count.0 >= MAX_LINKS {
            return None;
        }
        count.0 += 1;
        Some(Place { open: self.clone(), node: None })
    }
    /// Say that somebody was turned away, now and then.
    fn tell(&self, what: &str) {
        let mut told = self.told.lock().expect("no panic under this lock");
        if told.is_none_or(|at| at.elapsed() >= TELL) {
            *told = Some(Instant::now());
            tracing::warn!("a control link was refused: {what} (said at most every {TELL:?})");
        }
    }
}

impl Place {
    /// It is this node's. False: it has too many.
    fn of(&mut self, node: NodeId) -> bool {
        let mut count = self.open.count.lock().expect("no panic under this lock");
        let links = count.1.entry(node).or_default();
        if *links >= MAX_LINKS_OF_ONE {
            return false;
        }
        *links += 1;
        self.node = Some(node);
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut count = self.open.count.lock().expect("no panic under this lock");
        count.0 -= 1;
        if let Some(node) = self.node
            && let Some(links) = count.1.get_mut(&node)
        {
            *links -= 1;
            if *links == 0 {
                count.1.remove(&node);
            }
        }
    }
}

/// Take control links until the plane stops.
pub(super) async fn accept(core: Arc<Core>, mut links: mpsc::Receiver<Stream>) {
    let open = Arc::new(Open::default());
    loop {
        let stream = tokio::select! {
            () = core.stop.cancelled() => return,
            s = links.recv() => match s {
                Some(s) => s,
                None => return,
            },
        };
        let c = core.clone();
        // Whoever is turned away finds the connection closed, and tries again later.
        let Some(place) = open.enter() else {
            open.tell(&format!("{MAX_LINKS} are open, the most there may be"));
            continue;
        };
        core.tracker.spawn(async move {
            let peer = stream.peer_addr().ok();
            if let Err(error) = serve(&c, stream, place).await {
                tracing::debug!(?peer, %error, "control link ended");
            }
        });
    }
}

async fn serve(core: &Arc<Core>, stream: Stream, mut place: Place) -> io::Result<()> {
    let (r, mut w) = tokio::io::split(stream);
    let mut r = BufReader::new(r);
    let hello = tokio::time::timeout(SETUP_TIMEOUT, first(&mut r)).await.map_err(io::Error::other)??;
    let Some((id, hello)) = hello else { return Ok(()) };
    let welcome = match place.of(hello.me.node) {
        true => welcome(core, &hello),
        false => {
            let node = hello.me.node.short();
            let text = format!("node {node} has {MAX_LINKS_OF_ONE} control links here already");
            place.open.tell(&text);
            Welcome::Refused(text)
        }
    };
    let go = matches!(welcome, Welcome::Ok { .. });
    w.write_all(&rpc::encode(Kind::Response, id, &Response::Welcome(welcome))?).await?;
    w.flush().await?;
    if !go {
        return w.shutdown().await;
    }
    core.peers.pool.book.hear(&hello.me);
    if hello.cluster.is_none() {
        core.note_waiting(&hello.me, hello.remembers);
    }
    let (tx, mut rx) = mpsc::channel(64);
    let used = AtomicBool::new(false);
    let result = tokio::select! {
        () = core.stop.cancelled() => return Ok(()),
        () = core.peers.pool.cut() => Ok(()),
        r = read_requests(core, &mut r, &hello, tx, &used) => r,
        r = write_frames(&mut w, &mut rx) => r,
    };
    // A member's link broke: its process may be dead. A full queue means that suspicions are being looked at already. A link that asked
    // nothing was a probe and is meant to end; suspecting its sender would be answered by a probe of ours, and so on for ever.
    if hello.cluster.is_some() && used.load(Ordering::Relaxed) {
        let _ = core.suspects.try_send(hello.me.node);
    }
    result
}

async fn first<R: AsyncRead + Unpin>(r: &mut R) -> io::Result<Option<(u64, Hello)>> {
    let Some((kind, id, body)) = rpc::read_frame_within(r, MAX_HELLO).await? else { return Ok(None) };
    match rpc::parse(&body)? {
        Request::Hello(h) if kind == Kind::Request => Ok(Some((id, h))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a control link must begin with a hello")),
    }
}

fn welcome(core: &Core, hello: &Hello) -> Welcome {
    let cluster = core.cluster();
    if let (Some(theirs), Some(ours)) = (hello.cluster, cluster)
        && theirs != ours
    {
        let text = format!(
            "node {} belongs to cluster {theirs}, this sheep to cluster {ours}: check --seed, or empty the directory of the \
             sheep that is in the wrong place",
            hello.me.node.short()
        );
        tracing::warn!("{text}");
        return Welcome::Refused(text);
    }
    if hello.me.node == core.me && hello.me.incarnation != core.incarnation {
        return Welcome::Refused(format!(
            "node {} is already running at {}: a directory must not be used by two sheep",
            core.me.short(),
            core.peers.me.addr.host
        ));
    }
    match hello.to {
        Some(to) if to != core.me => Welcome::WrongNode(core.peers.me.clone()),
        _ => Welcome::Ok { me: core.peers.me.clone(), cluster },
    }
}

async fn read_requests<R: AsyncRead + Unpin>(
    core: &Arc<Core>,
    r: &mut R,
    hello: &Hello,
    tx: mpsc::Sender<Vec<u8>>,
    used: &AtomicBool,
) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(IN_FLIGHT));
    while let Some((kind, id, body)) = rpc::read_frame(r).await? {
        used.store(true, Ordering::Relaxed);
        if kind != Kind::Request {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer on a link that we accepted"));
        }
        let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
        let request: Request = match rpc::parse(&body) {
            Ok(q) => q,
            Err(e) => {
                let r = Response::Error(format!("request not understood: {e}"));
                if tx.send(rpc::encode(Kind::Response, id, &r)?).await.is_err() {
                    return Ok(());
                }
                continue;
            }
        };
        let (core, from, member, tx) = (core.clone(), hello.me.node, hello.cluster.is_some(), tx.clone());
        let tracker = core.tracker.clone();
        tracker.spawn(async move {
            let response = tokio::select! {
                () = core.stop.cancelled() => return,
                () = tx.closed() => return,
                r = answer(&core, from, member, request) => r,
            };
            match rpc::encode(Kind::Response, id, &response) {
                // The link may have ended meanwhile.
                Ok(frame) => drop(tx.send(frame).await),
                Err(error) => tracing::error!(%error, "an answer could not be encoded"),
            }
            drop(slot);
        });
    }
    Ok(())
}

/// `member`: the link's two ends are of the same cluster.
async fn answer(core: &Arc<Core>, from: NodeId, member: bool, request: Request) -> Response {
    let open = matches!(request, Request::Hello(_) | Request::Status | Request::Invite { .. });
    if !open && (!member || core.cluster().is_none()) {
        return Response::Error("only members of the cluster may ask this".into());
    }
    match request {
        Request::Hello(_) => Response::Error("hello was said already".into()),
        Request::Status => Response::Status(core.status()),
        Request::Append(r) => core.raft.append_entries(r).await.map_or_else(error, Response::Append),
        Request::Vote(r) => core.raft.vote(r).await.map_or_else(error, Response::Vote),
        Request::PreVote(r) => core.raft.pre_vote(r).await.map_or_else(error, Response::Vote),
        Request::SnapshotPart(p) => take_part(core, from, p).await,
        Request::Propose(e) => core.propose_here(e).await,
        Request::Heartbeat(h) if h.node != from => Response::Error("a heartbeat of somebody else".into()),
        Request::Heartbeat(h) => core.heartbeat(h).map_or_else(Response::NotLeader, Response::Lease),
        Request::Suspect(n) => {
            let _ = core.suspects.try_send(n);
            Response::Done
        }
        Request::Watch { after } => watch(core, after).await.map_or_else(error, Response::Watch),
        Request::SnapshotRead { index, offset } => Response::SnapshotData(read_part(core, index, offset)),
        Request::Invite { cluster } => {
            core.invited(cluster, from).await;
            Response::Done
        }
    }
}

fn error(e: impl std::fmt::Display) -> Response {
    Response::Error(e.to_string())
}

async fn take_part(core: &Core, from: NodeId, p: SnapshotPart) -> Response {
    let end = p.offset.checked_add(p.data.len() as u64);
    if p.total > MAX_SNAPSHOT || p.data.len() > PART || end.is_none_or(|end| end > p.total) {
        return Response::Error("snapshot part out of bounds".into());
    }
    let whole = {
        let mut all = core.incoming.lock().expect("no panic under this lock");
        if p.offset == 0 {
            if all.len() >= MAX_INCOMING {
                all.clear();
            }
            all.insert(from, Incoming { crc: p.crc, total: p.total, data: Vec::new() });
        }
        let Some(i) = all.get_mut(&from) else {
            return Response::Error("snapshot part without a begin".into());
        };
        if i.crc != p.crc || i.total != p.total || i.data.len() as u64 != p.offset {
            return Response::Error("snapshot part out of order".into());
        }
        i.data.extend_from_slice(&p.data);
        match i.data.len() as u64 == i.total {
            true => all.remove(&from),
            false => None,
        }
    };
    let Some(whole) = whole else { return Response::Done };
    if crc32c(&whole.data) != whole.crc {
        return Response::Error("snapshot checksum does not match".into());
    }
    let snapshot = Snapshot { meta: p.meta, snapshot: whole.data.into() };
    core.raft.install_full_snapshot(p.vote, snapshot).await.map_or_else(error, Response::Snapshot)
}

async fn watch(core: &Core, after: ControlIndex) -> io::Result<WatchReply> {
    let mut applied = core.raft_applied.subscribe();
    let more = applied.wait_for(|a| a.is_some_and(|a| a > after.0));
    let upto = match tokio::time::timeout(WATCH_HOLD, more).await {
        Ok(r) => *r.map_err(io::Error::other)?,
        Err(_) => None,
    };
    if !core.raft_view().member {
        return Err(io::Error::other("this sheep is not part of raft: watch a voter"));
    }
    match upto {
        Some(upto) => entries_after(core, after.0, upto),
        None if core.raft_view().leader.is_none() => {
            Err(io::Error::other("this voter has no leader: watch another one"))
        }
        None => Ok(WatchReply::Entries(Vec::new())),
    }
}

fn entries_after(core: &Core, after: u64, applied: u64) -> io::Result<WatchReply> {
    let entries = core.log.read(after + 1..=applied, WATCH_BYTES)?;
    if entries.first().is_some_and(|e| e.log_id.index == after + 1) {
        let list = entries.into_iter().map(|e| {
            let payload = match e.payload {
                EntryPayload::Normal(p) => Some(p.0),
                _ => None,
            };
            (ControlIndex(e.log_id.index), payload)
        });
        return Ok(WatchReply::Entries(list.collect()));
    }
    let mut kept = core.outgoing.lock().expect("no panic under this lock");
    let fresh = kept.as_ref().is_some_and(|o| o.made.elapsed() < OUTGOING_KEEP && o.index.0 > after);
    if !fresh {
        let (index, data) = core.publisher.read(|s| (s.index, super::state_machine::encode_state(s)));
        *kept = Some(Outgoing { index, data: data?, made: Instant::now() });
    }
    let o = kept.as_ref().ok_or_else(|| io::Error::other("no state"))?;
    Ok(WatchReply::Snapshot { index: o.index, total: o.data.len() as u64, crc: crc32c(&o.data) })
}

fn read_part(core: &Core, index: ControlIndex, offset: u64) -> Vec<u8> {
    let kept = core.outgoing.lock().expect("no panic under this lock");
    let Some(o) = kept.as_ref().filter(|o| o.index == index) else { return Vec::new() };
    let start = (offset as usize).min(o.data.len());
    let end = (start + PART).min(o.data.len());
    o.data[start..end].to_vec()
}
