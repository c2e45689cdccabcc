//! A guest lives through everything that its storage does: gateways die and come back, die for good, and the guest itself moves.

use crate::harness::Lab;
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::debian::System;
use crate::harness::proc::run;
use crate::harness::qemu::{Guest, RECONNECT, SLOW, WRITER};
use anyhow::{Context as _, Result, ensure};
use std::time::Instant;

pub const ABOUT: &str = "a Debian guest under QEMU: gateway restarted, gateway lost, live migration";

const SIZE: u64 = 1536 << 20;

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let system = System::get(&WRITER)?;
    let image = lab.dir.join("system.img");
    system.image(&image, SIZE)?;
    let mut c = Cluster::start(lab, Plan::new(4, 3))?;
    c.create("boot", SIZE)?;
    let image_name = image.to_str().context("path")?;
    run("qemu-img", &["convert", "-n", "-W", "-f", "raw", "-O", "raw", image_name, &c.uri(0, "boot")])?;
    std::fs::remove_file(&image)?;

    let start = Instant::now();
    let mut guest = Guest::start(&system, &lab.dir, "first", &c.nbd_socket(0), "boot", false)?;
    guest.goes_on(1)?;
    lab.measured("from QEMU's start to the first file written and read back", seconds(start));
    let rounds = guest.goes_on(5)?;
    lab.proved(format!("Debian boots from the volume and works ({rounds} rounds)"));

    let start = Instant::now();
    c.kill(0)?;
    c.spawn(0)?;
    let rounds = guest.goes_on(3)?;
    ensure!(guest.state()? == "running", "the guest is {}", guest.state()?);
    lab.measured("gateway kill -9 and restart, to three more rounds", seconds(start));
    lab.proved(format!("the guest went on after its gateway was killed and restarted ({rounds} rounds)"));
    c.whole()?;

    let start = Instant::now();
    c.kill(0)?;
    guest.becomes("io-error", RECONNECT + SLOW)?;
    guest.move_disk(&c.nbd_socket(1))?;
    let rounds = guest.goes_on(3)?;
    lab.measured(
        "gateway gone for good: to three more rounds",
        format!("{}, of these {} s QEMU's reconnect-delay", seconds(start), RECONNECT.as_secs()),
    );
    lab.proved(format!(
        "paused instead of an error, reconnected through another gateway, cont: it went on ({rounds} rounds)"
    ));
    c.spawn(0)?;
    c.whole()?;

    let mut second = Guest::start(&system, &lab.dir, "second", &c.nbd_socket(2), "boot", true)?;
    let info = guest.migrate(&mut second, &lab.dir.join("migration"))?;
    second.goes_on(3)?;
    lab.measured(
        "live migration",
        format!("{} ms, of these {} ms paused", info["total-time"], info["downtime"]),
    );
    lab.proved("live migration between two QEMUs at two gateways under guest writes");

    let said = second.finish()?;
    ensure!(said.contains("E2E-FILES-OK"), "files");
    lab.proved("every file as its checksum says, no I/O error in the guest's kernel log");
    let back = lab.dir.join("back.img");
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "raw", &c.uri(3, "boot"), back.to_str().context("path")?],
    )?;
    run("e2fsck", &["-fn", back.to_str().context("path")?])?;
    let objects = c.check("boot")?;
    c.alive()?;
    lab.proved(format!("e2fsck clean; {objects} objects equal in all copies"));
    Ok(())
}

fn seconds(start: Instant) -> String {
    format!("{:.1} s", start.elapsed().as_secs_f64())
}
