//! Nodes die and come back, or stand still, under load: how long do writes stand?

use super::strips::{fill_and_put_away, strips};
use crate::harness::Lab;
use crate::harness::cluster::{Cluster, LEASE, Plan};
use crate::harness::fio::{Fio, Job};
use crate::harness::wait::{PATIENCE, phase};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

pub const ABOUT: &str = "writes go on while nodes are killed and frozen";

/// Of the volume; half of it is compared.
const SIZE: u64 = 256 << 20;
/// The same where it is put away.
const CODED: u64 = 512 << 20;
/// From one blow to the next.
const PERIOD: Duration = Duration::from_secs(10);

pub fn run(lab: &Lab) -> Result<()> {
    both(lab, Plan::new(4, 3))
}

/// The same on erasure coded volumes, of which most is in strips at any time.
pub fn run_coded(lab: &Lab) -> Result<()> {
    for (nodes, policy @ (data, parity)) in [(4, (2, 1)), (7, (4, 2))] {
        lab.step(format!("{data}:{parity} on {nodes} sheep"));
        let plan = Plan { policy: Some(policy), ..Plan::new(nodes, 3) };
        both(&lab.part(&format!("{data}-{parity}"))?, plan)?;
    }
    Ok(())
}

fn both(lab: &Lab, plan: Plan) -> Result<()> {
    let mut c = Cluster::start(lab, plan)?;
    let coded = c.plan.policy.is_some();
    let size = if coded { CODED } else { SIZE };
    c.create("disk", size)?;
    if coded {
        fill_and_put_away(&c, "disk", size / 2)?;
    }
    let kill =
        Blows { what: "kill -9", away: Duration::from_secs(3), seconds: lab.pick(130, 40), limit: 1000 };
    blows(lab, &mut c, &kill, size)?;
    blows(lab, &mut c, &stop(lab), size)?;
    c.stop_all()
}

/// The second half alone.
pub fn freeze(lab: &Lab) -> Result<()> {
    let mut c = Cluster::start(lab, Plan::new(4, 3))?;
    c.create("disk", SIZE)?;
    blows(lab, &mut c, &stop(lab), SIZE)
}

fn stop(lab: &Lab) -> Blows {
    Blows { what: "SIGSTOP", away: LEASE * 2, seconds: lab.pick(120, 50), limit: 6000 }
}

struct Blows {
    what: &'static str,
    /// A node is gone so long.
    away: Duration,
    /// All together.
    seconds: u64,
    /// Longest time without a finished write that is right, milliseconds.
    limit: u64,
}

/// The gateway of the client is sheep 0; the others are hit in turn.
fn victims() -> impl Iterator<Item = usize> {
    [3, 1, 2].into_iter().cycle()
}

/// One node at a time, every ten seconds, or later when the node before is not complete again: two at once are more than three copies bear.
fn blows(lab: &Lab, c: &mut Cluster, b: &Blows, size: u64) -> Result<()> {
    lab.step(format!("{} of one node after another for {} s", b.what, b.seconds));
    let (length, start) = (Duration::from_secs(b.seconds), Instant::now());
    let uri = c.uri(0, "disk");
    let coded = c.plan.policy.is_some();
    let jobs = Job::verify_and_pulse(&uri, size, 300, coded);
    let mut fio = Fio::start(&lab.dir, b.what, length, &jobs)?;
    let (mut hits, mut leaders, mut slowest) = (0, 0, Duration::ZERO);
    let mut last = start;
    for victim in victims() {
        phase((last + PERIOD).saturating_duration_since(Instant::now()), || Ok(!fio.running()?))?;
        if start.elapsed() + b.away + PERIOD > length || !fio.running()? {
            break;
        }
        last = Instant::now();
        hits += 1;
        leaders += u32::from(c.leader()? == victim);
        let frozen = b.what == "SIGSTOP";
        if frozen {
            c.freeze(victim)?
        } else {
            c.kill(victim)?
        }
        phase(b.away, || Ok(!fio.running()?))?;
        if frozen {
            c.thaw(victim)?
        } else {
            c.spawn(victim)?
        }
        let back = Instant::now();
        c.whole()?;
        slowest = slowest.max(back.elapsed());
        c.alive()?;
    }
    let done = fio.finish(length + PATIENCE)?;
    let (gap, at) = done.gap();
    c.whole()?;
    let objects = c.check("disk")?;
    if coded {
        let strips = strips(c)?;
        ensure!(strips > 0, "nothing was put away: this shows nothing");
        lab.measured("strips at the end", strips.to_string());
    }
    ensure!(
        done.writes > 1000 && done.reads > if coded { 100 } else { 500 } && done.pulse.len() > 500,
        "fio hardly did anything: {done:?}"
    );
    lab.proved(format!(
        "{}: {} writes and {} compared reads without an error in {} s, {hits} nodes hit, {leaders} of them leading; {objects} objects equal in all copies",
        b.what, done.writes, done.reads, b.seconds
    ));
    lab.measured(
        &format!("{}: longest time without a finished write", b.what),
        format!("{} ms (at {:.1} s)", gap.as_millis(), at.as_secs_f64()),
    );
    lab.measured(
        &format!("{}: longest time until a node that came back was complete, under this load", b.what),
        format!("{:.1} s", slowest.as_secs_f64()),
    );
    lab.within(&format!("{}: writes stood still", b.what), gap, Duration::from_millis(b.limit))?;
    Ok(())
}
