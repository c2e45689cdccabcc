//! What is left to clients while data is moved, and while everything is scrubbed: side by side, in turns.

use super::delta::moved;
use crate::harness::Lab;
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::fio::fill;
use crate::harness::proc::run;
use crate::harness::wait::until;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::time::Duration;

pub const ABOUT: &str =
    "clients beside recovery and scrubbing: 70 % of their throughput, less than twice their p99";

const MIB: u64 = 1 << 20;
/// What clients keep of their throughput, and how many times as long the slowest hundredth may take.
const THROUGHPUT: f64 = 0.7;
const P99: f64 = 2.0;
/// More than any of it takes.
const LONG: Duration = Duration::from_secs(900);

/// What clients had in one turn.
#[derive(Debug, Clone, Copy)]
struct Fared {
    /// Requests a second.
    rate: f64,
    /// Milliseconds.
    p99: f64,
}

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let bulk = lab.pick(6144, 2048) * MIB;
    let turns = lab.pick(4, 2);
    let mut c = Cluster::start(lab, Plan::new(4, 2))?;
    c.create("busy", 256 * MIB)?;
    c.create("bulk", bulk)?;
    for (volume, size) in [("busy", 256 * MIB), ("bulk", bulk)] {
        fill(&c.uri(0, volume), size)?;
    }
    beside_recovery(lab, &mut c, turns)?;
    beside_scrub(lab, &mut c, turns)?;
    c.alive()?;
    c.check("busy")?;
    c.stop_all()
}

/// Node 3 is emptied: a third of everything moves. It is paused in every other turn.
fn beside_recovery(lab: &Lab, c: &mut Cluster, turns: u32) -> Result<()> {
    let id = c.id(3)?;
    c.dog(&["cluster", "recover", "disable"])?;
    c.dog(&["node", "drain", &id, "--yes"])?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let before: u64 = moved(c)?.iter().sum();
    for _ in 0..turns {
        without.push(fare(lab, c, "alone")?);
        c.dog(&["cluster", "recover", "enable"])?;
        with.push(fare(lab, c, "recovery")?);
        let goes_on = !complete(c)?;
        c.dog(&["cluster", "recover", "disable"])?;
        ensure!(goes_on, "recovery was over before the turn was: nothing is shown");
    }
    let rate = (moved(c)?.iter().sum::<u64>() - before) / MIB / (u64::from(turns) * SECONDS);
    c.dog(&["cluster", "recover", "enable"])?;
    until("the node is empty", LONG, || Ok(complete(c)?.then_some(())))?;
    c.dog(&["node", "drain", &id, "--cancel"]).ok();
    compare(lab, "recovery", &with, &without, &format!("it moved {rate} MiB/s"))
}

/// Everything is looked at, in a hurry.
fn beside_scrub(lab: &Lab, c: &mut Cluster, turns: u32) -> Result<()> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        without.push(fare(lab, c, "alone")?);
        c.dog(&["cluster", "check", "--start"])?;
        with.push(fare(lab, c, "scrub")?);
        until("the scrub ends", LONG, || {
            let report = c.json(&["cluster", "check", "--status"])?;
            let nodes = report["nodes"].as_array().context("nodes")?;
            Ok(nodes.iter().all(|n| n["state"] != "scrubbing").then_some(()))
        })?;
    }
    compare(lab, "scrub", &with, &without, "in a hurry")
}

fn compare(lab: &Lab, what: &str, with: &[Fared], without: &[Fared], more: &str) -> Result<()> {
    let median = |all: &mut dyn Iterator<Item = f64>| {
        let mut all: Vec<f64> = all.collect();
        all.sort_by(f64::total_cmp);
        // The lower one of two in the middle.
        all[(all.len() - 1) / 2]
    };
    let rate = |of: &[Fared]| median(&mut of.iter().map(|f| f.rate));
    let p99 = |of: &[Fared]| median(&mut of.iter().map(|f| f.p99));
    let (kept, slower) = (rate(with) / rate(without), p99(with) / p99(without));
    lab.measured(
        &format!("clients beside {what}"),
        format!(
            "{:.0} of {:.0} requests a second ({:.0} %), p99 {:.1} instead of {:.1} ms ({slower:.2} times); {more}; turns {with:?} {without:?}",
            rate(with),
            rate(without),
            kept * 100.0,
            p99(with),
            p99(without),
        ),
    );
    ensure!(kept >= THROUGHPUT, "clients keep {:.0} % of their throughput beside {what}", kept * 100.0);
    ensure!(slower < P99, "the slowest hundredth takes {slower:.2} times as long beside {what}");
    lab.proved(format!("{what} leaves clients {:.0} % of their throughput", kept * 100.0));
    Ok(())
}

/// Seconds of a turn.
const SECONDS: u64 = 10;

/// 4 KiB reads and writes, eight at a time.
fn fare(lab: &Lab, c: &Cluster, name: &str) -> Result<Fared> {
    let out = lab.dir.join(format!("fio-{name}.json"));
    let path = out.to_str().context("path")?;
    let (uri, output, runtime) =
        (format!("--uri={}", c.uri(0, "busy")), format!("--output={path}"), format!("--runtime={SECONDS}"));
    let mut args = vec!["--ioengine=nbd", &uri, &output, &runtime, "--rw=randrw", "--bs=4k", "--iodepth=8"];
    args.extend(["--size=256m", "--time_based=1", "--unified_rw_reporting=1", "--output-format=json"]);
    args.push("--name=clients");
    run("fio", &args)?;
    let text = std::fs::read_to_string(&out)?;
    let json: Value = serde_json::from_str(text.find('{').map(|at| &text[at..]).context("no result")?)?;
    let job = &json["jobs"][0]["mixed"];
    let rate = job["iops"].as_f64().context("fio's rate")?;
    let p99 = job["clat_ns"]["percentile"]["99.000000"].as_f64().context("fio's percentiles")? / 1e6;
    Ok(Fared { rate, p99 })
}

fn complete(c: &Cluster) -> Result<bool> {
    Ok(c.rows(&["node", "recovery"])?.iter().all(|r| r["state"] == "complete"))
}
