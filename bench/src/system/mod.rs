//! Those who are measured: each is started, made ready with one volume, and ends when dropped.

mod ceph;
mod nbd;
mod sheepdog;

use crate::fio::SPAN;
use crate::plan::Kind;
use crate::proc::{self, PATIENCE, Proc};
use anyhow::{Context as _, Result, bail, ensure};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use ceph::installed as ceph_installed;

/// A directory on the disk to be measured, and the binaries.
#[derive(Debug)]
pub struct Lab {
    pub dir: PathBuf,
    pub bin: PathBuf,
}

/// Where fio finds the volume.
#[derive(Debug)]
pub enum Target {
    File(PathBuf),
    Nbd(String),
    Rbd { conf: String, pool: String, image: String },
}

/// One system, ready.
#[derive(Debug)]
pub struct System {
    pub kind: Kind,
    pub target: Target,
    /// Processes on the way of the data: their CPU time counts.
    servers: Vec<Proc>,
    /// Processes beside it.
    helpers: Vec<Proc>,
}

/// By this file a directory is known as one of ours, which may be removed.
const MARK: &str = "this-is-sheepdog-bench";

impl Lab {
    /// An empty directory.
    pub fn new(dir: &Path, bin: PathBuf) -> Result<Self> {
        ensure!(
            bin.join("sheep").exists() && bin.join("dog").exists(),
            "no sheep and dog in {}: run `cargo xtask bench`, which builds them",
            bin.display()
        );
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let lab = Self { dir: dir.canonicalize()?, bin: bin.canonicalize()? };
        if lab.dir.join(MARK).exists() {
            lab.remove()?;
            std::fs::create_dir_all(&lab.dir)?;
        } else if std::fs::read_dir(&lab.dir)?.next().is_some() {
            bail!("{} is not empty, and not of an earlier run", lab.dir.display());
        }
        std::fs::write(lab.dir.join(MARK), "")?;
        Ok(lab)
    }
    pub fn remove(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.dir).with_context(|| self.dir.display().to_string())
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }
    /// Run a program of this laboratory to its end.
    fn run(&self, name: &str, cmd: Command) -> Result<String> {
        proc::run(name, cmd, &self.log(name), PATIENCE)
    }
    /// What is compared; what does not answer is left out.
    pub fn versions(&self) -> Vec<String> {
        let sheep = self.bin.join("sheep");
        let programs: [&Path; 6] = [
            Path::new("fio"),
            Path::new("qemu-nbd"),
            Path::new("nbdkit"),
            Path::new("ceph-osd"),
            Path::new("uname"),
            &sheep,
        ];
        let version = |program: &&Path| {
            let mut cmd = Command::new(program);
            cmd.arg(if program.ends_with("uname") { "-sr" } else { "--version" });
            let said = self.run("version", cmd).ok()?;
            said.lines().next().map(str::to_owned)
        };
        programs.iter().filter_map(version).collect()
    }
}

impl System {
    /// Start it and make its volume.
    pub fn start(lab: &Lab, kind: Kind) -> Result<Self> {
        match kind {
            Kind::Raw => Ok(Self::new(kind, Target::File(lab.path("raw.img")))),
            Kind::QemuNone => nbd::qemu(lab, kind, &["--cache=none", "--aio=io_uring"]),
            Kind::QemuWritethrough => nbd::qemu(lab, kind, &["--cache=writethrough"]),
            Kind::Nbdkit => nbd::nbdkit(lab, kind),
            Kind::Ceph => ceph::start(lab, kind),
            Kind::Sheep1 => sheepdog::start(lab, kind, 1),
            Kind::Sheep3 => sheepdog::start(lab, kind, 3),
        }
    }
    fn new(kind: Kind, target: Target) -> Self {
        Self { kind, target, servers: Vec::new(), helpers: Vec::new() }
    }
    pub fn pids(&self) -> Vec<u32> {
        self.servers.iter().map(Proc::pid).collect()
    }
    pub fn has_server(&self) -> bool {
        !self.servers.is_empty()
    }
    /// Nobody died.
    pub fn alive(&mut self) -> Result<()> {
        self.servers.iter_mut().chain(&mut self.helpers).try_for_each(Proc::alive)
    }
    /// Until somebody listens at the port.
    fn listening(&mut self, port: u16) -> Result<()> {
        proc::until("listening", || {
            self.alive()?;
            TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(Into::into)
        })
    }
}

/// A file of the right size, without data yet.
fn image(lab: &Lab, kind: Kind) -> Result<PathBuf> {
    let path = lab.path(&format!("{}.img", kind.name()));
    std::fs::File::create(&path)?.set_len(SPAN)?;
    Ok(path)
}

/// So many neighbouring free ports.
fn ports(count: u16) -> Result<u16> {
    sheepdog_testing::ports(count).map_err(anyhow::Error::msg)
}
