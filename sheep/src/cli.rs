//! Options as written: command line, then `SHEEP_*` variables, then the TOML file of `--config`.

use clap::Parser;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Sheepdog's storage daemon.
#[derive(Parser, Debug, Clone)]
#[command(name = "sheep", version, about, max_term_width = 110, args_override_self = true)]
pub struct Args {
    /// Directory of this sheep, then its further disks: DIR[,DISK...]. The first holds identity and control log, and data too
    #[arg(value_name = "DIR[,DISK...]", env = "SHEEP_DIR")]
    pub dirs: String,
    /// Directory for identity and control log. Then every DIR is a data disk and nothing else, and any of them may be replaced
    #[arg(long, value_name = "DIR", env = "SHEEP_HOME")]
    pub home: Option<PathBuf>,
    /// Start without those disks whose directories are not mount points: a file system that is not mounted must not look like an empty disk
    #[arg(long, env = "SHEEP_ONLY_MOUNTED")]
    pub only_mounted: bool,

    /// Address to listen on. Default: loopback without credentials, all addresses with them
    #[arg(short = 'b', long, env = "SHEEP_BIND_ADDR")]
    pub bind_addr: Option<String>,
    /// Port for clients and administration
    #[arg(short = 'p', long, default_value_t = sheepdog_proto::DEFAULT_PORT, env = "SHEEP_PORT")]
    pub port: u16,
    /// The port between sheep is the client port plus this
    #[arg(long, default_value_t = sheepdog_proto::DEFAULT_PEER_PORT_OFFSET, env = "SHEEP_CLUSTER_PORT_OFFSET")]
    pub cluster_port_offset: u16,
    /// Address other sheep reach this one by. Default: the bind address, or the address of the route to the first seed
    #[arg(short = 'y', long, env = "SHEEP_ADVERTISE_ADDR")]
    pub advertise_addr: Option<String>,

    /// Keep no data: only front-ends and forwarding
    #[arg(short = 'g', long, env = "SHEEP_GATEWAY")]
    pub gateway: bool,
    /// Copies proposed when the cluster is formatted by this sheep
    #[arg(short = 'c', long, env = "SHEEP_COPIES")]
    pub copies: Option<u8>,
    /// Erasure coding proposed at format, D:P (data:parity)
    #[arg(long, value_name = "D:P", env = "SHEEP_COPY_POLICY")]
    pub copy_policy: Option<String>,
    /// Copies that must have a write before it is acknowledged. Default: copies - 1, at least 1
    #[arg(long, env = "SHEEP_MIN_COPIES")]
    pub min_copies: Option<u8>,
    /// Failure zone, a name or a number. Default: this node alone
    #[arg(short = 'z', long, env = "SHEEP_ZONE")]
    pub zone: Option<String>,
    /// Fixed number of virtual nodes. Default: 128 per TiB of capacity
    #[arg(short = 'v', long, env = "SHEEP_VNODES")]
    pub vnodes: Option<u32>,

    /// Journal on its own device: DIR[,size=SIZE]
    #[arg(short = 'j', long, env = "SHEEP_JOURNAL")]
    pub journal: Option<String>,
    /// Keep blocks of attached volumes in memory at the owner of their session (write-through)
    #[arg(short = 'w', long, env = "SHEEP_CACHE")]
    pub cache: bool,
    /// Size of that cache in MB
    #[arg(long, default_value_t = 256, env = "SHEEP_CACHE_SIZE")]
    pub cache_size: u64,
    /// Insist on direct I/O: refuse a file system that cannot do it
    #[arg(long, env = "SHEEP_DIRECTIO")]
    pub directio: bool,
    /// Layout of object files
    #[arg(long, value_parser = ["plain", "tree"], default_value = "tree", env = "SHEEP_STORE")]
    pub store: String,

    /// `local`: one sheep, no network; `sdcluster`: several, with their own consensus. Default: local, sdcluster when a seed is given
    #[arg(long, value_parser = ["local", "sdcluster"], env = "SHEEP_CLUSTER_DRIVER")]
    pub cluster_driver: Option<String>,
    /// Peer address of another sheep, HOST:PORT (port 7001 unless changed); may be repeated, names may have many addresses
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', env = "SHEEP_SEED")]
    pub seed: Vec<String>,

    /// Serve NBD
    #[arg(long, env = "SHEEP_NBD")]
    pub nbd: bool,
    /// Port for NBD
    #[arg(long, default_value_t = sheepdog_proto::DEFAULT_NBD_PORT, env = "SHEEP_NBD_PORT")]
    pub nbd_port: u16,
    /// Serve NBD on a unix socket as well
    #[arg(long, value_name = "PATH", env = "SHEEP_NBD_SOCKET")]
    pub nbd_socket: Option<PathBuf>,
    /// Port for S3 and Swift
    #[arg(long, env = "SHEEP_HTTP_PORT")]
    pub http_port: Option<u16>,
    /// Serve NFS
    #[arg(long, env = "SHEEP_NFS")]
    pub nfs: bool,
    /// Port for NFS
    #[arg(long, default_value_t = 2049, env = "SHEEP_NFS_PORT")]
    pub nfs_port: u16,
    /// Use DPDK between sheep
    #[arg(long, env = "SHEEP_DPDK")]
    pub dpdk: bool,

    /// The cluster's secret (made by `dog secret new`): turns on mutual TLS
    #[arg(long, value_name = "FILE", env = "SHEEP_SECRET_FILE")]
    pub secret_file: Option<PathBuf>,
    /// Listen beyond loopback without credentials: anyone who can reach the ports owns the data
    #[arg(long, env = "SHEEP_INSECURE")]
    pub insecure: bool,

    /// Between two heartbeats (for example 1s, 500ms); used at format
    #[arg(long, value_name = "TIME", default_value = "1s", env = "SHEEP_HEARTBEAT_INTERVAL")]
    pub heartbeat_interval: String,
    /// How long a heartbeat's answer lets a sheep serve; used at format
    #[arg(long, value_name = "TIME", default_value = "4s", env = "SHEEP_LEASE")]
    pub lease: String,
    /// How long a sheep may be down before its data is rebuilt elsewhere; used at format
    #[arg(long, value_name = "TIME", default_value = "10m", env = "SHEEP_DOWN_OUT_INTERVAL")]
    pub down_out_interval: String,
    /// Bytes a second recovery may move on this cluster's nodes, 0 = no limit; used at format
    #[arg(long, value_name = "SIZE", env = "SHEEP_RECOVERY_MAX_BYTES_PER_S")]
    pub recovery_max_bytes_per_s: Option<String>,

    /// error, warn, info, debug, trace, or a filter like `sheep::peer=debug`
    #[arg(short = 'l', long, default_value = "info", env = "SHEEP_LOG_LEVEL")]
    pub log_level: String,
    /// How log lines look
    #[arg(long, value_parser = ["text", "json"], default_value = "text", env = "SHEEP_LOG_FORMAT")]
    pub log_format: String,
    /// Serve Prometheus metrics and health on this port (same address as clients)
    #[arg(long, env = "SHEEP_METRICS_PORT")]
    pub metrics_port: Option<u16>,
    /// TOML file: the same names as the long options
    #[arg(long, value_name = "FILE", env = "SHEEP_CONFIG")]
    pub config: Option<PathBuf>,
}

/// Why the options could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// clap's own message (also help and version).
    #[error(transparent)]
    Clap(#[from] clap::Error),
    /// The file.
    #[error("{path}: {why}")]
    File {
        /// Path.
        path: String,
        /// Reason.
        why: String,
    },
}

impl Args {
    /// Command line, environment and file together.
    pub fn load(argv: impl IntoIterator<Item = OsString>) -> Result<Self, CliError> {
        let argv: Vec<OsString> = argv.into_iter().collect();
        let Some(path) = config_path(&argv) else { return Ok(Self::try_parse_from(argv)?) };
        let fail = |why: String| CliError::File { path: path.display().to_string(), why };
        let text = read_text(&path).map_err(fail)?;
        let from_file = file_arguments(&text).map_err(fail)?;
        let mut all = argv.clone();
        let at = all.len().min(1);
        // The file comes first, so that what is written on the command line wins.
        all.splice(at..at, from_file);
        Self::try_parse_from(all).map_err(|e| {
            // Name the file when the command line alone would have been fine.
            match Self::try_parse_from(&argv) {
                Ok(_) => fail(e.render().to_string().lines().next().unwrap_or_default().to_owned()),
                Err(_) => e.into(),
            }
        })
    }
}

/// Files larger than this are something else, bytes.
const MAX_FILE: u64 = 1 << 20;

fn read_text(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|e| e.to_string())?;
    if text.len() as u64 > MAX_FILE {
        return Err("larger than 1 MiB: expected a TOML file with the names of the long options".into());
    }
    Ok(text)
}

fn config_path(argv: &[OsString]) -> Option<PathBuf> {
    let mut it = argv.iter().skip(1);
    while let Some(a) = it.next() {
        let text = a.to_string_lossy();
        if text == "--config" {
            return it.next().map(PathBuf::from);
        }
        if let Some(v) = text.strip_prefix("--config=") {
            return Some(v.into());
        }
    }
    std::env::var_os("SHEEP_CONFIG").map(PathBuf::from)
}

/// `key = value` of the file as long options. Variables of the environment win over the file.
fn file_arguments(text: &str) -> Result<Vec<OsString>, String> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.message().to_owned())?;
    let mut positional = Vec::new();
    let mut out = Vec::new();
    for (key, value) in table {
        let long = key.replace('_', "-");
        let variable = format!("SHEEP_{}", long.replace('-', "_").to_uppercase());
        if std::env::var_os(variable).is_some() {
            continue;
        }
        let values = match &value {
            toml::Value::Boolean(false) => continue,
            toml::Value::Boolean(true) => {
                out.push(format!("--{long}").into());
                continue;
            }
            toml::Value::Array(items) => items.iter().map(scalar).collect::<Option<Vec<_>>>(),
            other => scalar(other).map(|v| vec![v]),
        };
        let values = values.ok_or_else(|| format!("{key}: expected a word, a number or a list of them"))?;
        if long == "dir" || long == "dirs" {
            positional.push(values.join(","));
            continue;
        }
        out.extend(values.into_iter().map(|v| OsString::from(format!("--{long}={v}"))));
    }
    out.extend(positional.into_iter().map(OsString::from));
    Ok(out)
}

fn scalar(v: &toml::Value) -> Option<String> {
    match v {
        toml::Value::String(s) => Some(s.clone()),
        toml::Value::Integer(i) => Some(i.to_string()),
        toml::Value::Float(f) => Some(f.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_gives_defaults_and_the_command_line_wins() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("sheep.toml");
        std::fs::write(&file, "port = 7100\nzone = \"a\"\nseed = [\"x:7001\", \"y:7001\"]\nnbd = true\n")
            .expect("write");
        let argv = ["sheep", "--zone", "b", "--config", file.to_str().expect("utf8"), "/d"];
        let a = Args::load(argv.map(OsString::from)).expect("valid");
        assert_eq!((a.port, a.zone.as_deref(), a.nbd, a.seed.len()), (7100, Some("b"), true, 2));
    }

    #[test]
    fn a_wrong_file_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("sheep.toml");
        std::fs::write(&file, "prot = 7100\n").expect("write");
        let argv = ["sheep", "--config", file.to_str().expect("utf8"), "/d"];
        let e = Args::load(argv.map(OsString::from)).expect_err("unknown key").to_string();
        assert!(e.contains("sheep.toml") && e.contains("--prot"), "{e}");
    }
}
