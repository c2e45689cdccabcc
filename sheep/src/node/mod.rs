//! The data thread: one current-thread runtime that owns store, sessions, links and NBD, and nothing else does.
//!
//! It is started with everything it needs and handed a channel of jobs: closures that run on it and send their answer back. That is the only way in from
//! the control runtime. Order of ending: front-ends drain, sessions close, workers stop, the store writes everything to its place.

pub mod backend;
pub mod changed;
pub mod check;
pub mod data;
pub mod disks;
pub mod keep;
mod later;
mod quiet;

use crate::config::Config;
use crate::control::Control;
use crate::control::link::host_port;
use crate::front::nbd::{Limits, Listen, ListenAt, NbdConfig, NbdHandle, NbdServer};
use crate::observe::gather::{Questions, Watched};
use crate::peer::server::Server;
use crate::peer::{Connector, LinkStream, Links, Replica};
use crate::session::Gateway;
use crate::session::cache::Cache;
use crate::session::volume::Table;
use crate::store::fs::{Fs, threads::ThreadsFs, uring::UringFs};
use crate::store::{DiskState, Store, StoreConfig, StoreEvent};
use crate::transport::{self, DataLink, LinkKind, PeerTls, Stream};
use crate::volume::LocalFut;
use crate::work::balance::Balance;
use crate::work::health::Health;
use crate::work::reclaim::Reclaim;
use crate::work::scrub::{Scrub, report::Scrubbing};
use crate::work::seal::Sealer;
use crate::work::sync::{Sync, Worker};
use later::Later;
use sheepdog_cluster::{Command, CommandError, DiskEntry, EventLevel, Layout, NodeAddr, Reply};
use sheepdog_proto::{ClusterId, DiskId, NodeId};
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Work for the data thread.
pub type Job = Box<dyn FnOnce(Rc<DataNode>) + Send>;
/// Jobs that may wait.
pub const JOBS: usize = 1024;
/// How long clients get to finish when the daemon ends.
const GRACE: Duration = Duration::from_secs(5);

/// Everything on the data thread, once the cluster is known.
pub struct DataNode {
    /// Control plane.
    pub control: Control,
    /// Holder side.
    pub replica: Rc<Replica>,
    /// Sessions.
    pub gateway: Rc<Gateway>,
    /// Volumes by name.
    pub table: Rc<Table>,
    /// Requests of peers.
    pub server: Rc<Server>,
    /// NBD, when it is served.
    pub nbd: RefCell<Option<NbdHandle>>,
    /// Ends all tasks.
    pub stop: CancellationToken,
    /// When the process began.
    pub started: std::time::Instant,
}

/// What the data thread tells while it starts.
pub struct Opened {
    /// Disks as found.
    pub disks: Vec<crate::store::DiskInfo>,
    /// There were objects on them.
    pub has_data: bool,
    /// How disk I/O is done.
    pub engine: &'static str,
}

/// What it is given once the control plane runs.
pub struct Begin {
    /// Control plane.
    pub control: Control,
    /// Links from peers.
    pub links: mpsc::Receiver<DataLink>,
    /// Credentials between peers.
    pub tls: PeerTls,
    /// Credentials for NBD.
    pub nbd_tls: Option<Arc<rustls::ServerConfig>>,
    /// Work.
    pub jobs: mpsc::Receiver<Job>,
    /// NBD is bound, or why it cannot be.
    pub ready: oneshot::Sender<Result<(), String>>,
}

/// TCP to peers.
pub struct TcpConnector {
    tls: PeerTls,
}

impl Connector for TcpConnector {
    fn connect<'a>(
        &'a self,
        node: NodeId,
        addr: &'a NodeAddr,
        via: Option<(NodeId, &'a NodeAddr)>,
    ) -> LocalFut<'a, io::Result<Box<dyn LinkStream>>> {
        let client = self.tls.client.as_ref();
        Box::pin(async move {
            Ok(match via {
                None => Box::new(transport::connect(&host_port(addr), LinkKind::Data, client).await?)
                    as Box<dyn LinkStream>,
                Some((_, via)) => {
                    Box::new(transport::connect_through(&host_port(via), node, LinkKind::Data, client).await?)
                }
            })
        })
    }
}

/// io_uring where it is allowed.
fn engine() -> Rc<dyn Fs> {
    match UringFs::new() {
        Ok(fs) => Rc::new(fs),
        Err(e) => {
            tracing::warn!(error = %e, "io_uring is refused here: disk I/O uses threads, at several times the CPU");
            Rc::new(ThreadsFs)
        }
    }
}

/// The data plane of one node, without the sockets around it.
pub struct Plane {
    /// Holder side.
    pub replica: Rc<Replica>,
    /// Sessions.
    pub gateway: Rc<Gateway>,
    /// Volumes by name.
    pub table: Rc<Table>,
    /// For links that peers open.
    pub server: Rc<Server>,
}

/// Put the data plane together and start its workers on the current local set: the daemon's and the simulator's are the same.
/// `cache` is for blocks of volumes that are owned here, bytes. `work` ends everything, calls to peers too: what clients have sent is finished before; `dead` is cancelled when no disk works any more.
pub fn assemble(
    control: Control,
    store: Option<Rc<Store>>,
    cluster: ClusterId,
    connector: Rc<dyn Connector>,
    cache: Option<u64>,
    work: CancellationToken,
    dead: CancellationToken,
) -> Plane {
    let links = Rc::new(Links::new(control.clone(), cluster, connector, work.clone()));
    let sync = Sync::new(control.clone());
    let clock = control.clone();
    let scrubbing = Scrubbing::new(move || clock.now_millis());
    let replica = Rc::new(Replica { control, store: store.clone(), links, sync, scrubbing });
    let gateway = Gateway::new(replica.clone(), cache.map(Cache::new), work.clone());
    tokio::task::spawn_local(gateway.clone().resume_sessions());
    let table = Table::new(gateway.clone());
    let server = Server::new(replica.clone(), gateway.clone(), cluster, work.clone());
    if let Some(s) = &store {
        let worker = Worker { replica: replica.clone(), joiner: gateway.clone(), stop: work.clone() };
        tokio::task::spawn_local(worker.run());
        tokio::task::spawn_local(Reclaim { replica: replica.clone(), stop: work.clone() }.run());
        tokio::task::spawn_local(Sealer { replica: replica.clone(), stop: work.clone() }.run());
        let health = Health { replica: replica.clone(), stop: work.clone(), dead: dead.clone() };
        tokio::task::spawn_local(health.run());
        tokio::task::spawn_local(Balance { replica: replica.clone(), stop: work.clone() }.run());
        tokio::task::spawn_local(Scrub { replica: replica.clone(), stop: work.clone() }.run());
        if let Some(events) = s.events() {
            tokio::task::spawn_local(watch_store(replica.clone(), events, work.clone(), dead));
        }
    }
    Plane { replica, gateway, table, server }
}

/// Run the data thread to its end. Called on a thread of its own.
pub async fn run(
    config: Config,
    node: NodeId,
    cluster: Option<ClusterId>,
    opened: oneshot::Sender<Result<Opened, String>>,
    begin: oneshot::Receiver<Begin>,
    questions: Questions,
    (stop, dead): (CancellationToken, CancellationToken),
) {
    let store = if config.gateway {
        let _ = opened.send(Ok(Opened { disks: Vec::new(), has_data: true, engine: "none" }));
        None
    } else {
        let store_config = StoreConfig {
            node,
            cluster,
            disks: config.disks.clone(),
            journal_dir: config.journal.0.clone(),
            journal_size: config.journal.1,
            plain: config.plain,
        };
        match Store::open(store_config, engine()).await {
            Err(e) => {
                let _ = opened.send(Err(e.to_string()));
                return;
            }
            Ok(store) => {
                let told =
                    Opened { disks: store.disks(), has_data: store.has_objects(), engine: store.engine() };
                let _ = opened.send(Ok(told));
                Some(store)
            }
        }
    };
    let watched = Watched::new(store.clone());
    tokio::task::spawn_local(watched.clone().answer(questions));
    if let Ok(begin) = begin.await {
        serve(config, store.clone(), begin, watched, stop, dead).await;
    }
    if let Some(store) = store
        && let Err(e) = store.close().await
    {
        tracing::error!(error = %e, "the store did not close cleanly: the journal will be replayed");
    }
}

/// Wait until this node belongs to a formatted cluster.
async fn formatted(control: &Control) -> ClusterId {
    let mut watch = control.watch();
    loop {
        watch.borrow_and_update();
        let me = control.me();
        let known =
            control.read(|s| s.format.as_ref().filter(|_| s.nodes.contains_key(&me)).map(|f| f.cluster));
        if let Some(cluster) = known {
            return cluster;
        }
        // The sender lives in `control`.
        let _ = watch.changed().await;
    }
}

async fn serve(
    config: Config,
    store: Option<Rc<Store>>,
    begin: Begin,
    watched: Rc<Watched>,
    stop: CancellationToken,
    dead: CancellationToken,
) {
    let Begin { control, mut links, tls, nbd_tls, mut jobs, ready } = begin;
    // NBD listens at once; whoever connects waits until the cluster is there.
    let (table_there, source) = Later::new();
    let nbd = match start_nbd(&config, nbd_tls, source) {
        Ok(nbd) => nbd,
        Err(e) => {
            let _ = ready.send(Err(e.to_string()));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let cluster = tokio::select! {
        biased;
        () = stop.cancelled() => return,
        c = formatted(&control) => c,
    };
    let layout = control.read(|s| s.format.as_ref().and_then(|f| f.layout));
    if let Some(s) = &store
        && let Err(e) = s.set_cluster(cluster, layout.map(|l| l == Layout::Plain)).await
    {
        tracing::error!(error = %e, "the cluster's id cannot be written to the disks");
    }
    let connector = Rc::new(TcpConnector { tls: tls.clone() });
    let work = CancellationToken::new();
    let plane = assemble(
        control.clone(),
        store.clone(),
        cluster,
        connector,
        config.cache,
        work.clone(),
        dead.clone(),
    );
    let Plane { replica, gateway, table, server } = plane;
    let node = Rc::new(DataNode {
        server: server.clone(),
        control: control.clone(),
        replica: replica.clone(),
        gateway: gateway.clone(),
        table: table.clone(),
        nbd: RefCell::new(nbd),
        stop: work.clone(),
        started: std::time::Instant::now(),
    });
    table_there.send_replace(Some(table));
    watched.begin(&node);
    tokio::task::spawn_local(quiet::run(work.clone()));
    if let Some(s) = &store {
        tokio::task::spawn_local(keep::run(control.clone(), s.clone(), work.clone()));
    }
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(job) = jobs.recv() => job(node.clone()),
            Some(link) = links.recv() => {
                let (server, tls) = (server.clone(), tls.clone());
                tokio::task::spawn_local(async move {
                    let accept = async {
                        let tcp = tokio::net::TcpStream::from_std(link.stream)?;
                        transport::server_tls(tcp, tls.server.as_ref()).await
                    };
                    match accept.await {
                        Ok(stream) => Server::serve(server, stream as Stream).await,
                        Err(e) => tracing::info!(from = %link.addr, error = %e, "a peer's data link was refused"),
                    }
                });
            }
            else => break,
        }
    }
    tracing::info!("draining");
    let nbd = node.nbd.borrow_mut().take();
    // What waits for disks that do not answer waits in vain.
    let grace = if dead.is_cancelled() { Duration::ZERO } else { GRACE };
    if let Some(nbd) = nbd {
        let aborted = nbd.shutdown(grace).await;
        if aborted > 0 {
            tracing::info!(aborted, "connections were closed with requests waiting");
        }
    }
    let _ = tokio::time::timeout(grace, gateway.close_all()).await;
    work.cancel();
}

fn start_nbd(
    config: &Config,
    tls: Option<Arc<rustls::ServerConfig>>,
    table: Rc<Later>,
) -> io::Result<Option<NbdHandle>> {
    use crate::front::nbd::TlsPolicy;
    let mut listen = Vec::new();
    if let Some(port) = config.nbd_port {
        let ip = config.bind.parse().unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
        let policy = match (&tls, config.exposed) {
            (None, _) => TlsPolicy::Off,
            (Some(_), true) => TlsPolicy::Required,
            (Some(_), false) => TlsPolicy::Allowed,
        };
        listen.push(Listen { at: ListenAt::Tcp(SocketAddr::new(ip, port)), tls: policy });
    }
    if let Some(path) = &config.nbd_socket {
        listen.push(Listen { at: ListenAt::Unix(path.clone()), tls: TlsPolicy::Off });
    }
    if listen.is_empty() {
        return Ok(None);
    }
    let insecure = config.exposed && tls.is_none();
    NbdServer::start(NbdConfig { listen, tls, insecure, limits: Limits::default() }, table)
        .map(Some)
        .map_err(|e| io::Error::new(e.kind(), format!("{e} (see --nbd-port and --nbd-socket)")))
}

/// A failed disk is retired in the committed map, so that writes go on without it and its objects are filled again elsewhere.
/// `dead`: ends the daemon.
async fn watch_store(
    replica: Rc<Replica>,
    mut events: mpsc::Receiver<StoreEvent>,
    stop: CancellationToken,
    dead: CancellationToken,
) {
    loop {
        let event = tokio::select! { biased; () = stop.cancelled() => return, e = events.recv() => e };
        let Some(event) = event else { return };
        let control = replica.control.clone();
        let me = control.me();
        match event {
            StoreEvent::DiskFailed { disk, reason } => {
                let text = format!("disk {} of node {} failed: {reason}", disk.short(), me.short());
                let _ = control.propose(Command::Note { level: EventLevel::Error, text }).await;
                let entry = replica.store.as_ref().and_then(|s| s.disks().into_iter().find(|d| d.id == disk));
                let entry = entry.map(|info| disk_entries(std::slice::from_ref(&info)).remove(0));
                retire(&control, disk, entry).await;
                if let Some(store) = &replica.store {
                    let _ = store.unplug(disk).await;
                    if store.disks().is_empty() {
                        dead.cancel();
                    }
                }
            }
            StoreEvent::DiskFull { disk, full } => {
                let (level, word) = if full {
                    (EventLevel::Error, "is full: writes wait")
                } else {
                    (EventLevel::Info, "has room again")
                };
                let mut text = format!("disk {} of node {} {word}", disk.short(), me.short());
                // It is not emptied by itself for that: what is in it was promised to be there.
                if let Some(hint) = control.read(|s| s.trash_hint()).filter(|_| full) {
                    text = format!("{text}; {hint}");
                }
                let _ = control.propose(Command::Note { level, text }).await;
            }
            StoreEvent::Corrupt { oid, blocks } => {
                let Some(family) = control.read(|s| s.layers.get(&oid.layer()).map(|l| l.family)) else {
                    continue;
                };
                if let Some(store) = &replica.store {
                    store.place(oid, family);
                    if let Some((row, disk)) = store.row(oid) {
                        let vdi = control.read(|s| s.layers.get(&oid.layer()).map_or(row.vdi, |l| l.vdi));
                        let text = match blocks.len() {
                            0 => "its file is gone, or its header cannot be read".to_owned(),
                            n => format!("{n} damaged blocks"),
                        };
                        replica.scrubbing.damaged(oid, vdi, &disk, text);
                    }
                }
                tracing::warn!(%oid, ?blocks, "stored blocks do not match their checksums");
                let text = format!("damaged blocks of object {oid} were found on node {}", me.short());
                replica.sync.corrupt(oid, family);
                let _ = control.propose(Command::Note { level: EventLevel::Warning, text }).await;
            }
        }
    }
}

/// Have the cluster go on without a disk. It may just have been told to forget it: then it hears of it again, so that what was on it counts as lost.
async fn retire(control: &Control, disk: DiskId, entry: Option<DiskEntry>) {
    let node = control.me();
    loop {
        match control.propose(Command::DiskRetired { node, disk }).await {
            Ok(Reply::Error(CommandError::NotFound(_))) => {
                let Some(entry) = entry.clone() else { return };
                let disk = DiskEntry { retired: false, ..entry };
                let _ = control.propose(Command::DiskAdded { node, disk }).await;
            }
            Ok(_) => return,
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// Disks as the control plane wants them.
pub fn disk_entries(disks: &[crate::store::DiskInfo]) -> Vec<DiskEntry> {
    disks
        .iter()
        .map(|d| DiskEntry {
            id: d.id,
            path: d.path.clone(),
            capacity: d.total,
            retired: matches!(d.state, DiskState::Failed(_)),
            missing: false,
        })
        .collect()
}
