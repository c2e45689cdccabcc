//! Giving memory back to the host after a load.
//!
//! What a load needed at its height (overlays, buffers for reuse) stays with the process: the C library keeps what was freed, in pieces between what is still in use.
//! A sheep that has become quiet gives it back, once, and takes it again when it is needed. Ends with its token.

use crate::buf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often is looked.
const LOOK: Duration = Duration::from_secs(5);
/// Bytes of buffers taken between two looks that still count as quiet: a guest's journal, a heartbeat of a database.
const QUIET: u64 = 1 << 20;
/// Bytes of buffers taken since memory was given back last that make it worthwhile.
const WORTH: u64 = 16 << 20;

/// When to give back.
#[derive(Debug, Default)]
struct Meter {
    last: u64,
    given: u64,
}

impl Meter {
    /// Look at the counter of bytes taken; `true`: now.
    fn look(&mut self, taken: u64) -> bool {
        let quiet = taken - std::mem::replace(&mut self.last, taken) <= QUIET;
        let due = quiet && taken - self.given >= WORTH;
        if due {
            self.given = taken;
        }
        due
    }
}

/// Run on the data thread until stopped.
pub async fn run(stop: CancellationToken) {
    let mut meter = Meter::default();
    loop {
        tokio::select! { biased; () = stop.cancelled() => return, () = tokio::time::sleep(LOOK) => {} }
        if meter.look(buf::taken()) {
            buf::give_back();
            // Away from the data thread: it walks the whole heap.
            let trimmed = tokio::task::spawn_blocking(trim).await;
            tracing::debug!(ok = trimmed.is_ok(), "quiet: memory was given back");
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: glibc's; any thread may call it at any time, it touches nothing but free memory, under the allocator's own locks.
    unsafe { malloc_trim(0) };
}

/// Other C libraries give back what is freed by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_after_every_load() {
        let mut m = Meter::default();
        assert!(!m.look(0), "nothing was ever taken");
        assert!(!m.look(WORTH * 3), "under load");
        assert!(m.look(WORTH * 3 + QUIET), "quiet");
        assert!(!m.look(WORTH * 3 + QUIET), "only once");
        let mut taken = WORTH * 3 + QUIET;
        // A trickle: not at every look.
        let times = (0..160).filter(|_| {
            taken += QUIET;
            m.look(taken)
        });
        assert_eq!(times.count(), 10);
    }
}
