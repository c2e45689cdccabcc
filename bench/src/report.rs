//! What people and programs get to see.

use crate::plan::{Case, Kind, Measure};
use crate::results::{NOISE, Ratio, Results, Sample, Verdict};
use anyhow::{Context as _, Result};
use std::path::Path;

/// Peers whose ratio to Sheepdog is printed with every case.
const PEERS: [Kind; 5] = [Kind::Raw, Kind::QemuNone, Kind::QemuWritethrough, Kind::Nbdkit, Kind::Ceph];

/// One line about one visit.
pub fn brief(case: Case, s: &Sample) -> String {
    format!("{} p50 {:.0} us, others {:.2} CPUs", rate(case, s), s.p50_us, s.others_busy)
}

fn rate(case: Case, s: &Sample) -> String {
    if case.block() >= 1 << 20 {
        format!("{:.0} MB/s", s.bytes_per_s / 1e6)
    } else {
        format!("{:.0} IOPS", s.iops)
    }
}

pub fn print(results: &Results, verdicts: &[Verdict]) {
    println!();
    for v in &results.versions {
        println!("{v}");
    }
    println!(
        "Medians of the rounds. CPU: seconds per 1,000 requests, of all servers and of fio with its start. Others: CPUs busy with anything else."
    );
    println!(
        "Ratios are of throughput, taken round by round. * acknowledged writes may be lost with the power"
    );
    for case in Case::ALL {
        print_case(case, results);
    }
    print_bars(verdicts);
}

fn print_case(case: Case, results: &Results) {
    if !results.series.iter().any(|s| s.case == case) {
        return;
    }
    println!("\n{} ({}, {} bytes, depth {})", case.name(), case.pattern(), case.block(), case.depth());
    println!(
        "  {:<19} {:>12} {:>10} {:>10} {:>10} {:>10} {:>7} {:>9} {:>9}",
        "", "throughput", "p50 us", "p99 us", "server CPU", "client CPU", "others", "/sheep-1", "/sheep-3"
    );
    for kind in Kind::ALL {
        let Some(m) = results.series(case, kind).and_then(|s| s.median()) else { continue };
        let mark = if case.writes() && !kind.durable() { " *" } else { "" };
        let server = m.server_cpu.map_or_else(|| "-".into(), |c| format!("{c:.4}"));
        let ratio = |ours| {
            let of_peer = PEERS.contains(&kind) || kind == Kind::Sheep1 && ours == Kind::Sheep3;
            let r = of_peer.then(|| results.ratio(case, ours, Measure::Throughput, kind)).flatten();
            r.map_or_else(String::new, |r| format!("{:.2}", r.median))
        };
        println!(
            "  {:<19} {:>12} {:>10.1} {:>10.1} {server:>10} {:>10.4} {:>7.2} {:>9} {:>9}",
            format!("{}{mark}", kind.name()),
            rate(case, &m),
            m.p50_us,
            m.p99_us,
            m.client_cpu,
            m.others_busy,
            ratio(Kind::Sheep1),
            ratio(Kind::Sheep3),
        );
    }
}

fn print_bars(verdicts: &[Verdict]) {
    println!("\nBars (median of the rounds' ratios, lowest to highest round)");
    for v in verdicts {
        let b = &v.bar;
        let (what, sign) = match b.measure {
            Measure::Throughput => ("throughput", ">="),
            Measure::ServerCpu => ("server CPU", "<="),
        };
        let outcome = match (v.ratio, v.pass) {
            (Some(Ratio { median, min, max }), Some(pass)) => {
                let mark = if v.noisy { ", noisy" } else { "" };
                format!("{median:>6.2} ({min:.2}-{max:.2})  {}{mark}", if pass { "pass" } else { "MISS" })
            }
            _ => "not measured".into(),
        };
        println!(
            "  {:<9} {:<13} {what} {sign} {:>5.2} x {:<18} {outcome}",
            b.system.name(),
            b.case.name(),
            b.factor,
            b.peer.name()
        );
    }
    let count = |wanted| verdicts.iter().filter(|v| v.pass == wanted).count();
    println!("  {} passed, {} missed, {} not measured", count(Some(true)), count(Some(false)), count(None));
    if verdicts.iter().any(|v| v.noisy) {
        println!(
            "  noisy: others kept more than {NOISE} CPUs busy in most rounds; measure again on an idle machine"
        );
    }
}

/// Everything, as one JSON value.
pub fn write(file: &Path, seconds: u64, results: &Results, verdicts: &[Verdict]) -> Result<()> {
    let medians: Vec<_> = results
        .series
        .iter()
        .map(|s| serde_json::json!({ "case": s.case, "system": s.system, "median": s.median() }))
        .collect();
    let all = serde_json::json!({
        "versions": results.versions,
        "seconds": seconds,
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "series": results.series,
        "medians": medians,
        "bars": verdicts,
    });
    let text = serde_json::to_string_pretty(&all)?;
    std::fs::write(file, text + "\n").with_context(|| file.display().to_string())
}
