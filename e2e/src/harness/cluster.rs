//! Real sheep on this host: on loopback, or on addresses of network namespaces.

use super::Lab;
use super::proc::{self, Proc};
use super::wait::{PATIENCE, until};
use anyhow::{Context as _, Error, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

/// How a cluster is made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Sheep.
    pub nodes: usize,
    /// Copies of the data.
    pub copies: u32,
    /// Volumes that scenarios make are erasure coded, D:P, in small objects: some of many rest at any time, and are put away.
    pub policy: Option<(u8, u8)>,
    /// Disks of each sheep beside its home.
    pub more_disks: usize,
    /// TLS with a secret made for the occasion.
    pub secure: bool,
    /// Further options of every sheep.
    pub options: Vec<String>,
    /// Network namespace and address of each sheep; loopback of this host when empty.
    pub places: Vec<(String, String)>,
}

impl Plan {
    /// On loopback, without TLS.
    pub fn new(nodes: usize, copies: u32) -> Self {
        Self {
            nodes,
            copies,
            policy: None,
            more_disks: 0,
            secure: false,
            options: Vec::new(),
            places: Vec::new(),
        }
    }
}

/// One sheep.
#[derive(Debug)]
pub struct Sheep {
    proc: Option<Proc>,
    /// Address that others and dog reach it by.
    pub host: String,
    netns: Option<String>,
    port: u16,
    nbd: u16,
    /// Home.
    pub dir: PathBuf,
    /// Home, which is a disk too, and further disks.
    pub disks: Vec<PathBuf>,
}

/// All of them.
#[derive(Debug)]
pub struct Cluster {
    /// In order of birth.
    pub sheep: Vec<Sheep>,
    /// As it was planned.
    pub plan: Plan,
    dir: PathBuf,
    bin: PathBuf,
}

impl Cluster {
    /// Start all sheep and format.
    pub fn start(lab: &Lab, plan: Plan) -> Result<Self> {
        let mut c = Self { sheep: Vec::new(), dir: lab.dir.clone(), bin: lab.bin.clone(), plan };
        if c.plan.secure {
            c.dog_alone(&["secret", "new", "-f", &c.path("secret")])?;
        }
        for i in 0..c.plan.nodes {
            c.add(i)?;
        }
        for i in 0..c.plan.nodes {
            c.spawn(i)?;
        }
        for i in 0..c.plan.nodes {
            until(&format!("sheep {i} answers"), PATIENCE, || c.dog_of(i, &["cluster", "info"]).map(Some))?;
        }
        let (copies, nodes) = (c.plan.copies.to_string(), c.plan.nodes.to_string());
        // The last one leads first: it is not the gateway of the scenarios' clients, so that leaders are hit too.
        c.dog_of(c.plan.nodes - 1, &["cluster", "format", "-c", &copies, "--nodes", &nodes])?;
        c.whole()?;
        Ok(c)
    }

    fn add(&mut self, i: usize) -> Result<()> {
        let (netns, host, port) = match self.plan.places.get(i) {
            Some((ns, host)) => (Some(ns.clone()), host.clone(), 7000),
            None => (None, "127.0.0.1".into(), sheepdog_testing::ports(3).map_err(Error::msg)?),
        };
        let dir = self.dir.join(format!("sheep{i}"));
        let mut disks = vec![dir.clone()];
        for d in 1..=self.plan.more_disks {
            let path = self.dir.join(format!("sheep{i}-disk{d}"));
            std::fs::create_dir_all(&path)?;
            disks.push(path);
        }
        self.sheep.push(Sheep { proc: None, host, netns, port, nbd: port + 2, dir, disks });
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Start sheep `i` (again).
    pub fn spawn(&mut self, i: usize) -> Result<()> {
        let s = &self.sheep[i];
        ensure!(s.proc.is_none(), "sheep {i} runs already");
        let program = self.bin.join("sheep");
        let mut cmd = match &s.netns {
            Some(ns) => {
                let mut c = Command::new("nsenter");
                c.arg(format!("--net=/run/netns/{ns}")).arg(program);
                c
            }
            None => Command::new(program),
        };
        cmd.args(["--cluster-driver", "sdcluster", "--bind-addr", &s.host, "--zone", &format!("zone{i}")])
            .args(["--port", &s.port.to_string()])
            .args(["--nbd-socket", &self.socket(i)]);
        match (&s.netns, self.plan.secure) {
            (None, _) => {
                cmd.args(["--nbd", "--nbd-port", &s.nbd.to_string()]);
            }
            (Some(_), false) => {
                cmd.arg("--insecure");
            }
            (Some(_), true) => {}
        }
        for (j, other) in self.sheep.iter().enumerate() {
            if j != i {
                cmd.args(["--seed", &format!("{}:{}", other.host, other.port + 1)]);
            }
        }
        if self.plan.secure {
            cmd.args(["--secret-file", &self.path("secret")]);
        }
        let disks: Vec<String> = s.disks.iter().map(|d| d.display().to_string()).collect();
        cmd.args(&self.plan.options).arg(disks.join(","));
        let log = self.dir.join(format!("sheep{i}.log"));
        self.sheep[i].proc = Some(Proc::start(&format!("sheep {i}"), cmd, &log)?);
        Ok(())
    }

    fn proc(&mut self, i: usize) -> Result<&mut Proc> {
        self.sheep[i].proc.as_mut().with_context(|| format!("sheep {i} does not run"))
    }
    /// kill -9.
    pub fn kill(&mut self, i: usize) -> Result<()> {
        self.sheep[i].proc.take().with_context(|| format!("sheep {i} does not run"))?.kill()
    }
    /// SIGTERM and a proper end.
    pub fn stop(&mut self, i: usize) -> Result<()> {
        let status =
            self.sheep[i].proc.take().with_context(|| format!("sheep {i} does not run"))?.stop(PATIENCE)?;
        ensure!(status.success(), "sheep {i} ended with {status}");
        Ok(())
    }
    /// It ends by itself.
    pub fn ended(&mut self, i: usize) -> Result<ExitStatus> {
        self.sheep[i].proc.take().with_context(|| format!("sheep {i} does not run"))?.wait(PATIENCE)
    }
    /// SIGSTOP.
    pub fn freeze(&mut self, i: usize) -> Result<()> {
        self.proc(i)?.signal(Signal::STOP)
    }
    /// SIGCONT.
    pub fn thaw(&mut self, i: usize) -> Result<()> {
        self.proc(i)?.signal(Signal::CONT)
    }
    /// Process of sheep `i`.
    pub fn pid(&self, i: usize) -> Result<u32> {
        Ok(self.sheep[i].proc.as_ref().with_context(|| format!("sheep {i} does not run"))?.pid())
    }
    /// It was started and not killed.
    pub fn runs(&self, i: usize) -> bool {
        self.sheep[i].proc.is_some()
    }
    /// Nobody died who was not killed.
    pub fn alive(&mut self) -> Result<()> {
        for (i, s) in self.sheep.iter_mut().enumerate() {
            if let Some(p) = &mut s.proc {
                ensure!(
                    p.running()?,
                    "sheep {i} died, see {}",
                    self.dir.join(format!("sheep{i}.log")).display()
                );
            }
        }
        Ok(())
    }

    fn socket(&self, i: usize) -> String {
        self.path(&format!("nbd{i}.sock"))
    }
    /// NBD socket of a gateway.
    pub fn nbd_socket(&self, i: usize) -> PathBuf {
        self.socket(i).into()
    }
    /// NBD of a volume at a gateway.
    pub fn uri(&self, i: usize, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket(i))
    }

    /// One of the binaries.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
    /// Where dog reaches a sheep.
    pub fn address(&self, i: usize) -> String {
        format!("{}:{}", self.sheep[i].host, self.sheep[i].port)
    }
    fn dog_alone(&self, args: &[&str]) -> Result<String> {
        proc::run(self.bin.join("dog"), args)
    }
    fn dog_to(&self, addresses: &str, args: &[&str]) -> Result<String> {
        let secret = self.path("secret");
        let mut all = vec!["-a", addresses];
        if self.plan.secure {
            all.extend(["--secret-file", &secret]);
        }
        all.extend(args);
        self.dog_alone(&all)
    }
    /// dog through one sheep.
    pub fn dog_of(&self, i: usize, args: &[&str]) -> Result<String> {
        let s = &self.sheep[i];
        self.dog_to(&format!("{}:{}", s.host, s.port), args)
    }
    /// dog through whoever runs.
    pub fn dog(&self, args: &[&str]) -> Result<String> {
        let running = self.sheep.iter().filter(|s| s.proc.is_some());
        let all: Vec<String> = running.map(|s| format!("{}:{}", s.host, s.port)).collect();
        self.dog_to(&all.join(","), args)
    }
    /// Its answer as a value.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        let text = self.dog(&all)?;
        serde_json::from_str(&text).with_context(|| format!("dog {}: {text}", args.join(" ")))
    }
    /// Rows of a listing.
    pub fn rows(&self, args: &[&str]) -> Result<Vec<Value>> {
        match self.json(args)? {
            Value::Array(rows) => Ok(rows),
            other => bail!("dog {}: not a listing: {other}", args.join(" ")),
        }
    }
    /// First digits of the id of sheep `i`, as dog shows them.
    pub fn id(&self, i: usize) -> Result<String> {
        let s = &self.sheep[i];
        let address = format!("{}:{}", s.host, s.port);
        let rows = self.rows(&["node", "list"])?;
        let row = rows
            .iter()
            .find(|r| r["address"] == *address)
            .with_context(|| format!("no node at {address}"))?;
        Ok(row["id"].as_str().unwrap_or_default().to_owned())
    }
    /// Which sheep has this id.
    pub fn index(&self, id: &str) -> Result<usize> {
        let rows = self.rows(&["node", "list"])?;
        let row = rows.iter().find(|r| r["id"] == *id).with_context(|| format!("no node {id}"))?;
        let find = |s: &Sheep| row["address"] == *format!("{}:{}", s.host, s.port);
        self.sheep.iter().position(find).with_context(|| format!("no sheep at {}", row["address"]))
    }
    /// Make a volume.
    pub fn create(&self, name: &str, size: u64) -> Result<()> {
        let size = size.to_string();
        let mut args = vec!["vdi", "create", name, size.as_str()];
        let policy = self.plan.policy.map(|(data, parity)| format!("{data}:{parity}"));
        if let Some(policy) = &policy {
            args.extend(["--copy-policy", policy, "--object-size", "1M"]);
        }
        self.dog(&args).map(drop)
    }

    /// Wait until every running sheep is up and complete, as many vote as should, and the cluster says that all is well.
    pub fn whole(&self) -> Result<()> {
        let running = self.sheep.iter().filter(|s| s.proc.is_some()).count();
        until("the cluster becomes whole", PATIENCE, || {
            let info = self.json(&["cluster", "info"])?;
            ensure!(info["status"] == "ok", "status {}: {}", info["status"], info["reasons"]);
            let nodes = self.rows(&["node", "list"])?;
            let epoch = info["epoch"].as_u64().unwrap_or(u64::MAX);
            let complete = |n: &&Value| n["state"] == "up" && n["synced"].as_u64() >= Some(epoch);
            let ready = nodes.iter().filter(complete).count();
            ensure!(ready == running, "{ready} of {running} nodes up and complete");
            let voters = info["voters"].as_array().map_or(0, Vec::len);
            let want = [0, 1, 1, 3, 3].get(running).copied().unwrap_or(5);
            ensure!(voters >= want, "{voters} of {want} voters");
            Ok(Some(()))
        })
    }

    /// `dog vdi check`: every copy equal, every checksum right. Answers how many objects were compared.
    pub fn check(&self, name: &str) -> Result<u64> {
        let sum = self.json(&["vdi", "check", name])?;
        ensure!(sum["bad"] == 0, "{name}: {sum}");
        let objects = sum["objects"].as_u64().unwrap_or(0);
        ensure!(objects > 0, "{name}: nothing was checked: {sum}");
        Ok(objects)
    }

    /// The sheep that orders the writes of a volume that is in use.
    pub fn owner(&self, name: &str) -> Result<usize> {
        let rows = self.rows(&["vdi", "stat", name])?;
        let row = rows.first().with_context(|| format!("nobody has {name} open"))?;
        self.index(row["owner"].as_str().unwrap_or_default())
    }

    /// The leader.
    pub fn leader(&self) -> Result<usize> {
        let info = self.json(&["cluster", "info"])?;
        self.index(info["leader"].as_str().unwrap_or_default())
    }

    /// Time that running sheep get for an orderly end.
    pub fn stop_all(&mut self) -> Result<()> {
        for i in 0..self.sheep.len() {
            if self.sheep[i].proc.is_some() {
                self.stop(i)?;
            }
        }
        Ok(())
    }
}

/// A lease's worth, for phases that must outlast one.
pub const LEASE: Duration = Duration::from_secs(4);
