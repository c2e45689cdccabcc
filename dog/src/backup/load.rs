//! A backup goes into a volume.

use super::mark;
use crate::context::Context;
use crate::failure::{Failure, code};
use crate::progress::{Progress, Unit};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use sheepdog_backup::hex::unhex;
use sheepdog_backup::{Entry, Error, Index, Manifest, Repository};
use sheepdog_client::client::MAX_CHUNK;
use sheepdog_client::pb::{Chunk, CreateVdiRequest, Redundancy, SetAttrRequest, Vdi, VdiRef};
use tokio::sync::mpsc;

/// Chunks fetched at a time.
const FETCHES: usize = 8;
/// Zeros are left out in pieces of this size: what an object can be without.
const PIECE: usize = 64 << 10;

/// What could not be had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hurt {
    /// Chunks.
    pub chunks: u64,
    /// Bytes of the volume.
    pub bytes: u64,
}

/// The volume that a backup was made of, empty.
pub async fn create(
    ctx: &Context,
    of: &Manifest,
    name: &str,
    redundancy: Option<Redundancy>,
    uuid: String,
) -> Result<Vdi, Failure> {
    let request = CreateVdiRequest {
        name: name.to_owned(),
        size: of.volume.size,
        redundancy,
        object_size: of.volume.object_size,
        uuid,
        ..Default::default()
    };
    Ok(ctx.client().await?.create_vdi(request).await?)
}

/// Attributes as they were.
pub async fn attributes(ctx: &Context, of: &Manifest, target: &VdiRef) -> Result<(), Failure> {
    for (key, value) in of.volume.attributes.iter().filter(|(key, _)| !mark::is_ours(key)) {
        let (vdi, key, value) = (Some(target.clone()), key.clone(), unhex(value));
        let request = SetAttrRequest { vdi, key, value, exclusive: false };
        ctx.client().await?.set_attr(request).await?;
    }
    Ok(())
}

/// Make `target`, which has what `from` says, what `index` says. With `keep_going` chunks that are damaged are left as they are, and told.
pub async fn contents(
    ctx: &Context,
    repository: &Repository,
    target: VdiRef,
    (from, index): (&Index, &Index),
    size: u64,
    keep_going: bool,
) -> Result<Hurt, Failure> {
    let changes: Vec<(usize, Entry)> = index.changes(from).collect();
    let chunk = u64::from(index.chunk());
    let bar = Progress::new("Restoring", changes.len() as u64 * chunk, Unit::Bytes);
    let (tx, rx) = mpsc::channel::<Chunk>(FETCHES);
    let mut hurt = Hurt::default();
    let send = async {
        let fetched = stream::iter(changes).map(|(n, entry)| async move {
            match entry {
                Entry::Hole => (n, Ok(None)),
                Entry::Data(id) => (n, repository.get(id).await.map(Some)),
            }
        });
        // In order: neighbours are written together.
        let mut fetched = fetched.buffered(FETCHES);
        let mut done = 0;
        while let Some((n, got)) = fetched.next().await {
            let offset = n as u64 * chunk;
            let length = (size - offset.min(size)).min(chunk);
            match got {
                Ok(None) => {
                    if tx.send(Chunk { offset, data: Bytes::new(), zeros: length }).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(Some(data)) if data.len() as u64 == length => {
                    let fresh = from.get(n) == Entry::Hole;
                    let data = Bytes::from(data);
                    for (at, part) in parts(&data, fresh) {
                        // The stream ended with an error, which its other end reports.
                        let chunk = Chunk { offset: offset + at, data: data.slice_ref(part), zeros: 0 };
                        if tx.send(chunk).await.is_err() {
                            return Ok(());
                        }
                    }
                }
                Ok(Some(data)) => {
                    return Err(Failure::new(
                        code::FAILED,
                        format!("the chunk at {offset} has {} bytes and should have {length}", data.len()),
                    ));
                }
                Err(e) if e.is_damage() && keep_going => {
                    bar.line(&format!("bytes {offset} to {}: {e}", offset + length));
                    hurt.chunks += 1;
                    hurt.bytes += length;
                }
                Err(e) => return Err(named(e, offset, length)),
            }
            done += chunk;
            bar.advance(done);
        }
        drop(tx);
        Ok(())
    };
    let receive = async {
        let client = ctx.client().await?;
        let mut acks = client.write(target, tokio_stream::wrappers::ReceiverStream::new(rx)).await?;
        while acks.message().await?.is_some() {}
        Ok::<(), Failure>(())
    };
    let (sent, received) = tokio::join!(send, receive);
    sent?;
    received?;
    Ok(hurt)
}

/// What has to be written of a chunk; where there is nothing yet, not its zeros.
fn parts(data: &[u8], fresh: bool) -> Vec<(u64, &[u8])> {
    let whole = |(i, part)| ((i * MAX_CHUNK) as u64, part);
    let large = data.chunks(MAX_CHUNK).enumerate().map(whole);
    if !fresh {
        return large.collect();
    }
    let mut out: Vec<(u64, &[u8])> = Vec::new();
    for (at, part) in large {
        let mut first = None;
        for (i, piece) in part.chunks(PIECE).enumerate() {
            let start = i * PIECE;
            if piece.iter().any(|b| *b != 0) {
                first.get_or_insert(start);
            } else if let Some(from) = first.take() {
                out.push((at + from as u64, &part[from..start]));
            }
        }
        if let Some(from) = first {
            out.push((at + from as u64, &part[from..]));
        }
    }
    out
}

/// With the part of the volume it is.
pub(super) fn named(e: Error, offset: u64, length: u64) -> Failure {
    let f = Failure::from(e);
    Failure { message: format!("bytes {offset} to {} of the volume: {}", offset + length, f.message), ..f }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_written_only_over_something() {
        let mut data = vec![0u8; MAX_CHUNK + PIECE + 5];
        data[2 * PIECE] = 1;
        data[3 * PIECE + 1] = 1;
        data[MAX_CHUNK - 1] = 1;
        let ends =
            |fresh| parts(&data, fresh).iter().map(|(at, p)| (*at as usize, p.len())).collect::<Vec<_>>();
        assert_eq!(ends(true), [(2 * PIECE, 2 * PIECE), (MAX_CHUNK - PIECE, PIECE)]);
        assert_eq!(ends(false), [(0, MAX_CHUNK), (MAX_CHUNK, PIECE + 5)]);
        data[MAX_CHUNK + PIECE + 4] = 1;
        assert_eq!(
            parts(&data, true).last().map(|(at, p)| (*at as usize, p.len())),
            Some((MAX_CHUNK + PIECE, 5))
        );
        assert!(parts(&[0; 100], true).is_empty());
    }
}
