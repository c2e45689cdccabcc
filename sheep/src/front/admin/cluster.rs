//! The `ClusterService`: the cluster as a whole.

use super::convert::{self, redundancy_in, redundancy_out};
use super::service::{Admin, Answers, Sink, usage};
use sheepdog_client::pb::cluster_service_server::ClusterService;
use sheepdog_client::pb::*;
use sheepdog_client::{Client, Error, ErrorKind};
use sheepdog_cluster::{Command, CommandError, Layout, NodeState};
use sheepdog_proto::NodeId;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

type Reply1<T> = Result<Response<T>, Status>;

/// How long `format` waits for sheep to join.
const JOIN: Duration = Duration::from_secs(20);
/// How long another sheep may take to tell how it is.
const ANSWER: Duration = Duration::from_secs(2);
/// Complaints of one answer.
const MAX_COMPLAINTS: usize = 100;
/// Epochs of one answer.
const MAX_HISTORY: usize = 1_000;

impl Admin {
    /// What is wrong with this sheep and with the others that are up, each in its own words.
    async fn complaints(&self) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        let mut tell = |node: NodeId, why: &str| out.push(format!("node {}: {why}", node.short()));
        self.backend.complaints().await.iter().for_each(|c| tell(self.me(), c));
        let ask = |c: Client| async move {
            let asked = c.health(HealthRequest {});
            tokio::time::timeout(ANSWER, asked)
                .await
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Cluster, format!("no answer in {ANSWER:?}"))))
        };
        for (node, answer) in self.peers.each(self.others_up(), ask).await {
            match answer {
                Ok(health) => health.reasons.iter().for_each(|r| tell(node.id, r)),
                Err(e) => tell(node.id, &format!("its client port does not answer: {}", e.message)),
            }
        }
        out.truncate(MAX_COMPLAINTS);
        out
    }

    /// With what the nodes complain of.
    async fn cluster_health(&self, history: usize) -> ClusterInfo {
        let mut info = self.cluster_info(history);
        if info.status() == cluster_info::Status::WaitingForFormat {
            return info;
        }
        let complaints = self.complaints().await;
        if !complaints.is_empty() && info.status() == cluster_info::Status::Ok {
            info.set_status(cluster_info::Status::Degraded);
        }
        info.reasons.extend(complaints);
        info
    }

    fn cluster_info(&self, history: usize) -> ClusterInfo {
        let standing = self.backend.standing();
        let answered_by = self.me().to_string();
        self.control().read(|s| {
            let (status, reasons) = convert::condition(s);
            let holders = || s.nodes.values().filter(|n| n.state != NodeState::Out);
            let mut info = ClusterInfo {
                status: status.into(),
                reasons,
                epoch: s.epoch.0,
                nodes_up: holders().filter(|n| n.is_up()).count() as u32,
                nodes_total: holders().count() as u32,
                vdis: s.vdis.values().filter(|v| v.working().is_some()).count() as u64,
                snapshots: s.vdis.values().map(|v| v.shown().count() as u64).sum(),
                trash_items: s.trash.len() as u64,
                trash_size: s.trash_size(),
                recovery: Some(convert::recovery(&s.recovery)),
                forced: s.forced.clone(),
                leader: standing.leader.map(|n| n.to_string()).unwrap_or_default(),
                voters: standing.voters.iter().map(|n| n.to_string()).collect(),
                waiting: standing.waiting.clone(),
                answered_by,
                history: s
                    .latest_epochs(history.min(MAX_HISTORY))
                    .into_iter()
                    .map(|(r, up)| EpochRecord {
                        epoch: r.epoch.0,
                        at_ms: r.at,
                        what: r.what.clone(),
                        up: up.iter().map(|n| n.to_string()).collect(),
                    })
                    .collect(),
                ..Default::default()
            };
            if let Some(f) = &s.format {
                info.id = f.cluster.to_string();
                info.created_ms = f.created;
                info.redundancy = Some(redundancy_out(f.redundancy));
                info.min_copies = f.min_copies.map_or((f.redundancy.width() as u32 - 1).max(1), u32::from);
                info.strict = f.strict;
                info.store = match f.layout {
                    None => String::new(),
                    Some(Layout::Tree) => "tree".into(),
                    Some(Layout::Plain) => "plain".into(),
                };
                info.object_size = f.object_size;
                info.heartbeat_ms = f.timing.heartbeat;
                info.lease_ms = f.timing.lease;
                info.down_out_ms = f.timing.down_out;
                info.trash_keep_ms = f.trash_keep;
            }
            info
        })
    }

    async fn format(&self, r: FormatRequest) -> Result<(), Error> {
        if self.control().read(|s| s.format.is_some()) {
            return Err(Error::new(
                ErrorKind::Exists,
                "the cluster is formatted already: its data is not thrown away",
            ));
        }
        let mut format = self.backend.format_template();
        if let Some(redundancy) = redundancy_in(r.redundancy)? {
            format.redundancy = redundancy;
        }
        if r.min_copies > 0 {
            format.min_copies = Some(u8::try_from(r.min_copies).map_err(|_| usage("too many copies"))?);
        }
        if r.object_size > 0 {
            format.object_size = r.object_size;
        }
        format.strict |= r.strict;
        format.trash_keep = r.trash_keep_ms.unwrap_or(format.trash_keep);
        format.layout = match r.store.as_str() {
            "" => None,
            "tree" => Some(Layout::Tree),
            "plain" => Some(Layout::Plain),
            other => return Err(usage(format!("\"{other}\" is no layout: tree or plain"))),
        };
        let wanted = match r.wait_for_nodes as usize {
            0 => format.redundancy.spread(),
            n => n,
        };
        self.backend.format(format).await?;
        let mut watch = self.control().watch();
        let joined = watch.wait_for(|_| {
            self.control().read(|s| s.nodes.values().filter(|n| !n.gateway && n.is_up()).count() >= wanted)
        });
        if tokio::time::timeout(JOIN, joined).await.is_err() && r.wait_for_nodes > 0 {
            let text = format!(
                "the cluster is formatted, but {wanted} sheep have not joined in {JOIN:?}: see `dog node list`"
            );
            return Err(Error::new(ErrorKind::Cluster, text));
        }
        Ok(())
    }

    async fn watch_events(&self, r: EventsRequest, sink: Sink<Event>) -> Result<(), Error> {
        let mut watch = self.control().watch();
        let mut after = r.after;
        let mut first = r.after == 0;
        loop {
            watch.borrow_and_update();
            let (events, next) = self.control().read(|s| {
                // Numbers start at 0, and "after 0" asks for everything.
                let new = |id: u64| id > after || (first && id == 0);
                let events: Vec<Event> = s
                    .events
                    .iter()
                    .filter(|e| new(e.id))
                    .map(convert::event)
                    .filter(|e| e.level >= r.min_level)
                    .collect();
                (events, s.events.back().map(|e| e.id))
            });
            if let Some(next) = next {
                (after, first) = (after.max(next), false);
            }
            for e in events {
                if !sink.send(e).await {
                    return Ok(());
                }
            }
            if !r.follow || watch.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}

/// The service, as tonic wants it.
#[derive(Clone)]
pub(super) struct Clusters(pub(super) Arc<Admin>);

fn done() -> Reply1<Done> {
    Ok(Response::new(Done {}))
}

#[tonic::async_trait]
impl ClusterService for Clusters {
    async fn info(&self, r: Request<ClusterInfoRequest>) -> Reply1<ClusterInfo> {
        Ok(Response::new(self.0.cluster_health(r.get_ref().history as usize).await))
    }
    async fn format(&self, r: Request<FormatRequest>) -> Reply1<ClusterInfo> {
        self.0.format(r.into_inner()).await?;
        Ok(Response::new(self.0.cluster_info(0)))
    }
    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Reply1<Done> {
        if self.0.control().read(|s| s.format.is_none()) {
            // There is no log that could tell the others.
            self.0.backend.stop("an operator shut the cluster down before it was formatted");
            return done();
        }
        self.0.propose(Command::Shutdown).await?;
        done()
    }
    async fn alter_copies(&self, r: Request<AlterCopiesRequest>) -> Reply1<Done> {
        let redundancy =
            redundancy_in(r.into_inner().redundancy)?.ok_or_else(|| usage("say how many copies"))?;
        self.0.propose(Command::AlterCopies { vdi: None, redundancy }).await?;
        done()
    }
    async fn set_recovery(&self, r: Request<SetRecoveryRequest>) -> Reply1<RecoverySettings> {
        let SetRecoveryRequest { enabled, max_bytes_per_s, concurrency } = r.into_inner();
        if enabled.is_some() || max_bytes_per_s.is_some() || concurrency.is_some() {
            self.0.propose(Command::Recovery { enabled, max_bytes_per_s, concurrency }).await?;
        }
        Ok(Response::new(self.0.control().read(|s| convert::recovery(&s.recovery))))
    }
    async fn set_trash(&self, r: Request<SetTrashRequest>) -> Reply1<TrashSettings> {
        if let Some(keep) = r.get_ref().keep_ms {
            self.0.propose(Command::SetTrash { keep }).await?;
        }
        let keep = self.0.control().read(|s| s.format.as_ref().map(|f| f.trash_keep));
        let keep_ms = keep.ok_or_else(|| convert::command_error(&CommandError::NotFormatted))?;
        Ok(Response::new(TrashSettings { keep_ms }))
    }
    async fn force(&self, r: Request<ForceRequest>) -> Reply1<Done> {
        let reason = r.into_inner().reason;
        if reason.trim().is_empty() || reason.len() > 1_000 {
            return Err(usage("say why, in at most 1,000 bytes: the reason is kept and shown").into());
        }
        self.0.propose(Command::Force { reason }).await?;
        done()
    }
    async fn rebuild(&self, r: Request<RebuildRequest>) -> Reply1<ClusterInfo> {
        self.0.backend.rebuild(r.get_ref().force).await?;
        Ok(Response::new(self.0.cluster_info(0)))
    }
    type EventsStream = Answers<Event>;
    async fn events(&self, r: Request<EventsRequest>) -> Reply1<Answers<Event>> {
        let r = r.into_inner();
        self.0.stream(async move |admin, sink| admin.watch_events(r, sink).await)
    }
}
