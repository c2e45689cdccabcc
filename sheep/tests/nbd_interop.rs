//! The clients that must work, run for real against the server: qemu-img, qemu-io, nbdinfo, nbdcopy, nbd-client, fio; on unix
//! sockets, TCP and TLS. A missing tool fails the test with the package to install.

#![allow(clippy::unwrap_used)] // in a test, that is how it fails

#[path = "../examples/nbd_memory/memory.rs"]
#[allow(dead_code)]
mod memory;

use memory::MemorySource;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::server::WebPkiClientVerifier;
use sheep::front::nbd::{Limits, Listen, ListenAt, NbdConfig, NbdHandle, NbdServer, TlsPolicy};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// A server with `vol` (64 MiB) and `vol@s1`, on a unix socket and on TCP.
struct Server {
    source: Rc<MemorySource>,
    handle: NbdHandle,
    dir: tempfile::TempDir,
}

impl Server {
    fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Rc::new(MemorySource::default());
        source.create("vol", 64 * MIB);
        source.snapshot("vol", "s1");
        let policy = if tls.is_some() { TlsPolicy::Required } else { TlsPolicy::Off };
        let listen = vec![
            Listen { at: ListenAt::Unix(dir.path().join("s")), tls: TlsPolicy::Off },
            Listen { at: ListenAt::Tcp(([127, 0, 0, 1], 0).into()), tls: policy },
        ];
        let cfg = NbdConfig { listen, tls, insecure: false, limits: Limits::default() };
        let handle = NbdServer::start(cfg, source.clone()).unwrap();
        Self { source, handle, dir }
    }
    fn unix(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.dir.path().join("s").display())
    }
    fn tcp(&self, export: &str) -> String {
        format!("nbd://127.0.0.1:{}/{export}", self.port())
    }
    fn port(&self) -> u16 {
        self.handle.local_addrs()[0].port()
    }
    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
    /// 64 MiB: data at the start, a hole, data at the very end.
    fn image(&self) -> String {
        let path = self.file("image.raw");
        let mut data: Vec<u8> = (0..10 * MIB).map(|i| (i * 7 + (i >> 9)) as u8).collect();
        data.resize(64 * MIB as usize - 5, 0);
        data.extend_from_slice(b"end..");
        std::fs::write(&path, data).unwrap();
        path
    }
}

struct Output {
    ok: bool,
    /// Standard output and error.
    text: String,
}

fn package(tool: &str) -> &str {
    match tool {
        "qemu-img" | "qemu-io" => "qemu-utils",
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        other => other,
    }
}

/// Run a tool while the server goes on, in the directory of the server.
async fn run(s: &Server, tool: &str, args: &[&str]) -> Output {
    let child = tokio::process::Command::new(tool)
        .args(args)
        .current_dir(s.dir.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let out = tokio::time::timeout(Duration::from_secs(100), child)
        .await
        .unwrap_or_else(|_| panic!("{tool} {args:?} does not end"));
    match out {
        Ok(o) => Output {
            ok: o.status.success(),
            text: String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).into_owned(),
        },
        Err(e) if e.kind() == ErrorKind::NotFound => {
            panic!("this test needs `{tool}`: install the Debian package {}", package(tool))
        }
        Err(e) => panic!("{tool}: {e}"),
    }
}

/// Run a tool that must succeed; returns what it said.
async fn good(s: &Server, tool: &str, args: &[&str]) -> String {
    let out = run(s, tool, args).await;
    assert!(out.ok, "{tool} {args:?} failed:\n{}", out.text);
    out.text
}

/// Run a tool that must fail; returns what it said.
async fn bad(s: &Server, tool: &str, args: &[&str]) -> String {
    let out = run(s, tool, args).await;
    assert!(!out.ok, "{tool} {args:?} should have failed:\n{}", out.text);
    out.text
}

fn on_data_thread(test: impl Future<Output = ()>) {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&rt, test);
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn qemu_img() {
    on_data_thread(async {
        let s = Server::start(None);
        let image = s.image();
        for uri in [s.unix("vol"), s.tcp("vol")] {
            let info = json(&good(&s, "qemu-img", &["info", "--output=json", "-f", "raw", &uri]).await);
            assert_eq!(info["virtual-size"], 64 * MIB);
            good(&s, "qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &image, &uri]).await;
            good(&s, "qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &uri]).await;
            let map = json(&good(&s, "qemu-img", &["map", "--output=json", "-f", "raw", &uri]).await);
            let row =
                |i: usize| (map[i]["start"].as_u64(), map[i]["length"].as_u64(), map[i]["data"].as_bool());
            assert_eq!(row(0), (Some(0), Some(10 * MIB), Some(true)));
            assert_eq!(row(1).2, Some(false), "the middle is a hole: {map}");
            // And back, into a format of qemu's own.
            let q = s.file("back.qcow2");
            good(&s, "qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, &q]).await;
            good(&s, "qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &image, &q]).await;
        }
        let text = bad(&s, "qemu-img", &["info", "-f", "raw", &s.unix("nope")]).await;
        assert!(text.contains("no volume named 'nope'"), "{text}");
    });
}

#[test]
fn qemu_io() {
    on_data_thread(async {
        let s = Server::start(None);
        let uri = s.unix("vol");
        let cmds = [
            "write -P 1 0 1M",
            "write -f -P 2 4096 4096",
            "write -P 3 513 7",
            "write -z 64k 64k",
            "write -z -u 128k 64k",
            "discard 192k 64k",
            "aio_write -P 4 1M 4M",
            "aio_write -P 5 8M 30M",
            "aio_flush",
            "flush",
            "read -P 1 1k 3k",
            "read -P 2 4096 4096",
            "read -P 3 513 7",
            "read -P 0 64k 192k",
            "read -P 1 256k 768k",
            "read -P 4 1M 4M",
            "read -P 5 8M 30M",
        ];
        let args: Vec<&str> = cmds.iter().flat_map(|c| ["-c", c]).collect();
        let text = good(&s, "qemu-io", &[&["-f", "raw", &uri][..], &args].concat()).await;
        assert!(!text.contains("failed"), "{text}");
        let text = bad(&s, "qemu-io", &["-f", "raw", "-c", "write 0 512", &s.unix("vol@s1")]).await;
        assert!(text.contains("Permission denied"), "{text}");
        good(&s, "qemu-io", &["-r", "-f", "raw", "-c", "read -P 0 0 1M", &s.unix("vol@s1")]).await;
    });
}

#[test]
fn nbdinfo() {
    on_data_thread(async {
        let s = Server::start(None);
        for uri in [s.unix("vol"), s.tcp("vol")] {
            let info = json(&good(&s, "nbdinfo", &["--json", &uri]).await);
            assert_eq!(info["protocol"], "newstyle-fixed");
            assert_eq!(info["structured"], true);
            let e = &info["exports"][0];
            assert_eq!(e["export-size"], 64 * MIB);
            assert_eq!(e["description"], "Sheepdog volume");
            for can in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
                assert_eq!(e[format!("can_{can}")], true, "{can}: {info}");
            }
            assert_eq!(e["is_read_only"], false);
            assert_eq!(e["contexts"][0], "base:allocation");
            let blocks =
                ["minimum", "preferred", "maximum"].map(|k| e[format!("block_size_{k}")].as_u64().unwrap());
            assert_eq!(blocks, [512, 4096, 32 * MIB]);
        }
        let snap = json(&good(&s, "nbdinfo", &["--json", &s.unix("vol@s1")]).await);
        assert_eq!(snap["exports"][0]["is_read_only"], true);
        assert_eq!(snap["exports"][0]["can_trim"], false);
        let list = json(&good(&s, "nbdinfo", &["--list", "--json", &s.unix("")]).await);
        let names: Vec<_> = list["exports"].as_array().unwrap().iter().map(|e| &e["export-name"]).collect();
        assert_eq!(names, ["vol", "vol@s1"]);
        let map = json(&good(&s, "nbdinfo", &["--map", "--json", &s.unix("vol")]).await);
        assert_eq!(map[0]["length"], 64 * MIB);
        assert_eq!(map[0]["description"], "hole,zero");
        let text = bad(&s, "nbdinfo", &[&s.unix("nope")]).await;
        assert!(text.contains("nope"), "{text}");
    });
}

#[test]
fn nbdcopy() {
    on_data_thread(async {
        let s = Server::start(None);
        let (image, back) = (s.image(), s.file("back.raw"));
        for uri in [s.unix("vol"), s.tcp("vol")] {
            good(&s, "nbdcopy", &["--connections=4", &image, &uri]).await;
            good(&s, "nbdcopy", &["--connections=4", &uri, &back]).await;
            assert!(std::fs::read(&image).unwrap() == std::fs::read(&back).unwrap(), "copies differ ({uri})");
        }
        s.source.create("other", 64 * MIB);
        good(&s, "nbdcopy", &["--synchronous", &s.unix("vol"), &s.tcp("other")]).await;
        good(&s, "qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &s.unix("other")]).await;
    });
}

#[test]
fn nbd_client_lists() {
    on_data_thread(async {
        let s = Server::start(None);
        let port = s.port().to_string();
        let text = good(&s, "nbd-client", &["-l", "127.0.0.1", &port]).await;
        assert!(text.contains("vol\n") && text.contains("vol@s1\n"), "{text}");
    });
}

#[test]
fn fio_verifies() {
    on_data_thread(async {
        let s = Server::start(None);
        for (uri, bs, depth, jobs) in [
            (s.unix("vol"), "4k-4k", "32", "1"),
            (s.tcp("vol"), "512-64k", "16", "4"),
            (s.tcp("vol"), "1M-1M", "8", "1"),
        ] {
            let (uri, bs, depth, jobs) = (
                format!("--uri={uri}"),
                format!("--bsrange={bs}"),
                format!("--iodepth={depth}"),
                format!("--numjobs={jobs}"),
            );
            let args = [
                "--name=v",
                "--ioengine=nbd",
                "--rw=randwrite",
                "--size=16M",
                "--offset_increment=16M",
                "--verify=crc32c",
                "--do_verify=1",
                "--verify_state_save=0",
                &uri,
                &bs,
                &depth,
                &jobs,
            ];
            let text = good(&s, "fio", &args).await;
            assert!(text.contains("err= 0"), "{text}");
        }
    });
}

/// A certificate authority, a server and a client identity, as files that gnutls clients read.
struct Identities {
    server: Arc<rustls::ServerConfig>,
    client_dir: PathBuf,
    stranger_dir: PathBuf,
}

fn identities(dir: &Path) -> Identities {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let issue = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let names = vec![name.to_owned(), "127.0.0.1".to_owned()];
        (CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap(), key)
    };
    let (client_dir, stranger_dir) = (dir.join("client"), dir.join("stranger"));
    for d in [&client_dir, &stranger_dir] {
        std::fs::create_dir(d).unwrap();
        std::fs::write(d.join("ca-cert.pem"), ca.pem()).unwrap();
    }
    let (cert, key) = issue("client");
    std::fs::write(client_dir.join("client-cert.pem"), cert.pem()).unwrap();
    std::fs::write(client_dir.join("client-key.pem"), key.serialize_pem()).unwrap();

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let (cert, key) = issue("localhost");
    let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    Identities { server: Arc::new(server), client_dir, stranger_dir }
}

#[test]
fn tls() {
    on_data_thread(async {
        let dir = tempfile::tempdir().unwrap();
        let ids = identities(dir.path());
        let s = Server::start(Some(ids.server));
        let nbds =
            |certs: &Path| format!("nbds://127.0.0.1:{}/vol?tls-certificates={}", s.port(), certs.display());
        let uri = nbds(&ids.client_dir);
        let info = json(&good(&s, "nbdinfo", &["--json", &uri]).await);
        assert_eq!(info["TLS"], true);
        assert_eq!(info["exports"][0]["contexts"][0], "base:allocation", "agreed again after STARTTLS");

        let (image, back) = (s.image(), s.file("back.raw"));
        good(&s, "nbdcopy", &["--connections=2", &image, &uri]).await;
        good(&s, "nbdcopy", &[&uri, &back]).await;
        assert!(std::fs::read(&image).unwrap() == std::fs::read(&back).unwrap());

        let creds = format!("tls-creds-x509,id=t,endpoint=client,dir={}", ids.client_dir.display());
        let opts = format!("driver=nbd,host=127.0.0.1,port={},export=vol,tls-creds=t", s.port());
        let text = good(&s, "qemu-img", &["info", "--object", &creds, "--image-opts", &opts]).await;
        assert!(text.contains("64 MiB"), "{text}");
        let raw = format!("driver=raw,file.driver=file,file.filename={image}");
        good(&s, "qemu-img", &["compare", "--object", &creds, "--image-opts", &opts, &raw]).await;

        let text = bad(&s, "nbdinfo", &[&s.tcp("vol")]).await;
        assert!(text.contains("server replied with error"), "plain text is refused: {text}");
        bad(&s, "nbdinfo", &[&nbds(&ids.stranger_dir)]).await;
        let plain = format!("driver=nbd,host=127.0.0.1,port={},export=vol", s.port());
        let text = bad(&s, "qemu-img", &["info", "--image-opts", &plain]).await;
        assert!(
            text.contains("this server requires TLS"),
            "with a reason, where the client shows it: {text}"
        );
        good(&s, "nbdinfo", &[&s.unix("vol")]).await;
    });
}

#[test]
fn tls_is_refused_in_words_where_it_is_off() {
    on_data_thread(async {
        let dir = tempfile::tempdir().unwrap();
        let ids = identities(dir.path());
        let s = Server::start(None);
        let uri = format!("nbds://127.0.0.1:{}/vol?tls-certificates={}", s.port(), ids.client_dir.display());
        bad(&s, "nbdinfo", &[&uri]).await;
        good(&s, "nbdinfo", &[&s.tcp("vol")]).await;
    });
}

#[test]
fn growth_is_seen_by_new_clients() {
    on_data_thread(async {
        let s = Server::start(None);
        let vol = s.source.create("grows", 64 * MIB);
        assert_eq!(good(&s, "nbdinfo", &["--size", &s.unix("grows")]).await.trim(), "67108864");
        vol.resize(128 * MIB);
        assert_eq!(good(&s, "nbdinfo", &["--size", &s.unix("grows")]).await.trim(), "134217728");
        good(&s, "qemu-io", &["-f", "raw", "-c", "write -P 1 100M 1M", &s.unix("grows")]).await;
    });
}
