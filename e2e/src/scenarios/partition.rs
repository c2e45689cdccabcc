//! Three nodes on a network that is cut, in every way: the majority goes on, the minority serves nothing, nothing read is stale.

use super::strips::fill_and_put_away;
use crate::harness::Lab;
use crate::harness::cluster::{Cluster, LEASE, Plan};
use crate::harness::fio::{Fio, Job};
use crate::harness::net::{CUT, Link, Net};
use crate::harness::registers::Registers;
use crate::harness::wait::{PATIENCE, phase, until};
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

pub const ABOUT: &str =
    "partitions 2+1 and 1+2, one-way cuts, slow links, owner and replica apart, leader and follower apart";

/// Of the volume; half of it is compared.
const SIZE: u64 = 256 << 20;
/// The same where it is put away.
const CODED: u64 = 512 << 20;
/// A majority must serve again within a lease, its margin, and what a busy machine needs.
const BACK: Duration = Duration::from_secs(15);

struct Story<'a> {
    lab: &'a Lab,
    net: Net,
    c: Cluster,
    registers: Registers,
    size: u64,
    writes: u64,
    reads: u64,
}

pub fn run(lab: &Lab) -> Result<()> {
    tell(lab, None)
}

/// The same on erasure coded volumes, of which some is in strips at any time.
pub fn run_coded(lab: &Lab) -> Result<()> {
    tell(lab, Some((2, 1)))
}

fn tell(lab: &Lab, policy: Option<(u8, u8)>) -> Result<()> {
    let size = if policy.is_some() { CODED } else { SIZE };
    let net = Net::new(3)?;
    let plan = Plan { secure: true, places: net.places(), policy, ..Plan::new(3, 3) };
    let c = Cluster::start(lab, plan)?;
    c.create("disk", size)?;
    if policy.is_some() {
        fill_and_put_away(&c, "disk", size / 2)?;
    }
    c.create("registers", Registers::size(3))?;
    let registers = Registers::start(&c, "registers");
    let mut story = Story { lab, net, c, registers, size, writes: 0, reads: 0 };
    story.two_and_one()?;
    story.one_and_two()?;
    for (from, to) in [(1, 0), (0, 2), (2, 1)] {
        story.one_way(from, to)?;
    }
    for leading in [false, true] {
        story.slow(leading)?;
    }
    story.owner_and_replica()?;
    story.leader_and_follower()?;
    let (writes, reads) = (story.writes, story.reads);
    let Story { mut c, registers, .. } = story;
    let sum = registers.finish()?;
    c.alive()?;
    c.whole()?;
    let objects = c.check("disk")? + c.check("registers")?;
    lab.proved(format!(
        "no client error in {writes} writes and {reads} compared reads; {objects} objects equal in all copies"
    ));
    lab.proved(format!(
        "every one of {} register reads and writes linearizable ({} connections made again)",
        sum.served.iter().sum::<u64>(),
        sum.broken
    ));
    Ok(())
}

impl Story<'_> {
    fn length(&self) -> Duration {
        self.lab.pick(Duration::from_secs(20), Duration::from_secs(12))
    }

    /// These gateways answer requests.
    fn serve(&self, gateways: &[usize]) -> Result<()> {
        for g in gateways {
            let before = self.registers.served(*g);
            until(&format!("gateway {g} serves"), BACK, || {
                Ok((self.registers.served(*g) > before + 20).then_some(()))
            })?;
        }
        self.registers.honest()
    }

    /// After a lease and its margin a cut-off gateway answers nothing for the rest of the phase.
    fn silent(&mut self, gateway: usize) -> Result<()> {
        phase(LEASE * 5 / 4, || Ok(false))?;
        let before = self.registers.served(gateway);
        phase(self.length().saturating_sub(LEASE), || Ok(false))?;
        let served = self.registers.served(gateway) - before;
        ensure!(served == 0, "gateway {gateway} answered {served} requests in the minority");
        self.registers.honest()
    }

    /// fio through gateway 0 meanwhile: it may wait, but not see an error.
    fn under_load(&mut self, name: &str, f: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let length = self.length() + Duration::from_secs(20);
        let uri = self.c.uri(0, "disk");
        let jobs = Job::verify_and_pulse(&uri, self.size, 100, self.c.plan.policy.is_some());
        let before = self.written()?;
        let fio = Fio::start(&self.lab.dir, name, length, &jobs)?;
        until("fio writes", PATIENCE, || Ok((self.written()? > before + 50).then_some(())))?;
        self.serve(&[0, 1, 2])?;
        f(self)?;
        self.net.heal();
        self.c.whole()?;
        self.serve(&[0, 1, 2])?;
        self.c.alive()?;
        let done = fio.finish(length + PATIENCE).with_context(|| name.to_owned())?;
        self.writes += done.writes;
        self.reads += done.reads;
        let (gap, _) = done.gap();
        self.lab.measured(
            &format!("{name}: longest time without a finished write at gateway 0"),
            format!("{} ms", gap.as_millis()),
        );
        Ok(())
    }

    /// Writes that the volume has taken.
    fn written(&self) -> Result<u64> {
        Ok(self.c.rows(&["vdi", "stat", "disk"])?.iter().filter_map(|r| r["writes"].as_u64()).sum())
    }

    fn two_and_one(&mut self) -> Result<()> {
        self.lab.step(format!("node 2 alone, the client at 0 in the majority; leader {}", self.c.leader()?));
        self.under_load("2+1", |s| {
            s.net.isolate(2);
            s.serve(&[0, 1])?;
            s.silent(2)
        })?;
        self.lab.proved("2+1: the majority served on, the node alone served nothing after its lease");
        Ok(())
    }

    fn one_and_two(&mut self) -> Result<()> {
        self.lab.step(format!("node 0 alone with the client; leader {}", self.c.leader()?));
        self.under_load("1+2", |s| {
            s.net.isolate(0);
            s.serve(&[1, 2])?;
            s.silent(0)
        })?;
        self.lab.proved(
            "1+2: the client in the minority was parked, the majority served on, the client went on after",
        );
        Ok(())
    }

    /// How it goes while something is wrong that no majority sees: whoever needs the missing link waits.
    fn endure(&mut self, name: &str, trouble: impl FnOnce(&Net)) -> Result<usize> {
        let mut serving = 0;
        self.under_load(name, |s| {
            trouble(&s.net);
            phase(s.length(), || Ok(false))?;
            serving = s.count_serving()?;
            Ok(())
        })?;
        self.lab.proved(format!("{name}: nothing stale, no error, all serve after"));
        self.lab.measured(&format!("{name}: gateways that served in it"), format!("{serving} of 3"));
        Ok(serving)
    }

    fn one_way(&mut self, from: usize, to: usize) -> Result<()> {
        self.lab.step(format!("nothing from {from} to {to}; leader {}", self.c.leader()?));
        self.endure(&format!("one-way {from} to {to}"), |net| net.set(from, to, CUT)).map(drop)
    }

    fn slow(&mut self, leading: bool) -> Result<()> {
        let leader = self.c.leader()?;
        let node = if leading { leader } else { (0..3).rfind(|i| *i != leader).unwrap_or(2) };
        self.lab
            .step(format!("all that node {node} sends is 200 ms late, 5 % of it is lost; leader {leader}"));
        let slow = Link { open: true, delay: Duration::from_millis(200), loss: 50 };
        let name = if leading { "slow leader" } else { "slow follower" };
        let serving = self.endure(name, |net| net.set_from(node, slow))?;
        ensure!(serving >= 2, "{name}: {serving} of 3 gateways served: those that are not slow go on");
        Ok(())
    }

    fn owner_and_replica(&mut self) -> Result<()> {
        let leader = self.c.leader()?;
        let owner = until("the volume has an owner", PATIENCE, || self.c.owner("registers").map(Some))?;
        let replica = (0..3).find(|i| *i != leader && *i != owner).unwrap_or(1);
        self.lab.step(format!("owner {owner} and replica {replica} apart, both reach the leader {leader}"));
        self.apart("owner and replica apart", owner, replica)
    }

    fn leader_and_follower(&mut self) -> Result<()> {
        let leader = self.c.leader()?;
        let follower = (0..3).find(|i| *i != leader).unwrap_or(1);
        self.lab.step(format!("leader {leader} and follower {follower} apart, the third reaches both"));
        self.apart("leader and follower apart", leader, follower)?;
        ensure!(self.c.leader()? == leader, "another one leads, though nobody was without this one");
        Ok(())
    }

    /// Nothing between two: the third passes on what they have to say to each other.
    fn apart(&mut self, name: &str, one: usize, other: usize) -> Result<()> {
        let serving = self.endure(name, |net| {
            net.set(one, other, CUT);
            net.set(other, one, CUT);
        })?;
        ensure!(
            serving == 3,
            "{name}: {serving} of 3 gateways served, and each reaches the others by way of a third"
        );
        Ok(())
    }

    /// Gateways that answer within the usual time.
    fn count_serving(&self) -> Result<usize> {
        let before: Vec<u64> = (0..3).map(|g| self.registers.served(g)).collect();
        phase(LEASE, || Ok(false))?;
        self.registers.honest()?;
        Ok((0..3).filter(|g| self.registers.served(*g) > before[*g]).count())
    }
}
