//! The watch stream of a node that is not part of raft: the state once, then every entry in order, from a voter.
//!
//! It is a chain of requests that the voter holds until there is something to say. When its voter is gone another one is asked
//! from where it stopped. A node that is part of raft does not watch. One that was
//! voted out is not told by raft, so a voter whose log stands still asks.

use super::core::Core;
use super::rpc::{MAX_SNAPSHOT, Request, Response, WatchReply};
use super::state_machine::decode_state;
use sheepdog_cluster::NodeState;
use sheepdog_proto::checksum::crc32c;
use sheepdog_proto::{ControlIndex, NodeId};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longer than a voter holds a request.
const PATIENCE: Duration = Duration::from_millis(2_500);
/// At most this often a voter is asked who votes.
const LOOK: Duration = Duration::from_secs(2);

/// Watch while not part of raft.
pub(super) async fn follow(core: Arc<Core>) {
    let mut source: Option<NodeId> = None;
    // Did not answer last: one that stands still would cost as long again.
    let mut silent: Option<NodeId> = None;
    let mut looked = None;
    let mut fed = Fed::default();
    loop {
        if core.cluster().is_none() || core.raft_view().member {
            source = None;
            fed.look(&core).await;
            tokio::select! {
                () = core.stop.cancelled() => return,
                () = core.nudge.notified() => {}
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
            continue;
        }
        let voter = match source {
            Some(v) => v,
            None => match pick(&core, silent).await {
                Some(v) => v,
                None => {
                    tokio::select! {
                        () = core.stop.cancelled() => return,
                        () = tokio::time::sleep(Duration::from_millis(200)) => continue,
                    }
                }
            },
        };
        let step = tokio::select! {
            () = core.stop.cancelled() => return,
            r = step(&core, voter) => r,
        };
        source = match step {
            Ok(()) => {
                silent = None;
                if looked.is_none_or(|at: Instant| at.elapsed() >= LOOK) {
                    looked = Some(Instant::now());
                    look(&core, voter).await;
                }
                Some(voter)
            }
            Err(error) => {
                silent = Some(voter);
                tracing::debug!(%error, voter = %voter.short(), "watch stream moves on");
                // So that a cluster in trouble is not asked without pause.
                tokio::time::sleep(Duration::from_millis(50)).await;
                None
            }
        };
    }
}

/// Whether raft still goes on here.
#[derive(Default)]
struct Fed {
    last_log: Option<u64>,
    since: Option<Instant>,
}

impl Fed {
    /// A voter whose log stands still asks somebody whether it still votes.
    async fn look(&mut self, core: &Core) {
        let view = core.raft_view();
        if view.am_leader || view.last_log != self.last_log || !view.voters.contains(&core.me) {
            *self = Self { last_log: view.last_log, since: None };
            return;
        }
        let (Some(last), since) = (view.last_log, *self.since.get_or_insert_with(Instant::now)) else {
            return;
        };
        if since.elapsed() < LOOK {
            return;
        }
        self.since = Some(Instant::now());
        let mut others: Vec<NodeId> = core.publisher.read(|s| {
            let there = s.nodes.values().filter(|n| n.id != core.me && n.state != NodeState::Out);
            there.map(|n| n.id).collect()
        });
        // The first that answers: most may have ended already, when the cluster is being shut down.
        let s = loop {
            if others.is_empty() {
                return;
            }
            let one = others.swap_remove(rand::random_range(0..others.len()));
            let asked = core.peers.call(one, &Request::Status, Duration::from_secs(1)).await;
            if let Ok(Response::Status(s)) = asked {
                break s;
            }
        };
        let ahead = s.cluster == core.cluster() && s.applied.0 > last;
        // Raft may have gone on while we asked.
        if ahead
            && !s.voters.is_empty()
            && !s.voters.contains(&core.me)
            && core.raft_view().last_log == Some(last)
        {
            tracing::info!("this sheep does not vote any more: it watches");
            core.demote(last);
            core.heed_status(&s);
        }
    }
}

/// Who votes and leads now, from one who is part of raft: the stream does not tell.
async fn look(core: &Core, voter: NodeId) {
    if let Ok(Response::Status(s)) = core.peers.call(voter, &Request::Status, Duration::from_secs(1)).await {
        core.heed_status(&s);
    }
}

/// Any voter, rather not the one that was silent; the leader only when nobody else is known, it has enough to do.
async fn pick(core: &Core, silent: Option<NodeId>) -> Option<NodeId> {
    core.ask_around().await;
    let leader = core.leader();
    let mut voters = core.voters_hint.lock().expect("no panic under this lock").clone();
    voters.retain(|v| *v != core.me && core.peers.pool.book.get(*v).is_some());
    if voters.iter().any(|v| Some(*v) != silent) {
        voters.retain(|v| Some(*v) != silent);
    }
    if voters.is_empty() {
        return leader.filter(|l| *l != core.me);
    }
    Some(voters[rand::random_range(0..voters.len())])
}

async fn step(core: &Core, voter: NodeId) -> io::Result<()> {
    let after = core.publisher.read(|s| s.index);
    let r = core.peers.call(voter, &Request::Watch { after }, PATIENCE).await.map_err(io::Error::other)?;
    match r {
        Response::Watch(WatchReply::Entries(list)) => {
            for (index, entry) in list {
                let at = core.publisher.read(|s| s.index);
                if index > at.next() {
                    return Err(io::Error::other("the watch stream has a gap"));
                }
                core.publisher.apply_once(index, entry.as_ref());
            }
            Ok(())
        }
        Response::Watch(WatchReply::Snapshot { index, total, crc }) => {
            fetch(core, voter, index, total, crc).await
        }
        Response::Error(e) => Err(io::Error::other(e)),
        _ => Err(io::Error::other("an answer to another question")),
    }
}

async fn fetch(core: &Core, voter: NodeId, index: ControlIndex, total: u64, crc: u32) -> io::Result<()> {
    if total > MAX_SNAPSHOT {
        return Err(io::Error::other("the state is larger than this sheep takes"));
    }
    let mut data = Vec::new();
    while (data.len() as u64) < total {
        let ask = Request::SnapshotRead { index, offset: data.len() as u64 };
        match core.peers.call(voter, &ask, PATIENCE).await.map_err(io::Error::other)? {
            Response::SnapshotData(part) if !part.is_empty() => data.extend_from_slice(&part),
            _ => return Err(io::Error::other("the state went away while it was fetched")),
        }
    }
    if data.len() as u64 != total || crc32c(&data) != crc {
        return Err(io::Error::other("the state is damaged"));
    }
    core.publisher.install_newer(decode_state(&data)?);
    Ok(())
}
