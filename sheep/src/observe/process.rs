//! What the kernel knows about this process. Read when asked.

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// This process, now.
#[derive(Debug, Default, Clone, Copy)]
pub struct ProcessReport {
    /// Resident memory, bytes.
    pub resident: u64,
    /// CPU time used, user and system, seconds.
    pub cpu_seconds: f64,
    /// File descriptors open.
    pub open_fds: u64,
    /// File descriptors allowed.
    pub max_fds: u64,
    /// Threads.
    pub threads: u64,
}

/// Resident memory of this process, bytes.
pub fn resident_bytes() -> u64 {
    field("VmRSS:") << 10
}

fn field(name: &str) -> u64 {
    number(&std::fs::read_to_string("/proc/self/status").unwrap_or_default(), name)
}

/// First number behind a name, as in `VmRSS:     1234 kB`.
fn number(status: &str, name: &str) -> u64 {
    let rest = status.lines().find_map(|l| l.strip_prefix(name));
    rest.and_then(|r| r.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

impl ProcessReport {
    /// Look.
    pub fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        // The directory that is being listed is open itself.
        let fds = std::fs::read_dir("/proc/self/fd").map_or(0, |d| d.count().saturating_sub(1));
        Self {
            resident: number(&status, "VmRSS:") << 10,
            cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            open_fds: fds as u64,
            max_fds: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            threads: number(&status, "Threads:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells() {
        let p = ProcessReport::now();
        assert!(p.resident > 1 << 20 && p.open_fds > 2 && p.max_fds >= p.open_fds && p.threads > 0, "{p:?}");
        assert_eq!(number("VmRSS:\t  12 kB\nThreads:\t3\n", "Threads:"), 3);
        assert_eq!(number("", "Threads:"), 0);
    }
}
