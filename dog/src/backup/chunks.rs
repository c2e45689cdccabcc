//! Contents of one backup, read here and there: chunks that are asked for several times, or by several at once, are fetched once as long as they are kept.

use super::load::named;
use crate::failure::{Failure, code};
use bytes::Bytes;
use sheepdog_backup::{Entry, Index, Repository};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;

/// Bytes of chunks that are kept.
const KEEP: usize = 32 << 20;

/// Chunks in the order of their fetching, each with its number.
type Kept = VecDeque<(usize, Arc<OnceCell<Bytes>>)>;

/// See the module.
pub struct Chunks {
    repository: Repository,
    index: Index,
    size: u64,
    kept: Mutex<Kept>,
}

impl Chunks {
    /// Of a backup with this index, of a volume of `size` bytes.
    pub fn new(repository: Repository, index: Index, size: u64) -> Self {
        Self { repository, index, size, kept: Mutex::default() }
    }

    /// Bytes of the volume.
    pub fn size(&self) -> u64 {
        self.size
    }
    /// Bytes of a chunk.
    pub fn chunk(&self) -> u64 {
        self.index.chunk().into()
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.index.len()
    }
    /// Which bytes of the volume a chunk is.
    pub fn range(&self, number: usize) -> Range<u64> {
        let start = number as u64 * self.chunk();
        start..(start + self.chunk()).min(self.size)
    }
    /// Is it zeros? So is what lies behind the end.
    pub fn is_hole(&self, number: usize) -> bool {
        self.index.get(number) == Entry::Hole
    }

    /// A chunk that is no hole: as many bytes as `range` says, checked.
    ///
    /// # Errors
    /// It cannot be had, or is damaged; with its place in the volume and its name.
    pub async fn get(&self, number: usize) -> Result<Bytes, Failure> {
        let Entry::Data(id) = self.index.get(number) else { return Ok(Bytes::new()) };
        let cell = self.cell(number);
        let fetched = cell.get_or_try_init(|| async {
            let Range { start, end } = self.range(number);
            let data = self.repository.get(id).await.map_err(|e| named(e, start, end - start))?;
            if data.len() as u64 != end - start {
                let text =
                    format!("the chunk at {start} has {} bytes and should have {}", data.len(), end - start);
                return Err(Failure::new(code::FAILED, text));
            }
            Ok(Bytes::from(data))
        });
        fetched.await.cloned()
    }

    fn cell(&self, number: usize) -> Arc<OnceCell<Bytes>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, cell)) = kept.iter().find(|(n, _)| *n == number) {
            return cell.clone();
        }
        let most = (KEEP / self.chunk() as usize).max(8);
        if kept.len() >= most {
            kept.pop_front();
        }
        let cell = Arc::new(OnceCell::new());
        kept.push_back((number, cell.clone()));
        cell
    }
}
