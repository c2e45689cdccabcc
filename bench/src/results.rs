//! Samples, their medians, ratios of two systems, and whether bars are met. Arithmetic only.

use crate::fio::Run;
use crate::plan::{Bar, Case, Kind, Measure};
use crate::usage::Spent;
use serde::Serialize;

/// CPUs that others may keep busy during a run; beyond that it is repeated, or marked.
pub const NOISE: f64 = 0.7;

/// One visit: one round of one case on one system.
#[derive(Serialize, Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub iops: f64,
    pub bytes_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// CPU seconds of all servers per 1,000 requests; nothing when there is no server.
    pub server_cpu: Option<f64>,
    /// The same of fio.
    pub client_cpu: f64,
    /// CPUs busy with anything else.
    pub others_busy: f64,
}

impl Sample {
    pub fn new(run: &Run, spent: &Spent, has_server: bool) -> Self {
        let thousands = run.ios as f64 / 1000.0;
        let others = (spent.machine - spent.servers - spent.children) / spent.wall;
        Self {
            iops: run.iops,
            bytes_per_s: run.bytes_per_s,
            p50_us: run.p50_us,
            p99_us: run.p99_us,
            server_cpu: has_server.then_some(spent.servers / thousands),
            client_cpu: spent.children / thousands,
            others_busy: others.max(0.0),
        }
    }
    fn of(&self, measure: Measure) -> Option<f64> {
        match measure {
            Measure::Throughput => Some(self.iops),
            Measure::ServerCpu => self.server_cpu,
        }
    }
}

/// All rounds of one case on one system.
#[derive(Serialize, Debug)]
pub struct Series {
    pub case: Case,
    pub system: Kind,
    pub rounds: Vec<Sample>,
}

impl Series {
    /// Of each figure by itself.
    pub fn median(&self) -> Option<Sample> {
        let of = |f: fn(&Sample) -> f64| median(self.rounds.iter().map(f).collect());
        Some(Sample {
            iops: of(|s| s.iops)?,
            bytes_per_s: of(|s| s.bytes_per_s)?,
            p50_us: of(|s| s.p50_us)?,
            p99_us: of(|s| s.p99_us)?,
            server_cpu: median(self.rounds.iter().filter_map(|s| s.server_cpu).collect()),
            client_cpu: of(|s| s.client_cpu)?,
            others_busy: of(|s| s.others_busy)?,
        })
    }
}

/// A ratio over the rounds.
#[derive(Serialize, Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

/// A bar and what came of it.
#[derive(Serialize, Debug)]
pub struct Verdict {
    #[serde(flatten)]
    pub bar: Bar,
    /// Nothing when one of the two was not measured.
    pub ratio: Option<Ratio>,
    pub pass: Option<bool>,
    /// Others kept the machine busy: measure again before believing it.
    pub noisy: bool,
}

/// Everything measured.
#[derive(Serialize, Debug)]
pub struct Results {
    pub versions: Vec<String>,
    pub series: Vec<Series>,
}

impl Results {
    pub fn new(versions: Vec<String>) -> Self {
        Self { versions, series: Vec::new() }
    }
    pub fn add(&mut self, case: Case, system: Kind, sample: Sample) {
        match self.series.iter_mut().find(|s| s.case == case && s.system == system) {
            Some(s) => s.rounds.push(sample),
            None => self.series.push(Series { case, system, rounds: vec![sample] }),
        }
    }
    pub fn series(&self, case: Case, system: Kind) -> Option<&Series> {
        self.series.iter().find(|s| s.case == case && s.system == system)
    }
    /// What both did in the same round is divided, so that a machine that becomes slower hits both; then the median over the rounds.
    pub fn ratio(&self, case: Case, system: Kind, measure: Measure, peer: Kind) -> Option<Ratio> {
        let (ours, theirs) = (self.series(case, system)?, self.series(case, peer)?);
        let mut ratios = Vec::new();
        for (a, b) in ours.rounds.iter().zip(&theirs.rounds) {
            let (a, b) = (a.of(measure)?, b.of(measure)?);
            if b <= 0.0 {
                return None;
            }
            ratios.push(a / b);
        }
        let min = ratios.iter().copied().reduce(f64::min)?;
        let max = ratios.iter().copied().reduce(f64::max)?;
        Some(Ratio { median: median(ratios)?, min, max })
    }
    pub fn judge(&self, bars: &[Bar]) -> Vec<Verdict> {
        let judge = |bar: &Bar| {
            let ratio = self.ratio(bar.case, bar.system, bar.measure, bar.peer);
            let pass = ratio.map(|r| match bar.measure {
                Measure::Throughput => r.median >= bar.factor,
                Measure::ServerCpu => r.median <= bar.factor,
            });
            let noisy = [bar.system, bar.peer].into_iter().any(|system| {
                let m = self.series(bar.case, system).and_then(Series::median);
                m.is_some_and(|m| m.others_busy > NOISE)
            });
            Verdict { bar: *bar, ratio, pass, noisy }
        };
        bars.iter().map(judge).collect()
    }
}

/// The middle one; of two in the middle, their mean.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let upper = *values.get(n / 2)?;
    Some(if n % 2 == 1 { upper } else { f64::midpoint(values[n / 2 - 1], upper) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(iops: f64, server_cpu: Option<f64>) -> Sample {
        Sample {
            iops,
            bytes_per_s: iops * 4096.0,
            p50_us: 1.0,
            p99_us: 2.0,
            server_cpu,
            client_cpu: 0.0,
            others_busy: 0.0,
        }
    }

    fn results() -> Results {
        let mut r = Results::new(Vec::new());
        // The machine is half as fast in the second round: no ratio suffers.
        for (ours, theirs) in [(1000.0, 500.0), (500.0, 250.0), (1500.0, 500.0)] {
            r.add(Case::Write4kD32, Kind::Sheep1, sample(ours, Some(0.02)));
            r.add(Case::Write4kD32, Kind::QemuWritethrough, sample(theirs, Some(0.1)));
            r.add(Case::Write4kD32, Kind::Raw, sample(2000.0, None));
        }
        r
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![3.0, 1.0]), Some(2.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        let all = results();
        let m = all.series(Case::Write4kD32, Kind::Sheep1).unwrap().median().unwrap();
        assert_eq!((m.iops, m.server_cpu), (1000.0, Some(0.02)));
        let raw = all.series(Case::Write4kD32, Kind::Raw).unwrap().median().unwrap();
        assert_eq!(raw.server_cpu, None);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let r = results();
        let of = |m, peer| r.ratio(Case::Write4kD32, Kind::Sheep1, m, peer);
        assert_eq!(
            of(Measure::Throughput, Kind::QemuWritethrough),
            Some(Ratio { median: 2.0, min: 2.0, max: 3.0 })
        );
        assert_eq!(of(Measure::ServerCpu, Kind::QemuWritethrough).unwrap().median, 0.02 / 0.1);
        assert_eq!(of(Measure::ServerCpu, Kind::Raw), None);
        assert_eq!(of(Measure::Throughput, Kind::Ceph), None);
    }

    #[test]
    fn more_throughput_and_less_cpu_pass() {
        let bar = |measure, factor, peer| Bar {
            case: Case::Write4kD32,
            system: Kind::Sheep1,
            measure,
            factor,
            peer,
        };
        let pass = |b: Bar| results().judge(&[b])[0].pass;
        assert_eq!(pass(bar(Measure::Throughput, 2.0, Kind::QemuWritethrough)), Some(true));
        assert_eq!(pass(bar(Measure::Throughput, 2.1, Kind::QemuWritethrough)), Some(false));
        assert_eq!(pass(bar(Measure::ServerCpu, 0.5, Kind::QemuWritethrough)), Some(true));
        assert_eq!(pass(bar(Measure::ServerCpu, 0.1, Kind::QemuWritethrough)), Some(false));
        assert_eq!(pass(bar(Measure::Throughput, 0.1, Kind::Ceph)), None);
    }

    #[test]
    fn a_busy_machine_is_told() {
        let bar = Bar {
            case: Case::Write4kD32,
            system: Kind::Sheep1,
            measure: Measure::Throughput,
            factor: 1.0,
            peer: Kind::QemuWritethrough,
        };
        let mut r = results();
        assert!(!r.judge(&[bar])[0].noisy);
        for s in &mut r.series {
            s.rounds[0].others_busy = 0.9;
        }
        assert!(!r.judge(&[bar])[0].noisy, "one round of three is not the median");
        for s in &mut r.series {
            s.rounds[1].others_busy = 0.9;
        }
        assert!(r.judge(&[bar])[0].noisy);
    }

    #[test]
    fn a_sample_counts_per_thousand_requests() {
        let run = Run { ios: 50_000, iops: 10_000.0, bytes_per_s: 4.096e7, p50_us: 90.0, p99_us: 300.0 };
        let spent = Spent { wall: 5.0, servers: 2.0, children: 1.0, machine: 4.0 };
        let s = Sample::new(&run, &spent, true);
        assert_eq!((s.server_cpu, s.client_cpu), (Some(0.04), 0.02));
        assert!((s.others_busy - 0.2).abs() < 1e-9);
        assert_eq!(Sample::new(&run, &spent, false).server_cpu, None);
    }
}
