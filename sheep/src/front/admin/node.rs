//! The `NodeService`: nodes, their disks, their counters.

use super::convert;
use super::service::{Admin, Answers, is_forwarded, usage};
use crate::store::kept_for_clients;
use futures::future::BoxFuture;
use sheepdog_client::pb::node_service_server::NodeService;
use sheepdog_client::pb::*;
use sheepdog_client::{Client, Error, ErrorKind};
use sheepdog_cluster::{Command, NodeState};
use sheepdog_proto::{DiskId, NodeId, VdiId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

type Reply1<T> = Result<Response<T>, Status>;

/// How long a stopped node may take until the cluster has noticed.
const NOTICE: Duration = Duration::from_secs(15);

/// Findings of scrubbing told one by one, of each node.
const FINDINGS: usize = 100;

/// A disk that takes new data.
fn usable(d: &NodeDisk) -> bool {
    matches!(d.state(), node_disk::State::Ok | node_disk::State::Full | node_disk::State::Suspect)
}

/// Why what is on one node does not fit on the others that are up: the least that can be said, without looking where each object would go.
fn lacks_room(spaces: &[NodeSpace], leaving: &str) -> Option<String> {
    let of = |s: &NodeSpace| s.node.clone().unwrap_or_default();
    let moved: u64 = spaces.iter().filter(|s| of(s).id == leaving).map(|s| s.used).sum();
    let staying = spaces.iter().filter(|s| of(s).id != leaving && of(s).state() == node::State::Up);
    let disks = staying.flat_map(|s| &s.disks).filter(|d| usable(d));
    let room: u64 = disks.map(|d| d.free.saturating_sub(kept_for_clients(d.total))).sum();
    let (holds, fit) = (moved >> 20, room >> 20);
    (moved > room).then(|| {
        format!("it holds {holds} MiB, and {fit} MiB fit on the disks of the other nodes that are up")
    })
}

impl Admin {
    fn node_row(&self, n: &sheepdog_cluster::Node) -> Node {
        convert::node(n, &self.backend.standing())
    }

    fn nodes(&self) -> Result<ListNodesReply, Error> {
        let standing = self.backend.standing();
        self.control().read(|s| {
            if s.format.is_none() {
                return Err(convert::command_error(&sheepdog_cluster::CommandError::NotFormatted));
            }
            let nodes = s.nodes.values().map(|n| convert::node(n, &standing)).collect();
            Ok(ListNodesReply { nodes, epoch: s.epoch.0, trash_items: s.trash.len() as u64 })
        })
    }

    /// Ask nodes that are up for one row each, this one without the network; `silent` makes the row of one that does not answer.
    async fn rows<T: Send + 'static>(
        &self,
        named: &[String],
        here: impl Future<Output = Result<T, Error>>,
        there: impl Fn(Client, String) -> BoxFuture<'static, Result<Option<T>, Error>>,
        silent: impl Fn(Node, String) -> T,
    ) -> Result<Vec<T>, Error> {
        let me = self.me();
        let nodes = self.nodes_to_ask(named)?;
        let mut rows: Vec<(NodeId, T)> = Vec::new();
        if nodes.iter().any(|n| n.id == me) {
            rows.push((me, here.await?));
        }
        let (up, down): (Vec<_>, Vec<_>) = nodes.into_iter().filter(|n| n.id != me).partition(|n| n.is_up());
        for n in down {
            let why = if n.state == NodeState::Out { "out" } else { "down" };
            rows.push((n.id, silent(self.node_row(&n), why.into())));
        }
        let asked: Vec<_> = up.into_iter().map(|n| self.ask_row(n, &there)).collect();
        use futures::StreamExt;
        let mut answers = futures::stream::iter(asked).buffer_unordered(32);
        while let Some((node, answer)) = answers.next().await {
            let row = match answer {
                Ok(Some(row)) => row,
                Ok(None) => silent(self.node_row(&node), "it is not a member yet".into()),
                Err(e) => silent(self.node_row(&node), e.message),
            };
            rows.push((node.id, row));
        }
        rows.sort_by_key(|(id, _)| *id);
        Ok(rows.into_iter().map(|(_, row)| row).collect())
    }

    async fn ask_row<T>(
        &self,
        node: sheepdog_cluster::Node,
        there: &impl Fn(Client, String) -> BoxFuture<'static, Result<Option<T>, Error>>,
    ) -> (sheepdog_cluster::Node, Result<Option<T>, Error>) {
        let asked = self.peers.to(&node).map(|c| there(c, node.id.to_string()));
        let answer = match asked {
            Ok(answer) => tokio::time::timeout(Duration::from_secs(5), answer)
                .await
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Cluster, "no answer in 5 s"))),
            Err(e) => Err(e),
        };
        (node, answer)
    }

    fn my_row(&self) -> Result<Node, Error> {
        Ok(self.node_row(&self.find_node("")?))
    }

    async fn space_here(&self) -> Result<NodeSpace, Error> {
        let node = self.find_node("")?;
        let disks = self.data().disks().await;
        let mut rows: Vec<NodeDisk> = disks.iter().map(convert::disk).collect();
        for gone in node.disks.iter().filter(|d| !d.is_there() && !disks.iter().any(|x| x.id == d.id)) {
            let reason = if gone.missing { "the sheep was started without it" } else { "" };
            rows.push(NodeDisk {
                reason: reason.into(),
                id: gone.id.to_string(),
                path: gone.path.clone(),
                total: gone.capacity,
                state: node_disk::State::Retired.into(),
                ..Default::default()
            });
        }
        Ok(NodeSpace {
            node: Some(self.node_row(&node)),
            error: String::new(),
            total: disks.iter().map(|d| d.total).sum(),
            free: disks.iter().map(|d| d.free).sum(),
            used: disks.iter().map(|d| d.used).sum(),
            objects: disks.iter().map(|d| d.objects).sum(),
            disks: rows,
        })
    }

    async fn info(&self, named: &[String], forwarded: bool) -> Result<NodeInfoReply, Error> {
        let (virtual_size, trash_size) = self.control().read(|s| {
            let used = s.vdis.values().filter(|v| v.working().is_some());
            (used.map(|v| v.size).sum(), s.trash_size())
        });
        let nodes = if forwarded {
            vec![self.space_here().await?]
        } else {
            let there = |c: Client, id: String| -> BoxFuture<'static, _> {
                Box::pin(
                    async move { Ok(c.node_info(NodeInfoRequest { nodes: vec![id] }).await?.nodes.pop()) },
                )
            };
            let silent =
                |node: Node, error: String| NodeSpace { node: Some(node), error, ..Default::default() };
            self.rows(named, self.space_here(), there, silent).await?
        };
        Ok(NodeInfoReply { nodes, virtual_size, trash_size })
    }

    async fn recovery_here(&self) -> Result<NodeRecovery, Error> {
        let r = self.data().recovery().await;
        let node = self.find_node("")?;
        let epoch = self.control().read(|s| s.epoch);
        Ok(NodeRecovery {
            complete: node.gateway || node.synced >= epoch,
            node: Some(self.node_row(&node)),
            error: String::new(),
            objects_done: r.objects.done,
            objects_total: r.objects.total,
            bytes_moved: r.bytes_moved,
            waiting: r.waiting.unwrap_or_default(),
        })
    }

    async fn recovery(&self, forwarded: bool) -> Result<RecoveryReply, Error> {
        let settings = self.control().read(|s| convert::recovery(&s.recovery));
        let nodes = if forwarded {
            vec![self.recovery_here().await?]
        } else {
            let there = |c: Client, _: String| -> BoxFuture<'static, _> {
                Box::pin(async move {
                    let report = c.recovery(RecoveryRequest { interval_ms: 0 }).await?.message().await?;
                    Ok(report.and_then(|mut r| r.nodes.pop()))
                })
            };
            let silent =
                |node: Node, error: String| NodeRecovery { node: Some(node), error, ..Default::default() };
            self.rows(&[], self.recovery_here(), there, silent).await?
        };
        // A drained node is empty once nobody needs the rings that had it.
        let moving = self.control().read(|s| s.rings.len() > 1);
        let idle = !moving && nodes.iter().all(|n| n.complete);
        Ok(RecoveryReply { nodes, settings: Some(settings), idle })
    }

    async fn scrub_here(&self, start: bool) -> Result<NodeScrub, Error> {
        let report = self.data().scrub(start).await.unwrap_or_default();
        let names: BTreeMap<VdiId, String> =
            self.control().read(|s| s.vdis.values().map(|v| (v.id, v.name.clone())).collect());
        let name = |vdi: &VdiId| match names.get(vdi) {
            Some(name) => name.clone(),
            None if vdi.0 == 0 => String::new(),
            None => vdi.to_string(),
        };
        let rows = report.rows.iter().map(|((vdi, disk), t)| ScrubRow {
            vdi: name(vdi),
            disk: disk.clone(),
            objects: t.objects,
            bytes: t.bytes,
            found: t.found,
            mended: t.mended,
        });
        let told = report.findings.iter().skip(report.findings.len().saturating_sub(FINDINGS));
        let findings = told.map(|f| ScrubFinding {
            object: f.oid.map_or_else(String::new, |o| o.to_string()),
            vdi: name(&f.vdi),
            disk: f.disk.clone(),
            text: f.text.clone(),
            at_ms: f.at,
            mended: f.mended,
        });
        Ok(NodeScrub {
            node: Some(self.my_row()?),
            error: String::new(),
            done: report.done,
            total: report.total,
            asked: report.hurried,
            passes: report.passes,
            ended_ms: report.ended.unwrap_or_default(),
            rows: rows.collect(),
            findings: findings.collect(),
        })
    }

    async fn scrub(&self, r: &ScrubRequest, forwarded: bool) -> Result<ScrubReply, Error> {
        if forwarded {
            return Ok(ScrubReply { nodes: vec![self.scrub_here(r.start).await?] });
        }
        let start = r.start;
        let there = move |c: Client, id: String| -> BoxFuture<'static, _> {
            Box::pin(async move { Ok(c.scrub(ScrubRequest { nodes: vec![id], start }).await?.nodes.pop()) })
        };
        let silent = |node: Node, error: String| NodeScrub { node: Some(node), error, ..Default::default() };
        Ok(ScrubReply { nodes: self.rows(&r.nodes, self.scrub_here(start), there, silent).await? })
    }

    async fn stat_here(&self) -> Result<NodeStat, Error> {
        let c = self.data().node_counters().await;
        Ok(NodeStat {
            node: Some(self.my_row()?),
            error: String::new(),
            client: Some(convert::io(&c.client)),
            peer: Some(convert::io(&c.peer)),
            client_active: c.client_active,
            peer_active: c.peer_active,
            connections: c.connections,
            sessions: c.sessions,
            journal_bytes: c.journal_bytes,
            resident_bytes: c.resident_bytes,
            uptime_ms: c.uptime.as_millis() as u64,
        })
    }

    async fn node_stat(&self, named: &[String], forwarded: bool) -> Result<StatNodeReply, Error> {
        if forwarded {
            return Ok(StatNodeReply { nodes: vec![self.stat_here().await?] });
        }
        let there = |c: Client, id: String| -> BoxFuture<'static, _> {
            Box::pin(async move {
                let request = StatNodeRequest { nodes: vec![id], interval_ms: 0 };
                Ok(c.stat_node(request).await?.message().await?.and_then(|mut r| r.nodes.pop()))
            })
        };
        let silent = |node: Node, error: String| NodeStat { node: Some(node), error, ..Default::default() };
        Ok(StatNodeReply { nodes: self.rows(named, self.stat_here(), there, silent).await? })
    }

    /// Do something at the node that is meant: here, or by passing the request on.
    async fn at_node<T>(
        &self,
        which: &str,
        forwarded: bool,
        here: impl AsyncFnOnce() -> Result<T, Error>,
        there: impl AsyncFnOnce(Client) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let node = self.find_node(which)?;
        if node.id == self.me() {
            return here().await;
        }
        if forwarded {
            return Err(Error::new(ErrorKind::Moved, format!("this is not node {which}")));
        }
        if !node.is_up() {
            return Err(Error::new(ErrorKind::Cluster, format!("node {} is not up", node.id.short())));
        }
        there(self.peers.to(&node)?).await
    }

    async fn unplug(&self, r: &UnplugDiskRequest) -> Result<(), Error> {
        let wanted = r.disk.trim_end_matches('/');
        if wanted.is_empty() {
            return Err(usage("name the disk: its id or its directory (see `dog node md info`)"));
        }
        let disks = self.data().disks().await;
        let mut found = disks
            .iter()
            .filter(|d| d.path.trim_end_matches('/') == wanted || d.id.to_string().starts_with(wanted));
        let disk: DiskId = match (found.next(), found.next()) {
            (Some(d), None) => d.id,
            (None, _) => {
                return Err(Error::new(
                    ErrorKind::Missing,
                    format!("this node has no disk {wanted}: see `dog node md info`"),
                ));
            }
            (Some(_), Some(_)) => {
                return Err(usage(format!("{wanted} could be several disks: give more digits")));
            }
        };
        Ok(self.data().unplug(disk, r.force).await?)
    }

    /// Why the others cannot take what a node holds, as far as the sizes of their disks tell.
    async fn does_not_fit(&self, node: NodeId) -> Result<Option<String>, Error> {
        let stays = self.control().read(|s| {
            let others = s.nodes.values().filter(|n| n.id != node && !n.gateway && n.is_up()).count();
            let widths = s.vdis.values().filter_map(|v| s.redundancy(v.family)).map(|r| r.width());
            // Fewer than there are copies: they have it all already, and nothing moves.
            widths.min().is_none_or(|least| others < least)
        });
        if stays {
            return Ok(None);
        }
        Ok(lacks_room(&self.info(&[], false).await?.nodes, &node.to_string()))
    }

    /// Why taking a node out for good would risk data.
    fn kill_risk(&self, node: NodeId) -> Option<String> {
        self.control().read(|s| {
            if s.nodes.get(&node).is_none_or(|n| n.gateway || n.state == NodeState::Out) {
                return None;
            }
            let others = s.nodes.values().filter(|n| n.id != node && !n.gateway && n.state != NodeState::Out);
            let incomplete: Vec<String> =
                others.filter(|n| !n.is_up() || n.synced < s.epoch).map(|n| n.id.short()).collect();
            if !incomplete.is_empty() {
                return Some(format!("{} do not have all their data yet", incomplete.join(", ")));
            }
            let single = s.vdis.values().find(|v| s.redundancy(v.family).is_some_and(|r| r.width() == 1))?;
            Some(format!("VDI {} has one copy only", single.called()))
        })
    }

    async fn kill(&self, r: &KillNodeRequest, forwarded: bool) -> Result<(), Error> {
        let node = self.find_node(&r.node)?;
        let me = node.id == self.me();
        if !r.keep && !r.force && !forwarded {
            if let Some(risk) = self.kill_risk(node.id) {
                let text = format!(
                    "{risk}: use `dog node drain` first, --keep if the node comes back, or --force to accept loss"
                );
                return Err(Error::new(ErrorKind::Busy, text));
            }
            if let Some(why) = self.does_not_fit(node.id).await? {
                let text = format!(
                    "{why}: add disks or nodes, or use --keep if the node comes back, or --force to have one copy less of what finds no room"
                );
                return Err(Error::new(ErrorKind::Busy, text));
            }
        }
        if me && (forwarded || r.keep) {
            self.backend.stop("an operator asked for it (dog node kill)");
            return Ok(());
        }
        if me {
            // Somebody has to stay to take it out.
            let Some(other) = self.others_up().into_iter().next() else {
                self.backend.stop("an operator asked for it (dog node kill)");
                return Ok(());
            };
            self.peers
                .to(&other)?
                .original()
                .kill_node(KillNodeRequest { node: node.id.to_string(), ..r.clone() })
                .await?;
            return Ok(());
        }
        if node.is_up() {
            self.peers
                .to(&node)?
                .kill_node(KillNodeRequest { node: node.id.to_string(), ..r.clone() })
                .await?;
            let mut watch = self.control().watch();
            let gone =
                watch.wait_for(|_| self.control().map().nodes.get(&node.id).is_none_or(|n| !n.is_up()));
            if tokio::time::timeout(NOTICE, gone).await.is_err() {
                let text =
                    format!("node {} was told to stop but is still up after {NOTICE:?}", node.id.short());
                return Err(Error::new(ErrorKind::Cluster, text));
            }
        }
        if !r.keep {
            self.propose(Command::NodeOut { node: node.id }).await?;
        }
        Ok(())
    }

    async fn set_weight(&self, r: SetWeightRequest) -> Result<(), Error> {
        if r.weight.is_none() && r.vnodes.is_none() {
            return Err(usage("give a weight or a number of virtual nodes"));
        }
        let node = self.find_node(&r.node)?.id;
        self.propose(Command::NodeWeight { node, weight: r.weight, vnodes: r.vnodes }).await?;
        Ok(())
    }

    async fn health(&self) -> HealthReply {
        let reasons = self.backend.complaints().await;
        HealthReply { serving: reasons.is_empty(), reasons }
    }
}

/// The service, as tonic wants it.
#[derive(Clone)]
pub(super) struct Nodes(pub(super) Arc<Admin>);

fn done() -> Reply1<Done> {
    Ok(Response::new(Done {}))
}

#[tonic::async_trait]
impl NodeService for Nodes {
    async fn list(&self, _: Request<ListNodesRequest>) -> Reply1<ListNodesReply> {
        Ok(Response::new(self.0.nodes()?))
    }
    async fn info(&self, r: Request<NodeInfoRequest>) -> Reply1<NodeInfoReply> {
        let forwarded = is_forwarded(&r);
        Ok(Response::new(self.0.info(&r.get_ref().nodes, forwarded).await?))
    }
    async fn scrub(&self, r: Request<ScrubRequest>) -> Reply1<ScrubReply> {
        let forwarded = is_forwarded(&r);
        Ok(Response::new(self.0.scrub(r.get_ref(), forwarded).await?))
    }
    type RecoveryStream = Answers<RecoveryReply>;
    async fn recovery(&self, r: Request<RecoveryRequest>) -> Reply1<Answers<RecoveryReply>> {
        let forwarded = is_forwarded(&r);
        let interval = r.get_ref().interval_ms;
        self.0.stream(async move |admin, sink| {
            admin.repeat(interval, &sink, || async { Ok((admin.recovery(forwarded).await?, false)) }).await
        })
    }
    async fn plug_disk(&self, r: Request<PlugDiskRequest>) -> Reply1<NodeDisk> {
        let forwarded = is_forwarded(&r);
        let r = r.into_inner();
        if r.path.is_empty() || r.path.len() > 4096 || r.path.contains('\0') {
            return Err(usage("name the directory of the new disk").into());
        }
        let here = async || Ok(convert::disk(&self.0.data().plug(r.path.clone()).await?));
        let there = async |c: Client| c.plug_disk(r.clone()).await;
        Ok(Response::new(self.0.at_node(&r.node, forwarded, here, there).await?))
    }
    async fn unplug_disk(&self, r: Request<UnplugDiskRequest>) -> Reply1<Done> {
        let forwarded = is_forwarded(&r);
        let r = r.into_inner();
        let here = async || self.0.unplug(&r).await;
        let there = async |c: Client| c.unplug_disk(r.clone()).await.map(|_| ());
        self.0.at_node(&r.node, forwarded, here, there).await?;
        done()
    }
    async fn kill(&self, r: Request<KillNodeRequest>) -> Reply1<Done> {
        let forwarded = is_forwarded(&r);
        self.0.kill(r.get_ref(), forwarded).await?;
        done()
    }
    async fn drain(&self, r: Request<DrainNodeRequest>) -> Reply1<Done> {
        let r = r.into_inner();
        let node = self.0.find_node(&r.node)?.id;
        if !r.cancel
            && !r.force
            && let Some(why) = self.0.does_not_fit(node).await?
        {
            let text = format!("{why}: add disks or nodes, or use --force to move what fits");
            return Err(Error::new(ErrorKind::Busy, text).into());
        }
        self.0.propose(Command::NodeDrain { node, on: !r.cancel }).await?;
        done()
    }
    type StatStream = Answers<StatNodeReply>;
    async fn stat(&self, r: Request<StatNodeRequest>) -> Reply1<Answers<StatNodeReply>> {
        let forwarded = is_forwarded(&r);
        let r = r.into_inner();
        self.0.stream(async move |admin, sink| {
            let report = || async { Ok((admin.node_stat(&r.nodes, forwarded).await?, false)) };
            admin.repeat(r.interval_ms, &sink, report).await
        })
    }
    async fn log_level(&self, r: Request<LogLevelRequest>) -> Reply1<LogLevelReply> {
        let forwarded = is_forwarded(&r);
        let r = r.into_inner();
        let here = async || {
            if !r.level.is_empty() {
                self.0.backend.set_log_level(&r.level).map_err(usage)?;
            }
            Ok(LogLevelReply { level: self.0.backend.log_level() })
        };
        let there = async |c: Client| c.log_level(r.clone()).await;
        Ok(Response::new(self.0.at_node(&r.node, forwarded, here, there).await?))
    }
    async fn set_weight(&self, r: Request<SetWeightRequest>) -> Reply1<Done> {
        self.0.set_weight(r.into_inner()).await?;
        done()
    }
    async fn health(&self, _: Request<HealthRequest>) -> Reply1<HealthReply> {
        Ok(Response::new(self.0.health().await))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(id: &str, state: node::State, disks: &[(u64, u64, node_disk::State)]) -> NodeSpace {
        let disk = |(total, used, state): &(u64, u64, node_disk::State)| {
            let (total, used) = (total << 30, used << 30);
            NodeDisk { total, free: total - used, used, state: (*state).into(), ..Default::default() }
        };
        NodeSpace {
            node: Some(Node { id: id.into(), state: state.into(), ..Default::default() }),
            used: disks.iter().map(|d| d.1 << 30).sum(),
            disks: disks.iter().map(disk).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_node_leaves_when_the_others_have_room_beside_what_clients_need() {
        use node::State::{Down, Up};
        use node_disk::State::{Failed, Full, Ok};
        let leaving = space("a", Up, &[(500, 300, Ok), (500, 100, Ok)]);
        let fits = |others: &[NodeSpace]| {
            let all: Vec<_> = std::iter::once(&leaving).chain(others).cloned().collect();
            lacks_room(&all, "a")
        };
        assert_eq!(fits(&[space("b", Up, &[(1000, 300, Ok)]), space("c", Up, &[])]), None);
        // 404 GiB are free, of which 4 stay free.
        assert_eq!(fits(&[space("b", Up, &[(1000, 596, Ok)])]), None);
        let why = fits(&[space("b", Up, &[(1000, 597, Ok)])]).expect("one too much");
        assert_eq!(
            why,
            "it holds 409600 MiB, and 408576 MiB fit on the disks of the other nodes that are up"
        );
        for useless in [
            space("b", Down, &[(1000, 0, Ok)]),
            space("b", Up, &[(1000, 0, Failed)]),
            space("b", Up, &[(100, 99, Full)]),
        ] {
            assert!(fits(&[useless]).is_some());
        }
    }
}
