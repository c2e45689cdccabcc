//! Are reads linearizable? One block per gateway is a register: its writer counts up through that gateway, readers at every gateway read all
//! registers. A read must show at least what was acknowledged, or seen by anyone, before it began, and at most what was being written when
//! it ended. A writer whose connection breaks repeats its value on the next one; when the old request lands late it shows as a step back.

use super::cluster::Cluster;
use super::nbd::Nbd;
use anyhow::{Result, ensure};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
/// Registers lie in objects of their own.
const STRIDE: u64 = 4 << 20;
/// Between two requests of one client: the point is when they happen, not how many.
const REST: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
struct Register {
    /// The value last begun to be written.
    begun: AtomicU64,
    /// The highest acknowledged or seen.
    known: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    registers: Vec<Register>,
    /// Finished requests at each gateway.
    served: Vec<AtomicU64>,
    /// Connections that ended at each gateway and were made again.
    broken: AtomicU64,
    over: AtomicBool,
    wrong: Mutex<Vec<String>>,
    born: Instant,
}

/// Writers and readers at work.
#[derive(Debug)]
pub struct Registers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What they did.
#[derive(Debug)]
pub struct Sum {
    /// Requests answered, at each gateway.
    pub served: Vec<u64>,
    /// Connections made again.
    pub broken: u64,
}

impl Registers {
    /// A volume that is large enough.
    pub fn size(gateways: usize) -> u64 {
        gateways as u64 * STRIDE
    }

    /// A writer and a reader at each gateway.
    pub fn start(c: &Cluster, volume: &str) -> Self {
        let n = c.sheep.len();
        let shared = Arc::new(Shared {
            registers: (0..n).map(|_| Register::default()).collect(),
            served: (0..n).map(|_| AtomicU64::new(0)).collect(),
            broken: AtomicU64::new(0),
            over: AtomicBool::new(false),
            wrong: Mutex::default(),
            born: Instant::now(),
        });
        let mut threads = Vec::new();
        for gateway in 0..n {
            for writes in [true, false] {
                let (s, socket, volume) = (shared.clone(), c.nbd_socket(gateway), volume.to_owned());
                threads.push(std::thread::spawn(move || s.client(gateway, writes, &socket, &volume)));
            }
        }
        Self { shared, threads }
    }

    /// Requests answered so far at a gateway.
    pub fn served(&self, gateway: usize) -> u64 {
        self.shared.served[gateway].load(SeqCst)
    }

    /// Nothing wrong was seen so far.
    pub fn honest(&self) -> Result<()> {
        let wrong = self.shared.wrong.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        ensure!(
            wrong.is_empty(),
            "{} wrong answers: {}",
            wrong.len(),
            wrong[..wrong.len().min(5)].join("; ")
        );
        Ok(())
    }

    /// Stop and tell.
    pub fn finish(mut self) -> Result<Sum> {
        self.end();
        self.honest()?;
        let served = self.shared.served.iter().map(|n| n.load(SeqCst)).collect();
        Ok(Sum { served, broken: self.shared.broken.load(SeqCst) })
    }

    fn end(&mut self) {
        self.shared.over.store(true, SeqCst);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn complain(&self, what: String) {
        let at = self.born.elapsed().as_secs_f64();
        let mut wrong = self.wrong.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        wrong.push(format!("at {at:.2} s: {what}"));
    }

    fn client(&self, gateway: usize, writes: bool, socket: &Path, volume: &str) {
        let enough = || self.over.load(SeqCst);
        let mut next = 1;
        while !enough() {
            if let Ok(mut nbd) = Nbd::open(socket, volume, &enough) {
                let ended = if writes {
                    self.write_on(&mut nbd, gateway, &mut next)
                } else {
                    self.read_on(&mut nbd, gateway)
                };
                if ended.is_err() && !enough() {
                    self.broken.fetch_add(1, SeqCst);
                }
            }
            std::thread::sleep(REST);
        }
    }

    fn write_on(&self, nbd: &mut Nbd, gateway: usize, next: &mut u64) -> Result<()> {
        let r = &self.registers[gateway];
        while !self.over.load(SeqCst) {
            let data = next.to_le_bytes().repeat(BLOCK / 8);
            r.begun.fetch_max(*next, SeqCst);
            match nbd.write(gateway as u64 * STRIDE, &data, &|| self.over.load(SeqCst))? {
                Ok(()) => r.known.fetch_max(*next, SeqCst),
                Err(errno) => {
                    self.complain(format!("write at gateway {gateway}: error {errno}"));
                    continue;
                }
            };
            self.served[gateway].fetch_add(1, SeqCst);
            *next += 1;
            std::thread::sleep(REST);
        }
        Ok(())
    }

    fn read_on(&self, nbd: &mut Nbd, gateway: usize) -> Result<()> {
        let mut buf = vec![0; BLOCK];
        for which in (0..self.registers.len()).cycle() {
            if self.over.load(SeqCst) {
                break;
            }
            let r = &self.registers[which];
            let least = r.known.load(SeqCst);
            let began = self.born.elapsed();
            let answer = nbd.read(which as u64 * STRIDE, &mut buf, &|| self.over.load(SeqCst))?;
            let most = r.begun.load(SeqCst);
            if let Err(errno) = answer {
                self.complain(format!("read at gateway {gateway}: error {errno}"));
                continue;
            }
            let first = u64::from_le_bytes(buf[..8].try_into()?);
            if buf.chunks_exact(8).any(|w| w != &buf[..8]) {
                self.complain(format!("register {which} read at gateway {gateway} is torn at {first}"));
            }
            if first < least || first > most {
                self.complain(format!(
                    "register {which} read at gateway {gateway} (begun at {:.2} s) is {first}, must be {least} to {most}",
                    began.as_secs_f64()
                ));
            }
            r.known.fetch_max(first, SeqCst);
            self.served[gateway].fetch_add(1, SeqCst);
            std::thread::sleep(REST);
        }
        Ok(())
    }
}
