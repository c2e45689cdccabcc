//! `dog benchmark io`: what the cluster does for one client, against a VDI of its own.

use crate::context::Context;
use crate::failure::{Failure, code};
use crate::output::{Cell, Output, Record};
use crate::redundancy::Copies;
use crate::size;
use clap::{Subcommand, ValueEnum};
use sheepdog_client::Client;
use sheepdog_client::client::MAX_CHUNK;
use sheepdog_client::pb::*;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Measure
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Reads or durable writes through the admin interface, with a report
    ///
    /// Makes a VDI, uses it, deletes it. Every write is counted once it is durable on all its copies. NBD is faster than this interface: use
    /// fio's nbd engine to measure the front-end.
    Io(Io),
}

/// Options of `io`.
#[derive(clap::Args, Debug)]
pub struct Io {
    /// What to do
    #[arg(long, value_enum, default_value_t)]
    pattern: Pattern,
    /// Size of the VDI
    #[arg(long, default_value = "256M", value_parser = size::parse_positive)]
    size: u64,
    /// Size of one request, at most 1M
    #[arg(long, default_value = "4k", value_parser = size::parse_positive)]
    block: u64,
    /// Requests at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=128))]
    depth: u32,
    /// Seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    #[command(flatten)]
    copies: Copies,
    /// Do not delete the VDI afterwards
    #[arg(long)]
    keep: bool,
}

/// Order of requests.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Pattern {
    /// Writes at random offsets
    #[default]
    Randwrite,
    /// Writes one after another
    Write,
    /// Reads of everything, one after another, after writing it once
    Read,
}

#[derive(Default)]
struct Tally {
    ops: u64,
    bytes: u64,
    micros: Vec<u32>,
}

impl Command {
    /// Do it.
    pub async fn run(self, ctx: &Context) -> Result<Output, Failure> {
        let Self::Io(io) = self;
        if !io.block.is_multiple_of(512) || io.block > MAX_CHUNK as u64 || io.block > io.size {
            return Err(Failure::usage("--block is a multiple of 512 bytes, at most 1M and at most --size"));
        }
        let client = ctx.client().await?;
        let name = format!("dog-benchmark-{}", uuid::Uuid::new_v4().simple());
        let request = CreateVdiRequest {
            name: name.clone(),
            size: io.size.next_multiple_of(512),
            redundancy: io.copies.to_pb(),
            uuid: uuid::Uuid::new_v4().to_string(),
            ..Default::default()
        };
        client.create_vdi(request).await?;
        let result = tokio::select! {
            r = measure(client, &name, &io) => r,
            _ = tokio::signal::ctrl_c() => Err(Failure::new(code::FAILED, "interrupted")),
        };
        if io.keep {
            eprintln!("kept: {name}");
        } else {
            let vdi = Some(VdiRef::name(&name));
            client.delete_vdi(DeleteVdiRequest { vdi, now: true, ..Default::default() }).await?;
        }
        let (mut tally, took) = result?;
        tally.micros.sort_unstable();
        Ok(Output::Record(report(&io, &tally, took)))
    }
}

async fn measure(client: &Client, name: &str, io: &Io) -> Result<(Tally, Duration), Failure> {
    let (tx, mut rx) = mpsc::channel::<Result<Tally, Failure>>(io.depth as usize);
    if io.pattern == Pattern::Read {
        fill(client, name, io.size).await?;
    }
    let start = Instant::now();
    let until = start + Duration::from_secs(io.seconds);
    for worker in 0..io.depth {
        let (client, name, tx) = (client.clone(), name.to_owned(), tx.clone());
        let (pattern, block, size, depth) = (io.pattern, io.block, io.size, io.depth);
        tokio::spawn(async move {
            let slots = (size / block).max(1);
            let done = match pattern {
                Pattern::Read => read_worker(&client, &name, worker, depth, size, until).await,
                _ => {
                    let mut seed = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(u64::from(worker) + 1);
                    let mut turn = u64::from(worker);
                    let next = move || {
                        seed ^= seed << 13;
                        seed ^= seed >> 7;
                        seed ^= seed << 17;
                        turn += u64::from(depth);
                        let slot = if pattern == Pattern::Write { turn - u64::from(depth) } else { seed };
                        slot % slots * block
                    };
                    write_worker(&client, &name, block, next, until).await
                }
            };
            let _ = tx.send(done).await;
        });
    }
    drop(tx);
    let mut all = Tally::default();
    while let Some(t) = rx.recv().await {
        let mut t = t?;
        all.ops += t.ops;
        all.bytes += t.bytes;
        all.micros.append(&mut t.micros);
    }
    Ok((all, start.elapsed()))
}

async fn fill(client: &Client, name: &str, size: u64) -> Result<(), Failure> {
    let chunks = tokio_stream::iter((0..size).step_by(MAX_CHUNK).map(move |offset| {
        let n = (size - offset).min(MAX_CHUNK as u64) as usize;
        Chunk { offset, data: noise(n, offset).into(), zeros: 0 }
    }));
    let mut acks = client.write(VdiRef::name(name), chunks).await?;
    while acks.message().await?.is_some() {}
    Ok(())
}

/// Bytes that nothing can compress or take for zeros.
fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
    let word = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    std::iter::repeat_with(word).flat_map(u64::to_le_bytes).take(n).collect()
}

/// One request at a time, each waited for.
async fn write_worker(
    client: &Client,
    name: &str,
    block: u64,
    mut next: impl FnMut() -> u64,
    until: Instant,
) -> Result<Tally, Failure> {
    let (tx, rx) = mpsc::channel(1);
    let mut acks = client.write(VdiRef::name(name), tokio_stream::wrappers::ReceiverStream::new(rx)).await?;
    let mut tally = Tally::default();
    while Instant::now() < until {
        let offset = next();
        let began = Instant::now();
        if tx
            .send(Chunk { offset, data: noise(block as usize, offset ^ tally.ops).into(), zeros: 0 })
            .await
            .is_err()
        {
            break;
        }
        if acks.message().await?.is_none() {
            break;
        }
        tally.ops += 1;
        tally.bytes += block;
        tally.micros.push(began.elapsed().as_micros().min(u128::from(u32::MAX)) as u32);
    }
    drop(tx);
    while acks.message().await?.is_some() {}
    Ok(tally)
}

/// Its share of the VDI, again and again.
async fn read_worker(
    client: &Client,
    name: &str,
    worker: u32,
    depth: u32,
    size: u64,
    until: Instant,
) -> Result<Tally, Failure> {
    let share = (size / u64::from(depth)).max(1);
    let (offset, length) = (u64::from(worker) * share, share);
    let mut tally = Tally::default();
    if offset + length > size {
        return Ok(tally);
    }
    'again: while Instant::now() < until {
        let request = ReadRequest {
            vdi: Some(VdiRef::name(name)),
            snapshot: String::new(),
            offset,
            length: Some(length),
            background: false,
        };
        let mut chunks = client.read(request).await?;
        let mut began = Instant::now();
        while let Some(c) = chunks.message().await? {
            tally.ops += 1;
            tally.bytes += c.data.len() as u64 + c.zeros;
            tally.micros.push(began.elapsed().as_micros().min(u128::from(u32::MAX)) as u32);
            began = Instant::now();
            if began >= until {
                break 'again;
            }
        }
    }
    Ok(tally)
}

fn report(io: &Io, t: &Tally, took: Duration) -> Record {
    let seconds = took.as_secs_f64().max(1e-9);
    let at = |share: f64| {
        let i = ((t.micros.len() as f64 * share) as usize).min(t.micros.len().saturating_sub(1));
        Cell::Real(t.micros.get(i).copied().map_or(0.0, f64::from), " us")
    };
    let pattern = io.pattern.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
    Record::default()
        .field("pattern", "Pattern", Cell::text(pattern))
        .field("block", "Block", Cell::Bytes(io.block))
        .field("depth", "Depth", Cell::Number(io.depth.into()))
        .field("seconds", "Time", Cell::Real(seconds, " s"))
        .field("operations", "Operations", Cell::Number(t.ops))
        .field("operations_per_second", "Per second", Cell::Real(t.ops as f64 / seconds, ""))
        .field("bytes_per_second", "Throughput per second", Cell::Bytes((t.bytes as f64 / seconds) as u64))
        .field("p50_us", "Median latency", at(0.5))
        .field("p99_us", "99th percentile", at(0.99))
        .field("max_us", "Longest", at(1.0))
}
