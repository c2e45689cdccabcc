//! Aligned buffers that travel from socket to disk without a copy.
//!
//! A fresh page costs about a microsecond of CPU, so buffers are recycled: dropping the last `Bytes` of a buffer
//! puts it back into the free list of the dropping thread. Each list is bounded by `KEEP_BYTES`.
//! All buffers are aligned to 4 KiB and rounded up to a power-of-two capacity, so any 4 KiB-aligned slice of one may go to an
//! `O_DIRECT` file.

use bytes::Bytes;
use sheepdog_proto::BLOCK_SIZE;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes each thread keeps for reuse. Enough for 32 requests of 1 MiB in flight.
const KEEP_BYTES: usize = 32 << 20;
const CLASSES: usize = 16; // 4 KiB << 0 ..= 4 KiB << 15 (128 MiB)

struct Raw {
    ptr: NonNull<u8>,
    class: usize,
}

// SAFETY: `Raw` owns its memory alone; nothing about it is tied to a thread.
unsafe impl Send for Raw {}
// SAFETY: shared access only reads through `&AlignedBuf`.
unsafe impl Sync for Raw {}

fn layout(class: usize) -> Layout {
    Layout::from_size_align(BLOCK_SIZE << class, BLOCK_SIZE).expect("a power of two below isize::MAX")
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `AlignedBuf::zeroed`.
        unsafe { dealloc(self.ptr.as_ptr(), layout(self.class)) }
    }
}

#[derive(Default)]
struct FreeList {
    classes: [Vec<Raw>; CLASSES],
    bytes: usize,
    /// Bytes handed out so far, new or used.
    taken: u64,
}

thread_local! {
    static FREE: RefCell<FreeList> = RefCell::default();
}

/// A writable buffer, aligned to 4 KiB. `freeze` makes it shareable. Contents of a new one are whatever was there before
/// (never uninitialised memory): write before you read.
pub struct AlignedBuf {
    raw: Option<Raw>,
    len: usize,
}

impl AlignedBuf {
    /// `len` bytes with old contents.
    pub fn new(len: usize) -> Self {
        let class = len.div_ceil(BLOCK_SIZE).next_power_of_two().trailing_zeros() as usize;
        assert!(class < CLASSES, "buffers are bounded by the payload cap");
        let reused = FREE.try_with(|f| {
            let mut f = f.borrow_mut();
            f.taken += (BLOCK_SIZE << class) as u64;
            let raw = f.classes[class].pop()?;
            f.bytes -= BLOCK_SIZE << class;
            Some(raw)
        });
        let raw = reused.ok().flatten().unwrap_or_else(|| {
            // SAFETY: the layout has a size of at least 4 KiB.
            let ptr = unsafe { alloc_zeroed(layout(class)) };
            Raw { ptr: NonNull::new(ptr).unwrap_or_else(|| handle_alloc_error(layout(class))), class }
        });
        Self { raw: Some(raw), len }
    }
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let mut b = Self::new(len);
        b.fill(0);
        b
    }
    /// A copy of `data`.
    pub fn copy_of(data: &[u8]) -> Self {
        let mut b = Self::new(data.len());
        b.copy_from_slice(data);
        b
    }
    /// Shorten to `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
    /// Immutable, cheaply cloned and sliced; goes back to the pool when the last clone is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
    fn base(&self) -> *mut u8 {
        self.raw.as_ref().expect("only taken in drop").ptr.as_ptr()
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` never exceeds the allocation, which was initialised (zeroed) when made.
        unsafe { std::slice::from_raw_parts(self.base(), self.len) }
    }
}
impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.base(), self.len) }
    }
}
impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}
impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let Some(raw) = self.raw.take() else { return };
        let size = BLOCK_SIZE << raw.class;
        // During thread shutdown the list may be gone: then the memory is simply freed.
        let _ = FREE.try_with(|f| {
            let mut f = f.borrow_mut();
            if f.bytes + size <= KEEP_BYTES {
                f.bytes += size;
                f.classes[raw.class].push(raw);
            }
        });
    }
}

/// Bytes of buffers that this thread has handed out since it began.
pub fn taken() -> u64 {
    FREE.with(|f| f.borrow().taken)
}

/// Free what this thread keeps for reuse.
pub fn give_back() {
    FREE.with(|f| {
        let mut f = f.borrow_mut();
        *f = FreeList { taken: f.taken, ..FreeList::default() };
    });
}

/// Is this slice fit for `O_DIRECT`?
pub fn is_aligned(data: &[u8]) -> bool {
    data.len().is_multiple_of(BLOCK_SIZE) && (data.as_ptr() as usize).is_multiple_of(BLOCK_SIZE)
}

/// `data` itself when it is fit for `O_DIRECT`, else an aligned copy.
pub fn aligned(data: Bytes) -> Bytes {
    if is_aligned(&data) { data } else { AlignedBuf::copy_of(&data).freeze() }
}

thread_local! {
    static ZEROS: Bytes = AlignedBuf::zeroed(1 << 20).freeze();
}

/// `len` (at most 1 MiB) shared zero bytes, aligned.
pub fn zeros(len: usize) -> Bytes {
    ZEROS.with(|z| z.slice(..len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_recycled() {
        let a = AlignedBuf::new(5000);
        assert_eq!(a.len(), 5000);
        let p = a.as_ptr();
        assert_eq!(p as usize % BLOCK_SIZE, 0);
        let b = a.freeze();
        let c = b.slice(4096..);
        drop(b);
        drop(c);
        assert_eq!(AlignedBuf::new(8192).as_ptr(), p, "same class comes back");
    }

    #[test]
    fn unaligned_is_copied() {
        let b = AlignedBuf::copy_of(&[7; 8192]).freeze();
        assert!(is_aligned(&aligned(b.slice(0..4096))));
        assert_eq!(aligned(b.slice(1..4097)), b.slice(1..4097));
    }
}
