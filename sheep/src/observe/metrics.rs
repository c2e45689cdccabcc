//! Every metric: a report becomes text in the OpenMetrics format.
//!
//! `docs/metrics.md` lists the same names; a test keeps the two equal. A family is announced even when it has no series, so that what exists does not depend on
//! what happens to run. Series are bounded: see `gather::MAX_VDIS` and `gather::MAX_PEERS`.

use super::cells::{LATENCY_BUCKETS, OpCounts};
use super::gather::{DataReport, Silent, VdiReport};
use super::process::ProcessReport;
use super::status::ControlReport;
use crate::store::{DiskState, DiskStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::time::Duration;

/// Latencies of disks are told with bounds of powers of two, from 16 us to 16 s.
const FINE: usize = 1;
/// Those of VDIs, of which there are many, with powers of four.
const COARSE: usize = 2;
/// The first bound is 2^4 us.
const FIRST: usize = 4;

/// Everything that one scrape tells.
#[derive(Debug)]
pub struct Report {
    /// Control plane.
    pub control: ControlReport,
    /// Data thread.
    pub data: Result<DataReport, Silent>,
    /// Process.
    pub process: ProcessReport,
    /// Seconds since the Unix epoch at which the process began.
    pub started: f64,
    /// This process's reasons not to be ready.
    pub reasons: usize,
    /// What gathering took.
    pub took: Duration,
}

/// The report as text.
pub fn render(report: Report) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(report));
    let mut out = String::with_capacity(16 << 10);
    prometheus_client::encoding::text::encode(&mut out, &registry)?;
    Ok(out)
}

type Labels = Vec<(&'static str, String)>;
type Row<T> = (Labels, T);

fn plain<T>(value: T) -> Vec<Row<T>> {
    vec![(Vec::new(), value)]
}

/// One series per state, 1 for the one that is so.
fn states(labels: &Labels, all: &[&'static str], now: &str) -> Vec<Row<f64>> {
    let row = |state: &&'static str| {
        let mut l = labels.clone();
        l.push(("state", (*state).to_owned()));
        (l, f64::from(u8::from(*state == now)))
    };
    all.iter().map(row).collect()
}

struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn family<T>(
        &mut self,
        (name, unit, help): (&str, Option<Unit>, &str),
        kind: MetricType,
        rows: &[Row<T>],
        one: impl Fn(&mut MetricEncoder<'_>, &T) -> fmt::Result,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for (labels, value) in rows {
            if labels.is_empty() {
                one(&mut encoder, value)?;
            } else {
                one(&mut encoder.encode_family(labels)?, value)?;
            }
        }
        Ok(())
    }
    fn gauge(&mut self, name: &str, unit: Option<Unit>, help: &str, rows: &[Row<f64>]) -> fmt::Result {
        self.family((name, unit, help), MetricType::Gauge, rows, |e, v| {
            // Whole numbers are shown as such.
            if v.fract() == 0.0 && v.abs() < 9e15 { e.encode_gauge(&(*v as i64)) } else { e.encode_gauge(v) }
        })
    }
    fn counter(&mut self, name: &str, unit: Option<Unit>, help: &str, rows: &[Row<u64>]) -> fmt::Result {
        self.family((name, unit, help), MetricType::Counter, rows, |e, v| {
            e.encode_counter::<NoLabelSet, _, u64>(v, None)
        })
    }
    fn seconds_counter(&mut self, name: &str, help: &str, rows: &[Row<f64>]) -> fmt::Result {
        self.family((name, Some(Unit::Seconds), help), MetricType::Counter, rows, |e, v| {
            e.encode_counter::<NoLabelSet, _, f64>(v, None)
        })
    }
    fn latency(&mut self, name: &str, help: &str, step: usize, rows: &[Row<OpCounts>]) -> fmt::Result {
        self.family((name, Some(Unit::Seconds), help), MetricType::Histogram, rows, |e, c| {
            let buckets = buckets(&c.latency, step);
            e.encode_histogram::<NoLabelSet>(c.nanos as f64 / 1e9, c.count, &buckets, None)
        })
    }
}

/// (upper bound in seconds, operations in it), the last without bound.
fn buckets(latency: &[u64; LATENCY_BUCKETS], step: usize) -> Vec<(f64, u64)> {
    let mut out = Vec::with_capacity(LATENCY_BUCKETS / step);
    let mut from = 0;
    for bound in (FIRST..LATENCY_BUCKETS - 1).step_by(step) {
        out.push(((1u64 << bound) as f64 / 1e6, latency[from..=bound].iter().sum()));
        from = bound + 1;
    }
    out.push((f64::INFINITY, latency[from..].iter().sum()));
    out
}

fn yes(b: bool) -> Vec<Row<f64>> {
    plain(f64::from(u8::from(b)))
}

fn number(n: u64) -> Vec<Row<f64>> {
    plain(n as f64)
}

impl Collector for Report {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut page = Page(encoder);
        let nothing = DataReport::default();
        let data = self.data.as_ref().unwrap_or(&nothing);
        self.node(&mut page)?;
        self.raft(&mut page)?;
        disks(&mut page, &data.disks)?;
        peers(&mut page, data)?;
        vdis(&mut page, data)?;
        recovery(&mut page, data)?;
        scrub(&mut page, data)?;
        self.process(&mut page)
    }
}

impl Report {
    fn node(&self, p: &mut Page<'_>) -> fmt::Result {
        let c = &self.control;
        let info = vec![
            ("node", c.node.clone()),
            ("cluster", c.cluster.clone()),
            ("zone", c.zone.clone()),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        p.gauge("sheepdog_node_info", None, "Always 1; the labels tell who this is", &[(info, 1.0)])?;
        p.gauge("sheepdog_node_ready", None, "1 when /readyz says so", &yes(self.reasons == 0))?;
        p.gauge(
            "sheepdog_node_up",
            None,
            "1 when the cluster counts this process as serving (up or draining)",
            &yes(c.up),
        )?;
        p.gauge(
            "sheepdog_node_state",
            None,
            "1 for the state of this node in the cluster's map",
            &states(&Vec::new(), &["up", "draining", "down", "out", "unknown"], c.state),
        )?;
        p.gauge(
            "sheepdog_node_synced_epoch",
            None,
            "Epoch up to which this node is complete",
            &number(c.synced),
        )?;
        p.gauge(
            "sheepdog_node_lease",
            Some(Unit::Seconds),
            "How much longer this node may serve without hearing from the leader",
            &plain(c.lease.as_secs_f64()),
        )?;
        p.gauge("sheepdog_cluster_formatted", None, "1 once the cluster is formatted", &yes(c.formatted))?;
        p.gauge("sheepdog_cluster_epoch", None, "Epoch of the map, as known here", &number(c.epoch))?;
        let nodes: Vec<_> =
            c.nodes.iter().map(|(s, n)| (vec![("state", (*s).to_owned())], *n as f64)).collect();
        p.gauge("sheepdog_cluster_nodes", None, "Nodes in the map by state, as known here", &nodes)?;
        p.gauge("sheepdog_cluster_vdis", None, "VDIs that can be written", &number(c.vdis))?;
        p.gauge("sheepdog_cluster_snapshots", None, "Snapshots of all VDIs", &number(c.snapshots))?;
        p.gauge(
            "sheepdog_cluster_trash_items",
            None,
            "Deleted VDIs and snapshots that still take space",
            &number(c.trash),
        )?;
        p.gauge(
            "sheepdog_cluster_trash_vdi_size",
            Some(Unit::Bytes),
            "Sizes of the VDIs in the trash, as their users saw them",
            &number(c.trash_size),
        )?;
        p.gauge(
            "sheepdog_data_thread_up",
            None,
            "1 when the data thread answered in time",
            &yes(self.data.is_ok()),
        )?;
        let delay = self.data.as_ref().map_or(Vec::new(), |d| plain(d.delay.as_secs_f64()));
        p.gauge(
            "sheepdog_data_thread_delay",
            Some(Unit::Seconds),
            "From the question to the data thread's answer: how busy its loop is",
            &delay,
        )?;
        p.gauge(
            "sheepdog_scrape_duration",
            Some(Unit::Seconds),
            "What gathering these metrics took",
            &plain(self.took.as_secs_f64()),
        )
    }

    fn raft(&self, p: &mut Page<'_>) -> fmt::Result {
        let c = &self.control;
        let known = |n: Option<u64>| n.map_or(Vec::new(), number);
        p.gauge("sheepdog_raft_leader", None, "1 when this node leads, and is sure of it", &yes(c.leading))?;
        p.gauge(
            "sheepdog_raft_leader_known",
            None,
            "1 when this node knows who leads",
            &yes(c.leader_known),
        )?;
        p.gauge("sheepdog_raft_voter", None, "1 when this node votes", &yes(c.voter))?;
        p.gauge("sheepdog_raft_voters", None, "Voters as known here", &number(c.voters))?;
        p.gauge("sheepdog_raft_term", None, "Raft's term", &number(c.term))?;
        p.gauge(
            "sheepdog_raft_last_log_index",
            None,
            "Newest entry of this node's log; none where raft keeps no log",
            &known(c.last_log),
        )?;
        p.gauge(
            "sheepdog_raft_applied_index",
            None,
            "Newest entry that raft has applied here; none on a node that only watches",
            &known(c.last_applied),
        )?;
        p.gauge(
            "sheepdog_control_applied_index",
            None,
            "Position of the cluster's state here, by raft or by watching",
            &number(c.applied),
        )?;
        let relayed = "Control links from here that go through a third sheep, for want of a direct one";
        p.gauge("sheepdog_control_links_relayed", None, relayed, &number(c.relayed))
    }

    fn process(&self, p: &mut Page<'_>) -> fmt::Result {
        let r = &self.process;
        p.gauge("process_resident_memory", Some(Unit::Bytes), "Resident memory", &number(r.resident))?;
        p.seconds_counter("process_cpu", "CPU time used, user and system", &plain(r.cpu_seconds))?;
        p.gauge("process_open_fds", None, "File descriptors open", &number(r.open_fds))?;
        p.gauge("process_max_fds", None, "File descriptors allowed", &number(r.max_fds))?;
        p.gauge("process_threads", None, "Threads", &number(r.threads))?;
        p.gauge(
            "process_start_time",
            Some(Unit::Seconds),
            "When the process began, since the Unix epoch",
            &plain(self.started),
        )
    }
}

fn disks(p: &mut Page<'_>, disks: &[DiskStats]) -> fmt::Result {
    let labels = |d: &DiskStats| vec![("disk", d.id.to_string()), ("path", d.path.clone())];
    let each = |f: fn(&DiskStats) -> u64| -> Vec<Row<f64>> {
        disks.iter().map(|d| (labels(d), f(d) as f64)).collect()
    };
    let bytes = Some(Unit::Bytes);
    p.gauge("sheepdog_disk_size", bytes.clone(), "Size of the disk's file system", &each(|d| d.total))?;
    p.gauge("sheepdog_disk_free", bytes.clone(), "Free on it, as of the last checkpoint", &each(|d| d.free))?;
    p.gauge("sheepdog_disk_used", bytes.clone(), "Contents of objects", &each(|d| d.used))?;
    p.gauge("sheepdog_disk_objects", None, "Objects", &each(|d| d.objects))?;
    let state = |d: &DiskStats| {
        let now = match d.state {
            DiskState::Ok => "ok",
            DiskState::Full => "full",
            DiskState::Failed(_) => "failed",
        };
        states(&labels(d), &["ok", "full", "failed"], now)
    };
    p.gauge(
        "sheepdog_disk_state",
        None,
        "1 for the disk's state",
        &disks.iter().flat_map(state).collect::<Vec<_>>(),
    )?;
    let suspect: Vec<_> =
        disks.iter().map(|d| (labels(d), f64::from(u8::from(d.opinion.suspect.is_some())))).collect();
    p.gauge("sheepdog_disk_suspect", None, "1 for a disk that is much slower than it should be", &suspect)?;
    let full = |d: &DiskStats| d.opinion.full_in.map(|t| (labels(d), t.as_secs_f64()));
    p.gauge(
        "sheepdog_disk_full_in",
        Some(Unit::Seconds),
        "When it will be full, if it goes on as it has gone",
        &disks.iter().filter_map(full).collect::<Vec<_>>(),
    )?;
    p.gauge("sheepdog_disk_journal_size", bytes.clone(), "Size of the journal", &each(|d| d.journal_size))?;
    p.gauge(
        "sheepdog_disk_journal_used",
        bytes.clone(),
        "Part of the journal that no checkpoint has freed yet",
        &each(|d| d.journal_used),
    )?;
    p.gauge(
        "sheepdog_disk_journal_queued",
        bytes.clone(),
        "Payload that waits for its journal batch",
        &each(|d| d.journal_queued),
    )?;
    p.gauge(
        "sheepdog_disk_journal_queued_records",
        None,
        "Records that wait for their journal batch",
        &each(|d| d.journal_records),
    )?;
    p.gauge(
        "sheepdog_disk_overlay",
        bytes.clone(),
        "Journaled, and kept in memory until the next checkpoint",
        &each(|d| d.overlay),
    )?;
    let corrupt: Vec<_> = disks.iter().map(|d| (labels(d), d.corrupt_blocks)).collect();
    p.counter(
        "sheepdog_disk_corrupt_blocks",
        None,
        "Blocks read that did not match their checksum",
        &corrupt,
    )?;
    let ops: Vec<Row<OpCounts>> =
        disks.iter().flat_map(|d| d.ops.iter().map(move |(op, c)| (with_op(&labels(d), op), *c))).collect();
    op_families(p, "sheepdog_disk_operation", "Operations of the disk", &ops, FINE)
}

fn with_op(labels: &Labels, op: &str) -> Labels {
    let mut l = labels.clone();
    l.push(("op", op.to_owned()));
    l
}

/// `NAMEs_total`, `NAME_bytes_total`, `NAME_errors_total`, `NAME_duration_seconds`.
fn op_families(p: &mut Page<'_>, name: &str, what: &str, rows: &[Row<OpCounts>], step: usize) -> fmt::Result {
    let each =
        |f: fn(&OpCounts) -> u64| -> Vec<Row<u64>> { rows.iter().map(|(l, c)| (l.clone(), f(c))).collect() };
    let text = |rest: &str| format!("{what} by kind{rest}");
    p.counter(&format!("{name}s"), None, &text(", also failed ones"), &each(|c| c.count))?;
    p.counter(name, Some(Unit::Bytes), &text(", bytes"), &each(|c| c.bytes))?;
    p.counter(&format!("{name}_errors"), None, &text(" that failed"), &each(|c| c.errors))?;
    p.latency(&format!("{name}_duration"), &text(", from start to end"), step, rows)
}

fn peers(p: &mut Page<'_>, d: &DataReport) -> fmt::Result {
    let depth: Vec<_> = d.links.iter().map(|l| (vec![("peer", l.to.to_string())], l.depth as f64)).collect();
    p.gauge(
        "sheepdog_peer_link_requests",
        None,
        "Requests to a peer that wait for its answer; at most 200 peers, the deepest",
        &depth,
    )?;
    p.gauge(
        "sheepdog_peer_requests_waiting",
        None,
        "Requests to all peers that wait for an answer",
        &number(d.links_total.0),
    )?;
    p.gauge("sheepdog_peer_links_connected", None, "Connections to peers", &number(d.links_total.1))?;
    let relayed = "Connections to peers that go through a third sheep, for want of a direct one";
    p.gauge("sheepdog_peer_links_relayed", None, relayed, &number(d.links_total.2))?;
    let ops: Vec<Row<OpCounts>> = d
        .peer_ops
        .iter()
        .filter(|(op, _)| !op.is_empty())
        .map(|(op, c)| (vec![("op", (*op).to_owned())], *c))
        .collect();
    op_families(p, "sheepdog_peer_request", "Requests of other sheep", &ops, FINE)?;
    p.gauge(
        "sheepdog_peer_requests_in_flight",
        None,
        "Requests of other sheep being worked on",
        &number(d.peer_in_flight),
    )
}

fn vdis(p: &mut Page<'_>, d: &DataReport) -> fmt::Result {
    // Wide enough for every id, as in `dog vdi list`.
    let labels = |v: &VdiReport| vec![("vdi", v.name.clone()), ("id", format!("{:06x}", v.vdi.0))];
    let ops: Vec<Row<OpCounts>> =
        d.vdis.iter().flat_map(|v| v.ops.iter().map(move |(op, c)| (with_op(&labels(v), op), *c))).collect();
    op_families(p, "sheepdog_vdi_request", "Requests of this sheep's clients", &ops, COARSE)?;
    let each = |f: fn(&VdiReport) -> u64| -> Vec<Row<f64>> {
        d.vdis.iter().map(|v| (labels(v), f(v) as f64)).collect()
    };
    p.gauge(
        "sheepdog_vdi_requests_in_flight",
        None,
        "Requests of this sheep's clients being worked on",
        &each(|v| v.in_flight),
    )?;
    p.gauge("sheepdog_vdi_connections", None, "Clients attached here", &each(|v| v.connections))?;
    p.gauge(
        "sheepdog_vdis_left_out",
        None,
        "VDIs without series of their own: the 200 in use or busiest have them",
        &number(d.vdis_left_out),
    )?;
    p.gauge("sheepdog_sessions", None, "Sessions of VDIs that this node owns", &number(d.sessions))?;
    p.gauge("sheepdog_nbd_connections", None, "Connections of NBD clients", &number(d.nbd_connections))?;
    p.counter(
        "sheepdog_nbd_refused_requests",
        None,
        "NBD requests refused before they reached a volume",
        &plain(d.nbd_refused),
    )?;
    let c = d.cache.unwrap_or_default();
    p.gauge(
        "sheepdog_cache_size",
        Some(Unit::Bytes),
        "Bytes that the cache of blocks may hold",
        &number(c.size),
    )?;
    p.gauge(
        "sheepdog_cache_used",
        Some(Unit::Bytes),
        "Bytes that the cache of blocks holds",
        &number(c.used),
    )?;
    p.counter("sheepdog_cache_hits", None, "Reads answered from the cache of blocks", &plain(c.hits))?;
    p.counter(
        "sheepdog_cache_misses",
        None,
        "Reads that the cache of blocks could not answer",
        &plain(c.misses),
    )
}

fn recovery(p: &mut Page<'_>, d: &DataReport) -> fmt::Result {
    let r = &d.recovery;
    p.gauge("sheepdog_recovery_active", None, "1 while this node catches up", &yes(r.progress.active))?;
    p.gauge(
        "sheepdog_recovery_blocked",
        None,
        "1 while it cannot: another node has to come back first, or there is no room",
        &yes(r.blocked.is_some()),
    )?;
    p.gauge("sheepdog_recovery_missing_objects", None, "Objects still to be fetched", &number(r.missing))?;
    p.gauge(
        "sheepdog_recovery_damaged_objects",
        None,
        "Objects with damaged blocks that wait for another copy",
        &number(r.damaged),
    )?;
    p.counter(
        "sheepdog_recovery_objects_found",
        None,
        "Objects found missing or stale",
        &plain(r.progress.total),
    )?;
    p.counter("sheepdog_recovery_objects_done", None, "Of these, put right", &plain(r.progress.done))?;
    p.counter(
        "sheepdog_recovery_fetched",
        Some(Unit::Bytes),
        "Contents fetched from other nodes",
        &plain(r.progress.bytes),
    )?;
    p.gauge(
        "sheepdog_background_rate_bytes",
        None,
        "Bytes a second that background work may move beside clients; 0: nobody to make way for",
        &number(r.rate.unwrap_or(0)),
    )
}

fn scrub(p: &mut Page<'_>, d: &DataReport) -> fmt::Result {
    let (s, t) = (&d.scrub, &d.scrub.sum);
    p.counter("sheepdog_scrub_passes", None, "Times that everything here was looked at", &plain(s.passes))?;
    p.counter("sheepdog_scrub_objects", None, "Files of objects and strips looked at", &plain(t.objects))?;
    p.counter("sheepdog_scrub_read", Some(Unit::Bytes), "Contents read for it", &plain(t.bytes))?;
    p.counter("sheepdog_scrub_found", None, "Damage found, also by reads", &plain(t.found))?;
    p.counter("sheepdog_scrub_mended", None, "Of it, put right", &plain(t.mended))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_operation_is_lost_between_buckets() {
        let latency: [u64; LATENCY_BUCKETS] = std::array::from_fn(|i| 1 << i);
        for step in [FINE, COARSE] {
            let b = buckets(&latency, step);
            assert_eq!(b.iter().map(|(_, n)| n).sum::<u64>(), latency.iter().sum::<u64>());
            assert!(b.is_sorted_by(|a, b| a.0 < b.0));
            assert_eq!(b[0].0, 16e-6);
            assert_eq!(b.last().map(|b| b.0), Some(f64::INFINITY));
        }
        // What took less than 2^6 us is below the bound of 64 us.
        assert_eq!(buckets(&latency, COARSE)[1], (64e-6, (1 << 5) + (1 << 6)));
    }

    #[test]
    fn labels_cannot_break_the_format() {
        let mut data = DataReport::default();
        data.vdis.push(VdiReport { name: "a\"} 1\nevil 2\\".into(), connections: 1, ..VdiReport::default() });
        let report = Report {
            control: ControlReport::default(),
            data: Ok(data),
            process: ProcessReport::default(),
            started: 0.0,
            reasons: 0,
            took: Duration::ZERO,
        };
        let text = render(report).expect("encodes");
        assert!(text.contains(r#"sheepdog_vdi_connections{vdi="a\"} 1\nevil 2\\",id="000000"} 1"#), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
