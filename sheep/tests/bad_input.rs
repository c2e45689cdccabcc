//! A real sheep and whatever may be thrown at it: on every port, on its command line, and on its disk. Clear errors, no panic, no growth.

#![allow(clippy::unwrap_used)] // in a test, that is how it fails

use sheepdog_client::{Client, ConnectOptions, pb};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything here may take before the test is called failed. Not a measure of speed.
const PATIENCE: Duration = Duration::from_secs(60);
/// A connection that never completes what it began is cut by the sheep within this: its longest limit is 10 s.
const CUT: Duration = Duration::from_secs(30);
/// How much larger a sheep may be after all of this, bytes.
const GROWTH: u64 = 64 << 20;
const MIB: usize = 1 << 20;

/// Neighbouring free ports: client, peer, NBD, metrics.
fn ports() -> u16 {
    sheepdog_testing::ports(4).expect("ports")
}

fn log_of(dir: &Path) -> PathBuf {
    dir.with_extension("log")
}

fn command(dir: &Path, port: u16) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_sheep"));
    for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("SHEEP_")) {
        c.env_remove(name);
    }
    let port = |n: u16| (port + n).to_string();
    c.args(["--bind-addr", "127.0.0.1", "--nbd", "--journal", ",size=32M", "--log-level", "info"]);
    c.args(["--cluster-driver", "sdcluster", "--port", &port(0), "--nbd-port", &port(2)]);
    c.args(["--metrics-port", &port(3)]).arg(dir);
    c.stdin(Stdio::null()).stdout(Stdio::null());
    c
}

struct Sheep {
    child: Child,
    port: u16,
    dir: PathBuf,
}

impl Drop for Sheep {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let text = std::fs::read_to_string(log_of(&self.dir)).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(25).collect();
            eprintln!("--- {}, newest first\n{}", self.dir.display(), tail.join("\n"));
        }
    }
}

impl Sheep {
    fn start(dir: &Path) -> Self {
        let port = ports();
        let log = std::fs::File::create(log_of(dir)).unwrap();
        let child = command(dir, port).stderr(log).spawn().unwrap();
        Self { child, port, dir: dir.into() }
    }
    /// Formatted, with a VDI that has data.
    async fn with_data(dir: &Path) -> Self {
        let sheep = Self::start(dir);
        let c = sheep.client().await;
        let redundancy = Some(pb::Redundancy { copies: 1, ..Default::default() });
        let format = pb::FormatRequest { redundancy, wait_for_nodes: 1, ..Default::default() };
        c.cluster().format(format).await.unwrap();
        let vdi = pb::CreateVdiRequest { name: "vol".into(), size: 64 << 20, ..Default::default() };
        c.vdi().create(vdi).await.unwrap();
        sheep.write(0, 0x5a).await;
        sheep
    }
    fn at(&self, n: u16) -> SocketAddr {
        ([127, 0, 0, 1], self.port + n).into()
    }
    async fn client(&self) -> Client {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Client::connect(ConnectOptions::new(vec![self.at(0).to_string()])).await {
                Ok(c) => return c,
                Err(e) => assert!(Instant::now() < deadline, "no answer: {e}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    async fn write(&self, offset: u64, value: u8) {
        use pb::write_request::Message;
        let chunk = pb::Chunk { offset, data: vec![value; 4096].into(), zeros: 0 };
        let messages = [Message::Vdi(pb::VdiRef::name("vol")), Message::Chunk(chunk)]
            .map(|message| pb::WriteRequest { message: Some(message), attachment: 0 });
        let mut acks =
            self.client().await.vdi().write(tokio_stream::iter(messages)).await.unwrap().into_inner();
        assert_eq!(acks.message().await.unwrap().unwrap().durable, 4096);
    }
    async fn read(&self) -> Result<Vec<u8>, String> {
        let request =
            pb::ReadRequest { vdi: Some(pb::VdiRef::name("vol")), length: Some(4096), ..Default::default() };
        let c = self.client().await;
        let mut chunks = c.vdi().read(request).await.map_err(|e| e.to_string())?.into_inner();
        let mut out = Vec::new();
        while let Some(c) = chunks.message().await.map_err(|e| e.to_string())? {
            out.extend(c.data);
            out.resize(out.len() + c.zeros as usize, 0);
        }
        Ok(out)
    }
    fn rss(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }
    fn log(&self) -> String {
        std::fs::read_to_string(log_of(&self.dir)).unwrap()
    }
    /// As good as before.
    async fn is_well(&mut self, before: u64) {
        assert_eq!(self.read().await.unwrap(), vec![0x5a; 4096]);
        assert!(self.child.try_wait().unwrap().is_none(), "it has ended");
        assert!(!self.log().contains("panicked"));
        let deadline = Instant::now() + PATIENCE;
        while self.rss() > before + GROWTH {
            assert!(Instant::now() < deadline, "it grew from {before} to {} bytes", self.rss());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn connect(to: SocketAddr) -> TcpStream {
    let s = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
    s.set_read_timeout(Some(PATIENCE)).unwrap();
    s.set_write_timeout(Some(PATIENCE)).unwrap();
    s
}

/// Bytes that mean nothing, or less than they say, to each of the ports.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let noise = |n: usize| {
        (0..n).scan(1u32, |x, _| {
            *x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some((*x >> 24) as u8)
        })
    };
    let control = |header: &[u8]| [b"SHPD\x01\x00\x02\x00", header].concat();
    let data = |header: &[u8]| [b"SHPD\x01\x00\x01\x00", header].concat();
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    vec![
        ("nothing", Vec::new()),
        ("a byte", vec![0]),
        ("zeros", vec![0; MIB]),
        ("ones", vec![0xff; MIB]),
        ("noise", noise(MIB).collect()),
        ("http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("a head without end", [b"GET / HTTP/1.1\r\nx: ".to_vec(), vec![b'a'; MIB]].concat()),
        ("many heads", [b"GET /metrics HTTP/1.1\r\n".to_vec(), b"a: b\r\n".repeat(50_000)].concat()),
        ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("http2, then noise", [http2.clone(), noise(MIB).collect()].concat()),
        (
            "http2, a frame of 16 MiB",
            [http2.clone(), b"\xff\xff\xff\x00\x00\x00\x00\x00\x01".to_vec()].concat(),
        ),
        ("http2, settings without end", [http2, b"\0\0\0\x04\0\0\0\0\0".repeat(100_000)].concat()),
        ("another preface", b"SHPD\x09\x00\x01\x00".to_vec()),
        ("unknown link", b"SHPD\x01\x00\x09\x00".to_vec()),
        ("control link, a frame of 4 GiB", control(&[0xff; 20])),
        (
            "control link, a hello of 64 MiB",
            control(&[0, 0, 0, 4, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ),
        ("control link, noise", control(&noise(MIB).collect::<Vec<_>>())),
        ("data link, noise", data(&noise(MIB).collect::<Vec<_>>())),
        ("data link, zeros", data(&[0; 5000])),
        ("nbd, an option of 4 GiB", b"\0\0\0\x03IHAVEOPT\0\0\0\x07\xff\xff\xff\xff".to_vec()),
        ("nbd, unknown flags", vec![0xff; 4]),
        ("nbd, no such export", b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04nope".to_vec()),
        (
            "nbd, a request of 64 MiB",
            [
                b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x03vol".to_vec(),
                b"\x25\x60\x95\x13\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\x04\0\0\x01".to_vec(),
            ]
            .concat(),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_in_on_any_port() {
    let dir = tempfile::tempdir().unwrap();
    let mut sheep = Sheep::with_data(&dir.path().join("s")).await;
    let before = sheep.rss();
    for n in 0..4 {
        for (what, bytes) in garbage() {
            // And hang up, at once or after having heard what it says to that.
            let mut s = connect(sheep.at(n));
            let _ = s.write_all(&bytes); // it may hang up in the middle of it
            drop(s);
            let mut s = connect(sheep.at(n));
            let _ = s.write_all(&bytes);
            let _ = s.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = s.read_to_end(&mut answer);
            assert!(answer.len() < MIB, "port {n}, {what}: {} bytes came back", answer.len());
        }
        sheep.is_well(before).await;
    }
}

/// Reads until the other side hangs up; how long that took.
fn until_cut(mut s: TcpStream) -> Duration {
    let began = Instant::now();
    let mut buf = [0; 4096];
    while s.read(&mut buf).is_ok_and(|n| n > 0) {}
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slow_are_cut_and_delay_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let mut sheep = Sheep::with_data(&dir.path().join("s")).await;
    let before = sheep.rss();
    // NBD gives a person's time: that one is tried against a server with shorter limits, in nbd_server.
    let opening: [(u16, &[u8]); 8] = [
        (0, b""),
        (0, b"PRI * HTTP/2.0\r\n\r\nSM"),
        (1, b""),
        (1, b"SHPD\x01"),
        (1, b"SHPD\x01\x00\x01\x00"),
        (1, b"SHPD\x01\x00\x02\x00\x00\x04\x00\x00\x01\x01"),
        (3, b""),
        (3, b"GET /metrics HT"),
    ];
    let mut waiting = Vec::new();
    for (n, bytes) in opening {
        for slow in [false, true] {
            let mut s = connect(sheep.at(n));
            s.write_all(bytes).unwrap();
            if slow {
                // A byte now and then, for as long as it is taken.
                let mut drip = s.try_clone().unwrap();
                std::thread::spawn(move || {
                    while drip.write_all(b"P").is_ok() {
                        std::thread::sleep(Duration::from_millis(500));
                    }
                });
            }
            waiting.push((n, bytes, slow, std::thread::spawn(move || until_cut(s))));
        }
    }
    // Meanwhile others are served.
    assert_eq!(sheep.read().await.unwrap(), vec![0x5a; 4096]);
    for (n, bytes, slow, thread) in waiting {
        let took = tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap();
        assert!(took < CUT, "port {n}, {bytes:?}, slow {slow}: cut after {took:?} only");
    }
    sheep.is_well(before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut sheep = Sheep::with_data(&dir.path().join("s")).await;
    let before = sheep.rss();
    for n in 0..4 {
        let mut held: Vec<TcpStream> = (0..200).map(|_| connect(sheep.at(n))).collect();
        for (i, s) in held.iter_mut().enumerate() {
            let all = garbage();
            let (_, bytes) = &all[i % all.len()];
            let _ = s.write_all(&bytes[..bytes.len().min(30)]);
        }
        // While they are there; on the admin port they would be in the way of a read, for a while.
        if n != 0 {
            assert_eq!(sheep.read().await.unwrap(), vec![0x5a; 4096]);
        }
        drop(held);
    }
    sheep.is_well(before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense() {
    let dir = tempfile::tempdir().unwrap();
    let mut sheep = Sheep::with_data(&dir.path().join("s")).await;
    let before = sheep.rss();
    let c = sheep.client().await;
    let vol = || Some(pb::VdiRef::name("vol"));
    let long = "x".repeat(3 << 20);
    let mut refused = Vec::new();
    for (offset, length) in
        [(u64::MAX, None), (u64::MAX, Some(u64::MAX)), (0, Some(u64::MAX)), (1 << 40, Some(1))]
    {
        let r = pb::ReadRequest { vdi: vol(), offset, length, ..Default::default() };
        refused.push(match c.vdi().read(r).await {
            Err(e) => e.to_string(),
            Ok(s) => match s.into_inner().message().await {
                Ok(None) => "nothing".into(), // no bytes beyond the end
                other => format!("{:?}", other.expect_err("refused")),
            },
        });
    }
    for (name, size) in
        [("", 1 << 20), ("a/b", 1 << 20), (&*long, 1 << 20), ("n", u64::MAX), ("n", 1), ("n\0", 512)]
    {
        let r = pb::CreateVdiRequest { name: name.into(), size, ..Default::default() };
        refused.push(c.vdi().create(r).await.unwrap_err().to_string());
    }
    for object_size in [1, 3 << 20, u32::MAX] {
        let r = pb::CreateVdiRequest { name: "n".into(), size: 1 << 20, object_size, ..Default::default() };
        refused.push(c.vdi().create(r).await.unwrap_err().to_string());
    }
    for (copies, data, parity) in [(300, 0, 0), (17, 0, 0), (1, 2, 1), (0, u32::MAX, u32::MAX), (0, 2, 1)] {
        let redundancy = Some(pb::Redundancy { copies, data, parity });
        let r = pb::CreateVdiRequest { name: "n".into(), size: 1 << 20, redundancy, ..Default::default() };
        refused.push(c.vdi().create(r).await.unwrap_err().to_string());
    }
    for size in [0, 1, u64::MAX, u64::MAX - 511] {
        let r = pb::ResizeRequest { vdi: vol(), size, shrink: true };
        refused.push(c.vdi().resize(r).await.unwrap_err().to_string());
    }
    for (key, value) in
        [(long.clone(), Vec::new()), (String::new(), Vec::new()), ("k".into(), vec![0; 3 << 20])]
    {
        let r = pb::SetAttrRequest { vdi: vol(), key, value: Some(value), exclusive: false };
        refused.push(c.vdi().set_attr(r).await.unwrap_err().to_string());
    }
    for index in [16, u32::MAX] {
        let r = pb::LocateRequest { vdi: vol(), index, ..Default::default() };
        refused.push(c.vdi().locate(r).await.unwrap_err().to_string());
        let r = pb::TrackRequest { vdi: vol(), index };
        refused.push(c.vdi().track(r).await.unwrap_err().to_string());
    }
    let none = pb::GetVdiRequest { vdi: Some(pb::VdiRef { by: None }), usage: true };
    refused.push(c.vdi().get(none).await.unwrap_err().to_string());
    let uuid = Some(pb::VdiRef { by: Some(pb::vdi_ref::By::Uuid(long.clone())) });
    refused.push(c.vdi().get(pb::GetVdiRequest { vdi: uuid, usage: false }).await.unwrap_err().to_string());
    let many = pb::SnapshotRequest { vdis: vec![pb::VdiRef::id(1); 50_000], tag: "t".into() };
    refused.push(c.vdi().snapshot(many).await.unwrap_err().to_string());
    let tag = pb::SnapshotRequest { vdis: vec![pb::VdiRef::name("vol")], tag: long.clone() };
    refused.push(c.vdi().snapshot(tag).await.unwrap_err().to_string());
    let weight = pb::SetWeightRequest { vnodes: Some(u32::MAX), ..Default::default() };
    refused.push(c.node().set_weight(weight).await.unwrap_err().to_string());
    let level = pb::LogLevelRequest { level: "verbose".into(), ..Default::default() };
    refused.push(c.node().log_level(level).await.unwrap_err().to_string());
    let path = pb::PlugDiskRequest { path: long, ..Default::default() };
    refused.push(c.node().plug_disk(path).await.unwrap_err().to_string());
    assert!(refused.iter().all(|text| !text.trim().is_empty()), "{refused:#?}");
    sheep.is_well(before).await;
}

/// Run a sheep that is to end by itself.
fn run(mut c: Command) -> Output {
    let mut child = c.stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("it does not end: {c:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// Words, exit code, and what the message has in it: the option, or what to do.
type Case<'a> = (&'a [&'a str], i32, &'a str);

#[test]
fn options_that_make_no_sense() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path().join("d");
    let file = dir.path().join("file");
    std::fs::write(&file, "prot = 7000\n").unwrap();
    let (d, file) = (d.to_str().unwrap(), file.to_str().unwrap());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let free = ports().to_string();
    let twice = format!("{d},{d}");
    let two = format!("{d},{d}2");
    let table: &[Case<'_>] = &[
        (&[], 64, "DIR"),
        (&[","], 64, "DIR"),
        (&[&twice], 64, "twice"),
        (&["-g", &two], 64, "--gateway"),
        (&["--frobnicate", d], 64, "--frobnicate"),
        (&[d, "/another"], 64, "unexpected argument"),
        (&["-p", "0", d], 64, "--port"),
        (&["-p", "-1", d], 64, "-1"),
        (&["-p", "70000", d], 64, "65535"),
        (&["-p", "http", d], 64, "http"),
        (&["-p", "65535", d], 64, "--port"),
        (&["--cluster-port-offset", "0", d], 64, "--cluster-port-offset"),
        (&["--metrics-port", "7000", d], 64, "--metrics-port"),
        (&["--metrics-port", "7001", d], 64, "--metrics-port"),
        (&["--nbd", "--nbd-port", "7001", d], 64, "--nbd-port"),
        (&["--nbd", "--metrics-port", "10809", d], 64, "--metrics-port"),
        (&["-b", "0.0.0.0", d], 64, "dog secret new"),
        (&["--bind-addr=", "--insecure", d], 64, "--bind-addr"),
        (&["--advertise-addr=", d], 64, "--advertise-addr"),
        (&["-b", "300.1.1.1", "--insecure", d], 1, "--bind-addr"),
        (&["-p", &port, d], 1, "--port"),
        (&["-p", &free, "--nbd", "--nbd-port", &port, d], 1, "--nbd-port"),
        (&["-c", "0", d], 64, "1 to 16"),
        (&["-c", "17", d], 64, "1 to 16"),
        (&["-c", "300", d], 64, "300"),
        (&["-c", "2", "--min-copies", "3", d], 64, "--min-copies"),
        (&["--copy-policy", "2-1", d], 64, "D:P, data and parity strips"),
        (&["--http-port", "80", d], 64, "not part of this release"),
        (&["--nfs", d], 64, "not part of this release"),
        (&["--dpdk", d], 64, "not part of this release"),
        (&["--zone=", d], 64, "--zone"),
        (&["--vnodes", "0", d], 64, "--gateway"),
        (&["--vnodes", "65537", d], 64, "--vnodes"),
        (&["--vnodes", "-3", d], 64, "-3"),
        (&["--journal", "/j,size=1k", d], 64, "32M"),
        (&["--journal", "/j,size=-64M", d], 64, "is not a size"),
        (&["--journal", "/j,size=99999999P", d], 64, "is not a size"),
        (&["--journal", "/j,size=9P", d], 64, "1T"),
        (&["--journal", "/j,speed=9", d], 64, "DIR[,size=SIZE]"),
        (&["-w", "--cache-size", "0", d], 64, "--cache-size"),
        (&["-w", "--cache-size", "18446744073709551615", d], 64, "--cache-size"),
        (&["--store", "flat", d], 64, "tree"),
        (&["--cluster-driver", "zookeeper", d], 64, "sdcluster"),
        (&["--cluster-driver", "local", "--seed", "127.0.0.1:7001", d], 64, "--seed"),
        (&["--seed", "host", d], 64, "HOST:PORT"),
        (&["--seed", "host:99999", d], 64, "HOST:PORT"),
        (&["--seed", ":7001", d], 64, "HOST:PORT"),
        (&["--lease", "1s", d], 64, "--lease"),
        (&["--lease", "soon", d], 64, "is not a time"),
        (&["--lease", "0", d], 64, "is not a time"),
        (&["--lease=-4s", d], 64, "is not a time"),
        (&["--heartbeat-interval", "18446744073709551615ms", d], 64, "is not a time"),
        (&["--down-out-interval", "1s", d], 64, "--down-out-interval"),
        (&["--recovery-max-bytes-per-s", "fast", d], 64, "is not a size"),
        (&["--log-level", "verbose", d], 64, "error, warn, info"),
        (&["--log-level", "sheep=loud", d], 64, "--log-level"),
        (&["--log-format", "xml", d], 64, "json"),
        (&["--secret-file", "/nonexistent", d], 1, "dog secret new"),
        (&["--secret-file", file, d], 1, "chmod 600"),
        (&["--config", "/nonexistent", d], 64, "/nonexistent"),
        (&["--config", "/dev/zero", d], 64, "1 MiB"),
        (&["--config", file, d], 64, "--prot"),
        (&["/dev/null"], 1, "must be a directory"),
        (&["/proc/nowhere"], 1, "must be a directory"),
    ];
    for (words, code, said) in table {
        let mut c = Command::new(env!("CARGO_BIN_EXE_sheep"));
        for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("SHEEP_")) {
            c.env_remove(name);
        }
        c.args(*words).stdin(Stdio::null()).stdout(Stdio::null());
        let out = run(c);
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(*code), "{words:?}: {err}");
        assert!(err.contains(said), "{words:?} should say {said:?}: {err}");
        assert!(!err.contains("panicked"), "{words:?}: {err}");
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy(&from, &to),
            false => assert!(std::fs::copy(from, to).is_ok()),
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all
}

fn garble(path: &Path, how: &str) {
    let mut bytes = std::fs::read(path).unwrap();
    let part = bytes.len() / 3 * 2;
    match how {
        "missing" => return std::fs::remove_file(path).unwrap(),
        "a directory" => {
            std::fs::remove_file(path).unwrap();
            return std::fs::create_dir(path).unwrap();
        }
        "empty" => bytes.clear(),
        "one byte" => bytes.truncate(1),
        "cut short" => bytes.truncate(part),
        "garbage" => bytes.iter_mut().take(MIB).enumerate().for_each(|(i, b)| *b = (i * 37 + 11) as u8),
        "zeros" => bytes.iter_mut().take(MIB).for_each(|b| *b = 0),
        _ => bytes.iter_mut().step_by(97).for_each(|b| *b ^= 0x10),
    }
    std::fs::write(path, bytes).unwrap();
}

/// Every file of a directory that a crash left behind, damaged in every way: it starts and serves, or says what is wrong with which directory.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_files() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    let sheep = Sheep::with_data(&good).await;
    tokio::time::sleep(Duration::from_secs(3)).await; // the object is in its file
    drop(sheep); // killed
    let ways =
        ["missing", "a directory", "empty", "one byte", "cut short", "garbage", "zeros", "flipped bits"];
    for file in files(&good) {
        let name = file.strip_prefix(&good).unwrap();
        if name == Path::new("lock") {
            continue;
        }
        for how in ways {
            let bad = dir.path().join("bad");
            let _ = std::fs::remove_dir_all(&bad);
            copy(&good, &bad);
            garble(&bad.join(name), how);
            let case = format!("{} {how}", name.display());
            let mut sheep = Sheep::start(&bad);
            let deadline = Instant::now() + PATIENCE;
            // It ends, or its metrics port answers.
            let ended = loop {
                if let Some(status) = sheep.child.try_wait().unwrap() {
                    break Some(status);
                }
                if TcpStream::connect(sheep.at(0)).is_ok() {
                    break None;
                }
                assert!(Instant::now() < deadline, "{case}: neither serves nor ends");
                tokio::time::sleep(Duration::from_millis(10)).await;
            };
            let said = sheep.log();
            assert!(!said.contains("panicked"), "{case}: {said}");
            match ended {
                Some(status) => {
                    let last = said.lines().last().unwrap_or_default();
                    assert_eq!(status.code(), Some(1), "{case}: {said}");
                    assert!(last.starts_with("sheep: ") && last.contains("bad"), "{case}: {last}");
                    // Nothing is refused because of an object: it is filled from another copy.
                    assert!(!name.starts_with("obj") || how == "a directory", "{case}: {last}");
                }
                None => {
                    // What is read is what was written, or is refused. Only a file that is gone, or is all zeros, looks like an object that
                    // was never written: other copies tell.
                    let gone = ["missing", "empty", "zeros"].contains(&how) && name.starts_with("obj");
                    // A disk that cannot be written to is retired with everything on it, and this cluster has no other copy.
                    let gone = gone || said.contains("disk failed") || how == "a directory";
                    let read = tokio::time::timeout(Duration::from_secs(5), sheep.read()).await;
                    if let Ok(Ok(bytes)) = read {
                        // Damage is told at least: of the only copy of an object nothing can be filled again.
                        let told =
                            name.starts_with("obj") && sheep.log().contains("do not match their checksums");
                        assert!(
                            gone || told || bytes == vec![0x5a; 4096],
                            "{case}: wrong data, and not a word"
                        );
                    }
                    assert!(!sheep.log().contains("panicked"), "{case}: {}", sheep.log());
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    drop(Sheep::with_data(&a).await);
    drop(Sheep::with_data(&b).await);
    // Another node's disk.
    let words = format!("{},{}", a.display(), b.display());
    let mut both = Command::new(env!("CARGO_BIN_EXE_sheep"));
    both.args(["-p", &ports().to_string(), "--journal", ",size=32M", &words]);
    both.stdin(Stdio::null()).stdout(Stdio::null());
    let out = run(both);
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.code() == Some(1) && err.contains("belongs to node") && err.contains("own disks"),
        "{err}"
    );
    // In use.
    let sheep = Sheep::start(&b);
    sheep.client().await;
    let out = run(command(&b, ports()));
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && err.contains("another sheep uses this directory"), "{err}");
}
