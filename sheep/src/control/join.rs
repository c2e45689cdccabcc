//! A sheep's own life in the cluster: waiting for format, joining, saying hello again, keeping its lease.
//!
//! Two tasks, each ending with the plane's token: `membership` brings this process into the map and back, `leases` heartbeats.

use super::core::{Core, wall_millis};
use super::rpc::{Heartbeat, LeaseReply, PeerInfo, Request, Response, StatusReply};
use super::{boottime_millis, link};
use sheepdog_cluster::{Command, CommandError, Entry, NodeState, Reply};
use sheepdog_proto::{ClusterId, NodeId};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Between two looks at the seeds while waiting.
const SEED_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between two tries to greet a seed that does not answer.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Most addresses that all seeds together may resolve to.
const MAX_SEEDS: usize = 64;
const ASK: Duration = Duration::from_secs(2);

impl Core {
    /// Ask the seeds what they are part of. Returns the answers; addresses and leader are taken note of.
    pub async fn ask_seeds(&self) -> Vec<StatusReply> {
        let mut addrs: Vec<SocketAddr> = Vec::new();
        for seed in &self.seeds {
            match tokio::net::lookup_host(seed.as_str()).await {
                Ok(found) => addrs.extend(found),
                Err(error) => tracing::debug!(%seed, %error, "seed does not resolve"),
            }
        }
        addrs.sort_unstable();
        addrs.dedup();
        addrs.truncate(MAX_SEEDS);
        let asks = addrs.iter().map(|a| self.ask_address(a.to_string()));
        let all: Vec<StatusReply> = futures::future::join_all(asks).await.into_iter().flatten().collect();
        for s in &all {
            if s.cluster.is_none() {
                self.note_waiting(&s.me, s.remembers);
                s.peers.iter().for_each(|p| self.learn_address(p));
            }
            self.heed_status(s);
        }
        all
    }
    async fn ask_address(&self, addr: String) -> Option<StatusReply> {
        let ask = async {
            let link = self.peers.pool.open(&addr, self.peers.hello(None)).await?;
            if link.peer.node == self.me {
                return Ok(None);
            }
            self.peers.pool.book.hear(&link.peer);
            match link.call(&Request::Status, ASK).await? {
                Response::Status(s) => Ok(Some(s)),
                _ => Ok(None),
            }
        };
        match tokio::time::timeout(ASK, ask).await {
            Ok(Ok(s)) => s,
            Ok(Err(link::CallError::Refused(why))) => {
                tracing::warn!(%addr, %why, "seed refused");
                None
            }
            Ok(Err(_)) | Err(_) => None,
        }
    }
    /// Take this cluster for ours, durably. Only the first one is taken, and none but that whose data is on the disks: another one would not know
    /// the objects there, and have them removed.
    pub fn adopt(&self, cluster: ClusterId) {
        if let Some(c) = self.peers.remembers
            && c != cluster
        {
            // Asked for again every half second.
            if !self.strange.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    "not joining cluster {cluster}: the disks here hold data of cluster {c}. `dog cluster rebuild --from-disks` brings that one \
                     back; if it is not needed any more, empty the directories of this sheep"
                );
            }
            return;
        }
        let mut id = self.peers.identity.lock().expect("no panic under this lock");
        if id.cluster.is_some() {
            return;
        }
        let mut new = id.clone();
        new.cluster = Some(cluster);
        match new.save(&self.dir) {
            Ok(()) => {
                tracing::info!(%cluster, "joining cluster");
                *id = new;
            }
            Err(error) => tracing::error!(%error, "the identity cannot be written"),
        }
    }
    fn note_member(&self) {
        let mut id = self.peers.identity.lock().expect("no panic under this lock");
        if !id.member {
            id.member = true;
            if let Err(error) = id.save(&self.dir) {
                tracing::error!(%error, "the identity cannot be written");
                id.member = false;
            }
        }
    }
    /// Another sheep says that the cluster was formatted.
    pub async fn invited(&self, cluster: ClusterId, from: NodeId) {
        if self.cluster().is_none() && !self.local {
            self.adopt(cluster);
            if let Some(p) = self.peer_info(from) {
                self.set_hint(Some(p));
            }
            self.nudge.notify_waiters();
        }
    }
    /// Introduce this process to the cluster.
    pub async fn say_hello(&self, deadline: Duration) -> bool {
        let hello = self.hello.lock().expect("no panic under this lock").clone();
        let request = uuid::Uuid::new_v4().as_u128();
        let entry = Entry { now: wall_millis(), request, command: Command::NodeUp(hello) };
        match self.propose(entry, deadline).await {
            // The first entry of its log is on its way: this is tried again.
            Ok((Reply::Error(CommandError::NotFormatted), _)) => false,
            Ok((Reply::Error(error), _)) => {
                tracing::error!(%error, "the cluster does not take this sheep");
                false
            }
            Ok((_, index)) => {
                // Up there; wait a moment until it is known here too.
                let mut rx = self.publisher.shared.applied.subscribe();
                let here = rx.wait_for(|a| a.index >= index);
                tokio::time::timeout(Duration::from_secs(10), here).await.is_ok()
            }
            Err(error) => {
                tracing::debug!(%error, "not joined yet");
                false
            }
        }
    }
}

/// What this process should do about its place in the map.
enum Place {
    /// Nothing.
    Fine,
    /// Say hello.
    Missing,
    /// Another process of this node has taken over.
    Replaced,
    /// Taken out by an operator or emptied: stay away until restarted.
    Dismissed,
}

fn place(core: &Core, was_up: bool) -> Place {
    core.publisher.read(|s| match s.nodes.get(&core.me) {
        None => Place::Missing,
        Some(n) if n.incarnation != core.incarnation && was_up => Place::Replaced,
        Some(n) if n.incarnation != core.incarnation => Place::Missing,
        Some(n) => match n.state {
            NodeState::Up | NodeState::Draining => Place::Fine,
            NodeState::Down => Place::Missing,
            // Somebody wanted that. Out after a long silence: it comes back.
            NodeState::Out if n.dismissed => Place::Dismissed,
            NodeState::Out => Place::Missing,
        },
    })
}

/// Brings this process into the map and keeps it there.
pub(super) async fn membership(core: Arc<Core>) {
    let mut applied = core.publisher.shared.applied.subscribe();
    let mut was_up = false;
    loop {
        if core.stop.is_cancelled() {
            return;
        }
        if core.cluster().is_none() {
            wait_for_format(&core).await;
            continue;
        }
        applied.borrow_and_update();
        match place(&core, was_up) {
            Place::Fine => {
                if !was_up {
                    core.note_member();
                    was_up = true;
                }
            }
            Place::Missing if core.quiet() => {}
            Place::Missing => {
                core.say_hello(Duration::from_secs(30)).await;
                tokio::select! {
                    () = core.stop.cancelled() => return,
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                }
                continue;
            }
            Place::Replaced => {
                core.publisher.lease().revoke();
                tracing::error!("another process runs as this node: this one no longer serves");
                return core.stop.cancelled().await;
            }
            Place::Dismissed => {
                core.publisher.lease().revoke();
                tracing::warn!("this sheep was taken out of the cluster: restart it to join again");
                return core.stop.cancelled().await;
            }
        }
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = core.nudge.notified() => {}
            _ = applied.changed() => {}
        }
    }
}

async fn wait_for_format(core: &Core) {
    if !core.local {
        let found = core.ask_seeds().await.into_iter().find(|s| s.cluster.is_some());
        if let Some(s) = found
            && let Some(cluster) = s.cluster
        {
            core.adopt(cluster);
            core.heed_status(&s);
            if core.cluster().is_some() {
                return;
            }
        }
    }
    tokio::select! {
        () = core.stop.cancelled() => {}
        () = core.nudge.notified() => {}
        () = tokio::time::sleep(SEED_PAUSE) => {}
    }
}

/// Lets the seeds know where this process is, once: when everybody has moved to another address, those without a seed of their own
/// are found again through their visitors.
pub(super) async fn greet_seeds(core: Arc<Core>) {
    let mut pause = SEED_PAUSE;
    loop {
        if core.cluster().is_some() && !core.ask_seeds().await.is_empty() {
            return;
        }
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Keeps this node's lease.
pub(super) async fn leases(core: Arc<Core>) {
    let mut applied = core.publisher.shared.applied.subscribe();
    loop {
        if !core.am_up() {
            applied.borrow_and_update();
            if !core.am_up() {
                tokio::select! {
                    () = core.stop.cancelled() => return,
                    _ = applied.changed() => continue,
                }
            }
        }
        if core.local {
            core.publisher.lease().extend(u64::MAX);
            return core.stop.cancelled().await;
        }
        let timing = core.timing();
        let pause = match renew(&core, timing.heartbeat).await {
            true => timing.heartbeat,
            false => (timing.heartbeat / 10).max(20),
        };
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(pause)) => {}
        }
    }
}

/// One heartbeat. True: the lease is extended.
async fn renew(core: &Core, patience: u64) -> bool {
    let sent = boottime_millis();
    let hb =
        Heartbeat { node: core.me, incarnation: core.incarnation, applied: core.publisher.read(|s| s.index) };
    let patience = Duration::from_millis(patience.max(200));
    let reply = match core.leader() {
        None => Err(None),
        Some(l) if l == core.me => core.heartbeat(hb),
        Some(l) => ask_lease(core, l, hb, patience).await,
    };
    match reply {
        Ok(LeaseReply::Granted { lease, min_index }) => {
            let mut rx = core.publisher.shared.applied.subscribe();
            let here = rx.wait_for(|a| a.index >= min_index);
            if tokio::time::timeout(patience, here).await.is_err() || !core.am_up() {
                return false;
            }
            core.publisher.lease().extend(sent + lease);
            true
        }
        Ok(LeaseReply::NotUp) => {
            core.publisher.lease().revoke();
            core.nudge.notify_waiters();
            false
        }
        Ok(LeaseReply::NotNow) => false,
        Err(Some(hint)) => {
            core.set_hint(Some(hint));
            false
        }
        Err(None) => {
            core.ask_around().await;
            false
        }
    }
}

async fn ask_lease(
    core: &Core,
    leader: NodeId,
    hb: Heartbeat,
    patience: Duration,
) -> Result<LeaseReply, Option<PeerInfo>> {
    match core.peers.call(leader, &Request::Heartbeat(hb), patience).await {
        Ok(Response::Lease(l)) => Ok(l),
        Ok(Response::NotLeader(hint)) => Err(hint),
        Ok(_) => Err(None),
        Err(error) => {
            tracing::debug!(%error, leader = %leader.short(), "heartbeat failed");
            if error.is_refused() {
                let _ = core.suspects.try_send(leader);
            }
            Err(None)
        }
    }
}
