//! What a cluster costs that nobody asks for anything: three sheep, ten volumes with data, attached and idle.

use crate::harness::Lab;
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::measure::{Bars, cpu_time, resident};
use crate::harness::proc::{Proc, run};
use crate::harness::wait::{PATIENCE, phase, until};
use anyhow::{Context as _, Result, ensure};
use std::process::Command;
use std::time::{Duration, Instant};

pub const ABOUT: &str = "ten attached, idle volumes: CPU and memory of each sheep";

const VOLUMES: usize = 10;
const SIZE: u64 = 10 << 30;
/// Written to each volume.
const DATA: u64 = 64 << 20;
/// After the last write: its checkpoint, watermark, inventories.
const SETTLE: Duration = Duration::from_secs(10);
/// Per cent of one CPU, for each sheep.
const CPU: f64 = 1.0;
/// Bytes in memory, of each sheep: 100 MB.
const MEMORY: f64 = 100.0;

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let mut c = Cluster::start(lab, Plan::new(3, 3))?;
    let mut clients = Vec::new();
    for v in 0..VOLUMES {
        let name = format!("disk{v}");
        c.create(&name, SIZE)?;
        let (gateway, patterns) = (v % c.sheep.len(), DATA >> 24);
        let mut args = vec!["-f".to_owned(), "raw".to_owned()];
        for i in 0..patterns {
            args.extend(["-c".to_owned(), format!("write -q -P {} {} 16M", v + 1, i * (16 << 20))]);
        }
        args.push(c.uri(gateway, &name));
        run("qemu-io", &args.iter().map(String::as_str).collect::<Vec<_>>())?;
        // Holds its connection to the sheep as long as it lives.
        let mut cmd = Command::new("qemu-nbd");
        cmd.args(["-f", "raw", "--persistent", "--socket"]).arg(lab.dir.join(format!("{name}.sock")));
        cmd.arg(c.uri(gateway, &name));
        clients.push(Proc::start(&format!("qemu-nbd {v}"), cmd, &lab.dir.join("qemu-nbd.log"))?);
    }
    let attached = || -> Result<()> {
        for v in 0..VOLUMES {
            let name = format!("disk{v}");
            let rows = c.rows(&["vdi", "stat", &name])?;
            let row = rows.first().with_context(|| format!("nobody has {name} open"))?;
            ensure!(row["owner"].as_str().is_some_and(|o| !o.is_empty()), "{name} has no owner: {row}");
        }
        Ok(())
    };
    until("all volumes are attached", PATIENCE, || attached().map(Some))?;
    c.whole()?;
    phase(SETTLE, || Ok(false))?;

    let seconds = lab.pick(60, 20);
    lab.step(format!("{VOLUMES} idle clients, {} MiB of data each, for {seconds} s", DATA >> 20));
    let pids = (0..c.sheep.len()).map(|i| c.pid(i)).collect::<Result<Vec<_>>>()?;
    let leader = c.leader()?;
    let cpu = || pids.iter().map(|p| cpu_time(*p)).collect::<Result<Vec<_>>>();
    let (start, before) = (Instant::now(), cpu()?);
    phase(Duration::from_secs(seconds), || Ok(false))?;
    let (wall, after) = (start.elapsed(), cpu()?);
    let memory = pids.iter().map(|p| resident(*p)).collect::<Result<Vec<_>>>()?;

    // It was an idle cluster, not a dead one.
    for p in &mut clients {
        ensure!(p.running()?, "a client has ended, see qemu-nbd.log");
    }
    attached().context("after the measurement")?;
    c.alive()?;
    let mut bars = Bars::default();
    for i in 0..pids.len() {
        let role = if i == leader { ", the leader" } else { "" };
        let percent = (after[i] - before[i]).as_secs_f64() / wall.as_secs_f64() * 100.0;
        bars.at_most(lab, &format!("CPU of sheep {i}{role}, per cent of a core"), percent, CPU, "");
        bars.at_most(lab, &format!("resident, sheep {i}{role}, MB"), memory[i] as f64 / 1e6, MEMORY, "");
    }
    bars.judge()?;
    lab.proved(format!("an idle cluster with {VOLUMES} attached volumes stays within its bars"));
    drop(clients);
    c.stop_all()
}
