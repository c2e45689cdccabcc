//! A network of our own: every sheep in a network namespace with a tap device, and a switch in this process between them.
//!
//! Test machines have kernels without netem, so the switch itself loses, delays and cuts, in each direction of each pair apart. Namespaces
//! and devices have fixed names and are taken away before the start and at the end; a lock keeps a second run out.

use super::proc::run;
use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::time::Timespec;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LOCK: &str = "/run/sheepdog-e2e.lock";
const MTU: usize = 9000;
/// Frames that wait in the switch, of all links: beyond it they are lost, as in a real one.
const QUEUE: usize = 65_536;

/// One direction of a pair.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Frames pass.
    pub open: bool,
    /// They take this long.
    pub delay: Duration,
    /// Of 1000 frames so many are lost.
    pub loss: u32,
}

/// Nothing in the way.
pub const FINE: Link = Link { open: true, delay: Duration::ZERO, loss: 0 };
/// Nothing comes through.
pub const CUT: Link = Link { open: false, delay: Duration::ZERO, loss: 0 };

type Links = Arc<Mutex<Vec<Vec<Link>>>>;

/// Namespaces and the switch. The last port is this host's own.
#[derive(Debug)]
pub struct Net {
    nodes: usize,
    links: Links,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _lock: File,
}

fn namespace(i: usize) -> String {
    format!("sheepdog-e2e{i}")
}
fn device(i: usize) -> String {
    format!("sde2e{i}")
}
fn mac(i: usize) -> [u8; 6] {
    [0x02, 0x5d, 0, 0, 0, i as u8 + 1]
}
fn address(i: usize) -> String {
    format!("10.213.77.{}", i + 1)
}

#[repr(C)]
struct IfReq {
    name: [u8; 16],
    flags: u16,
    pad: [u8; 22],
}

/// A tap device, gone with the file.
fn tap(i: usize) -> Result<File> {
    const TUNSETIFF: rustix::ioctl::Opcode = 0x4004_54ca;
    const TAP_WITHOUT_HEADER: u16 = 0x0002 | 0x1000;
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open("/dev/net/tun")
        .context("/dev/net/tun")?;
    let mut request = IfReq { name: [0; 16], flags: TAP_WITHOUT_HEADER, pad: [0; 22] };
    let name = device(i);
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads (and writes) a struct ifreq of 40 bytes, which `IfReq` is.
    unsafe { rustix::ioctl::ioctl(&file, rustix::ioctl::Setter::<TUNSETIFF, IfReq>::new(request)) }
        .context("TUNSETIFF (needs root)")?;
    Ok(file)
}

fn clean() -> Result<()> {
    for ns in run("ip", &["netns", "list"])?.lines() {
        let name = ns.split_whitespace().next().unwrap_or_default();
        if name.starts_with("sheepdog-e2e") {
            run("ip", &["netns", "delete", name])?;
        }
    }
    Ok(())
}

impl Net {
    /// Namespaces for so many nodes, all connected.
    pub fn new(nodes: usize) -> Result<Self> {
        let lock = File::create(LOCK)?;
        lock.try_lock().context("another run has the network namespaces")?;
        clean()?;
        let mut taps = Vec::new();
        for i in 0..=nodes {
            taps.push(tap(i)?);
            let (dev, ns) = (device(i), namespace(i));
            let hex: Vec<String> = mac(i).iter().map(|b| format!("{b:02x}")).collect();
            let inside: Vec<&str> = if i < nodes {
                run("ip", &["netns", "add", &ns])?;
                run("ip", &["link", "set", &dev, "netns", &ns])?;
                run("ip", &["-n", &ns, "link", "set", "lo", "up"])?;
                vec!["-n", &ns]
            } else {
                vec![]
            };
            let ip = |args: &[&str]| run("ip", &[&inside, args].concat());
            ip(&["link", "set", &dev, "address", &hex.join(":"), "mtu", &MTU.to_string(), "up"])?;
            ip(&["addr", "add", &format!("{}/24", address(i)), "dev", &dev])?;
        }
        let links = Arc::new(Mutex::new(vec![vec![FINE; nodes + 1]; nodes + 1]));
        let over = Arc::new(AtomicBool::new(false));
        let switch = Switch { taps, links: links.clone(), waiting: BinaryHeap::new(), dice: 1, count: 0 };
        let stop = over.clone();
        let thread = std::thread::spawn(move || switch.run(&stop));
        Ok(Self { nodes, links, over, thread: Some(thread), _lock: lock })
    }

    /// Namespace and address of each node, for a cluster's plan.
    pub fn places(&self) -> Vec<(String, String)> {
        (0..self.nodes).map(|i| (namespace(i), address(i))).collect()
    }

    fn change(&self, f: impl FnOnce(&mut Vec<Vec<Link>>)) {
        f(&mut self.links.lock().unwrap_or_else(PoisonError::into_inner));
    }
    /// From one node to another, this direction only.
    pub fn set(&self, from: usize, to: usize, link: Link) {
        self.change(|l| l[from][to] = link);
    }
    /// All that a node sends to other nodes.
    pub fn set_from(&self, from: usize, link: Link) {
        (0..self.nodes).for_each(|to| self.set(from, to, link));
    }
    /// One node on one side, the others on the other.
    pub fn isolate(&self, node: usize) {
        for other in (0..self.nodes).filter(|o| *o != node) {
            self.set(node, other, CUT);
            self.set(other, node, CUT);
        }
    }
    /// All is well again.
    pub fn heal(&self) {
        self.change(|l| l.iter_mut().for_each(|row| row.fill(FINE)));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
        if let Err(e) = clean() {
            eprintln!("e2e: network namespaces are left behind: {e:#}");
        }
    }
}

/// When, in which order, to whom, what.
type Late = (Instant, u64, usize, Vec<u8>);

struct Switch {
    taps: Vec<File>,
    links: Links,
    waiting: BinaryHeap<Reverse<Late>>,
    dice: u64,
    count: u64,
}

impl Switch {
    fn run(mut self, over: &AtomicBool) {
        let mut buf = vec![0; MTU + 64];
        while !over.load(SeqCst) {
            self.wait();
            for from in 0..self.taps.len() {
                // A burst, then the others' turn.
                for _ in 0..64 {
                    match (&self.taps[from]).read(&mut buf) {
                        Ok(n) if n >= 14 => self.forward(from, &buf[..n]),
                        _ => break,
                    }
                }
            }
            self.deliver();
        }
    }

    fn wait(&self) {
        let longest = Duration::from_millis(100);
        let next = self
            .waiting
            .peek()
            .map_or(longest, |Reverse((at, ..))| at.saturating_duration_since(Instant::now()));
        let mut fds: Vec<PollFd<'_>> = self.taps.iter().map(|t| PollFd::new(t, PollFlags::IN)).collect();
        let timeout = Timespec::try_from(next.min(longest)).ok();
        let _ = poll(&mut fds, timeout.as_ref());
    }

    fn forward(&mut self, from: usize, frame: &[u8]) {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner)[from].clone();
        for (to, link) in links.into_iter().enumerate() {
            let meant = frame[0] & 1 == 1 || frame[..6] == mac(to);
            if to == from || !meant || !link.open || self.roll() < link.loss {
                continue;
            }
            if link.delay.is_zero() {
                // A full queue loses frames.
                let _ = (&self.taps[to]).write(frame);
            } else if self.waiting.len() < QUEUE {
                self.count += 1;
                self.waiting.push(Reverse((Instant::now() + link.delay, self.count, to, frame.to_vec())));
            }
        }
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while self.waiting.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
            if let Some(Reverse((_, _, to, frame))) = self.waiting.pop() {
                let _ = (&self.taps[to]).write(&frame);
            }
        }
    }

    /// 0 to 999, the same in every run.
    fn roll(&mut self) -> u32 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.dice >> 33) % 1000) as u32
    }
}
