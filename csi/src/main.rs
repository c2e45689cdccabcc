//! The driver's processes: see `sheepdog_csi`.

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use sheepdog_csi::attach::loopback::host::Host;
use sheepdog_csi::cli::{Cli, Cluster, Command, Disks, FuseHost, Here, Preflight};
use sheepdog_csi::controller::Controller;
use sheepdog_csi::disks::{self, Owner};
use sheepdog_csi::identity::{self, Ready};
use sheepdog_csi::node::Plugin;
use sheepdog_csi::server::{self, Services};
use sheepdog_csi::sheep::Sheep;
use sheepdog_csi::{node, preflight};
use std::io::IsTerminal as _;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("sheepdog-csi: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let filter = EnvFilter::try_new(&cli.log).with_context(|| format!("--log {}", cli.log))?;
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let code = runtime.block_on(async {
        match cli.command {
            Command::Controller(c) => serve(c.cluster, true, None).await,
            Command::Node(n) => serve(n.cluster, false, Some(n.here)).await,
            Command::All(n) => serve(n.cluster, true, Some(n.here)).await,
            Command::FuseHost(f) => fuse_host(f).await,
            Command::Preflight(p) => look(p).await,
            Command::Disks(d) => mount_disks(d).await,
        }
    });
    // A thread that hangs in the kernel does not keep the process.
    runtime.shutdown_background();
    code
}

/// Ends with SIGTERM or SIGINT.
fn until_told() -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}

async fn serve(cluster: Cluster, controller: bool, here: Option<Here>) -> Result<ExitCode> {
    let stop = until_told()?;
    let sheep = Sheep::new(&cluster.sheep, cluster.secret_file.as_deref())?;
    let tasks = TaskTracker::new();
    let ready = Ready::default();
    tasks.spawn(ready.clone().watch(sheep.clone(), stop.clone()));
    let node = match here {
        None => None,
        Some(here) => {
            let report = preflight::look(&here.attach).await;
            tracing::info!("preflight:\n{}", preflight::text(&report));
            let backend = preflight::backend(&report, &here.attach)?;
            let plugin = Plugin::new(sheep.clone(), backend, &here)?;
            tasks.spawn(node::watch(plugin.clone(), stop.clone()));
            Some(plugin)
        }
    };
    let services = Services {
        identity: identity::Plugin { ready },
        controller: controller.then(|| Controller::new(sheep)),
        node,
    };
    server::serve(&cluster.endpoint, services, stop.clone()).await?;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(ExitCode::SUCCESS)
}

async fn fuse_host(options: FuseHost) -> Result<ExitCode> {
    let stop = until_told()?;
    let host = Host::new(options.dir, options.nbd_socket)?;
    host.clean()?;
    if let Some(dir) = options.socket.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
    }
    let listener = server::listen(&options.socket)?;
    tracing::info!("serving volumes for loop devices on {}", options.socket.display());
    host.run(listener, stop).await;
    Ok(ExitCode::SUCCESS)
}

async fn look(options: Preflight) -> Result<ExitCode> {
    let report = preflight::look(&options.attach).await;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", preflight::text(&report));
    }
    Ok(if report.backend.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn mount_disks(options: Disks) -> Result<ExitCode> {
    let owner = Owner { cluster: options.cluster, node: options.node };
    let done = disks::prepare(&owner, options.fs_type, &options.dir, &options.disk).await?;
    if let Some(file) = &options.report {
        std::fs::write(file, done.text()).with_context(|| format!("{}", file.display()))?;
    }
    ensure!(!options.need_one || !done.mounted.is_empty(), "not one of the devices can be used");
    Ok(ExitCode::SUCCESS)
}
