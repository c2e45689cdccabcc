//! Options as meant: checked, with defaults that depend on one another filled in.

use crate::cli::Args;
use sheepdog_client::policy::{self, Policy};
use sheepdog_cluster::Redundancy;
use std::net::IpAddr;
use std::path::PathBuf;

/// A daemon's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Home of identity and control log; also the first data disk unless this is a gateway.
    pub home: PathBuf,
    /// Data disks.
    pub disks: Vec<PathBuf>,
    /// Leave out those that are not mount points.
    pub only_mounted: bool,
    /// Address of every listener.
    pub bind: String,
    /// Clients.
    pub port: u16,
    /// Peers.
    pub peer_port: u16,
    /// Address told to others.
    pub advertise: String,
    /// No data.
    pub gateway: bool,
    /// One node without a network.
    pub local: bool,
    /// Seeds.
    pub seeds: Vec<String>,
    /// Zone.
    pub zone: Option<String>,
    /// Fixed virtual nodes.
    pub vnodes: Option<u32>,
    /// Proposed at format.
    pub redundancy: Option<Redundancy>,
    /// At format.
    pub min_copies: Option<u8>,
    /// At format.
    pub timing: sheepdog_cluster::Timing,
    /// At format.
    pub recovery_max_bytes_per_s: u64,
    /// Journal directory and size.
    pub journal: (Option<PathBuf>, Option<u64>),
    /// `plain` instead of `tree`.
    pub plain: bool,
    /// Refuse file systems without direct I/O.
    pub directio: bool,
    /// Write-through cache, bytes.
    pub cache: Option<u64>,
    /// NBD on TCP.
    pub nbd_port: Option<u16>,
    /// NBD on a unix socket.
    pub nbd_socket: Option<PathBuf>,
    /// Credentials.
    pub secret_file: Option<PathBuf>,
    /// Metrics.
    pub metrics_port: Option<u16>,
    /// Not only loopback is listened on.
    pub exposed: bool,
}

/// What is wrong with the options, and what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct ConfigError(pub String);

fn fail<T>(text: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(text.into()))
}

/// Longest time that an option takes, milliseconds: 10 years.
const MAX_TIME: u64 = 3_650 * 86_400_000;
/// Largest cache, in MB: 64 TiB.
const MAX_CACHE: u64 = 64 << 20;

/// `500ms`, `4s`, `10m`, `1h`, `1d`, or seconds. In milliseconds, at least 1, at most 10 years.
pub fn parse_time(option: &str, text: &str) -> Result<u64, ConfigError> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    let value = number.parse::<u64>().ok().and_then(|n| n.checked_mul(scale));
    let value = value.filter(|v| (1..=MAX_TIME).contains(v));
    value.ok_or_else(|| {
        ConfigError(format!("--{option}: \"{text}\" is not a time: write for example 500ms, 4s or 10m"))
    })
}

/// Bytes, with k M G T P or Ki Mi Gi Ti Pi (all powers of 1,024, as Sheepdog always had it).
pub fn parse_size(option: &str, text: &str) -> Result<u64, ConfigError> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.strip_suffix('B').map_or(unit, |u| u.strip_suffix('i').unwrap_or(u)) {
        "" => 0,
        "k" | "K" | "ki" | "Ki" => 10,
        "m" | "M" | "mi" | "Mi" => 20,
        "g" | "G" | "gi" | "Gi" => 30,
        "t" | "T" | "ti" | "Ti" => 40,
        "p" | "P" | "pi" | "Pi" => 50,
        _ => 64,
    };
    let value =
        number.parse::<u64>().ok().filter(|_| shift < 64).and_then(|n| n.checked_mul(1 << (shift % 64)));
    value.ok_or_else(|| {
        ConfigError(format!("--{option}: \"{text}\" is not a size: write for example 512M or 4G"))
    })
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|a| a.is_loopback())
}

// What can be asked for is what there is code for.
const _: () = assert!(policy::MAX_DATA == sheepdog_erasure::MAX_DATA);
const _: () = assert!(policy::MAX_PARITY == sheepdog_erasure::MAX_PARITY);

/// D:P.
fn parse_policy(text: &str) -> Result<Redundancy, ConfigError> {
    match text.parse() {
        Ok(Policy { data, parity }) => Ok(Redundancy::Erasure { data, parity }),
        Err(why) => fail(format!("--copy-policy \"{text}\": {why}")),
    }
}

impl Config {
    /// Check and complete.
    pub fn new(a: &Args) -> Result<Self, ConfigError> {
        let mut disks: Vec<PathBuf> =
            a.dirs.split(',').map(str::trim).filter(|d| !d.is_empty()).map(PathBuf::from).collect();
        let Some(first) = disks.first().cloned() else {
            return fail("no directory given: sheep needs DIR, where it keeps its identity and data");
        };
        if a.gateway {
            if disks.len() > 1 || a.home.is_some() {
                return fail("--gateway keeps no data: give it only one directory, for its identity");
            }
            disks.clear();
        }
        if a.home.as_ref().is_some_and(|h| disks.contains(h)) {
            return fail("--home is one of the disks: leave it out, the first directory is the home then");
        }
        let home = a.home.clone().unwrap_or(first);
        for (i, d) in disks.iter().enumerate() {
            if disks[..i].contains(d) {
                return fail(format!("{} is given twice: every disk is a directory of its own", d.display()));
            }
        }
        for (on, what) in
            [(a.http_port.is_some(), "--http-port (S3 and Swift)"), (a.nfs, "--nfs"), (a.dpdk, "--dpdk")]
        {
            if on {
                return fail(format!("{what} is not part of this release: leave it out"));
            }
        }
        let secure = a.secret_file.is_some();
        let bind = a
            .bind_addr
            .clone()
            .unwrap_or_else(|| if secure || a.insecure { "0.0.0.0".into() } else { "127.0.0.1".into() });
        let exposed = !is_loopback(&bind);
        if exposed && !secure && !a.insecure {
            return fail(format!(
                "--bind-addr {bind} would let anyone who can reach it read and change every volume: make credentials with \
                 `dog secret new` and give them with --secret-file, or say --insecure if you mean it"
            ));
        }
        let Some(peer_port) =
            a.port.checked_add(a.cluster_port_offset).filter(|p| *p != a.port && a.port > 0)
        else {
            return fail("--port plus --cluster-port-offset must be a port of its own, at most 65535");
        };
        if bind.is_empty() {
            return fail("--bind-addr is empty: write an address of this host, or leave it out");
        }
        if a.nbd && [a.port, peer_port].contains(&a.nbd_port) {
            return fail("--nbd-port must be a port of its own: another listener of this sheep has it");
        }
        let taken = [Some(a.port), Some(peer_port), a.nbd.then_some(a.nbd_port)];
        if a.metrics_port.is_some() && taken.contains(&a.metrics_port) {
            return fail("--metrics-port must be a port of its own: another listener of this sheep has it");
        }
        let local = match a.cluster_driver.as_deref() {
            Some("local") if !a.seed.is_empty() => {
                return fail("--cluster-driver local is one sheep alone: leave --seed out, or use sdcluster");
            }
            Some(driver) => driver == "local",
            None => a.seed.is_empty(),
        };
        for s in &a.seed {
            if s.rsplit_once(':').is_none_or(|(h, p)| h.is_empty() || p.parse::<u16>().is_err()) {
                return fail(format!(
                    "--seed {s}: write HOST:PORT, where PORT is the other sheep's peer port (7001 unless changed)"
                ));
            }
        }
        if a.advertise_addr.as_ref().is_some_and(String::is_empty) {
            return fail("--advertise-addr is empty: write the address other sheep reach this one by");
        }
        let advertise = match &a.advertise_addr {
            Some(y) => y.clone(),
            None if bind == "0.0.0.0" || bind == "::" => {
                route_address(&a.seed).unwrap_or_else(|| "127.0.0.1".into())
            }
            None => bind.clone(),
        };
        if a.copies.is_some_and(|c| c == 0 || c > sheepdog_proto::MAX_COPIES) {
            return fail("--copies: 1 to 16");
        }
        let redundancy = match (&a.copies, &a.copy_policy) {
            (Some(_), Some(_)) => return fail("say either --copies or --copy-policy"),
            (Some(n), None) => Some(Redundancy::Copies(*n)),
            (None, Some(policy)) => Some(parse_policy(policy)?),
            (None, None) => None,
        };
        let copies = redundancy.map(|r| r.width());
        if a.min_copies == Some(0) || a.min_copies.zip(copies).is_some_and(|(m, c)| usize::from(m) > c) {
            return fail(
                "--min-copies: at least 1, at most the number of copies (with --copy-policy D:P that is P + 1)",
            );
        }
        if a.cache && !(1..=MAX_CACHE).contains(&a.cache_size) {
            return fail("--cache-size: 1 to 67108864 (MB)");
        }
        if a.zone.as_ref().is_some_and(|z| z.is_empty() || z.len() > 255) {
            return fail("--zone: 1 to 255 bytes; without it every sheep is a zone of its own");
        }
        if a.vnodes == Some(0) || a.vnodes.is_some_and(|v| v > 1 << 16) {
            return fail("--vnodes: 1 to 65536; for a sheep without data say --gateway");
        }
        let timing = sheepdog_cluster::Timing {
            heartbeat: parse_time("heartbeat-interval", &a.heartbeat_interval)?,
            lease: parse_time("lease", &a.lease)?,
            down_out: parse_time("down-out-interval", &a.down_out_interval)?,
        };
        if timing.lease < timing.heartbeat * 2 {
            return fail(
                "--lease must be at least twice --heartbeat-interval, or one lost heartbeat stops a healthy sheep",
            );
        }
        if timing.down_out < timing.lease {
            return fail(
                "--down-out-interval must be at least --lease, or data is rebuilt while its sheep still serves",
            );
        }
        let journal = match &a.journal {
            None => (None, None),
            Some(text) => {
                let mut parts = text.split(',');
                let dir = parts.next().filter(|d| !d.is_empty()).map(PathBuf::from);
                let mut size = None;
                for p in parts {
                    match p.strip_prefix("size=") {
                        Some(s) => size = Some(parse_size("journal", s)?),
                        None => {
                            return fail(format!("--journal: \"{p}\" is not known: write DIR[,size=SIZE]"));
                        }
                    }
                }
                if size.is_some_and(|s| !(32 << 20..=1 << 40).contains(&s)) {
                    return fail("--journal: size must be at least 32M, at most 1T");
                }
                (dir, size)
            }
        };
        Ok(Self {
            home,
            disks,
            only_mounted: a.only_mounted,
            bind,
            port: a.port,
            peer_port,
            advertise,
            gateway: a.gateway,
            local,
            seeds: a.seed.clone(),
            zone: a.zone.clone(),
            vnodes: a.vnodes,
            redundancy,
            min_copies: a.min_copies,
            timing,
            recovery_max_bytes_per_s: match &a.recovery_max_bytes_per_s {
                Some(s) => parse_size("recovery-max-bytes-per-s", s)?,
                None => 0,
            },
            journal,
            plain: a.store == "plain",
            directio: a.directio,
            cache: a.cache.then_some(a.cache_size << 20),
            nbd_port: a.nbd.then_some(a.nbd_port),
            nbd_socket: a.nbd_socket.clone(),
            secret_file: a.secret_file.clone(),
            metrics_port: a.metrics_port,
            exposed,
        })
    }
}

/// The address this host would use to reach the first seed that resolves. No packet is sent.
fn route_address(seeds: &[String]) -> Option<String> {
    seeds.iter().find_map(|s| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.connect(s.as_str()).ok()?;
        Some(socket.local_addr().ok()?.ip().to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn config(args: &[&str]) -> Result<Config, ConfigError> {
        let argv = std::iter::once("sheep").chain(args.iter().copied()).map(OsString::from);
        Config::new(&Args::load(argv).expect("options parse"))
    }

    #[test]
    fn loopback_unless_there_are_credentials() {
        let c = config(&["/d"]).expect("valid");
        assert_eq!((c.bind.as_str(), c.peer_port, c.local), ("127.0.0.1", 7001, true));
        assert_eq!(config(&["--secret-file", "/s", "/d"]).expect("valid").bind, "0.0.0.0");
        let e = config(&["-b", "0.0.0.0", "/d"]).expect_err("refused");
        assert!(e.0.contains("dog secret new"), "{e}");
    }

    #[test]
    fn the_home_is_the_first_disk_or_none_of_them() {
        let paths = |c: &Config| (c.home.clone(), c.disks.clone());
        let c = config(&["/a,/b"]).expect("valid");
        assert_eq!(paths(&c), ("/a".into(), vec!["/a".into(), "/b".into()]));
        let c = config(&["--home", "/h", "/a,/b"]).expect("valid");
        assert_eq!(paths(&c), ("/h".into(), vec!["/a".into(), "/b".into()]));
        assert_eq!(paths(&config(&["-g", "/a"]).expect("valid")), ("/a".into(), vec![]));
    }

    #[test]
    fn wrong_values_say_what_to_do() {
        for (args, word) in [
            (&["--lease", "1s", "/d"][..], "--lease"),
            (&["--lease", "soon", "/d"], "not a time"),
            (&["--seed", "host", "/d"], "HOST:PORT"),
            (&["--journal", "/j,size=1k", "/d"], "32M"),
            (&["-g", "/d,/e"], "--gateway"),
            (&["-g", "--home", "/h", "/d"], "--gateway"),
            (&["--home", "/d", "/d,/e"], "--home"),
            (&["/d,/d"], "twice"),
            (&["--copies", "17", "/d"], "1 to 16"),
            (&["--copy-policy", "4", "/d"], "D:P"),
            (&["--copy-policy", "17:2", "/d"], "at most 16:15"),
            (&["--copy-policy", "4:0", "/d"], "D:P"),
            (&["--copy-policy", "4:2", "-c", "3", "/d"], "either"),
            (&["--copy-policy", "4:2", "--min-copies", "4", "/d"], "P + 1"),
            (&["--min-copies", "3", "-c", "2", "/d"], "--min-copies"),
            (&["--port", "65535", "/d"], "--port"),
            (&["--metrics-port", "7001", "/d"], "--metrics-port"),
            (&["--nbd", "--metrics-port", "10809", "/d"], "--metrics-port"),
            (&["--nfs", "/d"], "not part of this release"),
            (&["--cluster-driver", "local", "--seed", "a:1", "/d"], "--seed"),
            (&[","], "no directory"),
        ] {
            let e = config(args).expect_err("refused");
            assert!(e.0.contains(word), "{args:?}: {e}");
        }
    }

    #[test]
    fn sizes_and_times() {
        assert_eq!(parse_size("x", "4G"), Ok(4 << 30));
        assert_eq!(parse_size("x", "4GiB"), Ok(4 << 30));
        assert!(parse_size("x", "4X").is_err() && parse_size("x", "99999999P").is_err());
        assert_eq!(parse_time("x", "250ms"), Ok(250));
        assert!(parse_time("x", "0").is_err());
    }
}
