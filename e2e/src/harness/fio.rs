//! fio over NBD: it writes, reads back, compares, and logs when each request finished.

use super::proc::{Proc, run};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

/// One job of a run.
#[derive(Debug, Clone)]
pub struct Job {
    /// Name.
    pub name: String,
    /// NBD address.
    pub uri: String,
    /// Further options, as on fio's command line without the dashes.
    pub options: Vec<String>,
}

impl Job {
    /// 4 KiB random writes, each read back and compared soon after, for a time.
    pub fn verify(uri: &str, offset: u64, size: u64) -> Self {
        let options =
            ["rw=randwrite", "bs=4k", "iodepth=8", "verify=crc32c", "verify_backlog=1024", "verify_fatal=1"];
        let mut options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        options.extend([format!("offset={offset}"), format!("size={size}"), "verify_state_save=0".into()]);
        Self { name: "verify".into(), uri: uri.into(), options }
    }
    /// 4 KiB random writes at a steady pace and nothing else, each logged: for gaps.
    pub fn pulse(uri: &str, offset: u64, size: u64, per_second: u32) -> Self {
        let options =
            ["rw=randwrite", "bs=4k", "iodepth=4", "norandommap=1", "write_lat_log=pulse", "log_offset=1"];
        let mut options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        options.extend([
            format!("offset={offset}"),
            format!("size={size}"),
            format!("rate_iops={per_second}"),
        ]);
        Self { name: "pulse".into(), uri: uri.into(), options }
    }
    /// Both, each in one half of a volume. `coded`: most of the first half rests at any time, and objects that were put away are written again.
    pub fn verify_and_pulse(uri: &str, size: u64, per_second: u32, coded: bool) -> [Self; 2] {
        let half = size / 2;
        let mut verify = Self::verify(uri, 0, half);
        if !coded {
            return [verify, Self::pulse(uri, half, half, per_second)];
        }
        verify.options.extend(["rate_iops=25", "verify_backlog=64"].map(String::from));
        [verify, Self::pulse(uri, half, 16 << 20, 100)]
    }
}

/// Fill the beginning of a volume, so many bytes.
pub fn fill(uri: &str, bytes: u64) -> Result<()> {
    let (uri, size) = (format!("--uri={uri}"), format!("--size={bytes}"));
    run("fio", &["--name=fill", "--ioengine=nbd", &uri, "--rw=write", "--bs=1m", "--iodepth=4", &size])
        .map(drop)
}

/// A run under way.
#[derive(Debug)]
pub struct Fio {
    proc: Proc,
    dir: PathBuf,
}

/// What came of it.
#[derive(Debug)]
pub struct Done {
    /// Writes finished.
    pub writes: u64,
    /// Reads finished: each compared.
    pub reads: u64,
    /// When each request of the pulse job finished, in milliseconds from the start, in order.
    pub pulse: Vec<u64>,
}

impl Done {
    /// The longest time in which no write finished, and when it began.
    pub fn gap(&self) -> (Duration, Duration) {
        gap(&self.pulse)
    }
}

/// The longest time between two of these milliseconds, in order, and when it began.
pub fn gap(times: &[u64]) -> (Duration, Duration) {
    let widest = times.windows(2).map(|w| (w[1] - w[0], w[0])).max().unwrap_or_default();
    (Duration::from_millis(widest.0), Duration::from_millis(widest.1))
}

impl Fio {
    /// Start; files go to `dir/name`.
    pub fn start(dir: &Path, name: &str, runtime: Duration, jobs: &[Job]) -> Result<Self> {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let mut cmd = Command::new("fio");
        cmd.current_dir(&dir)
            .args(["--ioengine=nbd", "--time_based=1", "--output-format=json", "--output=result.json"])
            .arg(format!("--runtime={}", runtime.as_secs()));
        for j in jobs {
            cmd.arg(format!("--name={}", j.name)).arg(format!("--uri={}", j.uri));
            cmd.args(j.options.iter().map(|o| format!("--{o}")));
        }
        let proc = Proc::start("fio", cmd, &dir.join("log"))?;
        Ok(Self { proc, dir })
    }

    /// Still writing?
    pub fn running(&mut self) -> Result<bool> {
        self.proc.running()
    }

    /// Until it ends; any error a client saw is an error.
    pub fn finish(mut self, limit: Duration) -> Result<Done> {
        let status = self.proc.wait(limit)?;
        let (writes, reads) = result(&self.dir, status)?;
        Ok(Done { writes, reads, pulse: finished(&self.dir)? })
    }
}

/// Writes and reads of a run in this directory that has ended; any error is an error.
fn result(dir: &Path, status: ExitStatus) -> Result<(u64, u64)> {
    let said = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
    let text = std::fs::read_to_string(dir.join("result.json")).unwrap_or_default();
    ensure!(status.success(), "fio saw an error ({status}): {said} {}", first_lines(&text));
    counts(&text).with_context(|| said)
}

/// The same from what it printed.
fn counts(text: &str) -> Result<(u64, u64)> {
    // Remarks come before the JSON.
    let json = text.find('{').map(|at| &text[at..]).context("fio wrote no result")?;
    let result: Value = serde_json::from_str(json).context("fio's result")?;
    let (mut writes, mut reads) = (0, 0);
    for job in result["jobs"].as_array().context("fio's jobs")? {
        if job["error"] != 0 {
            bail!("fio job {} ended with error {}", job["jobname"], job["error"]);
        }
        writes += job["write"]["total_ios"].as_u64().unwrap_or(0);
        reads += job["read"]["total_ios"].as_u64().unwrap_or(0);
    }
    Ok((writes, reads))
}

/// The same for a run that somebody else started: how many reads were compared.
pub fn finished_without_error(dir: &Path, status: ExitStatus) -> Result<u64> {
    compared(result(dir, status)?)
}

/// What a run printed that somebody else started, maybe far away: how many reads were compared.
pub fn verified(text: &str) -> Result<u64> {
    compared(counts(text)?)
}

fn compared((_, reads): (u64, u64)) -> Result<u64> {
    ensure!(reads > 0, "fio compared nothing");
    Ok(reads)
}

fn first_lines(text: &str) -> String {
    text.lines().take(5).collect::<Vec<_>>().join(" / ")
}

/// Times at which the requests of the pulse job finished: the first column of its completion log.
fn finished(dir: &Path) -> Result<Vec<u64>> {
    let mut times = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("pulse_lat.") {
            let text = std::fs::read_to_string(&path)?;
            times.extend(text.lines().filter_map(|l| l.split(',').next()?.trim().parse::<u64>().ok()));
        }
    }
    times.sort_unstable();
    Ok(times)
}
