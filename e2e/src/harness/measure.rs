//! Figures and the bars they are held to.

use super::Lab;
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

/// The middle one; of two in the middle, the lower.
pub fn median(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().context("nothing was measured")
}

/// In milliseconds.
pub fn millis(d: &Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

/// Median in milliseconds.
pub fn median_millis(times: &[Duration]) -> Result<f64> {
    median(times.iter().map(millis).collect())
}

/// Figures that must stay at or below a limit. All are printed before any of them fails.
#[derive(Debug, Default)]
pub struct Bars {
    missed: Vec<String>,
}

impl Bars {
    /// Print a figure and hold it to its limit.
    pub fn at_most(&mut self, lab: &Lab, what: &str, value: f64, limit: f64, detail: &str) {
        // Not a number is a miss, too.
        let met = value <= limit;
        let verdict = if met { "met" } else { "MISSED" };
        lab.measured(what, format!("{value:.2} (at most {limit}: {verdict}){detail}"));
        if !met {
            self.missed.push(format!("{what}: {value:.2}, at most {limit}"));
        }
    }
    /// Were all met?
    pub fn judge(self) -> Result<()> {
        ensure!(self.missed.is_empty(), "missed: {}", self.missed.join("; "));
        Ok(())
    }
}

/// CPU time of a process so far, ended threads included.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let ticks = cpu_ticks(&stat).with_context(|| format!("{path}: {stat}"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// utime and stime.
fn cpu_ticks(stat: &str) -> Option<u64> {
    // The name is in parentheses and may hold anything; the state follows it.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Bytes of a process that are in memory.
pub fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    resident_bytes(&status).with_context(|| format!("{path}: no VmRSS"))
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!(median(vec![]).is_err());
        assert_eq!(median(vec![3.0]).unwrap(), 3.0);
        assert_eq!(median(vec![9.0, 1.0, 2.0]).unwrap(), 2.0);
        assert_eq!(median(vec![4.0, 9.0, 1.0, 2.0]).unwrap(), 2.0);
        assert_eq!(median_millis(&[Duration::from_micros(1500)]).unwrap(), 1.5);
    }

    #[test]
    fn a_missed_bar_fails() {
        let lab = Lab { dir: "x".into(), bin: "x".into(), images: None, quick: true };
        let mut bars = Bars::default();
        bars.at_most(&lab, "met", 1.0, 1.0, "");
        assert!(bars.judge().is_ok());
        for bad in [1.01, f64::NAN] {
            let mut bars = Bars::default();
            bars.at_most(&lab, "missed", bad, 1.0, "");
            assert!(bars.judge().is_err());
        }
    }

    #[test]
    fn what_the_kernel_says() {
        let stat = "4242 (a) b (c) S 1 4242 4242 0 -1 4194560 88 0 0 0 170 35 9 9 20 0 4 0 100 1000 10";
        assert_eq!(cpu_ticks(stat), Some(205));
        assert_eq!(cpu_ticks("4242 (x) S 1"), None);
        assert_eq!(resident_bytes("Name:\tsheep\nVmRSS:\t   2048 kB\n"), Some(2 << 20));
        assert_eq!(resident_bytes("Name:\tsheep\n"), None);
    }
}
