//! fio: the one load generator for everybody, and what it reports.

use crate::plan::Case;
use crate::proc;
use crate::system::{Lab, System, Target};
use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

/// Bytes of every volume and file.
pub const SPAN: u64 = 2 << 30;
/// Beyond the time that was asked for: start, connection, end.
const GRACE: Duration = Duration::from_secs(30);

/// What one run came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Run {
    pub ios: u64,
    pub iops: f64,
    pub bytes_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Measure one case for a time.
pub fn run(lab: &Lab, case: Case, system: &System, length: Duration) -> Result<Run> {
    let mut cmd = command(&system.target, case.writes());
    cmd.arg(format!("--rw={}", case.pattern()))
        .arg(format!("--bs={}", case.block()))
        .arg(format!("--iodepth={}", case.depth()))
        .args(["--time_based=1", "--norandommap=1", "--randrepeat=0"])
        .arg(format!("--runtime={}", length.as_secs()));
    let said = proc::run("fio", cmd, &lab.log("fio"), length + GRACE)?;
    parse(&said, case.writes())
}

/// Write all of it once, with random data.
pub fn fill(lab: &Lab, system: &System) -> Result<()> {
    let mut cmd = command(&system.target, true);
    cmd.args(["--rw=write", "--bs=1M", "--iodepth=8", "--refill_buffers=1"]);
    parse(&proc::run("fio", cmd, &lab.log("fio"), proc::PATIENCE)?, true).map(drop)
}

fn command(target: &Target, writes: bool) -> Command {
    let mut cmd = Command::new("fio");
    cmd.args(["--name=bench", "--output-format=json", "--lat_percentiles=1", "--clat_percentiles=0"])
        .arg(format!("--size={SPAN}"));
    match target {
        Target::File(path) => {
            cmd.args(["--ioengine=io_uring", "--direct=1", "--filename"]).arg(path);
            if writes {
                cmd.arg("--sync=dsync");
            }
        }
        Target::Nbd(uri) => {
            cmd.args(["--ioengine=nbd", "--uri", uri]);
        }
        Target::Rbd { conf, pool, image } => {
            cmd.env("CEPH_CONF", conf).args(["--ioengine=rbd", "--clientname=admin"]);
            cmd.args(["--pool", pool, "--rbdname", image]);
        }
    }
    cmd
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<Job>,
}
#[derive(Deserialize)]
struct Job {
    error: i64,
    read: Side,
    write: Side,
}
#[derive(Deserialize)]
struct Side {
    total_ios: u64,
    iops: f64,
    bw_bytes: f64,
    lat_ns: Latency,
}
#[derive(Deserialize)]
struct Latency {
    #[serde(default)]
    percentile: BTreeMap<String, f64>,
}

fn parse(said: &str, writes: bool) -> Result<Run> {
    // Remarks come before the JSON, and after it.
    let json = said.find("{\n").map(|at| &said[at..]).context("fio wrote no result")?;
    let json = json.rfind("\n}").map_or(json, |end| &json[..end + 2]);
    let output: Output = serde_json::from_str(json).context("fio's result")?;
    let job = output.jobs.first().context("fio ran no job")?;
    ensure!(job.error == 0, "fio ended with error {}", job.error);
    let side = if writes { &job.write } else { &job.read };
    ensure!(side.total_ios > 0, "fio finished no request");
    let percentile = |name: &str| {
        side.lat_ns
            .percentile
            .get(name)
            .map(|ns| ns / 1000.0)
            .with_context(|| format!("no percentile {name}"))
    };
    Ok(Run {
        ios: side.total_ios,
        iops: side.iops,
        bytes_per_s: side.bw_bytes,
        p50_us: percentile("50.000000")?,
        p99_us: percentile("99.000000")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &str = include_str!("fio_sample.json");

    #[test]
    fn a_recorded_write_run() {
        let run = parse(RECORDED, true).unwrap();
        assert_eq!(run.ios, 256);
        assert_eq!(run.iops, 1196.261682);
        assert_eq!(run.bytes_per_s, 1_254_371_289.0);
        assert_eq!(run.p50_us, 5341.184);
        assert_eq!(run.p99_us, 43253.76);
    }

    #[test]
    fn remarks_around_the_result() {
        let said = format!("fio: connected to NBD server\n{RECORDED}\nbye\n");
        assert_eq!(parse(&said, true).unwrap(), parse(RECORDED, true).unwrap());
    }

    #[test]
    fn nothing_done_or_nothing_said_is_an_error() {
        assert!(parse(RECORDED, false).is_err());
        assert!(parse("fio: pid=0, err=2", true).is_err());
        assert!(parse(&RECORDED.replace("\"error\" : 0", "\"error\" : 5"), true).is_err());
    }
}
