//! Command line, environment-free, and configuration file; the secret file.

use crate::mutate::{each, each_of, rounds};
use sheep::cli::{Args, CliError};
use sheep::config::{Config, parse_size, parse_time};
use sheepdog_client::credentials::Credentials;
use std::ffi::OsString;

fn words(line: &str) -> Vec<OsString> {
    std::iter::once("sheep").chain(line.split('\n')).map(OsString::from).collect()
}

/// Either a configuration that keeps what it promises, or a sentence.
fn judge(loaded: Result<Args, CliError>) {
    let args = match loaded {
        Ok(args) => args,
        Err(e) => {
            assert!(!e.to_string().trim().is_empty());
            return;
        }
    };
    // Names of seeds would be looked up.
    if args.seed.iter().any(|s| !s.starts_with("127.0.0.1:")) {
        return;
    }
    match Config::new(&args) {
        Ok(c) => {
            assert!(c.port != c.peer_port && c.port > 0);
            assert!(c.gateway || c.disks.first() == Some(&c.home));
            assert!(c.timing.lease >= 2 * c.timing.heartbeat && c.timing.down_out >= c.timing.lease);
            assert!(c.redundancy.is_none_or(|r| (1..=16).contains(&r.width()) && r.spread() <= 31));
            assert!(c.journal.1.is_none_or(|s| s >= 32 << 20));
        }
        Err(e) => assert!(!e.0.is_empty()),
    }
}

#[test]
fn command_lines() {
    let lines = [
        "--port\n7100\n--cluster-port-offset\n5\n--zone\na\n/d,/e",
        "-g\n--seed\n127.0.0.1:7001\n--cluster-driver\nsdcluster\n/d",
        "--copies\n3\n--min-copies\n2\n--vnodes\n100\n--lease\n4s\n--heartbeat-interval\n500ms\n/d",
        "--journal\n/j,size=64M\n-w\n--cache-size\n256\n--recovery-max-bytes-per-s\n10M\n/d",
        "--nbd\n--nbd-port\n10809\n--metrics-port\n9100\n--log-level\nsheep=debug\n--store\nplain\n/d",
    ];
    let valid: Vec<Vec<u8>> = lines.iter().map(|l| l.as_bytes().to_vec()).collect();
    each_of(1, &valid, rounds() / 2, |bytes| {
        // A file of its own choice is another test's subject.
        let line = String::from_utf8_lossy(bytes).replace('\0', "");
        if !line.contains("--config") {
            judge(Args::load(words(&line)));
        }
    });
}

#[test]
fn configuration_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sheep.toml");
    let text = "port = 7100\nzone = \"a\"\nseed = [\"127.0.0.1:7001\"]\nnbd = true\nlease = \"4s\"\njournal = \"/j,size=64M\"\ncopies = 3\n";
    let odd = "\"\" = 1\n\"a b\" = [1.5, true]\n[t]\nx = 1979-05-27T07:32:00Z\nhelp = true\n";
    let nested = format!("dir = \"/d\"\nx = {}1{}", "[".repeat(60), "]".repeat(60));
    let valid = [text, odd, &nested].map(|t| t.as_bytes().to_vec());
    let argv = ["sheep", "--config", file.to_str().unwrap(), "/d"];
    each_of(2, &valid, rounds() / 4, |bytes| {
        std::fs::write(&file, bytes).unwrap();
        judge(Args::load(argv.map(OsString::from)));
    });
    std::fs::write(&file, "[".repeat(500_000)).unwrap();
    judge(Args::load(argv.map(OsString::from)));
    std::fs::write(&file, vec![b'#'; 2 << 20]).unwrap();
    let e = Args::load(argv.map(OsString::from)).unwrap_err().to_string();
    assert!(e.contains("larger than"), "{e}");
}

#[test]
fn sizes_and_times() {
    let valid =
        ["4G", "512MiB", "250ms", "10m", "18446744073709551615", "16383P"].map(|t| t.as_bytes().to_vec());
    each(3, &valid, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Err(e) = parse_size("x", &text) {
            assert!(e.0.contains("--x"));
        }
        match parse_time("x", &text) {
            Ok(t) => assert!((1..=3_650 * 86_400_000).contains(&t)),
            Err(e) => assert!(e.0.contains("--x")),
        }
    });
}

#[test]
fn secret_files() {
    let text = Credentials::generate().unwrap().to_text();
    each_of(4, &[text.into_bytes()], rounds() / 3, |bytes| {
        if let Err(e) = Credentials::parse(&String::from_utf8_lossy(bytes)) {
            assert!(!e.is_empty());
        }
    });
}
