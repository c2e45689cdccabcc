//! A node that was away gets what changed meanwhile and nothing else.

use crate::harness::Lab;
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::proc::run;
use anyhow::{Result, ensure};
use std::time::Instant;

pub const ABOUT: &str = "a node returns: bytes moved compared with bytes changed";

const MIB: u64 = 1 << 20;

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let (size, changed) = lab.pick((4096 * MIB, 256 * MIB), (512 * MIB, 32 * MIB));
    let mut c = Cluster::start(lab, Plan::new(4, 3))?;
    c.create("disk", size)?;
    let start = Instant::now();
    write(&c, 0x11, 0, size)?;
    lab.measured(
        "writing the volume full",
        format!("{} MiB in {:.1} s", size / MIB, start.elapsed().as_secs_f64()),
    );

    let before = moved(&c)?;
    c.stop(3)?;
    // Half in one piece, half as single mebibytes all over the volume.
    write(&c, 0x22, 64 * MIB, changed / 2)?;
    let pieces = changed / 2 / MIB;
    let step = (size - changed) / pieces;
    let scattered: Vec<String> =
        (0..pieces).map(|i| format!("write -q -P 0x33 {} 1M", (changed + i * step) / MIB * MIB)).collect();
    qemu_io(&c, 0, &scattered)?;
    let start = Instant::now();
    c.spawn(3)?;
    c.whole()?;
    let took = start.elapsed().as_secs_f64();
    // Its own counter began at 0 with the process.
    let delta =
        moved(&c)?.iter().enumerate().map(|(i, b)| if i == 3 { *b } else { b - before[i] }).sum::<u64>();
    let share = expected(&c, "disk", changed, size, 3)?;
    lab.measured(
        "moved on return",
        format!(
            "{:.1} MiB of {} MiB changed, of these about {:.0} MiB belong on the node; {took:.1} s",
            delta as f64 / MIB as f64,
            changed / MIB,
            share / MIB as f64
        ),
    );
    ensure!(delta > 0, "nothing was counted as moved");
    ensure!(delta as f64 <= 1.2 * changed as f64, "{delta} bytes moved for {changed} changed");
    c.check("disk")?;
    lab.proved("at most 1.2 times what changed was moved; all copies equal");

    let before = moved(&c)?;
    c.kill(2)?;
    c.spawn(2)?;
    c.whole()?;
    let after = moved(&c)?;
    let delta: u64 = after.iter().enumerate().map(|(i, b)| if i == 2 { *b } else { b - before[i] }).sum();
    ensure!(delta <= MIB, "{delta} bytes moved though nothing changed");
    lab.measured("moved after a reboot within the out-interval without writes", format!("{delta} bytes"));
    lab.proved("a reboot moves nothing");
    let objects = c.check("disk")?;
    c.alive()?;
    lab.proved(format!("{objects} objects equal in all copies"));
    c.stop_all()
}

fn qemu_io(c: &Cluster, gateway: usize, commands: &[String]) -> Result<()> {
    for part in commands.chunks(64) {
        let uri = c.uri(gateway, "disk");
        let mut args = vec!["-f", "raw"];
        args.extend(part.iter().flat_map(|p| ["-c", p]));
        args.push(&uri);
        let said = run("qemu-io", &args)?;
        ensure!(!said.contains("rror"), "qemu-io: {said}");
    }
    Ok(())
}

fn write(c: &Cluster, pattern: u8, offset: u64, length: u64) -> Result<()> {
    let commands: Vec<String> = (0..length / (16 * MIB))
        .map(|i| format!("write -q -P {pattern} {} 16M", offset + i * 16 * MIB))
        .collect();
    qemu_io(c, 0, &commands)
}

/// Bytes that each sheep has fetched for recovery, as dog says.
pub fn moved(c: &Cluster) -> Result<Vec<u64>> {
    let rows = c.rows(&["node", "recovery"])?;
    let mut bytes = vec![0; c.sheep.len()];
    for r in rows {
        bytes[c.index(r["id"].as_str().unwrap_or_default())?] = r["bytes_moved"].as_u64().unwrap_or(0);
    }
    Ok(bytes)
}

/// How much of the changed data has a copy on the node.
fn expected(c: &Cluster, volume: &str, changed: u64, size: u64, node: usize) -> Result<f64> {
    let id = c.id(node)?;
    let map = c.rows(&["vdi", "object", "map", volume])?;
    let here =
        map.iter().filter(|o| o["nodes"].as_array().is_some_and(|n| n.iter().any(|x| *x == *id))).count();
    let objects = (size / (4 * MIB)).max(1);
    Ok(changed as f64 * here as f64 / objects as f64)
}
