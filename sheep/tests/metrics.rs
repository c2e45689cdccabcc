//! The metrics port of a real sheep: what is told, when, and in which format.

mod open_metrics;

use open_metrics::Scrape;
use sheep::control::plane::{ControlConfig, ControlPlane};
use sheep::observe::{Http, Observer, gather};
use sheepdog_client::{Client, ConnectOptions, pb};
use sheepdog_cluster::{NodeAddr, NodeHello};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything here may take before the test is called failed. Not a measure of speed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Neighbouring free ports: client, peer, NBD, metrics.
fn ports() -> u16 {
    sheepdog_testing::ports(4).expect("ports")
}

struct Sheep {
    child: Child,
    port: u16,
    dir: std::path::PathBuf,
}

impl Drop for Sheep {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let text = std::fs::read_to_string(self.dir.with_extension("log")).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(25).collect();
            eprintln!("--- {}, newest first\n{}", self.dir.display(), tail.join("\n"));
        }
    }
}

impl Sheep {
    fn start(dir: std::path::PathBuf, port: u16, more: &[String]) -> Self {
        let log = std::fs::File::create(dir.with_extension("log")).expect("log file");
        let child = Command::new(env!("CARGO_BIN_EXE_sheep"))
            .args(["--bind-addr", "127.0.0.1", "--nbd"])
            .args(["--port", &port.to_string(), "--nbd-port", &(port + 2).to_string()])
            .args(["--metrics-port", &(port + 3).to_string()])
            .args(["--journal", &format!("{},size=64M", dir.join("j").display())])
            .args(more)
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("sheep starts");
        Self { child, port, dir }
    }
    fn metrics(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port + 3).into()
    }
    fn uri(&self, name: &str) -> String {
        format!("nbd://127.0.0.1:{}/{name}", self.port + 2)
    }
    async fn client(&self) -> Client {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Client::connect(ConnectOptions::new(vec![format!("127.0.0.1:{}", self.port)])).await {
                Ok(c) => return c,
                Err(e) => assert!(Instant::now() < deadline, "no answer: {e}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    async fn format(&self, copies: u32, nodes: u32) {
        let request = pb::FormatRequest {
            redundancy: Some(pb::Redundancy { copies, ..Default::default() }),
            wait_for_nodes: nodes,
            ..Default::default()
        };
        self.client().await.cluster().format(request).await.expect("formats");
    }
    async fn create(&self, name: &str) {
        let request = pb::CreateVdiRequest { name: name.into(), size: 64 << 20, ..Default::default() };
        self.client().await.vdi().create(request).await.expect("creates");
    }
    /// What `dog cluster info` gives as reasons.
    async fn reasons(&self) -> Vec<String> {
        let asked = self.client().await.cluster().info(pb::ClusterInfoRequest::default()).await;
        asked.expect("answers").into_inner().reasons
    }
    fn scrape(&self) -> Scrape {
        let (head, body) = get(self.metrics(), "/metrics");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
        Scrape::parse(&body)
    }
    /// Until /readyz gives this status and says this.
    fn until_ready_says(&self, status: u16, word: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let last = try_request(self.metrics(), "GET", "/readyz");
            if let Ok((head, body)) = &last
                && head.starts_with(&format!("HTTP/1.1 {status} "))
                && body.contains(word)
            {
                return;
            }
            assert!(Instant::now() < deadline, "/readyz is not {status} \"{word}\": {last:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn try_request(to: SocketAddr, method: &str, path: &str) -> std::io::Result<(String, String)> {
    let mut s = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    s.set_read_timeout(Some(Duration::from_secs(15)))?;
    s.write_all(format!("{method} {path} HTTP/1.1\r\nHost: sheep\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    s.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("no answer"))?;
    Ok((head.to_owned(), body.to_owned()))
}

fn get(to: SocketAddr, path: &str) -> (String, String) {
    try_request(to, "GET", path).expect("answers")
}

fn qemu_io(uri: &str, command: &str) {
    let out = Command::new("qemu-io")
        .args(["-f", "raw", "-c", command, uri])
        .stdin(Stdio::null())
        .output()
        .expect("qemu-io: scripts/setup.sh installs it");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && !text.contains("failed"), "{text}");
}

#[tokio::test]
async fn counters_move_and_readiness_flips() {
    let dir = tempfile::tempdir().expect("tempdir");
    let sheep = Sheep::start(dir.path().join("sheep"), ports(), &[]);

    sheep.until_ready_says(503, "waiting for format");
    let (head, body) = get(sheep.metrics(), "/healthz");
    assert!(head.starts_with("HTTP/1.1 200") && body == "ok\n", "before format too: {head}");
    let before = sheep.scrape();
    assert_eq!(before.value("sheepdog_cluster_formatted", &[]), 0.0);
    assert_eq!(before.value("sheepdog_node_ready", &[]), 0.0);
    assert_eq!(before.value("sheepdog_data_thread_up", &[]), 1.0);
    assert!(before.value("sheepdog_disk_size_bytes", &[]) > 0.0, "disks are known before format");

    sheep.format(1, 1).await;
    sheep.until_ready_says(200, "ready");
    sheep.create("disk").await;
    let created = sheep.scrape();
    qemu_io(&sheep.uri("disk"), "write -P 7 0 1M");
    qemu_io(&sheep.uri("disk"), "read -P 7 0 1M");
    let after = sheep.scrape();

    for (name, labels, least) in [
        ("sheepdog_vdi_requests_total", &[("vdi", "disk"), ("op", "write")][..], 1.0),
        ("sheepdog_vdi_request_bytes_total", &[("vdi", "disk"), ("op", "write")], 1048576.0),
        ("sheepdog_vdi_request_bytes_total", &[("vdi", "disk"), ("op", "read")], 1048576.0),
        ("sheepdog_vdi_request_duration_seconds_count", &[("vdi", "disk"), ("op", "read")], 1.0),
        ("sheepdog_vdi_request_duration_seconds_sum", &[("vdi", "disk"), ("op", "write")], 1e-6),
        ("sheepdog_disk_operation_bytes_total", &[("op", "write")], 1048576.0),
        ("sheepdog_disk_operation_bytes_total", &[("op", "journal")], 1048576.0),
        ("sheepdog_disk_operations_total", &[("op", "journal")], 1.0),
        ("sheepdog_disk_operation_duration_seconds_sum", &[("op", "journal")], 1e-6),
        ("sheepdog_raft_term", &[], 1.0),
        ("sheepdog_raft_last_log_index", &[], 1.0),
        ("sheepdog_control_applied_index", &[], 1.0),
        ("process_resident_memory_bytes", &[], 1048576.0),
        ("process_cpu_seconds_total", &[], 1e-3),
        ("process_open_fds", &[], 5.0),
    ] {
        let (was, is) = (created.value(name, labels), after.value(name, labels));
        // A gauge may fall: a connection that was still there at the first look is gone at the second.
        let falls = matches!(name, "process_open_fds" | "process_resident_memory_bytes");
        assert!(is >= least && (is >= was || falls), "{name} {labels:?}: {was}, then {is}");
    }
    for (name, labels, want) in [
        ("sheepdog_node_ready", &[][..], 1.0),
        ("sheepdog_node_up", &[], 1.0),
        ("sheepdog_node_state", &[("state", "up")], 1.0),
        ("sheepdog_node_state", &[("state", "down")], 0.0),
        ("sheepdog_cluster_nodes", &[("state", "up")], 1.0),
        ("sheepdog_cluster_vdis", &[], 1.0),
        ("sheepdog_disk_state", &[("state", "ok")], 1.0),
        ("sheepdog_disk_used_bytes", &[], 1048576.0),
        ("sheepdog_disk_objects", &[], 1.0),
        ("sheepdog_disk_corrupt_blocks_total", &[], 0.0),
        ("sheepdog_raft_leader", &[], 1.0),
        ("sheepdog_vdi_request_errors_total", &[("vdi", "disk"), ("op", "write")], 0.0),
        ("sheepdog_vdis_left_out", &[], 0.0),
        ("sheepdog_recovery_missing_objects", &[], 0.0),
    ] {
        assert_eq!(after.value(name, labels), want, "{name} {labels:?}");
    }
    assert!(after.value("sheepdog_node_lease_seconds", &[]) > 0.0);
    assert_eq!(after.value("sheepdog_node_synced_epoch", &[]), after.value("sheepdog_cluster_epoch", &[]));

    assert!(get(sheep.metrics(), "/").0.starts_with("HTTP/1.1 404"));
    assert!(get(sheep.metrics(), "/metrics/more").0.starts_with("HTTP/1.1 404"));
    let (head, _) = try_request(sheep.metrics(), "POST", "/metrics").expect("answers");
    assert!(head.starts_with("HTTP/1.1 405"), "{head}");
}

#[tokio::test]
async fn a_slow_client_blocks_nobody_and_is_put_out() {
    let dir = tempfile::tempdir().expect("tempdir");
    let sheep = Sheep::start(dir.path().join("sheep"), ports(), &[]);
    sheep.until_ready_says(503, "waiting");
    let mut slow: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(sheep.metrics()).expect("connects")).collect();
    for (i, s) in slow.iter_mut().enumerate() {
        // Some say nothing, some half a request, some never read the answer.
        let said: &[u8] = match i % 3 {
            0 => b"",
            1 => b"GET /metrics HTTP/1.1\r\nHo",
            _ => b"GET /metrics HTTP/1.1\r\nHost: sheep\r\n\r\n",
        };
        s.write_all(said).expect("writes");
    }
    let began = Instant::now();
    sheep.scrape();
    assert!(began.elapsed() < Duration::from_secs(2), "a scrape took {:?}", began.elapsed());
    for s in &mut slow {
        s.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        let mut rest = Vec::new();
        // Closed or reset, but ended.
        if let Err(e) = s.read_to_end(&mut rest) {
            assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}");
        }
    }
    // An endless head is refused and not gathered.
    let mut s = TcpStream::connect(sheep.metrics()).expect("connects");
    s.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let _ = s.write_all(b"GET /metrics HTTP/1.1\r\nX: ");
    let _ = (0..64).try_for_each(|_| s.write_all(&[b'x'; 1024]));
    let mut text = Vec::new();
    let _ = s.read_to_end(&mut text);
    assert!(!String::from_utf8_lossy(&text).starts_with("HTTP/1.1 200"));
    sheep.scrape();
}

#[tokio::test]
async fn peers_are_counted_and_a_lost_majority_is_told() {
    let dir = tempfile::tempdir().expect("tempdir");
    let all: Vec<u16> = (0..3).map(|_| ports()).collect();
    let start = |i: usize| {
        let seeds = all.iter().filter(|p| **p != all[i]).map(|p| format!("--seed=127.0.0.1:{}", p + 1));
        let more: Vec<String> = seeds.chain([format!("--zone=z{i}")]).collect();
        Sheep::start(dir.path().join(format!("sheep{i}")), all[i], &more)
    };
    let mut sheep: Vec<Sheep> = (0..3).map(start).collect();
    for s in &sheep {
        s.until_ready_says(503, "waiting for format");
    }
    sheep[0].format(3, 3).await;
    for s in &sheep {
        s.until_ready_says(200, "ready");
    }
    sheep[0].create("disk").await;
    qemu_io(&sheep[0].uri("disk"), "write 0 1M");
    let at_owner = sheep[0].scrape();
    assert_eq!(at_owner.all("sheepdog_peer_link_requests").len(), 2, "one series for each peer written to");
    assert_eq!(at_owner.value("sheepdog_peer_links_connected", &[]), 2.0);
    assert_eq!(at_owner.value("sheepdog_cluster_nodes", &[("state", "up")]), 3.0);
    let at_holder = sheep[1].scrape();
    assert!(at_holder.value("sheepdog_peer_request_bytes_total", &[("op", "write")]) >= 1048576.0);
    assert!(at_holder.value("sheepdog_peer_requests_total", &[("op", "write")]) >= 1.0);
    let leaders: f64 = sheep.iter().map(|s| s.scrape().value("sheepdog_raft_leader", &[])).sum();
    assert_eq!(leaders, 1.0);

    // Voters are taken in one by one after format.
    let deadline = Instant::now() + PATIENCE;
    while sheep.iter().any(|s| s.scrape().value("sheepdog_raft_voters", &[]) < 3.0) {
        assert!(Instant::now() < deadline, "three sheep, but not three voters");
        std::thread::sleep(Duration::from_millis(100));
    }
    // Everybody is asked how it is, and nobody complains.
    assert_eq!(sheep[0].reasons().await, Vec::<String>::new());

    // One misses writes, comes back, and fetches them.
    drop(sheep.pop());
    qemu_io(&sheep[0].uri("disk"), "write -P 9 8M 8M");
    sheep.push(start(2));
    sheep[2].until_ready_says(200, "ready");
    let back = sheep[2].scrape();
    let found = back.value("sheepdog_recovery_objects_found_total", &[]);
    assert!(found >= 2.0, "two objects were written meanwhile: {found}");
    assert_eq!(back.value("sheepdog_recovery_objects_done_total", &[]), found);
    assert_eq!(back.value("sheepdog_recovery_missing_objects", &[]), 0.0);
    assert!(back.value("sheepdog_recovery_fetched_bytes_total", &[]) >= 8388608.0);
    assert!(back.value("sheepdog_disk_operation_bytes_total", &[("op", "fill")]) >= 8388608.0);

    let last = sheep.remove(0);
    for s in &mut sheep {
        s.child.kill().expect("SIGKILL");
    }
    last.until_ready_says(503, "no lease");
    let (head, _) = get(last.metrics(), "/healthz");
    assert!(head.starts_with("HTTP/1.1 200"), "alive all the same: {head}");
    let alone = last.scrape();
    assert_eq!(alone.value("sheepdog_node_lease_seconds", &[]), 0.0);
    assert_eq!(alone.value("sheepdog_node_ready", &[]), 0.0);
    // The reason reaches people as well.
    let health = last.client().await.node().health(pb::HealthRequest {}).await.expect("answers").into_inner();
    assert!(!health.serving && health.reasons.iter().any(|r| r.contains("no lease")), "{health:?}");
    let reasons = last.reasons().await;
    assert!(reasons.iter().any(|r| r.starts_with("node ") && r.contains("no lease")), "{reasons:?}");
}

/// A control plane of its own and a data thread that never answers.
#[tokio::test]
async fn a_hanging_data_thread_is_told_in_time() {
    let dir = tempfile::tempdir().expect("tempdir");
    let hello = NodeHello {
        id: Default::default(),
        addr: NodeAddr { host: "127.0.0.1".into(), client_port: 1, peer_port: 2 },
        zone: None,
        weight: 1,
        vnodes: None,
        gateway: false,
        incarnation: 0,
        disks: Vec::new(),
        version: "test".into(),
        has_data: false,
    };
    let config = ControlConfig { dir: dir.path().to_owned(), hello, network: None, remembers: None };
    let (control, plane) = ControlPlane::start(config).await.expect("starts");
    let (asker, questions) = gather::channel();
    let stop = tokio_util::sync::CancellationToken::new();
    let observer = Observer::new(control, std::sync::Arc::new(plane), asker, stop.clone());
    let http = Http::start("127.0.0.1", 0, observer).await.expect("listens");
    let at = http.local_addr();
    let ask = |path: &'static str| tokio::task::spawn_blocking(move || get(at, path));
    // More at a time than the channel holds.
    let began = Instant::now();
    let asked: Vec<_> = (0..30).map(|i| ask(["/metrics", "/healthz", "/readyz"][i % 3])).collect();
    for (i, answer) in asked.into_iter().enumerate() {
        let (head, body) = answer.await.expect("answers");
        if i % 3 == 0 {
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            assert_eq!(Scrape::parse(&body).value("sheepdog_data_thread_up", &[]), 0.0);
        } else {
            assert!(head.starts_with("HTTP/1.1 503") && body.contains("does not answer"), "{head} {body}");
        }
    }
    assert!(began.elapsed() < gather::PATIENCE * 3, "took {:?}", began.elapsed());
    drop(questions);
    stop.cancel();
    let (head, body) = ask("/readyz").await.expect("answers");
    assert!(head.starts_with("HTTP/1.1 503") && body == "stopping\n", "{head} {body}");
    http.stop().await;
    assert!(TcpStream::connect(at).is_err(), "the port is closed");
}

/// `docs/metrics.md` and the exported families are the same, with the same types.
#[tokio::test]
async fn the_table_lists_what_is_exported() {
    let dir = tempfile::tempdir().expect("tempdir");
    let sheep = Sheep::start(dir.path().join("sheep"), ports(), &[]);
    sheep.until_ready_says(503, "waiting");
    let exported = sheep.scrape().families();
    let text = include_str!("../../docs/metrics.md");
    let mut listed = std::collections::BTreeMap::new();
    for line in text.lines().filter(|l| l.starts_with("| `") && !l.starts_with("| `/")) {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let (name, kind) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
        let again = listed.insert(name.trim_matches('`').to_owned(), kind.to_owned());
        assert!(again.is_none(), "{name} is listed twice");
    }
    for (name, kind) in &exported {
        assert_eq!(listed.get(name), Some(kind), "{name} is exported: list it in docs/metrics.md");
    }
    for name in listed.keys() {
        assert!(exported.contains_key(name), "{name} is in docs/metrics.md and is not exported");
    }
}
