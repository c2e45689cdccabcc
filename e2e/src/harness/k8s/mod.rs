//! Kubernetes, the real one, on this machine: a control plane and nodes made of namespaces.
//!
//! `tools` has the programs, `pki` the certificates, `space` the namespaces, `control` and `node` what runs in them, `image` and `images`
//! the containers, `host` what is given back at the end, `sheepdog` the chart installed on it. A node is one kubelet with its own containerd, kube-proxy, network, mounts,
//! processes and disk. All of them share this kernel, its devices, and the clock; one more may be a `machine` of its own, emulated.

pub mod control;
pub mod machine;
pub mod node;
pub mod sheepdog;
pub mod tools;

mod cgroups;
mod config;
mod host;
mod image;
mod images;
mod pki;
mod space;

use super::Lab;
use super::wait::until;
use anyhow::{Context as _, Result, bail, ensure};
use control::{Control, Timing};
use host::Host;
use machine::Machine;
use node::Node;
use pki::Pki;
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use images::BOX;

/// A busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(240);

/// How a cluster is made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Nodes.
    pub nodes: usize,
    /// A node renews its lease four times in this long.
    pub lease: Duration,
    /// A node that has not renewed its lease for this long is NotReady.
    pub grace: Duration,
    /// With the images of the CSI sidecars, and the definitions of snapshots.
    pub csi: bool,
    /// With one more node, which is a machine with a kernel of its own.
    pub machine: bool,
}

impl Plan {
    /// Nodes are missed sooner than Kubernetes does by itself, after 50 s.
    pub fn new(nodes: usize) -> Self {
        Self {
            nodes,
            lease: Duration::from_secs(8),
            grace: Duration::from_secs(12),
            csi: false,
            machine: false,
        }
    }

    /// All nodes.
    fn all(&self) -> usize {
        self.nodes + usize::from(self.machine)
    }
}

/// A running cluster. Ends with [`Kubernetes::finish`], which shows that nothing is left; dropped, everything dies as well.
#[derive(Debug)]
pub struct Kubernetes {
    /// In order of their addresses.
    pub nodes: Vec<Node>,
    /// The last node, when it is a machine.
    pub machine: Option<Machine>,
    /// Control plane.
    pub control: Control,
    // Last: what it gives back is in use until then.
    host: Host,
    dir: PathBuf,
    all: usize,
}

impl Kubernetes {
    /// Bring up the control plane and all nodes; says how long each took.
    pub fn start(lab: &Lab, plan: &Plan) -> Result<Self> {
        let tools = measured(lab, "tools present", tools::tools)?;
        let host = Host::take(&lab.dir)?;
        let start = Instant::now();
        let dir = lab.dir.clone();
        let pki = Pki::new(&dir.join("pki"))?;
        let control = Control::start(&tools, &pki, &dir.join("control"), plan.all())?;
        let mut k = Self { nodes: Vec::new(), machine: None, control, host, dir, all: plan.all() };
        for i in 0..plan.nodes {
            let mut node = Node::new(&tools, &pki, &k.dir, i, plan)?;
            node.boot(&k.control, k.all)?;
            k.nodes.push(node);
        }
        k.images(lab, &tools, plan)?;
        if plan.machine {
            // While containerd has nothing to do.
            k.machine = Some(Machine::new(&tools, &pki, &k.nodes[0], plan.nodes, plan.all(), plan)?);
        }
        k.control.ready()?;
        k.control.controllers(&pki, &Timing { node_grace: plan.grace })?;
        lab.measured("control plane ready and images on every node", seconds(start));
        let kubelets = Instant::now();
        for node in &mut k.nodes {
            node.start_kubelet()?;
        }
        for i in 0..plan.nodes {
            k.node_becomes(i, true)?;
        }
        lab.measured("kubelets started, all nodes Ready", seconds(kubelets));
        if let Some(machine) = &mut k.machine {
            let booted = Instant::now();
            machine.boot(&k.control)?;
            let name = machine.name.clone();
            k.becomes(&name, true, machine::BOOT)?;
            lab.measured("the machine booted, Ready", seconds(booted));
        }
        if plan.csi {
            k.kubectl(&["apply", "--server-side", "-f", tools.snapshot_crds.to_str().context("path")?])?;
            k.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])?;
        }
        // Pods are refused until their namespace has it.
        until("the default service account", PATIENCE, || {
            k.kubectl(&["get", "serviceaccount", "default"]).map(Some)
        })?;
        lab.measured("from nothing to a cluster that takes pods", seconds(start));
        Ok(k)
    }

    fn images(&self, lab: &Lab, tools: &tools::Tools, plan: &Plan) -> Result<()> {
        let start = Instant::now();
        let store = images::Store::new(tools, &self.dir)?;
        let mut archives = store.base(tools)?;
        if plan.csi {
            archives.extend(store.sidecars(tools)?);
            archives.extend(match &lab.images {
                Some(dir) => images::built(dir)?,
                None => store.own(tools, &lab.bin)?,
            });
        }
        lab.measured(&format!("{} images made or found", archives.len()), seconds(start));
        std::thread::scope(|s| {
            let importing: Vec<_> = self
                .nodes
                .iter()
                .map(|node| s.spawn(|| archives.iter().try_for_each(|a| node.import(a))))
                .collect();
            importing
                .into_iter()
                .try_for_each(|t| t.join().unwrap_or_else(|_| bail!("importing images panicked")))
        })
    }

    /// kubectl, as the administrator.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.control.kubectl(args)
    }

    /// What kubectl gets, as JSON.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], args].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {}", args.join(" ")))
    }

    /// Apply objects.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let file = self.dir.join("apply.json");
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        std::fs::write(&file, serde_json::to_string_pretty(&list)?)?;
        self.kubectl(&["apply", "--server-side", "-f", file.to_str().context("path")?]).map(drop)
    }

    /// Wait until a node is Ready, or is not.
    pub fn node_becomes(&mut self, i: usize, ready: bool) -> Result<()> {
        let name = self.nodes[i].name.clone();
        self.becomes(&name, ready, PATIENCE)
    }

    /// The same by its name, for as long.
    pub fn becomes(&mut self, name: &str, ready: bool, limit: Duration) -> Result<()> {
        let what = format!("{name} is {}", if ready { "Ready" } else { "NotReady" });
        let became = until(&what, limit, || {
            // No use in waiting.
            if let Err(e) = self.alive() {
                return Ok(Some(Err(e)));
            }
            let node = self.get(&["node", name])?;
            Ok((is_ready(&node) == ready).then_some(Ok(())))
        });
        let machine = self.machine.as_ref().filter(|m| m.name == name);
        became.with_context(|| machine.map_or_else(String::new, |m| format!("it said {}", m.said())))?
    }

    /// Switch a node on that was without power, and wait until it is Ready.
    pub fn power_on(&mut self, i: usize) -> Result<()> {
        self.nodes[i].boot(&self.control, self.all)?;
        self.nodes[i].start_kubelet()?;
        self.node_becomes(i, true)
    }

    /// Ready pods of a label, as (name, node, address), when there are so many, all of them on nodes that are up.
    pub fn pods(&self, label: &str, count: usize) -> Result<Vec<(String, String, String)>> {
        until(&format!("{count} pods {label} are Ready"), PATIENCE, || {
            let list = self.get(&["pods", "-l", label])?;
            let pods = list["items"].as_array().cloned().unwrap_or_default();
            let ready: Vec<_> = pods.iter().filter(|p| is_ready(p)).map(place).collect();
            ensure!(ready.len() == count, "{} of {count}: {}", ready.len(), why(&pods));
            Ok(Some(ready))
        })
    }

    /// Nothing that should run has ended.
    pub fn alive(&mut self) -> Result<()> {
        self.control.alive()?;
        self.machine.iter_mut().try_for_each(Machine::alive)?;
        self.nodes.iter_mut().try_for_each(Node::alive)
    }

    /// End everything; what is left behind is an error.
    pub fn finish(self) -> Result<()> {
        let Self { mut nodes, machine, control, host, .. } = self;
        machine.into_iter().try_for_each(|mut m| m.cut_power())?;
        for node in &mut nodes {
            node.cut_power()?;
        }
        drop(nodes);
        control.finish()?;
        host.give_back()
    }
}

/// A node or a pod.
pub fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    object["metadata"]["deletionTimestamp"].is_null()
        && conditions.is_some_and(|c| c.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

fn place(pod: &Value) -> (String, String, String) {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]), text(&pod["status"]["podIP"]))
}

/// Reasons of pods that wait.
fn why(pods: &[Value]) -> String {
    let reasons = pods.iter().filter(|p| !is_ready(p)).map(|p| {
        let all = p["status"]["containerStatuses"].as_array().into_iter().flatten();
        let waiting = all.filter(|c| c["ready"] != true).map(|c| format!(" {}: {}", c["name"], c["state"]));
        format!("{} {}{}", p["metadata"]["name"], p["status"]["phase"], waiting.collect::<String>())
    });
    reasons.collect::<Vec<_>>().join("; ")
}

/// For figures: seconds since then.
pub fn seconds(start: Instant) -> String {
    format!("{:.1} s", start.elapsed().as_secs_f64())
}

/// Do something and say how long it took.
pub fn measured<T>(lab: &Lab, what: &str, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let done = f()?;
    lab.measured(what, seconds(start));
    Ok(done)
}
