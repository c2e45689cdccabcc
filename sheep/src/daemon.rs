//! Starting and ending the daemon.
//!
//! Order of starting: lock the home directory, credentials, identity, disks (on the data thread), ports, control plane, metrics port, admin port. Order of ending:
//! front-ends, sessions, store, metrics port, control plane. A second signal ends at once. So does, after a while, a disk that answers nothing any more (`watchdog`).

use crate::cli::Args;
use crate::config::{Config, ConfigError};
use crate::control::identity::Identity;
use crate::control::plane::{ControlConfig, ControlPlane, Network};
use crate::front::admin::{AdminServer, backend::DataPlane};
use crate::node::{self, Begin, Opened, backend::Daemon, data::DataHandle, keep};
use crate::observe::{self, Http, Observer};
use crate::store::Store;
use crate::store::fs::threads::ThreadsFs;
use crate::transport::{PeerListener, PeerTls};
use crate::watchdog::{self, Beat};
use anyhow::{Context, bail};
use sheepdog_client::credentials::{Credentials, Role};
use sheepdog_cluster::{NodeAddr, NodeHello};
use sheepdog_proto::{ClusterId, NodeId};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Data links handed over at a time.
const LINKS: usize = 64;
/// What --log-level takes besides filters.
const LEVELS: &str = "error, warn, info, debug, trace";
/// Threads of the control runtime.
const CONTROL_THREADS: usize = 2;

/// How long each part of ending may take where a disk does not answer: the others wait for it.
const HELD_UP: Duration = Duration::from_secs(2);

type SetLog = node::backend::SetLog;

fn start_logs(level: &str, json: bool) -> anyhow::Result<SetLog> {
    let parse = |text: &str| {
        let wrong = |why: &str| format!("--log-level: \"{text}\" is not a level ({LEVELS}) or a filter{why}");
        // A single word would be taken for the name of a module, and everything else would be silent.
        let first = text.split(',').next().unwrap_or_default();
        if !first.contains(['=', ':', '['])
            && first.parse::<tracing_subscriber::filter::LevelFilter>().is_err()
        {
            return Err(wrong(""));
        }
        // openraft tells every step at info.
        let quiet = if text.contains('=') { text.to_owned() } else { format!("{text},openraft=warn") };
        tracing_subscriber::EnvFilter::try_new(quiet).map_err(|e| wrong(&format!(": {e}")))
    };
    let filter = parse(level).map_err(ConfigError)?;
    let (filter, handle) = tracing_subscriber::reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    if json {
        registry.with(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr)).init();
    } else {
        registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).init();
    }
    Ok(Box::new(move |text| {
        let filter = parse(text)?;
        handle.reload(filter).map_err(|e| e.to_string())
    }))
}

/// As many open files as the host allows: the usual soft limit of 1024 is made for programs that use `select`, and running out of it would look like a failed disk.
fn allow_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(error = %e, "the limit of open files cannot be raised");
    }
}

/// One daemon per directory. The lock ends with the process.
fn lock(home: &Path) -> anyhow::Result<File> {
    let unusable = || format!("{}: DIR must be a directory that sheep can write to, or make", home.display());
    crate::dirs::make(home).with_context(unusable)?;
    let path = home.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).with_context(unusable)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| anyhow::anyhow!("{}: another sheep uses this directory", home.display()))?;
    Ok(file)
}

/// See `--only-mounted`. The cluster is told of those that it knows as missing, like of any disk that a sheep was started without.
fn leave_out_unmounted(config: &mut Config) -> anyhow::Result<()> {
    if !config.only_mounted || config.gateway {
        return Ok(());
    }
    // The home may be a disk as well: without it there is no identity.
    let needed = config.disks.contains(&config.home).then(|| config.home.clone());
    let (there, missing): (Vec<_>, Vec<_>) =
        std::mem::take(&mut config.disks).into_iter().partition(|d| crate::dirs::is_mount_point(d));
    for d in &missing {
        tracing::error!(disk = %d.display(), "nothing is mounted there: started without this disk");
    }
    if let Some(home) = needed.filter(|h| missing.contains(h)) {
        bail!("{}: nothing is mounted there, and this sheep's identity is on it: mount it", home.display());
    }
    if there.is_empty() {
        let names: Vec<String> = missing.iter().map(|d| d.display().to_string()).collect();
        bail!("none of the disks is mounted: {}: mount at least one of them", names.join(", "));
    }
    config.disks = there;
    Ok(())
}

/// Direct I/O works in this directory.
fn direct(dir: &Path) -> anyhow::Result<()> {
    use rustix::fs::{Mode, OFlags};
    crate::dirs::make(dir).with_context(|| format!("{}", dir.display()))?;
    let path = dir.join("direct.tmp");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::DIRECT | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600));
    let _ = std::fs::remove_file(&path);
    opened.map(drop).with_context(|| {
        format!(
            "{}: this file system does no direct I/O: use another, or start without --directio",
            dir.display()
        )
    })
}

/// The node's identity; taken from a data disk when the home directory has lost it.
async fn identity(config: &Config) -> anyhow::Result<Identity> {
    if !config.home.join("node.json").exists() {
        for disk in &config.disks {
            if let Some((node, _)) = Store::written_by(&ThreadsFs, disk).await {
                tracing::warn!(%node, disk = %disk.display(), "identity restored from a data disk");
                let found = Identity { node, cluster: None, member: false };
                found.save(&config.home)?;
                break;
            }
        }
    }
    Ok(Identity::load_or_create(&config.home)?)
}

/// Cluster whose data is on the disks, whatever the home directory says.
async fn remembered(disks: &[PathBuf]) -> Option<ClusterId> {
    for disk in disks {
        // A disk of a cluster that came to nothing has its name, and no state.
        if let Some((_, Some(cluster))) = Store::written_by(&ThreadsFs, disk).await
            && Store::blob_at(&ThreadsFs, disk, keep::NAME).await.is_some()
        {
            return Some(cluster);
        }
    }
    None
}

/// 1,000 per TiB, at least a little, so that small test disks have a place as well.
fn weight(disks: &[crate::store::DiskInfo]) -> u32 {
    let total: u64 = disks.iter().map(|d| d.total).sum();
    ((total as u128 * 1000) >> 40).clamp(50, u32::MAX as u128) as u32
}

fn hello(config: &Config, node: NodeId, opened: &Opened) -> NodeHello {
    NodeHello {
        id: node,
        addr: NodeAddr {
            host: config.advertise.clone(),
            client_port: config.port,
            peer_port: config.peer_port,
        },
        zone: config.zone.clone(),
        weight: if config.gateway { 0 } else { weight(&opened.disks) },
        vnodes: config.vnodes,
        gateway: config.gateway,
        incarnation: 0,
        disks: node::disk_entries(&opened.disks),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        has_data: opened.has_data,
    }
}

/// Run until told to stop.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let set_level = start_logs(&args.log_level, args.log_format == "json")?;
    let mut config = Config::new(args)?;
    leave_out_unmounted(&mut config)?;
    let _lock = lock(&config.home)?;
    if config.directio {
        config.disks.iter().try_for_each(|d| direct(d))?;
    }
    allow_files();
    let credentials = config.secret_file.as_deref().map(Credentials::load).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()?;
    let stop = CancellationToken::new();
    let result = runtime.block_on(main_task(config, args.log_level.clone(), set_level, credentials, stop));
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}

async fn main_task(
    config: Config,
    level: String,
    set_level: SetLog,
    credentials: Option<Credentials>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let id = identity(&config).await?;
    let role = Role::Sheep(id.node.to_string());
    let (mut tls, mut nbd_tls) = (PeerTls::default(), None);
    if let Some(c) = &credentials {
        tls = PeerTls { client: Some(c.client_config(&role)?), server: Some(c.server_config(&role)?) };
        nbd_tls = Some(c.nbd_server_config(&role, std::slice::from_ref(&config.advertise))?);
    }
    let (opened_tx, opened_rx) = oneshot::channel();
    let (begin_tx, begin_rx) = oneshot::channel();
    let (asker, questions) = observe::gather::channel();
    // No disk works any more.
    let dead = CancellationToken::new();
    let turns = Beat::default();
    let data_thread = {
        let (config, stop, dead, turns) = (config.clone(), stop.clone(), dead.clone(), turns.clone());
        std::thread::Builder::new().name("data".into()).spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().event_interval(61).build();
            let Ok(runtime) = runtime else { return };
            let local = tokio::task::LocalSet::new();
            local.spawn_local(turns.turn());
            let stops = (stop.clone(), dead.clone());
            let work = node::run(config, id.node, id.cluster, opened_tx, begin_rx, questions, stops);
            local.block_on(&runtime, work);
            stop.cancel();
            drop(local);
            // What a blocking thread still asks of a disk is waited for, if there is one that answers.
            if dead.is_cancelled() {
                runtime.shutdown_background();
            }
        })?
    };
    let opened = opened_rx.await.context("the data thread ended")?.map_err(anyhow::Error::msg)?;
    tracing::info!(node = %id.node, disks = opened.disks.len(), io = opened.engine, "sheep {}", env!("CARGO_PKG_VERSION"));
    let (links_tx, links_rx) = mpsc::channel(LINKS);
    let network = if config.local {
        None
    } else {
        let at = format!("{}:{}", config.bind, config.peer_port);
        let listener = PeerListener::bind(&at, tls.server.clone()).await?;
        Some(Network {
            listener,
            data_links: links_tx.clone(),
            tls: tls.clone(),
            seeds: config.seeds.clone(),
        })
    };
    let control_config = ControlConfig {
        dir: config.home.clone(),
        hello: hello(&config, id.node, &opened),
        network,
        remembers: remembered(&config.disks).await,
    };
    let (control, plane) = ControlPlane::start(control_config).await?;
    let plane = Arc::new(plane);
    let observer = Observer::new(control.clone(), plane.clone(), asker, stop.clone());
    let metrics = match config.metrics_port {
        Some(port) => Some(Http::start(&config.bind, port, observer.clone()).await?),
        None => None,
    };
    if let Some(m) = &metrics {
        tracing::info!(at = %m.local_addr(), "metrics and health");
    }
    let (jobs_tx, jobs_rx) = mpsc::channel(node::JOBS);
    let (ready_tx, ready_rx) = oneshot::channel();
    let begin = Begin {
        control: control.clone(),
        links: links_rx,
        tls: tls.clone(),
        nbd_tls,
        jobs: jobs_rx,
        ready: ready_tx,
    };
    if begin_tx.send(begin).is_err() {
        bail!("the data thread ended");
    }
    if let Err(why) = ready_rx.await.context("the data thread ended")? {
        stop.cancel();
        let _ = tokio::task::spawn_blocking(move || data_thread.join()).await;
        plane.shut_down().await;
        bail!(why);
    }
    let handle = DataHandle::new(jobs_tx);
    let data: Arc<dyn DataPlane> = Arc::new(handle.clone());
    let daemon = Arc::new(Daemon {
        config: config.clone(),
        control: control.clone(),
        plane: plane.clone(),
        data,
        handle,
        observer,
        stop: stop.clone(),
        tls: tls.client.clone(),
        level: Mutex::new(level),
        set_level,
    });
    let admin =
        AdminServer::start(&format!("{}:{}", config.bind, config.port), tls.server.clone(), daemon).await?;
    if config.local && !control.read(|s| s.format.is_some()) {
        tracing::info!("one sheep alone: `dog cluster format` makes it a cluster of one");
    }
    let broken = tokio::select! {
        r = wait_for_the_end(&control, &stop) => { r?; None }
        () = dead.cancelled() => Some("no disk of this sheep works any more"),
        () = watchdog::stopped(|| Some(turns.count())) => Some("a disk has held up this sheep's data thread for too long"),
        () = watchdog::stopped(|| plane.writing()) => Some("the disk with this sheep's control log does not answer any more"),
    };
    if let Some(why) = broken {
        tracing::error!("{why}: ending");
    }
    stop.cancel();
    // What waits for a disk that does not answer is not waited for.
    let patience = if broken.is_some() { HELD_UP } else { Duration::MAX };
    let _ = timeout(patience, admin.stop()).await;
    let joined = tokio::task::spawn_blocking(move || data_thread.join());
    tokio::select! {
        r = timeout(patience, joined) => { let _ = r; }
        _ = signal() => tracing::warn!("second signal: ending at once"),
    }
    drop(links_tx);
    if let Some(metrics) = metrics {
        let _ = timeout(patience, metrics.stop()).await;
    }
    let _ = timeout(patience, plane.shut_down()).await;
    if let Some(why) = broken {
        bail!(
            "{}: {why}, so it has ended and the others go on without it: replace the disk, or see that it answers, and start this sheep again",
            config.home.display()
        );
    }
    tracing::info!("ended");
    Ok(())
}

async fn signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
    Ok(())
}

async fn wait_for_the_end(control: &crate::control::Control, stop: &CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        r = signal() => { r?; tracing::info!("signal: stopping"); }
        () = stop.cancelled() => {}
        () = control.shutdown_ordered() => tracing::info!("the cluster is shut down"),
    }
    Ok(())
}
