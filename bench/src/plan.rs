//! What is measured, on whom, and what is expected: cases, systems, bars. Plain values.

use clap::ValueEnum;
use serde::Serialize;

/// One load.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// 4 KiB random reads, one at a time
    #[value(name = "read-4k-d1")]
    #[serde(rename = "read-4k-d1")]
    Read4kD1,
    /// 4 KiB random reads, 32 at a time
    #[value(name = "read-4k-d32")]
    #[serde(rename = "read-4k-d32")]
    Read4kD32,
    /// 4 KiB random writes, each durable, one at a time
    #[value(name = "write-4k-d1")]
    #[serde(rename = "write-4k-d1")]
    Write4kD1,
    /// 4 KiB random writes, each durable, 32 at a time
    #[value(name = "write-4k-d32")]
    #[serde(rename = "write-4k-d32")]
    Write4kD32,
    /// 1 MiB sequential reads, 8 at a time
    #[value(name = "read-1m")]
    #[serde(rename = "read-1m")]
    Read1m,
    /// 1 MiB sequential writes, 8 at a time
    #[value(name = "write-1m")]
    #[serde(rename = "write-1m")]
    Write1m,
}

/// Who is measured.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file, without a server: O_DIRECT, and O_DSYNC for writes
    #[value(name = "raw")]
    #[serde(rename = "raw")]
    Raw,
    /// qemu-nbd --cache=none --aio=io_uring: O_DIRECT; writes are not durable before a flush, which nobody sends
    #[value(name = "qemu-none")]
    #[serde(rename = "qemu-none")]
    QemuNone,
    /// qemu-nbd --cache=writethrough: page cache, and a sync after every write
    #[value(name = "qemu-writethrough")]
    #[serde(rename = "qemu-writethrough")]
    QemuWritethrough,
    /// nbdkit's file plugin with every write forced to disk; reads come from the page cache
    #[value(name = "nbdkit-fua")]
    #[serde(rename = "nbdkit-fua")]
    Nbdkit,
    /// Ceph: 3 OSDs on this disk, pool size 3, fio's rbd engine
    #[value(name = "ceph-3")]
    #[serde(rename = "ceph-3")]
    Ceph,
    /// 1 sheep, 1 copy
    #[value(name = "sheep-1")]
    #[serde(rename = "sheep-1")]
    Sheep1,
    /// 3 sheep on this disk, 3 copies
    #[value(name = "sheep-3")]
    #[serde(rename = "sheep-3")]
    Sheep3,
}

/// What a bar compares.
#[derive(Serialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Requests or bytes a second: at least so many times the peer's.
    Throughput,
    /// CPU time of the servers per request: at most so many times the peer's.
    ServerCpu,
}

/// An expectation.
#[derive(Serialize, Debug, Clone, Copy)]
pub struct Bar {
    pub case: Case,
    pub system: Kind,
    pub measure: Measure,
    pub factor: f64,
    pub peer: Kind,
}

impl Case {
    /// In the order in which they run.
    pub const ALL: [Self; 6] =
        [Self::Read4kD1, Self::Read4kD32, Self::Write4kD1, Self::Write4kD32, Self::Read1m, Self::Write1m];
    /// Bytes of a request.
    pub fn block(self) -> u64 {
        match self {
            Self::Read1m | Self::Write1m => 1 << 20,
            _ => 4 << 10,
        }
    }
    /// Requests in flight.
    pub fn depth(self) -> u32 {
        match self {
            Self::Read4kD1 | Self::Write4kD1 => 1,
            Self::Read4kD32 | Self::Write4kD32 => 32,
            Self::Read1m | Self::Write1m => 8,
        }
    }
    pub fn writes(self) -> bool {
        matches!(self, Self::Write4kD1 | Self::Write4kD32 | Self::Write1m)
    }
    /// fio's word for it.
    pub fn pattern(self) -> &'static str {
        match self {
            Self::Read4kD1 | Self::Read4kD32 => "randread",
            Self::Write4kD1 | Self::Write4kD32 => "randwrite",
            Self::Read1m => "read",
            Self::Write1m => "write",
        }
    }
    /// Those for whom the case says something.
    pub fn systems(self) -> &'static [Kind] {
        use Kind::{Ceph, Nbdkit, QemuNone, QemuWritethrough, Raw, Sheep1, Sheep3};
        match self {
            Self::Read4kD1 | Self::Read4kD32 | Self::Read1m => &[Raw, QemuNone, Nbdkit, Ceph, Sheep1, Sheep3],
            Self::Write4kD1 | Self::Write4kD32 => &[Raw, QemuWritethrough, Nbdkit, Ceph, Sheep1, Sheep3],
            Self::Write1m => &[Raw, QemuNone, QemuWritethrough, Nbdkit, Ceph, Sheep1, Sheep3],
        }
    }
    /// As on the command line.
    pub fn name(self) -> String {
        name(&self)
    }
}

impl Kind {
    /// In the order in which they are visited in odd rounds.
    pub const ALL: [Self; 7] = [
        Self::Raw,
        Self::QemuNone,
        Self::QemuWritethrough,
        Self::Nbdkit,
        Self::Ceph,
        Self::Sheep1,
        Self::Sheep3,
    ];
    /// Is a write on disk when it is acknowledged?
    pub fn durable(self) -> bool {
        self != Self::QemuNone
    }
    /// As on the command line.
    pub fn name(self) -> String {
        name(&self)
    }
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}

/// All expectations.
pub fn bars() -> Vec<Bar> {
    use Case::{Read1m, Read4kD1, Read4kD32, Write1m, Write4kD1, Write4kD32};
    use Kind::{Ceph, QemuNone, QemuWritethrough, Sheep1, Sheep3};
    use Measure::{ServerCpu, Throughput};
    [
        (Sheep1, Read4kD1, Throughput, 0.9, QemuNone),
        (Sheep1, Read4kD32, Throughput, 1.0, QemuNone),
        (Sheep1, Write4kD1, Throughput, 1.5, QemuWritethrough),
        (Sheep1, Write4kD32, Throughput, 2.5, QemuWritethrough),
        (Sheep1, Read1m, Throughput, 0.9, QemuNone),
        (Sheep1, Write1m, Throughput, 0.6, QemuNone),
        (Sheep3, Write4kD1, Throughput, 0.9, QemuWritethrough),
        (Sheep3, Write4kD32, Throughput, 1.5, QemuWritethrough),
        (Sheep3, Read4kD32, Throughput, 0.9, Sheep1),
        (Sheep3, Read1m, Throughput, 0.9, Sheep1),
        (Sheep3, Write1m, Throughput, 0.3, Sheep1),
        (Sheep3, Write4kD1, Throughput, 5.0, Ceph),
        (Sheep3, Write4kD32, Throughput, 10.0, Ceph),
        (Sheep3, Read4kD32, Throughput, 4.0, Ceph),
        (Sheep3, Read1m, Throughput, 1.5, Ceph),
        (Sheep3, Write1m, Throughput, 2.0, Ceph),
        (Sheep1, Read4kD32, ServerCpu, 1.5, QemuNone),
        (Sheep1, Write4kD32, ServerCpu, 0.5, QemuWritethrough),
        (Sheep3, Write4kD32, ServerCpu, 0.15, Ceph),
    ]
    .map(|(system, case, measure, factor, peer)| Bar { case, system, measure, factor, peer })
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bar_compares_two_that_take_part() {
        for b in bars() {
            assert!(b.case.systems().contains(&b.system), "{b:?}");
            assert!(b.case.systems().contains(&b.peer), "{b:?}");
        }
    }

    #[test]
    fn names_are_those_of_the_json() {
        for c in Case::ALL {
            assert_eq!(serde_json::json!(c), c.name());
        }
        for k in Kind::ALL {
            assert_eq!(serde_json::json!(k), k.name());
        }
    }
}
