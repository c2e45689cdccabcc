//! What snapshots cost: a volume of 1 TiB with data and a thousand snapshots behind it, beside one with the same data and none.
//!
//! Both volumes get the same writes, in turn, through NBD; every comparison is of requests that alternate between the two, so that what else the machine
//! does hits both. The times of `dog` are those of whole processes.

use crate::harness::Lab;
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::files::Noise;
use crate::harness::measure::{Bars, median, median_millis};
use crate::harness::nbd::Nbd;
use crate::harness::proc::run;
use crate::harness::wait::{PATIENCE, phase, until};
use anyhow::{Context as _, Result, anyhow, ensure};
use std::path::Path;
use std::time::{Duration, Instant};

pub const ABOUT: &str = "1 TiB with 1,000 snapshots: snapshot, clone, writes after them, reads through them";

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const SIZE: u64 = 1 << 40;
/// Bytes written in each object that has data; an object is 4 MiB.
const PART: u64 = 2 * MIB;
/// Blocks written between two snapshots, in as many objects. The first is always of the first object: it is in every layer.
const WRITES: usize = 4;
/// Requests of one turn, where many are in flight.
const DEPTH: usize = 32;
/// Of a median, in milliseconds.
const ADMIN: f64 = 50.0;
const WRITE: f64 = 2.0;
const READ: f64 = 1.2;
/// Where all blocks of one object are asked for at once, as fast as the CPU goes: they lie in hundreds of files instead of one, which the kernel has to look up.
const READ_FILES: f64 = 1.5;

pub fn run_scenario(lab: &Lab) -> Result<()> {
    let (objects, layers) = lab.pick((512, 1000), (64, 100));
    let mut c = Cluster::start(lab, Plan::new(3, 3))?;
    let mut s = Story::begin(lab, &c, objects)?;
    let mut bars = Bars::default();
    s.equal().context("after the first data")?;
    s.snapshots(layers)?;
    s.admin(&mut bars)?;
    s.first_writes(&mut bars)?;
    // Checkpoints of what was written end: reads come from files, on both. All of these were open once before reads are measured, on both.
    phase(Duration::from_secs(5), || Ok(false))?;
    s.equal()?;
    s.reads(&mut bars)?;
    lab.proved(format!("{} layers deep, every byte is that of the volume without snapshots", s.taken));
    drop(s);
    given_back(lab, &c)?;
    c.alive()?;
    bars.judge()?;
    c.stop_all()
}

/// Snapshots leave nothing to be reclaimed, so nobody looks for it then; what is deleted goes nevertheless, merged or at once.
fn given_back(lab: &Lab, c: &Cluster) -> Result<()> {
    let count = || -> Result<usize> {
        let disks = c.sheep.iter().flat_map(|s| &s.disks);
        disks.map(|d| files(&d.join("obj"))).sum()
    };
    let write = |pattern: &str| {
        let args = ["-f", "raw", "-c", &format!("write -q -P {pattern} 4M 32M"), &c.uri(0, "gone")];
        run("qemu-io", &args).map(drop)
    };
    // Files of the last writes are made within a second.
    phase(Duration::from_secs(3), || Ok(false))?;
    let before = count()?;
    c.create("gone", SIZE)?;
    write("1")?;
    c.dog(&["vdi", "snapshot", "gone", "-s", "one"])?;
    write("2")?;
    let more =
        until("files of two layers", PATIENCE, || Ok(Some(count()?).filter(|n| *n >= before + 2 * 3 * 8)))?;
    c.dog(&["vdi", "delete", "gone@one", "--now", "--yes"])?;
    until("the files of a merged layer go", PATIENCE, || {
        Ok((count()? <= before + (more - before) / 2).then_some(()))
    })?;
    c.dog(&["vdi", "delete", "gone", "--now", "--yes"])?;
    until("the files of a deleted volume go", PATIENCE, || Ok((count()? == before).then_some(())))?;
    lab.proved("a deleted snapshot and a deleted volume leave no file behind");
    Ok(())
}

fn files(dir: &Path) -> Result<usize> {
    let mut all = 0;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        all += if path.is_dir() { files(&path)? } else { 1 };
    }
    Ok(all)
}

/// Somebody gives up: never here. The runner's patience is the limit.
fn never() -> bool {
    false
}

fn write(client: &mut Nbd, offset: u64, data: &[u8]) -> Result<Duration> {
    let start = Instant::now();
    client.write(offset, data, &never)?.map_err(|e| anyhow!("a write failed: {e}"))?;
    Ok(start.elapsed())
}

fn read(client: &mut Nbd, offset: u64, data: &mut [u8]) -> Result<Duration> {
    let start = Instant::now();
    client.read(offset, data, &never)?.map_err(|e| anyhow!("a read failed: {e}"))?;
    Ok(start.elapsed())
}

fn timed(f: impl FnOnce() -> Result<String>) -> Result<Duration> {
    let start = Instant::now();
    f()?;
    Ok(start.elapsed())
}

struct Story<'a> {
    lab: &'a Lab,
    c: &'a Cluster,
    /// With snapshots, and without.
    deep: Nbd,
    flat: Nbd,
    /// Attached, for groups.
    _side: Nbd,
    noise: Noise,
    objects: u64,
    block: Vec<u8>,
    /// Snapshots of `deep` so far.
    taken: usize,
}

impl<'a> Story<'a> {
    /// Three volumes of 1 TiB, two of them with data.
    fn begin(lab: &'a Lab, c: &'a Cluster, objects: u64) -> Result<Self> {
        for name in ["deep", "flat", "side"] {
            c.create(name, SIZE)?;
        }
        let start = Instant::now();
        for name in ["deep", "flat"] {
            run(
                "fio",
                &[
                    "--name=fill",
                    "--ioengine=nbd",
                    &format!("--uri={}", c.uri(0, name)),
                    "--rw=write",
                    "--bs=1M",
                    "--iodepth=4",
                    // The same data in both: every mebibyte is full of its offset.
                    "--verify=pattern",
                    "--verify_pattern=0x5aa55aa55aa55aa5%o",
                    "--do_verify=0",
                    "--verify_state_save=0",
                    "--zonemode=strided",
                    &format!("--zonesize={PART}"),
                    &format!("--zonerange={PART}"),
                    &format!("--zoneskip={}", SIZE / objects - PART),
                    &format!("--size={SIZE}"),
                    &format!("--io_size={}", objects * PART),
                ],
            )?;
        }
        lab.measured(
            "data in each of two volumes of 1 TiB",
            format!(
                "{} MiB in {objects} objects, {:.0} s",
                objects * PART / MIB,
                start.elapsed().as_secs_f64()
            ),
        );
        let open = |name: &str| Nbd::open(&c.nbd_socket(0), name, &never);
        let (deep, flat, _side) = (open("deep")?, open("flat")?, open("side")?);
        Ok(Self {
            lab,
            c,
            deep,
            flat,
            _side,
            noise: Noise::new(17),
            objects,
            block: vec![0; BLOCK as usize],
            taken: 0,
        })
    }

    /// Both hold the same, wherever there is data.
    fn equal(&mut self) -> Result<()> {
        let (mut a, mut b) = (vec![0; MIB as usize], vec![0; MIB as usize]);
        for object in 0..self.objects {
            for part in 0..PART / MIB {
                let offset = object * (SIZE / self.objects) + part * MIB;
                read(&mut self.deep, offset, &mut a)?;
                read(&mut self.flat, offset, &mut b)?;
                ensure!(a.iter().any(|x| *x != 0), "no data at {offset}");
                let blocks = a.chunks(BLOCK as usize).zip(b.chunks(BLOCK as usize));
                let wrong: Vec<_> = blocks.enumerate().filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect();
                ensure!(wrong.is_empty(), "the volumes differ in {} blocks from {offset}", wrong.len());
            }
        }
        Ok(())
    }

    /// A block of the part of an object that has data.
    fn place(&mut self, object: u64) -> u64 {
        object * (SIZE / self.objects) + self.noise.number() % (PART / BLOCK) * BLOCK
    }
    fn anywhere(&mut self) -> u64 {
        let object = self.noise.number() % self.objects;
        self.place(object)
    }

    fn snapshot(&mut self) -> Result<Duration> {
        self.taken += 1;
        let tag = format!("s{}", self.taken);
        timed(|| self.c.dog(&["vdi", "snapshot", "deep", "-s", &tag]))
    }

    /// Write the same block to both volumes; how long each took. Nobody is always first.
    fn write_both(&mut self, offset: u64) -> Result<(Duration, Duration)> {
        self.noise.fill(&mut self.block);
        if self.noise.number() & 1 == 0 {
            let deep = write(&mut self.deep, offset, &self.block)?;
            return Ok((deep, write(&mut self.flat, offset, &self.block)?));
        }
        let flat = write(&mut self.flat, offset, &self.block)?;
        Ok((write(&mut self.deep, offset, &self.block)?, flat))
    }

    /// Layer after layer, none of them empty.
    fn snapshots(&mut self, count: usize) -> Result<()> {
        let (start, mut times) = (Instant::now(), Vec::new());
        for _ in 0..count {
            times.push(self.snapshot()?);
            for w in 0..WRITES {
                let offset = if w == 0 { self.place(0) } else { self.anywhere() };
                self.write_both(offset)?;
            }
        }
        let tenth = count / 10;
        self.lab.measured(
            "dog vdi snapshot, in use",
            format!(
                "{count} in {:.0} s; medians: the first tenth {:.1} ms, the last {:.1} ms",
                start.elapsed().as_secs_f64(),
                median_millis(&times[..tenth])?,
                median_millis(&times[count - tenth..])?
            ),
        );
        Ok(())
    }

    /// Snapshots, clones, groups: with everything behind them, while the volume is attached.
    fn admin(&mut self, bars: &mut Bars) -> Result<()> {
        let (mut single, mut clones, mut fresh, mut groups, mut idle) =
            (vec![], vec![], vec![], vec![], vec![]);
        for i in 0..15 {
            single.push(self.snapshot()?);
            let tag = format!("deep@s{}", self.taken);
            let offset = self.anywhere();
            self.write_both(offset)?;
            clones.push(timed(|| self.c.dog(&["vdi", "clone", &tag, &format!("clone{i}")]))?);
            fresh.push(timed(|| self.c.dog(&["vdi", "clone", "deep", &format!("fresh{i}")]))?);
            let tag = format!("g{i}");
            groups.push(timed(|| self.c.dog(&["vdi", "snapshot-group", "deep", "side", "-s", &tag]))?);
            idle.push(timed(|| self.c.dog(&["cluster", "info"]))?);
        }
        let detail = format!(
            " with {} snapshots; a dog that changes nothing: {:.2}",
            self.taken,
            median_millis(&idle)?
        );
        let mut bar = |what: &str, times: &[Duration]| -> Result<()> {
            bars.at_most(self.lab, &format!("{what}, median, ms"), median_millis(times)?, ADMIN, &detail);
            Ok(())
        };
        bar("dog vdi snapshot", &single)?;
        bar("dog vdi clone of a snapshot", &clones)?;
        bar("dog vdi clone of a volume in use (snapshot and clone)", &fresh)?;
        bar("dog vdi snapshot-group of two volumes", &groups)
    }

    /// The first write after a snapshot, to an object that the new layer lacks; before the snapshot, one to the volume without any.
    fn first_writes(&mut self, bars: &mut Bars) -> Result<()> {
        let (mut normal, mut first, mut beside, mut later) = (vec![], vec![], vec![], vec![]);
        for i in 0..60 {
            let before = self.anywhere();
            normal.push(self.write_both(before)?.1);
            self.snapshot()?;
            // The object that is in every layer, and others.
            let offset = if i % 4 == 0 { self.place(0) } else { self.anywhere() };
            let (deep, flat) = self.write_both(offset)?;
            first.push(deep);
            beside.push(flat);
            // In the same layer, the same object, another block.
            later.push(self.write_both(offset ^ BLOCK)?.0);
        }
        let [normal, first, beside, later] = [normal, first, beside, later].map(|t| median_millis(&t));
        let (normal, first, beside, later) = (normal?, first?, beside?, later?);
        bars.at_most(
            self.lab,
            "first 4 KiB write after a snapshot, median, times a normal one",
            first / normal,
            WRITE,
            &format!(
                ": {first:.2} ms; normal {normal:.2} ms; at the same moment, without snapshots, {beside:.2} ms; the second write {later:.2} ms"
            ),
        );
        Ok(())
    }

    fn reads(&mut self, bars: &mut Bars) -> Result<()> {
        // Everywhere, and in the one object that is in every layer.
        for (what, everywhere) in [("all objects", true), ("one object in every layer", false)] {
            let (ratio, detail) = self.one_by_one(everywhere)?;
            bars.at_most(
                self.lab,
                &format!("4 KiB reads, depth 1, {what}, time, times a volume without layers"),
                ratio,
                READ,
                &detail,
            );
            let (ratio, detail) = self.many(everywhere)?;
            bars.at_most(
                self.lab,
                &format!("4 KiB reads, depth {DEPTH}, {what}, time, times a volume without layers"),
                ratio,
                if everywhere { READ } else { READ_FILES },
                &detail,
            );
        }
        Ok(())
    }

    fn offset(&mut self, everywhere: bool) -> u64 {
        if everywhere { self.anywhere() } else { self.place(0) }
    }

    /// Single reads in turn, compared.
    fn one_by_one(&mut self, everywhere: bool) -> Result<(f64, String)> {
        let (mut deep, mut flat) = (vec![], vec![]);
        let (mut a, mut b) = (vec![0; BLOCK as usize], vec![0; BLOCK as usize]);
        for i in 0..self.lab.pick(4000, 1000) {
            let offset = self.offset(everywhere);
            if i % 2 == 0 {
                deep.push(read(&mut self.deep, offset, &mut a)?);
                flat.push(read(&mut self.flat, offset, &mut b)?);
            } else {
                flat.push(read(&mut self.flat, offset, &mut b)?);
                deep.push(read(&mut self.deep, offset, &mut a)?);
            }
            ensure!(a == b, "the volumes differ at {offset}");
        }
        let (deep, flat) = (median_millis(&deep)?, median_millis(&flat)?);
        Ok((deep / flat, format!(": medians {deep:.3} ms, without {flat:.3} ms")))
    }

    /// Many at a time, in turn.
    fn many(&mut self, everywhere: bool) -> Result<(f64, String)> {
        let (mut ratios, mut sums) = (vec![], [Duration::ZERO; 2]);
        let rounds = self.lab.pick(300, 60);
        for i in 0..rounds {
            let offsets: Vec<u64> = (0..DEPTH).map(|_| self.offset(everywhere)).collect();
            let mut times = [Duration::ZERO; 2];
            for turn in 0..2 {
                let flat = (i + turn) % 2;
                let client = if flat == 1 { &mut self.flat } else { &mut self.deep };
                let start = Instant::now();
                client.read_all(&offsets, BLOCK as usize, &never)?;
                times[flat] = start.elapsed();
                sums[flat] += times[flat];
            }
            ratios.push(times[0].as_secs_f64() / times[1].as_secs_f64());
        }
        let rate = |sum: Duration| (rounds * DEPTH) as f64 / sum.as_secs_f64();
        Ok((median(ratios)?, format!(": {:.0} a second, without {:.0}", rate(sums[0]), rate(sums[1]))))
    }
}
