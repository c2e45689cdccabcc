//! Three nodes on a network that is cut, in every way: the majority goes on, the minority serves nothing, nothing read is stale.

use crate::harness::Lab;
use crate::harness::cluster::{Cluster, LEASE, Plan};
use crate::harness::fio::{Fio, Job};
use crate::harness::net::{CUT, Link, Net};
use crate::harness::registers::Registers;
use crate::harness::wait::{PATIENCE, phase, until};
use anyhow::{Result, ensure};
use std::time::Duration;

pub const ABOUT: &str = "partitions 2+1 and 1+2, one-way cuts, slow links, owner and replica apart";

const SIZE: u64 = 256 << 20;
/// A majority must serve again within a lease, its margin, and what a busy machine needs.
const BACK: Duration = Duration::from_secs(15);

struct Story<'a> {
    lab: &'a Lab,
    net: Net,
    c: Cluster,
    registers: Registers,
}

pub fn run(lab: &Lab) -> Result<()> {
    let net = Net::new(3)?;
    let plan = Plan { secure: true, places: net.places(), ..Plan::new(3, 3) };
    let c = Cluster::start(lab, plan)?;
    c.create("disk", SIZE)?;
    c.create("registers", Registers::size(3))?;
    let registers = Registers::start(&c, "registers");
    let mut story = Story { lab, net, c, registers };
    // As long as it takes; ended by the last phase through its time.
    let length = lab.pick(Duration::from_secs(300), Duration::from_secs(200));
    let uri = story.c.uri(0, "disk");
    let jobs = [Job::verify(&uri, 0, SIZE / 2), Job::pulse(&uri, SIZE / 2, SIZE / 2, 100)];
    let mut fio = Fio::start(&lab.dir, "fio", length, &jobs)?;
    story.two_and_one()?;
    story.one_and_two()?;
    story.one_way()?;
    story.slow()?;
    story.owner_and_replica()?;
    ensure!(fio.running()?, "fio ended too early: the phases took longer than {} s", length.as_secs());
    let done = fio.finish(length + PATIENCE)?;
    let Story { mut c, registers, .. } = story;
    let sum = registers.finish()?;
    c.alive()?;
    c.whole()?;
    let objects = c.check("disk")? + c.check("registers")?;
    lab.proved(format!(
        "no client error in {} writes and {} compared reads; {objects} objects equal in all copies",
        done.writes, done.reads
    ));
    lab.proved(format!(
        "every one of {} register reads and writes linearizable ({} connections made again)",
        sum.served.iter().sum::<u64>(),
        sum.broken
    ));
    let (gap, at) = done.gap();
    lab.measured(
        "longest time without a finished write, client in the minority included",
        format!("{} ms (at {:.1} s)", gap.as_millis(), at.as_secs_f64()),
    );
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

    fn healed(&mut self) -> Result<()> {
        self.net.heal();
        self.c.whole()?;
        self.serve(&[0, 1, 2])?;
        self.c.alive()
    }

    fn two_and_one(&mut self) -> Result<()> {
        self.lab.step(format!("node 2 alone, the client at 0 in the majority; leader {}", self.c.leader()?));
        self.net.isolate(2);
        self.serve(&[0, 1])?;
        self.silent(2)?;
        self.healed()?;
        self.lab.proved("2+1: the majority served on, the node alone served nothing after its lease");
        Ok(())
    }

    fn one_and_two(&mut self) -> Result<()> {
        let (leader, owner) = (self.c.leader()?, self.c.owner("disk")?);
        self.lab.step(format!("node 0 alone with the client, owner {owner}; leader {leader}"));
        self.net.isolate(0);
        self.serve(&[1, 2])?;
        self.silent(0)?;
        self.healed()?;
        self.lab.proved(
            "1+2: the client in the minority was parked, the majority served on, the client went on after",
        );
        Ok(())
    }

    /// The leader hears both sides, so nobody is declared down; writes that need the missing direction are parked until it is back.
    fn one_way(&mut self) -> Result<()> {
        for (from, to) in [(1, 0), (0, 2), (2, 1)] {
            self.lab.step(format!("nothing from {from} to {to}; leader {}", self.c.leader()?));
            self.net.set(from, to, CUT);
            phase(self.length(), || Ok(false))?;
            let serving = self.count_serving()?;
            ensure!(serving >= 1, "nobody serves while {from} does not reach {to}");
            self.healed()?;
            self.lab.proved(format!(
                "one-way {from} -> {to}: {serving} of 3 gateways served in it, nothing stale"
            ));
        }
        Ok(())
    }

    /// Gateways that answer within the usual time.
    fn count_serving(&self) -> Result<usize> {
        let before: Vec<u64> = (0..3).map(|g| self.registers.served(g)).collect();
        phase(LEASE, || Ok(false))?;
        self.registers.honest()?;
        Ok((0..3).filter(|g| self.registers.served(*g) > before[*g]).count())
    }

    /// A slow follower must not stop the others. What a slow leader does to them is measured: raft's own patience is shorter.
    fn slow(&mut self) -> Result<()> {
        let slow = Link { open: true, delay: Duration::from_millis(200), loss: 50 };
        for leading in [false, true] {
            let leader = self.c.leader()?;
            let node = if leading { leader } else { (0..3).rfind(|i| *i != leader).unwrap_or(2) };
            self.lab.step(format!(
                "all that node {node} sends is 200 ms late, 5 % of it is lost; leader {leader}"
            ));
            self.net.set_from(node, slow);
            phase(self.length(), || Ok(false))?;
            let serving = self.count_serving()?;
            ensure!(leading || serving >= 1, "nobody serves while node {node} is slow");
            self.healed()?;
            let who = if leading { "leader" } else { "follower" };
            self.lab.proved(format!(
                "slow {who}: {serving} of 3 gateways served in it, nothing stale, whole after"
            ));
        }
        Ok(())
    }

    fn owner_and_replica(&mut self) -> Result<()> {
        let (leader, owner) = (self.c.leader()?, self.c.owner("disk")?);
        let replica = (0..3).find(|i| *i != leader && *i != owner).unwrap_or(1);
        self.lab.step(format!("owner {owner} and replica {replica} apart, both reach the leader {leader}"));
        self.net.set(owner, replica, CUT);
        self.net.set(replica, owner, CUT);
        self.serve(&[owner])?;
        phase(self.length(), || Ok(false))?;
        let serving = self.count_serving()?;
        ensure!(serving >= 1, "nobody serves while owner and replica are apart");
        self.healed()?;
        self.lab
            .proved(format!("owner and replica apart: {serving} of 3 gateways served in it, nothing stale"));
        Ok(())
    }
}
