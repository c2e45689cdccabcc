//! What a leader does besides raft: declare nodes down and out, choose voters, invite waiting sheep. And what everyone does about a
//! suspicion: probe, at once.
//!
//! Decisions are `detector`'s and `voters`'. The tasks here end with the plane's token.

use super::boottime_millis;
use super::core::{Core, Waiting, wall_millis};
use super::detector::{Decision, Detector, Probe, Watched};
use super::link::{CallError, host_port};
use super::plane::{ELECTION_MAX, HEARTBEAT};
use super::raft_types::{RaftId, TypeConfig};
use super::rpc::{Request, Response};
use super::voters::choose_voters;
use openraft::async_runtime::{RecvError, WatchReceiver};
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{ChangeMembers, EmptyNode, RaftMetrics, ServerState};
use sheepdog_cluster::{ClusterState, Command, Entry, Node, NodeState};
use sheepdog_proto::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A leader looks around at least this often.
const LOOK: Duration = Duration::from_millis(500);
/// And looks at least this often whether a majority still answers.
const LISTEN: Duration = Duration::from_millis(100);
/// Between two tries to change the voters.
const VOTERS_PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at what is in the trash; an entry deletes a bounded number of things.
const TRASH_PAUSE: Duration = Duration::from_secs(1);
/// Between two invitations to the same waiting sheep.
const INVITE_PAUSE: Duration = Duration::from_millis(500);
/// How long an election of one's own making may ask for votes although a leader is known.
const TAKE_OVER: u64 = 1_500;
/// When a suspect is probed, counted from the suspicion.
const PROBES: [u64; 7] = [0, 20, 60, 120, 250, 500, 1_000];
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
const DECLARE_TIMEOUT: Duration = Duration::from_secs(2);

fn watched(state: &ClusterState) -> Vec<Watched> {
    state.nodes.values().map(|n| watch_node(state, n)).collect()
}

fn watch_node(state: &ClusterState, n: &Node) -> Watched {
    let settled = state.is_emptied(n);
    Watched { node: n.id, incarnation: n.incarnation, state: n.state, since: n.since, settled }
}

/// The leader's loop.
pub(super) async fn lead(core: Arc<Core>) {
    let mut applied = core.publisher.shared.applied.subscribe();
    let mut metrics = core.raft.metrics();
    let mut voters_tried = None;
    let mut invited = None;
    let mut emptied = None;
    loop {
        let role = role_of(&metrics.borrow_and_update());
        let view = core.raft_view();
        let mut wait = Duration::from_secs(3600);
        if view.established {
            begin(&core);
            wait = LOOK.min(declare(&core).await);
            if !core.local && due(&mut voters_tried, VOTERS_PAUSE) {
                let c = core.clone();
                core.tracker.spawn(async move {
                    tokio::select! {
                        () = c.stop.cancelled() => {}
                        r = settle_voters(&c) => if let Err(error) = r {
                            tracing::debug!(%error, "voters not changed yet");
                        }
                    }
                });
            }
            if due(&mut emptied, TRASH_PAUSE) {
                empty_trash(&core);
            }
            if due(&mut invited, INVITE_PAUSE) {
                invite(&core).await;
            }
        } else if view.am_leader {
            wait = Duration::from_millis(20);
        } else {
            core.detector.lock().expect("no panic under this lock").follow();
        }
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            _ = applied.changed(), if view.am_leader => {}
            r = another_role(&mut metrics, role) => if r.is_err() { return },
        }
    }
}

/// What the loop above acts on: leading or not, whom raft follows, in which term.
type Metrics = WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>;
type Role = (bool, Option<RaftId>, u64);

fn role_of(m: &RaftMetrics<TypeConfig>) -> Role {
    (m.state == ServerState::Leader, m.current_leader, m.current_term)
}

/// Completes when the role is another one. (Raft's narrower `server_metrics` would wake less often, but they are published a moment *before* the metrics that
/// `raft_view` reads: who looks at once sees the old role, and is not woken again. A leader that slept like this granted no lease to anybody.)
async fn another_role(metrics: &mut Metrics, role: Role) -> Result<(), RecvError> {
    while role_of(&metrics.borrow_watched()) == role {
        metrics.changed().await?;
    }
    Ok(())
}

/// Keeps a slow majority answering. Leases, and raft's own, hang on when a majority last answered the leader. Raft's heartbeats ask that, but one that takes longer than the
/// interval between two is given up: on a slow network none arrives in time, though everybody follows. An entry is waited for as long as it takes, and a majority has to answer
/// it; raft takes none when nobody answered for the length of an election, so one is proposed well before. One at a time: a leader without a majority does not fill its log.
pub(super) async fn keep_answered(core: Arc<Core>) {
    let mut metrics = core.raft.metrics();
    let work = async {
        loop {
            let role = role_of(&metrics.borrow_and_update());
            let view = core.raft_view();
            if !view.established || view.voters.len() < 2 {
                let leads = tokio::time::sleep(if view.am_leader { LISTEN } else { Duration::MAX });
                tokio::select! {
                    () = leads => {}
                    r = another_role(&mut metrics, role) => if r.is_err() { return },
                }
                continue;
            }
            if view.quorum_acked.is_none_or(|t| t.elapsed() > Duration::from_millis(2 * HEARTBEAT)) {
                let request = uuid::Uuid::new_v4().as_u128();
                let entry = Entry { now: wall_millis(), request, command: Command::Nothing };
                let answer = core.propose_here(entry).await;
                tracing::debug!(?answer, "asked a majority");
            }
            tokio::time::sleep(LISTEN).await;
        }
    };
    tokio::select! {
        () = core.stop.cancelled() => {}
        () = work => {}
    }
}

fn due(last: &mut Option<Instant>, pause: Duration) -> bool {
    if last.is_some_and(|t| t.elapsed() < pause) {
        return false;
    }
    *last = Some(Instant::now());
    true
}

fn begin(core: &Arc<Core>) {
    let mut d = core.detector.lock().expect("no panic under this lock");
    if d.leads() {
        return;
    }
    // After a takeover from a dead process raft did not wait, so no silence can be counted.
    let quiet = if core.peers.take_over() { 0 } else { ELECTION_MAX };
    d.lead(boottime_millis(), quiet, &core.timing());
    drop(d);
    // Meet everybody: a later refusal proves something only where the process was met before. It also finds those that died
    // while nobody led.
    let others: Vec<NodeId> = core.publisher.read(|s| {
        let up = s.nodes.values().filter(|n| matches!(n.state, NodeState::Up | NodeState::Draining));
        up.map(|n| n.id).filter(|n| *n != core.me).collect()
    });
    for node in others {
        let c = core.clone();
        core.tracker.spawn(async move {
            tokio::select! {
                () = c.stop.cancelled() => {}
                () = examine(&c, node) => {}
            }
        });
    }
}

/// Propose what the detector says; how long until it wants to be asked again.
async fn declare(core: &Arc<Core>) -> Duration {
    let (nodes, timing) = (core.publisher.read(watched), core.timing());
    let now = boottime_millis();
    let (due, next) = {
        let mut d = core.detector.lock().expect("no panic under this lock");
        d.look(now, &timing);
        d.tick(now, wall_millis(), &timing, &nodes, core.quiet() || core.local)
    };
    for decision in due {
        // A leader that is silent to itself has lost its majority: it cannot say anything.
        let me = matches!(decision, Decision::Down { node, .. } if node == core.me);
        if !me {
            carry_out(core, decision).await;
        }
    }
    Duration::from_millis(next.map_or(3_600_000, |at| at.saturating_sub(now).max(10)))
}

async fn carry_out(core: &Arc<Core>, decision: Decision) {
    let command = match decision {
        Decision::Down { node, incarnation } => {
            tracing::warn!(node = %node.short(), "to be declared down");
            Command::NodeDown { node, incarnation }
        }
        Decision::Out { node } => {
            tracing::warn!(node = %node.short(), "to be declared out: its data will be rebuilt elsewhere");
            Command::NodeOut { node }
        }
    };
    let entry = Entry { now: wall_millis(), request: uuid::Uuid::new_v4().as_u128(), command };
    // Here or nowhere: one that is no longer the leader, and does not know it yet, has heard from nobody. Its successor must not take its word.
    match tokio::time::timeout(DECLARE_TIMEOUT, core.propose_here(entry)).await {
        Ok(Response::Proposed(..)) => {}
        Ok(answer) => tracing::info!(?answer, "declaration not committed"),
        Err(_) => tracing::info!("declaration not committed in time"),
    }
}

/// Have what has been in the trash for its time really deleted. Beside the loop: nobody is declared dead later for that.
fn empty_trash(core: &Arc<Core>) {
    let now = wall_millis();
    if !core.publisher.read(|s| s.trash_is_due(now)) {
        return;
    }
    let c = core.clone();
    core.tracker.spawn(async move {
        let request = uuid::Uuid::new_v4().as_u128();
        let entry = Entry { now, request, command: Command::TrashExpire };
        // Here or nowhere: whoever leads next looks as well.
        let done = tokio::time::timeout(DECLARE_TIMEOUT, c.propose_here(entry));
        tokio::select! {
            () = c.stop.cancelled() => {}
            answer = done => match answer {
                Ok(Response::Proposed(..)) => {}
                other => tracing::info!(?other, "the trash was not emptied, it is tried again"),
            },
        }
    });
}

/// Bring the voters to what they should be.
async fn settle_voters(core: &Core) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let view = core.raft_view();
    let mut want = core.publisher.read(|s| choose_voters(s, &view.voters));
    if want.is_empty() || !view.established || core.quiet() {
        return Ok(());
    }
    // A leader that is to go hands over first by staying for this round.
    let mut have = view.voters.clone();
    have.sort_unstable();
    want.sort_unstable();
    if want == have {
        return Ok(());
    }
    let new: Vec<NodeId> = want.iter().copied().filter(|n| !have.contains(n)).collect();
    for node in &new {
        // Waits until the learner has caught up, so that the change commits at once.
        let add = core.raft.add_learner(RaftId(*node), EmptyNode::new(), true);
        tokio::time::timeout(Duration::from_secs(20), add).await??;
    }
    let ids: BTreeSet<RaftId> = want.iter().map(|n| RaftId(*n)).collect();
    let change = core.raft.change_membership(ChangeMembers::ReplaceAllVoters(ids), false);
    tokio::time::timeout(Duration::from_secs(20), change).await??;
    tracing::info!(voters = ?want.iter().map(|n| n.short()).collect::<Vec<_>>(), "voters changed");
    Ok(())
}

async fn invite(core: &Core) {
    let Some(cluster) = core.cluster() else { return };
    // One with the data of another cluster would not come.
    let comes = |w: &Waiting| w.remembers.is_none_or(|c| c == cluster);
    let waiting = core.waiting().into_iter().filter(comes).map(|w| w.peer);
    let known = core.publisher.read(|s| s.nodes.keys().copied().collect::<BTreeSet<_>>());
    let asks = waiting.filter(|p| !known.contains(&p.node)).map(|p| async move {
        let r = core.peers.call(p.node, &Request::Invite { cluster }, PROBE_TIMEOUT).await;
        if r.is_ok() {
            core.waiting.lock().expect("no panic under this lock").remove(&p.node);
        }
    });
    futures::future::join_all(asks).await;
}

/// Takes suspicions, looks at each suspect once at a time.
pub(super) async fn suspicions(core: Arc<Core>, mut rx: mpsc::Receiver<NodeId>) {
    let busy = Arc::new(Mutex::new(BTreeMap::new()));
    loop {
        let node = tokio::select! {
            () = core.stop.cancelled() => return,
            n = rx.recv() => match n {
                Some(n) => n,
                None => return,
            },
        };
        if node == core.me || core.local || core.quiet() {
            continue;
        }
        if busy.lock().expect("no panic under this lock").insert(node, ()).is_some() {
            continue;
        }
        let (c, busy) = (core.clone(), busy.clone());
        core.tracker.spawn(async move {
            tokio::select! {
                () = c.stop.cancelled() => {}
                () = suspect(&c, node) => {}
            }
            busy.lock().expect("no panic under this lock").remove(&node);
        });
    }
}

async fn suspect(core: &Arc<Core>, node: NodeId) {
    let view = core.raft_view();
    if view.am_leader {
        return examine(core, node).await;
    }
    match core.leader() {
        Some(l) if l == node => examine_leader(core, node).await,
        Some(l) => {
            // Only the leader's view counts. If it cannot be reached its own link will say so.
            let _ = core.peers.call(l, &Request::Suspect(node), PROBE_TIMEOUT).await;
        }
        None => {}
    }
}

/// Probe until there is proof of life or death, or a second has passed.
async fn find_out(core: &Core, node: NodeId) -> Option<(Watched, Probe)> {
    let began = tokio::time::Instant::now();
    for at in PROBES {
        tokio::time::sleep_until(began + Duration::from_millis(at)).await;
        let subject = core.publisher.read(|s| s.nodes.get(&node).map(|n| watch_node(s, n)))?;
        match probe(core, node, subject.incarnation).await {
            Probe::Unclear => {}
            p => return Some((subject, p)),
        }
    }
    None
}

async fn probe(core: &Core, node: NodeId, incarnation: u64) -> Probe {
    let Some(addr) = core.peers.pool.book.get(node) else { return Probe::Unclear };
    let hello = core.peers.hello(Some(node));
    let met = core.peers.pool.has_met(node, incarnation);
    match tokio::time::timeout(PROBE_TIMEOUT, core.peers.pool.open(&host_port(&addr), hello)).await {
        Ok(Ok(link)) if link.peer.node == node => {
            core.peers.pool.meet(&link.peer, addr);
            Probe::Answered { incarnation: link.peer.incarnation }
        }
        Ok(Err(CallError::Io(e))) if e.kind() == std::io::ErrorKind::ConnectionRefused && met => {
            Probe::Refused
        }
        _ => Probe::Unclear,
    }
}

/// As leader.
async fn examine(core: &Arc<Core>, node: NodeId) {
    let Some((subject, probe)) = find_out(core, node).await else { return };
    if let Some(decision) = Detector::judge(&subject, probe, core.quiet())
        && core.raft_view().established
    {
        carry_out(core, decision).await;
    }
}

/// As a voter whose leader may be dead: take over if it is, without waiting for raft's timers. Voters go one after another, in the
/// order of their ids, so that usually the first one wins unopposed.
async fn examine_leader(core: &Arc<Core>, leader: NodeId) {
    let Some((_, probe)) = find_out(core, leader).await else { return };
    let known = core.publisher.read(|s| s.nodes.get(&leader).map(|n| n.incarnation));
    let dead = match probe {
        Probe::Refused => true,
        Probe::Answered { incarnation } => known.is_some_and(|k| k != incarnation),
        Probe::Unclear => false,
    };
    let mut view = core.raft_view();
    if !dead || core.quiet() || !view.voters.contains(&core.me) {
        return;
    }
    view.voters.retain(|v| *v != leader);
    view.voters.sort_unstable();
    let turn = view.voters.iter().position(|v| *v == core.me).unwrap_or(0) as u64;
    for round in 0..3u64 {
        let pause = turn * 60 + round * 200 + rand::random_range(0..20);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let now = core.raft_view();
        if now.leader != Some(leader) && now.leader.is_some() {
            return;
        }
        if now.term > view.term && now.leader.is_none() && round == 0 && turn > 0 {
            // Somebody's election is under way.
            continue;
        }
        core.peers.takeover_until.store(boottime_millis() + TAKE_OVER, Ordering::Release);
        if core.raft.trigger().elect(false).await.is_err() {
            return;
        }
    }
}
