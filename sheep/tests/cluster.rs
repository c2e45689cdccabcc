//! A real cluster on loopback: real processes, real disks, clients nobody here wrote. Each test has its own directory and ports.

use rustix::process::{Pid, WaitOptions};
use sheepdog_client::{Client, ConnectOptions, Credentials, Role, pb};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything here may take before the test is called failed. Not a measure of speed.
const PATIENCE: Duration = Duration::from_secs(90);

/// A client that does what no good client does.
mod nbd {
    use bytes::BytesMut;
    use sheepdog_nbd::client::{Handshake, Replies, Step, Wishes};
    use sheepdog_nbd::wire::cmd;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    pub struct Client {
        stream: TcpStream,
        input: BytesMut,
        replies: Replies,
    }

    pub async fn attach(port: u16, name: &str) -> Client {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
        let mut machine = Handshake::new(Wishes::attach(name));
        let mut input = BytesMut::new();
        loop {
            let step = machine.step(&mut input).expect("handshake");
            stream.write_all(&machine.take_output()).await.expect("sends");
            match step {
                Step::Ready(export) => {
                    return Client { stream, input, replies: Replies::new(export.structured) };
                }
                Step::NeedInput => {
                    assert!(stream.read_buf(&mut input).await.expect("reads") > 0, "hung up");
                }
                Step::Progress => {}
                other => panic!("{other:?}"),
            }
        }
    }

    impl Client {
        pub async fn send_write(&mut self, offset: u64, data: &[u8]) {
            let mut out = BytesMut::new();
            self.replies.submit(cmd::WRITE, 0, offset, data.len() as u32, &mut out);
            out.extend_from_slice(data);
            // The other side may have gone.
            let _ = self.stream.write_all(&out).await;
        }

        pub async fn send_read(&mut self, offset: u64, length: u32) {
            let mut out = BytesMut::new();
            self.replies.submit(cmd::READ, 0, offset, length, &mut out);
            let _ = self.stream.write_all(&out).await;
        }

        /// `false`: the connection ended instead.
        pub async fn is_answered(&mut self) -> bool {
            loop {
                if let Some(c) = self.replies.receive(&mut self.input).expect("a sane reply") {
                    return c.result.is_ok();
                }
                match self.stream.read_buf(&mut self.input).await {
                    Ok(0) | Err(_) => return false,
                    Ok(_) => {}
                }
            }
        }

        pub async fn write(&mut self, offset: u64, data: &[u8]) {
            self.send_write(offset, data).await;
            assert!(self.is_answered().await, "written");
        }
    }
}

struct Sheep {
    child: Option<Child>,
    port: u16,
    nbd: u16,
    dir: PathBuf,
    /// Has a second disk.
    second: bool,
}

struct Cluster {
    sheep: Vec<Sheep>,
    dir: tempfile::TempDir,
    secret: Option<PathBuf>,
}

impl Cluster {
    fn new(n: usize, secure: bool) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let secret = secure.then(|| {
            let path = dir.path().join("secret");
            Credentials::generate().expect("makes credentials").save_new(&path).expect("saves");
            path
        });
        let sheep = (0..n)
            .map(|i| {
                // Client, peer, NBD.
                let port = sheepdog_testing::ports(3).expect("ports");
                Sheep {
                    child: None,
                    port,
                    nbd: port + 2,
                    dir: dir.path().join(format!("sheep{i}")),
                    second: false,
                }
            })
            .collect();
        let mut c = Self { sheep, dir, secret };
        for i in 0..n {
            c.start(i);
        }
        c
    }

    fn start(&mut self, i: usize) {
        let seeds: Vec<String> = self
            .sheep
            .iter()
            .enumerate()
            .filter(|(j, _)| *j != i)
            .map(|(_, s)| format!("127.0.0.1:{}", s.port + 1))
            .collect();
        let s = &self.sheep[i];
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("sheep{i}.log")))
            .expect("log file");
        let mut cmd = Command::new(env!("CARGO_BIN_EXE_sheep"));
        cmd.args(["--cluster-driver", "sdcluster", "--bind-addr", "127.0.0.1", "--nbd"])
            .args(["--port", &s.port.to_string(), "--nbd-port", &s.nbd.to_string()])
            .args(["--journal", &format!("{},size=64M", s.dir.join("j").display())])
            .args(["--zone", &format!("z{i}")]);
        for seed in &seeds {
            cmd.args(["--seed", seed]);
        }
        if let Some(secret) = &self.secret {
            cmd.arg("--secret-file").arg(secret);
        }
        let mut dirs = s.dir.clone().into_os_string();
        if s.second {
            dirs.push(",");
            dirs.push(s.dir.with_extension("second"));
        }
        cmd.arg(dirs).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.sheep[i].child = Some(cmd.spawn().expect("sheep starts"));
    }

    fn kill(&mut self, i: usize) {
        if let Some(mut child) = self.sheep[i].child.take() {
            child.kill().expect("SIGKILL");
            child.wait().expect("reaped");
        }
    }

    fn signal(&self, i: usize, name: &str) {
        let pid = self.sheep[i].child.as_ref().expect("it runs").id().to_string();
        ok("kill", &[&format!("-{name}"), &pid]);
    }

    /// SIGSTOP. `kill` returns when the signal is on its way, and on a busy machine a thread may go on for a while: only the kernel's
    /// word to the parent says that all of them stand still.
    fn freeze(&self, i: usize) {
        self.signal(i, "STOP");
        let pid = self.sheep[i].child.as_ref().expect("it runs").id().cast_signed();
        let stopped = rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::UNTRACED).expect("waits");
        assert!(stopped.is_some_and(|(_, s)| s.stopped()), "sheep {i} has ended: {stopped:?}");
    }

    /// SIGCONT.
    fn thaw(&self, i: usize) {
        self.signal(i, "CONT");
    }

    /// Until it has ended by itself.
    async fn ended(&mut self, i: usize) {
        let child = self.sheep[i].child.as_mut().expect("it runs");
        while child.try_wait().expect("waits").is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.sheep[i].child = None;
    }

    fn uri(&self, i: usize, name: &str) -> String {
        format!("nbd://127.0.0.1:{}/{name}", self.sheep[i].nbd)
    }

    async fn client(&self, i: usize) -> Client {
        let addr = format!("127.0.0.1:{}", self.sheep[i].port);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut options = ConnectOptions::new(vec![addr.clone()]);
            if let Some(secret) = &self.secret {
                let c = Credentials::load(secret).expect("loads");
                options = options.credentials(&c, &Role::Dog).expect("credentials");
            }
            match Client::connect(options).await {
                Ok(c) => return c,
                Err(e) if Instant::now() > deadline => panic!("sheep {i} does not answer: {e}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn format(&self, copies: u32) {
        let request = pb::FormatRequest {
            redundancy: Some(pb::Redundancy { copies, ..Default::default() }),
            wait_for_nodes: self.sheep.len() as u32,
            ..Default::default()
        };
        for i in 0..self.sheep.len() {
            self.client(i).await;
        }
        let mut client = self.client(0).await.cluster();
        client.format(request).await.expect("formats");
    }

    async fn create(&self, name: &str, size: u64) {
        let request = pb::CreateVdiRequest { name: name.into(), size, ..Default::default() };
        self.client(0).await.vdi().create(request).await.expect("creates");
    }

    /// What sheep 0 knows of sheep `i`.
    async fn node(&self, i: usize) -> pb::Node {
        let nodes =
            self.client(0).await.list_nodes(pb::ListNodesRequest::default()).await.expect("nodes").nodes;
        let port = u32::from(self.sheep[i].port);
        nodes.into_iter().find(|n| n.client_port == port).expect("it is a member")
    }

    /// Who owns the session of `disk`.
    async fn owner(&self) -> String {
        let vdi = Some(pb::VdiRef::name("disk"));
        let request = pb::GetVdiRequest { vdi, ..Default::default() };
        let vdi = self.client(0).await.get_vdi(request).await.expect("the VDI");
        vdi.session.map(|s| s.owner).unwrap_or_default()
    }

    /// Wait until every sheep is up and complete.
    async fn whole(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let client = self.client(0).await;
            let listed =
                client.node().list(pb::ListNodesRequest::default()).await.map(tonic::Response::into_inner);
            let (nodes, epoch) = listed.map(|l| (l.nodes, l.epoch)).unwrap_or_default();
            if nodes.len() == self.sheep.len()
                && nodes.iter().all(|n| n.state == pb::node::State::Up as i32 && n.synced >= epoch)
            {
                return;
            }
            assert!(Instant::now() < deadline, "the cluster does not become whole: {nodes:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Every copy of every object equal, every checksum right, as soon as nothing is being filled any more.
    async fn check(&self, name: &str) {
        let deadline = Instant::now() + PATIENCE;
        'again: loop {
            self.whole().await;
            let request = pb::CheckRequest {
                vdi: Some(pb::VdiRef { by: Some(pb::vdi_ref::By::Name(name.into())) }),
                ..Default::default()
            };
            let mut stream = self.client(0).await.vdi().check(request).await.expect("check").into_inner();
            let mut last = None;
            while let Some(report) = stream.message().await.expect("check goes on") {
                // A sheep may have been taken for gone and come back after the others had been asked.
                if let Some(f) = report.finding.as_ref().filter(|f| f.text.contains("being filled")) {
                    assert!(Instant::now() < deadline, "{f:?}");
                    continue 'again;
                }
                assert!(report.finding.is_none(), "{:?}", report.finding);
                last = Some(report);
            }
            let last = last.expect("a final report");
            assert!(last.finished && last.bad == 0 && last.objects_total > 0, "{last:?}");
            return;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for i in 0..self.sheep.len() {
            self.kill(i);
        }
        if std::thread::panicking() {
            for i in 0..self.sheep.len() {
                let log = self.dir.path().join(format!("sheep{i}.log"));
                let text = std::fs::read_to_string(log).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(25).collect();
                eprintln!("--- sheep {i}, newest first\n{}", tail.join("\n"));
            }
        }
    }
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}: scripts/setup.sh installs it"))
}

fn ok(program: &str, args: &[&str]) -> String {
    let out = run(program, args);
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program} {args:?}: {text}");
    text
}

/// An ext4 image with files in it.
fn image(path: &Path, megabytes: u64) {
    let files = path.with_extension("files");
    std::fs::create_dir_all(files.join("sub")).expect("mkdir");
    let mut word = 1u64;
    for i in 0..megabytes / 2 {
        let data: Vec<u8> = (0..1 << 17)
            .flat_map(|_| {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                word.to_le_bytes()
            })
            .collect();
        std::fs::write(files.join("sub").join(format!("f{i}")), data).expect("write");
    }
    let (path, files) = (path.to_str().expect("utf8"), files.to_str().expect("utf8"));
    ok("mkfs.ext4", &["-q", "-F", "-d", files, path, &format!("{megabytes}M")]);
}

#[tokio::test]
async fn an_image_goes_in_and_comes_back_from_every_gateway() {
    let c = Cluster::new(3, true);
    c.format(3).await;
    let source = c.dir.path().join("source.img");
    image(&source, 128);
    let size = std::fs::metadata(&source).expect("size").len();
    c.create("disk", size).await;
    let source = source.to_str().expect("utf8");
    ok("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", source, &c.uri(0, "disk")]);
    for i in 0..3 {
        let text = ok("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &c.uri(i, "disk")]);
        assert!(text.contains("identical"), "{text}");
    }
    let back = c.dir.path().join("back.img");
    let back = back.to_str().expect("utf8");
    ok("nbdcopy", &[&c.uri(1, "disk"), back]);
    ok("cmp", &[source, back]);
    ok("e2fsck", &["-fn", back]);
    c.check("disk").await;
}

/// fio, writing at random and reading back what it wrote. It is ended when a request is never answered.
fn verified_writes(uri: &str, size: &str, seconds: u32) -> Child {
    Command::new("timeout")
        .args([&(u64::from(seconds) + PATIENCE.as_secs()).to_string(), "fio"])
        .args(["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=8"])
        .args([format!("--uri={uri}"), format!("--size={size}"), format!("--runtime={seconds}")])
        .args(["--time_based=1", "--verify=crc32c", "--verify_backlog=2048"])
        .args(["--verify_state_save=0", "--output-format=terse"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("fio: scripts/setup.sh installs it")
}

/// Wait for its end.
fn saw_no_error(fio: Child) {
    let out = fio.wait_with_output().expect("fio");
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "fio saw an error: {text}");
}

#[tokio::test]
async fn writes_go_on_while_sheep_die_and_return() {
    let mut c = Cluster::new(4, false);
    c.format(3).await;
    c.create("disk", 256 << 20).await;
    let mut fio = verified_writes(&c.uri(0, "disk"), "128m", 24);
    let mut victim = 1;
    while fio.try_wait().expect("fio").is_none() {
        c.kill(victim);
        tokio::time::sleep(Duration::from_secs(2)).await;
        c.start(victim);
        tokio::time::sleep(Duration::from_secs(3)).await;
        victim = victim % 3 + 1;
    }
    saw_no_error(fio);
    c.whole().await;
    c.check("disk").await;
}

/// Else a restart in good order costs its clients ten seconds.
#[tokio::test]
async fn a_sheep_that_ends_finishes_what_it_has_taken() {
    let mut c = Cluster::new(3, false);
    c.format(3).await;
    c.create("disk", 64 << 20).await;
    let mut client = nbd::attach(c.sheep[0].nbd, "disk").await;
    client.write(0, &[1; 4096]).await;
    // The next write has to wait for this one.
    c.freeze(2);
    client.send_write(0, &[2; 4096]).await;
    // Requests are taken in order: when this one is answered the write is under way.
    client.send_read(8192, 4096).await;
    assert!(client.is_answered().await, "read");
    c.signal(0, "TERM");
    c.thaw(2);
    assert!(client.is_answered().await, "the write was dropped");
    c.ended(0).await;
    c.start(0);
    c.whole().await;
    c.check("disk").await;
}

#[tokio::test]
async fn copies_of_a_volume_are_added_and_taken_away_while_it_is_written() {
    const OBJECTS: u64 = 32;
    let c = Cluster::new(4, false);
    c.format(1).await;
    c.create("disk", OBJECTS << 22).await;
    c.whole().await;
    ok("qemu-io", &["-f", "raw", "-c", "write -P 7 0 128M", &c.uri(1, "disk")]);
    let fio = verified_writes(&c.uri(0, "disk"), "64m", 20);
    for copies in [3, 2, 1, 3] {
        let redundancy = Some(pb::Redundancy { copies, ..Default::default() });
        let disk = pb::VdiRef { by: Some(pb::vdi_ref::By::Name("disk".into())) };
        let request = pb::AlterVdiCopiesRequest { vdi: Some(disk), redundancy };
        c.client(0).await.vdi().alter_copies(request).await.expect("alters");
        c.whole().await;
        // What is too much goes when it is proved that it is not needed.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let info = c.client(0).await.node().info(pb::NodeInfoRequest::default()).await.expect("info");
            let objects: u64 = info.into_inner().nodes.iter().map(|n| n.objects).sum();
            if objects == OBJECTS * u64::from(copies) {
                break;
            }
            assert!(Instant::now() < deadline, "{objects} objects for {copies} copies");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    saw_no_error(fio);
    c.check("disk").await;
    let text = ok("qemu-io", &["-f", "raw", "-c", "read -P 7 64M 64M", &c.uri(2, "disk")]);
    assert!(!text.contains("failed"), "{text}");
}

#[tokio::test]
async fn what_a_frozen_gateway_still_had_to_do_does_not_come_after_an_open_elsewhere() {
    let mut c = Cluster::new(3, false);
    c.format(3).await;
    c.create("disk", 64 << 20).await;
    c.whole().await;
    // A client writes, its gateway stands still, and the next write is on its way when the client gives up.
    let mut client = nbd::attach(c.sheep[1].nbd, "disk").await;
    client.write(0, &[1; 4096]).await;
    let other = nbd::attach(c.sheep[1].nbd, "disk").await;
    c.freeze(1);
    client.send_write(0, &[2; 4096]).await;
    drop(client);
    // It goes on through another one.
    ok("qemu-io", &["-f", "raw", "-c", "write -P 3 0 4096", &c.uri(0, "disk")]);
    c.thaw(1);
    c.whole().await;
    // Opening there again waits for what is left of the old connection.
    ok("qemu-io", &["-f", "raw", "-c", "read -P 3 0 4096", &c.uri(1, "disk")]);
    ok("qemu-io", &["-f", "raw", "-c", "read -P 3 0 4096", &c.uri(2, "disk")]);
    // A client that had it open there all along was cut off when it wrote again, or reads what is true.
    let mut other = other;
    other.send_write(4096, &[4; 4096]).await;
    assert!(!other.is_answered().await, "a write under the old registration was carried out");
    c.check("disk").await;
    c.kill(0);
}

/// An attachment by sheep `i`.
async fn attach(c: &Cluster, i: usize, holder: &str, access: pb::attachment::Access) -> pb::Attachment {
    let vdi = Some(pb::VdiRef::name("disk"));
    let request = pb::AttachRequest { vdi, holder: holder.into(), access: access.into() };
    c.client(i).await.attach(request).await.expect("attaches")
}

/// How long it took.
async fn detach(c: &Cluster, i: usize, holder: &str) -> Duration {
    let client = c.client(i).await;
    let which = Some(pb::detach_request::Which::Holder(holder.into()));
    let began = Instant::now();
    client.detach(pb::DetachRequest { vdi: Some(pb::VdiRef::name("disk")), which }).await.expect("detaches");
    began.elapsed()
}

/// What qemu-io says to one command, on an export of `disk` through sheep `i`.
fn qemu_io(c: &Cluster, i: usize, export: &str, command: &str) -> String {
    let uri = c.uri(i, &export.replace('#', "%23"));
    let read_only = if command.starts_with("read") { "-r" } else { "-n" };
    let out = run("qemu-io", &[read_only, "-f", "raw", "-c", command, &uri]);
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// It said that it has read, and has not found another pattern: then it says so beside.
fn has_read(said: &str) -> bool {
    said.contains("read 4096/4096") && !said.contains("failed")
}

#[tokio::test]
async fn a_detached_holder_can_do_nothing_any_more() {
    use pb::attachment::Access::{Shared, Single};
    let c = Cluster::new(3, false);
    c.format(3).await;
    c.create("disk", 64 << 20).await;
    c.whole().await;
    // Whoever has it open without an attachment loses it when there is one, and may still read.
    let mut stranger = nbd::attach(c.sheep[2].nbd, "disk").await;
    stranger.write(8192, &[9; 4096]).await;
    let a = attach(&c, 0, "node a", Single).await;
    assert!(!stranger.is_answered().await, "its connection was not cut");
    let refused = qemu_io(&c, 2, "disk", "write -P 8 8192 4096");
    assert!(refused.contains("attached to node a") && refused.contains("dog vdi detach"), "{refused}");
    assert!(has_read(&qemu_io(&c, 2, "disk#ro", "read -P 9 8192 4096")));
    assert!(qemu_io(&c, 2, "disk#99", "read 0 4096").contains("is over"));
    // The same holder gets the same, nobody else gets one.
    assert_eq!(attach(&c, 2, "node a", Single).await, a);
    let vdi = Some(pb::VdiRef::name("disk"));
    let second = pb::AttachRequest { vdi, holder: "node b".into(), access: Single.into() };
    let e = c.client(1).await.attach(second).await.expect_err("it is attached");
    assert!(e.to_string().contains("node a (single)"), "{e}");

    // Its gateway, which owns the session, stands still with a write in its socket.
    let mut one = nbd::attach(c.sheep[1].nbd, &format!("disk#{}", a.id)).await;
    one.write(0, &[1; 4096]).await;
    // The session follows the writes, not always with the first one.
    let (first, deadline) = (c.node(1).await.id, Instant::now() + PATIENCE);
    while c.owner().await != first {
        assert!(Instant::now() < deadline, "the session does not come to sheep 1");
        tokio::time::sleep(Duration::from_millis(50)).await;
        one.write(0, &[1; 4096]).await;
    }
    c.freeze(1);
    one.send_write(0, &[2; 4096]).await;
    let took = detach(&c, 0, "node a").await;
    let state = c.node(1).await.state();
    assert_eq!(state, pb::node::State::Down, "it was not waited for the end of its lease: {took:?}");
    let b = attach(&c, 2, "node b", Single).await;
    assert!(b.id > a.id);
    let mut two = nbd::attach(c.sheep[0].nbd, &format!("disk#{}", b.id)).await;
    two.write(0, &[3; 4096]).await;
    c.thaw(1);
    assert!(!one.is_answered().await, "a write of a detached holder was carried out");
    c.whole().await;
    for i in 0..3 {
        let now = qemu_io(&c, i, "disk#ro", "read -P 3 0 4096");
        assert!(has_read(&now), "at sheep {i}: {now}");
        let old = qemu_io(&c, i, &format!("disk#{}", a.id), "read 0 4096");
        assert!(old.contains("is over"), "at sheep {i}: {old}");
    }
    two.write(4096, &[4; 4096]).await;
    detach(&c, 1, "node b").await;
    assert!(!two.is_answered().await, "its connection was not cut");

    // A gateway that does not own the session need not be waited for.
    let (s, t) = (attach(&c, 0, "node s", Shared).await, attach(&c, 1, "node t", Shared).await);
    let mut owner = nbd::attach(c.sheep[0].nbd, &format!("disk#{}", s.id)).await;
    owner.write(0, &[5; 4096]).await;
    let mut other = nbd::attach(c.sheep[2].nbd, &format!("disk#{}", t.id)).await;
    other.write(4096, &[6; 4096]).await;
    c.freeze(2);
    other.send_write(0, &[7; 4096]).await;
    let took = detach(&c, 0, "node t").await;
    // Less than the end of its lease, and enough for another leader. A slow machine may take longer, but not until the gateway is down.
    let soon = took < Duration::from_millis(3_500) || c.node(2).await.state() == pb::node::State::Up;
    assert!(soon, "it was waited for a gateway that owns nothing: {took:?}");
    c.thaw(2);
    assert!(!other.is_answered().await, "a write of a detached holder was carried out");
    owner.write(8192, &[5; 4096]).await;
    for (what, i) in [("read -P 5 0 4096", 0), ("read -P 6 4096 4096", 1), ("read -P 5 8192 4096", 2)] {
        let text = qemu_io(&c, i, "disk#ro", what);
        assert!(has_read(&text), "{what}: {text}");
    }
    c.check("disk").await;
}

#[tokio::test]
async fn everything_survives_a_power_cut_of_all_sheep() {
    let mut c = Cluster::new(3, false);
    c.format(3).await;
    c.create("disk", 64 << 20).await;
    ok(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 0x5a 0 8M", "-c", "write -P 0x33 5000 100", &c.uri(0, "disk")],
    );
    for i in 0..3 {
        c.kill(i);
    }
    // In another order than before.
    for i in [2, 0, 1] {
        c.start(i);
    }
    c.whole().await;
    let reads = ["-c", "read -P 0x5a 0 4096", "-c", "read -P 0x33 5000 100", "-c", "read -P 0x5a 8192 8M"];
    let mut args = vec!["-f", "raw"];
    args.extend(&reads[..4]);
    for i in 0..3 {
        let uri = c.uri(i, "disk");
        let mut args = args.clone();
        args.push(&uri);
        let text = ok("qemu-io", &args);
        assert!(!text.contains("verification failed"), "{text}");
    }
    c.check("disk").await;
}

#[tokio::test]
async fn a_snapshot_stays_what_it_was_and_a_clone_goes_its_own_way() {
    let c = Cluster::new(3, false);
    c.format(2).await;
    c.create("disk", 64 << 20).await;
    ok("qemu-io", &["-f", "raw", "-c", "write -P 1 0 1M", &c.uri(0, "disk")]);
    let by_name = |n: &str| Some(pb::VdiRef { by: Some(pb::vdi_ref::By::Name(n.into())) });
    let snapshot = pb::SnapshotRequest { vdis: by_name("disk").into_iter().collect(), tag: "s1".into() };
    c.client(1).await.vdi().snapshot(snapshot).await.expect("snapshot");
    ok("qemu-io", &["-f", "raw", "-c", "write -P 2 4096 4096", &c.uri(0, "disk")]);
    let clone = pb::CreateVdiRequest {
        name: "clone".into(),
        source: by_name("disk"),
        source_snapshot: "s1".into(),
        ..Default::default()
    };
    c.client(2).await.vdi().create(clone).await.expect("clone");
    ok("qemu-io", &["-f", "raw", "-c", "write -P 3 8192 512", &c.uri(2, "clone")]);
    let checks = [
        ("disk", "read -P 1 0 4096"),
        ("disk", "read -P 2 4096 4096"),
        ("disk", "read -P 1 8192 4096"),
        ("disk@s1", "read -P 1 0 1M"),
        ("clone", "read -P 1 0 8192"),
        ("clone", "read -P 3 8192 512"),
        ("clone", "read -P 1 8704 4096"),
    ];
    for (name, command) in checks {
        for i in 0..3 {
            let text = ok("qemu-io", &["-r", "-f", "raw", "-c", command, &c.uri(i, name)]);
            assert!(!text.contains("failed"), "{name} {command}: {text}");
        }
    }
    let refused = run("qemu-io", &["-f", "raw", "-c", "write -P 9 0 4096", &c.uri(0, "disk@s1")]);
    assert!(!String::from_utf8_lossy(&refused.stdout).contains("wrote"), "a snapshot is read-only");
}

/// Snapshots are committed through sheep that do not own the volume, and know it before the owner does: it lets writes go on when it knows it, too.
#[tokio::test]
async fn snapshots_asked_for_anywhere_keep_no_write_for_good() {
    let c = Cluster::new(3, false);
    c.format(3).await;
    for name in ["one", "two"] {
        c.create(name, 64 << 20).await;
    }
    let writers = [verified_writes(&c.uri(1, "one"), "64M", 8), verified_writes(&c.uri(1, "two"), "64M", 8)];
    let both: Vec<_> = ["one", "two"].map(pb::VdiRef::name).to_vec();
    let deadline = Instant::now() + PATIENCE;
    for n in 0..20 {
        let request = pb::SnapshotRequest { vdis: both.clone(), tag: format!("s{n}") };
        // While the volumes are being opened nothing can be taken yet.
        while let Err(e) = c.client([0, 2][n % 2]).await.snapshot(request.clone()).await {
            assert!(Instant::now() < deadline, "{e}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    writers.into_iter().for_each(saw_no_error);
    for name in ["one", "two"] {
        c.check(name).await;
    }
}

#[tokio::test]
async fn zeroes_take_space_when_no_hole_is_wanted() {
    let c = Cluster::new(1, false);
    c.format(1).await;
    c.create("disk", 8 << 20).await;
    let uri = c.uri(0, "disk");
    let map = || {
        let text = ok("nbdinfo", &["--map", "--json", &uri]);
        let rows: Vec<serde_json::Value> = serde_json::from_str(&text).expect("json");
        rows.iter()
            .map(|r| {
                let n = |k: &str| r[k].as_u64().expect("a number");
                (n("offset") >> 10, n("length") >> 10, n("type"))
            })
            .collect::<Vec<_>>()
    };
    let (data, hole) = (0, 3);
    // Without -u qemu asks for no hole. Past an object's border, and beginning and ending inside a block.
    ok("qemu-io", &["-f", "raw", "-c", "write -P 7 1M 64k", "-c", "write -z 1025k 4094k", &uri]);
    assert_eq!(map(), [(0, 1024, hole), (1024, 4096, data), (5120, 3072, hole)]);
    let reads = ["read -P 7 1M 1k", "read -P 0 1025k 4094k", "read -P 0 5119k 3073k"];
    for command in reads {
        let text = ok("qemu-io", &["-f", "raw", "-c", command, &uri]);
        assert!(!text.contains("failed"), "{command}: {text}");
    }
    ok("qemu-io", &["-f", "raw", "-c", "write -z -u 2M 1M", &uri]);
    assert_eq!(
        map(),
        [(0, 1024, hole), (1024, 1024, data), (2048, 1024, hole), (3072, 2048, data), (5120, 3072, hole)]
    );
    c.check("disk").await;
}

#[tokio::test]
async fn format_decides_how_objects_lie_on_disks() {
    for (store, tree) in [("plain", false), ("tree", true), ("", true)] {
        let mut c = Cluster::new(1, false);
        let client = c.client(0).await;
        let redundancy = Some(pb::Redundancy { copies: 1, ..Default::default() });
        let wrong = pb::FormatRequest { redundancy, store: "flat".into(), ..Default::default() };
        let e = client.cluster().format(wrong.clone()).await.expect_err("there is no such layout");
        assert!(e.message().contains("tree or plain"), "{e}");
        let request = pb::FormatRequest { store: store.into(), ..wrong };
        let info = client.cluster().format(request).await.expect("formats").into_inner();
        assert_eq!(info.store, store);
        c.create("disk", 8 << 20).await;
        let uri = c.uri(0, "disk");
        ok("qemu-io", &["-f", "raw", "-c", "write -P 7 0 8M", &uri]);
        let lies = || {
            let names = std::fs::read_dir(c.sheep[0].dir.join("obj")).ok()?;
            names.map(|n| n.expect("name").file_type().expect("type").is_dir()).next()
        };
        let deadline = Instant::now() + PATIENCE;
        while lies().is_none() {
            assert!(Instant::now() < deadline, "no object reaches its place");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(lies(), Some(tree), "{store:?}");
        c.kill(0);
        c.start(0);
        c.client(0).await;
        ok("qemu-io", &["-f", "raw", "-c", "read -P 7 0 8M", &uri]);
        c.check("disk").await;
    }
}

#[tokio::test]
async fn nbd_clients_wait_for_the_cluster() {
    let c = Cluster::new(1, false);
    // Before format: it is let in, and waits.
    let deadline = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(("127.0.0.1", c.sheep[0].nbd)).is_err() {
        assert!(Instant::now() < deadline, "NBD does not listen before format");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let list = format!("nbd://127.0.0.1:{}", c.sheep[0].nbd);
    let mut early = Command::new("nbdinfo")
        .args(["--list", &list])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nbdinfo: scripts/setup.sh installs it");
    c.client(0).await;
    assert!(early.try_wait().expect("nbdinfo").is_none(), "it was sent away");
    c.format(1).await;
    let out = early.wait_with_output().expect("nbdinfo");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[tokio::test]
async fn a_rebuild_wants_all_sheep_that_the_disks_remember() {
    let mut c = Cluster::new(2, false);
    c.format(2).await;
    c.create("disk", 8 << 20).await;
    c.whole().await;
    let kept = c.sheep[0].dir.join("cluster-state");
    let deadline = Instant::now() + PATIENCE;
    // The name of the VDI and the second sheep are in it.
    while !std::fs::read(&kept).is_ok_and(|b| b.windows(4).any(|w| w == b"disk")) {
        assert!(Instant::now() < deadline, "the state does not get onto the disk");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for i in 0..2 {
        c.kill(i);
        std::fs::remove_dir_all(c.sheep[i].dir.join("raft")).expect("raft/");
        std::fs::remove_file(c.sheep[i].dir.join("node.json")).expect("node.json");
    }
    c.start(0);
    let client = c.client(0).await;
    let e = client.cluster().rebuild(pb::RebuildRequest { force: false }).await.expect_err("one is missing");
    let at = format!("127.0.0.1:{}", c.sheep[1].port + 1);
    assert!(e.message().contains("--force") && e.message().contains(&at), "{e}");
    client.cluster().rebuild(pb::RebuildRequest { force: true }).await.expect("forced");
    c.start(1);
    c.whole().await;
}

#[tokio::test]
async fn what_was_on_a_lost_disk_and_nowhere_else_is_waited_for() {
    const SIZE: u64 = 256 << 20;
    let mut c = Cluster::new(3, false);
    c.kill(1);
    c.sheep[1].second = true;
    c.start(1);
    c.format(2).await;
    c.create("double", 64 << 20).await;
    let redundancy = Some(pb::Redundancy { copies: 1, ..Default::default() });
    let request =
        pb::CreateVdiRequest { name: "single".into(), size: SIZE, redundancy, ..Default::default() };
    c.client(0).await.vdi().create(request).await.expect("creates");
    c.whole().await;
    ok("qemu-io", &["-f", "raw", "-c", "write -P 5 0 64M", &c.uri(0, "double")]);
    ok("qemu-io", &["-f", "raw", "-c", "write -P 6 0 256M", &c.uri(0, "single")]);
    let reads = |c: &Cluster, what: &str| {
        let uri = c.uri(0, "single");
        let mut qemu_io = Command::new("qemu-io");
        qemu_io.args(["-f", "raw", "-c", what, &uri]).stdout(Stdio::piped()).stderr(Stdio::piped());
        qemu_io.spawn().expect("qemu-io: scripts/setup.sh installs it")
    };
    let info = async |c: &Cluster| {
        let info = c.client(0).await.cluster().info(pb::ClusterInfoRequest::default()).await;
        info.expect("info").into_inner().reasons.join("; ")
    };
    let restart = async |c: &mut Cluster, second: bool| {
        c.sheep[1].second = second;
        c.kill(1);
        c.start(1);
        let deadline = Instant::now() + PATIENCE;
        while info(c).await.contains("have lost a disk: single") == second {
            assert!(Instant::now() < deadline, "its disks are not noticed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        c.whole().await;
    };
    restart(&mut c, false).await;
    // The other volume is what it was.
    ok("qemu-io", &["-f", "raw", "-c", "read -P 5 0 64M", &c.uri(1, "double")]);
    c.check("double").await;
    ok("qemu-io", &["-f", "raw", "-c", "write -P 9 0 32M", "-c", "discard 32M 32M", &c.uri(0, "double")]);
    let mut waits = reads(&c, "read -P 6 0 256M");
    assert!(info(&c).await.contains("recover force"));
    assert!(waits.try_wait().expect("qemu-io").is_none(), "zeros, or an error");
    // It was only not mounted.
    restart(&mut c, true).await;
    let out = waits.wait_with_output().expect("qemu-io");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && !text.contains("failed"), "{text}");
    assert_eq!(info(&c).await, "");
    // Of the other volume it had what was old by then.
    c.check("double").await;
    let both = ["-f", "raw", "-c", "read -P 9 0 32M", "-c", "read -P 0 32M 32M", &c.uri(1, "double")];
    let text = ok("qemu-io", &both);
    assert!(!text.contains("failed"), "{text}");
    // Now it is gone, and the operator says so.
    restart(&mut c, false).await;
    let waits = reads(&c, "read 0 256M");
    let force = pb::ForceRequest { reason: "the disk is scrap".into() };
    c.client(0).await.cluster().force(force).await.expect("forced");
    let out = waits.wait_with_output().expect("qemu-io");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(info(&c).await, "");
}

#[tokio::test]
async fn without_the_secret_nobody_gets_in() {
    let c = Cluster::new(1, true);
    c.format(1).await;
    c.create("disk", 1 << 20).await;
    let addr = format!("127.0.0.1:{}", c.sheep[0].port);
    let plain = Client::connect(ConnectOptions::new(vec![addr.clone()])).await;
    let refused = match plain {
        Err(_) => true,
        Ok(client) => client.cluster().info(pb::ClusterInfoRequest::default()).await.is_err(),
    };
    assert!(refused, "a client without credentials was served");
    let other = Credentials::generate().expect("makes credentials");
    let options = ConnectOptions::new(vec![addr]).credentials(&other, &Role::Dog).expect("credentials");
    let refused = match Client::connect(options).await {
        Err(_) => true,
        Ok(client) => client.cluster().info(pb::ClusterInfoRequest::default()).await.is_err(),
    };
    assert!(refused, "a client of another cluster was served");
}
