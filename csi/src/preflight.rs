//! How can volumes be attached here? Looks, and says what it saw.

use crate::attach::Backend;
use crate::attach::loopback::Loopback;
use crate::attach::nbd::{self, Nbd};
use crate::cli::{Attach, Choice};
use crate::fault::{Fault, Outcome};
use serde::Serialize;
use std::path::Path;

/// Kernel NBD is good from here on: devices can be let go of whatever became of their server.
pub const KERNEL: (u32, u32) = (5, 19);

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What would be used: `nbd`, `loop`, or nothing.
    pub backend: Option<&'static str>,
    /// Everything that was looked at.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub what: &'static str,
    /// It is as it should be.
    pub good: bool,
    /// What was seen, and what can be done.
    pub seen: String,
    /// Which backend needs it.
    pub needed_by: &'static str,
}

/// What the machine says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Release of the kernel.
    pub kernel: String,
    /// The NBD family is there in netlink.
    pub nbd: Result<(), String>,
    /// `/dev/fuse`.
    pub fuse: bool,
    /// `/dev/loop-control`.
    pub loops: bool,
    /// The fuse-host answers.
    pub host: Result<(), String>,
    /// The sheep's socket is there.
    pub sheep: bool,
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What the facts mean. Pure.
pub fn judge(f: &Facts, wanted: Choice) -> Report {
    let said = |r: &Result<(), String>, good: &str| r.clone().map_or_else(|e| e, |()| good.to_owned());
    let there = |yes: bool, path: &str| format!("{path} {}", if yes { "is there" } else { "is missing" });
    let new = version(&f.kernel).is_some_and(|v| v >= KERNEL);
    let (major, minor) = KERNEL;
    let checks = vec![
        Check {
            what: "kernel",
            good: new,
            seen: format!("{}; kernel NBD wants {major}.{minor} or newer", f.kernel),
            needed_by: "nbd",
        },
        Check {
            what: "nbd",
            good: f.nbd.is_ok(),
            seen: said(&f.nbd, "the kernel has NBD"),
            needed_by: "nbd",
        },
        Check { what: "fuse", good: f.fuse, seen: there(f.fuse, "/dev/fuse"), needed_by: "loop" },
        Check { what: "loop", good: f.loops, seen: there(f.loops, "/dev/loop-control"), needed_by: "loop" },
        Check {
            what: "fuse-host",
            good: f.host.is_ok(),
            seen: said(&f.host, "it answers"),
            needed_by: "loop",
        },
        Check {
            what: "sheep",
            good: f.sheep,
            seen: if f.sheep {
                "its NBD socket is there".into()
            } else {
                "its NBD socket is not there (yet): volumes attach when it is".into()
            },
            needed_by: "both",
        },
    ];
    let works = |backend| checks.iter().filter(|c| c.needed_by == backend).all(|c| c.good);
    let backend = match wanted {
        Choice::Nbd => works("nbd").then_some("nbd"),
        Choice::Loop => works("loop").then_some("loop"),
        Choice::Auto if works("nbd") => Some("nbd"),
        Choice::Auto => works("loop").then_some("loop"),
    };
    Report { backend, checks }
}

/// Look.
pub async fn look(options: &Attach) -> Report {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let family = tokio::task::spawn_blocking(nbd::family).await;
    let facts = Facts {
        kernel: release,
        nbd: match family {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(format!("the kernel has no NBD ({e}): load it with `modprobe nbd`")),
            Err(e) => Err(e.to_string()),
        },
        fuse: Path::new("/dev/fuse").exists(),
        loops: Path::new("/dev/loop-control").exists(),
        host: Loopback::new(options.fuse_socket.clone()).alive().await.map_err(|f| f.text),
        sheep: options.nbd_socket.exists(),
    };
    judge(&facts, options.backend)
}

/// The backend that the report chose.
pub fn backend(report: &Report, options: &Attach) -> Outcome<Backend> {
    match report.backend {
        Some("nbd") => Ok(Backend::Nbd(Nbd::new(options.nbd_socket.clone(), options.dead_conn_timeout))),
        Some(_) => Ok(Backend::Loopback(Loopback::new(options.fuse_socket.clone()))),
        None => {
            let bad: Vec<String> =
                report.checks.iter().filter(|c| !c.good).map(|c| format!("{}: {}", c.what, c.seen)).collect();
            Err(Fault::precondition(format!("volumes cannot be attached on this node: {}", bad.join("; "))))
        }
    }
}

/// For people.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    for c in &report.checks {
        let mark = if c.good { "ok  " } else { "no  " };
        out.push_str(&format!("{mark}{:<10} {:<5} {}\n", c.what, c.needed_by, c.seen));
    }
    match report.backend {
        Some(b) => out.push_str(&format!("volumes are attached through: {b}\n")),
        None => out.push_str("volumes cannot be attached on this node\n"),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            kernel: "6.12.95+deb13-cloud-amd64".into(),
            nbd: Ok(()),
            fuse: true,
            loops: true,
            host: Ok(()),
            sheep: true,
        }
    }

    #[test]
    fn the_kernel_comes_first_and_fuse_where_it_cannot() {
        let chosen = |f: &Facts, c| judge(f, c).backend;
        assert_eq!(chosen(&good(), Choice::Auto), Some("nbd"));
        assert_eq!(chosen(&good(), Choice::Loop), Some("loop"));
        let without = Facts { nbd: Err("none".into()), ..good() };
        assert_eq!(chosen(&without, Choice::Auto), Some("loop"));
        assert_eq!(chosen(&without, Choice::Nbd), None);
        let old = Facts { kernel: "5.15.0-91-generic".into(), ..good() };
        assert_eq!(chosen(&old, Choice::Auto), Some("loop"));
        let neither = Facts { host: Err("gone".into()), ..without };
        let report = judge(&neither, Choice::Auto);
        assert_eq!(report.backend, None);
        assert!(text(&report).contains("cannot be attached"), "{}", text(&report));
        // Sheep may come later.
        assert_eq!(chosen(&Facts { sheep: false, ..good() }, Choice::Auto), Some("nbd"));
    }

    #[test]
    fn releases() {
        assert_eq!(version("6.1.0-50-amd64"), Some((6, 1)));
        assert_eq!(version("5.19"), Some((5, 19)));
        assert_eq!(version("odd"), None);
    }
}
