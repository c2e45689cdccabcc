//! Ceph: one monitor and three BlueStore OSDs on files of this disk, made by hand for the occasion.
//!
//! Without authentication, which favours Ceph. No manager: it is not on the way of the data. The OSDs are told that they are on flash, as
//! otherwise they put small writes off; reads may come from their own caches.

use super::{Lab, System, Target, ports};
use crate::fio::SPAN;
use crate::plan::Kind;
use crate::proc::{Proc, until};
use crate::text;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const OSDS: usize = 3;
const POOL: &str = "bench";
const IMAGE: &str = "disk";
/// Bytes of an OSD's device, a sparse file.
const DEVICE: u64 = 12 << 30;

/// Are its programs there?
pub fn installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    ["ceph-osd", "ceph-mon", "monmaptool", "ceph", "rbd"].into_iter().all(there)
}

/// Start everything and make one image.
pub fn start(lab: &Lab, kind: Kind) -> Result<System> {
    let home = lab.path(&kind.name());
    std::fs::create_dir_all(home.join("mon.a"))?;
    let conf = home.join("ceph.conf");
    let address = format!("[v2:127.0.0.1:{}]", ports(1)?);
    let fsid = uuid()?;
    std::fs::write(&conf, configuration(&home, &fsid, &address))?;
    let program = |name: &str| {
        let mut cmd = Command::new(name);
        // No configuration of the host but this one.
        cmd.arg("-c").arg(&conf).env("CEPH_CONF", &conf).current_dir(&home);
        cmd
    };
    let ask = |args: &[&str]| {
        let mut cmd = program("ceph");
        // It would wait for ever for a monitor that is gone.
        cmd.args(["--connect-timeout=20"]).args(args);
        lab.run("ceph", cmd)
    };
    let target = Target::Rbd { conf: text(&conf), pool: POOL.into(), image: IMAGE.into() };
    let mut system = System::new(kind, target);

    let mut map = Command::new("monmaptool");
    map.current_dir(&home).args(["--create", "--fsid", &fsid, "--addv", "a", &address, "monmap"]);
    lab.run("monmaptool", map)?;
    let mut mkfs = program("ceph-mon");
    mkfs.args(["--mkfs", "-i", "a", "--monmap", "monmap"]);
    lab.run("ceph-mon-mkfs", mkfs)?;
    let mut monitor = program("ceph-mon");
    monitor.args(["-f", "-i", "a"]);
    system.helpers.push(Proc::start("ceph-mon", monitor, &lab.log("ceph-mon"))?);

    for id in 0..OSDS {
        let (id, uuid) = (id.to_string(), uuid()?);
        std::fs::create_dir_all(home.join(format!("osd.{id}")))?;
        ask(&["osd", "new", &uuid, &id])?;
        let mut mkfs = program("ceph-osd");
        mkfs.args(["--mkfs", "-i", &id, "--osd-uuid", &uuid]);
        lab.run("ceph-osd-mkfs", mkfs)?;
        let mut osd = program("ceph-osd");
        osd.args(["-f", "-i", &id]);
        let name = format!("ceph-osd-{id}");
        system.servers.push(Proc::start(&name, osd, &lab.log(&name))?);
    }
    until("all OSDs are up", || {
        system.alive()?;
        let said = ask(&["osd", "stat", "-f", "json"])?;
        let line = said.lines().find(|l| l.starts_with('{')).context("no JSON")?;
        let stat: Value = serde_json::from_str(line)?;
        ensure!(stat["num_up_osds"] == OSDS && stat["num_in_osds"] == OSDS, "{stat}");
        Ok(())
    })?;
    ask(&["osd", "pool", "create", POOL, "32", "32"])?;
    let mut create = program("rbd");
    create.args(["create", &format!("{POOL}/{IMAGE}"), "--size", &format!("{}M", SPAN >> 20)]);
    lab.run("rbd", create)?;
    Ok(system)
}

fn configuration(home: &Path, fsid: &str, address: &str) -> String {
    let home = home.display();
    format!(
        "[global]
fsid = {fsid}
mon host = {address}
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
admin socket =
pid file =
run dir = {home}
crash dir = {home}
keyring = {home}/keyring
log file = {home}/$name.log
mon data = {home}/$name
osd data = {home}/$name
osd pool default size = {OSDS}
osd pool default min size = 1
osd crush chooseleaf type = 0
osd objectstore = bluestore
osd memory target = {}
bluestore block size = {DEVICE}
bluestore debug enforce settings = ssd
rbd cache = false
",
        2u64 << 30
    )
}

fn uuid() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}
