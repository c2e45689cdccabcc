//! Sheepdog itself: real sheep on loopback, as a user would start them.

use super::{Lab, System, Target, ports};
use crate::fio::SPAN;
use crate::plan::Kind;
use crate::proc::{Proc, until};
use crate::text;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::process::Command;

/// Ports of one sheep: client, peer, NBD.
const PORTS: u16 = 3;
const VOLUME: &str = "bench";

/// As many copies as sheep, and one volume. fio talks to the first sheep.
pub fn start(lab: &Lab, kind: Kind, nodes: u16) -> Result<System> {
    let home = lab.path(&kind.name());
    std::fs::create_dir_all(&home)?;
    let base = ports(PORTS * nodes)?;
    let client = |i: u16| base + PORTS * i;
    let mut system = System::new(kind, Target::Nbd(format!("nbd://127.0.0.1:{}/{VOLUME}", client(0) + 2)));
    for i in 0..nodes {
        let mut cmd = Command::new(lab.bin.join("sheep"));
        cmd.args(["--bind-addr", "127.0.0.1", "--port", &client(i).to_string()]).args([
            "--nbd",
            "--nbd-port",
            &(client(i) + 2).to_string(),
            "--zone",
            &format!("zone{i}"),
        ]);
        for j in (0..nodes).filter(|j| *j != i) {
            cmd.args(["--seed", &format!("127.0.0.1:{}", client(j) + 1)]);
        }
        cmd.arg(home.join(format!("sheep{i}")));
        let name = format!("{}-{i}", kind.name());
        system.servers.push(Proc::start(&name, cmd, &lab.log(&name))?);
    }
    let dog = |i: u16, args: &[&str]| {
        let mut cmd = Command::new(lab.bin.join("dog"));
        cmd.args(["-a", &format!("127.0.0.1:{}", client(i))]).args(args);
        lab.run("dog", cmd)
    };
    for i in 0..nodes {
        until(&format!("sheep {i} answers"), || {
            system.alive()?;
            dog(i, &["cluster", "info"]).map(drop)
        })?;
    }
    let (copies, count) = (nodes.to_string(), nodes.to_string());
    dog(0, &["cluster", "format", "-c", &copies, "--nodes", &count])?;
    until("the cluster is whole", || {
        system.alive()?;
        let said = dog(0, &["cluster", "info", "-o", "json"])?;
        let info: Value = serde_json::from_str(&said).context(text(&home))?;
        ensure!(info["status"] == "ok" && info["nodes_up"] == nodes, "{info}");
        Ok(())
    })?;
    dog(0, &["vdi", "create", VOLUME, &SPAN.to_string()])?;
    Ok(system)
}
