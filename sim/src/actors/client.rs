//! Clients: each has the volume open on some node, reads, writes and zeroes few blocks many times, and moves on when its node is gone or its patience is.

use super::attaching;
use crate::oracle::history::{Asked, Kind, REGISTER};
use crate::world::node::Ctx;
use crate::world::{Lost, World};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use rand::Rng;
use rand::rngs::SmallRng;
use sheep::session::volume::{open_attached, open_image};
use sheep::volume::{VolumeError, ZeroFlags};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Blocks that are written: few, so that operations meet; in several objects, and at their edges.
pub const BLOCKS: [u64; 10] = [0, 1, 2, 200, 254, 255, 256, 257, 512, 700];
/// How long a client waits for an answer before it reconnects.
const PATIENCE: Duration = Duration::from_secs(40);

/// Start them.
pub fn start(world: &Rc<World>) -> Vec<JoinHandle<()>> {
    let mut rng = world.rng(1);
    let n = rng.random_range(1..=3u64);
    world.clients.set(n);
    (1..=n).map(|id| tokio::task::spawn_local(client(world.clone(), id, world.rng(100 + id)))).collect()
}

/// What a client whose attachment is over still sends must not take effect.
async fn late(world: &Rc<World>, id: u64, node: usize, handle: u64) {
    let register = GROUPS[(id - 1) as usize % GROUPS.len()] * 2;
    let (at, value) = (world.place(register), world.history.forbidden());
    let write = world.call(node, move |ctx| perform(ctx, handle, at, Ask::Write(register, vec![value])));
    if let Ok(Ok(Ok(_))) = tokio::time::timeout(Duration::from_secs(5), write).await {
        world.violation(
            "detached",
            format!("client {id} wrote {value} to register {register} after it was detached"),
        );
    }
}

#[derive(Debug, Clone)]
enum Ask {
    Read(u64, u64),
    /// First register and one value per register.
    Write(u64, Vec<u64>),
    Zero(u64, u64, bool),
}

async fn client(world: Rc<World>, id: u64, mut rng: SmallRng) {
    let mut opened = 0u64;
    let mut attachment = None;
    while !world.stopping.is_cancelled() {
        let up: Vec<usize> = (0..world.nodes.len())
            .filter(|n| world.nodes[*n].is_running() && !world.nodes[*n].is_paused())
            .collect();
        if up.is_empty() {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        }
        let node = up[rng.random_range(0..up.len())];
        if world.attaches() && attachment.is_none() {
            attachment = attaching::attach(&world, node, id).await;
            if attachment.is_none() {
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        }
        opened += 1;
        let handle = id * 1_000_000 + opened;
        let vdi = world.vdi;
        let open = world.call(node, move |ctx| async move {
            let gateway = &ctx.node.gateway;
            let volume = match attachment {
                Some(by) => open_attached(gateway, vdi, by).await?,
                None => open_image(gateway, vdi, None).await?,
            };
            ctx.volumes.borrow_mut().insert(handle, volume);
            Ok::<(), VolumeError>(())
        });
        match tokio::time::timeout(PATIENCE, open).await {
            Err(_) | Ok(Err(Lost)) => continue,
            Ok(Ok(Err(e))) => {
                if !matches!(e, VolumeError::ShuttingDown) {
                    world.violation("no_client_errors", format!("opening failed: {e}"));
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
            Ok(Ok(Ok(()))) => {}
        }
        // Opening completes only when nothing of this client's earlier connections can happen any more, wherever they were (rule 6).
        world.history.settle(id);
        let requests = rng.random_range(20..200);
        let ended = if world.attaches() && rng.random_bool(0.5) {
            // Its node is given up in the middle of everything.
            let while_it_lasts = Duration::from_millis(rng.random_range(1..3_000));
            let run = session(&world, id, node, handle, requests, &mut rng);
            tokio::time::timeout(while_it_lasts, run).await.unwrap_or(Err(Lost))
        } else {
            session(&world, id, node, handle, requests, &mut rng).await
        };
        if let Some(by) = attachment
            && rng.random_bool(0.6)
        {
            attaching::detach(&world, by, &mut rng).await;
            world.history.detached(id);
            attachment = None;
            late(&world, id, node, handle).await;
        }
        let orderly = ended.is_ok() && rng.random_bool(0.5);
        let close = world.call(node, move |ctx| async move {
            let volume = ctx.volumes.borrow_mut().remove(&handle);
            if let Some(v) = volume {
                if orderly {
                    v.close().await;
                } else {
                    v.abandon();
                }
            }
        });
        // A node that does not react any more is not waited for.
        let _ = tokio::time::timeout(Duration::from_secs(5), close).await;
    }
}

async fn session(
    world: &Rc<World>,
    id: u64,
    node: usize,
    handle: u64,
    requests: u32,
    rng: &mut SmallRng,
) -> Result<(), Lost> {
    let depth = rng.random_range(1..=6usize);
    let mut running = FuturesUnordered::new();
    let mut left = requests;
    let mut busy: Vec<std::ops::Range<u64>> = Vec::new();
    loop {
        while running.len() < depth && left > 0 && !world.stopping.is_cancelled() {
            left -= 1;
            let ask = choose(world, id, &busy, rng);
            let range = match &ask {
                Ask::Read(..) => 0..0,
                Ask::Write(first, values) => *first..first + values.len() as u64,
                Ask::Zero(first, count, _) => *first..first + count,
            };
            busy.push(range.clone());
            let work = one(world.clone(), id, node, handle, ask);
            running.push(async move { (range, work.await) });
        }
        let ended = running.next().await.map(|(range, result)| {
            if let Some(i) = busy.iter().position(|b| *b == range) {
                busy.swap_remove(i);
            }
            result
        });
        match ended {
            None => return Ok(()),
            Some(Ok(())) => {
                if rng.random_bool(0.3) {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(0..60))).await;
                }
            }
            // The others of this connection are dropped with it: their answers would not arrive either.
            Some(Err(Lost)) => {
                return Err(Lost);
            }
        }
    }
}

/// Blocks that are written by one client only, with their neighbours: the first of each group.
const GROUPS: [u64; 5] = [0, 200, 254, 512, 700];

/// One change at a time of a client on each block. In most worlds only its own blocks, as everybody does who shares a disk without a protocol of his own; in the others those of
/// everybody, through other gateways too. It reads everything.
fn choose(world: &World, id: u64, busy: &[std::ops::Range<u64>], rng: &mut SmallRng) -> Ask {
    let ask = propose(world, rng);
    let (first, count) = match &ask {
        Ask::Read(..) => return ask,
        Ask::Write(first, values) => (*first, values.len() as u64),
        Ask::Zero(first, count, _) => (*first, *count),
    };
    let group = GROUPS.iter().rposition(|g| g * 2 <= first).unwrap_or(0) as u64;
    let mine = world.shares() || group % world.clients.get() + 1 == id;
    let free = busy.iter().all(|b| b.end <= first || first + count <= b.start);
    if mine && free { ask } else { Ask::Read(first, count) }
}

fn propose(world: &World, rng: &mut SmallRng) -> Ask {
    let block = BLOCKS[rng.random_range(0..BLOCKS.len())];
    // Up to three neighbours, also over the edge of an object.
    let blocks = if rng.random_bool(0.2) { rng.random_range(1..=3) } else { 1 };
    let (first, count) = (block * 2, blocks * 2);
    match rng.random_range(0..100) {
        0..45 => Ask::Read(first, count),
        45..80 => Ask::Write(first, (0..count).map(|_| world.history.fresh()).collect()),
        80..92 => {
            // Half a block, or one and a half.
            let count = if rng.random_bool(0.7) { 1 } else { 3 };
            let first = first + rng.random_range(0..2);
            Ask::Write(first, (0..count).map(|_| world.history.fresh()).collect())
        }
        _ => Ask::Zero(first + u64::from(rng.random_bool(0.2)), count, rng.random_bool(0.5)),
    }
}

/// Marks what is still unknown when the request is dropped before its answer.
struct Open<'a>(&'a World, Option<Asked>);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(a) = self.1.take() {
            self.0.history.lost(&a);
        }
    }
}

async fn one(world: Rc<World>, id: u64, node: usize, handle: u64, ask: Ask) -> Result<(), Lost> {
    let registers: Vec<(u64, Kind)> = match &ask {
        Ask::Read(first, n) => (*first..first + n).map(|r| (r, Kind::Read(0))).collect(),
        Ask::Write(first, values) => (*first..).zip(values).map(|(r, v)| (r, Kind::Write(*v))).collect(),
        Ask::Zero(first, n, _) => (*first..first + n).map(|r| (r, Kind::Write(0))).collect(),
    };
    let what = format!("client {id} on node {}: {ask:?}", node + 1);
    tracing::trace!(at = world.history.now(), %what, "asks");
    let mut open = Open(&world, Some(world.history.ask(id, &registers, what.clone())));
    let sent = ask.clone();
    let at = match ask {
        Ask::Read(first, _) | Ask::Write(first, _) | Ask::Zero(first, ..) => world.place(first),
    };
    let call = world.call(node, move |ctx| perform(ctx, handle, at, sent));
    let answer = match tokio::time::timeout(PATIENCE, call).await {
        Err(_) | Ok(Err(Lost)) => return Err(Lost),
        Ok(Ok(answer)) => answer,
    };
    tracing::trace!(at = world.history.now(), %what, ok = answer.is_ok(), "is answered");
    match answer {
        Ok(data) => {
            let values = match ask {
                Ask::Read(..) => Some(decode(&data).map_err(|torn| {
                    world.violation("whole_blocks", format!("{what}: {torn}"));
                    Lost
                })?),
                _ => None,
            };
            if let Some(asked) = open.1.take() {
                world.history.answer(&asked, values.as_deref());
            }
            Ok(())
        }
        // The connection ends without an answer.
        Err(VolumeError::ShuttingDown | VolumeError::Fenced) => Err(Lost),
        Err(e) => {
            world.violation("no_client_errors", format!("{what}: {e}"));
            Err(Lost)
        }
    }
}

async fn perform(ctx: Rc<Ctx>, handle: u64, at: u64, ask: Ask) -> Result<Vec<u8>, VolumeError> {
    let volume = ctx.volumes.borrow().get(&handle).cloned();
    let Some(volume) = volume else { return Err(VolumeError::ShuttingDown) };
    match ask {
        Ask::Read(_, n) => {
            let parts = volume.read(at, (n * REGISTER) as u32).await?;
            Ok(parts.concat())
        }
        Ask::Write(_, values) => {
            volume.write(at, Bytes::from(encode(&values))).await?;
            Ok(Vec::new())
        }
        Ask::Zero(_, n, trim) => {
            if trim {
                volume.trim(at, n * REGISTER).await?;
            } else {
                volume.zero(at, n * REGISTER, ZeroFlags::default()).await?;
            }
            Ok(Vec::new())
        }
    }
}

fn encode(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes().repeat(REGISTER as usize / 8)).collect()
}

/// One value per register; a register with several values in it is torn.
pub fn decode(data: &[u8]) -> Result<Vec<u64>, String> {
    data.chunks(REGISTER as usize)
        .map(|r| {
            let mut words = r.chunks(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default()));
            let first = words.next().unwrap_or(0);
            match words.find(|w| *w != first) {
                None => Ok(first),
                Some(other) => Err(format!("values {first} and {other} in one half of a block")),
            }
        })
        .collect()
}

/// Every register that is ever written.
pub fn registers() -> Vec<u64> {
    let mut all: Vec<u64> = BLOCKS.iter().flat_map(|b| b * 2..(b + 3) * 2 + 2).collect();
    all.sort_unstable();
    all.dedup();
    all.retain(|r| *r < World::registers());
    all
}
