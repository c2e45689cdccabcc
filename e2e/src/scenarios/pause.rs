//! Nodes die and come back, or stand still, under load: how long do writes stand?

use crate::harness::Lab;
use crate::harness::cluster::{Cluster, LEASE, Plan};
use crate::harness::fio::{Fio, Job};
use crate::harness::wait::{PATIENCE, phase};
use anyhow::{Result, ensure};
use std::time::Duration;

pub const ABOUT: &str = "writes go on while nodes are killed and frozen";

const SIZE: u64 = 256 << 20;
const HALF: u64 = SIZE / 2;
/// From one blow to the next.
const PERIOD: Duration = Duration::from_secs(10);
/// A killed node stays away so long.
const AWAY: Duration = Duration::from_secs(3);

pub fn run(lab: &Lab) -> Result<()> {
    let mut c = Cluster::start(lab, Plan::new(4, 3))?;
    c.create("disk", SIZE)?;
    let rounds = lab.pick(12, 3);
    let gap = killed(lab, &mut c, rounds)?;
    ensure!(gap < Duration::from_secs(1), "writes stood still for {} ms after kill -9", gap.as_millis());
    let rounds = lab.pick(6, 2);
    let gap = frozen(lab, &mut c, rounds)?;
    ensure!(gap < Duration::from_secs(6), "writes stood still for {} ms after SIGSTOP", gap.as_millis());
    Ok(())
}

/// The gateway of the client is sheep 0; the others are hit in turn.
fn victims() -> impl Iterator<Item = usize> {
    [3, 1, 2].into_iter().cycle()
}

fn load(lab: &Lab, c: &Cluster, name: &str, length: Duration) -> Result<Fio> {
    let uri = c.uri(0, "disk");
    Fio::start(&lab.dir, name, length, &[Job::verify(&uri, 0, HALF), Job::pulse(&uri, HALF, HALF, 300)])
}

fn killed(lab: &Lab, c: &mut Cluster, rounds: u32) -> Result<Duration> {
    let length = PERIOD * (rounds + 1);
    lab.step(format!("kill -9 of one node every {} s, {rounds} times", PERIOD.as_secs()));
    let mut fio = load(lab, c, "kill", length)?;
    let mut leaders = 0;
    for victim in victims().take(rounds as usize) {
        phase(PERIOD - AWAY, || Ok(!fio.running()?))?;
        leaders += u32::from(c.leader()? == victim);
        c.kill(victim)?;
        phase(AWAY, || Ok(!fio.running()?))?;
        c.spawn(victim)?;
        c.alive()?;
    }
    lab.measured("kill -9: blows that hit the leader", format!("{leaders} of {rounds}"));
    report(lab, c, fio, length, "kill -9")
}

fn frozen(lab: &Lab, c: &mut Cluster, rounds: u32) -> Result<Duration> {
    let (still, between) = (LEASE * 2, PERIOD);
    let length = (still + between) * rounds + PERIOD;
    lab.step(format!("SIGSTOP of one node for {} s, {rounds} times", still.as_secs()));
    let mut fio = load(lab, c, "stop", length)?;
    let mut leaders = 0;
    for victim in victims().take(rounds as usize) {
        phase(between, || Ok(!fio.running()?))?;
        leaders += u32::from(c.leader()? == victim);
        c.freeze(victim)?;
        phase(still, || Ok(!fio.running()?))?;
        c.thaw(victim)?;
    }
    lab.measured("SIGSTOP: blows that hit the leader", format!("{leaders} of {rounds}"));
    report(lab, c, fio, length, "SIGSTOP")
}

fn report(lab: &Lab, c: &mut Cluster, fio: Fio, length: Duration, what: &str) -> Result<Duration> {
    let done = fio.finish(length + PATIENCE)?;
    let (gap, at) = done.gap();
    c.alive()?;
    c.whole()?;
    let objects = c.check("disk")?;
    ensure!(
        done.writes > 1000 && done.reads > 500 && done.pulse.len() > 500,
        "fio hardly did anything: {done:?}"
    );
    lab.proved(format!(
        "{what}: {} writes and {} compared reads without an error in {} s; {objects} objects equal in all copies",
        done.writes,
        done.reads,
        length.as_secs()
    ));
    lab.measured(
        &format!("{what}: longest time without a finished write"),
        format!("{} ms (at {:.1} s)", gap.as_millis(), at.as_secs_f64()),
    );
    Ok(gap)
}
