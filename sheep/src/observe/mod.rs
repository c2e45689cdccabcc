//! What the outside can see of this process: metrics, health, readiness.
//!
//! ```text
//!   data thread: cells ◄─ question ─ gather ─┐
//!   control plane: status ───────────────────┼─► metrics (text) ─► http
//!   kernel: process ─────────────────────────┘   status (reasons) ─► http, `dog cluster info`
//! ```
//!
//! What holds:
//! * Nothing is computed unless someone asks; what is counted all the time is a handful of additions on the data thread.
//! * Every answer comes within a few seconds, also when the data thread hangs: then it says so.
//! * Series are bounded, whatever clients and peers do.
//!
//! Served by [`Http`] on `--metrics-port`, without TLS, on the address of the other listeners: names of VDIs and numbers can be read there, nothing can be changed.

pub mod cells;
pub mod gather;
mod http;
pub mod metrics;
pub mod panics;
pub mod process;
pub mod status;

pub use http::{Http, MetricsListenError};

use crate::control::Control;
use crate::control::plane::ControlPlane;
use gather::{Asker, DataCondition, Silent};
use status::ControlReport;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// Looks at this process.
pub struct Observer {
    control: Control,
    plane: Arc<ControlPlane>,
    data: Asker,
    stop: CancellationToken,
    started: f64,
}

impl Observer {
    /// Over the parts of a running daemon. `stop` tells that it is ending.
    pub fn new(
        control: Control,
        plane: Arc<ControlPlane>,
        data: Asker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        Arc::new(Self { control, plane, data, stop, started })
    }

    /// Text for Prometheus.
    pub async fn metrics(&self) -> Result<String, std::fmt::Error> {
        let began = Instant::now();
        let data = self.data.report().await;
        let control = ControlReport::with_raft(&self.control, &self.plane);
        let condition = match &data {
            Ok(d) => Ok(DataCondition { recovery: d.recovery.clone(), ..DataCondition::default() }),
            Err(silent) => Err(*silent),
        };
        let reasons = self.reasons(&control, &condition).len();
        let process = process::ProcessReport::now();
        let started = self.started;
        metrics::render(metrics::Report { control, data, process, started, reasons, took: began.elapsed() })
    }

    /// The data thread answers.
    pub async fn alive(&self) -> Result<(), Silent> {
        self.data.delay().await.map(drop)
    }

    /// Why this sheep should not be counted on yet; empty: it may be.
    pub async fn unready(&self) -> Vec<String> {
        let data = self.data.condition().await;
        self.reasons(&ControlReport::of(&self.control), &data)
    }

    fn reasons(&self, control: &ControlReport, data: &Result<DataCondition, Silent>) -> Vec<String> {
        if self.stop.is_cancelled() {
            return vec!["stopping".into()];
        }
        status::unready(control, data)
    }

    /// What is wrong with this process, for people.
    pub async fn complaints(&self) -> Vec<String> {
        let data = self.data.condition().await;
        let control = ControlReport::of(&self.control);
        let mut out = status::complaints(&control, &data);
        if let Ok(d) = &data
            && let Some(why) = &d.recovery.blocked
        {
            out.push(format!("this sheep cannot catch up: {why}"));
        }
        out
    }
}
