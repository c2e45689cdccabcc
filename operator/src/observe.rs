//! Counters of the operator, and the port with its three pages: `/metrics`, `/healthz` (the process lives), `/readyz` (it has reached the API server).

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Conditions that have a series.
const SHOWN: [&str; 8] = [
    "Available",
    "Progressing",
    "Degraded",
    "QuorumHeld",
    "Recovering",
    "CapacityLow",
    "DiskTrouble",
    "UpgradeBlocked",
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    kind: String,
    result: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfCluster {
    cluster: String,
    condition: String,
}

/// See the module.
pub struct Metrics {
    registry: Registry,
    reconciles: Family<Outcome, Counter>,
    duration: Family<Kind, Histogram, fn() -> Histogram>,
    conditions: Family<OfCluster, Gauge>,
    leader: Gauge,
    /// Pods of lost nodes that were let go.
    pub released_pods: Counter,
    ready: AtomicBool,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("sheepdog_operator");
        let reconciles = Family::<Outcome, Counter>::default();
        registry.register("reconciles", "Looks at an object, by result: ok or error", reconciles.clone());
        let buckets: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 4.0, 9));
        let duration = Family::<Kind, Histogram, fn() -> Histogram>::new_with_constructor(buckets);
        registry.register("reconcile_duration_seconds", "How long they took", duration.clone());
        let conditions = Family::<OfCluster, Gauge>::default();
        registry.register(
            "cluster_condition",
            "1: the condition is True, 0: False, -1: Unknown",
            conditions.clone(),
        );
        let leader = Gauge::default();
        registry.register("leader", "1 while this process is the one that acts", leader.clone());
        let released_pods = Counter::default();
        registry.register(
            "released_pods",
            "Pods on lost nodes that were deleted so that their volumes can move",
            released_pods.clone(),
        );
        Self {
            registry,
            reconciles,
            duration,
            conditions,
            leader,
            released_pods,
            ready: AtomicBool::new(false),
        }
    }
}

impl Metrics {
    /// A look at an object has ended.
    pub fn reconciled(&self, kind: &str, ok: bool, took: Duration) {
        let result = if ok { "ok" } else { "error" };
        self.reconciles.get_or_create(&Outcome { kind: kind.into(), result: result.into() }).inc();
        self.duration.get_or_create(&Kind { kind: kind.into() }).observe(took.as_secs_f64());
    }
    /// Conditions of a cluster.
    pub fn cluster(&self, cluster: &str, conditions: &[Condition]) {
        for c in conditions.iter().filter(|c| SHOWN.contains(&c.type_.as_str())) {
            let value = match c.status.as_str() {
                "True" => 1,
                "False" => 0,
                _ => -1,
            };
            let labels = OfCluster { cluster: cluster.into(), condition: c.type_.clone() };
            self.conditions.get_or_create(&labels).set(value);
        }
    }
    /// A cluster is gone.
    pub fn forget(&self, cluster: &str) {
        for condition in SHOWN {
            self.conditions.remove(&OfCluster { cluster: cluster.into(), condition: condition.into() });
        }
    }
    /// Whether this process acts.
    pub fn set_leader(&self, yes: bool) {
        self.leader.set(i64::from(yes));
    }
    /// The API server has answered.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }
    fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Serve the pages until stopped.
pub async fn serve(
    addr: SocketAddr,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    let pages = Router::new()
        .route("/metrics", get(page))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(metrics);
    tokio::spawn(async move {
        let served =
            axum::serve(listener, pages).with_graceful_shutdown(async move { stop.cancelled().await }).await;
        if let Err(error) = served {
            tracing::error!(%error, "the port for metrics and health has closed");
        }
    });
    Ok(addr)
}

async fn page(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n").into_response(),
    }
}

async fn ready(State(metrics): State<Arc<Metrics>>) -> Response {
    if metrics.ready.load(Ordering::Relaxed) {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the API server has not answered yet\n").into_response()
}
