//! openraft's network over control links.

use super::identity::Identity;
use super::link::{CallError, LinkPool};
use super::raft_types::{RaftId, Snapshot, TypeConfig, Vote};
use super::rpc::{Hello, PART, PeerInfo, Request, Response, SnapshotPart};
use bytes::Bytes;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, EmptyNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use sheepdog_proto::checksum::crc32c;
use sheepdog_proto::{ClusterId, NodeId};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Everything needed to ask other sheep something.
pub struct Peers {
    /// Links.
    pub pool: LinkPool,
    /// Cluster we belong to.
    pub identity: Mutex<Identity>,
    /// Who we say we are.
    pub me: PeerInfo,
    /// Software version, for hellos.
    pub version: String,
    /// Cluster whose data was on this node's disks when it started: it joins no other, and none is formatted over it.
    pub remembers: Option<ClusterId>,
    /// Boot time until which votes are asked for as a takeover: the leader's process was seen to be dead, so voters need not
    /// wait until its raft lease ends. Serving leases do not lean on that one.
    pub takeover_until: AtomicU64,
}

impl Peers {
    /// The hello of this moment.
    pub fn hello(&self, to: Option<NodeId>) -> Hello {
        let cluster = self.identity.lock().expect("no panic under this lock").cluster;
        Hello { me: self.me.clone(), cluster, to, version: self.version.clone(), remembers: self.remembers }
    }
    /// Ask a node.
    pub async fn call(
        &self,
        node: NodeId,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, CallError> {
        self.pool.call(node, || self.hello(Some(node)), request, timeout).await
    }
    /// Elections of the next moments take over from a dead leader.
    pub fn take_over(&self) -> bool {
        super::boottime_millis() < self.takeover_until.load(Ordering::Acquire)
    }
}

/// Makes `PeerNet`s.
pub struct NetFactory(pub Arc<Peers>);

/// Raft's way to one node.
pub struct PeerNet {
    peers: Arc<Peers>,
    target: NodeId,
}

impl RaftNetworkFactory<TypeConfig> for NetFactory {
    type Network = PeerNet;

    async fn new_client(&mut self, target: RaftId, _node: &EmptyNode) -> PeerNet {
        PeerNet { peers: self.0.clone(), target: target.0 }
    }
}

/// A vote that takes longer than this on a working network is given up: another election may be won.
const MIN_TTL: Duration = Duration::from_millis(400);
/// An append is waited for this long. One is sent after the other, so giving up means sending the same once more behind what is still on its way; on a slow network that
/// loses packets no answer would ever come in time, and nothing would be committed.
const APPEND_TTL: Duration = Duration::from_secs(2);

fn rpc_error(e: CallError) -> RPCError<TypeConfig> {
    match e {
        CallError::Timeout(_) => RPCError::Network(NetworkError::new(&e)),
        e => RPCError::Unreachable(Unreachable::new(&e)),
    }
}

fn odd(r: &Response) -> RPCError<TypeConfig> {
    let what = match r {
        Response::Error(e) => e.clone(),
        _ => "an answer to another question".to_string(),
    };
    RPCError::Unreachable(Unreachable::new(&AnyError::error(what)))
}

impl PeerNet {
    async fn call(&self, request: Request, option: &RPCOption) -> Result<Response, RPCError<TypeConfig>> {
        let least = if matches!(request, Request::Append(_)) { APPEND_TTL } else { MIN_TTL };
        self.peers.call(self.target, &request, option.soft_ttl().max(least)).await.map_err(rpc_error)
    }
    async fn send_parts(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<TypeConfig>, RPCError<TypeConfig>> {
        let data: Bytes = snapshot.snapshot;
        let crc = crc32c(&data);
        let mut offset = 0;
        loop {
            let end = data.len().min(offset + PART);
            let part = SnapshotPart {
                vote,
                meta: snapshot.meta.clone(),
                total: data.len() as u64,
                offset: offset as u64,
                crc,
                data: data[offset..end].to_vec(),
            };
            // Installing follows the last part: a big state takes its time.
            let ttl = Duration::from_secs(if end == data.len() { 60 } else { 10 });
            let r =
                self.peers.call(self.target, &Request::SnapshotPart(part), ttl).await.map_err(rpc_error)?;
            match r {
                Response::Snapshot(r) => return Ok(r),
                Response::Done if end < data.len() => offset = end,
                r => return Err(odd(&r)),
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for PeerNet {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Request::Append(rpc), &option).await? {
            Response::Append(r) => Ok(r),
            r => Err(odd(&r)),
        }
    }
    async fn vote(
        &mut self,
        mut rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        rpc.leadership_transfer |= self.peers.take_over();
        match self.call(Request::Vote(rpc), &option).await? {
            Response::Vote(r) => Ok(r),
            r => Err(odd(&r)),
        }
    }
    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Request::PreVote(rpc), &option).await? {
            Response::Vote(r) => Ok(r),
            r => Err(odd(&r)),
        }
    }
    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            r = self.send_parts(vote, snapshot) => r.map_err(Into::into),
        }
    }
}
