//! `dog vdi restore --lazy`: the process that serves a volume while it is restored. What makes it safe is in `backup::lazy`; here is when it begins and ends.
//!
//! ```text
//! nothing ──create──► empty ──mark──► attached, served, filled ──all there──► mark gone ──no client left──► detached: a plain volume
//!                                        ▲         │
//!                                        └─ again ─┘ died, interrupted
//! ```
//! At each arrow it may die: the same command goes on there. The attachment keeps everybody else from writing meanwhile; a process that comes later takes it from the one before,
//! whose writes have all taken effect then, or never will. Only after that it looks at what is there.

use crate::backup::chunks::Chunks;
use crate::backup::lazy::Lazy;
use crate::backup::load;
use crate::backup::mark::{self, HOLDER, Mark};
use crate::contents::Contents;
use crate::context::{Context, vdi as by_name};
use crate::failure::{Failure, code};
use crate::nbd::{Address, Listener, serve};
use crate::output::Output;
use crate::progress::{Progress, Unit};
use sheepdog_backup::{Manifest, Repository};
use sheepdog_client::pb::{
    AttachRequest, DetachRequest, GetVdiRequest, Redundancy, Vdi, VdiRef, attachment, detach_request::Which,
};
use sheepdog_client::{Client, ErrorKind};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Chunks filled at a time.
const FILLS: usize = 4;
/// How often it is tried to get what could not be had.
const ROUNDS: usize = 3;
/// Between these.
const RETRY: Duration = Duration::from_secs(2);
/// How often the VDI is told how far it is.
const TELL: Duration = Duration::from_secs(2);
/// While the connection to the sheep is broken.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is to be done.
pub struct Job<'a> {
    /// Where it lies.
    pub repository: &'a Repository,
    /// Which backup.
    pub of: &'a Manifest,
    /// Name of the VDI.
    pub name: &'a str,
    /// Of a VDI that is made now.
    pub redundancy: Option<Redundancy>,
    /// For clients.
    pub listen: &'a Address,
    /// Bytes of the backup a second at which it is filled at most.
    pub rate: Option<u64>,
}

/// Until all of it is there and nobody is connected any more.
pub async fn run(ctx: &Context, job: Job<'_>) -> Result<Output, Failure> {
    let client = ctx.client().await?;
    let mark = Mark { repository: job.repository.id().to_owned(), backup: job.of.id.clone() };
    let index = job.repository.index(job.of).await?;
    let listener = Listener::bind(job.listen).await?;
    let vdi = match begin(ctx, &job, &mark).await? {
        Begun::Restore(vdi) => vdi,
        Begun::There(vdi) => {
            detach(client, vdi.id).await?;
            eprintln!("dog: all of {} is there", vdi.name);
            return Ok(Output::Done(super::record(&vdi)));
        }
    };
    detach(client, vdi.id).await?;
    let target = Some(VdiRef::id(vdi.id));
    let access = attachment::Access::Single.into();
    let ours = client.attach(AttachRequest { vdi: target.clone(), holder: HOLDER.into(), access }).await?;
    // As it is now that nobody changes it any more.
    let vdi = client.get_vdi(GetVdiRequest { vdi: target, usage: false }).await?;
    if vdi.size < job.of.volume.size {
        return Err(Failure::new(
            code::FAILED,
            format!("{} is smaller than its backup: it was shrunk", vdi.name),
        )
        .hint(format!("dog vdi resize {} {} makes room", vdi.name, job.of.volume.size)));
    }
    let volume = Contents::open(ctx, vdi.id, String::new(), vdi.size, ours.id, PATIENCE).await?;
    // The first read waits until what an earlier gateway left unfinished is decided; what is allocated stays so from then on.
    volume.read(0, vdi.size.min(512)).await?;
    let present = volume.allocated(true).await?;
    let backup = Chunks::new(job.repository.clone(), index, job.of.volume.size);
    let image = Arc::new(Lazy::new(backup, volume, present, mark::until(&vdi)));
    eprintln!("dog: {} is served at {} while it is restored", vdi.name, listener.uri(&vdi.name));

    let (clients, connected) = watch::channel(0);
    let again = |f: Failure| {
        let message = format!("{}: not all of {} is there", f.message, vdi.name);
        Failure { message, ..f }.hint("the same command goes on where it was")
    };
    tokio::select! {
        broken = serve(&listener, &vdi.name, image.clone(), &clients) => return Err(again(broken)),
        broken = image.broken() => return Err(again(broken)),
        _ = tokio::signal::ctrl_c() => return Err(again(Failure::new(code::FAILED, "interrupted"))),
        done = work(client, &vdi, ours.id, &mark, &image, connected, job.rate) => done?,
    }
    detach(client, vdi.id).await?;
    Ok(Output::Done(super::record(&vdi)))
}

enum Begun {
    Restore(Vdi),
    /// It was restored, and not detached.
    There(Vdi),
}

/// The VDI, made now or by an earlier process.
async fn begin(ctx: &Context, job: &Job<'_>, mark: &Mark) -> Result<Begun, Failure> {
    let client = ctx.client().await?;
    // Always the same, so that one that was made and not yet marked is known again.
    let seed =
        job.repository.name(format!("lazy {} {} {}", mark.repository, mark.backup, job.name).as_bytes());
    let uuid =
        uuid::Builder::from_random_bytes(seed.0[..16].try_into().unwrap_or_default()).into_uuid().to_string();
    let vdi = match client.get_vdi(GetVdiRequest { vdi: by_name(job.name), usage: false }).await {
        Err(e) if e.kind == ErrorKind::Missing => {
            load::create(ctx, job.of, job.name, job.redundancy, uuid.clone()).await?
        }
        found => found?,
    };
    let name = &vdi.name;
    if Mark::restoring(&vdi).as_ref() == Some(mark) {
        return Ok(Begun::Restore(vdi));
    }
    if mark::is_restoring(&vdi) {
        let text = format!("VDI {name} is being restored from another backup");
        return Err(Failure::new(3, text)
            .hint("go on with that one (dog vdi getattr NAME dog.restoring names it), or say another name"));
    }
    if Mark::restored(&vdi).as_ref() == Some(mark) && vdi.attachments.iter().any(|a| a.holder == HOLDER) {
        return Ok(Begun::There(vdi));
    }
    if vdi.uuid != uuid || Mark::restored(&vdi).is_some() {
        return Err(Failure::new(3, format!("there is a VDI named {name} already"))
            .hint("say another name for the new one"));
    }
    load::attributes(ctx, job.of, &VdiRef::id(vdi.id)).await?;
    mark.begin(client, vdi.id).await?;
    Ok(Begun::Restore(vdi))
}

/// What an earlier process was allowed to do is over with the answer.
async fn detach(client: &Client, vdi: u32) -> Result<(), Failure> {
    let which = Some(Which::Holder(HOLDER.into()));
    client.detach(DetachRequest { vdi: Some(VdiRef::id(vdi)), which }).await?;
    Ok(())
}

/// Fill, tell, and wait until nobody is connected.
async fn work(
    client: &Client,
    vdi: &Vdi,
    attachment: u64,
    mark: &Mark,
    image: &Lazy,
    mut connected: watch::Receiver<usize>,
    rate: Option<u64>,
) -> Result<(), Failure> {
    tokio::select! {
        () = fill(image, rate) => {}
        never = tell(client, vdi, attachment, image) => match never {},
    }
    let name = &vdi.name;
    let mut hurt = image.hurt();
    if hurt > 0 {
        eprintln!("dog: {hurt} chunks of {name} could not be had: reads of them fail");
        // Clients go on with what there is, and may write over it.
        let _ = connected.wait_for(|n| *n == 0).await;
        hurt = image.hurt();
    }
    if hurt > 0 {
        let text = format!("{hurt} chunks of {name} could not be had, all others are there");
        return Err(Failure::new(code::FAILED, text).hint("mend the repository (a backup with --full stores again what the volume still has) and say the same command again"));
    }
    mark.end(client, vdi).await?;
    image.release(usize::MAX);
    eprintln!("dog: all of {name} is there");
    let _ = connected.wait_for(|n| *n == 0).await;
    Ok(())
}

/// Everything that can be had, once each, and what cannot be had some times.
async fn fill(image: &Lazy, rate: Option<u64>) {
    let (all, _) = image.progress();
    let bar = Progress::new("Restoring", all as u64, Unit::Count);
    // Each chunk takes its share of a second, whoever fills it.
    let pause =
        rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(image.chunk() as f64 / rate as f64));
    let turn = Cell::new(Instant::now());
    for round in 0..ROUNDS {
        let worker = || async {
            loop {
                let mine = turn.get().max(Instant::now());
                turn.set(mine + pause);
                tokio::time::sleep_until(mine).await;
                match image.fill_next().await {
                    None => return,
                    Some(Err(f)) if round == 0 => bar.line(&format!("dog: {}", f.message)),
                    Some(_) => {}
                }
                bar.advance((all - image.progress().1) as u64);
            }
        };
        futures::future::join_all((0..FILLS).map(|_| worker())).await;
        if image.hurt() == 0 {
            return;
        }
        if round + 1 < ROUNDS {
            tokio::time::sleep(RETRY).await;
            image.again();
        }
    }
}

/// Now and then how far it is. When that cannot be told, the next time.
async fn tell(client: &Client, vdi: &Vdi, attachment: u64, image: &Lazy) -> std::convert::Infallible {
    let mut told = 0;
    loop {
        tokio::time::sleep(TELL).await;
        let first = image.first_missing();
        if first > told && mark::set_until(client, vdi.id, attachment, first).await.is_ok() {
            image.release(first);
            told = first;
        }
    }
}
