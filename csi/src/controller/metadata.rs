//! Which blocks a snapshot has, and which changed between two: for incremental backups.

use super::{Controller, snapshot};
use crate::csi::*;
use crate::fault::{Fault, Kind, Outcome, kind_of};
use crate::names;
use crate::size::signed;
use sheepdog_client::pb::{DiffRange, DiffRequest, Vdi, VdiRef};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Ranges of one message unless asked for fewer.
const BATCH: usize = 256;

/// A stream of answers.
pub type Answers<T> = ReceiverStream<Result<T, Status>>;

/// Messages that carry ranges.
trait Batch: Send + 'static {
    fn batch(size: u64, blocks: Vec<BlockMetadata>) -> Self;
}

impl Batch for GetMetadataAllocatedResponse {
    fn batch(size: u64, block_metadata: Vec<BlockMetadata>) -> Self {
        let block_metadata_type = BlockMetadataType::VariableLength.into();
        Self { block_metadata_type, volume_capacity_bytes: signed(size), block_metadata }
    }
}

impl Batch for GetMetadataDeltaResponse {
    fn batch(size: u64, block_metadata: Vec<BlockMetadata>) -> Self {
        let block_metadata_type = BlockMetadataType::VariableLength.into();
        Self { block_metadata_type, volume_capacity_bytes: signed(size), block_metadata }
    }
}

/// What was asked for.
struct Question {
    from: u64,
    size: u64,
    batch: usize,
    /// Also what reads as zeros: it changed, if nothing else.
    zeros: bool,
}

impl Question {
    fn new(offset: i64, max: i32, size: u64, zeros: bool) -> Outcome<Self> {
        let from = u64::try_from(offset).ok().filter(|o| *o <= size).ok_or_else(|| {
            Fault::new(
                Kind::OutOfRange,
                format!("the starting offset {offset} is outside the snapshot's {size} bytes"),
            )
        })?;
        let max = usize::try_from(max).map_err(|_| Fault::invalid("max_results is not negative"))?;
        Ok(Self { from, size, batch: if max == 0 { BATCH } else { max.min(BATCH) }, zeros })
    }

    /// The part of a range that was asked for.
    fn clip(&self, r: &DiffRange) -> Option<BlockMetadata> {
        if r.zero && !self.zeros {
            return None;
        }
        let start = r.offset.max(self.from);
        let end = r.offset.saturating_add(r.length).min(self.size);
        (start < end).then(|| BlockMetadata { byte_offset: signed(start), size_bytes: signed(end - start) })
    }
}

pub(super) async fn allocated(
    c: &Controller,
    r: GetMetadataAllocatedRequest,
) -> Outcome<Answers<GetMetadataAllocatedResponse>> {
    let (v, s) = snapshot::the(c, &r.snapshot_id).await?;
    stands_alone(&v)?;
    let question = Question::new(r.starting_offset, r.max_results, s.size, false)?;
    let request = DiffRequest { vdi: Some(VdiRef::id(v.id)), from: String::new(), to: names::word(&v, &s)? };
    Ok(answer(c.sheep.client().diff(request).await?, question))
}

pub(super) async fn delta(
    c: &Controller,
    r: GetMetadataDeltaRequest,
) -> Outcome<Answers<GetMetadataDeltaResponse>> {
    let (base_vdi, base) = snapshot::the(c, &r.base_snapshot_id).await?;
    let (v, target) = snapshot::the(c, &r.target_snapshot_id).await?;
    if base_vdi.id != v.id {
        return Err(Fault::invalid("the two snapshots are of different volumes"));
    }
    let question = Question::new(r.starting_offset, r.max_results, target.size, true)?;
    let request = DiffRequest {
        vdi: Some(VdiRef::id(v.id)),
        from: names::word(&v, &base)?,
        to: names::word(&v, &target)?,
    };
    Ok(answer(c.sheep.client().diff(request).await?, question))
}

/// What a clone still reads from its source is not listed as its own.
fn stands_alone(v: &Vdi) -> Outcome<()> {
    match &v.parent {
        None => Ok(()),
        Some(p) => Err(Fault::precondition(format!(
            "volume {} still reads from {}, so its blocks are not all its own: flatten it first (`dog vdi flatten`, or flatten: \"true\" in the storage class)",
            v.uuid, p.name
        ))),
    }
}

/// Pass ranges on, in batches, for as long as somebody listens.
fn answer<T: Batch>(mut ranges: Streaming<DiffRange>, q: Question) -> Answers<T> {
    let (tx, rx) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut batch = Vec::with_capacity(q.batch);
        loop {
            let range = tokio::select! {
                () = tx.closed() => return,
                range = ranges.message() => range,
            };
            match range {
                Ok(Some(r)) => batch.extend(q.clip(&r)),
                Ok(None) => {
                    let _ = tx.send(Ok(T::batch(q.size, batch))).await;
                    return;
                }
                Err(s) => {
                    let e = sheepdog_client::Error::from(s);
                    let _ = tx.send(Err(Fault::new(kind_of(e.kind), e.message).into())).await;
                    return;
                }
            }
            if batch.len() == q.batch
                && tx.send(Ok(T::batch(q.size, std::mem::take(&mut batch)))).await.is_err()
            {
                return;
            }
        }
    });
    ReceiverStream::new(rx)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_clipped_to_the_question() {
        let range = |offset, length, zero| DiffRange { offset, length, zero };
        let q = Question::new(4096, 0, 16384, false).unwrap();
        let got = q.clip(&range(0, 8192, false)).map(|b| (b.byte_offset, b.size_bytes));
        assert_eq!(got, Some((4096, 4096)));
        assert_eq!(q.clip(&range(0, 4096, false)), None);
        assert_eq!(q.clip(&range(8192, 4096, true)), None);
        let got = q.clip(&range(12288, 1 << 40, false)).map(|b| b.size_bytes);
        assert_eq!(got, Some(4096));
        assert!(Question::new(16385, 0, 16384, true).is_err());
        assert!(Question::new(-1, 0, 16384, true).is_err());
        assert!(Question::new(0, -1, 16384, true).is_err());
    }
}
