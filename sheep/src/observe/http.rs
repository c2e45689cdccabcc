//! The metrics port: a small HTTP server with three pages.
//!
//! One request per connection, and a connection has a few seconds for all of it: a client that is slow, or says nothing, costs one of a bounded number of
//! slots for that long, and delays nobody. Owner: [`Http`]; `stop` lets answers that are on their way go out for a moment.

use super::Observer;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at a time; more wait in the kernel's backlog. A few scrapers and probes are usual.
const CONNECTIONS: usize = 64;
/// For the head of the request.
const HEAD: Duration = Duration::from_secs(3);
/// For the whole connection; a scrape waits for the data thread for `gather::PATIENCE` of it.
const WHOLE: Duration = Duration::from_secs(10);
/// Bytes and lines of a request's head.
const HEAD_BYTES: usize = 16 << 10;
const HEAD_LINES: usize = 64;
/// What `encoding::text` writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve metrics on {host}:{port}: {source}: is the port in use? (see --metrics-port and --bind-addr)"
)]
pub struct MetricsListenError {
    host: String,
    port: u16,
    source: io::Error,
}

/// A running server. Dropping it leaves it running until its runtime ends; `stop` ends it.
pub struct Http {
    addr: SocketAddr,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Http {
    /// Listen (port 0 picks one) and serve until `stop`.
    pub async fn start(host: &str, port: u16, observer: Arc<Observer>) -> Result<Self, MetricsListenError> {
        let failed = |source| MetricsListenError { host: host.to_owned(), port, source };
        let listener = TcpListener::bind((host, port)).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let pages = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .with_state(observer);
        tracker.spawn(accept(listener, pages, tracker.clone(), stop.clone()));
        Ok(Self { addr, stop, tracker })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// No new requests, and no more patience with those that run.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

async fn accept(listener: TcpListener, pages: Router, tracker: TaskTracker, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let slot = tokio::select! {
            () = stop.cancelled() => return,
            s = slots.clone().acquire_owned() => s,
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            a = listener.accept() => a,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                // Out of descriptors or an aborted connection: neither ends the listener.
                tracing::warn!(%error, "accepting a scraper failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (pages, stop) = (pages.clone(), stop.clone());
        tracker.spawn(async move {
            let _slot = slot;
            tokio::select! {
                () = stop.cancelled() => {}
                r = tokio::time::timeout(WHOLE, serve(tcp, pages)) => {
                    if !matches!(r, Ok(Ok(()))) {
                        tracing::debug!("a request for metrics was given up");
                    }
                }
            }
        });
    }
}

async fn serve(tcp: TcpStream, pages: Router) -> Result<(), hyper::Error> {
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .max_headers(HEAD_LINES)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(tcp), TowerToHyperService::new(pages))
        .await
}

async fn metrics(State(observer): State<Arc<Observer>>) -> Response {
    match observer.metrics().await {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n").into_response(),
    }
}

async fn healthz(State(observer): State<Arc<Observer>>) -> Response {
    match observer.alive().await {
        Ok(()) => "ok\n".into_response(),
        Err(silent) => (StatusCode::SERVICE_UNAVAILABLE, format!("{silent}\n")).into_response(),
    }
}

async fn readyz(State(observer): State<Arc<Observer>>) -> Response {
    let reasons = observer.unready().await;
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    let text: String = reasons.iter().map(|r| format!("{r}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}
