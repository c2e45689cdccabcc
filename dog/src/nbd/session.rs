//! One client: the handshake, then requests. They run side by side, each in a task, and are answered as they end.

use super::image::{Fault, Image};
use super::listen::Stream;
use super::{BYTES, REQUESTS};
use bytes::{Bytes, BytesMut};
use sheepdog_nbd::reply::{self, descriptors};
use sheepdog_nbd::server::{Agreed, Handshake, Refusal, Step, TlsPolicy};
use sheepdog_nbd::wire::{self, MAX_EXTENTS};
use sheepdog_nbd::{Command, Errno, Export, RequestHeader, Terms, validate};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

/// For the whole handshake.
const GREETING: Duration = Duration::from_secs(60);

/// What goes out as the answer to one request.
type Reply = Vec<Bytes>;

/// A reply on its way out, with the request's place and room, which it has until it is sent: a client that does not read is not answered on and on.
struct Queued {
    reply: Reply,
    _held: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

/// Serve one client until it leaves. Nothing of it is under way any more when this returns.
pub(super) async fn run(mut stream: Box<dyn Stream>, name: String, image: Arc<dyn Image>) -> io::Result<()> {
    let greeted = tokio::time::timeout(GREETING, greet(&mut stream, &name, &*image)).await;
    let greeted = greeted.map_err(|_| io::Error::other("no handshake in a minute"))?;
    let Some((agreed, early)) = greeted? else { return Ok(()) };
    let (read, mut write) = tokio::io::split(stream);
    let (tx, mut rx) = mpsc::channel::<Queued>(REQUESTS);
    let receive = requests(early, read, image, agreed, tx);
    let send = async move {
        while let Some(queued) = rx.recv().await {
            for part in &queued.reply {
                write.write_all(part).await?;
            }
            if rx.is_empty() {
                write.flush().await?;
            }
        }
        write.shutdown().await
    };
    let (received, sent) = tokio::join!(receive, send);
    received?;
    match sent {
        // It has left without waiting: its own matter.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// `None`: the client wanted nothing else. With what it has agreed to comes what it has sent already.
async fn greet(
    stream: &mut Box<dyn Stream>,
    name: &str,
    image: &dyn Image,
) -> io::Result<Option<(Agreed, BytesMut)>> {
    let mut machine = Handshake::new(TlsPolicy::Off);
    let mut input = BytesMut::with_capacity(4096);
    let mut step = Step::Progress;
    let export = |asked: &str| {
        let known = asked.is_empty() || asked == name;
        let (size, read_only) = (image.size(), image.read_only());
        let export = Export { name: asked.to_owned(), description: "served by dog".into(), size, read_only };
        if known { Ok(export) } else { Err(Refusal::Unknown(format!("only \"{name}\" is served here"))) }
    };
    loop {
        stream.write_all(&machine.take_output()).await?;
        stream.flush().await?;
        step = match step {
            Step::NeedInput if stream.read_buf(&mut input).await? == 0 => return Ok(None),
            Step::NeedInput | Step::Progress => machine.step(&mut input).map_err(io::Error::other)?,
            Step::List => machine.listed([name]),
            Step::Describe(asked) | Step::Open(asked) => match export(&asked) {
                Ok(e) => machine.found(&e),
                Err(no) => machine.refused(&no),
            },
            Step::Ready(agreed) => return Ok(Some((agreed, input))),
            // Encryption is not offered.
            Step::StartTls | Step::Closed => return Ok(None),
        };
    }
}

async fn requests(
    early: BytesMut,
    read: impl tokio::io::AsyncRead + Unpin,
    image: Arc<dyn Image>,
    agreed: Agreed,
    replies: mpsc::Sender<Queued>,
) -> io::Result<()> {
    let mut read = tokio::io::BufReader::new(AsyncReadExt::chain(&early[..], read));
    let (slots, room) = (Arc::new(Semaphore::new(REQUESTS)), Arc::new(Semaphore::new(BYTES)));
    let mut running = JoinSet::new();
    let ended = loop {
        let mut raw = [0; wire::REQUEST_LEN];
        match read.read_exact(&mut raw).await {
            Ok(_) => {}
            // Some clients just leave.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break Ok(()),
            Err(e) => break Err(e),
        }
        let parsed = RequestHeader::parse(&raw).and_then(|h| Ok((h, h.payload()?)));
        let (header, payload) = match parsed {
            Ok(p) => p,
            Err(e) => break Err(io::Error::other(e)),
        };
        let terms = Terms {
            size: image.size(),
            read_only: image.read_only(),
            structured: agreed.structured,
            base_allocation: agreed.base_allocation,
        };
        let command = match validate(&header, &terms) {
            Ok(Command::Disconnect) => break Ok(()),
            Ok(command) => command,
            Err(refused) => {
                let skipped =
                    tokio::io::copy(&mut (&mut read).take(payload.into()), &mut tokio::io::sink()).await;
                if let Err(e) = skipped {
                    break Err(e);
                }
                let fault = Fault::new(refused.errno, refused.why);
                let reply = failure(agreed, header.cookie, &fault);
                if replies.send(Queued { reply, _held: None }).await.is_err() {
                    break Ok(());
                }
                continue;
            }
        };
        let weight = match command {
            Command::Read { len, .. } | Command::Write { len, .. } => len,
            _ => 0,
        };
        // Neither semaphore is ever closed.
        let (Ok(slot), Ok(bytes)) =
            (slots.clone().acquire_owned().await, room.clone().acquire_many_owned(weight).await)
        else {
            break Ok(());
        };
        let mut data = vec![0; payload as usize];
        if let Err(e) = read.read_exact(&mut data).await {
            break Err(e);
        }
        let (image, replies) = (image.clone(), replies.clone());
        running.spawn(async move {
            let reply = one(&*image, agreed, header.cookie, command, data.into()).await;
            // The client may have left.
            let _ = replies.send(Queued { reply, _held: Some((slot, bytes)) }).await;
        });
        while running.try_join_next().is_some() {}
    };
    // What has begun goes to its end.
    while running.join_next().await.is_some() {}
    ended
}

/// Carry out one request.
async fn one(image: &dyn Image, agreed: Agreed, cookie: u64, command: Command, payload: Bytes) -> Reply {
    let done = |r: Result<(), Fault>| match r {
        Ok(()) if agreed.structured => vec![Bytes::copy_from_slice(&reply::done(cookie))],
        Ok(()) => vec![Bytes::copy_from_slice(&reply::simple(cookie, None))],
        Err(fault) => failure(agreed, cookie, &fault),
    };
    match command {
        Command::Read { len: 0, .. } | Command::Write { len: 0, .. } => done(Ok(())),
        Command::Trim { len: 0, .. } | Command::WriteZeroes { len: 0, .. } => done(Ok(())),
        Command::Read { offset, len, .. } => match image.read(offset, len).await {
            Ok(data) if data.len() == len as usize => {
                let head = match agreed.structured {
                    true => reply::data(cookie, offset, len, true),
                    false => reply::simple(cookie, None),
                };
                vec![Bytes::copy_from_slice(&head), data]
            }
            Ok(_) => failure(agreed, cookie, &Fault::new(Errno::Io, "a read ended early")),
            Err(fault) => failure(agreed, cookie, &fault),
        },
        Command::Write { offset, .. } => done(image.write(offset, payload).await),
        // Every write is durable when it is acknowledged; what is cached for a read is nobody's promise.
        Command::Flush | Command::Cache { .. } | Command::Disconnect => done(Ok(())),
        Command::Trim { offset, len } => done(image.zero(offset, len.into(), false).await),
        Command::WriteZeroes { no_hole: true, fast: true, .. } => {
            done(Err(Fault::new(Errno::NotSup, "zeroing with the space kept is as slow as writing zeros")))
        }
        Command::WriteZeroes { fast: true, offset, len, .. } if !image.zeroes_fast(offset, len.into()) => {
            done(Err(Fault::new(Errno::NotSup, "zeros are written as data until all of it is restored")))
        }
        Command::WriteZeroes { offset, len, no_hole, .. } => {
            done(image.zero(offset, len.into(), no_hole).await)
        }
        Command::BlockStatus { offset, len, one } => match image.status(offset, len.into()).await {
            Ok(runs) => {
                let mut runs = descriptors(runs, wire::PREFERRED_BLOCK, len);
                runs.truncate(if one { 1 } else { MAX_EXTENTS });
                match runs.is_empty() {
                    true => failure(agreed, cookie, &Fault::new(Errno::Io, "nothing is known of this range")),
                    false => vec![reply::block_status(cookie, &runs)],
                }
            }
            Err(fault) => failure(agreed, cookie, &fault),
        },
    }
}

fn failure(agreed: Agreed, cookie: u64, fault: &Fault) -> Reply {
    vec![match agreed.structured {
        true => reply::error(cookie, fault.errno, &fault.why),
        false => Bytes::copy_from_slice(&reply::simple(cookie, Some(fault.errno))),
    }]
}
