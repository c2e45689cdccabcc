//! The control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler and CoreDNS in a space of their own, which is also the
//! switch that the nodes hang on.

use super::pki::Pki;
use super::space::Space;
use super::tools::Tools;
use crate::harness::proc::{Proc, output_command, run_command};
use crate::harness::wait::until;
use anyhow::{Context as _, Result, bail};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// Address of the control plane, and the nodes' gateway and name server.
pub const ADDRESS: &str = "10.123.0.1";
/// Cluster addresses of services. The first is that of the API server.
const SERVICES: &str = "10.96.0.0/16";
const FIRST_SERVICE: &str = "10.96.0.1";
/// All pods.
pub const PODS: &str = "10.244.0.0/16";
/// A busy machine takes its time.
const START: Duration = Duration::from_secs(180);

/// Address of node `i`, counted from 0.
pub fn node_address(i: usize) -> String {
    format!("10.123.0.{}", 10 + i)
}
/// Its pods.
pub fn node_pods(i: usize) -> String {
    format!("10.244.{}.0/24", 1 + i)
}
/// Its port of the switch.
pub fn port(i: usize) -> String {
    format!("port{i}")
}

/// What scenarios may choose.
#[derive(Debug, Clone)]
pub struct Timing {
    /// A node that says nothing is NotReady after this long. Kubernetes itself takes 50 s.
    pub node_grace: Duration,
}

/// Running programs.
#[derive(Debug)]
pub struct Control {
    procs: Vec<(&'static str, Proc)>,
    api: Option<Proc>,
    // After the programs in it.
    /// Its namespaces, the switch among them.
    pub space: Space,
    tools: PathBuf,
    dir: PathBuf,
    server: String,
    admin: String,
    api_options: Vec<String>,
}

impl Control {
    /// Start etcd, the API server and CoreDNS; `nodes` ports of the switch are routed.
    pub fn start(tools: &Tools, pki: &Pki, dir: &Path, nodes: usize) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let space = Space::new("control", "", dir)?;
        let mut network = format!(
            "ip link set lo up; ip link add switch type bridge; ip addr add {ADDRESS}/24 dev switch; ip link set switch up;"
        );
        for i in 0..nodes {
            let _ = write!(network, "ip route add {} via {};", node_pods(i), node_address(i));
        }
        space.net(&network)?;
        let server = format!("https://{ADDRESS}:6443");
        let admin = pki.kubeconfig("admin", "admin", "system:masters", &server)?;
        let mut c = Self {
            space,
            procs: Vec::new(),
            api: None,
            tools: tools.bin.clone(),
            dir: dir.to_owned(),
            server,
            admin,
            api_options: api_options(pki)?,
        };
        // What is lost with the machine need not be on its disk.
        let data = format!("--data-dir={}", dir.join("etcd").display());
        c.run("etcd", &["--name=lab", &data, "--unsafe-no-fsync=true", "--log-level=warn"])?;
        c.start_api()?;
        c.dns()?;
        Ok(c)
    }

    /// Start what ends by itself when the API server does not know yet what it may do.
    pub fn controllers(&mut self, pki: &Pki, timing: &Timing) -> Result<()> {
        for (name, user) in [
            ("kube-controller-manager", "system:kube-controller-manager"),
            ("kube-scheduler", "system:kube-scheduler"),
        ] {
            let config = pki.kubeconfig(name, user, "", &self.server)?;
            let mut options: Vec<String> =
                ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
                    .iter()
                    .map(|o| format!("--{o}={config}"))
                    .collect();
            options.extend(["--bind-address=127.0.0.1".into(), "--leader-elect=false".into()]);
            if name == "kube-controller-manager" {
                options.extend([
                    format!("--root-ca-file={}", pki.path("ca.crt")),
                    format!("--service-account-private-key-file={}", pki.path("tokens.key")),
                    "--use-service-account-credentials=true".into(),
                    "--node-monitor-period=1s".into(),
                    format!("--node-monitor-grace-period={}s", timing.node_grace.as_secs()),
                ]);
            }
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            self.run(name, &options)?;
        }
        Ok(())
    }

    fn run(&mut self, name: &'static str, options: &[&str]) -> Result<()> {
        let p = self.program(name, options)?;
        self.procs.push((name, p));
        Ok(())
    }

    fn program(&self, name: &str, options: &[&str]) -> Result<Proc> {
        let mut cmd = Command::new(self.tools.join(name));
        cmd.args(options);
        self.space.start(name, cmd, &self.dir.join(format!("{name}.log")))
    }

    /// Start the API server (again).
    pub fn start_api(&mut self) -> Result<()> {
        let options: Vec<&str> = self.api_options.iter().map(String::as_str).collect();
        self.api = Some(self.program("kube-apiserver", &options)?);
        Ok(())
    }

    /// Kill the API server.
    pub fn kill_api(&mut self) -> Result<()> {
        self.api.take().context("the API server is not running")?.kill()
    }

    /// Names of services and pods. Not in a pod, so that it outlives every node.
    fn dns(&mut self) -> Result<()> {
        let file = self.dir.join("Corefile");
        let text = format!(
            ".:53 {{\n  bind {ADDRESS}\n  errors\n  ready 127.0.0.1:8181\n  kubernetes cluster.local in-addr.arpa {{\n    kubeconfig {} lab\n    pods insecure\n    ttl 1\n  }}\n  cache 1\n}}\n",
            self.admin
        );
        std::fs::write(&file, text)?;
        self.run("coredns", &["-conf", &file.display().to_string()])
    }

    /// Wait for the API server.
    pub fn ready(&mut self) -> Result<()> {
        until("the API server is ready", START, || {
            // No use in waiting.
            if let Err(e) = self.alive() {
                return Ok(Some(Err(e)));
            }
            self.kubectl(&["get", "--raw=/readyz"])?;
            Ok(Some(Ok(())))
        })?
    }

    /// Nothing has died.
    pub fn alive(&mut self) -> Result<()> {
        let api = self.api.iter_mut().map(|p| ("kube-apiserver", p));
        for (name, p) in self.procs.iter_mut().map(|(n, p)| (*n, p)).chain(api) {
            if !p.running()? {
                bail!("{name} has ended: see {}", self.dir.join(format!("{name}.log")).display());
            }
        }
        Ok(())
    }

    /// A client of the cluster, as its administrator: kubectl or helm.
    pub fn client(&self, program: &str, args: &[&str]) -> Result<String> {
        let program = self.tools.join(program);
        run_command(self.command(program.as_os_str(), args), START)
    }

    /// A shell's script as the administrator, with programs of this directory and kubectl on its path; whatever it says, however it ends.
    pub fn shell(&self, programs: &Path, script: &str, args: &[&str]) -> Result<Output> {
        output_command(self.shell_command(programs, script, args)?, START)
    }

    /// The same, not started yet.
    pub fn shell_command(&self, programs: &Path, script: &str, args: &[&str]) -> Result<Command> {
        let mut cmd = self.command(OsStr::new("sh"), &[&["-c", script, "sh"], args].concat());
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = [programs.to_owned(), self.tools.clone()].into_iter().chain(std::env::split_paths(&path));
        cmd.env("PATH", std::env::join_paths(all)?);
        Ok(cmd)
    }

    fn command(&self, program: &OsStr, args: &[&str]) -> Command {
        let mut cmd = Command::new("nsenter");
        cmd.arg(format!("--net=/proc/{}/ns/net", self.space.pid())).arg(program).args(args);
        cmd.env("KUBECONFIG", &self.admin).env("HOME", &self.dir);
        cmd
    }

    /// kubectl, as the administrator.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.client("kubectl", args)
    }

    /// End it.
    pub fn finish(self) -> Result<()> {
        self.space.kill(self.procs.into_iter().map(|(_, p)| p).chain(self.api).collect())
    }
}

fn api_options(pki: &Pki) -> Result<Vec<String>> {
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
        ADDRESS,
        FIRST_SERVICE,
    ];
    pki.give("apiserver", "kube-apiserver", "", &names)?;
    pki.give("apiserver-kubelet", "kube-apiserver-kubelet", "system:masters", &[])?;
    let file = |option: &str, name: &str| format!("--{option}={}", pki.path(name));
    Ok(vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--bind-address={ADDRESS}"),
        format!("--advertise-address={ADDRESS}"),
        "--secure-port=6443".into(),
        format!("--service-cluster-ip-range={SERVICES}"),
        file("client-ca-file", "ca.crt"),
        file("tls-cert-file", "apiserver.crt"),
        file("tls-private-key-file", "apiserver.key"),
        file("kubelet-client-certificate", "apiserver-kubelet.crt"),
        file("kubelet-client-key", "apiserver-kubelet.key"),
        // Names of nodes are in no DNS: logs and exec would hang.
        "--kubelet-preferred-address-types=InternalIP".into(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        file("service-account-key-file", "tokens.pub"),
        file("service-account-signing-key-file", "tokens.key"),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
    ])
}
